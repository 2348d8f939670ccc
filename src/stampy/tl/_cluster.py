"""Spatial domains of an embedding: smoothing, clustering, and how many. Plain arrays, no AnnData."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np

from stampy import _checks
from stampy._section.neighbors import graph
from stampy._utils import keeping_threads

from ._communities import connectivities, leiden
from ._folds import seed_of
from ._metrics import silhouette

__all__ = ["by_size", "find_domains", "smoothed"]

Method = Literal["leiden", "kmeans", "gmm"]
METHODS = ("leiden", "kmeans", "gmm")
COVARIANCES = ("spherical", "diag", "tied", "full")  # mclust's VII, VVI, EEE and VVV
SEARCH = 1e-3, 20.0  # resolutions
STEPS, SEEDS = 25, 10


def smoothed(
    values: np.ndarray, xy: np.ndarray, n_neighbors: int = 6, sections: np.ndarray | None = None
) -> np.ndarray:
    """Mean over each spot and its nearest spots of the same section.

    Empty spots, whose vector is all zeros, stay so and take no part in the means of their neighbours.

    Parameters
    ----------
    values
        (n, d).
    xy
        (n, 2) coordinates.
    n_neighbors
        Nearest spots that count, the spot itself left aside; 0 changes nothing.
    sections
        (n,) section of each spot. No edge joins two sections.

    Returns
    -------
    (n, d), of the type of `values`.
    """
    if n_neighbors == 0:
        return values
    sections = np.zeros(len(xy), dtype=int) if sections is None else np.asarray(sections)
    names, counts = np.unique(sections, return_counts=True)
    small = {str(name): int(n) for name, n in zip(names, counts, strict=True) if n <= n_neighbors}
    if small:
        raise ValueError(
            f"Smoothing over {n_neighbors} neighbours needs {n_neighbors + 1} spots in every section, found "
            f"{_checks.shortlist(f'{name}: {n}' for name, n in small.items())}. Smooth over fewer, or not at all."
        )
    around = graph(xy, n_neighbors, sections)
    total = values + around @ values
    known = values.any(axis=1)
    n_known = 1 + (around @ known.astype(np.float32)).reshape(-1, 1)
    means = (total / n_known).astype(values.dtype, copy=False)
    means[~known] = 0
    return means


def by_size(codes: np.ndarray) -> np.ndarray:
    """The same domains, numbered from the largest.

    >>> by_size(np.array([5, 2, 2, 7, 7, 7])).tolist()
    [2, 1, 1, 0, 0, 0]
    """
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    rank = np.empty(len(found), dtype=np.int64)
    rank[np.argsort(-counts, kind="stable")] = np.arange(len(found))
    return rank[inverse]


def find_domains(
    values: np.ndarray,
    n_domains: int | None = None,
    *,
    method: Method = "leiden",
    resolution: float | None = None,
    n_neighbors: int = 15,
    max_domains: int = 15,
    n_pcs: int | None = None,
    rng: int | np.random.Generator | None = 0,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Domains (n,) int64, the largest is 0, and how they were found. See `stampy.tl.domains`.

    Examples
    --------
    >>> values = np.random.default_rng(0).normal(np.repeat([[0], [9]], 20, axis=0), 1, (40, 3))
    >>> codes, how = find_domains(values, 2, method="kmeans")
    >>> np.bincount(codes).tolist(), how["n_domains"]
    ([20, 20], 2)
    """
    seed = seed_of(rng)
    values = _components(values, n_pcs if method != "gmm" or n_pcs else 20, seed)
    if method == "leiden":
        codes, how = _leiden(values, n_domains, resolution, n_neighbors, seed)
    elif method == "kmeans":
        codes, how = _kmeans(values, n_domains, max_domains, seed)
    else:
        codes, how = _mixture(values, n_domains, max_domains, seed)
    codes = by_size(codes)
    return codes, {"n_domains": int(codes.max()) + 1, "n_dims": values.shape[1], **how}


def _components(values: np.ndarray, n_pcs: int | None, seed: int) -> np.ndarray:
    if n_pcs is None or n_pcs >= min(values.shape):
        return values
    from sklearn.decomposition import PCA

    return PCA(n_pcs, random_state=seed).fit_transform(values)


def _kmeans(values: np.ndarray, n: int | None, max_domains: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Number by the highest silhouette."""
    from sklearn.cluster import KMeans

    def fit(k: int) -> np.ndarray:
        return KMeans(k, n_init=5, random_state=seed).fit_predict(values)

    if n is not None:
        return fit(n), {"chosen_by": "given"}
    tried = {k: fit(k) for k in range(2, min(max_domains, len(values) - 1) + 1)}
    scores = {k: silhouette(values, codes, seed) for k, codes in tried.items()}
    best = max(scores, key=scores.__getitem__)
    return tried[best], {"chosen_by": "silhouette", "silhouettes": {str(k): s for k, s in scores.items()}}


def _mixture(values: np.ndarray, n: int | None, max_domains: int, seed: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Covariance, and number where none is given, by the lowest BIC."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    values = values.astype(np.float64) / (values.std() or 1.0)
    best: tuple[float, str, GaussianMixture] = np.inf, "", None
    bics: dict[str, float] = {}
    for k in [n] if n is not None else range(1, min(max_domains, len(values) - 1) + 1):
        for covariance in COVARIANCES:
            model = GaussianMixture(k, covariance_type=covariance, reg_covar=1e-5, max_iter=300, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # without convergence there is a BIC, too
                model.fit(values)
            bics[f"{covariance}, {k}"] = bic = float(model.bic(values))
            if best[2] is None or bic < best[0]:
                best = bic, covariance, model
    how = {"chosen_by": "given" if n is not None else "BIC", "covariance": best[1], "bics": bics}
    return best[2].predict(values), how


@keeping_threads()
def _leiden(
    values: np.ndarray, n: int | None, resolution: float | None, n_neighbors: int, seed: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """Number by the resolution; a number that is given by bisection of the resolution."""
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
        codes = fit(at, seed + max(0, step - STEPS))  # at the end of the bisection other seeds at its resolution
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
            f"No resolution of leiden gives {n} domains on this graph; the nearest, {codes.max() + 1}, is taken. "
            "Use method='kmeans' or 'gmm' for an exact number, or another `n_neighbors`."
        )
    return codes, {"chosen_by": "given", "resolution": at}
