"""HEST: an .h5ad with its slide next to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stampy import _keys
from stampy._io.assemble import refer_to_image
from stampy._io.input_files import json_of, reading

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["add_hest"]

_HEST_LIBRARY = "ST"  # key in uns["spatial"] of all HEST sections


def add_hest(adata: AnnData, path: Path) -> None:
    """Refer to the slide of a HEST section (``wsis/ID.tif`` next to ``st/``, or next to the file), with µm per px."""
    name, near = path.stem, path.parent
    libraries = adata.uns.get(_keys.UNS_SPATIAL, {})
    # a .tif next to another .h5ad may be unrelated
    places = [near.parent / "wsis", *([near] if _HEST_LIBRARY in libraries else [])]
    found = (place / f"{name}{end}" for end in (".tif", ".tiff") for place in places)
    slide = next((path for path in found if path.is_file()), None)
    if slide is None:
        return
    refer_to_image(adata, slide, name)
    libraries = adata.uns[_keys.UNS_SPATIAL]
    beside = (place / f"{name}.json" for place in (near.parent / "metadata", near))
    described = next((path for path in beside if path.is_file()), None)
    if described is not None:
        with reading(described):
            um = _pixel_um(json_of(described))
        if um is not None:
            library = next(iter(libraries.values()))
            library["scalefactors"] = {**library.get("scalefactors", {}), "microns_per_pixel": um}


def _pixel_um(metadata: Mapping[str, object]) -> float | None:
    """Pixel size estimated by HEST from the spots, else as stated by the slide."""
    for key in ("pixel_size_um_estimated", "pixel_size_um_embedded"):
        value = metadata.get(key)
        if isinstance(value, (int, float)) and np.isfinite(value) and value > 0:
            return float(value)
    return None
