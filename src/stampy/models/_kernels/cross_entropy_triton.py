"""Triton kernel for the loss over all genes in half precision. Import this module only when it is needed.

PyTorch's operators read and write the logits of a block six times, in float32; this kernel reads them once, in half
precision, and overwrites them with their gradient.

Shapes: M scored positions, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    _jit: Callable[..., Any] = triton.jit
except ImportError:  # PyTorch without CUDA: the module can be imported, but not used

    def _jit(function: Any) -> Any:
        return function


__all__ = ["loss_and_gradients"]

# Fastest settings on an H100.
_PADDED = 64  # classes are padded to a multiple, so that rows of logits are aligned
_WARPS = 16
_ELEMENTS = 2**28  # logits at a time


def loss_and_gradients(
    hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor, *, wanted: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sum of the losses of all rows, losses (M,), and if `wanted` the gradients of the sum.

    Parameters
    ----------
    hidden_MD, weight_CD
        In half precision.
    bias_C
        Biases, of any precision.
    targets_M
        Classes, int64.
    wanted
        Compute the gradients of `hidden_MD`, `weight_CD` and `bias_C`, in float32.
    """
    (M, D), C = hidden_MD.shape, len(weight_CD)
    width = -(-C // _PADDED) * _PADDED
    bias_C, targets_M = bias_C.float().contiguous(), targets_M.contiguous()
    bias_C.gather(0, targets_M)  # raises for invalid classes, as PyTorch's own loss does; the kernel cannot
    weight = weight_CD.new_zeros(width, D)
    weight[:C] = weight_CD
    losses_M = torch.empty(M, device=hidden_MD.device)
    to_hidden = torch.empty_like(hidden_MD, memory_format=torch.contiguous_format)
    to_weight = torch.zeros(width, D, device=hidden_MD.device)
    to_bias = torch.zeros(width, device=hidden_MD.device)
    size = max(_ELEMENTS // width, 1)
    for start in range(0, M, size):
        rows = slice(start, start + size)
        logits = hidden_MD[rows] @ weight.T
        _rows_kernel[(len(logits),)](
            logits, bias_C, targets_M[rows], losses_M[rows], width, C, BLOCK=triton.next_power_of_2(width),
            num_warps=_WARPS,
        )  # fmt: skip
        if wanted:
            to_bias += logits.sum(0, dtype=torch.float32)
            torch.mm(logits, weight, out=to_hidden[rows])
            to_weight += logits.T @ hidden_MD[rows]
    return losses_M.sum(), losses_M, [to_hidden.float(), to_weight[:C], to_bias[:C]] if wanted else []


@_jit
def _rows_kernel(logits, bias, targets, losses, stride, C, BLOCK: tl.constexpr):
    # Loss of a row. Its gradient replaces the logits: softmax minus one at the target, zeros past the last class.
    r = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK)
    there = cols < C
    at = logits + r * stride
    x = tl.load(at + cols, mask=there, other=float("-inf")).to(tl.float32) + tl.load(bias + cols, mask=there, other=0.0)
    t = tl.load(targets + r)
    own = tl.load(at + t).to(tl.float32) + tl.load(bias + t)
    m = tl.max(x, 0)
    e = tl.exp(x - m)
    s = tl.sum(e, 0)
    tl.store(losses + r, m + tl.log(s) - own)
    tl.debug_barrier()  # the target's logit is read before it is overwritten
    p = e / s - tl.where(cols == t, 1.0, 0.0)
    tl.store(at + cols, p.to(logits.dtype.element_ty), mask=cols < stride)
