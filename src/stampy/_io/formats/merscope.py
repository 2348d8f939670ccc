"""MERSCOPE folders, by cells: ``cell_by_gene.csv`` with the centres in ``cell_metadata.csv``, in µm."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from stampy._io.assemble import Counts, add_library, unique_names, with_positions, without_controls
from stampy._io.delimited import table, wide_counts
from stampy._io.input_files import SectionFiles, listing, refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["is_merscope", "read_merscope"]

EXPECTED_FILES = "A MERSCOPE folder has cell_by_gene.csv and cell_metadata.csv."
CELL_UM = 10.0  # diameter for plots
_COUNTS, _CELLS = "cell_by_gene", "cell_metadata"
_CONTROLS = ("blank", "negcontrol", "antisense", "unassigned")  # prefixes of control probes and codewords


def is_merscope(folder: Path) -> bool:
    """Whether the folder contains the tables of MERSCOPE."""
    return any(_find(folder, what) for what in (_COUNTS, _CELLS))


def _find(folder: Path, what: str) -> Path | None:
    """Find ``cell_by_gene.csv``, with any prefix or suffix (``_S1R1``), optionally gzipped."""
    parts = SectionFiles(folder)
    if (exact := parts.find(f"{what}.csv")) is not None:
        return exact
    found = [p for p in parts.folders and sorted(folder.glob(f"*{what}*.csv*")) if not p.name.startswith(".")]
    if len(found) > 1:
        raise refuse(
            f"{str(folder)!r} has several tables {what!r}: {[p.name for p in found]}. Put each section "
            "into a separate folder."
        )
    return found[0] if found else None


def read_merscope(folder: Path) -> AnnData:
    """Cells and genes, without control probes."""
    found = {what: _find(folder, what) for what in (_COUNTS, _CELLS)}
    paths = {what: path for what, path in found.items() if path is not None}
    if lacking := [f"{what}.csv" for what in found if what not in paths]:
        raise FileNotFoundError(f"{str(folder)!r} lacks {' and '.join(lacking)}. Found: {listing(folder)}.")
    cells = _cells(paths[_CELLS])
    x, names, genes, _ = wide_counts(paths[_COUNTS])
    kept = without_controls(genes, _CONTROLS)
    var = pd.DataFrame(index=unique_names([genes[i] for i in kept]))
    counts = Counts(x[:, kept], names, var)
    adata = with_positions(counts, cells, counts_name=paths[_COUNTS].name, positions_name=paths[_CELLS].name)
    centres = adata.obsm["spatial"]
    adata.obs["center_x"], adata.obs["center_y"] = centres[:, 0], centres[:, 1]
    add_library(adata, folder.resolve().name, {"microns_per_pixel": 1.0, "spot_diameter_fullres": CELL_UM})
    return adata


def _cells(path: Path) -> pd.DataFrame:
    """Cells by name: the column EntityID, or the first column."""
    cells = table(path)
    key = "EntityID" if "EntityID" in cells else cells.columns[0]
    lacking = [c for c in ("center_x", "center_y") if c not in cells]
    if lacking:
        raise refuse(f"{str(path)!r} lacks {lacking} (centres of cells in µm) among {list(cells.columns)}.")
    cells = cells.set_axis(cells[key].astype(str), axis=0).rename_axis(None)
    return cells.drop(columns=key).rename(columns={"center_x": "x", "center_y": "y"})
