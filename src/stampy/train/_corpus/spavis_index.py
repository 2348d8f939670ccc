"""Check the files of SpaVis-6M, and find the rows of each section.

Shapes: R rows (groups, or spots in files without groups), L positions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _files
from stampy._section.outside_links import refuse_links_h5
from stampy.train._corpus.spavis import CELLS, DATASETS, SLIDES, TILES, TOKENS, Part, Slide, TokenFile

if TYPE_CHECKING:
    import h5py

    from stampy.train._corpus.layout import CorpusSettings

__all__ = ["SECTION_ERRORS", "damaged_file", "open_file", "slides_of"]

SECTION_ERRORS = (OSError, RuntimeError, KeyError)  # errors of h5py for a damaged file
MAX_CHUNK_READS = 4  # of the same chunk

Opener = Callable[[Path, str], AbstractContextManager["h5py.File"]]


@contextmanager
def open_file(path: Path, name: str, *, cache_bytes: int = 2**20) -> Iterator[h5py.File]:
    """Open a file; errors of HDF5 name it."""
    import h5py

    if not path.is_file():
        raise FileNotFoundError(f"{name} is missing: {str(path)!r}.")
    try:
        refuse_links_h5(path)
        with h5py.File(path, rdcc_nbytes=cache_bytes) as file:
            yield file
    except SECTION_ERRORS as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        raise damaged_file(name, error) from error


def damaged_file(name: str, error: BaseException) -> ValueError:
    """Return an error for a file that HDF5 cannot read."""
    line = " ".join(str(error.args[0] if error.args else error).split())
    return ValueError(f"{name} is damaged, is truncated, or is not an HDF5 file ({line}). Download it again.")


def slides_of(
    files: Sequence[Path] | Sequence[tuple[Path, str, str]],
    settings: CorpusSettings,
    *,
    skip: bool = False,
    opened: Opener | None = None,
) -> tuple[list[Slide], dict[str, str]]:
    """Sections in the files, in order of their first row, and unusable files with reasons.

    Parameters
    ----------
    files
        Paths; for remote files, (future local path, name for messages, hash).
    settings
        Settings of the corpus.
    skip
        Skip unusable files.
    opened
        Function that opens remote files.

    Raises
    ------
    ValueError
        A file is unusable (unless skipped), or the files are of both stages.
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
    _warn_of_ignored(known)
    if faults:
        _checks.warn(
            f"{len(faults)} of {len(files)} files cannot be read: {_checks.shortlist(faults)}. Sections that also have "
            "rows in them are incomplete. Repair or remove the files and build again; changed sections are rebuilt."
        )
    return [Slide(name, tuple(found)) for name, found in parts.items()], faults


def _check_alike(files: Sequence[TokenFile]) -> None:
    kinds = (("groups of spots (stage 1)", "grouped", ""), ("tiles", "tiles", ", or skip tiles with images=False"))
    for what, has, remedy in kinds:
        with_it = [file.name for file in files if getattr(file, has)]
        if with_it and len(with_it) < len(files):
            without = next(file.name for file in files if not getattr(file, has))
            raise ValueError(f"{with_it[0]} has {what}, {without} has none. Build a corpus of each kind{remedy}.")
    if files and not any(file.grouped or file.tiles for file in files):
        _checks.warn(
            "The files have neither groups of spots (stage 1) nor tiles (stage 2); no stage can be trained on them."
        )


def _warn_of_ignored(files: Sequence[TokenFile]) -> None:
    ignored = sorted({name for file in files for name in file.ignored})
    if ignored:
        _checks.warn(f"Not stored in a corpus: {_checks.shortlist(ignored)}. Labels and expression stay in the files.")


def _read_index(
    path: Path, name: str, identity: str, settings: CorpusSettings, opened: Opener
) -> tuple[TokenFile, dict[str, np.ndarray]]:
    """Properties of a file, and the runs of rows of each of its sections."""
    with opened(path, name) as file:
        n_rows, grouped = _check_tokens(file, name, settings["group_size"])
        tiles = _check_tiles(file, name, n_rows, grouped, settings)
        used = {TOKENS, SLIDES, DATASETS, *(TILES if tiles else ())}
        ignored = tuple(sorted(set(file) - used - (set(TILES) if settings["images"] is False else set())))
        found = TokenFile(path, name, n_rows, grouped, tiles, identity or _files.digest_of_file(path), ignored)
        group_size = settings["group_size"] if grouped else 1
        slide, dataset = (_ids(file, name, key, n_rows, group_size) for key in (SLIDES, DATASETS))
        chunk = (file[TOKENS].chunks or (1,))[0]
    if slide is None:
        own = f"{Path(name).parent.name}_{path.stem}"
        rows = "all its rows" if dataset is None else "its rows of one data set"
        _checks.warn(f"{name} has no {SLIDES!r}: {rows} are one section, named after the file.")
        if dataset is None:
            return found, {own: np.array([[0, n_rows]])}
        return found, {f"dataset{which}_{own}": runs for (which, _), runs in _runs(dataset, None)}
    sections = {_section_name(*key): runs for key, runs in _runs(slide, dataset)}
    _warn_of_mixed_rows(found, sections, chunk)
    return found, sections


def _warn_of_mixed_rows(file: TokenFile, sections: Mapping[str, np.ndarray], chunk: int) -> None:
    """Warn about chunks with rows of several sections, which are decompressed once per section."""
    if chunk == 1:
        return
    reads = 0
    for runs in sections.values():
        first, last = runs[:, 0] // chunk, (runs[:, 1] - 1) // chunk
        reads += int((last - first + 1).sum() - (first[1:] == last[:-1]).sum())
    times = reads / -(-file.n_rows // chunk)
    if times > MAX_CHUNK_READS:
        _checks.warn(
            f"{file.name}: rows of {len(sections)} sections share chunks of {chunk} rows, so that the file is unpacked "
            f"{times:.0f} times. `h5repack -l CHUNK=...` with chunks of fewer rows makes the build faster."
        )


def _check_tokens(file: h5py.File, name: str, group_size: int) -> tuple[int, bool]:
    tokens = _dataset(file, name, TOKENS)
    expected = f"integers, (groups, {group_size}, L) for stage 1 or (rows, L) for stage 2"
    if tokens.dtype.kind not in "iu" or tokens.ndim not in (2, 3) or 0 in tokens.shape:
        raise ValueError(f"{name}: {TOKENS!r} is {tokens.dtype} {tokens.shape}, expected {expected}.")
    if tokens.ndim == 3 and tokens.shape[1] != group_size:
        raise ValueError(
            f"{name}: {TOKENS!r} has groups of {tokens.shape[1]} spots, shape {tokens.shape}, expected {expected}."
        )
    return tokens.shape[0], tokens.ndim == 3


def _check_tiles(file: h5py.File, name: str, n_rows: int, grouped: bool, settings: Mapping[str, Any]) -> bool:
    """Whether the file has tiles, and tiles are wanted."""
    there, px = [key for key in TILES if key in file], settings["size_px"]
    if settings["images"] is False or (settings["images"] is None and not there):
        return False
    if grouped:
        raise ValueError(
            f"{name}: {there or 'no images'} and groups of spots. Tiles belong to rows of single spots (stage 2); "
            "build with images=False to store only the groups."
        )
    for key in TILES:
        values = _dataset(file, name, key, "images=False skips tiles.")
        if key == CELLS:
            right = values.shape in ((n_rows,), (n_rows, 1)) and values.dtype.kind in "iu"
            expected = f"integers ({n_rows},)"
        else:
            right = values.shape == (n_rows, 3, px, px) and values.dtype == np.uint8
            expected = f"uint8 {(n_rows, 3, px, px)}"
        if not right:
            raise ValueError(f"{name}: {key!r} is {values.dtype} {values.shape}, expected {expected}.")
    return True


def _dataset(file: h5py.File, name: str, key: str, remedy: str = "") -> h5py.Dataset:
    import h5py

    link = file.get(key, getlink=True)
    found = file.get(key) if isinstance(link, h5py.HardLink) else None  # links of other kinds may lead out of the file
    if not isinstance(found, h5py.Dataset) or found.is_virtual or found.external:
        raise ValueError(f"{name} has no data set {key!r}. It has {_checks.shortlist(file)}. {remedy}".rstrip())
    return found


def _ids(file: h5py.File, name: str, key: str, n_rows: int, group_size: int) -> np.ndarray | None:
    """(R,) ids as text; one per row, or one per spot of a group if they agree."""
    if key not in file:
        return None
    values = _dataset(file, name, key)
    sizes = {(n_rows,), (n_rows, 1)} | ({(n_rows, group_size), (n_rows * group_size,)} if group_size > 1 else set())
    if values.shape not in sizes or values.dtype.kind not in "iufSO":
        raise ValueError(f"{name}: {key!r} is {values.dtype} {values.shape}, expected one id a row, ({n_rows},).")
    ids = values.asstr()[:] if values.dtype.kind in "SO" else values[:]
    if ids.dtype.kind == "f":
        if not (np.isfinite(ids) & (ids == np.round(ids))).all():
            raise ValueError(f"{name}: {key!r} has ids that are not integers.")
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
    """Key and runs of rows (m, 2) of each section, in order of their first row."""
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
    """Name such as dataset3_slide17."""
    return f"slide{slide}" if dataset is None else f"dataset{dataset}_slide{slide}"
