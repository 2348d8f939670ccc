"""The training data of a run: sections in memory or on disk behind one interface.

Shapes: n spots of a section, m of them, G groups of a section, N spots per group, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from stampy._section.boxes import choose_cells
from stampy._utils import stream
from stampy.pp import Vocabulary
from stampy.pp._neighborhoods import group_spots
from stampy.pp._tiles import TileSource

from ._config import PretrainConfig

__all__ = ["MemorySection", "SectionGroups", "TrainingData", "TrainingSection"]


class SectionGroups(NamedTuple):
    """Neighbourhood groups of a section."""

    numbers: np.ndarray  # (G,) int64, by which `read_group` finds them
    members: np.ndarray  # (G, N) int64, spots of the section, the centre first
    longest: np.ndarray  # (G,) tokens of the group's longest spot
    n_dropped: int  # spots in no group


class TrainingSection(Protocol):
    """One section for training. Any thread may read from it."""

    @property
    def name(self) -> str:
        """Name for messages and logs."""

    @property
    def n_spots(self) -> int:
        """Rows."""

    def groups(self, draw: int, config: PretrainConfig, rng: np.random.Generator) -> SectionGroups:
        """Groups of a draw. Those in memory are drawn from `rng`; those on disk were drawn when they were written."""

    def read_group(self, number: int, members: np.ndarray, out: np.ndarray) -> None:
        """The tokens of a group, read into `out` (N, `tokens_kept`), 0 pads."""

    @property
    def tokens_kept(self) -> int:
        """Tokens that are kept of each spot."""

    def spot_tokens(self, rows: np.ndarray, width: int) -> np.ndarray:
        """(m, width) tokens of spots, 0 pads; all 0 in a section without genes."""

    def ready_tiles(self) -> None:
        """Read what all batches with tiles need; called once, before there are threads."""

    @property
    def size_px(self) -> int:
        """Edge of a tile."""

    def patches(self, rows: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8."""

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """(m, 2, size_px, size_px, 3) uint8, for towers that see surroundings: each patch, and a region about it."""

    def choose_regions(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(m,) int64, for each spot the number of one of its regions."""

    def regions(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8, of each spot its region number `which`."""

    def cells_of(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(m,) the patch's cell in that region, row by row; -1 where no region fits into the image."""

    def load(self, max_tokens: int) -> MemorySection:
        """The section in memory, without tiles if it is read from disk."""


@dataclass(frozen=True)
class MemorySection:
    """A `TrainingSection` in memory. Its regions have the numbers of their cells; -1 is the one around the spot."""

    name: str
    xy: np.ndarray  # (n, 2) float64, px
    tokens: np.ndarray  # (n, max_tokens) uint16 or int32, 0 pads; all 0 for a section without genes
    tiles: TileSource | None
    kept_groups: np.ndarray | None = None  # (G, N) spots, where groups are given and coordinates are not

    @property
    def n_spots(self) -> int:
        """Rows."""
        return len(self.xy)

    @property
    def tokens_kept(self) -> int:
        """Tokens that are kept of each spot."""
        return self.tokens.shape[1]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return (self.tokens != 0).sum(axis=1)

    def groups(self, draw: int, config: PretrainConfig, rng: np.random.Generator) -> SectionGroups:
        """Neighbourhood groups, newly drawn."""
        found = group_spots(self.xy, size=config.group_size, max_distance=config.max_distance, rng=rng)
        longest = self._lengths[found.members].max(axis=1, initial=0)
        return SectionGroups(np.arange(len(found.members)), found.members, longest, int((found.own < 0).sum()))

    def read_group(self, number: int, members: np.ndarray, out: np.ndarray) -> None:
        """The tokens of a group."""
        out[:] = self.tokens[members]

    def spot_tokens(self, rows: np.ndarray, width: int) -> np.ndarray:
        """(m, width) tokens of spots."""
        return self.tokens[rows, :width]

    @property
    def _opened(self) -> TileSource:
        if self.tiles is None:
            raise ValueError(f"Section {self.name!r} was prepared without tiles.")
        return self.tiles

    @cached_property
    def _allowed_cells(self) -> np.ndarray:
        return self._opened.region_cells()

    def ready_tiles(self) -> None:
        """Find for which cells a region fits into the image."""
        _ = self._allowed_cells

    @property
    def size_px(self) -> int:
        """Edge of a tile."""
        return self._opened.size_px

    def patches(self, rows: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8."""
        return self._opened.read(rows)

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """(m, 2, size_px, size_px, 3) uint8: what the tower sees of spots, the patch in the middle of its region."""
        return self._opened.inputs(rows)

    def choose_regions(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Those of random cells."""
        return choose_cells(self._allowed_cells[rows], rng)

    def regions(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8."""
        return self._opened.read(rows, region=True, cells=which)

    def cells_of(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The numbers themselves."""
        return which

    def load(self, max_tokens: int) -> MemorySection:
        """Itself."""
        return self


@dataclass(frozen=True)
class TrainingData:
    """What a run trains on.

    Parameters
    ----------
    sections
        Sections used in the stage; row i of all is row ``i - start`` of its section.
    vocabulary
        Genes that the tokens stand for.
    max_tokens
        Tokens of a spot that the model sees.
    identity
        Describes the data of a run; compared when a run is resumed.
    corpus
        Folder of the corpus that the sections are in; None: they are in memory.
    draws, regions
        How many draws of groups and regions of a spot the corpus holds. None, for data in memory: a new draw for every
        epoch, and any region that fits into the image.
    """

    sections: Sequence[TrainingSection]
    vocabulary: Vocabulary
    max_tokens: int
    identity: dict[str, Any] = field(default_factory=dict)
    corpus: Path | None = None
    draws: int | None = None
    regions: int | None = None

    def loaded(self, seed: int, n_spots: int = 100_000) -> list[MemorySection]:
        """Sections in memory: of a corpus whole ones, drawn at random until there are `n_spots`."""
        chosen = self.sections
        if self.corpus is not None:
            order = stream(seed, "sections").permutation(len(chosen))
            before = np.cumsum([0, *(chosen[i].n_spots for i in order[:-1])])
            chosen = [chosen[i] for i in np.sort(order[before < n_spots])]
        return [s.load(self.max_tokens) for s in chosen]

    def some_patches(self, seed: int, n_sections: int = 500, n: int = 40) -> np.ndarray:
        """Patches of some spots of each section; of a corpus, of some of its sections."""
        chosen = self.sections
        if self.corpus is not None:
            order = stream(seed, "sections").permutation(len(chosen))[:n_sections]
            chosen = [chosen[i] for i in np.sort(order)]
        rows = (np.sort(stream(seed, "spots").permutation(s.n_spots)[:n]) for s in chosen)
        return np.concatenate([s.patches(r) for s, r in zip(chosen, rows, strict=True)])
