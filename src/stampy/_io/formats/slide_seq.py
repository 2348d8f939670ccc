"""Slide-seq, and other platforms with a table of counts and a table of coordinates; either may be transposed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from stampy import _checks
from stampy._io.assemble import Counts, add_library, unique_names, with_positions
from stampy._io.delimited import TableLayout, coordinates_table, is_coordinates, is_table, share, tables_in, wide_counts
from stampy._io.input_files import refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["EXPECTED_FILES", "is_counts_and_coordinates", "read_counts_and_coordinates"]

EXPECTED_FILES = (
    "Of any other platform: a table of counts (spots by genes or genes by spots) and a table of coordinates (spots' "
    "names, x, y), .csv, .tsv or .txt, in one folder."
)
_SLIDE_SEQ = re.compile(r"bead_?locations?|digital_expression|MappedDGE|^puck_", re.IGNORECASE)


def is_counts_and_coordinates(path: Path) -> bool:
    """Whether a folder contains both tables, or a table of counts has one of coordinates next to it."""
    folder = path if path.is_dir() else path.parent
    if path.is_file() and not is_table(path):
        return False
    tables = tables_in(folder)
    places = [p for p, layout in tables.items() if is_coordinates(layout)]
    return bool(places) and len(tables) > len(places) and (path.is_dir() or path not in places)


def read_counts_and_coordinates(path: Path) -> AnnData:
    """Spots with counts and a position. Tables and their orientation are recognised by their contents."""
    folder = path if path.is_dir() else path.parent
    tables = tables_in(folder)
    places = {p: layout for p, layout in tables.items() if is_coordinates(layout) and p != path}
    candidates = [path] if path.is_file() else [p for p in tables if p not in places]
    if len(candidates) > 1:
        candidates = [p for p in candidates if _looks_like_counts(tables[p])] or candidates
    if len(candidates) != 1:
        raise refuse(
            f"{str(folder)!r} has {len(candidates)} tables that may hold counts: "
            f"{_checks.shortlist([p.name for p in candidates])}. Pass the table of the section to `stampy.read`."
        )
    x, rows, columns, _ = wide_counts(candidates[0])
    where, spots, turned = _matching_orientation(places, rows, columns, candidates[0])
    if turned:
        x, rows, columns = x.T.tocsr(), columns, rows
    counts = Counts(x, rows, pd.DataFrame(index=unique_names(columns)))
    adata = with_positions(counts, spots, counts_name=candidates[0].name, positions_name=where.name)
    add_library(adata, re.split(r"[.]", candidates[0].name)[0] if path.is_file() else folder.resolve().name, {})
    _checks.warn(
        f"{candidates[0].name} and {where.name} do not state how large the unit of the coordinates is. Pass "
        "`um_per_px=` "
        f"where it is needed{' (0.65 for the camera of Slide-seq)' if _SLIDE_SEQ.search(where.name) else ''}."
    )
    return adata


def _looks_like_counts(layout: TableLayout) -> bool:
    """Whether the first line below the header is a name followed by whole numbers."""
    return len(layout.row) > 2 and all(v.replace(".", "", 1).isdigit() for v in layout.row[1:50])


def _matching_orientation(
    places: dict[Path, TableLayout], rows: list[str], columns: list[str], counts: Path
) -> tuple[Path, pd.DataFrame, bool]:
    """Table of coordinates that matches the spots, and whether spots are the columns of the counts."""
    best, found = 0.0, None
    for path, layout in places.items():
        spots = coordinates_table(path, layout)
        for turned, names in ((False, rows), (True, columns)):
            fits = share(pd.Index(names, dtype=object), spots.index)
            if fits > best:
                best, found = fits, (path, spots, turned)
    if found is None:
        raise refuse(
            f"Neither the rows (such as {rows[0]!r}) nor the columns (such as {columns[0]!r}) of {str(counts)!r} are "
            f"named in {_checks.shortlist([p.name for p in places])}, which has {_checks.shortlist(spots.index, 2)}. "
            "Counts and coordinates are of different sections, or the names were changed."
        )
    return found
