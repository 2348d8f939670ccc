"""Spots on their tissue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from stampy import _checks, _keys, _utils
from stampy.pl._drawing import panel as _panel
from stampy.pl._drawing.paint import Limit, Paint, Palette, Style, paint
from stampy.pl._drawing.view import View, Window, drawing_distance, views_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData


class SpatialLook(TypedDict, total=False):
    """Appearance options of `spatial`, for plots that pass them on."""

    image: bool
    image_key: str | None
    image_alpha: float | None
    image_grey: bool | None
    crop: bool | Window
    alpha: float
    size: float
    palette: Palette | None
    cmap: str | Colormap
    vmin: Limit
    vmax: Limit
    scale_bar: bool
    um_per_px: float | None
    legend: bool
    title: str | Sequence[str] | None
    ncols: int
    layer: str | None
    gene_symbols: str | None


class SpatialOptions(SpatialLook, total=False):
    """Appearance options, with sections and axes."""

    library_key: str | None
    sections: str | Sequence[str] | None
    ax: Axes | None


RASTER_ABOVE = 50_000  # spots; a PDF with more vector shapes is slow to open
TOUCHING = 1.13  # ratio of diameter to distance at which circles on a square grid have the area of the squares


def spatial(
    adata: AnnData | SpatialData,
    color: str | Sequence[str | None] | None = None,
    *,
    library_key: str | None = None,
    sections: str | Sequence[str] | None = None,
    image: bool = True,
    image_key: str | None = None,
    image_alpha: float | None = None,
    image_grey: bool | None = None,
    crop: bool | Window = True,
    alpha: float = 1.0,
    size: float = 1.0,
    palette: Palette | None = None,
    cmap: str | Colormap = "viridis",
    vmin: Limit = None,
    vmax: Limit = None,
    scale_bar: bool = True,
    um_per_px: float | None = None,
    legend: bool = True,
    title: str | Sequence[str] | None = None,
    ncols: int = 4,
    ax: Axes | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    table_key: str = _keys.TABLE,
) -> Axes | list[Axes]:
    """Plot spots on the image of the tissue: labels, values, or an embedding as colours.

    Spots are circles of their true size. More than 50,000 spots, which are mostly smaller than a pixel of the plot, are
    drawn so that they touch. Axes are in px of the full-resolution image, the unit of `obsm["spatial"]`, for every
    image. Nothing is written into `adata`.

    Parameters
    ----------
    adata
        Spots with `obsm["spatial"]` and, for image and scale, `uns["spatial"]` as Space Ranger's readers write it; or a
        SpatialData whose table annotates shapes, labels or points. The image is the one that `stampy.tl.embed` uses:
        the full-resolution file that `uns["spatial"]` refers to, otherwise the finest image in it. Large images are
        reduced for the plot. Without an image, the background is white.
    color
        What to plot; several names give several panels. Names are looked up in this order:

        - a column of obs: numbers as values, everything else as labels. Labels keep their order, and their colours in
          `uns[f"{color}_colors"]` if the number matches; missing labels (also "NA", "nan") are grey
        - a gene in `var_names`: its values in `X` or `layer`
        - a key of obsm with 3 or more columns: its first three principal components as red, green and blue, each
          scaled from its 1st to its 99th percentile

        None plots the tissue with outlines of the spots.
    library_key
        Column of obs that names the section of each spot by the keys of `uns["spatial"]`. One panel per section, with
        common limits, colours and components.
    sections
        Sections to plot, in this order; all by default.
    image, image_alpha
        Whether to draw the image, and its opacity: by default 0.6 under coloured spots, 1 under outlines.
    image_grey
        Draw the image in grey. Default for values, because the dark end of viridis is hard to see on purple tissue.
    image_key
        Image to draw, such as ``"lowres"``, or a name in ``sdata.images``; by default the image that models use.
    crop
        True: crop to the spots with a margin. False: the entire image. ``(left, right, top, bottom)``: crop to this
        part, in px of the full-resolution image.
    alpha
        Opacity of the spots, 0 to 1.
    size
        Diameter of the drawn circles, as a multiple of the spots' diameter.
    palette
        Colours of labels: the name of a matplotlib colour map, a list, or a dict from label to colour. By default 30
        colours, of which the first 20 are distinguishable for colour-blind readers; further labels get the colours that
        are farthest from these.
    cmap
        Colour map of values.
    vmin, vmax
        Limits of the colour map: numbers, or percentiles such as "p1" and "p100". By default the minimum and the
        maximum of the plotted spots. If the values beyond the 1st or 99th percentile would take more than a quarter of
        the scale, this percentile is used instead. A pointed end of the colour bar marks values beyond a limit.
    scale_bar
        Draw a scale bar in µm if the scale is known: from `um_per_px`, from `microns_per_pixel` in the scale factors,
        or from the distance of the spots if grid and scale factors are those of Visium (hexagonal, 100 µm) or ST
        (square, 200 µm).
    um_per_px
        µm per px of the full-resolution image.
    legend
        Draw legends and colour bars.
    title
        Title, or one per panel. By default the name of the colour, of the section if there are several, or both.
    ncols
        Maximum number of panels per row.
    ax
        Axes for a single panel. Legends and colour bars are placed outside; create the figure with
        `layout="compressed"`, which keeps them inside.
    layer
        Layer to read genes from; `X` by default.
    gene_symbols
        Column of var to look up genes in, instead of `var_names`.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes, or a list of Axes for several panels: all sections of the first colour, then of the next.

    Raises
    ------
    KeyError
        If `color` is not found (similar names are given), or a column, layer or scale factor is missing.
    TypeError, ValueError
        If a parameter is out of its range, `ax` is given for several panels, `uns["spatial"]` has several sections and
        `library_key` does not separate them, or coordinates are not finite.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=100)
    >>> ax = stampy.pl.spatial(adata, "domain")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['D1', 'D2', 'D3', 'D4']
    >>> axes = stampy.pl.spatial(adata, ["domain", "COL1A1"], vmax="p99")
    >>> [ax.get_title() for ax in axes]
    ['domain', 'COL1A1']
    """
    table = _utils.table_of(adata, table_key)
    _validate(table, size=size, ncols=ncols, um_per_px=um_per_px, crop=crop, alpha=alpha, image_alpha=image_alpha)
    names = [color] if color is None or isinstance(color, str) else list(color)
    if not names:
        raise ValueError("`color` is empty. Name something to show, or omit it to draw only the tissue.")
    drawn = views_of(
        adata, library_key=library_key, sections=sections, image=image, image_key=image_key, um_per_px=um_per_px,
        table_key=table_key,
    )  # fmt: skip
    shown = np.concatenate([section.rows for section in drawn])
    style = Style(palette, cmap, vmin, vmax)
    find = partial(paint, table, style=style, shown=shown, layer=layer, gene_symbols=gene_symbols)
    paints = list(map(find, names))
    panels = [(p, section) for p in paints for section in drawn]
    if ax is not None and len(panels) > 1:
        raise ValueError(f"`ax` takes one panel, but there are {len(panels)} (colours x sections). Omit `ax`.")
    return draw_panels(
        panels, _titles(panels, title), per_color=len(drawn), parse_titles=title is not None, size=size, crop=crop,
        alpha=alpha, image_alpha=image_alpha, image_grey=image_grey, scale_bar=scale_bar, legend=legend, ncols=ncols,
        ax=ax,
    )  # fmt: skip


def draw_panels(
    panels: list[tuple[Paint, View]],
    titles: list[str],
    *,
    per_color: int,
    parse_titles: bool,
    size: float,
    crop: bool | Window,
    alpha: float,
    image_alpha: float | None,
    image_grey: bool | None = None,
    scale_bar: bool,
    legend: bool,
    ncols: int,
    ax: Axes | None,
) -> Axes | list[Axes]:
    """Draw the panels, into `ax` if given (for a single panel), else into a new figure."""
    windows = [section.window(size=size, crop=crop) for _, section in panels]
    cells, with_legend = _panel.cells(len(panels), per_color=per_color, ncols=ncols)
    axes = [ax] if ax is not None else _panel.new_axes(windows)
    for i, (panel, (p, section)) in enumerate(zip(axes, panels, strict=True)):
        grey = p.scale is not None if image_grey is None else image_grey
        max_px = _panel.PANEL_PX if ax is None else None
        section.draw_image(panel, windows[i], _image_alpha(p, image_alpha), grey=grey, max_px=max_px)
        on_dark = section.is_dark(windows[i], max_px=max_px) if p.rgba is None else None
        _draw(panel, p, section, size=size, alpha=alpha, on_dark=on_dark)
        left, right, bottom, top = windows[i]
        panel.set(xlim=(left, right), ylim=(bottom, top))
        panel.set_title(titles[i], y=1.0, fontsize="medium", parse_math=parse_titles)
        if scale_bar and section.um_per_px is not None:
            _panel.scale_bar(panel, section.um_per_px)
        if legend and i in with_legend:
            _panel.side(panel, p, titled=p.title not in titles[i])
    if ax is None:
        _panel.arrange(axes, cells)
    return axes[0] if len(axes) == 1 else axes


def _validate(
    adata: AnnData, *, size: float, ncols: int, um_per_px: float | None, crop: bool | Window, **opacities: float | None
) -> None:
    _checks.not_empty(adata, genes=False)
    _checks.positive("size", size)
    _checks.at_least("ncols", ncols, 1)
    if um_per_px is not None:
        _checks.positive("um_per_px", um_per_px)
    if not isinstance(crop, bool):
        _checks.window("crop", crop)
    for name, value in opacities.items():
        if value is not None:
            _checks.at_least(name, value, 0, integer=False)
            _checks.at_most(name, value, 1)


def _titles(panels: list[tuple[Paint, View]], title: str | Sequence[str] | None) -> list[str]:
    """Title of each panel: as given, or what distinguishes the panels."""
    if title is not None:
        titles = [title] if isinstance(title, str) else list(title)
        if len(titles) != len(panels):
            raise ValueError(f"`title` must have one title for each of {len(panels)} panels, found {len(titles)}.")
        return titles
    colors, sections = {p.title for p, _ in panels}, {s.name for _, s in panels}
    if len(sections) == 1:
        return [p.title for p, _ in panels]
    return [" · ".join(filter(None, (p.title if len(colors) > 1 else "", s.name))) for p, s in panels]


def _image_alpha(paint: Paint, given: float | None) -> float:
    if given is not None:
        return given
    return 1.0 if paint.rgba is None else 0.6


def _draw(ax: Axes, paint: Paint, section: View, *, size: float, alpha: float, on_dark: bool | None) -> None:
    """Draw the spots. `on_dark`: whether the image is dark; None without an image."""
    from matplotlib.collections import EllipseCollection

    if paint.rgba is None:
        look = _outlines(alpha, on_dark=on_dark)
    else:
        look = {"facecolors": paint.rgba[section.rows] * (1, 1, 1, alpha), "linewidths": 0}
    diameter = [size * _drawn_diameter(section)]  # equal diameters share one path, whatever the number of spots
    spots = EllipseCollection(
        diameter,
        diameter,
        [0],
        units="xy",
        offsets=section.xy,
        offset_transform=ax.transData,
        rasterized=len(section.xy) > RASTER_ABOVE,
        **look,
    )
    ax.add_collection(spots, autolim=False)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def _outlines(alpha: float, *, on_dark: bool | None) -> dict[str, Any]:
    """Colour of outlines: black on pale tissue, white on dark tissue, that of text without an image (None)."""
    from matplotlib import rcParams
    from matplotlib.colors import to_rgba

    color = rcParams["text.color"] if on_dark is None else "w" if on_dark else "k"
    return {"facecolors": "none", "edgecolors": to_rgba(color, alpha), "linewidths": 0.4 if on_dark else 0.25}


def _drawn_diameter(section: View) -> float:
    """Diameter of the spots; very many spots at least touch, so that white gaps do not dominate."""
    if len(section.xy) <= RASTER_ABOVE:
        return section.diameter
    return max(section.diameter, TOUCHING * drawing_distance(section.xy))
