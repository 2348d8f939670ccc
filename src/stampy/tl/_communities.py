"""The neighbour graph of an embedding and its communities, as scanpy makes them, without compiling umap."""

from __future__ import annotations

import random

import numpy as np
from scipy import sparse

__all__ = ["connectivities", "leiden"]

EXACT_BELOW = 8192  # spots; from here on scanpy searches approximately, which its compiling is worth
TOLERANCE, MIN_SCALE, STEPS = 1e-5, 1e-3, 64  # umap's


def connectivities(values: np.ndarray, n_neighbors: int, seed: int = 0) -> sparse.csr_matrix:
    """UMAP's fuzzy union of the `n_neighbors` nearest spots, as ``scanpy.pp.neighbors`` writes into obsp.

    Parameters
    ----------
    values
        (n, d).
    n_neighbors
        Nearest spots of each, itself counted; at most n.
    seed
        Of the approximate search, which tables of 8,192 spots and more get.

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
    """Distances (n, k) float32, each spot itself first at 0, and rows (n, k)."""
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
    """Kernel width of each spot (its strengths add to log2(k)) and distance to its nearest other point."""
    n, k = distances.shape
    nearest = np.where(distances > 0, distances, np.inf).min(axis=1)
    nearest[np.isinf(nearest)] = 0
    beyond = np.maximum(distances[:, 1:] - nearest[:, None], 0).astype(np.float64)
    low, high, middle = np.zeros(n), np.full(n, np.inf), np.ones(n)
    open_ = np.arange(n)
    for _ in range(STEPS):
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
    igraph.set_random_number_generator(_Seeded(seed))
    try:
        found = edges.community_leiden(
            objective_function="modularity", weights=graph.data, resolution=resolution, n_iterations=2
        )
    finally:
        igraph.set_random_number_generator(random)
    return np.asarray(found.membership, dtype=np.int64)


class _Seeded:
    """What igraph asks of a random number generator, so that the global one is left alone; scanpy's stream."""

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
