"""Label-free measures: those of `tl.evaluate` for one split of the molecules, and accuracy for masked genes.

Shapes: n spots, B spots of a batch, G genes of the section, g target genes, d columns of an embedding, L positions,
M masked tokens, C classes.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys, _utils
from stampy._section.neighbors import graph
from stampy.pp._thinning import gene_targets, halves, heldout_correlation, overdispersed_genes, regions
from stampy.tl._embedding.context import N_NEIGHBORS, smoothed
from stampy.tl._embedding.spaces import rescaled, unit
from stampy.tl._evaluation.recompute import Recomputed, StoredVectors
from stampy.tl._methods.principal_components import N_COMPONENTS, principal_components

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

    from stampy.models import Stamp

    Embedder = Callable[[AnnData], np.ndarray]
    Job = Embedder | Recomputed | StoredVectors
    Scores = dict[str, dict[str, float]]

__all__ = ["BASELINES", "MEASURES", "POSITION", "JudgedSpots", "masked_accuracy", "scores_of_split"]

N_NEAREST = 15  # neighbours in the graphs in embedding space
MEASURES = ("own", "neighbors", "coherence", "depth_r2", "stability", "mixing")
PCA, PCA_CONTEXT, TFIDF_CONTEXT = "PCA", "PCA, L2, smoothed", "tf-idf SVD, L2, smoothed"
POSITION = "position alone"
BASELINES = (PCA, PCA_CONTEXT, TFIDF_CONTEXT, POSITION)


class JudgedSpots:
    """Evaluated spots, and quantities shared by all embeddings."""

    def __init__(
        self,
        table: AnnData,
        counts: sparse.csr_matrix,
        xy: np.ndarray,
        sections: np.ndarray,
        n_genes: int,
        *,
        columns: Sequence[str] = (),
        carried: Sequence[str] = (),
    ):
        self.table, self.counts, self.xy, self.sections = table, counts, xy, sections
        self.columns, self.carried = columns, carried  # of obs, and keys of obsm with image vectors
        self.genes = overdispersed_genes(counts, n_genes)
        if not len(self.genes):
            raise ValueError(
                "No gene is detected in 5 % of the spots: there is nothing to predict. Evaluate a larger piece."
            )
        self.folds = regions(xy, sections)
        self.graph = graph(xy, N_NEIGHBORS, sections) / N_NEIGHBORS
        self.log_depth = np.log1p(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel())

    def with_counts(self, counts: sparse.csr_matrix, carried: Sequence[str] = ()) -> AnnData:
        """Table with one half of the molecules: gene names, coordinates, sections, and some keys of obsm."""
        from anndata import AnnData

        vectors = {key: _checks.embedding(self.table, key) for key in carried}
        obs = self.table.obs[list(self.columns)].copy()
        return AnnData(counts, obs=obs, var=self.table.var.copy(), obsm={_keys.SPATIAL: self.xy.copy(), **vectors})


def scores_of_split(
    part: JudgedSpots, jobs: Mapping[str, Job], rng: np.random.Generator, *, stability: bool = True
) -> Scores:
    """All measures of all embeddings for one split, in which each half predicts the other once.

    Without `stability`, which takes half of the time, this measure is NaN.
    """
    pair = halves(part.counts, rng)
    targets = [gene_targets(half, part.genes) for half in pair]
    around = [np.asarray(part.graph @ t, dtype=np.float32) for t in targets]
    found = {}
    for name, values in _embedded(part, jobs, pair):
        sides = [_side(part, values[i], targets[1 - i], around[1 - i]) for i in (0, 1)]
        row = {k: float(np.mean([side[k] for side in sides])) for k in sides[0]}
        row["stability"] = _stability(*values) if stability and values[0] is not values[1] else np.nan
        found[name] = row | {
            "score": (max(row["own"], 0.0) * max(row["neighbors"], 0.0)) ** 0.5,
            "n_dims": values[0].shape[1],
        }
    return found


def _embedded(
    part: JudgedSpots, jobs: Mapping[str, Job], pair: Sequence[sparse.csr_matrix]
) -> list[tuple[str, list[np.ndarray]]]:
    """Names and embeddings of both halves; warnings were shown when the whole was embedded.

    A function of the user gets a table of its own, which it may change.
    """
    found, tables = {}, [part.with_counts(half, part.carried) for half in pair]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _checks.StampyWarning)
        for name, job in jobs.items():
            if isinstance(job, StoredVectors):
                found[name] = [rescaled(_checks.embedding(part.table, job.key))] * 2
            elif isinstance(job, Recomputed):
                found[name] = [job(t) for t in tables]
            else:
                found[name] = [_judged(job(part.with_counts(half.copy())), name, part.table.obs_names) for half in pair]
        for name in BASELINES:
            found[name] = []
        found[POSITION] = [_waves(part.xy, part.sections)] * 2
        for half in pair:
            pca = principal_components(half)[0]
            for name, values in ((PCA, pca), (PCA_CONTEXT, unit(pca)), (TFIDF_CONTEXT, unit(_tfidf(half)))):
                context = name != PCA
                found[name].append(unit(smoothed(values, part.xy, N_NEIGHBORS, part.sections)) if context else values)
    return list(found.items())


def _waves(xy: np.ndarray, sections: np.ndarray, k: int = 24) -> np.ndarray:
    """Baseline of position only: waves (n, 2 k) in random directions over each section."""
    place = np.empty_like(xy)
    for section in np.unique(sections):
        mine = sections == section
        place[mine] = (xy[mine] - xy[mine].mean(axis=0)) / np.maximum(xy[mine].std(axis=0), 1e-12)
    turned = place @ np.random.default_rng(0).normal(0, 1.5, (2, k))
    return np.hstack([np.cos(turned), np.sin(turned)]).astype(np.float32)


def _judged(values: object, name: str, spots: pd.Index) -> np.ndarray:
    """Result of the user's function for these spots as (n, d) float32."""
    n = len(spots)
    if isinstance(values, pd.DataFrame) and not values.index.equals(spots) and set(values.index) & set(spots):
        raise ValueError(
            f"`keys[{name!r}]` returned a DataFrame whose index is not `obs_names`, in their order. Sort its rows, "
            "e.g. `values.loc[adata.obs_names]`, or return an array."
        )
    values = np.asarray(values.toarray() if isinstance(values, sparse.spmatrix | sparse.sparray) else values)
    shaped = values.ndim == 2 and len(values) == n and values.shape[1] > 0
    if not shaped or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(
            f"`keys[{name!r}]` must return finite numbers of shape ({n}, d), found {values.dtype} {values.shape}."
        )
    return rescaled(_checks.single(values, f"keys[{name!r}]"))


def _tfidf(counts: sparse.csr_matrix) -> np.ndarray:
    """Singular vectors (n, 50), scaled, of log1p(1e4 x term frequency x inverse document frequency)."""
    from sklearn.utils.extmath import randomized_svd

    weighted = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    totals = np.asarray(weighted.sum(axis=1)).ravel()
    inverse = np.log1p(weighted.shape[0] / np.maximum(weighted.getnnz(axis=0), 1)).astype(np.float32)
    weighted.data *= np.repeat(1e4 / np.maximum(totals, 1), np.diff(weighted.indptr)) * inverse[weighted.indices]
    weighted = weighted.log1p()
    u, s, _ = randomized_svd(weighted, min(N_COMPONENTS, min(weighted.shape) - 1), random_state=0)
    return (u * s).astype(np.float32)


def _side(part: JudgedSpots, values: np.ndarray, targets: np.ndarray, around: np.ndarray) -> dict[str, float]:
    joint = np.hstack([targets, around, part.log_depth[:, None]])
    r = heldout_correlation(values, joint, part.folds)
    g = targets.shape[1]
    depth = r[-1] if np.isfinite(r[-1]) else 0.0
    return {
        "own": _mean(r[:g]),
        "neighbors": _mean(r[g : 2 * g]),
        "coherence": _coherence(values, part.graph),
        "depth_r2": max(float(depth), 0.0) ** 2,
        "mixing": _mixing(values, part.sections),
    }


def _mean(r: np.ndarray) -> float:
    known = r[np.isfinite(r)]
    return float(known.mean()) if len(known) else 0.0


def _coherence(values: np.ndarray, graph: sparse.csr_matrix) -> float:
    x = values - values.mean(axis=0)
    total = float((x**2).sum())
    return float((x * (graph @ x)).sum()) / total if total > 0 else 0.0


def _nearest(values: np.ndarray) -> np.ndarray:
    """The 15 nearest other rows of each row (n, k), by distance."""
    from sklearn.neighbors import NearestNeighbors

    k = min(N_NEAREST, len(values) - 1)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(values).kneighbors(return_distance=False)


def _stability(a: np.ndarray, b: np.ndarray) -> float:
    near_a, near_b = _nearest(a), _nearest(b)
    return float(np.mean([np.isin(x, y).mean() for x, y in zip(near_a, near_b, strict=True)]))


def _mixing(values: np.ndarray, sections: np.ndarray) -> float:
    """Fraction of nearest spots from another section, relative to chance; mean over sections."""
    names, codes, counts = np.unique(sections, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return float("nan")
    other = (codes[_nearest(values)] != codes[:, None]).mean(axis=1)
    chance = 1 - (counts - 1) / (len(codes) - 1)
    return float(np.mean([other[codes == i].mean() / chance[i] for i in range(len(names))]))


MASK_ID = 0  # of the encoder, see stampy.models
TOP = (1, 10)
TOKENS_PER_BATCH = 8192


def masked_accuracy(
    model: Stamp, tokens: np.ndarray, *, fraction: float = 0.15, rng: int | np.random.Generator | None = 0
) -> dict[str, float]:
    """Fraction of masked tokens whose gene is the first guess of the model, or among its first ten (head IGR).

    Parameters
    ----------
    model
        Model with a trained head for a spot's own genes.
    tokens
        (n, L) as in ``obsm["stamp_tokens"]``: 0 pads on the right.
    fraction
        Fraction of each spot's tokens that are masked, all with the mask id.
    rng
        Seed of the mask.

    Returns
    -------
    ``top1``, ``top10``; ``majority_top1``, ``majority_top10``: the same for the most frequent genes as guesses,
    independent of the spot; ``unseen_top1``, ``unseen_top10``: for the most frequent genes that are not visible in the
    spot, the optimum without using the other genes; ``n_masked``.

    Examples
    --------
    >>> import stampy
    >>> from stampy.models import GeneConfig, Stamp, StampConfig
    >>> small = GeneConfig(n_genes=20, width=8, depth=1, heads=2, feedforward=8, max_tokens=12)
    >>> tokens = np.tile(np.arange(30, 40), (4, 1))
    >>> found = masked_accuracy(Stamp(StampConfig(gene=small, embedding=4)), tokens)
    >>> found["n_masked"] >= 4, found["unseen_top10"]
    (True, 1.0)
    """
    random = _utils.generator(rng)
    selected = _selected(tokens, fraction, random)
    targets = tokens[selected]
    shown = _shown(tokens, selected, model.gene.config.n_tokens)
    frequency = shown.sum(axis=0)
    frequency[: _keys.N_SPECIAL] = -1
    hits = {"": _model_hits(model, tokens, selected)}
    order = np.argsort(-frequency, kind="stable")
    hits["majority_"] = _rank_in(order)[targets]
    rows = np.nonzero(selected)[0]
    hits["unseen_"] = np.concatenate(
        [_rank_in(order[~shown[row, order]])[targets[rows == row]] for row in np.unique(rows)]
    )
    found = {f"{who}top{k}": float((ranks < k).mean()) for who, ranks in hits.items() for k in TOP}
    return {**found, "n_masked": len(targets)}


def _selected(tokens: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """Mask (n, L) bool: the fraction of each spot's tokens, at least one, never all."""
    real = tokens != _keys.PAD
    draw = np.where(real, random.random(tokens.shape), np.inf)
    lengths = real.sum(axis=1)
    take = np.minimum(np.maximum(np.rint(fraction * lengths), 1), lengths - 1)
    selected = draw.argsort(axis=1).argsort(axis=1) < take[:, None]
    if not selected.any():
        raise ValueError("No spot has two genes of the model's vocabulary: there is nothing to mask.")
    return selected


def _shown(tokens: np.ndarray, selected: np.ndarray, n_tokens: int) -> np.ndarray:
    """Visible genes of each spot, (n, C) bool; special tokens count as visible, since they are never guesses."""
    shown = np.zeros((len(tokens), n_tokens), dtype=bool)
    shown[:, : _keys.N_SPECIAL] = True
    rows, columns = np.nonzero((tokens != _keys.PAD) & ~selected)
    shown[rows, tokens[rows, columns]] = True
    return shown


def _rank_in(order: np.ndarray) -> np.ndarray:
    """Rank of each token in an order of guesses; a large number if it is missing."""
    rank = np.full(int(order.max()) + 1 if len(order) else 1, np.iinfo(np.int64).max)
    rank[order] = np.arange(len(order))
    return rank


def _model_hits(model: Stamp, tokens: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """Number of tokens that the model ranks above the correct one (M,), in the order of the masked tokens."""
    import torch

    lengths = (tokens != _keys.PAD).sum(axis=1)
    size = max(TOKENS_PER_BATCH // max(int(lengths.max()), 1), 1)
    with torch.inference_mode():
        ranks = [
            _hits_of_batch(model, tokens[start : start + size], selected[start : start + size])
            for start in range(0, len(tokens), size)
        ]
    return np.concatenate(ranks)


def _hits_of_batch(model: Stamp, tokens: np.ndarray, selected: np.ndarray) -> np.ndarray:
    import torch

    cut = max(int((tokens != _keys.PAD).sum(axis=1).max()), 1)
    where = torch.from_numpy(selected[:, :cut]).to(model.device)
    ids, _ = model.gene.ids(torch.from_numpy(tokens[:, :cut].astype(np.int64)).to(model.device))
    targets = ids[:, :cut][where]
    hidden = model.gene(ids.masked_fill(torch.nn.functional.pad(where, (0, ids.shape[1] - cut)), MASK_ID))
    logits = model.gene.logits(hidden[:, :cut][where])
    own = logits.gather(1, targets[:, None])
    # ties count against the model, so that a constant head does not score
    return ((logits >= own).sum(dim=1) - 1).cpu().numpy()
