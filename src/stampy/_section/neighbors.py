"""The one k-d tree: which spots lie nearest, for groups, smoothing, coherence and the grid."""

from __future__ import annotations

import numpy as np

__all__ = ["CHUNK", "nearest", "neighbour_distances"]

CHUNK = 1 << 18  # spots of one query: scipy's answer is four times as large as what is kept of it


def nearest(xy: np.ndarray, k: int, *, some: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The `k` nearest other spots of each spot, nearest first; of spots at the same place, the others count.

    Parameters
    ----------
    xy
        (n, 2) coordinates, n > k.
    some
        Rows (m,) that are asked for; None: all.

    Returns
    -------
    Distances (m, k) float64 and rows (m, k) int64.

    Examples
    --------
    >>> nearest(np.array([[0.0, 0], [1, 0], [3, 0]]), 1)[1].ravel().tolist()
    [1, 0, 1]
    """
    from scipy.spatial import KDTree

    rows = np.arange(len(xy)) if some is None else np.asarray(some)
    distances, found = KDTree(xy).query(xy[rows], k=k + 1)
    own = found == rows[:, None]
    own[~own.any(axis=1), -1] = True  # of many spots at one place the spot itself may not be among the nearest
    return distances[~own].reshape(len(rows), k), found[~own].reshape(len(rows), k)


def neighbour_distances(xy: np.ndarray, some: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Distances from `some` places (m, 2) to their `k` nearest spots, in rising order, and which spots these are.

    NaN, and last, where there are fewer spots, and for spots at the very same place (itself, mostly).
    """
    from scipy.spatial import KDTree

    distances, spots = KDTree(xy).query(some, k=range(1, min(k, len(xy)) + 1))
    distances[distances == 0] = np.nan
    order = np.argsort(distances, axis=1, kind="stable")  # NaN sorts last
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(spots, order, axis=1)
