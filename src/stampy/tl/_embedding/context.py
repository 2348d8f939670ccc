"""Vectors in context: mean over a spot and its nearest spots, centring by section, concatenation of modalities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stampy import _checks
from stampy._section.neighbors import graph

from .spaces import unit

__all__ = ["N_NEIGHBORS", "by_key", "centered", "in_context", "smoothed"]

N_NEIGHBORS = 6  # number of neighbours


def centered(values: np.ndarray, sections: np.ndarray, names: Sequence[str], *, normed: bool) -> np.ndarray:
    """Subtract the mean of their section from vectors (n, d); empty spots (all zeros) are excluded and not changed."""
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
    values: np.ndarray,
    xy: np.ndarray,
    n_neighbors: int = 6,
    sections: np.ndarray | None = None,
    *,
    names: Sequence[str] | None = None,
    remedy: str = "Smooth over fewer, or not at all",
) -> np.ndarray:
    """Mean over each spot and its nearest spots of the same section.

    Empty spots, whose vector is all zeros, are not changed and not included in the means of their neighbours.

    Parameters
    ----------
    values
        (n, d).
    xy
        (n, 2) coordinates.
    n_neighbors
        Number of nearest spots, without the spot itself; 0: no change.
    sections
        (n,) section of each spot; neighbours are in the same section.
    names, remedy
        Names of the sections, if `sections` are codes, and what to do about small ones, for messages.

    Returns
    -------
    (n, d), with the type of `values`.
    """
    if n_neighbors == 0:
        return values
    sections = np.zeros(len(xy), dtype=int) if sections is None else np.asarray(sections)
    codes, counts = np.unique(sections, return_counts=True)
    if (counts <= n_neighbors).any():
        titles = [str(code if names is None else names[code]) for code in codes]
        small = {title: int(n) for title, n in zip(titles, counts, strict=True) if n <= n_neighbors}
        found = _checks.shortlist(f"{title}: {n}" if len(titles) > 1 else f"{n} spots" for title, n in small.items())
        raise ValueError(
            f"The mean over {n_neighbors} neighbours needs {n_neighbors + 1} spots in every section, found {found}. "
            f"{remedy}."
        )
    around = graph(xy, n_neighbors, sections)
    total = values + around @ values
    known = values.any(axis=1)
    n_known = 1 + (around @ known.astype(np.float32)).reshape(-1, 1)
    means = (total / n_known).astype(values.dtype, copy=False)
    means[~known] = 0
    return means


def in_context(
    values: np.ndarray, xy: np.ndarray, sections: np.ndarray, *, normed: bool, names: Sequence[str] | None = None
) -> np.ndarray:
    """Mean over each spot and its nearest spots of the same section."""
    remedy = "Omit `context`, or remove the section"
    values = smoothed(values, xy, N_NEIGHBORS, sections, names=names, remedy=remedy)
    return unit(values) if normed else values


def by_key(found: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """Vectors by key in obsm: each modality, and the embedding (both concatenated, or the only one)."""
    vectors = list(found.values())
    whole = np.hstack([unit(v) for v in vectors]) if len(vectors) > 1 else vectors[0]
    return {f"{key}_{name}": values for name, values in found.items()} | {key: whole}
