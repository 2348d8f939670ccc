"""Manifest of a corpus from HEST's table, without sections used to evaluate models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stampy import _checks

__all__ = ["hest_evaluation", "hest_manifest"]

_TABLE = re.compile(r"HEST_v(\d+)_(\d+)_(\d+)\.csv")
_PLACES = (".", "metadata", "assets")
REQUIRED = ("id", "species", "organ", "st_technology")
SPECIES = {"human": "Homo sapiens", "mouse": "Mus musculus"}
# columns of the manifest -> columns of HEST's table
_COLUMNS = {
    "species": "species",
    "platform": "st_technology",
    "organ": "organ",
    "patient": "patient",
    "study": "dataset_title",
}
COLUMNS = ("path", "name", "image", "um_per_px", *_COLUMNS)


def hest_manifest(
    folder: str | Path,
    *,
    species: str | Sequence[str] | None = None,
    platform: str | Sequence[str] | None = None,
    organ: str | Sequence[str] | None = None,
    disease: str | Sequence[str] | None = None,
    exclude: Iterable[str] = (),
    exclude_evaluation: bool = True,
    images: bool = True,
) -> pd.DataFrame:
    """Create a manifest of a HEST folder, for `stampy corpus build`.

    The folder has the layout of the data set on the hub (``MahmoodLab/hest``): ``HEST_v*.csv``, ``st/ID.h5ad``,
    ``wsis/ID.tif``. If there are several tables, the newest version is read. A part of the data set is enough: sections
    with missing files are skipped with a warning.

    Parameters
    ----------
    folder
        Folder of HEST.
    species
        ``"human"``, ``"mouse"``, or as in the table ("Homo sapiens"); one or several. None: all.
    platform, organ, disease
        Values of the table's columns ``st_technology`` ("Visium", "Visium HD", "Xenium", "Spatial Transcriptomics"),
        ``organ`` and ``disease_state``; one or several, in any case of letters. None: all.
    exclude
        One or several ids of further sections to exclude.
    exclude_evaluation
        Exclude the sections that are in a data set of the paper's tables (`hest_evaluation`).
    images
        Require the whole-slide image. False: keep sections without image, for stage 1.

    Returns
    -------
    One row per section, in the order of the table: ``path``, ``name`` (HEST's id), ``image``, ``um_per_px`` (estimated
    from the spots, else as the slide states it), ``species``, ``platform``, ``organ``, ``patient`` and ``study``. Its
    ``attrs``: ``"left_out"`` (id -> why), ``"spots"`` (id -> spots under tissue by the table), ``"table"`` (file name).

    Raises
    ------
    FileNotFoundError
        There is no table.
    KeyError
        The table lacks a column.
    ValueError
        A filter names a value that the table does not have, an id occurs twice, or no section remains.

    Warns
    -----
    StampyWarning
        Files of sections are missing, evaluation sections are kept, or the table does not state a value of a filtered
        column or the spots of a section.

    Examples
    --------
    >>> import stampy, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = stampy.datasets.toy_hest(folder, n_sections=2, n_spots=20)
    ...     manifest = stampy.datasets.hest_manifest(folder, species="human")
    >>> manifest["name"].tolist(), manifest.attrs["left_out"]
    (['TOY1', 'TOY2'], {'TENX13': 'HBC'})
    """
    folder = _checks.existing(folder, what="folder of HEST")
    exclude = {exclude} if isinstance(exclude, str) else set(exclude)
    path = _newest(folder)
    table = _read(path)
    wanted = {"species": species, "st_technology": platform, "organ": organ, "disease_state": disease}
    chosen = _filtered(table, wanted, path.name)
    _warn_of_doubts(table, chosen, wanted, path.name, exclude_evaluation)
    out = _left_out(chosen, exclude, exclude_evaluation)
    _check_ids(table, exclude, path.name)
    chosen = chosen[~chosen["id"].isin(out)]
    manifest = pd.DataFrame(list(_rows(chosen, folder)), columns=list(COLUMNS))
    manifest, missing = _existing(manifest, images)
    if manifest.empty:
        such = f", such as {next(iter(missing.values()))!r}" if missing else ""
        raise ValueError(
            f"No section is left of the {len(table):,} in {path.name}: {len(chosen) + len(out):,} fit the filters, "
            f"{len(out)} of these are excluded on purpose, {len(missing)} lack files{such}."
        )
    _report(missing, chosen, out, exclude_evaluation)
    manifest.attrs = {"left_out": out, "spots": _spots(chosen, manifest["name"]), "table": path.name}
    return manifest


def hest_evaluation() -> pd.DataFrame:
    """List the sections of HEST that are in a data set of the paper's tables and must not be used for training.

    Returns
    -------
    One row per section: ``id``, ``data_set`` ("DLPFC", "HBC", "HER2+", "PSC", "HHK"), ``known`` ("certain": the same
    study and sections; "likely": the paper does not name its source), ``how`` and ``source``. TCGA-LUAD has no section
    in HEST.

    Examples
    --------
    >>> hest_evaluation()["data_set"].value_counts().to_dict()
    {'HER2+': 36, 'HHK': 23, 'DLPFC': 12, 'PSC': 4, 'HBC': 2}
    """
    found = _evaluation()
    rows = [
        {"id": name, **{key: entry[key] for key in ("data_set", "known", "how")}, "source": found["source"]}
        for entry in found["data_sets"]
        for name in entry["ids"]
    ]
    return pd.DataFrame(rows)


@cache
def _evaluation() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((files("stampy.datasets") / "hest_evaluation.json").read_text(encoding="utf-8"))
    for entry in found["data_sets"]:
        entry["ids"] = [name for text in entry["ids"] for name in _expanded(text)]
    return found


def _expanded(text: str) -> Iterator[str]:
    """Expand SPA119-154 to SPA119, SPA120, ..."""
    match = re.fullmatch(r"([A-Z]+)(\d+)-(\d+)", text)
    if match is None:
        yield text
    else:
        yield from (f"{match[1]}{i}" for i in range(int(match[2]), int(match[3]) + 1))


def _newest(folder: Path) -> Path:
    found = [
        (tuple(map(int, match.groups())), path)
        for place in _PLACES
        for path in (folder / place).glob("HEST_v*.csv")
        if (match := _TABLE.fullmatch(path.name))
    ]
    if not found:
        raise FileNotFoundError(
            f"{str(folder)!r} has no table HEST_v*.csv. It is at the top of the data set on the hub: `hf download "
            "MahmoodLab/hest --repo-type dataset --include 'HEST_v*.csv' --local-dir ...`."
        )
    return max(found)[1]


def _read(path: Path) -> pd.DataFrame:
    with _checks.readable(path):
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    for column in REQUIRED:
        _checks.has_key(table.columns, column, slot=path.name, needs="HEST's table has it in every version since 1.0.")
    table = table.apply(lambda column: column.str.strip())
    twice = table["id"][table["id"].duplicated() | (table["id"] == "")].unique()
    if len(twice):
        raise ValueError(f"{path.name}: ids occur twice or are empty: {_checks.shortlist(twice)}.")
    return table


def _filtered(table: pd.DataFrame, wanted: dict[str, str | Sequence[str] | None], name: str) -> pd.DataFrame:
    chosen = table
    for column, values in wanted.items():
        if values is None:
            continue
        values = _texts(column, values)
        if column == "species":
            values = [SPECIES.get(value.lower(), value) for value in values]
        _checks.has_key(table.columns, column, slot=name, needs="The filter looks there.")
        known = {value.lower(): value for value in table[column].unique()}
        for value in values:
            if value.lower() not in known:
                raise ValueError(
                    f"{name} has no {column} {value!r}. It has {_checks.shortlist(sorted(known.values()), 40)}."
                )
        chosen = chosen[chosen[column].str.lower().isin([value.lower() for value in values])]
    return chosen


def _texts(column: str, values: str | Sequence[str]) -> list[str]:
    found = [values] if isinstance(values, str) else list(values) if isinstance(values, Iterable) else [values]
    if wrong := [value for value in found if not isinstance(value, str)]:
        raise TypeError(f"The filter on `{column}` must be text or a list of texts, found {wrong[0]!r}.")
    return found


def _warn_of_doubts(
    table: pd.DataFrame, chosen: pd.DataFrame, wanted: dict[str, Any], name: str, evaluation: bool
) -> None:
    """Warn of missing values in a filtered column, of invalid numbers, and of a missing column of studies."""
    for column in (column for column, values in wanted.items() if values is not None):
        if empty := table["id"][table[column] == ""].tolist():
            _checks.warn(
                f"{name} states no {column} for {len(empty)} sections, which the filter leaves out: "
                f"{_checks.shortlist(empty)}."
            )
    for column in (column for column in _PIXEL_SIZES if column in chosen):
        value = pd.to_numeric(chosen[column], errors="coerce")
        wrong = ~(chosen[column].str.lower().isin(("", "nan", "none"))) & ~((value > 0) & np.isfinite(value))
        if wrong.any():
            _checks.warn(
                f"{name}: `{column}` of {int(wrong.sum())} sections is not a positive number and is not used: "
                f"{_checks.shortlist(chosen['id'][wrong])}."
            )
    spots = _spots(chosen, chosen["id"])
    if unknown := [section for section in chosen["id"] if section not in spots]:
        _checks.warn(
            f"{name} states no number of spots (`spots_under_tissue`) for {len(unknown)} sections, which numbers of "
            f"spots do not include: {_checks.shortlist(unknown)}."
        )
    if evaluation and "dataset_title" not in table:
        _checks.warn(
            f"{name} has no column `dataset_title`: sections of evaluation data are recognised by id alone, those that "
            "later versions of HEST added are not."
        )


_PIXEL_SIZES = ("pixel_size_um_estimated", "pixel_size_um_embedded")


def _check_ids(table: pd.DataFrame, exclude: Iterable[str], name: str) -> None:
    unknown = sorted(set(exclude) - set(table["id"]))
    if unknown:
        raise ValueError(f"`exclude` names sections that {name} does not have: {_checks.shortlist(unknown)}.")


def _left_out(table: pd.DataFrame, exclude: set[str], evaluation: bool) -> dict[str, str]:
    """Id -> reason for sections that are excluded on purpose."""
    out = {name: "as asked for" for name in table["id"] if name in exclude}
    return (_shared(table) if evaluation else {}) | out


def _shared(table: pd.DataFrame) -> dict[str, str]:
    """Id -> data set of the paper, by id or study title, since later versions may have more of its sections."""
    title = table["dataset_title"] if "dataset_title" in table else pd.Series("", index=table.index)
    found: dict[str, str] = {}
    for entry in _evaluation()["data_sets"]:
        own = table["id"].isin(entry["ids"]) | title.str.lower().isin([t.lower() for t in entry["titles"]])
        found |= dict.fromkeys(table["id"][own], entry["data_set"])
    return found


def _rows(table: pd.DataFrame, folder: Path) -> Iterator[dict[str, Any]]:
    for row in table.to_dict("records"):
        image = row.get("image_filename") or f"{row['id']}.tif"
        if Path(image).name != image or Path(row["id"]).name != row["id"]:
            raise ValueError(f"Section {row['id']!r} of HEST's table leads out of the folder (image {image!r}).")
        yield {
            "path": str(folder / "st" / f"{row['id']}.h5ad"),
            "name": row["id"],
            "image": str(folder / "wsis" / image),
            "um_per_px": _pixel_um(row),
            **{ours: row.get(theirs, "") for ours, theirs in _COLUMNS.items()},
        }


def _pixel_um(row: dict[str, str]) -> float:
    """Pixel size estimated by HEST from the spots, else as stated by the slide; NaN if unknown."""
    for column in _PIXEL_SIZES:
        value = pd.to_numeric(row.get(column, ""), errors="coerce")
        if np.isfinite(value) and value > 0:
            return float(value)
    return float("nan")


def _existing(manifest: pd.DataFrame, images: bool) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows whose files exist, and the missing files of the others."""
    counts = manifest["path"].map(lambda path: Path(path).is_file()).astype(bool)
    image = manifest["image"].map(lambda path: Path(path).is_file()).astype(bool)
    wrong = ~counts | (~image if images else False)
    what = np.where(~counts, manifest["path"], manifest["image"])
    missing = dict(zip(manifest["name"][wrong], what[wrong], strict=True))
    found = manifest[~wrong].reset_index(drop=True)
    found["image"] = found["image"].where(image[~wrong].to_numpy(), "")
    return found, missing


def _report(missing: dict[str, str], chosen: pd.DataFrame, out: dict[str, str], exclude_evaluation: bool) -> None:
    if missing:
        names = list(missing)
        _checks.warn(
            f"{len(missing):,} of {len(chosen):,} sections are skipped, because a file is missing: "
            f"{_checks.shortlist(missing.values())}. `hf download MahmoodLab/hest --repo-type dataset --include "
            f"'*{names[0]}[_.]*' --local-dir ...` downloads the files of a section."
        )
    kept = {} if exclude_evaluation else _shared(chosen)
    if kept:
        _checks.warn(
            f"{len(kept)} sections are kept that the paper's tables are computed on "
            f"({_checks.shortlist(dict.fromkeys(kept.values()))}): {_checks.shortlist(kept)}. Do not compare a model "
            "that is trained on them there."
        )


def _spots(table: pd.DataFrame, names: pd.Series) -> dict[str, int]:
    if "spots_under_tissue" not in table:
        return {}
    numbers = pd.to_numeric(table.set_index("id")["spots_under_tissue"].reindex(names), errors="coerce")
    return {name: int(n) for name, n in numbers.items() if np.isfinite(n) and n >= 0}


def hest_counts(manifest: pd.DataFrame) -> pd.DataFrame:
    """Sections and spots by organ (rows) and platform, with sums, for the command line."""
    spots = manifest["name"].map(manifest.attrs["spots"]).fillna(0).astype(int)
    table = manifest.assign(spots=spots, **{c: manifest[c].replace("", "(not stated)") for c in ("organ", "platform")})
    shared = {"index": "organ", "columns": "platform", "fill_value": 0, "margins": True, "margins_name": "all"}
    sections = table.pivot_table(values="name", aggfunc="count", **shared)
    by_spots = table.pivot_table(values="spots", aggfunc="sum", **shared)
    sections["spots"] = by_spots["all"]
    return sections.astype(int).rename_axis(columns=None)
