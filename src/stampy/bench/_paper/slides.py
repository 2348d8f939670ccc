"""The table of whole slides in a folder, and which of its slides are there."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .files import Files

__all__ = ["SlideTable", "slide_table"]

SLIDE = ("file_name", "File Name", "slide", "slide_id", "filename")
PATIENT = ("cases.0.submitter_id", "cases.submitter_id", "Case ID", "patient", "case_id", "submitter_id")
LABEL = ("label", "cases.0.diagnoses.0.ajcc_pathologic_stage", "ajcc_pathologic_stage", "stage")
MD5 = ("md5sum", "md5")


@dataclass(frozen=True, kw_only=True)
class SlideTable:
    """What a table of slides says of those that are there, and of the others.

    `rows`: slide (absolute path), patient, label and, where the table has it, MD5 sum. `absent`: slides of the table
    that are not in the folder. `unlabelled`: those without a patient or a label.
    """

    path: Path
    columns: Mapping[str, str]
    rows: tuple[Mapping[str, str], ...]
    absent: tuple[str, ...]
    unlabelled: tuple[str, ...]


def slide_table(files: Files, columns: Mapping[str, str]) -> SlideTable | str:
    """The one table of slides in a folder; `columns` names those of the config. A text says why there is none."""
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
    at = {image.name: image for image in files.images}  # gdc-client gives each slide a folder of its own
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
