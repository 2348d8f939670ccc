"""From AnnData or SpatialData to sections: each has its image, its spots in px of that image, the size of a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._section.image import SlideImage
from stampy._section.open import open_file, open_spatialdata_image
from stampy._section.scale import PixelSize, infer_um_per_px
from stampy._section.wsidata import is_wsidata, open_wsidata

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["ImageSource", "Section", "has_image", "open_image", "sections_of"]

ImageSource: TypeAlias = str | Path | np.ndarray | SlideImage

_BY_RESOLUTION = ("_full_image", "_hires_image", "_lowres_image")  # as the Visium reader of spatialdata-io names them


@dataclass(frozen=True, eq=False)
class Section:
    """The spots of one section on its image."""

    name: str
    rows: np.ndarray  # (m,) rows of the table
    xy: np.ndarray  # (m, 2) centres in px of the image
    image: SlideImage
    pixel: PixelSize  # of the coordinates' px, i.e. of the full-resolution image

    @property
    def um_per_image_px(self) -> float:
        """µm per pixel of `image`."""
        return self.pixel.um_per_px / self.image.scale


@dataclass(frozen=True)
class Wishes:
    """What the user said about images and scale; each value for all sections, or by section."""

    image: ImageSource | Mapping[str, ImageSource] | None = None
    image_key: str | Mapping[str, str] | None = None
    um_per_px: float | Mapping[str, float] | None = None
    spot_um: float | None = None

    def __post_init__(self) -> None:
        if self.um_per_px is not None and self.spot_um is not None:
            raise ValueError("Give `um_per_px` or `spot_um`, not both: either fixes the size of a pixel.")
        if self.image is not None and self.image_key is not None:
            raise ValueError("Give `image` or `image_key`, not both: either names the image.")
        values = self.um_per_px.values() if isinstance(self.um_per_px, Mapping) else [self.um_per_px]
        for name, value in [*(("um_per_px", v) for v in values), ("spot_um", self.spot_um)]:
            if value is not None:
                _checks.positive(name, value)

    def of(self, section: str, names: list[str]) -> Wishes:
        """The wishes for one of the sections."""
        if self.image is not None and not isinstance(self.image, Mapping) and len(names) > 1:
            raise ValueError(
                f"One `image` was given for {len(names)} sections; give one for each: image={{{names[0]!r}: ..., ...}}."
            )
        return Wishes(
            _pick(self.image, section, "image"),
            _pick(self.image_key, section, "image_key"),
            _pick(self.um_per_px, section, "um_per_px"),
            self.spot_um,
        )

    def pixel_size(self, xy: np.ndarray, scalefactors: Mapping[str, Any]) -> PixelSize:
        """As given, or inferred."""
        if self.um_per_px is not None:
            return PixelSize(float(self.um_per_px), "given: um_per_px")  # type: ignore[arg-type]
        return infer_um_per_px(xy, scalefactors, spot_um=self.spot_um)


def _pick(wish: Any, section: str, name: str) -> Any:
    if not isinstance(wish, Mapping):
        return wish
    _checks.has_key(wish, section, slot=name, needs="Sections are named by `library_key`; each needs an entry.")
    return wish[section]


def sections_of(
    data: AnnData | SpatialData, wishes: Wishes, *, library_key: str | None, table_key: str
) -> list[Section]:
    """The sections of a table, each with its image; warns of doubtful pixel sizes and of spots outside the image.

    Raises
    ------
    KeyError
        Where there are no coordinates or no image.
    ValueError
        Where it is not clear which image is meant, where most spots lie outside it, or how large its pixels are.
    """
    adata = _utils.table_of(data, table_key)
    _checks.not_empty(adata, genes=False)
    if data is not adata and wishes.image is None and len(data.images):
        sections = _from_spatialdata(data, adata, wishes)
    else:
        sections = _from_anndata(adata, wishes, library_key)
    for section in sections:
        if section.pixel.doubt:
            _checks.warn(_of(section.name) + section.pixel.doubt)
        _check_inside(section)
    return sections


def open_image(source: ImageSource) -> SlideImage:
    """A path, an array, a WSIData or a `SlideImage` as a `SlideImage`.

    Its pixels are those of the coordinates, unless it says so.

    Raises
    ------
    TypeError
        For anything else.
    """
    if isinstance(source, SlideImage):
        return source
    if isinstance(source, (str, Path)):
        return open_file(source)
    if is_wsidata(source):
        return open_wsidata(source)
    if hasattr(source, "shape") and hasattr(source, "dtype"):
        return SlideImage.from_array(source)
    raise TypeError(f"An image must be a path, an array, a SlideImage or a WSIData, found {type(source).__name__}.")


def _from_anndata(adata: AnnData, wishes: Wishes, library_key: str | None) -> list[Section]:
    xy = _checks.coordinates(adata)
    codes, names = _checks.libraries(adata, library_key)
    sections = []
    for code, name in enumerate(names):
        wish = wishes.of(name, names)
        rows = np.flatnonzero(codes == code)
        library = _library(adata, name if library_key is not None else None, needed=wish.image is None)
        image = open_image(wish.image) if wish.image is not None else _library_image(library, name, wish.image_key)
        pixel = wish.pixel_size(xy[rows], library.get("scalefactors", {}))
        sections.append(Section(name, rows, xy[rows] * image.scale, image, pixel))
    return sections


def _library(adata: AnnData, name: str | None, *, needed: bool) -> Mapping[str, Any]:
    """The entry of `uns["spatial"]` for a section: the only one, or that with its name; {} if none is needed."""
    libraries = _checks.library_images(adata)
    if name is None and len(libraries) == 1:
        return next(iter(libraries.values()))
    if name in libraries:
        return libraries[name]
    if not needed:
        return {}
    _checks.has_key(
        adata.uns, _keys.UNS_SPATIAL, slot="adata.uns", needs="stampy needs the image there, or give it by `image=`."
    )
    if name is None:
        raise ValueError(
            f"`adata.uns['spatial']` has {len(libraries)} sections ({_checks.shortlist(libraries)}); name the column "
            "of `adata.obs` that tells them apart by `library_key=`, or give the image by `image=`."
        )
    raise KeyError(
        f"Section {name!r} not found in `adata.uns['spatial']`. Available: {_checks.shortlist(libraries)}. "
        "Give its image by `image=`."
    )


def has_image(library: Mapping[str, Any]) -> bool:
    """Whether an entry of `uns["spatial"]` has pixels, or says where the full-resolution image is."""
    return len(library.get("images", {})) > 0 or bool(_source(library))


def _source(library: Mapping[str, Any]) -> str:
    """Path of the full-resolution image, or ""."""
    return str(library.get("metadata", {}).get(_keys.SOURCE_IMAGE) or "")


def _library_image(library: Mapping[str, Any], name: str, image_key: str | None) -> SlideImage:
    """The image `image_key` of a section, or the one of the best resolution: the file that it refers to first."""
    images, factors = library.get("images", {}), library.get("scalefactors", {})
    where = f"adata.uns['spatial'][{name or '...'!r}]"
    give = "Give an image by `image=` (an array or a file in full resolution)."
    source = _source(library) if image_key is None else ""
    if source and Path(source).is_file():
        return open_file(source)
    if image_key is not None:
        _checks.has_key(images, image_key, slot=f"{where}['images']", needs=give)
        _checks.has_key(factors, f"tissue_{image_key}_scalef", slot=f"{where}['scalefactors']", needs=give)
    usable = [key for key in images if f"tissue_{key}_scalef" in factors]
    if not usable and source:
        raise KeyError(f"The image {source!r} of `{where}` is not there any more, and there is no other. {give}")
    if source:
        _checks.warn(
            f"{_of(name)}The full-resolution image {source!r} is not there; the one in `{where}` is used. {give}"
        )
    if not usable:
        raise KeyError(
            f"No image with a scale factor in `{where}`: images {_checks.shortlist(images)}, "
            f"scale factors {_checks.shortlist(factors)}. {give}"
        )
    key = image_key or max(usable, key=lambda k: _checks.factor(factors, f"tissue_{k}_scalef"))
    return SlideImage.from_array(images[key], scale=_checks.factor(factors, f"tissue_{key}_scalef"), name=key)


def _from_spatialdata(sdata: SpatialData, table: AnnData, wishes: Wishes) -> list[Section]:
    """One section for each shapes element that the table annotates, on the image of its coordinate system."""
    link = table.uns.get("spatialdata_attrs")
    if link is None:  # the table stands for itself: its coordinates are px of the image
        key = _image_key(sdata, wishes.image_key, None)
        wishes = Wishes(open_spatialdata_image(sdata.images[key], name=key), None, wishes.um_per_px, wishes.spot_um)
        return _from_anndata(table, wishes, None)
    of_row = table.obs[link["region_key"]].astype(str).to_numpy()
    names = sorted(set(of_row))
    return [
        _region(sdata, table, name, np.flatnonzero(of_row == name), link["instance_key"], wishes.of(name, names))
        for name in names
    ]


def _region(
    sdata: SpatialData, table: AnnData, name: str, rows: np.ndarray, instance_key: str, wish: Wishes
) -> Section:
    """The spots of one shapes element on their image."""
    from spatialdata.transformations import get_transformation

    _checks.has_key(sdata.shapes, name, slot="sdata.shapes", needs="The table says that its spots are there.")
    spots = sdata.shapes[name]
    ids = table.obs[instance_key].to_numpy()[rows]
    places = spots.index.get_indexer(ids)
    if (places < 0).any():
        raise ValueError(
            f"{(places < 0).sum()} of {len(ids)} spots of the table are not in `sdata.shapes[{name!r}]` "
            f"(first: {_checks.shortlist(ids[places < 0], 3)})."
        )
    spots = spots.iloc[places]
    centres = spots.geometry.centroid
    xy = _finite(np.column_stack([centres.x, centres.y]), name)
    key = _image_key(sdata, wish.image_key, spots)
    system = _shared_systems(spots, sdata.images[key])[0]
    to_world, of_image = (
        get_transformation(e, to_coordinate_system=system).to_affine_matrix(("x", "y"), ("x", "y"))
        for e in (spots, sdata.images[key])
    )
    to_image = np.linalg.solve(of_image, to_world)
    scale = float(np.sqrt(abs(np.linalg.det(to_image[:2, :2]))))
    image = open_spatialdata_image(sdata.images[key], scale=scale, name=key)
    factors = {"spot_diameter_fullres": 2 * float(spots["radius"].median())} if "radius" in spots else {}
    pixel = wish.pixel_size(xy, factors)
    return Section(name, rows, xy @ to_image[:2, :2].T + to_image[:2, 2], image, pixel)


def _finite(xy: np.ndarray, name: str) -> np.ndarray:
    bad = ~np.isfinite(xy).all(axis=1)
    if bad.any():
        raise ValueError(
            f"{bad.sum()} of {len(xy)} spots in `sdata.shapes[{name!r}]` have NaN or infinite coordinates."
        )
    return xy


def _shared_systems(*elements: Any) -> list[str]:
    """Coordinate systems that all elements know, `global` first."""
    from spatialdata.transformations import get_transformation

    shared = set.intersection(*(set(get_transformation(e, get_all=True)) for e in elements))
    return sorted(shared, key=lambda system: (system != "global", system))


def _image_key(sdata: SpatialData, image_key: str | None, spots: Any) -> str:
    """The image that is meant: `image_key`, the only one beside the spots, or the finest of one picture."""
    if image_key is not None:
        _checks.has_key(sdata.images, image_key, slot="sdata.images", needs="Name the H&E image by `image_key=`.")
    keys = [image_key] if image_key is not None else list(sdata.images)
    near = [k for k in keys if spots is None or _shared_systems(spots, sdata.images[k])]
    if not near:
        raise ValueError(f"The image(s) {keys} and the spots share no coordinate system; add a transformation to one.")
    if len(near) == 1:
        return near[0]
    for ending in _BY_RESOLUTION:
        matches = [k for k in near if k.endswith(ending)]
        if len(matches) == 1:
            return matches[0]
    raise ValueError(f"`sdata.images` has several images: {_checks.shortlist(near)}. Name the H&E one by `image_key=`.")


def _of(name: str) -> str:
    return f"Section {name!r}: " if name else ""


def _check_inside(section: Section) -> None:
    """Raise if most spots lie outside the image, warn if some do."""
    height, width = section.image.shape
    outside = ~_within(section.xy, width, height)
    if not outside.any():
        return
    n, m = int(outside.sum()), len(outside)
    if 2 * n <= m:
        _checks.warn(
            f"{_of(section.name)}{n} of {m} spots lie outside the image; their tiles are padded with the fill colour."
        )
        return
    (x0, y0), (x1, y1) = section.xy.min(axis=0), section.xy.max(axis=0)
    raise ValueError(
        f"{_of(section.name)}{n} of {m} spots lie outside the image: x {x0:.0f} to {x1:.0f} and y {y0:.0f} to {y1:.0f} "
        f"px on {section.image!r}, {width} px wide and {height} px high. {_likely_cause(section)}"
    )


def _within(xy: np.ndarray, width: float, height: float) -> np.ndarray:
    return ((xy >= 0) & (xy <= [width, height])).all(axis=1)


def _likely_cause(section: Section) -> str:
    height, width = section.image.shape
    if _within(section.xy[:, ::-1], width, height).all():
        return "They would fit with x and y swapped: `adata.obsm['spatial']` must be x (column), y (row)."
    if _within(section.xy / section.image.scale, width, height).all() and section.image.scale > 1:
        return "They would fit without the scale factor, which must be image px per full-resolution px."
    return (
        "Likely causes: a wrong scale factor, coordinates of another image, or a reduced image given as the full one "
        "(then give `image=SlideImage.open(path, scale=image px per full-resolution px)`)."
    )
