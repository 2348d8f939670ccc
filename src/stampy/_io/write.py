"""Output of the command line: a section, or results added to a section on disk, without partial files."""

from __future__ import annotations

import contextlib
import io
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stampy import _checks, _files, _keys, _utils
from stampy._io.formats.anndata_mudata_spatialdata import hdf5_kind, is_spatialdata_store, is_zarr, zarr_kind
from stampy._section.outside_links import refuse_links_h5, refuse_links_zarr

if TYPE_CHECKING:
    import h5py
    import zarr
    from anndata import AnnData
    from spatialdata import SpatialData
    from typing_extensions import Buffer

__all__ = ["append", "checked_target", "write"]

SUFFIXES = (".h5ad", ".zarr")


def checked_target(path: str | Path, *, overwrite: bool) -> Path:
    """Return `path` and create its folder if needed; raises early if the path cannot or must not be written.

    Raises
    ------
    ValueError
        It does not end in .h5ad or .zarr.
    FileExistsError
        The path exists (as a file, folder or symbolic link), and `overwrite` is not set or it is not a section.
    NotADirectoryError, PermissionError
        Its folder is not a directory, or is not writable.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"The output must end in {' or '.join(SUFFIXES)}, found {path.name!r}.")
    _checks.replaceable(path, overwrite=overwrite)
    _files.recover(path)
    if not path.exists() or path.is_symlink():
        return path
    if path.is_dir() != (path.suffix == ".zarr") or (path.is_dir() and not is_zarr(path)):
        raise FileExistsError(f"{str(path)!r} exists and is not a {path.suffix}; it is not changed. Choose another.")
    return path


def write(data: AnnData | SpatialData, path: Path, *, table_key: str = _keys.TABLE) -> None:
    """Write a temporary file and rename it to `path`; for .h5ad, only the table of a SpatialData is written."""
    if path.suffix == ".h5ad":
        import anndata

        table = _utils.table_of(data, table_key)
        with _files.atomic(path) as temporary:
            if table.isbacked:
                table.write_h5ad(temporary, compression="gzip")
                return
            table.strings_to_categoricals()  # as in `AnnData.write_h5ad`
            if table.raw is not None:
                table.strings_to_categoricals(table.raw.var)
            with _hdf5_file(temporary, "w") as file:
                anndata.io.write_elem(file, "/", table, dataset_kwargs={"compression": "gzip"})
        return
    with _files.atomic_folder(path) as temporary:
        data.write(temporary) if _utils.is_spatialdata(data) else data.write_zarr(temporary)


def append(table: AnnData, keys: Sequence[str], source: Path, target: Path, *, table_key: str = _keys.TABLE) -> bool:
    """Write ``obsm[keys]`` and ``uns["stamp"]`` of `table` into a copy of the store `source`, which becomes `target`.

    Everything else is copied byte by byte. If both are the same SpatialData, only its table is replaced. Returns False,
    without writing, if the formats differ.
    """
    if source.is_dir() != (target.suffix == ".zarr") or source.suffix.lower() != target.suffix:
        return False
    if not table.isbacked:  # a backed table was opened from an .h5ad
        kind = hdf5_kind(source) if source.is_file() else zarr_kind(source)
        if kind not in ("h5ad", "zarr", "SpatialData"):
            return False  # MuData, or another format with this name
    if source.is_file():
        _append_h5ad(table, keys, source, target)
    elif is_spatialdata_store(source):
        _append_spatialdata(table, keys, source, target, table_key)
    else:
        with _files.atomic_folder(target) as temporary:
            _copy_store(source, temporary)
            _put_zarr(temporary, table, keys)
            _consolidate(temporary)
    return True


def _append_h5ad(table: AnnData, keys: Sequence[str], source: Path, target: Path) -> None:
    with _files.atomic(target) as temporary:
        shutil.copyfile(source, temporary)
        refuse_links_h5(temporary)  # checked on the copy, which nobody else can change before writing
        with _hdf5_file(temporary, "r+") as file:
            _put(file, table, keys)
        if table.isbacked:  # its file may be the target, which is about to be replaced
            table.file.close()


class _Disk(io.FileIO):
    """File for HDF5 that hides write errors on a full disk, since HDF5 crashes if a write fails while closing.

    Later data are lost, except small pieces (the structure of the file), which HDF5 reads again.
    """

    failed: OSError | None = None
    _SMALL = 2**16

    def __init__(self, path: Path):
        super().__init__(path, "r+b")
        self._lost: dict[int, bytes] = {}

    def write(self, data: Buffer, /) -> int:
        rest = memoryview(data).cast("B")
        place, size = self.tell(), len(rest)
        try:
            while self.failed is None and len(rest):  # a raw file may write fewer bytes than given
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.failed = error
        if self.failed is not None:
            if size < self._SMALL:
                self._lost[place] = bytes(memoryview(data).cast("B"))
            self.seek(place + size)
        return size

    def readinto(self, buffer: Buffer, /) -> int:
        if self.failed is None:
            return super().readinto(buffer) or 0
        place, found = self.tell(), memoryview(buffer).cast("B")
        found[:] = bytes(len(found))
        super().readinto(found)
        for start, data in self._lost.items():
            low, high = max(start, place), min(start + len(data), place + len(found))
            if low < high:
                found[low - place : high - place] = data[low - start : high - start]
        self.seek(place + len(found))
        return len(found)

    def truncate(self, size: int | None = None, /) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.failed = self.failed or error
            return size or 0


@contextlib.contextmanager
def _hdf5_file(path: Path, mode: Literal["w", "r+"]) -> Iterator[h5py.File]:
    """Open an existing HDF5 file at `path`; OSError if a write fails."""
    import h5py

    with _Disk(path) as disk:
        try:
            with h5py.File(disk, mode) as file:
                yield file
        finally:
            if disk.failed is not None:
                raise OSError(disk.failed.errno, disk.failed.strerror, str(path)) from disk.failed


def _append_spatialdata(table: AnnData, keys: Sequence[str], source: Path, target: Path, table_key: str) -> None:
    if target.is_symlink() or source.resolve() != target.resolve():  # a link is itself replaced, not its target
        with _files.atomic_folder(target) as temporary:
            _copy_store(source, temporary)
            _put_zarr(temporary / _tables_of(source) / table_key, table, keys)
            _consolidate(temporary)
        return
    place = source / _tables_of(source) / table_key
    with _files.atomic_folder(place, beside=source.resolve().parent) as temporary:
        _copy_store(place, temporary)
        _put_zarr(temporary, table, keys)
    _consolidate(source)


def _tables_of(store: Path) -> str:
    """Folder of the tables; before spatialdata 0.1 it was named ``table``."""
    return "tables" if (store / "tables").is_dir() else "table"


def _copy_store(source: Path, target: Path) -> None:
    """Copy a store; raise if it contains links, which are not followed."""
    shutil.copytree(source, target, symlinks=True)
    refuse_links_zarr(target)


def _put_zarr(path: Path, table: AnnData, keys: Sequence[str]) -> None:
    import zarr

    _put(zarr.open_group(path, mode="r+", use_consolidated=False), table, keys)


def _put(group: h5py.File | zarr.Group, table: AnnData, keys: Sequence[str]) -> None:
    """Write the results into an open AnnData store."""
    import anndata

    for slot, key, value in [
        *(("obsm", key, table.obsm[key]) for key in keys),
        ("uns", _keys.UNS, table.uns[_keys.UNS]),
    ]:
        if slot not in group:
            anndata.io.write_elem(group, slot, {})
        if key in group[slot]:
            del group[slot][key]
        anndata.io.write_elem(group[slot], key, value)


def _consolidate(path: Path) -> None:
    """Update the consolidated metadata, if the store has them; readers use them to list its contents."""
    import warnings

    import zarr

    if zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr warns that consolidated metadata are not part of v3
            zarr.consolidate_metadata(path)


def written_keys(table: AnnData, key: str) -> list[str]:
    """Keys of obsm that `stampy.tl.embed` writes for `key_added`, if present."""
    names: list[Any] = [key, key + _keys.GENE_SUFFIX, key + _keys.IMAGE_SUFFIX]
    return [name for name in names if name in table.obsm]
