"""Curves of a training run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from stampy import _checks
from stampy.pl._drawing.paint import SAFE
from stampy.pl._drawing.panel import on_page, page_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES = (3.6, 2.7)
NEEDED = ("step", "loss")
TITLES = {
    "igr_masked": "igr at masked positions",
    "igr_replaced": "igr at replaced positions",
    "igr_kept": "igr at kept positions (visible)",
}
# Frequency baselines in data.json of a run -> label; plotted where genes cannot be copied.
REFERENCES = {
    "corpus_frequency": "corpus frequency",
    "section_frequency": "in-section frequency",
    "section_frequency_unseen": "the same, unseen genes",
    "section_frequency_order": "the same, by the order of tokens",
}
# Panel -> its baselines: neighbours do not show which genes the central spot has.
WITH_REFERENCES = {"igr_masked": tuple(REFERENCES), "cgr": ("corpus_frequency", "section_frequency")}
FIRST = ("igr", "cgr")
GREYS = ("0.65", "0.5", "0.35", "0.15")
NAME = 0.08  # height of the name of a line, as a fraction of the axis
OTHERS = {  # columns other than losses -> title of the panel
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "spots_per_s": "spots per second",
    "step_s": "seconds per step",
    "data_wait_s": "seconds waiting for data",
}
DASHES = ("-", "--", ":", "-.")


def training(
    run: str | Path | pd.DataFrame | Mapping[str, str | Path | pd.DataFrame],
    *,
    smooth: int | None = None,
    which: Sequence[str] = ("losses", "lr", "grad_norm", "spots_per_s"),
    log: bool = False,
) -> list[Axes]:
    """Plot the losses, the learning rate and the throughput of a run against the step.

    For stage 1, grey lines show the losses of guessing by frequency: the frequency in the corpus, in the section, and
    in the section among genes that are not visible in the spot, and in the section narrowed by the order of the tokens.
    A model has learned about single spots if the curve at *masked* positions is below all lines.

    Parameters
    ----------
    run
        Folder of a run of `stampy.train.pretrain` or `align` (also of a run in progress), its metrics.jsonl, or a table
        with the columns step and loss; a dict by name to compare several.
    smooth
        Number of steps to average over, around each step; thin lines show single steps. None: a fiftieth of the run. 1:
        no smoothing.
    which
        Panels: "losses" (the sum, and each part if there are several), and columns of the table.
    log
        Plot losses and gradient norm on a logarithmic scale.

    Returns
    -------
    The Axes, one per panel.

    Raises
    ------
    FileNotFoundError
        The folder or its metrics.jsonl does not exist.
    KeyError
        A column is missing.
    ValueError
        The run has no steps yet.

    Examples
    --------
    >>> import pandas as pd, stampy
    >>> run = pd.DataFrame({"step": range(9), "loss": 9.0, "igr": 5.0, "cgr": 4.0, "lr": 1e-4})
    >>> [ax.get_title() for ax in stampy.pl.training(run, which=("losses", "lr"))]
    ['loss', 'igr', 'cgr', 'learning rate']
    """
    import matplotlib.pyplot as plt

    runs = run if isinstance(run, Mapping) else {"": run}
    if not runs:
        raise ValueError("`run` is empty; name at least one run.")
    if smooth is not None:
        _checks.at_least("smooth", smooth, 1)
    tables = {name: _table(source) for name, source in runs.items()}
    references = {name: _references(source) for name, source in runs.items()}
    panels = _panels(tables, which)
    ncols = min(len(panels), 3)
    nrows = -(-len(panels) // ncols)
    size = (PANEL_INCHES[0] * ncols, PANEL_INCHES[1] * nrows)
    figure, grid = plt.subplots(nrows, ncols, figsize=size, squeeze=False, layout="constrained")
    for ax in grid.flat[len(panels) :]:
        ax.remove()
    axes = list(grid.flat[: len(panels)])
    for number, (ax, column) in enumerate(zip(axes, panels, strict=True)):
        _panel(ax, column, tables, smooth, log=log and (column not in OTHERS or column == "grad_norm"))
        if column in WITH_REFERENCES:
            _lines(ax, references, WITH_REFERENCES[column])
        ax.set_xlabel("step" if number >= len(panels) - ncols else "")
    if len(tables) > 1:
        lines = [line for line in axes[0].get_lines() if not str(line.get_label()).startswith("_")]
        legend = figure.legend(
            lines, list(tables), loc="outside lower center", ncols=min(len(tables), 4), frameon=False, fontsize="small"
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return axes


def _table(source: str | Path | pd.DataFrame) -> pd.DataFrame:
    where = "table"
    if not isinstance(source, pd.DataFrame):
        path = _checks.existing(source, what="run")
        path = _checks.existing(path / "metrics.jsonl", what="log of a run") if path.is_dir() else path
        lines = [x for x in path.read_text().splitlines() if x.endswith("}")]  # skip an incomplete last line
        source, where = pd.DataFrame([json.loads(x) for x in lines], columns=None if lines else NEEDED), path.name
    for column in NEEDED:
        _checks.has_key(source.columns, column, slot=where, needs="It is a column of every run's metrics.jsonl.")
    if source.empty:
        raise ValueError(f"The run {where!r} has no steps yet.")
    return source.sort_values("step")


def _references(source: str | Path | pd.DataFrame) -> dict[str, float]:
    """Frequency baselines recorded by the run."""
    if isinstance(source, pd.DataFrame):
        return {}
    path = Path(source).expanduser()
    path = (path if path.is_dir() else path.parent) / "data.json"
    return json.loads(path.read_text()).get("references", {}) if path.is_file() else {}


def _lines(ax: Axes, references: Mapping[str, Mapping[str, float]], keys: Sequence[str]) -> None:
    """Draw the baselines of the runs as lines, each shared value once."""
    lines: dict[float, str] = {}
    for known in references.values():
        for (key, name), color in zip(REFERENCES.items(), GREYS, strict=True):
            value = known.get(key) if key in keys else None
            if value is None or round(value, 4) in lines:  # equal for a single section
                continue
            lines[round(value, 4)] = name
            ax.axhline(value, color=on_page(ax, color), linewidth=1, zorder=0, label=f"_{name}")
    low, high = ax.get_ylim()
    at = ax.transData.transform([(0, value) for value in (low, high, *sorted(lines))])[:, 1]  # the axis may be log
    heights = (at[2:] - at[0]) / (at[1] - at[0])
    pixels = at[0] + _spread(heights) * (at[1] - at[0])
    places = ax.transData.inverted().transform([(0, y) for y in pixels])[:, 1] if len(pixels) else ()
    for value, place in zip(sorted(lines), places, strict=True):
        ax.annotate(  # on the left, where the curve is still above
            f"{lines[value]} {value:.2f}", (0, place), (2, 0), textcoords="offset points",
            xycoords=("axes fraction", "data"), va="center", fontsize="x-small", color=on_page(ax, "0.25"), zorder=1,
            bbox={"facecolor": page_of(ax), "alpha": 0.8, "edgecolor": "none", "pad": 0},
        )  # fmt: skip


def _spread(heights: np.ndarray) -> np.ndarray:
    """Heights of the names of lines: above its line, and where lines are close, around them without overlap."""
    close = np.diff(heights) < NAME
    above = ~np.append(close, False)
    below = np.append(False, close) < np.append(close, False)  # the lowest of several
    wanted = np.maximum(heights + NAME / 2 * (above.astype(float) - below), NAME / 2)  # within the axis
    steps = NAME * np.arange(len(heights))
    return isotonic_regression(wanted - steps).x + steps if len(heights) else heights


def _panels(tables: Mapping[str, pd.DataFrame], which: Sequence[str]) -> list[str]:
    if isinstance(which, str):
        raise TypeError(f"`which` must be a sequence of panels, such as ({which!r},).")
    columns = list(dict.fromkeys(c for table in tables.values() for c in table.columns))
    found = []
    for name in which:
        if name == "losses":
            parts = [c for c in columns if c not in (*NEEDED, *OTHERS)]
            parts.sort(key=lambda c: c not in FIRST)
            found += ["loss", *(parts if len(parts) > 1 else ())]
        elif name in columns or name not in OTHERS:  # skip known columns that older runs did not write
            _checks.has_key(columns, name, slot="run", needs="`which` names its columns, or 'losses'.")
            found.append(name)
    return found


def _panel(ax: Axes, column: str, tables: Mapping[str, pd.DataFrame], smooth: int | None, *, log: bool) -> None:
    for number, (name, table) in enumerate(tables.items()):
        if column not in table:
            continue
        table = table.dropna(subset=column)
        step, value = table["step"].to_numpy(), table[column].to_numpy(dtype=float)
        window = smooth or max(len(value) // 50, 1)
        if column == "lr":
            window = 1
        color = SAFE[number % len(SAFE)]
        if window > 1:
            ax.plot(step, value, color=color, alpha=0.25, linewidth=0.6, label="_single")
        # Runs with equal values overlap; dashes keep the lower one visible.
        style = DASHES[number % len(DASHES)]
        ax.plot(step, _smoothed(value, window), style, color=color, linewidth=1.4, label=name or column)
    ax.set_title((OTHERS | TITLES).get(column, column), fontsize="medium", parse_math=False)
    if log:
        _logarithmic(ax)
    elif column in ("spots_per_s", "step_s", "data_wait_s", "lr"):
        ax.set_ylim(bottom=0)
    if column == "lr" and not log:
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    last = max(table["step"].max() for table in tables.values())
    ax.set_xlim(-0.02 * last, max(1.02 * last, 1))  # the same for all panels
    ax.locator_params(axis="x", nbins=5, integer=True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize="small")


def _logarithmic(ax: Axes) -> None:
    """Logarithmic axis with plain numbers, also for less than a power of ten."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(MaxNLocator(5) if high < 5 * low else LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def _smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over a window around each step, truncated at both ends."""
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy()
