"""Read .h5ad and .zarr from a URL (``https://``, ``s3://``, ``memory://``, ``zip://``, ...) with fsspec."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from stampy._io.formats.anndata_mudata_spatialdata import MARKS, read_backed, read_group, zarr_kind_of
from stampy._section.image.choose import resolve_image_paths
from stampy._section.outside_links import refuse_links_in

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["read_address"]

_LOADERS = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "http": "aiohttp",
            "https": "aiohttp"}  # fmt: skip


def read_address(address: str, *, backed: bool = False) -> AnnData:
    """Read the AnnData at a URL; see `stampy.read`."""
    inner = address.split("::")[0] if not address.startswith("zip://::") else address.removeprefix("zip://::")
    name = PurePosixPath(inner.partition("://")[2].rstrip("/") or inner).name.partition("?")[0]
    is_store = address.startswith("zip://") or name.lower().endswith((".zarr", ".zarr.zip"))
    if not is_store and not name.lower().endswith(".h5ad"):
        raise ValueError(
            f"{address!r} is not a section that stampy reads from an address: .h5ad, .zarr or .zarr.zip was expected. "
            "Download other formats first."
        )
    try:
        adata = _read_store(address, name, backed) if is_store else _read_file(address, backed)
    except ImportError as error:
        protocol = address.partition("://")[0].split("::")[-1]
        needed = _LOADERS.get(protocol, f"the fsspec package for {protocol}")
        raise ImportError(f"Reading {address!r} needs {needed}: {error}") from error
    resolve_image_paths(adata, None)
    return adata


def _read_store(address: str, name: str, backed: bool) -> AnnData:
    import zarr

    if name.lower().endswith(".zarr.zip") and not address.startswith("zip://"):
        address = f"zip://::{address}"
    if address.startswith("zip://::"):
        address = f"zip://{_root_of_zip(address)}::{address.removeprefix('zip://::')}"
    try:
        group = zarr.open_group(address, mode="r")
    except (FileNotFoundError, zarr.errors.GroupNotFoundError) as error:
        raise FileNotFoundError(f"No zarr store at {address!r}.") from error
    except OSError as error:
        raise ConnectionError(f"{address!r} cannot be read ({error}).") from error
    kind = zarr_kind_of(group, name)
    if kind != "zarr":
        found = {"": "no section", "image": "an OME-Zarr image"}.get(kind, f"a {kind}")
        raise ValueError(
            f"{address!r} contains {found}; only AnnData is read from an address. Download it, and give the path."
        )
    return read_backed(group) if backed else read_group(group)


def _root_of_zip(address: str) -> str:
    """Path of the store in the archive."""
    import fsspec

    system, _ = fsspec.url_to_fs(address)
    marks = [PurePosixPath(p) for p in system.find("") if PurePosixPath(p).name in MARKS]
    if not marks:
        raise ValueError(f"{address!r} is a zip without a zarr store in it (zarr.json, .zgroup).")
    root = min((m.parent for m in marks), key=lambda p: len(p.parts))
    return "" if str(root) == "." else str(root)


def _read_file(address: str, backed: bool) -> AnnData:
    import fsspec
    import h5py

    try:
        stream: Any = fsspec.open(address).open()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No file at {address!r}.") from error
    except OSError as error:
        raise ConnectionError(f"{address!r} cannot be read ({error}).") from error
    try:
        file = h5py.File(stream, "r")
        refuse_links_in(file, address)
        if not {"obs", "var"} <= set(file):
            raise ValueError(f"{address!r} contains no AnnData.")
        if backed:
            return read_backed(file)  # which keeps the file open
        with stream, file:
            return read_group(file)
    except OSError as error:
        raise ValueError(
            f"{address!r} cannot be read: it is truncated, damaged or of another format ({error})."
        ) from error
