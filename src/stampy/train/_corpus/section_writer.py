"""Write one section of a corpus in a worker: read, tokenize, group, cut tiles.

Shapes: n spots, R rows of tokens (R >= n, since a spot that completes a second group has a second row), L positions, K
regions per spot.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _files, _utils
from stampy._io.sections import SECTION_ERRORS, SectionInput, file_name, one_line, several_sections
from stampy._section.image.image_checks import warn_of_doubts
from stampy._section.libraries import SeveralSectionsError
from stampy._section.section import has_images, places_of, side_by_side
from stampy._section.tile_boxes import choose_cells
from stampy.pp import Vocabulary
from stampy.pp._genes.means import section_sums
from stampy.pp._neighborhoods import group_spots
from stampy.pp._tiles import TileSource
from stampy.train._corpus.layout import (
    GROUP,
    ROWS_PER_SHARD,
    TILES_PER_SHARD,
    ArrayRecord,
    CorpusSettings,
    ImageRecord,
    SectionMetadata,
    SectionRecord,
    SkippedSection,
    new_array,
    put,
    write_group,
)
from stampy.train._corpus.spavis import Slide
from stampy.train._corpus.spavis_convert import write_slide
from stampy.train._data import missing_tokens_message, ranked

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["Reader", "stored_record", "sums_of", "write_section"]

Reader = Callable[[Path], Any]

PARTIAL = ".partial-"


def stored_record(folder: Path) -> SectionRecord | None:
    """Record of a complete section; None if there is none or files are incomplete."""
    try:
        record = json.loads((folder / GROUP).read_text())["attributes"]["stampy"]
        whole = all((folder / name).stat().st_size == size for name, (size, _) in record["files"].items())
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return record if whole else None


def sums_of(section: SectionInput, reader: Reader, skip: bool) -> pd.DataFrame | str | None:
    """Sums of a section's genes for the vocabulary; None for a section without genes, text for an error."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # repeated when the section is written
            table = _utils.table_of(_data(section, reader))
            return section_sums(table, None, repr(section.name)) if table.n_vars else None
    except SECTION_ERRORS as error:
        if not skip or _files.is_full(error):
            raise _with_name(error, section.name) from error
        return _line(error, section.name)


def write_section(
    section: SectionInput | Slide, settings: CorpusSettings, out: Path, reader: Reader, source: str, skip: bool
) -> SectionRecord | SkippedSection:
    """Write a section into ``out/sections``; returns its record, or with `skip` ``{"name", "error"}`` if unusable."""
    folder = out / "sections" / file_name(section.name)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            with _whole_folder(folder) as partial:
                if isinstance(section, Slide):
                    written: ArrayRecord = write_slide(section, settings, len(_vocabulary(out / "genes.tsv")), partial)
                else:
                    written = _write(section, settings, out, reader, partial)
                record: SectionRecord = {
                    "name": section.name, "organ": section.organ, "platform": section.platform, "source": source,
                    **written, "notes": [], "files": _hashes(partial),
                }  # fmt: skip
                if isinstance(section, SectionInput):
                    record |= _metadata(section)
                notes = [*written["notes"], *(str(w.message) for w in caught if _is_ours(w))]
                record["notes"] = list(dict.fromkeys(notes))
                write_group(partial, {"stampy": record})  # written last: a group with a record is complete
    except SECTION_ERRORS as error:
        if not skip or _files.is_full(error):
            raise _with_name(error, section.name) from error
        return {"name": section.name, "error": _line(error, section.name)}
    return record


def _metadata(section: SectionInput) -> SectionMetadata:
    """Metadata given for a section."""
    found: SectionMetadata = {}
    if section.species:
        found["species"] = section.species
    if section.patient:
        found["patient"] = section.patient
    if section.study:
        found["study"] = section.study
    return found


def _is_ours(warning: warnings.WarningMessage) -> bool:
    return issubclass(warning.category, _checks.StampyWarning)


def _line(error: BaseException, name: str) -> str:
    if isinstance(error, SeveralSectionsError):
        return several_sections(error, name).removeprefix(f"Section {name!r}: ")
    return one_line(error, name)


def _with_name(error: BaseException, name: str) -> Exception:
    """The error with the section's name; data written before are kept, so the build can continue."""
    if _files.is_full(error):
        return OSError(
            error.errno,
            f"{error.strerror} while section {name!r} was written. Free space and build again: it continues from there",
        )
    return ValueError(
        f"Section {name!r} cannot be used: {_line(error, name)} Repair or remove it and build again (it continues "
        "from there), or build with on_error='skip'."
    )


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder beside `folder` that replaces it on success and is removed on error."""
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=PARTIAL))
    try:
        yield partial
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _hashes(folder: Path) -> dict[str, tuple[int, str]]:
    """Size and SHA-256 of every file of the arrays, by path."""
    found = {}
    for path in sorted(p for p in folder.glob("*/**/*") if p.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(folder).as_posix()] = path.stat().st_size, digest
    return found


def _data(section: SectionInput, reader: Reader) -> Any:
    return reader(section.data) if isinstance(section.data, Path) else section.data


def _vocabulary(path: Path) -> Vocabulary:
    about = path.stat()  # a rebuilt folder may have another vocabulary at the same path
    return _loaded(path, about.st_ino, about.st_mtime_ns)


@lru_cache(maxsize=2)
def _loaded(path: Path, inode: int, mtime_ns: int) -> Vocabulary:
    return Vocabulary.load(path)


def _write(section: SectionInput, settings: CorpusSettings, out: Path, reader: Reader, folder: Path) -> ArrayRecord:
    import zarr

    data = _data(section, reader)
    table = _utils.table_of(data)
    _checks.not_empty(table, genes=False)
    source = _images(data, section, settings)
    places = places_of(data, neighbors=source is None)
    xy, codes = side_by_side(places), places.codes
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    put(group, "xy", xy)
    record: ArrayRecord = {"n_spots": len(xy), "n_groups": [], "genes": None, "image": None, "notes": []}
    if table.n_vars:
        vocabulary = _vocabulary(out / "genes.tsv")
        tokens, match = ranked(table, vocabulary, settings["max_tokens"], section.name)
        spots, record["n_groups"] = layout(xy, codes, settings, section.name)
        if missing := missing_tokens_message(tokens):
            record["notes"].append(missing)
        record["genes"] = {"n_vars": match.n_vars, "n_matched": match.n_matched, "source": match.source}
        if 0 in record["n_groups"]:
            record["notes"].append(
                f"No neighbourhood group: fewer than {settings['group_size']} spots near each other among "
                f"{len(xy)}. Stage 1 skips the section."
            )
        _put_tokens(group, tokens, spots, settings["group_size"])
    if source is not None:
        record["image"] = _put_tiles(group, source, settings, section.name)
        source.close()
    if not table.n_vars and source is None:
        raise ValueError("It has neither genes nor an image.")
    return record


def _images(data: AnnData | SpatialData, section: SectionInput, settings: CorpusSettings) -> TileSource | None:
    """Tiles of the section; None if tiles are not wanted, or if the section has no image and none is required."""
    found = section.image is not None or has_images(data)
    wanted = settings["images"]
    if wanted is False or (wanted is None and not found):
        return None
    source = TileSource.open(
        data,
        tile_um=settings["tile_um"],
        size_px=settings["size_px"],
        image=section.image,
        um_per_px=section.um_per_px,
        spot_um=section.spot_um,
    )
    warn_of_doubts(source.sections)
    return source


def layout(xy: np.ndarray, codes: np.ndarray, settings: CorpusSettings, name: str) -> tuple[np.ndarray, list[int]]:
    """Order in which spots are written, (R,) int32: all groups of all draws, then spots without group.

    Returns
    -------
    The order, and the number of groups of each draw.
    """
    size, farthest, draws = settings["group_size"], settings["max_distance"], []
    if farthest is None:  # only sources with their own groups
        raise ValueError("`max_distance` must be a number, found None.")
    for draw in range(settings["draws"]):
        # seeded by name: the groups of a section do not depend on other sections
        rng = _utils.stream(settings["seed"], f"groups of {name}", draw)
        members = [np.empty((0, size), dtype=np.int64)]
        for code in range(codes.max() + 1):
            rows = np.flatnonzero(codes == code)
            if len(rows) >= size:
                groups = group_spots(xy[rows], size=size, max_distance=farthest, rng=rng)
                members.append(rows[groups.members])
        draws.append(np.concatenate(members))
    grouped = np.concatenate(draws).ravel()
    rest = np.setdiff1d(np.arange(len(xy)), grouped)
    return np.concatenate([grouped, rest]).astype(np.int32), [len(d) for d in draws]


def _put_tokens(group: Any, tokens: np.ndarray, spots: np.ndarray, size: int) -> None:
    put(group, "spots", spots)
    put(group, "lengths", (tokens != 0).sum(axis=1)[spots].astype(np.uint16))
    per_shard = max(ROWS_PER_SHARD // size, 1)
    # not compressed: tokens are a small part of a corpus with tiles, and decompression would halve the speed
    array = new_array(group, "tokens", (len(spots), tokens.shape[1]), tokens.dtype, size, per_shard, "none")
    for start in range(0, len(spots), size * per_shard):
        rows = spots[start : start + size * per_shard]
        array[start : start + len(rows)] = tokens[rows]


def _put_tiles(group: Any, source: TileSource, settings: CorpusSettings, name: str) -> ImageRecord:
    """Write patch and regions of every spot, in the order of the spots, and the cell of the patch in each region."""
    n, k, px = len(source), settings["regions"], settings["size_px"]
    rng = _utils.stream(settings["seed"], f"cells of {name}")
    allowed = source.region_cells()
    cells = np.stack([choose_cells(allowed, rng) for _ in range(k)], axis=1).astype(np.int8)
    put(group, "cells", cells)
    arrays = [
        new_array(
            group,
            what,
            (rows, px, px, 3),
            np.dtype(np.uint8),
            1,
            TILES_PER_SHARD,
            settings["codec"],
            settings["quality"],
        )
        for what, rows in (("patches", n), ("regions", n * k))
    ]
    for start in range(0, n, TILES_PER_SHARD):
        rows = np.arange(start, min(start + TILES_PER_SHARD, n))
        arrays[0][start : start + len(rows)] = source.read(rows)
    for start in range(0, n * k, TILES_PER_SHARD):
        rows = np.arange(start, min(start + TILES_PER_SHARD, n * k))
        arrays[1][start : start + len(rows)] = source.read(rows // k, region=True, cells=cells.ravel()[rows])
    record = source.provenance()
    return {
        "um_per_px": record["um_per_px"],
        "um_per_px_from": record["um_per_px_from"],
        "upsampling": record["upsampling"],
    }
