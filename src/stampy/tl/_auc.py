"""AUC and balanced accuracy of slides, with intervals from patients drawn again and again; arrays only.

Shapes: S slides, C classes, R draws of patients.
"""

from __future__ import annotations

import numpy as np

__all__ = ["auc", "balanced_accuracy", "draws", "interval"]


def auc(classes: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve; ties count half. For 3 classes or more the mean of one against the rest.

    Parameters
    ----------
    classes
        (S,) int.
    scores
        (S, C), of class c in column c.
    weights
        (R, S), how often each slide counts; None: once, and the result has R = 1.

    Returns
    -------
    (R,), NaN where a class has no slide.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    >>> auc(np.array([0, 0, 1, 1]), scores).tolist()
    [0.75]
    """
    weights = np.ones((1, len(classes))) if weights is None else weights
    n_classes = scores.shape[1]
    columns = [1] if n_classes == 2 else range(n_classes)
    return np.mean([_binary(classes == c, scores[:, c], weights) for c in columns], axis=0)


def _binary(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    above = np.sign(score[positive][:, None] - score[~positive][None])
    won = (above + 1) / 2
    plus, minus = weights[:, positive], weights[:, ~positive]
    pairs = plus.sum(axis=1) * minus.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.einsum("rp,rp->r", plus, minus @ won.T) / np.where(pairs > 0, pairs, np.nan)


def balanced_accuracy(classes: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean over the classes of the part of its slides that is recognised (R,); NaN where a class has no slide."""
    weights = np.ones((1, len(classes))) if weights is None else weights
    right = scores.argmax(axis=1) == classes
    recalls = []
    for c in range(scores.shape[1]):
        total = weights[:, classes == c].sum(axis=1)
        recalls.append(weights[:, (classes == c) & right].sum(axis=1) / np.where(total > 0, total, np.nan))
    return np.mean(recalls, axis=0)


def draws(patients: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """How often each slide counts (n, S) when as many patients as there are are drawn with replacement."""
    _, codes = np.unique(patients, return_inverse=True)
    size = int(codes.max()) + 1
    counts = random.multinomial(size, np.full(size, 1 / size), size=n)
    return counts[:, codes].astype(np.float64)


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of the draws that have all classes."""
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
