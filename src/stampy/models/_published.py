"""The checkpoint published by the authors of the paper, with its own names."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks
from stampy._utils import check_device, device_of

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import Tensor

    from ._gene import GeneConfig, GeneEncoder
    from ._image import ImageConfig
    from ._stamp import Stamp

__all__ = ["load_published", "load_published_gene_encoder"]

logger = logging.getLogger(__name__)

N_SPECIAL_ROWS = 35  # of the embedding table: 30 special tokens and 5 unused rows

RENAMED = {
    "spot_backbone.": "gene.",
    "visual_backbone.": "image.",
    "spot_projection.": "gene_head.",
    "patch_projection.": "patch_head.",
    "region_projection.": "region_head.",
    "positioning_projection.": "localization_head.",
}
RENAMED_GENE = {"encoder.layers.": "layers.", "classifier_head.": "igr_head.", "spatial_classifier_head.": "cgr_head."}
# Errors for tensors whose shapes do not determine the sizes.
_ODD_SHAPES = (ValueError, TypeError, IndexError, ArithmeticError, RuntimeError)

TEMPLATE_LAYER = "encoder_layer."  # template that the published code clones into its layers


def load_published(
    path: str | Path,
    *,
    gene_heads: int = 16,
    image_heads: int = 16,
    genes: pd.DataFrame | None = None,
    device: str | torch.device | None = None,
) -> Stamp:
    """Load a checkpoint in the format of the published implementation, strictly.

    All sizes are inferred from the tensors, except the numbers of attention heads.

    Parameters
    ----------
    path
        File such as ``pytorch_model.bin``: a state dict, optionally under ``state_dict`` or with a ``module.`` prefix.
        It is read with ``weights_only=True``; ``.safetensors`` is also supported.
    gene_heads, image_heads
        Attention heads of the gene encoder and of the ViT.
    genes
        The vocabulary (columns gene_id, symbol, divisor), see `stampy.datasets.published_vocabulary`.
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.

    Raises
    ------
    ValueError
        A tensor is missing, unexpected or of another shape, or the file is not a plain state dict.
    FileNotFoundError
        There is no file.

    Examples
    --------
    >>> load_published("pytorch_model.bin")
    Traceback (most recent call last):
    FileNotFoundError: No checkpoint at 'pytorch_model.bin'.
    """
    _check_arguments(path, {"gene_heads": gene_heads, "image_heads": image_heads}, device)
    from ._stamp import Stamp, StampConfig
    from ._tensors import load_strictly, read_state_dict

    tensors = read_state_dict(path)
    renamed = {_rename(k): v for k, v in tensors.items() if not k.startswith(f"spot_backbone.{TEMPLATE_LAYER}")}
    if "gene.embeddings.weight" not in renamed or "image.base_model.pos_embed" not in renamed:
        raise ValueError(
            f"{str(path)!r} is not a published STAMP checkpoint: it lacks `spot_backbone.embeddings.weight` or "
            f"`visual_backbone.base_model.pos_embed`. First names found: {list(tensors)[:5]}."
        )
    try:
        config = StampConfig(
            gene=gene_config(renamed, "gene.", gene_heads),
            image=_image_config(renamed, "image.base_model.", image_heads),
            embedding=len(renamed["gene_head.weight"]),
        )
        model = Stamp(config, genes)
    except KeyError as error:
        raise ValueError(f"{str(path)!r} is not a published STAMP checkpoint: it lacks {error}.") from error
    except _ODD_SHAPES as error:
        raise ValueError(f"{str(path)!r} is not a published STAMP checkpoint: {error}") from error
    _add_missing_heads(renamed, model.gene, "gene.")
    load_strictly(model, renamed, where=str(path))
    model.name = "stamp"
    return model.to(device_of(device)).eval()


def load_published_gene_encoder(
    path: str | Path, *, heads: int = 16, device: str | torch.device | None = None
) -> GeneEncoder:
    """Load a stage 1 checkpoint of the published implementation (the gene encoder with both heads), strictly.

    Examples
    --------
    >>> load_published_gene_encoder("pytorch_model.bin")
    Traceback (most recent call last):
    FileNotFoundError: No checkpoint at 'pytorch_model.bin'.
    """
    _check_arguments(path, {"heads": heads}, device)
    from ._gene import GeneEncoder
    from ._tensors import load_strictly, read_state_dict

    tensors = {rename_gene(k): v for k, v in read_state_dict(path).items() if not k.startswith(TEMPLATE_LAYER)}
    if "embeddings.weight" not in tensors:
        raise ValueError(f"{str(path)!r} is not a published gene encoder. First names found: {list(tensors)[:5]}.")
    try:
        encoder = GeneEncoder(gene_config(tensors, "", heads))
    except KeyError as error:
        raise ValueError(f"{str(path)!r} is not a published gene encoder: it lacks {error}.") from error
    except _ODD_SHAPES as error:
        raise ValueError(f"{str(path)!r} is not a published gene encoder: {error}") from error
    _add_missing_heads(tensors, encoder, "")
    load_strictly(encoder, tensors, where=str(path))
    return encoder.to(device_of(device)).eval()


def _check_arguments(path: str | Path, heads: Mapping[str, int], device: str | torch.device | None) -> None:
    """Raise for invalid arguments before torch is imported."""
    _checks.existing(path, what="checkpoint")
    for name, value in heads.items():
        _checks.at_least(name, value, 1)
    check_device(device)


def _rename(key: str) -> str:
    for old, new in RENAMED.items():
        if key.startswith(old):
            rest = key.removeprefix(old)
            return new + (rename_gene(rest) if old == "spot_backbone." else rest)
    return key


def rename_gene(key: str) -> str:
    for old, new in RENAMED_GENE.items():
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    found = [int(m[1]) for k in tensors if (m := re.match(re.escape(prefix) + r"(\d+)\.", k))]
    return max(found, default=-1) + 1


def gene_config(tensors: Mapping[str, Tensor], prefix: str, heads: int) -> GeneConfig:
    from ._gene import GeneConfig

    rows, width = tensors[f"{prefix}embeddings.weight"].shape
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide the gene encoder's width {width}; set `gene_heads`.")
    return GeneConfig(
        n_genes=rows - N_SPECIAL_ROWS,
        width=width,
        depth=_depth(tensors, f"{prefix}layers."),
        heads=heads,
        feedforward=len(tensors[f"{prefix}layers.0.linear1.weight"]),
        max_tokens=len(tensors[f"{prefix}positional_embedding.weight"]),
        pooling="positions",
    )


def _image_config(tensors: Mapping[str, Tensor], prefix: str, heads: int) -> ImageConfig:
    from ._image import ImageConfig

    patch = tensors[f"{prefix}patch_embed.proj.weight"]
    width, patch_px = patch.shape[0], patch.shape[-1]
    if width % heads:
        raise ValueError(f"{heads} attention heads do not divide the ViT's width {width}; set `image_heads`.")
    kwargs = {"init_values": 1e-5, "dynamic_img_size": True}
    sizes = {"embed_dim": width, "depth": _depth(tensors, f"{prefix}blocks."), "num_heads": heads}
    if (patch_px, *sizes.values()) != (16, 1024, 24, 16):
        kwargs |= sizes | {"patch_size": patch_px}
    return ImageConfig(backbone="vit_large_patch16_224", backbone_kwargs=kwargs)


def _add_missing_heads(tensors: dict[str, Tensor], encoder: GeneEncoder, prefix: str) -> None:
    # The published model has no CGR head, which stage 2 does not need: it keeps random initial values.
    for head in ("igr_head", "cgr_head"):
        keys = [f"{prefix}{head}.{name}" for name in ("weight", "bias")]
        if not any(k in tensors for k in keys):
            logger.info("The checkpoint has no `%s`; it stays untrained (embeddings do not need it).", head)
            tensors.update(zip(keys, getattr(encoder, head).parameters(), strict=True))
