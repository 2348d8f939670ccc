"""Cross-entropy over a large vocabulary without keeping its logits in memory.

Shapes: M scored positions, D width, C classes.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["Kernel", "cross_entropy_by_kind", "kernel_for", "linear_cross_entropy"]

Kernel: TypeAlias = Literal["torch", "auto", "liger"]

_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}  # logits per block; on the CPU, as many as fit into the caches
_LIGER = "liger_kernel"


def linear_cross_entropy(
    hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor, *, kernel: Kernel = "torch"
) -> Tensor:
    """Mean of ``cross_entropy(linear(hidden, weight, bias), targets)``, in blocks of rows that fit into the cache.

    The gradient is computed together with the loss, so only one block of rows of the (M, C) logits exists at a time;
    with 20,000 genes, the logits would be by far the largest tensor of a training step. Under autocast, matrix products
    use the lower precision and everything else float32, as in the two functions above.

    Parameters
    ----------
    kernel
        ``"torch"``: as described above. ``"liger"`` (liger-kernel): never writes logits to memory; CUDA only.
        ``"auto"``: liger if it is installed and the tensors are on CUDA in half precision.

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
    """`linear_cross_entropy`, and the sums of the losses (n_kinds,) by kind of row, without gradient.

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
    """Kernel to use, and the type of its computations."""
    kind = hidden_MD.device.type
    low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_CD.dtype
    return kernel_for(kernel, kind, low), low


def _fused(
    kernel: Kernel, low: torch.dtype, hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor
) -> Tensor:
    with torch.autocast(hidden_MD.device.type, enabled=False):
        return _liger(hidden_MD.to(low), weight_CD.to(low), bias_C.to(low), targets_M).float()


def kernel_for(kernel: Kernel, device: str, dtype: torch.dtype) -> Kernel:
    """Kernel to use on a type of device; ImportError or ValueError if the requested kernel cannot run."""
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
        kind = hidden_MD.device.type
        wide = torch.promote_types(low, torch.float32)
        n, wanted = len(hidden_MD), any(ctx.needs_input_grad)
        with torch.autocast(kind, enabled=False):
            hidden, weight = hidden_MD.to(low), weight_CD.to(low)
            grads = [torch.zeros_like(t, dtype=wide) for t in (hidden, weight, bias_C)] if wanted else []
            total = torch.zeros((), device=hidden.device, dtype=wide)
            rows_M = torch.empty(n, device=hidden.device, dtype=wide)
            size = max(_ELEMENTS["cpu" if kind == "cpu" else "cuda"] // len(weight), 1)
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
                    share = share.to(low)
                    grads[0][rows] = (share @ weight).to(wide)
                    grads[1] += share.T @ hidden[rows]
        if wanted:
            ctx.save_for_backward(*(g.div_(n) for g in grads))
            ctx.dtypes = tuple(t.dtype for t in (hidden_MD, weight_CD, bias_C))
        ctx.mark_non_differentiable(rows_M)
        return total / n, rows_M

    @staticmethod
    def backward(ctx: _Context, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return (*((grad * g).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes, strict=True)), None, None)
