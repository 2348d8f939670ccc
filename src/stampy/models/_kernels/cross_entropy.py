"""Cross-entropy over a large vocabulary without its logits in memory.

Shapes: M scored positions, D width, C classes.
"""

from __future__ import annotations

import functools
import logging
from importlib.util import find_spec
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from . import triton_check

__all__ = ["Kernel", "cross_entropy_by_kind", "kernel_for", "linear_cross_entropy"]

Kernel: TypeAlias = Literal["torch", "auto", "liger"]

ENABLED = True  # False in benchmarks and tests, to compare with PyTorch's own operators
_HALF = (torch.bfloat16, torch.float16)
_MOST_CLASSES = 32_768  # a row of logits is one block of the kernel; longer rows are not tested
_TOLERANCE = 0.03  # relative to the norm; both results are rounded to half precision, at different steps
_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}  # logits at a time; on the CPU limited by its caches
_LIGER = "liger_kernel"

_log = logging.getLogger(__name__)


def linear_cross_entropy(
    hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor, *, kernel: Kernel = "torch"
) -> Tensor:
    """The mean of ``cross_entropy(linear(hidden, weight, bias), targets)``, in blocks of rows that fit the cache.

    The gradient is computed with the loss, so only one block of the (M, C) logits exists at a time: with 20,000
    genes they would be the largest tensor of a training step by far. Under autocast the products run in its lower
    precision and the rest in float32, as in the two functions above.

    Parameters
    ----------
    kernel
        ``"torch"``: as described above; on CUDA in half precision, one pass by a Triton kernel if it can run.
        ``"liger"`` (liger-kernel) does not write logits to memory, and runs on CUDA only. ``"auto"``: liger if it is
        installed and the tensors are on CUDA in half precision.

    Examples
    --------
    >>> hidden, weight, bias = torch.randn(5, 4), torch.randn(9, 4), torch.randn(9)
    >>> targets = torch.tensor([0, 8, 3, 3, 1])
    >>> plain = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets)
    >>> bool(torch.isclose(linear_cross_entropy(hidden, weight, bias, targets), plain))
    True
    """
    kernel, low = _chosen(kernel, hidden_MD, weight_CD)
    if kernel == "torch":
        return _LinearCrossEntropy.apply(hidden_MD, weight_CD, bias_C, targets_M, low)[0]
    return _fused(kernel, low, hidden_MD, weight_CD, bias_C, targets_M)


def cross_entropy_by_kind(
    hidden_MD: Tensor,
    weight_CD: Tensor,
    bias_C: Tensor,
    targets_M: Tensor,
    kinds_M: Tensor,
    n_kinds: int,
    *,
    kernel: Kernel = "torch",
) -> tuple[Tensor, Tensor]:
    """`linear_cross_entropy`, and without gradient the sums of the rows' losses (n_kinds,), by the kind of a row.

    Examples
    --------
    >>> hidden, weight, bias = torch.randn(5, 4), torch.randn(9, 4), torch.randn(9)
    >>> targets, kinds = torch.tensor([0, 8, 3, 3, 1]), torch.tensor([0, 0, 1, 0, 1])
    >>> mean, sums = cross_entropy_by_kind(hidden, weight, bias, targets, kinds, 2)
    >>> bool(torch.isclose(sums.sum() / 5, mean))
    True
    """
    kernel, low = _chosen(kernel, hidden_MD, weight_CD)
    if kernel == "torch":
        mean, rows_M = _LinearCrossEntropy.apply(hidden_MD, weight_CD, bias_C, targets_M, low)
        return mean, rows_M.new_zeros(n_kinds).index_add(0, kinds_M, rows_M)
    total, sums = hidden_MD.new_zeros((), dtype=torch.float32), []
    for kind in range(n_kinds):  # these kernels return only means
        rows = (kinds_M == kind).nonzero()[:, 0]
        if len(rows):
            part = _fused(kernel, low, hidden_MD[rows], weight_CD, bias_C, targets_M[rows]) * len(rows)
            total = total + part
        sums.append(part.detach() if len(rows) else hidden_MD.new_zeros((), dtype=torch.float32))
    return total / len(targets_M), torch.stack(sums)


def _chosen(kernel: Kernel, hidden_MD: Tensor, weight_CD: Tensor) -> tuple[Kernel, torch.dtype]:
    """The kernel, and its precision."""
    kind = hidden_MD.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_CD.dtype
    return kernel_for(kernel, kind, low), low


def _fused(
    kernel: Kernel, low: torch.dtype, hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor
) -> Tensor:
    with torch.autocast(hidden_MD.device.type, enabled=False):
        return _liger(hidden_MD.to(low), weight_CD.to(low), bias_C.to(low), targets_M).float()


def kernel_for(kernel: Kernel, device: str, dtype: torch.dtype) -> Kernel:
    """The kernel to use on a type of device; ImportError or ValueError if the named kernel cannot run."""
    if kernel == "torch":
        return kernel
    installed = find_spec(_LIGER) is not None
    if kernel == "auto":
        half = dtype in (torch.bfloat16, torch.float16)
        return "liger" if device == "cuda" and half and installed else "torch"
    if kernel != "liger":
        raise ValueError(f"`fused` must be 'torch', 'auto' or 'liger', found {kernel!r}.")
    if not installed:
        raise ImportError("fused='liger' needs the package liger-kernel: `pip install liger-kernel`, or fused='torch'.")
    if device != "cuda":
        raise ValueError(f"fused='liger' runs only on CUDA, found {device}. Use fused='torch' or 'auto'.")
    return kernel


def _liger(hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor) -> Tensor:
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    return LigerFusedLinearCrossEntropyLoss(accum_dtype=torch.float32)(weight_CD, hidden_MD, targets_M, bias_C)


class _Context(FunctionCtx):
    needs_input_grad: tuple[bool, ...]
    saved_tensors: tuple[Tensor, ...]
    dtypes: tuple[torch.dtype, ...]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: _Context, hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor, low: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        n, wanted = len(hidden_MD), any(ctx.needs_input_grad)
        with torch.autocast(hidden_MD.device.type, enabled=False):
            of = _in_one_pass if _runs(hidden_MD.device, low, len(weight_CD)) else _in_blocks
            total, rows_M, grads = of(hidden_MD.to(low), weight_CD.to(low), bias_C, targets_M, wanted=wanted)
        if wanted:
            ctx.save_for_backward(*(g.div_(n) for g in grads))
            ctx.dtypes = tuple(t.dtype for t in (hidden_MD, weight_CD, bias_C))
        ctx.mark_non_differentiable(rows_M)
        return total / n, rows_M

    @staticmethod
    def backward(ctx: _Context, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*((grad * g).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes, strict=True)), None, None)


def _in_blocks(
    hidden: Tensor, weight: Tensor, bias_C: Tensor, targets_M: Tensor, *, wanted: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sum of the losses of all rows, losses (M,), and if `wanted` the gradients of the sum."""
    wide = torch.promote_types(hidden.dtype, torch.float32)
    n = len(hidden)
    grads = [torch.zeros_like(t, dtype=wide) for t in (hidden, weight, bias_C)] if wanted else []
    total = torch.zeros((), device=hidden.device, dtype=wide)
    rows_M = torch.empty(n, device=hidden.device, dtype=wide)
    size = max(_ELEMENTS["cpu" if hidden.device.type == "cpu" else "cuda"] // len(weight), 1)
    for start in range(0, n, size):
        rows = slice(start, start + size)
        logits = (hidden[rows] @ weight.T).to(wide).add_(bias_C)
        own = targets_M[rows, None]
        spread = logits.logsumexp(dim=1, keepdim=True)
        each = (spread - logits.gather(1, own))[:, 0]
        rows_M[rows] = each
        total += each.sum()
        if wanted:
            share = logits.sub_(spread).exp_()
            share.scatter_add_(1, own, torch.full_like(own, -1, dtype=share.dtype))
            grads[2] += share.sum(dim=0)
            share = share.to(hidden.dtype)
            grads[0][rows] = (share @ weight).to(wide)
            grads[1] += share.T @ hidden[rows]
    return total, rows_M, grads


def _in_one_pass(
    hidden: Tensor, weight: Tensor, bias_C: Tensor, targets_M: Tensor, *, wanted: bool
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """`_in_blocks` on CUDA in half precision, by stampy's kernel."""
    from .cross_entropy_triton import loss_and_gradients

    with torch.cuda.device_of(hidden):
        return loss_and_gradients(hidden, weight, bias_C, targets_M, wanted=wanted)


def _runs(device: torch.device, low: torch.dtype, classes: int) -> bool:
    """Whether `_in_one_pass` can be used."""
    if not ENABLED or device.type != "cuda" or low not in _HALF or not 0 < classes <= _MOST_CLASSES:
        return False
    return _tried(torch.cuda.current_device() if device.index is None else device.index, low)


@functools.cache
def _tried(index: int, low: torch.dtype) -> bool:
    """Whether the kernel runs on a GPU; tried once, on a small problem."""

    def right() -> bool:
        hidden, weight = (torch.arange(n * 32, device=f"cuda:{index}").sin().view(n, 32).to(low) for n in (5, 70))
        bias, targets = torch.arange(70, device=hidden.device).cos(), torch.arange(5, device=hidden.device) * 17
        each = [of(hidden, weight, bias, targets, wanted=True) for of in (_in_one_pass, _in_blocks)]
        pairs = zip(*([rows, *grads] for _, rows, grads in each), strict=True)
        return all(bool((a - b).norm() <= _TOLERANCE * b.norm()) for a, b in pairs)

    problem = triton_check.problem(index, right)
    if problem:
        _log.info("The loss runs on PyTorch's operators, which are slower: Triton's cannot be used, since %s", problem)
    return not problem
