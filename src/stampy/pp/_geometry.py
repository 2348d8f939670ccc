"""Where tiles lie, and how large a pixel is: arrays in, arrays out, no image is read here.

Coordinates are continuous: pixel i covers [i, i + 1), so a tile of 224 px centred on x = 500 covers [388, 612).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from stampy import _keys

__all__ = ["choose_cells", "infer_um_per_px", "lattice", "region_boxes", "region_cells", "tile_boxes"]

CENTRE_CELL = 4


class Platform(NamedTuple):
    """A grid of spots: µm between neighbours, µm across a spot, and the µm that files may give for the latter."""

    name: str
    pitch_um: float
    spot_um: float
    plausible_um: tuple[float, float]
    usual_um: tuple[float, float]


# Visium's spots have 55 µm, but `spot_diameter_fullres` spans "a theoretical 65 µm spot", 60 to 70 µm by version.
_PLATFORMS = {
    "hexagonal": Platform("Visium", 100.0, 55.0, (45.0, 80.0), (45.0, 80.0)),
    "square": Platform("ST", 200.0, 100.0, (80.0, 160.0), (80.0, 125.0)),
}
_SPOT_TOLERANCE = 0.05  # the spots' diameter fixes the scale where it agrees this well with the grid
_FIDUCIAL_UM = 105.0  # of Visium's frame, as every Space Ranger version writes it
_FIDUCIAL_TO_SPOT = (1.4, 1.95)


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
    """For which of the nine cells the region lies wholly inside the image.

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
    slack = 1e-6  # px; a region that ends exactly on the border is inside
    inside = []
    for cell in range(9):
        left, top, right, bottom = region_boxes(xy, um_per_px, tile_um, cells=np.full(len(xy), cell)).T
        inside.append((left >= -slack) & (top >= -slack) & (right <= width + slack) & (bottom <= height + slack))
    return np.stack(inside, axis=1)


def choose_cells(allowed: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One of the allowed cells per row, each with the same probability; -1 where none is allowed.

    Parameters
    ----------
    allowed
        (n, 9) bool, from :func:`region_cells`.
    rng
        The generator that draws.

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


class Lattice(NamedTuple):
    """The grid on which spots lie; `pitch` is the distance between neighbours in the units of the coordinates."""

    kind: Literal["hexagonal", "square"]
    pitch: float


def lattice(xy: np.ndarray) -> Lattice | None:
    """The regular grid on which the spots lie, at any rotation and with missing spots; None where there is none.

    The directions to the nearest neighbours have six-fold or four-fold order (a bond order parameter near 1).

    Examples
    --------
    >>> lattice(50.0 * np.stack(np.meshgrid(range(5), range(5)), axis=-1).reshape(-1, 2))
    Lattice(kind='square', pitch=50.0)
    """
    if len(xy) < 5:
        return None
    distances, neighbours = cKDTree(xy).query(xy, k=min(7, len(xy)))
    nearest = np.median(distances[:, 1])
    row, rank = np.nonzero((distances[:, 1:] > 0) & (distances[:, 1:] < 1.25 * nearest))
    if len(row) < 12:
        return None
    edge = xy[neighbours[row, rank + 1]] - xy[row]
    angle = np.arctan2(edge[:, 1], edge[:, 0])
    six, four = (abs(np.exp(1j * fold * angle).mean()) for fold in (6, 4))
    pitch = float(distances[row, rank + 1].mean())
    if six > 0.8 and four < 0.5:
        return Lattice("hexagonal", pitch)
    if four > 0.8 and six < 0.5:
        return Lattice("square", pitch)
    return None


class PixelSize(NamedTuple):
    """µm per pixel of the full-resolution image, where it comes from, and what to warn about (or "")."""

    um_per_px: float
    source: str
    doubt: str = ""


def infer_um_per_px(xy: np.ndarray, scalefactors: Mapping[str, Any], *, spot_um: float | None = None) -> PixelSize:
    """µm per pixel of the full-resolution image, from the spots' grid and the scale factors.

    In this order: `spot_um` over the spot diameter; `microns_per_pixel` of the scale factors; the spots' grid, which
    tells the platform; the diameter of Visium's fiducials (105 µm), where the spots are too few for a grid. On the
    hexagonal grid of Visium spots are 100 µm apart and 55 µm wide, on the square one of ST 200 µm apart and 100 µm
    wide. The diameter counts where it agrees with the distance. Where it doesn't, the distance does: Space Ranger
    writes the diameter of a theoretical spot of 60 to 70 µm (by version), which would make tiles a fifth too large.

    Parameters
    ----------
    xy
        Centres of all spots of the section, (n, 2) in px of the full-resolution image.
    scalefactors
        `uns["spatial"][library]["scalefactors"]`.
    spot_um
        Diameter of a spot in µm that `spot_diameter_fullres` spans, where it is known.

    Raises
    ------
    ValueError
        Without a spot diameter, or where the grid is that of no platform that is known here.

    Examples
    --------
    >>> grid = 290.0 * np.stack(np.meshgrid(range(5), range(5)), axis=-1).reshape(-1, 2)
    >>> infer_um_per_px(grid, {"spot_diameter_fullres": 145.0}).source
    'ST: spots of 100 µm'
    """
    give = "Give `um_per_px=` (µm per pixel of the full-resolution image) or `spot_um=` (the spots' diameter in µm)."
    spot_px = _positive(scalefactors, "spot_diameter_fullres")
    if spot_um is not None:
        if spot_px is None:
            raise ValueError(
                f"`spot_um` needs `spot_diameter_fullres` in the scale factors, found {sorted(scalefactors)}. "
                "Give `um_per_px=` instead."
            )
        return PixelSize(spot_um / spot_px, f"given: spots of {spot_um:g} µm")
    if (um_per_px := _positive(scalefactors, "microns_per_pixel")) is not None:
        return PixelSize(um_per_px, "scale factors: microns_per_pixel")
    if spot_px is None:
        raise ValueError(
            "The size of a pixel is not known: the scale factors have no `spot_diameter_fullres`, "
            f"found {sorted(scalefactors)}. Give `um_per_px=` (µm per pixel of the full-resolution image)."
        )
    grid = lattice(xy)
    return (
        _from_grid(grid, spot_px)
        or _from_fiducials(_positive(scalefactors, "fiducial_diameter_fullres"), spot_px)
        or _from_spot(grid, spot_px, len(xy), give)
    )


def _from_grid(grid: Lattice | None, spot_px: float) -> PixelSize | None:
    if grid is None:
        return None
    platform = _PLATFORMS[grid.kind]
    um_per_px = platform.pitch_um / grid.pitch
    spot_um = spot_px * um_per_px
    if abs(spot_um / platform.spot_um - 1) <= _SPOT_TOLERANCE:
        return PixelSize(platform.spot_um / spot_px, f"{platform.name}: spots of {platform.spot_um:g} µm")
    if not platform.plausible_um[0] <= spot_um <= platform.plausible_um[1]:
        return None
    doubt = ""
    if not platform.usual_um[0] <= spot_um <= platform.usual_um[1]:
        doubt = (
            f"The {grid.kind} grid was taken for {platform.name} ({platform.pitch_um:g} µm between spots, "
            f"{um_per_px:.4g} µm per px), but its spots would be {spot_um:.0f} µm wide where {platform.name} has "
            f"{platform.spot_um:g} µm. Give `um_per_px=` to be sure."
        )
    return PixelSize(um_per_px, f"{platform.name}: {platform.pitch_um:g} µm between spots", doubt)


def _from_fiducials(fiducial_px: float | None, spot_px: float) -> PixelSize | None:
    low, high = _FIDUCIAL_TO_SPOT
    if fiducial_px is None or not low <= fiducial_px / spot_px <= high:
        return None
    return PixelSize(_FIDUCIAL_UM / fiducial_px, "Visium: fiducials of 105 µm")


def _from_spot(grid: Lattice | None, spot_px: float, n_spots: int, give: str) -> PixelSize:
    if grid is not None:
        raise ValueError(
            f"The platform is not known: the spots lie {grid.pitch:.4g} px apart on a {grid.kind} grid and are "
            f"{spot_px:.4g} px wide, which is neither Visium (hexagonal, 100 µm apart, 55 to 70 µm wide) nor ST "
            f"(square, 200 µm apart, 100 µm wide). {give}"
        )
    um_per_px = _PLATFORMS["hexagonal"].spot_um / spot_px
    return PixelSize(
        um_per_px,
        "assumed: Visium spots of 55 µm",
        f"The platform can't be told from the positions of {n_spots} spots, since they form no regular grid; Visium "
        f"spots of 55 µm were assumed ({um_per_px:.4g} µm per px). {give}",
    )


def _positive(scalefactors: Mapping[str, Any], key: str) -> float | None:
    """The scale factor, or None where it is missing; ValueError where it is no positive number."""
    if scalefactors.get(key) is None:
        return None
    value = float(scalefactors[key])
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"The scale factor `{key}` must be a positive number, found {value}.")
    return value
