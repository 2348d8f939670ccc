"""Whether the weights of a table's systems can be had: in the folder, in the hub's cache, by download, by asking."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stampy.models import Card

__all__ = ["weights_of"]

_ENDINGS = ("", ".bin", ".safetensors", ".pt", ".pth", ".ckpt")


def weights_of(systems: Sequence[str | Mapping[str, str]], folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """For each system that needs weights: its name, and `found` or `steps`; `named`: take it from `found`."""
    from stampy import models

    for raw in systems:
        system = {"model": raw, "name": raw} if isinstance(raw, str) else raw
        named = models.split_name(system["model"])
        if named is None or system["model"] in models.packaged():
            continue
        card = models.card(named[0])
        if card.trained_on.startswith("nothing"):
            continue
        yield system["name"], _found(card, folder) or _missing(card, system["name"])


def _found(card: Card, folder: Path) -> dict[str, str] | None:
    for name in _names(card):
        for ending in _ENDINGS:
            path = folder / "weights" / f"{name}{ending}"
            if path.exists():
                return {"found": str(path), "named": "yes"}
    if card.repository is None or not card.sha256:
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for name in card.sha256:
        path = try_to_load_from_cache(card.repository, name, revision=card.revision)
        if isinstance(path, str):
            return {"found": path}
    return None


def _names(card: Card) -> list[str]:
    """What the weights may be called; the three systems of the paper are in one file."""
    return [card.name, *(["stamp"] if card.name.startswith("stamp-") else [])]


def _missing(card: Card, name: str) -> dict[str, str]:
    library = {"transformers": "transformers", "open_clip": "open_clip"}.get(card.loader)
    if library and importlib.util.find_spec(library) is None:
        return {
            "steps": f'`pip install "stampy-st[systems]"` (it is built by {library}); {_get(card)}',
            "without": name,
        }
    if card.gate == "open" and card.sha256:
        return {"found": f"downloaded from {card.weights_at} when it is needed"}
    return {"steps": _get(card), "without": name}


def _get(card: Card) -> str:
    where = f"https://huggingface.co/{card.repository}" if card.repository else card.address
    asked = ""
    if card.gate == "gated":
        asked = "ask for access there, then log in by `hf auth login`" + (", or " if card.sha256 else " and ")
    ending = Path(card.files[-1]).suffix if card.files else ".bin"
    return f"{where} ({card.licence}): {asked}put the file below the folder as weights/{_names(card)[-1]}{ending}"
