"""The model that embeds: what it embeds, by its name, and the model itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stampy import models

if TYPE_CHECKING:
    import torch

    from ._request import Modality

__all__ = ["BASELINES", "Encoder", "agreed_modality", "is_baseline", "loaded_model"]

BASELINES = ("pca", "pca-smoothed")  # fitted to the section: nothing is loaded
Encoder: TypeAlias = models.Stamp | models.ImageSystem | models.GeneSystem


def is_baseline(model: str | Path | Encoder) -> bool:
    """Whether `model` names what is fitted to the section itself."""
    return isinstance(model, str) and model in BASELINES


def agreed_modality(asked: Modality | None, model: str | Path | Encoder) -> Modality | None:
    """The modality that was asked for, or the only one that the model has; ValueError where they differ."""
    embeds = _only_modality(model)
    if asked and embeds and asked != embeds:
        name = getattr(model, "name", model)
        raise ValueError(f"modality={asked!r} was asked for, but {name!r} embeds modality {embeds!r} alone.")
    return asked or embeds


def _only_modality(model: str | Path | Encoder) -> Modality | None:
    """What a model embeds, if that is one thing; ValueError for those that embed no spots."""
    if isinstance(model, models.Stamp):
        return None
    named = models.split_name(str(model)) if isinstance(model, str | Path) else None
    card = models.card(named[0]) if named else getattr(model, "card", None)
    if card is None or card.name == "stampy-mini":
        return None
    if card.modality == "slide":
        raise ValueError(
            f"{card.title} embeds slides, not spots. Embed the tiles by the encoder that it was trained with, then "
            f"call `stampy.models.load_system({card.name!r}, path).embed_slide(features)`."
        )
    if card.modality == "predictor":
        raise ValueError(f"{card.title} predicts expression and gives no embedding: see `stampy.models.Predictor`.")
    return card.modality


def loaded_model(model: str | Path | Encoder, device: str | torch.device | None) -> Encoder:
    """`model`, loaded where it is a name or a path, on the device."""
    found = models.load(model, device=device) if isinstance(model, str | Path) else model
    if not isinstance(found, Encoder):
        raise TypeError(f"`model` must be a name, a path or a loaded model, found {type(found).__qualname__}.")
    return found if device is None else found.to(device)
