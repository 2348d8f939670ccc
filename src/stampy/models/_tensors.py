"""State dicts: read without executing code, checked before memory is allocated, loaded strictly."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from stampy import _checks

__all__ = ["check_shapes", "fill", "load_strictly", "only", "read_state_dict", "shapes_of"]

_FLOATS, _WHOLE = frozenset({"F16", "BF16", "F32", "F64"}), frozenset({"I8", "I16", "I32", "I64", "U8", "BOOL"})
_TYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.int8: "I8",
          torch.int16: "I16", torch.int32: "I32", torch.int64: "I64", torch.uint8: "U8",
          torch.bool: "BOOL"}  # fmt: skip
# Errors of readers for damaged or malicious files.
_DAMAGED = (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError, LookupError,
            TypeError, AttributeError, OverflowError, struct.error)  # fmt: skip
_SCALAR = import_module("numpy._core.multiarray").scalar
# Plain numbers that training code often stores with the tensors, by their names in numpy before and after 2.0.
_NUMBERS: list[Any] = [
    (_SCALAR, "numpy.core.multiarray.scalar"),
    _SCALAR,
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4")),
]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a file, without enclosing `state_dict` and `module.`; no code is executed."""
    path = _checks.existing(path, what="checkpoint")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            with torch.serialization.safe_globals(_NUMBERS):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{str(path)!r} is not a plain state dict, or it is damaged: {reason} "
            "stampy reads tensors only and never unpickles objects."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ValueError(f"{str(path)!r} contains no state dict (a mapping of names to tensors).")
    return {str(k).removeprefix("module."): v for k, v in content.items()}


def shapes_of(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor of a safetensors file, from its header only."""
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in slices.items()}


def check_shapes(model: nn.Module, found: Mapping[str, tuple[tuple[int, ...], str]], *, where: str) -> None:
    """Raise ValueError unless names, shapes and types of the tensors match the model."""
    expected = model.state_dict()
    missing, extra = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    shapes = [
        f"{k}: expected {tuple(expected[k].shape)}, found {found[k][0]}"
        for k in expected
        if k in found and tuple(expected[k].shape) != found[k][0]
    ]
    if missing or extra or shapes:
        raise ValueError(
            f"The weights in {where!r} do not fit the model. Missing: {missing[:5]} ({len(missing)}). Unexpected: "
            f"{extra[:5]} ({len(extra)}). Other shapes: {shapes[:5]} ({len(shapes)})."
        )
    types = [f"{k}: {found[k][1]}" for k in expected if found[k][1] not in _types_for(expected[k])]
    if types:
        raise ValueError(
            f"The weights in {where!r} have {len(types)} tensors of a type that the model does not take (16, 32 or 64 "
            f"bit floating point for weights, integers for counters): {types[:5]}."
        )


def _types_for(tensor: Tensor) -> frozenset[str]:
    return _FLOATS if tensor.is_floating_point() else _WHOLE


def load_strictly(model: nn.Module, tensors: Mapping[str, Tensor], *, where: str, assign: bool = False) -> None:
    """Copy tensors into a model; with `assign`, they become its parameters.

    Raises
    ------
    ValueError
        Names, shapes or types differ from the model's, or values are not finite.
    """
    found = {k: (tuple(v.shape), _TYPES.get(v.dtype, str(v.dtype))) for k, v in tensors.items()}
    check_shapes(model, found, where=where)
    if wrong := [k for k, v in tensors.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]:
        raise ValueError(
            f"The weights in {where!r} have NaN or infinite values in {len(wrong)} of {len(tensors)} tensors, first "
            f"{wrong[0]!r}: every embedding would be NaN. Copy or download them again, or train again."
        )
    expected = model.state_dict()
    # copied, since a tensor of a file may be memory-mapped and change with the file
    copied = {k: v.to(expected[k].dtype, copy=assign) for k, v in tensors.items()}
    model.load_state_dict(copied, strict=True, assign=assign)


def only(
    tensors: dict[str, Tensor], *, where: str, prefix: str = "", ignored: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Tensors with `prefix`, without it; ValueError for others, except those with a prefix in `ignored`."""
    kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and not k.startswith(ignored)}
    other = [k for k in tensors if not k.startswith(prefix) and not k.startswith(ignored)]
    if other or not kept:
        raise ValueError(
            f"{where!r} is not the file that was expected: names that begin with {prefix!r} were expected, without "
            f"unknown names. Unknown: {_checks.shortlist(other, 5)}."
        )
    return kept


def fill(model: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Set the tensors of a model built on the meta device, strictly, as float32."""
    load_strictly(model, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, where=where,
                  assign=True)  # fmt: skip
