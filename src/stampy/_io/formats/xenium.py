"""Xenium folders, by cells: counts as .h5, folder, zipped zarr or archive; coordinates in µm or px of the H&E image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _keys
from stampy._io.assemble import Counts, add_library, refer_to_image, with_positions
from stampy._io.delimited import layout_of, table
from stampy._io.formats.matrix_10x import counts_h5, counts_mtx, counts_zarr
from stampy._io.formats.space_ranger import outs_of, sample_of
from stampy._io.input_files import SectionFiles, json_of, listing, opened, reading, refuse, unzipped
from stampy._section.outside_links import refuse_links_zarr

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["EXPECTED_FILES", "is_xenium", "read_xenium"]

EXPECTED_FILES = (
    "A Xenium folder has cell_feature_matrix.h5 (or cell_feature_matrix/, .zarr.zip, .tar.gz) and cells.parquet, "
    "cells.csv.gz or cells.csv."
)
_CELLS = ("cells.parquet", "cells.csv")
_H5, _FOLDER = "cell_feature_matrix.h5", "cell_feature_matrix"
_ZARR = ("cell_feature_matrix.zarr.zip", "cell_feature_matrix.zarr")
_ARCHIVE = ("cell_feature_matrix.tar.gz", "cell_feature_matrix.tar", "cell_feature_matrix.zip")
_PIXEL_UM = 0.2125  # of Xenium's morphology image, if experiment.xenium does not state it
CELL_UM = 10.0  # diameter for plots


def is_xenium(folder: Path) -> bool:
    """Whether the folder contains Xenium's cells."""
    parts = SectionFiles(outs_of(folder))
    if parts.all(_H5, _FOLDER, *_ZARR, *_ARCHIVE, "cells.parquet", "experiment.xenium"):
        return True
    return any("x_centroid" in layout_of(path).named for _, path in parts.all("cells.csv"))


def read_xenium(folder: Path, *, image: str | Path | None = None) -> AnnData:
    """Read the cells of a Xenium folder.

    If the folder contains the H&E image with its alignment (``*_he_image.ome.tif`` and ``*_he_imagealignment.csv``),
    coordinates are px of that image, and its path is recorded; otherwise coordinates are µm.
    """
    outs = outs_of(folder)
    parts = SectionFiles(outs)
    cells_path = parts.find(*_CELLS)
    if cells_path is None:
        raise FileNotFoundError(f"{str(outs)!r} has no table of cells. {EXPECTED_FILES} Found: {listing(outs)}.")
    where, counts = _counts(parts)
    with reading(cells_path):
        cells = _cells(cells_path)
    adata = with_positions(counts, cells, counts_name=where.name, positions_name=cells_path.name)
    _place(adata, outs, parts, image)
    return adata


def _cells(path: Path) -> pd.DataFrame:
    """Cells by name, with the centre as x and y."""
    cells = table(path)
    lacking = [c for c in ("cell_id", "x_centroid", "y_centroid") if c not in cells]
    if lacking:
        raise refuse(f"{str(path)!r} lacks the columns {lacking}; it has {list(cells.columns)}. {EXPECTED_FILES}")
    ids = cells["cell_id"]
    first = ids.iloc[0] if len(ids) else ""
    index = ids if isinstance(first, str) else [i.decode() if isinstance(i, bytes) else str(i) for i in ids]
    kept = [c for c in cells.columns if str(c) and c != "cell_id"]  # R's row numbers have no name
    cells = cells[kept]
    cells.index = pd.Index(index, dtype=object, name=None)
    cells.columns = pd.Index([{"x_centroid": "x", "y_centroid": "y"}.get(c, c) for c in kept])
    return cells


def _counts(parts: SectionFiles) -> tuple[Path, Counts]:
    if (path := parts.find(_H5)) is not None:
        return path, counts_h5(path)
    if (path := parts.find(_FOLDER)) is not None and path.is_dir():
        return path, _of_folder(path)
    if (path := parts.find(*_ZARR)) is not None:
        return path, _of_zarr(path)
    if (path := parts.find(*_ARCHIVE)) is not None:
        with unzipped(path) as folder:
            inside = next((p.parent for p in folder.rglob("matrix.mtx*")), folder)
            return path, _of_folder(inside)
    outs = parts.folders[0]
    raise FileNotFoundError(f"{str(outs)!r} has no matrix of counts. {EXPECTED_FILES} Found: {listing(outs)}.")


def _of_folder(folder: Path) -> Counts:
    inside = SectionFiles(folder)
    names = ("matrix.mtx",), ("features.tsv", "genes.tsv"), ("barcodes.tsv",)
    return counts_mtx(*(inside.need(*n, looked_for=EXPECTED_FILES) for n in names))


def _of_zarr(path: Path) -> Counts:
    import zarr

    with reading(path):
        if path.is_dir():
            refuse_links_zarr(path)
            return counts_zarr(zarr.open_group(path, mode="r"), path)
        with unzipped(path) as folder:
            root = folder if (folder / "cell_features").is_dir() else next(folder.glob("*/cell_features")).parent
            return counts_zarr(zarr.open_group(root, mode="r"), path)


def _place(adata: AnnData, outs: Path, parts: SectionFiles, image: str | Path | None) -> None:
    """Set coordinates in µm, or in px of the H&E image by its alignment."""
    name = sample_of(outs)
    he = image or parts.find("he_image.ome.tif", "he_image.tif", "he_image.ome.tiff", "he_image.tiff")
    alignment = parts.find("he_imagealignment.csv", "he_alignment.csv")
    if he is None or alignment is None:
        if image is not None:
            raise FileNotFoundError(
                f"`image` was given, but {str(outs)!r} has no *_he_imagealignment.csv (H&E px to px of the morphology "
                "image), so cells cannot be placed on it. Export it from Xenium Explorer into the folder."
            )
        add_library(adata, name, {"microns_per_pixel": 1.0, "spot_diameter_fullres": CELL_UM})
        return
    pixel_um = _pixel_um(parts)
    with reading(alignment), opened(alignment) as stream:
        to_morphology = np.loadtxt(stream, delimiter=",", ndmin=2, encoding="utf-8-sig")
        if to_morphology.shape != (3, 3):
            raise ValueError(f"a matrix of 3 x 3 numbers was expected, found {to_morphology.shape}")
        inverse = np.linalg.inv(to_morphology)
    um = adata.obsm[_keys.SPATIAL]
    adata.obsm[_keys.SPATIAL] = (um / pixel_um) @ inverse[:2, :2].T + inverse[:2, 2]
    um_per_px = pixel_um * float(np.sqrt(abs(np.linalg.det(to_morphology[:2, :2]))))
    add_library(adata, name, {"microns_per_pixel": um_per_px, "spot_diameter_fullres": CELL_UM / um_per_px})
    refer_to_image(adata, he, name)


def _pixel_um(parts: SectionFiles) -> float:
    path = parts.find("experiment.xenium")
    if path is None:
        return _PIXEL_UM
    with reading(path):
        found = json_of(path).get("pixel_size", _PIXEL_UM)
        if not isinstance(found, int | float):
            raise refuse(f"{str(path)!r} must contain `pixel_size` in µm, found {found!r}.")
        return float(found)
