"""ST: a table of counts (spots named COLUMNxROW by genes) with the spots' file; and HEST: an .h5ad with its slide."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks, _keys
from stampy._io import tables as _tenx
from stampy._io.cells import wide_counts
from stampy._io.common import add_library, first_of, listing, readable, refer_to_image

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["COUNTS", "add_hest", "is_st", "read_st"]

COUNTS = (".tsv", ".tsv.gz", ".txt", ".txt.gz")
_HEST_LIBRARY = "ST"  # the key in uns["spatial"] of every HEST section
PITCH_UM, SPOT_UM = 200.0, 100.0
LOOKED_FOR = (
    "ST is a table of counts (.tsv or .tsv.gz; spots named COLUMNxROW by genes) beside the spots' file "
    "(*_selection.tsv, spot_data*.tsv) with the columns x, y, pixel_x, pixel_y."
)
_SPOTS = ("*_selection.tsv*", "*spot_data*.tsv*", "*spots*.tsv*")
_PICTURES = (".tif", ".tiff", ".jpg", ".jpeg", ".png")
_NAME = re.compile(r"-?\d+(\.\d+)?x-?\d+(\.\d+)?")


def is_st(path: Path) -> bool:
    """Whether the folder has a table of ST counts, or the file is one: its second line starts with COLUMNxROW."""
    if path.is_dir():
        return any(is_st(p) for p in path.iterdir() if p.is_file() and p.name.endswith(COUNTS))
    if not path.name.endswith(COUNTS):
        return False
    try:
        first = pd.read_csv(path, sep="\t", index_col=0, nrows=1)
    except (ValueError, OSError, EOFError):
        return False
    return len(first) > 0 and _NAME.fullmatch(str(first.index[0])) is not None


def read_st(path: Path, *, image: str | Path | None = None) -> AnnData:
    """An ST section from its table of counts, or the folder of one section.

    The file of the spots is looked for beside the counts, and in ``ST-spotfiles`` beside their folder; the image
    likewise in ``ST-imgs``. Without it coordinates are the spots' numbers, 200 µm apart.
    """
    import anndata

    counts = path if path.is_file() else _one_table(path)
    name = counts.name.split(".")[0].removesuffix("_stdata")
    with readable(counts):
        x, spots, genes = wide_counts(counts, "\t")
        numbers = np.array([[float(v) for v in spot.split("x")] for spot in spots])
    adata = anndata.AnnData(
        x, obs=pd.DataFrame(index=spots), var=pd.DataFrame(index=_tenx.unique_names(pd.Index(genes)))
    )
    adata.obs["array_row"], adata.obs["array_col"] = numbers[:, 1], numbers[:, 0]
    beside = _spots_file(counts, name)
    if beside is None:
        if image is not None:
            raise FileNotFoundError(
                f"No file of the spots for {counts.name}: they can't be placed on an image. {LOOKED_FOR}"
            )
        adata.obsm[_keys.SPATIAL] = numbers
        add_library(adata, name, {"microns_per_pixel": PITCH_UM, "spot_diameter_fullres": SPOT_UM / PITCH_UM})
        return adata
    with readable(beside):
        adata = _on_pixels(adata, _tenx.table(beside))
    distance = _distance_px(adata)
    add_library(adata, name, {"microns_per_pixel": PITCH_UM / distance, "spot_diameter_fullres": distance / 2})
    image = image or _image(counts, name)
    if image is not None:
        refer_to_image(adata, image, name)
    return adata


def _one_table(folder: Path) -> Path:
    found = sorted(p for p in folder.iterdir() if p.is_file() and is_st(p))
    if len(found) != 1:
        raise ValueError(
            f"{str(folder)!r} has {len(found)} tables of counts ({_checks.shortlist([p.name for p in found])}); "
            f"name one. Found: {listing(folder)}. {LOOKED_FOR}"
        )
    return found[0]


def _spots_file(counts: Path, name: str) -> Path | None:
    beside = counts.parent.parent / "ST-spotfiles"
    folders = [counts.parent, *([beside] if beside.is_dir() else [])]
    named = first_of(folders, [f"{name}_selection.tsv*", f"{name}_spot*.tsv*"])
    return named or first_of([counts.parent], list(_SPOTS))


def _image(counts: Path, name: str) -> Path | None:
    """The picture named as the section, the only one beside the counts, or the one in ST-imgs/PATIENT/SECTION."""
    folders = [counts.parent.parent / "ST-imgs" / name[:1] / name, counts.parent]
    for folder in (f for f in folders if f.is_dir()):
        found = sorted(p for p in folder.iterdir() if p.suffix.lower() in _PICTURES)
        named = [p for p in found if p.name.split(".")[0] == name]
        if len(named or found) == 1:
            return (named or found)[0]
    return None


def _on_pixels(adata: AnnData, spots: pd.DataFrame) -> AnnData:
    """The spots under tissue, in px of the image."""
    for column in ("x", "y", "pixel_x", "pixel_y"):
        _checks.has_key(spots, column, slot="the file of the spots", needs=LOOKED_FOR)
    if "selected" in spots:
        spots = spots[spots["selected"] == 1]
    spots.index = [f"{x:.0f}x{y:.0f}" for x, y in zip(spots["x"], spots["y"], strict=True)]
    names = [f"{x:.0f}x{y:.0f}" for x, y in adata.obs[["array_col", "array_row"]].to_numpy()]
    rows = spots.index.get_indexer(names)
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise ValueError(f"none of its spots ({_checks.shortlist(spots.index, 3)}) is among the counts ({names[:3]})")
    adata = adata[kept].copy()
    spots = spots.iloc[rows[kept]]
    adata.obsm[_keys.SPATIAL] = spots[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64)
    return adata


def _distance_px(adata: AnnData) -> float:
    """Px between neighbours: spots' numbers against pixels, by least squares; both axes have one scale."""
    numbers = adata.obs[["array_col", "array_row"]].to_numpy(dtype=np.float64)
    pixels = adata.obsm[_keys.SPATIAL]
    numbers, pixels = numbers - numbers.mean(axis=0), pixels - pixels.mean(axis=0)
    spread = float(np.sqrt((numbers**2).sum()))
    if spread == 0:
        raise ValueError("One spot tells no scale; the section needs at least two spots.")
    return float(np.sqrt((pixels**2).sum()) / spread)


def add_hest(adata: AnnData, path: Path) -> None:
    """Refer to the slide of a HEST section (``wsis/ID.tif`` beside ``st/``, or beside the file), with its µm per px."""
    name, near = path.stem, path.parent
    libraries = adata.uns.get(_keys.UNS_SPATIAL, {})
    # a .tif beside any other .h5ad may be anything
    places = [near.parent / "wsis", *([near] if _HEST_LIBRARY in libraries else [])]
    slide = first_of([p for p in places if p.is_dir()], [f"{name}.tif", f"{name}.tiff"])
    if slide is None:
        return
    refer_to_image(adata, slide, name)
    libraries = adata.uns[_keys.UNS_SPATIAL]
    found = first_of([f for f in (near.parent / "metadata", near) if f.is_dir()], [f"{name}.json"])
    if found is not None:
        with readable(found):
            um = _pixel_um(json.loads(found.read_text(encoding="utf-8")))
        if um is not None:
            library = next(iter(libraries.values()))
            library["scalefactors"] = {**library.get("scalefactors", {}), "microns_per_pixel": um}


def _pixel_um(metadata: dict[str, Any]) -> float | None:
    """The size of a pixel that HEST estimated from the spots, else the one that the slide states."""
    for key in ("pixel_size_um_estimated", "pixel_size_um_embedded"):
        value = metadata.get(key)
        if isinstance(value, (int, float)) and np.isfinite(value) and value > 0:
            return float(value)
    return None
