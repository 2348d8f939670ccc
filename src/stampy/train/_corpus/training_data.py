"""Training data of a run from a corpus, checked against settings and model."""

from __future__ import annotations

from typing import Any, Literal

from stampy import _checks
from stampy.models import StampConfig
from stampy.pp import Vocabulary
from stampy.train._config import PretrainConfig
from stampy.train._corpus.corpus import Corpus
from stampy.train._corpus.section_reader import StoredSection
from stampy.train._data import TrainingData

__all__ = ["check_corpus", "groups_on_disk", "pairs_on_disk"]


def groups_on_disk(corpus: Corpus, vocabulary: Vocabulary | None, config: PretrainConfig) -> TrainingData:
    """Data of stage 1: sections with neighbourhood groups.

    Raises
    ------
    ValueError
        The corpus has another vocabulary, other groups or fewer tokens than required.
    """
    if vocabulary is not None:
        _check_vocabulary(corpus, vocabulary)
    _check_groups(corpus, config)
    _check_tokens(corpus, config.max_tokens)
    sections = [s for s in corpus.sections if any(s.n_groups)]
    if not sections:
        raise ValueError(f"The corpus {str(corpus.path)!r} has no neighbourhood group for training.")
    _warn_of_skipped(corpus, sections, "neighbourhood groups", 1)
    return _data(corpus, sections, config.max_tokens)


def pairs_on_disk(corpus: Corpus, vocabulary: Vocabulary, model: StampConfig) -> TrainingData:
    """Data of stage 2: sections with tiles.

    Raises
    ------
    ValueError
        The corpus has no tiles, or its tiles, tokens or vocabulary do not match the model.
    """
    _check_vocabulary(corpus, vocabulary)
    if model.image is not None:
        for name in ("tile_um", "size_px"):
            wanted, found = getattr(model.image, name), corpus.settings[name]
            reduced = name == "size_px" and model.image.surroundings and found > wanted  # reduced by the encoder itself
            if wanted != found and not reduced:
                raise ValueError(
                    f"The corpus {str(corpus.path)!r} has tiles of {name}={found}, the model takes {wanted}. Build one "
                    f"with {name}={wanted}."
                )
    sections = [s for s in corpus.sections if s.has_tiles]
    if not sections:
        raise ValueError(f"The corpus {str(corpus.path)!r} has no tiles. Build one with `images=True`.")
    _warn_of_skipped(corpus, sections, "tiles", 2)
    _check_tokens(corpus, model.gene.max_tokens)
    return _data(corpus, sections, model.gene.max_tokens)


def _warn_of_skipped(corpus: Corpus, used: list[StoredSection], what: str, stage: int) -> None:
    """Warn about the sections of a corpus that a stage cannot use."""
    without = [s.name for s in corpus.sections if s not in used]
    if without:
        _checks.warn(
            f"Stage {stage} uses only {len(used)} of the {len(corpus.sections)} sections of the corpus: "
            f"{_checks.shortlist(without)} have no {what}."
        )


def check_corpus(corpus: Corpus, vocabulary: Vocabulary, max_tokens: int) -> None:
    """Raise ValueError if the corpus cannot be used to evaluate a model with this vocabulary and number of tokens."""
    _check_vocabulary(corpus, vocabulary)
    _check_tokens(corpus, max_tokens)


def _data(corpus: Corpus, sections: list[StoredSection], max_tokens: int) -> TrainingData:
    identity: dict[str, Any] = {"corpus": corpus.digest, "vocabulary": corpus.vocabulary.digest}
    return TrainingData(
        sections, corpus.vocabulary, max_tokens, identity, corpus=corpus.path,
        draws=corpus.settings["draws"], regions=corpus.settings["regions"],
    )  # fmt: skip


def _check_groups(corpus: Corpus, config: PretrainConfig) -> None:
    kept = corpus.settings["max_distance"] is None
    if kept and config.max_distance != PretrainConfig().max_distance:
        raise ValueError(
            f"max_distance={config.max_distance} has no effect: the corpus {str(corpus.path)!r} keeps the groups of "
            "its source. Omit it."
        )
    names: tuple[Literal["group_size", "max_distance"], ...] = ("group_size", "max_distance")
    for name in names[:1] if kept else names:
        if corpus.settings[name] != getattr(config, name):
            raise ValueError(
                f"The corpus {str(corpus.path)!r} was built with {name}={corpus.settings[name]}, the settings have "
                f"{getattr(config, name)}. Change the settings, or build another corpus."
            )


def _check_vocabulary(corpus: Corpus, vocabulary: Vocabulary) -> None:
    if vocabulary.digest != corpus.vocabulary.digest:
        raise ValueError(
            f"The corpus {str(corpus.path)!r} was built with another vocabulary ({len(corpus.vocabulary)} genes) than "
            f"the model's ({len(vocabulary)} genes). Build one with `vocabulary=` the model's genes.tsv."
        )


def _check_tokens(corpus: Corpus, max_tokens: int) -> None:
    if corpus.settings["max_tokens"] < max_tokens:
        raise ValueError(
            f"The corpus {str(corpus.path)!r} keeps {corpus.settings['max_tokens']} tokens of a spot, the model takes "
            f"{max_tokens}. Lower `max_tokens`, or build another corpus."
        )
