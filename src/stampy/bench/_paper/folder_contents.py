"""Contents of a folder by file names: AnnData, matrices of 10x Genomics, ST tables, texts, images, whole slides."""

from __future__ import annotations

import csv
import gzip
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stampy import _checks
from stampy._io.refused import R_FILES

__all__ = ["Files", "SlideTable", "files_in", "owner", "slide_table"]

MATRICES = ("filtered_feature_bc_matrix.h5", "filtered_feature_bc_matrix", "filtered_gene_bc_matrices",
            "raw_feature_bc_matrix.h5", "raw_feature_bc_matrix", "matrix.mtx", "matrix.mtx.gz")  # fmt: skip
POSITIONS = re.compile(r"tissue_positions(_list)?\.(csv|txt|tsv|parquet)(\.gz)?$", re.IGNORECASE)
STORES = (".h5ad", ".zarr", ".zarr.zip")
TEXTS = (".tsv", ".csv", ".txt", ".tsv.gz", ".csv.gz", ".txt.gz")
PICTURES = (".tif", ".tiff", ".btf", ".svs", ".ndpi", ".jpg", ".jpeg", ".png")
REDUCED = re.compile(r"(hires|lowres|aligned|detected|thumbnail|fiducial|mask)", re.IGNORECASE)
MAX_FILES, MAX_DEPTH = 200_000, 8


@dataclass
class Files:
    """Paths by kind, each sorted.

    `stores`: .h5ad and zarr. `matrices`: filtered matrices of Space Ranger, raw ones if there is none, as files or
    folders. `positions`: folders with a table of spots. `texts`: tables that may contain labels, counts or slides.
    `images`: large images, without the reduced ones of Space Ranger. `r`: files of R.
    """

    folder: Path
    stores: list[Path] = field(default_factory=list)
    matrices: list[Path] = field(default_factory=list)
    positions: list[Path] = field(default_factory=list)
    texts: list[Path] = field(default_factory=list)
    images: list[Path] = field(default_factory=list)
    r: list[Path] = field(default_factory=list)

    def inside(self, path: Path) -> Path:
        """`path` relative to the folder."""
        return path.relative_to(self.folder)


def files_in(folder: str | Path) -> Files:
    """All potentially useful files below a folder; links to folders are followed once.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        The folder does not exist.
    ValueError
        It contains too many files for the folder of a data set.
    """
    root = _checks.existing(folder, what="folder of data").absolute()
    if not root.is_dir():
        raise NotADirectoryError(f"{str(root)!r} is a file; pass its folder.")
    found, n = Files(root), 0
    for place, names in _folders(root):
        n += len(names)
        if n > MAX_FILES:
            raise ValueError(
                f"{str(root)!r} contains more than {MAX_FILES:,} files. Pass only the folder of the data set."
            )
        _sort(found, place, names)
    for paths in (found.stores, found.matrices, found.positions, found.texts, found.images, found.r):
        paths.sort()
    return found


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    """Folders and the names in them; stores and matrices are not entered."""
    waiting, seen = [(root, 0)], set()
    while waiting:
        place, depth = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        names = sorted(name for name in os.listdir(place) if not name.startswith("."))
        yield place, names
        if depth < MAX_DEPTH:
            deeper = [place / name for name in names if not _is_whole(place / name)]
            waiting += [(path, depth + 1) for path in deeper if path.is_dir()]


def _is_whole(path: Path) -> bool:
    """Whether a folder is a unit: a zarr store or a matrix."""
    low = path.name.lower()
    return low.endswith((".zarr", *(m for m in MATRICES if "." not in m)))


def _sort(found: Files, place: Path, names: Sequence[str]) -> None:
    lows = {name: name.lower() for name in names}
    matrices = [name for name, low in lows.items() if low.endswith(MATRICES)]
    filtered = [name for name in matrices if "raw_feature" not in lows[name]]
    found.matrices += [place / name for name in filtered or matrices]
    if any(POSITIONS.search(low) for low in lows.values()):
        found.positions.append(place)
    for name, low in lows.items():
        path = place / name
        if low.endswith(STORES):
            found.stores.append(path)
        elif low.removesuffix(".gz").endswith(tuple(R_FILES)):
            found.r.append(path)
        elif low.endswith(PICTURES) and not REDUCED.search(low):
            found.images.append(path)
        elif low.endswith(TEXTS) and not POSITIONS.search(low) and path.is_file():
            found.texts.append(path)


def owner(path: Path, names: Sequence[str]) -> str | None:
    """Name to which a relative path belongs: the only one of `names` in its last part that contains any.

    >>> owner(Path("10X/151507/spatial"), ["151507", "151508"]), owner(Path("151507_151508.h5ad"), ["151507", "151508"])
    ('151507', None)
    """
    for part in reversed(path.parts):
        held = [name for name in names if re.search(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])", part)]
        if held:
            return held[0] if len(held) == 1 else None
    return None


SLIDE = ("file_name", "File Name", "slide", "slide_id", "filename")
PATIENT = ("cases.0.submitter_id", "cases.submitter_id", "Case ID", "patient", "case_id", "submitter_id")
LABEL = ("label", "cases.0.diagnoses.0.ajcc_pathologic_stage", "ajcc_pathologic_stage", "stage")
MD5 = ("md5sum", "md5")


@dataclass(frozen=True, kw_only=True)
class SlideTable:
    """Slides of a table that exist in the folder, and the others.

    `rows`: slide (absolute path), patient, label and, if the table has it, MD5 sum. `absent`: slides of the table that
    are not in the folder. `unlabelled`: slides without patient or label.
    """

    path: Path
    columns: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]
    absent: tuple[str, ...]
    unlabelled: tuple[str, ...]


def slide_table(files: Files, columns: Mapping[str, str]) -> SlideTable | str:
    """The only table of slides in a folder, with `columns` as in the config; if there is none, the reason as text."""
    wanted = {
        "slide": (columns.get("slide", "slide"), *SLIDE),
        "patient": (columns.get("patient", "patient"), *PATIENT),
        "label": (columns.get("label", "label"), *LABEL),
    }
    heads = {path: _head(path) for path in files.texts}
    tables = {path: {k: _first(names, head) for k, names in wanted.items()} for path, head in heads.items()}
    whole = [path for path, found in tables.items() if all(found.values())]
    if len(whole) > 1:
        return f"several tables of slides: {', '.join(str(files.inside(p)) for p in whole)}; leave one"
    if not whole:
        near = [path for path, found in tables.items() if found["slide"]]
        if not near:
            return "no table (.tsv, .csv) that names slides, patients and labels"
        lacking = " and the ".join(k for k, v in tables[near[0]].items() if not v)
        return f"{near[0].name!r} has no column for the {lacking}; its columns: {', '.join(heads[near[0]])}"
    return _read(whole[0], {k: v for k, v in tables[whole[0]].items() if v}, files)


def _first(names: Sequence[str], head: Sequence[str]) -> str | None:
    return next((name for name in names if name in head), None)


def _open(path: Path, *, head: bool = False) -> csv.DictReader[str]:
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    with opened(path, "rt", encoding="utf-8", newline="") as stream:
        lines = [stream.readline(2**20)] if head else stream.read(2**28).splitlines()
    delimiter = "\t" if lines and "\t" in lines[0] else ","
    return csv.DictReader(lines, delimiter=delimiter)


def _head(path: Path) -> list[str]:
    try:
        return list(_open(path, head=True).fieldnames or [])
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile):
        return []


def _read(path: Path, columns: Mapping[str, str], files: Files) -> SlideTable:
    at = {image.name: image for image in files.images}  # gdc-client writes each slide into a separate folder
    md5 = _first(MD5, _head(path))
    rows, absent, unlabelled = [], [], []
    for row in _open(path):
        name = Path(row[columns["slide"]] or "").name
        slide = at.get(name) or next((p for n, p in at.items() if n.split(".")[0] == name), None)
        patient, label = row[columns["patient"]], row[columns["label"]]
        if slide is None:
            absent.append(name)
        elif not patient or not label or label in ("'--", "--", "NA", "Not Reported"):
            unlabelled.append(name)
        else:
            rows.append({"slide": str(slide), "patient": patient, "label": label, **({"md5": row[md5]} if md5 else {})})
    return SlideTable(path=path, columns=columns, rows=tuple(rows), absent=tuple(absent), unlabelled=tuple(unlabelled))
