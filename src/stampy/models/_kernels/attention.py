"""Attention of packed spots on CUDA in half precision, as operators for `torch.compile`.

Shapes: B spots, T positions of all spots end to end, H heads, d width of a head.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import triton_check
from .packed import Packing

__all__ = ["Spans", "attention", "spans_for"]

ENABLED = True  # False in benchmarks, to compare with PyTorch's own kernels
_WIDTHS = (32, 64)
_HALF = (torch.bfloat16, torch.float16)
_MOST_SPOTS = 65_535  # of a CUDA grid

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Spans:
    """A `Packing` for the kernels, with all values on the device.

    Parameters
    ----------
    packing
        The packing itself.
    dtype
        Type of q, k and v.
    starts, keys
        (B + 1,) start of each spot, and (B,) number of its positions that are keys.
    longest
        Positions of the longest spot.
    """

    packing: Packing
    dtype: torch.dtype
    starts: Tensor
    keys: Tensor
    longest: int


def spans_for(packing: Packing, dtype: torch.dtype, heads: int, width: int) -> Packing | Spans:
    """Convert `packing` for the kernels; unchanged if they cannot run.

    Parameters
    ----------
    packing
        Lengths of the spots.
    dtype
        Type of q, k and v.
    heads, width
        Number of heads and width of a head.
    """
    if not (ENABLED and 0 < len(packing.queries) <= _MOST_SPOTS and _runs(packing.device, dtype, heads, width)):
        return packing
    return Spans(packing, dtype, packing.starts, packing.key_starts.diff(), max(packing.queries))


def attention(qkv_T3Hd: Tensor, spans: Spans) -> Tensor:
    """Attention of each spot to itself: (T, H, d)."""
    return _forward(qkv_T3Hd, spans.starts, spans.keys, spans.longest)[0]


def _runs(device: torch.device, dtype: torch.dtype, heads: int, width: int) -> bool:
    if device.type != "cuda" or dtype not in _HALF or width not in _WIDTHS:
        return False
    return _tried(torch.cuda.current_device() if device.index is None else device.index, dtype, heads, width)


@functools.cache
def _tried(index: int, dtype: torch.dtype, heads: int, width: int) -> bool:
    """Whether the kernels run on a GPU; tried once, because Triton also needs a C compiler."""

    def right() -> bool:
        one = torch.ones(1, 3, heads, width, device=f"cuda:{index}", dtype=dtype)
        starts = torch.tensor([0, 1], device=one.device)
        found, _ = _forward(one, starts, starts[1:], 1)
        return torch.equal(found, one[:, 2])

    problem = triton_check.problem(index, right)
    if problem:
        _log.info("Attention runs on PyTorch's kernels, which are slower: Triton's cannot be used, since %s", problem)
    return not problem


@torch.library.custom_op(
    "stampy::attention",
    mutates_args=(),
    schema="(Tensor qkv, Tensor starts, Tensor keys, SymInt longest) -> (Tensor, Tensor)",
)
def _forward(qkv: Tensor, starts: Tensor, keys: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    from . import attention_triton as kernels

    with torch.cuda.device_of(qkv):
        return kernels.forward(qkv.contiguous(), starts, keys, longest)


@torch.library.custom_op(
    "stampy::attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor qkv, Tensor out, Tensor lse, Tensor starts, Tensor keys, SymInt longest) -> Tensor",
)
def _backward(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, starts: Tensor, keys: Tensor, longest: int
) -> Tensor:
    from . import attention_triton as kernels

    with torch.cuda.device_of(qkv):
        return kernels.backward(grad.contiguous(), qkv.contiguous(), out, lse, starts, keys, longest)


@_forward.register_fake
def _(qkv: Tensor, starts: Tensor, keys: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    from .attention_triton import sums_length

    T, _, H, d = qkv.shape
    return qkv.new_empty(T, H, d), qkv.new_empty(H, sums_length(T, keys.shape[0]), dtype=torch.float32)


@_backward.register_fake
def _(grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, starts: Tensor, keys: Tensor, longest: int) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, starts, keys, ctx.longest = inputs
    ctx.save_for_backward(qkv, *output, starts, keys)
    ctx.set_materialize_grads(False)  # no gradients for the sums


def _gradients(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return _backward(grad, *ctx.saved_tensors, ctx.longest), None, None, None


_forward.register_autograd(_gradients, setup_context=_save)
