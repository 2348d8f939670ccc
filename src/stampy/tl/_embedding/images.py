"""Image and tiles of `tl.embed`, and whether an image is used without an explicit `modality`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stampy import _checks
from stampy._section.image.image_checks import doubts_of
from stampy._section.image.levels import UnusableImageError
from stampy.pp._tiles import TileSource

from .encoders import image_model

if TYPE_CHECKING:
    from stampy.tl._embed import SectionData

    from .arguments import Request
    from .encoders import Encoder

__all__ = ["open_tiles", "usable_tiles"]

MIN_ACROSS = 16  # px of the image per tile edge; Space Ranger's "hires" has about 34, its "lowres" 10


def usable_tiles(adata: SectionData, model: Encoder, request: Request, notes: list[str]) -> TileSource | None:
    """Tiles of an image without explicit `modality`; None if it is ignored, with a warning."""
    try:
        tiles = open_tiles(adata, model, request, notes)
    except UnusableImageError as error:
        _checks.warn(f"Only genes are embedded, since the image cannot be used. {error}")
        return None
    if _too_coarse(tiles) or _no_histology(tiles):
        tiles.close()
        return None
    return tiles


def open_tiles(adata: SectionData, model: Encoder, request: Request, notes: list[str]) -> TileSource:
    """Tiles for the image encoder of a model."""
    tower = image_model(model, "Use modality='gene' or another model.")
    return TileSource.open(
        adata, tile_um=tower.tile_um, size_px=tower.size_px, surroundings=tower.surroundings, image=request.image,
        image_key=request.image_key, library_key=request.library_key, um_per_px=request.um_per_px,
        spot_um=request.spot_um, table_key=request.table_key, notes=notes,
    )  # fmt: skip


def _too_coarse(tiles: TileSource) -> bool:
    """Whether an image is too coarse for tiles and therefore ignored, with a warning."""
    across, names = tiles.size_px / max(tiles.upsampling.values()), tiles.provenance()["image"]
    if across >= MIN_ACROSS:
        return False
    _checks.warn(
        f"Only genes are embedded: a tile would be {across:.0f} px across in {_checks.shortlist(names)}, "
        f"fewer than {MIN_ACROSS}. Pass the full-resolution image with `image=`; modality='fused' uses this image "
        "anyway."
    )
    return True


def _no_histology(tiles: TileSource) -> bool:
    """Whether an image does not look like H&E and is therefore ignored, with a warning."""
    doubts = doubts_of(tiles.sections)
    if not doubts:
        return False
    n = len(tiles.sections)
    everywhere = f" in all {n} sections, since one call makes vectors of one kind" if n > len(doubts) else ""
    apart = "remove that section, or embed it in a separate call; " if everywhere else ""
    _checks.warn(
        f"Only genes are embedded{everywhere}. {' '.join(doubts)} Name another image with `image_key=` or `image=`; "
        f"{apart}modality='fused' uses this image anyway."
    )
    return True
