"""Attention on whole slides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _checks, _keys, _utils
from stampy.pl._drawing import panel
from stampy.pl._drawing.paint import Limit, Paint, Style, paint
from stampy.pl._drawing.view import View, Window, views_of
from stampy.pl._spatial import RASTER_ABOVE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

MOST = 8  # maximum number of slides plotted by default


def slide(
    adata: AnnData | SpatialData,
    slides: str | Sequence[str] | None = None,
    *,
    key: str = _keys.SLIDE_RESULT,
    color: str | None = None,
    library_key: str = _keys.SLIDE,
    tissue: bool = True,
    alpha: float = 0.65,
    cmap: str | Colormap = "inferno",
    vmin: Limit = 0.0,
    vmax: Limit = "p99",
    scale_bar: bool = True,
    legend: bool = True,
    ncols: int = 4,
    table_key: str = _keys.TABLE,
) -> list[Axes]:
    """Plot the attention of `stampy.tl.slide` on slides: tiles as squares, and the tissue without tiles above.

    All slides share colour map and limits. The title states the name of the slide, its label and the held-out
    probability of this label. Nothing is written into `adata`.

    Parameters
    ----------
    adata
        Tiles of slides after `stampy.tl.slide`, with the images of the slides in `uns["spatial"]`.
    slides
        Slides to plot, in this order; None: the first eight.
    key
        The `key_added` of `stampy.tl.slide`.
    color
        Column of obs to plot instead of the attention, such as "tissue_fraction".
    library_key
        Column of obs with the slide of each tile.
    tissue
        Also plot the tissue of each slide without tiles.
    alpha
        Opacity of the tiles, 0 to 1.
    cmap, vmin, vmax
        Colour map and its limits: numbers, or percentiles such as "p1" and "p99".
    scale_bar, legend
        Draw the scale bar in µm and the colour bar.
    ncols
        Maximum number of slides per row.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes: for each slide the tissue (if plotted), then the attention.

    Raises
    ------
    KeyError
        If there is no attention, or a column is missing.
    ValueError
        If a slide is unknown or a parameter is out of its range.

    Examples
    --------
    >>> import stampy
    >>> picture = stampy.datasets.toy(n_spots=60).uns["spatial"]["toy"]["images"]["hires"]
    >>> adata = stampy.pp.slide_tiles(picture, um_per_px=1.6, name="S1")
    >>> axes = stampy.pl.slide(adata, color="tissue_fraction")
    >>> [ax.get_title() for ax in axes]
    ['S1', '']
    """
    data, adata = adata, _utils.table_of(adata, table_key)
    _checks.not_empty(adata, genes=False)
    _checks.at_least("ncols", ncols, 1)
    _checks.at_least("alpha", alpha, 0, integer=False)
    _checks.at_most("alpha", alpha, 1)
    color = color or key + _keys.ATTENTION_SUFFIX
    _checks.has_key(adata.obs, color, slot="adata.obs", needs="`stampy.tl.slide` writes the attention there.")
    _, names = _checks.libraries(adata, library_key)
    drawn = views_of(
        data, library_key=library_key, sections=names[:MOST] if slides is None else slides, table_key=table_key
    )
    shown = np.concatenate([s.rows for s in drawn])
    colours = paint(adata, color, style=Style(None, cmap, vmin, vmax), shown=shown)
    if color == key + _keys.ATTENTION_SUFFIX:
        colours = replace(colours, label="attention (mean tile: 1)")
    panels = [(s, p) for s in drawn for p in ((Paint("", "", None), colours) if tissue else (colours,))]
    windows = [s.window(size=1.0, crop=False) for s, _ in panels]
    axes = panel.new_axes(windows)
    titles = _titles(adata, drawn, key)
    for i, (ax, (section, p)) in enumerate(zip(axes, panels, strict=True)):
        _draw(ax, section, p, alpha, windows[i])
        left, right, bottom, top = windows[i]
        ax.set(xlim=(left, right), ylim=(bottom, top))
        if not tissue or p.rgba is None:
            ax.set_title(titles[section.name], fontsize="medium", parse_math=False)
        if scale_bar and section.um_per_px is not None and (not tissue or p.rgba is not None):
            panel.scale_bar(ax, section.um_per_px)
    per_slide = 1 + tissue
    if legend:
        last = min(ncols, len(drawn)) * per_slide - 1  # end of the first row
        panel.side(axes[last], colours, titled=True)
    panel.arrange(axes, _cells(len(drawn), per_slide, ncols))
    return axes


def _titles(adata: AnnData, drawn: list[View], key: str) -> dict[str, str]:
    """Name, label, and probability of the label."""
    predictions = adata.uns.get(key, {}).get("predictions")
    if not isinstance(predictions, pd.DataFrame):
        return {s.name: s.name for s in drawn}
    titles = {}
    for s in drawn:
        row = predictions.loc[s.name]
        column = next(c for c in (f"{m}_{row['label']}" for m in ("abmil", "mean")) if c in predictions)
        titles[s.name] = f"{s.name}\n{row['label']} (p = {row[column]:.2f})"
    return titles


def _cells(n: int, per_slide: int, ncols: int) -> list[tuple[int, int]]:
    """Row and column of each panel; panels of a slide are in one column."""
    return [(i // ncols * per_slide + j, i % ncols) for i in range(n) for j in range(per_slide)]


def _draw(ax: Axes, section: View, paint: Paint, alpha: float, window: Window) -> None:
    """Draw the image with the tiles on it."""
    from matplotlib.collections import PolyCollection

    section.draw_image(ax, window, max_px=panel.PANEL_PX)
    if paint.rgba is not None:
        half = section.diameter / 2
        corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        squares = PolyCollection(
            list(section.xy[:, None] + corners),
            facecolors=paint.rgba[section.rows] * (1, 1, 1, alpha),
            linewidths=0,
            antialiased=False,  # avoids visible seams between tiles
            rasterized=len(section.xy) > RASTER_ABOVE,
        )
        ax.add_collection(squares, autolim=False)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
