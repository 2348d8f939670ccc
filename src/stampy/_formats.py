"""Sections on disk for the command line: .h5ad, .zarr (AnnData or SpatialData), Space Ranger folders."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks, _utils

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["checked_target", "read", "write"]

SUFFIXES = (".h5ad", ".zarr")
_ZARR_MARKS = ("zarr.json", ".zgroup", ".zattrs")
_FILES = {  # of a Space Ranger folder, by role; the first that is there counts
    "positions": ("spatial/tissue_positions.csv", "spatial/tissue_positions_list.csv"),
    "scalefactors": ("spatial/scalefactors_json.json",),
}
_IMAGES = {"hires": "spatial/tissue_hires_image.png", "lowres": "spatial/tissue_lowres_image.png"}


def read(path: str | Path) -> AnnData | SpatialData:
    """A section in any of the formats, in memory but for the images of a SpatialData.

    Raises
    ------
    FileNotFoundError
        Nothing is there, or a Space Ranger folder lacks a file.
    ValueError
        It is none of the formats, truncated or damaged.
    """
    path = _checks.existing(path, what="section")
    if path.is_dir():
        return _read_zarr(path) if _is_zarr(path) else _read_space_ranger(path)
    if path.suffix.lower() != ".h5ad":
        raise ValueError(f"A section is an .h5ad, a .zarr or a Space Ranger folder, found the file {path.name!r}.")
    import anndata

    with _readable(path):
        return anndata.read_h5ad(path)


def _is_zarr(path: Path) -> bool:
    return any((path / mark).is_file() for mark in _ZARR_MARKS)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """ValueError that names the file instead of what the reader of the format says."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"{str(path)!r} can't be read: it is truncated, damaged or of another format ({error})."
        ) from error


def _read_zarr(path: Path) -> AnnData | SpatialData:
    import zarr

    with _readable(path):
        if "spatialdata_attrs" not in zarr.open_group(path, mode="r").attrs:
            import anndata

            return anndata.read_zarr(path)
        import spatialdata

        return spatialdata.read_zarr(path)


def _read_space_ranger(folder: Path) -> AnnData:
    """Counts (.h5 or .mtx), positions, scale factors, and the images that are there."""
    from stampy.datasets._origins import space_ranger

    folder = folder / "outs" if (folder / "outs").is_dir() else folder
    matrix = folder / "filtered_feature_bc_matrix"
    if matrix.is_dir():
        found = {"counts": "matrix.mtx.gz", "features": "features.tsv.gz", "barcodes": "barcodes.tsv.gz"}
        paths = {role: _first(matrix, (name,)) for role, name in found.items()}
    else:
        # files that 10x offers for download have the sample's name in front
        named = sorted(p.name for p in folder.glob("*filtered_feature_bc_matrix.h5"))
        paths = {"counts": _first(folder, ("filtered_feature_bc_matrix.h5", *named))}
    paths |= {role: _first(folder, names) for role, names in _FILES.items()}
    paths |= {role: folder / name for role, name in _IMAGES.items() if (folder / name).is_file()}
    name = folder.resolve().parent.name if folder.name == "outs" else folder.resolve().name
    with _readable(paths["counts"]):
        return space_ranger(name, paths)


def _first(folder: Path, names: tuple[str, ...]) -> Path:
    """The first of the files that is there."""
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{str(folder)!r} is no .zarr and lacks {' or '.join(names)}. A Space Ranger folder has "
        "filtered_feature_bc_matrix.h5 (or filtered_feature_bc_matrix/) and spatial/ with positions and scale factors."
    )


def checked_target(path: str | Path, *, overwrite: bool) -> Path:
    """`path`, its folder made if needed; an error, before any work is done, if nothing can or may be written there.

    Raises
    ------
    ValueError
        It ends neither in .h5ad nor in .zarr.
    FileExistsError
        There is something, and `overwrite` is not set, or it isn't a section.
    NotADirectoryError, PermissionError
        Its folder is no use.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"The output must end in {' or '.join(SUFFIXES)}, found {path.name!r}.")
    _checks.writable(path.parent)
    if path.exists():
        if not overwrite:
            raise FileExistsError(f"{str(path)!r} exists. Choose another name, or replace it with --overwrite.")
        if path.is_dir() != (path.suffix == ".zarr") or (path.is_dir() and not _is_zarr(path)):
            raise FileExistsError(f"{str(path)!r} exists and is no {path.suffix}; it is left alone. Choose another.")
    return path


def write(data: AnnData | SpatialData, path: Path) -> None:
    """Write beside `path` and rename; into an .h5ad goes the table of a SpatialData."""
    if path.suffix == ".h5ad":
        with _utils.atomic(path) as temporary:
            _utils.table_of(data).write_h5ad(temporary, compression="gzip")
        return
    with _atomic_folder(path) as temporary:
        data.write(temporary) if _utils.is_spatialdata(data) else data.write_zarr(temporary)


@contextlib.contextmanager
def _atomic_folder(path: Path) -> Iterator[Path]:
    """As `_utils.atomic`, for a folder, which must not exist yet when it is written."""
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        new, old = beside / path.name, beside / "old"
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
