"""Preparing sections for training: their tokens and tiles."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._files import digest_of_arrays
from stampy._io.sections import Section, as_sections, of_section
from stampy._section.image_checks import doubts_of
from stampy._section.section import places_of, side_by_side
from stampy.pp import Vocabulary
from stampy.pp._counts import counts_of
from stampy.pp._genes.means import add_sums, means_of, section_sums
from stampy.pp._tiles import TileSource
from stampy.pp._tokens import iter_tokens

from ._data import MemorySection, TrainingData

if TYPE_CHECKING:
    from anndata import AnnData

    from stampy._io.sections import Sections
    from stampy.models import ImageConfig, StampConfig
    from stampy.pp._genes.match_report import GeneMatch

    from ._config import PretrainConfig

__all__ = [
    "groups_in_memory",
    "identity_of",
    "pairs_in_memory",
    "prepare",
    "ranked",
    "token_dtype",
    "without_tokens",
]

logger = logging.getLogger(__name__)


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
                _checks.warn(f"{doubt} It is trained on all the same; leave it out or give its image.")
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
        f"{n:,} of {len(tokens):,} spots have no counts of genes in the vocabulary. Losses that need genes leave them "
        "out; drop them if they lie outside of tissue."
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
            f"{len(left_out)} of the sections have no genes of the vocabulary and no part in stage 1: "
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
