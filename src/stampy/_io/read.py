"""`stampy.read`: a section in any of the formats that users have; which one it is, is seen from the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy import _checks, _files, _keys
from stampy._io import cells as _cells
from stampy._io import common as _common
from stampy._io import space_ranger as _visium
from stampy._io import st as _st
from stampy._io import stores as _zarr
from stampy._io.write import append, checked_target, write, written_keys
from stampy._section.links import refuse_links

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["append", "checked_target", "format_of", "read", "write", "written_keys"]

Test = Callable[[Path], bool]

_FOLDERS: tuple[tuple[str, Test, str], ...] = (  # the first whose test passes; what it looks for, for the error
    ("SpatialData", _zarr.is_spatialdata, ""),
    ("zarr", _zarr.is_zarr, "zarr: zarr.json, .zgroup or .zattrs."),
    ("Space Ranger", _visium.is_space_ranger, f"Space Ranger: {_visium.LOOKED_FOR}"),
    ("Xenium", _cells.is_xenium, f"Xenium: {_cells.LOOKED_FOR_XENIUM}"),
    ("MERSCOPE", _cells.is_merscope, "MERSCOPE: cell_by_gene.csv and cell_metadata.csv."),
    ("ST", _st.is_st, f"ST: {_st.LOOKED_FOR}"),
)
_CELLS = ("h5ad", "zarr", "Xenium", "MERSCOPE")  # what can be summed up in bins


def read(
    path: str | Path,
    *,
    bin_um: float | None = None,
    image: str | Path | None = None,
    um_per_px: float | None = None,
    backed: bool = False,
) -> AnnData | SpatialData:
    """Read a section, whatever format it has; which one that is, is seen from the files.

    Known are .h5ad (also of HEST, with its slide), .zarr of AnnData and of SpatialData, Space Ranger folders of every
    version (Visium v1, v2, CytAssist, HD), Xenium and MERSCOPE folders, and ST. A full-resolution image is referred to,
    not read: its path is in ``uns["spatial"][section]["metadata"]["source_image_path"]``, and `stampy.tl.embed` reads
    its tiles from there.

    Parameters
    ----------
    path
        File or folder of one section.
    bin_um
        Visium HD: which of the bins, in µm; None: 8. Single cells (Xenium, MERSCOPE, or any .h5ad and .zarr with
        coordinates in µm): sum cells up in square bins of this edge; None: by cells. See `stampy.pp.bins`.
    image
        Full-resolution H&E image (TIFF, whole slide, PNG, JPEG) in whose px the coordinates are; only its path is kept.
    um_per_px
        With `bin_um`: µm per unit of the coordinates, where the scale factors do not tell.
    backed
        Leave the counts of an .h5ad or .zarr on disk: memory does not grow with them.

    Returns
    -------
    A SpatialData where `path` is one, else an AnnData: raw counts in ``X``, ``obsm["spatial"]`` in px of the
    full-resolution image (cells without H&E image: in µm), ``uns["spatial"]`` with images and scale factors.

    Raises
    ------
    FileNotFoundError
        Nothing is there, or a file of the format is missing.
    ValueError
        No format that is known, a damaged file, or an argument that does not go with the format.

    Examples
    --------
    >>> import stampy, tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "section.h5ad"
    >>> stampy.datasets.toy(n_spots=60).write_h5ad(path)
    >>> stampy.read(path).shape
    (60, 800)
    """
    _files.recover(Path(path).expanduser())
    path = _checks.existing(path, what="section")
    refuse_links(path)
    kind = format_of(path)
    _check_arguments(kind, bin_um, image, um_per_px, backed)
    data = _read(path, kind, bin_um=bin_um, image=image, backed=backed)
    if image is not None and kind not in ("Xenium", "ST"):  # these place their spots on it
        _common.refer_to_image(data, image, path.resolve().stem)
    if bin_um is not None and kind in _CELLS:
        from stampy import pp

        return pp.bins(data, bin_um, um_per_px=um_per_px)
    return data


def _read(path: Path, kind: str, *, bin_um: float | None, image: Any, backed: bool) -> Any:
    if kind == "h5ad":
        return _read_h5ad(path, backed)
    if kind in ("zarr", "SpatialData"):
        return _zarr.read(path, backed=backed)
    if kind == "Space Ranger":
        return _visium.read_space_ranger(path, bin_um=bin_um)
    if kind == "Xenium":
        return _cells.read_xenium(path, image=image)
    return _cells.read_merscope(path) if kind == "MERSCOPE" else _st.read_st(path, image=image)


def format_of(path: Path) -> str:
    """The name of the format; ValueError that says what was looked for and what was seen."""
    if path.is_file():
        if path.name.lower().endswith(".h5ad"):
            return "h5ad"
        if _st.is_st(path):
            return "ST"
        raise ValueError(
            f"A section is an .h5ad, a .zarr, a table of ST counts or a folder (Space Ranger, Xenium, MERSCOPE, ST), "
            f"found the file {path.name!r}. Of a Space Ranger run give the folder, not one of its files."
        )
    for name, test, _ in _FOLDERS:
        if test(path):
            return name
    looked = " ".join(words for *_, words in _FOLDERS if words)
    raise ValueError(
        f"{str(path)!r} is no section in a format that stampy knows. Found there: {_common.listing(path)}. "
        f"Looked for: {looked}"
    )


def _check_arguments(kind: str, bin_um: Any, image: Any, um_per_px: Any, backed: bool) -> None:
    if bin_um is not None:
        _checks.positive("bin_um", bin_um)
        if kind not in (*_CELLS, "Space Ranger"):
            raise ValueError(f"`bin_um` is for cells and for Visium HD, not for {kind}. Leave it out.")
    if um_per_px is not None:
        if bin_um is None:
            raise ValueError("`um_per_px` is used with `bin_um` here. For tiles give it to `stampy.tl.embed`.")
        _checks.positive("um_per_px", um_per_px)
    if image is not None:
        _checks.existing(image, what="image file")
        if kind in ("SpatialData", "MERSCOPE"):
            raise ValueError(f"`image` can't be given for {kind}: its coordinates are not px of that image.")
    if backed and kind not in ("h5ad", "zarr", "SpatialData"):
        raise ValueError(f"`backed` is for .h5ad and .zarr, found {kind}. Write it as .h5ad once.")


def _read_h5ad(path: Path, backed: bool) -> AnnData:
    import anndata

    with _common.readable(path):
        adata = anndata.read_h5ad(path, backed="r" if backed else None)
    if len(adata.uns.get(_keys.UNS_SPATIAL, {})) <= 1:
        _st.add_hest(adata, path)
    return adata
