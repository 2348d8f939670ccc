"""Labels of spots in an AnnData table or a text file: their column, and the meaning of the words."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy._labels import is_missing_label

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LabelTable", "cortical_layer", "label_table", "obs_of", "sample_column", "word"]

BARCODE = re.compile(r"[ACGT]{10,}")
SAMPLES = ("sample_name", "sample_id", "library_id", "sample", "slice", "section", "section_id", "batch", "Batch",
           "slice_id", "sample_ID", "region")  # fmt: skip
LARGEST = 64 * 2**20  # a table of labels has one line per spot


def cortical_layer(value: object) -> str | None:
    """Cortical layer of a word, as "L1" to "L6" and "WM"; None for a missing label, KeyError for other words.

    >>> [cortical_layer(w) for w in ("Layer1", "Layer_2", "L3", "4", "wm", "NA")]
    ['L1', 'L2', 'L3', 'L4', 'WM', None]
    """
    text = word(value)
    if text is None:
        return None
    layer = re.fullmatch(r"(?:layer[ _]?|l)?([1-6])(?:\.0)?", text, re.IGNORECASE)
    if layer:
        return f"L{layer[1]}"
    if re.fullmatch(r"wm|white[ _]?matter", text, re.IGNORECASE):
        return "WM"
    raise KeyError(text)


def word(value: object) -> str | None:
    """A label without surrounding spaces; None for a missing label."""
    text = str(value).strip().strip('"')
    return None if is_missing_label(text) or text in ("", "None", "nan", "<NA>", "NA") else text


def obs_of(path: Path) -> pd.DataFrame:
    """Read only `obs` of an .h5ad or zarr store; ValueError if this fails."""
    from stampy._io.input_files import hdf5, reading
    from stampy._section.outside_links import refuse_links

    refuse_links(path)
    if path.is_file() and path.name.lower().endswith(".h5ad"):
        with hdf5(path) as file:
            return _frame(file, path)
    import zarr

    with reading(path):
        group = zarr.open_group(str(path), mode="r")
        return _frame(group, path)


def _frame(group: Any, path: Path) -> pd.DataFrame:
    import anndata
    import pandas as pd

    if "obs" not in group:
        raise ValueError(f"{str(path)!r} has no obs: it is not a table of spots.")
    obs = anndata.io.read_elem(group["obs"])
    if isinstance(obs, pd.DataFrame):
        return obs
    adata = anndata.read_h5ad(path, backed="r")  # written by anndata before 0.7
    try:
        return adata.obs.copy()
    finally:
        adata.file.close()


def sample_column(obs: pd.DataFrame, names: Collection[str]) -> str | None:
    """Column with the section of each spot: the first with one of `names` and more than one value."""
    known = set(names)
    columns = [c for c in SAMPLES if c in obs] + [c for c in obs if c not in SAMPLES and obs[c].nunique() <= 100]
    for column in columns:
        if known & {plain(v) for v in obs[column].dropna().unique()}:
            return str(column)
    return None


def plain(value: object) -> str:
    """Name of a section as text: 151507.0 is 151507.

    >>> plain(151507.0), plain("151507")
    ('151507', '151507')
    """
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


@dataclass(frozen=True)
class LabelTable:
    """Labels from a text file: barcodes, their section if stated, and the labels as written."""

    path: Path
    column: str
    barcodes: tuple[str, ...]
    sections: tuple[str, ...] | None
    labels: tuple[str, ...]


def label_table(
    path: Path, columns: Sequence[str], names: Collection[str], means: Callable[[object], str | None]
) -> LabelTable | None:
    """Read a text file as a table of labels, with or without header; None if it is not one.

    The column with the most barcodes contains the barcodes. The labels are the first of `columns` in the header, or
    without header the last column in which all words have a meaning.
    """
    rows = _rows(path)
    if rows is None:
        return None
    head, rows = (rows[0], rows[1:]) if not any(BARCODE.search(field) for field in rows[0]) else (None, rows)
    if not rows:
        return None
    width = len(rows[0])
    if head is not None and len(head) == width - 1:  # format of R with row names
        head = ["", *head]
    if any(len(row) != width for row in rows) or (head is not None and len(head) != width):
        return None
    values = list(zip(*rows, strict=True))
    at = [sum(bool(BARCODE.search(v)) for v in column) for column in values]
    if max(at) < 0.9 * len(rows):
        return None
    barcode = at.index(max(at))
    section = next((i for i, c in enumerate(values) if i != barcode and _names_sections(c, set(names), means)), None)
    label = _label_column(head, values, columns, means, {barcode, section})
    if label is None:
        return None
    sections = None if section is None else tuple(values[section])
    name = head[label] if head is not None else f"column {label + 1}"
    return LabelTable(path, name, tuple(values[barcode]), sections, tuple(values[label]))


def _names_sections(column: Sequence[str], names: set[str], means: Callable[[object], str | None]) -> bool:
    """Whether a column gives the section of each row: all values are in `names`, or some are and the others may be."""
    words = set(column)
    if words <= names:
        return True
    return bool(words & names) and all(len(w) > 2 for w in words) and not _meaningful(column, means)


def _label_column(head: Any, values: Any, columns: Any, means: Any, taken: set[int | None]) -> int | None:
    if head is not None:
        return next((head.index(c) for c in columns if c in head), None)
    for i in reversed(range(len(values))):
        if i not in taken and _meaningful(values[i], means):
            return i
    return None


def _meaningful(values: Sequence[str], means: Callable[[object], str | None]) -> bool:
    words = set(values)
    if len(words) > 100:
        return False
    try:
        # all words are checked, since the order of a set differs between processes
        return {means(value) for value in words} != {None}
    except KeyError:
        return False


def _rows(path: Path) -> list[list[str]] | None:
    """Lines of a text file as fields; None if it is not a small text table."""
    if path.stat().st_size > LARGEST:
        return None
    opened = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rt", encoding="utf-8", newline="") as stream:
            first = stream.readline(LARGEST)
            delimiter = "\t" if "\t" in first else "," if "," in first else " "
            if len(first.split(delimiter)) > 200:  # a matrix of counts
                return None
            text = first + stream.read(LARGEST + 1)
            if len(text) > LARGEST:  # compressed file with large contents
                return None
            rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    except (UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile):
        return None
    return rows if len(rows) > 1 else None
