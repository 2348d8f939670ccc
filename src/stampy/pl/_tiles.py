"""Galleries of tiles by group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._settings import DEFAULT_SEED
from stampy.pl._montage import Cut, draw, fit, new_axes, rows_of_spots, tiles_of

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
        Edge of a tile in µm. None: that of the tiles in obsm, otherwise 112.
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
        raise ValueError("`groupby` and `spots` were both given. Leave one of them out.")
    if groups is not None and groupby is None:
        raise ValueError("`groups` needs `groupby`, the column of obs with the labels.")
    random = _utils.generator(rng)
    if groupby is not None:
        labels, rows = _by_group(adata, groupby, groups, n_tiles, random)
    else:
        chosen = _some(np.arange(adata.n_obs), n_tiles, random) if spots is None else rows_of_spots(adata, spots)
        rows = [chosen[i : i + n_tiles] for i in range(0, len(chosen), n_tiles)]
        labels = [""] * len(rows)
    cut = Cut(tile_um, library_key, um_per_px, tiles_key, image_key, table_key)
    found, edge = tiles_of(data, np.concatenate(rows), cut)
    offsets = [i * (1 + GAP) for i in range(max(map(len, rows)))]
    panel = new_axes(offsets[-1] + 1, len(rows) * (1 + GAP) - GAP) if ax is None else ax
    images = [[found[int(row)] for row in line] for line in rows]
    draw(panel, images, labels, offsets=offsets, row_height=1 + GAP, edge_um=edge if scale_bar else None)
    if ax is None:
        fit(panel)
    return panel


def _by_group(
    adata: AnnData, groupby: str, groups: Sequence[str] | None, n: int, random: np.random.Generator
) -> tuple[list[str], list[np.ndarray]]:
    """Labels, and rows of some spots of each."""
    _checks.has_key(adata.obs, groupby, slot="adata.obs", needs="`groupby` names a column of labels.")
    column = adata.obs[groupby].astype("category").cat.remove_unused_categories()
    names = [str(c) for c in column.cat.categories]
    if not names:
        raise ValueError(f"`adata.obs['{groupby}']` has no label for any spot.")
    wanted = names if groups is None else [str(g) for g in groups]
    for name in wanted:
        _checks.one_of("groups", name, names)
    codes = column.cat.codes.to_numpy()
    return wanted, [_some(np.flatnonzero(codes == names.index(name)), n, random) for name in wanted]


def _some(rows: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """`n` of the rows, or all if there are fewer, rising."""
    return rows if len(rows) <= n else np.sort(random.choice(rows, n, replace=False))
