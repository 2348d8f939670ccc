"""Stores of SpatialData of every version; images stay on disk, counts do on request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks
from stampy._io.anndata_files import ELEMENTS, is_zarr, read_backed, read_group, zarr_kind
from stampy._io.input_files import reading

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = ["is_spatialdata", "read_spatialdata"]


def is_spatialdata(path: Path) -> bool:
    """Whether the folder is the zarr store of a SpatialData."""
    return is_zarr(path) and zarr_kind(path) == "SpatialData"


def read_spatialdata(path: Path, *, backed: bool) -> SpatialData:
    """The SpatialData of a store; with `backed` the counts of its tables stay on disk."""
    import spatialdata
    import zarr

    with reading(path):
        group = zarr.open_group(path, mode="r")
        data = spatialdata.read_zarr(path, selection=ELEMENTS) if backed else spatialdata.read_zarr(path)
        stored = {name: part for key in ("tables", "table") if key in group for name, part in group[key].groups()}
        for name in sorted(set(stored) - set(data.tables)):  # where not `backed`: of old stores
            table = read_backed(stored[name]) if backed else read_group(stored[name])
            link = table.uns.get("spatialdata_attrs", {})
            if hasattr(link.get("region"), "tolist"):  # as spatialdata's reader does
                link["region"] = link["region"].tolist()
            data.tables[name] = table
        if not stored:
            _checks.warn(f"{path.name!r} is a SpatialData without a table: it has no genes.")
        return data
