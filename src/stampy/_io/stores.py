"""Zarr stores of AnnData and SpatialData, with the counts in memory or left on disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy._io.common import readable

if TYPE_CHECKING:
    import zarr
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["is_spatialdata", "is_zarr", "read"]

_MARKS = ("zarr.json", ".zgroup", ".zattrs")
_SMALL = ("obs", "var", "obsm", "varm", "obsp", "varp", "uns")
_ELEMENTS = ("images", "labels", "points", "shapes")


def is_zarr(path: Path) -> bool:
    """Whether the folder is a zarr store."""
    return any((path / mark).is_file() for mark in _MARKS)


def is_spatialdata(path: Path) -> bool:
    """Whether the folder is the zarr store of a SpatialData."""
    import zarr

    if not is_zarr(path):
        return False
    with readable(path):
        return "spatialdata_attrs" in zarr.open_group(path, mode="r").attrs


def read(path: Path, *, backed: bool) -> AnnData | SpatialData:
    """The AnnData or SpatialData of a store; images of the latter always stay on disk."""
    import anndata
    import zarr

    with readable(path):
        if not is_spatialdata(path):
            return _backed(zarr.open_group(path, mode="r")) if backed else anndata.read_zarr(path)
        import spatialdata

        if not backed:
            return spatialdata.read_zarr(path)
        group = zarr.open_group(path, mode="r")
        data = spatialdata.read_zarr(path, selection=_ELEMENTS)
        for name in group["tables"].group_keys() if "tables" in group else ():
            table = _backed(group["tables"][name])
            link = table.uns.get("spatialdata_attrs", {})
            if hasattr(link.get("region"), "tolist"):  # as spatialdata's reader does
                link["region"] = link["region"].tolist()
            data.tables[name] = table
        return data


def _backed(group: zarr.Group) -> AnnData:
    """An AnnData whose matrices stay in the store (`raw` is left out: nothing of stampy reads it)."""
    import anndata

    parts = {key: anndata.io.read_elem(group[key]) for key in _SMALL if key in group}
    layers = {key: _on_disk(group["layers"][key]) for key in group["layers"]} if "layers" in group else {}
    return anndata.AnnData(_on_disk(group["X"]) if "X" in group else None, layers=layers, **parts)


def _on_disk(element: Any) -> Any:
    """A matrix that is read by rows."""
    import anndata
    import zarr

    if isinstance(element, zarr.Array):
        return element
    return anndata.io.sparse_dataset(element)
