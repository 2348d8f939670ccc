"""Whether a picture looks like H&E: what is seen around the spots, not on the glass beside them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np

from stampy import _checks, _keys
from stampy._section.boxes import tile_boxes
from stampy._section.image import WHITE, SlideImage

__all__ = ["Pictured", "doubt_of", "doubts_of", "warn_of_doubts"]

# Thresholds in 8-bit values. Beside them, what 30 real pictures of H&E have at least (reduced, dark, pale, recoloured).
_SPOTS = 64
_ACROSS_PX = 16  # pixels across a tile: cells are seen as texture
_LEAST_OPACITY = 0.5  # mean
_BLACK = 8  # brightest channel, 99.9th percentile
_ONE_COLOUR = 2.0  # standard deviation of all pixels: 9
_LEAST_TEXTURE = 1.5  # standard deviation within a tile around a curved surface, 75th percentile: 4.1
_DARK = 50  # median brightness: 79
_LEAST_CHROMA = 8  # brightest less darkest channel, 90th percentile: 32


class Pictured(Protocol):
    """A section with an image, as far as it matters here."""

    @property
    def name(self) -> str:
        """What it is called in messages; "" where there is one section alone."""

    @property
    def image(self) -> SlideImage | None:
        """The picture."""

    @property
    def image_xy(self) -> np.ndarray:
        """Centres of the spots (m, 2) in its px."""

    @property
    def um_per_image_px(self) -> float:
        """The size of a px."""


def warn_of_doubts(sections: Iterable[Pictured]) -> None:
    """Warn of each picture that does not look like H&E."""
    for doubt in doubts_of(sections):
        _checks.warn(f"{doubt} Check that it is the right image; others are given by `image=` or `image_key=`.")


def doubts_of(sections: Iterable[Pictured]) -> list[str]:
    """A sentence for each picture that does not look like H&E."""
    found = []
    for section in sections:
        if section.image is not None and (why := doubt_of(section.image, section.image_xy, section.um_per_image_px)):
            of = f"Section {section.name!r}: " if section.name else ""
            found.append(f"{of}The image {section.image.name!r} does not look like H&E: {why}.")
    return found


def doubt_of(image: SlideImage, xy: np.ndarray, um_per_image_px: float, *, tile_um: float = _keys.TILE_UM) -> str:
    """Why a picture can't be H&E, or "" where it may be.

    Noticed are pictures that are transparent, black, of one colour, blurred until no cell is left, dark with bright
    signal (fluorescence), or without colour (one channel repeated, a mask). A grey picture of H&E is among them: a
    model that was trained in colour tells nuclei from cytoplasm by it.

    Parameters
    ----------
    image
        The picture.
    xy
        Centres of the spots, (n, 2) in its px.
    um_per_image_px
        Size of its px.
    tile_um
        Edge of what is looked at around a spot.

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
        if opacity < _LEAST_OPACITY:
            return f"it is transparent at the spots ({max(opacity, 0):.0%} opaque)"
    light, brightest = tiles.mean(axis=3), tiles.max(axis=3)
    if np.percentile(brightest, 99.9) <= _BLACK:
        return "it is black at the spots"
    if tiles.std(axis=(0, 1, 2)).max() < _ONE_COLOUR:
        return f"it has one colour at the spots, RGB {tuple(np.rint(tiles.mean(axis=(0, 1, 2))).astype(int).tolist())}"
    if np.median(light) < _DARK:
        return "it is dark with bright signal, as fluorescence is"
    if np.percentile(brightest - tiles.min(axis=3), 90) < _LEAST_CHROMA:
        return "it has no colour (a grey picture, a mask, or one channel of fluorescence)"
    if np.percentile(_texture(light), 75) < _LEAST_TEXTURE:
        return "it is blurred or enlarged until nothing but colour is left at the spots"
    return ""


def _some_boxes(image: SlideImage, xy: np.ndarray, um_per_image_px: float, tile_um: float) -> np.ndarray:
    """Tiles of some spots spread over the section, of those that lie inside the image where any do."""
    boxes = tile_boxes(xy, um_per_image_px, tile_um)
    height, width = image.shape
    inside = ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= (width, height))).all(axis=1)
    boxes = boxes[inside] if inside.any() else boxes
    return boxes[np.unique(np.linspace(0, len(boxes) - 1, _SPOTS).astype(int))]


def _read(image: SlideImage, boxes: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    return np.stack([image.tile(box, _ACROSS_PX, fill=fill) for box in boxes]).astype(np.float64)


def _texture(light: np.ndarray) -> np.ndarray:
    """How much the brightness of each tile (n, s, s) varies around a surface of second order, (n,)."""
    y, x = (a.ravel() for a in np.mgrid[-1 : 1 : light.shape[1] * 1j, -1 : 1 : light.shape[2] * 1j])
    surface = np.linalg.qr(np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], axis=1))[0]
    flat = light.reshape(len(light), -1)
    return (flat - flat @ surface @ surface.T).std(axis=1)
