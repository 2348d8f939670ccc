"""Spectral initialisation: a gene encoder from axes shared by neighbouring spots, a ViT from image components.

Before the first step, the feature of a spot is the projection of its genes onto the leading eigenvectors of the
covariance between spots and the mean of their neighbours. This solves contextual gene reconstruction (paper, section
3.2) for a linear encoder in seconds, and excludes variation that is independent between spots.

A small image encoder starts from the mean principal components of a tile, including its colours.

Shapes: n spots, G genes, K axes or components, L positions, B tiles, N image patches, p edge of a patch in px.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stampy import _keys
from stampy._checks import shortlist
from stampy._utils import stream
from stampy.models import GeneEncoder, ImageEncoder
from stampy.pp._linear_encoder import NEIGHBORS, SpotGenes, leading_axes, neighbor_graph, weighted_genes

from ._data import MemorySection

__all__ = ["spatial_axes", "start_spectral", "start_spectral_image"]

TABLE_STD = 0.05  # initial standard deviation of the embedding table
ANCHORS = 16  # constant columns, so that layer norm preserves the length of the vector in the others
ANCHOR = 3.0
PIECES = 20_000


def start_spectral(encoder: GeneEncoder, sections: Sequence[MemorySection], divisors: np.ndarray, seed: int) -> None:
    """Set embeddings and rank gates so that `encoder.features` are the spatial axes; layers initially add nothing.

    Parameters
    ----------
    encoder
        With ``norm="pre"``, ``rank_gate=True`` and ``pooling`` "sum" or "bag"; changed in place.
    sections
        Sections with tokens and coordinates.
    divisors
        Usual level (G,) of each gene, as in the vocabulary.
    seed
        Seed of the first vector of the eigenvalue solver; the axes depend on it by rounding errors only.
    """
    config = encoder.config
    gate_L, level_G = np.log1p(anomaly_of_rank(config.max_tokens)), np.log1p(divisors)
    axes_GK = spatial_axes(sections, gate_L, level_G, min(config.width, len(divisors)), seed)
    table_GK = level_G[:, None] * axes_GK
    table_GK *= TABLE_STD / max(table_GK.std(), 1e-12)
    with torch.no_grad():
        n, k = table_GK.shape
        encoder.embeddings.weight.zero_()[_keys.N_SPECIAL : _keys.N_SPECIAL + n, :k] = torch.from_numpy(table_GK)
        encoder.rank_gate.copy_(torch.from_numpy(gate_L / gate_L.mean())[:, None].expand_as(encoder.rank_gate))
        encoder.positional_embedding.weight.zero_()
        for last in encoder.residual_outputs():
            last.weight.zero_()
            last.bias.zero_()


def anomaly_of_rank(max_tokens: int) -> np.ndarray:
    """Typical ratio of the gene of a rank to its usual level; fitted to real spots of all platforms."""
    return 8 / (1 + np.arange(max_tokens) / 15) ** 0.6


def spatial_axes(
    sections: Sequence[MemorySection], gate_L: np.ndarray, level_G: np.ndarray, k: int, seed: int
) -> np.ndarray:
    """Leading eigenvectors (G, K), orthonormal, of the covariance of genes between a spot and its neighbours.

    The weight of a gene in a spot is (gate of its rank) x (level of the gene). See `stampy.pp._linear_encoder`.
    """
    parts = [
        SpotGenes(weighted_genes(s.tokens, gate_L, level_G), neighbor_graph(s.xy))
        for s in sections
        if len(s.xy) > NEIGHBORS and s.tokens.any() and np.isfinite(s.xy).all()
    ]
    if not parts:
        raise ValueError(
            f"start='spectral' needs a section of more than {NEIGHBORS} spots with genes and coordinates (files of "
            f"SpaVis-6M have none), found sections of {shortlist(len(s.xy) for s in sections)} spots. Use "
            "start='random'."
        )
    return leading_axes(parts, k, stream(seed, "spectral axes"), converged=True)


@torch.no_grad()
def start_spectral_image(encoder: ImageEncoder, patches: Tensor, seed: int) -> None:
    """Initialise a ViT so that its class token is the mean of the principal components of small patches of a tile.

    A ViT with random weights needs millions of tiles to learn more than the mean colour of a tile; with this
    initialisation it represents more from the start. The pretext token of a region starts as the components of its
    patch.

    Parameters
    ----------
    encoder
        A plain timm ViT; changed in place.
    patches
        Tiles of all sections, uint8 (B, size, size, 3).
    seed
        Seed of the random choice of patches.
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
        _zero(block.mlp.fc2)
        _zero(block.attn.proj)
        if number == 0:  # queries and keys remain small and random, so that attention is almost uniform
            block.attn.qkv.weight[2 * width :] = torch.eye(width)
            nn.init.eye_(block.attn.proj.weight)


def _zero(layer: nn.Linear) -> None:
    layer.weight.zero_()
    layer.bias.zero_()


def _components(images: Tensor, size: int, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Mean (3 p p,) and principal components (K, 3 p p) of patches, scaled by the square root of their deviation."""
    generator = torch.Generator().manual_seed(seed)
    per_tile = (images.shape[-1] // size) ** 2
    chosen = images[torch.randperm(len(images), generator=generator)[: max(PIECES // per_tile, 1)]]
    pieces_ND = F.unfold(chosen, size, stride=size).transpose(1, 2).flatten(0, 1)
    mean = pieces_ND.mean(dim=0)
    covariance = torch.cov(pieces_ND.T)
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0)[:k].clamp(min=1e-8), vectors.flip(1)[:, :k]
    return mean, (vectors / values**0.25).T.float()
