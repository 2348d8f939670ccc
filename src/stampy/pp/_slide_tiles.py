"""Whole slides as AnnData without genes: one row per tile of tissue, which is found on a reduced image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage, sparse

from stampy import _checks, _keys
from stampy._section.image.slide_image import SlideImage
from stampy._section.image.wsidata import is_wsidata, tile_table
from stampy._section.section import ImageSource, open_image

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["SlideSource", "covered", "open_slide", "overview", "slide_tiles", "tissue_mask"]

SlideSource: TypeAlias = "ImageSource | Any"  # a WSIData is also possible

MASK_UM = 8.0  # pixel size of the tissue mask: 14 pixels per tile edge


@dataclass(frozen=True)
class TileGrid:
    """Tiles of a slide in px of the finest level."""

    boxes: np.ndarray  # (n, 4) left, top, right, bottom
    row: np.ndarray  # (n,)
    col: np.ndarray  # (n,)


def slide_tiles(
    slide: SlideSource,
    *,
    tile_um: float | None = None,
    stride_um: float | None = None,
    min_tissue: float | None = None,
    um_per_px: float | None = None,
    tile_key: str | None = None,
    thumbnail_px: int = 1000,
    name: str | None = None,
) -> AnnData:
    """Place a grid of tiles on a whole slide and keep the tiles on tissue.

    Tissue is separated from glass on a reduced image (8 µm per pixel) by Otsu's threshold on the saturation. This
    function reads no tiles: ``stampy.tl.embed(adata, image=slide, modality="image")`` reads them, and
    `stampy.tl.embed_slide` does both and writes to disk. The result is an AnnData like any section, so `pl.spatial` and
    `stampy.tl.embed` accept it; combine slides with `anndata.concat(..., uns_merge="unique")`.

    Parameters
    ----------
    slide
        A path (pyramidal TIFF, OME-TIFF, or .svs, .ndpi, .mrxs, ... by OpenSlide), an array, a `SlideImage`, or a
        WSIData of wsidata or LazySlide.
    tile_um
        Edge of a tile in µm; None: 112, the tile size of stampy's models.
    stride_um
        Distance between tiles in µm; None: `tile_um`, so that tiles do not overlap.
    min_tissue
        Minimum fraction of a tile that is tissue, 0 to 1; None: 0.5.
    um_per_px
        µm per pixel of the full resolution; None: as stated by the file.
    tile_key
        For a WSIData: name of a tile table to use instead of a grid, such as "tiles".
    thumbnail_px
        Longer side of the reduced image for plots.
    name
        Name of the slide; None: the file name without extension.

    Returns
    -------
    AnnData (n tiles, 0 genes) with

    - `obsm["spatial"]`: x, y of the tiles' centres in px of the full resolution
    - `obs["tissue_fraction"]`: float32, 0 to 1; `obs["array_row"]`, `["array_col"]`: place in the grid; `obs["slide"]`:
      the name, categorical (the `library_key` of other functions)
    - `uns["spatial"][name]`: `images["hires"]` and `scalefactors`, with `microns_per_pixel` and the edge of a tile as
      `spot_diameter_fullres`
    - `uns["stamp"]["slide_tiles"]`: parameters

    Raises
    ------
    FileNotFoundError, ImportError
        If there is no such file, or reading it needs OpenSlide.
    KeyError
        If the WSIData has no such tile table.
    ValueError
        If the size of a pixel is unknown, no tissue is found, the file is damaged, or arguments conflict.

    Examples
    --------
    >>> import stampy
    >>> picture = stampy.datasets.toy(n_spots=60).uns["spatial"]["toy"]["images"]["hires"]
    >>> adata = stampy.pp.slide_tiles(picture, um_per_px=1.6, name="S1")
    >>> adata.n_vars, adata.obs["tissue_fraction"].min() >= 0.5
    (0, np.True_)
    >>> adata.uns["spatial"]["S1"]["scalefactors"]["spot_diameter_fullres"]
    70.0
    """
    _check_arguments(tile_um, stride_um, min_tissue, um_per_px, thumbnail_px)
    _check_table(slide, tile_key, {"tile_um": tile_um, "stride_um": stride_um, "min_tissue": min_tissue})
    image, owned = open_slide(slide)
    try:
        um = pixel_size(image, um_per_px)
        if tile_key is not None:
            grid, least = _tabled(tile_table(slide, tile_key)), 0.0
        else:
            edge_um = float(tile_um or _keys.TILE_UM)
            grid = lay_grid(image, edge_um / um, (stride_um or edge_um) / um)
            least = 0.5 if min_tissue is None else float(min_tissue)
        tissue = _tissue_of(image, grid, um)
        if not (tissue >= least).any():
            raise _no_tissue(image, tissue, least)
        thumbnail, scale = _thumbnail(image, thumbnail_px)
    finally:
        if owned:
            image.close()
    name = name or image.name.split(".")[0]
    adata = _table(grid, tissue, tissue >= least, name)
    edge = float(np.median(grid.boxes[:, 2] - grid.boxes[:, 0]))
    scalefactors = {"tissue_hires_scalef": scale, "microns_per_pixel": um, "spot_diameter_fullres": edge}
    adata.uns[_keys.UNS_SPATIAL] = {name: {"images": {"hires": thumbnail}, "scalefactors": scalefactors}}
    record = {
        "slide": image.name,
        "height_px": image.shape[0],
        "width_px": image.shape[1],
        "um_per_px": um,
        "um_per_px_from": "file" if um_per_px is None else "given: um_per_px",
        "tile_um": edge * um,
        "min_tissue": least,
        "tile_table": tile_key or "",
    }
    adata.uns[_keys.UNS] = {_keys.SLIDE_TILES: record}
    return adata


def open_slide(slide: SlideSource) -> tuple[SlideImage, bool]:
    """Return the slide as a `SlideImage`, and whether the caller must close it."""
    return open_image(slide), not isinstance(slide, SlideImage) and not is_wsidata(slide)


def pixel_size(image: SlideImage, um_per_px: float | None) -> float:
    """µm per pixel of the finest level, as given or as stated by the file."""
    found = um_per_px if um_per_px is not None else image.um_per_px
    if found is None:
        raise ValueError(
            f"The size of a pixel of {image.name!r} is not known: the file does not state it. Pass `um_per_px=` "
            "(about 0.25 for a scan at 40x, 0.5 at 20x)."
        )
    return float(found)


def lay_grid(image: SlideImage, edge: float, stride: float) -> TileGrid:
    """All tiles whose centre is in the image, row by row from the top left; edge and stride in px."""
    height, width = image.shape
    if edge > 2 * max(height, width):
        raise ValueError(
            f"A tile would be {edge:.0f} px wide, the slide {image.name!r} has {width} x {height} px. "
            "Pass the right `um_per_px=` or a smaller `tile_um=`."
        )
    n_rows, n_cols = (max(1, int(np.floor((size - edge / 2) / stride)) + 1) for size in (height, width))
    row, col = (a.ravel() for a in np.mgrid[:n_rows, :n_cols])
    left, top = col * stride, row * stride
    return TileGrid(np.column_stack([left, top, left + edge, top + edge]), row, col)


def _check_arguments(tile_um: Any, stride_um: Any, min_tissue: Any, um_per_px: Any, thumbnail_px: Any) -> None:
    for key, value in {"tile_um": tile_um, "stride_um": stride_um, "um_per_px": um_per_px}.items():
        if value is not None:
            _checks.positive(key, value)
    if min_tissue is not None:
        _checks.at_least("min_tissue", min_tissue, 0, integer=False)
        _checks.at_most("min_tissue", min_tissue, 1)
    _checks.at_least("thumbnail_px", thumbnail_px, 1)


def _check_table(slide: Any, tile_key: str | None, others: dict[str, Any]) -> None:
    """Raise if `tile_key` conflicts with the slide or with other arguments."""
    if tile_key is None:
        return
    if not is_wsidata(slide):
        raise TypeError(f"`tile_key` names a tile table of a WSIData, but the slide is {type(slide).__name__}.")
    given = [key for key, value in others.items() if value is not None]
    if given:
        raise ValueError(f"Pass `tile_key` or {given}, not both: the tile table is used unchanged.")


def _tabled(boxes: np.ndarray) -> TileGrid:
    """Boxes of a tile table with row and column numbers."""
    row, col = (np.unique(boxes[:, axis].round(), return_inverse=True)[1] for axis in (1, 0))
    return TileGrid(boxes, row, col)


def _tissue_of(image: SlideImage, grid: TileGrid, um: float) -> np.ndarray:
    """Tissue fraction of each tile (n,)."""
    picture = overview(image, max(1.0, MASK_UM / um))
    height, width = image.shape
    return covered(tissue_mask(picture), grid.boxes, (width / picture.shape[1], height / picture.shape[0]))


def _no_tissue(image: SlideImage, tissue: np.ndarray, least: float) -> ValueError:
    return ValueError(
        f"No tissue was found on the slide {image.name!r}: of {len(tissue)} tiles none has at least {least:.0%} tissue "
        f"(most: {tissue.max():.0%}). Is it an empty or an unstained slide? A smaller `min_tissue=` keeps more."
    )


def _thumbnail(image: SlideImage, longest: int) -> tuple[np.ndarray, float]:
    """Reduced image, and its px per px of the full resolution."""
    factor = max(1.0, max(image.shape) / longest)
    picture = overview(image, factor)
    return picture, max(picture.shape[:2]) / max(image.shape)


def _table(grid: TileGrid, tissue: np.ndarray, kept: np.ndarray, name: str) -> AnnData:
    import anndata

    boxes, row, col = grid.boxes[kept], grid.row[kept], grid.col[kept]
    places = [f"{name}_{r}x{c}" for r, c in zip(row, col, strict=True)]
    obs = pd.DataFrame(
        {
            "array_row": row.astype(np.int32),
            "array_col": col.astype(np.int32),
            _keys.TISSUE: tissue[kept].astype(np.float32),
            _keys.SLIDE: pd.Categorical([name] * len(row)),
        },
        index=places,
    )
    adata = anndata.AnnData(sparse.csr_matrix((len(obs), 0), dtype=np.float32), obs=obs)
    adata.obsm[_keys.SPATIAL] = (boxes[:, :2] + boxes[:, 2:]) / 2
    return adata


_MAX_READ_PX = 2**29  # half a minute of decoding; a slide with a pyramid needs a hundredth of it
_BLOCK_PX = 512
_SATURATION = (0.05, 0.15)  # bounds of the threshold: glass is below the first, pale tissue above the second
_DENSITY = (0.05, 0.1)  # bounds of the threshold for the optical density, used on grey backgrounds
_WHITE_GLASS = 200  # brightest channel above which a background counts as white
_BACKGROUND = 0.25  # minimum fraction of pixels with the background colour, within a step
_COLOUR_STEP = 8
_DARK = 40  # brightest channel of pen marks and of areas that were not scanned
_SMOOTH_PX = 5


def overview(image: SlideImage, factor: float) -> np.ndarray:
    """Read the whole image reduced `factor` times; memory and time are bounded for slides of any size.

    Returns
    -------
    (h, w, 3) uint8; each pixel is the mean of the area that it covers. If the level has more than `_MAX_READ_PX`
    pixels, only one block of each square of blocks is read and represents the square, with a warning.
    """
    level = image._level_for(factor)
    height, width = image.levels[level].shape
    if height * width <= _MAX_READ_PX:
        return image.reduced(factor)
    every = int(np.ceil(np.sqrt(height * width / _MAX_READ_PX)))
    _checks.warn(
        f"The slide {image.name!r} has no reduced level near the resolution at which tissue is found, and its finest "
        f"has {width} x {height} px: one block of pixels in {every**2} is read. Convert it to a pyramidal TIFF to find "
        "tissue exactly."
    )
    return _sampled(image, level, factor, every)


def _sampled(image: SlideImage, level: int, factor: float, every: int) -> np.ndarray:
    """`overview` from the middle block of each square of `every` x `every` blocks, resized to the square."""
    height, width = image.levels[level].shape
    out = np.empty((max(1, round(image.shape[0] / factor)), max(1, round(image.shape[1] / factor)), 3), dtype=np.uint8)
    block = _block_px(image, level)
    for top in range(0, height, every * block):
        bottom = min(top + every * block, height)
        rows = slice(round(top / height * out.shape[0]), round(bottom / height * out.shape[0]))
        for left in range(0, width, every * block):
            right = min(left + every * block, width)
            columns = slice(round(left / width * out.shape[1]), round(right / width * out.shape[1]))
            if rows.start == rows.stop or columns.start == columns.stop:
                continue
            y, x = (start + min(every // 2 * block, (end - start - 1) // block * block) // block * block
                    for start, end in ((top, bottom), (left, right)))  # fmt: skip
            part = image.read(x, y, min(block, width - x), min(block, height - y), level=level)
            size = (columns.stop - columns.start, rows.stop - rows.start)
            out[rows, columns] = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BOX))
    return out


def _block_px(image: SlideImage, level: int) -> int:
    """Edge of the blocks in which a level is stored; reading whole blocks decodes each once."""
    chunks = getattr(getattr(image.levels[level], "array", None), "chunks", None)
    edges = [edge for edge in chunks or () if isinstance(edge, int) and edge > 4]
    return min(max(edges, default=_BLOCK_PX), 4 * _BLOCK_PX)


def tissue_mask(rgb: np.ndarray) -> np.ndarray:
    """Mask of tissue: saturation above Otsu's threshold, smoothed.

    The threshold is limited to 0.05 to 0.15, since Otsu's threshold would separate noise from noise on an empty slide,
    and dark from light tissue on a full one. Black areas (not scanned, pen) are not tissue. On a grey background, whose
    tint would hide pale tissue, tissue is everything that differs from it in colour or brightness.

    Parameters
    ----------
    rgb
        Reduced image (h, w, 3) uint8, at a few µm per pixel.

    Returns
    -------
    (h, w) bool.

    Examples
    --------
    >>> picture = np.full((40, 40, 3), 240, np.uint8)
    >>> picture[10:30, 10:30] = (200, 120, 180)
    >>> int(tissue_mask(picture).sum())
    388
    """
    top = rgb.max(axis=2).astype(np.float32)
    saturation = (top - rgb.min(axis=2)) / np.maximum(top, 1)
    saturation[top < _DARK] = 0
    mask = _above(saturation, _SATURATION)
    if (grey := _grey_background(rgb[top >= _DARK])) is not None:
        balanced = np.minimum(rgb / grey, 1.0)
        brightest = balanced.max(axis=2)
        tint = (brightest - balanced.min(axis=2)) / np.maximum(brightest, 1 / 255)
        density = -np.log10(np.maximum(balanced.mean(axis=2), 1 / 255))
        mask = (_above(tint, _SATURATION) | _above(density, _DENSITY)) & (top >= _DARK)
    return ndimage.median_filter(mask, _SMOOTH_PX, mode="nearest")


def _above(values: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Mask of values above Otsu's threshold, which is limited to `bounds`."""
    from skimage.filters import threshold_otsu

    otsu = threshold_otsu(values) if np.ptp(values) > 0 else 0.0
    return values > np.clip(otsu, *bounds)


def _grey_background(pixels: np.ndarray) -> np.ndarray | None:
    """Colour (3,) of the background of the pixels (n, 3) if it is grey; None for white glass or without background."""
    if not len(pixels):
        return None
    n = 256 // _COLOUR_STEP
    bins = pixels // _COLOUR_STEP
    counts = np.bincount(np.ravel_multi_index(tuple(bins.T), (n, n, n)), minlength=n**3).reshape(n, n, n)
    for axis in range(3):  # overlapping bins of twice the step, since noise may straddle an edge
        counts = counts + np.roll(counts, -1, axis=axis)
    first = np.array(np.unravel_index(np.argmax(counts), counts.shape))
    colour = pixels[((bins == first) | (bins == (first + 1) % n)).all(axis=1)].mean(axis=0)
    tint = float(np.ptp(colour) / colour.max())
    is_grey = colour.max() < _WHITE_GLASS and tint < _SATURATION[1] and counts.max() >= _BACKGROUND * len(pixels)
    return colour if is_grey else None


def covered(mask: np.ndarray, boxes: np.ndarray, px_per_mask_px: tuple[float, float]) -> np.ndarray:
    """Fraction of each box that is tissue, (n,) float64, exact for fractions of mask pixels.

    Parameters
    ----------
    mask
        (h, w) bool.
    boxes
        (n, 4) left, top, right, bottom in px of the image.
    px_per_mask_px
        Px of the image per px of the mask, in x and y.
    """
    total = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    total[1:, 1:] = mask.cumsum(axis=0).cumsum(axis=1)
    left, top, right, bottom = (boxes / np.array([*px_per_mask_px, *px_per_mask_px])).T

    def area(x: np.ndarray, y: np.ndarray) -> np.ndarray:  # the integral image is bilinear within a pixel
        return ndimage.map_coordinates(total, np.stack([y, x]), order=1, mode="nearest")

    inside = area(right, bottom) - area(left, bottom) - area(right, top) + area(left, top)
    return np.clip(inside / ((right - left) * (bottom - top)), 0, 1)
