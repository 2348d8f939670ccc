"""Files of SpaVis-6M: their locations, names and tables."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stampy import _checks, _files, _keys
from stampy.pp import Vocabulary
from stampy.pp._vocabulary import PUBLISHED

if TYPE_CHECKING:
    from stampy._io.sections import Sections
    from stampy.train._corpus.layout import CorpusSettings, SectionRecord

__all__ = ["LAYOUT", "Part", "Slide", "TokenFile", "check_vocabulary", "files_of", "is_token_file", "number_of",
           "settings_of", "warn_of_losses"]  # fmt: skip

logger = logging.getLogger(__name__)

LAYOUT = "spavis"  # value of `layout` in the settings
TOKENS, SLIDES, DATASETS = "tokenized_gene", "batch_slide_id", "batch_dataset_id"
PATCHES, REGIONS, CELLS = TILES = ("images", "images_aug", "pos_label")
_NAME = re.compile(r"tokens-(\d+)\.h5")
_FOLDERS = ("train", "val")


@dataclass(frozen=True)
class TokenFile:
    """A file ``tokens-N.h5``."""

    path: Path
    name: str  # for messages
    n_rows: int
    grouped: bool  # rows are groups of spots
    tiles: bool
    identity: str  # changes if the file changes
    ignored: tuple[str, ...]  # data sets that are not stored in a corpus


@dataclass(frozen=True)
class Part:
    """Rows of one section in one file."""

    file: TokenFile
    runs: np.ndarray  # (m, 2) int64, start and stop of consecutive rows

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return int((self.runs[:, 1] - self.runs[:, 0]).sum())


@dataclass(frozen=True)
class Slide:
    """One section of SpaVis-6M: all rows with the same slide id."""

    name: str
    parts: tuple[Part, ...]
    organ: str = ""
    platform: str = "Visium"

    @property
    def fingerprint(self) -> str:
        """Fingerprint that shows whether the source changed."""
        found = hashlib.sha256()
        for part in self.parts:
            found.update(f"{part.file.identity} {part.runs.shape}".encode())
            found.update(part.runs.tobytes())
        return found.hexdigest()[:16]


def files_of(sections: Sections) -> list[Path] | None:
    """Files in numerical order if `sections` are folders or files of SpaVis-6M; otherwise None.

    For a folder: the files in ``train/``, else those in ``val/``, else those in the folder itself.
    """
    items = [sections] if isinstance(sections, str | Path) else sections
    if not isinstance(items, Sequence):
        return None
    found = [_files_in(Path(item).expanduser()) if isinstance(item, str | Path) else [] for item in items]
    if not any(found):
        return None
    if not all(found):
        raise ValueError(
            "Groups of SpaVis-6M are kept, other sections get new groups: they cannot be in one corpus. Build one "
            "corpus of each."
        )
    files = [path for paths in found for path in paths]
    folders = sorted({str(path.parent) for path in files})
    if len(folders) > 1:
        raise ValueError(
            "Slide ids are unique only within one folder of SpaVis-6M, found files in "
            f"{_checks.shortlist(folders)}. Build a "
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
        raise ValueError(f"{str(path)!r} has files tokens-N.h5 both in itself and in {there[0]!r}. Name one of them.")
    if len(there) == 2:
        logger.info("%s: val/ is skipped, for evaluation; pass this folder to build from it", path)
    files = _numbered(path / there[0]) if there else own
    numbers = {number_of(file.name) for file in files}
    if absent := sorted(set(range(min(numbers, default=0), max(numbers, default=0))) - numbers):
        _checks.warn(
            f"{str(files[0].parent)!r} has {len(files)} files, but not {len(absent)} with numbers between theirs: "
            f"{_checks.shortlist(f'tokens-{n}.h5' for n in absent)}. Their spots are missing from the corpus. If the "
            "download was interrupted, repeat it and build again."
        )
    return files


def _numbered(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(
        (path for path in folder.iterdir() if is_token_file(path.name)), key=lambda path: number_of(path.name)
    )


# Settings of groups and regions that have no effect here, with their defaults.
_WITHOUT_EFFECT = {"draws": 1, "regions": 1, "max_distance": 5.0, "tile_um": _keys.TILE_UM, "seed": 0, "reader": None}


def settings_of(settings: CorpusSettings, reader: object) -> CorpusSettings:
    """Settings of the corpus; ValueError for settings that have no effect here."""
    given = {**settings, "reader": reader}
    useless = [f"{k}={given[k]!r}" for k, default in _WITHOUT_EFFECT.items() if given[k] != default]
    if useless:
        raise ValueError(
            f"{', '.join(useless)}: no effect on files of SpaVis-6M, whose groups and regions are kept. Omit it."
        )
    return {**settings, "layout": LAYOUT, "max_distance": None}


def check_vocabulary(vocabulary: Vocabulary | None) -> Vocabulary:
    """Return the vocabulary, which is required; warn if it is not the published one."""
    if vocabulary is None:
        raise ValueError(
            "Files of SpaVis-6M contain token ids, not gene names: pass their "
            "vocabulary=stampy.datasets.published_vocabulary()."
        )
    other = _files.digest(vocabulary.gene_ids) != PUBLISHED
    if other or (vocabulary.divisors != np.round(vocabulary.divisors)).any():
        what = f"{len(vocabulary):,} genes in their own order" if other else "its divisors are not integers"
        _checks.warn(
            f"The vocabulary is not the published one ({what}). Ids in the files are interpreted as its rows + 30, "
            "which is correct only if they were made with it. stampy.datasets.published_vocabulary() is that of "
            "SpaVis-6M."
        )
    return vocabulary


def warn_of_losses(records: Sequence[SectionRecord], max_tokens: int) -> None:
    """Warn once, over all written sections, about tokens cut and spots without tokens."""
    n_spots = sum(record["n_spots"] for record in records if "spavis" in record)
    own = [record["spavis"] for record in records if "spavis" in record]
    n_cut, n_empty = sum(record["n_cut"] for record in own), sum(record["n_empty"] for record in own)
    if n_cut:
        _checks.warn(
            f"{n_cut:,} of {n_spots:,} spots have more than max_tokens={max_tokens:,} tokens and keep the highest "
            "ranks; the paper uses 1,500. Increase `max_tokens` to keep more."
        )
    if n_empty:
        _checks.warn(f"{n_empty:,} of {n_spots:,} spots have no token: they contribute only to the image losses.")
