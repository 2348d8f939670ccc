"""Errors for unknown settings: they state the nearest names, however the settings are given."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection
from dataclasses import fields
from typing import Any, Final, TypeVar

from stampy._checks import shortlist

__all__ = ["checked_names", "known_field"]

T = TypeVar("T")

# Names in other libraries -> stampy's; only those that the settings at hand have are suggested.
ELSEWHERE: Final[dict[str, tuple[str, ...]]] = {
    "accumulate_grad_batches": ("accumulate",),
    "amp": ("precision",),
    "batch": ("groups_per_batch", "pairs_per_batch"),
    "batch_size": ("groups_per_batch", "pairs_per_batch"),
    "d_model": ("width",),
    "dim": ("width",),
    "dim_feedforward": ("feedforward",),
    "dtype": ("precision",),
    "embed_dim": ("embedding",),
    "embedding_dim": ("embedding",),
    "epochs": ("epochs_igr", "epochs_cgr"),
    "gradient_accumulation_steps": ("accumulate",),
    "gradient_checkpointing": ("checkpoint_activations",),
    "gradient_clip_val": ("clip",),
    "grad_clip": ("clip",),
    "hidden_size": ("width",),
    "image_encoder": ("backbone",),
    "learning_rate": ("lr",),
    "max_grad_norm": ("clip",),
    "max_length": ("max_tokens",),
    "max_lr": ("lr",),
    "mixed_precision": ("precision",),
    "mlm_probability": ("mask_fraction",),
    "n_heads": ("heads",),
    "n_layers": ("depth",),
    "n_workers": ("prefetch",),
    "nhead": ("heads",),
    "num_heads": ("heads",),
    "num_layers": ("depth",),
    "num_workers": ("prefetch",),
    "random_seed": ("seed",),
    "random_state": ("seed",),
    "rng": ("seed",),
    "save_steps": ("checkpoint_every",),
    "warmup": ("warmup_steps",),
    "wd": ("weight_decay",),
} | dict.fromkeys(("max_epochs", "n_epochs", "num_epochs"), ("epochs", "epochs_igr", "epochs_cgr"))
LEAST_RATIO = 0.6  # of `difflib`; less similar names are not what was meant


def known_field(name: object, known: Collection[str], *, where: str) -> None:
    """Raise ValueError for a setting that `where` does not have; the message starts with the nearest names."""
    if name in known:
        return
    near = _nearest(str(name), known)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"There is no setting {name!r} in {where}.{hint} There are: {shortlist(sorted(known), 80)}.")


def _nearest(name: str, known: Collection[str]) -> list[str]:
    """Names of `known` that may be meant: what other libraries call so, else similar ones."""
    plain = name.strip().casefold().replace("-", "_").replace(" ", "_")
    meant = [field for field in ELSEWHERE.get(plain, ()) if field in known]
    if meant:
        return meant
    like = {*known, *(other for other, ours in ELSEWHERE.items() if any(field in known for field in ours))}
    near = difflib.get_close_matches(plain, sorted(like), n=3, cutoff=LEAST_RATIO)
    close = [field for match in near for field in ([match] if match in known else ELSEWHERE[match]) if field in known]
    return list(dict.fromkeys(close))[:3]


def checked_names(cls: type[T]) -> type[T]:
    """Class decorator for dataclasses: an unknown argument raises a TypeError that states the nearest names."""
    init: Any = vars(cls)["__init__"]
    known = [field.name for field in fields(cls) if field.init]  # type: ignore[arg-type]

    @functools.wraps(init)
    def checked(self: T, *args: object, **settings: object) -> None:
        try:
            for name in settings:
                known_field(name, known, where=cls.__name__)
        except ValueError as error:
            raise TypeError(str(error)) from None  # of the type that Python raises
        init(self, *args, **settings)

    type.__setattr__(cls, "__init__", checked)
    return cls
