"""What a section is: from AnnData or SpatialData to its spots, its image and the size of its pixels. The one door."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._section import elements
from stampy._section.coordinates import coordinates
from stampy._section.elements import Region
from stampy._section.image import SlideImage
from stampy._section.inside import check_inside
from stampy._section.libraries import has_image, libraries_of, library_named
from stampy._section.open import open_spatialdata_image
from stampy._section.overlay import check_one_section, matching_columns, section_column
from stampy._section.pictures import GIVE, ImageSource, Wishes, image_key_of, library_image, open_image
from stampy._section.scale import PixelSize, infer_um_per_px

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = [
    "ImageSource",
    "Places",
    "Section",
    "Wishes",
    "coordinates_of",
    "has_coordinates",
    "has_images",
    "library_key_of",
    "open_image",
    "places_of",
    "sections_of",
    "told_apart",
]

Need = Literal["image", "scale", "neighbors"]


class Places(NamedTuple):
    """Where the spots of a table are, and in which section."""

    xy: np.ndarray  # (n, 2) float64, in px of the section's full-resolution image
    codes: np.ndarray  # (n,) int64, number of the section
    names: list[str]  # of the sections; [""] for a table that is one section
    source: str  # where the coordinates are from


@dataclass(frozen=True, eq=False)
class Section:
    """One section: its spots, and (looked for when they are first asked for) its image and the size of its pixels.

    Coordinates are in px of the full-resolution image, the unit in which `adata.obsm["spatial"]` and the shapes of a
    SpatialData are given. In a SpatialData they lie in the axes of the coordinate system (`global` where there is one),
    so an element that is turned, flipped or stretched there is drawn as it lies.
    """

    name: str  # "" for a table that is one section
    rows: np.ndarray  # (m,) rows of the table
    xy: np.ndarray  # (m, 2) float64
    source: str  # where the coordinates are from
    library_name: str | None  # the key in uns["spatial"], None where there is no entry
    library: Mapping[str, Any]  # the entry: images, scalefactors, metadata; {} where there is none
    factors: Mapping[str, Any]  # scale factors, in the units of the coordinates
    wishes: Wishes
    region: Region | None = None  # of a SpatialData
    sdata: Any = None  # a SpatialData that has images

    @property
    def title(self) -> str:
        """What plots call it: its name, or that of its entry in `uns["spatial"]`."""
        return self.name or self.library_name or ""

    @property
    def spot_px(self) -> float | None:
        """Diameter of a spot; None where it is not known."""
        if self.factors.get("spot_diameter_fullres") is None:
            return None
        return _checks.factor(self.factors, "spot_diameter_fullres")

    @cached_property
    def image(self) -> SlideImage | None:
        """The finest image, or the one asked for, opened and not read; None where the section has none.

        Raises
        ------
        KeyError, ValueError
            Where the image asked for is not there, or it is not clear which is meant.
        """
        return self._found[0]

    @property
    def note(self) -> str:
        """What to tell the user about the choice of the image, or ""."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[SlideImage | None, str]:
        wish = self.wishes
        if wish.image is not None:
            return open_image(wish.image), ""  # type: ignore[arg-type]
        if self.sdata is not None:
            spots = self.region.element if self.region is not None else None
            key = image_key_of(self.sdata, wish.image_key, spots)  # type: ignore[arg-type]
            return open_spatialdata_image(self.sdata.images[key], scale=self._scale(key), name=key), ""
        where = f"adata.uns['spatial'][{self.library_name or '...'!r}]"
        return library_image(self.library, wish.image_key, where=where, of=self.prefix)  # type: ignore[arg-type]

    @cached_property
    def image_xy(self) -> np.ndarray:
        """Centres of the spots (m, 2) in px of `image`. Over `image.scale` they are in px of the full resolution."""
        image = self.require_image()
        if self.wishes.image is None and self.region is not None and self.sdata is not None:
            return elements.apply(self._to_image(image.name), self.region.xy)
        return self.xy * image.scale

    @cached_property
    def image_to_xy(self) -> np.ndarray:
        """From px of `image` to the coordinates of the spots, affine (3, 3)."""
        image = self.require_image()
        if self.wishes.image is None and self.region is not None and self.sdata is not None:
            system = elements.shared_systems(self.region.element, self.sdata.images[image.name])[0]
            to_world = elements.affine(self.sdata.images[image.name], system)
            unit = np.sqrt(abs(np.linalg.det(elements.affine(self.region.element, system)[:2, :2])))
            return np.diag([1 / unit, 1 / unit, 1.0]) @ to_world
        return np.diag([1 / image.scale, 1 / image.scale, 1.0])

    @cached_property
    def pixel(self) -> PixelSize | None:
        """Size of a px of the full-resolution image, its source and what is doubtful; None where it is not known."""
        try:
            return self.require_pixel()
        except ValueError:
            return None

    @property
    def um_per_image_px(self) -> float:
        """µm per pixel of `image`."""
        return self.require_pixel().um_per_px / self.require_image().scale

    def require_image(self) -> SlideImage:
        """The image; KeyError where there is none."""
        if self.image is None:
            raise KeyError(self._no_image())
        return self.image

    def require_pixel(self) -> PixelSize:
        """The size of a pixel; ValueError where it is not known."""
        return self._pixel

    @cached_property
    def _pixel(self) -> PixelSize:
        if self.wishes.um_per_px is not None:
            return PixelSize(float(self.wishes.um_per_px), "given: um_per_px")  # type: ignore[arg-type]
        return infer_um_per_px(self.xy, self.factors, spot_um=self.wishes.spot_um)

    @property
    def prefix(self) -> str:
        """How messages about it begin."""
        return f"Section {self.name!r}: " if self.name else ""

    def _to_image(self, key: str) -> np.ndarray:
        """From the region's own units to px of an image of the SpatialData, (3, 3)."""
        image = self.sdata.images[key]
        system = elements.shared_systems(self.region.element, image)[0]  # type: ignore[union-attr]
        to_world = elements.affine(self.region.element, system)  # type: ignore[union-attr]
        return np.linalg.solve(elements.affine(image, system), to_world)

    def _scale(self, key: str) -> float:
        if self.region is None:
            return 1.0
        return float(np.sqrt(abs(np.linalg.det(self._to_image(key)[:2, :2]))))

    def _no_image(self) -> str:
        if self.library_name is None:
            return f"{self.prefix}There is no image: `adata.uns['spatial']` has no entry for it. {GIVE}"
        return (
            f"{self.prefix}No image with a scale factor in `adata.uns['spatial'][{self.library_name!r}]`: images "
            f"{_checks.shortlist(self.library.get('images', {}))}, scale factors "
            f"{_checks.shortlist(self.library.get('scalefactors', {}))}. {GIVE}"
        )


def sections_of(
    data: AnnData | SpatialData,
    wishes: Wishes | None = None,
    *,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    needs: Collection[Need] = (),
    notes: list[str] | None = None,
) -> list[Section]:
    """The sections of a table, in the order of their names.

    Sections are told apart by `library_key`; without it the regions of a SpatialData are the sections, and an AnnData
    is one section.

    Parameters
    ----------
    data
        AnnData with ``obsm["spatial"]``, or a SpatialData whose table annotates shapes, labels or points.
    wishes
        What the user said about image and scale.
    library_key
        Column of ``obs`` that names the section of each spot.
    table_key
        The table of a SpatialData.
    needs
        What is looked for at once, and must be there: ``"image"``, ``"scale"``. ``"neighbors"`` (and ``"image"``)
        refuse a table in which several sections lie on top of each other.
    notes
        Where to put what the user is to know; None: it is warned about.

    Raises
    ------
    KeyError
        Where there are no coordinates, no such column, or no image that is needed.
    ValueError
        Where it is not clear which image is meant, most spots lie outside it, the size of its pixels is needed and not
        known, or several sections lie on top of each other.
    """
    wishes = wishes or Wishes()
    table = _utils.table_of(data, table_key)
    _checks.not_empty(table, genes=False)
    libraries = libraries_of(table)
    places, regions = _placed(data, table, library_key)
    if "neighbors" in needs or "image" in needs:
        check_one_section(table, places.xy, places.codes, libraries, library_key=library_key, given=wishes.image)
    named = _library_names(table, libraries, places.names, library_key)
    pictured = data if data is not table and len(getattr(data, "images", ())) else None
    found = []
    for code, name in enumerate(places.names):
        rows = np.flatnonzero(places.codes == code)
        library = libraries.get(named[name] or "", {})
        region = regions.get(name)
        factors = dict(library.get("scalefactors", {}))
        if region is not None and region.diameter is not None:
            factors["spot_diameter_fullres"] = region.diameter
        if region is not None:
            region = region._replace(rows=rows, xy=region.xy[np.searchsorted(region.rows, rows)])
        found.append(
            Section(
                name=name,
                rows=rows,
                xy=places.xy[rows],
                source=places.source,
                library_name=named[name],
                library=library,
                factors=factors,
                wishes=wishes.of(name, places.names),
                region=region,
                sdata=pictured,
            )
        )
    for section in found:
        for note in _satisfy(section, needs, table, libraries):
            _checks.warn(note) if notes is None else notes.append(note)
    return found


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
    places, _ = _placed(data, table, library_key)
    if neighbors:
        check_one_section(table, places.xy, places.codes, libraries_of(table), library_key=library_key)
    return places


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


def _placed(
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


def _library_names(
    table: AnnData, libraries: Mapping[str, Any], names: list[str], library_key: str | None
) -> dict[str, str | None]:
    """The entry of `uns["spatial"]` for each section: that with its name, or the only one for the only section."""
    found = {name: library_named(libraries, name) for name in names}
    if len(names) == 1 and found[names[0]] is None and library_key is None:
        alone = next(iter(libraries)) if len(libraries) == 1 else section_column(table, libraries)
        found[names[0]] = alone
    return found


def _satisfy(section: Section, needs: Collection[Need], table: AnnData, libraries: Mapping[str, Any]) -> Iterator[str]:
    """Find what is needed; yield what is doubtful."""
    if "image" in needs:
        if section.wishes.image is None and section.sdata is None and section.library_name is None:
            _no_library(section, table, libraries)
        section.require_image()
        if section.note:
            yield section.note
    if "scale" in needs and (doubt := section.require_pixel().doubt):
        yield section.prefix + doubt
    if "image" in needs and (doubt := check_inside(section)):
        yield doubt


def _no_library(section: Section, table: AnnData, libraries: Mapping[str, Any]) -> None:
    """Raise for a section whose image is needed and that has no entry in `uns["spatial"]`."""
    _checks.has_key(
        table.uns, _keys.UNS_SPATIAL, slot="adata.uns", needs="stampy needs the image there, or give it by `image=`."
    )
    if not libraries:
        entries = ", ".join(f"{key!r}: {type(entry).__name__}" for key, entry in table.uns[_keys.UNS_SPATIAL].items())
        raise KeyError(
            "`adata.uns['spatial']` has no section: a section is a dict with `images` and `scalefactors` there; found "
            f"{entries or 'an empty dict'}. Give the image by `image=`."
        )
    if not section.name:
        raise ValueError(
            f"`adata.uns['spatial']` has {len(libraries)} sections ({_checks.shortlist(libraries)}); name the column "
            "of `adata.obs` that tells them apart by `library_key=`, or give the image by `image=`."
        )
    raise KeyError(
        f"Section {section.name!r} not found in `adata.uns['spatial']`. Available: {_checks.shortlist(libraries)}. "
        "Give its image by `image=`."
    )
