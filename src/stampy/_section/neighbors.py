"""Nearest spots by a k-d tree, for groups, smoothing, coherence and grid detection."""

from __future__ import annotations

import numpy as np
from scipy import sparse

__all__ = ["Tree", "graph", "nearest", "neighbour_distances", "spot_distance"]

CHUNK = 1 << 18  # spots per query; scipy's result is four times as large as the part that is kept


class Tree:
    """k-d tree of the spots of one section.

    Parameters
    ----------
    xy
        (n, 2) coordinates in any unit.
    """

    def __init__(self, xy: np.ndarray):
        from scipy.spatial import KDTree

        self._tree = KDTree(xy)

    def distances(self, at: np.ndarray, k: int, *, threads: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Distances (m, k) from the points `at` to their `k` nearest spots, ascending, and the rows of these spots."""
        return self._tree.query(at, k=range(1, k + 1), workers=threads)

    def rows(self, at: np.ndarray, k: int) -> np.ndarray:
        """Rows (m, k) int32 of the `k` nearest spots, nearest first; on all cores."""
        near = np.empty((len(at), k), dtype=np.int32)
        for start in range(0, len(at), CHUNK):
            near[start : start + CHUNK] = self.distances(at[start : start + CHUNK], k, threads=-1)[1]
        return near

    def within(self, at: np.ndarray, radius: float) -> list[list[int]]:
        """Rows of the spots within `radius` of each point."""
        return list(self._tree.query_ball_point(at, radius))


def nearest(xy: np.ndarray, k: int, *, some: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest other spots of each spot, in ascending distance; coincident spots count as neighbours.

    Parameters
    ----------
    xy
        (n, 2) coordinates, n > k.
    some
        Rows (m,) to query; None: all.

    Returns
    -------
    Distances (m, k) float64 and rows (m, k) int64.

    Examples
    --------
    >>> nearest(np.array([[0.0, 0], [1, 0], [3, 0]]), 1)[1].ravel().tolist()
    [1, 0, 1]
    """
    rows = np.arange(len(xy)) if some is None else np.asarray(some)
    distances, found = Tree(xy).distances(xy[rows], k + 1)
    own = found == rows[:, None]
    own[~own.any(axis=1), -1] = True  # among more than k coincident spots, the spot itself may be missing
    return distances[~own].reshape(len(rows), k), found[~own].reshape(len(rows), k)


def neighbour_distances(xy: np.ndarray, some: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Ascending distances from `some` points (m, 2) to their `k` nearest spots, and the rows of these spots.

    NaN, at the end, for missing neighbours and for spots at the same position (usually the spot itself).
    """
    distances, spots = Tree(xy).distances(some, min(k, len(xy)))
    distances[distances == 0] = np.nan
    order = np.argsort(distances, axis=1, kind="stable")  # NaN sorts last
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(spots, order, axis=1)


def spot_distance(xy: np.ndarray) -> float:
    """Median distance between nearest distinct positions of spots; 1 if there is a single position."""
    places = np.unique(xy, axis=0)
    if len(places) == 1:
        return 1.0
    return float(np.median(Tree(places).distances(places, 2, threads=-1)[0][:, 1]))


def graph(xy: np.ndarray, k: int, codes: np.ndarray | None = None) -> sparse.csr_matrix:
    """Graph of the `k` nearest spots in the same section, (n, n) with value 1; identical to squidpy's.

    Parameters
    ----------
    xy
        (n, 2) coordinates.
    k
        Number of neighbours, below the number of spots in every section.
    codes
        (n,) section of each spot; None: a single section.

    Examples
    --------
    >>> graph(np.array([[0.0, 0], [1, 0], [3, 0]]), 1).toarray().astype(int).tolist()
    [[0, 1, 0], [1, 0, 0], [0, 1, 0]]
    """
    from sklearn.neighbors import NearestNeighbors  # breaks ties between equidistant spots as squidpy does

    n = len(xy)
    columns = np.empty((n, k), dtype=np.int64)
    for code in np.unique(codes) if codes is not None else [None]:
        rows = np.arange(n) if code is None else np.flatnonzero(codes == code)
        columns[rows] = rows[NearestNeighbors(n_neighbors=k).fit(xy[rows]).kneighbors(return_distance=False)]
    columns.sort(axis=1)
    ones = np.ones(n * k, dtype=np.float32)
    return sparse.csr_matrix((ones, columns.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
