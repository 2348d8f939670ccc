"""Settings of the two stages; the defaults are those of the paper."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

from stampy._checks import existing, one_of
from stampy._field_names import checked_names, known_field
from stampy._settings import settings
from stampy.models._backbone_names import check_backbone

from ._setting_checks import NumberRange, checked, no_effect_error

__all__ = ["AlignConfig", "PretrainConfig"]

# These do not affect results, so a run may be resumed with other values.
RESULT_NEUTRAL = ("checkpoint_every", "keep", "accumulate", "checkpoint_activations", "compile", "prefetch", "fused")


LOSSES = ("patch_gene", "region_gene", "patch_region", "localization")
_LORA_RANK = 8

_SIZE, _COUNT = NumberRange(1, 2**20), NumberRange(1)
RANGES = {
    "lr": NumberRange(0, above=True),
    "min_lr": NumberRange(0),
    "warmup_steps": NumberRange(0),
    "weight_decay": NumberRange(0),
    "clip": NumberRange(0, above=True),
    "seed": NumberRange(0, 2**63 - 1),
    "checkpoint_every": _COUNT,
    "keep": _COUNT,
    "accumulate": _COUNT,
    "prefetch": NumberRange(1, 64),
    "width": _SIZE,
    "depth": NumberRange(1, 1000),
    "heads": NumberRange(1, 1024),
    "feedforward": _SIZE,
    "max_tokens": NumberRange(1, 2**16 - 1),
    "dropout": NumberRange(0, 1, below=True),
    "epochs_igr": NumberRange(0),
    "epochs_cgr": NumberRange(0),
    "groups_per_batch": _COUNT,
    "group_size": NumberRange(2, 1024),
    "max_distance": NumberRange(0, above=True),
    "mask_fraction": NumberRange(0, 1, above=True, below=True),
    "mask_share": NumberRange(0, 1, above=True),
    "embedding": _SIZE,
    "positions_per_step": _COUNT,
    "epochs": _COUNT,
    "pairs_per_batch": NumberRange(4),
    "lora_rank": _SIZE,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class _StageConfig:
    """Settings that both stages share.

    Parameters
    ----------
    lr, min_lr
        Maximum and final learning rate of AdamW, with linear warm-up and cosine decay.
    warmup_steps
        Steps of the warm-up. None: the number of the paper, 100 in stage 1 and 5,000 in stage 2, or a fifth of the run
        if it has fewer than five times as many steps. A warm-up as long as the run raises an error, and a warm-up
        longer than half of it gives a warning.
    weight_decay
        Weight decay of AdamW.
    clip
        Maximum norm of the gradient.
    precision
        Precision in the notation of Lightning Fabric: ``"32-true"``, ``"bf16-mixed"``.
    seed
        Seed of all random numbers, together with the number of the step.
    checkpoint_every
        Steps between two checkpoints.
    keep
        Checkpoints that are kept.
    accumulate
        Number of pieces of a batch, which are processed one after the other on the device. The result is that of the
        entire batch, with the memory of one piece.
    checkpoint_activations
        Keep only the inputs of layers and compute the rest again in the backward pass: far less memory, about a third
        more time.
    compile
        Compile layers with `torch.compile`.
    prefetch
        Number of batches to prepare in advance, each in a separate thread.
    """

    lr: float = 1e-4
    min_lr: float = 1e-5
    warmup_steps: int | None = None
    weight_decay: float = 1e-4
    clip: float = 1.0
    precision: Literal["32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"] = "32-true"
    seed: int = field(default_factory=lambda: settings.seed)
    checkpoint_every: int = 500
    keep: int = 2
    accumulate: int = 1
    checkpoint_activations: bool = False
    compile: bool = False
    prefetch: int = 2

    USUAL_WARMUP: ClassVar[int] = 100

    def __post_init__(self) -> None:
        for name, value in checked(self, RANGES).items():
            object.__setattr__(self, name, value)
        if self.min_lr > self.lr:
            raise ValueError(f"`min_lr` must be at most `lr`, found {self.min_lr:g} and {self.lr:g}.")
        self._check()

    def _check(self) -> None:
        """Raise ValueError for settings that conflict or have no effect."""

    def to_dict(self) -> dict[str, object]:
        """Convert to plain types for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, config: Self | Mapping[str, object] | str | Path | None) -> Self:
        """Make a config from itself, a mapping, a JSON file, or None (defaults); ValueError for an unknown field."""
        if config is None:
            return cls()
        if isinstance(config, cls):
            return config
        where = repr(str(config)) if isinstance(config, str | Path) else cls.__name__
        if isinstance(config, str | Path):
            config = _read(existing(config, what="config", suffixes=(".json",)))
        if not isinstance(config, Mapping):
            if where != cls.__name__:
                raise TypeError(
                    f"{where} must contain a JSON object, {{setting: value}}, found {type(config).__name__}."
                )
            raise TypeError(f"Expected a {cls.__name__}, a mapping or a JSON file, found {type(config).__name__}.")
        for name in config:
            known_field(name, {f.name for f in fields(cls)}, where=where)
        return cls(**cast("Mapping[str, Any]", config))  # `__post_init__` checks types and ranges

    def warmup(self, steps: int) -> int:
        """Number of warm-up steps in a run of so many steps; ValueError if the warm-up is as long as the run."""
        if self.warmup_steps is None:
            return min(self.USUAL_WARMUP, max(steps // 5, 1))
        if self.warmup_steps >= steps and self.warmup_steps > 0:
            raise ValueError(
                f"`warmup_steps` is {self.warmup_steps:,}, the run has {steps:,} steps: the learning rate would never "
                f"reach `lr`. Lower it, raise the number of epochs, or omit it."
            )
        return self.warmup_steps


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is not a JSON file: {error}.") from error


@checked_names
@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainConfig(_StageConfig):
    """Settings of stage 1: reconstruct genes of a spot from its other genes and from its neighbours (section 3.2).

    Parameters
    ----------
    width, depth, heads, feedforward, max_tokens, pooling, tied_heads, dropout, norm, rank_gate
        Architecture of the gene encoder, see `stampy.models.GeneConfig`.
    start
        ``"random"`` weights, or ``"spectral"``: features are initialised with the axes along which neighbouring spots
        agree, computed from the sections in seconds. This gives better small models for few sections. It needs
        ``norm="pre"``, ``rank_gate`` and ``pooling="sum"`` or ``"bag"``.
    frozen
        Prefixes of the names of the gene encoder's parameters that are not trained, such as
        ``("embeddings.", "rank_gate")``, which keeps the spectral axes as features with ``pooling="bag"``.
    epochs_igr
        Epochs with IGR alone, at the beginning.
    epochs_cgr
        Epochs with IGR + CGR, afterwards.
    groups_per_batch, group_size, max_distance
        Neighbourhood groups per batch of a device, spots per group (the central spot and its neighbours), and the limit
        of `stampy.pp.neighborhoods`. New groups are drawn for every epoch.
    mask_fraction
        Share of the tokens of a spot that are selected for the loss.
    mask_share
        Share of the selected tokens that are masked; half of the others are replaced by a random gene, half are kept.
        1: all are masked, so copying does not lower the loss. IGR then never scores a visible position, although the
        feature of a spot is the mean of the outputs at its visible positions (`pooling`): only CGR trains these
        outputs to describe the spot. The log then has no igr_replaced and igr_kept.
    head_bias
        Initial biases of the two reconstruction heads: ``"zero"``, or ``"frequency"``, the logarithm of the frequency
        of each gene among the tokens of the sections, which a run from zero learns in its first hundreds of steps.
    cgr_targets
        ``"masked"``: the selected genes of the central spot (paper). ``"all"``: all its genes (released code).
    embedding
        Size of the embedding. After training, the gene head is set to the principal components of the training spots'
        features, so that a gene encoder without alignment also gives embeddings; stage 2 starts from it.
    positions_per_step
        Number of positions per training step, drawn at random from ``max_tokens`` (the same positions for the entire
        batch); None for all. Half the positions take less than half the time.
    fused
        Implementation of the cross-entropy over all genes: ``"torch"``, in rows; ``"liger"``, the kernel of
        liger-kernel (CUDA); ``"auto"``, this kernel if it is installed.
    lr, min_lr, warmup_steps, weight_decay, clip, precision, seed, checkpoint_every, keep, accumulate, \
checkpoint_activations, compile, prefetch
        Optimiser and loop, see `stampy.train.AlignConfig`.

    Examples
    --------
    >>> PretrainConfig.of({"width": 192}).width
    192
    >>> PretrainConfig(learning_rate=1e-3)
    Traceback (most recent call last):
    TypeError: There is no setting 'learning_rate' in PretrainConfig. Did you mean 'lr'? ...
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
    mask_share: float = 0.8
    head_bias: Literal["zero", "frequency"] = "zero"
    cgr_targets: Literal["masked", "all"] = "masked"
    embedding: int = 512
    positions_per_step: int | None = None
    fused: Literal["torch", "auto", "liger"] = "torch"

    def _check(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"`heads` must divide `width`, found {self.heads} and {self.width}.")
        summed = self.norm == "pre" and self.rank_gate and self.pooling in ("sum", "bag")
        if self.start == "spectral" and not summed:
            raise ValueError(
                "start='spectral' needs norm='pre', rank_gate=True and pooling='sum' or 'bag', found "
                f"norm={self.norm!r}, rank_gate={self.rank_gate} and pooling={self.pooling!r}."
            )
        if self.epochs_igr + self.epochs_cgr == 0:
            raise ValueError("`epochs_igr` and `epochs_cgr` are both 0: one of them must be at least 1.")
        if self.cgr_targets != "masked" and self.epochs_cgr == 0:
            raise no_effect_error("cgr_targets='all'", "`epochs_cgr` is 0", "Omit it, or raise `epochs_cgr`.")
        if self.accumulate > self.groups_per_batch:
            raise ValueError(
                f"`accumulate` must be at most `groups_per_batch`, found {self.accumulate} and {self.groups_per_batch}."
            )
        if self.positions_per_step is not None and self.positions_per_step > self.max_tokens:
            raise no_effect_error(
                f"positions_per_step={self.positions_per_step}", f"`max_tokens` is {self.max_tokens}", "Lower it."
            )


@checked_names
@dataclass(frozen=True, kw_only=True, slots=True)
class AlignConfig(_StageConfig):
    """Settings of stage 2: image and gene embeddings are aligned with four losses of equal weight (section 3.3).

    Parameters
    ----------
    backbone, backbone_kwargs
        Image encoder for a model without image encoder, a timm ViT: see `stampy.models.ImageConfig`. None:
        ``"vit_large_patch16_224"``. For a model with an image encoder they raise an error, unless they are its own
        settings.
    pretrained
        Start an added image encoder from the backbone's own weights.
    start
        Initialisation of an added image encoder: ``"random"``, or ``"spectral"``, with features that are the principal
        components of image patches, including colours; for small ViTs and few sections.
    epochs
        Passes over the spots.
    pairs_per_batch
        Pairs per batch of a device, an even number; the losses compare the pairs of all devices. Half of the pairs are
        drawn in shuffled order; for each of these, the other half contains one more spot of the same section.
    losses
        Losses to use: patch_gene (L_P-S), region_gene (L_R-S), patch_region (L_P-R), localization (L_CSP).
    augment
        Rotate and reflect tiles (a patch and its region in the same way) and vary their colours.
    frozen
        Prefixes of parameter names that are not trained, such as ``("gene.", "gene_head.")`` to train an image encoder
        for fixed gene embeddings.
    trainable
        Patterns of parameter names, such as ``("*_head.*", "image.base_model.blocks.11.*")``; only these are trained.
        None: all parameters that are not frozen.
    image_tower
        ``"full"``: train the ViT. ``"lora"``: train low-rank updates of its linear layers, merged into them at the end.
        ``"frozen"``: train only the pretext token and the heads.
    lora_rank
        Rank of the low-rank updates.
    lr, min_lr
        Maximum and final learning rate of AdamW, with linear warm-up and cosine decay.
    warmup_steps
        Steps of the warm-up. None: the number of the paper, 100 in stage 1 and 5,000 in stage 2, or a fifth of the run
        if it has fewer than five times as many steps. A warm-up as long as the run raises an error, and a warm-up
        longer than half of it gives a warning.
    weight_decay
        Weight decay of AdamW.
    clip
        Maximum norm of the gradient.
    precision
        Precision in the notation of Lightning Fabric: ``"32-true"``, ``"bf16-mixed"``.
    seed
        Seed of all random numbers, together with the number of the step.
    checkpoint_every, keep
        Steps between two checkpoints, and the number of checkpoints to keep.
    accumulate
        Number of pieces of a batch, which are processed one after the other on the device. The result is that of the
        entire batch, with the memory of one piece.
    checkpoint_activations
        Store only the inputs of layers and recompute activations in the backward pass: far less memory, more time.
    compile
        Compile layers with `torch.compile`.
    prefetch
        Number of batches to prepare in advance, each in a separate thread.

    Examples
    --------
    >>> AlignConfig.of({"pairs_per_batch": 64}).pairs_per_batch
    64
    """

    USUAL_WARMUP: ClassVar[int] = 5000

    weight_decay: float = 1e-3
    backbone: str | None = None
    backbone_kwargs: Mapping[str, Any] | None = None
    pretrained: bool = False
    start: Literal["random", "spectral"] = "random"
    epochs: int = 30
    pairs_per_batch: int = 256
    losses: tuple[str, ...] = LOSSES
    augment: bool = True
    frozen: tuple[str, ...] = ()
    trainable: tuple[str, ...] | None = None
    image_tower: Literal["full", "lora", "frozen"] = "full"
    lora_rank: int = _LORA_RANK

    def _check(self) -> None:
        if self.backbone is not None:
            check_backbone(self.backbone)
        if not self.losses:
            raise ValueError(f"`losses` is empty; name some of {LOSSES}.")
        for name in self.losses:
            one_of("losses", name, LOSSES)
        if self.pairs_per_batch % 2:
            raise ValueError(f"`pairs_per_batch` must be even, found {self.pairs_per_batch}.")
        if self.accumulate > self.pairs_per_batch:
            raise ValueError(
                f"`accumulate` must be at most `pairs_per_batch`, found {self.accumulate} and {self.pairs_per_batch}."
            )
        if self.start == "spectral" and self.pretrained:
            raise ValueError("start='spectral' and pretrained=True conflict: both set the start of the image encoder.")
        if self.lora_rank != _LORA_RANK and self.image_tower != "lora":
            raise no_effect_error(
                f"lora_rank={self.lora_rank}", f"`image_tower` is {self.image_tower!r}", "Omit it, or use 'lora'."
            )
        try:
            json.dumps(self.to_dict())
        except (TypeError, ValueError) as error:
            raise TypeError(f"`backbone_kwargs` must contain plain values (numbers, text, lists): {error}.") from error
        if self.trainable == ():
            raise ValueError(
                "`trainable` is empty; name patterns, or omit it to train all parameters that are not frozen."
            )
