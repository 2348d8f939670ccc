"""Galleries of tiles by group; tiles are cut from the section's image or taken from obsm."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks, _keys, _utils
from stampy._labels import no_fractions
from stampy._section.tile_boxes import tile_boxes
from stampy._settings import DEFAULT_SEED
from stampy.pl._drawing import panel
from stampy.pl._drawing.view import View, views_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

GAP = 0.06  # between tiles, in tiles


def tiles(
    adata: AnnData | SpatialData,
    groupby: str | None = None,
    *,
    groups: Sequence[str] | None = None,
    spots: Sequence[str] | Sequence[int] | None = None,
    n_tiles: int = 8,
    tile_um: float | None = None,
    library_key: str | None = None,
    um_per_px: float | None = None,
    tiles_key: str = _keys.TILES,
    image_key: str | None = None,
    scale_bar: bool = True,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    ax: Axes | None = None,
    table_key: str = _keys.TABLE,
) -> Axes:
    """Plot a gallery of tiles, of each group or of selected spots.

    Parameters
    ----------
    adata
        Spots with tiles in obsm (`stampy.pp.tiles`), or with coordinates and an image, from which tiles are cut as for
        a model. AnnData, or a SpatialData.
    groupby
        Column of obs with labels, such as clusters; one row of tiles per label.
    groups
        Labels to plot, in this order; all by default.
    spots
        Names or row numbers of the spots to plot, instead of spots of each group.
    n_tiles
        Number of tiles per row.
    tile_um
        Edge of a tile in µm. None: that of the tiles in obsm, otherwise 112. Models that also see the surroundings of a
        tile, such as ``"stampy-mini"``, see 336 µm there.
    library_key
        Column of obs that names the section of each spot by the keys of ``uns["spatial"]``.
    um_per_px
        µm per px of the full-resolution image, if it cannot be inferred. See `stampy.pl.spatial`.
    tiles_key
        Key of tiles in obsm.
    image_key
        Image to cut tiles from, instead of tiles in obsm: ``"hires"``, ``"lowres"`` or a name in ``sdata.images``.
    scale_bar
        Draw a scale bar in µm.
    rng
        Seed for drawing spots.
    ax
        Axes for the plot.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes; a tile has edge 1.

    Raises
    ------
    KeyError
        Tiles and image, a column or a spot are missing.
    ValueError
        Conflicting arguments, an unknown label, or an unknown pixel size.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=100)
    >>> ax = stampy.pl.tiles(adata, "domain", n_tiles=5)
    >>> [label.get_text() for label in ax.get_yticklabels()], len(ax.images)
    (['D1', 'D2', 'D3', 'D4'], 20)
    """
    data, adata = adata, _utils.table_of(adata, table_key)
    _checks.not_empty(adata, genes=False)
    _checks.at_least("n_tiles", n_tiles, 1)
    if spots is not None and groupby is not None:
        raise ValueError("`groupby` and `spots` were both given. Omit one of them.")
    if groups is not None and groupby is None:
        raise ValueError("`groups` needs `groupby`, the column of obs with the labels.")
    random = _utils.generator(rng)
    if groupby is not None:
        labels, rows = _by_group(adata, groupby, groups, n_tiles, random)
    else:
        chosen = _sampled(np.arange(adata.n_obs), n_tiles, random) if spots is None else rows_of_spots(adata, spots)
        rows = [chosen[i : i + n_tiles] for i in range(0, len(chosen), n_tiles)]
        labels = [""] * len(rows)
    cut = Cut(tile_um, library_key, um_per_px, tiles_key, image_key, table_key)
    found, edge = tiles_of(data, np.concatenate(rows), cut)
    offsets = [i * (1 + GAP) for i in range(max(map(len, rows)))]
    panel = gallery_axes(offsets[-1] + 1, len(rows) * (1 + GAP) - GAP) if ax is None else ax
    images = [[found[int(row)] for row in line] for line in rows]
    draw(panel, images, labels, offsets=offsets, row_height=1 + GAP, edge_um=edge if scale_bar else None)
    if ax is None:
        fit_figure(panel)
    return panel


def _by_group(
    adata: AnnData, groupby: str, groups: Sequence[str] | None, n: int, random: np.random.Generator
) -> tuple[list[str], list[np.ndarray]]:
    """Labels, and rows of some spots of each."""
    _checks.has_key(adata.obs, groupby, slot="adata.obs", needs="`groupby` names a column of labels.")
    labels = _utils.column_of(adata, groupby)
    no_fractions(labels)
    column = labels.astype("category").cat.remove_unused_categories()
    names = [str(c) for c in column.cat.categories]
    if not names:
        raise ValueError(f"`adata.obs['{groupby}']` has no label for any spot.")
    wanted = names if groups is None else [str(g) for g in groups]
    for name in wanted:
        _checks.one_of("groups", name, names)
    codes = column.cat.codes.to_numpy()
    return wanted, [_sampled(np.flatnonzero(codes == names.index(name)), n, random) for name in wanted]


def _sampled(rows: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """`n` of the rows, or all if there are fewer, in ascending order."""
    return rows if len(rows) <= n else np.sort(random.choice(rows, n, replace=False))


SIZE_PX = 160  # edge of a plotted tile
TILE_INCHES = 0.95
LABEL_CHARS = 30  # per line of a label next to the tiles


@dataclass(frozen=True)
class Cut:
    """Options for cutting tiles."""

    tile_um: float | None = None
    library_key: str | None = None
    um_per_px: float | None = None
    tiles_key: str = _keys.TILES
    image_key: str | None = None
    table_key: str = _keys.TABLE


def tiles_of(data: AnnData | SpatialData, rows: np.ndarray, cut: Cut) -> tuple[dict[int, np.ndarray], float | None]:
    """Tile (size, size, 3) uint8 of each row, and the edge in µm (None if unknown).

    Tiles in obsm are used if they have the requested edge and no image is requested; otherwise tiles are cut from the
    image as in `stampy.pp.tiles`.
    """
    adata, rows = _utils.table_of(data, cut.table_key), np.unique(rows)
    if cut.tile_um is not None:
        _checks.positive("tile_um", cut.tile_um)
    if cut.tiles_key in adata.obsm and cut.image_key is None:
        record = adata.uns.get(_keys.UNS, {}).get(cut.tiles_key, {})
        edge = float(record["tile_um"]) * (3 if record.get("region") else 1) if "tile_um" in record else None
        if cut.tile_um is None or edge == cut.tile_um:
            return {int(row): _checked(adata.obsm[cut.tiles_key], cut.tiles_key)[row] for row in rows}, edge
    edge = cut.tile_um or _keys.TILE_UM
    views = views_of(
        data, library_key=cut.library_key, um_per_px=cut.um_per_px, image_key=cut.image_key, table_key=cut.table_key
    )
    found: dict[int, np.ndarray] = {}
    for view in views:
        wanted = np.isin(view.rows, rows)
        if wanted.any():
            _check(view, cut)
            found |= dict(zip(view.rows[wanted].tolist(), _cut(view, wanted, edge), strict=True))
    return found, edge


def _checked(tiles: Any, key: str) -> np.ndarray:
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
        raise ValueError(
            f"`adata.obsm['{key}']` must contain tiles (n, size, size, 3) uint8, found {tiles.dtype} {tiles.shape}. "
            "`stampy.pp.tiles` makes them."
        )
    return tiles


def _check(view: View, cut: Cut) -> None:
    if view.image is None:
        raise KeyError(
            f"No tiles: `adata.obsm` has no {cut.tiles_key!r}, and there is no image of the section"
            f"{f' {view.name!r}' if view.name else ''} in `adata.uns['spatial']`. Cut tiles with `stampy.pp.tiles`, or "
            "name the sections with `library_key=`."
        )
    if view.section.pixel is None:
        raise ValueError("The pixel size is not known: give the µm per px of the full-resolution image.")
    if view.section.pixel.doubt:
        _checks.warn(view.section.prefix + view.section.pixel.doubt)


def _cut(view: View, wanted: np.ndarray, edge_um: float) -> list[np.ndarray]:
    """Tiles centred on the spots, white beyond the image: the pixels used by a model."""
    boxes = tile_boxes(view.section.image_xy[wanted], view.section.um_per_image_px, edge_um)
    return [view.section.require_image().tile(box, SIZE_PX) for box in boxes]


def rows_of_spots(adata: AnnData, spots: str | int | Iterable[str | int]) -> np.ndarray:
    """Row numbers of spots given by name or row number; one or several."""
    spots = [spots] if isinstance(spots, str | int | np.integer) else list(spots)
    if not spots:
        raise ValueError("`spots` is empty. Name some spots, or omit it.")
    if all(isinstance(s, int | np.integer) and not isinstance(s, bool) for s in spots):
        rows = np.asarray(spots, dtype=np.int64)
        if rows.min() < 0 or rows.max() >= adata.n_obs:
            raise ValueError(f"`spots` must be rows 0..{adata.n_obs - 1} or names, found {_checks.shortlist(spots)}.")
        return rows
    rows = pd.Index(adata.obs_names.astype(str)).get_indexer_for([str(s) for s in spots])
    if (rows < 0).any():
        absent = next(s for s in spots if str(s) not in adata.obs_names)
        raise _checks.unknown("spots", absent, {"adata.obs_names": adata.obs_names})
    if len(rows) > len(spots):
        raise ValueError("Names of spots occur more than once. Give row numbers, or make them unique first.")
    return rows


def gallery_axes(width: float, height: float) -> Axes:
    """Create a panel of that size (in tiles), not yet positioned, see `fit_figure`."""
    import matplotlib.pyplot as plt

    figure = plt.figure(layout="none")
    size = np.divide((width * TILE_INCHES, height * TILE_INCHES), figure.get_size_inches())
    return figure.add_axes((0, 0, *size))


def fit_figure(ax: Axes) -> None:
    """Fit the size of the figure to the panel with its labels."""
    panel.arrange([ax], [(0, 0)])


def draw(
    ax: Axes,
    tiles: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    *,
    offsets: Sequence[float],
    row_height: float,
    edge_um: float | None,
) -> None:
    """Draw tiles of edge 1, row by row; `offsets` are the left ends of the columns."""
    for i, row in enumerate(tiles):
        for tile, x in zip(row, offsets, strict=False):
            y = i * row_height
            ax.imshow(tile, extent=(x, x + 1, y + 1, y), interpolation="antialiased")
    ax.set(
        xlim=(0, offsets[-1] + 1),
        ylim=((len(tiles) - 1) * row_height + 1, 0),
        aspect="equal",
        xticks=[],
        yticks=[i * row_height + 0.5 for i in range(len(tiles))] if any(labels) else [],
    )
    if any(labels):
        ax.set_yticklabels([textwrap.fill(label, LABEL_CHARS) for label in labels], parse_math=False)
    ax.tick_params(length=0, labelsize="small")
    ax.spines[:].set_visible(False)
    if edge_um is not None:
        panel.scale_bar(ax, edge_um, at_most=1.0)
