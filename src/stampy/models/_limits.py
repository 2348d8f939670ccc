"""Limits of model settings, checked before anything is built, downloaded or allocated."""

from __future__ import annotations

import math
import re
import typing
from typing import TYPE_CHECKING, Any

from ._stem import BLOCKS, STEM

if TYPE_CHECKING:
    from ._gene import GeneConfig
    from ._image import ImageConfig

__all__ = ["check_architecture", "check_gene", "check_image"]

# A name in timm, with or without the tag of its weights: without colon and slash, so that nothing is fetched or opened.
_ARCHITECTURE = re.compile(r"[a-z][a-z0-9_]{0,99}(\.[a-z0-9_]{1,99})?")
_MAX_SIZE = 2**20
_MAX_POSITIONS = 2**16  # patch tokens of an image; attention is quadratic in their number
_LARGEST = {"depth": 1000, "heads": 1024, "num_heads": 1024, "size_px": 8192, "img_size": 8192, "patch_size": 1024,
            "reg_tokens": 64, "mlp_ratio": 64.0, "tile_um": 1e6}  # fmt: skip
_MIN_STEM_PX = 48  # 3 x 3 cells of the maps of all blocks
_SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "reg_tokens", "mlp_ratio")
_RATES = ("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate")
_SWITCHES = ("dynamic_img_size", "dynamic_img_pad", "strict_img_size", "qkv_bias", "qk_norm", "class_token",
             "no_embed_class", "pre_norm", "final_norm", "fc_norm")  # fmt: skip
_CHOICES = {"pos_embed": ("learn",), "global_pool": ("", "avg", "avgmax", "max", "token")}
KEYWORDS = frozenset({*_SIZES, *_RATES, *_SWITCHES, *_CHOICES, "init_values"})


def check_architecture(name: str) -> None:
    """Raise ValueError unless `name` is the plain name of an architecture in timm."""
    import timm

    if not (isinstance(name, str) and _ARCHITECTURE.fullmatch(name)):
        raise ValueError(
            f"`backbone` must be an architecture of timm, such as 'vit_small_patch16_224', found {name!r:.120}. A "
            "model's settings cannot name weights on the hub or on the disk."
        )
    if not timm.is_model(name.split(".")[0]):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"timm knows no model {name!r}. Similar names: {near}.")


def check_gene(config: GeneConfig) -> None:
    """Raise ValueError unless a gene encoder with these settings can be built."""
    for name in ("n_genes", "width", "depth", "heads", "feedforward", "max_tokens"):
        _size(name, getattr(config, name))
    _choices(config)
    _number("dropout", config.dropout, 0, 1)
    if config.width % config.heads:
        raise ValueError(f"`heads` must divide `width`, found {config.heads} and {config.width}.")


def check_image(config: ImageConfig, *, fetched: bool = False) -> None:
    """Raise ValueError unless an image encoder can be built with these settings; `fetched`: the user named it."""
    if not fetched and config.backbone != STEM:
        check_architecture(config.backbone)
    _size("size_px", config.size_px)
    _number("tile_um", config.tile_um, 0, _LARGEST["tile_um"], open_low=True)
    for name, low in (("mean", -10.0), ("std", 0.0)):
        values = getattr(config, name)
        if not isinstance(values, tuple | list) or len(values) != 3:
            raise ValueError(f"`{name}` must be 3 numbers, found {values!r:.120}.")
        for value in values:
            _number(name, value, low, 10, open_low=name == "std")
    if not isinstance(config.backbone_kwargs, typing.Mapping):
        raise ValueError(f"`backbone_kwargs` must be names with values, found {config.backbone_kwargs!r:.120}.")
    if config.backbone == STEM:
        _check_stem(config)
        return
    for name, value in config.backbone_kwargs.items():
        _keyword(name, value)
    patch, edge = config.backbone_kwargs.get("patch_size"), config.backbone_kwargs.get("img_size", config.size_px)
    for size in {edge, config.size_px}:
        if patch is not None and not 1 <= (size // patch) ** 2 <= _MAX_POSITIONS:
            raise ValueError(
                f"An image of {size} px in patches of {patch} px gives {(size // patch) ** 2:,} positions; 1 to "
                f"{_MAX_POSITIONS:,} were expected."
            )
    width, heads = (config.backbone_kwargs.get(key) for key in ("embed_dim", "num_heads"))
    if width is not None and heads is not None and width % heads:
        raise ValueError(f"`num_heads` must divide `embed_dim`, found {heads} and {width}.")


def _check_stem(config: ImageConfig) -> None:
    """Check the settings of a convolutional stem."""
    if set(config.backbone_kwargs) != {"n_blocks"}:
        raise ValueError(
            f"`backbone_kwargs` of {STEM!r} must be {{'n_blocks': ...}}, found {dict(config.backbone_kwargs)!r:.120}."
        )
    n = config.backbone_kwargs["n_blocks"]
    if type(n) is not int or not 1 <= n <= len(BLOCKS):
        raise ValueError(f"`n_blocks` must be an integer between 1 and {len(BLOCKS)}, found {n!r:.120}.")
    if config.size_px < _MIN_STEM_PX:
        raise ValueError(f"`size_px` of {STEM!r} must be at least {_MIN_STEM_PX}, found {config.size_px}.")


def _keyword(name: str, value: Any) -> None:
    """Check an argument of `timm.create_model`."""
    if name not in KEYWORDS:
        raise ValueError(
            f"`backbone_kwargs` has {name!r}, which are not allowed in the settings of a model (nor are settings "
            f"that download or load other files). Allowed are {sorted(KEYWORDS)}."
        )
    if name in _SWITCHES:
        if not isinstance(value, bool):
            raise ValueError(f"`backbone_kwargs[{name!r}]` must be true or false, found {value!r:.120}.")
    elif name in _CHOICES:
        if value not in _CHOICES[name]:
            raise ValueError(f"`backbone_kwargs[{name!r}]` must be one of {_CHOICES[name]}, found {value!r:.120}.")
    elif name in _RATES:
        _number(name, value, 0, 1)
    elif name == "mlp_ratio":
        _number(name, value, 0, _LARGEST[name], open_low=True)
    elif name == "init_values":
        if value is not None:
            _number(name, value, 0, 10)
    else:
        _size(name, value, least=0 if name == "reg_tokens" else 1)


def _size(name: str, value: Any, least: int = 1) -> None:
    largest = int(_LARGEST.get(name, _MAX_SIZE))
    if type(value) is not int or not least <= value <= largest:
        raise ValueError(f"`{name}` must be an integer between {least} and {largest}, found {value!r:.120}.")


def _number(name: str, value: Any, low: float, high: float, *, open_low: bool = False) -> None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not good or not low <= value <= high or (open_low and value == low):
        above = "above" if open_low else "at least"
        raise ValueError(f"`{name}` must be a number {above} {low:g} and at most {high:g}, found {value!r:.120}.")


def _choices(config: GeneConfig) -> None:
    """Check the fields that are choices or switches."""
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
            raise ValueError(f"`{name}` must be one of {typing.get_args(hint)}, found {value!r:.120}.")
        if hint is bool and not isinstance(value, bool):
            raise ValueError(f"`{name}` must be true or false, found {value!r:.120}.")
