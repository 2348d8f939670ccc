"""Linear models for many targets at once. n rows, d columns of an embedding, k classes or targets."""

from __future__ import annotations

import numpy as np
from scipy import linalg, optimize

__all__ = ["Scaler", "balanced_weights", "logistic", "rotation", "solve_ridge"]


class Scaler:
    """Mean 0 and standard deviation 1 by the training rows; a constant column becomes 0."""

    def __init__(self, values: np.ndarray):
        self.mean = values.mean(axis=0, dtype=np.float64)
        deviation = values.std(axis=0, dtype=np.float64)
        flat = deviation <= 1e-6 * np.maximum(np.abs(self.mean), 1e-30)
        self.scale = np.where(flat, 0.0, 1.0 / np.where(flat, 1.0, deviation))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return (values - self.mean) * self.scale


def balanced_weights(codes: np.ndarray, k: int) -> np.ndarray:
    """Weights (n,) of mean 1 that make every class present weigh the same.

    >>> balanced_weights(np.array([0, 0, 0, 1]), 2).round(2).tolist()
    [0.67, 0.67, 0.67, 2.0]
    """
    counts = np.bincount(codes, minlength=k)
    return (len(codes) / ((counts > 0).sum() * np.maximum(counts, 1)))[codes]


def solve_ridge(
    values: np.ndarray, targets: np.ndarray, penalty: float, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Ridge for all targets together: coefficients (d, k) and intercepts (k,), in closed form.

    Minimises the (weighted) squared error plus `penalty` times the squared coefficients; intercepts are free. Solved in
    the smaller of n and d. `penalty` 0 gives the least squares of smallest norm.
    """
    weights = np.ones(len(values)) if weights is None else weights
    root = np.sqrt(weights)[:, None]
    x_mean = np.average(values, axis=0, weights=weights)
    y_mean = (weights / weights.sum()).astype(targets.dtype) @ targets
    # targets need no centring, the centred columns are orthogonal to their means; they may be wide, so no copy is made
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
    """Principal axes (d, d), good ones for `logistic` on parts of these rows; None where there are more than rows."""
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

    Minimises the weighted cross-entropy (a sum) plus half of `penalty` times the squared coefficients, as
    scikit-learn's ``LogisticRegression(C=1 / penalty)`` does. An embedding's columns are strongly correlated, which
    costs L-BFGS hundreds of steps; here it walks in `axes` (any orthogonal ones give the same solution), each scaled by
    the bound of its curvature, which takes far fewer.
    """
    if axes is None and values.shape[1] > values.shape[0]:
        axes = linalg.qr(values.T, mode="economic", check_finite=False)[0]  # the solution lies in the rows' span
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
