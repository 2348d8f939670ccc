"""Sections with known minimum masked-gene loss: gene programmes, planted in space and at random.

Shapes: n spots, G genes, D domains, R states, K kinds of spots (domain, state and batch effect).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _keys, _utils

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "TILE_PX",
    "UM_PER_PX",
    "Planted",
    "PlantedSpots",
    "Programmes",
    "allowed_loss",
    "best_allowed",
    "best_context",
    "best_loss",
    "context_loss",
    "hidden_genes",
    "planted",
    "planted_spots",
]

TILE_PX = 64
UM_PER_PX = _keys.TILE_UM / TILE_PX
BATCHES = np.arange(-2.8, 2.9, 0.4)  # grid for the density of a batch effect, in each of two directions


class Programmes(NamedTuple):
    """Components of the log odds of genes."""

    level: np.ndarray  # (G,)
    domains: np.ndarray  # (D, G)
    states: np.ndarray  # (R, G), or (D, R, G) where they differ between domains
    batches: np.ndarray  # (2, G), directions of batch effects
    shown: int  # mean number of genes visible in a spot


class PlantedSpots(NamedTuple):
    """One section, as arrays."""

    xy: np.ndarray  # (n, 2), on a grid of step 1
    counts: np.ndarray  # (n, G) int32: 0, or a random rank
    domain: np.ndarray  # (n,)
    state: np.ndarray  # (n,)
    batch: np.ndarray  # (2,)
    odds: np.ndarray  # (n, G)
    angle: np.ndarray | None  # (n,) of the fibres


class Planted(NamedTuple):
    """Sections, and the parameters from which they were drawn."""

    sections: list[AnnData]
    genes: pd.DataFrame  # gene_id, symbol, divisor: a vocabulary with the same level for all genes
    odds: list[np.ndarray]  # by section, (n, G): odds that a gene is visible in a spot
    batches: list[np.ndarray]  # by section, (2,): coordinates of its batch effect
    programmes: Programmes


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
    together: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> Planted:
    """Draw sections in which genes are visible independently in each spot, with known odds.

    The log odds of a gene are the sum of its level, the programme of the spot's domain (patches of tissue, shared by
    neighbours), the programme of the spot's state (drawn per spot, not shared by neighbours), and a batch effect of the
    section along two directions. Genes are in random order, so ranks are uninformative.

    With a `texture_effect`, each spot also has a direction: its tile of `TILE_PX` contains fibres of this direction, in
    an uninformative colour and brightness, and a gene programme depends on the direction.

    Parameters
    ----------
    n_spots, n_sections, n_genes, n_domains, n_states
        Sizes; `n_spots` is per section, on a square grid.
    shown
        Mean number of genes visible in a spot.
    domain_effect, state_effect, batch_effect, texture_effect
        Standard deviation of the programmes' log odds; without a `texture_effect` there are no images.
    together
        States are combinations of programmes. Domains differ in which programmes occur together, but not in how often
        each occurs, apart from the `domain_effect`. Requires as many states as domains, a power of 2.
    rng
        Seed or generator.

    Examples
    --------
    >>> found = planted(n_spots=50, n_sections=2)
    >>> found.sections[0].shape, sorted(found.sections[0].obs)
    ((50, 200), ['domain', 'state'])
    """
    random = _utils.generator(rng)
    known = _programmes(
        random, n_genes, n_domains, n_states, shown, (domain_effect, state_effect, batch_effect), together=together
    )
    turning = random.normal(0, texture_effect, (2, n_genes)) if texture_effect else None
    names = [f"G{i}" for i in range(n_genes)]
    genes = pd.DataFrame({"gene_id": names, "symbol": names, "divisor": 1.0})
    sections, odds, effects = [], [], []
    for spots in _drawn(random, known, n_spots, n_sections, turning):
        section = _section(spots, names)
        if spots.angle is not None:
            _add_image(section, spots.xy, spots.angle, random)
        sections.append(section)
        odds.append(spots.odds)
        effects.append(spots.batch)
    return Planted(sections, genes, odds, effects, known)


def planted_spots(
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
    together: bool = False,
    rng: int | np.random.Generator | None = 0,
) -> tuple[list[PlantedSpots], Programmes]:
    """The sections of `planted` with the same arguments, without a texture, as arrays: needs no anndata."""
    random = _utils.generator(rng)
    effects = domain_effect, state_effect, batch_effect
    known = _programmes(random, n_genes, n_domains, n_states, shown, effects, together=together)
    return [*_drawn(random, known, n_spots, n_sections, None)], known


def _programmes(
    random: np.random.Generator, n_genes: int, n_domains: int, n_states: int, shown: int,
    effects: tuple[float, float, float], *, together: bool,
) -> Programmes:  # fmt: skip
    domain_effect, state_effect, batch_effect = effects
    level = random.normal(0, 1, n_genes)
    domains = random.normal(0, domain_effect, (n_domains, n_genes))
    if together:
        states = _together(random, n_genes, n_domains, n_states, state_effect)
    else:
        states = random.normal(0, state_effect, (n_states, n_genes))
    return Programmes(level, domains, states, random.normal(0, batch_effect, (2, n_genes)), shown)


def _together(random: np.random.Generator, n_genes: int, n_domains: int, n_states: int, effect: float) -> np.ndarray:
    """(D, R, G) programmes that are on or off in pairs; domains differ in whether a pair agrees.

    Each gene belongs to one programme, and each programme is on in half of the spots of every domain: no gene's log
    odds, and no average over spots, tells domains apart. Which programmes occur together does.
    """
    n_pairs = int(n_domains).bit_length() - 1
    if n_domains != 2**n_pairs or n_states != n_domains or not n_pairs:
        raise ValueError(f"`together` needs `n_domains` = `n_states` = 2, 4, 8, ..., found {n_domains} and {n_states}.")
    of_domain, of_state = (1 - 2 * (np.arange(n_domains)[:, None] >> np.arange(n_pairs) & 1) for _ in range(2))
    first = np.broadcast_to(of_state, (n_domains, n_states, n_pairs))
    signs = np.concatenate([first, first * of_domain[:, None]], axis=2)
    programme = np.arange(n_genes) % (2 * n_pairs)
    return signs[:, :, programme] * random.normal(0, effect, n_genes)


def _drawn(
    random: np.random.Generator, known: Programmes, n_spots: int, n_sections: int, turning: np.ndarray | None
) -> Iterator[PlantedSpots]:
    """One section after the other."""
    n_domains, n_states = len(known.domains), known.states.shape[-2]
    for _ in range(n_sections):
        xy = _grid(n_spots)
        domain = _patches(xy, n_domains, random)
        state = random.integers(n_states, size=n_spots)
        batch = random.normal(0, 1, 2)
        of_state = known.states[domain, state] if known.states.ndim == 3 else known.states[state]
        logits = known.level + known.domains[domain] + of_state + batch @ known.batches
        angle = None
        if turning is not None:  # directions have a period of half a turn
            angle = random.uniform(0, np.pi, n_spots)
            logits += np.stack([np.cos(2 * angle), np.sin(2 * angle)], axis=1) @ turning
        logits += _offset(logits, known.shown)[:, None]
        shows = random.random(logits.shape) < 1 / (1 + np.exp(-logits))
        ranks = random.random(logits.shape).argsort(axis=1).argsort(axis=1) + 1
        yield PlantedSpots(xy, (shows * ranks).astype(np.int32), domain, state, batch, np.exp(logits), angle)


def hidden_genes(shows: np.ndarray, *, fraction: float = 0.15, rng: int = 0) -> np.ndarray:
    """Mask of hidden genes among the visible genes of spots (n, G): a fraction, drawn with a seed."""
    random = _utils.stream(rng, "masks")  # independent of spots drawn with the same seed
    return shows & (random.random(shows.shape) < fraction)


def best_loss(odds: np.ndarray, shows: np.ndarray, *, fraction: float = 0.15, rng: int = 0) -> float:
    """Cross-entropy (nats) at masked positions given the true odds and the other genes of a spot.

    Parameters
    ----------
    odds
        (n, G).
    shows
        (n, G) bool, visible genes of the spots.
    fraction
        Fraction of these that is masked.
    rng
        Seed of the masks.

    Notes
    -----
    Given the visible genes and the number M of hidden genes, a hidden gene is g with probability proportional to t o_g
    / (1 + t o_g) over the genes that are not visible, with t such that these sum to M (exact for large M).
    """
    hidden = hidden_genes(shows, fraction=fraction, rng=rng)
    total, n = 0.0, 0
    for own, there, gone in zip(odds, shows, hidden, strict=True):
        if gone.any():
            share = _shares(own[None], ~(there & ~gone), int(gone.sum()))[0]
            total -= np.log(share[gone]).sum()
            n += int(gone.sum())
    return total / max(n, 1)


def best_allowed(world: Planted, number: int, *, rule_out: bool = True, fraction: float = 0.15, rng: int = 0) -> float:
    """Cross-entropy (nats) at masked positions of the optimal model with known programmes and the visible genes.

    This is the optimum for models of single spots: domain, state and batch effect must be inferred from the visible
    genes. In `best_loss` they are known.

    Parameters
    ----------
    world
        Result of `planted`, without texture.
    number
        Index of the section.
    rule_out
        Exclude visible genes, which do not occur twice in a spot. Without it, the loss of a model that infers the
        spot's composition but does not exclude them.
    fraction, rng
        Masked fraction, and seed of the masks.
    """
    shows = world.sections[number].X.toarray() > 0
    return allowed_loss(world.programmes, shows, rule_out=rule_out, fraction=fraction, rng=rng)


def allowed_loss(
    programmes: Programmes, shows: np.ndarray, *, rule_out: bool = True, fraction: float = 0.15, rng: int = 0
) -> float:
    """`best_allowed` for the genes that spots show (n, G)."""
    hidden = hidden_genes(shows, fraction=fraction, rng=rng)
    odds_KG, prior_K = _kinds(programmes)
    chance_KG = odds_KG / (1 + odds_KG)
    seen_KG, not_KG = np.log(chance_KG * (1 - fraction)), np.log1p(-chance_KG * (1 - fraction))
    weights_nK = (shows & ~hidden) @ (seen_KG - not_KG).T + not_KG.sum(axis=1) + np.log(prior_K)
    weights_nK = np.exp(weights_nK - weights_nK.max(axis=1, keepdims=True))
    total, n = 0.0, 0
    for there, gone, weights in zip(shows, hidden, weights_nK, strict=True):
        if not gone.any():
            continue
        likely = np.flatnonzero(weights > 1e-3)
        share = chance_KG[likely] / chance_KG[likely].sum(axis=1, keepdims=True)
        if rule_out:
            share = _shares(odds_KG[likely], ~(there & ~gone), int(gone.sum()))
        total -= np.log((weights[likely] @ share / weights[likely].sum())[gone]).sum()
        n += int(gone.sum())
    return total / max(n, 1)


def best_context(world: Planted, number: int) -> float:
    """Cross-entropy (nats) of a spot's genes given its domain and section, but none of its genes.

    This is the optimum for prediction from neighbours (CGR).
    """
    section = world.sections[number]
    domain = section.obs["domain"].astype(int).to_numpy()
    return context_loss(world.programmes, world.batches[number], domain, section.X.toarray() > 0)


def context_loss(known: Programmes, batch: np.ndarray, domain: np.ndarray, shows: np.ndarray) -> float:
    """`best_context` for the batch effect of a section, and for domains (n,) and genes (n, G) of its spots."""
    logits_DRG = known.level + known.domains[:, None] + known.states + batch @ known.batches
    logits_DRG += _offset(logits_DRG.reshape(-1, len(known.level)), known.shown).reshape(logits_DRG.shape[:2])[
        ..., None
    ]
    chance_DG = (1 / (1 + np.exp(-logits_DRG))).mean(axis=1)
    shares_DG = chance_DG / chance_DG.sum(axis=1, keepdims=True)
    return float(-np.log(shares_DG[domain][shows]).mean())


def _kinds(known: Programmes) -> tuple[np.ndarray, np.ndarray]:
    """Odds (K, G) of each kind of spot, and its frequency (K,)."""
    where = BATCHES if known.batches.any() else np.zeros(1)
    batch = np.stack(np.meshgrid(where, where), axis=-1).reshape(-1, 2)
    logits = known.level + known.domains[:, None, None] + known.states[..., None, :] + batch @ known.batches
    logits = logits.reshape(-1, len(known.level))
    logits += _offset(logits, known.shown)[:, None]
    prior = np.tile(np.exp(-(batch**2).sum(axis=1) / 2), len(logits) // len(batch))
    return np.exp(logits), prior / prior.sum()


def _shares(odds_KG: np.ndarray, free_G: np.ndarray, m: int) -> np.ndarray:
    """Fraction (K, G) of `m` hidden genes that are each gene, among the genes in `free`, given the odds."""
    free_KG = odds_KG[:, free_G]
    low, high = np.full(len(odds_KG), -50.0), np.full(len(odds_KG), 50.0)
    for _ in range(60):  # bisection for log t
        t = (low + high) / 2
        few = (1 / (1 + np.exp(-t)[:, None] / free_KG)).sum(axis=1) < m
        low, high = np.where(few, t, low), np.where(few, high, t)
    return free_G / (1 + np.exp(-t)[:, None] / odds_KG) / m


def _add_image(section: AnnData, xy: np.ndarray, angle: np.ndarray, random: np.random.Generator) -> None:
    """Add an image with a tile of `TILE_PX` per spot, at `UM_PER_PX`: fibres in the spot's direction."""
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
    """Domain of the nearest of some seeds, two per domain."""
    seeds = random.uniform(0, xy.max(axis=0), (2 * n_domains, 2))
    return (((xy[:, None] - seeds) ** 2).sum(axis=2).argmin(axis=1)) % n_domains


def _offset(logits: np.ndarray, shown: int) -> np.ndarray:
    """Offset of a spot's log odds that gives the required mean number of visible genes."""
    low, high = np.full(len(logits), -30.0), np.full(len(logits), 30.0)
    for _ in range(50):
        middle = (low + high) / 2
        few = (1 / (1 + np.exp(-(logits + middle[:, None])))).sum(axis=1) < shown
        low, high = np.where(few, middle, low), np.where(few, high, middle)
    return low


def _section(spots: PlantedSpots, names: list[str]) -> AnnData:
    import anndata

    obs = pd.DataFrame(
        {"domain": spots.domain.astype(str), "state": spots.state.astype(str)},
        index=[f"s{i}" for i in range(len(spots.xy))],
    )
    counts = sparse.csr_matrix(spots.counts)
    adata = anndata.AnnData(counts, obs=obs.astype("category"), var=pd.DataFrame(index=names))
    adata.obsm[_keys.SPATIAL] = spots.xy * 100
    return adata
