"""Functions that read the systems' weights in their authors' own formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stampy.models._systems.base import GeneSystem, ImageSystem, SlideSystem
from stampy.models._systems.cards import Card
from stampy.models._systems.gene_encoders import load_nicheformer, load_scgpt
from stampy.models._systems.image_encoders import load_conch, load_omiclip, load_plip, load_vit
from stampy.models._systems.tangle import load_tangle

__all__ = ["READERS"]

READERS: dict[str, Callable[[Card, Path], ImageSystem | GeneSystem | SlideSystem]] = {
    **dict.fromkeys(("uni", "uni2-h", "h-optimus-0", "virchow2", "mstar"), load_vit),
    "conch": load_conch,
    "plip": load_plip,
    "omiclip": load_omiclip,
    "tangle": load_tangle,
    "scgpt-spatial": load_scgpt,
    "nicheformer": load_nicheformer,
}
