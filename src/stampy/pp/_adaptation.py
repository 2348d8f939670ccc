"""Fitting a linear gene encoder to sections in closed form, without labels.

The covariance between spots and their neighbours in the sections is mixed with the model's own. The share of the
sections and the number of axes are chosen to predict best the genes of the other half of the molecules
(`stampy.pp._thinning`).

The module is in pp because both `stampy.train` (`train.adapt`) and `stampy.tl` (`embed(adapt=True)`) need it, and these
two never import each other.

Shapes: n spots, v genes of a section, G genes of the vocabulary, K axes, L positions, Q axes of model and sections
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _keys, _utils
from stampy._section.section import places_of, told_apart

from ._counts import CountMatrix, checked_rows, counts_of, source_of
from ._linear_encoder import SpotGenes, leading_axes, neighbor_graph, orthonormal, weighted_genes
from ._rank_tokens import rank_tokens
from ._thinning import gene_targets, halves, heldout_correlation, regions, variable_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._genes.match_report import GeneMatch

__all__ = ["MAX_SPOTS", "Adaptation", "LinearEncoder", "SectionPart", "adapt", "pieces_of"]

STRENGTHS = (0.0, 0.2, 0.5, 0.8, 1.0)  # share of the sections in the covariance; 0 is the model's own axes
N_AXES = (16, 32, 64)
N_GENES = 200  # to predict, of each piece
MAX_SPOTS = 20_000  # that axes are fitted to; more change them little
MAX_JUDGED = 5_000  # spots of a piece by which strength and number are chosen
MIN_SPOTS = 50


class LinearEncoder(NamedTuple):
    """The parts of a gene encoder that the closed form needs; the encoder must add up gene vectors."""

    gate: np.ndarray  # (L,) weight of each rank
    level: np.ndarray  # (G,) weight of each gene
    axes: np.ndarray  # (G, K) orthonormal
    covariance: np.ndarray  # (K, K) of the model's training spots along these axes


class SectionPart(NamedTuple):
    """Spots of one section: counts, how genes are found in the vocabulary, coordinates."""

    counts: sparse.csr_matrix  # (n, v)
    rows: np.ndarray  # (v,) row of the vocabulary, -1 for none
    xy: np.ndarray  # (n, 2)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Axes fitted to sections, and the head that makes an embedding of them."""

    axes: np.ndarray  # (G, K)
    head: np.ndarray  # (K, K)
    bias: np.ndarray  # (K,)
    strength: float
    n_spots: int
    scores: pd.DataFrame  # strength, n_axes, score of all that were tried

    @property
    def n_axes(self) -> int:
        """Columns of the embedding."""
        return self.axes.shape[1]

    def record(self, model: str) -> dict[str, str | float | int]:
        """The fit as a record for ``uns``, in types that every file format holds."""
        return {"model": model, "strength": self.strength, "n_axes": self.n_axes, "n_spots": self.n_spots}


def pieces_of(
    adata: AnnData | SpatialData,
    match: Callable[[AnnData], GeneMatch],
    *,
    layer: str | None = None,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    max_spots: int | None = MAX_SPOTS,
    rng: np.random.Generator,
) -> list[SectionPart]:
    """The sections of a table; a large section is reduced to a compact piece, so that memory stays bounded.

    `match` finds the genes of the table, such as ``Vocabulary.match``.

    Raises
    ------
    ValueError
        A section of fewer than 50 spots.
    """
    table, library_key = _utils.table_of(adata, table_key), told_apart(adata, library_key, table_key)
    places = places_of(adata, library_key=library_key, table_key=table_key)
    xy, rows = places.xy, match(table).rows
    counts, pieces = counts_of(table, layer), []
    share = 1.0 if max_spots is None else min(max_spots / table.n_obs, 1.0)
    for i, name in enumerate(places.names):
        mine = np.flatnonzero(places.codes == i)
        if len(mine) < MIN_SPOTS:
            of = f" {name!r}" if name else ""
            raise ValueError(f"Adapting needs sections of {MIN_SPOTS} spots or more, section{of} has {len(mine)}.")
        if share < 1:
            n = max(round(share * len(mine)), MIN_SPOTS)
            distance = np.linalg.norm(xy[mine] - xy[rng.choice(mine)], axis=1)
            mine = np.sort(mine[np.argsort(distance, kind="stable")[:n]])
        pieces.append(SectionPart(_rows_of(counts, mine, source_of(layer)), rows, xy[mine]))
    return pieces


def _rows_of(counts: CountMatrix, rows: np.ndarray, source: str) -> sparse.csr_matrix:
    """Chosen rows (sorted) of counts in any storage, read block by block."""
    wanted = np.zeros(counts.shape[0], dtype=bool)
    wanted[rows] = True
    parts = []
    for start, block in checked_rows(counts, source=source):
        chosen = wanted[start : start + block.shape[0]]
        if chosen.any():
            parts.append(sparse.csr_matrix(block)[chosen])
    return sparse.vstack(parts, format="csr")


def adapt(
    pieces: Sequence[SectionPart],
    model: LinearEncoder,
    divisors: np.ndarray,
    *,
    strength: float | None = None,
    n_axes: int | None = None,
    rng: np.random.Generator,
) -> Adaptation:
    """Axes and head of a model for these pieces.

    Parameters
    ----------
    pieces
        Pieces of the sections.
    model
        Model to adapt.
    divisors
        Divisors (G,) of the vocabulary.
    strength
        Share of the sections in the covariance, 0 to 1. None: chosen by the label-free measure.
    n_axes
        Columns of the embedding. None: chosen likewise.
    rng
        Generator for the splits and the subspace iteration.
    """
    strengths = STRENGTHS if strength is None else (float(strength),)
    numbers = N_AXES if n_axes is None else (n_axes,)
    tried = [(a, k) for a in strengths for k in numbers]
    scores = np.full(len(tried), np.nan)
    if len(tried) > 1:
        scores = _scores(pieces, model, divisors, tried, rng)
    best = tried[int(np.nanargmax(scores)) if len(tried) > 1 else 0]
    weighted = [_weighted(p.counts, p.rows, model, divisors) for p in pieces]
    joint = _Joint([(w, neighbor_graph(p.xy)) for w, p in zip(weighted, pieces, strict=True)], model, max(numbers), rng)
    mix = joint.mixed(*best)
    head, bias = _head([f @ mix for f in joint.features])
    table = pd.DataFrame(tried, columns=["strength", "n_axes"]).assign(score=scores)
    return Adaptation(
        (joint.basis @ mix).astype(np.float32), head, bias, best[0], sum(len(p.xy) for p in pieces), table
    )


def _weighted(
    counts: sparse.csr_matrix, rows: np.ndarray, model: LinearEncoder, divisors: np.ndarray
) -> sparse.csr_matrix:
    return weighted_genes(rank_tokens(counts, rows, divisors, len(model.gate)), model.gate, model.level)


class _Joint:
    """The span of the model's axes and the sections' own: all mixtures are small matrices in it."""

    def __init__(
        self,
        parts: Sequence[tuple[sparse.csr_matrix, sparse.csr_matrix]],
        model: LinearEncoder,
        k: int,
        rng: np.random.Generator,
    ):
        spots = [SpotGenes(genes, graph) for genes, graph in parts]
        own = leading_axes(spots, k, rng)
        self.basis = orthonormal(np.hstack([own, model.axes]).astype(np.float32))
        seen = self.basis.T @ sum(s.agreement(self.basis, 0.0) for s in spots)
        seen = (seen + seen.T) / 2
        scale = np.clip(np.diag(own.T @ self.basis @ seen @ self.basis.T @ own), 0, None).sum()
        known = self.basis.T @ model.axes
        known = known @ model.covariance @ known.T
        self.seen, self.known = seen / max(scale, 1e-12), known / max(np.trace(known), 1e-12)
        self.features = [genes @ self.basis for genes, _ in parts]

    def mixed(self, strength: float, k: int) -> np.ndarray:
        """Leading axes (Q, K) of the mixture, in the joint basis."""
        values, vectors = np.linalg.eigh(strength * self.seen + (1 - strength) * self.known)
        return vectors[:, np.argsort(-values)[:k]]


def _head(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the features, scaled by the square root of their deviation; (K, K) and (K,).

    As in a trained model. The scaling is between none, where a few components dominate, and whitening, where noise
    counts as much as signal.
    """
    stacked = np.vstack(features).astype(np.float64)
    mean = stacked.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((stacked - mean).T))
    values = np.clip(values[::-1], 1e-12 * max(values.max(), 1e-300), None)
    head = vectors[:, ::-1].T / values[:, None] ** 0.25
    return head.astype(np.float32), (-head @ mean).astype(np.float32)


def _scores(
    pieces: Sequence[SectionPart],
    model: LinearEncoder,
    divisors: np.ndarray,
    tried: Sequence[tuple[float, int]],
    rng: np.random.Generator,
) -> np.ndarray:
    """Mean held-out correlation with a spot's own genes of the other half, for each of `tried`.

    Genes of neighbours would mislead here. A section has far more genes than spots, so axes fitted to its
    neighbourhoods can spell out where each spot lies: that predicts the neighbours' mean without any biological
    meaning. On four patients with labels (HER2+ B, C, D, G) a spot's own genes ranked the settings as a linear probe
    does; neighbours' genes did not.
    """
    pieces = [_cut(p) for p in pieces]
    pairs = [halves(p.counts, rng) for p in pieces]
    genes = [variable_genes(p.counts, N_GENES) for p in pieces]
    if not all(map(len, genes)):
        raise ValueError("No gene is found in 5 % of a section's spots: strength and number of axes can't be chosen.")
    graphs = [neighbor_graph(p.xy) for p in pieces]
    folds = [regions(p.xy) for p in pieces]
    found = np.zeros(len(tried))
    for side in (0, 1):
        weighted = [_weighted(pair[side], p.rows, model, divisors) for pair, p in zip(pairs, pieces, strict=True)]
        joint = _Joint(list(zip(weighted, graphs, strict=True)), model, max(k for _, k in tried), rng)
        targets = [gene_targets(pair[1 - side], g) for pair, g in zip(pairs, genes, strict=True)]
        for i, choice in enumerate(tried):
            mix = joint.mixed(*choice)
            features = [f @ mix for f in joint.features]
            head, bias = _head(features)
            r = [
                np.nanmean(heldout_correlation(_unit(f @ head.T + bias), t, fold))
                for f, t, fold in zip(features, targets, folds, strict=True)
            ]
            found[i] += np.mean(r) / 2
    return found


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _cut(piece: SectionPart) -> SectionPart:
    """A compact part of a large piece, enough to choose between a few settings."""
    if len(piece.xy) <= MAX_JUDGED:
        return piece
    near = np.argsort(np.linalg.norm(piece.xy - np.median(piece.xy, axis=0), axis=1), kind="stable")[:MAX_JUDGED]
    near = np.sort(near)
    return SectionPart(piece.counts[near], piece.rows, piece.xy[near])
