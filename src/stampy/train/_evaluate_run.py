"""Evaluate both training stages on held-out sections, with simple baselines.

Shapes: n spots, L positions, S groups, K components, F features of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from stampy import _checks, _keys, _utils
from stampy._io.sections import SectionInput, as_sections, of_section
from stampy._section.section import has_images
from stampy.models import Stamp
from stampy.models._load import load_stamp
from stampy.pp import Vocabulary
from stampy.pp._neighborhoods import group_spots

from ._baselines import ranks_of_own, references, ridge_ranks, tile_features
from ._config import PretrainConfig
from ._corpus.corpus import as_corpus
from ._corpus.section_reader import StoredSection
from ._corpus.training_data import check_corpus, pairs_on_disk
from ._data import MemorySection, TrainingSection, prepare
from ._pretrain_step import KINDS, Reconstruction
from ._samplers import GroupBatch, moved

if TYPE_CHECKING:
    from ._corpus.corpus import Corpus

__all__ = ["evaluated"]

GROUPS_AT_A_TIME = 4
RECALL_AT = (1, 10, 50)


def evaluated(
    model: Stamp | str | Path,
    sections: Corpus | list[SectionInput],
    n_groups: int,
    n_spots: int,
    device: str | None,
    seed: int,
) -> pd.DataFrame:
    """The table of `evaluate`, with its checked arguments; the model is returned to its device and mode."""
    target = _utils.device_of(device)
    model = model if isinstance(model, Stamp) else load_stamp(model, device="cpu")
    if model.genes is None:
        raise ValueError("The model has no vocabulary (`model.genes`).")
    before, training = model.device, model.training
    model.to(target).eval()
    try:
        return _evaluated(model, sections, n_groups, n_spots, seed)
    finally:
        model.to(before).train(training)


def _evaluated(
    model: Stamp, sections: Corpus | list[SectionInput], n_groups: int, n_spots: int, seed: int
) -> pd.DataFrame:
    vocabulary = Vocabulary(model.genes)
    found = _prepared(model, sections, vocabulary)
    with_genes = [s for s, _ in found if s.tokens.any()]
    rows: dict[str, dict[str, float]] = {s.name: {} for s, _ in found}
    known = _frequency_baselines(with_genes, vocabulary, seed)
    for section in with_genes:
        rows[section.name] |= _stage_1(model, section, n_groups, seed) | known[section.name]
    pairs = [(s, tiled) for s, tiled in found if tiled is not None and s.tokens.any()]
    for name, row in _stage_2(model, pairs, n_spots, seed).items():
        rows[name] |= row
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "section"
    mean = table.mean()
    if "n_spots" in table:
        mean["n_spots"] = table["n_spots"].sum()
    return pd.concat([table, mean.to_frame("all").T.rename_axis("section")])


def _prepared(
    model: Stamp, sections: Corpus | list[SectionInput], vocabulary: Vocabulary
) -> list[tuple[MemorySection, TrainingSection | None]]:
    """Sections in memory, each with the source of its tiles; None without image or image encoder."""
    width = model.gene.config.max_tokens
    corpus = as_corpus(sections)
    if corpus is not None:
        tiled = set()
        if model.image is not None and any(s.has_tiles for s in corpus.sections):
            tiled = {s.name for s in pairs_on_disk(corpus, vocabulary, model.config).sections}
        check_corpus(corpus, vocabulary, width)
        return [(s.load(width), s if s.name in tiled else None) for s in corpus.sections]
    found: list[tuple[MemorySection, TrainingSection | None]] = []
    for section in as_sections(sections):
        with_image = model.image is not None and _has_image(section)
        tower = model.config.image if with_image else None
        prepared = prepare(section, vocabulary, max_tokens=width, tower=tower)
        found.append((prepared, prepared if with_image else None))
    return found


def _has_image(section: SectionInput) -> bool:
    if section.image is not None:
        return True
    with of_section(section.name):
        return has_images(section.read())


def _frequency_baselines(
    sections: Sequence[MemorySection], vocabulary: Vocabulary, seed: int
) -> dict[str, dict[str, float]]:
    """Frequency baselines of each section; the corpus frequency is that of all sections."""
    fraction, n_tokens = PretrainConfig().mask_fraction, len(vocabulary) + _keys.N_SPECIAL
    everything = np.concatenate([s.tokens for s in sections]) if sections else np.zeros((0, 1), np.int64)
    return {
        s.name: references(
            {s.name: s.tokens}, n_tokens, fraction=fraction, seed=seed, corpus=everything, divisors=vocabulary.divisors
        )
        for s in sections
    }


@torch.inference_mode()
def _stage_1(model: Stamp, section: MemorySection, n_groups: int, seed: int) -> dict[str, float]:
    """Mean cross-entropies over the masked, replaced and kept positions of some groups, and of CGR."""
    config = PretrainConfig(max_tokens=model.gene.config.max_tokens, seed=seed)
    _checks.enough_spots({section.name: len(section.xy)}, config.group_size, setting="group_size")
    stage = Reconstruction(model, config, igr_steps=0)
    rng = _utils.stream(seed, "evaluate")
    members = section.kept_groups
    if members is None and not np.isfinite(section.xy).all():
        _checks.warn(f"Section {section.name!r} has neither coordinates nor groups: stage 1 is not measured on it.")
        return dict.fromkeys((*KINDS, "cgr"), np.nan)
    if members is None:
        members = group_spots(section.xy, size=config.group_size, max_distance=config.max_distance, rng=rng).members
    members = members[rng.permutation(len(members))[:n_groups]]
    sums, counts = dict.fromkeys((*KINDS, "cgr"), 0.0), dict.fromkeys((*KINDS, "cgr"), 0)
    for step, start in enumerate(range(0, len(members), GROUPS_AT_A_TIME)):
        tokens = section.tokens[members[start : start + GROUPS_AT_A_TIME]].astype(np.int64)
        used = max(int((tokens != 0).sum(axis=2).max()), 1)
        rows = torch.from_numpy(members[start : start + GROUPS_AT_A_TIME])
        tensor = torch.from_numpy(tokens[..., :used])
        batch: GroupBatch = {"tokens": tensor, "positions": torch.arange(used), "rows": rows}
        for piece in stage.pieces(batch, step):
            means, by_kind = stage.scored(moved(piece, model.device))
            found = dict(zip(KINDS, by_kind.tolist(), strict=True))
            found["cgr"] = float(means["cgr"]) * piece["counts"]["cgr"]
            for name, value in found.items():
                sums[name] += value
                counts[name] += piece["counts"][name]
    return {name: sums[name] / counts[name] if counts[name] else np.nan for name in sums}


def _stage_2(
    model: Stamp, sections: Sequence[tuple[MemorySection, TrainingSection]], n_spots: int, seed: int
) -> dict[str, dict[str, float]]:
    """Recall from tiles to genes in each section, for the model, a ridge on colours and texture, and chance."""
    if not sections:
        return {}
    chosen, images, genes, tokens, colours = {}, {}, {}, {}, {}
    for section, tiled in sections:
        there = np.flatnonzero(section.tokens.any(axis=1))
        rows = np.sort(_utils.stream(seed, "spots").permutation(there)[:n_spots])
        chosen[section.name], tokens[section.name] = rows, section.tokens[rows]
        images[section.name], genes[section.name], colours[section.name] = _embed_pairs(model, section, tiled, rows)
    if model.surroundings:
        _warn_of_regions([(tiled, chosen[section.name]) for section, tiled in sections])
    ridge = ridge_ranks(
        colours,
        tokens,
        {s.name: s.xy[chosen[s.name]] for s, _ in sections},
        model.gene.config.n_genes + _keys.N_SPECIAL,
    )
    found: dict[str, dict[str, float]] = {}
    for name, rows in chosen.items():
        n = len(rows)
        ranks = ranks_of_own(images[name], genes[name], np.arange(n))
        found[name] = {"n_spots": n}
        for k in RECALL_AT:
            found[name] |= {
                f"recall_at_{k}": float((ranks < k).mean()),
                f"recall_at_{k}_ridge": float((ridge[name] < k).mean()),
                f"recall_at_{k}_chance": min(k / n, 1.0),
            }
    return found


def _warn_of_regions(tiles: Sequence[tuple[TrainingSection, np.ndarray]]) -> None:
    """Warn if surroundings in a corpus differ from those that `stampy.tl.embed` uses."""
    stored = [tiled.centred(rows) for tiled, rows in tiles if isinstance(tiled, StoredSection)]
    n = int(sum((~centred).sum() for centred in stored))
    if n:
        _checks.warn(
            f"{n:,} of {sum(map(len, stored)):,} tiles of the corpus have no surroundings centred on the tile, which "
            "`stampy.tl.embed` would read. Recall may be lower than in use; pass the sections instead of the corpus."
        )


@torch.inference_mode()
def _embed_pairs(
    model: Stamp, section: MemorySection, tiled: TrainingSection, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and gene embeddings (n, E) of some spots, and colours and texture of their tiles (n, F)."""
    images, genes, colours = [], [], []
    for part in np.array_split(rows, -(-len(rows) // 32)):
        tiles = tiled.patches(part)
        colours.append(tile_features(tiles))
        seen = torch.from_numpy(tiled.inputs(part) if model.surroundings else tiles).to(model.device)
        images.append(model.embed_images(seen).float().cpu().numpy())
        tokens = torch.from_numpy(section.tokens[part].astype(np.int64)).to(model.device)
        genes.append(model.gene_embeddings(tokens).float().cpu().numpy())
    return np.concatenate(images), np.concatenate(genes), np.concatenate(colours)
