"""Interfaces of other groups' image, gene and slide encoders.

Shapes: B spots, H and W px, D size of the output, N tiles of a slide, V genes of the vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stampy import _keys
from stampy.models._systems.cards import Card

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

__all__ = ["GeneSystem", "ImageSystem", "SlideSystem"]

Level = Literal["embedding", "feature"]


class _System(nn.Module):
    """Base of all systems: card, name, and origin of the weights."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.name = card.name
        self.source = ""

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.parameters(), torch.empty(0)).device


class ImageSystem(_System):
    """Image encoder: one vector per tile. `stampy.models.Stamp` has the same methods.

    Parameters
    ----------
    card
        Card of the system, which describes its input.
    """

    @property
    def size_px(self) -> int:
        """Edge of the tiles."""
        return self.card.size_px or _keys.TILE_PX

    @property
    def tile_um(self) -> float:
        """Edge of the tissue in a tile, in µm."""
        return self.card.tile_um or _keys.TILE_UM

    @property
    def surroundings(self) -> bool:
        """Whether the input is each tile with its surrounding region; no such system uses it."""
        return False

    def normalize(self, tiles: Tensor) -> Tensor:
        """uint8 tiles (B, H, W, 3) as float input (B, 3, H, W)."""
        mean = torch.tensor(self.card.mean, device=tiles.device)
        std = torch.tensor(self.card.std, device=tiles.device)
        return ((tiles.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, D) before any projection; images (B, 3, H, W), normalised."""
        raise NotImplementedError

    def project_images(self, features: Tensor) -> Tensor:
        """Features -> embeddings (B, D); the features themselves if the system has no projection."""
        return features

    def embed_images(self, tiles: Tensor, *, level: Level = "embedding") -> Tensor:
        """uint8 tiles (B, H, W, 3) of `size_px` -> (B, D)."""
        _check_tiles(tiles, self.size_px)
        features = self.image_features(self.normalize(tiles))
        return self.project_images(features) if level == "embedding" else features


class GeneSystem(_System):
    """Gene encoder: one vector per spot from its counts.

    Parameters
    ----------
    card
        Card of the system.
    genes
        Its vocabulary: columns gene_id, symbol and divisor, one row per gene, in the order of the columns of the
        counts.
    """

    def __init__(self, card: Card, genes: pd.DataFrame):
        super().__init__(card)
        self.genes = genes.reset_index(drop=True)

    def gene_features(self, counts: sparse.csr_matrix) -> Tensor:
        """Features (B, D) of raw counts (B, V); zeros for a spot without counts."""
        raise NotImplementedError

    def project_genes(self, features: Tensor) -> Tensor:
        """Features -> embeddings (B, D); the features themselves if the system has no projection."""
        return features

    def embed_counts(self, counts: sparse.csr_matrix, *, level: Level = "embedding") -> Tensor:
        """Raw counts (B, V), one column for each row of `genes` -> (B, D)."""
        if counts.shape[1] != len(self.genes):
            raise ValueError(f"{self.name!r} expects counts of its {len(self.genes)} genes, found {counts.shape[1]}.")
        features = self.gene_features(counts)
        return self.project_genes(features) if level == "embedding" else features


class SlideSystem(_System):
    """Slide encoder: one vector per slide from its tile features."""

    def attention(self, features: Tensor) -> Tensor:
        """Weight of each tile, (N, heads); each column sums to 1."""
        raise NotImplementedError

    def embed_slide(self, features: Tensor) -> Tensor:
        """Tile features (N, d) of one slide -> (D,)."""
        raise NotImplementedError


def _check_tiles(tiles: Tensor, size_px: int) -> None:
    if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tuple(tiles.shape[1:]) != (size_px, size_px, 3):
        raise ValueError(
            f"Tiles must be uint8 of shape (B, {size_px}, {size_px}, 3), found {tiles.dtype} {tuple(tiles.shape)}."
        )
