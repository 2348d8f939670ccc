"""A section as it is drawn: spots, their size, the image under them and its scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks
from stampy._section import neighbors
from stampy._section import scale as _scale

if TYPE_CHECKING:
    from anndata import AnnData

Window = tuple[float, float, float, float]  # left, right, bottom, top in px; y runs downwards, so bottom > top

FILL = 0.8  # spot diameter over spot distance where no scale factor tells it


@dataclass(frozen=True)
class Section:
    """One section; coordinates in px of the full-resolution image."""

    name: str
    rows: np.ndarray  # (n,) its rows of the table
    xy: np.ndarray  # (n, 2)
    diameter: float
    um_per_px: float | None
    image: np.ndarray | None  # (h, w, 3 or 4)
    extent: Window | None  # of the image

    def window(self, *, size: float, crop: bool | Window) -> Window:
        """What to show: the spots with a margin, the whole image, or the part asked for (left, right, top, bottom)."""
        if not isinstance(crop, bool):
            left, right, top, bottom = map(float, crop)
            return left, right, bottom, top
        low, high = self.xy.min(axis=0), self.xy.max(axis=0)
        margin = 0.5 * size * self.diameter + max(0.025 * max(high - low), 0.5 * self.diameter)
        (left, top), (right, bottom) = low - margin, high + margin
        if self.extent is None or crop:
            return left, right, bottom, top
        x0, x1, y1, y0 = self.extent
        return min(left, x0), max(right, x1), max(bottom, y1), min(top, y0)


def sections_of(
    adata: AnnData,
    *,
    library_key: str | None,
    sections: str | Sequence[str] | None,
    image: bool,
    um_per_px: float | None,
) -> list[Section]:
    """The sections asked for, in that order."""
    xy = _checks.coordinates(adata)
    codes, names = _checks.libraries(adata, library_key)
    libraries = _checks.library_images(adata)
    wanted = _wanted(names, sections, library_key)
    if library_key is None:
        if len(libraries) > 1:
            raise ValueError(
                f"`adata.uns['spatial']` holds {len(libraries)} sections: {_checks.shortlist(libraries)}. Name the "
                "column of obs that tells the spots' sections by `library_key=`."
            )
        names = wanted = list(libraries) or [""]
    elif libraries and not set(wanted) & set(libraries):
        _checks.warn(
            f"None of the sections {_checks.shortlist(wanted)} is in `adata.uns['spatial']`, which holds "
            f"{_checks.shortlist(libraries)}: they are drawn without image."
        )
    rows = {name: np.flatnonzero(codes == i) for i, name in enumerate(names)}
    drawn = [_section(n, rows[n], xy[rows[n]], libraries.get(n, {}), image, um_per_px) for n in wanted]
    for section in drawn:
        if section.extent is not None and not _inside(section.xy, section.extent).any():
            _checks.warn(
                f"All spots of {section.name!r} lie outside its image. Are the scale factors those of this image, and "
                "the coordinates in px of the full-resolution image?"
            )
    return drawn


def _inside(xy: np.ndarray, extent: Window) -> np.ndarray:
    left, right, bottom, top = extent
    return ((xy >= (left, top)) & (xy <= (right, bottom))).all(axis=1)


def _wanted(names: list[str], sections: str | Sequence[str] | None, library_key: str | None) -> list[str]:
    if sections is None:
        return names
    if library_key is None:
        raise ValueError("`sections` needs `library_key`, the column of obs that tells the spots' sections.")
    wanted = [sections] if isinstance(sections, str) else [str(s) for s in sections]
    if not wanted:
        raise ValueError(f"`sections` is empty. Name some of {_checks.shortlist(names)}, or leave it out for all.")
    for name in wanted:
        _checks.one_of("sections", name, names)
    return wanted


def _section(
    name: str, rows: np.ndarray, xy: np.ndarray, library: Mapping[str, Any], image: bool, um_per_px: float | None
) -> Section:
    factors = library.get("scalefactors", {})
    known = factors.get("spot_diameter_fullres") is not None
    diameter = _checks.factor(factors, "spot_diameter_fullres") if known else 0.0
    if um_per_px is None:
        um_per_px = _um_per_px(xy, factors)
    pixels, extent = _image(library, factors) if image else (None, None)
    return Section(name, rows, xy, diameter or FILL * spot_distance(xy) or 1.0, um_per_px, pixels, extent)


def spot_distance(xy: np.ndarray) -> float:
    """Distance of neighbouring spots, 0.0 for one spot.

    Where there is no grid, it is that to the fourth neighbour, which on a grid is the same.

    >>> spot_distance(np.array([[0, 0], [0, 2], [2, 0], [2, 2]]))
    2.0
    """
    grid = _scale.lattice(xy)
    if grid is not None:
        return grid.pitch
    distances, _ = neighbors.neighbour_distances(xy, xy[:: max(1, len(xy) // _scale.QUERIES)], 5)
    distances = distances[~np.isnan(distances).all(axis=1)]
    if not distances.size:
        return 0.0
    return float(np.median(np.nanmax(distances[:, : max(1, min(4, len(xy) // 2))], axis=1)))


def _um_per_px(xy: np.ndarray, factors: Mapping[str, Any]) -> float | None:
    """µm per px of the full-resolution image, or None where it can't be told for sure."""
    try:
        pixel = _scale.infer_um_per_px(xy, factors)
    except ValueError:  # no known platform: no bar
        return None
    return None if pixel.doubt else pixel.um_per_px


def _image(library: Mapping[str, Any], factors: Mapping[str, Any]) -> tuple[np.ndarray | None, Window | None]:
    """The best image as RGB, and where its borders lie in px of the full-resolution image."""
    key = next((k for k in ("hires", "lowres") if k in library.get("images", {})), None)
    if key is None:
        return None, None
    name = f"tissue_{key}_scalef"
    _checks.has_key(
        factors, name, slot="scalefactors", needs=f"It places the {key} image; for the spots alone use `image=False`."
    )
    pixels, scale = as_rgb(library["images"][key]), _checks.factor(factors, name)
    height, width = pixels.shape[:2]
    return pixels, (0.0, width / scale, height / scale, 0.0)  # pixel i covers [i, i + 1)


def as_rgb(image: Any) -> np.ndarray:
    """Any usual image as (h, w, 3 or 4), uint8 or float in 0 to 1.

    >>> as_rgb(np.full((1, 1), 65535, dtype=np.uint16)).tolist()
    [[[1.0, 1.0, 1.0]]]
    """
    image = np.asarray(image)
    if image.size == 0:
        raise ValueError(f"The image is empty, its shape is {image.shape}. Give another, or draw with `image=False`.")
    if image.ndim == 2 or image.shape[2:] == (1,):
        image = np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(
            f"The image must have shape (h, w), (h, w, 3) or (h, w, 4), found {image.shape}. "
            "Move the channels last, e.g. by `np.moveaxis(image, 0, -1)`."
        )
    if image.dtype == np.uint8:
        return image
    if np.issubdtype(image.dtype, np.integer):
        return (image / np.iinfo(image.dtype).max).astype(np.float32)
    image = image.astype(np.float32)
    return np.clip(image / 255 if image.max(initial=0) > 1 else image, 0, 1)
