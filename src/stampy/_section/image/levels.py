"""One resolution of an image: storage of its values, crops, and errors for unusable files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "MAX_TILE_PX",
    "ArrayLevel",
    "ImageLevel",
    "Opened",
    "OrientedLevel",
    "TooLargeError",
    "UnusableImageError",
    "check_px",
    "damaged_image",
    "windows",
]

_WINDOW_ROWS = 1024
_WINDOW_PX = 2**24  # pixels in memory at a time

# TIFF and EXIF orientation -> rows and columns swapped, then flipped in y, then flipped in x.
_ORIENTATIONS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


class ImageLevel:
    """One resolution of a slide image; subclasses read a crop inside it."""

    shape: tuple[int, int]  # height, width
    n_channels: int
    dtype: np.dtype

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Stored values, (bottom - top, right - left, n_channels)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ArrayLevel(ImageLevel):
    """Level in anything indexed like a numpy array (numpy, memmap, zarr, dask); only the crop is read.

    `axes` is `"yx"`, `"yxc"` or `"cyx"`; `channels` selects and orders channels (None: all).
    """

    array: Any
    axes: str
    channels: tuple[int, ...] | None = None

    @cached_property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Height and width."""
        y = self.axes.index("y")
        return int(self.array.shape[y]), int(self.array.shape[y + 1])

    @property
    def dtype(self) -> np.dtype:  # type: ignore[override]
        """Type of the stored values."""
        return np.dtype(self.array.dtype)

    @property
    def n_channels(self) -> int:  # type: ignore[override]
        """Number of channels of a crop."""
        if self.channels is not None:
            return len(self.channels)
        return 1 if self.axes == "yx" else int(self.array.shape[self.axes.index("c")])

    @property
    def chunk(self) -> tuple[int, int]:
        """Height and width of a stored chunk; (1, width) for an array without chunks."""
        chunks = getattr(self.array, "chunks", None)
        if not chunks:
            return 1, self.shape[1]
        y = self.axes.index("y")
        rows, columns = (c[0] if isinstance(c, tuple) else c for c in (chunks[y], chunks[y + 1]))
        return int(rows), int(columns)

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Stored values, (bottom - top, right - left, n_channels)."""
        window = (slice(top, bottom), slice(left, right))
        part = self.array[(slice(None), *window) if self.axes == "cyx" else window]
        if hasattr(part, "compute"):  # dask: in this thread, since callers have their own pools
            part = part.compute(scheduler="synchronous")
        part = np.asarray(part)
        if self.axes == "yx":
            return part[:, :, None]
        if self.axes == "cyx":
            part = np.moveaxis(part, 0, -1)
        return part if self.channels is None else part[:, :, list(self.channels)]


class OrientedLevel(ImageLevel):
    """Level that is stored rotated or mirrored; `orientation` is that of TIFF and EXIF, 2 to 8."""

    def __init__(self, stored: ImageLevel, orientation: int):
        self.stored, self.dtype, self.n_channels = stored, stored.dtype, stored.n_channels
        self.swapped, self.flip_y, self.flip_x = _ORIENTATIONS[orientation]
        height, width = stored.shape
        self.shape = (width, height) if self.swapped else (height, width)

    @classmethod
    def of(cls, level: ImageLevel, orientation: object) -> ImageLevel:
        """The level in upright orientation; unchanged if it is stored upright or the orientation is invalid."""
        return cls(level, orientation) if orientation in _ORIENTATIONS else level

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Stored values, upright."""
        height, width = self.shape
        if self.flip_x:
            left, right = width - right, width - left
        if self.flip_y:
            top, bottom = height - bottom, height - top
        if self.swapped:
            left, top, right, bottom = top, left, bottom, right
        part = self.stored.crop(left, top, right, bottom)
        if self.swapped:
            part = part.swapaxes(0, 1)
        return part[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


def _nothing_to_close() -> None:
    """For images in memory."""


@dataclass(frozen=True)
class Opened:
    """An open image file: levels, finest first; a function to close it; µm per px of the first level, if stated."""

    levels: Sequence[ImageLevel]
    close: Callable[[], None] = _nothing_to_close
    um_per_px: float | None = None


def windows(level: ImageLevel) -> Iterator[np.ndarray]:
    """All values of a level in windows of several whole chunks, (h, w, n_channels) each."""
    height, width = level.shape
    rows, columns = level.chunk if isinstance(level, ArrayLevel) else (1, width)
    step_y = rows * max(1, _WINDOW_ROWS // rows)
    step_x = columns * max(1, _WINDOW_PX // (step_y * columns))
    for top in range(0, height, step_y):
        for left in range(0, width, step_x):
            yield level.crop(left, top, min(left + step_x, width), min(top + step_y, height))


# Checked before decoding, since a file of a few MB can claim any image size.
_MAX_DECODED_PX = 2**31  # for images decoded as a whole: 6 GB as RGB
MAX_TILE_PX = 2**26  # per tile of a TIFF


class TooLargeError(ValueError):
    """An image that is too large to decode."""


class UnusableImageError(ValueError):
    """An image with unusable values, channels or format, or that does not share the axes of the spots."""


def damaged_image(path: Path, why: object) -> ValueError:
    """Return the error for a damaged file."""
    return ValueError(f"The image {str(path)!r} is truncated or damaged ({why}). Copy or download it again.")


def check_px(height: int, width: int, path: Path, most: int = _MAX_DECODED_PX) -> None:
    """Refuse an image that claims more pixels than real images have."""
    if height * width > most:
        raise TooLargeError(
            f"The image {str(path)!r} states a size of {height} x {width} px, and it cannot be read piece by piece; it "
            f"is not decoded (at most {most:,} px). If that is its true size, convert it to a tiled TIFF."
        )
