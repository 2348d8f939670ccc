"""What the command line writes: a whole section, or only the results into a section that is on disk. Never half."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy import _checks, _files, _keys, _utils
from stampy._io.anndata_files import hdf5_kind, is_zarr, zarr_kind
from stampy._io.spatialdata_stores import is_spatialdata
from stampy._section.outside_links import refuse_links_h5, refuse_links_zarr

if TYPE_CHECKING:
    import h5py
    import zarr
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["append", "checked_target", "write"]

SUFFIXES = (".h5ad", ".zarr")


def checked_target(path: str | Path, *, overwrite: bool) -> Path:
    """`path`, its folder made if needed; an error, before any work is done, if nothing can or may be written there.

    Raises
    ------
    ValueError
        It ends neither in .h5ad nor in .zarr.
    FileExistsError
        There is something (a symbolic link counts, wherever it leads), and `overwrite` is not set, or it isn't a
        section.
    NotADirectoryError, PermissionError
        Its folder is no use.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"The output must end in {' or '.join(SUFFIXES)}, found {path.name!r}.")
    _checks.replaceable(path, overwrite=overwrite)
    _files.recover(path)
    if not path.exists() or path.is_symlink():
        return path
    if path.is_dir() != (path.suffix == ".zarr") or (path.is_dir() and not is_zarr(path)):
        raise FileExistsError(f"{str(path)!r} exists and is no {path.suffix}; it is left alone. Choose another.")
    return path


def write(data: AnnData | SpatialData, path: Path, *, table_key: str = _keys.TABLE) -> None:
    """Write beside `path` and rename; into an .h5ad goes the table of a SpatialData."""
    if path.suffix == ".h5ad":
        with _files.atomic(path) as temporary:
            _utils.table_of(data, table_key).write_h5ad(temporary, compression="gzip")
        return
    with _files.atomic_folder(path) as temporary:
        data.write(temporary) if _utils.is_spatialdata(data) else data.write_zarr(temporary)


def append(table: AnnData, keys: Sequence[str], source: Path, target: Path, *, table_key: str = _keys.TABLE) -> bool:
    """Write ``obsm[keys]`` and ``uns["stamp"]`` of `table` into a copy of the store `source` that becomes `target`.

    All else is copied as it is, bit by bit, and not read. Where both are the same SpatialData, only its table is
    replaced and nothing else is touched. False, and nothing is done, where the two are of different formats.
    """
    if source.is_dir() != (target.suffix == ".zarr") or source.suffix.lower() != target.suffix:
        return False
    if not table.isbacked:  # a backed one is open, and an .h5ad for certain
        kind = hdf5_kind(source) if source.is_file() else zarr_kind(source)
        if kind not in ("h5ad", "zarr", "SpatialData"):
            return False  # a MuData, or another format under this name
    if source.is_file():
        _append_h5ad(table, keys, source, target)
    elif is_spatialdata(source):
        _append_spatialdata(table, keys, source, target, table_key)
    else:
        with _files.atomic_folder(target) as temporary:
            _copy_store(source, temporary)
            _put_zarr(temporary, table, keys)
            _consolidate(temporary)
    return True


def _append_h5ad(table: AnnData, keys: Sequence[str], source: Path, target: Path) -> None:
    import h5py

    with _files.atomic(target) as temporary:
        shutil.copyfile(source, temporary)
        refuse_links_h5(temporary)  # the copy: what is written to can't change after it was looked at
        with h5py.File(temporary, "r+") as file:
            _put(file, table, keys)
        if table.isbacked:  # its file may be the one that is replaced
            table.file.close()


def _append_spatialdata(table: AnnData, keys: Sequence[str], source: Path, target: Path, table_key: str) -> None:
    if target.is_symlink() or source.resolve() != target.resolve():  # of a link the link is replaced, not what it names
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
    """The folder of the tables; before spatialdata 0.1 it was called otherwise."""
    return "tables" if (store / "tables").is_dir() else "table"


def _copy_store(source: Path, target: Path) -> None:
    """Copy a store; a link in it is not followed but refused."""
    shutil.copytree(source, target, symlinks=True)
    refuse_links_zarr(target)


def _put_zarr(path: Path, table: AnnData, keys: Sequence[str]) -> None:
    import zarr

    _put(zarr.open_group(path, mode="r+", use_consolidated=False), table, keys)


def _put(group: h5py.File | zarr.Group, table: AnnData, keys: Sequence[str]) -> None:
    """The results into an open AnnData store."""
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
    """Renew the summary of a store's metadata, where it has one; readers take it for what is there."""
    import warnings

    import zarr

    if zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr: the summary is not part of the v3 specification
            zarr.consolidate_metadata(path)


def written_keys(table: AnnData, key: str) -> list[str]:
    """Keys of obsm that `stampy.tl.embed` writes for `key_added`, as far as they are there."""
    names: list[Any] = [key, key + _keys.GENE_SUFFIX, key + _keys.IMAGE_SUFFIX]
    return [name for name in names if name in table.obsm]
