"""Tiles of a physical size around the spots, read on request and in order; for single tiles, see `SlideImage.tile`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NotRequired, Self, TypedDict

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._section.image.slide_image import WHITE
from stampy._section.section import ImageOptions, ImageSource, PlacedSection, sections_of
from stampy._section.tile_boxes import region_boxes, region_cells, tile_boxes

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["TileSource", "tiles"]

_MAX_UPSAMPLING = 4.0
_CELLS_UM_PER_PX = 2.0  # of the image; cells are not visible at coarser resolution


class TileProvenance(TypedDict):
    """How and from which images tiles were read; lists have one value per section."""

    tile_um: float
    size_px: int
    fill: list[int]
    section: list[str]
    image: list[str]
    um_per_px: list[float]
    um_per_px_from: list[str]
    upsampling: list[float]
    surroundings_um: NotRequired[float]  # edge of the region that a model uses with each tile


class TileSource:
    """Tiles of one or several sections, read on request: row i is spot i.

    It holds the spots' coordinates and open images, no tiles. Reading is safe from several threads.

    Parameters
    ----------
    sections
        Spots with their images, from :meth:`open`.
    tile_um
        Edge of a tile in µm.
    size_px
        Edge to which tiles are resampled.
    fill
        RGB colour beyond the border of the image.
    surroundings
        `inputs` contains each tile and the region of three times its edge, for models that use both.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=60)
    >>> source = TileSource.open(adata, size_px=64)
    >>> source.read(np.array([5, 3])).shape
    (2, 64, 64, 3)
    >>> source.region_cells().shape
    (60, 9)
    """

    def __init__(
        self,
        sections: list[PlacedSection],
        *,
        tile_um: float = _keys.TILE_UM,
        size_px: int = _keys.TILE_PX,
        fill: tuple[int, int, int] = WHITE,
        surroundings: bool = False,
    ):
        _checks.positive("tile_um", tile_um)
        _checks.at_least("size_px", size_px, 1)
        self.sections = sections
        self.tile_um = float(tile_um)
        self.size_px = int(size_px)
        self.fill = _colour(fill)
        self.surroundings = surroundings
        n = sum(len(s.rows) for s in sections)
        self._section = np.empty(n, dtype=np.int64)
        self._xy = np.empty((n, 2))
        for i, section in enumerate(sections):
            self._section[section.rows] = i
            self._xy[section.rows] = section.image_xy
            _check_edge(section, self.tile_um)

    @classmethod
    def open(
        cls,
        data: AnnData | SpatialData,
        *,
        tile_um: float = _keys.TILE_UM,
        size_px: int = _keys.TILE_PX,
        image: ImageSource | Mapping[str, ImageSource] | None = None,
        image_key: str | Mapping[str, str] | None = None,
        library_key: str | None = None,
        um_per_px: float | Mapping[str, float] | None = None,
        spot_um: float | None = None,
        fill: tuple[int, int, int] = WHITE,
        surroundings: bool = False,
        table_key: str = _keys.TABLE,
        notes: list[str] | None = None,
    ) -> Self:
        """Find the image of each section and the size of its pixels; the parameters are those of :func:`tiles`.

        `surroundings` is that of the class. With a list as `notes`, warnings are appended to it instead of issued.
        """
        image_options = ImageOptions(image, image_key, um_per_px, spot_um)
        sections = sections_of(
            data, image_options, library_key=library_key, table_key=table_key, needs=("image", "scale"), notes=notes
        )
        source = cls(sections, tile_um=tile_um, size_px=size_px, fill=fill, surroundings=surroundings)
        if note := source._enlarged():
            _checks.warn(note) if notes is None else notes.append(note)
        return source

    def __len__(self) -> int:
        return len(self._section)

    def __repr__(self) -> str:
        images = ", ".join(repr(s.require_image()) for s in self.sections)
        return f"TileSource({len(self)} spots, {self.tile_um:g} µm at {self.size_px} px, {images})"

    @property
    def um_per_px(self) -> dict[str, float]:
        """µm per pixel of the full-resolution image, by section."""
        return {s.name: s.require_pixel().um_per_px for s in self.sections}

    @property
    def upsampling(self) -> dict[str, float]:
        """Pixels of a tile per pixel of the image along an edge, by section; below 1 the image is finer."""
        return {s.name: self.size_px * s.um_per_image_px / self.tile_um for s in self.sections}

    def read(self, rows: np.ndarray, *, region: bool = False, cells: np.ndarray | None = None) -> np.ndarray:
        """The tiles of some spots, or the 3 x 3 regions around them.

        Parameters
        ----------
        rows
            Rows of the table, (m,) int, in any order.
        region
            Read regions of three times the edge instead, at the same `size_px`.
        cells
            For regions: which of its nine cells the spot's tile is, (m,) int; -1 and None are the central cell 4.

        Returns
        -------
        (m, size_px, size_px, 3) uint8 RGB.

        Raises
        ------
        IndexError
            For a row that is not in the table.
        ValueError
            For `cells` without `region`, or cells that are not -1 to 8.
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.size and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(f"`rows` must lie in 0..{len(self) - 1}, found {rows.min()} to {rows.max()}.")
        if cells is not None and not region:
            raise ValueError("`cells` was given without `region=True`: only a region has cells.")
        out = np.empty((len(rows), self.size_px, self.size_px, 3), dtype=np.uint8)
        for i, section in enumerate(self.sections):
            (mine,) = np.nonzero(self._section[rows] == i)
            where = (self._xy[rows[mine]], section.um_per_image_px, self.tile_um)
            if region:
                boxes = region_boxes(*where, cells=None if cells is None else np.asarray(cells)[mine])
            else:
                boxes = tile_boxes(*where)
            for place, box in zip(mine, boxes, strict=True):
                out[place] = section.require_image().tile(box, self.size_px, fill=self.fill)
        return out

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """Model inputs of some spots: their tiles; with `surroundings`, also the region around each.

        Returns
        -------
        (m, size_px, size_px, 3) uint8 RGB; with `surroundings` (m, 2, size_px, size_px, 3), the tile first.
        """
        if not self.surroundings:
            return self.read(rows)
        return np.stack([self.read(rows), self.read(rows, region=True)], axis=1)

    def digest(self, rows: np.ndarray) -> str:
        """Hash of everything that determines the tiles of some spots: positions, images and pixels."""
        found = hashlib.blake2b(digest_size=16)
        rows = np.asarray(rows, dtype=np.int64)
        images = [s.require_image() for s in self.sections]
        scales = [s.um_per_image_px for s in self.sections]
        where = [(um, i.scale, i.shape, i.digest) for um, i in zip(scales, images, strict=True)]
        how = (where, self.tile_um, self.size_px, self.fill)
        found.update(repr((*how, "surroundings") if self.surroundings else how).encode())
        found.update(self._section[rows].tobytes())
        found.update(self._xy[rows].tobytes())
        return found.hexdigest()

    def region_cells(self) -> np.ndarray:
        """Whether a spot's region lies wholly inside the image, for each cell, (n, 9) bool; see `choose_cells`."""
        out = np.empty((len(self), 9), dtype=bool)
        for s in self.sections:
            out[s.rows] = region_cells(s.image_xy, s.require_image().shape, s.um_per_image_px, self.tile_um)
        return out

    def provenance(self) -> TileProvenance:
        """Record of the images and parameters, in types that every AnnData writer supports."""
        found: TileProvenance = {
            "tile_um": self.tile_um,
            "size_px": self.size_px,
            "fill": list(self.fill),
            "section": [s.name for s in self.sections],
            "image": [s.require_image().name for s in self.sections],
            "um_per_px": [s.require_pixel().um_per_px for s in self.sections],
            "um_per_px_from": [s.require_pixel().source for s in self.sections],
            "upsampling": list(self.upsampling.values()),
        }
        if self.surroundings:
            found["surroundings_um"] = 3 * self.tile_um
        return found

    def image_paths(self) -> list[str]:
        """Path of the image of each section; "" for pixels in memory.

        Not part of `provenance`, since the path does not affect results.
        """
        paths = (getattr(s.require_image(), "path", None) for s in self.sections)
        return [os.path.realpath(path) if path else "" for path in paths]

    def close(self) -> None:
        """Close the image files."""
        for section in self.sections:
            section.require_image().close()

    def _enlarged(self) -> str:
        """Warning about an image that is too coarse, or ""."""
        worst = max(self.upsampling, key=self.upsampling.__getitem__)
        factor = self.upsampling[worst]
        # Tiles of a model with surroundings are so small that few px are enough; check the image's own resolution.
        unseen = self.surroundings and self.tile_um * factor / self.size_px > _CELLS_UM_PER_PX
        if factor <= _MAX_UPSAMPLING and not unseen:
            return ""
        return (
            f"The image is coarse for tiles of {self.tile_um:g} µm: {self.size_px / factor:.0f} px across"
            f"{f' in section {worst!r}' if worst else ''}, enlarged {factor:.1f} times to {self.size_px} px. "
            "Cells cannot be seen in them. Pass the full-resolution image with `image=`."
        )


def _check_edge(section: PlacedSection, tile_um: float) -> None:
    """Raise ValueError if a tile is far larger than the whole image, which means a wrong pixel size."""
    edge = tile_um / section.um_per_image_px
    if edge > 2 * max(section.require_image().shape):
        raise ValueError(
            f"A tile of {tile_um:g} µm would be {edge:.0f} px wide on {section.image!r} at "
            f"{section.um_per_image_px:.4g} µm per image px ({section.require_pixel().source}). Give the right "
            "`um_per_px=`."
        )


def _colour(fill: Any) -> tuple[int, int, int]:
    values = np.asarray(fill)
    if values.shape != (3,) or values.dtype.kind not in "iu" or values.min() < 0 or values.max() > 255:
        raise ValueError(f"`fill` must be three integers from 0 to 255 (red, green, blue), found {fill!r}.")
    return int(values[0]), int(values[1]), int(values[2])


def tiles(
    adata: AnnData | SpatialData,
    *,
    tile_um: float = _keys.TILE_UM,
    size_px: int = _keys.TILE_PX,
    region: bool = False,
    image: ImageSource | Mapping[str, ImageSource] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    um_per_px: float | Mapping[str, float] | None = None,
    spot_um: float | None = None,
    fill: tuple[int, int, int] = WHITE,
    table_key: str = _keys.TABLE,
    key_added: str = _keys.TILES,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Cut a tile of a physical size around every spot.

    Tiles at the border are padded with `fill`, never shifted or dropped, so row i is always spot i. Tiles of 224 px
    take 150 KB each, 600 MB for a Visium section. :func:`stampy.tl.embed` and training do not need this function; they
    read tiles on request through :class:`TileSource`.

    Parameters
    ----------
    adata
        Section(s) with `obsm["spatial"]` (x, y in px of the full-resolution image) and an image. In a SpatialData,
        positions are those of the shapes that the table annotates.
    tile_um
        Edge of a tile in µm.
    size_px
        Edge of the resampled tiles in px (antialiased, bicubic).
    region
        Cut 3 x 3 tiles around the spot instead, at the same `size_px`.
    image
        Image to use instead of that in `adata`: a path (TIFF, OME-TIFF, PNG, JPEG, whole slide), an array, or a
        :class:`SlideImage`. A path or an array is the full-resolution image. For several sections, by section.
    image_key
        Image in `adata` to use: `"hires"` or `"lowres"`, or a name in `sdata.images`; by default the finest image. One
        name for all sections, or one per section.
    library_key
        Column of `adata.obs` that names the section of each spot, as in `uns["spatial"]`. In a SpatialData the
        sections are the regions of the table.
    um_per_px
        µm per pixel of the full-resolution image, i.e. per unit of the spots' coordinates. If None, from the spots'
        grid and the scale factors: see :func:`infer_um_per_px`.
    spot_um
        Instead of `um_per_px`: diameter in µm that `spot_diameter_fullres` spans.
    fill
        RGB colour beyond the border of the image.
    table_key
        Table of a SpatialData.
    key_added
        Key in ``obsm`` for the tiles.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    - `obsm[key_added]`: (n, size_px, size_px, 3) uint8 RGB
    - `uns["stamp"][key_added]`: parameters, and µm per px of each section and its source

    Warns
    -----
    StampyWarning
        If tiles are enlarged more than 4 times, some spots are outside the image, or the pixel size is doubtful.

    Raises
    ------
    KeyError
        Without coordinates or image.
    ValueError
        If most spots are outside the image, coordinates are NaN, the pixel size cannot be inferred, or the image is
        ambiguous.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=60)
    >>> tiles(adata, size_px=64)
    >>> adata.obsm["stamp_tiles"].shape
    (60, 64, 64, 3)
    """
    if copy:
        adata = _utils.copy_of(adata, table_key)
    source = TileSource.open(
        adata,
        tile_um=tile_um,
        size_px=size_px,
        image=image,
        image_key=image_key,
        library_key=library_key,
        um_per_px=um_per_px,
        spot_um=spot_um,
        fill=fill,
        table_key=table_key,
    )
    table = _utils.table_of(adata, table_key)
    _utils.make_room(table, key_added, [("obsm", key_added)], field="tile_um")
    table.obsm[key_added] = source.read(np.arange(len(source)), region=region)
    table.uns.setdefault(_keys.UNS, {})[key_added] = {
        **source.provenance(),
        "image_path": source.image_paths(),
        "region": region,
    }
    return adata if copy else None
