"""UMAP computed by scanpy, coloured as on the tissue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys, _utils
from stampy.pl._drawing import panel as _panel
from stampy.pl._drawing.paint import Limit, Paint, Palette, Style, paint
from stampy.pl._spatial import RASTER_ABOVE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

AREA = 120_000.0  # total area of all points in square points, as in scanpy
SMALLEST, LARGEST = 0.3, 25.0  # area of a point


def umap(
    adata: AnnData | SpatialData,
    color: str | Sequence[str | None] | None = None,
    *,
    key: str = "X_umap",
    size: float | None = None,
    alpha: float = 1.0,
    palette: Palette | None = None,
    cmap: str | Colormap = "viridis",
    vmin: Limit = None,
    vmax: Limit = None,
    legend: bool = True,
    title: str | Sequence[str] | None = None,
    ncols: int = 4,
    ax: Axes | None = None,
    layer: str | None = None,
    gene_symbols: str | None = None,
    table_key: str = _keys.TABLE,
) -> Axes | list[Axes]:
    """Plot a UMAP computed by scanpy, with the colours, legends and palettes of `stampy.pl.spatial`.

    This function does not compute the UMAP: `scanpy.tl.umap` computes the coordinates from the graph of an embedding.
    Spots with labels are drawn in random order, so that no label hides another; the highest values are drawn on top.
    Nothing is written into `adata`.

    Parameters
    ----------
    adata
        Spots with ``obsm[key]``.
    color
        What to plot, one panel each: a column of obs, a gene, or a key of obsm (three principal components as red,
        green, blue); None for grey points. See `stampy.pl.spatial`.
    key
        Key of obsm with the coordinates; its first two columns are plotted.
    size
        Area of a point, in square points. None: smaller for more spots, as in scanpy.
    alpha
        Opacity of the points, 0 to 1.
    palette, cmap, vmin, vmax, legend, title, ncols, layer, gene_symbols
        As for `stampy.pl.spatial`.
    ax
        Axes for a single panel.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes, or a list of Axes for several panels.

    Raises
    ------
    KeyError
        The coordinates are missing (the message states how to compute them), or `color` is not found.
    TypeError, ValueError
        A parameter is out of its range, coordinates are not finite, or `ax` with several panels.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=80, image=False)
    >>> adata.obsm["X_umap"] = adata.obsm["spatial"] / 100  # or: sc.pp.neighbors(...); sc.tl.umap(adata)
    >>> axes = stampy.pl.umap(adata, ["domain", "COL1A1"])
    >>> [ax.get_title() for ax in axes]
    ['domain', 'COL1A1']
    """
    table = _utils.table_of(adata, table_key)
    xy = _coordinates(table, key)
    _checks.at_least("ncols", ncols, 1)
    _checks.at_least("alpha", alpha, 0, integer=False)
    _checks.at_most("alpha", alpha, 1)
    if size is not None:
        _checks.positive("size", size)
    names = [color] if color is None or isinstance(color, str) else list(color)
    if not names:
        raise ValueError("`color` is empty. Name something to show, or omit it.")
    if ax is not None and len(names) > 1:
        raise ValueError(f"`ax` takes one panel, but there are {len(names)} colours. Omit `ax`.")
    titles = None if title is None else [title] if isinstance(title, str) else list(title)
    if titles is not None and len(titles) != len(names):
        raise ValueError(f"`title` must have one title for each of {len(names)} panels, found {len(titles)}.")
    find = partial(paint, table, style=Style(palette, cmap, vmin, vmax), shown=np.arange(table.n_obs), layer=layer,
                   gene_symbols=gene_symbols)  # fmt: skip
    paints = list(map(find, names))
    axes = [ax] if ax is not None else _new_axes(len(paints))
    for i, (panel, p) in enumerate(zip(axes, paints, strict=True)):
        _draw(panel, xy, p, size or float(np.clip(AREA / len(xy), SMALLEST, LARGEST)), alpha)
        named = p.title if titles is None else titles[i]
        panel.set_title(named, y=1.0, fontsize="medium", parse_math=titles is not None)
        if legend:
            _panel.side(panel, p, titled=p.title not in named)
    if ax is None:
        _panel.arrange(axes, _panel.cells(len(axes), per_color=1, ncols=ncols)[0])
    return axes[0] if len(axes) == 1 else axes


def _coordinates(table: AnnData, key: str) -> np.ndarray:
    """Coordinates (n, 2); KeyError with instructions to compute them."""
    _checks.not_empty(table, genes=False)
    needs = (
        "Make it first: `sc.pp.neighbors(adata, use_rep='X_stamp'); sc.tl.umap(adata)`, after `stampy.tl.embed(adata)`."
    )
    _checks.has_key(table.obsm, key, slot="adata.obsm", needs=needs)
    xy = _checks.embedding(table, key)
    if xy.shape[1] < 2:
        raise ValueError(f"`adata.obsm['{key}']` must have two columns, found shape {xy.shape}.")
    return xy[:, :2]


def _new_axes(n: int) -> list[Axes]:
    """Square panels, not yet positioned."""
    import matplotlib.pyplot as plt

    figure = plt.figure(layout="none")
    side = np.divide((_panel.PANEL_INCHES, _panel.PANEL_INCHES), figure.get_size_inches())
    return [figure.add_axes((0, 0, *side), label=str(i)) for i in range(n)]


def _draw(ax: Axes, xy: np.ndarray, p: Paint, size: float, alpha: float) -> None:
    """Draw the points, and axis labels without ticks."""
    order = _order(p, len(xy))
    colors: Any = "0.6" if p.rgba is None else p.rgba[order]
    ax.scatter(
        xy[order, 0], xy[order, 1], s=size, c=colors, alpha=alpha, linewidths=0, rasterized=len(xy) > RASTER_ABOVE
    )
    ax.set(xticks=[], yticks=[])
    ax.set_box_aspect(1)
    ax.set_xlabel("UMAP 1", fontsize="small", loc="left")
    ax.set_ylabel("UMAP 2", fontsize="small", loc="bottom")
    ax.spines[["top", "right"]].set_visible(False)


def _order(p: Paint, n: int) -> np.ndarray:
    """Drawing order: first spots without value, then labels in random order or values in ascending order."""
    if p.rgba is None:
        return np.arange(n)
    mixed = np.random.default_rng(0).permutation(n)
    if p.values is None:
        return mixed
    return mixed[np.argsort(np.nan_to_num(p.values[mixed], nan=-np.inf), kind="stable")]
