"""Levels of image files: TIFF (all pyramids) and whole slides lazily, PNG and JPEG in memory."""

from __future__ import annotations

import contextlib
import gzip
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy._section.image.levels import (
    MAX_TILE_PX,
    ArrayLevel,
    ImageLevel,
    Opened,
    OrientedLevel,
    TooLargeError,
    UnusableImageError,
    check_px,
    damaged_image,
)
from stampy._section.outside_links import refuse_slide_references, refuse_tiff_references
from stampy._section.pixel_size import openslide_um_per_px, tiff_um_per_px

if TYPE_CHECKING:
    import openslide
    import tifffile
    from PIL import Image

__all__ = ["TIFF_MAGIC", "check_is_image", "open_levels", "open_tiff"]

_SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm")
_PICTURE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG")  # JPEG, PNG
_BAND_PX = 2**22
_MAX_UNPACKED = 2**33  # bytes; a zipped file can claim any size
_ORIENTATION_TAG = 0x0112
_PICTURE_ERRORS = (OSError, SyntaxError, EOFError, struct.error, ValueError, LookupError, zlib.error)


def check_is_image(path: Path) -> tuple[bytes, BytesIO | None]:
    """First bytes of an image file, and its contents if it is zipped; ValueError for other files."""
    if path.is_dir():
        dicom = next(path.glob("*.dcm"), None)
        hint = f" A DICOM slide is named by one of its files, such as {dicom.name!r}." if dicom else ""
        raise ValueError(f"{str(path)!r} is a folder; an image file was expected.{hint}")
    with path.open("rb") as file:
        magic = file.read(132)
    unpacked = None
    if _is_slide(path, magic):
        return magic, None
    if magic[:2] == b"\x1f\x8b":
        unpacked = _unpacked(path)
        magic = bytes(unpacked.getbuffer()[:132])
    if magic[:4] in TIFF_MAGIC or magic.startswith(_PICTURE_MAGIC):
        return magic, unpacked
    raise UnusableImageError(
        f"{str(path)!r} is not an image that stampy reads: TIFF, OME-TIFF, PNG, JPEG or a whole slide "
        f"({', '.join(_SLIDE_SUFFIXES)}) was expected, but the file begins with {magic[:8]!r}."
    )


def open_levels(path: Path) -> Opened:
    """Open an image file by its content; see `SlideImage.open`."""
    magic, unpacked = check_is_image(path)
    if _is_slide(path, magic):
        return _open_slide(path)
    if magic[:4] in TIFF_MAGIC:
        return open_tiff(path, unpacked)
    return _open_picture(path, unpacked, jpeg=magic[0] == 0xFF)


def _is_slide(path: Path, magic: bytes) -> bool:
    return path.suffix.lower() in _SLIDE_SUFFIXES or magic[128:] == b"DICM"


def _unpacked(path: Path) -> BytesIO:
    """Contents of a gzip file."""
    try:
        with gzip.open(path) as file:
            content = file.read(_MAX_UNPACKED + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise damaged_image(path, error) from error
    if len(content) > _MAX_UNPACKED:
        raise TooLargeError(f"The image {str(path)!r} unpacks to more than {_MAX_UNPACKED:,} bytes. Unpack it first.")
    return BytesIO(content)


def _open_picture(path: Path, unpacked: BytesIO | None, *, jpeg: bool) -> Opened:
    """Decode a PNG or JPEG as a whole."""
    from PIL.JpegImagePlugin import JpegImageFile
    from PIL.PngImagePlugin import PngImageFile

    try:
        # not Image.open, whose pixel limit is global and too low: sections with 90 Mpx are common
        with (JpegImageFile if jpeg else PngImageFile)(path if unpacked is None else unpacked) as picture:
            check_px(picture.height, picture.width, path)
            turned = _orientation(picture)
            pixels = _decoded_jpeg(path, unpacked, picture.mode) if jpeg else None
            if pixels is None:
                plain = picture.mode in ("L", "RGB", "RGBA") or picture.mode.startswith("I;16")
                mode = "RGBA" if picture.has_transparency_data else "RGB"
                pixels = _pixels(picture if plain else picture.convert(mode))
    except _PICTURE_ERRORS as error:
        if isinstance(error, TooLargeError):
            raise
        raise damaged_image(path, error) from error
    level = ArrayLevel(pixels, "yx" if pixels.ndim == 2 else "yxc")
    return Opened([OrientedLevel.of(level, turned)])


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation; 1 (upright) if it is missing or invalid."""
    try:
        return int(picture.getexif().get(_ORIENTATION_TAG, 1))
    except (*_PICTURE_ERRORS, TypeError):
        return 1


def _decoded_jpeg(path: Path, unpacked: BytesIO | None, mode: str) -> np.ndarray | None:
    """Pixels without the second copy that Pillow makes; None if Pillow must decode the file.

    Both use the same library with the same results, but only Pillow detects truncated files.
    """
    import imagecodecs

    data = path.read_bytes() if unpacked is None else unpacked.getvalue()
    if mode not in ("L", "RGB") or not data.rstrip(b"\0").endswith(b"\xff\xd9"):  # some files are padded
        return None
    try:
        return np.asarray(imagecodecs.jpeg8_decode(data))
    except (RuntimeError, ValueError):
        return None


def _pixels(picture: Image.Image) -> np.ndarray:
    """Pixels of an image, filled in bands, since `np.asarray(picture)` would need twice its size."""
    first = np.asarray(picture.crop((0, 0, picture.width, 1)))
    pixels = np.empty((picture.height, *first.shape[1:]), dtype=first.dtype)
    rows = max(1, _BAND_PX // picture.width)
    for top in range(0, picture.height, rows):
        bottom = min(top + rows, picture.height)
        pixels[top:bottom] = np.asarray(picture.crop((0, top, picture.width, bottom)))
    return pixels


class _OpenSlideLevel(ImageLevel):
    """Level of a whole slide."""

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


def _open_slide(path: Path) -> Opened:
    """Open a whole slide with OpenSlide."""
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
        raise _unreadable_slide(path, openslide, error) from error
    levels = [_OpenSlideLevel(slide, level) for level in range(slide.level_count)]
    um_per_px = openslide_um_per_px(getattr(slide, "properties", {}))
    return Opened(levels, slide.close, um_per_px)


def _unreadable_slide(path: Path, openslide: Any, error: Exception) -> ValueError:
    """Why OpenSlide cannot open a file: it is damaged, or its format is not supported by this version."""
    if not isinstance(error, getattr(openslide, "OpenSlideUnsupportedFormatError", ())):
        return damaged_image(path, error)
    version = getattr(openslide, "__library_version__", "")
    dicom = "DICOM needs OpenSlide 4.0 or later, and must be a slide (VL Whole Slide Microscopy). "
    return ValueError(
        f"{str(path)!r} is not a whole slide that OpenSlide {version} reads. "
        f"{dicom if path.suffix.lower() == '.dcm' else ''}Convert it to a tiled TIFF, or give the slide as a WSIData."
    )


TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ERRORS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RuntimeError, struct.error)
_HEADER = 8  # bytes before the first possible pixel
_AXES = {"YX": "yx", "YXS": "yxc", "SYX": "cyx", "CYX": "cyx", "YXC": "yxc"}


def open_tiff(path: Path, unpacked: BytesIO | None = None) -> Opened:
    """Open the largest image of the file with all levels, upright; `unpacked` is the content of a zipped file."""
    import tifffile

    with _whole(path):
        tiff = tifffile.TiffFile(path if unpacked is None else unpacked)
    with contextlib.ExitStack() as on_error:
        on_error.callback(tiff.close)
        with _whole(path):
            refuse_tiff_references(tiff, path)
            if not tiff.series:
                raise damaged_image(path, "it has no pages")
            main = max(range(len(tiff.series)), key=lambda i: _area(tiff.series[i]))  # not thumbnail, label
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
    """Convert tifffile's errors for a damaged file into a ValueError that names the file."""
    try:
        yield
    except _ERRORS as error:
        if repr(str(path)) in str(error):  # raised by stampy
            raise
        raise damaged_image(path, error) from error


@dataclass(frozen=True, eq=False)
class _TiffLevel(ArrayLevel):
    """Level whose tiles are decoded on read; only then is damage detected."""

    path: Path = Path()

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """Values of the crop."""
        with _whole(self.path):
            return ArrayLevel.crop(self, left, top, right, bottom)


def _area(series: tifffile.TiffPageSeries) -> int:
    return series.sizes.get("height", 0) * series.sizes.get("width", 0)


def _axes(series: tifffile.TiffPageSeries, path: Path) -> str:
    """Layout of a series in the notation of `ArrayLevel`; UnusableImageError if it cannot be an H&E image."""
    axes, shape = _squeezed(series)
    page = series.keyframe
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if axes not in _AXES:
        raise UnusableImageError(
            f"The TIFF {str(path)!r} has axes {axes} of shape {shape}; one greyscale or RGB image was expected. "
            "Export a single plane first."
        )
    if photometric not in ("MINISBLACK", "RGB", "YCBCR"):
        raise UnusableImageError(
            f"The TIFF {str(path)!r} stores its colours as {photometric}; export it as RGB or grey first."
        )
    if photometric == "MINISBLACK" and "C" in axes and shape[axes.index("C")] == 4:
        raise UnusableImageError(
            f"The TIFF {str(path)!r} has 4 grey channels (fluorescence?); an RGB image was expected."
        )
    return _AXES[axes]


def _level(
    path: Path, unpacked: BytesIO | None, series: tifffile.TiffPageSeries, number: int, level: int, axes: str
) -> ArrayLevel:
    """One level: zarr over its tiles, a memory map, or an array (compressed, without tiles)."""
    import tifffile
    import zarr

    part = series.levels[level]
    page = part.keyframe
    _check_complete(part, path, len(unpacked.getbuffer()) if unpacked is not None else path.stat().st_size)
    if page.is_tiled:
        # tiles without tissue may be missing from the file of a slide: they are white
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
    """Axes and shape without axes of length 1 other than height and width, which depend on the version of tifffile."""
    kept = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True) if size != 1 or axis in "YX"]
    return "".join(axis for axis, _ in kept), tuple(size for _, size in kept)


def _check_complete(series: tifffile.TiffPageSeries, path: Path, size: int) -> None:
    """Raise ValueError if tiles are beyond the end of the file (they would be read as white) or in its header."""
    for number, page in enumerate(series.pages):
        if page is None:  # tifffile would fill it with zeros
            raise damaged_image(path, f"page {number} of {len(series.pages)} of its image is not in the file")
        parts = (
            [(start, n) for start, n in zip(page.dataoffsets, page.databytecounts, strict=True) if n] if page else []
        )
        if min(parts, default=(_HEADER,))[0] < _HEADER:
            raise damaged_image(path, f"its pixels would be in its header, at byte {min(parts)[0]}")
        ends = [start + n for start, n in parts]
        if max(ends, default=0) > size:
            raise damaged_image(path, f"it has {size} bytes where {max(ends)} were expected")
