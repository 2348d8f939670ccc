"""The files of SpaVis-6M: what is in them, checked, and which rows are which section.

Shapes: G groups, N spots of a group, R rows (groups, or spots where there are none), L positions.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _files, _keys
from stampy._section.links import refuse_links_h5
from stampy.pp import Vocabulary
from stampy.pp._vocabulary import PUBLISHED

if TYPE_CHECKING:
    import h5py

    from stampy._io.sections import Sections
    from stampy.train._corpus.records import CorpusSettings, SectionRecord

__all__ = ["FAULTS", "LAYOUT", "Part", "Slide", "TokenFile", "check_vocabulary", "damaged_file", "files_of",
           "is_token_file", "number_of", "open_file", "settings_of", "slides_of", "warn_of_losses"]  # fmt: skip

logger = logging.getLogger(__name__)

LAYOUT = "spavis"  # of the settings
TOKENS, SLIDES, DATASETS = "tokenized_gene", "batch_slide_id", "batch_dataset_id"
PATCHES, REGIONS, CELLS = TILES = ("images", "images_aug", "pos_label")
_NAME = re.compile(r"tokens-(\d+)\.h5")
_FOLDERS = ("train", "val")
FAULTS = (OSError, RuntimeError, KeyError)  # what h5py raises for a damaged file


@dataclass(frozen=True)
class TokenFile:
    """One ``tokens-N.h5``."""

    path: Path
    name: str  # for messages
    n_rows: int
    grouped: bool  # rows are groups of spots
    tiles: bool
    identity: str  # tells whether the file changed
    ignored: tuple[str, ...]  # data sets that a corpus has no room for


@dataclass(frozen=True)
class Part:
    """The rows of one section in one file."""

    file: TokenFile
    runs: np.ndarray  # (m, 2) int64, start and stop of rows that follow each other

    @property
    def n_rows(self) -> int:
        """How many."""
        return int((self.runs[:, 1] - self.runs[:, 0]).sum())


@dataclass(frozen=True)
class Slide:
    """One section of SpaVis-6M: all rows with its slide id."""

    name: str
    parts: tuple[Part, ...]
    organ: str = ""
    platform: str = "Visium"

    @property
    def fingerprint(self) -> str:
        """Tells whether its source changed."""
        found = hashlib.sha256()
        for part in self.parts:
            found.update(f"{part.file.identity} {part.runs.shape}".encode())
            found.update(part.runs.tobytes())
        return found.hexdigest()[:16]


def files_of(sections: Sections) -> list[Path] | None:
    """The files in the order of their numbers where folders of SpaVis-6M, or such files, are meant; None otherwise.

    Of a folder those in ``train/``, else those in ``val/``, else those in itself.
    """
    items = [sections] if isinstance(sections, str | Path) else sections
    if not isinstance(items, Sequence):
        return None
    found = [_files_in(Path(item).expanduser()) if isinstance(item, str | Path) else [] for item in items]
    if not any(found):
        return None
    if not all(found):
        raise ValueError(
            "Files of SpaVis-6M keep the groups that they have, other sections get new ones: they can't share a "
            "corpus. Build one of each."
        )
    files = [path for paths in found for path in paths]
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        raise ValueError(
            f"Slide ids count within one folder of SpaVis-6M, found files in {_checks.shortlist(folders)}. Build a "
            "corpus of each."
        )
    return files


def is_token_file(name: str) -> bool:
    """Whether a path ends in tokens-N.h5."""
    return _NAME.fullmatch(name.rpartition("/")[2]) is not None


def number_of(name: str) -> int:
    """N of tokens-N.h5."""
    match = _NAME.fullmatch(name.rpartition("/")[2])
    return int(match[1]) if match else -1


def _files_in(path: Path) -> list[Path]:
    if _NAME.fullmatch(path.name) and path.is_file():
        return [path]
    if not path.is_dir():
        return []
    own = _numbered(path)
    there = [folder for folder in _FOLDERS if _numbered(path / folder)]
    if own and there:
        raise ValueError(
            f"{str(path)!r} has files tokens-N.h5 both in itself and in {there[0]!r}. Name those that are meant."
        )
    if len(there) == 2:
        logger.info("%s: val/ is left out, for evaluation; give the folder itself to build from it", path)
    return _numbered(path / there[0]) if there else own


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if is_token_file(path.name)), key=lambda path: number_of(path.name)
    )


# What says how groups and regions are drawn, with the values that it has where nothing is said.
_WITHOUT_EFFECT = {"draws": 1, "regions": 1, "max_distance": 5.0, "tile_um": _keys.TILE_UM, "seed": 0, "reader": None}


def settings_of(settings: CorpusSettings, reader: object) -> CorpusSettings:
    """Settings of the corpus; ValueError for those that have no effect here."""
    given = {**settings, "reader": reader}
    useless = [f"{k}={given[k]!r}" for k, default in _WITHOUT_EFFECT.items() if given[k] != default]
    if useless:
        raise ValueError(
            f"{', '.join(useless)}: no effect on files of SpaVis-6M, whose groups and regions are kept as they are. "
            "Leave it out."
        )
    return {**settings, "layout": LAYOUT, "max_distance": None}


def check_vocabulary(vocabulary: Vocabulary | None) -> Vocabulary:
    """The vocabulary, which must be said; a warning where it is not the published one."""
    if vocabulary is None:
        raise ValueError(
            "Files of SpaVis-6M hold token ids, not gene names: say what they mean by "
            "vocabulary=stampy.datasets.published_vocabulary()."
        )
    other = _files.digest(vocabulary.gene_ids) != PUBLISHED
    if other or (vocabulary.divisors != np.round(vocabulary.divisors)).any():
        what = f"{len(vocabulary):,} genes in their own order" if other else "its divisors are not whole numbers"
        _checks.warn(
            f"The vocabulary is not the published one ({what}). Ids in the files are taken as its rows + 30, which is "
            "right only if they were made with it. stampy.datasets.published_vocabulary() is that of SpaVis-6M."
        )
    return vocabulary


Opener = Callable[[Path, str], AbstractContextManager["h5py.File"]]


@contextmanager
def open_file(path: Path, name: str, *, cache_bytes: int = 2**20) -> Iterator[h5py.File]:
    """A file that is open; errors of HDF5 name it."""
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"{name} is missing: {str(path)!r}.")
    try:
        refuse_links_h5(path)
        with h5py.File(path, rdcc_nbytes=cache_bytes) as file:
            yield file
    except FAULTS as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise damaged_file(name, error) from error


def damaged_file(name: str, error: BaseException) -> ValueError:
    """An error to raise for a file that HDF5 can't read."""
    line = " ".join(str(error.args[0] if error.args else error).split())
    return ValueError(f"{name} is damaged, ends early, or is no HDF5 file ({line}). Get it again.")


def slides_of(
    files: Sequence[Path] | Sequence[tuple[Path, str, str]],
    settings: CorpusSettings,
    *,
    skip: bool = False,
    opened: Opener | None = None,
) -> tuple[list[Slide], dict[str, str]]:
    """The sections that the files hold, in the order in which they begin, and files that can't be used, with why.

    Parameters
    ----------
    files
        Paths; of files that are elsewhere the path to come, a name for messages, and a hash.
    settings
        Of the corpus.
    skip
        Go on where a file can't be used.
    opened
        Opens files that are elsewhere.

    Raises
    ------
    ValueError
        A file can't be used (unless it is to be skipped), or the files are of both stages.
    """
    parts: dict[str, list[Part]] = {}
    faults: dict[str, str] = {}
    known: list[TokenFile] = []
    for given in files:
        path, name, identity = given if isinstance(given, tuple) else (given, f"{given.parent.name}/{given.name}", "")
        try:
            file, of_file = _read_index(path, name, identity, settings, opened or open_file)
        except (ValueError, FileNotFoundError) as error:
            if not skip:
                raise
            faults[name] = str(error)
            continue
        known.append(file)
        for section, runs in of_file.items():
            parts.setdefault(section, []).append(Part(file, runs))
    _check_alike(known)
    _tell_ignored(known)
    return [Slide(name, tuple(found)) for name, found in parts.items()], faults


def _check_alike(files: Sequence[TokenFile]) -> None:
    for what, has in (("groups of spots (stage 1)", "grouped"), ("tiles", "tiles")):
        with_it = [file.name for file in files if getattr(file, has)]
        if with_it and len(with_it) < len(files):
            without = next(file.name for file in files if not getattr(file, has))
            raise ValueError(f"{with_it[0]} has {what}, {without} has none. Build a corpus of each kind.")


def _tell_ignored(files: Sequence[TokenFile]) -> None:
    ignored = sorted({name for file in files for name in file.ignored})
    if ignored:
        _checks.warn(
            f"Left out, as a corpus has no room for it: {_checks.shortlist(ignored)}. Labels and expression stay in "
            "the files."
        )


def _read_index(
    path: Path, name: str, identity: str, settings: CorpusSettings, opened: Opener
) -> tuple[TokenFile, dict[str, np.ndarray]]:
    """What a file is, and the runs of rows of each of its sections."""
    with opened(path, name) as file:
        n_rows, grouped = _check_tokens(file, name, settings["group_size"])
        tiles = _check_tiles(file, name, n_rows, grouped, settings)
        used = {TOKENS, SLIDES, DATASETS, *(TILES if tiles else ())}
        ignored = tuple(sorted(set(file) - used - (set(TILES) if settings["images"] is False else set())))
        found = TokenFile(path, name, n_rows, grouped, tiles, identity or _files.digest_of_file(path), ignored)
        group_size = settings["group_size"] if grouped else 1
        slide, dataset = (_ids(file, name, key, n_rows, group_size) for key in (SLIDES, DATASETS))
    if slide is None:
        _checks.warn(f"{name} has no {SLIDES!r}: all its rows are one section, named after the file.")
        return found, {f"{Path(name).parent.name}_{path.stem}": np.array([[0, n_rows]])}
    return found, {_section_name(*key): runs for key, runs in _runs(slide, dataset)}


def _check_tokens(file: h5py.File, name: str, group_size: int) -> tuple[int, bool]:
    tokens = _dataset(file, name, TOKENS)
    expected = f"whole numbers, (groups, {group_size}, L) for stage 1 or (rows, L) for stage 2"
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (2, 3) or 0 in tokens.shape:
        raise ValueError(f"{name}: {TOKENS!r} is {tokens.dtype} {tokens.shape}, expected {expected}.")
    if tokens.ndim == 3 and tokens.shape[1] != group_size:
        raise ValueError(
            f"{name}: {TOKENS!r} has groups of {tokens.shape[1]} spots, shape {tokens.shape}, expected {expected}."
        )
    return tokens.shape[0], tokens.ndim == 3


def _check_tiles(file: h5py.File, name: str, n_rows: int, grouped: bool, settings: Mapping[str, Any]) -> bool:
    """Whether the file has tiles that are wanted."""
    there, px = [key for key in TILES if key in file], settings["size_px"]
    if settings["images"] is False or (settings["images"] is None and not there):
        return False
    if grouped:
        raise ValueError(
            f"{name}: {there or 'no images'} beside groups of spots. Tiles belong to rows of single spots (stage 2); "
            "build with images=False for the groups alone."
        )
    for key in TILES:
        values = _dataset(file, name, key, "images=False leaves tiles out.")
        if key == CELLS:
            right = values.shape in ((n_rows,), (n_rows, 1)) and values.dtype.kind in "iu"
            expected = f"whole numbers ({n_rows},)"
        else:
            right = values.shape == (n_rows, 3, px, px) and values.dtype == np.uint8
            expected = f"uint8 {(n_rows, 3, px, px)}"
        if not right:
            raise ValueError(f"{name}: {key!r} is {values.dtype} {values.shape}, expected {expected}.")
    return True


def _dataset(file: h5py.File, name: str, key: str, remedy: str = "") -> h5py.Dataset:
    import h5py

    link = file.get(key, getlink=True)
    found = file.get(key) if isinstance(link, h5py.HardLink) else None  # another kind may lead out of the file
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError(f"{name} has no data set {key!r}. It has {_checks.shortlist(file)}. {remedy}".rstrip())
    return found


def _ids(file: h5py.File, name: str, key: str, n_rows: int, group_size: int) -> np.ndarray | None:
    """(R,) ids as text; one for each row, or for each spot of a group if these agree."""
    if key not in file:
        return None
    values = _dataset(file, name, key)
    sizes = {(n_rows,), (n_rows, 1)} | ({(n_rows, group_size), (n_rows * group_size,)} if group_size > 1 else set())
    if values.shape not in sizes or values.dtype.kind not in "iufSO":
        raise ValueError(f"{name}: {key!r} is {values.dtype} {values.shape}, expected one id a row, ({n_rows},).")
    ids = values.asstr()[:] if values.dtype.kind in "SO" else values[:]
    if ids.dtype.kind == "f":
        if not (np.isfinite(ids) & (ids == np.round(ids))).all():
            raise ValueError(f"{name}: {key!r} has ids that are no whole numbers.")
        ids = ids.astype(np.int64)
    ids = ids.reshape(n_rows, -1)
    changes = (ids != ids[:, :1]).any(axis=1)
    if changes.any():
        row = int(changes.argmax())
        raise ValueError(
            f"{name}, row {row}: {key!r} changes within a group: "
            f"{_checks.shortlist(dict.fromkeys(ids[row].tolist()))}. A group is of one section."
        )
    return ids[:, 0].astype(str)


def _runs(slide: np.ndarray, dataset: np.ndarray | None) -> Iterator[tuple[tuple[str, str | None], np.ndarray]]:
    """Of each section its key and its runs of rows (m, 2), in the order in which sections begin."""
    own = [np.unique(ids, return_inverse=True) for ids in ([slide] if dataset is None else [slide, dataset])]
    codes = own[0][1] if dataset is None else own[0][1] + own[1][1] * len(own[0][0])
    changes = np.flatnonzero(np.diff(codes)) + 1
    starts, stops = np.append(0, changes), np.append(changes, len(codes))
    by_code: dict[int, list[tuple[int, int]]] = {}
    for code, start, stop in zip(codes[starts].tolist(), starts.tolist(), stops.tolist(), strict=True):
        by_code.setdefault(code, []).append((start, stop))
    for runs in by_code.values():
        at = runs[0][0]
        yield (slide[at], None if dataset is None else dataset[at]), np.array(runs, dtype=np.int64)


def _section_name(slide: str, dataset: str | None) -> str:
    """Such as dataset3_slide17."""
    return f"slide{slide}" if dataset is None else f"dataset{dataset}_slide{slide}"


def warn_of_losses(records: Sequence[SectionRecord], max_tokens: int) -> None:
    """Tell once, for all sections that were written, what of them is cut or empty."""
    n_spots = sum(record["n_spots"] for record in records if "spavis" in record)
    own = [record["spavis"] for record in records if "spavis" in record]
    n_cut, n_empty = sum(record["n_cut"] for record in own), sum(record["n_empty"] for record in own)
    if n_cut:
        _checks.warn(
            f"{n_cut:,} of {n_spots:,} spots have more than max_tokens={max_tokens:,} tokens and keep the highest "
            f"ranks; 1,500 is what the paper trains on. Raise `max_tokens` to keep more."
        )
    if n_empty:
        _checks.warn(f"{n_empty:,} of {n_spots:,} spots have no token: they train the image losses alone.")
