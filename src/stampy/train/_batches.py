"""What passes from a sampler to the losses: batches on the CPU, and the pieces of them that go to the device.

Shapes: S groups, N spots per group, L positions, B spots (of the piece: B of it), T positions of all spots end to end,
M scored positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

__all__ = ["Batch", "GroupBatch", "GroupPiece", "Losses", "PairBatch", "PairPiece", "moved", "pinned"]

Losses = dict[str, Tensor]  # scalars, by the name in the logs


class Batch(TypedDict):
    """What the batches of both stages have; rows count over all sections, one after the other."""

    tokens: Tensor  # int64, 0 pads; shapes below
    rows: Tensor  # int64, the spots


class GroupBatch(Batch):
    """Stage 1: ``tokens`` (S, N, L), the centre first; ``rows`` (S, N)."""

    positions: Tensor  # (L,) int64, ranks of the columns of `tokens`


class PairBatch(Batch):
    """Stage 2: ``tokens`` (B, L); ``rows`` (B,)."""

    patches: Tensor  # (B, px, px, 3) uint8
    regions: Tensor  # (B, px, px, 3) uint8, three times as wide
    cells: Tensor  # (B,) int64, the patch's cell in its region, row by row; -1 where no region fits into the image


class GroupPiece(TypedDict):
    """Some groups of a `GroupBatch`, masked and packed."""

    queries: tuple[int, ...]  # (B,) positions of each spot, see `models._packed.Packing`
    keys: tuple[int, ...]  # (B,)
    inputs: Tensor  # (T,) int64, ids for the encoder
    positions: Tensor  # (L,) int64
    igr_at: Tensor  # (M,) int64, places in the row of T
    igr_targets: Tensor  # (M,) int64, tokens
    igr_kinds: Tensor  # (M,) int64, index in `KINDS`
    cgr_at: NotRequired[Tensor]  # (N - 1, M of CGR) int64
    cgr_targets: NotRequired[Tensor]  # (M of CGR,) int64
    counts: dict[str, int]  # scored positions by loss and kind
    weights: NotRequired[dict[str, float]]  # turns sums into shares of the mean over all pieces and ranks


class PairPiece(TypedDict):
    """Some spots of a `PairBatch`."""

    ids: Tensor  # (B, L) int64, ids for the encoder
    lengths: np.ndarray  # (B,) int64; values that decide shapes stay on the CPU: reading them from a GPU would block
    paired: np.ndarray  # (B,) bool, has genes
    known: np.ndarray  # (B,) bool, has a region
    patches: Tensor  # (B, px, px, 3) uint8, after augmentation (B, 3, px, px) float
    regions: Tensor  # likewise
    references: NotRequired[Tensor]  # (B, 3, small, small) float, the shrunken patches
    cells: Tensor  # (B,) int64
    rows: Tensor  # (B,) int64
    step: int
    piece: int  # number of the piece
    pieces: int  # how many there are


P = TypeVar("P", bound=Mapping[str, object])


def pinned(piece: P) -> P:
    """Its tensors in memory from which a GPU reads while the CPU works on."""
    return cast("P", {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in piece.items()})


def moved(piece: P, device: torch.device) -> P:
    """Its tensors on a device."""
    return cast("P", {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in piece.items()})
