"""Check that an image fits its section: spots are on it, and it looks like H&E around them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from stampy import _checks, _keys
from stampy._section.image.slide_image import WHITE, SlideImage
from stampy._section.tile_boxes import tile_boxes

if TYPE_CHECKING:
    from anndata import AnnData

    from stampy._section.section import PlacedSection

__all__ = [
    "CheckedImage",
    "check_indices",
    "check_inside",
    "doubt_of",
    "doubt_of_axes",
    "doubts_of",
    "warn_of_doubts",
]

MIN_SPOTS = 20  # minimum number of spots for checking the axes


_ROW, _COLUMN = "array_row", "array_col"


def _indices(table: AnnData, rows: np.ndarray) -> np.ndarray | None:
    """Column and row of the spots on the array, (m, 2); None if `obs` does not contain them."""
    if not {_ROW, _COLUMN} <= set(table.obs.columns):
        return None
    try:
        found = table.obs[[_COLUMN, _ROW]].to_numpy()[rows].astype(np.float64)
    except (TypeError, ValueError):
        return None
    return found if np.isfinite(found).all() else None


def check_indices(section: PlacedSection, table: AnnData) -> None:
    """Raise ValueError if coordinates are rows and columns of the array, which are not positions on an image."""
    indices = _indices(table, section.rows)
    if indices is None or len(indices) < 2 or np.ptp(indices, axis=0).min() == 0:
        return
    if np.array_equal(section.xy, indices) or np.array_equal(section.xy, indices[:, ::-1]):
        raise ValueError(
            f"{section.prefix}`{section.source}` contains `array_col` and `array_row`, places on the array, where x "
            "and y "
            "in px of the full-resolution image are needed (`pxl_col_in_fullres` and `pxl_row_in_fullres` of Space "
            "Ranger's tissue_positions)."
        )


def doubt_of_axes(section: PlacedSection, table: AnnData) -> str:
    """Warning if x and y seem to be swapped, because Visium's array appears mirrored; else ""."""
    indices = _indices(table, section.rows)
    if indices is None or len(indices) < MIN_SPOTS or section.region is not None:
        return ""
    odd = (indices.sum(axis=1) % 2 != 0).any()  # on Visium's array, row and column are both even or both odd
    design = np.column_stack([indices, np.ones(len(indices))])
    if odd or np.linalg.matrix_rank(design) < 3:
        return ""
    fitted, *_ = np.linalg.lstsq(design, section.xy, rcond=None)
    off = np.abs(design @ fitted - section.xy).max()
    if np.linalg.det(fitted[:2]) >= 0 or off > np.abs(fitted[:2]).max():
        return ""
    return (
        f"{section.prefix}x and y of the spots seem to be swapped: against `array_col` and `array_row` the section is "
        "mirrored. `obsm['spatial']` must be x (column), y (row); if the image is also mirrored, ignore this warning."
    )


def check_inside(section: PlacedSection) -> str:
    """Raise if most spots are outside the image; return a warning if some are, else ""."""
    height, width = section.require_image().shape
    outside = ~_within(section.image_xy, width, height)
    if not outside.any():
        return ""
    n, m = int(outside.sum()), len(outside)
    fits = _within(section.image_xy[:, ::-1], width, height).all()
    if 2 * n <= m and fits and n > MIN_SPOTS and 10 * n > m:
        raise ValueError(f"{section.prefix}{n} of {m} spots are outside the image. {_likely_cause(section)}")
    if 2 * n <= m:
        return f"{section.prefix}{n} of {m} spots are outside the image; their tiles are padded with the fill colour."
    (x0, y0), (x1, y1) = section.image_xy.min(axis=0), section.image_xy.max(axis=0)
    raise ValueError(
        f"{section.prefix}{n} of {m} spots are outside the image: x {x0:.0f} to {x1:.0f} and y {y0:.0f} to {y1:.0f} "
        f"px on {section.image!r}, {width} px wide and {height} px high. {_likely_cause(section)}"
    )


def _within(xy: np.ndarray, width: float, height: float) -> np.ndarray:
    return np.all((xy >= 0) & (xy <= [width, height]), axis=1)


def _likely_cause(section: PlacedSection) -> str:
    image = section.require_image()
    height, width = image.shape
    if _within(section.image_xy[:, ::-1], width, height).all():
        return "They would fit with x and y swapped: `adata.obsm['spatial']` must be x (column), y (row)."
    if _within(section.image_xy / image.scale, width, height).all() and image.scale > 1:
        return "They would fit without the scale factor, which must be image px per full-resolution px."
    return (
        "Likely causes: a wrong scale factor, coordinates of another image, or a reduced image given as the full one "
        "(then pass `image=SlideImage.open(path, scale=image px per full-resolution px)`)."
    )


# Thresholds in 8-bit values, each with the lowest value in 30 real H&E images (reduced, dark, pale, recoloured).
_SPOTS = 64
_ACROSS_PX = 16  # pixels across a tile, at which cells are visible as texture
_MIN_OPACITY = 0.5  # mean
_BLACK = 8  # brightest channel, 99.9th percentile
_MAX_BLACK = 0.1  # share of the spots: none
_GREEN = 5  # mean green over the brighter of red and blue: below 0, since hematoxylin and eosin absorb green most
_ONE_COLOUR = 2.0  # standard deviation of all pixels: 9
_MIN_TEXTURE = 1.5  # standard deviation within a tile around a curved surface, 75th percentile: 4.1
_DARK = 50  # median brightness: 79
_MIN_CHROMA = 8  # brightest less darkest channel, 90th percentile: 32


class CheckedImage(Protocol):
    """The parts of a section with an image that the checks use."""

    @property
    def name(self) -> str:
        """Name of the section in messages; "" if there is only one section."""

    @property
    def image(self) -> SlideImage | None:
        """Image of the section."""

    @property
    def image_xy(self) -> np.ndarray:
        """Centres of the spots (m, 2) in px of the image."""

    @property
    def um_per_image_px(self) -> float:
        """Size of a px of the image in µm."""


def warn_of_doubts(sections: Iterable[CheckedImage]) -> None:
    """Warn about each image that does not look like H&E."""
    for doubt in doubts_of(sections):
        _checks.warn(f"{doubt} Make sure that it is the right image; choose another one with `image=` or `image_key=`.")


def doubts_of(sections: Iterable[CheckedImage]) -> list[str]:
    """One sentence for each image that does not look like H&E."""
    found = []
    for section in sections:
        if section.image is not None and (why := doubt_of(section.image, section.image_xy, section.um_per_image_px)):
            of = f"Section {section.name!r}: " if section.name else ""
            found.append(f"{of}The image {section.image.name!r} does not look like H&E: {why}.")
    return found


def doubt_of(image: SlideImage, xy: np.ndarray, um_per_image_px: float, *, tile_um: float = _keys.TILE_UM) -> str:
    """Why an image does not look like H&E; "" if it does.

    Detects images that are transparent, black (also in part), of one colour, too blurred to show cells, dark with
    bright signal (fluorescence), negatives, or without colour (one channel repeated, a mask). A grey image of H&E
    counts as without colour, since models trained on colour use it to separate nuclei from cytoplasm.

    Parameters
    ----------
    image
        Image to check.
    xy
        Centres of the spots, (n, 2), in px of the image.
    um_per_image_px
        Size of a px of the image.
    tile_um
        Edge of the checked area around a spot.

    Examples
    --------
    >>> spots = np.full((5, 2), 200.0)
    >>> doubt_of(SlideImage.from_array(np.zeros((400, 400, 3), np.uint8)), spots, 0.5)
    'it is black at the spots'
    """
    boxes = _some_boxes(image, xy, um_per_image_px, tile_um)
    tiles = _read(image, boxes, WHITE)
    if image.has_opacity:
        opacity = 1 - (tiles - _read(image, boxes, (0, 0, 0))).mean() / 255
        if opacity < _MIN_OPACITY:
            return f"it is transparent at the spots ({max(opacity, 0):.0%} opaque)"
    light, brightest = tiles.mean(axis=3), tiles.max(axis=3)
    if np.percentile(brightest, 99.9) <= _BLACK:
        return "it is black at the spots"
    if tiles.std(axis=(0, 1, 2)).max() < _ONE_COLOUR:
        return f"it has one colour at the spots, RGB {tuple(np.rint(tiles.mean(axis=(0, 1, 2))).astype(int).tolist())}"
    if np.median(light) < _DARK:
        return "it is dark with bright signal, as in fluorescence"
    if np.percentile(brightest - tiles.min(axis=3), 90) < _MIN_CHROMA:
        return "it has no colour (a greyscale image, a mask, or one channel of fluorescence)"
    black = float((brightest.max(axis=(1, 2)) <= _BLACK).mean())
    if black >= _MAX_BLACK:
        return f"it is black at {black:.0%} of the spots"
    red, green, blue = tiles.mean(axis=(0, 1, 2))
    if green - max(red, blue) > _GREEN:
        return "green is its brightest colour at the spots, as in a negative"
    if np.percentile(_texture(light), 75) < _MIN_TEXTURE:
        return "it is so blurred or enlarged that only colour remains at the spots"
    return ""


def _some_boxes(image: SlideImage, xy: np.ndarray, um_per_image_px: float, tile_um: float) -> np.ndarray:
    """Boxes around some spots spread over the section, inside the image if possible."""
    boxes = tile_boxes(xy, um_per_image_px, tile_um)
    height, width = image.shape
    inside = ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= (width, height))).all(axis=1)
    boxes = boxes[inside] if inside.any() else boxes
    return boxes[np.unique(np.linspace(0, len(boxes) - 1, _SPOTS).astype(int))]


def _read(image: SlideImage, boxes: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    return np.stack([image.tile(box, _ACROSS_PX, fill=fill) for box in boxes]).astype(np.float64)


def _texture(light: np.ndarray) -> np.ndarray:
    """Variation of the brightness of each tile (n, s, s) around a quadratic surface, (n,)."""
    y, x = (a.ravel() for a in np.mgrid[-1 : 1 : light.shape[1] * 1j, -1 : 1 : light.shape[2] * 1j])
    surface = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1))[0]
    flat = light.reshape(len(light), -1)
    return (flat - flat @ surface @ surface.T).std(axis=1)
