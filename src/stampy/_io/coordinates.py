"""Which of some tables are counts and which are coordinates: told by their columns, whatever the files are called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stampy import _checks
from stampy._io.delimited import Layout, headed, is_table, layout_of, read_text, table
from stampy._io.parts import listed, refuse

__all__ = ["coordinates", "is_coordinates", "tables_in", "xy_of"]

# names of x and y, the first that are there; lower case
_XY = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("pixel_x", "pixel_y"), ("imagecol", "imagerow"),
    ("xcoord", "ycoord"), ("x_coord", "y_coord"), ("x_centroid", "y_centroid"), ("center_x", "center_y"),
    ("sdimx", "sdimy"), ("spatial_x", "spatial_y"), ("x_um", "y_um"), ("x", "y"), ("spatial_1", "spatial_2"),
    ("spatial1", "spatial2"), ("coord_x", "coord_y"), ("cx", "cy"), ("xc", "yc"), ("centroid_x", "centroid_y"),
    ("globalx", "globaly"), ("array_col", "array_row"), ("col", "row"),
)  # fmt: skip
_BARCODES = ("barcode", "barcodes", "cell_id", "cellid", "cell", "spot", "spot_id", "spotid", "bead", "id", "name",
             "cell_barcode", "beads", "spots", "index", "unnamed: 0", "")  # fmt: skip
_MOST_COLUMNS = 200  # of a table of coordinates; one of counts has a column for each gene or spot


def tables_in(folder: Path) -> dict[Path, Layout]:
    """The tables of a folder that can be read, with their layouts."""
    found = {}
    for path in listed(folder):
        if is_table(path):
            try:
                found[path] = layout_of(path)
            except ValueError as error:  # a text that is no table
                if path.stat().st_size:
                    _checks.warn(f"{path.name} is left out: {error}")
    return found


def xy_of(columns: list[str]) -> tuple[str, str] | None:
    """The columns that hold x and y."""
    names = {str(c).lower(): c for c in columns}
    return next(((names[x], names[y]) for x, y in _XY if x in names and y in names), None)


def is_coordinates(layout: Layout) -> bool:
    """Whether a table has a position in each line: named columns, or a name and two numbers."""
    if len(layout.named) > _MOST_COLUMNS or not layout.row:
        return False
    if headed(layout):
        return xy_of(layout.named) is not None
    return len(layout.header) == 3


def coordinates(path: Path, layout: Layout | None = None) -> pd.DataFrame:
    """Spots by name, with the columns x and y and whatever else the table has."""
    layout = layout or layout_of(path)
    if not headed(layout):
        return read_text(path, layout, names=["name", "x", "y"], skip=layout.comments, dtype={"name": str}).set_index(
            "name"
        )
    xy = xy_of(layout.named)
    if xy is None:
        raise refuse(f"{str(path)!r} has the columns {layout.named[:12]}; coordinates such as x and y were expected.")
    names = {c.lower(): c for c in layout.named}
    key = next((names[n] for n in _BARCODES if n in names), layout.named[0])
    if key in xy:
        raise refuse(f"{str(path)!r} has coordinates, but no column that names the spots: {layout.named[:12]}.")
    frame = table(path, dtype={key: str}).set_index(key).rename_axis(None)
    for other, column in (("x", xy[0]), ("y", xy[1])):
        if other in frame and column != other:
            frame = frame.drop(columns=other)
    frame = frame.rename(columns=dict(zip(xy, ("x", "y"), strict=True)))
    frame.index = frame.index.astype(str)
    return frame


def share(names: pd.Index, known: pd.Index) -> float:
    """How many of the names are known, also without their suffix -1."""
    exact = float(names.isin(known).mean()) if len(names) else 0.0
    if exact:
        return exact
    plain = known.astype(str).str.replace(r"-\d+$", "", regex=True)
    return float(np.mean(names.astype(str).str.replace(r"-\d+$", "", regex=True).isin(plain))) if len(names) else 0.0
