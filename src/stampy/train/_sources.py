"""What a run trains on: sections in memory, or a corpus on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stampy.models import StampConfig
from stampy.pp import Vocabulary
from stampy.train._corpus.corpus import Corpus, as_corpus
from stampy.train._corpus.samplers import CorpusGroupSampler, CorpusPairSampler, some_rows

from ._config import AlignConfig, PretrainConfig
from ._samplers import GroupSampler, PairSampler
from ._sections import TrainingSection, as_sections, identity_of, prepare

__all__ = ["GroupSource", "group_source", "pair_source"]


class GroupSource(NamedTuple):
    """Of stage 1."""

    vocabulary: Vocabulary
    sampler: GroupSampler | CorpusGroupSampler
    identity: str  # says what data a run is about
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
        return GroupSource(corpus.vocabulary, sampler, _identity(corpus), lambda: sampler.some_sections(config.seed))
    chosen = as_sections(sections)
    if vocabulary is None:
        vocabulary = Vocabulary.from_sections(s.data for s in chosen)
    prepared = [prepare(s, vocabulary, max_tokens=config.max_tokens) for s in chosen]
    prepared = [s for s in prepared if s.tokens.any()]  # sections without genes have nothing to say here
    identity = _identity_of(prepared, vocabulary)
    return GroupSource(vocabulary, GroupSampler(prepared, config), identity, lambda: prepared)


def pair_source(
    sections: Any, vocabulary: Vocabulary, config: AlignConfig, model: StampConfig
) -> tuple[PairSampler | CorpusPairSampler, str, Callable[[], np.ndarray]]:
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


def _identity(corpus: Corpus) -> str:
    return f"corpus {corpus.digest}"


def _identity_of(prepared: list[TrainingSection], vocabulary: Vocabulary) -> str:
    return f"{len(vocabulary)} genes; {identity_of(prepared)}"


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
