"""Tile encoders: timm ViTs, the pixels of the tile, and encoders aligned with text (CONCH, PLIP, OmiCLIP).

Shapes: B tiles, T tokens, C width of the ViT, D width of the embedding, Q queries.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stampy.models._systems.base import ImageSystem
from stampy.models._systems.cards import Card
from stampy.models._tensors import fill, only, read_state_dict

__all__ = ["Conch", "OmiClip", "Pixels", "Plip", "ViT", "load_conch", "load_omiclip", "load_plip", "load_vit"]


class ViT(ImageSystem):
    """timm ViT; the feature is the class token, optionally concatenated with the mean of the patch tokens.

    Parameters
    ----------
    card
        Its `architecture` is passed to `timm.create_model`; ``pool="class+mean"`` selects the concatenation.
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
        # register tokens are between class token and patches, and have no position
        patches_BTD = tokens_BTD[:, self.vit.num_prefix_tokens :]
        return torch.cat([tokens_BTD[:, 0], patches_BTD.mean(dim=1)], dim=1)


def build_vit(card: Card) -> tuple[nn.Module, str]:
    """The ViT of a card, and its pooling of tokens."""
    import timm
    from timm.layers import SwiGLUPacked

    layers = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}
    arguments = {k: layers.get(v, v) if isinstance(v, str) else v for k, v in card.architecture.items()}
    pool = arguments.pop("pool", "class")
    return timm.create_model(arguments.pop("backbone"), num_classes=0, **arguments), pool


def load_vit(card: Card, path: Path) -> ViT:
    """Load a state dict with timm's names, strictly."""
    with torch.device("meta"):
        system = ViT(card)
    fill(system.vit, read_state_dict(path), where=str(path))
    return system


class Pixels(ImageSystem):
    """Baseline without a model: the tile reduced to a few pixels."""

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 3 edge²), row-major, 0..1."""
        return F.adaptive_avg_pool2d(images, self.card.architecture["edge"]).permute(0, 2, 3, 1).flatten(1)


class _Pooler(nn.Module):
    # Learned queries that attend to the tokens of the image.
    def __init__(self, width: int, context: int, n_queries: int, heads: int = 8):
        super().__init__()
        self.query = nn.Parameter(torch.empty(n_queries, width))
        self.attn = nn.MultiheadAttention(width, heads, kdim=context, vdim=context, batch_first=True)
        self.ln_q = nn.LayerNorm(width)
        self.ln_k = nn.LayerNorm(context)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = self.ln_k(x_BTC)
        q_BQD = self.ln_q(self.query).expand(len(x_BTC), -1, -1)
        return self.attn(q_BQD, x_BTC, x_BTC, need_weights=False)[0]


class _ConchVisual(nn.Module):
    # The image encoder of CONCH with its own names; `attn_pool_caption`, for text generation, is not used.
    def __init__(self, card: Card):
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        a = card.architecture
        self.trunk = VisionTransformer(
            img_size=card.size_px, patch_size=16, embed_dim=a["width"], depth=a["depth"], num_heads=a["heads"],
            num_classes=0, dynamic_img_size=True,
        )  # fmt: skip
        self.attn_pool_contrast = _Pooler(a["embedding"], a["width"], 1)
        self.ln_contrast = nn.LayerNorm(a["embedding"])
        self.proj_contrast = nn.Parameter(torch.empty(a["embedding"], a["embedding"]))

    def forward(self, images: Tensor) -> Tensor:
        pooled_BQD = self.attn_pool_contrast(self.trunk.forward_features(images))
        return self.ln_contrast(pooled_BQD[:, 0])


class Conch(ImageSystem):
    """CONCH: a ViT-B/16 whose tokens are pooled by one learned query."""

    def __init__(self, card: Card):
        super().__init__(card)
        self.visual = _ConchVisual(card)

    def image_features(self, images: Tensor) -> Tensor:
        """(B, D): pooled, before the projection into the space shared with text."""
        return self.visual(images)

    def project_images(self, features: Tensor) -> Tensor:
        """(B, D), L2 norm 1."""
        return F.normalize(features @ self.visual.proj_contrast, dim=-1)


def load_conch(card: Card, path: Path) -> Conch:
    """Load CONCH's state dict: `visual.*` strictly; text encoder and decoders are ignored."""
    with torch.device("meta"):
        system = Conch(card)
    text = ("text.", "text_decoder.", "logit_scale", "visual.attn_pool_caption.", "visual.ln_caption.")
    tensors = only(read_state_dict(path), where=str(path), prefix="visual.", ignored=text)
    _resize_positions(tensors, system.visual.trunk)
    fill(system.visual, tensors, where=str(path))
    return system


def _resize_positions(tensors: dict[str, Tensor], trunk: Any) -> None:
    """Resample the position embedding of 448 px to the card's size, bilinearly as in the published loader."""
    from timm.layers import resample_abs_pos_embed

    found = tensors.get("trunk.pos_embed")
    if found is None or found.ndim != 3 or found.shape[1] == trunk.pos_embed.shape[1]:
        return
    tensors["trunk.pos_embed"] = resample_abs_pos_embed(
        found.float(), list(trunk.patch_embed.grid_size), num_prefix_tokens=1, interpolation="bilinear", antialias=False
    )


class Plip(ImageSystem):
    """PLIP: the image encoder of a CLIP ViT-B/32, built by transformers."""

    def __init__(self, card: Card):
        super().__init__(card)
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**card.architecture))

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 768): the class token after the last norm."""
        return self.clip.vision_model(pixel_values=images).pooler_output

    def project_images(self, features: Tensor) -> Tensor:
        """(B, 512), L2 norm 1."""
        return F.normalize(self.clip.visual_projection(features), dim=-1)


def load_plip(card: Card, path: Path) -> Plip:
    """Load a CLIP state dict with transformers' names: the image encoder strictly; the text encoder is ignored."""
    system = Plip(card)
    text = ("text_model.", "text_projection.", "logit_scale", "vision_model.embeddings.position_ids")
    tensors = only(read_state_dict(path), where=str(path), ignored=text)
    fill(system.clip, tensors, where=str(path))
    return system


class OmiClip(ImageSystem):
    """OmiCLIP: the image encoder of a CoCa ViT-L/14, built by open_clip."""

    def __init__(self, card: Card, visual: Any):
        super().__init__(card)
        self.proj = visual.proj
        visual.proj = None  # the encoder then returns pooled tokens, and stampy applies the projection
        visual.output_tokens = False
        self.visual = visual

    def image_features(self, images: Tensor) -> Tensor:
        """(B, 768): pooled, before the projection."""
        return self.visual(images)

    def project_images(self, features: Tensor) -> Tensor:
        """(B, 768), L2 norm 1."""
        return F.normalize(features @ self.proj, dim=-1)


def build_coca(card: Card) -> nn.Module:
    """The whole CoCa model of open_clip, by name or, for a variant, from its configuration."""
    import open_clip

    arguments = dict(card.architecture)
    if "name" in arguments:
        arguments = open_clip.get_model_config(arguments["name"])
    arguments.pop("custom_text", None)
    return open_clip.CoCa(**arguments)


def load_omiclip(card: Card, path: Path) -> OmiClip:
    """Load a CoCa checkpoint of open_clip strictly, and keep the image encoder."""
    with torch.device("meta"):
        coca = build_coca(card)
    fill(coca, read_state_dict(path), where=str(path))
    return OmiClip(card, coca.visual)
