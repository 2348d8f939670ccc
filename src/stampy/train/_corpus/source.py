"""Sources of a corpus: sections, files of SpaVis-6M, or a data set of the hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from stampy._io.sections import Section, as_sections
from stampy.pp import Vocabulary
from stampy.train._corpus import hub, spavis, spavis_index
from stampy.train._corpus.hub import HubFolder
from stampy.train._corpus.records import CorpusSettings
from stampy.train._corpus.spavis import Slide

if TYPE_CHECKING:
    from stampy._io.sections import Sections

__all__ = ["CorpusSource", "SourceSection", "source_of"]

SourceSection: TypeAlias = Section | Slide


@dataclass(frozen=True)
class CorpusSource:
    """The sections and all that is known before they are read.

    Parameters
    ----------
    sections
        In the order of the corpus.
    settings
        Settings of the corpus.
    vocabulary
        None: to be made of the sections.
    skipped
        Files that can't be used -> why.
    digests
        Name -> hash of the source, where it is known without reading.
    remote
        Where the files come from, one after the other.
    """

    sections: Sequence[SourceSection]
    settings: CorpusSettings
    vocabulary: Vocabulary | None
    skipped: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    remote: HubFolder | None = None

    def batches(self, todo: Sequence[SourceSection], n_workers: int) -> Iterator[Sequence[SourceSection]]:
        """Sections that can be read now; what they were read from may be gone when the next ones are asked for."""
        if self.remote is None:
            yield todo
        else:
            yield from self.remote.batches(todo, _files_of, 1 if self.remote.tokens else n_workers)

    def clear(self) -> None:
        """Remove downloads."""
        if self.remote is not None:
            self.remote.clear()


def _files_of(section: SourceSection) -> set[Path]:
    if isinstance(section, Slide):
        return {part.file.path for part in section.parts}
    return {section.data} if isinstance(section.data, Path) else set()


def source_of(
    sections: Sections,
    out: Path,
    settings: CorpusSettings,
    vocabulary: Vocabulary | None,
    *,
    reader: object,
    skip: bool,
) -> CorpusSource:
    """Find out what is meant, and check it as far as that is cheap."""
    remote = hub.hub_folder(sections, out)
    files = None if remote is not None else spavis.files_of(sections)
    if remote is not None and not remote.tokens:
        return _sections_of_hub(remote, settings, vocabulary)
    if remote is None and files is None:
        return CorpusSource(as_sections(sections, all_there=False), settings, vocabulary)
    settings = spavis.settings_of(settings, reader)
    vocabulary = spavis.check_vocabulary(vocabulary)
    if remote is None:
        chosen, skipped = spavis_index.slides_of(files or [], settings, skip=skip)
        return CorpusSource(chosen, settings, vocabulary, skipped)
    given = [(remote.path(file), file.name, file.digest) for file in remote.files]
    chosen, skipped = spavis_index.slides_of(given, settings, skip=skip, opened=remote.opened)
    return CorpusSource(chosen, settings, vocabulary, skipped, remote=remote)


def _sections_of_hub(remote: HubFolder, settings: CorpusSettings, vocabulary: Vocabulary | None) -> CorpusSource:
    """A section for each .h5ad."""
    if vocabulary is None:
        raise ValueError(
            f"{remote.repository!r} has a file for each section. Say the vocabulary (genes.tsv): to make one would "
            "need all files twice."
        )
    names = _names(file.name for file in remote.files)
    found = [Section(data=remote.path(file), name=name) for file, name in zip(remote.files, names, strict=True)]
    digests = {name: f"{remote.repository} {file.digest}" for file, name in zip(remote.files, names, strict=True)}
    return CorpusSource(found, settings, vocabulary, digests=digests, remote=remote)


def _names(files: Iterable[str]) -> list[str]:
    """Without folder and ending, unless two would be alike."""
    files = list(files)
    short = [Path(name).stem for name in files]
    return short if len(set(short)) == len(short) else [name.removesuffix(".h5ad").replace("/", "_") for name in files]
