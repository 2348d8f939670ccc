"""Coordinates of a SpatialData's spots: the shapes, labels or points that its table annotates.

spatialdata is imported only inside functions.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from stampy import _checks

if TYPE_CHECKING:
    from anndata import AnnData
    from dask.dataframe import DataFrame as DaskFrame
    from geopandas import GeoDataFrame
    from spatialdata import SpatialData
    from xarray import DataArray, DataTree

    Element: TypeAlias = GeoDataFrame | DaskFrame | DataArray | DataTree

__all__ = ["Region", "affine", "apply", "regions_of", "shared_systems"]

_KINDS = ("shapes", "labels", "points")
_LINK = "spatialdata_attrs"


class Region(NamedTuple):
    """Spots of one element that the table annotates."""

    name: str
    rows: np.ndarray  # (m,) rows of the table
    element: Any
    kind: str  # "shapes", "labels" or "points"
    xy: np.ndarray  # (m, 2) centres in units of the element
    diameter: float | None  # of circles, in units of the element


def is_linked(sdata: SpatialData, table: AnnData) -> bool:
    """Whether the table names elements for its spots and at least one of them exists.

    A table whose elements are all missing is used alone if it has coordinates.
    """
    link = table.uns.get(_LINK)
    if link is None or not {"region_key", "instance_key"} <= set(link):
        return False
    named = set(_of_row(table, link["region_key"]))
    return any(name in getattr(sdata, kind) for kind in _KINDS for name in named) or "spatial" not in table.obsm


def several_regions(table: AnnData) -> str | None:
    """Column with the element of each spot, if there is more than one element."""
    key = table.uns[_LINK]["region_key"]
    return key if len(set(_of_row(table, key))) > 1 else None


def regions_of(sdata: SpatialData, table: AnnData) -> list[Region]:
    """Elements that a table annotates, with the centres of their spots, ordered by name.

    Raises
    ------
    KeyError
        The table names an element that does not exist.
    ValueError
        Spots are not in their element, or have no finite coordinates.
    """
    link = table.uns[_LINK]
    of_row = _of_row(table, link["region_key"])
    _checks.has_key(
        table.obs,
        link["instance_key"],
        slot="table.obs",
        needs="The table states that the numbers of its spots are there.",
    )
    instances = table.obs[link["instance_key"]].to_numpy()
    found = []
    for name in sorted(set(of_row)):
        rows = np.flatnonzero(of_row == name)
        kind = _kind(sdata, name)
        element = getattr(sdata, kind)[name]
        xy, diameter = _CENTRES[kind](element, instances[rows], f"sdata.{kind}[{name!r}]")
        found.append(Region(name, rows, element, kind, _finite(xy, f"sdata.{kind}[{name!r}]"), diameter))
    return found


def shared_systems(*elements: Element) -> list[str]:
    """Coordinate systems shared by all elements, `global` first."""
    from spatialdata.transformations import get_transformation

    shared = set.intersection(*(set(get_transformation(e, get_all=True)) for e in elements))
    return sorted(shared, key=lambda system: (system != "global", system))


def affine(element: Element, system: str) -> np.ndarray:
    """Affine matrix (3, 3) from x and y of an element to those of a coordinate system."""
    from spatialdata.models import get_axes_names
    from spatialdata.transformations import get_transformation

    axes = ("x", "y", "z") if "z" in get_axes_names(element) else ("x", "y")
    matrix = get_transformation(element, to_coordinate_system=system).to_affine_matrix(axes, axes)
    return matrix[np.ix_([0, 1, -1], [0, 1, -1])]


def apply(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Transform points (m, 2) by an affine matrix (3, 3)."""
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def _of_row(table: AnnData, region_key: str) -> np.ndarray:
    _checks.has_key(
        table.obs, region_key, slot="table.obs", needs="The table states that the names of its elements are there."
    )
    column = table.obs[region_key]
    if column.isna().any():
        raise ValueError(
            f"`table.obs['{region_key}']` is missing for {int(column.isna().sum())} of {len(column)} spots; each must "
            "name the element that it annotates."
        )
    return column.astype(str).to_numpy()


def _kind(sdata: SpatialData, name: str) -> str:
    kinds = [kind for kind in _KINDS if name in getattr(sdata, kind)]
    if not kinds:
        there = [n for kind in _KINDS for n in getattr(sdata, kind)]
        raise KeyError(
            f"The table annotates {name!r}, which is in none of `sdata.shapes`, `sdata.labels` and `sdata.points`. "
            f"Available: {_checks.shortlist(there)}. Keep the element when you subset, or put x and y of the spots' "
            "centres in `obsm['spatial']` of the table."
        )
    return kinds[0]


def _finite(xy: np.ndarray, where: str) -> np.ndarray:
    bad = ~np.isfinite(xy).all(axis=1)
    if bad.any():
        raise ValueError(f"{bad.sum()} of {len(xy)} spots in `{where}` have NaN or infinite coordinates.")
    return xy


def _places(index: pd.Index, ids: np.ndarray, where: str) -> np.ndarray:
    """Position of each spot in its element; ValueError if a spot is missing or occurs twice."""
    if not index.is_unique:
        raise ValueError(
            f"{int(index.duplicated().sum())} of {len(index)} names in `{where}` occur twice "
            f"(first: {_checks.shortlist(index[index.duplicated()], 3)}), so that spots of the table are ambiguous."
        )
    places = index.get_indexer(pd.Index(ids))
    if (places < 0).any():
        raise ValueError(
            f"{(places < 0).sum()} of {len(ids)} spots of the table are not in `{where}` "
            f"(first: {_checks.shortlist(ids[places < 0], 3)}; there: {_checks.shortlist(index, 3)})."
        )
    return places


def _of_shapes(shapes: Any, ids: np.ndarray, where: str) -> tuple[np.ndarray, float | None]:
    spots = shapes.iloc[_places(shapes.index, ids, where)]
    centres = spots.geometry.centroid
    diameter = 2 * float(spots["radius"].median()) if "radius" in spots else None
    return np.column_stack([centres.x, centres.y]).astype(np.float64), diameter


def _of_points(points: Any, ids: np.ndarray, where: str) -> tuple[np.ndarray, None]:
    frame = points[["x", "y"]].compute()
    return frame.iloc[_places(frame.index, ids, where)].to_numpy(dtype=np.float64), None


def _of_labels(labels: Any, ids: np.ndarray, where: str) -> tuple[np.ndarray, None]:
    """Mean pixel position of each label; pixel i covers [i, i + 1)."""
    known, xy = label_centroids(labels, where)
    return xy[_places(pd.Index(known), ids, where)], None


_CENTRES = {"shapes": _of_shapes, "labels": _of_labels, "points": _of_points}


def label_centroids(labels: DataArray | DataTree, where: str = "labels") -> tuple[np.ndarray, np.ndarray]:
    """Labels of a raster without the background 0, ascending, and their centroids (k, 2), x and y.

    Reads one block at a time. The result is cached while the element exists and its pixels do not change.
    """
    raster = labels
    if hasattr(labels, "children") and not hasattr(labels, "data"):  # several scales, the finest first
        raster = next(iter(next(iter(labels.children.values())).data_vars.values()))
    if set(raster.dims) != {"y", "x"}:
        raise ValueError(
            f"`{where}` has the axes {tuple(raster.dims)}; labels of one plane (y, x) were expected. Put one plane in "
            "its place, e.g. that of `.isel(z=0)`; or remove the element, and put x and y of the spots' centres in "
            "`obsm['spatial']` of the table."
        )
    state = _state(raster)
    known = _computed.get(id(labels))
    if state is not None and known is not None and known[0]() is labels and known[1] == state:
        return known[2]
    found = _centroids(raster)
    if state is not None:
        number = id(labels)
        _computed[number] = (weakref.ref(labels, lambda _: _computed.pop(number, None)), state, found)
    return found


# Centroids by identity of the element; the name of a dask array changes with its pixels.
_computed: dict[int, tuple[weakref.ref[Any], tuple[Any, ...], tuple[np.ndarray, np.ndarray]]] = {}


def _state(raster: Any) -> tuple[Any, ...] | None:
    """Everything that determines the centroids of a raster; None if its pixels can change in place."""
    name = getattr(raster.data, "name", None)
    if name is None:
        return None
    return name, raster.dims, raster["y"].to_numpy().tobytes(), raster["x"].to_numpy().tobytes()


def _centroids(raster: Any) -> tuple[np.ndarray, np.ndarray]:
    parts = []
    for block, y, x in _blocks(raster):
        codes, names = pd.factorize(block[block != 0])
        at_y, at_x = np.nonzero(block)
        sums = [np.bincount(codes, weights=w, minlength=len(names)) for w in (x[at_x], y[at_y])]
        parts.append(np.column_stack([names.astype(np.int64), np.bincount(codes, minlength=len(names)), *sums]))
    rows = np.concatenate(parts)
    known, inverse = np.unique(rows[:, 0].astype(np.int64), return_inverse=True)
    n, sum_x, sum_y = (np.bincount(inverse, weights=rows[:, i], minlength=len(known)) for i in (1, 2, 3))
    return known, np.column_stack([sum_x / n, sum_y / n])


def _blocks(labels: Any) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Stored blocks of a raster, with y of their rows and x of their columns."""
    labels = labels.transpose("y", "x")
    y, x = (labels[axis].to_numpy().astype(np.float64) for axis in ("y", "x"))
    chunks = labels.chunks or tuple((n,) for n in labels.shape)
    starts = [np.concatenate([[0], np.cumsum(sizes)]) for sizes in chunks]
    for top, bottom in zip(starts[0][:-1], starts[0][1:], strict=True):
        for left, right in zip(starts[1][:-1], starts[1][1:], strict=True):
            part = labels.data[top:bottom, left:right]
            part = part.compute(scheduler="synchronous") if hasattr(part, "compute") else part
            yield np.asarray(part), y[top:bottom], x[left:right]
