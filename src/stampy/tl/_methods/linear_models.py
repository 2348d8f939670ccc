"""Linear models for many targets, and prediction of genes from an embedding. Arrays only."""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import linalg, optimize, sparse

from stampy import _checks
from stampy.tl._embedding.spaces import unit
from stampy.tl._evaluation.folds import int_seed
from stampy.tl._methods.principal_components import variable_genes

__all__ = [
    "Scaler",
    "balanced_weights",
    "logistic",
    "nearest_mean",
    "predict_folds",
    "rotation",
    "solve_ridge",
    "top_variable_genes",
    "transformed",
]


class Scaler:
    """Standardise columns by the training rows; constant columns become 0."""

    def __init__(self, values: np.ndarray):
        self.mean = values.mean(axis=0, dtype=np.float64)
        deviation = values.std(axis=0, dtype=np.float64)
        flat = deviation <= 1e-6 * np.maximum(np.abs(self.mean), 1e-30)
        self.scale = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, deviation))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) * self.scale


def balanced_weights(codes: np.ndarray, k: int) -> np.ndarray:
    """Weights (n,) with mean 1 that give all present classes equal weight.

    >>> balanced_weights(np.array([0, 0, 0, 1]), 2).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    """
    counts = np.bincount(codes, minlength=k)
    return (len(codes) / ((counts > 0).sum() * np.maximum(counts, 1)))[codes]


def solve_ridge(
    values: np.ndarray, targets: np.ndarray, penalty: float, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge regression for all targets: coefficients (d, k) and intercepts (k,), in closed form.

    Minimises the (weighted) squared error plus `penalty` times the squared coefficients; intercepts are not penalised.
    Solved in the smaller of n and d. A `penalty` of 0 gives the least-squares solution of minimum norm.
    """
    weights = np.ones(len(values)) if weights is None else weights
    root = np.sqrt(weights)[:, None]
    x_mean = np.average(values, axis=0, weights=weights)
    y_mean = (weights / weights.sum()).astype(targets.dtype) @ targets
    # targets are not centred, since centred columns are orthogonal to their means; this avoids a copy of wide targets
    x = root * (values - x_mean)
    if penalty == 0:
        coefficients = (linalg.pinv(x, check_finite=False) * root.T).astype(targets.dtype) @ targets
    elif x.shape[1] <= x.shape[0]:
        coefficients = _inverse(x.T @ x, (root * x).T.astype(targets.dtype) @ targets, penalty)
    else:
        coefficients = x.T @ _inverse(x @ x.T, root * targets, penalty)
    coefficients = coefficients.astype(targets.dtype, copy=False)
    return coefficients, y_mean - x_mean @ coefficients


def _inverse(gram: np.ndarray, right: np.ndarray, penalty: float) -> np.ndarray:
    gram[np.diag_indices_from(gram)] += penalty
    return linalg.solve(gram, right, assume_a="pos", check_finite=False)


def rotation(values: np.ndarray) -> np.ndarray | None:
    """Principal axes (d, d), suitable for `logistic` on subsets of these rows; None for more columns than rows."""
    if values.shape[1] > values.shape[0]:
        return None
    x = Scaler(values)(values)
    return linalg.eigh(x.T @ x, check_finite=False)[1]


def logistic(
    values: np.ndarray,
    codes: np.ndarray,
    k: int,
    penalty: float,
    weights: np.ndarray,
    axes: np.ndarray | None = None,
    *,
    max_iter: int = 1000,
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression: coefficients (d, k) and intercepts (k,).

    Minimises the weighted cross-entropy (a sum) plus half of `penalty` times the squared coefficients, like
    scikit-learn's ``LogisticRegression(C=1 / penalty)``. Columns of an embedding are strongly correlated, which costs
    L-BFGS hundreds of steps. Optimising along `axes` (any orthogonal axes give the same solution), each scaled by a
    bound of its curvature, takes far fewer.
    """
    if axes is None and values.shape[1] > values.shape[0]:
        axes = linalg.qr(values.T, mode="economic", check_finite=False)[0]  # the solution is in the span of the rows
    elif axes is None:
        axes = linalg.eigh(values.T @ values, check_finite=False)[1]
    z = values @ axes
    curvature = 0.5 * (weights[:, None] * z * z).sum(axis=0) + penalty
    scale = 1 / np.sqrt(curvature)
    z = np.hstack([z * scale, np.full((len(z), 1), np.sqrt(2 / weights.sum()))])
    ridge = np.append(penalty * scale**2, 0.0)[:, None]
    rows = np.arange(len(z))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(-1, k)
        scores = z @ w
        scores -= scores.max(axis=1, keepdims=True)
        p = np.exp(scores)
        total = p.sum(axis=1)
        value = weights @ (np.log(total) - scores[rows, codes]) + 0.5 * (ridge * w * w).sum()
        p *= (weights / total)[:, None]
        p[rows, codes] -= weights
        return float(value), (z.T @ p + ridge * w).ravel()

    options = {"maxiter": max_iter, "gtol": 1e-4 * np.sqrt(len(values)), "ftol": 1e-10, "maxcor": 20}
    found = optimize.minimize(loss, np.zeros(z.shape[1] * k), jac=True, method="L-BFGS-B", options=options).x
    found = found.reshape(-1, k)
    return axes @ (scale[:, None] * found[:-1]), found[-1] * np.sqrt(2 / weights.sum())


Method = Literal["ridge", "linear", "hest", "knn"]
METHODS = ("ridge", "linear", "hest", "knn")
Transform = Literal["log1p_cp10k", "log1p", "none"]
TRANSFORMS = ("log1p_cp10k", "log1p", "none")
MIN_SHARE = 0.1  # of the spots of every section in which a selected gene must be detected


def transformed(block: sparse.csr_matrix, transform: Transform, is_gene: np.ndarray | None = None) -> sparse.csr_matrix:
    """Counts on the scale to predict, float32: `log1p` of counts, or `log1p_cp10k` of counts per 10,000 per spot.

    `is_gene` (bool) marks the columns that are included in the depth of a spot; None: all.
    """
    largest = np.abs(block.data).max(initial=0)
    if largest > np.finfo(np.float32).max:
        raise ValueError(f"The values are up to {largest:.3g}, too large for float32. Correct these values.")
    block = sparse.csr_matrix(block, dtype=np.float32, copy=True)
    if transform == "log1p_cp10k":
        total = np.asarray((block if is_gene is None else block[:, is_gene]).sum(axis=1)).ravel()
        block.data *= np.repeat(1e4 / np.where(total > 0, total, 1.0), np.diff(block.indptr)).astype(np.float32)
    return block if transform == "none" else block.log1p()


def top_variable_genes(
    logged: sparse.csr_matrix, sections: np.ndarray, n_top: int = 50, *, min_share: float = MIN_SHARE
) -> np.ndarray:
    """Indices of the most variable genes, selected as in HEST-Bench: sorted, at most `n_top`.

    Genes must be detected in a tenth of the spots of every section; among these, the genes with the highest
    dispersions, normalised by mean (scanpy's flavour "seurat"), over all sections.

    Parameters
    ----------
    logged
        (n, genes) sparse, log1p of counts.
    sections
        (n,) section of each spot.
    """
    parts = [logged[sections == s] for s in np.unique(sections)]
    common = np.flatnonzero(np.all([part.getnnz(axis=0) >= min_share * part.shape[0] for part in parts], axis=0))
    if len(common) <= n_top:
        return common
    among = sparse.csr_matrix(logged[:, common])
    varies = (among.max(axis=0).toarray() > among.min(axis=0).toarray()).ravel()
    if varies.sum() <= n_top:  # the others have no dispersion
        return np.sort(common[np.argsort(~varies, kind="stable")[:n_top]])
    return common[variable_genes(among, n_top)]


def predict_folds(
    values: np.ndarray,
    targets: np.ndarray,
    folds: np.ndarray,
    *,
    method: Method = "ridge",
    penalty: float | None = None,
    n_components: int = 256,
    n_neighbors: int = 30,
    reference: np.ndarray | None = None,
    rng: int | np.random.Generator | None = 0,
) -> np.ndarray:
    """Predict all genes of every spot from the spots of the other folds.

    Parameters
    ----------
    values
        (n, d) embedding.
    targets
        (n, genes) expression. Models are fitted to all genes together.
    folds
        (n,) fold of each spot.
    method
        - ``"ridge"``: on standardised columns; the default penalty `d` makes all columns together explain half of
        the|nl|  variance in expectation
        - ``"linear"``: least squares, the linear probe
        - ``"hest"``: standardised, `n_components` principal components, ridge with penalty 100 / (components x genes)
        - ``"knn"``: mean of the `n_neighbors` spots of highest cosine
    reference
        (n, d), for ``"knn"``: what the query `values` are compared with, another modality in the same space; None:
        (n, d) vectors of another modality in the same space to compare the queries `values` with, for ``"knn"``; None:

    Returns
    -------
    (n, genes) float32.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(60, 3))
    >>> y = x @ np.ones((3, 2)) + 1
    >>> found = predict_folds(x, y, np.arange(60) % 3, method="linear")
    >>> float(np.abs(found - y).max()) < 1e-4
    True
    """
    _checks.one_of("method", method, METHODS)
    seed = int_seed(rng)
    predicted = np.empty(targets.shape, dtype=np.float32)
    for fold in np.unique(folds):
        test = folds == fold
        if method == "knn":
            keys = (values if reference is None else reference)[~test]
            predicted[test] = nearest_mean(values[test], keys, targets[~test], n_neighbors)
            continue
        scaler = Scaler(values[~test])
        x, x_test = scaler(values[~test]), scaler(values[test])
        strength = 0.0 if method == "linear" else x.shape[1] if penalty is None else penalty
        if method == "hest":
            x, x_test = _principal(x, x_test, n_components, seed)
            strength = 100 / (x.shape[1] * targets.shape[1]) if penalty is None else penalty
        w, b = solve_ridge(x, targets[~test], strength)
        predicted[test] = x_test.astype(w.dtype) @ w + b.astype(w.dtype)
    return predicted


def _principal(x: np.ndarray, x_test: np.ndarray, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.decomposition import PCA

    if not x.any():  # constant columns have no components
        return x[:, :1], x_test[:, :1]
    pca = PCA(min(n, *x.shape), random_state=seed).fit(x)
    return pca.transform(x), pca.transform(x_test)


def nearest_mean(query: np.ndarray, keys: np.ndarray, targets: np.ndarray, k: int) -> np.ndarray:
    """Mean target (n, genes) of the `k` rows of `keys` (or all, if fewer) with the highest cosine to each query."""
    from sklearn.neighbors import NearestNeighbors

    k = min(k, len(keys))
    near = (
        NearestNeighbors(n_neighbors=k, algorithm="brute")
        .fit(unit(keys))
        .kneighbors(unit(query), return_distance=False)
    )
    average = sparse.csr_matrix(
        (np.full(near.size, 1 / k), near.ravel(), np.arange(0, near.size + 1, k)), shape=(len(query), len(keys))
    )
    return np.asarray(average @ targets, dtype=np.float32)
