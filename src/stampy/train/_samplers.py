"""What is in a batch. A batch is a function of (seed, step), so a run that goes on equals one that never stopped.

Shapes: S groups, N spots per group, L positions, B spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from stampy.pp._geometry import choose_cells
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
        self._groups = lru_cache(maxsize=2)(self._draw_groups)
        # The number of groups differs a little from draw to draw; an epoch has as many steps as the first one allows.
        self.steps_per_epoch = max(len(self._draw_groups(0)) // config.groups_per_batch, 1)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * (self.config.epochs_igr + self.config.epochs_cgr)

    def _draw_groups(self, epoch: int) -> np.ndarray:
        """Groups of all sections in shuffled order: (S, N) rows of the concatenated spots, the centre first."""
        rng = np.random.default_rng([self.config.seed, epoch])
        members = []
        for section, start, child in zip(self.sections, self._starts, rng.spawn(len(self.sections)), strict=False):
            groups = group_spots(
                section.xy, size=self.config.group_size, max_distance=self.config.max_distance, rng=child
            )
            members.append(groups.members + start)
        shuffled = np.concatenate(members)
        rng.shuffle(shuffled)
        return shuffled

    def batch(self, step: int) -> dict[str, Tensor]:
        """``tokens`` (S, N, L) int64, cut to the longest spot of the batch (and to the positions of this step)."""
        epoch, number = divmod(step, self.steps_per_epoch)
        groups, size = self._groups(epoch), self.config.groups_per_batch
        rows = np.take(groups, range(number * size, (number + 1) * size), axis=0, mode="wrap")
        tokens_SNL = self._tokens[rows]
        used = int((tokens_SNL != 0).sum(axis=2).max())
        positions = np.arange(max(used, 1))
        if self.config.positions_per_step and used > self.config.positions_per_step:
            rng = np.random.default_rng([self.config.seed, step, 1])
            positions = np.sort(rng.permutation(used)[: self.config.positions_per_step])
        return {
            "tokens": torch.from_numpy(tokens_SNL[..., positions].astype(np.int64)),
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
        self._half = max(config.pairs_per_batch // 2, 1)
        self.steps_per_epoch = max(int(self._starts[-1]) // self._half, 1)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def batch(self, step: int) -> dict[str, Tensor]:
        """``tokens`` (B, L), ``patches`` and ``regions`` (B, size, size, 3) uint8, ``cells`` (B,), -1 without one."""
        rows = self._rows(step)
        rng = np.random.default_rng([self.config.seed, step, 2])
        which = np.searchsorted(self._starts, rows, side="right") - 1
        size = self.sections[0].tiles.size_px
        tokens = np.zeros((len(rows), self.sections[0].tokens.shape[1]), dtype=np.int64)
        patches = np.empty((len(rows), size, size, 3), dtype=np.uint8)
        regions, cells = np.empty_like(patches), np.empty(len(rows), dtype=np.int64)
        for number in np.unique(which):
            section, at = self.sections[number], np.flatnonzero(which == number)
            own = rows[at] - self._starts[number]
            tokens[at] = section.tokens[own]
            cells[at] = choose_cells(self._cells[number][own], rng)
            patches[at] = section.tiles.read(own)
            regions[at] = section.tiles.read(own, region=True, cells=cells[at])
        arrays = {"tokens": tokens, "patches": patches, "regions": regions, "cells": cells, "rows": rows}
        return {k: torch.from_numpy(v) for k, v in arrays.items()}

    def _rows(self, step: int) -> np.ndarray:
        epoch, number = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(self._starts[-1])
        first = np.take(order, range(number * self._half, (number + 1) * self._half), mode="wrap")
        which = np.searchsorted(self._starts, first, side="right") - 1
        rng = np.random.default_rng([self.config.seed, step, 3])
        partners = rng.integers(self._starts[which], self._starts[which + 1])
        return np.concatenate([first, partners])

    def names(self, rows: Tensor) -> list[str]:
        """Sections of some rows, for messages."""
        return _names(self.sections, self._starts, rows)


def _names(sections: Sequence[TrainingSection], starts: np.ndarray, rows: Tensor) -> list[str]:
    which = np.unique(np.searchsorted(starts, rows.numpy().ravel(), side="right") - 1)
    return [sections[i].name for i in which]
