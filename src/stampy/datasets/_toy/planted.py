"""Sections whose best possible masked-gene loss is known: programmes of genes, planted in space and at random.

Shapes: n spots, G genes, D domains, R states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _keys, _utils

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["TILE_PX", "UM_PER_PX", "Planted", "best_loss", "planted"]

TILE_PX = 64
UM_PER_PX = _keys.TILE_UM / TILE_PX


class Planted(NamedTuple):
    """Sections and what they were drawn from."""

    sections: list[AnnData]
    genes: pd.DataFrame  # gene_id, symbol, divisor: a vocabulary in which all genes have the same level
    odds: list[np.ndarray]  # by section, (n, G): odds that a spot shows a gene


def planted(
    n_spots: int = 400,
    n_sections: int = 4,
    *,
    n_genes: int = 200,
    n_domains: int = 4,
    n_states: int = 4,
    shown: int = 40,
    domain_effect: float = 1.5,
    state_effect: float = 2.5,
    batch_effect: float = 0.5,
    texture_effect: float = 0.0,
    rng: int | np.random.Generator | None = 0,
) -> Planted:
    """Draw sections in which each spot shows each gene independently, with odds that are known.

    The log odds of a gene are the sum of its level, the programme of the spot's domain (patches of tissue: what
    neighbours share), the programme of the spot's state (drawn for each spot alone: what neighbours do not share), and
    a batch effect of the section along two directions. Genes stand in random order, so that a rank says nothing.

    With a `texture_effect` each spot has besides a direction of its own: fibres of this direction fill its tile of
    `TILE_PX`, in a colour and brightness that say nothing, and a programme of genes turns with it.

    Parameters
    ----------
    n_spots, n_sections, n_genes, n_domains, n_states
        Sizes; spots are those of a section, on a square grid.
    shown
        Genes that a spot shows on average.
    domain_effect, state_effect, batch_effect, texture_effect
        Deviation of the programmes' log odds; without a `texture_effect` there are no images.
    rng
        Seed or generator.

    Examples
    --------
    >>> found = planted(n_spots=50, n_sections=2)
    >>> found.sections[0].shape, sorted(found.sections[0].obs)
    ((50, 200), ['domain', 'state'])
    """
    random = _utils.generator(rng)
    level = random.normal(0, 1, n_genes)
    domains = random.normal(0, domain_effect, (n_domains, n_genes))
    states = random.normal(0, state_effect, (n_states, n_genes))
    batches = random.normal(0, batch_effect, (2, n_genes))
    turning = random.normal(0, texture_effect, (2, n_genes)) if texture_effect else None
    names = [f"G{i}" for i in range(n_genes)]
    genes = pd.DataFrame({"gene_id": names, "symbol": names, "divisor": 1.0})
    sections, odds = [], []
    for _ in range(n_sections):
        xy = _grid(n_spots)
        domain = _patches(xy, n_domains, random)
        state = random.integers(n_states, size=n_spots)
        logits = level + domains[domain] + states[state] + random.normal(0, 1, 2) @ batches
        angle = None
        if turning is not None:  # a direction comes back after half a turn
            angle = random.uniform(0, np.pi, n_spots)
            logits += np.stack([np.cos(2 * angle), np.sin(2 * angle)], axis=1) @ turning
        logits += _offset(logits, shown)[:, None]
        section = _section(xy, logits, domain, state, names, random)
        if angle is not None:
            _add_image(section, xy, angle, random)
        sections.append(section)
        odds.append(np.exp(logits))
    return Planted(sections, genes, odds)


def best_loss(odds: np.ndarray, shows: np.ndarray, *, fraction: float = 0.15, rng: int = 0) -> float:
    """The cross-entropy (nats) at masked positions of one who knows the odds and sees the other genes of a spot.

    Parameters
    ----------
    odds
        (n, G).
    shows
        (n, G) bool, which genes the spots show.
    fraction
        Share of them that is masked.
    rng
        Seed of the masks.

    Notes
    -----
    Given the genes that are seen, and that M are hidden, a hidden one is gene g with a probability proportional to
    t o_g / (1 + t o_g) over the genes that are not seen, t such that these add up to M (exact for large M).
    """
    random = _utils.stream(rng, "masks")  # unrelated to a draw of the spots by the same seed
    total, n = 0.0, 0
    for o, there in zip(odds, shows, strict=True):
        hidden = there & (random.random(len(there)) < fraction)
        m = int(hidden.sum())
        if not m:
            continue
        free = o[~(there & ~hidden)]
        low, high = -50.0, 50.0
        for _ in range(60):  # bisection for log t
            t = (low + high) / 2
            low, high = (t, high) if (np.exp(t) * free / (1 + np.exp(t) * free)).sum() < m else (low, t)
        share = np.exp(t) * o / (1 + np.exp(t) * o) / m
        total -= np.log(share[hidden]).sum()
        n += m
    return total / max(n, 1)


def _add_image(section: AnnData, xy: np.ndarray, angle: np.ndarray, random: np.random.Generator) -> None:
    """Beside the counts, an image of `TILE_PX` for each spot, with `UM_PER_PX`: fibres of the spot's direction."""
    side = TILE_PX * (int(xy.max()) + 1)
    image = np.zeros((side, side, 3), np.uint8)
    y, x = np.mgrid[:TILE_PX, :TILE_PX]
    for (column, row), own in zip(xy.astype(int) * TILE_PX, angle, strict=True):
        along = x * np.cos(own) + y * np.sin(own)
        fibres = np.cos(2 * np.pi * along / random.uniform(7, 11) + random.uniform(0, 2 * np.pi))
        colour = random.uniform(90, 200, 3) + random.uniform(10, 40, 3) * fibres[..., None]
        noisy = colour + random.normal(0, 12, (TILE_PX, TILE_PX, 1))
        image[row : row + TILE_PX, column : column + TILE_PX] = np.clip(noisy, 0, 255)
    section.obsm[_keys.SPATIAL] = (xy + 0.5) * TILE_PX
    diameter = TILE_PX / 2
    scales = {"tissue_hires_scalef": 1.0, "spot_diameter_fullres": diameter, "fiducial_diameter_fullres": 2 * diameter}
    section.uns[_keys.SPATIAL] = {"planted": {"images": {"hires": image}, "scalefactors": scales}}


def _grid(n: int) -> np.ndarray:
    side = int(np.ceil(np.sqrt(n)))
    return np.stack(np.divmod(np.arange(n), side), axis=1)[:, ::-1].astype(float)


def _patches(xy: np.ndarray, n_domains: int, random: np.random.Generator) -> np.ndarray:
    """The nearest of some seeds, two of each domain."""
    seeds = random.uniform(0, xy.max(axis=0), (2 * n_domains, 2))
    return (((xy[:, None] - seeds) ** 2).sum(axis=2).argmin(axis=1)) % n_domains


def _offset(logits: np.ndarray, shown: int) -> np.ndarray:
    """What is added to a spot's log odds so that it shows so many genes on average."""
    low, high = np.full(len(logits), -30.0), np.full(len(logits), 30.0)
    for _ in range(50):
        middle = (low + high) / 2
        few = (1 / (1 + np.exp(-(logits + middle[:, None])))).sum(axis=1) < shown
        low, high = np.where(few, middle, low), np.where(few, high, middle)
    return low


def _section(
    xy: np.ndarray, logits: np.ndarray, domain: np.ndarray, state: np.ndarray, names: list[str],
    random: np.random.Generator,
) -> AnnData:  # fmt: skip
    import anndata

    shows = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
    ranks = random.random(logits.shape).argsort(axis=1).argsort(axis=1) + 1
    counts = sparse.csr_matrix((shows * ranks).astype(np.int32))
    obs = pd.DataFrame(
        {"domain": domain.astype(str), "state": state.astype(str)}, index=[f"s{i}" for i in range(len(xy))]
    )
    adata = anndata.AnnData(counts, obs=obs.astype("category"), var=pd.DataFrame(index=names))
    adata.obsm[_keys.SPATIAL] = xy * 100
    return adata
