"""What a run trains on: sections in memory, or a corpus on disk."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stampy import _checks, _utils
from stampy.models import StampConfig
from stampy.pp import Vocabulary
from stampy.pp._corpus_means import add_sums, means_of, section_sums
from stampy.train._corpus.corpus import Corpus, as_corpus
from stampy.train._corpus.samplers import CorpusGroupSampler, CorpusPairSampler, some_rows

from ._config import AlignConfig, PretrainConfig
from ._samplers import GroupSampler, PairSampler
from ._sections import Section, TrainingSection, as_sections, identity_of, of_section, prepare

__all__ = ["GroupSource", "group_source", "pair_source"]


class GroupSource(NamedTuple):
    """Of stage 1."""

    vocabulary: Vocabulary
    sampler: GroupSampler | CorpusGroupSampler
    identity: dict[str, Any]  # says what data a run is about
    dropped: dict[str, tuple[int, int]]  # by section, spots that are in no group of the first draw, and all spots
    prepared: Callable[[], list[TrainingSection]]  # with genes; of a large corpus, some of them


def group_source(sections: Any, vocabulary: Vocabulary | str | Path | None, config: PretrainConfig) -> GroupSource:
    """Vocabulary and batches for stage 1."""
    if vocabulary is not None and not isinstance(vocabulary, Vocabulary):
        vocabulary = Vocabulary.load(vocabulary)
    corpus = as_corpus(sections)
    if corpus is not None:
        if vocabulary is not None:
            _check_vocabulary(corpus, vocabulary)
        sampler = CorpusGroupSampler(corpus, config)
        prepared = partial(sampler.some_sections, config.seed)
        return GroupSource(corpus.vocabulary, sampler, _identity(corpus), sampler.dropped(), prepared)
    chosen = as_sections(sections)
    if vocabulary is None:
        vocabulary = _made_of(chosen)
    found = [prepare(s, vocabulary, max_tokens=config.max_tokens) for s in chosen]
    for section in found:
        with of_section(section.name):
            if section.tokens.any():
                _checks.enough_spots({section.name: len(section.xy)}, config.group_size)
    with_genes = [s for s in found if s.tokens.any()]
    _tell_of_left_out([s.name for s in found if not s.tokens.any()])
    if not with_genes:
        raise ValueError(f"No section has genes of the vocabulary: {_checks.shortlist(s.name for s in found)}.")
    sampler = GroupSampler(with_genes, config)
    return GroupSource(vocabulary, sampler, _identity_of(with_genes, vocabulary), sampler.dropped(), lambda: with_genes)


def _made_of(sections: list[Section]) -> Vocabulary:
    """A vocabulary of all sections with genes; errors name the section."""
    sums = None
    for section in sections:
        with of_section(section.name):
            table = _utils.table_of(section.read())
            _checks.not_empty(table, genes=False)
            if table.n_vars:
                sums = add_sums(sums, section_sums(table, None, repr(section.name)))
    if sums is None:
        raise ValueError(f"No section has genes: {_checks.shortlist(s.name for s in sections)}.")
    return Vocabulary._from_means(means_of(sums))


def _tell_of_left_out(names: list[str]) -> None:
    if names:
        _checks.warn(
            f"{len(names)} of the sections have no genes of the vocabulary and no part in stage 1: "
            f"{_checks.shortlist(names)}."
        )


def pair_source(
    sections: Any, vocabulary: Vocabulary, config: AlignConfig, model: StampConfig
) -> tuple[PairSampler | CorpusPairSampler, dict[str, Any], Callable[[], np.ndarray]]:
    """Batches for stage 2, what says what data a run is about, and patches of some spots of every section."""
    corpus = as_corpus(sections)
    if corpus is not None:
        _check_vocabulary(corpus, vocabulary)
        _check_tiles(corpus, model)
        sampler = CorpusPairSampler(corpus, config, max_tokens=model.gene.max_tokens)
        return sampler, _identity(corpus), lambda: sampler.some_patches(config.seed)
    prepared = [
        prepare(s, vocabulary, max_tokens=model.gene.max_tokens, tower=model.image) for s in as_sections(sections)
    ]

    def patches() -> np.ndarray:
        return np.concatenate([s.tiles.read(some_rows(len(s.xy), config.seed)) for s in prepared])

    return PairSampler(prepared, config), _identity_of(prepared, vocabulary), patches


def _identity(corpus: Corpus) -> dict[str, Any]:
    return {"corpus": corpus.digest, "vocabulary": corpus.vocabulary.digest}


def _identity_of(prepared: list[TrainingSection], vocabulary: Vocabulary) -> dict[str, Any]:
    return {"vocabulary": vocabulary.digest, "sections": identity_of(prepared)}


def _check_vocabulary(corpus: Corpus, vocabulary: Vocabulary) -> None:
    if vocabulary.digest != corpus.vocabulary.digest:
        raise ValueError(
            f"The corpus {str(corpus.path)!r} was built with another vocabulary ({len(corpus.vocabulary)} genes) than "
            f"the model's ({len(vocabulary)} genes). Build one with `vocabulary=` the model's genes.tsv."
        )


def _check_tiles(corpus: Corpus, model: StampConfig) -> None:
    for name in ("tile_um", "size_px"):
        wanted, found = getattr(model.image, name), corpus.settings[name]
        if wanted != found:
            raise ValueError(
                f"The corpus {str(corpus.path)!r} has tiles of {name}={found}, the model takes {wanted}. Build one "
                f"with {name}={wanted}."
            )
