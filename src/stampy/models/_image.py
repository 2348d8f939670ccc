"""Image encoders: settings, and the timm ViT with a pretext token for patches and regions (paper, section 3.3).

Shapes: B images, P patch tokens, D width, E size of the shared space.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stampy import _keys
from stampy._field_names import checked_names

from ._limits import check_image
from ._stem import STEM, RegionFeatures, StemEncoder

__all__ = ["ImageConfig", "ImageEncoder", "ImageOutput", "image_encoder", "pool_3x3"]

# Errors of timm for settings that conflict. A failed download is an OSError, which is not caught.
_NOT_BUILT = (AssertionError, ArithmeticError, AttributeError, IndexError, RuntimeError, TypeError)


@checked_names
@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """Settings of an image encoder and its input; the defaults are those of the paper (UNI's architecture).

    Parameters
    ----------
    backbone
        Name of a timm ViT. With ``pretrained=True`` also ``"hf-hub:org/name"`` or ``"local-dir:path"``: the model's
        config then names the architecture found there. Or ``"efficientnet_lite0_stem"``: the first blocks of this
        convolutional network, for a tile and its surroundings, as in ``"stampy-mini"``.
    backbone_kwargs
        Further arguments of `timm.create_model`, such as ``{"depth": 6}``: sizes, dropout rates and options of a ViT.
        For the convolutional stem only ``{"n_blocks": 5}``.
    size_px
        Edge of the input.
    mean, std
        Mean and standard deviation of the three channels, for input scaled to 0..1.
    tile_um
        Edge of the tissue in a patch, in µm; a region covers three times this width.

    Examples
    --------
    >>> ImageConfig(backbone="vit_tiny_patch16_224").tile_um
    112.0
    """

    backbone: str = "vit_large_patch16_224"
    backbone_kwargs: dict[str, Any] = field(default_factory=lambda: {"init_values": 1e-5, "dynamic_img_size": True})
    size_px: int = _keys.TILE_PX
    mean: tuple[float, float, float] = _keys.IMAGENET_MEAN
    std: tuple[float, float, float] = _keys.IMAGENET_STD
    tile_um: float = _keys.TILE_UM

    @property
    def surroundings(self) -> bool:
        """Whether the input of the encoder is each tile with the surrounding region of three times its edge."""
        return self.backbone == STEM


class ImageOutput(NamedTuple):
    """Output of the ViT for a batch of images."""

    feature: Tensor  # (B, D) class token
    query: Tensor  # (B, D) pretext token
    patches: Tensor  # (B, P, D) patch tokens, row by row


class ImageEncoder(nn.Module):
    """A timm ViT over the tokens [CLS, pretext, patches].

    For a patch, the pretext token is a learned vector; for a region, it is computed from the patch to be located in it.

    Parameters
    ----------
    config
        The ViT.
    pretrained
        Load the backbone's own weights (with timm, from the hub or the local folder in the name).

    Raises
    ------
    ValueError
        The backbone is unknown to timm or is not a ViT with a class token, or a setting is invalid.

    Examples
    --------
    >>> import torch
    >>> small = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
    >>> encoder = ImageEncoder(ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=small))
    >>> encoder(torch.zeros(2, 3, 224, 224)).feature.shape
    torch.Size([2, 16])
    """

    def __init__(self, config: ImageConfig, *, pretrained: bool = False):
        super().__init__()
        if config.surroundings:
            raise ValueError(
                f"The backbone {STEM!r} is not a ViT and has no weights to fetch. `stampy.models.Stamp` builds it; its "
                "trained weights are those of 'stampy-mini'."
            )
        check_image(config, fetched=pretrained)
        source = config.backbone if pretrained else None
        config = _resolved(config) if ":" in config.backbone else config
        self.config = config
        self.checkpointing = False  # activation checkpointing: keep only the inputs of blocks
        self.base_model: Any = _create(config, source=source)  # timm's annotations of a ViT are too wide
        width = self.base_model.embed_dim
        self.p_visual = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.ref_pos_embed = nn.Linear(width, width)

    @property
    def width(self) -> int:
        """Size of the feature."""
        return self.base_model.embed_dim

    @property
    def patch_px(self) -> int:
        """Edge of the ViT's own patches; reference patches are reduced to this size."""
        return self.base_model.patch_embed.patch_size[0]

    def forward(self, images: Tensor, references: Tensor | None = None) -> ImageOutput:
        """Run the ViT.

        Parameters
        ----------
        images
            (B, 3, size, size), normalised.
        references
            (R, 3, patch_px, patch_px), normalised: the last R images are regions, and the references are the patches to
            be located in them, reduced by `shrink`. None: all images are patches.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"Images must have shape (B, 3, height, width), found {tuple(images.shape)}.")
        vit = self.base_model
        x_BTD = vit._pos_embed(vit.patch_embed(images))
        pretext = self._pretext(images, references)
        x_BTD = torch.cat([x_BTD[:, :1], pretext.to(x_BTD.dtype), x_BTD[:, 1:]], dim=1)
        x_BTD = vit.norm_pre(x_BTD)
        for block in vit.blocks:
            again = self.checkpointing and torch.is_grad_enabled()
            x_BTD = checkpoint(block, x_BTD, use_reentrant=False) if again else block(x_BTD)
        x_BTD = vit.norm(x_BTD)
        return ImageOutput(x_BTD[:, 0], x_BTD[:, 1], x_BTD[:, vit.num_prefix_tokens + 1 :])

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of patches (B, 3, size, size), normalised."""
        return self(images).feature

    def regions(self, images: Tensor, references: Tensor) -> RegionFeatures:
        """Embed regions (B, 3, size, size) with patches to locate in them (B, 3, patch_px, patch_px), normalised."""
        return _of_regions(self(images, references))

    def with_regions(self, patches: Tensor, regions: Tensor, references: Tensor) -> tuple[Tensor, RegionFeatures]:
        """`features` of patches and `regions` in one pass through the ViT."""
        found = self(torch.cat([patches, regions]), references)
        n = len(patches)
        return found.feature[:n], _of_regions(ImageOutput(*(x[n:] for x in found)))

    def _pretext(self, images: Tensor, references: Tensor | None) -> Tensor:
        n_regions = 0 if references is None else len(references)
        patches = self.p_visual.expand(len(images) - n_regions, -1, -1)
        if references is None:
            return patches
        embed = self.base_model.patch_embed
        tokens = embed.norm(embed.proj(references).flatten(2).transpose(1, 2))
        return torch.cat([patches, self.ref_pos_embed(tokens)])

    def shrink(self, images: Tensor) -> Tensor:
        """Reduce patches (B, 3, size, size) to references (B, 3, patch_px, patch_px)."""
        return F.interpolate(images, size=self.patch_px, mode="bilinear", antialias=True, align_corners=False)

    def normalize(self, tiles: Tensor) -> Tensor:
        """Convert uint8 tiles (B, size, size, 3), as from `stampy.pp.tiles`, to float input (B, 3, size, size)."""
        mean_3, std_3 = (torch.tensor(x).view(3, 1, 1) for x in (self.config.mean, self.config.std))
        scale, shift = (x.to(tiles.device, non_blocking=tiles.is_cuda) for x in (1 / (255 * std_3), mean_3 / std_3))
        # Channels are moved as bytes and floats written once, since memory bandwidth limits this step.
        return tiles.permute(0, 3, 1, 2).contiguous().float().mul_(scale).sub_(shift)


def _of_regions(found: ImageOutput) -> RegionFeatures:
    return RegionFeatures(found.feature, found.query, pool_3x3(found.patches))


def image_encoder(config: ImageConfig) -> ImageEncoder | StemEncoder:
    """Image encoder with these settings and new weights; ValueError if it cannot be built."""
    if not config.surroundings:
        return ImageEncoder(config)
    check_image(config)
    return StemEncoder(config)


def _resolved(config: ImageConfig) -> ImageConfig:
    """Settings with the architecture of a backbone on the hub or on disk instead of its address."""
    from timm.models._hub import load_model_config_from_hf, load_model_config_from_path

    source, _, place = config.backbone.partition(":")
    read = load_model_config_from_path if source == "local-dir" else load_model_config_from_hf
    _, architecture, arguments = read(place)
    found = replace(config, backbone=architecture, backbone_kwargs={**arguments, **config.backbone_kwargs})
    check_image(found)
    return found


def _create(config: ImageConfig, *, source: str | None = None) -> Any:
    """Create the ViT, with its own weights if `source` is given."""
    import timm

    try:
        vit = timm.create_model(
            source or config.backbone, pretrained=source is not None, num_classes=0, **config.backbone_kwargs
        )
    except _NOT_BUILT as error:
        raise ValueError(
            f"The backbone {config.backbone!r} cannot be built with {dict(config.backbone_kwargs)}: "
            f"{str(error) or type(error).__name__}"
        ) from error
    lacks = [name for name in ("patch_embed", "cls_token", "_pos_embed", "blocks", "norm") if not hasattr(vit, name)]
    if not lacks and vit.cls_token is None:
        lacks = ["cls_token"]
    if not lacks and (getattr(vit, "pos_embed", None) is None or getattr(vit, "rope", None) is not None):
        lacks = ["positions that are added once"]
    if lacks:
        raise ValueError(
            f"The backbone {config.backbone!r} is not a plain ViT with a class token (lacks {lacks}); stampy needs "
            "one to "
            "add its pretext token."
        )
    size = (config.size_px, config.size_px)
    if not getattr(vit, "dynamic_img_size", False) and tuple(vit.patch_embed.img_size) != size:
        vit.set_input_size(img_size=size)  # interpolates positions of another grid
    return vit


def pool_3x3(patches_BPD: Tensor) -> Tensor:
    """Mean-pool the patch tokens of a square image to 3 x 3 overlapping cells: (B, 9, D), row-major.

    For 14 x 14 tokens, windows are 6 wide and 4 apart, as published; other sizes in proportion.
    """
    side = round(patches_BPD.shape[1] ** 0.5)
    stride = side * 2 // 7
    pooled = F.avg_pool2d(patches_BPD.transpose(1, 2).unflatten(2, (side, side)), side - 2 * stride, stride)
    return pooled.flatten(2).transpose(1, 2)
