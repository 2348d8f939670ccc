"""Tissue and glass: a reduced picture of a slide, a mask of its tissue, and how much of a tile is tissue."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from stampy._section.image import SlideImage

__all__ = ["covered", "overview", "tissue_mask"]

_SATURATION = (0.05, 0.15)  # bounds of the threshold: glass is below the first, pale tissue above the second
_DARK = 40  # the brightest channel of pen marks and of what the scanner left black
_SMOOTH_PX = 5


def overview(image: SlideImage, factor: float) -> np.ndarray:
    """The whole picture reduced `factor` times, band by band: memory does not grow with the slide.

    Returns
    -------
    (h, w, 3) uint8; each pixel is the mean of the area that it covers.
    """
    return image.reduced(factor)


def tissue_mask(rgb: np.ndarray) -> np.ndarray:
    """Where there is tissue: saturation above Otsu's threshold, smoothed.

    The threshold is kept within 0.05 to 0.15: on a slide without tissue Otsu would part noise from noise, and on one
    that is all tissue the darker half from the lighter. Black places (no scan, pen) are no tissue.

    Parameters
    ----------
    rgb
        (h, w, 3) uint8, reduced to some µm a pixel.

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
    """How much of each box is tissue (n,) float64, 0 to 1, exact for fractions of mask pixels.

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
