"""Inputs that `stampy.read` refuses (.rds and .Rda of R, images, archives, .gef, ...), and remedies."""

from __future__ import annotations

import zipfile
from pathlib import Path

from stampy import _checks
from stampy._io.delimited import is_coordinates, tables_in
from stampy._io.formats.anndata_mudata_spatialdata import is_zarr
from stampy._io.input_files import listed, listing, refuse

__all__ = ["R_FILES", "refused_file", "refused_folder", "refused_zarr"]

R_FILES = {  # ending -> how R reads the file
    ".rds": 'x <- readRDS("{name}")',
    ".qs": 'x <- qs::qread("{name}")',
    ".h5seurat": 'x <- SeuratDisk::LoadH5Seurat("{name}")',
    ".rdata": 'x <- get(load("{name}"))',
    ".rda": 'x <- get(load("{name}"))',
}
# Without `scale = NULL`, coordinates of a VisiumV1 image are px of the lowres image.
_SEURAT = (
    'x <- Seurat::AddMetaData(x, Seurat::GetTissueCoordinates(x, scale = NULL)); anndataR::write_h5ad(x, "{stem}.h5ad")'
)
_SPATIAL_EXPERIMENT = (
    "library(SpatialExperiment); colData(x) <- cbind(colData(x), spatialCoords(x)); "
    'zellkonverter::writeH5AD(x, "{stem}.h5ad", X_name = "counts")'
)
_IMAGES = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".png", ".jpg", ".jpeg", ".dcm", ".czi")
_ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".7z", ".rar")
_PARTS_OF_A_RUN = ("feature_slice.h5", "molecule_info.h5", "raw_probe_bc_matrix.h5", "per_sample_outs.h5")
_SECTIONS = (".h5ad", ".h5mu", ".zarr", ".loom", ".h5", ".gem", ".gem.gz", ".zarr.zip")


def refused_file(path: Path, kind: str = "") -> ValueError:
    """Return the error for a file that is not a section."""
    name, low = path.name, path.name.lower()
    if (steps := _steps_in_r(name, kind)) is not None:
        return refuse(f"{name!r} is a file of R, which stampy does not read. Convert it in R: {steps}")
    if low.endswith(".h5ad.gz"):
        return refuse(f"{name!r} is gzipped, and HDF5 is read in pieces. Unpack it first: `gunzip {name}`.")
    if kind == "Stereo-seq .gef":
        return refuse(
            f"{name!r} is a Stereo-seq .gef. Give the .gem, or write an .h5ad with stereopy: "
            "`st.io.stereo_to_anndata(st.io.read_gef(path))`."
        )
    if low.endswith(_ARCHIVES) or zipfile.is_zipfile(path):
        return refuse(f"{name!r} is an archive. Unpack it, and give the folder of the section.")
    if low.endswith(_IMAGES):
        return refuse(
            f"{name!r} is an image; a section has counts. Give the counts, and this as `image=`; slides without counts "
            "are for `stampy.tl.embed_slide`."
        )
    return refuse(
        f"{name!r} is not a section: an .h5ad, .h5, .h5mu, .loom, .gem, a table of counts or a folder was expected. "
        "Of a Space Ranger run or other platform give the folder, not one of its files."
    )


def _steps_in_r(name: str, kind: str) -> str | None:
    """R code that converts an R file of this name or of the kind "h5Seurat"; None for other files."""
    plain = name[:-3] if name.lower().endswith(".gz") else name
    ending = ".h5seurat" if kind == "h5Seurat" else next((e for e in R_FILES if plain.lower().endswith(e)), None)
    if ending is None:
        return None
    stem = plain[: -len(ending)] if plain.lower().endswith(ending) else plain.partition(".")[0]
    loaded = R_FILES[ending].format(name=name)
    # satijalab/seurat-object issue 229: the x of a VisiumV2 image is the row of the pixel
    swapped = "Versions of Seurat differ in which of x and y is the row of the image: check with `stampy.pl.spatial`."
    if ending == ".h5seurat":
        return f"`{loaded}; {_SEURAT.format(stem=stem)}`. {swapped}"
    return (
        f"`{loaded}`, then for a Seurat object `{_SEURAT.format(stem=stem)}`, for a SpatialExperiment "
        f"`{_SPATIAL_EXPERIMENT.format(stem=stem)}`. `class(x)` shows which it is. {swapped}"
    )


def refused_zarr(path: Path, kind: str) -> ValueError:
    """Return the error for a zarr store that is not a section."""
    if kind == "image":
        return refuse(
            f"{path.name!r} is an OME-Zarr image, no section: it has no table of counts. A SpatialData with this image "
            "and a table would be read."
        )
    inside = [p.name for p in listed(path) if p.name != "zarr.json"]
    return refuse(
        f"{path.name!r} is a zarr store, but neither of AnnData (obs, var and X), of SpatialData (tables) nor of "
        f"MuData (mod); it contains {inside or 'nothing'}."
    )


def refused_folder(path: Path, looked_for: str) -> ValueError:
    """Return the error for a folder without a known format."""
    where = repr(str(path))
    entries = listed(path)
    if not entries:
        return refuse(f"{where} is not a section in a format that stampy knows: it is empty.")
    sections = [
        p.name
        for p in entries
        if (p.name.lower().endswith(_SECTIONS) and not p.name.lower().endswith(_PARTS_OF_A_RUN))
        or (p.is_dir() and is_zarr(p))
    ]
    in_r = [p for p in entries if p.name.lower().removesuffix(".gz").endswith(tuple(R_FILES))]
    if sections:
        return refuse(
            f"{where} is not a section itself, but contains {sections[:4]}. Pass one of them to `stampy.read`."
        )
    if in_r:
        return refused_file(in_r[0])
    if packed := [p.name for p in entries if p.name.lower().endswith(_ARCHIVES)]:
        return refuse(f"{where} is not a section: unpack {_checks.shortlist(packed)} there first.")
    found = f"Found there: {listing(path)}."
    tables = tables_in(path)
    places = [p.name for p, layout in tables.items() if is_coordinates(layout)]
    if tables:
        lacking = "the counts" if places else "the coordinates (columns x and y)"
        nearest = f"counts and coordinates as tables; it lacks {lacking}"
    elif any(p.name.lower().endswith((*_IMAGES, ".png.gz", ".jpg.gz")) for p in entries):
        nearest = "an image; it lacks the counts"
    else:
        return refuse(f"{where} is not a section in a format that stampy knows. {found} Looked for: {looked_for}")
    return refuse(f"{where} is not a section in a format that stampy knows. Nearest: {nearest}. {found}")
