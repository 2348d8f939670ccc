"""Image files and SpatialData images as `SlideImage`: TIFF and whole slides lazily, PNG and JPEG in memory."""

from __future__ import annotations

import contextlib
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks
from stampy._section.image import ArrayLevel, Level, SlideImage
from stampy._section.links import refuse_slide_references, refuse_tiff_references
from stampy._section.resolution import openslide_um_per_px, tiff_um_per_px

if TYPE_CHECKING:
    import openslide
    import tifffile
    from PIL import Image
    from xarray import DataArray, DataTree

__all__ = ["open_file", "open_spatialdata_image"]

_SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
_BAND_PX = 2**22
# Files say how large they are before they are decoded, and a few MB can claim any size.
_MAX_DECODED_PX = 2**31  # of an image that comes into memory as a whole: 6 GB as RGB
_MAX_TILE_PX = 2**26  # of one tile of a TIFF
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TIFF_HEADER = 8  # bytes before the first that may be pixels
_TIFF_ERRORS = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    OSError,
    RuntimeError,
    struct.error,
)
_TIFF_AXES = {"YX": "yx", "YXS": "yxc", "SYX": "cyx", "CYX": "cyx", "YXC": "yxc"}


def open_file(path: str | Path, *, scale: float = 1.0) -> SlideImage:
    """Open an image file.

    TIFF, OME-TIFF and BigTIFF are read tile by tile, at the level of the pyramid that is asked for; only a compressed
    TIFF *without* tiles comes into memory as a whole. PNG and JPEG have no tiles and are decoded wholly
    (3 bytes a pixel), of any size. Whole-slide formats (.svs, .ndpi, .mrxs, ...) need OpenSlide.

    Parameters
    ----------
    path
        The file.
    scale
        Pixels of the file per pixel of the image to which the spots' coordinates refer.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        For a whole-slide format without OpenSlide.
    ValueError
        If the file is truncated or its format is none of these.
    """
    path = _checks.existing(path, what="image file")
    image = _opened(path, scale)
    image.path = path
    return image


def _opened(path: Path, scale: float) -> SlideImage:
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; an image file was expected.")
    if path.suffix.lower() in _SLIDE_SUFFIXES:
        return _open_slide(path, scale)
    with path.open("rb") as file:
        magic = file.read(8)
    if magic[:4] in _TIFF_MAGIC:
        return _open_tiff(path, scale)
    if magic.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        return _open_picture(path, scale, jpeg=magic[0] == 0xFF)
    raise ValueError(
        f"{str(path)!r} is no image that stampy reads: TIFF, OME-TIFF, PNG, JPEG or a whole slide "
        f"({', '.join(_SLIDE_SUFFIXES)}) was expected, but the file begins with {magic!r}."
    )


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """ValueError that names the file instead of what tifffile says of one that is not whole."""
    try:
        yield
    except _TIFF_ERRORS as error:
        if repr(str(path)) in str(error):  # stampy's own
            raise
        raise _damaged(path, error) from error


@dataclass(frozen=True, eq=False)
class _TiffLevel(ArrayLevel):
    """A level whose tiles are decoded when they are read: damage shows only then."""

    path: Path = Path()

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """As of any level."""
        with _whole(self.path):
            return ArrayLevel.crop(self, left, top, right, bottom)


def _damaged(path: Path, why: object) -> ValueError:
    return ValueError(f"The image {str(path)!r} is truncated or damaged ({why}). Copy or download it again.")


def _open_picture(path: Path, scale: float, *, jpeg: bool) -> SlideImage:
    """PNG or JPEG, decoded wholly."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    try:
        # not Image.open: its limit on pixels is a global setting, and sections of 90 Mpx are common
        with (JpegImageFile if jpeg else PngImageFile)(path) as picture:
            _check_px(picture.height, picture.width, path)
            if picture.mode not in ("L", "RGB", "RGBA") and not picture.mode.startswith("I;16"):
                picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
            pixels = _pixels(picture)
    except (OSError, SyntaxError, EOFError, struct.error, ValueError, LookupError, zlib.error) as error:
        if isinstance(error, _TooLargeError):
            raise
        raise _damaged(path, error) from error
    return SlideImage.from_array(pixels, scale=scale, name=path.name)


class _TooLargeError(ValueError):
    """An image that is not decoded."""


def _check_px(height: int, width: int, path: Path, most: int = _MAX_DECODED_PX) -> None:
    """Refuse an image that would take more memory than a sound one does."""
    if height * width > most:
        raise _TooLargeError(
            f"The image {str(path)!r} says that it is {height} x {width} px, and it can't be read piece by piece; it "
            f"is not decoded (at most {most:,} px). If that is its true size, convert it to a tiled TIFF."
        )


def _pixels(picture: Image.Image) -> np.ndarray:
    """The picture as an array, filled in bands: `np.asarray(picture)` would need twice its size."""
    first = np.asarray(picture.crop((0, 0, picture.width, 1)))
    pixels = np.empty((picture.height, *first.shape[1:]), dtype=first.dtype)
    rows = max(1, _BAND_PX // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        pixels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return pixels


def _open_tiff(path: Path, scale: float) -> SlideImage:
    """TIFF, OME-TIFF or BigTIFF with all its levels."""
    import tifffile

    with _whole(path):
        tiff = tifffile.TiffFile(path)
    with contextlib.ExitStack() as on_error:
        on_error.callback(tiff.close)
        with _whole(path):
            refuse_tiff_references(tiff, path)
            if not tiff.series:
                raise _damaged(path, "it has no pages")
            main = max(range(len(tiff.series)), key=lambda i: _area(tiff.series[i]))  # the others: thumbnail, label
            series = tiff.series[main]
            axes = _tiff_axes(series, path)
            levels = [_tiff_level(path, series, main, level, axes) for level in range(len(series.levels))]
            um_per_px = tiff_um_per_px(tiff, main)
        image = SlideImage(levels, scale=scale, name=path.name, close=tiff.close, um_per_px=um_per_px)
        on_error.pop_all()
    return image


def _area(series: tifffile.TiffPageSeries) -> int:
    return series.sizes.get("height", 0) * series.sizes.get("width", 0)


def _tiff_axes(series: tifffile.TiffPageSeries, path: Path) -> str:
    """Layout of a series in the words of `ArrayLevel`; ValueError where it is no H&E picture."""
    axes, shape = _squeezed(series)
    page = series.keyframe
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if axes not in _TIFF_AXES:
        raise ValueError(
            f"The TIFF {str(path)!r} has axes {axes} of shape {shape}; one grey or RGB picture was expected. "
            "Export a single plane first."
        )
    if photometric not in ("MINISBLACK", "RGB", "YCBCR"):
        raise ValueError(f"The TIFF {str(path)!r} stores its colours as {photometric}; export it as RGB or grey first.")
    if photometric == "MINISBLACK" and "C" in axes and shape[axes.index("C")] == 4:
        raise ValueError(f"The TIFF {str(path)!r} has 4 grey channels (fluorescence?); an RGB picture was expected.")
    return _TIFF_AXES[axes]


def _tiff_level(path: Path, series: tifffile.TiffPageSeries, number: int, level: int, axes: str) -> ArrayLevel:
    """One level: zarr over its tiles, a memory map, or (compressed, no tiles) an array."""
    import tifffile
    import zarr

    part = series.levels[level]
    page = part.keyframe
    _check_complete(part, path)
    if page.is_tiled:
        # a slide's tiles without tissue may be left out of the file: they are white
        white = np.iinfo(page.dtype).max if page.dtype.kind in "iu" else 1
        _check_px(page.tilelength, page.tilewidth, path, _MAX_TILE_PX)
        store = series.aszarr(level=level, squeeze=True, fillvalue=white)
        return _TiffLevel(zarr.open_array(store, mode="r"), axes, path=path)
    if part.dataoffset is not None and page.is_memmappable:
        array = tifffile.memmap(path, series=number, level=level, mode="r")
    else:
        _check_px(page.imagelength, page.imagewidth, path)
        array = part.asarray()
    return ArrayLevel(array.reshape(_squeezed(part)[1]), axes)


def _squeezed(series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """Axes and shape without axes of length 1 other than height and width; versions of tifffile differ in this."""
    kept = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if size != 1 or axis in "YX"]
    return "".join(axis for axis, _ in kept), tuple(size for _, size in kept)


def _check_complete(series: tifffile.TiffPageSeries, path: Path) -> None:
    """Raise ValueError if tiles lie beyond the end of the file (they would be read as white) or in its header."""
    size = path.stat().st_size
    for page in series.pages:
        parts = (
            [(start, n) for start, n in zip(page.dataoffsets, page.databytecounts, strict=True) if n] if page else []
        )
        if min(parts, default=(_TIFF_HEADER,))[0] < _TIFF_HEADER:
            raise _damaged(path, f"pixels are said to lie in its header, at byte {min(parts)[0]}")
        ends = [start + n for start, n in parts]
        if max(ends, default=0) > size:
            raise _damaged(path, f"it has {size} bytes where {max(ends)} were expected")


class _OpenSlideLevel(Level):
    """A level of a whole slide."""

    n_channels = 4  # transparent where the scanner recorded nothing
    dtype = np.dtype(np.uint8)

    def __init__(self, slide: openslide.OpenSlide, level: int):
        self.slide, self.level = slide, level
        width, height = slide.level_dimensions[level]
        self.shape = height, width

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """RGBA of the crop."""
        step = self.slide.level_downsamples[self.level]
        corner = round(left * step), round(top * step)  # in px of level 0
        return np.asarray(self.slide.read_region(corner, self.level, (right - left, bottom - top)))


def _open_slide(path: Path, scale: float) -> SlideImage:
    """A whole slide, by OpenSlide."""
    try:
        import openslide
    except ImportError as error:
        raise ImportError(
            f'Reading {path.name!r} needs OpenSlide. Install it with `pip install "stampy-st[slides]"`, '
            "or convert the slide to a tiled TIFF."
        ) from error
    refuse_slide_references(path)
    try:
        slide = openslide.OpenSlide(path)
    except openslide.OpenSlideError as error:
        raise _damaged(path, error) from error
    levels = [_OpenSlideLevel(slide, level) for level in range(slide.level_count)]
    um_per_px = openslide_um_per_px(getattr(slide, "properties", {}))
    return SlideImage(levels, scale=scale, name=path.name, close=slide.close, um_per_px=um_per_px)


def open_spatialdata_image(element: DataArray | DataTree, *, scale: float = 1.0, name: str = "image") -> SlideImage:
    """A SpatialData image, single-scale or multi-scale; only the crops are computed, from the scale that fits.

    Parameters
    ----------
    element
        An element of `sdata.images`, with dimensions c, y and x.
    scale
        Pixels of its finest scale per unit of the spots' coordinates.
    name
        What error messages call it.

    Raises
    ------
    ValueError
        If it has channels that are not grey, RGB or RGBA.
    """
    arrays = [element] if hasattr(element, "data") else [node["image"] for node in element.children.values()]
    levels = []
    for array in arrays:
        array = array.transpose("c", "y", "x")
        levels.append(ArrayLevel(array.data, "cyx", _rgb_channels(list(array.coords["c"].values), name)))
    return SlideImage(levels, scale=scale, name=name)


def _rgb_channels(names: list[Any], name: str) -> tuple[int, ...]:
    """Positions of red, green, blue (and opacity); channels without names are taken as they stand."""
    if all(isinstance(n, (int, np.integer)) for n in names) or len(names) == 1:
        return tuple(range(len(names)))
    letters = [str(n).lower()[:1] for n in names]
    if sorted(letters) not in (sorted("rgb"), sorted("rgba")):
        raise ValueError(
            f"Image {name!r} has the channels {[str(n) for n in names]}; stampy reads grey, or r, g, b, a (opacity). "
            "Pick the H&E picture by `image_key=`."
        )
    return tuple(letters.index(letter) for letter in "rgba" if letter in letters)
