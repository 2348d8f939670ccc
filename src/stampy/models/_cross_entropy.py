"""Cross-entropy over a large vocabulary without its logits in memory.

Shapes: M scored positions, D width, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

__all__ = ["linear_cross_entropy"]

_ELEMENTS = {"cpu": 2**22, "cuda": 2**27}  # logits at a time: on the CPU as many as its caches hold


def linear_cross_entropy(hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor) -> Tensor:
    """The mean of ``cross_entropy(linear(hidden, weight, bias), targets)``, by rows that fit the cache.

    The gradient is made along with the loss, so the (M, C) logits exist one block of rows at a time: with 20,000 genes
    they would be the largest tensor of a training step by far. Under autocast the products run in its lower precision
    and the rest in float32, as those of the two functions above would.

    Examples
    --------
    >>> hidden, weight, bias = torch.randn(5, 4), torch.randn(9, 4), torch.randn(9)
    >>> targets = torch.tensor([0, 8, 3, 3, 1])
    >>> plain = torch.nn.functional.cross_entropy(hidden @ weight.T + bias, targets)
    >>> bool(torch.isclose(linear_cross_entropy(hidden, weight, bias, targets), plain))
    True
    """
    return _LinearCrossEntropy.apply(hidden_MD, weight_CD, bias_C, targets_M)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, hidden_MD: Tensor, weight_CD: Tensor, bias_C: Tensor, targets_M: Tensor) -> Tensor:
        kind = hidden_MD.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_CD.dtype
        n, wanted = len(hidden_MD), any(ctx.needs_input_grad)
        with torch.autocast(kind, enabled=False):
            hidden, weight = hidden_MD.to(low), weight_CD.to(low)
            grads = [torch.zeros_like(t, dtype=torch.float32) for t in (hidden, weight, bias_C)] if wanted else []
            total = torch.zeros((), device=hidden.device)
            size = max(_ELEMENTS["cpu" if kind == "cpu" else "cuda"] // len(weight), 1)
            for rows in torch.arange(n, device=hidden.device).split(size):
                logits = (hidden[rows] @ weight.T).float().add_(bias_C)
                own = targets_M[rows, None]
                spread = logits.logsumexp(dim=1, keepdim=True)
                total += (spread - logits.gather(1, own)).sum()
                if wanted:
                    share = logits.sub_(spread).exp_()
                    share.scatter_add_(1, own, torch.full_like(own, -1, dtype=share.dtype))
                    grads[2] += share.sum(dim=0)
                    share = share.to(low)
                    grads[0][rows] = (share @ weight).float()
                    grads[1] += share.T @ hidden[rows]
        if wanted:
            ctx.save_for_backward(*(g.div_(n) for g in grads))
            ctx.dtypes = tuple(t.dtype for t in (hidden_MD, weight_CD, bias_C))
        return total / n

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*((grad * g).to(d) for g, d in zip(ctx.saved_tensors, ctx.dtypes, strict=True)), None)
