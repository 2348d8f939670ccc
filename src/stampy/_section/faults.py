"""Files that can't be read: what is caught, and what is said instead."""

from __future__ import annotations

from pathlib import Path

__all__ = ["MAX_TILE_PX", "TooLargeError", "check_px", "damaged"]

# Files say how large they are before they are decoded, and a few MB can claim any size.
_MAX_DECODED_PX = 2**31  # of an image that comes into memory as a whole: 6 GB as RGB
MAX_TILE_PX = 2**26  # of one tile of a TIFF


class TooLargeError(ValueError):
    """An image that is not decoded."""


def damaged(path: Path, why: object) -> ValueError:
    """The error for a file that is not whole."""
    return ValueError(f"The image {str(path)!r} is truncated or damaged ({why}). Copy or download it again.")


def check_px(height: int, width: int, path: Path, most: int = _MAX_DECODED_PX) -> None:
    """Refuse an image that would take more memory than a sound one does."""
    if height * width > most:
        raise TooLargeError(
            f"The image {str(path)!r} says that it is {height} x {width} px, and it can't be read piece by piece; it "
            f"is not decoded (at most {most:,} px). If that is its true size, convert it to a tiled TIFF."
        )
