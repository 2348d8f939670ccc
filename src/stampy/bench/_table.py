"""The tidy table on disk, its means and standard deviations, and skipped combinations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import pandas as pd

from stampy import _checks, _files

from ._config_names import TASKS

if TYPE_CHECKING:
    from ._config import Config, DataSet, SectionConfig
    from ._paper.pieces import Found

__all__ = ["RESULTS", "about_results", "read_results", "skipped", "summary", "tidy", "write_results"]

RESULTS = "results.csv"
COLUMNS = ("dataset", "section", "system", "replicate", "seen", "task", "variant", "metric", "seed", "value", "chance",
           "n_spots", "status", "reason", "source")  # fmt: skip
TEXT = ("dataset", "section", "system", "seen", "task", "variant", "metric", "status", "reason", "source")
OVERALL = "all"
SEPARATOR = "; "  # names of systems may contain commas
GROUP = ["dataset", "task", "variant", "metric", "system"]


def tidy(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    """Add missing columns to rows, and make a table."""
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["replicate"] = table["replicate"].fillna(0).astype(int)
    for name in ("seed", "n_spots"):
        table[name] = table[name].astype("Int64")
    for name in ("value", "chance"):
        table[name] = table[name].astype(float)
    for name in TEXT:
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str)
    return table


class DataSetAbout(TypedDict):
    """Properties of a data set for the report and the comparison with the paper."""

    name: str
    known_as: str | None
    folds: str
    n_folds: int
    labels: str | None
    label_columns: list[str]
    sections: list[str]
    with_image: list[str]
    slides: dict[str, str]


class ResultsAbout(TypedDict, total=False):
    """Metadata of the results."""

    name: str
    seeds: list[int]
    systems: list[str]
    tasks: list[dict[str, Any]]  # `task`, and its options
    datasets: list[DataSetAbout]
    pieces: list[dict[str, Any]]  # fields of `Piece`


def write_results(results: pd.DataFrame, path: Path, config: Config, found: Found | None = None) -> None:
    """Write the table as .csv, with its metadata next to it."""
    with _files.atomic(path) as beside:
        results.to_csv(beside, index=False)
    about: ResultsAbout = {
        "name": config.name,
        "seeds": list(config.seeds),
        "systems": [s.name for s in config.systems],
        "tasks": [{"task": t.name, **t.options} for t in config.tasks],
        "datasets": [_about(data) for data in config.datasets],
        "pieces": [asdict(piece) for piece in found.pieces] if found else [],
    }
    with _files.atomic(path.with_suffix(".json")) as beside:
        beside.write_text(json.dumps(about, indent=1), "utf-8")


def _about(data: DataSet) -> DataSetAbout:
    """Properties of a data set for the report and the comparison with the paper."""
    columns = list(dict.fromkeys(_label_source(s, data) for s in data.sections)) if data.labels else []
    return {
        "name": data.name, "known_as": data.known_as, "folds": data.folds, "n_folds": data.n_folds,
        "labels": data.labels, "label_columns": columns, "sections": [s.name for s in data.sections],
        "with_image": [s.name for s in data.sections if s.image], "slides": dict(data.slides),
    }  # fmt: skip


def _label_source(section: SectionConfig, data: DataSet) -> str:
    column = section.column or str(data.labels)
    return f"{column} of {Path(section.labels).name}" if section.labels else f"obs[{column!r}]"


def about_results(folder: str | Path) -> ResultsAbout:
    """Read the metadata of `write_results`; empty if there are none."""
    path = Path(folder).expanduser() / RESULTS
    beside = path.with_suffix(".json")
    return json.loads(beside.read_text("utf-8")) if beside.is_file() else {}


def read_results(folder: str | Path) -> pd.DataFrame:
    """Read the table that `run` wrote.

    Parameters
    ----------
    folder
        `out` of the run, or the .csv itself.

    Returns
    -------
    As returned by `run`.

    Raises
    ------
    FileNotFoundError
        There is none.
    ValueError
        The file is not a table of results.

    Examples
    --------
    >>> import stampy
    >>> stampy.bench.read_results("nowhere")
    Traceback (most recent call last):
    FileNotFoundError: No folder of results at 'nowhere'...
    """
    path = _checks.existing(folder, what="folder of results")
    if path.is_dir():
        path = _checks.existing(path / RESULTS, what="table of results (made by `stampy bench run`)")
    with _checks.readable(path):
        table = pd.read_csv(path, keep_default_na=False, na_values={"seed": [""], "value": [""], "chance": [""],
                            "n_spots": [""]}, dtype=dict.fromkeys(TEXT, str))  # fmt: skip
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise ValueError(f"{str(path)!r} is not a table of `stampy bench run`: the columns {missing} are missing.")
    return tidy(table.to_dict("records"))


def summary(results: pd.DataFrame) -> pd.DataFrame:
    """Compute means and spread over seeds (and replicates), for every section and overall.

    Parameters
    ----------
    results
        Table from `run`.

    Returns
    -------
    One row for each `dataset`, `task`, `variant`, `metric`, `system` and `section`: `value` (mean), `std` (over seeds
    and replicates; NaN for one draw), `n_draws`, `chance`, `std_sections` (of the means of sections; only for
    ``"all"``), `n_sections`, `seen`, `status` ("ok" or "reported"), `source`. The section ``"all"`` is the unweighted
    mean over sections, unless a task has a separate figure for all spots together.

    Examples
    --------
    >>> import stampy
    >>> from stampy.bench._table import tidy
    >>> row = {"dataset": "D", "section": "s", "system": "PCA", "task": "probe", "metric": "accuracy", "status": "ok"}
    >>> results = tidy([row | {"seed": i, "value": v} for i, v in enumerate([0.5, 0.7])])
    >>> stampy.bench.summary(results)[["section", "value", "n_draws"]].values.tolist()
    [['all', 0.6, 2], ['s', 0.6, 2]]
    """
    known = results[results["status"] != "skipped"]
    rows = []
    for key, part in known.groupby(GROUP, sort=False):
        rows += _summarised(dict(zip(GROUP, key, strict=True)), part)
    columns = [*GROUP, "section", "value", "std", "n_draws", "chance", "std_sections", "n_sections", "seen", "status",
               "source"]  # fmt: skip
    return _in_order(pd.DataFrame(rows, columns=columns), results)


def _summarised(head: dict[str, str], part: pd.DataFrame) -> list[dict[str, Any]]:
    draws = ["replicate", "seed"]
    common = {k: part[k].iloc[0] for k in ("seen", "status", "source")}
    by_section = part[part["section"] != OVERALL]
    own = part[part["section"] == OVERALL]
    names = list(dict.fromkeys(by_section["section"]))
    means = by_section.groupby("section", sort=False)["value"].mean()
    whole = own if len(own) else by_section.groupby(draws, dropna=False, sort=False)[["value", "chance"]].mean()
    rows = [
        {
            **head, **common, "section": OVERALL, **_mean(whole), "n_sections": len(names),
            "std_sections": means.std(ddof=0) if len(names) > 1 else float("nan"),
        }
    ]  # fmt: skip
    for name in names:
        mine = by_section[by_section["section"] == name]
        rows.append({**head, **common, "section": name, **_mean(mine), "n_sections": 1})
    return rows


def _mean(part: pd.DataFrame) -> dict[str, Any]:
    n = len(part)
    spread = part["value"].std(ddof=1) if n > 1 else float("nan")
    return {"value": part["value"].mean(), "std": spread, "n_draws": n, "chance": part["chance"].mean()}


def _in_order(table: pd.DataFrame, results: pd.DataFrame) -> pd.DataFrame:
    """Sort in the order of the config."""
    place = {name: i for i, name in enumerate(dict.fromkeys(results["dataset"]))}
    tasks = {name: i for i, name in enumerate(TASKS)}
    keys = pd.DataFrame({"d": table["dataset"].map(place), "t": table["task"].map(tasks)})
    keys["r"] = table["status"] == "reported"
    return table.loc[keys.sort_values(["d", "t", "r"], kind="stable").index].reset_index(drop=True)


def skipped(results: pd.DataFrame) -> pd.DataFrame:
    """List skipped combinations: one row for each `dataset` and `reason`, with its sections, systems and tasks.

    Parameters
    ----------
    results
        Table from `run`.

    Returns
    -------
    Columns `dataset`, `sections`, `systems`, `tasks` (each a string), `reason`.

    Examples
    --------
    >>> import stampy
    >>> from stampy.bench._table import tidy
    >>> row = {"dataset": "D", "section": "s", "system": "UNI", "task": "probe", "status": "skipped", "reason": "gated"}
    >>> stampy.bench.skipped(tidy([row, row | {"task": "domains"}]))["tasks"].tolist()
    ['probe; domains']
    """
    rows = []
    left = results[results["status"] == "skipped"]
    for (dataset, reason), part in left.groupby(["dataset", "reason"], sort=False):
        names = {k + "s": SEPARATOR.join(dict.fromkeys(part[k])) for k in ("section", "system", "task")}
        rows.append({"dataset": dataset, **names, "reason": reason})
    return pd.DataFrame(rows, columns=["dataset", "sections", "systems", "tasks", "reason"])
