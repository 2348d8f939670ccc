"""An embedding as colours."""

from __future__ import annotations

import numpy as np

LOW, HIGH = 0.05, 0.95  # neither black nor white
CHUNK = 65_536  # rows at a time: no second copy of a large embedding


def embedding_rgb(embedding: np.ndarray, use: np.ndarray | None = None) -> np.ndarray:
    """The first three principal components as red, green and blue.

    Each component's 1st to 99th percentile is stretched over 0.05 to 0.95, the rest is clipped. Signs are fixed: the
    largest loading of every component is positive.

    Parameters
    ----------
    embedding
        (n, d), d >= 3.
    use
        (n,) bool, the rows to colour; all by default.

    Returns
    -------
    (n, 3) float64 in [0.05, 0.95]; NaN for rows that are not used or not finite. A component without variance is 0.5.

    Examples
    --------
    >>> embedding_rgb(np.array([[0.0, 0, 0], [1, 0, 0], [np.nan, 0, 0]])).round(2).tolist()
    [[0.05, 0.5, 0.5], [0.95, 0.5, 0.5], [nan, nan, nan]]
    """
    finite = np.isfinite(embedding).all(axis=1)
    if use is not None:
        finite &= use
    rgb = np.full((len(embedding), 3), np.nan)
    if not finite.any():
        return rgb
    mean, axes = _principal_axes(embedding, finite)
    for part in _chunks(len(embedding)):
        rows = finite[part]
        rgb[part][rows] = (embedding[part][rows] - mean) @ axes
    scores = rgb[finite]
    low, high = np.percentile(scores, [1, 99], axis=0)
    span = high - low
    flat = span <= 1e-6 * max(span.max(), np.abs(mean).max())  # rounding noise, not a direction of the data
    scaled = LOW + (HIGH - LOW) * (scores - low) / np.where(flat, 1, span)
    rgb[finite] = np.where(flat, 0.5, np.clip(scaled, LOW, HIGH))
    return rgb


def _principal_axes(embedding: np.ndarray, finite: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and the three leading eigenvectors of the covariance (d, 3), largest first."""
    d = embedding.shape[1]
    mean = np.mean(embedding, axis=0, where=finite[:, None], dtype=np.float64)
    covariance = np.zeros((d, d))
    for part in _chunks(len(embedding)):
        centred = embedding[part][finite[part]] - mean
        covariance += centred.T @ centred
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :3]
    largest = np.abs(axes).argmax(axis=0)
    return mean, axes * np.where(axes[largest, range(3)] < 0, -1.0, 1.0)


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]
