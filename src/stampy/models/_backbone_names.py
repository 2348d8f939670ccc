"""Names of timm's models, read from its files: importing timm, and with it torchvision, takes seconds."""

from __future__ import annotations

import difflib
import re
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

__all__ = ["STEM", "check_backbone"]

STEM = "efficientnet_lite0_stem"  # value of `backbone` in the settings
_REGISTERED = re.compile(r"^@register_model\s*\ndef (\w+)\(", re.M)
_SHOWN = 3
_PARTS_OF_A_VIT = "_pos_embed", "VisionTransformer", "Eva"


def check_backbone(name: str) -> None:
    """Raise ValueError for a backbone that timm does not have, with the nearest names, or that is not a ViT.

    Addresses (``hf-hub:``, ``local-dir:``) and the tag of weights after the name are not checked.

    >>> check_backbone("vit_small_patch16_224.augreg_in21k")
    """
    if not isinstance(name, str):
        raise TypeError(f"`backbone` must be the name of a timm ViT, found {name!r}.")
    bare = name.rpartition("/")[2].partition(".")[0]
    if bare in _other_models():
        raise ValueError(
            f"`backbone` {name!r} is not a plain ViT with a class token; stampy needs one to add its pretext token, "
            "such as 'vit_small_patch16_224'. `timm.list_models('vit*')` lists timm's ViTs."
        )
    if ":" in name or bare == STEM or bare in _known() or _added(bare):
        return
    near = difflib.get_close_matches(bare, [n for n in _known() if "vit" in n or "deit" in n], n=_SHOWN, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(
        f"`backbone` {name!r} is no model of timm.{hint} `timm.list_models('vit*')` lists its ViTs; your own weights "
        "are 'local-dir:FOLDER' or 'hf-hub:org/name'."
    )


@cache
def _texts() -> tuple[str, ...]:
    """Files of timm's models; none for an unknown layout of timm."""
    spec = find_spec("timm")
    folder = Path(spec.submodule_search_locations[0]) / "models" if spec and spec.submodule_search_locations else None
    return tuple(path.read_text("utf-8") for path in sorted(folder.glob("*.py"))) if folder is not None else ()


@cache
def _other_models() -> frozenset[str]:
    """Names of models that are surely no ViT: their files neither define nor import the parts of one."""
    others = (text for text in _texts() if not any(part in text for part in _PARTS_OF_A_VIT))
    return frozenset().union(*(_REGISTERED.findall(text) for text in others))


@cache
def _known() -> frozenset[str]:
    """Names in the files of timm, also deprecated ones; empty for an unknown layout of timm."""
    texts = _texts()
    retired = {name for text in texts for part in text.split("register_model_deprecations(")[1:]
               for name in re.findall(r"'(\w+)':", part)}  # fmt: skip
    return frozenset(retired.union(*(_REGISTERED.findall(text) for text in texts)))


def _added(name: str) -> bool:
    """Whether the name was registered in timm at runtime; True if the files of timm cannot be read."""
    if not _known():
        return True
    timm = sys.modules.get("timm")
    return timm is not None and bool(timm.is_model(name))
