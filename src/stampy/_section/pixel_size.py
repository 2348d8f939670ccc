"""Pixel size from the grid of spots, from spots and fiducials of known size, or as stated by an image file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from stampy import _checks
from stampy._section.neighbors import neighbour_distances

if TYPE_CHECKING:
    import tifffile

__all__ = ["Lattice", "PixelSize", "infer_um_per_px", "lattice", "openslide_um_per_px", "tiff_um_per_px"]

QUERIES = 5_000  # number of sampled spots; more do not change the result


class Platform(NamedTuple):
    """Grid of spots: distance and diameter in µm, and the range of diameters that files may give, in µm."""

    name: str
    pitch_um: float
    spot_um: float
    plausible_um: tuple[float, float]
    usual_um: tuple[float, float]


# Visium's spots are 55 µm wide, but `spot_diameter_fullres` is that of "a theoretical 65 µm spot", 60 to 70 µm.
_PLATFORMS = {
    "hexagonal": Platform("Visium", 100.0, 55.0, (45.0, 80.0), (45.0, 80.0)),
    "square": Platform("ST", 200.0, 100.0, (80.0, 160.0), (80.0, 125.0)),
}
_SPOT_TOLERANCE = 0.05  # use the spot diameter if it agrees with the grid within this fraction
_FIDUCIAL_UM = 105.0  # of Visium's frame, in all versions of Space Ranger
_FIDUCIAL_TO_SPOT = (1.4, 1.95)
_TOUCHING = 1.05  # bins touch, spots do not
_CONTRADICTION = 0.15  # pixel sizes that differ by more contradict each other
_NEAR = 0.03
_INDEX_PITCH = 2.5  # rows and columns of an array differ by 1 or 2
FIDUCIAL = "fiducial_diameter_fullres"
REMEDY = "Pass `um_per_px=` (µm per pixel of the full-resolution image) or `spot_um=` (the spots' diameter in µm)."


class Lattice(NamedTuple):
    """Grid of the spots; `pitch` is the distance between neighbours in the units of the coordinates."""

    kind: Literal["hexagonal", "square"]
    pitch: float


def lattice(xy: np.ndarray) -> Lattice | None:
    """Find the regular grid of the spots, at any rotation and with missing spots; None if there is none.

    The directions to nearest neighbours must have six-fold or four-fold order (bond order parameter near 1).

    Examples
    --------
    >>> lattice(50.0 * np.stack(np.meshgrid(range(5), range(5)), axis=-1).reshape(-1, 2))
    Lattice(kind='square', pitch=50.0)
    """
    key = hashlib.blake2b(np.ascontiguousarray(xy).data, digest_size=16).digest()
    try:
        return _LATTICE_CACHE[key]
    except KeyError:
        found = _lattice(xy)
    if len(_LATTICE_CACHE) >= _LATTICE_CACHE_SIZE:
        _LATTICE_CACHE.clear()
    _LATTICE_CACHE[key] = found
    return found


_LATTICE_CACHE: dict[bytes, Lattice | None] = {}  # recent results, since the checks of a section repeat the query
_LATTICE_CACHE_SIZE = 4


def _lattice(xy: np.ndarray) -> Lattice | None:
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
    """µm per pixel of the full-resolution image, its source, and a doubt to warn about (or "")."""

    um_per_px: float
    source: str
    doubt: str = ""


def infer_um_per_px(xy: np.ndarray, scalefactors: Mapping[str, object], *, spot_um: float | None = None) -> PixelSize:
    """Infer the µm per pixel of the full-resolution image from the grid of spots and the scale factors.

    Sources in this order: `spot_um` divided by the spot diameter; `microns_per_pixel` of the scale factors; the grid of
    spots, which identifies the platform; the diameter of Visium's fiducials (105 µm), if there are too few spots for a
    grid. The result is compared with the other sources: a contradiction raises an error or is stated in `doubt`. Spots
    are 100 µm apart and 55 µm wide on the hexagonal grid of Visium, and 200 µm apart and 100 µm wide on the square grid
    of ST. The spot diameter is used if it agrees with the distance, otherwise the distance is used: Space Ranger writes
    the diameter of a theoretical spot of 60 to 70 µm (depending on the version), which would make tiles a fifth too
    large.

    Parameters
    ----------
    xy
        Centres of all spots of the section, (n, 2) in px of the full-resolution image.
    scalefactors
        `uns["spatial"][library]["scalefactors"]`.
    spot_um
        Diameter of a spot in µm, corresponding to `spot_diameter_fullres`, if known.

    Raises
    ------
    ValueError
        Without a spot diameter, if the grid matches no known platform, if spots would be wider than their distance
        (coordinates in array rows and columns, px of the reduced image, or µm), or if `microns_per_pixel` contradicts a
        Visium grid.

    Examples
    --------
    >>> grid = 290.0 * np.stack(np.meshgrid(range(5), range(5)), axis=-1).reshape(-1, 2)
    >>> infer_um_per_px(grid, {"spot_diameter_fullres": 145.0}).source
    'ST: spots of 100 µm'
    """
    spot_px, fiducial_px = _positive(scalefactors, "spot_diameter_fullres"), _positive(scalefactors, FIDUCIAL)
    um_per_px = _positive(scalefactors, "microns_per_pixel")
    if spot_um is not None and spot_px is None:
        raise ValueError(
            f"`spot_um` needs `spot_diameter_fullres` in the scale factors, found {sorted(scalefactors)}. "
            "Pass `um_per_px=` instead."
        )
    grid = lattice(xy)
    check_units(xy, grid, scalefactors)
    if spot_um is not None and spot_px is not None:
        return PixelSize(spot_um / spot_px, f"given: spots of {spot_um:g} µm", doubt_of_grid(grid, spot_um / spot_px))
    if um_per_px is not None:
        _check_stated(grid, um_per_px, spot_px, scalefactors)
        return PixelSize(um_per_px, "scale factors: microns_per_pixel", doubt_of_grid(grid, um_per_px))
    if spot_px is None and not (fiducial_px and _agrees(grid, fiducial_px)):
        raise ValueError(_unknown(grid, scalefactors))
    return (
        _from_grid(grid, spot_px, fiducial_px)
        or (_from_fiducials(fiducial_px, spot_px) if grid is None else None)
        or _from_spot(grid, spot_px, xy, scalefactors)
    )


def doubt_of_grid(grid: Lattice | None, um_per_px: float) -> str:
    """Doubt about a stated pixel size: a hexagonal grid that does not match Visium, or ""."""
    if grid is None or grid.kind != "hexagonal" or abs(grid.pitch * um_per_px / 100 - 1) <= _CONTRADICTION:
        return ""
    return (
        f"At {um_per_px:.4g} µm per px the spots lie {grid.pitch * um_per_px:.4g} µm apart on a hexagonal grid, but "
        f"on Visium the distance is 100 µm ({100 / grid.pitch:.4g} µm per px). Check that it is the size of a pixel "
        "of the "
        "full-resolution image."
    )


def check_units(xy: np.ndarray, grid: Lattice | None, scalefactors: Mapping[str, object]) -> None:
    """Raise ValueError if spots are wider than their distance: coordinates and diameter have different units."""
    spot_px = _positive(scalefactors, "spot_diameter_fullres")
    if spot_px is None or grid is None or spot_px <= _TOUCHING * grid.pitch:
        return
    likely = likely_unit(xy, grid, scalefactors) or "Coordinates must be x and y in px of the full-resolution image."
    raise ValueError(
        f"The spots would be {spot_px:.4g} px wide and only {grid.pitch:.4g} px apart: coordinates and "
        f"`spot_diameter_fullres` do not have the same unit. {likely}"
    )


def likely_unit(xy: np.ndarray, grid: Lattice, scalefactors: Mapping[str, object]) -> str:
    """Likely unit of the coordinates and the remedy, as a sentence; "" if unknown."""
    spot_px = _positive(scalefactors, "spot_diameter_fullres")
    platform = _PLATFORMS[grid.kind]
    if grid.pitch < _INDEX_PITCH and np.array_equal(xy, np.rint(xy)):
        return (
            "The coordinates look like rows and columns of the array. `obsm['spatial']` must contain x and y in px "
            "of the "
            "full-resolution image (`pxl_col_in_fullres`, `pxl_row_in_fullres`)."
        )
    for key in scalefactors:
        name = re.fullmatch("tissue_(.+)_scalef", key)
        if name is None or spot_px is None:
            continue
        scale = _checks.factor(scalefactors, key)
        low, high = (um / platform.pitch_um for um in platform.plausible_um)
        if scale < 1 and low <= spot_px * scale / grid.pitch <= high:
            return f"The coordinates look like px of the {name[1]} image: divide them by `{key}` ({scale:.4g})."
    if abs(grid.pitch / platform.pitch_um - 1) < _NEAR:
        return (
            f"The coordinates look like µm ({platform.name} has {platform.pitch_um:g} µm between spots): divide them "
            "by the µm per px of the full-resolution image."
        )
    return ""


def _check_stated(
    grid: Lattice | None, um_per_px: float, spot_px: float | None, scalefactors: Mapping[str, Any]
) -> None:
    """Raise ValueError if spots with Visium's ratio of width to distance contradict `microns_per_pixel`."""
    if not doubt_of_grid(grid, um_per_px) or grid is None or spot_px is None:
        return
    low, high = (um / 100 for um in _PLATFORMS["hexagonal"].plausible_um)
    apart, wide = grid.pitch * um_per_px, spot_px * um_per_px
    if low <= spot_px / grid.pitch <= high:
        raise ValueError(
            f"`microns_per_pixel` ({um_per_px:.4g}) contradicts the spots, which would be {wide:.4g} µm wide and "
            f"{apart:.4g} µm apart; on the hexagonal grid of Visium they are 55 to 70 µm wide and 100 µm apart "
            f"({100 / grid.pitch:.4g} µm per px). {REMEDY}"
        )


def _agrees(grid: Lattice | None, fiducial_px: float) -> bool:
    """Whether Visium's fiducials and grid give the same pixel size."""
    if grid is None or grid.kind != "hexagonal":
        return False
    return abs(fiducial_px * 100 / grid.pitch / _FIDUCIAL_UM - 1) <= _CONTRADICTION


def _unknown(grid: Lattice | None, scalefactors: Mapping[str, Any]) -> str:
    hint = ""
    if grid is not None:
        platform = _PLATFORMS[grid.kind]
        hint = (
            f" If they are spots of {platform.name} ({grid.kind} grid, {platform.pitch_um:g} µm apart), it is "
            f"{platform.pitch_um / grid.pitch:.4g}."
        )
    return (
        "The pixel size is not known: the scale factors have no `spot_diameter_fullres`, "
        f"found {sorted(scalefactors)}. Pass `um_per_px=` (µm per pixel of the full-resolution image).{hint}"
    )


def _from_grid(grid: Lattice | None, spot_px: float | None, fiducial_px: float | None) -> PixelSize | None:
    """From the distance between neighbours; the diameter, if known, must also match the platform."""
    if grid is None:
        return None
    platform = _PLATFORMS[grid.kind]
    um_per_px = platform.pitch_um / grid.pitch
    source = f"{platform.name}: {platform.pitch_um:g} µm between spots"
    odd = []
    if fiducial_px is not None and grid.kind == "hexagonal" and not _agrees(grid, fiducial_px):
        odd.append(f"its fiducials would be {fiducial_px * um_per_px:.0f} µm wide where they have {_FIDUCIAL_UM:g} µm")
    if spot_px is not None:
        spot_um = spot_px * um_per_px
        if abs(spot_um / platform.spot_um - 1) <= _SPOT_TOLERANCE and not odd:
            return PixelSize(platform.spot_um / spot_px, f"{platform.name}: spots of {platform.spot_um:g} µm")
        plausible = platform.plausible_um[0] <= spot_um <= platform.plausible_um[1]
        if not plausible and (fiducial_px is None or grid.kind != "hexagonal"):
            return None
        if not platform.usual_um[0] <= spot_um <= platform.usual_um[1]:
            odd.append(f"its spots would be {spot_um:.0f} µm wide where {platform.name} has {platform.spot_um:g} µm")
    doubt = ""
    if odd:
        doubt = (
            f"The {grid.kind} grid was taken for {platform.name} ({platform.pitch_um:g} µm between spots, "
            f"{um_per_px:.4g} µm per px), but {' and '.join(odd)}. Pass `um_per_px=` to be sure."
        )
    return PixelSize(um_per_px, source, doubt)


def _from_fiducials(fiducial_px: float | None, spot_px: float | None) -> PixelSize | None:
    low, high = _FIDUCIAL_TO_SPOT
    if fiducial_px is None or spot_px is None or not low <= fiducial_px / spot_px <= high:
        return None
    return PixelSize(_FIDUCIAL_UM / fiducial_px, "Visium: fiducials of 105 µm")


def _from_spot(
    grid: Lattice | None, spot_px: float | None, xy: np.ndarray, scalefactors: Mapping[str, Any]
) -> PixelSize:
    if spot_px is None:
        raise ValueError(_unknown(grid, scalefactors))
    if grid is not None:
        near = abs(grid.pitch / _PLATFORMS[grid.kind].pitch_um - 1) < _NEAR
        raise ValueError(
            f"The platform is not known: the spots lie {grid.pitch:.4g} px apart on a {grid.kind} grid and are "
            f"{spot_px:.4g} px wide, which is neither Visium (hexagonal, 100 µm apart, 55 to 70 µm wide) nor ST "
            f"(square, 200 µm apart, 100 µm wide). {likely_unit(xy, grid, scalefactors) + ' ' if near else ''}{REMEDY}"
        )
    um_per_px = _PLATFORMS["hexagonal"].spot_um / spot_px
    return PixelSize(
        um_per_px,
        "assumed: Visium spots of 55 µm",
        f"The platform cannot be determined from the positions of {len(xy)} spots, because they form no regular "
        f"grid; Visium spots of 55 µm were assumed ({um_per_px:.4g} µm per px). {REMEDY}",
    )


def _positive(scalefactors: Mapping[str, Any], key: str) -> float | None:
    """Scale factor, None if it is missing; ValueError if it is not a positive number."""
    if scalefactors.get(key) is None:
        return None
    return _checks.factor(scalefactors, key)


_UM = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4}  # OME's default unit is µm
_UNIT_UM = {2: 25_400.0, 3: 10_000.0}  # ResolutionUnit: inch, centimetre
_PLAUSIBLE_UM = (0.05, 10.0)  # outside this range, e.g. a printer's resolution (72 dpi: 353 µm)


def tiff_um_per_px(tiff: tifffile.TiffFile, number: int) -> float | None:
    """µm per pixel of the finest level of series `number`; None if the file does not state it."""
    page = tiff.series[number].keyframe
    found = None
    if tiff.is_ome:
        found = _ome(tiff.ome_metadata or "", number)
    if found is None:
        found = _aperio(page.description or "")
    return _plausible(_resolution(page) if found is None else found)


def openslide_um_per_px(properties: Mapping[str, str]) -> float | None:
    """µm per pixel from OpenSlide's properties, averaged over both directions."""
    values = [_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy"]
    known = [v for v in values if v is not None]
    return _plausible(sum(known) / len(known)) if known else None


def _ome(xml: str, series: int) -> float | None:
    pixels = re.findall(r"<(?:\w+:)?Pixels\b[^>]*>", xml)
    if not pixels:
        return None
    tag = pixels[series] if series < len(pixels) else pixels[0]
    size = re.search(r'\bPhysicalSizeX="([^"]+)"', tag)
    unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', tag)
    value = _number(size[1]) if size else None
    factor = _UM.get(unit[1].replace("\u03bc", "µ") if unit else "µm")  # micro sign or Greek mu
    return None if value is None or factor is None else value * factor


def _aperio(description: str) -> float | None:
    found = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", description)
    return _number(found[1]) if found else None


def _resolution(page: Any) -> float | None:
    tags = page.tags
    unit = int(tags["ResolutionUnit"].value) if "ResolutionUnit" in tags else 2
    if "XResolution" not in tags or unit not in _UNIT_UM:
        return None
    over, under = tags["XResolution"].value
    return _UNIT_UM[unit] * under / over if over and under else None


def _number(text: Any) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _plausible(um_per_px: float | None) -> float | None:
    low, high = _PLAUSIBLE_UM
    return um_per_px if um_per_px is not None and low <= um_per_px <= high else None
