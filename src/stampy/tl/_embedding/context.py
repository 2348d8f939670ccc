"""Vectors in context: mean over a spot and its nearest spots, centring by section, concatenation of modalities.

Shapes: n spots, D width of an encoder, E size of the shared space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stampy import _checks
from stampy._section.neighbors import graph

from .spaces import unit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stampy.models import Stamp

    from .arguments import Center

__all__ = ["N_NEIGHBORS", "arranged", "by_key", "centered", "in_context", "smoothed", "without_direction"]

N_NEIGHBORS = 6  # number of neighbours
BLOCK = 4096  # spots in double precision at a time
LEAST = 1e-6  # relative to the features; smaller differences between spots are rounding errors


def arranged(
    values: np.ndarray,
    *,
    center: Center | None,
    xy: np.ndarray | None,
    sections: np.ndarray,
    names: Sequence[str],
    normed: bool,
    unit_centered: bool = True,
) -> np.ndarray:
    """Vectors (n, d) of an encoder, centred, and in context if there are coordinates `xy`.

    ``center="section"`` is applied before the mean over neighbours. With ``"direction"``, the vectors are those of
    `without_direction`, and their means over neighbours are centred again before the norm. Centred vectors keep their
    length without `unit_centered`.
    """
    if center == "section":
        values = centered(values, sections, names, normed=normed and unit_centered)
    if xy is None:
        return values
    if center != "direction":
        return in_context(values, xy, sections, normed=normed, names=names)
    values = in_context(values, xy, sections, normed=False, names=names)
    return centered(values, sections, names, normed=normed, center=center)


def centered(
    values: np.ndarray, sections: np.ndarray, names: Sequence[str], *, normed: bool, center: Center = "section"
) -> np.ndarray:
    """Subtract the mean of their section from vectors (n, d); empty spots (all zeros) are excluded and not changed."""
    found = np.zeros_like(values)
    for _, rows in _known_rows(values, sections, names, center):
        found[rows] = values[rows] - values[rows].mean(axis=0, dtype=np.float64).astype(values.dtype)
    return unit(found) if normed else found


def _known_rows(
    values: np.ndarray, sections: np.ndarray, names: Sequence[str], center: Center
) -> Iterator[tuple[int, np.ndarray]]:
    """Each section and its spots with counts; ValueError for a section with a single one."""
    known = values.any(axis=1)
    n_known = np.bincount(sections[known], minlength=len(names))
    if (n_known == 1).any():
        small = _checks.shortlist(repr(names[i]) for i in np.flatnonzero(n_known == 1).tolist())
        raise ValueError(f"center={center!r} needs two spots with counts in every section, found one in {small}.")
    for section in np.flatnonzero(n_known).tolist():
        yield section, np.flatnonzero(known & (sections == section))


def without_direction(
    features: np.ndarray, model: Stamp, sections: np.ndarray, names: Sequence[str], *, normed: bool
) -> np.ndarray:
    """Embeddings (n, E) float32 of gene features (n, D) without the direction of the mean feature of their section.

    The direction is projected out before the head. This also subtracts the mean, which has no other direction. Empty
    spots (all zeros) are excluded and stay zero. Sections are read twice in blocks: for the mean, then for the vectors.
    """
    from stampy.models._linear_gene import turned_head

    to_axes, head = turned_head(model)
    found = np.zeros((len(features), head.shape[1]), dtype=np.float32)
    for section, rows in _known_rows(features, sections, names, "direction"):
        blocks, left, largest = np.array_split(rows, -(-len(rows) // BLOCK)), 0.0, 0.0
        mean = sum(features[block].sum(axis=0, dtype=np.float64) for block in blocks) @ to_axes
        mean /= max(float(np.linalg.norm(mean)), 1e-300)
        for block in blocks:
            x = features[block] @ to_axes
            largest = max(largest, float(np.abs(x).max()))
            x -= np.outer(x @ mean, mean)
            found[block] = x @ head
            left = max(left, float(np.abs(x).max()))
        if left <= LEAST * largest:
            of = f" of section {names[section]!r}" if names[section] else ""
            raise ValueError(
                f"center='direction' leaves nothing{of}: all its spots have the same genes in the same proportions."
            )
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
