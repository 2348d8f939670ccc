"""One resolution of an image: where its values are stored, how a crop of them is read, files that cannot be read."""

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
_WINDOW_PX = 2**24  # held at a time

# Orientation of TIFF and EXIF -> rows and columns swapped, then flipped in y, then flipped in x.
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
    """One resolution of a slide image; a subclass says how a crop that lies inside it is read."""

    shape: tuple[int, int]  # height, width
    n_channels: int
    dtype: np.dtype

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Values as stored, (bottom - top, right - left, n_channels)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ArrayLevel(ImageLevel):
    """A level in anything that is indexed like a numpy array: numpy, memmap, zarr or dask; only the crop is read.

    `axes` is `"yx"`, `"yxc"` or `"cyx"`; `channels` picks and orders channels (all of them if None).
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
        """Channels of a crop."""
        if self.channels is not None:
            return len(self.channels)
        return 1 if self.axes == "yx" else int(self.array.shape[self.axes.index("c")])

    @property
    def chunk(self) -> tuple[int, int]:
        """Height and width of a stored piece; (1, width) where the array is not stored in pieces."""
        chunks = getattr(self.array, "chunks", None)
        if not chunks:
            return 1, self.shape[1]
        y = self.axes.index("y")
        rows, columns = (c[0] if isinstance(c, tuple) else c for c in (chunks[y], chunks[y + 1]))
        return int(rows), int(columns)

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Values as stored, (bottom - top, right - left, n_channels)."""
        window = (slice(top, bottom), slice(left, right))
        part = self.array[(slice(None), *window) if self.axes == "cyx" else window]
        if hasattr(part, "compute"):  # dask: in this thread, the caller has its own pool
            part = part.compute(scheduler="synchronous")
        part = np.asarray(part)
        if self.axes == "yx":
            return part[:, :, None]
        if self.axes == "cyx":
            part = np.moveaxis(part, 0, -1)
        return part if self.channels is None else part[:, :, list(self.channels)]


class OrientedLevel(ImageLevel):
    """A level that is stored turned or mirrored; `orientation` is that of TIFF and EXIF, 2 to 8."""

    def __init__(self, stored: ImageLevel, orientation: int):
        self.stored, self.dtype, self.n_channels = stored, stored.dtype, stored.n_channels
        self.swapped, self.flip_y, self.flip_x = _ORIENTATIONS[orientation]
        height, width = stored.shape
        self.shape = (width, height) if self.swapped else (height, width)

    @classmethod
    def of(cls, level: ImageLevel, orientation: object) -> ImageLevel:
        """The level as it is to be shown; itself where it is stored upright or the orientation is not a known one."""
        return cls(level, orientation) if orientation in _ORIENTATIONS else level

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Values as stored, upright."""
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
    """For pictures in memory."""


@dataclass(frozen=True)
class Opened:
    """An open image file: its levels, finest first; how it is closed; µm per px of the first level if it says so."""

    levels: Sequence[ImageLevel]
    close: Callable[[], None] = _nothing_to_close
    um_per_px: float | None = None


def windows(level: ImageLevel) -> Iterator[np.ndarray]:
    """All values of a level, some whole chunks at a time: (h, w, n_channels) each."""
    height, width = level.shape
    rows, columns = level.chunk if isinstance(level, ArrayLevel) else (1, width)
    step_y = rows * max(1, _WINDOW_ROWS // rows)
    step_x = columns * max(1, _WINDOW_PX // (step_y * columns))
    for top in range(0, height, step_y):
        for left in range(0, width, step_x):
            yield level.crop(left, top, min(left + step_x, width), min(top + step_y, height))


# A file of a few MB can claim any image size; this is checked before it is decoded.
_MAX_DECODED_PX = 2**31  # of an image that comes into memory as a whole: 6 GB as RGB
MAX_TILE_PX = 2**26  # of one tile of a TIFF


class TooLargeError(ValueError):
    """An image that is not decoded."""


class UnusableImageError(ValueError):
    """An image whose values, channels or format are not those of a picture, or that does not share the spots' axes."""


def damaged_image(path: Path, why: object) -> ValueError:
    """The error for a file that is not whole."""
    return ValueError(f"The image {str(path)!r} is truncated or damaged ({why}). Copy or download it again.")


def check_px(height: int, width: int, path: Path, most: int = _MAX_DECODED_PX) -> None:
    """Refuse an image that claims more pixels than real ones have."""
    if height * width > most:
        raise TooLargeError(
            f"The image {str(path)!r} states a size of {height} x {width} px, and it can't be read piece by piece; it "
            f"is not decoded (at most {most:,} px). If that is its true size, convert it to a tiled TIFF."
        )
