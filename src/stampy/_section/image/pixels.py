"""Interpret stored pixels: axis of the channels, colour of each channel, and value of white."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stampy._section.image.levels import ArrayLevel, ImageLevel, UnusableImageError, windows

if TYPE_CHECKING:
    from xarray import DataArray

__all__ = ["ValueRange", "axes_of", "channels_of", "colours_of", "range_of", "rgb_of", "stored_axes"]

CHANNELS = (1, 2, 3, 4)  # grey, grey and opacity, RGB, RGBA
_BITS = (8, 12, 16)
_ROUNDING = 1e-3  # relative to the range; tolerance for floats outside of it
_LEAST = 1 / 4  # of the range; images of tissue on glass have brighter pixels
_PROBE_PX = 64
_COLOUR = {"r": "r", "red": "r", "g": "g", "green": "g", "b": "b", "blue": "b", "a": "a", "alpha": "a"}
_NUMBERED = re.compile(r"(?:c|ch|channel)?[ _:-]?(\d+)", re.IGNORECASE)
_REMEDY = "Convert it first: to uint8 with 0 for black and 255 for white, or to floats in [0, 1]"


class ValueRange(NamedTuple):
    """Stored values of white and of full opacity."""

    white: float
    opaque: float


def colours_of(n_channels: int) -> int:
    """Number of colour channels; of 2 or 4 channels, the last is the opacity."""
    return n_channels - (n_channels in (2, 4))


def rgb_of(pixels: np.ndarray, found: ValueRange, fill: tuple[int, int, int]) -> np.ndarray:
    """Convert values (h, w, 1 to 4) to 8-bit grey or RGB (h, w, 1 | 3), blended with `fill` where transparent."""
    n = colours_of(pixels.shape[2])
    if n == pixels.shape[2]:
        return _bytes(pixels, found.white)
    opacity = _bytes(pixels[:, :, n:], found.opaque).astype(np.float32) / 255
    colours = _bytes(pixels[:, :, :n], found.white)
    return np.rint(colours * opacity + np.array(fill, dtype=np.float32) * (1 - opacity)).astype(np.uint8)


def _bytes(values: np.ndarray, white: float) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    return np.rint(np.clip(values * (255.0 / white), 0, 255)).astype(np.uint8)


def range_of(level: ImageLevel, name: str) -> ValueRange:
    """Stored values of white and full opacity, determined once for the whole image.

    Raises
    ------
    TypeError
        The values are not numbers, or are of dtype int8.
    ValueError
        The value of white cannot be inferred from the values.
    """
    kind = level.dtype
    if kind == np.bool_:
        return ValueRange(1.0, 1.0)
    if kind.kind not in "uif" or kind == np.int8:
        raise TypeError(f"Image {name!r} has dtype {kind}; integers from 0, bool or floats were expected. {_REMEDY}.")
    n = colours_of(level.n_channels)
    if kind == np.uint8:
        _check_not_mask(level, n, name)
        found = ValueRange(255.0, 255.0)
    else:
        low, top, opacity = _extremes(level, n)
        white = _white_of_floats(low, top, name) if kind.kind == "f" else _white_of_integers(low, top, name)
        found = ValueRange(white, _full(opacity, kind))
    if level.n_channels == 2:
        _check_opacity(level, found.opaque, name)
    return found


def _extremes(level: ImageLevel, n: int) -> tuple[float, float, float]:
    """Minimum and maximum of the colours, and maximum of the opacity; NaN if any value is NaN."""
    found = []
    for part in windows(level):
        colours, opacity = part[:, :, :n], part[:, :, n:]
        found.append((colours.min(), colours.max(), opacity.max() if opacity.size else 0))
    low, top, opaque = np.array(found, dtype=np.float64).T
    return float(low.min()), float(top.max()), float(opaque.max())


def _white_of_integers(low: float, top: float, name: str) -> float:
    if low < 0:
        raise UnusableImageError(f"Image {name!r} has negative values (from {low:.0f}). {_REMEDY}.")
    if top == 1:
        raise _is_mask(name)
    return _white(top, name)


def _white_of_floats(low: float, top: float, name: str) -> float:
    if not np.isfinite([low, top]).all():
        raise UnusableImageError(
            f"Image {name!r} has NaN or infinite values; floats must lie in [0, 1], or in the range of 8, 12 or 16 "
            "bits. Fill them first, e.g. with `np.nan_to_num(image)`."
        )
    white = 1.0 if top <= 1 + _ROUNDING else _white(top, name, least_8_bit=_LEAST)
    if low < -_ROUNDING * white:
        raise UnusableImageError(
            f"Image {name!r} has negative values ({low:.4g} to {top:.4g}); floats must lie in [0, 1], or in the range "
            f"of 8, 12 or 16 bits. {_REMEDY}."
        )
    return white


def _white(top: float, name: str, *, least_8_bit: float = 0.0) -> float:
    """White in the 8, 12 or 16 bits that contain the brightest value; ValueError if the image is too dark to decide."""
    for bits in _BITS:
        white = float(2**bits - 1)
        if top <= white * (1 + (_ROUNDING if least_8_bit else 0)):
            least = least_8_bit if bits == 8 else _LEAST
            if top >= least * white:
                return white
            break
    floats = "floats must lie in [0, 1], or " if least_8_bit else ""
    raise UnusableImageError(
        f"Image {name!r} has values up to {top:.6g}, so its range is ambiguous: {floats}white must be 255 (8 bit), "
        f"4,095 (12 bit) or 65,535 (16 bit), and the brightest value a quarter of that or more. {_REMEDY}."
    )


def _full(top: float, kind: np.dtype) -> float:
    """Value of full opacity, from the maximum."""
    top /= 1 + _ROUNDING * (kind.kind == "f")
    return float(next((2**bits - 1 for bits in (1, *_BITS) if top <= 2**bits - 1), top))


def _check_not_mask(level: ImageLevel, n: int, name: str) -> None:
    """Raise ValueError for a mask, i.e. an 8-bit array in memory with values 0 and 1. Checks the middle first."""
    if not isinstance(getattr(level, "array", None), np.ndarray):
        return  # opening a lazy image must not read it
    (height, width), half = level.shape, _PROBE_PX // 2
    top, left = max(0, height // 2 - half), max(0, width // 2 - half)
    middle = level.crop(left, top, min(left + _PROBE_PX, width), min(top + _PROBE_PX, height))
    if middle[:, :, :n].max() > 1:
        return
    found = set()
    for part in windows(level):
        found |= {int(part[:, :, :n].min()), int(part[:, :, :n].max())}
        if max(found) > 1:
            return
    if found == {0, 1}:
        raise _is_mask(name)


def _is_mask(name: str) -> UnusableImageError:
    return UnusableImageError(
        f"Image {name!r} contains only the integers 0 and 1: a mask, or an image in [0, 1] that was cast to "
        "integers. Pass a mask as bool (`.astype(bool)`), or the image before the cast."
    )


def _check_opacity(level: ImageLevel, opaque: float, name: str) -> None:
    """Raise ValueError unless the second of two channels is opaque or transparent everywhere."""
    seen = False
    for part in windows(level):
        second = part[:, :, 1]
        seen |= bool((second == opaque).any())
        if not ((second == 0) | (second == opaque)).all():
            seen = False
            break
    if not seen:
        raise UnusableImageError(
            f"Image {name!r} has 2 channels; stampy reads 1, 3 or 4 channels (grey, RGB, RGBA), and 2 where the second "
            "is opacity, 0 or full. First select the channels of the H&E image."
        )


def axes_of(shape: Sequence[int], name: str) -> str:
    """Axes of an array by its shape; ValueError if the shape is ambiguous.

    >>> axes_of((3, 200, 300), "he"), axes_of((200, 300), "he")
    ('cyx', 'yx')
    """
    if len(shape) == 2:
        return "yx"
    if len(shape) == 3:
        first, last = shape[0] in CHANNELS, shape[2] in CHANNELS
        if first != last:
            return "cyx" if first else "yxc"
        if first:
            raise UnusableImageError(
                f"Image {name!r} of shape {tuple(shape)} may have its channels first or last. Give it without the "
                "channel axis, or with more than 4 rows and columns."
            )
    raise UnusableImageError(
        f"Image {name!r} has shape {tuple(shape)}; (h, w), (h, w, channels) or (channels, h, w) with 1, 3 or 4 "
        "channels was expected (grey, RGB, RGBA)."
    )


def stored_axes(dims: Sequence[object], name: str) -> tuple[str, str, str]:
    """Named dimensions for y, x and the channels (or "")."""
    found = {"y": "", "x": "", "c": ""}
    for dim in map(str, dims):
        letter = "c" if dim.lower() in ("c", "channel", "channels", "band", "s", "sample") else dim.lower()
        if letter in found:
            found[letter] = dim
    if not (found["y"] and found["x"]):
        raise UnusableImageError(
            f"Image {name!r} has the dimensions {[str(d) for d in dims]}; y, x and c were expected."
        )
    return found["y"], found["x"], found["c"]


def channels_of(names: Sequence[object], name: str) -> tuple[int, ...]:
    """Indices of red, green, blue (and opacity); numbered channels keep their order.

    Examples
    --------
    >>> channels_of(["B", "G", "R"], "he"), channels_of(["0", "1", "2"], "he")
    ((2, 1, 0), (0, 1, 2))
    """
    if len(names) == 1:
        return (0,)
    numbers = [_NUMBERED.fullmatch(str(n).strip()) for n in names]
    if all(numbers):
        values = [int(n[1]) for n in numbers if n]
        if values == sorted(set(values)):
            return tuple(range(len(names)))
    else:
        letters = [_COLOUR.get(str(n).strip().lower(), "?") for n in names]
        if sorted(letters) in (sorted("rgb"), sorted("rgba")):
            return tuple(letters.index(letter) for letter in "rgba" if letter in letters)
    raise UnusableImageError(
        f"Image {name!r} has the channels {[str(n) for n in names]}; stampy reads grey, r, g, b (and a for opacity) in "
        "any order, or channels numbered in rising order. Select the H&E image with `image_key=`, or name its channels."
    )


def named_level(array: DataArray, name: str) -> ArrayLevel:
    """Level of an xarray with named dimensions and channels."""
    y, x, c = stored_axes(array.dims, name)
    others = [d for d in array.dims if d not in (y, x, c)]
    if any(array.sizes[d] > 1 for d in others):
        raise UnusableImageError(
            f"Image {name!r} has the dimensions {dict(array.sizes)}; pick one plane of {others} first."
        )
    array = array.isel(dict.fromkeys(others, 0))
    if not c:
        return ArrayLevel(array.transpose(y, x).data, "yx")
    names = list(array.coords[c].values) if c in array.coords else list(range(array.sizes[c]))
    return ArrayLevel(array.transpose(c, y, x).data, "cyx", channels_of(names, name))
