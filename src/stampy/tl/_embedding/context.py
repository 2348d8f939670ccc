"""Vectors in context: their mean over a spot and its nearest spots; centred by section; modalities side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stampy import _checks
from stampy._section.neighbors import graph

from .spaces import unit

__all__ = ["N_NEIGHBORS", "by_key", "centered", "in_context", "smoothed"]

N_NEIGHBORS = 6  # whose mean is taken in context


def centered(values: np.ndarray, sections: np.ndarray, names: Sequence[str], *, normed: bool) -> np.ndarray:
    """Vectors (n, d) minus the mean of their section; empty spots, all zeros, stay so and count for nothing."""
    found, known = np.zeros_like(values), values.any(axis=1)
    n_known = np.bincount(sections[known], minlength=len(names))
    if (n_known == 1).any():
        small = _checks.shortlist(repr(names[i]) for i in np.flatnonzero(n_known == 1).tolist())
        raise ValueError(f"center='section' needs two spots with counts in every section, found one in {small}.")
    for section in np.flatnonzero(n_known):
        rows = known & (sections == section)
        found[rows] = values[rows] - values[rows].mean(axis=0, dtype=np.float64).astype(values.dtype)
    return unit(found) if normed else found


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


def in_context(values: np.ndarray, xy: np.ndarray, sections: np.ndarray, *, normed: bool) -> np.ndarray:
    """Mean over each spot and its nearest of the same section."""
    values = smoothed(values, xy, N_NEIGHBORS, sections)
    return unit(values) if normed else values


def by_key(found: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """The vectors of each modality, and the embedding: both side by side, or the only one, by their keys in obsm."""
    vectors = list(found.values())
    whole = np.hstack([unit(v) for v in vectors]) if len(vectors) > 1 else vectors[0]
    return {f"{key}_{name}": values for name, values in found.items()} | {key: whole}
