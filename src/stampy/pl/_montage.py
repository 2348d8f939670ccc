"""Tiles side by side: cut from the section's image or taken from obsm, drawn into one panel."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks, _keys, _utils
from stampy._section.boxes import tile_boxes
from stampy.pl import _panel
from stampy.pl._view import View, views_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

SIZE_PX = 160  # of a tile as drawn
TILE_INCHES = 0.95


@dataclass(frozen=True)
class Cut:
    """How tiles are found."""

    tile_um: float | None = None
    library_key: str | None = None
    um_per_px: float | None = None
    tiles_key: str = _keys.TILES
    image_key: str | None = None
    table_key: str = _keys.TABLE


def tiles_of(data: AnnData | SpatialData, rows: np.ndarray, cut: Cut) -> tuple[dict[int, np.ndarray], float | None]:
    """The tile (size, size, 3) uint8 of each of the rows, and its edge in µm (None where it isn't known).

    Tiles in obsm are used if their edge is the one asked for (and no image is); else they are cut from the image, as
    `stampy.pp.tiles` cuts them.
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
            f"`adata.obsm['{key}']` must hold tiles (n, size, size, 3) uint8, found {tiles.dtype} {tiles.shape}. "
            "`stampy.pp.tiles` makes them."
        )
    return tiles


def _check(view: View, cut: Cut) -> None:
    if view.image is None:
        raise KeyError(
            f"No tiles: `adata.obsm` has no {cut.tiles_key!r}, and there is no image of the section"
            f"{f' {view.name!r}' if view.name else ''} in `adata.uns['spatial']`. Cut tiles by `stampy.pp.tiles`, or "
            "name the sections by `library_key=`."
        )
    if view.section.pixel is None:
        raise ValueError("The size of a pixel is not known: give the µm per px of the full-resolution image.")
    if view.section.pixel.doubt:
        _checks.warn(view.section.prefix + view.section.pixel.doubt)


def _cut(view: View, wanted: np.ndarray, edge_um: float) -> list[np.ndarray]:
    """Tiles centred on the spots, white beyond the image: the pixels that a model sees."""
    boxes = tile_boxes(view.section.image_xy[wanted], view.section.um_per_image_px, edge_um)
    return [view.section.require_image().tile(box, SIZE_PX) for box in boxes]


def rows_of_spots(adata: AnnData, spots: str | int | Iterable[str | int]) -> np.ndarray:
    """Row numbers of spots given by name or by row number; one or several."""
    spots = [spots] if isinstance(spots, str | int | np.integer) else list(spots)
    if not spots:
        raise ValueError("`spots` is empty. Name some spots, or leave it out.")
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


def new_axes(width: float, height: float) -> Axes:
    """A panel of that size (in tiles), not yet in place: see `fit`."""
    import matplotlib.pyplot as plt

    figure = plt.figure(layout="none")
    size = np.divide((width * TILE_INCHES, height * TILE_INCHES), figure.get_size_inches())
    return figure.add_axes((0, 0, *size))


def fit(ax: Axes) -> None:
    """Make the figure just as large as the panel with its labels."""
    _panel.arrange([ax], [(0, 0)])


def draw(
    ax: Axes,
    tiles: Sequence[Sequence[np.ndarray]],
    labels: Sequence[str],
    *,
    offsets: Sequence[float],
    row_height: float,
    edge_um: float | None,
) -> None:
    """Tiles of edge 1, one row below the other; `offsets` is where each column begins."""
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
        ax.set_yticklabels(labels, parse_math=False)
    ax.tick_params(length=0, labelsize="small")
    ax.spines[:].set_visible(False)
    if edge_um is not None:
        _panel.scale_bar(ax, edge_um, at_most=1.0)
