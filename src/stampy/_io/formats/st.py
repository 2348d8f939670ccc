"""ST: a table of counts with spots named COLUMNxROW, and a table with their positions on the image."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _checks, _keys
from stampy._io.assemble import Counts, add_library, refer_to_image, unique_names
from stampy._io.delimited import TableLayout, is_table, layout_of, table, tables_in, wide_counts
from stampy._io.input_files import listed, listing, reading, refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["EXPECTED_FILES", "is_st", "numbers_of", "on_pixels", "read_st", "st_counts"]

logger = logging.getLogger(__name__)

PITCH_UM, SPOT_UM = 200.0, 100.0
EXPECTED_FILES = (
    "ST is a table of counts (.tsv or .tsv.gz; spots named COLUMNxROW by genes) and a table of spots with the "
    "columns x, y, pixel_x, pixel_y."
)
_ALIGNED = {"x", "y", "pixel_x", "pixel_y"}
_PICTURES = (".tif", ".tiff", ".jpg", ".jpeg", ".png")
_NAME = re.compile(r"X?-?\d+(\.\d+)?x-?\d+(\.\d+)?")  # R prefixes names that begin with a digit by X


def is_st(path: Path) -> bool:
    """Whether the folder has a table of ST counts, or the file is one: rows or columns are named COLUMNxROW."""
    if path.is_dir():
        return any(is_st(p) for p in listed(path) if p.is_file())
    if not is_table(path):
        return False
    try:
        return _is_counts(layout_of(path))
    except ValueError:
        return False


def _is_counts(layout: TableLayout) -> bool:
    by_spots = len(layout.named) > 2 and bool(layout.row) and _NAME.fullmatch(layout.row[0]) is not None
    return by_spots or (all(_NAME.fullmatch(c) for c in layout.named[1:4]) and len(layout.named) > 3)


def read_st(path: Path, *, image: str | Path | None = None) -> AnnData:
    """Read an ST section from its table of counts, or the folder of one section.

    The table of spots is searched next to the counts by its columns, and in ``ST-spotfiles`` next to their folder; the
    image likewise in ``ST-imgs``. Without a table of spots, coordinates are array indices, 200 µm apart.
    """
    path = path if path.is_file() else _one_table(path)
    name = path.name.split(".")[0].removesuffix("_stdata")
    counts = st_counts(path)
    beside = _spots_file(path, name)
    if beside is None:
        if image is not None:
            raise FileNotFoundError(
                f"No file of the spots for {path.name}: they cannot be placed on an image. {EXPECTED_FILES}"
            )
        adata = _by_numbers(counts)
        add_library(adata, name, {"microns_per_pixel": PITCH_UM, "spot_diameter_fullres": SPOT_UM / PITCH_UM})
        return adata
    with reading(beside):
        adata = on_pixels(counts, table(beside), beside.name)
    distance = _distance_px(adata)
    add_library(adata, name, {"microns_per_pixel": PITCH_UM / distance, "spot_diameter_fullres": distance / 2})
    image = image or _image(path, name)
    if image is not None:
        refer_to_image(adata, image, name)
    return adata


def st_counts(path: Path, *, fractions: bool = True) -> Counts:
    """Read the table of counts, spots by genes or genes by spots."""
    x, rows, columns, _ = wide_counts(path, fractions=fractions)
    if not _NAME.fullmatch(rows[0]) and all(_NAME.fullmatch(c) for c in columns):
        x, rows, columns = x.T.tocsr(), columns, rows
    wrong = [r for r in rows if not _NAME.fullmatch(r)]
    if wrong:
        raise refuse(f"{str(path)!r} has {len(wrong)} spots that are not named COLUMNxROW (first: {wrong[0]!r}).")
    return Counts(x, [r.removeprefix("X") for r in rows], pd.DataFrame(index=unique_names(columns)))


def numbers_of(spots: list[str]) -> np.ndarray:
    """Column and row of each spot, from its name."""
    return np.array([spot.split("x") for spot in spots], dtype=np.float64).reshape(-1, 2)


def _by_numbers(counts: Counts) -> AnnData:
    """Section with the array indices of the spots as coordinates."""
    import anndata

    numbers = numbers_of(counts.barcodes)
    adata = anndata.AnnData(counts.x, obs=pd.DataFrame(index=pd.Index(counts.barcodes, dtype=object)), var=counts.var)
    adata.obs["array_row"], adata.obs["array_col"] = numbers[:, 1], numbers[:, 0]
    adata.obsm[_keys.SPATIAL] = numbers
    return adata


def on_pixels(counts: Counts, spots: pd.DataFrame, table_name: str) -> AnnData:
    """Spots under tissue (by the column ``selected``, if it exists), in px of the image."""
    for column in sorted(_ALIGNED):
        _checks.has_key(spots, column, slot=table_name, needs=EXPECTED_FILES)
    listed_spots = spots.dropna(subset=sorted(_ALIGNED))
    if len(listed_spots) < len(spots):
        _checks.warn(f"{len(spots) - len(listed_spots)} lines of {table_name} lack numbers and are dropped.")
    everywhere = set(_names_of(listed_spots))
    if "selected" in spots:
        listed_spots = listed_spots[listed_spots["selected"] == 1]
    index = pd.Index(_names_of(listed_spots))
    names = [f"{x:.0f}x{y:.0f}" for x, y in numbers_of(counts.barcodes)]
    rows = index.get_indexer(names)
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise refuse(f"No spot of {table_name} ({_checks.shortlist(index, 3)}) is among the counts ({names[:3]}).")
    n_unlisted = sum(name not in everywhere for name in names)
    _warn_of_excluded(n_unlisted, len(names) - len(kept) - n_unlisted, len(index) - len(kept), table_name)
    adata = _by_numbers(counts)
    if len(kept) < len(names):
        adata = adata[kept].copy()
    placed = listed_spots.iloc[rows[kept]]
    adata.obsm[_keys.SPATIAL] = placed[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    return adata


def _names_of(spots: pd.DataFrame) -> list[str]:
    return [f"{x:.0f}x{y:.0f}" for x, y in zip(spots["x"], spots["y"], strict=True)]


def _warn_of_excluded(n_unlisted: int, n_unselected: int, n_without_counts: int, table_name: str) -> None:
    if n_unselected:
        logger.info("%s: %d spots with counts are not selected and were dropped", table_name, n_unselected)
    if n_unlisted:
        _checks.warn(f"{n_unlisted} spots with counts have no position in {table_name} and are dropped.")
    if n_without_counts:
        _checks.warn(f"{n_without_counts} spots of {table_name} have no counts and are dropped.")


def _one_table(folder: Path) -> Path:
    found = [p for p in listed(folder) if p.is_file() and is_st(p)]
    if len(found) != 1:
        raise refuse(
            f"{str(folder)!r} has {len(found)} tables of counts ({_checks.shortlist([p.name for p in found])}); "
            f"name one. Found: {listing(folder)}. {EXPECTED_FILES}"
        )
    return found[0]


def _spots_file(counts: Path, name: str) -> Path | None:
    """Table with x, y, pixel_x and pixel_y: the only one, or the one named after the section."""
    beside = counts.parent.parent / "ST-spotfiles"
    for folder in (counts.parent, *([beside] if beside.is_dir() else [])):
        found = [p for p, layout in tables_in(folder).items() if set(layout.named) >= _ALIGNED and p != counts]
        named = [p for p in found if name in re.split(r"[_\-. ]", p.name)] or [p for p in found if name in p.name]
        if len(named or found) > 1:
            raise refuse(
                f"{str(folder)!r} has several tables of spots for {counts.name}: "
                f"{_checks.shortlist([p.name for p in named or found])}. Keep one there."
            )
        if named or (found and folder == counts.parent):
            return (named or found)[0]
    return None


def _image(counts: Path, name: str) -> Path | None:
    """Image named after the section, the only one next to the counts, or the one in ST-imgs/PATIENT/SECTION."""
    folders = [counts.parent.parent / "ST-imgs" / name[:1] / name, counts.parent]
    several = []
    for folder in (f for f in folders if f.is_dir()):
        found = [p for p in listed(folder) if p.suffix.lower() in _PICTURES]
        named = [p for p in found if p.name.split(".")[0] == name]
        if len(named or found) == 1:
            return (named or found)[0]
        several += found
    if several:
        _checks.warn(
            f"{counts.name}: it cannot be determined which of {_checks.shortlist([p.name for p in several])} is its "
            "image; "
            "none is used. Pass `image=`."
        )
    return None


def _distance_px(adata: AnnData) -> float:
    """Distance of neighbours in px, by least squares of px on array indices; both axes have the same scale."""
    numbers = adata.obs[["array_col", "array_row"]].to_numpy(dtype=np.float64)
    pixels = adata.obsm[_keys.SPATIAL]
    numbers, pixels = numbers - numbers.mean(axis=0), pixels - pixels.mean(axis=0)
    spread = float(np.sqrt((numbers**2).sum()))
    if spread == 0:
        raise refuse("The scale cannot be inferred from one spot; the section needs at least two spots.")
    return float(np.sqrt((pixels**2).sum()) / spread)
