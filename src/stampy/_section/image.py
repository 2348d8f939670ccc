"""Slide images of any storage behind one small class: `SlideImage` gives 8-bit RGB, padded beyond the border."""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image

from stampy import _files

__all__ = ["WHITE", "ArrayLevel", "Level", "SlideImage"]

WHITE = (255, 255, 255)
_MARGIN = 2  # source px around a box, in units of the filter's step: the support of the bicubic filter
_SCAN_ROWS = 1024
_WHOLE_PX = 2**28  # a level up to this size is hashed as a whole
_SAMPLED_BANDS, _BAND_ROWS = 64, 64  # of a larger one that is not in memory


class Level:
    """One resolution of a slide image; a subclass says how a crop that lies inside it is read."""

    shape: tuple[int, int]  # height, width
    n_channels: int
    dtype: np.dtype

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Values as stored, (bottom - top, right - left, n_channels)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class ArrayLevel(Level):
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


class SlideImage:
    """A picture of a section, read piece by piece as 8-bit RGB.

    Values are mapped to 8 bit by one rule for the whole image: uint8 stays; uint16 is divided so that the largest
    value of the 8, 12 or 16 bits that hold the image's brightest pixel becomes 255 (16 bits: divided by 257); floats
    must lie in [0, 1]; bool becomes black and white. Grey is repeated in three channels, and a fourth channel is
    opacity: the picture is laid on the fill colour. Other layouts are refused.

    Parameters
    ----------
    levels
        The resolutions, finest first.
    scale
        Pixels of the first level per pixel of the image to which the spots' coordinates refer (1 for that image).
    name
        What error messages call it.
    close
        Called once the image is closed or garbage-collected.
    um_per_px
        µm per pixel of the first level, as the file says it; None where it doesn't.

    Raises
    ------
    TypeError
        For values that are no uint8, uint16, bool or float.
    ValueError
        For a layout that is not grey, RGB or RGBA, an empty image, or floats outside [0, 1].

    Examples
    --------
    >>> picture = SlideImage.from_array(np.zeros((40, 60), np.uint8), scale=0.1)
    >>> picture
    SlideImage('array', 40 x 60 px, scale 0.1)
    >>> picture.read(-1, 0, 2, 1).tolist()
    [[[255, 255, 255], [0, 0, 0]]]
    """

    def __init__(
        self,
        levels: Sequence[Level],
        *,
        scale: float = 1.0,
        name: str = "array",
        close: Callable[[], None] | None = None,
        um_per_px: float | None = None,
    ):
        self.path: Path | None = None  # of the file behind the image, where there is one
        if close is not None:
            self._close = weakref.finalize(self, close)
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"The scale of image {name!r} must be a positive number, found {scale!r}.")
        self.levels = tuple(levels)
        self.scale = float(scale)
        self.name = name
        self.um_per_px = um_per_px
        first = self.levels[0]
        if 0 in first.shape:
            raise ValueError(f"Image {name!r} is empty: {first.shape[0]} x {first.shape[1]} px.")
        if first.n_channels not in (1, 3, 4):
            raise ValueError(
                f"Image {name!r} has {first.n_channels} channels; stampy reads grey (1), RGB (3) and RGBA (4). "
                "Pick the channels that make the H&E picture first."
            )
        self._white = _white(self.levels[-1], name)
        self.downsamples = tuple(_downsample(first.shape, level.shape) for level in self.levels)

    @classmethod
    def from_array(cls, array: Any, *, scale: float = 1.0, name: str = "array") -> Self:
        """A picture from an array (h, w), (h, w, 1 | 3 | 4) or (1 | 3 | 4, h, w); it is neither copied nor changed."""
        if not (hasattr(array, "shape") and hasattr(array, "dtype")):
            raise TypeError(f"Image {name!r} must be an array, found {type(array).__name__}.")
        return cls([ArrayLevel(array, _axes_of(tuple(array.shape), name))], scale=scale, name=name)

    @staticmethod
    def open(path: str | Path, *, scale: float = 1.0) -> SlideImage:
        """A picture from a file: (OME-)TIFF and whole slides are read piece by piece, PNG and JPEG wholly decoded.

        `scale` is below 1 for a reduced image: its pixels per pixel of the image of the coordinates. FileNotFoundError,
        ImportError (a whole slide without OpenSlide) or ValueError (damaged, unknown format) where it can't be read.
        """
        from stampy._section.open import open_file

        return open_file(path, scale=scale)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest level in px."""
        return self.levels[0].shape

    @cached_property
    def digest(self) -> str:
        """A hash of the image: of the content of its file, else of its pixels.

        Arrays in memory are hashed as a whole, as are files up to 256 MiB and arrays on disk up to 2^28 px. Of larger
        files size, time and 64 parts are hashed, of larger arrays on disk the coarsest level and 64 bands.
        """
        found = hashlib.blake2b(digest_size=16)
        if self.path is not None:
            beside = self.path.with_suffix("")  # a .mrxs keeps its pixels in a folder of its name
            for path in (self.path, beside) if self.path.suffix == ".mrxs" and beside.is_dir() else (self.path,):
                found.update(_files.digest_of_path(path).encode())
            return found.hexdigest()
        found.update(repr([(level.shape, level.n_channels, str(level.dtype)) for level in self.levels]).encode())
        for band in _bands(self.levels):
            found.update(np.ascontiguousarray(band).data)
        return found.hexdigest()

    def close(self) -> None:
        """Close the file behind the image, if there is one."""
        if hasattr(self, "_close"):
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        height, width = self.shape
        return f"SlideImage({self.name!r}, {height} x {width} px, scale {self.scale:.4g})"

    def read(
        self, left: int, top: int, width: int, height: int, *, level: int = 0, fill: tuple[int, int, int] = WHITE
    ) -> np.ndarray:
        """A crop in whole pixels of a level; what lies outside the image has the colour `fill`.

        Returns
        -------
        (height, width, 3) uint8.
        """
        source = self.levels[level]
        inside_y = np.clip([top, top + height], 0, source.shape[0])
        inside_x = np.clip([left, left + width], 0, source.shape[1])
        out = np.empty((height, width, 3), dtype=np.uint8)
        out[:] = fill
        if inside_y[0] < inside_y[1] and inside_x[0] < inside_x[1]:
            (y0, y1), (x0, x1) = inside_y.tolist(), inside_x.tolist()
            out[y0 - top : y1 - top, x0 - left : x1 - left] = _rgb(source.crop(x0, y0, x1, y1), self._white, fill)
        return out

    def tile(self, box: Sequence[float], size_px: int, *, fill: tuple[int, int, int] = WHITE) -> np.ndarray:
        """The square `box` (left, top, right, bottom; px of the finest level, fractions count) at `size_px`.

        It is read from the coarsest level that still has `size_px` pixels across the box, and resampled with an
        antialiased bicubic filter. A box of whole pixels and of `size_px` pixels comes back unchanged.

        Returns
        -------
        (size_px, size_px, 3) uint8.
        """
        level = self._level_for((box[2] - box[0]) / size_px)
        fx, fy = self.downsamples[level]
        x0, y0, x1, y1 = box[0] / fx, box[1] / fy, box[2] / fx, box[3] / fy
        margin = int(np.ceil(_MARGIN * max(1.0, (x1 - x0) / size_px))) + 1
        left, top = int(np.floor(x0)) - margin, int(np.floor(y0)) - margin
        width, height = int(np.ceil(x1)) + margin - left, int(np.ceil(y1)) + margin - top
        crop = Image.fromarray(self.read(left, top, width, height, level=level, fill=fill))
        inner = (x0 - left, y0 - top, x1 - left, y1 - top)
        return np.asarray(crop.resize((size_px, size_px), Image.Resampling.BICUBIC, box=inner))

    def _level_for(self, downsample: float) -> int:
        """The coarsest level that is not coarser than `downsample`."""
        fits = [i for i, (fx, fy) in enumerate(self.downsamples) if max(fx, fy) <= downsample * 1.001]
        return max(fits, key=lambda i: self.downsamples[i], default=0)


def _bands(levels: Sequence[Level]) -> Iterator[np.ndarray]:
    """Bands of rows of the finest level, all or spread over it, then with the coarsest level."""
    height, width = levels[0].shape
    if height * width <= _WHOLE_PX or isinstance(getattr(levels[0], "array", None), np.ndarray):
        for top in range(0, height, _SCAN_ROWS):
            yield levels[0].crop(0, top, width, min(top + _SCAN_ROWS, height))
        return
    for top in np.linspace(0, max(height - _BAND_ROWS, 0), _SAMPLED_BANDS, dtype=np.int64).tolist():
        yield levels[0].crop(0, top, width, min(top + _BAND_ROWS, height))
    height, width = levels[-1].shape
    if len(levels) > 1 and height * width <= _WHOLE_PX:
        yield levels[-1].crop(0, 0, width, height)


def _rgb(pixels: np.ndarray, white: float, fill: tuple[int, int, int]) -> np.ndarray:
    """Values as stored (h, w, 1 | 3 | 4) as 8-bit RGB."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(np.clip(pixels * (255.0 / white), 0, 255)).astype(np.uint8)
    if pixels.shape[2] == 4:
        opacity = pixels[:, :, 3:].astype(np.float32) / 255
        return np.rint(pixels[:, :, :3] * opacity + np.float32(fill) * (1 - opacity)).astype(np.uint8)
    return pixels  # one channel is repeated where it is assigned


def _white(level: Level, name: str) -> float:
    """The stored value that becomes 255."""
    if level.dtype == np.uint8:
        return 255.0
    if level.dtype == np.bool_:
        return 1.0
    if level.dtype == np.uint16:
        _, top = _value_range(level)
        return float(next(2**bits - 1 for bits in (8, 12, 16) if top < 2**bits))
    if level.dtype.kind == "f":
        low, top = _value_range(level)
        if not (low >= 0 and top <= 1):  # also where they are NaN
            raise ValueError(
                f"Image {name!r} holds floats from {low:.4g} to {top:.4g}; floats must lie in [0, 1]. "
                "Convert it first, e.g. `(255 * image / image.max()).astype('uint8')`."
            )
        return 1.0
    raise TypeError(
        f"Image {name!r} has dtype {level.dtype}; uint8, uint16, bool or float in [0, 1] was expected. "
        "Convert it first, e.g. by `.astype('uint8')` if its values lie in 0..255."
    )


def _value_range(level: Level) -> tuple[float, float]:
    """Smallest and largest value, some rows at a time."""
    height, width = level.shape
    bands = (level.crop(0, y, width, min(y + _SCAN_ROWS, height)) for y in range(0, height, _SCAN_ROWS))
    low, top = np.array([(band.min(), band.max()) for band in bands], dtype=np.float64).T
    return float(low.min()), float(top.max())


def _downsample(finest: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float]:
    """By how much a level is coarser in x and y; whole where rounding the size explains the difference."""
    factors = []
    for full, part in zip(finest[::-1], shape[::-1], strict=True):
        whole = round(full / part)
        factors.append(float(whole) if abs(whole * part - full) < whole else full / part)
    return factors[0], factors[1]


def _axes_of(shape: tuple[int, ...], name: str) -> str:
    """Where an array has its channels, from its shape; ValueError where that can't be told."""
    if len(shape) == 2:
        return "yx"
    if len(shape) == 3:
        first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
        if first != last:
            return "cyx" if first else "yxc"
        if first:
            raise ValueError(
                f"Image {name!r} of shape {shape} may have its channels first or last. Give it without the channel "
                "axis, or with more than 4 rows and columns."
            )
    raise ValueError(
        f"Image {name!r} has shape {shape}; (h, w), (h, w, channels) or (channels, h, w) with 1, 3 or 4 channels was "
        "expected (grey, RGB, RGBA)."
    )
