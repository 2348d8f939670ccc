"""Training data of a run: sections in memory or on disk with one interface to tokens and tiles.

Shapes: n spots of a section, m selected spots, G groups of a section, N spots per group, L positions.
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
from stampy._io.sections import SectionInput, as_sections, of_section
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
    "missing_tokens_message",
    "pairs_in_memory",
    "prepare",
    "ranked",
    "token_dtype",
]

logger = logging.getLogger(__name__)


class SectionGroups(NamedTuple):
    """Neighbourhood groups of a section."""

    numbers: np.ndarray  # (G,) int64, arguments of `read_group`
    members: np.ndarray  # (G, N) int64, spots of the section, the central spot first
    longest: np.ndarray  # (G,) number of tokens of the group's longest spot
    n_dropped: int  # number of spots without group


class TrainingSection(Protocol):
    """One section for training; reading is safe from several threads."""

    @property
    def name(self) -> str:
        """Name in messages and logs."""

    @property
    def n_spots(self) -> int:
        """Number of spots."""

    def groups(self, draw: int, config: PretrainConfig, rng: np.random.Generator) -> SectionGroups:
        """Groups of a draw: drawn from `rng` in memory, or as stored on disk."""

    def read_group(self, number: int, members: np.ndarray, out: np.ndarray) -> None:
        """Read the tokens of a group into `out` (N, `tokens_kept`), padded with 0."""

    @property
    def tokens_kept(self) -> int:
        """Number of tokens stored per spot."""

    def spot_tokens(self, rows: np.ndarray, width: int) -> np.ndarray:
        """(m, width) tokens of spots, padded with 0; zeros for a section without genes."""

    def ready_tiles(self) -> None:
        """Read data used by all batches with tiles; called once, before threads start."""

    @property
    def size_px(self) -> int:
        """Edge of a tile."""

    def patches(self, rows: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8."""

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """(m, 2, size_px, size_px, 3) uint8, for encoders with surroundings: each patch and a region around it."""

    def choose_regions(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(m,) int64, number of a random region of each spot."""

    def regions(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8, region number `which` of each spot."""

    def cells_of(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(m,) cell of the patch in that region, row-major; -1 if no region is inside the image."""

    def load(self, max_tokens: int) -> MemorySection:
        """Load the section into memory, without tiles if it is on disk."""


@dataclass(frozen=True)
class MemorySection:
    """A `TrainingSection` in memory. A region's number is its cell; -1 is the region centred on the spot."""

    name: str
    xy: np.ndarray  # (n, 2) float64, px
    tokens: np.ndarray  # (n, max_tokens) uint16 or int32, padded with 0; zeros for a section without genes
    tiles: TileSource | None
    kept_groups: np.ndarray | None = None  # (G, N) spots, if the source has groups but no coordinates

    @property
    def n_spots(self) -> int:
        """Number of spots."""
        return len(self.xy)

    @property
    def tokens_kept(self) -> int:
        """Number of tokens stored per spot."""
        return self.tokens.shape[1]

    @cached_property
    def _lengths(self) -> np.ndarray:
        return (self.tokens != 0).sum(axis=1)

    def groups(self, draw: int, config: PretrainConfig, rng: np.random.Generator) -> SectionGroups:
        """Draw new neighbourhood groups."""
        found = group_spots(self.xy, size=config.group_size, max_distance=config.max_distance, rng=rng)
        longest = self._lengths[found.members].max(axis=1, initial=0)
        return SectionGroups(np.arange(len(found.members)), found.members, longest, int((found.own < 0).sum()))

    def read_group(self, number: int, members: np.ndarray, out: np.ndarray) -> None:
        """Read the tokens of a group."""
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
        """Find the cells for which a region is inside the image."""
        _ = self._allowed_cells

    @property
    def size_px(self) -> int:
        """Edge of a tile."""
        return self._opened.size_px

    def patches(self, rows: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8."""
        return self._opened.read(rows)

    def inputs(self, rows: np.ndarray) -> np.ndarray:
        """(m, 2, size_px, size_px, 3) uint8: inputs of the encoder, with the patch in the middle of its region."""
        return self._opened.inputs(rows)

    def choose_regions(self, rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """(m,) int64, random allowed cells."""
        return choose_cells(self._allowed_cells[rows], rng)

    def regions(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """(m, size_px, size_px, 3) uint8."""
        return self._opened.read(rows, region=True, cells=which)

    def cells_of(self, rows: np.ndarray, which: np.ndarray) -> np.ndarray:
        """The region numbers, which are the cells."""
        return which

    def load(self, max_tokens: int) -> MemorySection:
        """Return the section itself."""
        return self


@dataclass(frozen=True)
class TrainingData:
    """Training data of a run.

    Parameters
    ----------
    sections
        Sections used in the stage; row i of the data is row ``i - start`` of its section.
    vocabulary
        Vocabulary of the tokens.
    max_tokens
        Number of tokens per spot that the model uses.
    identity
        Record of the data, compared on resume.
    corpus
        Folder of the corpus; None: sections in memory.
    draws, regions
        Numbers of stored draws of groups and of stored regions per spot. None, for data in memory: a new draw for every
        epoch, and any region inside the image.
    """

    sections: Sequence[TrainingSection]
    vocabulary: Vocabulary
    max_tokens: int
    identity: dict[str, Any] = field(default_factory=dict)
    corpus: Path | None = None
    draws: int | None = None
    regions: int | None = None

    def loaded(self, seed: int, n_spots: int = 100_000) -> list[MemorySection]:
        """Sections in memory; of a corpus, whole sections drawn at random until `n_spots` are reached."""
        chosen = self.sections
        if self.corpus is not None:
            order = stream(seed, "sections").permutation(len(chosen))
            before = np.cumsum([0, *(chosen[i].n_spots for i in order[:-1])])
            chosen = [chosen[i] for i in np.sort(order[before < n_spots])]
        return [s.load(self.max_tokens) for s in chosen]

    def some_patches(self, seed: int, n_sections: int = 500, n: int = 40) -> np.ndarray:
        """Patches of some spots of each section; of a corpus, of randomly drawn sections."""
        chosen = self.sections
        if self.corpus is not None:
            order = stream(seed, "sections").permutation(len(chosen))[:n_sections]
            chosen = [chosen[i] for i in np.sort(order)]
        rows = (np.sort(stream(seed, "spots").permutation(s.n_spots)[:n]) for s in chosen)
        return np.concatenate([s.patches(r) for s, r in zip(chosen, rows, strict=True)])


def prepare(
    section: SectionInput, vocabulary: Vocabulary, *, max_tokens: int, tower: ImageConfig | None = None
) -> MemorySection:
    """Read a section, compute its tokens, and open its image for the tiles of the image encoder, if there is one."""
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
    """Digest of tokens, coordinates and images by section name, compared on resume."""
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
    if missing := missing_tokens_message(tokens):
        _checks.warn(missing)
    return tokens


def missing_tokens_message(tokens: np.ndarray) -> str:
    """Message with the number of spots without tokens, (n, L); "" if all spots have tokens."""
    n = int((tokens[:, 0] == _keys.PAD).sum())
    if not n:
        return ""
    return (
        f"{n:,} of {len(tokens):,} spots have no counts of genes in the vocabulary. Losses that need genes skip "
        "them; drop them if they are outside the tissue."
    )


def ranked(adata: AnnData, vocabulary: Vocabulary, max_tokens: int, name: str) -> tuple[np.ndarray, GeneMatch]:
    """Tokens (n, max_tokens), padded with 0, and the match of the section's genes."""
    match = vocabulary.match(adata)
    logger.info("%s: %s", name, match)
    tokens = np.zeros((adata.n_obs, max_tokens), dtype=token_dtype(vocabulary))
    for start, block in iter_tokens(counts_of(adata), match, vocabulary.divisors, max_tokens, layers=adata.layers):
        tokens[start : start + len(block)] = block
    return tokens, match


def token_dtype(vocabulary: Vocabulary) -> type[np.generic]:
    """Smallest type for the tokens of a vocabulary."""
    return np.uint16 if vocabulary.n_tokens <= 2**16 else np.int32


def groups_in_memory(sections: Sections, vocabulary: Vocabulary | None, config: PretrainConfig) -> TrainingData:
    """Data of stage 1: sections with genes; None: a vocabulary computed from all of them.

    Raises
    ------
    ValueError
        No section has genes, or one has fewer spots than a neighbourhood group.
    """
    chosen = as_sections(sections)
    if vocabulary is None:
        vocabulary = _vocabulary_of(chosen)
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
    """Data of stage 2: all sections, with the tiles of the model's image encoder."""
    width = model.gene.max_tokens
    found = [prepare(s, vocabulary, max_tokens=width, tower=model.image) for s in as_sections(sections)]
    return TrainingData(found, vocabulary, width, _identity_of(found, vocabulary))


def _vocabulary_of(sections: Sequence[SectionInput]) -> Vocabulary:
    """Compute the vocabulary of all sections with genes; errors name the section."""
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
