"""Cluster an embedding: neighbour graph, Leiden, k-means, mixtures, and number of domains. Arrays only."""

from __future__ import annotations

import random
import warnings
from typing import Literal, NotRequired, TypedDict

import numpy as np
from scipy import sparse

from stampy import _checks
from stampy._utils import keeping_threads
from stampy.tl._evaluation.folds import int_seed
from stampy.tl._evaluation.metrics import silhouette

__all__ = [
    "by_size",
    "connectivities",
    "find_domains",
    "leiden",
]

Method = Literal["leiden", "kmeans", "gmm"]
METHODS = ("leiden", "kmeans", "gmm")
COVARIANCES = ("spherical", "diag", "tied", "full")  # mclust's VII, VVI, EEE and VVV
SEARCH = 1e-3, 20.0  # resolutions
STEPS, SEEDS = 25, 10


def by_size(codes: np.ndarray) -> np.ndarray:
    """Renumber domains in descending order of size.

    >>> by_size(np.array([5, 2, 2, 7, 7, 7])).tolist()
    [2, 1, 1, 0, 0, 0]
    """
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rank = np.empty(len(found), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(found))
    return rank[inverse]


N_NEIGHBORS = 15


class ChosenBy(TypedDict):
    """Selection of the number of domains, with the tried values."""

    chosen_by: str
    resolution: NotRequired[float]
    silhouettes: NotRequired[dict[str, float]]
    covariance: NotRequired[str]
    bics: NotRequired[dict[str, float]]


class FoundBy(ChosenBy):
    """Method and parameters of domains."""

    n_domains: int
    n_dims: int


def find_domains(
    values: np.ndarray,
    n_domains: int | None = None,
    *,
    method: Method = "leiden",
    resolution: float | None = None,
    n_neighbors: int = N_NEIGHBORS,
    max_domains: int = 15,
    n_pcs: int | None = None,
    rng: int | np.random.Generator | None = 0,
) -> tuple[np.ndarray, FoundBy]:
    """Domains (n,) int64, the largest is 0, and how they were found. See `stampy.tl.domains`.

    Examples
    --------
    >>> values = np.random.default_rng(0).normal(np.repeat([[0], [9]], 20, axis=0), 1, (40, 3))
    >>> codes, how = find_domains(values, 2, method="kmeans")
    >>> np.bincount(codes).tolist(), how["n_domains"]
    ([20, 20], 2)
    """
    seed = int_seed(rng)
    n, d = values.shape
    if n_pcs is not None and n_pcs > min(n, d):
        _checks.warn(f"n_pcs={n_pcs} has no effect: the embedding has {d} dimensions and {n} spots.")
    if method == "leiden" and n_neighbors >= n and n_neighbors != N_NEIGHBORS:
        _checks.warn(f"n_neighbors={n_neighbors} was reduced to {n - 1}, because there are only {n} spots.")
    values = _components(values, n_pcs if method != "gmm" or n_pcs else 20, seed)
    if method == "leiden":
        codes, how = _leiden(values, n_domains, resolution, n_neighbors, seed)
    elif method == "kmeans":
        codes, how = _kmeans(values, n_domains, max_domains, seed)
    else:
        codes, how = _mixture(values, n_domains, max_domains, seed)
    codes = by_size(codes)
    if method == "gmm" and n_domains is not None and (found := int(codes.max()) + 1) < n_domains:
        _checks.warn(f"{found} instead of {n_domains} domains: the mixture assigns no spot to the other components.")
    return codes, {"n_domains": int(codes.max()) + 1, "n_dims": values.shape[1], **how}


def _components(values: np.ndarray, n_pcs: int | None, seed: int) -> np.ndarray:
    if n_pcs is None or n_pcs >= min(values.shape):
        return values
    from sklearn.decomposition import PCA

    return PCA(n_pcs, random_state=seed).fit_transform(values)


def _kmeans(values: np.ndarray, n: int | None, max_domains: int, seed: int) -> tuple[np.ndarray, ChosenBy]:
    """k-means; unless given, the number of domains has the highest silhouette."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    def fit(k: int) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than k; reported below
            return KMeans(k, n_init=5, random_state=seed).fit_predict(values)

    if n is not None:
        codes = fit(n)
        if (found := len(np.unique(codes))) < n:
            _checks.warn(f"{found} instead of {n} domains: the embedding has only {found} different vectors.")
        return codes, {"chosen_by": "given"}
    tried = {k: fit(k) for k in range(2, min(max_domains, len(values) - 1) + 1)}
    scores = {k: silhouette(values, codes, seed) for k, codes in tried.items()}
    best = max(scores, key=scores.__getitem__)
    return tried[best], {"chosen_by": "silhouette", "silhouettes": {str(k): s for k, s in scores.items()}}


def _mixture(values: np.ndarray, n: int | None, max_domains: int, seed: int) -> tuple[np.ndarray, ChosenBy]:
    """Gaussian mixture; covariance and, unless given, number of domains have the lowest BIC."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    values = values.astype(np.float64) / (values.std() or 1.0)
    best: tuple[float, str, GaussianMixture] = np.inf, "", None
    bics: dict[str, float] = {}
    for k in [n] if n is not None else range(1, min(max_domains, len(values) - 1) + 1):
        for covariance in COVARIANCES:
            model = GaussianMixture(k, covariance_type=covariance, reg_covar=1e-5, max_iter=300, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the BIC is defined without convergence, too
                model.fit(values)
            bics[f"{covariance}, {k}"] = bic = float(model.bic(values))
            if best[2] is None or bic < best[0]:
                best = bic, covariance, model
    how: ChosenBy = {"chosen_by": "given" if n is not None else "BIC", "covariance": best[1], "bics": bics}
    return best[2].predict(values), how


@keeping_threads()
def _leiden(
    values: np.ndarray, n: int | None, resolution: float | None, n_neighbors: int, seed: int
) -> tuple[np.ndarray, ChosenBy]:
    """Leiden at a resolution; a given number of domains is found by bisection of the resolution.

    Equal vectors are one domain: their neighbours, and so their communities, would be arbitrary.
    """
    if (values == values[0]).all():
        _checks.warn("All spots have the same vector, so they are one domain.")
        return np.zeros(len(values), dtype=np.int64), {"chosen_by": "equal vectors"}
    around = connectivities(values, min(n_neighbors, len(values) - 1), seed)

    def fit(at: float, with_seed: int = seed) -> np.ndarray:
        return leiden(around, at, with_seed)

    if n is None:
        at = 1.0 if resolution is None else resolution
        return fit(at), {"chosen_by": f"resolution {at:g}", "resolution": float(at)}
    low, high = np.log(SEARCH)
    nearest = np.zeros(0, dtype=np.int64), 1.0
    for step in range(STEPS + SEEDS):
        at = float(np.exp((low + high) / 2))
        codes = fit(at, seed + max(0, step - STEPS))  # after the bisection, other seeds at its last resolution
        found = int(codes.max()) + 1
        if step == 0 or abs(found - n) < abs(int(nearest[0].max()) + 1 - n):
            nearest = codes, at
        if found == n:
            break
        if step < STEPS:
            low, high = ((low + high) / 2, high) if found < n else (low, (low + high) / 2)
    codes, at = nearest
    if codes.max() + 1 != n:
        _checks.warn(
            f"No resolution of Leiden gives {n} domains on this graph; the nearest, {codes.max() + 1}, is used. Use "
            "method='kmeans' or 'gmm' for an exact number, or another `n_neighbors`."
        )
    return codes, {"chosen_by": "given", "resolution": at}


EXACT_BELOW = 8192  # number of spots from which scanpy's search is approximate
TOLERANCE, MIN_SCALE, BISECTIONS = 1e-5, 1e-3, 64  # as in umap


def connectivities(values: np.ndarray, n_neighbors: int, seed: int = 0) -> sparse.csr_matrix:
    """UMAP's fuzzy union of the `n_neighbors` nearest spots, as written into obsp by ``scanpy.pp.neighbors``.

    Parameters
    ----------
    values
        (n, d).
    n_neighbors
        Number of nearest spots, including the spot itself; at most n.
    seed
        Seed of the approximate search for 8,192 and more spots.

    Returns
    -------
    (n, n) symmetric, float32, in (0, 1].

    Examples
    --------
    >>> connectivities(np.array([[0.0], [1.0], [3.0]]), 2).toarray().round(2).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    if len(values) >= EXACT_BELOW:
        import scanpy as sc
        from anndata import AnnData

        table = AnnData(obsm={"X": values})
        sc.pp.neighbors(table, n_neighbors=n_neighbors, use_rep="X", random_state=seed)
        return table.obsp["connectivities"]
    distances, rows = _nearest(values, n_neighbors)
    return _fuzzy_union(distances, rows)


def _nearest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances (n, k) float32, starting with the spot itself at 0, and rows (n, k)."""
    from sklearn.neighbors import NearestNeighbors

    distances, rows = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(values).kneighbors()
    own = np.arange(len(values))[:, None]
    found = np.hstack([own, rows[:, : k - 1]])
    return np.hstack([np.zeros(own.shape), distances[:, : k - 1]]).astype(np.float32), found


def _fuzzy_union(distances: np.ndarray, rows: np.ndarray) -> sparse.csr_matrix:
    n, k = rows.shape
    width, nearest = _scales(distances)
    beyond = distances - nearest[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        strength = np.where((beyond <= 0) | (width[:, None] == 0), 1, np.exp(-np.maximum(beyond, 0) / width[:, None]))
    strength[rows == np.arange(n)[:, None]] = 0
    one_way = sparse.csr_matrix((strength.astype(np.float32).ravel(), rows.ravel(), np.arange(0, n * k + 1, k)), (n, n))
    one_way.eliminate_zeros()
    both = one_way + one_way.T - one_way.multiply(one_way.T)
    both = both.tocsr()
    both.sort_indices()
    return both


def _scales(distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Kernel width of each spot (its strengths sum to log2(k)), and distance to its nearest distinct point."""
    n, k = distances.shape
    nearest = np.where(distances > 0, distances, np.inf).min(axis=1)
    nearest[np.isinf(nearest)] = 0
    beyond = np.maximum(distances[:, 1:] - nearest[:, None], 0).astype(np.float64)
    low, high, middle = np.zeros(n), np.full(n, np.inf), np.ones(n)
    open_ = np.arange(n)
    for _ in range(BISECTIONS):
        excess = np.exp(-beyond[open_] / middle[open_, None]).sum(axis=1) - np.log2(k)
        open_, excess = open_[np.abs(excess) >= TOLERANCE], excess[np.abs(excess) >= TOLERANCE]
        above, below = open_[excess > 0], open_[excess <= 0]
        high[above], low[below] = middle[above], middle[below]
        middle[open_] = np.where(np.isinf(high[open_]), 2 * middle[open_], (low[open_] + high[open_]) / 2)
    means = np.where(nearest > 0, distances.mean(axis=1), distances.mean())
    return np.maximum(middle, MIN_SCALE * means).astype(np.float32), nearest


def leiden(graph: sparse.csr_matrix, resolution: float, seed: int) -> np.ndarray:
    """Communities (n,) int64 by modularity: ``scanpy.tl.leiden`` with igraph, two iterations, undirected.

    Examples
    --------
    >>> graph = connectivities(np.array([[0.0], [1], [2], [50], [51], [52]]), 3)
    >>> leiden(graph, 1.0, seed=0).tolist()
    [0, 0, 0, 1, 1, 1]
    """
    import igraph

    ends = graph.nonzero()
    edges = igraph.Graph(n=graph.shape[0], edges=np.column_stack(ends), directed=False)
    igraph.set_random_number_generator(_Seeded(seed % 2**32))
    try:
        found = edges.community_leiden(
            objective_function="modularity", weights=graph.data, resolution=resolution, n_iterations=2
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership, dtype=np.int64)


class _Seeded:
    """Random number generator for igraph, independent of the global one, with the same stream as scanpy's."""

    def __init__(self, seed: int):
        self._rng = np.random.RandomState(seed)

    def getrandbits(self, k: int) -> int:
        return int(self._rng.tomaxint()) & ((1 << k) - 1)

    def randint(self, a: int, b: int) -> int:
        return int(self._rng.randint(a, b + 1))

    def random(self) -> float:
        return float(self._rng.random_sample())

    def gauss(self, mean: float, std: float) -> float:
        return float(self._rng.normal(mean, std))
