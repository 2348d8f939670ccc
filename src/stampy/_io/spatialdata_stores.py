"""Stores of SpatialData of every version; images stay on disk, the counts on request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks
from stampy._io.anndata_files import ELEMENTS, is_zarr, read_backed, zarr_kind
from stampy._io.parts import reading, refuse

if TYPE_CHECKING:
    from spatialdata import SpatialData

__all__ = ["is_spatialdata", "read_spatialdata"]


def is_spatialdata(path: Path) -> bool:
    """Whether the folder is the zarr store of a SpatialData."""
    return is_zarr(path) and zarr_kind(path) == "SpatialData"


def read_spatialdata(path: Path, *, backed: bool) -> SpatialData:
    """The SpatialData of a store; with `backed` the counts of its tables stay there."""
    import spatialdata
    import zarr

    with reading(path):
        group = zarr.open_group(path, mode="r")
        if not backed:
            data = spatialdata.read_zarr(path)
            _check_tables(data, group, path)
            return data
        data = spatialdata.read_zarr(path, selection=ELEMENTS)
        tables = group["tables"] if "tables" in group else group.get("table", {})
        for name in tables.group_keys() if tables else ():
            table = read_backed(tables[name])
            link = table.uns.get("spatialdata_attrs", {})
            if hasattr(link.get("region"), "tolist"):  # as spatialdata's reader does
                link["region"] = link["region"].tolist()
            data.tables[name] = table
        _check_tables(data, group, path)
        return data


def _check_tables(data: SpatialData, group: object, path: Path) -> None:
    """Every table of the store must be there: spatialdata leaves out what it can't read."""
    stored = [n for key in ("tables", "table") if key in group for n in group[key].group_keys()]  # type: ignore[operator,index]
    lacking = sorted(set(stored) - set(data.tables))
    if lacking:
        raise refuse(f"{str(path)!r} has tables that spatialdata can't read: {lacking}. Write it anew.")
    if not stored:
        _checks.warn(f"{path.name!r} is a SpatialData without a table: it has no genes.")
