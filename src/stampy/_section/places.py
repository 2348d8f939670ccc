"""Where the spots of a table are, and which section each belongs to; no image is looked for here."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._section import elements
from stampy._section.coordinates import coordinates
from stampy._section.elements import Region
from stampy._section.libraries import has_image, libraries_of
from stampy._section.overlay import check_one_section, matching_columns, section_column, warn_of_indices

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = [
    "Places",
    "coordinates_of",
    "has_coordinates",
    "has_images",
    "library_key_of",
    "placed",
    "places_of",
    "side_by_side",
    "told_apart",
]


class Places(NamedTuple):
    """Where the spots of a table are, and in which section."""

    xy: np.ndarray  # (n, 2) float64, in px of the section's full-resolution image
    codes: np.ndarray  # (n,) int64, number of the section
    names: list[str]  # of the sections; [""] for a table that is one section
    source: str  # where the coordinates are from


def places_of(
    data: AnnData | SpatialData,
    *,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    neighbors: bool = True,
) -> Places:
    """Coordinates and section of every spot, for what needs no image.

    With `neighbors` a table in which several sections lie on top of each other is refused, as by :func:`sections_of`.
    """
    table = _utils.table_of(data, table_key)
    places, _ = placed(data, table, library_key)
    if neighbors:
        check_one_section(table, places.xy, places.codes, libraries_of(table), library_key=library_key)
        warn_of_indices(places.xy, places.codes)
    return places


def side_by_side(places: Places) -> np.ndarray:
    """Coordinates (n, 2) with the sections beside each other, far enough that spots of two are never neighbours.

    The first section stays where it is.
    """
    xy = places.xy.copy()
    extents = [np.ptp(xy[places.codes == code], axis=0).max() for code in range(len(places.names))]
    for code in range(1, len(places.names)):
        before, here = places.codes == code - 1, places.codes == code
        right = xy[before, 0].max() + 10 * max(*extents, 1.0)
        xy[here, 0] += right - xy[here, 0].min()
    return xy


def coordinates_of(data: AnnData | SpatialData, table_key: str = _keys.TABLE) -> np.ndarray:
    """Centres of all spots of the table, (n, 2) float64, each in px of its section's full-resolution image.

    Raises
    ------
    KeyError
        Where there are none.
    """
    return places_of(data, table_key=table_key, neighbors=False).xy


def library_key_of(
    data: AnnData | SpatialData, library_key: str | None = None, table_key: str = _keys.TABLE
) -> str | None:
    """The column that tells the sections apart: `library_key`, or that of several regions of a SpatialData."""
    table = _utils.table_of(data, table_key)
    if library_key is not None or data is table or not elements.is_linked(data, table):
        return library_key
    return elements.several_regions(table)


def told_apart(data: AnnData | SpatialData, library_key: str | None, table_key: str) -> str | None:
    """As `library_key_of`; or, with a warning, the one column whose values are the entries of ``uns["spatial"]``."""
    table = _utils.table_of(data, table_key)
    key = library_key_of(data, library_key, table_key)
    libraries = libraries_of(table)
    if key is not None or len(libraries) < 2 or section_column(table, libraries) is not None:
        return key
    columns = matching_columns(table, libraries)
    if len({tuple(np.unique(table.obs[c].astype(str), return_inverse=True)[1].tolist()) for c in columns}) != 1:
        return None
    _checks.warn(
        f"`adata.uns['spatial']` has {len(libraries)} sections ({_checks.shortlist(libraries)}); they were told apart "
        f"by `adata.obs[{columns[0]!r}]`. Give `library_key={columns[0]!r}` if that is right, or the right column."
    )
    return columns[0]


def has_coordinates(data: AnnData | SpatialData, table_key: str = _keys.TABLE) -> bool:
    """Whether the spots have coordinates, of whatever worth."""
    table = _utils.table_of(data, table_key)
    return _keys.SPATIAL in table.obsm or (data is not table and elements.is_linked(data, table))


def has_images(data: AnnData | SpatialData, table_key: str = _keys.TABLE) -> bool:
    """Whether any section has an image."""
    table = _utils.table_of(data, table_key)
    if data is not table and len(getattr(data, "images", ())):
        return True
    return any(has_image(library) for library in libraries_of(table).values())


def placed(
    data: AnnData | SpatialData, table: AnnData, library_key: str | None
) -> tuple[Places, dict[str, Region | None]]:
    """Coordinates and sections of all spots; the region in which each section lies."""
    if data is table or not elements.is_linked(data, table):
        xy, source = coordinates(table)
        return Places(xy, *_checks.libraries(table, library_key), source), {}
    xy = np.empty((table.n_obs, 2))
    regions = elements.regions_of(data, table)
    region_codes = np.empty(table.n_obs, dtype=np.int64)
    for i, region in enumerate(regions):
        system = elements.shared_systems(region.element)[0]
        matrix = elements.affine(region.element, system)
        unit = np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        xy[region.rows] = elements.apply(matrix, region.xy) / unit
        region_codes[region.rows] = i
    source = ", ".join(f"sdata.{r.kind}[{r.name!r}]" for r in regions[:3])
    if library_key is None:
        names = [r.name for r in regions]
        return Places(xy, region_codes, names, source), dict(zip(names, regions, strict=True))
    codes, names = _checks.libraries(table, library_key)
    within = {}
    for code, name in enumerate(names):
        here = np.unique(region_codes[codes == code])
        if len(here) > 1:
            raise ValueError(
                f"Section {name!r} of `library_key={library_key!r}` lies in {len(here)} regions of the SpatialData: "
                f"{_checks.shortlist(regions[i].name for i in here)}, each with coordinates of its own. Leave "
                "`library_key` out: the regions are the sections."
            )
        within[name] = regions[here[0]]
    return Places(xy, codes, names, source), within
