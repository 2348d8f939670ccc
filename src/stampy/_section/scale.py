"""The grid on which spots lie, and how large a pixel is: arrays in, numbers out, no image is read here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from stampy import _checks
from stampy._section.neighbors import neighbour_distances

__all__ = ["Lattice", "PixelSize", "infer_um_per_px", "lattice"]

QUERIES = 5_000  # spots that are asked for their neighbours; more tell no more about the grid


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
    some = xy[:: max(1, len(xy) // QUERIES)]
    distances, neighbours = neighbour_distances(xy, some, 7)
    if np.isnan(distances).all():
        return None
    near = distances < 1.25 * np.nanmedian(distances[:, 0])
    if near.sum() < 12:
        return None
    edge = (xy[neighbours] - some[:, None])[near]
    angle = np.arctan2(edge[:, 1], edge[:, 0])
    six, four = (abs(np.exp(1j * fold * angle).mean()) for fold in (6, 4))
    pitch = float(distances[near].mean())
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
    return _checks.factor(scalefactors, key)
