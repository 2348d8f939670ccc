"""Layout of panels, legends and colour bars, which are placed outside the axes and never cover spots."""

from __future__ import annotations

import colorsys
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks
from stampy.pl._drawing.paint import Paint
from stampy.pl._drawing.view import Window

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

MAX_LABELS = 60
MIN_INCHES = 1.6  # minimum height of a panel, for its legend, even if the section is a narrow strip
ROW_INCHES = 0.19  # of the legend
PANEL_INCHES = 3.6  # longer side of a panel
PANEL_PX = round(400 * PANEL_INCHES)  # of the image in a panel: 400 dots per inch, more than print or screens resolve
PAD_INCHES = 0.05  # around the figure
GAP_INCHES = 0.15  # between panels
SIDE_INCHES = 0.1  # between a panel and its legend
BAR_INCHES = 0.11
LUMINANCE = (0.299, 0.587, 0.114)
SCALE_INCHES = 0.03  # thickness of the scale bar


def on_page(ax: Axes, color: str) -> tuple[float, float, float]:
    """Colour for a white page, or its equivalent on a dark one: light for dark, of the same hue.

    >>> from matplotlib.figure import Figure
    >>> on_page(Figure().add_subplot(facecolor="black"), "0.25")
    (0.75, 0.75, 0.75)
    """
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(color)
    if np.dot(page_of(ax), LUMINANCE) > 0.5:
        return red, green, blue
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    return colorsys.hls_to_rgb(hue, 1 - lightness, saturation)


def page_of(ax: Axes) -> tuple[float, float, float]:
    """Colour behind the axes: transparent axes show the figure, a transparent figure a page on which text is legible.

    >>> from matplotlib.figure import Figure
    >>> page_of(Figure(facecolor="none").add_subplot(facecolor="none"))
    (1.0, 1.0, 1.0)
    """
    from matplotlib import rcParams
    from matplotlib.colors import to_rgb, to_rgba

    page = np.full(3, float(np.dot(to_rgb(rcParams["text.color"]), LUMINANCE) < 0.5))
    figure = ax.get_figure(root=True)
    for color in (*(() if figure is None else (figure.get_facecolor(),)), ax.get_facecolor()):
        *rgb, alpha = to_rgba(color)
        page = alpha * np.array(rgb) + (1 - alpha) * page
    red, green, blue = page.tolist()
    return red, green, blue


def side(ax: Axes, paint: Paint, *, titled: bool) -> None:
    """Add a colour bar or legend to the right of the panel; `titled` if the legend needs a title."""
    from matplotlib.font_manager import FontProperties

    inches = width, height = inches_of(ax)
    left = 1 + SIDE_INCHES / width
    if paint.scale is not None:
        bottom = _colorbar(ax, paint, paint.scale, left, inches)
        if paint.entries:  # spots without a value
            _legend(ax, paint, loc="upper left", bbox_to_anchor=(left, bottom - SIDE_INCHES / height))
    elif len(paint.entries) > MAX_LABELS:
        _checks.warn(
            f"{paint.label!r} has {len(paint.entries)} labels; at most {MAX_LABELS} fit into a legend, so the "
            "legend is omitted. Merge rare labels, or pass `legend=False`."
        )
    elif paint.entries:
        rows = int(max(height, MIN_INCHES) / ROW_INCHES)
        ncols = math.ceil(len(paint.entries) / rows)
        legend = _legend(ax, paint, loc="center left", bbox_to_anchor=(left, 0.5), ncols=ncols)
        if titled:
            legend.set_title(paint.label, FontProperties(size="small"))
            legend.get_title().set_parse_math(False)


def inches_of(ax: Axes) -> tuple[float, float]:
    """Width and height of the panel in inches."""
    ax.apply_aspect()  # otherwise the box is that of the grid cell
    box = ax.get_window_extent()
    return box.width / ax.figure.dpi, box.height / ax.figure.dpi


def _colorbar(ax: Axes, paint: Paint, scale: ScalarMappable, left: float, inches: tuple[float, float]) -> float:
    """Add a thin colour bar; returns its lower end as a fraction of the panel's height."""
    from matplotlib.ticker import MaxNLocator

    width, height = inches
    length = max(0.6, 0.75 * MIN_INCHES / height)
    cax = ax.inset_axes((left, 0.5 - length / 2, BAR_INCHES / width, length))
    ticks = MaxNLocator(6, steps=[1, 2, 5, 10], integer=paint.is_whole)
    bar = ax.figure.colorbar(scale, cax=cax, extend=paint.extend, ticks=ticks)
    bar.set_label(paint.label, fontsize="small", parse_math=False)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize="small", length=2, width=0.5)
    return 0.5 - length / 2


def _legend(ax: Axes, paint: Paint, **place: Any) -> Legend:
    from matplotlib.lines import Line2D

    names, colors = zip(*paint.entries, strict=True)
    dots = [Line2D([], [], marker="o", linestyle="", markersize=5.5, markeredgewidth=0, color=c) for c in colors]
    legend = ax.legend(
        dots,
        names,
        fontsize="small",
        alignment="left",
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=0.8,
        handletextpad=0.4,
        labelspacing=0.35,
        columnspacing=1.0,
        **place,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)  # a `$` in a label does not start a formula
    return legend


def scale_bar(ax: Axes, um_per_px: float, *, at_most: float | None = None) -> None:
    """Add a bar of a round length, about a quarter of the panel or `at_most` (px), below its lower left corner."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties
    from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar

    left, right = ax.get_xlim()
    bottom, top = ax.get_ylim()
    um = round_length((at_most or (right - left) / 4) * um_per_px)
    ax.add_artist(
        AnchoredSizeBar(
            ax.transData,
            um / um_per_px,
            f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} µm",
            "upper left",
            pad=0,
            borderpad=0,
            sep=2,
            frameon=False,
            color=rcParams["text.color"],
            size_vertical=abs(bottom - top) * SCALE_INCHES / inches_of(ax)[1],
            fill_bar=True,
            fontproperties=FontProperties(size="small"),
            bbox_to_anchor=(0, -0.02),
            bbox_transform=ax.transAxes,
        )
    )


def round_length(at_most: float) -> float:
    """Largest 1, 2 or 5 times a power of ten that does not exceed `at_most`.

    >>> round_length(730.0), round_length(0.3)
    (500.0, 0.2)
    """
    power = 10.0 ** math.floor(math.log10(at_most))
    return float(max(m for m in (1, 2, 5) if m * power <= at_most * (1 + 1e-9)) * power)


def cells(n: int, *, per_color: int, ncols: int) -> tuple[list[tuple[int, int]], set[int]]:
    """Row and column of each of n panels, and the numbers of the panels with a legend.

    For one section, panels of different colours follow each other, each with its legend. For several sections, each
    colour starts a new row and has one legend, at the end of its first row.
    """
    block = per_color if per_color > 1 else n  # consecutive panels without a new row
    cols = min(ncols, block)
    rows = math.ceil(block / cols)
    cells = [(i // block * rows + i % block // cols, i % block % cols) for i in range(n)]
    return cells, set(range(n)) if per_color == 1 else set(range(cols - 1, n, block))


def new_axes(windows: list[Window]) -> list[Axes]:
    """Create panels of their final size, not yet positioned."""
    import matplotlib.pyplot as plt

    figure = plt.figure(layout="none")
    sizes = [np.divide(_inches(window), figure.get_size_inches()) for window in windows]
    return [figure.add_axes((0, 0, *size), label=str(i)) for i, size in enumerate(sizes)]


def _inches(window: Window) -> tuple[float, float]:
    """Width and height of a panel for the window."""
    left, right, bottom, top = window
    width, height = right - left, bottom - top
    scale = PANEL_INCHES / max(width, height)
    return width * scale, height * scale


def _figure_of(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    if figure is None:
        raise ValueError("The axes belong to no figure.")
    return figure


def arrange(axes: list[Axes], cells: list[tuple[int, int]]) -> None:
    """Position the panels and fit the size of the figure to panels, legends and colour bars.

    matplotlib's layouts clip legends next to panels with a fixed aspect ratio.
    """
    figure = _figure_of(axes[0])
    inner = np.array([ax.get_window_extent().extents for ax in axes]).T / figure.dpi  # left, bottom, right, top
    outer = np.array([box.extents for ax in axes if (box := ax.get_tightbbox()) is not None]).T / figure.dpi
    left, bottom, right, top = np.maximum([*(inner - outer)[:2], *(outer - inner)[2:]], 0)
    width, height = inner[2:] - inner[:2]
    row, column = np.array(cells).T
    x, total_width = _starts(column, left, width, right, centred=True)
    y, total_height = _starts(row, top, height, bottom, centred=False)  # from the top; titles of a row are aligned
    figure.set_size_inches(total_width, total_height)
    boxes = np.array([x / total_width, 1 - (y + height) / total_height, width / total_width, height / total_height])
    for ax, box in zip(axes, boxes.T, strict=True):
        ax.set_position(box)


def _starts(
    at: np.ndarray, before: np.ndarray, size: np.ndarray, after: np.ndarray, *, centred: bool
) -> tuple[np.ndarray, float]:
    """Start of the panels in columns (or rows) `at`, and the end of the last one, in inches."""
    begin, end = np.zeros(len(at)), PAD_INCHES - GAP_INCHES
    for i in range(at.max() + 1):
        mine = at == i
        room = size[mine].max()
        begin[mine] = end + GAP_INCHES + before[mine].max() + (room - size[mine]) / 2 * centred
        end += GAP_INCHES + before[mine].max() + room + after[mine].max()
    return begin, end + PAD_INCHES
