"""Boxes of tiles and regions, computed without reading an image.

Coordinates are continuous: pixel i covers [i, i + 1), so a tile of 224 px centred on x = 500 covers [388, 612).
"""

from __future__ import annotations

import numpy as np

from stampy import _keys

__all__ = ["choose_cells", "region_boxes", "region_cells", "tile_boxes"]

CENTRE_CELL = 4


def tile_boxes(xy: np.ndarray, um_per_px: float, tile_um: float = _keys.TILE_UM) -> np.ndarray:
    """Squares of `tile_um` centred on the spots.

    Parameters
    ----------
    xy
        Spot centres (n, 2) in px of the image.
    um_per_px
        Size of a pixel of that image in µm.
    tile_um
        Edge of a tile in µm.

    Returns
    -------
    (n, 4) float64: left, top, right, bottom in px.

    Examples
    --------
    >>> tile_boxes(np.array([[500.0, 300.0]]), um_per_px=0.5)
    array([[388., 188., 612., 412.]])
    """
    half = tile_um / um_per_px / 2
    xy = np.asarray(xy, dtype=np.float64)
    return np.concatenate([xy - half, xy + half], axis=1)


def region_boxes(
    xy: np.ndarray, um_per_px: float, tile_um: float = _keys.TILE_UM, *, cells: np.ndarray | None = None
) -> np.ndarray:
    """Squares of 3 x 3 tiles in which the spot's own tile is cell `cells` (row-major, 0..8).

    Parameters
    ----------
    xy, um_per_px, tile_um
        As in :func:`tile_boxes`.
    cells
        Cell of each spot's tile, (n,) int; -1 (no choice) and None take the central cell 4.

    Returns
    -------
    (n, 4) float64: left, top, right, bottom in px.

    Examples
    --------
    >>> region_boxes(np.array([[500.0, 300.0]]), um_per_px=0.5, cells=np.array([0]))
    array([[ 388.,  188., 1060.,  860.]])
    """
    xy = np.asarray(xy, dtype=np.float64)
    cells = np.full(len(xy), CENTRE_CELL) if cells is None else np.asarray(cells)
    if cells.shape != (len(xy),) or ((cells < -1) | (cells > 8)).any():
        raise ValueError(f"`cells` must be {len(xy)} numbers from -1 to 8, one a spot; found shape {cells.shape}.")
    row, column = np.divmod(np.where(cells < 0, CENTRE_CELL, cells), 3)
    shift = np.stack([1 - column, 1 - row], axis=1) * (tile_um / um_per_px)
    return tile_boxes(xy + shift, um_per_px, 3 * tile_um)


def region_cells(
    xy: np.ndarray, image_shape: tuple[int, int], um_per_px: float, tile_um: float = _keys.TILE_UM
) -> np.ndarray:
    """Whether the region lies entirely inside the image, for each of the nine cells.

    Parameters
    ----------
    xy, um_per_px, tile_um
        As in :func:`tile_boxes`.
    image_shape
        Height and width of the image in px.

    Returns
    -------
    (n, 9) bool.

    Examples
    --------
    >>> region_cells(np.array([[112.0, 112.0]]), (2000, 2000), um_per_px=0.5).astype(int)
    array([[1, 0, 0, 0, 0, 0, 0, 0, 0]])
    """
    height, width = image_shape
    slack = 1e-6  # px; a region may end exactly on the border
    inside = []
    for cell in range(9):
        left, top, right, bottom = region_boxes(xy, um_per_px, tile_um, cells=np.full(len(xy), cell)).T
        inside.append((left >= -slack) & (top >= -slack) & (right <= width + slack) & (bottom <= height + slack))
    return np.stack(inside, axis=1)


def choose_cells(allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one of the allowed cells per row, uniformly; -1 if none is allowed.

    Parameters
    ----------
    allowed
        (n, 9) bool, from :func:`region_cells`.
    rng
        Generator for the draw.

    Returns
    -------
    (n,) int64.

    Examples
    --------
    >>> choose_cells(np.array([[0, 0, 1], [0, 0, 0]], dtype=bool), np.random.default_rng(0))
    array([ 2, -1])
    """
    draws = np.where(allowed, rng.random(allowed.shape), -1.0)
    return np.where(allowed.any(axis=1), draws.argmax(axis=1), -1)
