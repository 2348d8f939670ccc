"""Build a corpus on disk from sections: settings, vocabulary, sections in parallel, manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import stampy
from stampy import _checks, _files, _keys
from stampy._files import atomic
from stampy._io.sections import SectionInput, file_name, of_section
from stampy._locks import FolderLock
from stampy._section.identity import digest_of_section
from stampy._utils import n_cores
from stampy._workers import check_workers, workers
from stampy.pp import Vocabulary
from stampy.pp._genes.means import add_sums, means_of
from stampy.train._corpus import spavis
from stampy.train._corpus.layout import CorpusSettings, Manifest, SectionRecord, write_group
from stampy.train._corpus.section_writer import (
    PARTIAL,
    SECTION_ERRORS,
    Reader,
    stored_record,
    sums_of,
    write_section,
)
from stampy.train._corpus.shards import TILE_FORMATS
from stampy.train._corpus.source import CorpusSource, SourceSection, source_of
from stampy.train._corpus.spavis import Slide

if TYPE_CHECKING:
    from stampy._io.sections import Sections

__all__ = ["FORMAT", "MANIFEST", "SETTINGS", "build", "digest_of"]

logger = logging.getLogger(__name__)

FORMAT = 1
SETTINGS, MANIFEST, GENES = "corpus.json", "manifest.json", "genes.tsv"


def build(
    sections: Sections,
    out: Path,
    settings: CorpusSettings,
    *,
    vocabulary: Vocabulary | str | Path | None,
    scheduler: str | None,
    n_workers: int | None,
    on_error: str,
    reader: Reader | None,
    progress: bool,
) -> None:
    """Build a corpus, or continue an interrupted build; see `Corpus.build`."""
    check_settings(settings)
    _checks.one_of("on_error", on_error, ("raise", "skip"))
    check_workers(scheduler, n_workers)
    skip = on_error == "skip"
    if vocabulary is not None and not isinstance(vocabulary, Vocabulary):
        vocabulary = Vocabulary.load(vocabulary)
    if vocabulary is None and (out / GENES).is_file():
        vocabulary = Vocabulary.load(out / GENES)
    source = source_of(sections, out, settings, vocabulary, reader=reader, skip=skip)
    made = not out.exists()
    out = _checks.writable(out)
    empty = not any(out.iterdir())
    try:
        with FolderLock(out, what="corpus"):
            _build(out, source, reader or _default_reader(), skip, scheduler, n_workers, progress)
            source.clear()
    except Exception:
        if empty:
            _remove_unless_begun(out, whole=made)
        raise


def _build(
    out: Path,
    source: CorpusSource,
    reader: Reader,
    skip: bool,
    scheduler: str | None,
    n_workers: int | None,
    progress: bool,
) -> None:
    """Build in a folder that is locked for other processes."""
    chosen, settings, skipped = source.sections, source.settings, dict(source.skipped)
    _begin(out, settings, chosen)
    n_workers = n_workers or max(min(len(chosen), n_cores()), 1)
    with workers(scheduler, n_workers, progress) as run:
        skipped |= _settle_vocabulary(out, source.vocabulary, chosen, reader, skip, run)
        sources = source.digests or _fingerprints(chosen, skipped, skip)
        records = {s.name: stored_record(out / "sections" / file_name(s.name)) for s in chosen}
        done = {name: r for name, r in records.items() if r is not None and r["source"] == sources.get(name)}
        todo = [s for s in chosen if s.name not in done and s.name not in skipped]
        logger.info("%d of %d sections exist already", len(done), len(chosen))
        for batch in source.batches(todo, n_workers):
            jobs = [partial(write_section, s, settings, out, reader, sources[s.name], skip) for s in batch]
            for record in run(jobs, "sections"):
                if "error" in record:
                    skipped[record["name"]] = record["error"]
                else:
                    done[record["name"]] = record
    _finish(out, settings, [done[s.name] for s in chosen if s.name in done], skipped, {s.name for s in todo})


def _remove_unless_begun(out: Path, *, whole: bool) -> None:
    """Remove what a failed build wrote into an empty folder if no section is complete; `whole`: also the folder."""
    folder = out / "sections"
    if folder.is_dir() and any(p.is_dir() and not p.name.startswith(PARTIAL) for p in folder.iterdir()):
        return
    if whole:
        shutil.rmtree(out, ignore_errors=True)
        return
    shutil.rmtree(folder, ignore_errors=True)
    for name in (SETTINGS, GENES, FolderLock.NAME):
        (out / name).unlink(missing_ok=True)


def check_settings(settings: CorpusSettings) -> None:
    """Raise for invalid settings."""
    least: dict[Literal["max_tokens", "group_size", "draws", "regions", "size_px"], int] = {
        "max_tokens": 1, "group_size": 2, "draws": 1, "regions": 1, "size_px": 1,
    }  # fmt: skip
    for name, smallest in least.items():
        _checks.at_least(name, settings[name], smallest)
    _checks.at_most("max_tokens", settings["max_tokens"], 2**16 - 1)
    _checks.at_least("seed", settings["seed"], 0)
    _checks.positive("max_distance", settings["max_distance"])
    _checks.positive("tile_um", settings["tile_um"])
    _checks.one_of("codec", settings["codec"], TILE_FORMATS)
    _checks.at_least("quality", settings["quality"], 1)
    _checks.at_most("quality", settings["quality"], 100)
    if settings["images"] not in (None, True, False):
        raise ValueError(f"`images` must be True, False or None, found {settings['images']!r}.")


def digest_of(manifest: Manifest) -> str:
    """Digest of settings, vocabulary and contents of all files, independent of the origin of the files."""
    parts = {
        "settings": manifest["settings"],
        "vocabulary": manifest["vocabulary"],
        "sections": [{"name": s["name"], "files": s["files"]} for s in manifest["sections"]],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _default_reader() -> Reader:
    from stampy._io import read as _formats

    return _formats.read


def _begin(out: Path, settings: CorpusSettings, sections: Sequence[SourceSection]) -> None:
    """Write corpus.json and the zarr groups; ValueError if the folder contains something else."""
    path = out / SETTINGS
    if path.exists():
        found = json.loads(path.read_text())
        differs = [k for k, v in settings.items() if found.get("settings", {}).get(k, v) != v]
        if found.get("format") != FORMAT or differs:
            raise ValueError(
                f"{str(out)!r} contains a corpus of format {found.get('format')} with other settings: {differs}. "
                "Choose "
                f"another folder, or the settings in its {SETTINGS}."
            )
    elif any(path.name != FolderLock.NAME for path in out.iterdir()):
        raise ValueError(f"{str(out)!r} is neither empty nor a corpus. Choose another folder.")
    else:
        with atomic(path) as temporary:
            temporary.write_text(json.dumps({"format": FORMAT, "settings": settings}, indent=1) + "\n")
    (out / "sections").mkdir(exist_ok=True)
    write_group(out / "sections", {})  # makes the corpus a single zarr hierarchy
    _clear(out / "sections", sections)


def _clear(folder: Path, sections: Sequence[SourceSection]) -> None:
    """Remove unfinished parts of a killed build; ValueError for stored sections that were not passed."""
    known = {file_name(s.name) for s in sections}
    for path in folder.iterdir():
        if path.name.startswith(PARTIAL):
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_dir() and path.name not in known:
            raise ValueError(
                f"The corpus has the section {path.name!r} that was not passed. Pass it too, or remove its folder "
                f"{str(path)!r}."
            )


def _settle_vocabulary(
    out: Path, vocabulary: Vocabulary | None, sections: Sequence[SourceSection], reader: Reader, skip: bool, run: Any
) -> dict[str, str]:
    """Write genes.tsv unless it exists; returns the sections that were skipped, with the reasons."""
    path = out / GENES
    skipped: dict[str, str] = {}
    if path.exists():
        if vocabulary is not None and Vocabulary.load(path) != vocabulary:
            raise ValueError(f"{str(out)!r} contains a corpus with another vocabulary. Choose another folder.")
        return skipped
    if vocabulary is None:
        sums, order = None, {s.name: i for i, s in enumerate(sections)}
        jobs = [partial(_sums_job, s, reader, skip) for s in sections]
        # in the order of the sections, since sums of floats depend on the order
        for name, found in sorted(run(jobs, "genes"), key=lambda item: order[item[0]]):
            if isinstance(found, str):
                skipped[name] = found
            elif found is not None:
                sums = add_sums(sums, found)
        if sums is None:
            raise ValueError(f"None of the {len(sections)} sections has genes for a vocabulary. {skipped or ''}")
        vocabulary = Vocabulary._from_means(means_of(sums))
    vocabulary.save(path)
    return skipped


def _sums_job(section: SourceSection, reader: Reader, skip: bool) -> tuple[str, Any]:
    if isinstance(section, Slide):  # uses the published vocabulary
        raise TypeError(f"{section.name!r} has tokens, but no genes for a vocabulary.")
    return section.name, sums_of(section, reader, skip)


def _fingerprints(sections: Sequence[SourceSection], skipped: dict[str, str], skip: bool) -> dict[str, str]:
    """Fingerprints of the sections by name; with `skip`, unreadable sections are added to `skipped`."""
    found = {}
    for section in sections:
        try:
            found[section.name] = section.fingerprint if isinstance(section, Slide) else _fingerprint(section)
        except SECTION_ERRORS as error:
            if not skip:
                raise
            skipped.setdefault(section.name, str(error.args[0] if error.args else error))
    return found


def _fingerprint(section: SectionInput) -> str:
    """Fingerprint of a section's source: changes with the contents of files, or with any value in memory.

    Files above 256 MiB are represented by size, modification time and 64 parts.
    """
    said: tuple[object, ...] = (section.um_per_px, section.spot_um, section.organ, section.platform)
    more = (section.species, section.patient, section.study)
    digest = hashlib.sha256(
        repr(said + more if any(more) else said).encode()
    )  # before version 0.3 there were only the first four fields
    with of_section(section.name):
        if isinstance(section.data, Path):
            digest.update(_files.digest_of_path(_checks.existing(section.data, what="section")).encode())
            digest.update("".join(_files.digest_of_file(path) for path in _named_images(section.data)).encode())
        else:
            digest.update(digest_of_section(section.data).encode())
        if section.image is not None:
            digest.update(_files.digest_of_path(_checks.existing(section.image, what="image")).encode())
    return digest.hexdigest()[:16]


def _named_images(path: Path) -> Iterator[Path]:
    """Existing image files that an .h5ad or .zarr refers to, as full-resolution image or instead of pixels.

    Relative paths refer to the folder of the section, as in `stampy.read`.
    """
    with contextlib.suppress(*_UNREADABLE), _root_of(path) as root:
        libraries = root[f"uns/{_keys.UNS_SPATIAL}"]
        for library in (libraries[name] for name in _keys_of(libraries)):
            for entry in (f"metadata/{_keys.SOURCE_IMAGE}", *(f"images/{key}" for key in _keys_of(library, "images"))):
                if (name := _text_in(library, entry)) and (image := path.parent / Path(name).expanduser()).is_file():
                    yield image


_UNREADABLE = (OSError, KeyError, ValueError)


@contextlib.contextmanager
def _root_of(path: Path) -> Iterator[Any]:
    """Root of an HDF5 file or Zarr store, without reading its contents."""
    if path.is_dir():
        import zarr

        yield zarr.open_group(path, mode="r")
    else:
        import h5py

        with h5py.File(path) as file:
            yield file


def _keys_of(group: Any, name: str = "") -> list[str]:
    """Names in a group, or in a subgroup; empty if it is not a group."""
    found = group.get(name) if name and hasattr(group, "keys") else group
    return list(found) if hasattr(found, "keys") else []


def _text_in(library: Any, entry: str) -> str:
    """Text of an entry, also if stored as an array of length one; "" for anything else."""
    found = library.get(entry) if hasattr(library, "keys") else None
    if found is None or not hasattr(found, "dtype") or np.prod(found.shape) != 1 or found.dtype.kind not in "OSUT":
        return ""
    value = np.asarray(found[()]).reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def _finish(
    out: Path, settings: CorpusSettings, records: list[SectionRecord], skipped: dict[str, str], fresh: set[str]
) -> None:
    """Write the manifest, and warn about skipped sections and doubts."""
    if not records:
        raise ValueError(f"No section could be used: {_checks.shortlist(f'{k}: {v}' for k, v in skipped.items())}.")
    manifest: Manifest = {
        "format": FORMAT,
        "stampy": stampy.__version__,
        "settings": settings,
        "vocabulary": Vocabulary.load(out / GENES).digest,
        "sections": records,
        "skipped": [{"name": name, "error": error} for name, error in skipped.items()],
    }
    manifest["digest"] = digest_of(manifest)
    with atomic(out / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1) + "\n")
    for name, error in skipped.items():
        _checks.warn(f"Section {name!r} was skipped: {error}")
    told = [record for record in records if record["name"] in fresh]
    for record in told:
        for note in record["notes"]:
            _checks.warn(f"Section {record['name']!r}: {note}")
    spavis.warn_of_losses(told, settings["max_tokens"])
