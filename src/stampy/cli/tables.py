"""HTML page with the tables of runs: results next to the paper's, plots, choices, missing inputs."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stampy
from stampy import _checks, _files, bench, pl
from stampy.bench._config_names import TASKS
from stampy.bench._export import NOTHING, Sheet, sheets
from stampy.bench._paper.pieces import grouped
from stampy.bench._table import RESULTS, ResultsAbout, about_results
from stampy.cli.pages import Picture, figure_of, png_of, render

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["write_tables"]

SAME = {"yes": "same", "no": "differs", "not known": "unknown"}
NEVER = "not known"


@dataclass(frozen=True)
class Comparison:
    """Results of a task next to the paper's: one row per system, three columns per metric (own, paper, difference)."""

    title: str
    heads: list[tuple[str, int]]
    rows: list[tuple[str, list[str]]]
    protocol: str
    n_open: int
    notes: list[str]


def write_tables(folder: str | Path, target: str | Path, *, title: str = "Tables") -> Path:
    """Write a page with the tables and plots of a run, or of all runs below a folder.

    Parameters
    ----------
    folder
        `out` of `stampy.bench.run`, or a folder with several of them. Their .png files are included.
    target
        Output path, .html.
    title
        Title of the page.

    Returns
    -------
    The path of the page.

    Raises
    ------
    FileNotFoundError
        There is no table of results.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    folder = _checks.existing(folder, what="folder of results")
    found = sorted(path.parent for path in folder.rglob(RESULTS) if not any(p.startswith(".") for p in path.parts))
    if not found:
        raise FileNotFoundError(f"No {RESULTS} below {str(folder)!r}. `stampy bench run` writes them.")
    runs = [_run(path, folder) for path in found]
    facts = {
        "runs": len(runs),
        "data sets": sum(len(run["datasets"]) for run in runs),
        "systems": len({name for run in runs for name in run["systems"]}),
        "figures": sum(run["n_figures"] for run in runs),
    }
    alone = [_file(path) for path in sorted(folder.glob("*.png"))] if folder not in found else []
    page = render("tables.html.j2", title=title, version=stampy.__version__, facts=facts, runs=runs, pictures=alone)
    with _files.atomic(Path(target).expanduser()) as beside:
        beside.write_text(page, "utf-8")
    return Path(target).expanduser()


def _run(path: Path, root: Path) -> dict[str, Any]:
    """Contents of the page for one run."""
    results = bench.read_results(path)
    about = about_results(path)
    ok = results[results["status"] == "ok"]
    whole = [sheet for sheet in sheets(results, reported=False) if sheet.header[-1] != "reason"]
    each = [sheet for sheet in sheets(results, sections=True, reported=False) if sheet.header[0] == "section"]
    compared, choices = bench.comparison(path), bench.protocol(path)
    return {
        "name": about.get("name") or path.name,
        "anchor": f"run-{path.relative_to(root).as_posix().replace('/', '-') if path != root else path.name}",
        "datasets": list(dict.fromkeys(results["dataset"])),
        "systems": list(dict.fromkeys(ok["system"])),
        "n_figures": len(ok),
        "beside": list(_comparisons(compared, choices)),
        "choices": _choices(choices),
        "pictures": [*_drawn(results), *(_file(png) for png in sorted(path.glob("*.png")))],
        "sheets": [_shown(sheet) for sheet in whole],
        "by_section": [_shown(sheet) for sheet in each],
        "missing": _missing(about),
        "left_out": [tuple(row) for row in bench.skipped(results).itertuples(index=False)],
    }


def _shown(sheet: Sheet) -> dict[str, Any]:
    numbers = range(2 if sheet.header[0] == "section" else 1, len(sheet.header))
    return {"title": sheet.title, "head": sheet.header, "rows": sheet.rows, "note": sheet.note, "numbers": numbers}


def _comparisons(table: pd.DataFrame, choices: pd.DataFrame) -> Iterator[Comparison]:
    for (dataset, task, metric), part in table.groupby(["dataset", "task", "metric"], sort=False):
        keys = list(dict.fromkeys(zip(part["variant"], part["metric"], strict=True)))
        keys = [k for k in keys if k[0]] or keys  # results of the paper have no variant
        kind = TASKS[str(task)]
        several = len({variant for variant, _ in keys}) > 1
        heads = [(f"{kind.metrics[m]}{f' ({v})' if several else ''}", 3) for v, m in keys]
        rows = [(str(s), _cells(part[part["system"] == s], keys)) for s in dict.fromkeys(part["system"])]
        mine = choices[(choices["dataset"] == dataset) & (choices["task"] == task)]
        notes = ["Lower is better."] if metric in kind.lower_is_better else []
        yield Comparison(
            title=f"{dataset}: {kind.about}", heads=heads, rows=rows, protocol=str(part["protocol"].iloc[0]),
            n_open=int((mine["same"] == "not known").sum()), notes=notes,
        )  # fmt: skip


def _cells(part: pd.DataFrame, keys: list[tuple[str, str]]) -> list[str]:
    """Own, paper and difference for each column; a result of the paper applies to all variants."""
    out = []
    for variant, metric in keys:
        mine = part[(part["metric"] == metric) & part["variant"].isin([variant, ""])]
        own = mine[mine["own"].notna()]
        paper = part.loc[part["metric"] == metric, "paper"].dropna()
        row = own.iloc[0] if len(own) else None
        out.append(NOTHING if row is None else _number(row["own"], row["std"]))
        out.append(f"{paper.iloc[0]:.3f}" if len(paper) else NEVER)
        out.append(NOTHING if row is None or not len(paper) else f"{row['own'] - paper.iloc[0]:+.3f}")
    return out


def _number(value: float, std: float) -> str:
    return f"{value:.3f}" + ("" if math.isnan(std) else f" ± {std:.3f}")


def _choices(table: pd.DataFrame) -> list[dict[str, Any]]:
    out = []
    for (dataset, task), part in table.groupby(["dataset", "task"], sort=False):
        rows = [(r.choice, r.here, r.paper, SAME[str(r.same)]) for r in part.itertuples()]
        out.append({"title": f"{dataset}: {TASKS[str(task)].about}", "rows": rows})
    return out


def _drawn(results: pd.DataFrame) -> Iterator[Picture]:
    """One plot per data set, to be legible on narrow screens."""
    summary = bench.summary(results)
    for dataset in dict.fromkeys(summary.loc[summary["status"] == "ok", "dataset"]):
        axes = pl.bench(summary, datasets=dataset)
        yield png_of(figure_of(axes), f"{dataset}: every system and task.")


def _file(path: Path) -> Picture:
    """A plot made by the user."""
    from PIL import Image

    with Image.open(path) as image:
        width = image.width
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"data:image/png;base64,{data}", path.stem.replace("_", " ").replace("-", " "), min(width, 1040))


def _missing(about: ResultsAbout) -> list[tuple[str, str, str]]:
    pieces = [bench.Piece(**piece) for piece in about.get("pieces", ())]
    return [
        (what, ", ".join(names), steps)
        for (what, steps, _), names in grouped([p for p in pieces if not p.found]).items()
    ]  # fmt: skip
