"""WSIData (wsidata, LazySlide) as a `SlideImage`, and its tile table as boxes; neither package is imported here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stampy import _checks
from stampy._section.image.levels import ImageLevel
from stampy._section.image.slide_image import SlideImage

if TYPE_CHECKING:
    from wsidata import WSIData

__all__ = ["is_wsidata", "open_wsidata", "tile_table"]


def is_wsidata(data: object) -> bool:
    """Whether `data` is a WSIData."""
    return any(c.__name__ == "WSIData" and c.__module__.startswith("wsidata") for c in type(data).__mro__)


class _WsiLevel(ImageLevel):
    """Level read by the WSIData's own reader."""

    n_channels = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, wsi: WSIData, level: int):
        self.wsi, self.level = wsi, level
        height, width = wsi.properties.level_shape[level]
        self.shape = int(height), int(width)

    def crop(self, left: int, top: int, right: int, bottom: int) -> np.ndarray:
        """RGB of the crop."""
        step = float(self.wsi.properties.level_downsample[self.level])
        corner = round(left * step), round(top * step)  # in px of level 0
        region = self.wsi.read_region(*corner, right - left, bottom - top, level=self.level)
        return np.asarray(region)[:, :, :3]


def open_wsidata(wsi: WSIData) -> SlideImage:
    """Slide of a WSIData, which remains responsible for closing it."""
    levels = [_WsiLevel(wsi, i) for i in range(int(wsi.properties.n_level))]
    mpp = wsi.properties.mpp
    return SlideImage(levels, name=Path(str(wsi.reader.file)).name, um_per_px=None if mpp is None else float(mpp))


def tile_table(wsi: WSIData, tile_key: str) -> np.ndarray:
    """Boxes of the tiles (n, 4): left, top, right, bottom in px of level 0.

    Raises
    ------
    KeyError
        There is no such tile table.
    ValueError
        The tile table is empty.
    """
    _checks.has_key(
        wsi.shapes,
        tile_key,
        slot="wsi.shapes",
        needs="`tile_key` names a tile table; make one, or omit `tile_key` and stampy lays its own grid.",
    )
    boxes = wsi.shapes[tile_key].bounds.to_numpy(dtype=np.float64)
    if not len(boxes):
        raise ValueError(f"`wsi.shapes[{tile_key!r}]` has no tiles. Was tissue found on the slide?")
    return boxes
