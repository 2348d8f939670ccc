"""MuData, as .h5mu or .zarr: its RNA, with the coordinates that all modalities share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys
from stampy._io.anndata_files import read_group
from stampy._io.input_files import hdf5, reading, refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["read_mudata"]

_RNA = ("rna", "gex", "gene expression", "gene_expression", "mrna", "transcriptome", "transcriptomics", "spatial", "st")


def read_mudata(path: Path) -> AnnData:
    """The modality with RNA; the others are named in a warning."""
    if path.is_dir():
        import zarr

        with reading(path):
            return _read(zarr.open_group(path, mode="r"), path)
    with hdf5(path) as file:
        return _read(file, path)


def _read(root: Any, path: Path) -> AnnData:
    import anndata

    names = sorted(root["mod"].keys())
    rna = next((n for wanted in _RNA for n in names if n.lower() == wanted), names[0] if len(names) == 1 else None)
    if rna is None:
        raise refuse(f"{str(path)!r} is a MuData without a modality `rna`, found {names}. Write that one alone.")
    adata = read_group(root["mod"][rna])
    others = [n for n in names if n != rna]
    if others:
        _checks.warn(f"{path.name!r} is a MuData: its modality {rna!r} was read, {others} were left out.")
    if _keys.SPATIAL not in adata.obsm and "obsm" in root and _keys.SPATIAL in root["obsm"]:
        adata.obsm[_keys.SPATIAL] = _own_rows(root, rna, adata.n_obs)
    uns = anndata.io.read_elem(root["uns"]) if "uns" in root else {}
    if _keys.UNS_SPATIAL in uns:
        adata.uns.setdefault(_keys.UNS_SPATIAL, uns[_keys.UNS_SPATIAL])
    return adata


def _own_rows(root: Any, rna: str, n: int) -> np.ndarray:
    """Coordinates of the whole MuData for the rows of one modality (obsmap: its row + 1, 0 where it has none)."""
    import anndata

    xy = np.asarray(anndata.io.read_elem(root["obsm"][_keys.SPATIAL]), dtype=np.float64)
    rows = np.asarray(anndata.io.read_elem(root["obsmap"][rna])).reshape(-1).astype(np.int64)
    found = np.full((n, xy.shape[1]), np.nan)
    found[rows[rows > 0] - 1] = xy[rows > 0]
    return found
