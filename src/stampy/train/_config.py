"""Settings of the two stages. The defaults are those of the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self

from stampy._checks import existing, one_of

__all__ = ["AlignConfig", "PretrainConfig"]

# Of no consequence for the result: a run may go on with other values.
FREE = ("checkpoint_every", "keep", "accumulate", "checkpoint_activations", "compile", "prefetch", "fused")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Config:
    """What both stages have.

    Parameters
    ----------
    lr, min_lr, warmup_steps
        AdamW's learning rate rises linearly over the first steps, then falls along a cosine to ``min_lr``.
    weight_decay
        Of AdamW.
    clip
        Largest norm of the gradient.
    precision
        As Lightning Fabric names it: ``"32-true"``, ``"bf16-mixed"``.
    seed
        Decides everything random, together with the number of the step.
    checkpoint_every
        Steps between two checkpoints.
    keep
        Checkpoints that are kept.
    accumulate
        Pieces into which a device's batch is cut, one after the other on the device; the result is that of the whole
        batch, the memory that of a piece.
    checkpoint_activations
        Keep only the inputs of layers and compute the rest again in the backward pass: far less memory, about a third
        more time.
    compile
        Compile layers by `torch.compile`.
    prefetch
        Batches that are made ahead, each in a thread of its own.
    """

    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_steps: int = 100
    weight_decay: float = 1e-4
    clip: float = 1.0
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "32-true"
    seed: int = 0
    checkpoint_every: int = 500
    keep: int = 2
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    prefetch: int = 2

    def to_dict(self) -> dict[str, Any]:
        """Plain types, for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, config: Self | Mapping[str, Any] | str | Path | None) -> Self:
        """A config from itself, a mapping, a JSON file, or None for the defaults; ValueError for an unknown field."""
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        if isinstance(config, str | Path):
            config = json.loads(existing(config, what="config", suffixes=(".json",)).read_text())
        if not isinstance(config, Mapping):
            raise TypeError(f"Expected a {cls.__name__}, a mapping or a JSON file, found {type(config).__name__}.")
        known = {f.name for f in fields(cls)}
        for name in config:
            one_of(f"field of {cls.__name__}", name, known)
        return cls(**config)


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(_Config):
    """Stage 1: the gene encoder learns to reconstruct genes from a spot's own and from its neighbours' (section 3.2).

    Parameters
    ----------
    width, depth, heads, feedforward, max_tokens, pooling, tied_heads, dropout, norm, rank_gate
        Of the gene encoder, see `stampy.models.GeneConfig`.
    start
        ``"random"`` weights, or ``"spectral"``: features are at first the axes along which neighbouring spots agree,
        found from the sections in seconds. A small model on few sections gets further from there. It needs
        ``norm="pre"``, ``rank_gate`` and ``pooling="sum"`` or ``"bag"``.
    frozen
        Prefixes of the names of the gene encoder's parameters that stay as they start, such as
        ``("embeddings.", "rank_gate")``: then the features of ``pooling="bag"`` stay the spectral axes.
    epochs_igr
        Epochs with IGR alone, first.
    epochs_cgr
        Epochs with IGR + CGR, then.
    groups_per_batch, group_size, max_distance
        Neighbourhood groups in a device's batch, spots in a group (the centre and its neighbours), and the limit of
        `stampy.pp.neighborhoods`. New groups are drawn for every epoch.
    mask_fraction
        Share of a spot's tokens that are selected; of these 80 % are masked, 10 % exchanged for a random gene.
    cgr_targets
        ``"masked"``: the centre's selected genes (paper). ``"all"``: all its genes (released code).
    embedding
        Size of the embedding. Once trained, the gene head is set to the principal components of the training spots'
        features, so that a gene encoder alone gives embeddings too; stage 2 starts from it.
    positions_per_step
        Train every step on this many positions, drawn at random from ``max_tokens`` (the same ones for the whole
        batch); None for all. Halving them more than halves the cost of a step.
    fused
        How the cross-entropy over all genes is taken: ``"torch"``, by rows; ``"cut"`` or ``"liger"``, by the kernel of
        that package (CUDA); ``"auto"``, by one of these where it is installed.
    lr, min_lr, warmup_steps, weight_decay, clip, precision, seed, checkpoint_every, keep, accumulate, \
checkpoint_activations, compile, prefetch
        Optimiser and loop, see `stampy.train.AlignConfig`.

    Examples
    --------
    >>> PretrainConfig.of({"width": 192}).width
    192
    >>> PretrainConfig.of({"widht": 192})
    Traceback (most recent call last):
    ValueError: ...
    """

    width: int = 512
    depth: int = 12
    heads: int = 16
    feedforward: int = 1024
    max_tokens: int = 1500
    pooling: Literal["tokens", "sum", "bag"] = "tokens"
    tied_heads: bool = False
    dropout: float = 0.0
    norm: Literal["post", "pre"] = "post"
    rank_gate: bool = False
    start: Literal["random", "spectral"] = "random"
    frozen: tuple[str, ...] = ()
    epochs_igr: int = 1
    epochs_cgr: int = 1
    groups_per_batch: int = 8
    group_size: int = 9
    max_distance: float = 5.0
    mask_fraction: float = 0.15
    cgr_targets: Literal["masked", "all"] = "masked"
    embedding: int = 512
    positions_per_step: int | None = None
    fused: Literal["torch", "auto", "cut", "liger"] = "torch"


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig(_Config):
    """Stage 2: image and gene embeddings are aligned by four losses of equal weight (section 3.3).

    Parameters
    ----------
    backbone, backbone_kwargs
        A timm ViT, see `stampy.models.ImageConfig`.
    pretrained
        Start from the backbone's own weights.
    start
        Of an image tower that is added: ``"random"``, or ``"spectral"``: it sees at first the principal components of
        a tile's pieces, its colours among them. For a small ViT that learns from few sections.
    epochs
        Passes over the spots.
    pairs_per_batch
        Of a device; the losses compare those of all devices. Half of them are drawn in shuffled order, the other half
        are one more spot of the same section each.
    losses
        Those used, of patch_gene (L_P-S), region_gene (L_R-S), patch_region (L_P-R), localization (L_CSP).
    augment
        Turn and mirror tiles (a patch and its region alike) and vary their colours.
    frozen
        Prefixes of parameter names that are not trained, such as ``("gene.", "gene_head.")`` for an image tower that
        learns to match gene embeddings as they are.
    trainable
        Patterns of the names of parameters, such as ``("*_head.*", "image.base_model.blocks.11.*")``: no others are
        trained. None: all that are not frozen.
    image_tower
        ``"full"``: train the ViT. ``"lora"``: low-rank updates of its linear layers, merged into them at the end.
        ``"frozen"``: only the pretext token and the heads learn.
    lora_rank
        Of the updates.
    lr, min_lr, warmup_steps
        AdamW's learning rate rises linearly over the first steps, then falls along a cosine to ``min_lr``.
    weight_decay
        Of AdamW.
    clip
        Largest norm of the gradient.
    precision
        As Lightning Fabric names it: ``"32-true"``, ``"bf16-mixed"``.
    seed
        Decides everything random, together with the number of the step.
    checkpoint_every, keep
        Steps between two checkpoints, and how many of them are kept.
    accumulate
        Pieces into which a device's batch is cut, one after the other on the device; the result is that of the whole
        batch, the memory that of a piece.
    checkpoint_activations
        Keep only the inputs of layers and compute the rest again in the backward pass: far less memory, more time.
    compile
        Compile layers by `torch.compile`.
    prefetch
        Batches that are made ahead, each in a thread of its own.

    Examples
    --------
    >>> AlignConfig.of({"pairs_per_batch": 64}).pairs_per_batch
    64
    """

    weight_decay: float = 1e-3
    warmup_steps: int = 5000
    backbone: str = "vit_large_patch16_224"
    backbone_kwargs: Mapping[str, Any] | None = None
    pretrained: bool = False
    start: Literal["random", "spectral"] = "random"
    epochs: int = 30
    pairs_per_batch: int = 256
    losses: tuple[str, ...] = ("patch_gene", "region_gene", "patch_region", "localization")
    augment: bool = True
    frozen: tuple[str, ...] = ()
    trainable: tuple[str, ...] | None = None
    image_tower: Literal["full", "lora", "frozen"] = "full"
    lora_rank: int = 8
