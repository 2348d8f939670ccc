"""Fitting a linear gene encoder to sections in closed form, without labels.

For single spots, the covariance between spots and their neighbours in the sections is mixed with the model's own; a few
axes of the mixture replace those of the model. For means over neighbouring spots, whose noise is lower, the section's
axes stand beside those of the model. The share of the sections and the number of axes are chosen to predict best the
genes of the other half of the molecules (`stampy.pp._thinning`).

The module is in pp because both `stampy.train` (`train.adapt`) and `stampy.tl` (`embed(adapt=True)`) need it, and these
two never import each other.

Shapes: n spots, v genes of a section, G genes of the vocabulary, K axes, L positions, Q axes of model and sections
together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import pandas as pd
from scipy import linalg, sparse

from stampy import _checks, _keys, _utils
from stampy._section.section import places_of, resolved_library_key

from ._counts import CountMatrix, canonical, checked_rows, counts_name, counts_of
from ._linear_encoder import SpotGenes, leading_axes, neighbor_graph, orthonormal, weighted_genes
from ._rank_tokens import rank_tokens
from ._thinning import gene_targets, halves, heldout_correlation, overdispersed_genes, regions

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._genes.match_report import GeneMatch

__all__ = ["MAX_SPOTS", "Adaptation", "LinearEncoder", "SectionPart", "adapt_encoder", "pieces_of", "unshared"]

STRENGTHS = (0.0, 0.2, 0.5, 0.8, 1.0)  # weight of the sections in the covariance; 0 keeps the model's own axes
N_AXES = (8, 12, 16, 24, 32, 48, 64)
STRENGTHS_BESIDE = (0.0, 0.1)  # share in the squared norm; more worsens clusters of tissues seen in training
N_AXES_BESIDE = (8, 16, 32)
N_AROUND = 6  # spots per mean in context
N_GENES = 200  # predicted genes per piece
MAX_SPOTS = 20_000  # spots for fitting the axes; more have little effect
MAX_JUDGED = 5_000  # spots per piece for choosing strength and number of axes
MIN_SPOTS = 50


class LinearEncoder(NamedTuple):
    """Parts of a gene encoder that the closed form uses; the encoder must be a sum of gene vectors."""

    gate: np.ndarray  # (L,) weight of each rank
    level: np.ndarray  # (G,) weight of each gene
    axes: np.ndarray  # (G, K) orthonormal
    covariance: np.ndarray  # (K, K), of the model's training spots, in these axes
    head: np.ndarray  # (E, K), with the bias: maps features to the model's embedding
    bias: np.ndarray  # (E,)


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
    n_axes: int  # in context, of the sections: 0 with strength 0
    n_spots: int
    in_context: bool
    scores: pd.DataFrame  # score of every strength and n_axes tried

    def record(self, model: str) -> dict[str, str | float | int]:
        """The fit as a record for ``uns``, in types that every file format supports."""
        found: dict[str, str | float | int] = {
            "model": model, "strength": self.strength, "n_axes": self.n_axes, "n_spots": self.n_spots
        }  # fmt: skip
        return found | ({"context": "neighbors"} if self.in_context else {})


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
    table, library_key = _utils.table_of(adata, table_key), resolved_library_key(adata, library_key, table_key)
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


def unshared(pieces: Sequence[SectionPart]) -> float:
    """Largest share of a piece's counts that are in genes of the vocabulary that not all pieces measure."""
    shared = pieces[0].rows[pieces[0].rows >= 0]
    for piece in pieces:
        shared = np.intersect1d(shared, piece.rows)
    apart = 0.0
    for piece in pieces:
        sums = np.asarray(piece.counts.sum(axis=0), dtype=np.float64).ravel() * (piece.rows >= 0)
        apart = max(apart, 1 - float(sums[np.isin(piece.rows, shared)].sum()) / max(float(sums.sum()), 1))
    return apart


def _rows_of(counts: CountMatrix, rows: np.ndarray, source: str) -> sparse.csr_matrix:
    """Read selected rows (sorted) of counts in any storage, block by block."""
    wanted = np.zeros(counts.shape[0], dtype=bool)
    wanted[rows] = True
    parts = []
    for start, block in checked_rows(counts, source=source):
        chosen = wanted[start : start + block.shape[0]]
        if chosen.any():
            parts.append(sparse.csr_matrix(block)[chosen])
    return canonical(sparse.vstack(parts, format="csr"))


def adapt_encoder(
    pieces: Sequence[SectionPart],
    model: LinearEncoder,
    divisors: np.ndarray,
    *,
    strength: float | None = None,
    n_axes: int | None = None,
    in_context: bool = False,
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
        Share of the sections, 0 to 1. None: chosen by the label-free measure.
    n_axes
        Number of axes of the mixture, or in context of the sections only. None: chosen in the same way. In context with
        strength 0, the number found is 0.
    in_context
        For means over a spot and its neighbours: axes of the sections in addition to those of the model, not a mixture.
    rng
        Generator for the splits and the subspace iteration.

    Raises
    ------
    ValueError
        A section without counts in the model's genes, spots that are all equal, more axes than model and spots have, or
        no gene to choose by.
    """
    weighted = [_weighted(p.counts, p.rows, model, divisors) for p in pieces]
    for part in weighted:
        _check_variation(part)
    if n_axes is not None:
        _checks.at_most("n_axes", n_axes, model.axes.shape[1] + sum(part.shape[0] for part in weighted))
    grid = (STRENGTHS_BESIDE, N_AXES_BESIDE) if in_context else (STRENGTHS, N_AXES)
    strengths = grid[0] if strength is None else (float(strength),)
    numbers = grid[1] if n_axes is None else (int(n_axes),)
    pairs = ((a, 0 if in_context and a == 0 else k) for a in strengths for k in numbers)
    tried = list(dict.fromkeys(pairs))  # in context, strength 0 leaves no axes of the sections to count
    scores, best = np.full(len(tried), np.nan), 0
    if len(tried) > 1:
        scores = _scores(pieces, model, divisors, tried, in_context=in_context, rng=rng)
        if np.isnan(scores).all():
            raise ValueError(
                "Strength and number of axes cannot be chosen: no gene varies between the spots. Give both, or omit "
                "the adaptation."
            )
        best = int(np.nanargmax(scores))
    parts = [SpotGenes(w, neighbor_graph(p.xy)) for w, p in zip(weighted, pieces, strict=True)]
    fit: _Fit = (_Beside if in_context else _Mixture)(parts, model, max(numbers), rng)
    found, axes = fit.fitted(*tried[best]), fit.axes(*tried[best])
    fixed = len(model.head) if in_context and tried[best][0] < 1 else 0
    signs = _signs(axes, found.head, fixed)
    head, bias = signs[:, None] * found.head, signs * found.bias
    return Adaptation(
        axes.astype(np.float32), head.astype(np.float32), bias.astype(np.float32), *tried[best],
        n_spots=sum(len(p.xy) for p in pieces), in_context=in_context,
        scores=pd.DataFrame(tried, columns=["strength", "n_axes"]).assign(score=scores),
    )  # fmt: skip


def _check_variation(genes: sparse.csr_matrix) -> None:
    """Raise ValueError for a section whose spots (n, G) are empty or all equal."""
    if not genes.nnz:
        raise ValueError("No spot of a section has counts in the model's genes: there is nothing to adapt to.")
    if not (genes.max(axis=0) != genes.min(axis=0)).nnz:
        raise ValueError("All spots of a section have the same genes in the same order: there is nothing to adapt to.")


def _weighted(
    counts: sparse.csr_matrix, rows: np.ndarray, model: LinearEncoder, divisors: np.ndarray
) -> sparse.csr_matrix:
    return weighted_genes(rank_tokens(counts, rows, divisors, len(model.gate)), model.gate, model.level)


class _Fitted(NamedTuple):
    """The features (n, K) of all parts along some axes, and the head (K, K) and bias (K,)."""

    features: list[np.ndarray]
    head: np.ndarray
    bias: np.ndarray


class _Fit(Protocol):
    def fitted(self, strength: float, k: int) -> _Fitted: ...

    def axes(self, strength: float, k: int) -> np.ndarray: ...


class _Mixture:
    """Span of the axes of model and sections, in which all mixtures are small matrices."""

    def __init__(self, parts: Sequence[SpotGenes], model: LinearEncoder, k: int, rng: np.random.Generator):
        own = leading_axes(parts, max(k, *N_AXES), rng)  # fixed: a strength has the same meaning for every k
        self.basis = orthonormal(np.hstack([own, model.axes]).astype(np.float32))
        seen = self.basis.T @ sum(s.agreement(self.basis, 0.0) for s in parts)
        seen = (seen + seen.T) / 2
        scale = np.clip(np.diag(own.T @ self.basis @ seen @ self.basis.T @ own), 0, None).sum()
        known = self.basis.T @ model.axes
        known = known @ model.covariance @ known.T
        self.seen, self.known = seen / max(scale, 1e-12), known / max(np.trace(known), 1e-12)
        self.along = [s.genes @ self.basis for s in parts]
        self.sorted: dict[float, np.ndarray] = {}

    def fitted(self, strength: float, k: int) -> _Fitted:
        """Leading axes of the mixture, with a head fitted to the sections."""
        mix = self._mix(strength, k)
        features = [f @ mix for f in self.along]
        return _Fitted(features, *_head(features))

    def axes(self, strength: float, k: int) -> np.ndarray:
        """Those axes (G, K); apart from `fitted`, because the choice of settings does not need them."""
        return self.basis @ self._mix(strength, k)

    def _mix(self, strength: float, k: int) -> np.ndarray:
        if strength not in self.sorted:
            self.sorted[strength] = np.linalg.eigh(strength * self.seen + (1 - strength) * self.known)[1][:, ::-1]
        return self.sorted[strength][:, :k]


class _Beside:
    """The model's embedding and the sections' own axes side by side, each scaled to its share of the squared norm."""

    def __init__(self, parts: Sequence[SpotGenes], model: LinearEncoder, k: int, rng: np.random.Generator):
        self.own, self.model = leading_axes(parts, k, rng), model
        self.along, self.along_own = ([s.genes @ axes for s in parts] for axes in (model.axes, self.own))

    def fitted(self, strength: float, k: int) -> _Fitted:
        """Both blocks, without a block of share 0."""
        own = [f[:, :k] for f in self.along_own]
        blocks = []
        if strength < 1:
            blocks.append((1 - strength, _Fitted(self.along, self.model.head, self.model.bias)))
        if strength > 0:
            blocks.append((strength, _Fitted(own, *_head(own))))
        scales = []
        for share, block in blocks:
            norm = np.mean(np.square(np.vstack(block.features) @ block.head.T + block.bias).sum(axis=1))
            scales.append(np.sqrt(share / max(norm, 1e-300)))
        return _Fitted(
            [np.hstack(features) for features in zip(*(b.features for _, b in blocks), strict=True)],
            linalg.block_diag(*(c * b.head for c, (_, b) in zip(scales, blocks, strict=True))),
            np.concatenate([c * b.bias for c, (_, b) in zip(scales, blocks, strict=True)]),
        )

    def axes(self, strength: float, k: int) -> np.ndarray:
        """Axes (G, K) of both blocks."""
        return np.hstack(
            [axes for share, axes in ((1 - strength, self.model.axes), (strength, self.own[:, :k])) if share > 0]
        )


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


def _signs(axes: np.ndarray, head: np.ndarray, fixed: int) -> np.ndarray:
    """Signs (E,) with which the gene of the largest weight is positive in each column of the embedding.

    The sign of an eigenvector is arbitrary, and changes with the number of threads. The first `fixed` columns, of the
    model itself, are not changed.
    """
    weights = axes @ head.T
    largest = weights[np.abs(weights).argmax(axis=0), np.arange(len(head))]
    return np.where((largest < 0) & (np.arange(len(head)) >= fixed), -1, 1)


def _scores(
    pieces: Sequence[SectionPart],
    model: LinearEncoder,
    divisors: np.ndarray,
    tried: Sequence[tuple[float, int]],
    *,
    in_context: bool,
    rng: np.random.Generator,
) -> np.ndarray:
    """Held-out correlation with genes of the other half of the molecules, for each of `tried`.

    For single spots, the genes of the spot itself. Genes of neighbours would mislead: a section has far more genes than
    spots, so axes fitted to its neighbourhoods can encode the position of each spot, which predicts the neighbours'
    mean without any biological meaning. On four patients with labels (HER2+ B, C, D, G) a spot's own genes ranked the
    settings as a linear probe does; neighbours' genes did not. In context, the axes of the model are kept, and the
    score is that of `stampy.tl.evaluate` for the mean over a spot and its neighbours.
    """
    judged = [_Judged(_cut(p), rng) for p in pieces]
    found = np.zeros(len(tried))
    for side in (0, 1):
        parts = [SpotGenes(_weighted(j.pair[side], j.rows, model, divisors), j.graph) for j in judged]
        fit: _Fit = (_Beside if in_context else _Mixture)(parts, model, max(k for _, k in tried), rng)
        for i, choice in enumerate(tried):
            features, head, bias = fit.fitted(*choice)
            values = [_unit(f @ head.T + bias) for f in features]
            found[i] += np.mean([j.score(v, 1 - side, in_context) for j, v in zip(judged, values, strict=True)]) / 2
    return found


class _Judged:
    """A piece for choosing settings: its molecules in two halves, and the targets of each half."""

    def __init__(self, piece: SectionPart, rng: np.random.Generator):
        genes = overdispersed_genes(piece.counts, N_GENES)
        if not len(genes):
            raise ValueError(
                "No gene is found in 5 % of a section's spots: strength and number of axes cannot be chosen."
            )
        self.rows, self.graph, self.folds = piece.rows, neighbor_graph(piece.xy), regions(piece.xy)
        self.around = neighbor_graph(piece.xy, N_AROUND)
        self.pair = halves(piece.counts, rng)
        self.targets = [gene_targets(half, genes) for half in self.pair]

    def score(self, values: np.ndarray, half: int, in_context: bool) -> float:
        """Correlation of predictions of one half from an embedding of the other."""
        own = self.targets[half]
        if not in_context:
            return float(np.nanmean(heldout_correlation(values, own, self.folds)))
        values = _unit(values + N_AROUND * (self.around @ values))
        r = heldout_correlation(values, np.hstack([own, self.around @ own]), self.folds)
        return float(np.sqrt(np.prod(np.clip(np.nanmean(r.reshape(2, -1), axis=1), 0, None))))


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)


def _cut(piece: SectionPart) -> SectionPart:
    """A compact part of a large piece, sufficient to choose between a few settings."""
    if len(piece.xy) <= MAX_JUDGED:
        return piece
    near = np.argsort(np.linalg.norm(piece.xy - np.median(piece.xy, axis=0), axis=1), kind="stable")[:MAX_JUDGED]
    near = np.sort(near)
    return SectionPart(piece.counts[near], piece.rows, piece.xy[near])
