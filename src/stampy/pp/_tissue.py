"""Tissue detection: a reduced image of a slide, its tissue mask, and the tissue fraction of tiles."""

from __future__ import annotations

import numpy as np
from PIL import Image
from scipy import ndimage

from stampy import _checks
from stampy._section.image import SlideImage

__all__ = ["covered", "overview", "tissue_mask"]

_MAX_READ_PX = 2**29  # half a minute of decoding; a slide with a pyramid needs a hundredth of that
_BLOCK_PX = 512
_SATURATION = (0.05, 0.15)  # bounds of the threshold: glass is below the first, pale tissue above the second
_DARK = 40  # the brightest channel of pen marks and of what the scanner left black
_SMOOTH_PX = 5


def overview(image: SlideImage, factor: float) -> np.ndarray:
    """The whole image reduced `factor` times, read in pieces: memory does not grow with the slide, time is bounded.

    Returns
    -------
    (h, w, 3) uint8; each pixel is the mean of the area that it covers. For a level of more than `_MAX_READ_PX` pixels,
    only one block in each square of blocks is read and represents the square, with a warning.
    """
    level = image._level_for(factor)
    height, width = image.levels[level].shape
    if height * width <= _MAX_READ_PX:
        return image.reduced(factor)
    every = int(np.ceil(np.sqrt(height * width / _MAX_READ_PX)))
    _checks.warn(
        f"The slide {image.name!r} has no reduced level near the resolution at which tissue is found, and its finest "
        f"has {width} x {height} px: one block of pixels in {every**2} is read. Convert it to a pyramidal TIFF to find "
        "tissue exactly."
    )
    return _sampled(image, level, factor, every)


def _sampled(image: SlideImage, level: int, factor: float, every: int) -> np.ndarray:
    """`overview` from the middle block of each square of `every` x `every` blocks, stretched over the square."""
    height, width = image.levels[level].shape
    out = np.empty((max(1, round(image.shape[0] / factor)), max(1, round(image.shape[1] / factor)), 3), dtype=np.uint8)
    block = _block_px(image, level)
    for top in range(0, height, every * block):
        bottom = min(top + every * block, height)
        rows = slice(round(top / height * out.shape[0]), round(bottom / height * out.shape[0]))
        for left in range(0, width, every * block):
            right = min(left + every * block, width)
            columns = slice(round(left / width * out.shape[1]), round(right / width * out.shape[1]))
            if rows.start == rows.stop or columns.start == columns.stop:
                continue
            y, x = (start + min(every // 2 * block, (end - start - 1) // block * block) // block * block
                    for start, end in ((top, bottom), (left, right)))  # fmt: skip
            part = image.read(x, y, min(block, width - x), min(block, height - y), level=level)
            size = (columns.stop - columns.start, rows.stop - rows.start)
            out[rows, columns] = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX))
    return out


def _block_px(image: SlideImage, level: int) -> int:
    """Edge of the blocks in which a level is stored, so that each is decoded once."""
    chunks = getattr(getattr(image.levels[level], "array", None), "chunks", None)
    edges = [edge for edge in chunks or () if isinstance(edge, int) and edge > 4]
    return min(max(edges, default=_BLOCK_PX), 4 * _BLOCK_PX)


def tissue_mask(rgb: np.ndarray) -> np.ndarray:
    """Where there is tissue: saturation above Otsu's threshold, smoothed.

    The threshold is kept within 0.05 to 0.15: Otsu's threshold would separate noise from noise on a slide without
    tissue, and dark from light tissue on a slide full of tissue. Black places (no scan, pen) are no tissue.

    Parameters
    ----------
    rgb
        Reduced image (h, w, 3) uint8, at some µm per pixel.

    Returns
    -------
    (h, w) bool.

    Examples
    --------
    >>> picture = np.full((40, 40, 3), 240, np.uint8)
    >>> picture[10:30, 10:30] = (200, 120, 180)
    >>> int(tissue_mask(picture).sum())
    388
    """
    from skimage.filters import threshold_otsu

    top = rgb.max(axis=2).astype(np.float32)
    saturation = (top - rgb.min(axis=2)) / np.maximum(top, 1)
    saturation[top < _DARK] = 0
    otsu = threshold_otsu(saturation) if np.ptp(saturation) > 0 else 0.0
    mask = saturation > np.clip(otsu, *_SATURATION)
    return ndimage.median_filter(mask, _SMOOTH_PX, mode="nearest")


def covered(mask: np.ndarray, boxes: np.ndarray, px_per_mask_px: tuple[float, float]) -> np.ndarray:
    """Fraction of each box that is tissue, (n,) float64, exact for fractions of mask pixels.

    Parameters
    ----------
    mask
        (h, w) bool.
    boxes
        (n, 4) left, top, right, bottom in px of the image.
    px_per_mask_px
        Px of the image per px of the mask, in x and y.
    """
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    left, top, right, bottom = (boxes / np.array([*px_per_mask_px, *px_per_mask_px])).T

    def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # the integral is bilinear within a pixel
        return ndimage.map_coordinates(total, np.stack([y, x]), order=1, mode="nearest")

    inside = area(right, bottom) - area(left, bottom) - area(right, top) + area(left, top)
    return np.clip(inside / ((right - left) * (bottom - top)), 0, 1)
