"""The paper's figures and one's own, side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy.bench._table import OVERALL, about_results, read_results, skipped, summary
from stampy.bench._task_options import TASKS

from .protocol import TASKS_OF, protocol, verdict

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["comparison"]

COLUMNS = ("dataset", "task", "metric", "variant", "system", "own", "std", "paper", "difference", "n_sections",
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
        told = verdict(choices, dataset, task)
        for row in _side_by_side(part, str(task)):
            why = _why(left, str(dataset), str(task), row["system"]) if math.isnan(row["own"]) else ""
            rows.append({"dataset": dataset, "task": task, **row, "protocol": told, "reason": why})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _side_by_side(part: pd.DataFrame, task: str) -> list[dict[str, Any]]:
    """Rows of one data set and task; a figure of the paper stands beside each variant, for it names none."""
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
