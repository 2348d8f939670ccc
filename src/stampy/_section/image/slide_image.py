"""`SlideImage`: an image in any storage as 8-bit RGB; tiles are padded beyond the border."""

from __future__ import annotations

import contextlib
import hashlib
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import numpy as np
from PIL import Image

from stampy import _checks, _files
from stampy._section.image.image_files import open_levels
from stampy._section.image.levels import ArrayLevel, ImageLevel, UnusableImageError
from stampy._section.image.pixels import CHANNELS, axes_of, colours_of, named_level, range_of, rgb_of

if TYPE_CHECKING:
    from dask.array import Array as DaskArray
    from xarray import DataArray, DataTree

__all__ = ["WHITE", "SlideImage", "open_spatialdata_image"]

WHITE = (255, 255, 255)
_MARGIN = 2  # source px around a box, in steps of the filter: support of the bicubic filter
_BAND_PX = 2**22  # source px in memory at a time
_SCAN_ROWS = 1024
_WHOLE_PX = 2**28  # levels up to this size are hashed whole
_SAMPLED_BANDS, _BAND_ROWS = 64, 64  # number and height of the bands of a larger level on disk that are hashed


class SlideImage:
    """Image of a section, read in pieces as 8-bit RGB.

    Values are mapped to 8 bit by one rule for the entire image. uint8 is unchanged. Other integers are divided so that
    the largest value of the range (8, 12 or 16 bits) that contains the brightest pixel becomes 255 (16 bits: divided by
    257). Floats must be in [0, 1] or in the range of 8, 12 or 16 bits, up to rounding errors. bool becomes black and
    white. An image raises an error if its brightest pixel is below a quarter of its range, because the range is then
    ambiguous, and for negative values, NaN, and integers that are only 0 and 1. Greyscale is repeated in three
    channels. A second or fourth channel is opacity, and the image is blended with the fill colour. Other layouts raise
    an error.

    Parameters
    ----------
    levels
        Resolutions, finest first.
    scale
        Pixels of the first level per pixel of the image to which the spots' coordinates refer (1 for that image).
    name
        Name in error messages.
    close
        Function to call when the image is closed or garbage-collected.
    um_per_px
        µm per pixel of the first level as stated by the file; None if unknown.

    Raises
    ------
    TypeError
        For values that are not numbers.
    ValueError
        For a layout that is not grey, RGB or RGBA, an empty image, or values whose range is unclear.

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
        levels: Sequence[ImageLevel],
        *,
        scale: float = 1.0,
        name: str = "array",
        close: Callable[[], None] | None = None,
        um_per_px: float | None = None,
    ):
        self.path: Path | None = None  # path of the image file, if any
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
            raise UnusableImageError(f"Image {name!r} is empty: {first.shape[0]} x {first.shape[1]} px.")
        if first.n_channels not in CHANNELS:
            raise UnusableImageError(
                f"Image {name!r} has {first.n_channels} channels; stampy reads grey (1), RGB (3) and RGBA (4). "
                "First select the channels of the H&E image."
            )
        self._range = range_of(self.levels[-1], name)
        self.downsamples = tuple(_downsample(first.shape, level.shape) for level in self.levels)

    @classmethod
    def from_array(cls, array: np.ndarray | DataArray | DaskArray, *, scale: float = 1.0, name: str = "array") -> Self:
        """Image from an array (h, w), (h, w, 1 to 4) or (1 to 4, h, w); it is neither copied nor changed.

        Further axes of length 1 are dropped. The axes of an xarray are identified by the names y, x and c.
        """
        if not (hasattr(array, "shape") and hasattr(array, "dtype")):
            raise TypeError(f"Image {name!r} must be an array, found {type(array).__name__}.")
        if hasattr(array, "dims"):
            return cls([named_level(cast("DataArray", array), name)], scale=scale, name=name)
        if len(array.shape) > 3 and hasattr(array, "squeeze"):
            array = array.squeeze()
        return cls([ArrayLevel(array, axes_of(tuple(array.shape), name))], scale=scale, name=name)

    @staticmethod
    def open(path: str | Path, *, scale: float = 1.0) -> SlideImage:
        """Open an image file.

        TIFF, OME-TIFF and BigTIFF are read tile by tile at the requested level of the pyramid; only a compressed TIFF
        *without* tiles is read into memory in full. PNG and JPEG of any size are decoded in full (3 bytes per pixel).
        Any of these may be gzipped (.gz). The orientation tag (TIFF or EXIF) is applied. Whole-slide formats (.svs,
        .ndpi, .mrxs, DICOM, ...) need OpenSlide.

        Parameters
        ----------
        path
            The file.
        scale
            Pixels of the file per pixel of the image to which the spots' coordinates refer: below 1 for a reduced
            image.

        Raises
        ------
        FileNotFoundError
            There is no such file.
        ImportError
            A whole-slide format without OpenSlide.
        ValueError
            The file is truncated or its format is none of these.
        """
        path = _checks.existing(path, what="image file")
        with contextlib.ExitStack() as on_error:
            found = open_levels(path)
            on_error.callback(found.close)
            image = SlideImage(found.levels, scale=scale, name=path.name, close=found.close, um_per_px=found.um_per_px)
            on_error.pop_all()
        image.path = path
        return image

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the finest level in px."""
        return self.levels[0].shape

    @property
    def has_opacity(self) -> bool:
        """Whether the last channel is opacity."""
        n = self.levels[0].n_channels
        return colours_of(n) < n

    @cached_property
    def digest(self) -> str:
        """A hash of the image: of the content of its file, else of its pixels.

        Arrays in memory are hashed as a whole, as are files up to 256 MiB and arrays on disk up to 2^28 px. Of larger
        files size, time and 64 parts are hashed, of larger arrays on disk the coarsest level and 64 bands.
        """
        found = hashlib.blake2b(digest_size=16)
        if self.path is not None:
            beside = self.path.with_suffix("")  # pixels of a .mrxs are in the folder of the same name
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
        """Crop in whole pixels of a level; pixels outside the image have the colour `fill`.

        Returns
        -------
        (height, width, 3) uint8.
        """
        source = self.levels[level]
        y0, y1 = max(top, 0), min(top + height, source.shape[0])
        x0, x1 = max(left, 0), min(left + width, source.shape[1])
        out = np.empty((height, width, 3), dtype=np.uint8)
        if (y1 - y0, x1 - x0) != (height, width):
            out[:] = fill
        if y0 < y1 and x0 < x1:
            out[y0 - top : y1 - top, x0 - left : x1 - left] = rgb_of(source.crop(x0, y0, x1, y1), self._range, fill)
        return out

    def tile(self, box: Sequence[float], size_px: int, *, fill: tuple[int, int, int] = WHITE) -> np.ndarray:
        """The square `box` (left, top, right, bottom; px of the finest level, fractions count) at `size_px`.

        It is read from the coarsest level with at least `size_px` pixels across the box, and resampled with an
        antialiased bicubic filter. A box of exactly `size_px` whole pixels is returned unchanged.

        Returns
        -------
        (size_px, size_px, 3) uint8.
        """
        level = self._level_for((box[2] - box[0]) / size_px)
        fx, fy = self.downsamples[level]
        x0, y0, x1, y1 = float(box[0]) / fx, float(box[1]) / fy, float(box[2]) / fx, float(box[3]) / fy
        margin = math.ceil(_MARGIN * max(1.0, (x1 - x0) / size_px)) + 1
        left, top = math.floor(x0) - margin, math.floor(y0) - margin
        width, height = math.ceil(x1) + margin - left, math.ceil(y1) + margin - top
        crop = Image.fromarray(self.read(left, top, width, height, level=level, fill=fill))
        inner = (x0 - left, y0 - top, x1 - left, y1 - top)
        return np.asarray(crop.resize((size_px, size_px), Image.Resampling.BICUBIC, box=inner))

    def thumbnail(self, max_px: int, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The image, or the part `box` (left, top, right, bottom; px of the finest level), reduced to `max_px`.

        The longer side has at most `max_px` pixels; a smaller image is returned unchanged. It is read in bands from a
        suitable level, so memory does not grow with the slide. White beyond the border.

        Returns
        -------
        (h, w, 3) uint8; each pixel is the mean of the area that it covers.
        """
        left, top, right, bottom = box or (0, 0, self.shape[1], self.shape[0])
        return self.reduced(max(1.0, max(right - left, bottom - top) / max_px), box)

    def reduced(self, factor: float, box: tuple[int, int, int, int] | None = None) -> np.ndarray:
        """The image, or the part `box`, reduced `factor` times; see `thumbnail`."""
        x0, y0, x1, y1 = map(float, box or (0, 0, self.shape[1], self.shape[0]))
        out_h, out_w = max(1, round((y1 - y0) / factor)), max(1, round((x1 - x0) / factor))
        level = self._level_for(factor)
        fx, fy = self.downsamples[level]
        if box is None:
            height, width = map(float, self.levels[level].shape)
        else:
            height, width, x0, y0 = (y1 - y0) / fy, (x1 - x0) / fx, x0 / fx, y0 / fy
        left, across = int(np.floor(x0)), int(np.ceil(x0 + width)) - int(np.floor(x0))
        step = height / out_h
        rows = max(1, int(_BAND_PX / (across * step)))
        out = np.empty((out_h, out_w, 3), dtype=np.uint8)
        for first in range(0, out_h, rows):
            last = min(first + rows, out_h)
            start, end = y0 + first * step, y0 + last * step
            top, bottom = int(np.floor(start)), int(np.ceil(end - 1e-9))
            band = Image.fromarray(self.read(left, top, across, bottom - top, level=level))
            inner = (x0 - left, start - top, min(x0 - left + width, across), min(end, bottom) - top)
            out[first:last] = np.asarray(band.resize((out_w, last - first), Image.Resampling.BOX, box=inner))
        return out

    def _level_for(self, downsample: float) -> int:
        """The coarsest level that is not coarser than `downsample`."""
        fits = [i for i, (fx, fy) in enumerate(self.downsamples) if max(fx, fy) <= downsample * 1.001]
        return max(fits, key=lambda i: self.downsamples[i], default=0)


def _bands(levels: Sequence[ImageLevel]) -> Iterator[np.ndarray]:
    """Bands of rows of the finest level, all or spread over it, then of the coarsest level."""
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


def _downsample(finest: tuple[int, int], shape: tuple[int, int]) -> tuple[float, float]:
    """Downsampling of a level in x and y; whole numbers if rounding of the size explains the difference."""
    factors = []
    for full, part in zip(finest[::-1], shape[::-1], strict=True):
        whole = round(full / part)
        factors.append(float(whole) if abs(whole * part - full) < whole else full / part)
    return factors[0], factors[1]


def open_spatialdata_image(element: DataArray | DataTree, *, scale: float = 1.0, name: str = "image") -> SlideImage:
    """SpatialData image, single-scale or multi-scale; only crops are computed, from the appropriate scale.

    Parameters
    ----------
    element
        An element of `sdata.images`, with dimensions c, y and x.
    scale
        Pixels of its finest scale per unit of the spots' coordinates.
    name
        Name in error messages.

    Raises
    ------
    ValueError
        It has channels that are not grey, RGB or RGBA.
    """
    if hasattr(element, "data"):
        arrays = [cast("DataArray", element)]
    else:
        arrays = [_only(node) for node in element.children.values()]
    levels = sorted((named_level(array, name) for array in arrays), key=lambda level: -level.shape[0])
    return SlideImage(levels, scale=scale, name=name)


def _only(node: DataTree) -> DataArray:
    """Array of one scale."""
    return next(iter(node.data_vars.values()))
