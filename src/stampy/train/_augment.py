"""Augmentation of tiles: rotation, reflection, resolution and stain.

Shapes: B spots.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["augment"]

_CONTRAST, _BRIGHTNESS, _TINT = 0.25, 0.25, 0.15  # in units of ImageNet's standard deviation; stain varies by section
_COARSEST_PX = 24  # edge of a patch in the reduced image of a Visium section


def augment(
    patches: Tensor, regions: Tensor, cells_B: Tensor, generator: torch.Generator, *, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, ...]:
    """Rotate and flip each patch with its region and cell number; vary resolution and colours.

    Parameters
    ----------
    patches, regions
        (B, 3, size, size), normalised.
    cells_B
        The patch's cell in its region, row by row; -1 without one.
    generator
        On the CPU.
    rank, world_size
        These spots are the rank-th consecutive slice of a batch `world_size` times as large, for which is drawn.

    Returns
    -------
    The same three, changed copies.
    """
    cells_39 = torch.arange(9).view(3, 3)
    n = len(patches)
    own = slice(rank * n, (rank + 1) * n)
    turns = torch.randint(4, (n * world_size,), generator=generator)[own]
    mirrored = torch.randint(2, (n * world_size,), generator=generator).bool()[own]
    new_patches, new_regions, new_cells = torch.empty_like(patches), torch.empty_like(regions), cells_B.clone()
    for turn in range(4):
        for mirror in (False, True):
            chosen = _places((turns == turn) & (mirrored == mirror), patches)
            new_patches[chosen], new_regions[chosen] = (_turn(x[chosen], turn, mirror) for x in (patches, regions))
            where = _turn(cells_39, turn, mirror).flatten().argsort()  # old cell -> new cell
            where = where.to(cells_B.device, non_blocking=True)
            old = cells_B[chosen]
            new_cells[chosen] = torch.where(old >= 0, where[old.clamp(min=0)], old)
    size = patches.shape[-1]
    coarse_px = int(torch.randint(_COARSEST_PX, max(size // 2, _COARSEST_PX + 1), (), generator=generator))
    chosen = _places((torch.rand(n * world_size, generator=generator) < 0.5)[own], patches)
    _coarsen(new_patches, coarse_px, chosen)
    _coarsen(new_regions, 3 * coarse_px, chosen)
    gain, offset = (x[own].to(patches.device, non_blocking=True) for x in _colours(n * world_size, generator))
    return new_patches.mul_(gain).add_(offset), new_regions.mul_(gain).add_(offset), new_cells


def _places(chosen: Tensor, images: Tensor) -> Tensor:
    # Indices from the CPU: torch would block to count a mask on a GPU.
    return chosen.nonzero()[:, 0].to(images.device, non_blocking=True)


def _turn(x: Tensor, turn: int, mirror: bool) -> Tensor:
    x = torch.rot90(x, turn, dims=(-2, -1))
    return x.flip(-1) if mirror else x


def _coarsen(images: Tensor, px: int, chosen: Tensor) -> None:
    """Show the chosen images, in place, at a lower resolution; in µm it is the same for a patch and its region."""
    size = images.shape[-1]
    if px < size and len(chosen):
        small = F.interpolate(images[chosen], size=px, mode="area")
        images[chosen] = F.interpolate(small, size=size, mode="bicubic", align_corners=False).to(images.dtype)


def _colours(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # One gain and offset for the spot, so that a patch and its region stay of one stain; the tint is per channel.
    gain = 1 + _CONTRAST * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    brightness = _BRIGHTNESS * torch.randn(n, 1, 1, 1, generator=generator)
    tint = _TINT * torch.randn(n, 3, 1, 1, generator=generator)
    return gain, brightness + tint
