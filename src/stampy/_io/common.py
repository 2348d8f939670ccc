"""What all readers share: finding files, references to large images, errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys
from stampy._checks import readable

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["add_library", "first_of", "listing", "outs_of", "picture", "readable", "refer_to_image", "sample_of"]


def listing(folder: Path, n: int = 12) -> str:
    """What is in a folder, for an error message."""
    return _checks.shortlist(sorted(p.name + ("/" if p.is_dir() else "") for p in folder.iterdir()), n)


def outs_of(folder: Path) -> Path:
    """The folder with the results of a run of 10x Genomics: ``outs`` in it, or itself."""
    return folder / "outs" if (folder / "outs").is_dir() else folder


def sample_of(outs: Path) -> str:
    """The sample's name: that of the folder of results, or of the one that ``outs`` is in."""
    outs = outs.resolve()
    return outs.parent.name if outs.name == "outs" else outs.name


def first_of(folders: list[Path], patterns: list[str]) -> Path | None:
    """The first file that fits: patterns in their order, folders in theirs; ValueError where one pattern fits two."""
    for pattern in patterns:
        for folder in folders:
            found = sorted(p for p in folder.glob(pattern) if not p.name.startswith("."))
            if len(found) > 1:
                raise ValueError(
                    f"{str(folder)!r} has several files {pattern!r}: {_checks.shortlist([p.name for p in found])}. "
                    "A section is a folder of its own; put each there, or name one file."
                )
            if found:
                return found[0]
    return None


def picture(path: Path) -> np.ndarray:
    """A PNG or JPEG as (h, w, 3) uint8."""
    from stampy.pp import SlideImage

    with SlideImage.open(path) as image:
        height, width = image.shape
        return image.read(0, 0, width, height)


def add_library(
    adata: AnnData, name: str, scalefactors: dict[str, float], pictures: dict[str, np.ndarray] | None = None
) -> dict[str, Any]:
    """Write ``uns["spatial"][name]`` and return it."""
    library: dict[str, Any] = {"images": pictures or {}, "scalefactors": scalefactors, "metadata": {}}
    adata.uns[_keys.UNS_SPATIAL] = {name: library}
    return library


def refer_to_image(adata: AnnData, path: str | Path, name: str) -> None:
    """Note where the full-resolution image is, as scanpy does; `stampy.tl.embed` opens it when it needs it."""
    path = _checks.existing(path, what="image file").resolve()
    libraries = adata.uns.setdefault(_keys.UNS_SPATIAL, {name: {"images": {}, "scalefactors": {}}})
    if len(libraries) != 1:
        raise ValueError(
            f"One `image` was given for {len(libraries)} sections ({_checks.shortlist(libraries)}); "
            "give one for each to `stampy.tl.embed(adata, image={...})`."
        )
    library = next(iter(libraries.values()))
    library["metadata"] = {**library.get("metadata", {}), _keys.SOURCE_IMAGE: str(path)}
