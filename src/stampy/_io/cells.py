"""Single-cell platforms: Xenium and MERSCOPE folders, by cells; coordinates in µm, or in px of the H&E image."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys
from stampy._io import tables as _tenx
from stampy._io.common import add_library, first_of, listing, outs_of, readable, refer_to_image, sample_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["is_merscope", "is_xenium", "read_merscope", "read_xenium", "wide_counts"]

LOOKED_FOR_XENIUM = (
    "A Xenium folder has cell_feature_matrix.h5 (or cell_feature_matrix/) and cells.parquet, cells.csv.gz or cells.csv."
)
_CELLS = ["cells.parquet", "cells.csv.gz", "cells.csv"]
_PIXEL_UM = 0.2125  # of Xenium's morphology image, where experiment.xenium does not say
_CELL_UM = 10.0  # across; for drawing
_NO_GENES = ("blank", "negcontrol", "antisense", "unassigned")  # control probes and codewords, by prefix


def is_xenium(folder: Path) -> bool:
    """Whether the folder holds Xenium's cells."""
    outs = outs_of(folder)
    return any((outs / name).exists() for name in ("cell_feature_matrix.h5", "cell_feature_matrix", *_CELLS))


def is_merscope(folder: Path) -> bool:
    """Whether the folder holds the tables of MERSCOPE."""
    return any(next(folder.glob(name), None) for name in ("*cell_by_gene*.csv", "*cell_metadata*.csv"))


def read_xenium(folder: Path, *, image: str | Path | None = None) -> AnnData:
    """Cells of a Xenium folder.

    Where the folder has the H&E image with its alignment (``*_he_image.ome.tif`` and ``*_he_imagealignment.csv``),
    coordinates are px of that image, and it is referred to; otherwise they are µm.
    """
    import anndata

    outs = outs_of(folder)
    cells_path = first_of([outs], _CELLS)
    if cells_path is None:
        raise FileNotFoundError(f"{str(outs)!r} has no table of cells. {LOOKED_FOR_XENIUM} Found: {listing(outs)}.")
    x, barcodes, var = _counts(outs)
    with readable(cells_path):
        cells = _tenx.table(cells_path)
        cells.index = [i.decode() if isinstance(i, bytes) else str(i) for i in cells["cell_id"]]
        cells = cells.drop(columns="cell_id")
        um = cells[["x_centroid", "y_centroid"]].to_numpy(dtype=np.float64)
    rows = cells.index.get_indexer(barcodes)
    if (rows < 0).any():
        raise ValueError(
            f"{int((rows < 0).sum())} of {len(barcodes)} cells of the counts are not in {cells_path.name} "
            f"(first: {barcodes[int(np.argmax(rows < 0))]!r}). The files are of different runs."
        )
    obs = cells.iloc[rows].drop(columns=["x_centroid", "y_centroid"])
    adata = anndata.AnnData(x, obs=obs, var=var)
    _place(adata, outs, um[rows], image)
    return adata


def _counts(outs: Path) -> _tenx.Counts:
    path = first_of([outs], ["cell_feature_matrix.h5"])
    if path is not None:
        with readable(path):
            return _tenx.counts_h5(path)
    folder = outs / "cell_feature_matrix"
    if not folder.is_dir():
        raise FileNotFoundError(f"{str(outs)!r} has no matrix of counts. {LOOKED_FOR_XENIUM} Found: {listing(outs)}.")
    with readable(folder):
        return _tenx.counts_mtx(*(folder / f"{name}.gz" for name in ("matrix.mtx", "features.tsv", "barcodes.tsv")))


def _place(adata: AnnData, outs: Path, um: np.ndarray, image: str | Path | None) -> None:
    """Coordinates in µm, or through the alignment of the H&E image in its px."""
    name = sample_of(outs)
    he = image or first_of([outs], ["*he_image.ome.tif", "*he_image.tif"])
    alignment = first_of([outs], ["*he_imagealignment.csv", "*he_alignment.csv"])
    if he is None or alignment is None:
        if image is not None:
            raise FileNotFoundError(
                f"`image` was given, but {str(outs)!r} has no *_he_imagealignment.csv (H&E px to px of the morphology "
                "image), so cells can't be placed on it. Export it from Xenium Explorer into the folder."
            )
        adata.obsm[_keys.SPATIAL] = um
        add_library(adata, name, {"microns_per_pixel": 1.0, "spot_diameter_fullres": _CELL_UM})
        return
    pixel_um = _pixel_um(outs)
    with readable(alignment):
        to_morphology = np.loadtxt(alignment, delimiter=",", ndmin=2)
        if to_morphology.shape != (3, 3):
            raise ValueError(f"a matrix of 3 x 3 numbers was expected, found {to_morphology.shape}")
        inverse = np.linalg.inv(to_morphology)
    adata.obsm[_keys.SPATIAL] = (um / pixel_um) @ inverse[:2, :2].T + inverse[:2, 2]
    um_per_px = pixel_um * float(np.sqrt(abs(np.linalg.det(to_morphology[:2, :2]))))
    add_library(adata, name, {"microns_per_pixel": um_per_px, "spot_diameter_fullres": _CELL_UM / um_per_px})
    refer_to_image(adata, he, name)


def _pixel_um(outs: Path) -> float:
    path = first_of([outs], ["experiment.xenium"])
    if path is None:
        return _PIXEL_UM
    with readable(path):
        return float(json.loads(path.read_text(encoding="utf-8")).get("pixel_size", _PIXEL_UM))


def read_merscope(folder: Path) -> AnnData:
    """Cells of ``cell_by_gene.csv`` at the centres in ``cell_metadata.csv``, in µm; control probes are left out."""
    import anndata

    paths = {what: first_of([folder], [f"{what}.csv", f"*{what}*.csv"]) for what in ("cell_by_gene", "cell_metadata")}
    lacking = [f"{what}.csv" for what, path in paths.items() if path is None]
    if lacking:
        raise FileNotFoundError(f"{str(folder)!r} lacks {' and '.join(lacking)}. Found: {listing(folder)}.")
    with readable(paths["cell_metadata"]):
        cells = pd.read_csv(paths["cell_metadata"], index_col=0)
        cells.index = cells.index.astype(str)
        for column in ("center_x", "center_y"):
            _checks.has_key(cells, column, slot="cell_metadata.csv", needs="Centres of cells in µm are expected there.")
    with readable(paths["cell_by_gene"]):
        x, names, genes = wide_counts(paths["cell_by_gene"], ",")
    rows = cells.index.get_indexer(names)
    if (rows < 0).any():
        raise ValueError(f"{int((rows < 0).sum())} of {len(names)} cells of the counts have no metadata.")
    kept = np.array([not gene.lower().startswith(_NO_GENES) for gene in genes], dtype=bool)
    var = pd.DataFrame(index=_tenx.unique_names(np.asarray(genes, dtype=object)[kept]))
    adata = anndata.AnnData(x[:, np.flatnonzero(kept)], obs=cells.iloc[rows].rename_axis(None), var=var)
    adata.obsm[_keys.SPATIAL] = adata.obs[["center_x", "center_y"]].to_numpy(dtype=np.float64)
    add_library(adata, folder.resolve().name, {"microns_per_pixel": 1.0, "spot_diameter_fullres": _CELL_UM})
    return adata


def wide_counts(path: Path, separator: str, rows: int = 20_000) -> tuple[sparse.csr_matrix, list[str], list[str]]:
    """A table of cells by genes as CSR int32, its row names and columns; read in blocks, never dense as a whole."""
    blocks, names = [], []
    for block in pd.read_csv(path, sep=separator, index_col=0, chunksize=rows):
        values = block.to_numpy()
        whole = np.rint(values).astype(np.int32)
        if not np.array_equal(whole, values):
            raise ValueError("the table of counts holds fractions; raw counts were expected")
        blocks.append(sparse.csr_matrix(whole))
        names += [str(i) for i in block.index]
    if not blocks:
        raise ValueError("the table of counts has no rows")
    return sparse.vstack(blocks, format="csr"), names, [str(c) for c in block.columns]
