"""Export of tables as Markdown, LaTeX and HTML."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from stampy import _checks

from ._config_names import TASKS, TaskKind
from ._table import OVERALL, SEPARATOR, skipped, summary

__all__ = ["Sheet", "sheets", "to_html", "to_latex", "to_markdown"]

SEEN = {"yes": "†", "unknown": "?", "no": ""}
LEGEND = "† trained on these data; ? unknown whether it was. ± is the standard deviation over seeds; best in bold."
NOTHING = "–"


@dataclass(frozen=True)
class Cell:
    """Text of a cell, and whether it is the best of its column."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """One table."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def sheets(
    results: pd.DataFrame, *, sections: bool = False, tasks: Sequence[str] | None = None, reported: bool = True
) -> list[Sheet]:
    """One table per data set and task, one with published results next to it, and one table of skipped combinations."""
    for task in tasks or ():
        _checks.one_of("tasks", task, TASKS)
    found = summary(results)
    out = []
    for (dataset, task), part in found.groupby(["dataset", "task"], sort=False):
        if tasks is not None and task not in tasks:
            continue
        ours, theirs = part[part["status"] == "ok"], part[part["status"] == "reported"]
        if len(ours):
            out.append(_sheet(f"{dataset}: {TASKS[task].about}", ours, task, sections))
        if reported:
            for source, figures in theirs.groupby("source", sort=False):
                sheet = _sheet(f"{dataset}: {TASKS[task].about}, as reported elsewhere", figures, task, sections=False)
                note = f"{source}. Reported by the authors, not computed here; data, folds and models may differ."
                out.append(Sheet(sheet.title, sheet.header, [[Cell(c.text) for c in row] for row in sheet.rows], note))
    left = skipped(results)
    left = left if tasks is None else left[left["tasks"].map(lambda t: bool(set(t.split(SEPARATOR)) & set(tasks)))]
    return [*out, _left_out(left)] if len(left) else out


def _left_out(left: pd.DataFrame) -> Sheet:
    """One row per reason."""
    rows = []
    for reason, part in left.groupby("reason", sort=False):
        names = {k: list(dict.fromkeys(SEPARATOR.join(part[k]).split(SEPARATOR))) for k in ("systems", "tasks")}
        where = [f"{r.dataset} ({r.sections})" if r.sections != r.dataset else r.dataset for r in part.itertuples()]
        cells = [SEPARATOR.join(where), SEPARATOR.join(names["systems"]), SEPARATOR.join(names["tasks"]), str(reason)]
        rows.append([Cell(text) for text in cells])
    return Sheet("Skipped combinations", ["data set (sections)", "systems", "tasks", "reason"], rows)


def _sheet(title: str, part: pd.DataFrame, task: str, sections: bool) -> Sheet:
    kind = TASKS[task]
    part = part[part["metric"].isin(kind.shown)]
    order = {metric: i for i, metric in enumerate(kind.shown)}
    pairs = list(dict.fromkeys(zip(part["variant"], part["metric"], strict=True)))
    variants = list(dict.fromkeys(variant for variant, _ in pairs))
    pairs.sort(key=lambda pair: (variants.index(pair[0]), order[pair[1]]))
    names = [OVERALL]
    several = part["n_sections"].max() > 1
    if sections and several:
        names += [name for name in dict.fromkeys(part["section"]) if name != OVERALL]
    rows = [row for name in names for row in _rows(part[part["section"] == name], pairs, kind, name, len(names) > 1)]
    many = len(variants) > 1
    heads = [f"{variant}, {kind.metrics[metric]}" if many else kind.metrics[metric] for variant, metric in pairs]
    note = LEGEND if (part["status"] == "ok").all() else ""
    if several and note:
        note += f" Mean of {int(part['n_sections'].max())} sections."
    return Sheet(title, [*(["section"] if len(names) > 1 else []), "system", *heads], rows, note)


def _rows(part: pd.DataFrame, pairs: list, kind: TaskKind, section: str, named: bool) -> list[list[Cell]]:
    """One row per system, and one for chance if known."""
    values = part.set_index(["system", "variant", "metric"])
    best = {}
    for variant, metric in pairs:
        mine = part[(part["variant"] == variant) & (part["metric"] == metric)]["value"].round(3)
        best[variant, metric] = mine.min() if metric in kind.lower_is_better else mine.max()
    systems = list(dict.fromkeys(part["system"]))
    rows = []
    for system in systems:
        cells = []
        for pair in pairs:
            if (system, *pair) not in values.index:
                cells.append(Cell(NOTHING))
                continue
            row = values.loc[(system, *pair)]
            is_best = len(systems) > 1 and round(row["value"], 3) == best[pair] and not pair[1].startswith("majority")
            cells.append(Cell(_figure(row["value"], row["std"]), is_best))
        mark = SEEN[part.loc[part["system"] == system, "seen"].iloc[0]] if (part["status"] == "ok").all() else ""
        rows.append([*([Cell(section)] if named else []), Cell(f"{system} {mark}".strip()), *cells])
    chances = [part.loc[(part["variant"] == v) & (part["metric"] == m), "chance"].mean() for v, m in pairs]
    if not all(math.isnan(c) for c in chances):
        cells = [Cell(NOTHING if math.isnan(c) else _figure(c)) for c in chances]
        rows.append([*([Cell(section)] if named else []), Cell(kind.chance), *cells])
    return rows


def _figure(value: float, std: float = math.nan) -> str:
    if math.isnan(value):
        return NOTHING
    return f"{value:.3f}" + ("" if math.isnan(std) else f" ± {std:.3f}")


def to_markdown(
    results: pd.DataFrame, *, sections: bool = False, tasks: Sequence[str] | None = None, reported: bool = True,
    level: int = 3,
) -> str:  # fmt: skip
    """Export the results as Markdown tables.

    Parameters
    ----------
    results
        Table from `run` or `read_results`.
    sections
        Also show a row for each section, below the mean over sections.
    tasks
        Names of the tasks to show; None: all.
    reported
        Show published figures, in separate tables below the computed ones.
    level
        Level of the headings.

    Returns
    -------
    Text. The best figures are bold. ``†`` marks a system that was trained on the data, ``?`` a system for which this is
    unknown. Skipped combinations are listed at the end, with the reasons.

    Examples
    --------
    >>> import stampy
    >>> from stampy.bench._table import tidy
    >>> row = {"dataset": "D", "section": "s", "task": "retrieve", "metric": "recall@1", "status": "ok", "seen": "no"}
    >>> print(stampy.bench.to_markdown(tidy([row | {"system": "mine", "value": 0.25, "chance": 0.1}])))
    ### D: retrieval of a spot's own counterpart among the first k of its section
    <BLANKLINE>
    | system | recall@1 |
    |---|---|
    | mine | 0.250 |
    | chance | 0.100 |
    <BLANKLINE>
    † trained on these data; ? unknown whether it was. ± is the standard deviation over seeds; best in bold.
    <BLANKLINE>
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |"

    out = []
    for sheet in sheets(results, sections=sections, tasks=tasks, reported=reported):
        out += [f"{'#' * level} {sheet.title}", "", line(sheet.header), "|" + "---|" * len(sheet.header)]
        out += [line([f"**{c.text}**" if c.best else c.text for c in row]) for row in sheet.rows]
        out += ["", *([sheet.note, ""] if sheet.note else [])]
    return "\n".join(out)


LATEX = {
    **{c: f"\\{c}" for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\dag",
    "±": r"$\pm$",
    "–": "--",
    "µ": r"\textmu{}",
    "→": r"$\to$",
    "×": r"$\times$",
}


def to_latex(
    results: pd.DataFrame, *, sections: bool = False, tasks: Sequence[str] | None = None, reported: bool = True
) -> str:
    r"""Export the results as LaTeX tables (package booktabs); parameters as for `to_markdown`.

    Returns
    -------
    Text, one ``table`` environment for each.

    Examples
    --------
    >>> import stampy
    >>> from stampy.bench._table import tidy
    >>> row = {"dataset": "D_1", "section": "s", "task": "probe", "metric": "balanced_accuracy", "status": "ok"}
    >>> text = stampy.bench.to_latex(tidy([row | {"system": "mine", "value": 0.25, "seen": "no"}]))
    >>> r"\caption{D\_1: linear probe of the labels" in text, r"mine & 0.250 \\" in text
    (True, True)
    """

    def safe(text: str) -> str:
        return "".join(LATEX.get(c, c) for c in text)

    out = []
    for sheet in sheets(results, sections=sections, tasks=tasks, reported=reported):
        columns = "l" * (1 + (sheet.header[0] == "section")) + "r" * (len(sheet.header) - 1)
        columns = columns[: len(sheet.header)] if sheet.header[-1] != "reason" else r"*{4}{p{0.22\linewidth}}"
        rows = [
            " & ".join(rf"\textbf{{{safe(c.text)}}}" if c.best else safe(c.text) for c in row) for row in sheet.rows
        ]
        out += [
            r"\begin{table}", r"\centering", rf"\caption{{{safe(sheet.title)}. {safe(sheet.note)}}}",
            rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(map(safe, sheet.header)) + r" \\", r"\midrule",
            *[row + r" \\" for row in rows], r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
        ]  # fmt: skip
    return "\n".join(out)


STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.6em 0}th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right}
th{border-bottom:2px solid #888}th:first-child,td:first-child,td.t{text-align:left}p{color:#555}img{max-width:100%}
h2{font-size:1.1em;margin-top:2em}"""


def to_html(
    results: pd.DataFrame,
    *,
    picture: str | Path | None = None,
    title: str = "Comparison",
    sections: bool = False,
    tasks: Sequence[str] | None = None,
    reported: bool = True,
) -> str:
    """Export the results as one self-contained HTML page; further parameters as for `to_markdown`.

    Parameters
    ----------
    results
        Table from `run` or `read_results`.
    picture
        A .png to show above the tables, such as a plot of `stampy.pl.bench`.
    title
        Title of the page.
    sections, tasks, reported
        As for `to_markdown`.

    Returns
    -------
    Text.

    Examples
    --------
    >>> import stampy
    >>> from stampy.bench._table import tidy
    >>> row = {"dataset": "D", "section": "s", "task": "probe", "metric": "balanced_accuracy", "status": "ok"}
    >>> text = stampy.bench.to_html(tidy([row | {"system": "<mine>", "value": 0.25, "seen": "no"}]))
    >>> "&lt;mine&gt;" in text
    True
    """
    safe = html.escape
    out = ["<!doctype html>", f'<html lang="en"><head><meta charset="utf-8"><title>{safe(title)}</title>',
           f"<style>{STYLE}</style></head><body>", f"<h1>{safe(title)}</h1>"]  # fmt: skip
    if picture is not None:
        data = base64.b64encode(_checks.existing(picture, what="picture", suffixes=(".png",)).read_bytes()).decode()
        out.append(f'<img alt="Scores of all systems" src="data:image/png;base64,{data}">')
    for sheet in sheets(results, sections=sections, tasks=tasks, reported=reported):
        text = ' class="t"' if sheet.header[-1] == "reason" else ""
        out += [f"<h2>{safe(sheet.title)}</h2>", "<table><thead><tr>"]
        out += [*(f"<th>{safe(name)}</th>" for name in sheet.header), "</tr></thead><tbody>"]
        for row in sheet.rows:
            cells = [f"<b>{safe(c.text)}</b>" if c.best else safe(c.text) for c in row]
            out.append("<tr>" + "".join(f"<td{text}>{c}</td>" for c in cells) + "</tr>")
        out += ["</tbody></table>", *([f"<p>{safe(sheet.note)}</p>"] if sheet.note else [])]
    return "\n".join([*out, "</body></html>", ""])
