"""Spots, image and pixel size of the sections in an AnnData or SpatialData, used by all packages."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._section import spatialdata_elements as elements
from stampy._section.coordinates import (
    Places,
    coordinates_of,
    has_coordinates,
    has_images,
    library_key_of,
    placed,
    places_of,
    resolved_library_key,
    side_by_side,
)
from stampy._section.image.choose import (
    IMAGE_REMEDY,
    ImageOptions,
    ImageSource,
    image_key_of,
    library_image,
    open_image,
)
from stampy._section.image.image_checks import check_indices, check_inside, doubt_of_axes
from stampy._section.image.slide_image import SlideImage, open_spatialdata_image
from stampy._section.libraries import (
    Library,
    check_one_section,
    image_path_of,
    images_of,
    libraries_of,
    library_named,
    section_column,
)
from stampy._section.pixel_size import PixelSize, doubt_of_grid, infer_um_per_px, lattice, likely_unit
from stampy._section.spatialdata_elements import Region

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = [
    "ImageOptions",
    "ImageSource",
    "PlacedSection",
    "Places",
    "coordinates_of",
    "has_coordinates",
    "has_images",
    "library_key_of",
    "open_image",
    "places_of",
    "resolved_library_key",
    "sections_of",
    "side_by_side",
]

_SCALE_TOLERANCE = 0.3  # of the pixel size; rescaled images often state a slightly wrong size
Need = Literal["image", "scale", "neighbors"]


@dataclass(frozen=True, eq=False)
class PlacedSection:
    """One section: its spots, and its image and pixel size, which are found on first use.

    Coordinates are in px of the full-resolution image, the unit of `adata.obsm["spatial"]` and of the shapes of a
    SpatialData. For a SpatialData they are in the axes of the coordinate system (`global` if it exists), so an element
    that is rotated, reflected or stretched there is drawn in that orientation.
    """

    name: str  # "" if the table is one section
    rows: np.ndarray  # (m,) rows of the table
    xy: np.ndarray  # (m, 2) float64
    source: str  # where the coordinates were found
    library_name: str | None  # key in uns["spatial"]; None without entry
    library: Mapping[str, Any]  # the entry: images, scalefactors, metadata; {} without entry
    factors: Mapping[str, Any]  # scale factors, in the units of the coordinates
    image_options: ImageOptions
    region: Region | None = None  # region of a SpatialData
    sdata: Any = None  # SpatialData with images

    @property
    def title(self) -> str:
        """Title in plots: its name, or that of its entry in `uns["spatial"]`."""
        return self.name or self.library_name or ""

    @property
    def spot_px(self) -> float | None:
        """Diameter of a spot in px; None if unknown."""
        if self.factors.get("spot_diameter_fullres") is None:
            return None
        return _checks.factor(self.factors, "spot_diameter_fullres")

    @cached_property
    def image(self) -> SlideImage | None:
        """The finest or the selected image, opened but not read; None without image.

        Raises
        ------
        KeyError, ValueError
            The selected image does not exist, or the choice is ambiguous.
        """
        return self._found[0]

    @property
    def note(self) -> str:
        """Message about the choice of the image, or ""."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[SlideImage | None, str]:
        options = self.image_options
        if options.image is not None:
            return open_image(options.image), ""  # type: ignore[arg-type]
        if self.sdata is not None:
            spots = self.region.element if self.region is not None else None
            key = image_key_of(self.sdata, options.image_key, spots)  # type: ignore[arg-type]
            return open_spatialdata_image(self.sdata.images[key], scale=self._scale(key), name=key), ""
        where = f"adata.uns['spatial'][{self.library_name or '...'!r}]"
        return library_image(self.library, options.image_key, where=where, of=self.prefix)  # type: ignore[arg-type]

    @cached_property
    def image_xy(self) -> np.ndarray:
        """Centres of the spots (m, 2) in px of `image`; divided by `image.scale`, in px of the full resolution."""
        image = self.require_image()
        if self.image_options.image is None and self.region is not None and self.sdata is not None:
            return elements.apply(self._to_image(image.name), self.region.xy)
        return self.xy * image.scale

    @cached_property
    def image_to_xy(self) -> np.ndarray:
        """Affine matrix (3, 3) from px of `image` to the coordinates of the spots."""
        image = self.require_image()
        if self.image_options.image is None and self.region is not None and self.sdata is not None:
            system = elements.shared_systems(self.region.element, self.sdata.images[image.name])[0]
            to_world = elements.affine(self.sdata.images[image.name], system)
            unit = np.sqrt(abs(np.linalg.det(elements.affine(self.region.element, system)[:2, :2])))
            return np.diag([1 / unit, 1 / unit, 1.0]) @ to_world
        return np.diag([1 / image.scale, 1 / image.scale, 1.0])

    @cached_property
    def pixel(self) -> PixelSize | None:
        """Pixel size of the full-resolution image, with its source and doubt; None if unknown."""
        try:
            return self.require_pixel()
        except ValueError:
            return None

    @property
    def um_per_image_px(self) -> float:
        """µm per pixel of `image`."""
        return self.require_pixel().um_per_px / self.require_image().scale

    def require_image(self) -> SlideImage:
        """The image; KeyError without image."""
        if self.image is None:
            raise KeyError(self._no_image())
        return self.image

    def require_pixel(self) -> PixelSize:
        """The pixel size; ValueError if it is unknown."""
        return self._pixel

    @cached_property
    def _pixel(self) -> PixelSize:
        if self.image_options.um_per_px is not None:
            return PixelSize(float(self.image_options.um_per_px), "given: um_per_px", self._contradiction())  # type: ignore[arg-type]
        try:
            return infer_um_per_px(self.xy, self.factors, spot_um=self.image_options.spot_um)
        except ValueError as error:
            if self.image_options.image is not None and (stated := self._stated_um_per_px()):
                raise ValueError(f"{error} The image file states {stated:.4g}.") from error
            raise

    def _stated_um_per_px(self) -> float | None:
        """µm per pixel of the full-resolution image, as stated by the image file."""
        named = self.image_options.image is not None or bool(image_path_of(self.library))  # type: ignore[arg-type]
        image = self.image if named else None
        return None if image is None or image.um_per_px is None else image.um_per_px * image.scale

    def doubt_of_file(self) -> str:
        """Warning if the image file states another pixel size than was found; else ""."""
        stated, found = self._stated_um_per_px(), self.require_pixel()
        if (
            stated is None
            or self.image_options.um_per_px is not None
            or abs(stated / found.um_per_px - 1) <= _SCALE_TOLERANCE
        ):
            return ""
        return (
            f"{self.prefix}The image file states {stated:.4g} µm per px, where {found.um_per_px:.4g} was found "
            f"({found.source}) and used. Pass `um_per_px=` with the right one."
        )

    def _contradiction(self) -> str:
        """Doubt about the pixel size given by the user, or about the unit of the coordinates."""
        if self.spot_px is None:
            return ""
        grid = lattice(self.xy)
        if grid is None:
            return ""
        across = self.spot_px / grid.pitch
        if across > 1:
            return likely_unit(self.xy, grid, self.factors) or (
                f"The spots would be {self.spot_px:.4g} px wide and only {grid.pitch:.4g} px apart: coordinates and "
                "`spot_diameter_fullres` do not have the same unit. Coordinates must be px of the full-resolution "
                "image."
            )
        return doubt_of_grid(grid, float(self.image_options.um_per_px)) if across >= 0.45 else ""  # type: ignore[arg-type]

    @property
    def prefix(self) -> str:
        """Prefix of messages about the section."""
        return f"Section {self.name!r}: " if self.name else ""

    def _to_image(self, key: str) -> np.ndarray:
        """Matrix (3, 3) from the units of the region to px of an image of the SpatialData."""
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
            return f"{self.prefix}There is no image: `adata.uns['spatial']` has no entry for it. {IMAGE_REMEDY}"
        images = images_of(self.library)
        return (
            f"{self.prefix}No image with a scale factor in `adata.uns['spatial'][{self.library_name!r}]`: images "
            f"{_checks.shortlist(images)}, scale factors "
            f"{_checks.shortlist(self.library.get('scalefactors', {}))}. {IMAGE_REMEDY}"
        )


def sections_of(
    data: AnnData | SpatialData,
    image_options: ImageOptions | None = None,
    *,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    needs: Collection[Need] = (),
    notes: list[str] | None = None,
) -> list[PlacedSection]:
    """Sections of a table, ordered by name.

    Sections are separated by `library_key`. Without it, the sections are the regions of a SpatialData, or the whole
    table of an AnnData.

    Parameters
    ----------
    data
        AnnData with ``obsm["spatial"]``, or a SpatialData whose table annotates shapes, labels or points.
    image_options
        Image and scale as specified by the user.
    library_key
        Column of ``obs`` that names the section of each spot.
    table_key
        The table of a SpatialData.
    needs
        Find the ``"image"`` or ``"scale"`` now, or raise an error. ``"neighbors"`` and ``"image"`` raise an error if
        several sections overlap.
    notes
        List to which messages are appended; None: messages are warnings.

    Raises
    ------
    KeyError
        There are no coordinates, no such column, or no image although it is needed.
    ValueError
        The choice of the image is ambiguous, most spots are outside it, the pixel size is needed and unknown, or
        several sections overlap.
    """
    image_options = image_options or ImageOptions()
    table = _utils.table_of(data, table_key)
    _checks.not_empty(table, genes=False)
    libraries = libraries_of(table)
    places, regions = placed(data, table, library_key)
    if "neighbors" in needs or "image" in needs:
        check_one_section(table, places.xy, places.codes, libraries, library_key=library_key, given=image_options.image)
    named = _library_names(table, libraries, places.names, library_key)
    pictured = data if data is not table and len(getattr(data, "images", ())) else None
    found = []
    for code, name in enumerate(places.names):
        rows = np.flatnonzero(places.codes == code)
        library: Library = libraries.get(named[name] or "", {})
        region = regions.get(name)
        factors = dict(library.get("scalefactors", {}))
        if region is not None and region.diameter is not None:
            factors["spot_diameter_fullres"] = region.diameter
        if region is not None:
            region = region._replace(rows=rows, xy=region.xy[np.searchsorted(region.rows, rows)])
        found.append(
            PlacedSection(
                name=name,
                rows=rows,
                xy=places.xy[rows],
                source=places.source,
                library_name=named[name],
                library=library,
                factors=factors,
                image_options=image_options.of(name, places.names),
                region=region,
                sdata=pictured,
            )
        )
    for section in found:
        for note in _resolve_needs(section, needs, table, libraries):
            _checks.warn(note) if notes is None else notes.append(note)
    return found


def _library_names(
    table: AnnData, libraries: Mapping[str, Library], names: list[str], library_key: str | None
) -> dict[str, str | None]:
    """Entry of `uns["spatial"]` for each section: that of the same name, or the only entry for the only section."""
    found = {name: library_named(libraries, name) for name in names}
    if len(names) == 1 and found[names[0]] is None and library_key is None:
        alone = next(iter(libraries)) if len(libraries) == 1 else section_column(table, libraries)
        found[names[0]] = alone
    return found


def _resolve_needs(
    section: PlacedSection, needs: Collection[Need], table: AnnData, libraries: Mapping[str, Library]
) -> Iterator[str]:
    """Find what is needed; yield warnings."""
    if "image" in needs:
        if section.image_options.image is None and section.sdata is None and section.library_name is None:
            _no_library(section, table, libraries)
        check_indices(section, table)
        section.require_image()
        if section.note:
            yield section.note
    if "scale" in needs and (doubt := section.require_pixel().doubt):
        yield section.prefix + doubt
    if "scale" in needs and "image" in needs and (doubt := section.doubt_of_file()):
        yield doubt
    if "image" in needs:
        yield from filter(None, (check_inside(section), doubt_of_axes(section, table)))


def _no_library(section: PlacedSection, table: AnnData, libraries: Mapping[str, Library]) -> None:
    """Raise for a section that needs an image but has no entry in `uns["spatial"]`."""
    _checks.has_key(
        table.uns, _keys.UNS_SPATIAL, slot="adata.uns", needs="stampy needs the image there, or pass it with `image=`."
    )
    if not libraries:
        held = table.uns[_keys.UNS_SPATIAL] or {}  # may be None, or a dict without sections
        entries = ", ".join(f"{key!r}: {type(entry).__name__}" for key, entry in held.items())
        raise KeyError(
            "`adata.uns['spatial']` has no section: a section is a dict with `images` and `scalefactors` there; found "
            f"{entries or 'an empty dict'}. Pass the image with `image=`."
        )
    if not section.name:
        raise ValueError(
            f"`adata.uns['spatial']` has {len(libraries)} sections ({_checks.shortlist(libraries)}); name the column "
            "of `adata.obs` that separates them with `library_key=`, or pass the image with `image=`."
        )
    raise KeyError(
        f"Section {section.name!r} not found in `adata.uns['spatial']`. Available: {_checks.shortlist(libraries)}. "
        "Pass its image with `image=`."
    )
