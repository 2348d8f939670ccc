"""Space Ranger folders of every version: Visium v1, v2 and CytAssist, and the bins of Visium HD."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stampy import _checks, _keys
from stampy._io import tables as _tenx
from stampy._io.common import add_library, first_of, listing, outs_of, picture, readable, sample_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["is_space_ranger", "read_space_ranger"]

HD = "binned_outputs"
DEFAULT_BIN_UM = 8
LOOKED_FOR = (
    "A Space Ranger folder has filtered_feature_bc_matrix.h5 (or filtered_feature_bc_matrix/ with matrix.mtx) and "
    "spatial/ with tissue_positions (.csv, _list.csv or .parquet) and scalefactors_json.json; one of Visium HD has "
    "binned_outputs/square_008um/ and the like."
)
_MATRIX = ["filtered_feature_bc_matrix.h5", "*filtered_feature_bc_matrix.h5"]
_POSITIONS = [
    *("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv"),
    *("*tissue_positions.csv*", "*tissue_positions_list.csv*", "*tissue_positions.parquet"),
]
_SCALE = ["scalefactors_json.json", "*scalefactors_json.json*"]
_MTX = {
    "matrix": ["matrix.mtx.gz", "matrix.mtx"],
    "features": ["features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv"],
    "barcodes": ["barcodes.tsv.gz", "barcodes.tsv"],
}


def is_space_ranger(folder: Path) -> bool:
    """Whether something in the folder is named as Space Ranger does."""
    folder = outs_of(folder)
    places = [folder, folder / "spatial"]
    return (
        any((folder / name).is_dir() for name in (HD, "filtered_feature_bc_matrix"))
        or any(next(place.glob("*tissue_positions*"), None) for place in places)
        or next(folder.glob("*filtered_feature_bc_matrix.h5"), None) is not None
    )


def read_space_ranger(folder: Path, *, bin_um: float | None = None) -> AnnData:
    """Counts, positions, scale factors and the reduced images of a folder, with or without ``outs/``.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        No such bin, barcodes without position, damaged files, or `bin_um` for a section of spots.
    """
    outs = outs_of(folder)
    name = sample_of(outs)
    spatial = [outs / "spatial", outs]
    if (outs / HD).is_dir():
        outs = _bin_folder(outs / HD, bin_um)
        spatial = [outs / "spatial", *spatial]
    elif bin_um is not None and not re.fullmatch(r"square_\d+um", outs.name):
        raise ValueError(
            f"`bin_um` was given, but {str(folder)!r} holds spots, not bins of Visium HD. Leave it out: spots of 55 µm "
            "can't be divided."
        )
    return _section(outs, spatial, name)


def _bin_folder(folder: Path, bin_um: float | None) -> Path:
    """The folder of the bins asked for; those of 8 µm by default."""
    found = {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r"square_(\d+)um", p.name))}
    if not found:
        raise FileNotFoundError(f"{str(folder)!r} has no square_008um/ and the like. Found: {listing(folder)}.")
    wanted = DEFAULT_BIN_UM if bin_um is None else bin_um
    if wanted not in found:
        raise ValueError(
            f"No bins of {wanted:g} µm in {str(folder)!r}. Available: {sorted(found)}; choose by `bin_um=`."
        )
    return found[int(wanted)]


def _section(outs: Path, spatial: list[Path], name: str) -> AnnData:
    import anndata

    x, barcodes, var = _counts(outs)
    path = _needed(spatial, _POSITIONS)
    with readable(path):
        spots = _tenx.positions(path)
    rows = spots.index.get_indexer(barcodes)
    if (rows < 0).any():
        missing = np.flatnonzero(rows < 0)
        raise ValueError(
            f"{len(missing)} of {len(barcodes)} barcodes have no position in {path.name} (first: "
            f"{barcodes[missing[0]]!r}). Counts and positions are of different sections."
        )
    spots = spots.iloc[rows]
    obs = spots[_tenx.POSITIONS[1:4]].rename_axis(None)
    adata = anndata.AnnData(x, obs=obs, var=var)
    adata.obsm[_keys.SPATIAL] = spots[["x", "y"]].to_numpy(dtype=np.float64)
    path = _needed(spatial, _SCALE)
    with readable(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        scalefactors = json.load(stream)
    images = {kind: first_of(spatial, [f"tissue_{kind}_image.png", f"*tissue_{kind}_image.png"])
              for kind in ("hires", "lowres")}  # fmt: skip
    add_library(adata, name, scalefactors, {kind: picture(p) for kind, p in images.items() if p is not None})
    return adata


def _counts(outs: Path) -> _tenx.Counts:
    """From the .h5 where there is one, else from the matrix folder."""
    path = first_of([outs], _MATRIX)
    if path is not None:
        with readable(path):
            return _tenx.counts_h5(path)
    matrix = outs / "filtered_feature_bc_matrix"
    if not matrix.is_dir():
        raise FileNotFoundError(f"{str(outs)!r} has no matrix of counts. {LOOKED_FOR} Found: {listing(outs)}.")
    with readable(matrix):
        return _tenx.counts_mtx(**{role: _needed([matrix], names) for role, names in _MTX.items()})


def _needed(folders: list[Path], patterns: list[str]) -> Path:
    """The first of the files that is there."""
    folders = [folder for folder in folders if folder.is_dir()]
    found = first_of(folders, patterns)
    if found is None:
        plain = [p for p in patterns if "*" not in p]
        seen = "; ".join(f"{folder.name}/: {listing(folder)}" for folder in folders)
        raise FileNotFoundError(f"None of {_checks.shortlist(plain)} was found. {LOOKED_FOR} Found: {seen}.")
    return found
