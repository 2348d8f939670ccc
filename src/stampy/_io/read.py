"""`stampy.read`: read a section in any known format, recognised from its files, or explain what is missing."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from stampy import _checks, _files, _keys
from stampy._io.assemble import refer_to_image
from stampy._io.formats.anndata_mudata_spatialdata import (
    MARKS,
    hdf5_kind,
    is_zarr,
    read_h5ad,
    read_mudata,
    read_spatialdata,
    read_zarr,
    zarr_kind,
)
from stampy._io.formats.cosmx import is_cosmx, read_cosmx
from stampy._io.formats.hest import add_hest
from stampy._io.formats.loom import read_loom
from stampy._io.formats.merscope import is_merscope, read_merscope
from stampy._io.formats.slide_seq import is_counts_and_coordinates, read_counts_and_coordinates
from stampy._io.formats.space_ranger import has_cells, is_counts_file, is_space_ranger, read_space_ranger
from stampy._io.formats.st import is_st, read_st
from stampy._io.formats.stereo_seq import is_gem, read_gem
from stampy._io.formats.xenium import is_xenium, read_xenium
from stampy._io.input_files import is_address, reading, refuse, unzipped
from stampy._io.refused import refused_file, refused_folder, refused_zarr
from stampy._io.remote import read_address
from stampy._io.write import append, checked_target, write, written_keys
from stampy._section.image.choose import resolve_image_paths
from stampy._section.outside_links import refuse_links

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = [
    "append",
    "checked_target",
    "format_of",
    "read",
    "read_zipped",
    "write",
    "written_keys",
]


def read_zipped(path: Path) -> AnnData:
    """Read the AnnData or MuData of a .zarr.zip; refuse a SpatialData, whose images would stay in the archive."""
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
    raise refuse(f"{str(path)!r} contains {what.get(kind, 'no section')}. Unzip it and give the folder.")


_FOLDERS = (  # in the order of the tests
    ("Space Ranger", is_space_ranger),
    ("Xenium", is_xenium),
    ("CosMx", is_cosmx),
    ("MERSCOPE", is_merscope),
    ("ST", is_st),
    ("Stereo-seq", is_gem),
    ("tables", is_counts_and_coordinates),
)
_EXPECTED_FILES = (
    ".h5ad, .zarr, Space Ranger (filtered_feature_bc_matrix and spatial/), Xenium (cell_feature_matrix and cells), "
    "CosMx (exprMat_file and metadata_file), MERSCOPE (cell_by_gene and cell_metadata), ST, .gem, a table of counts "
    "and one of coordinates."
)
_CELLS = (
    "h5ad",
    "zarr",
    "zarr.zip",
    "MuData",
    "loom",
    "Xenium",
    "MERSCOPE",
    "CosMx",
    "tables",
)  # formats that can be summed in bins
_IN_OTHER_UNITS = ("SpatialData", "MERSCOPE", "CosMx", "Stereo-seq")  # coordinates are not px of an image
_HDF5 = b"\x89HDF\r\n\x1a\n"


def read(
    path: str | Path,
    *,
    bin_um: float | None = None,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    backed: bool = False,
) -> AnnData | SpatialData:
    """Read a section, and detect its format from the files.

    Supported formats are .h5ad (including HEST, with its slide), .zarr and .zarr.zip of AnnData, SpatialData, MuData
    (its RNA), loom, Space Ranger of every version (Visium v1, v2, CytAssist, HD in bins or segmented cells; also flat
    GEO folders and a single .h5), Xenium, CosMx, MERSCOPE, ST, Stereo-seq (.gem), Slide-seq, and any table of counts
    together with a table of coordinates. Names may have a prefix and end in .gz. The path of a full-resolution image is
    recorded in ``uns["spatial"][section]["metadata"]["source_image_path"]``, and `stampy.tl.embed` reads its tiles from
    there.

    Parameters
    ----------
    path
        File or folder of one section; or the address of an .h5ad, .zarr or .zarr.zip with AnnData that fsspec opens
        (``"https://..."``, ``"s3://..."``). With `backed`, its counts are read from there block by block. If such a
        section names an image on this machine, the image is not opened.
    bin_um
        Visium HD: size of the bins to read, in µm; None: 8. Stereo-seq: edge of the bins, in µm; None: 50. Single cells
        and beads (Xenium, CosMx, MERSCOPE, Slide-seq, segmented cells of Visium HD, or any .h5ad and .zarr with
        coordinates in µm): sum their counts in square bins of this edge; None: do not bin. See `stampy.pp.bins`.
    image
        Full-resolution H&E image (TIFF, whole slide, PNG, JPEG). Coordinates are in px of this image. Only its path is
        kept.
    um_per_px
        With `bin_um`: µm per unit of the coordinates, if the scale factors do not state it.
    backed
        Leave the counts of an .h5ad or .zarr on disk, so memory does not grow with them.

    Returns
    -------
    A SpatialData if `path` is a SpatialData store, otherwise an AnnData with raw counts in ``X``, ``obsm["spatial"]``
    in px of the full-resolution image (cells without H&E image: in µm), and ``uns["spatial"]`` with images and scale
    factors.

    Raises
    ------
    FileNotFoundError, ConnectionError
        The path does not exist, a file of the format is missing, or the address does not answer.
    ValueError
        The format is unknown, a file is damaged, or an argument does not apply to the format.

    Warns
    -----
    StampyWarning
        Spots without a position or without counts are dropped, features that are not genes are dropped, barcodes match
        only without their suffix, counts are fractional, or positions or image are missing.

    Examples
    --------
    >>> import stampy, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "section.h5ad"
    >>> stampy.datasets.toy(n_spots=60).write_h5ad(path)
    >>> stampy.read(path).shape
    (60, 800)
    """
    if is_address(path):
        if given := [name for name, value in (("bin_um", bin_um), ("image", image)) if value is not None]:
            raise ValueError(f"`{given[0]}` has no effect on a section that is read from an address. Omit it.")
        return read_address(str(path), backed=backed)
    _files.recover(Path(path).expanduser())
    path = _checks.existing(path, what="section")
    refuse_links(path)
    kind = format_of(path)
    _check_arguments(path, kind, bin_um, image, um_per_px, backed)
    data = _read(path, kind, bin_um=bin_um, image=image, backed=backed)
    if kind in ("h5ad", "zarr", "MuData", "SpatialData"):  # other formats do not name images
        for table in data.tables.values() if kind == "SpatialData" else [data]:
            resolve_image_paths(table, path)
    if image is not None and kind not in ("Xenium", "ST"):  # the readers of these formats use the image for coordinates
        if kind != "SpatialData" and _keys.SPATIAL not in data.obsm:
            raise ValueError(f"`image` was given, but {path.name!r} has no coordinates of spots, so it cannot be used.")
        refer_to_image(data, image, path.resolve().stem)
    if bin_um is not None and (kind in _CELLS or (kind == "Space Ranger" and has_cells(path))):
        from stampy import pp

        return pp.bins(data, bin_um, um_per_px=um_per_px)
    return data


def _read(path: Path, kind: str, *, bin_um: float | None, image: Any, backed: bool) -> Any:
    """Call the reader of the format."""
    if kind == "h5ad":
        adata = read_h5ad(path, backed=backed)
        libraries = adata.uns.get(_keys.UNS_SPATIAL, {})
        if isinstance(libraries, Mapping) and len(libraries) <= 1:
            add_hest(adata, path)
        return adata
    if kind == "zarr":
        return read_zarr(path, backed=backed)
    if kind == "SpatialData":
        return read_spatialdata(path, backed=backed)
    if kind == "Space Ranger":
        return read_space_ranger(path, bin_um=bin_um, image=image)
    if kind == "Stereo-seq":
        return read_gem(path, bin_um=bin_um)
    if kind in ("Xenium", "ST"):
        return read_xenium(path, image=image) if kind == "Xenium" else read_st(path, image=image)
    return _WITHOUT_OPTIONS[kind](path)


_WITHOUT_OPTIONS = {
    "MuData": read_mudata,
    "loom": read_loom,
    "zarr.zip": read_zipped,
    "MERSCOPE": read_merscope,
    "CosMx": read_cosmx,
    "tables": read_counts_and_coordinates,
}


def format_of(path: Path) -> str:
    """Name of the format; ValueError with the nearest format and what is missing."""
    if path.is_file():
        return _format_of_file(path)
    if is_zarr(path):
        kind = zarr_kind(path)
        if kind in ("", "image"):
            raise refused_zarr(path, kind)
        return kind
    for name, test in _FOLDERS:
        if test(path):
            return name
    raise refused_folder(path, _EXPECTED_FILES)


def _format_of_file(path: Path) -> str:
    low = path.name.lower()
    with path.open("rb") as stream:
        hdf5 = stream.read(8) == _HDF5
    if hdf5 or low.endswith((".h5.gz", ".loom")):
        kind = hdf5_kind(path)
        known = {"10x .h5": "Space Ranger", "h5ad": "h5ad", "loom": "loom", "MuData": "MuData"}
        if kind in known:
            return known[kind]
        raise refused_file(path, kind)
    if low.endswith(".h5ad"):
        return "h5ad"  # its reader reports errors of the file
    if low.endswith(".zarr.zip"):
        return "zarr.zip"
    if is_counts_file(path):
        return "Space Ranger"
    for name, test in (("ST", is_st), ("Stereo-seq", is_gem), ("tables", is_counts_and_coordinates)):
        if test(path):
            return name
    raise refused_file(path)


def _check_arguments(path: Path, kind: str, bin_um: Any, image: Any, um_per_px: Any, backed: bool) -> None:
    if bin_um is not None:
        _checks.positive("bin_um", bin_um)
        if kind not in (*_CELLS, "Space Ranger", "Stereo-seq"):
            raise ValueError(f"`bin_um` is for cells, beads and for Visium HD, not for {kind}. Omit it.")
    if um_per_px is not None:
        if bin_um is None:
            raise ValueError("`um_per_px` is used with `bin_um` here. For tiles give it to `stampy.tl.embed`.")
        _checks.positive("um_per_px", um_per_px)
        if kind == "Stereo-seq":
            raise ValueError("`um_per_px` is known for Stereo-seq (0.5). Omit it.")
    if image is not None:
        _checks.existing(image, what="image file")
        if kind in _IN_OTHER_UNITS:
            raise ValueError(f"`image` cannot be given for {kind}: its coordinates are not px of that image.")
    if backed and kind not in ("h5ad", "zarr", "SpatialData"):
        raise ValueError(f"`backed` is for .h5ad and .zarr, found {kind}. Write it as .h5ad once.")
