"""Where a small image tower starts: at the mean of a tile's principal components, its colours among them.

Shapes: B tiles, N pieces of tiles, K components, p edge of a piece in px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stampy.models import ImageEncoder

__all__ = ["start_spectral_image"]

ANCHORS = 16  # columns of the width that hold a constant, so that layer norm keeps the length of what is in the others
ANCHOR = 3.0
PIECES = 20_000


@torch.no_grad()
def start_spectral_image(encoder: ImageEncoder, patches: Tensor, seed: int) -> None:
    """Set a ViT so that its class token is the mean over a tile of the principal components of small pieces.

    A ViT from random weights needs millions of tiles to see more than a tile's mean colour; from here it sees that at
    once, and learns what to add. The pretext token of a region starts as its patch's own components.

    Parameters
    ----------
    encoder
        A plain timm ViT; is changed.
    patches
        (B, size, size, 3) uint8, of all sections.
    seed
        Of the draw of pieces.
    """
    vit, width, size = encoder.base_model, encoder.width, encoder.patch_px
    k = min(width - ANCHORS, 3 * size**2)
    mean, components = _components(encoder.normalize(patches), size, k, seed)
    vit.patch_embed.proj.weight.zero_()[:k] = components.unflatten(1, (3, size, size))
    vit.patch_embed.proj.bias.zero_()[:k] = -components @ mean
    anchor = torch.zeros(width)
    anchor[-ANCHORS:] = ANCHOR * (1 - 2 * (torch.arange(ANCHORS) % 2))
    vit.pos_embed.copy_(anchor.expand_as(vit.pos_embed))
    vit.cls_token.zero_()
    encoder.p_visual.copy_(anchor.expand_as(encoder.p_visual))
    nn.init.eye_(encoder.ref_pos_embed.weight)
    encoder.ref_pos_embed.bias.copy_(anchor)
    for number, block in enumerate(vit.blocks):
        _add_nothing(block.mlp.fc2)
        _add_nothing(block.attn.proj)
        if number == 0:  # queries and keys stay small and random: attention is nearly even
            block.attn.qkv.weight[2 * width :] = torch.eye(width)
            nn.init.eye_(block.attn.proj.weight)


def _add_nothing(layer: nn.Linear) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _components(images: Tensor, size: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean (3 p p,) and principal components (K, 3 p p) of pieces, scaled by the square root of their deviation."""
    generator = torch.Generator().manual_seed(seed)
    per_tile = (images.shape[-1] // size) ** 2
    chosen = images[torch.randperm(len(images), generator=generator)[: max(PIECES // per_tile, 1)]]
    pieces_ND = F.unfold(chosen, size, stride=size).transpose(1, 2).flatten(0, 1)
    mean = pieces_ND.mean(dim=0)
    covariance = torch.cov(pieces_ND.T)
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0)[:k].clamp(min=1e-8), vectors.flip(1)[:, :k]
    return mean, (vectors / values**0.25).T.float()
