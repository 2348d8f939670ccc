"""The measures of `tl.evaluate`, for one split of the molecules. No labels, no judgement.

Shapes: n spots, G genes of the section, g target genes, d columns of an embedding.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stampy import _checks, _keys
from stampy._section.neighbors import graph
from stampy.pp._thinning import gene_targets, halves, heldout_correlation, regions, variable_genes
from stampy.tl._embedding.genes import N_NEIGHBORS
from stampy.tl._methods.clustering import smoothed
from stampy.tl._methods.components import N_COMPONENTS, principal_components
from stampy.tl._results import unit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData

    Embedder = Callable[[AnnData], np.ndarray]
    Scores = dict[str, dict[str, float]]  # by embedding and measure

__all__ = ["BASELINES", "MEASURES", "AsItIs", "JudgedSpots", "scores_of_split"]

N_NEAREST = 15  # of the graphs in embedding space
MEASURES = ("own", "neighbors", "coherence", "depth_r2", "stability", "mixing")
PCA, PCA_CONTEXT, TFIDF_CONTEXT = "PCA", "PCA, L2, smoothed", "tf-idf SVD, L2, smoothed"
POSITION = "position alone"
BASELINES = (PCA, PCA_CONTEXT, TFIDF_CONTEXT, POSITION)


@dataclass(frozen=True)
class AsItIs:
    """An embedding that can't be made anew from half of the molecules: its vectors in obsm are taken as they are."""

    key: str


class JudgedSpots:
    """The spots that are judged, and what all embeddings share."""

    def __init__(
        self,
        table: AnnData,
        counts: sparse.csr_matrix,
        xy: np.ndarray,
        sections: np.ndarray,
        library_key: str | None,
        n_genes: int,
    ):
        self.table, self.counts, self.xy, self.sections = table, counts, xy, sections
        self.library_key = library_key
        self.genes = variable_genes(counts, n_genes)
        if not len(self.genes):
            raise ValueError("No gene is found in 5 % of the spots: there is nothing to predict. Judge a larger piece.")
        self.folds = regions(xy, sections)
        self.graph = graph(xy, N_NEIGHBORS, sections) / N_NEIGHBORS
        self.log_depth = np.log1p(np.asarray(counts.sum(axis=1), dtype=np.float64).ravel())

    def with_counts(self, counts: sparse.csr_matrix) -> AnnData:
        """The table with one half of the molecules: names of genes, coordinates, sections, nothing else."""
        from anndata import AnnData

        obs = self.table.obs[[] if self.library_key is None else [self.library_key]].copy()
        return AnnData(counts, obs=obs, var=self.table.var.copy(), obsm={_keys.SPATIAL: self.xy})


def scores_of_split(
    part: JudgedSpots, jobs: Mapping[str, Embedder | AsItIs], rng: np.random.Generator, *, stability: bool = True
) -> Scores:
    """All measures of all embeddings for one split, each half predicting the other once.

    Without `stability`, which is half of the cost, that measure is NaN.
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
    part: JudgedSpots, jobs: Mapping[str, Embedder | AsItIs], pair: Sequence[sparse.csr_matrix]
) -> list[tuple[str, list[np.ndarray]]]:
    """Names and embeddings of both halves; warnings were given when the whole was embedded."""
    found, tables = {}, [part.with_counts(half) for half in pair]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _checks.StampyWarning)
        for name, job in jobs.items():
            if isinstance(job, AsItIs):
                found[name] = [_checks.embedding(part.table, job.key)] * 2
            else:
                found[name] = [_judged(job(t), name, len(part.xy)) for t in tables]
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
    """A baseline of position alone: waves (n, 2 k) of random directions over each section."""
    place = np.empty_like(xy)
    for section in np.unique(sections):
        mine = sections == section
        place[mine] = (xy[mine] - xy[mine].mean(axis=0)) / np.maximum(xy[mine].std(axis=0), 1e-12)
    turned = place @ np.random.default_rng(0).normal(0, 1.5, (2, k))
    return np.hstack([np.cos(turned), np.sin(turned)]).astype(np.float32)


def _judged(values: object, name: str, n: int) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or len(values) != n or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise ValueError(
            f"`keys[{name!r}]` must return finite numbers of shape ({n}, d), found {values.dtype} {values.shape}."
        )
    return _checks.single(values, f"keys[{name!r}]")


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
    """The 15 nearest others of each row (n, k), by distance."""
    from sklearn.neighbors import NearestNeighbors

    k = min(N_NEAREST, len(values) - 1)
    return NearestNeighbors(n_neighbors=k, algorithm="brute").fit(values).kneighbors(return_distance=False)


def _stability(a: np.ndarray, b: np.ndarray) -> float:
    near_a, near_b = _nearest(a), _nearest(b)
    return float(np.mean([np.isin(x, y).mean() for x, y in zip(near_a, near_b, strict=True)]))


def _mixing(values: np.ndarray, sections: np.ndarray) -> float:
    """Share of the nearest spots that are of another section, over that by chance; mean over sections."""
    names, codes, counts = np.unique(sections, return_inverse=True, return_counts=True)
    if len(names) < 2:
        return float("nan")
    other = (codes[_nearest(values)] != codes[:, None]).mean(axis=1)
    chance = 1 - (counts - 1) / (len(codes) - 1)
    return float(np.mean([other[codes == i].mean() / chance[i] for i in range(len(names))]))
