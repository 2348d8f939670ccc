"""TIFF, OME-TIFF and BigTIFF: read tile by tile, with all levels of the pyramid."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stampy._section.levels import (
    MAX_TILE_PX,
    ArrayLevel,
    Opened,
    OrientedLevel,
    UnusableImageError,
    check_px,
    damaged,
)
from stampy._section.outside_links import refuse_tiff_references
from stampy._section.stated_um_per_px import tiff_um_per_px

if TYPE_CHECKING:
    import tifffile

__all__ = ["TIFF_MAGIC", "open_tiff"]

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RuntimeError, struct.error)
_HEADER = 8  # bytes before the first that may be pixels
_AXES = {"YX": "yx", "YXS": "yxc", "SYX": "cyx", "CYX": "cyx", "YXC": "yxc"}


def open_tiff(path: Path, unpacked: BytesIO | None = None) -> Opened:
    """The largest picture of the file with all its levels, upright; `unpacked` is the content of a zipped file."""
    import tifffile

    with _whole(path):
        tiff = tifffile.TiffFile(path if unpacked is None else unpacked)
    with contextlib.ExitStack() as on_error:
        on_error.callback(tiff.close)
        with _whole(path):
            refuse_tiff_references(tiff, path)
            if not tiff.series:
                raise damaged(path, "it has no pages")
            main = max(range(len(tiff.series)), key=lambda i: _area(tiff.series[i]))  # the others: thumbnail, label
            series = tiff.series[main]
            axes = _axes(series, path)
            tags = series.keyframe.tags
            turned = tags["Orientation"].value if "Orientation" in tags else 1
            levels = [
                OrientedLevel.of(_level(path, unpacked, series, main, level, axes), turned)
                for level in range(len(series.levels))
            ]
            um_per_px = tiff_um_per_px(tiff, main)
        on_error.pop_all()
    return Opened(levels, tiff.close, um_per_px)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn tifffile's errors about a damaged file into a ValueError that names the file."""
    try:
        yield
    except _ERRORS as error:
        if repr(str(path)) in str(error):  # stampy's own
            raise
        raise damaged(path, error) from error


@dataclass(frozen=True, eq=False)
class _TiffLevel(ArrayLevel):
    """A level whose tiles are decoded when they are read: damage shows only then."""

    path: Path = Path()

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """As of any level."""
        with _whole(self.path):
            return ArrayLevel.crop(self, left, top, right, bottom)


def _area(series: tifffile.TiffPageSeries) -> int:
    return series.sizes.get("height", 0) * series.sizes.get("width", 0)


def _axes(series: tifffile.TiffPageSeries, path: Path) -> str:
    """Layout of a series in the words of `ArrayLevel`; UnusableImageError where it is no H&E picture."""
    axes, shape = _squeezed(series)
    page = series.keyframe
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if axes not in _AXES:
        raise UnusableImageError(
            f"The TIFF {str(path)!r} has axes {axes} of shape {shape}; one grey or RGB picture was expected. "
            "Export a single plane first."
        )
    if photometric not in ("MINISBLACK", "RGB", "YCBCR"):
        raise UnusableImageError(
            f"The TIFF {str(path)!r} stores its colours as {photometric}; export it as RGB or grey first."
        )
    if photometric == "MINISBLACK" and "C" in axes and shape[axes.index("C")] == 4:
        raise UnusableImageError(
            f"The TIFF {str(path)!r} has 4 grey channels (fluorescence?); an RGB picture was expected."
        )
    return _AXES[axes]


def _level(
    path: Path, unpacked: BytesIO | None, series: tifffile.TiffPageSeries, number: int, level: int, axes: str
) -> ArrayLevel:
    """One level: zarr over its tiles, a memory map, or (compressed, no tiles) an array."""
    import tifffile
    import zarr

    part = series.levels[level]
    page = part.keyframe
    _check_complete(part, path, len(unpacked.getbuffer()) if unpacked is not None else path.stat().st_size)
    if page.is_tiled:
        # a slide's tiles without tissue may be left out of the file: they are white
        white = np.iinfo(page.dtype).max if page.dtype.kind in "iu" else 1
        check_px(page.tilelength, page.tilewidth, path, MAX_TILE_PX)
        store = series.aszarr(level=level, squeeze=True, fillvalue=white)
        return _TiffLevel(zarr.open_array(store, mode="r"), axes, path=path)
    if unpacked is None and part.dataoffset is not None and page.is_memmappable:
        array = tifffile.memmap(path, series=number, level=level, mode="r")
    else:
        check_px(page.imagelength, page.imagewidth, path)
        array = part.asarray()
    return ArrayLevel(array.reshape(_squeezed(part)[1]), axes)


def _squeezed(series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Axes and shape without axes of length 1 other than height and width; versions of tifffile differ in this."""
    kept = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if size != 1 or axis in "YX"]
    return "".join(axis for axis, _ in kept), tuple(size for _, size in kept)


def _check_complete(series: tifffile.TiffPageSeries, path: Path, size: int) -> None:
    """Raise ValueError if tiles lie beyond the end of the file (they would be read as white) or in its header."""
    for number, page in enumerate(series.pages):
        if page is None:  # tifffile would put zeros there
            raise damaged(path, f"page {number} of {len(series.pages)} of its picture is not in the file")
        parts = (
            [(start, n) for start, n in zip(page.dataoffsets, page.databytecounts, strict=True) if n] if page else []
        )
        if min(parts, default=(_HEADER,))[0] < _HEADER:
            raise damaged(path, f"pixels are said to lie in its header, at byte {min(parts)[0]}")
        ends = [start + n for start, n in parts]
        if max(ends, default=0) > size:
            raise damaged(path, f"it has {size} bytes where {max(ends)} were expected")
