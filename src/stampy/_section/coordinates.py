"""`obsm["spatial"]` as x and y: arrays by position, tables by the names of their columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["coordinates"]

# x and y as the files of Space Ranger, Xenium, CosMx, MERSCOPE, Seurat, Giotto and SpatialExperiment call them
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
    ("col", "row"),
    ("cols", "rows"),
    ("column", "row"),
)
_INDICES = (("array_col", "array_row"),)  # no px: rows and columns of the array
_IN_ORDER = (("0", "1"), ("1", "2"), ("spatial1", "spatial2"), ("spatial_1", "spatial_2"), ("spatial_0", "spatial_1"),
             ("v1", "v2"))  # fmt: skip


def coordinates(adata: AnnData, key: str = _keys.SPATIAL) -> tuple[np.ndarray, str]:
    """The spots' centres as (n, 2) float64, x and y, and where they are from.

    Raises
    ------
    KeyError
        Where there are none.
    TypeError, ValueError
        Where they are no finite numbers, or it is not clear which are x and y.
    """
    where = f"adata.obsm['{key}']"
    _checks.has_key(
        adata.obsm, key, slot="adata.obsm", needs="stampy needs pixel coordinates (x, y) of the spots' centres there."
    )
    found = adata.obsm[key]
    if hasattr(found, "columns"):
        found, names = _by_name(found, where)
        where = f"{where} ({names})"
    else:
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


def _by_position(values: np.ndarray, where: str) -> np.ndarray:
    if values.ndim != 2 or values.shape[1] not in (2, 3):
        raise ValueError(f"`{where}` must have shape (n, 2), x and y, found {values.shape}.")
    if values.shape[1] == 3 and (depths := len(np.unique(values[:, 2].astype(str)))) > 1:
        _checks.warn(
            f"`{where}` has a third column with {depths} different values: x and y alone are used. Where it tells "
            "sections or planes apart, put it in a column of `obs` and name that by `library_key=`."
        )
    return values[:, :2]


def _by_name(table: pd.DataFrame, where: str) -> tuple[np.ndarray, str]:
    """Columns that are called x and y; ValueError where none are, or several that differ."""
    columns = {str(c).strip().lower(): c for c in table.columns}
    found = _pairs(columns, _NAMES)
    if not found and len(columns) == 2:
        found = _pairs(columns, _IN_ORDER)
        if not found and (found := _pairs(columns, _INDICES)):
            _checks.warn(
                f"`{where}` holds {list(table.columns)}: rows and columns of the array, not px. On Visium, neighbours "
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
    """As float64; digits in text are read."""
    try:
        if values.dtype.kind == "c":
            raise TypeError("complex numbers are no coordinates")
        return values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{where}` must hold numbers, found dtype {values.dtype}.") from error
