"""Batches from a corpus on disk. A batch is a function of (seed, step) and of the place among the ranks.

Any thread may make any batch: the loop has the next ones made while the device works. Reading and unpacking take place
outside of Python's lock, so threads are enough.

Shapes: S groups, N spots per group, L positions, B spots.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stampy._checks import at_least
from stampy._utils import stream
from stampy.train._config import AlignConfig, PretrainConfig
from stampy.train._corpus.corpus import Corpus
from stampy.train._corpus.stored import StoredSection
from stampy.train._samplers import _names
from stampy.train._sections import TrainingSection, token_dtype

__all__ = ["CorpusGroupSampler", "CorpusPairSampler", "some_rows"]

Batch = dict[str, Tensor]


class _CorpusSampler:
    """What both samplers have: sections one after the other, and a place among the ranks.

    Parameters
    ----------
    corpus
        To read from.
    sections
        Those of its sections that are used; row i of all is row ``i - start`` of its section.
    """

    def __init__(self, corpus: Corpus, sections: Sequence[StoredSection]):
        self.corpus, self.sections = corpus, sections
        self.rank, self.world_size = 0, 1
        self._starts = np.cumsum([0, *(s.n_spots for s in sections)])
        self._n_tokens = corpus.vocabulary.n_tokens

    def place(self, rank: int, world_size: int) -> None:
        """From now on give only this rank's share: the slice number `rank` of `world_size` of every global batch."""
        at_least("rank", rank, 0)
        at_least("world_size", world_size, rank + 1)
        self.rank, self.world_size = rank, world_size

    def names(self, rows: Tensor) -> list[str]:
        """Sections of some rows, for messages."""
        return _names(self.sections, self._starts, rows)

    def _mine(self, per_rank: int) -> slice:
        return slice(self.rank * per_rank, (self.rank + 1) * per_rank)

    def _checked(self, tokens: np.ndarray) -> np.ndarray:
        """The tokens as int64; a damaged one would stop a GPU without a word of where it came from."""
        if tokens.max(initial=0) >= self._n_tokens:
            raise ValueError(
                f"The corpus {str(self.corpus.path)!r} has a token {tokens.max()} where {self._n_tokens - 1} is the "
                "highest: it is damaged. `stampy corpus verify` names the file."
            )
        return tokens.astype(np.int64)


class _Groups(NamedTuple):
    """Groups of a draw, of all sections."""

    sections: np.ndarray  # (G,) position of the section
    numbers: np.ndarray  # (G,) of the group in its section
    members: np.ndarray  # (G, N) rows of the spots
    longest: np.ndarray  # (G,) tokens of the group's longest spot


class CorpusGroupSampler(_CorpusSampler):
    """Batches of neighbourhood groups for stage 1, from a corpus: groups of all sections in shuffled order.

    Raises
    ------
    ValueError
        The corpus was built with other groups or with fewer tokens than `config` asks for.
    """

    def __init__(self, corpus: Corpus, config: PretrainConfig):
        _check_groups(corpus, config)
        super().__init__(corpus, [s for s in corpus.sections if any(s.n_groups)])
        if not self.sections:
            raise ValueError(f"The corpus {str(corpus.path)!r} has no neighbourhood group to train on.")
        self.config = config
        self._dtype = token_dtype(corpus.vocabulary)
        self._tables = lru_cache(maxsize=2)(self._draw_table)
        self._orders = lru_cache(maxsize=2)(self._draw_order)

    @property
    def steps_per_epoch(self) -> int:
        """As many as the groups of the first draw allow."""
        return max(len(self._tables(0).sections) // (self.world_size * self.config.groups_per_batch), 1)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * (self.config.epochs_igr + self.config.epochs_cgr)

    def _draw_table(self, draw: int) -> _Groups:
        size, parts = self.config.group_size, []
        for i, section in enumerate(self.sections):
            numbers = np.arange(section.n_groups[draw]) + sum(section.n_groups[:draw])
            of_draw = slice(numbers[0] * size, (numbers[-1] + 1) * size) if len(numbers) else slice(0)
            members = section.spots[of_draw].reshape(-1, size) + self._starts[i]
            longest = section.lengths[of_draw].reshape(-1, size).max(axis=1)
            parts.append((np.full_like(numbers, i), numbers, members, longest))
        return _Groups(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _draw_order(self, epoch: int) -> np.ndarray:
        n_groups = len(self._tables(epoch % self.corpus.settings["draws"]).sections)
        return stream(self.config.seed, "groups", epoch).permutation(n_groups)

    def batch(self, step: int) -> Batch:
        """``tokens`` (S, N, L) int64, cut to the longest spot (or to positions drawn for the batch of all ranks)."""
        epoch, number = divmod(step, self.steps_per_epoch)
        table = self._tables(epoch % self.corpus.settings["draws"])
        size = self.config.groups_per_batch * self.world_size
        groups = np.take(self._orders(epoch), range(number * size, (number + 1) * size), mode="wrap")
        mine = groups[self._mine(self.config.groups_per_batch)]
        used, longest = (min(max(int(table.longest[g].max()), 1), self.config.max_tokens) for g in (mine, groups))
        shape = (len(mine), self.config.group_size, self.corpus.settings["max_tokens"])
        whole = np.empty(shape, dtype=self._dtype)
        for i, n, out in zip(table.sections[mine].tolist(), table.numbers[mine].tolist(), whole, strict=True):
            self.sections[i].read_group(n, out)
        positions, tokens_SNL = np.arange(used), whole[..., :used]
        if self.config.positions_per_step and longest > self.config.positions_per_step:
            rng = stream(self.config.seed, "positions", step)
            positions = np.sort(rng.permutation(longest)[: self.config.positions_per_step])
            tokens_SNL = whole[..., positions]
        return {
            "tokens": torch.from_numpy(self._checked(tokens_SNL)),
            "positions": torch.from_numpy(positions),
            "rows": torch.from_numpy(table.members[mine]),
        }

    def dropped(self) -> dict[str, tuple[int, int]]:
        """By section: the spots that are in no group of any draw, and all spots."""
        size = self.config.group_size
        return {s.name: (len(s.spots) - size * sum(s.n_groups), s.n_spots) for s in self.sections}

    def some_sections(self, seed: int, n_spots: int = 100_000) -> list[TrainingSection]:
        """Whole sections in memory, drawn at random until there are `n_spots`; all, if they are fewer."""
        order = stream(seed, "sections").permutation(len(self.sections))
        before = np.cumsum([0, *(self.sections[i].n_spots for i in order[:-1])])
        chosen = (self.sections[i] for i in np.sort(order[before < n_spots]))
        width = self.config.max_tokens
        return [TrainingSection(s.name, s.xy, s.tokens(np.arange(s.n_spots))[:, :width], None) for s in chosen]


class CorpusPairSampler(_CorpusSampler):
    """Batches of spots with their tokens, patches and regions for stage 2, from a corpus.

    Raises
    ------
    ValueError
        The corpus has no tiles, or tiles and tokens are not those of the model.
    """

    def __init__(self, corpus: Corpus, config: AlignConfig, *, max_tokens: int | None = None, ahead: int | None = None):
        super().__init__(corpus, [s for s in corpus.sections if s.has_tiles])
        if not self.sections:
            raise ValueError(f"The corpus {str(corpus.path)!r} has no tiles. Build one with `images=True`.")
        self.config = config
        self.max_tokens = corpus.settings["max_tokens"] if max_tokens is None else max_tokens
        _check_tokens(corpus, self.max_tokens)
        self._half = config.pairs_per_batch // 2
        self._orders = lru_cache(maxsize=2)(self._draw_order)
        for section in self.sections:
            section.cells  # noqa: B018 - read now, by one thread
            if section.has_genes:
                section.first_row  # noqa: B018

    @property
    def steps_per_epoch(self) -> int:
        """Half of the spots of a batch are new ones."""
        return max(int(self._starts[-1]) // (self.world_size * self._half), 1)

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.steps_per_epoch * self.config.epochs

    def batch(self, step: int) -> Batch:
        """``tokens`` (B, L), ``patches`` and ``regions`` (B, px, px, 3) uint8, ``cells`` (B,), -1 without one."""
        rows, which = self._rows(step)
        section_of = np.searchsorted(self._starts, rows, side="right") - 1
        px = self.corpus.settings["size_px"]
        tokens = np.zeros((len(rows), self.max_tokens), dtype=np.int64)
        patches = np.empty((len(rows), px, px, 3), dtype=np.uint8)
        regions, cells = np.empty_like(patches), np.empty(len(rows), dtype=np.int64)
        for number in np.unique(section_of):
            section, at = self.sections[number], np.flatnonzero(section_of == number)
            own = rows[at] - self._starts[number]
            if section.has_genes:
                tokens[at] = self._checked(section.tokens(own)[:, : self.max_tokens])
            patches[at] = section.patches(own)
            regions[at] = section.regions(own, which[at])
            cells[at] = section.cells[own, which[at]]
        arrays = {"tokens": tokens, "patches": patches, "regions": regions, "cells": cells, "rows": rows}
        return {k: torch.from_numpy(v) for k, v in arrays.items()}

    def some_patches(self, seed: int, n_sections: int = 500) -> np.ndarray:
        """Patches of some spots of each section, or of some of the sections."""
        order = stream(seed, "sections").permutation(len(self.sections))[:n_sections]
        chosen = (self.sections[i] for i in np.sort(order))
        return np.concatenate([s.patches(some_rows(s.n_spots, seed)) for s in chosen])

    def _draw_order(self, epoch: int) -> np.ndarray:
        return stream(self.config.seed, "order", epoch).permutation(self._starts[-1])

    def _rows(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The rank's share of spots (half in shuffled order, then one more of the section of each) and regions."""
        epoch, number = divmod(step, self.steps_per_epoch)
        half = self._half * self.world_size
        first = np.take(self._orders(epoch), range(number * half, (number + 1) * half), mode="wrap")
        section_of = np.searchsorted(self._starts, first, side="right") - 1
        rng = stream(self.config.seed, "partners", step)
        partners = rng.integers(self._starts[section_of], self._starts[section_of + 1])
        which = rng.integers(self.corpus.settings["regions"], size=2 * half)
        mine = self._mine(2 * self._half)
        return np.concatenate([first, partners])[mine], which[mine]


def some_rows(n_spots: int, seed: int, n: int = 40) -> np.ndarray:
    """Rows of some spots of a section."""
    return np.sort(stream(seed, "spots").permutation(n_spots)[:n])


def _check_groups(corpus: Corpus, config: PretrainConfig) -> None:
    for name in ("group_size", "max_distance"):
        if corpus.settings[name] != getattr(config, name):
            raise ValueError(
                f"The corpus {str(corpus.path)!r} was built with {name}={corpus.settings[name]}, the settings have "
                f"{getattr(config, name)}. Change the settings, or build another corpus."
            )
    _check_tokens(corpus, config.max_tokens)


def _check_tokens(corpus: Corpus, max_tokens: int) -> None:
    if corpus.settings["max_tokens"] < max_tokens:
        raise ValueError(
            f"The corpus {str(corpus.path)!r} keeps {corpus.settings['max_tokens']} tokens of a spot, the model takes "
            f"{max_tokens}. Lower `max_tokens`, or build another corpus."
        )
