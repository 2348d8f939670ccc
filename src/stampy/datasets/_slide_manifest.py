"""Read and check tables of slides for classification; URL of the GDC's table of TCGA slides."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from stampy import _checks

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["gdc_query", "slide_manifest"]

GDC = "https://api.gdc.cancer.gov"
_GDC_FIELDS = (
    "file_id",
    "file_name",
    "md5sum",
    "file_size",
    "cases.submitter_id",
    "cases.samples.sample_type",
    "cases.diagnoses.ajcc_pathologic_stage",
)


def slide_manifest(
    path: str | Path,
    *,
    slide: str = "slide",
    patient: str = "patient",
    label: str = "label",
    md5: str | None = None,
    folder: str | Path | None = None,
) -> pd.DataFrame:
    r"""Read a table of slides with patient and label, and check it.

    Parameters
    ----------
    path
        Tab-separated (.tsv, .txt) or comma-separated (.csv) table with one row per slide.
    slide, patient, label
        Its columns. For the GDC's own table (see `gdc_query`): ``"file_name"``, ``"cases.0.submitter_id"`` and, say,
        ``"cases.0.diagnoses.0.ajcc_pathologic_stage"``.
    md5
        Column with MD5 sums (``"md5sum"`` in the GDC's table): every file is read and compared. None: not compared.
    folder
        Folder of relative paths; None: the folder of the table.

    Returns
    -------
    DataFrame with the index ``name`` (the file's name up to the first dot) and the columns ``slide`` (absolute path),
    ``patient``, ``label``, in the order of the table.

    Raises
    ------
    FileNotFoundError
        If the table or a slide is missing.
    KeyError
        If a column is missing.
    ValueError
        If the table is empty, a value is missing, two rows have the same name, a patient has two labels, or a hash is
        wrong.

    Examples
    --------
    >>> import pathlib, tempfile, stampy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pathlib.Path(folder, "slides.csv")
    ...     _ = pathlib.Path(folder, "A1.tif").write_bytes(b"")
    ...     _ = table.write_text("slide,patient,label\nA1.tif,A,tumour\n")
    ...     stampy.datasets.slide_manifest(table)[["patient", "label"]].loc["A1"].tolist()
    ['A', 'tumour']
    """
    import pandas as pd

    path = _checks.existing(path, what="manifest", suffixes=(".tsv", ".txt", ".csv"))
    with _checks.readable(path):
        raw = pd.read_csv(path, sep="," if path.suffix.lower() == ".csv" else "\t", dtype=str)
    for column in [slide, patient, label, *([md5] if md5 else [])]:
        _checks.has_key(
            list(raw), column, slot=path.name, needs="Name the columns with `slide=`, `patient=`, `label=`, `md5=`."
        )
    if raw.empty:
        raise ValueError(f"The manifest {str(path)!r} has no rows.")
    base = Path(folder).expanduser() if folder is not None else path.parent
    table = pd.DataFrame(
        {
            "slide": [str((base / p).resolve()) if isinstance(p, str) else None for p in raw[slide]],
            "patient": raw[patient],
            "label": raw[label],
        }
    )
    _check_filled(table)
    table.index = pd.Index([Path(p).name.split(".")[0] for p in table["slide"]], name="name")
    _check_unique(table)
    _check_files(table, raw[md5].tolist() if md5 else None)
    return table


def _check_filled(table: pd.DataFrame) -> None:
    for column in table:
        missing = table.index[table[column].isna()]
        if len(missing):
            raise ValueError(
                f"The column {column!r} is empty in {len(missing)} of {len(table)} rows (first: row {missing[0] + 2}). "
                "Fill it in, or remove those rows."
            )


def _check_unique(table: pd.DataFrame) -> None:
    twice = table.index[table.index.duplicated()]
    if len(twice):
        raise ValueError(f"{len(twice)} slides are there twice, or share a name: {_checks.shortlist(twice, 3)}.")
    n_labels = table.groupby("patient")["label"].nunique()
    mixed = n_labels.index[n_labels > 1]
    if len(mixed):
        raise ValueError(
            f"{len(mixed)} patients have slides of different labels (first: {_checks.shortlist(mixed, 3)}). "
            "Cross-validation by patient needs one label for each; give one, or remove these slides."
        )


def _check_files(table: pd.DataFrame, md5: list[str] | None) -> None:
    missing = [p for p in table["slide"] if not Path(p).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} of {len(table)} slides do not exist (first: {missing[0]!r}). "
            "Give the folder that paths start from with `folder=`."
        )
    for path, known in zip(table["slide"], md5 or [], strict=False):
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
        if found != known.lower():
            raise ValueError(f"{path!r} has MD5 {found}, expected {known}. Copy or download it again.")


def gdc_query(project: str = "TCGA-LUAD", *, strategy: str = "Diagnostic Slide") -> str:
    """Address of the Genomic Data Commons that lists the open-access slides of a project as a table.

    The table states id, size and MD5 sum of each file, so every download can be verified. stampy has no list of these
    files. A file is at ``https://api.gdc.cancer.gov/data/FILE_ID``; the slides of a project take hundreds of GB. Save
    the table as ``gdc.tsv``, download the listed files, and read the table with
    ``slide_manifest("gdc.tsv", slide="file_name", ..., md5="md5sum")``.

    Parameters
    ----------
    project
        Such as ``"TCGA-LUAD"``.
    strategy
        ``"Diagnostic Slide"`` (formalin-fixed, of full quality) or ``"Tissue Slide"`` (frozen).

    Returns
    -------
    The address.

    Raises
    ------
    ValueError
        If `strategy` is neither, or `project` is empty.

    Examples
    --------
    >>> import stampy
    >>> stampy.datasets.gdc_query("TCGA-LUAD").split("?")[0]
    'https://api.gdc.cancer.gov/files'
    """
    _checks.one_of("strategy", strategy, ("Diagnostic Slide", "Tissue Slide"))
    if not project.strip():
        raise ValueError("`project` is empty. Name a project of the GDC, such as 'TCGA-LUAD'.")
    wanted = {
        "cases.project.project_id": project,
        "data_format": "SVS",
        "experimental_strategy": strategy,
        "access": "open",
    }
    content = [{"op": "in", "content": {"field": field, "value": [value]}} for field, value in wanted.items()]
    filters = json.dumps({"op": "and", "content": content}, separators=(",", ":"))
    query = {"filters": filters, "fields": ",".join(_GDC_FIELDS), "format": "TSV", "size": 10_000}
    return f"{GDC}/files?{urlencode(query, quote_via=quote)}"
