"""What is in a batch. A batch is a function of (seed, step), so a run that goes on equals one that never stopped.

Several ranks share a batch: it is as many times as large, and rank r takes the r-th consecutive slice of it. What is
drawn is drawn for the whole of it.

Shapes: S groups, N spots per group, L positions, B spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stampy import _checks
from stampy._section.boxes import choose_cells
from stampy._utils import stream
from stampy.pp._neighborhoods import group_spots

from ._config import AlignConfig, PretrainConfig
from ._sections import TrainingSection

__all__ = ["GroupSampler", "PairSampler"]


class GroupSampler:
    """Batches of neighbourhood groups for stage 1; new groups are drawn for every epoch."""

    def __init__(self, sections: Sequence[TrainingSection], config: PretrainConfig):
        self.sections, self.config = sections, config
        self._tokens = np.concatenate([s.tokens for s in sections])
        self._starts = np.cumsum([0, *(len(s.tokens) for s in sections)])
        self._lengths = (self._tokens != 0).sum(axis=1)
        self._dropped: dict[str, tuple[int, int]] = {}
        self._groups = lru_cache(maxsize=2)(self._draw_groups)
        self.place(0, 1)

    def place(self, rank: int, world_size: int) -> None:
        """Give rank `rank` of `world_size` its share of every batch."""
        self.rank, self.world_size = rank, world_size

    @property
    def steps_per_epoch(self) -> int:
        """The number of groups differs a little from draw to draw; this is what the first draw allows."""
        return max(len(self._groups(0)) // (self.config.groups_per_batch * self.world_size), 1)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * (self.config.epochs_igr + self.config.epochs_cgr)

    def _draw_groups(self, epoch: int) -> np.ndarray:
        """Groups of all sections in shuffled order: (S, N) rows of the concatenated spots, the centre first."""
        rng = stream(self.config.seed, "groups", epoch)
        members = []
        for section, start, child in zip(self.sections, self._starts, rng.spawn(len(self.sections)), strict=False):
            groups = group_spots(
                section.xy, size=self.config.group_size, max_distance=self.config.max_distance, rng=child
            )
            members.append(groups.members + start)
            if epoch == 0:
                self._dropped[section.name] = int((groups.own < 0).sum()), len(section.xy)
        shuffled = np.concatenate(members)
        if not len(shuffled):
            raise ValueError(
                f"No group of {self.config.group_size} spots lies within max_distance={self.config.max_distance:g} "
                f"spot distances in any of the sections {_checks.shortlist(s.name for s in self.sections)}. Raise it."
            )
        rng.shuffle(shuffled)
        return shuffled

    def dropped(self) -> dict[str, tuple[int, int]]:
        """By section: the spots that are in no group of the first epoch, and all spots."""
        self._groups(0)
        return self._dropped

    def batch(self, step: int) -> dict[str, Tensor]:
        """``tokens`` (S, N, L) int64, cut to the longest spot of the batch (and to the positions of this step)."""
        epoch, number = divmod(step, self.steps_per_epoch)
        size = self.config.groups_per_batch
        whole = np.take(
            self._groups(epoch),
            range(number * size * self.world_size, (number + 1) * size * self.world_size),
            axis=0,
            mode="wrap",
        )
        rows = whole[self.rank * size : (self.rank + 1) * size]
        positions, wanted = np.arange(max(self._lengths[rows].max(), 1)), self.config.positions_per_step
        if wanted and (used := self._lengths[whole].max()) > wanted:
            rng = stream(self.config.seed, "positions", step)
            positions = np.sort(rng.permutation(used)[:wanted])
        return {
            "tokens": torch.from_numpy(self._tokens[rows][..., positions].astype(np.int64)),
            "positions": torch.from_numpy(positions),
            "rows": torch.from_numpy(rows),
        }

    def names(self, rows: Tensor) -> list[str]:
        """Sections of some rows, for messages."""
        return _names(self.sections, self._starts, rows)


class PairSampler:
    """Batches of spots with their tokens, patches and regions for stage 2."""

    def __init__(self, sections: Sequence[TrainingSection], config: AlignConfig):
        self.sections, self.config = sections, config
        self._starts = np.cumsum([0, *(len(s.xy) for s in sections)])
        self._cells = [s.tiles.region_cells() for s in sections]
        self._orders = lru_cache(maxsize=2)(self._draw_order)
        self.place(0, 1)

    def place(self, rank: int, world_size: int) -> None:
        """Give rank `rank` of `world_size` its share of every batch."""
        self.rank, self.world_size = rank, world_size
        self._own = self.config.pairs_per_batch
        self._half = self._own * world_size // 2

    @property
    def steps_per_epoch(self) -> int:
        """A batch has half as many spots in shuffled order."""
        return max(int(self._starts[-1]) // self._half, 1)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def batch(self, step: int) -> dict[str, Tensor]:
        """``tokens`` (B, L), ``patches`` and ``regions`` (B, size, size, 3) uint8, ``cells`` (B,), -1 without one."""
        whole = self._rows(step)
        own = slice(self.rank * self._own, (self.rank + 1) * self._own)
        rows, cells = whole[own], self._choose(whole, stream(self.config.seed, "cells", step))[own]
        which = np.searchsorted(self._starts, rows, side="right") - 1
        size = self.sections[0].tiles.size_px
        tokens = np.zeros((len(rows), self.sections[0].tokens.shape[1]), dtype=np.int64)
        patches = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        regions = np.empty_like(patches)
        for number in np.unique(which):
            section, at = self.sections[number], np.flatnonzero(which == number)
            spots = rows[at] - self._starts[number]
            tokens[at] = section.tokens[spots]
            patches[at] = section.tiles.read(spots)
            regions[at] = section.tiles.read(spots, region=True, cells=cells[at])
        arrays = {"tokens": tokens, "patches": patches, "regions": regions, "cells": cells, "rows": rows}
        return {k: torch.from_numpy(v) for k, v in arrays.items()}

    def _choose(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The cell of its region that each spot's patch is, -1 without one."""
        which = np.searchsorted(self._starts, rows, side="right") - 1
        cells = np.empty(len(rows), dtype=np.int64)
        for number in np.unique(which):
            at = np.flatnonzero(which == number)
            cells[at] = choose_cells(self._cells[number][rows[at] - self._starts[number]], rng)
        return cells

    def _draw_order(self, epoch: int) -> np.ndarray:
        return stream(self.config.seed, "order", epoch).permutation(self._starts[-1])

    def _rows(self, step: int) -> np.ndarray:
        epoch, number = divmod(step, self.steps_per_epoch)
        first = np.take(self._orders(epoch), range(number * self._half, (number + 1) * self._half), mode="wrap")
        which = np.searchsorted(self._starts, first, side="right") - 1
        rng = stream(self.config.seed, "partners", step)
        partners = rng.integers(self._starts[which], self._starts[which + 1])
        return np.concatenate([first, partners])

    def names(self, rows: Tensor) -> list[str]:
        """Sections of some rows, for messages."""
        return _names(self.sections, self._starts, rows)


def _names(sections: Sequence[TrainingSection], starts: np.ndarray, rows: Tensor) -> list[str]:
    which = np.unique(np.searchsorted(starts, rows.numpy().ravel(), side="right") - 1)
    return [sections[i].name for i in which]
