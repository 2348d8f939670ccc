"""The training data of a run: sections in memory or on disk behind one interface, and their tokens and tiles.

Shapes: n spots of a section, m of them, G groups of a section, N spots per group, L positions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._files import digest_of_arrays
from stampy._io.sections import Section, as_sections, of_section
from stampy._section.image.image_checks import doubts_of
from stampy._section.section import places_of, side_by_side
from stampy._section.tile_boxes import choose_cells
from stampy._utils import stream
from stampy.pp import Vocabulary
from stampy.pp._counts import counts_of
from stampy.pp._genes.means import add_sums, means_of, section_sums
from stampy.pp._neighborhoods import group_spots
from stampy.pp._tiles import TileSource
from stampy.pp._tokens import iter_tokens

from ._config import PretrainConfig

if TYPE_CHECKING:
    from anndata import AnnData

    from stampy._io.sections import Sections
    from stampy.models import ImageConfig, StampConfig
    from stampy.pp._genes.match_report import GeneMatch

__all__ = [
    "MemorySection",
    "SectionGroups",
    "TrainingData",
    "TrainingSection",
    "groups_in_memory",
    "identity_of",
    "pairs_in_memory",
    "prepare",
    "ranked",
    "token_dtype",
    "without_tokens",
]

logger = logging.getLogger(__name__)


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


def prepare(
    section: Section, vocabulary: Vocabulary, *, max_tokens: int, tower: ImageConfig | None = None
) -> MemorySection:
    """Read a section, rank its genes, and open its image for the tiles that an image tower sees, if one is given."""
    with of_section(section.name), _checks.warnings_about(f"Section {section.name!r}"):
        data = section.read()
        table = _utils.table_of(data)
        _checks.not_empty(table, genes=False)
        source = None
        if tower is not None:
            source = TileSource.open(
                data, tile_um=tower.tile_um, size_px=tower.size_px, surroundings=tower.surroundings,
                image=section.image, um_per_px=section.um_per_px, spot_um=section.spot_um,
            )  # fmt: skip
            for doubt in doubts_of(source.sections):
                _checks.warn(f"{doubt} It is used anyway; leave the section out or pass its image.")
        places = places_of(data, neighbors=source is None)
        return MemorySection(
            name=section.name,
            xy=side_by_side(places),
            tokens=_tokens(table, vocabulary, max_tokens, section.name),
            tiles=source,
        )


def identity_of(sections: Iterable[MemorySection]) -> dict[str, str]:
    """A digest of tokens, coordinates and images by name: what a run must find again when it goes on."""
    found = {}
    for section in sections:
        with of_section(section.name):
            digest = digest_of_arrays(section.tokens, section.xy)
            if section.tiles is not None:
                digest += section.tiles.digest(np.arange(len(section.xy)))
            found[section.name] = digest
    return found


def _tokens(adata: AnnData, vocabulary: Vocabulary, max_tokens: int, name: str) -> np.ndarray:
    if not adata.n_vars:
        return np.zeros((adata.n_obs, max_tokens), dtype=token_dtype(vocabulary))
    tokens = ranked(adata, vocabulary, max_tokens, name)[0]
    if missing := without_tokens(tokens):
        _checks.warn(missing)
    return tokens


def without_tokens(tokens: np.ndarray) -> str:
    """How many spots have no token, (n, L); "" where all have some."""
    n = int((tokens[:, 0] == _keys.PAD).sum())
    if not n:
        return ""
    return (
        f"{n:,} of {len(tokens):,} spots have no counts of genes in the vocabulary. Losses that need genes skip "
        "them; drop them if they are outside the tissue."
    )


def ranked(adata: AnnData, vocabulary: Vocabulary, max_tokens: int, name: str) -> tuple[np.ndarray, GeneMatch]:
    """Tokens (n, max_tokens), 0 pads, and how the section's genes were found."""
    match = vocabulary.match(adata)
    logger.info("%s: %s", name, match)
    tokens = np.zeros((adata.n_obs, max_tokens), dtype=token_dtype(vocabulary))
    for start, block in iter_tokens(counts_of(adata), match, vocabulary.divisors, max_tokens, layers=adata.layers):
        tokens[start : start + len(block)] = block
    return tokens, match


def token_dtype(vocabulary: Vocabulary) -> type[np.generic]:
    """The smallest type that holds the tokens of a vocabulary."""
    return np.uint16 if vocabulary.n_tokens <= 2**16 else np.int32


def groups_in_memory(sections: Sections, vocabulary: Vocabulary | None, config: PretrainConfig) -> TrainingData:
    """What stage 1 trains on: the sections that have genes; None: a vocabulary of all of them.

    Raises
    ------
    ValueError
        No section has genes, or one has fewer spots than a neighbourhood group.
    """
    chosen = as_sections(sections)
    if vocabulary is None:
        vocabulary = _made_of(chosen)
    found = [prepare(s, vocabulary, max_tokens=config.max_tokens) for s in chosen]
    with_genes = [s for s in found if s.tokens.any()]
    for section in with_genes:
        with of_section(section.name):
            _checks.enough_spots({section.name: section.n_spots}, config.group_size, setting="group_size")
    left_out = [s.name for s in found if not s.tokens.any()]
    if left_out:
        _checks.warn(
            f"{len(left_out)} of the sections have no genes of the vocabulary and are not used in stage 1: "
            f"{_checks.shortlist(left_out)}."
        )
    if not with_genes:
        raise ValueError(f"No section has genes of the vocabulary: {_checks.shortlist(s.name for s in found)}.")
    return TrainingData(with_genes, vocabulary, config.max_tokens, _identity_of(with_genes, vocabulary))


def pairs_in_memory(sections: Sections, vocabulary: Vocabulary, model: StampConfig) -> TrainingData:
    """What stage 2 trains on: all sections, with tiles as the model's image tower sees them."""
    width = model.gene.max_tokens
    found = [prepare(s, vocabulary, max_tokens=width, tower=model.image) for s in as_sections(sections)]
    return TrainingData(found, vocabulary, width, _identity_of(found, vocabulary))


def _made_of(sections: Sequence[Section]) -> Vocabulary:
    """A vocabulary of all sections with genes; errors name the section."""
    sums = None
    for section in sections:
        with of_section(section.name), _checks.warnings_about(f"Section {section.name!r}"):
            table = _utils.table_of(section.read())
            _checks.not_empty(table, genes=False)
            if table.n_vars:
                sums = add_sums(sums, section_sums(table, None, repr(section.name)))
    if sums is None:
        raise ValueError(f"No section has genes: {_checks.shortlist(s.name for s in sections)}.")
    return Vocabulary._from_means(means_of(sums))


def _identity_of(sections: Sequence[MemorySection], vocabulary: Vocabulary) -> dict[str, Any]:
    return {"vocabulary": vocabulary.digest, "sections": identity_of(sections)}
