"""Vectors of the towers as they are written: centred by section, averaged in context, modalities side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stampy import _checks
from stampy.tl._methods.clustering import smoothed
from stampy.tl._results import unit

__all__ = ["N_NEIGHBORS", "by_key", "centered", "in_context"]

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


def in_context(values: np.ndarray, xy: np.ndarray, sections: np.ndarray, *, normed: bool) -> np.ndarray:
    """Mean over each spot and its nearest of the same section."""
    values = smoothed(values, xy, N_NEIGHBORS, sections)
    return unit(values) if normed else values


def by_key(found: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """The vectors of each modality, and the embedding: both side by side, or the only one, by their keys in obsm."""
    vectors = list(found.values())
    whole = np.hstack([unit(v) for v in vectors]) if len(vectors) > 1 else vectors[0]
    return {f"{key}_{name}": values for name, values in found.items()} | {key: whole}
