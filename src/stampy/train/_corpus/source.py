"""Sources of a corpus: sections, files of SpaVis-6M, or a data set on the Hugging Face Hub, one file at a time."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from stampy import _checks
from stampy._files import sha256_of
from stampy._io.sections import SectionInput, as_sections
from stampy._section.outside_links import leads_out
from stampy.pp import Vocabulary
from stampy.train._corpus import spavis, spavis_index
from stampy.train._corpus.layout import CorpusSettings
from stampy.train._corpus.spavis import Slide, is_token_file, number_of
from stampy.train._corpus.spavis_index import SECTION_ERRORS, damaged_file

if TYPE_CHECKING:
    import h5py

    from stampy._io.sections import Sections

__all__ = ["DOWNLOADS", "CorpusSource", "HubFile", "HubFolder", "SourceSection", "hub_folder", "source_of"]

logger = logging.getLogger(__name__)

SourceSection: TypeAlias = SectionInput | Slide


@dataclass(frozen=True)
class CorpusSource:
    """Sections, and what is known about them before they are read.

    Parameters
    ----------
    sections
        Sections in the order of the corpus.
    settings
        Settings of the corpus.
    vocabulary
        None: computed from the sections.
    skipped
        Unusable files -> reason.
    digests
        Name -> hash of the source, if it is known without reading.
    remote
        Folder on the hub from which files are downloaded one after the other.
    """

    sections: Sequence[SourceSection]
    settings: CorpusSettings
    vocabulary: Vocabulary | None
    skipped: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    remote: HubFolder | None = None

    def batches(self, todo: Sequence[SourceSection], n_workers: int) -> Iterator[Sequence[SourceSection]]:
        """Yield sections that can be read now; their files may be deleted when the next ones are requested."""
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
    """Determine the kind of source, with checks that are cheap."""
    remote = hub_folder(sections, out)
    files = None if remote is not None else spavis.files_of(sections)
    if remote is not None and not remote.tokens:
        return _sections_of_hub(remote, settings, vocabulary)
    if remote is None and files is None:
        return CorpusSource(as_sections(sections, all_there=not skip), settings, vocabulary)
    settings = spavis.settings_of(settings, reader)
    vocabulary = spavis.check_vocabulary(vocabulary)
    if remote is None:
        chosen, skipped = spavis_index.slides_of(files or [], settings, skip=skip)
        return CorpusSource(chosen, settings, vocabulary, skipped)
    given = [(remote.path(file), file.name, file.digest) for file in remote.files]
    chosen, skipped = spavis_index.slides_of(given, settings, skip=skip, opened=remote.opened)
    return CorpusSource(chosen, settings, vocabulary, skipped, remote=remote)


def _sections_of_hub(remote: HubFolder, settings: CorpusSettings, vocabulary: Vocabulary | None) -> CorpusSource:
    """One section per .h5ad file."""
    if vocabulary is None:
        raise ValueError(
            f"{remote.repository!r} has a file for each section. Pass the vocabulary (genes.tsv), because computing "
            "one would read all files twice."
        )
    names = _names(file.name for file in remote.files)
    found = [SectionInput(data=remote.path(file), name=name) for file, name in zip(remote.files, names, strict=True)]
    digests = {name: f"{remote.repository} {file.digest}" for file, name in zip(remote.files, names, strict=True)}
    return CorpusSource(found, settings, vocabulary, digests=digests, remote=remote)


def _names(files: Iterable[str]) -> list[str]:
    """File names without folder and extension, unless these are ambiguous."""
    files = list(files)
    short = [Path(name).stem for name in files]
    return short if len(set(short)) == len(short) else [name.removesuffix(".h5ad").replace("/", "_") for name in files]


T = TypeVar("T")

PREFIX = "hf:"
DOWNLOADS = "downloads"  # subfolder of the corpus
_ADDRESS = re.compile(r"hf:([\w.-]+/[\w.-]+)(?:@([^/:]+))?(?:/(.+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART_BYTES = 2**20  # bytes per read of a file on the hub


@dataclass(frozen=True)
class HubFile:
    """A file of a data set at one commit."""

    name: str  # path in the repository
    n_bytes: int
    digest: str  # SHA-256 of the content, or the git hash of a small file


@dataclass(frozen=True)
class HubFolder:
    """Folder of a data set at one commit, and the files in it that are sections."""

    repository: str
    commit: str
    files: tuple[HubFile, ...]
    place: Path  # local folder for downloads

    @property
    def tokens(self) -> bool:
        """Whether the layout is that of SpaVis-6M."""
        return is_token_file(self.files[0].name)

    def path(self, file: HubFile) -> Path:
        """Local path of the downloaded file."""
        return self.place / file.name

    @contextmanager
    def opened(self, path: Path, name: str) -> Iterator[h5py.File]:
        """Open a file on the hub; only the parts that are read are transferred."""
        import h5py
        from huggingface_hub import HfFileSystem

        address = f"datasets/{self.repository}@{self.commit}/{path.relative_to(self.place).as_posix()}"
        try:
            with (
                _hub_errors(self.repository),
                HfFileSystem().open(address, "rb", block_size=_PART_BYTES) as remote,
                h5py.File(remote) as file,
            ):
                yield file
        except SECTION_ERRORS as error:
            if isinstance(error, ConnectionError | PermissionError | FileNotFoundError):
                raise
            raise damaged_file(name, error) from error

    def fetch(self, file: HubFile) -> Path:
        """Download a file unless it exists, and check its hash; ValueError if the hash differs."""
        from huggingface_hub import hf_hub_download

        logger.info("%s: %s (%.1f GB)", self.repository, file.name, file.n_bytes / 1e9)
        with _hub_errors(self.repository):
            path = Path(hf_hub_download(self.repository, file.name, repo_type="dataset", revision=self.commit,
                                        local_dir=self.place))  # fmt: skip
        found = sha256_of(path) if len(file.digest) == 64 else _git_hash(path)
        if found != file.digest:
            path.unlink()
            raise ValueError(
                f"{file.name} of {self.repository!r} came with the hash {found}, expected {file.digest}: it was "
                "removed. Build again."
            )
        return path

    def batches(self, todo: Sequence[T], files_of: Callable[[T], set[Path]], at_once: int) -> Iterator[list[T]]:
        """Yield sections with their files on disk; a file is deleted once no remaining section needs it.

        Parameters
        ----------
        todo
            Sections to write.
        files_of
            Local paths of the files of a section.
        at_once
            Number of files to download before sections are yielded.
        """
        waiting = {id(section): (section, files_of(section)) for section in todo}
        here: set[Path] = set()
        needed = [file for file in self.files if any(self.path(file) in paths for _, paths in waiting.values())]
        for start in range(0, len(needed), at_once):
            here |= {self.fetch(file) for file in needed[start : start + at_once]}
            ready = [key for key, (_, paths) in waiting.items() if paths <= here]
            yield [waiting.pop(key)[0] for key in ready]
            for path in here - {path for _, paths in waiting.values() for path in paths}:
                path.unlink()
                here.discard(path)
        if waiting:
            raise RuntimeError(
                f"{len(waiting)} sections of {self.repository!r} found no files among those that were downloaded to "
                f"{str(self.place)!r}. Build again. If the error persists, report it."
            )

    def clear(self) -> None:
        """Delete the remaining downloads."""
        shutil.rmtree(self.place, ignore_errors=True)


def hub_folder(sections: Sections, out: Path) -> HubFolder | None:
    """Resolve ``hf:org/name@COMMIT`` (``/folder``); None for anything else.

    Raises
    ------
    ValueError
        The commit is missing, or the folder has neither ``tokens-N.h5`` nor .h5ad.
    ConnectionError, PermissionError
        The hub cannot be reached, or denies access.
    """
    items = [sections] if isinstance(sections, str) else sections
    if not isinstance(items, Sequence) or not any(isinstance(i, str) and i.startswith(PREFIX) for i in items):
        return None
    if len(items) > 1:
        raise ValueError(f"A data set of the hub ({PREFIX}...) is a separate corpus. Pass it alone.")
    match = _ADDRESS.fullmatch(items[0])
    if match is None or not _COMMIT.fullmatch(match[2] or ""):
        raise ValueError(
            f"{items[0]!r}: expected {PREFIX}org/name@COMMIT, with the 40 digits of a commit, so that the corpus "
            "records its source. The page of the data set lists commits under 'Files', 'History'."
        )
    repository, commit, folder = match[1], match[2], (match[3] or "").strip("/")
    files = _chosen(_listed(repository, commit), folder, repository)
    return HubFolder(repository, commit, tuple(files), (out / DOWNLOADS).resolve())  # as in the client's paths


def _listed(repository: str, commit: str) -> list[HubFile]:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _hub_errors(repository):
        HfApi().dataset_info(repository, revision=commit, timeout=_TIMEOUT_S)  # tried once; a tree is retried for 23 s
        found = HfApi().list_repo_tree(repository, repo_type="dataset", revision=commit, recursive=True)
        files = [file for file in found if isinstance(file, RepoFile)]
    return [HubFile(f.path, f.size, f.lfs.sha256 if f.lfs else f.blob_id) for f in files if not leads_out(f.path)]


def _chosen(files: Sequence[HubFile], folder: str, repository: str) -> list[HubFile]:
    """Token files in train/, val/ or the folder itself, else all .h5ad."""
    by_parent: dict[str, list[HubFile]] = {}
    for file in files:
        if is_token_file(file.name):
            by_parent.setdefault(_parent(file.name), []).append(file)
    for name in ("train", "val", ""):
        found = by_parent.get("/".join(part for part in (folder, name) if part))
        if found:
            return sorted(found, key=lambda file: number_of(file.name))
    inside = [f for f in files if f.name.endswith(".h5ad") and (not folder or f.name.startswith(f"{folder}/"))]
    if not inside:
        others = f" Files of tokens lie in {_checks.shortlist(by_parent)}." if by_parent else ""
        where = f"in {folder!r}" if folder else "at its top"
        raise ValueError(
            f"{repository!r} has neither tokens-N.h5 nor .h5ad {where}.{others} A folder is named "
            f"by {PREFIX}{repository}@COMMIT/FOLDER; other data have to be downloaded first."
        )
    return inside


def _parent(name: str) -> str:
    parent = PurePosixPath(name).parent.as_posix()
    return "" if parent == "." else parent


def _git_hash(path: Path) -> str:
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


_TIMEOUT_S = 10.0
_CLIENTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")  # HTTP libraries of the hub's client, by version


@contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Add remedies to errors of the hub."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ConnectionError(f"The hub cannot be reached for {repository!r}: {_first_line(error)}") from error
    except (RevisionNotFoundError, EntryNotFoundError) as error:
        raise ValueError(f"The hub has no such commit or file of {repository!r}: {_first_line(error)}") from error
    except RepositoryNotFoundError as error:  # includes GatedRepoError
        raise PermissionError(
            f"The hub has no data set {repository!r}, or requires a token or access: accept its terms on its page "
            "and log in with `hf auth login`."
        ) from error
    except HfHubHTTPError as error:
        raise ConnectionError(f"The hub did not answer for {repository!r}: {_first_line(error)} Try again.") from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _CLIENTS:
            raise
        raise ConnectionError(f"The hub cannot be reached for {repository!r}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
