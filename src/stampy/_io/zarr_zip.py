"""A .zarr.zip of AnnData or MuData, unpacked for as long as it is read."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from stampy._io.anndata_files import MARKS, read_zarr, zarr_kind
from stampy._io.mudata import read_mudata
from stampy._io.parts import reading, refuse, unzipped

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["read_zipped"]


def read_zipped(path: Path) -> AnnData:
    """The AnnData or MuData of a .zarr.zip; a SpatialData would leave its images in the archive and is refused."""
    with reading(path), zipfile.ZipFile(path) as archive:
        marks = [PurePosixPath(n) for n in archive.namelist() if PurePosixPath(n).name in MARKS]
        if not marks:
            raise refuse(f"{str(path)!r} is a zip without a zarr store in it (zarr.json, .zgroup).")
        inner = min((m.parent for m in marks), key=lambda p: len(p.parts))
    with unzipped(path) as folder:
        store = folder / inner
        kind = zarr_kind(store)
        if kind == "zarr":
            return read_zarr(store, backed=False)
        if kind == "MuData":
            return read_mudata(store)
    what = {"SpatialData": "a SpatialData, whose images are read from the folder", "image": "an OME-Zarr image"}
    raise refuse(f"{str(path)!r} holds {what.get(kind, 'no section')}. Unzip it and give the folder.")
