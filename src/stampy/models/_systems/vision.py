"""Encoders that are one timm ViT, and the tile itself.

Shapes: B tiles, T tokens, D width.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stampy.models._systems.base import ImageSystem
from stampy.models._systems.cards import Card
from stampy.models._tensors import fill, read_state_dict

__all__ = ["Pixels", "ViT", "load_vit"]


class ViT(ImageSystem):
    """A timm ViT; the feature is the class token, or that beside the mean of the patch tokens.

    Parameters
    ----------
    card
        Its `architecture` is passed to `timm.create_model`; ``pool="class+mean"`` chooses the second kind of feature.
    """

    def __init__(self, card: Card):
        super().__init__(card)
        self.vit: Any
        self.vit, self.pool = build_vit(card)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, D), or (B, 2 D)."""
        tokens_BTD = self.vit.forward_features(images)
        if self.pool == "class":
            return tokens_BTD[:, 0]
        # between class token and patches lie the registers, which hold nothing of a place
        patches_BTD = tokens_BTD[:, self.vit.num_prefix_tokens :]
        return torch.cat([tokens_BTD[:, 0], patches_BTD.mean(dim=1)], dim=1)


def build_vit(card: Card) -> tuple[nn.Module, str]:
    """The ViT of a card, and how its tokens become a feature."""
    import timm
    from timm.layers import SwiGLUPacked

    layers = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    arguments = {k: layers.get(v, v) if isinstance(v, str) else v for k, v in card.architecture.items()}
    pool = arguments.pop("pool", "class")
    return timm.create_model(arguments.pop("backbone"), num_classes=0, **arguments), pool


def load_vit(card: Card, path: Path) -> ViT:
    """Read a state dict by timm's names, strictly."""
    with torch.device("meta"):
        system = ViT(card)
    fill(system.vit, read_state_dict(path), where=str(path))
    return system


class Pixels(ImageSystem):
    """The baseline without a model: the tile itself, shrunk to a few colours."""

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3 edge²), row by row, 0..1."""
        return F.adaptive_avg_pool2d(images, self.card.architecture["edge"]).permute(0, 2, 3, 1).flatten(1)
