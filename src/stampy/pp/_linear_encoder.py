"""Closed-form linear gene encoder: spatial axes, and their adaptation to sections without labels.

The covariance between a spot and the mean of its neighbours excludes variation that is independent between spots. Its
leading eigenvectors solve contextual gene reconstruction (paper, section 3.2) for a linear encoder. To adapt a model,
this covariance, computed on the sections, is mixed with the model's own. The weight of the sections and the number of
axes are chosen by how well they predict the genes of the other half of the molecules (`stampy.pp._thinning`).

The module is in pp because both `stampy.train` (initialisation of stage 1, `train.adapt`) and `stampy.tl`
(`embed(adapt=True)`) use it, and these two never import each other.

Shapes: n spots, v genes of a section, G genes of the vocabulary, K axes, L positions, m columns of a basis, Q axes of
model and sections together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import linalg, sparse

from stampy import _keys, _utils
from stampy._section.neighbors import nearest
from stampy._section.section import places_of, told_apart

from ._counts import CountMatrix, checked_rows, counts_name, counts_of
from ._rank_tokens import rank_tokens
from ._thinning import gene_targets, halves, heldout_correlation, overdispersed_genes, regions

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._genes.match_report import GeneMatch

__all__ = [
    "N_AXES",
    "STRENGTHS",
    "Adaptation",
    "LinearEncoder",
    "SectionPart",
    "SpotGenes",
    "adapt_encoder",
    "leading_axes",
    "neighbor_graph",
    "orthonormal",
    "pieces_of",
    "weighted_genes",
]

NEIGHBORS = 8
ITERATIONS = 6
SPARE = 20  # extra columns of the subspace iteration
OWN = 0.1  # weight of a spot's own covariance; stabilises axes that few neighbours support


class SpotGenes:
    """A section: its weighted genes (n, G) and its neighbour graph (n, n)."""

    def __init__(self, genes_nG: sparse.csr_matrix, graph_nn: sparse.csr_matrix):
        self.genes, self.graph = genes_nG, graph_nn
        self.mean = np.asarray(genes_nG.mean(axis=0)).ravel()
        self.weight = float(genes_nG.shape[0] / max(genes_nG.power(2).sum(), 1e-12))  # float(): arrays stay float32

    def agreement(self, basis: np.ndarray, own: float) -> np.ndarray:
        """Product of the covariance between spots and neighbours with `basis` (G, m), scaled to the number of spots."""
        y = self.genes @ basis - self.mean @ basis
        y = (self.graph @ y + self.graph.T @ y) / 2 + own * y
        return (self.genes.T @ y - np.outer(self.mean, y.sum(axis=0))) * self.weight


def weighted_genes(tokens: np.ndarray, gate_L: np.ndarray, level_G: np.ndarray) -> sparse.csr_matrix:
    """Genes of spots (n, G); the weight of a token is (gate of its rank) x (level of the gene)."""
    tokens = np.asarray(tokens)[:, : len(gate_L)].astype(np.int64)
    rows, ranks = np.nonzero(tokens)
    genes = tokens[rows, ranks] - _keys.N_SPECIAL
    values = (gate_L[ranks] * level_G[genes]).astype(np.float32)
    return sparse.csr_matrix((values, (rows, genes)), (len(tokens), len(level_G)))


def leading_axes(parts: Sequence[SpotGenes], k: int, rng: np.random.Generator) -> np.ndarray:
    """Leading eigenvectors (G, K), orthonormal, of the covariance of genes between a spot and its neighbours.

    Sections are centred and weighted only by their number of spots. Subspace iteration avoids the (G, G) matrix.
    """
    n_genes = len(parts[0].mean)
    basis = orthonormal(rng.standard_normal((n_genes, min(k + SPARE, n_genes)), dtype=np.float32))
    for _ in range(ITERATIONS):
        basis = orthonormal(np.sum([p.agreement(basis, OWN) for p in parts], axis=0))
    small = basis.T @ np.sum([p.agreement(basis, 0.0) for p in parts], axis=0)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    return basis @ vectors[:, np.argsort(-values)[:k]]


def orthonormal(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns' span in their own precision (numpy's function computes in double precision)."""
    return linalg.qr(columns, mode="economic", overwrite_a=True, check_finite=False)[0]


def neighbor_graph(xy: np.ndarray, k: int = NEIGHBORS) -> sparse.csr_matrix:
    """(n, n) weights; the product with values is the mean over the `k` nearest neighbours of each spot."""
    n = len(xy)
    columns = nearest(xy, k)[1]
    return sparse.csr_matrix((np.full(n * k, 1 / k, np.float32), (np.repeat(np.arange(n), k), columns.ravel())), (n, n))


STRENGTHS = (0.0, 0.2, 0.5, 0.8, 1.0)  # weight of the sections in the covariance; 0 keeps the model's own axes
N_AXES = (16, 32, 64)
N_GENES = 200  # predicted genes per piece
MAX_SPOTS = 20_000  # spots for fitting the axes; more change them little
MAX_JUDGED = 5_000  # spots per piece for choosing strength and number of axes
MIN_SPOTS = 50


class LinearEncoder(NamedTuple):
    """Parts of a gene encoder that the closed form uses; the encoder must be a sum of gene vectors."""

    gate: np.ndarray  # (L,) weight of each rank
    level: np.ndarray  # (G,) weight of each gene
    axes: np.ndarray  # (G, K) orthonormal
    covariance: np.ndarray  # (K, K), of the model's training spots, in these axes


class SectionPart(NamedTuple):
    """Spots of one section: counts, rows of their genes in the vocabulary, coordinates."""

    counts: sparse.csr_matrix  # (n, v)
    rows: np.ndarray  # (v,) row of the vocabulary, -1 for none
    xy: np.ndarray  # (n, 2)


@dataclass(frozen=True, slots=True)
class Adaptation:
    """Axes fitted to sections, and the head that maps them to an embedding."""

    axes: np.ndarray  # (G, K)
    head: np.ndarray  # (K, K)
    bias: np.ndarray  # (K,)
    strength: float
    n_spots: int
    scores: pd.DataFrame  # score of every strength and n_axes tried

    @property
    def n_axes(self) -> int:
        """Columns of the embedding."""
        return self.axes.shape[1]

    def record(self, model: str) -> dict[str, str | float | int]:
        """The fit as a record for ``uns``, in types that every file format supports."""
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
    """Sections of a table; a large section is reduced to a compact piece to bound memory.

    `match` matches the genes of the table, such as ``Vocabulary.match``.

    Raises
    ------
    ValueError
        A section has fewer than 50 spots.
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
        pieces.append(SectionPart(_rows_of(counts, mine, counts_name(layer)), rows, xy[mine]))
    return pieces


def _rows_of(counts: CountMatrix, rows: np.ndarray, source: str) -> sparse.csr_matrix:
    """Read selected rows (sorted) of counts in any storage, block by block."""
    wanted = np.zeros(counts.shape[0], dtype=bool)
    wanted[rows] = True
    parts = []
    for start, block in checked_rows(counts, source=source):
        chosen = wanted[start : start + block.shape[0]]
        if chosen.any():
            parts.append(sparse.csr_matrix(block)[chosen])
    return sparse.vstack(parts, format="csr")


def adapt_encoder(
    pieces: Sequence[SectionPart],
    model: LinearEncoder,
    divisors: np.ndarray,
    *,
    strength: float | None = None,
    n_axes: int | None = None,
    rng: np.random.Generator,
) -> Adaptation:
    """Fit axes and head of a model to these pieces.

    Parameters
    ----------
    pieces
        Pieces of the sections.
    model
        Model to adapt.
    divisors
        Divisors (G,) of the vocabulary.
    strength
        Weight of the sections in the covariance, 0 to 1. None: chosen by the label-free measure.
    n_axes
        Columns of the embedding. None: chosen by the same measure.
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
    """Joint span of the model's axes and those of the sections, in which mixtures are small matrices."""

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
        """Leading axes (Q, K) of the mixture in the joint basis."""
        values, vectors = np.linalg.eigh(strength * self.seen + (1 - strength) * self.known)
        return vectors[:, np.argsort(-values)[:k]]


def _head(features: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the features, scaled by the square root of their standard deviation; (K, K) and (K,).

    This matches a trained model. Without scaling, few components dominate; after whitening, noise counts as much as
    signal.
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

    Genes of neighbours would be misleading targets. A section has far more genes than spots, so axes fitted to its
    neighbourhoods can encode the position of each spot, which predicts the neighbours' mean without biological meaning.
    On four labelled patients (HER2+ B, C, D, G), a spot's own genes ranked the settings as a linear probe does; genes
    of neighbours did not.
    """
    pieces = [_cut(p) for p in pieces]
    pairs = [halves(p.counts, rng) for p in pieces]
    genes = [overdispersed_genes(p.counts, N_GENES) for p in pieces]
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
    """A compact part of a large piece, sufficient to choose between a few settings."""
    if len(piece.xy) <= MAX_JUDGED:
        return piece
    near = np.argsort(np.linalg.norm(piece.xy - np.median(piece.xy, axis=0), axis=1), kind="stable")[:MAX_JUDGED]
    near = np.sort(near)
    return SectionPart(piece.counts[near], piece.rows, piece.xy[near])
