"""Coordinates of the spots of a table, and the section of each spot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._section import spatialdata_elements as elements
from stampy._section.libraries import (
    check_one_section,
    has_image,
    libraries_of,
    matching_columns,
    section_column,
    warn_of_indices,
)
from stampy._section.spatialdata_elements import Region

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = [
    "Places",
    "coordinates",
    "coordinates_of",
    "has_coordinates",
    "has_images",
    "library_key_of",
    "placed",
    "places_of",
    "resolved_library_key",
    "side_by_side",
]

# names of x and y in files of Space Ranger, Xenium, CosMx, MERSCOPE, Seurat, Giotto and SpatialExperiment
_NAMES = (
    ("x", "y"),
    ("pxl_col_in_fullres", "pxl_row_in_fullres"),
    ("imagecol", "imagerow"),
    ("image_col", "image_row"),
    ("pixel_x", "pixel_y"),
    ("x_pixel", "y_pixel"),
    ("x_centroid", "y_centroid"),
    ("centroid_x", "centroid_y"),
    ("center_x", "center_y"),
    ("x_center", "y_center"),
    ("centerx", "centery"),
    ("x_location", "y_location"),
    ("x_coord", "y_coord"),
    ("coord_x", "coord_y"),
    ("xcoord", "ycoord"),
    ("x_coordinate", "y_coordinate"),
    ("xcoordinate", "ycoordinate"),
    ("x_position", "y_position"),
    ("x_px", "y_px"),
    ("px_x", "px_y"),
    ("spatial_x", "spatial_y"),
    ("x_spatial", "y_spatial"),
    ("x_um", "y_um"),
    ("global_x", "global_y"),
    ("x_global_px", "y_global_px"),
    ("centerx_global_px", "centery_global_px"),
    ("sdimx", "sdimy"),
)
_COLUMN_AND_ROW = (("col", "row"), ("cols", "rows"), ("column", "row"))  # array indices if px are present too
_INDICES = (("array_col", "array_row"),)  # never px: rows and columns of the array
_IN_ORDER = (("0", "1"), ("1", "2"), ("spatial1", "spatial2"), ("spatial_1", "spatial_2"), ("spatial_0", "spatial_1"),
             ("v1", "v2"))  # fmt: skip


def coordinates(adata: AnnData, key: str = _keys.SPATIAL) -> tuple[np.ndarray, str]:
    """Return the centres of the spots as (n, 2) float64, x and y, and their source.

    Raises
    ------
    KeyError
        There are no coordinates.
    TypeError, ValueError
        Coordinates are not finite numbers, or the columns x and y are ambiguous.
    """
    where = f"adata.obsm['{key}']"
    needs = f"stampy needs pixel coordinates (x, y) of the spots' centres there.{_hint_at_coordinates(adata, key)}"
    _checks.has_key(adata.obsm, key, slot="adata.obsm", needs=needs)
    found = adata.obsm[key]
    if hasattr(found, "columns"):
        found, names = _by_name(found, where)
        where = f"{where} ({names})"
    else:
        found = np.ma.filled(found.astype(np.float64), np.nan) if isinstance(found, np.ma.MaskedArray) else found
        found = _by_position(np.asarray(found.toarray() if hasattr(found, "toarray") else found), where)
    xy = _numbers(found, where)
    bad = np.flatnonzero(~np.isfinite(xy).all(axis=1))
    if bad.size:
        raise ValueError(
            f"`{where}` has NaN or infinite coordinates for {bad.size} of {len(xy)} spots "
            f"(first: {_checks.shortlist(adata.obs_names[bad[:3]])}). Drop those spots first, e.g. "
            f"`adata = adata[np.isfinite(adata.obsm['{key}']).all(axis=1)].copy()`."
        )
    return xy, where


def _hint_at_coordinates(adata: AnnData, key: str) -> str:
    """Hint at coordinates stored elsewhere, with the code to copy them; "" if none are found."""
    others = [name for name in adata.obsm if "spatial" in str(name).lower() and np.shape(adata.obsm[name])[1] in (2, 3)]
    if others:
        return f" If they are in {others[0]!r}: `adata.obsm['{key}'] = adata.obsm[{others[0]!r}]`."
    columns = {str(c).strip().lower(): c for c in adata.obs.columns}
    found = _pairs(columns, _NAMES)
    if not found:
        return ""
    pair = list(found[0])
    return f" `adata.obs` has {pair}; if these are they: `adata.obsm['{key}'] = adata.obs[{pair}].to_numpy()`."


def _by_position(values: np.ndarray, where: str) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise ValueError(f"`{where}` must have shape (n, 2), x and y, found {values.shape}.")
    if values.shape[1] == 3 and (depths := len(np.unique(values[:, 2].astype(str)))) > 1:
        _checks.warn(
            f"`{where}` has a third column with {depths} different values: only x and y are used. If it separates "
            "sections or planes, put it in a column of `obs` and name this column with `library_key=`."
        )
    return values[:, :2]


def _by_name(table: pd.DataFrame, where: str) -> tuple[np.ndarray, str]:
    """Columns named x and y; ValueError if there are none, or several with different values."""
    columns = {str(c).strip().lower(): c for c in table.columns}
    found = _pairs(columns, _NAMES) or _pairs(columns, _COLUMN_AND_ROW)
    if not found and len(columns) == 2:
        found = _pairs(columns, _IN_ORDER)
        if not found and (found := _pairs(columns, _INDICES)):
            _checks.warn(
                f"`{where}` contains {list(table.columns)}: rows and columns of the array, not px. On Visium, "
                "neighbours "
                "found from them are wrong. Put `pxl_col_in_fullres` and `pxl_row_in_fullres` there."
            )
    values = [(x, y, _numbers(table[[x, y]].to_numpy(), where)) for x, y in found]
    for x, y, other in values[1:]:
        if not np.array_equal(values[0][2], other, equal_nan=True):
            raise ValueError(
                f"`{where}` has columns {list(values[0][:2])} and {[x, y]} that differ; it is not clear which are x "
                "and y of the spots. Keep one pair."
            )
    if not values:
        raise ValueError(
            f"`{where}` is a table with columns {_checks.shortlist(table.columns)}; it is not clear which are x and y. "
            "Call them 'x' and 'y', or 'pxl_col_in_fullres' and 'pxl_row_in_fullres'."
        )
    x, y, numbers = values[0]
    return numbers, f"x from {x!r}, y from {y!r}"


def _pairs(columns: dict[str, Any], known: tuple[tuple[str, str], ...]) -> list[tuple[Any, Any]]:
    return [(columns[x], columns[y]) for x, y in known if x in columns and y in columns]


def _numbers(values: np.ndarray, where: str) -> np.ndarray:
    """Convert to float64, including numbers stored as text."""
    try:
        if values.dtype.kind == "c":
            raise TypeError("complex numbers are no coordinates")
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{where}` must contain numbers, found dtype {values.dtype}.") from error


class Places(NamedTuple):
    """Coordinates and section of the spots of a table."""

    xy: np.ndarray  # (n, 2) float64, in px of the section's full-resolution image
    codes: np.ndarray  # (n,) int64, number of the section
    names: list[str]  # names of the sections; [""] if the table is one section
    source: str  # where the coordinates were found


def places_of(
    data: AnnData | SpatialData,
    *,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    neighbors: bool = True,
) -> Places:
    """Coordinates and section of every spot, for functions that use no image.

    With `neighbors`, a table in which several sections overlap raises an error, as in :func:`sections_of`.
    """
    table = _utils.table_of(data, table_key)
    places, _ = placed(data, table, library_key)
    if neighbors:
        check_one_section(table, places.xy, places.codes, libraries_of(table), library_key=library_key)
        warn_of_indices(places.xy, places.codes)
    return places


def side_by_side(places: Places) -> np.ndarray:
    """Coordinates (n, 2) with the sections shifted apart, so that spots of different sections are never neighbours.

    The first section is not shifted.
    """
    xy = places.xy.copy()
    extents = [np.ptp(xy[places.codes == code], axis=0).max() for code in range(len(places.names))]
    for code in range(1, len(places.names)):
        before, here = places.codes == code - 1, places.codes == code
        right = xy[before, 0].max() + 10 * max(*extents, 1.0)
        xy[here, 0] += right - xy[here, 0].min()
    return xy


def coordinates_of(data: AnnData | SpatialData, table_key: str = _keys.TABLE) -> np.ndarray:
    """Centres of all spots of the table, (n, 2) float64, each in px of its section's full-resolution image.

    Raises
    ------
    KeyError
        There are no coordinates.
    """
    return places_of(data, table_key=table_key, neighbors=False).xy


def library_key_of(
    data: AnnData | SpatialData, library_key: str | None = None, table_key: str = _keys.TABLE
) -> str | None:
    """Column that separates the sections: `library_key`, or that of several regions of a SpatialData."""
    table = _utils.table_of(data, table_key)
    if library_key is not None or data is table or not elements.is_linked(data, table):
        return library_key
    return elements.several_regions(table)


def resolved_library_key(data: AnnData | SpatialData, library_key: str | None, table_key: str) -> str | None:
    """Like `library_key_of`; else, with a warning, the only column with the entries of ``uns["spatial"]`` as values."""
    table = _utils.table_of(data, table_key)
    key = library_key_of(data, library_key, table_key)
    libraries = libraries_of(table)
    if key is not None or len(libraries) < 2 or section_column(table, libraries) is not None:
        return key
    columns = matching_columns(table, libraries)
    if len({tuple(np.unique(table.obs[c].astype(str), return_inverse=True)[1].tolist()) for c in columns}) != 1:
        return None
    _checks.warn(
        f"`adata.uns['spatial']` has {len(libraries)} sections ({_checks.shortlist(libraries)}); they were "
        f"separated by `adata.obs[{columns[0]!r}]`. Pass `library_key={columns[0]!r}` if that is right, or the "
        "right column."
    )
    return columns[0]


def has_coordinates(data: AnnData | SpatialData, table_key: str = _keys.TABLE) -> bool:
    """Whether the spots have coordinates; their values are not checked."""
    table = _utils.table_of(data, table_key)
    return _keys.SPATIAL in table.obsm or (data is not table and elements.is_linked(data, table))


def has_images(data: AnnData | SpatialData, table_key: str = _keys.TABLE) -> bool:
    """Whether any section has an image."""
    table = _utils.table_of(data, table_key)
    if data is not table and len(getattr(data, "images", ())):
        return True
    return any(has_image(library) for library in libraries_of(table).values())


def placed(
    data: AnnData | SpatialData, table: AnnData, library_key: str | None
) -> tuple[Places, dict[str, Region | None]]:
    """Coordinates and section of all spots, and the region of each section."""
    if data is table or not elements.is_linked(data, table):
        xy, source = coordinates(table)
        return Places(xy, *_checks.libraries(table, library_key), source), {}
    xy = np.empty((table.n_obs, 2))
    regions = elements.regions_of(data, table)
    region_codes = np.empty(table.n_obs, dtype=np.int64)
    for i, region in enumerate(regions):
        system = elements.shared_systems(region.element)[0]
        matrix = elements.affine(region.element, system)
        unit = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        xy[region.rows] = elements.apply(matrix, region.xy) / unit
        region_codes[region.rows] = i
    source = ", ".join(f"sdata.{r.kind}[{r.name!r}]" for r in regions[:3])
    if library_key is None:
        names = [r.name for r in regions]
        return Places(xy, region_codes, names, source), dict(zip(names, regions, strict=True))
    codes, names = _checks.libraries(table, library_key)
    within = {}
    for code, name in enumerate(names):
        here = np.unique(region_codes[codes == code])
        if len(here) > 1:
            raise ValueError(
                f"Section {name!r} of `library_key={library_key!r}` lies in {len(here)} regions of the SpatialData: "
                f"{_checks.shortlist(regions[i].name for i in here)}, each with its own coordinates. Omit "
                "`library_key`: the regions are the sections."
            )
        within[name] = regions[here[0]]
    return Places(xy, codes, names, source), within
