"""AnnData (.h5ad, .zarr, .zarr.zip), in memory or with counts on disk; MuData; SpatialData stores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys
from stampy._io.input_files import hdf5, reading, refuse

if TYPE_CHECKING:
    import h5py
    import zarr
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = [
    "ELEMENTS",
    "MARKS",
    "hdf5_kind",
    "is_spatialdata_store",
    "is_zarr",
    "read_backed",
    "read_group",
    "read_h5ad",
    "read_mudata",
    "read_spatialdata",
    "read_zarr",
    "zarr_kind",
    "zarr_kind_of",
]

MARKS = ("zarr.json", ".zgroup", ".zattrs")
_SMALL = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")
ELEMENTS = ("images", "labels", "points", "shapes")
# keys of obsm in which other packages store coordinates
_IN_OBSM = ("X_spatial", "spatial_fullres", "X_Spatial", "Spatial", "spatial_coords", "coordinates")
_IN_OBS = (("imagecol", "imagerow"), ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("sdimx", "sdimy"), ("x", "y"),
           ("x_centroid", "y_centroid"), ("center_x", "center_y"),
           ("CenterX_global_px", "CenterY_global_px"))  # fmt: skip


def is_zarr(path: Path) -> bool:
    """Whether the folder is a zarr store."""
    return any((path / mark).is_file() for mark in MARKS)


def zarr_kind(path: Path) -> str:
    """Contents of a zarr store: "SpatialData", "MuData", "zarr" (AnnData), "image", or "" for anything else."""
    import zarr

    with reading(path):
        group = zarr.open(path, mode="r")
        if not isinstance(group, zarr.Group):
            return ""
        return zarr_kind_of(group, path.name)


def zarr_kind_of(group: zarr.Group, name: str) -> str:
    """Like `zarr_kind` for an open store; `name` is used in messages."""
    keys, attrs = set(group.keys()), dict(group.attrs)
    if "spatialdata_attrs" in attrs or (keys & set(ELEMENTS) and keys & {"tables", "table"} and "obs" not in keys):
        return "SpatialData"  # before 0.2 the root had no attributes
    if attrs.get("encoding-type") == "MuData" or ("mod" in keys and "X" not in keys):
        return "MuData"
    if {"obs", "var"} <= keys:
        return "zarr"
    image = {"multiscales", "bioformats2raw.layout", "omero", "ome", "plate"} & set(attrs) or keys & set(ELEMENTS)
    return "image" if image or ".ome.zarr" in name.lower() else ""


def hdf5_kind(path: Path) -> str:
    """Contents of an HDF5 file, independent of its name; "" if unknown."""
    with hdf5(path) as file:
        keys = set(file)
        if "matrix" in keys:
            return "loom" if "row_attrs" in keys else "10x .h5"
        if "mod" in keys:
            return "MuData"
        if "assays" in keys and "cell.names" in keys:
            return "h5Seurat"
        if {"geneExp", "cellBin"} & keys:
            return "Stereo-seq .gef"
        if {"obs", "var"} <= keys or "X" in keys:
            return "h5ad"
        return "10x .h5" if any("gene_names" in file[k] for k in keys if hasattr(file[k], "keys")) else ""


def read_h5ad(path: Path, *, backed: bool) -> AnnData:
    """Read an .h5ad of any version of anndata."""
    import anndata

    with reading(path):
        adata = anndata.read_h5ad(path, backed="r" if backed else None)
    _hint_at_coordinates(adata, path)
    return adata


def read_zarr(path: Path, *, backed: bool) -> AnnData:
    """Read the AnnData of a zarr v2 or v3 store."""
    import anndata
    import zarr

    with reading(path):
        adata = read_backed(zarr.open_group(path, mode="r")) if backed else anndata.read_zarr(path)
    _hint_at_coordinates(adata, path)
    return adata


def read_group(group: h5py.Group | zarr.Group) -> AnnData:
    """Read an AnnData inside another file into memory."""
    import anndata

    if group.attrs.get("encoding-type") == "anndata":
        return anndata.io.read_elem(group)
    parts = {key: anndata.io.read_elem(group[key]) for key in ("X", "layers", *_SMALL) if key in group}
    return anndata.AnnData(parts.pop("X", None), **parts)


def read_backed(group: zarr.Group | h5py.Group) -> AnnData:
    """Open an AnnData with matrices on disk, without `raw`, which stampy does not use."""
    import anndata

    parts = {key: anndata.io.read_elem(group[key]) for key in _SMALL if key in group}
    layers = {key: _on_disk(group["layers"][key]) for key in group["layers"]} if "layers" in group else {}
    return anndata.AnnData(_on_disk(group["X"]) if "X" in group else None, layers=layers, **parts)


def _on_disk(element: Any) -> Any:
    """Matrix on disk that is read by rows."""
    import anndata
    import zarr

    if isinstance(element, zarr.Array):
        return element
    return anndata.io.sparse_dataset(element)


def _hint_at_coordinates(adata: AnnData, path: Path) -> None:
    """Warn about coordinates elsewhere in a table without ``obsm["spatial"]``; the user must choose."""
    if _keys.SPATIAL in adata.obsm:
        return
    found = [f"adata.obsm[{key!r}]" for key in _IN_OBSM if key in adata.obsm]
    found += [f"adata.obs[{list(xy)}].to_numpy()" for xy in _IN_OBS if set(xy) <= set(adata.obs)]
    if found:
        _checks.warn(
            f"{path.name!r} has no obsm['spatial']. If these are px of the full-resolution image, set "
            f"`adata.obsm['spatial'] = {found[0]}`."
        )


_RNA = ("rna", "gex", "gene expression", "gene_expression", "mrna", "transcriptome", "transcriptomics", "spatial", "st")


def read_mudata(path: Path) -> AnnData:
    """Read the RNA modality; a warning lists the others."""
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
        raise refuse(f"{str(path)!r} is a MuData without a modality `rna`, found {names}. Write only this modality.")
    adata = read_group(root["mod"][rna])
    others = [n for n in names if n != rna]
    if others:
        _checks.warn(f"{path.name!r} is a MuData: its modality {rna!r} was read, {others} were ignored.")
    if _keys.SPATIAL not in adata.obsm and "obsm" in root and _keys.SPATIAL in root["obsm"]:
        adata.obsm[_keys.SPATIAL] = _own_rows(root, rna, adata.n_obs)
    uns = anndata.io.read_elem(root["uns"]) if "uns" in root else {}
    if _keys.UNS_SPATIAL in uns:
        adata.uns.setdefault(_keys.UNS_SPATIAL, uns[_keys.UNS_SPATIAL])
    return adata


def _own_rows(root: Any, rna: str, n: int) -> np.ndarray:
    """Coordinates of the MuData for the rows of one modality (obsmap: its row + 1, 0 if missing)."""
    import anndata

    xy = np.asarray(anndata.io.read_elem(root["obsm"][_keys.SPATIAL]), dtype=np.float64)
    rows = np.asarray(anndata.io.read_elem(root["obsmap"][rna])).reshape(-1).astype(np.int64)
    found = np.full((n, xy.shape[1]), np.nan)
    found[rows[rows > 0] - 1] = xy[rows > 0]
    return found


def is_spatialdata_store(path: Path) -> bool:
    """Whether the folder is a zarr store of SpatialData."""
    return is_zarr(path) and zarr_kind(path) == "SpatialData"


def read_spatialdata(path: Path, *, backed: bool) -> SpatialData:
    """Read a SpatialData store; with `backed`, counts of its tables stay on disk."""
    import spatialdata
    import zarr

    with reading(path):
        group = zarr.open_group(path, mode="r")
        data = spatialdata.read_zarr(path, selection=ELEMENTS) if backed else spatialdata.read_zarr(path)
        stored = {name: part for key in ("tables", "table") if key in group for name, part in group[key].groups()}
        for name in sorted(set(stored) - set(data.tables)):  # if not `backed`: tables of old stores
            table = read_backed(stored[name]) if backed else read_group(stored[name])
            link = table.uns.get("spatialdata_attrs", {})
            if hasattr(link.get("region"), "tolist"):  # as in spatialdata's reader
                link["region"] = link["region"].tolist()
            data.tables[name] = table
        if not stored:
            _checks.warn(f"{path.name!r} is a SpatialData without a table: it has no genes.")
        return data
