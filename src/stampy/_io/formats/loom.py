"""Loom: genes by cells in HDF5, with attributes of both."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys
from stampy._io.assemble import as_counts, unique_names
from stampy._io.input_files import hdf5, refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["read_loom"]

_GENES = ("Gene", "gene", "var_names", "gene_names", "GeneName", "Symbol", "symbol", "gene_name", "Name", "name")
_IDS = ("Accession", "gene_ids", "ensembl", "Ensembl", "EnsemblID", "gene_id", "id")
_CELLS = ("CellID", "obs_names", "cell_names", "Cell", "cell", "Barcode", "barcode", "barcodes")
_XY = (("x", "y"), ("X", "Y"), ("spatial_x", "spatial_y"), ("imagecol", "imagerow"), ("x_centroid", "y_centroid"))
_BLOCK = 2**25


def read_loom(path: Path) -> AnnData:
    """Counts, layers and attributes; coordinates if the columns have them under a usual name."""
    import anndata

    with hdf5(path) as file:
        rows, columns = _attributes(file["row_attrs"]), _attributes(file["col_attrs"])
        genes = next((rows[n] for n in _GENES if n in rows), None)
        if genes is None:
            raise refuse(f"{str(path)!r} names no genes: its rows have {sorted(rows)}, not {_GENES[0]!r}.")
        n_cells = file["matrix"].shape[1]
        cells = next((columns[n] for n in _CELLS if n in columns), np.arange(n_cells))
        ids = next((rows[n] for n in _IDS if n in rows), None)
        var = pd.DataFrame({} if ids is None else {"gene_ids": ids.astype(str)}, index=unique_names(genes))
        obs = pd.DataFrame({n: v for n, v in columns.items() if v.ndim == 1}, index=unique_names(cells))
        layers = {name: _counts(layer, path) for name, layer in file.get("layers", {}).items()}
        adata = anndata.AnnData(_counts(file["matrix"], path), obs=obs, var=var, layers=layers)
    _place(adata, columns, path)
    return adata


def _attributes(group: Any) -> dict[str, np.ndarray]:
    """Attributes by name, with text decoded."""
    found = {}
    for name, dataset in group.items():
        text = dataset.dtype.kind in "OS"
        found[name] = np.asarray(dataset.asstr()[:] if text else dataset[:])
    return found


def _counts(matrix: Any, path: Path) -> sparse.csr_matrix:
    """Cells by genes, read in blocks of genes."""
    step = max(_BLOCK // max(matrix.shape[1], 1), 1)
    blocks = [sparse.csc_matrix(matrix[i : i + step].T) for i in range(0, matrix.shape[0], step)]
    x = sparse.hstack(blocks, format="csr")
    return sparse.csr_matrix((as_counts(x.data, path), x.indices, x.indptr), shape=x.shape)


def _place(adata: AnnData, columns: dict[str, np.ndarray], path: Path) -> None:
    for key in ("spatial", "X_spatial", "Spatial"):
        if key in columns and columns[key].ndim == 2 and columns[key].shape[1] >= 2:
            adata.obsm[_keys.SPATIAL] = columns[key][:, :2].astype(np.float64)
            return
    pair = next((p for p in _XY if set(p) <= set(columns)), None)
    if pair is None:
        _checks.warn(f"{path.name!r} has no coordinates (columns {sorted(columns)}): the section has genes only.")
        return
    adata.obsm[_keys.SPATIAL] = np.column_stack([columns[c] for c in pair]).astype(np.float64)
