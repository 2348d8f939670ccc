"""Comparison of systems: one dot per result, with its spread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks
from stampy.pl._drawing.panel import on_page

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

LEGEND_INCHES, ROW_INCHES = 5.0, 0.2  # the legend of narrower figures has one column; a row of it
COLUMNS = 4  # panels per row, legible on a page
OURS, OTHERS, SECTION = "#003C5F", "#B5541C", "#A9C8DF"
# metric -> heading; the first available metric of each task is plotted
METRICS = {
    "probe": {"balanced_accuracy": "balanced accuracy", "weighted_f1": "weighted F1", "accuracy": "accuracy"},
    "domains": {"ari": "ARI", "nmi": "NMI", "ami": "AMI"},
    "retrieve": {"recall@10": "recall@10", "recall@5": "recall@5", "recall@1": "recall@1"},
    "expression": {"pearson": "Pearson's r", "mse": "MSE"},
    "masked": {"top10": "top-10 accuracy", "top1": "top-1 accuracy"},
    "slide": {"auc": "AUC", "balanced_accuracy": "balanced accuracy"},
}
TITLES = {"probe": "probe", "domains": "domains", "retrieve": "retrieve", "expression": "expression",
          "masked": "masked genes", "slide": "slides"}  # fmt: skip
MARKS = {"yes": " †", "unknown": " ?", "no": ""}
SAID = {"yes": "† trained on the data", "unknown": "? unknown whether trained on the data"}


def bench(
    summary: pd.DataFrame,
    *,
    datasets: str | Sequence[str] | None = None,
    tasks: str | Sequence[str] | None = None,
    metric: str | None = None,
    reported: bool = True,
    ax: Axes | None = None,
) -> Axes | list[Axes]:
    """Plot a comparison: one panel per data set and task, one dot per system.

    Dark dots are means over sections and seeds, with one standard deviation over seeds; pale dots are sections. Open
    diamonds are reported figures. The dashed line is chance.

    Parameters
    ----------
    summary
        Table from `stampy.bench.summary`.
    datasets, tasks
        Only these.
    metric
        Metric to plot, for one task; None: balanced accuracy, ARI, ``recall@10``, Pearson's r, top-10 accuracy, AUC.
    reported
        Plot reported figures.
    ax
        Axes for a single panel.

    Returns
    -------
    The Axes, or a list of Axes for several panels. ``†`` marks systems that were trained on the data, ``?`` systems for
    which this is unknown.

    Raises
    ------
    ValueError
        Nothing to plot, an unknown name, or `ax` with several panels.

    Examples
    --------
    >>> import pandas as pd, stampy
    >>> row = {"dataset": "D", "task": "probe", "variant": "", "metric": "balanced_accuracy", "section": "all",
    ...        "value": 0.5, "std": 0.1, "chance": 0.2, "status": "ok", "seen": "no"}
    >>> stampy.pl.bench(pd.DataFrame([row | {"system": s} for s in ("PCA", "mine")])).get_xlabel()
    'balanced accuracy'
    """
    import matplotlib.pyplot as plt

    table = _chosen(summary, datasets, tasks, metric, reported)
    columns = list(dict.fromkeys(zip(table["task"], table["variant"], strict=True)))
    columns = _stampy_first(table, columns)
    panels = {d: [c for c in columns if len(_panel(table, d, c))] for d in dict.fromkeys(table["dataset"])}
    if ax is not None:
        drawn = [(d, c) for d, wanted in panels.items() for c in wanted]
        if len(drawn) > 1:
            raise ValueError(f"`ax` takes one panel, but there are {len(drawn)}. Name one data set and one task.")
        data, column = drawn[0]
        _draw(ax, _panel(table, data, column), _names(table, data), first=True, title=_title(column))
        return ax
    rows = [(d, wanted[i : i + COLUMNS]) for d, wanted in panels.items() for i in range(0, len(wanted), COLUMNS)]
    heights = [0.7 + 0.24 * len(_names(table, d)) for d, _ in rows]
    width = max(len(wanted) for _, wanted in rows)
    figure, axes = plt.subplots(
        len(rows), width, figsize=(2.6 + 1.55 * width, sum(heights) + 0.5 * len(rows)),
        height_ratios=heights, squeeze=False, layout="constrained",
    )  # fmt: skip
    shown = []
    for i, (data, wanted) in enumerate(rows):
        for j, column in enumerate(wanted):
            _draw(axes[i, j], _panel(table, data, column), _names(table, data), first=j == 0, title=_title(column))
        shown += list(axes[i, : len(wanted)])
        for spare in axes[i, len(wanted) :]:
            spare.remove()
        if i == 0 or rows[i - 1][0] != data:
            axes[i, 0].annotate(
                data, (0, 1), (0, 22), xycoords="axes fraction", textcoords="offset points", fontweight="bold",
                ha="right", va="bottom", parse_math=False,
            )  # fmt: skip
    _legend(figure, shown[0], table)
    return shown[0] if len(shown) == 1 else shown


def _legend(figure: Any, ax: Axes, table: pd.DataFrame) -> None:
    """Legend of the marks, below the panels."""
    from matplotlib.lines import Line2D

    ours = table[table["status"] == "ok"]
    points: dict[str, Any] = {"linestyle": "", "markersize": 5}
    marks = []
    if len(ours):
        marks.append(Line2D([], [], marker="o", color=on_page(ax, OURS), label="mean ± 1 SD over seeds", **points))
    if (ours["section"] != "all").any():
        marks.append(Line2D([], [], marker="o", color=on_page(ax, SECTION), label="one section", **points))
    if (table["status"] == "reported").any():
        marks.append(
            Line2D([], [], marker="D", color=on_page(ax, OTHERS), markerfacecolor="none", label="reported", **points)
        )
    if ours["chance"].notna().any():
        marks.append(Line2D([], [], color=on_page(ax, "0.4"), linestyle="--", linewidth=0.8, label="chance"))
    marks += [Line2D([], [], linestyle="", label=text) for seen, text in SAID.items() if (ours["seen"] == seen).any()]
    wide = figure.get_figwidth() > LEGEND_INCHES
    figure.legend(handles=marks, loc="outside lower center", ncols=3 if wide else 1, fontsize="small", frameon=False)
    if not wide:
        figure.set_figheight(figure.get_figheight() + ROW_INCHES * len(marks))


def _chosen(summary: pd.DataFrame, datasets: Any, tasks: Any, metric: str | None, reported: bool) -> pd.DataFrame:
    """Rows to plot, with one metric per task."""
    for column in ("dataset", "task", "variant", "metric", "section", "value", "status", "system"):
        _checks.has_key(summary.columns, column, slot="summary", needs="Pass the table of `stampy.bench.summary`.")
    table = summary if reported else summary[summary["status"] != "reported"]
    for name, wanted in (("dataset", datasets), ("task", tasks)):
        if wanted is not None:
            wanted = [wanted] if isinstance(wanted, str) else list(wanted)
            for one in wanted:
                _checks.one_of(f"{name}s", one, sorted(set(table[name])))
            table = table[table[name].isin(wanted)]
    if metric is not None:
        _checks.one_of("metric", metric, sorted(set(table["metric"])))
        table = table[table["metric"] == metric]
    parts = [
        part[part["metric"] == next((m for m in METRICS.get(task, {}) if (part["metric"] == m).any()), metric)]
        for task, part in table.groupby("task", sort=False)
    ]
    if not sum(map(len, parts)):
        raise ValueError(
            "There is nothing to draw: the summary has no figure. `stampy.bench.skipped` states the reasons."
        )
    import pandas as pd

    return pd.concat(parts)


def _stampy_first(table: pd.DataFrame, columns: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Panels of computed results; reported results, which name no variant, go to the first panel of their task."""
    ours = table[table["status"] == "ok"]
    have = list(dict.fromkeys(zip(ours["task"], ours["variant"], strict=True)))
    return have + [c for c in columns if c[0] not in {task for task, _ in have}]


def _panel(table: pd.DataFrame, data: str, column: tuple[str, str]) -> pd.DataFrame:
    task, variant = column
    mine = table[(table["dataset"] == data) & (table["task"] == task)]
    variants = list(dict.fromkeys(table.loc[(table["task"] == task) & (table["status"] == "ok"), "variant"]))
    strays = (
        (mine["status"] == "reported") & (~mine["variant"].isin(variants)) & (variant in variants[:1] or not variants)
    )
    return mine[(mine["variant"] == variant) | strays]


def _names(table: pd.DataFrame, data: str) -> list[tuple[str, str]]:
    """Systems of a data set with their status; computed results first."""
    mine = table[table["dataset"] == data]
    names = list(dict.fromkeys(zip(mine["system"], mine["status"], strict=True)))
    return sorted(names, key=lambda pair: pair[1] == "reported")


def _title(column: tuple[str, str]) -> str:
    task, variant = column
    return TITLES.get(task, task) + (f": {variant}" if variant and task != "probe" else "")


def _draw(ax: Axes, part: pd.DataFrame, names: list[tuple[str, str]], *, first: bool, title: str) -> None:
    marks = {}
    for y, (name, status) in enumerate(names):
        mine = part[(part["system"] == name) & (part["status"] == status)]
        whole, sections = mine[mine["section"] == "all"], mine[mine["section"] != "all"]
        if len(sections) > 1:
            ax.plot(
                sections["value"], np.full(len(sections), y), "o", color=on_page(ax, SECTION), markersize=4, zorder=2
            )
        if len(whole):
            row = whole.iloc[0]
            theirs = status == "reported"
            style: dict[str, Any] = (
                {"fmt": "D", "markerfacecolor": "none", "color": on_page(ax, OTHERS)}
                if theirs
                else {"fmt": "o", "color": on_page(ax, OURS)}
            )
            spread = None if np.isnan(row["std"]) else row["std"]
            ax.errorbar(row["value"], y, xerr=spread, markersize=5, elinewidth=1.4, capsize=2, zorder=3, **style)
            marks[y] = "" if theirs else MARKS[row["seen"]]
    chance = part.loc[(part["section"] == "all") & (part["status"] == "ok"), "chance"].mean()
    if not np.isnan(chance):
        ax.axvline(chance, color=on_page(ax, "0.4"), linestyle="--", linewidth=0.8, zorder=1)
    metric = part["metric"].iloc[0]
    ax.set_xlabel(METRICS.get(part["task"].iloc[0], {}).get(metric, metric), fontsize="small")
    ax.set_ylim(len(names) - 0.5, -0.5)
    labels = [name + marks.get(y, "") + (" (reported)" if s == "reported" else "") for y, (name, s) in enumerate(names)]
    ax.set_yticks(range(len(names)), labels if first else [""] * len(names), parse_math=False)
    ax.set_title(title, fontsize="small", parse_math=False)
    ax.grid(axis="y", color=on_page(ax, "0.92"), zorder=0)
    _limit(ax, part, chance)
    ax.tick_params(labelsize="small", length=2)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _limit(ax: Axes, part: pd.DataFrame, chance: float) -> None:
    """From 0, or below, to the highest value with its deviation, or chance, with a margin."""
    from matplotlib.ticker import MaxNLocator

    values, spread = part["value"].to_numpy(dtype=float), part["std"].fillna(0).to_numpy(dtype=float)
    low = min(0.0, np.nanmin(values - spread))
    high = max(np.nanmax(values + spread), 0.0 if np.isnan(chance) else chance)
    ax.set_xlim(low - 0.06 * (high - low), high + 0.1 * (high - low or 1.0))
    ax.xaxis.set_major_locator(MaxNLocator(3))
