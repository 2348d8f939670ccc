"""All choices behind a table compared with the paper's, and results next to those of the paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from stampy import _checks
from stampy.bench._config_names import TASKS
from stampy.bench._table import OVERALL, about_results, read_results, skipped, summary

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["NOT_KNOWN", "comparison", "protocol", "protocol_verdict"]

NOT_KNOWN = "not known"
COLUMNS = ("dataset", "task", "choice", "here", "paper", "same")
FOLDS = {
    "blocks": "{n} spatial blocks of each section",
    "random": "{n} random folds of each section",
    "section": "each of {n} sections held out in turn",
    "patient": "patients held out, {n} folds",
}
Data: TypeAlias = Mapping[str, Any]
Options: TypeAlias = Mapping[str, Any]
# choice, value here, and what is known of the paper (only from its summary)
Choice: TypeAlias = tuple[str, Callable[[Data, Options], str], str, str]


def _folds(data: Data, _: Options) -> str:
    n = data.get("n_folds")
    return FOLDS[data["folds"]].format(n=n) if n else f"{data['folds']} (number not recorded)"


def _sections(data: Data, _: Options) -> str:
    names = data.get("sections")
    if names is None:
        return "not recorded"
    return f"{len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" if names else "whole slides"


def _labels(data: Data, _: Options) -> str:
    return " or ".join(str(c) for c in data.get("label_columns") or [data.get("labels") or "none"])


def _images(data: Data, _: Options) -> str:
    given, names = data.get("with_image"), data.get("sections") or []
    if given is None or not names:
        return "not recorded"
    return f"full resolution for {len(given)} of {len(names)} sections, else what the section holds; tiles of 112 µm"


def _methods(_: Data, options: Options) -> str:
    return ", ".join(options.get("methods", ())) or str(options.get("method", ""))


def _as(text: str) -> Callable[[Data, Options], str]:
    return lambda data, options: text


COMMON: tuple[Choice, ...] = (("sections", _sections, NOT_KNOWN, NOT_KNOWN),)
CHOICES: dict[str, tuple[Choice, ...]] = {
    "probe": (
        ("labels", _labels, NOT_KNOWN, NOT_KNOWN),
        ("spots without a label", _as("left out"), NOT_KNOWN, NOT_KNOWN),
        ("images", _images, "112 µm squares of the slide", NOT_KNOWN),
        ("features", _as("frozen, standardised by the training spots"), "frozen", "yes"),
        ("classifier", _methods, "a linear probe", "yes"),
        ("penalty, class weights", _as("that of tl.probe; classes weigh the same"), NOT_KNOWN, NOT_KNOWN),
        ("folds", _folds, NOT_KNOWN, NOT_KNOWN),
        ("mean", _as("over sections, then over seeds"), NOT_KNOWN, NOT_KNOWN),
    ),
    "domains": (
        ("labels", _labels, NOT_KNOWN, NOT_KNOWN),
        ("features", _as("as embedded, no reduction"), NOT_KNOWN, NOT_KNOWN),
        ("clustering", _methods, NOT_KNOWN, NOT_KNOWN),
        ("number of clusters", _as("that of the labels of the section"), NOT_KNOWN, NOT_KNOWN),
        ("sections together", _as("each section by itself, then the mean"), NOT_KNOWN, NOT_KNOWN),
        ("spatial refinement of clusters", _as("none"), NOT_KNOWN, NOT_KNOWN),
    ),
    "expression": (
        ("genes", lambda d, o: f"{o.get('n_top_genes')} most variable of the sections", NOT_KNOWN, NOT_KNOWN),
        ("normalisation", lambda d, o: str(o.get("transform")), NOT_KNOWN, NOT_KNOWN),
        ("regressor", _methods, "a linear probe on the frozen image encoder", "yes"),
        ("penalty, steps", _as("those of tl.expression"), NOT_KNOWN, NOT_KNOWN),
        ("folds", _folds, NOT_KNOWN, NOT_KNOWN),
        ("MSE", _as("mean over spots and genes of the normalised values"), NOT_KNOWN, NOT_KNOWN),
        ("r", _as("over the spots of a section, mean over genes"), NOT_KNOWN, NOT_KNOWN),
        ("images", _images, "112 µm squares of the slide", NOT_KNOWN),
    ),
    "slide": (
        ("label", lambda d, o: str(d.get("slides", {}).get("label", "label")), NOT_KNOWN, NOT_KNOWN),
        ("pooling", _methods, "ABMIL on frozen features", "yes"),
        ("folds", _folds, NOT_KNOWN, NOT_KNOWN),
        ("tiles", _as("112 µm, those with tissue"), NOT_KNOWN, NOT_KNOWN),
        ("epochs, learning rate", _as("those of tl.slide"), NOT_KNOWN, NOT_KNOWN),
    ),
}
TASKS_OF = {  # the paper's tables
    "DLPFC": ("probe", "domains"), "HBC": ("probe", "domains"), "PSC": ("expression",), "HHK": ("expression",),
    "HER2+": ("expression",), "TCGA-LUAD": ("slide",),
}  # fmt: skip
LIKE = {"classifier": {"logistic", "ridge"}, "regressor": {"linear", "ridge"}, "pooling": {"abmil"}}


def protocol(folder: str | Path) -> pd.DataFrame:
    """List every choice behind the figures of a run, and what is known of the paper.

    stampy's authors know a summary of the paper. A choice that the summary does not state is "not known"; the paper or
    its code may state it.

    Parameters
    ----------
    folder
        `out` of `stampy.bench.run`.

    Returns
    -------
    One row per choice: `dataset`, `task`, `choice`, `here`, `paper`, `same` (``"yes"``, ``"no"``, ``"not known"``).
    Data sets and tasks that are not in the paper are omitted.

    Examples
    --------
    >>> import stampy, tempfile
    >>> config = {"datasets": [{"name": "toy", "sections": ["toy"], "labels": "domain", "known_as": "DLPFC"}],
    ...           "systems": ["pca"], "tasks": ["probe"], "seeds": [0]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = stampy.bench.run(config, folder, show_progress_bar=False)
    ...     table = stampy.bench.protocol(folder).set_index("choice")
    >>> table.loc["folds", ["here", "paper"]].tolist()
    ['5 spatial blocks of each section', 'not known']
    """
    import pandas as pd

    about = about_results(_checks.existing(folder, what="folder of a run"))
    rows = [
        {"dataset": data["name"], "task": task["task"], **row}
        for data in about.get("datasets", ()) if (known := data.get("known_as"))
        for task in about.get("tasks", ()) if task["task"] in TASKS_OF[known]
        for row in _rows(data, task)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _rows(data: Data, task: Options) -> list[dict[str, str]]:
    out = []
    for choice, here, paper, same in (*COMMON, *CHOICES[task["task"]]):
        done = here(data, task)
        if choice in LIKE and not set(done.split(", ")) & LIKE[choice]:
            same = "no"
        out.append({"choice": choice, "here": done, "paper": paper, "same": same})
    return out


def protocol_verdict(table: pd.DataFrame, dataset: str, task: str) -> str:
    """Summary of whether the protocol of a task matches the paper's."""
    mine = table[(table["dataset"] == dataset) & (table["task"] == task)]
    if not len(mine):
        return NOT_KNOWN
    differ, open_ = (mine["same"] == "no").sum(), (mine["same"] == NOT_KNOWN).sum()
    if differ:
        return f"differs in {differ} of {len(mine)} choices"
    return f"{open_} of {len(mine)} choices not known" if open_ else "the same"


COMPARED = ("dataset", "task", "metric", "variant", "system", "own", "std", "paper", "difference", "n_sections",
           "protocol", "reason")  # fmt: skip
PAPER = "Han et al."


def comparison(folder: str | Path) -> pd.DataFrame:
    """Compare the figures of a run with those of the paper.

    Parameters
    ----------
    folder
        `out` of `stampy.bench.run` on a config of the paper's tables.

    Returns
    -------
    One row for each `dataset`, `task`, `metric`, `variant` (of the method) and `system`: `own` (mean over sections and
    seeds), `std` (over seeds), `paper`, `difference` (own - paper), `n_sections`, `protocol` (whether it is that of the
    paper; `stampy.bench.protocol` lists all choices), `reason` (why `own` is missing). NaN if a figure is not known or
    was not computed. Metrics are those that the paper is known to report, otherwise those of the tables.

    Examples
    --------
    >>> import stampy, tempfile
    >>> config = {"datasets": [{"name": "toy", "sections": ["toy"], "labels": "domain", "known_as": "DLPFC"}],
    ...           "systems": [{"name": "PCA", "model": "pca"}], "tasks": ["probe"], "seeds": [0],
    ...           "reported": [{"dataset": "toy", "system": "PCA", "task": "probe", "metric": "balanced_accuracy",
    ...                         "value": 0.25, "source": "Han et al."}]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = stampy.bench.run(config, folder, show_progress_bar=False)
    ...     row = stampy.bench.comparison(folder).iloc[0]
    >>> bool(row["own"] - row["paper"] == row["difference"]), row["paper"].item()
    (True, 0.25)
    """
    import pandas as pd

    results = read_results(folder)
    choices, whole = protocol(folder), summary(results)
    known = {d["name"]: name for d in about_results(folder).get("datasets", ()) if (name := d.get("known_as"))}
    pairs = zip(whole["dataset"], whole["task"], strict=True)
    asked = np.array([d in known and t in TASKS_OF[known[d]] for d, t in pairs], dtype=bool)
    whole = whole[(whole["section"] == OVERALL).to_numpy() & asked]
    left = skipped(results)
    rows = []
    for (dataset, task), part in whole.groupby(["dataset", "task"], sort=False):
        told = protocol_verdict(choices, dataset, task)
        for row in _side_by_side(part, str(task)):
            why = _why(left, str(dataset), str(task), row["system"]) if math.isnan(row["own"]) else ""
            rows.append({"dataset": dataset, "task": task, **row, "protocol": told, "reason": why})
    return pd.DataFrame(rows, columns=list(COMPARED))


def _side_by_side(part: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """Rows of one data set and task; a result of the paper is listed with each variant, since the paper names none."""
    ours, theirs = part[part["status"] == "ok"], part[part["source"].str.startswith(PAPER)]
    paper = {(r.system, r.metric): r.value for r in theirs.itertuples()}
    metrics = [m for m in TASKS[task].metrics if m in set(theirs["metric"])] or list(TASKS[task].shown)
    rows = []
    for metric in metrics:
        mine = ours[ours["metric"] == metric]
        for r in mine.itertuples():
            figure = paper.get((r.system, metric), math.nan)
            rows.append({"metric": metric, "variant": r.variant, "system": r.system, "own": r.value, "std": r.std,
                         "paper": figure, "difference": r.value - figure, "n_sections": r.n_sections})  # fmt: skip
        for (system, name), figure in paper.items():
            if name == metric and system not in set(mine["system"]):
                rows.append({"metric": metric, "variant": "", "system": system, "own": math.nan, "std": math.nan,
                             "paper": figure, "difference": math.nan, "n_sections": 0})  # fmt: skip
    return rows


def _why(left: pd.DataFrame, dataset: str, task: str, system: str) -> str:
    for row in left[left["dataset"] == dataset].itertuples():
        if system in str(row.systems).split("; ") and task in str(row.tasks).split("; "):
            return str(row.reason)
    return "not among the systems of this run"
