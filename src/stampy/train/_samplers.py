"""Samplers and their batches. A batch is a function of (seed, step), so a resumed run equals an uninterrupted run.

Any thread can make any batch; the loop prepares batches while the device works. With several ranks, batches are larger
by the number of ranks, rank r takes the r-th consecutive slice, and all ranks draw the random numbers of the whole
batch. Batches are on the CPU; their pieces are moved to the device.

Shapes: G groups of a draw, S groups of a batch, N spots per group, L positions, B spots (of a piece: B of these), T
positions of all spots concatenated, M scored positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple, NotRequired, TypedDict, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from stampy import _checks
from stampy._utils import stream

from ._config import AlignConfig, PretrainConfig
from ._data import TrainingData, TrainingSection, token_dtype

__all__ = [
    "Batch",
    "GroupBatch",
    "GroupPiece",
    "GroupSampler",
    "Losses",
    "PairBatch",
    "PairPiece",
    "PairSampler",
    "moved",
    "pinned",
]


class _BaseSampler:
    """Base of both samplers: consecutive sections, and the slice of a rank."""

    def __init__(self, data: TrainingData):
        self.data, self.sections = data, data.sections
        self._starts = np.cumsum([0, *(s.n_spots for s in data.sections)])
        self._n_tokens = data.vocabulary.n_tokens
        self.place(0, 1)

    def place(self, rank: int, world_size: int) -> None:
        """Return only slice number `rank` of `world_size` of every batch from now on."""
        _checks.at_least("rank", rank, 0)
        _checks.at_least("world_size", world_size, rank + 1)
        self.rank, self.world_size = rank, world_size

    def names(self, rows: Tensor) -> list[str]:
        """Sections of some rows, for messages."""
        return [self.sections[i].name for i in np.unique(self._section_of(rows.numpy().ravel()))]

    def _section_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._starts, rows, side="right") - 1

    def _by_section(self, rows: np.ndarray) -> Iterator[tuple[TrainingSection, np.ndarray, np.ndarray]]:
        """Yield each section with the positions in `rows` of its spots, and their rows in the section."""
        section_of = self._section_of(rows)
        for number in np.unique(section_of):
            at = np.flatnonzero(section_of == number)
            yield self.sections[number], at, rows[at] - self._starts[number]

    def _rank_slice(self, per_rank: int) -> slice:
        return slice(self.rank * per_rank, (self.rank + 1) * per_rank)

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """Convert tokens to int64 and check them; on a GPU, an invalid token would fail without naming its section."""
        if tokens.max(initial=0) >= self._n_tokens:
            where = "A section" if self.data.corpus is None else f"The corpus {str(self.data.corpus)!r}"
            raise ValueError(
                f"{where} has a token {tokens.max()} where {self._n_tokens - 1} is the highest: it is damaged. "
                "`stampy corpus verify` names the file."
            )
        return tokens.astype(np.int64)


class _Table(NamedTuple):
    """Groups of one draw in all sections."""

    sections: np.ndarray  # (G,) index of the section
    numbers: np.ndarray  # (G,) number of the group in its section
    members: np.ndarray  # (G, N) spots of the section
    longest: np.ndarray  # (G,) number of tokens of the group's longest spot
    dropped: dict[str, tuple[int, int]]  # by section: number of spots without group, and of all spots


class GroupSampler(_BaseSampler):
    """Batches of neighbourhood groups for stage 1: groups of all sections, drawn anew and shuffled in every epoch.

    Raises
    ------
    ValueError
        No section has a group.
    """

    def __init__(self, data: TrainingData, config: PretrainConfig):
        super().__init__(data)
        self.config = config
        self._dtype = token_dtype(data.vocabulary)
        self._tables = lru_cache(maxsize=2)(self._draw_table)
        self._orders = lru_cache(maxsize=2)(self._draw_order)
        first = self._tables(0)
        self._n_groups, self._dropped = len(first.members), first.dropped

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in the first draw; the number of groups varies slightly between draws."""
        return max(self._n_groups // (self.config.groups_per_batch * self.world_size), 1)

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return self.steps_per_epoch * (self.config.epochs_igr + self.config.epochs_cgr)

    def dropped(self) -> dict[str, tuple[int, int]]:
        """By section: number of spots without group (in memory: in the first epoch), and of all spots."""
        return self._dropped

    def _draw_table(self, draw: int) -> _Table:
        children = stream(self.config.seed, "groups", draw).spawn(len(self.sections))
        parts = [s.groups(draw, self.config, child) for s, child in zip(self.sections, children, strict=True)]
        if not any(len(part.members) for part in parts):
            raise ValueError(
                f"No group of {self.config.group_size} spots lies within max_distance={self.config.max_distance:g} "
                f"spot distances in any of the sections {_checks.shortlist(s.name for s in self.sections)}. Raise it."
            )
        numbers, members, longest = (np.concatenate([part[i] for part in parts]) for i in range(3))
        sections = np.repeat(np.arange(len(parts)), [len(part.members) for part in parts])
        dropped = {s.name: (part.n_dropped, s.n_spots) for s, part in zip(self.sections, parts, strict=True)}
        return _Table(sections, numbers, members, longest, dropped)

    def _table_of(self, epoch: int) -> _Table:
        return self._tables(epoch if self.data.draws is None else epoch % self.data.draws)

    def _draw_order(self, epoch: int) -> np.ndarray:
        return stream(self.config.seed, "groups", epoch).permutation(len(self._table_of(epoch).members))

    def batch(self, step: int) -> GroupBatch:
        """Batch with tokens cut to the longest spot, or to positions that are drawn for all ranks."""
        epoch, number = divmod(step, self.steps_per_epoch)
        table, size = self._table_of(epoch), self.config.groups_per_batch * self.world_size
        groups = np.take(self._orders(epoch), range(number * size, (number + 1) * size), mode="wrap")
        mine = groups[self._rank_slice(self.config.groups_per_batch)]
        used, longest = (min(max(int(table.longest[g].max()), 1), self.data.max_tokens) for g in (mine, groups))
        positions, wanted = np.arange(used), self.config.positions_per_step
        columns: slice | np.ndarray = slice(used)
        if wanted and longest > wanted:
            rng = stream(self.config.seed, "positions", step)
            columns = positions = np.sort(rng.permutation(longest)[:wanted])
        tokens_SNL = self._read(table, mine)[..., columns]
        rows_SN = table.members[mine] + self._starts[table.sections[mine], None]
        return {
            "tokens": torch.from_numpy(self._checked(tokens_SNL)),
            "positions": torch.from_numpy(positions),
            "rows": torch.from_numpy(rows_SN),
        }

    def _read(self, table: _Table, groups: np.ndarray) -> np.ndarray:
        """(S, N, tokens kept) tokens of some groups, each in one read."""
        shape = (len(groups), self.config.group_size, self.sections[0].tokens_kept)
        out = np.empty(shape, dtype=self._dtype)
        sections, numbers = table.sections[groups].tolist(), table.numbers[groups].tolist()
        for i, number, members, place in zip(sections, numbers, table.members[groups], out, strict=True):
            self.sections[i].read_group(number, members, place)
        return out


class PairSampler(_BaseSampler):
    """Batches of spots with their tokens, patches and regions for stage 2."""

    def __init__(self, data: TrainingData, config: AlignConfig):
        super().__init__(data)
        self.config = config
        self._orders = lru_cache(maxsize=2)(self._draw_order)
        for section in self.sections:
            section.ready_tiles()

    @property
    def _half(self) -> int:
        """Number of shuffled spots in a batch of all ranks; each has a partner in its section."""
        return self.config.pairs_per_batch * self.world_size // 2

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches in which every spot occurs once among the shuffled half."""
        return max(int(self._starts[-1]) // self._half, 1)

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def _draw_order(self, epoch: int) -> np.ndarray:
        return stream(self.config.seed, "order", epoch).permutation(self._starts[-1])

    def batch(self, step: int) -> PairBatch:
        """Spots of this rank: half in shuffled order, then one more from the section of each."""
        rows, which = (drawn[self._rank_slice(self.config.pairs_per_batch)] for drawn in self._draw(step))
        px = self.sections[0].size_px
        tokens = np.zeros((len(rows), self.data.max_tokens), dtype=np.int64)
        patches = np.empty((len(rows), px, px, 3), dtype=np.uint8)
        regions, cells = np.empty_like(patches), np.empty(len(rows), dtype=np.int64)
        for section, at, own in self._by_section(rows):
            tokens[at] = self._checked(section.spot_tokens(own, self.data.max_tokens))
            patches[at] = section.patches(own)
            regions[at] = section.regions(own, which[at])
            cells[at] = section.cells_of(own, which[at])
        return {
            "tokens": torch.from_numpy(tokens),
            "patches": torch.from_numpy(patches),
            "regions": torch.from_numpy(regions),
            "cells": torch.from_numpy(cells),
            "rows": torch.from_numpy(rows),
        }

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Spots of the batch of all ranks, and the number of the region of each."""
        epoch, number = divmod(step, self.steps_per_epoch)
        first = np.take(self._orders(epoch), range(number * self._half, (number + 1) * self._half), mode="wrap")
        section_of = self._section_of(first)
        rng = stream(self.config.seed, "partners", step)
        partners = rng.integers(self._starts[section_of], self._starts[section_of + 1])
        rows = np.concatenate([first, partners])
        if self.data.regions is not None:  # all spots have the same number of regions
            return rows, rng.integers(self.data.regions, size=len(rows))
        which, rng = np.empty(len(rows), dtype=np.int64), stream(self.config.seed, "cells", step)
        for section, at, own in self._by_section(rows):
            which[at] = section.choose_regions(own, rng)
        return rows, which


Losses = dict[str, Tensor]  # scalars, by name in the logs


class Batch(TypedDict):
    """Common part of the batches of both stages; rows count over all sections."""

    tokens: Tensor  # int64, padded with 0; shapes below
    rows: Tensor  # int64, rows of the spots


class GroupBatch(Batch):
    """Stage 1: ``tokens`` (S, N, L), the central spot first; ``rows`` (S, N)."""

    positions: Tensor  # (L,) int64, ranks of the columns of `tokens`


class PairBatch(Batch):
    """Stage 2: ``tokens`` (B, L); ``rows`` (B,)."""

    patches: Tensor  # (B, px, px, 3) uint8
    regions: Tensor  # (B, px, px, 3) uint8, three times as wide
    cells: Tensor  # (B,) int64, cell of the patch in its region, row-major; -1 if no region is inside the image


class GroupPiece(TypedDict):
    """Some groups of a `GroupBatch`, masked and packed."""

    queries: tuple[int, ...]  # (B,) positions of each spot, see `models._kernels.packed.Packing`
    keys: tuple[int, ...]  # (B,)
    inputs: Tensor  # (T,) int64, ids for the encoder
    positions: Tensor  # (L,) int64
    igr_at: Tensor  # (M,) int64, positions in the sequence of T
    igr_targets: Tensor  # (M,) int64, tokens
    igr_kinds: Tensor  # (M,) int64, index into `KINDS`
    cgr_at: NotRequired[Tensor]  # (N - 1, M of CGR) int64
    cgr_targets: NotRequired[Tensor]  # (M of CGR,) int64
    counts: dict[str, int]  # number of scored positions by loss and kind
    weights: NotRequired[dict[str, float]]  # factors from sums to contributions to the means


class PairPiece(TypedDict):
    """Some spots of a `PairBatch`."""

    ids: Tensor  # (B, L) int64, ids for the encoder
    lengths: np.ndarray  # (B,) int64; on the CPU, since it determines shapes and reading a GPU would block
    paired: np.ndarray  # (B,) bool, spots with genes
    known: np.ndarray  # (B,) bool, spots with a region
    patches: Tensor  # (B, px, px, 3) uint8, after augmentation (B, 3, px, px) float
    regions: Tensor  # same as patches
    references: NotRequired[Tensor]  # (B, 3, small, small) float, reduced patches
    cells: Tensor  # (B,) int64
    rows: Tensor  # (B,) int64
    step: int
    piece: int  # index of the piece
    pieces: int  # number of pieces


P = TypeVar("P", bound=Mapping[str, object])


def pinned(piece: P) -> P:
    """The piece with its tensors in pinned memory, for asynchronous copies to a GPU."""
    return cast("P", {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in piece.items()})


def moved(piece: P, device: torch.device) -> P:
    """The piece with its tensors on a device."""
    return cast("P", {k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in piece.items()})
