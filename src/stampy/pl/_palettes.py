"""Colours that colour-blind readers can tell apart."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap, to_rgba, to_rgba_array

from stampy import _checks

MISSING = "#D9D9D9"  # spots without a value or label
MISSING_NAME = "NA"

# Okabe & Ito's eight, ordered for H&E and white paper, then twelve that a greedy search put farthest (OKLab distance,
# normal vision and simulated protanopia, deuteranopia, tritanopia) from all before them, from white and from MISSING.
SAFE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000"),
    *("#69001E", "#3C0096", "#7800FF", "#A52D69", "#8778FF", "#694B00", "#87C387", "#D200B4"),
    *("#0000D2", "#691E69", "#0FFF96", "#FF3C69"),
)

Palette = str | Sequence | Mapping


def default(n: int) -> np.ndarray:
    """RGBA (n, 4): the safe colours, or, for more labels than those, hues a golden angle apart in three lightnesses.

    >>> default(2).round(2).tolist()
    [[0.0, 0.45, 0.7, 1.0], [0.9, 0.62, 0.0, 1.0]]
    >>> len(set(map(tuple, default(500))))
    500
    """
    if n <= len(SAFE):
        return to_rgba_array(SAFE[:n])
    golden = (5**0.5 - 1) / 2
    return to_rgba_array([colorsys.hls_to_rgb(i * golden % 1, (0.35, 0.55, 0.75)[i % 3], 0.75) for i in range(n)])


def colors_of(names: Sequence[str], palette: Palette | None) -> np.ndarray:
    """RGBA (len(names), 4) of the labels, from a palette in any of the forms that `pl.spatial` takes.

    >>> colors_of(["a", "b"], {"b": "red", "a": "white"}).tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]]
    """
    if palette is None:
        return default(len(names))
    if isinstance(palette, str):
        return _from_colormap(palette, len(names))
    if isinstance(palette, Mapping):
        absent = [name for name in names if name not in palette]
        if absent:
            raise ValueError(f"`palette` gives no colour for {_checks.shortlist(absent)}. Name every label.")
        return to_rgba_array([to_rgba(palette[name]) for name in names])
    if len(palette) < len(names):
        raise ValueError(f"`palette` has {len(palette)} colours for {len(names)} labels. Give one for each label.")
    return to_rgba_array([to_rgba(c) for c in palette[: len(names)]])


def _from_colormap(name: str, n: int) -> np.ndarray:
    _checks.one_of("palette", name, list(colormaps))
    cmap = colormaps[name]
    listed = isinstance(cmap, ListedColormap) and n <= cmap.N < 256  # a list of distinct colours, not a gradient
    return cmap(np.arange(n)) if listed else cmap(np.linspace(0, 1, n))
