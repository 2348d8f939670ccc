"""Spots of any length in one sequence of positions, without padding and without a mask.

Shapes: B spots, L positions, T computed positions of all spots, concatenated, H heads, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Packing", "attend"]


@dataclass(frozen=True, eq=False)
class Packing:
    """Positions of B spots in a sequence of T positions.

    The first ``keys`` positions of a spot are queries and keys. The following positions up to ``queries`` are queries
    only, never keys: padding whose output is needed.

    Parameters
    ----------
    queries, keys
        Numbers of queries and of keys per spot; 1 <= keys <= queries.
    device
        Device of the tensors.

    Examples
    --------
    >>> packing = Packing.of(torch.tensor([3, 1]), None, "cpu")
    >>> packing.spot.tolist(), packing.column.tolist()
    ([0, 0, 0, 1], [0, 1, 2, 0])
    """

    queries: tuple[int, ...]
    keys: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, lengths_B: Tensor, wanted_B: Tensor | None, device: torch.device | str) -> Self:
        """Packing for spots with `lengths_B` tokens (at least one position each) and `wanted_B` outputs."""
        keys_B = lengths_B.cpu().clamp(min=1)
        queries_B = keys_B if wanted_B is None else torch.maximum(keys_B, wanted_B.cpu())
        return cls(tuple(queries_B.tolist()), tuple(keys_B.tolist()), torch.device(device))

    @cached_property
    def starts(self) -> Tensor:
        """(B + 1,) start of each spot."""
        return _starts(self.queries, self.device)

    @cached_property
    def key_starts(self) -> Tensor:
        """(B + 1,) start of each spot among the keys."""
        return self.starts if self.queries == self.keys else _starts(self.keys, self.device)

    @cached_property
    def spot(self) -> Tensor:
        """(T,) spot of each position."""
        lengths = self.starts.diff()
        return torch.repeat_interleave(
            torch.arange(len(lengths), device=self.device), lengths, output_size=sum(self.queries)
        )

    @cached_property
    def column(self) -> Tensor:
        """(T,) column of each position in its spot."""
        return torch.arange(sum(self.queries), device=self.device) - self.starts[self.spot]

    @cached_property
    def attended(self) -> Tensor | None:
        """Positions that are keys; None for all."""
        if self.queries == self.keys:
            return None
        # Their number is known; counting them on a GPU would make torch wait.
        total, lengths = sum(self.keys), self.key_starts.diff()
        spot = torch.repeat_interleave(torch.arange(len(lengths), device=self.device), lengths, output_size=total)
        return torch.arange(total, device=self.device) + (self.starts - self.key_starts)[spot]

    def pack(self, values_BL: Tensor, fill: int) -> Tensor:
        """Concatenate (B, L, ...) to (T, ...), with `fill` beyond L."""
        short = max(self.queries) - values_BL.shape[1]
        return (F.pad(values_BL, (0, short), value=fill) if short > 0 else values_BL)[self.spot, self.column]


def _starts(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).to(device, non_blocking=device.type == "cuda")


def attend(q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, packing: Packing) -> Tensor:
    """Attention within each spot: (T, H, d).

    On CUDA, one call over all spots (PyTorch's variable-length kernels, if those of `attention` cannot
    run); on the CPU, one call for each run of spots of equal length, as such a kernel would do.
    """
    if packing.attended is not None:
        k_THd, v_THd = k_THd[packing.attended], v_THd[packing.attended]
    if len(set(packing.queries)) == len(set(packing.keys)) == 1 or q_THd.device.type == "cpu":
        return _by_runs(q_THd, k_THd, v_THd, packing)
    q, k, v = (
        torch.nested.nested_tensor_from_jagged(
            t, starts, min_seqlen=min(lengths), max_seqlen=max(lengths)
        ).transpose(1, 2)
        for t, starts, lengths in (
            (q_THd, packing.starts, packing.queries),
            (k_THd, packing.key_starts, packing.keys),
            (v_THd, packing.key_starts, packing.keys),
        )
    )  # fmt: skip
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).values()


def _by_runs(q_THd: Tensor, k_THd: Tensor, v_THd: Tensor, packing: Packing) -> Tensor:
    runs = [(shape, len(list(same))) for shape, same in groupby(zip(packing.queries, packing.keys, strict=True))]
    q_runs = q_THd.split([n * queries for (queries, _), n in runs])
    k_runs, v_runs = (t.split([n * keys for (_, keys), n in runs]) for t in (k_THd, v_THd))
    found = []
    for (_, n), *qkv in zip(runs, q_runs, k_runs, v_runs, strict=True):
        q, k, v = (t.unflatten(0, (n, -1)).transpose(1, 2) for t in qkv)
        found.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(0, 1))
    return found[0] if len(found) == 1 else torch.cat(found)
