"""CosMx flat files, by cells: ``*_exprMat_file.csv`` with the centres in ``*_metadata_file.csv``."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _checks
from stampy._io.assemble import Counts, add_library, unique_names, with_positions, without_controls
from stampy._io.delimited import layout_of, table, wide_counts
from stampy._io.input_files import SectionFiles, refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["EXPECTED_FILES", "is_cosmx", "read_cosmx"]

logger = logging.getLogger(__name__)

EXPECTED_FILES = "CosMx flat files are *_exprMat_file.csv and *_metadata_file.csv."
_COUNTS, _CELLS, _FIELDS = "exprMat_file.csv", "metadata_file.csv", "fov_positions_file.csv"
_KEYS = ("fov", "cell_ID", "cell_id", "cell")
_CENTRES = ["CenterX_global_px", "CenterY_global_px"]
_CENTRES_MM = ["x_slide_mm", "y_slide_mm"]  # for exports without global px
_CONTROLS = ("negprb", "negative", "systemcontrol", "falsecode", "custom_neg")
CELL_UM = 10.0  # diameter for plots


def is_cosmx(folder: Path) -> bool:
    """Whether the folder contains CosMx flat files."""
    return bool(SectionFiles(folder).all(_COUNTS, _CELLS))


def read_cosmx(folder: Path) -> AnnData:
    """Cells and genes at the global centres, in px, without control probes.

    µm per px are computed from areas given in px and µm², or from fields of view given in px and mm; otherwise the
    scale is unknown, with a warning.
    """
    parts = SectionFiles(folder)
    counts_path = parts.need(_COUNTS, looked_for=EXPECTED_FILES)
    parts = parts.of(counts_path, _COUNTS)
    cells_path = parts.need(_CELLS, looked_for=EXPECTED_FILES)
    cells = _cells(cells_path)
    counts = _counts(counts_path)
    adata = with_positions(counts, cells, counts_name=counts_path.name, positions_name=cells_path.name)
    um_per_px = 1.0 if _in_um(cells) else _um_per_px(cells, parts)
    factors = (
        {} if um_per_px is None else {"microns_per_pixel": um_per_px, "spot_diameter_fullres": CELL_UM / um_per_px}
    )
    add_library(adata, parts.prefix or folder.resolve().name, factors)
    return adata


def _names(frame: pd.DataFrame) -> list[str]:
    """FOV_CELL, which is unique in a section, unlike the number of a cell."""
    cell = "cell_ID" if "cell_ID" in frame else "cell_id"
    return [f"{fov}_{number}" for fov, number in zip(frame["fov"].astype(str), frame[cell].astype(str), strict=True)]


def _counts(path: Path) -> Counts:
    columns = layout_of(path).named
    keys = [c for c in columns if c in _KEYS]
    if "fov" not in keys or not {"cell_ID", "cell_id"} & set(keys):
        raise refuse(f"{str(path)!r} lacks the columns fov and cell_ID; it begins with {columns[:4]}. {EXPECTED_FILES}")
    x, _, genes, found = wide_counts(path, keys=keys)
    cell = found["cell_ID" if "cell_ID" in found else "cell_id"].astype(str)
    in_cells = np.flatnonzero((cell != "0").to_numpy())  # 0: transcripts outside of cells
    if len(in_cells) < len(found):
        logger.info("%s: dropped %d rows of transcripts outside of cells", path.name, len(found) - len(in_cells))
    kept = without_controls(genes, _CONTROLS)
    var = pd.DataFrame(index=unique_names([genes[i] for i in kept]))
    return Counts(x[in_cells][:, kept], _names(found.iloc[in_cells]), var)


def _cells(path: Path) -> pd.DataFrame:
    cells = table(path)
    needed = ["fov", "cell_ID" if "cell_ID" in cells else "cell_id", *_CENTRES]
    if not set(_CENTRES) & set(cells) and set(_CENTRES_MM) <= set(cells):
        cells[_CENTRES] = 1000 * cells[_CENTRES_MM].to_numpy()  # in µm
    lacking = [c for c in needed if c not in cells]
    if lacking:
        raise refuse(f"{str(path)!r} lacks the columns {lacking}; it has {list(cells.columns)[:12]}. {EXPECTED_FILES}")
    cells = cells.set_axis(_names(cells), axis=0).drop(columns=[c for c in cells if not str(c)])
    return cells.rename(columns={"CenterX_global_px": "x", "CenterY_global_px": "y"})


def _in_um(cells: pd.DataFrame) -> bool:
    """Whether the centres are from columns in mm, since there are none in px."""
    return set(_CENTRES_MM) <= set(cells) and np.array_equal(cells["x"], 1000 * cells[_CENTRES_MM[0]])


def _um_per_px(cells: pd.DataFrame, parts: SectionFiles) -> float | None:
    if {"Area", "Area.um2"} <= set(cells.columns) and (cells["Area"] > 0).any():
        ratio = float(np.sqrt((cells["Area.um2"] / cells["Area"])[cells["Area"] > 0].median()))
        if np.isfinite(ratio) and ratio > 0:
            return ratio
    if (path := parts.find(_FIELDS)) is not None:
        fields = table(path)
        fields = fields.rename(columns=lambda c: str(c).lower().replace("_global_mm", "_mm"))  # depends on version
        if {"x_global_px", "x_mm", "y_global_px", "y_mm"} <= set(fields.columns) and len(fields) > 1:
            px = float(np.ptp(fields["x_global_px"]) + np.ptp(fields["y_global_px"]))
            um = 1000 * float(np.ptp(fields["x_mm"]) + np.ptp(fields["y_mm"]))
            if px > 0 and um > 0:
                return um / px
    _checks.warn(
        "The CosMx files do not state how large a pixel is. Pass `um_per_px=` where it is needed: 0.12 for "
        "commercial instruments, 0.18 for the first public data sets of lung."
    )
    return None
