"""Text tables with any separator, quotes and line ends; counts read in blocks; tables of coordinates."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks
from stampy._io.assemble import as_counts
from stampy._io.input_files import listed, opened, reading, refuse

__all__ = [
    "ENDINGS",
    "TableLayout",
    "Wide",
    "coordinates_table",
    "is_coordinates",
    "layout_of",
    "rows_of",
    "table",
    "tables_in",
    "wide_counts",
    "xy_of",
]

ENDINGS = (".csv", ".tsv", ".txt", ".tab")
_HEAD = 2**16
_SMALL = 2**21  # bytes; smaller tables are held in memory as a whole
_BLOCK = 2**25  # values of a table of counts that are dense in memory at a time
_BOMS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class TableLayout(NamedTuple):
    """Layout of a table, inferred from its first lines."""

    separator: str
    encoding: str
    comments: int  # lines before the header
    header: list[str]  # fields of the first line
    row: list[str]  # fields of the second line; empty without one

    @property
    def named(self) -> list[str]:
        """Column names; R omits the first one."""
        return ["", *self.header] if len(self.row) == len(self.header) + 1 else self.header

    @property
    def decimal(self) -> str:
        """Decimal mark: a comma only if columns are separated by semicolons."""
        return (
            ","
            if self.separator == ";" and any(_is_number(v.replace(",", ".")) and "," in v for v in self.row)
            else "."
        )


def is_table(path: Path) -> bool:
    """Whether a file name is that of a table."""
    name = path.name.lower().removesuffix(".gz")
    return path.is_file() and name.endswith(ENDINGS)


def layout_of(path: Path, *, comment: str = "#", content: bytes | None = None) -> TableLayout:
    """Separator, encoding, header and first line of a table; ValueError if it is empty or not text.

    `content`: contents of the file, if already read.
    """
    with reading(path), opened(path) if content is None else io.BytesIO(content) as stream:
        head = stream.read(_HEAD)
        while head and b"\n" not in head and (more := stream.read(2**20)):  # a header of 20,000 genes is long
            head += more
        if head.count(b"\n") == 1 or not head.endswith(b"\n"):
            head += stream.readline()
    encoding = next((e for bom, e in _BOMS.items() if head.startswith(bom)), "utf-8")
    with reading(path):
        lines = head.decode(encoding, errors="strict" if encoding == "utf-8" else "ignore").splitlines()
    comments = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith(comment)), len(lines))
    lines = [line for line in lines[comments:] if line.strip()][:2]
    if not lines or "\0" in lines[0]:
        raise refuse(f"{str(path)!r} is not a table: it is empty or not a text file.")
    separator = _separator(lines[-1] if len(lines) == 2 else lines[0])
    rows = [_split(line, separator) for line in lines]
    if len(rows) == 2 and len(rows[1]) == len(rows[0]) + 1 and not rows[1][-1]:
        rows[1].pop()  # lines end with a separator
    return TableLayout(separator, encoding, comments, rows[0], rows[1] if len(rows) == 2 else [])


def _separator(line: str) -> str:
    counts = {s: line.count(s) for s in ("\t", ";", ",")}
    if ";" in line and counts[","] and counts[";"] >= counts[","]:
        return ";"  # commas are decimal marks
    best = max(counts, key=lambda s: counts[s])
    return best if counts[best] else (r"\s+" if " " in line.strip() else ",")


def _split(line: str, separator: str) -> list[str]:
    if separator == r"\s+":
        return [v.strip("\"'") for v in line.split()]
    return [v.strip() for v in next(csv.reader([line], delimiter=separator))]


def _is_number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def headed(layout: TableLayout) -> bool:
    """Whether the first line is a header: no number where the second line has one."""
    return not any(_is_number(v) for v in layout.header[1:]) if len(layout.header) > 1 else True


def table(path: Path, *, dtype: Mapping[str, type] | None = None) -> pd.DataFrame:
    """Read a table by extension and content: .parquet, or text of any layout with a header."""
    if path.name.lower().endswith(".parquet"):
        with reading(path):
            return pd.read_parquet(path)
    with reading(path), opened(path) as stream:
        content = stream.read(_SMALL)
        whole = content if not stream.read(1) else None  # a large file is opened again
    layout = layout_of(path, content=whole)
    return read_text(path, layout, names=layout.named, skip=layout.comments + 1, dtype=dtype, content=whole)


def read_text(
    path: Path,
    layout: TableLayout,
    *,
    names: Sequence[str | int] | None,
    skip: int,
    dtype: Mapping[str, type] | None = None,
    content: bytes | None = None,
) -> pd.DataFrame:
    """Read a table with pandas in its layout; `content`: contents of the file, if already read."""
    with reading(path), opened(path) if content is None else io.BytesIO(content) as stream:
        return pd.read_csv(stream, sep=layout.separator, encoding=layout.encoding, header=None, skiprows=skip,
                           names=names, decimal=layout.decimal, index_col=False, low_memory=False,
                           dtype=dtype)  # fmt: skip


def rows_of(path: Path) -> pd.DataFrame:
    """Read a table of names without header (barcodes, features) as text, with columns by number."""
    with reading(path), opened(path) as stream:
        return pd.read_csv(stream, sep="\t", header=None, keep_default_na=False, dtype=str, encoding="utf-8-sig")


class Wide(NamedTuple):
    """Table of counts: values, names of rows and columns, and the columns without counts."""

    x: sparse.csr_matrix
    rows: list[str]
    columns: list[str]
    keys: pd.DataFrame


def wide_counts(path: Path, *, keys: Sequence[str] = (), fractions: bool = True) -> Wide:
    """Read a table of counts as CSR; `keys` are columns without counts (default: the first, with names of rows).

    Whole numbers become int32; fractions are kept with a warning, or refused.
    """
    layout = layout_of(path)
    names = layout.named
    if len(names) < 2 or not layout.row:
        raise refuse(f"{str(path)!r} is not a table of counts: it has {len(names)} columns and only a header.")
    aside = [names.index(k) for k in keys] if keys else [0]
    counted = [i for i in range(len(names)) if i not in aside]
    blocks, found = [], []
    with reading(path), opened(path) as stream:
        reader = pd.read_csv(stream, sep=layout.separator, encoding=layout.encoding, header=None,
                             names=range(len(names)), skiprows=layout.comments + 1, decimal=layout.decimal,
                             index_col=False,
                             chunksize=max(_BLOCK // len(names), 64), converters=dict.fromkeys(aside, str),
                             keep_default_na=True, na_filter=True)  # fmt: skip
        for block in reader:
            values = block.iloc[:, 1:] if aside == [0] else block[counted]
            text = [names[c] for c, kind in values.dtypes.items() if kind.kind not in "iufb"]
            if text:
                raise refuse(f"{str(path)!r} has text in the column {text[0]!r} where counts were expected.")
            blocks.append(_sparse(values.to_numpy()))
            found.append(block[aside])
    if not blocks:
        raise refuse(f"{str(path)!r} has no rows of counts.")
    x = sparse.vstack(blocks, format="csr") if len(blocks) > 1 else blocks[0]
    x = sparse.csr_matrix((as_counts(x.data, path, fractions=fractions), x.indices, x.indptr), shape=x.shape)
    left = pd.concat(found, ignore_index=True).set_axis([names[i] for i in aside], axis=1)
    return Wide(x, left.iloc[:, 0].astype(str).tolist(), [names[i] for i in counted], left)


def _sparse(dense: np.ndarray) -> sparse.csr_matrix:
    """Convert to CSR, faster than scipy, which finds the non-zero values twice."""
    by_row = np.ascontiguousarray(dense)
    places = np.flatnonzero(by_row)
    indptr = np.searchsorted(places, np.arange(dense.shape[0] + 1) * dense.shape[1])
    indices = (places % max(dense.shape[1], 1)).astype(np.int32)
    return sparse.csr_matrix((by_row.ravel()[places], indices, indptr), shape=dense.shape)


# names of x and y in lower case; the first pair that exists is used
_XY = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres"), ("pixel_x", "pixel_y"), ("imagecol", "imagerow"),
    ("xcoord", "ycoord"), ("x_coord", "y_coord"), ("x_centroid", "y_centroid"), ("center_x", "center_y"),
    ("sdimx", "sdimy"), ("spatial_x", "spatial_y"), ("x_um", "y_um"), ("x", "y"), ("spatial_1", "spatial_2"),
    ("spatial1", "spatial2"), ("coord_x", "coord_y"), ("cx", "cy"), ("xc", "yc"), ("centroid_x", "centroid_y"),
    ("globalx", "globaly"), ("array_col", "array_row"), ("col", "row"),
)  # fmt: skip
_BARCODES = ("barcode", "barcodes", "cell_id", "cellid", "cell", "spot", "spot_id", "spotid", "bead", "id", "name",
             "cell_barcode", "beads", "spots", "index", "unnamed: 0", "")  # fmt: skip
_MAX_COLUMNS = 200  # of a table of coordinates; tables of counts have one column per gene or spot


def tables_in(folder: Path) -> dict[Path, TableLayout]:
    """Readable tables in a folder, with their layouts."""
    found = {}
    for path in listed(folder):
        if is_table(path):
            try:
                found[path] = layout_of(path)
            except ValueError as error:  # text that is not a table
                if path.stat().st_size:
                    _checks.warn(f"{path.name} is ignored: {error}")
    return found


def xy_of(columns: list[str]) -> tuple[str, str] | None:
    """Columns of x and y."""
    names = {str(c).lower(): c for c in columns}
    return next(((names[x], names[y]) for x, y in _XY if x in names and y in names), None)


def is_coordinates(layout: TableLayout) -> bool:
    """Whether a table has one position per line: by column names, or a name and two numbers."""
    if len(layout.named) > _MAX_COLUMNS or not layout.row:
        return False
    if headed(layout):
        return xy_of(layout.named) is not None
    return len(layout.header) == 3


def coordinates_table(path: Path, layout: TableLayout | None = None) -> pd.DataFrame:
    """Spots by name, with columns x and y and all other columns of the table."""
    layout = layout or layout_of(path)
    if not headed(layout):
        return read_text(path, layout, names=["name", "x", "y"], skip=layout.comments, dtype={"name": str}).set_index(
            "name"
        )
    xy = xy_of(layout.named)
    if xy is None:
        raise refuse(f"{str(path)!r} has the columns {layout.named[:12]}; coordinates such as x and y were expected.")
    names = {c.lower(): c for c in layout.named}
    key = next((names[n] for n in _BARCODES if n in names), layout.named[0])
    if key in xy:
        raise refuse(f"{str(path)!r} has coordinates, but no column that names the spots: {layout.named[:12]}.")
    frame = table(path, dtype={key: str}).set_index(key).rename_axis(None)
    for other, column in (("x", xy[0]), ("y", xy[1])):
        if other in frame and column != other:
            frame = frame.drop(columns=other)
    frame = frame.rename(columns=dict(zip(xy, ("x", "y"), strict=True)))
    frame.index = frame.index.astype(str)
    return frame


def share(names: pd.Index, known: pd.Index) -> float:
    """Fraction of known names, also without their suffix -1."""
    exact = float(names.isin(known).mean()) if len(names) else 0.0
    if exact:
        return exact
    plain = known.astype(str).str.replace(r"-\d+$", "", regex=True)
    return float(np.mean(names.astype(str).str.replace(r"-\d+$", "", regex=True).isin(plain))) if len(names) else 0.0
