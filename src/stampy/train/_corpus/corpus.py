"""Corpus: many sections in one store on disk, read by training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import pandas as pd

from stampy import _checks, _keys
from stampy._io.sections import SectionInput, as_sections, file_name
from stampy._settings import DEFAULT_SEED
from stampy._utils import chosen_seed
from stampy.pp import Vocabulary
from stampy.train._corpus.build import FORMAT, GENES, MANIFEST, SETTINGS, build, digest_of
from stampy.train._corpus.layout import CorpusSettings, Manifest
from stampy.train._corpus.section_reader import StoredSection, changed_files, wrong_sizes
from stampy.train._corpus.section_writer import Reader
from stampy.train._corpus.shards import damaged_corpus

if TYPE_CHECKING:
    from stampy._io.sections import Sections

__all__ = ["Corpus", "as_corpus", "corpus_or_sections"]


class Corpus:
    """Sections on disk, ready for training: tokens in the order of neighbourhood groups, tiles, coordinates.

    The store is a sharded zarr v3 hierarchy with one group per section, ``manifest.json`` (settings, sections, size and
    SHA-256 of every file) and ``genes.tsv`` (the vocabulary). Reading it needs neither anndata nor scanpy nor zarr.
    Opening a corpus checks the size of every file. Only the data of the current batches are in memory.

    Parameters
    ----------
    path
        The folder that `Corpus.build` wrote.

    Raises
    ------
    FileNotFoundError
        There is no corpus, or its build is not complete.
    ValueError
        It has a different format version, or files are missing or truncated.

    Examples
    --------
    >>> import numpy as np, stampy, tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> section = stampy.datasets.toy(n_spots=60)
    >>> corpus = Corpus.build(section, folder.name, max_tokens=64, size_px=32, n_workers=1, progress=False)
    >>> corpus
    Corpus(1 section, 60 spots, 754 genes, 60 spots with tiles)
    >>> corpus.section("section 0").patches(np.array([3, 5])).shape
    (2, 32, 32, 3)
    >>> folder.cleanup()
    """

    def __init__(self, path: str | Path):
        self.path = _checks.existing(path, what="corpus")
        self.manifest = _manifest(self.path)
        for record in self.manifest["sections"]:
            for file, problem in wrong_sizes(self.path, record):
                raise damaged_corpus(file, problem)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)  # only the path is sent to other processes

    @classmethod
    def build(
        cls,
        sections: Sections,
        out: str | Path,
        *,
        vocabulary: Vocabulary | str | Path | None = None,
        max_tokens: int = _keys.MAX_TOKENS,
        group_size: int = 9,
        max_distance: float = 5.0,
        draws: int = 1,
        images: bool | None = None,
        tile_um: float = _keys.TILE_UM,
        size_px: int = _keys.TILE_PX,
        regions: int = 1,
        codec: Literal["jpeg", "jpegxl", "zstd"] = "jpeg",
        quality: int = 90,
        seed: int = DEFAULT_SEED,
        n_workers: int | None = None,
        scheduler: str | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        reader: Reader | None = None,
        progress: bool = True,
    ) -> Self:
        """Build a corpus, or continue an interrupted build.

        Sections that are complete in `out` and whose source has not changed are kept. Repeating the call therefore
        continues after a crash, adds new sections, and repairs damaged sections. The result does not depend on the
        number of workers.

        Parameters
        ----------
        sections
            Paths of .h5ad files, .zarr (AnnData or SpatialData) and Space Ranger folders, manifests (.tsv with the
            columns path, name, image, um_per_px, spot_um, organ, platform, species, patient, study, or such a table),
            AnnData, SpatialData or `SectionInput`; one or a list, with any gene panels. A section without genes (0
            columns) contributes only its image. Or a folder of SpaVis-6M (``tokens-N.h5`` in ``train/``, ``val/`` or
            the folder itself): one section per slide id, with the tokens, groups, tiles and regions of the files. Or
            ``"hf:org/name@COMMIT"``, a data set on the hub with such files or with .h5ad files, read one at a time.
        out
            Folder of the corpus.
        vocabulary
            None: computed from the sections in a first pass. For SpaVis-6M, pass the vocabulary of the token ids:
            `stampy.datasets.published_vocabulary()`.
        max_tokens
            Maximum number of tokens per spot.

        group_size, max_distance
            As for `stampy.pp.neighborhoods`. Groups of SpaVis-6M are kept, so `max_distance`, `draws`, `regions`,
            `tile_um`, `seed` and `reader` would have no effect and raise an error.
        draws
            Number of draws of groups; each epoch uses the next draw. Each draw takes the disk space of the tokens
            again.
        images
            None: store tiles of the sections with an image. True: sections without an image raise an error. False: no
            tiles.
        tile_um, size_px
            Edge of a patch in µm and px. A region is three times as wide, at the same number of px.
        regions
            Regions per spot, each with the patch in a random cell of the nine.
        codec, quality
            Compression of the tiles: JPEG, JPEG XL (a quality of 100 is lossless) or zstd (lossless, `quality` has no
            effect).
        seed
            Seed for groups and cells.
        n_workers
            Processes on this machine; None: one per core. With 1, no process is started. With more, a script must call
            this function under ``if __name__ == "__main__":``.
        scheduler
            Address of a dask.distributed cluster to use instead, such as ``"tcp://node1:8786"``. Its workers must see
            the sections and `out` under the same paths.
        on_error
            ``"skip"``: skip a section that cannot be used, with a warning and a line in the manifest. ``"raise"``:
            stop. A full disk always stops the build.
        reader
            Function that reads a path; None: all formats above.
        progress
            Show a progress bar.

        Returns
        -------
        The corpus, opened.

        Warns
        -----
        UserWarning
            For each section that is skipped, and for doubtful properties of the others.

        Raises
        ------
        ValueError
            Sections or settings that cannot be used, or `out` contains other files.
        OSError
            The disk is full.
        """
        settings: CorpusSettings = {
            "max_tokens": max_tokens,
            "group_size": group_size,
            "max_distance": max_distance,
            "draws": draws,
            "images": images,
            "tile_um": tile_um,
            "size_px": size_px,
            "regions": regions,
            "codec": codec,
            "quality": quality,
            "seed": chosen_seed(seed),
        }
        out = Path(out).expanduser()
        build(
            sections, out, settings, vocabulary=vocabulary, progress=progress, scheduler=scheduler,
            n_workers=n_workers, on_error=on_error, reader=reader,
        )  # fmt: skip
        return cls(out)

    @property
    def settings(self) -> CorpusSettings:
        """Settings of the build."""
        return self.manifest["settings"]

    @property
    def digest(self) -> str:
        """SHA-256 over settings, vocabulary and the contents of all files; equal corpora have equal digests."""
        return self.manifest["digest"]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """Vocabulary of its tokens."""
        found = Vocabulary.load(self.path / GENES)
        if found.digest != self.manifest["vocabulary"]:
            raise damaged_corpus(self.path / GENES, "it is not the vocabulary of the manifest")
        return found

    @cached_property
    def sections(self) -> list[StoredSection]:
        """Sections in the order in which they were passed."""
        return [StoredSection(self.path / "sections" / file_name(r["name"]), r) for r in self.manifest["sections"]]

    def section(self, name: str) -> StoredSection:
        """Section by name; KeyError with similar names if it is unknown."""
        for section in self.sections:
            if section.name == name:
                return section
        raise _checks.unknown("name", name, {"the corpus": (s.name for s in self.sections)})

    @property
    def table(self) -> pd.DataFrame:
        """One row per section: name, organ, platform with ids, species, patient, spots, groups, genes, tiles, bytes."""
        frame = pd.DataFrame([s.summary() for s in self.sections])
        for column in ("organ", "platform"):
            frame.insert(frame.columns.get_loc(column) + 1, f"{column}_id", frame[column].astype("category").cat.codes)
        return frame

    @property
    def skipped(self) -> dict[str, str]:
        """Sections that were skipped, with the reason."""
        return {s["name"]: s["error"] for s in self.manifest["skipped"]}

    def __repr__(self) -> str:
        n, spots = len(self.sections), sum(s.n_spots for s in self.sections)
        tiled = sum(s.n_spots for s in self.sections if s.has_tiles)
        genes = len(self.vocabulary)
        return f"Corpus({n} section{'s' * (n != 1)}, {spots} spots, {genes} genes, {tiled} spots with tiles)"

    def verify(self, *, n_threads: int = 4) -> list[str]:
        """Compare every byte of every file with the manifest, and return one line per problem."""
        problems = []
        if digest_of(self.manifest) != self.digest:
            problems.append(f"{MANIFEST}: it was changed after the build")
        try:
            _ = self.vocabulary
        except (ValueError, OSError):
            problems.append(f"{GENES}: it is missing or not the one of the manifest")
        with ThreadPoolExecutor(n_threads) as pool:
            for found in pool.map(lambda record: list(changed_files(self.path, record)), self.manifest["sections"]):
                problems += found
        return problems


def as_corpus(sections: object) -> Corpus | None:
    """The corpus, passed as such or by its path (also as the only item of a list); None for anything else."""
    if isinstance(sections, Sequence) and not isinstance(sections, str) and len(sections) == 1:
        sections = sections[0]
    if isinstance(sections, Corpus):
        return sections
    if isinstance(sections, str | Path) and (Path(sections).expanduser() / SETTINGS).is_file():
        return Corpus(sections)
    return None


def corpus_or_sections(sections: Sections) -> Corpus | list[SectionInput]:
    """Training data with names and files checked, before anything is read or created."""
    return as_corpus(sections) or as_sections(sections)


def _manifest(path: Path) -> Manifest:
    if not (path / SETTINGS).is_file():
        raise FileNotFoundError(f"{str(path)!r} is not a corpus: it has no {SETTINGS}. `Corpus.build` makes one.")
    if not (path / MANIFEST).is_file():
        raise FileNotFoundError(
            f"The corpus {str(path)!r} is not finished: it has no {MANIFEST}. Build again with the same arguments; it "
            "continues from the sections that are there."
        )
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        found = manifest["format"]
    except (ValueError, LookupError, TypeError) as error:
        raise damaged_corpus(path / MANIFEST, f"it is not a manifest ({error})") from error
    if found != FORMAT:
        raise ValueError(
            f"The corpus {str(path)!r} has format {found}; this version of stampy reads format {FORMAT}. "
            f"It was built by stampy {manifest.get('stampy')}."
        )
    _check_layout(path, manifest)
    return manifest


_LAYOUT = {"settings": dict, "sections": list, "skipped": list, "vocabulary": str, "digest": str}
_OF_SECTION = {
    "name": str,
    "organ": str,
    "platform": str,
    "n_spots": int,
    "n_groups": list,
    "files": dict,
    "notes": list,
}


def _check_layout(path: Path, manifest: dict[str, Any]) -> None:
    """Raise ValueError unless the manifest has the layout of `Corpus.build`."""
    wrong = _wrong_fields(manifest, _LAYOUT)
    if not wrong:
        wrong = [f"section {i}: {name}" for i, r in enumerate(manifest["sections"]) for name in _wrong_in_section(r)]
        wrong += [f"skipped: {r!r:.40}" for r in manifest["skipped"] if _wrong_fields(r, {"name": str, "error": str})]
    if wrong:
        raise damaged_corpus(path / MANIFEST, f"missing, or of another kind: {_checks.shortlist(wrong, 5)}")


def _wrong_in_section(record: Any) -> list[str]:
    wrong = _wrong_fields(record, _OF_SECTION)
    if wrong:
        return wrong
    wrong = [name for name in ("genes", "image") if not isinstance(record.get(name), dict | type(None))]
    wrong += [
        f"size and hash of {name!r}"
        for name, about in record["files"].items()
        if not (isinstance(about, list) and [type(value) for value in about] == [int, str])
    ]
    return wrong


def _wrong_fields(found: Any, layout: Mapping[str, type]) -> list[str]:
    if not isinstance(found, dict):
        return [f"{found!r:.40}"]
    return [name for name, kind in layout.items() if type(found.get(name)) is not kind]
