"""Space Ranger's table of spots, of every version: by the names of its columns, or by their order without a header."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stampy._io.delimited import headed, layout_of, read_text
from stampy._io.parts import reading, refuse

__all__ = ["COLUMNS", "NAMES", "positions"]

NAMES = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.tsv",
         "tissue_positions.txt", "tissue_positions_list.txt", "tissue_positions_list.tsv")  # fmt: skip
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]  # in Space Ranger's order: row first
_OTHER_NAMES = {
    "barcode": ("barcode", "barcodes", "bc", ""),
    "in_tissue": ("in_tissue", "tissue", "intissue"),
    "array_row": ("array_row", "row"),
    "array_col": ("array_col", "col", "array_column"),
    "y": ("pxl_row_in_fullres", "imagerow", "pxl_row"),
    "x": ("pxl_col_in_fullres", "imagecol", "pxl_col"),
}
_TRUE = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}


def positions(path: Path) -> pd.DataFrame:
    """Spots by barcode, with the columns in_tissue, array_row, array_col, x and y (px of the full-resolution image)."""
    spots = _frame(path).set_index("barcode")
    spots.index = spots.index.astype(str)
    if spots["in_tissue"].dtype.kind not in "iu":
        spots["in_tissue"] = spots["in_tissue"].astype(str).str.lower().map(_TRUE)
        if spots["in_tissue"].isna().any():
            raise refuse(f"The column in_tissue of {str(path)!r} must hold 0 and 1.")
        spots["in_tissue"] = spots["in_tissue"].astype(np.int64)
    return spots


def _frame(path: Path) -> pd.DataFrame:
    if path.name.lower().endswith(".parquet"):
        with reading(path):
            return _by_name(pd.read_parquet(path), path)
    layout = layout_of(path)
    if headed(layout):
        text = [c for c in layout.named if c.lower() in _OTHER_NAMES["barcode"]]
        found = read_text(path, layout, names=layout.named, skip=layout.comments + 1, dtype=dict.fromkeys(text, str))
        return _by_name(found, path)
    if len(layout.header) != len(COLUMNS):
        raise refuse(
            f"{str(path)!r} has {len(layout.header)} columns without names where the {len(COLUMNS)} of Space Ranger's "
            f"positions were expected: {COLUMNS}."
        )
    return read_text(path, layout, names=COLUMNS, skip=layout.comments, dtype={"barcode": str})


def _by_name(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The columns that are known, by whichever name; barcodes may be the index."""
    names = {str(c).lower(): c for c in frame.columns}
    found = {ours: next((names[n] for n in theirs if n in names), None) for ours, theirs in _OTHER_NAMES.items()}
    if found["barcode"] is None and frame.index.dtype.kind == "O":
        frame = frame.rename_axis("barcode").reset_index()
        found["barcode"] = "barcode"
    lacking = [ours for ours, theirs in found.items() if theirs is None]
    if lacking:
        raise refuse(
            f"{str(path)!r} has the columns {list(frame.columns)}; those of Space Ranger's positions were expected, "
            f"{[names[0] for names in _OTHER_NAMES.values()]}."
        )
    return frame[[found[c] for c in COLUMNS]].set_axis(COLUMNS, axis=1)
