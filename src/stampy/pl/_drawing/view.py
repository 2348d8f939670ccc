"""Sections with spots, image and scale as used by the models, and records of tools, for plotting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, overload

import numpy as np

from stampy import _checks, _keys
from stampy._section import neighbors
from stampy._section import pixel_size as _scale
from stampy._section.image.choose import ImageOptions
from stampy._section.image.levels import UnusableImageError
from stampy._section.image.slide_image import SlideImage
from stampy._section.libraries import images_of
from stampy._section.section import PlacedSection, sections_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

Window = tuple[float, float, float, float]  # left, right, bottom, top in px; y points downwards, so bottom > top

FILL = 0.8  # ratio of spot diameter to spot distance without scale factor
DARK = 0.5  # black outlines are hard to see on images with a lower mean (of 0 to 1)
MAX_PX = 2500  # of a whole image, and of the part of a larger image


@dataclass(frozen=True, eq=False)
class View:
    """Part of a section to plot; coordinates in px of the full-resolution image."""

    section: PlacedSection
    image: SlideImage | None  # None without image, or if it is not plotted
    _read: dict[tuple[int, ...], np.ndarray] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name in titles."""
        return self.section.title

    @property
    def rows(self) -> np.ndarray:
        """Rows of the section in the table, (n,)."""
        return self.section.rows

    @property
    def xy(self) -> np.ndarray:
        """Centres of the spots, (n, 2)."""
        return self.section.xy

    @cached_property
    def diameter(self) -> float:
        """Diameter of a spot; if unknown, most of the distance to the next spot."""
        return self.section.spot_px or FILL * drawing_distance(self.xy) or 1.0

    @cached_property
    def um_per_px(self) -> float | None:
        """µm per px of the full-resolution image, or None if neither given nor certain."""
        pixel = self.section.pixel
        given = self.section.image_options.um_per_px is not None
        return None if pixel is None or (pixel.doubt and not given) else pixel.um_per_px

    def window(self, *, size: float, crop: bool | Window) -> Window:
        """Window to show: the spots with a margin, the whole image, or (left, right, top, bottom)."""
        if not isinstance(crop, bool):
            left, right, top, bottom = map(float, crop)
            return left, right, bottom, top
        low, high = self.xy.min(axis=0), self.xy.max(axis=0)
        margin = 0.5 * size * self.diameter + max(0.025 * max(high - low), 0.5 * self.diameter)
        low, high = low - margin, high + margin
        if self.image is not None and not crop:
            height, width = self.image.shape
            corners = _apply(self.section.image_to_xy, _corners(0, 0, width, height))
            low, high = np.minimum(low, corners.min(axis=0)), np.maximum(high, corners.max(axis=0))
        return float(low[0]), float(high[0]), float(high[1]), float(low[1])

    def draw_image(
        self, ax: Axes, window: Window, alpha: float | None = None, *, grey: bool = False, max_px: int | None = None
    ) -> None:
        """Draw the image, if there is one; of an image larger than `max_px`, only the window, reduced."""
        from matplotlib.patches import Rectangle
        from matplotlib.transforms import Affine2D

        if self.image is None:
            return
        matrix = self.section.image_to_xy
        max_px = MAX_PX if max_px is None else max_px
        left, top, right, bottom = box = self._box(window, max_px)
        if right <= left or bottom <= top:
            return
        pixels = self._pixels(box, max_px)
        pixels = _in_grey(pixels) if grey else pixels
        if matrix[0, 1] == matrix[1, 0] == 0 and matrix[0, 0] > 0 and matrix[1, 1] > 0:  # pixel i covers [i, i + 1)
            corners = _apply(matrix, np.array([[left, top], [right, bottom]], dtype=float))
            (x0, y0), (x1, y1) = corners.tolist()
            to_axes = ax.transData
        else:  # rotated or reflected in the coordinate system
            (x0, y0), (x1, y1), to_axes = (left, top), (right, bottom), Affine2D(matrix) + ax.transData
        if alpha is not None and alpha < 1:  # pale on a dark page as well, where dark spots of low values stand out
            white = Rectangle((x0, y0), x1 - x0, y1 - y0, facecolor="w", linewidth=0, transform=to_axes)
            ax.add_artist(white).set_zorder(-1)
        ax.imshow(pixels, extent=(x0, x1, y1, y0), alpha=alpha, transform=to_axes)

    def is_dark(self, window: Window, *, max_px: int | None = None) -> bool | None:
        """Whether the image drawn by `draw_image` is mostly dark; None if nothing is drawn."""
        if self.image is None:
            return None
        max_px = MAX_PX if max_px is None else max_px
        left, top, right, bottom = box = self._box(window, max_px)
        if right <= left or bottom <= top:
            return None
        pixels = self._pixels(box, max_px)
        return bool(pixels[..., :3].mean() < DARK * (255 if pixels.dtype == np.uint8 else 1))

    def _box(self, window: Window, max_px: int) -> tuple[int, int, int, int]:
        """Box of the image to read: left, top, right, bottom in its px."""
        height, width = self.image.shape  # type: ignore[union-attr]
        if max(height, width) <= max_px:
            return 0, 0, width, height
        left, right, bottom, top = window
        corners = _apply(np.linalg.inv(self.section.image_to_xy), _corners(left, top, right, bottom))
        low, high = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
        (x0, y0), (x1, y1) = np.clip(low, 0, (width, height)), np.clip(high, 0, (width, height))
        return int(x0), int(y0), int(x1), int(y1)

    def _pixels(self, box: tuple[int, int, int, int], max_px: int) -> np.ndarray:
        """Pixels, read once for all panels; as uint8, or scaled to 0 to 1 as required by `imshow`."""
        if box not in self._read:
            pixels = self.image.thumbnail(max_px, box)  # type: ignore[union-attr]
            stored = self.image.levels[0].dtype  # type: ignore[union-attr]
            self._read[box] = pixels if stored == np.uint8 else pixels / np.float32(255)
        return self._read[box]


def _in_grey(pixels: np.ndarray) -> np.ndarray:
    """Luminance of an RGB image, in all three channels."""
    luminance = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.repeat(luminance[..., None].astype(pixels.dtype), 3, axis=-1)


def _corners(left: float, top: float, right: float, bottom: float) -> np.ndarray:
    return np.array([[left, top], [right, top], [right, bottom], [left, bottom]], dtype=np.float64)


def _apply(matrix: np.ndarray, xy: np.ndarray) -> np.ndarray:
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def views_of(
    data: AnnData | SpatialData,
    *,
    library_key: str | None = None,
    sections: str | Sequence[str] | None = None,
    image: bool = True,
    image_key: str | None = None,
    um_per_px: float | None = None,
    table_key: str = _keys.TABLE,
) -> list[View]:
    """Views of the selected sections, in order."""
    if image_key is not None and not image:
        raise ValueError("`image_key` names an image, but `image=False` draws none. Omit one of them.")
    image_options = ImageOptions(image_key=image_key, um_per_px=um_per_px)
    found = {
        section.name: section
        for section in sections_of(
            data, image_options, library_key=library_key, table_key=table_key, needs=["neighbors"]
        )
    }
    drawn = [found[name] for name in _wanted(list(found), sections)]
    if image and not any(_may_have_image(section) for section in drawn) and (names := _entries(data, table_key)):
        _checks.warn(
            f"None of the sections {_checks.shortlist(s.name for s in drawn)} is in `adata.uns['spatial']`, which "
            f"holds {_checks.shortlist(names)}: they are drawn without image."
        )
    views = [View(section, _image_of(section) if image else None) for section in drawn]
    for view in views:
        if view.image is not None and not _inside(view).any():
            _checks.warn(
                f"All spots of {view.name!r} are outside its image. Are the scale factors those of this image, and "
                "the coordinates in px of the full-resolution image?"
            )
    return views


def _wanted(names: list[str], sections: str | Sequence[str] | None) -> list[str]:
    if sections is None:
        return names
    if names == [""]:
        raise ValueError("`sections` needs `library_key`, the column of obs that names the section of each spot.")
    wanted = [sections] if isinstance(sections, str) else [str(s) for s in sections]
    if not wanted:
        raise ValueError(f"`sections` is empty. Name some of {_checks.shortlist(names)}, or omit it for all.")
    for name in wanted:
        _checks.one_of("sections", name, names)
    return wanted


def _entries(data: AnnData | SpatialData, table_key: str) -> list[str]:
    from stampy import _utils
    from stampy._section.libraries import libraries_of

    return list(libraries_of(_utils.table_of(data, table_key)))


def _may_have_image(section: PlacedSection) -> bool:
    return section.sdata is not None or section.library_name is not None


def _image_of(section: PlacedSection) -> SlideImage | None:
    """Image used by the models; a warning if its file no longer exists, KeyError if its position is unknown."""
    if not _may_have_image(section):
        return None
    if section.image_options.image_key is not None:
        return section.require_image()
    try:
        found = section.image
    except (KeyError, UnusableImageError) as error:  # its file is missing, or it is not a usable image
        _checks.warn(f"{error.args[0]} The spots are drawn without image.")
        return None
    if found is None and (images := images_of(section.library)):
        raise KeyError(
            f"{section.prefix}No image has a scale factor, which places it: images "
            f"{_checks.shortlist(images)}, scale factors {_checks.shortlist(section.factors)}. To draw only the "
            "spots, use `image=False`."
        )
    return found


def _inside(view: View) -> np.ndarray:
    height, width = view.image.shape  # type: ignore[union-attr]
    xy = view.section.image_xy
    return np.all((xy >= 0) & (xy <= (width, height)), axis=1)


def drawing_distance(xy: np.ndarray) -> float:
    """Distance at which neighbouring spots are drawn, 0.0 for one spot.

    Without a grid, it is the distance to the fourth neighbour, which is the same on a grid.

    >>> drawing_distance(np.array([[0, 0], [0, 2], [2, 0], [2, 2]]))
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


class DomainsRecord(TypedDict):
    """Record of `stampy.tl.domains`: fields used by plots."""

    label_key: NotRequired[str]


class ProbeRecord(TypedDict):
    """Record of `stampy.tl.probe`: fields used by plots."""

    embeddings: Sequence[str]
    classes: Sequence[str]
    scores: pd.DataFrame
    confusion: Mapping[str, np.ndarray]
    label_key: str
    folds: str


class ExpressionRecord(TypedDict):
    """Record of `stampy.tl.expression`: fields used by plots."""

    genes: Sequence[str]
    transform: str
    scores: pd.DataFrame


@overload
def record_of(adata: AnnData, key: str, *, tool: Literal["domains"], holds: str) -> DomainsRecord: ...
@overload
def record_of(adata: AnnData, key: str, *, tool: Literal["probe"], holds: str) -> ProbeRecord: ...
@overload
def record_of(adata: AnnData, key: str, *, tool: Literal["expression"], holds: str) -> ExpressionRecord: ...
def record_of(adata: AnnData, key: str, *, tool: str, holds: str) -> object:
    """Record of a tool under `key`; KeyError, with the available records, if it is missing."""
    records = adata.uns.get(_keys.UNS, {})
    fitting = [name for name, record in records.items() if isinstance(record, Mapping) and holds in record]
    if key not in fitting:
        raise KeyError(
            f"No result of `stampy.tl.{tool}` in `adata.uns['stamp']['{key}']`. Found: {_checks.shortlist(fitting)}. "
            f"Run `stampy.tl.{tool}(adata, ...)` first, or name its `key_added` with `key=`."
        )
    return records[key]


def shown_of(show: str | Sequence[str], allowed: tuple[str, ...], ax: Axes | None) -> list[str]:
    """Selected panels; ValueError for an unknown panel, or for several with a single `ax`."""
    shown = [show] if isinstance(show, str) else list(show)
    if not shown:
        raise ValueError(f"`show` is empty. Name some of {list(allowed)}.")
    for name in shown:
        _checks.one_of("show", name, allowed)
    if ax is not None and len(shown) > 1:
        raise ValueError(f"`ax` takes one panel, but `show` names {len(shown)}: {shown}. Name one, or omit `ax`.")
    return shown
