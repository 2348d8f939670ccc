"""Label-free evaluation of embeddings and baselines."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys, _utils
from stampy.pl._drawing.panel import on_page, page_of

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from spatialdata import SpatialData

COLUMNS = 3  # panels per row, to be legible on a phone
LEGEND_INCHES = 6  # the legend of wider figures has one row
OURS, BASELINE = "#003C5F", "#8A9BA8"
TITLES = {
    "score": "score\n(mean of spot and neighbours)",
    "own": "genes of the spot\n(held-out correlation)",
    "neighbors": "genes of its neighbours\n(held-out correlation)",
    "coherence": "spatial coherence\n(Moran's I)",
    "depth_r2": "log depth explained\n(R², lower is better)",
    "stability": "stability\n(neighbours kept)",
    "mixing": "mixing of sections\n(1: as by chance)",
}


def evaluate(
    adata: AnnData | SpatialData,
    key: str = _keys.EVALUATE,
    *,
    show: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    table_key: str = _keys.TABLE,
) -> Axes | list[Axes]:
    """Plot the scores of `stampy.tl.evaluate`: one row per embedding, one panel per measure.

    Embeddings are dark, baselines grey. Open circles are embeddings without thinning, whose scores are too high. Error
    bars are one standard deviation over splits. The title is the verdict; for a subset of the evaluated spots, it
    states the number of spots for which it holds.

    Parameters
    ----------
    adata
        AnnData with results of `stampy.tl.evaluate`.
    key
        Key of the results.
    show
        Measures to plot, columns of ``uns[key]["scores"]``. None: all known measures.
    ax
        Axes for a single measure.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes, or a list of Axes for several measures.

    Raises
    ------
    KeyError
        The results are missing.
    ValueError
        An unknown measure, one that was not computed, or several for one `ax`.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=150, image=False)
    >>> stampy.tl.embed(adata, modality="gene", show_progress_bar=False)
    >>> stampy.tl.evaluate(adata, n_splits=1)
    >>> len(stampy.pl.evaluate(adata))
    6
    """
    import matplotlib.pyplot as plt

    table = _utils.table_of(adata, table_key)
    record = table.uns.get(key)
    if not isinstance(record, Mapping) or "scores" not in record:
        raise KeyError(f"No result of `stampy.tl.evaluate` in `adata.uns['{key}']`. Run `stampy.tl.evaluate(adata)`.")
    scores = record["scores"]
    if show is None:
        show = _known(scores)
    shown = [show] if isinstance(show, str) else list(show)
    if not shown:
        raise ValueError(f"`show` is empty. Name some of {list(TITLES)}.")
    for name in shown:
        _checks.one_of("show", name, tuple(TITLES))
        if scores[name].isna().all():
            why = "it needs several sections" if name == "mixing" else "it is missing for all embeddings"
            raise ValueError(f"`{name}` was not computed: {why}. Known here: {_known(scores)}.")
    if ax is not None:
        if len(shown) != 1:
            raise ValueError(f"`ax` takes one measure; name it with `show=`, one of {list(TITLES)}.")
        _draw(ax, scores, shown[0], named=True)
        return ax
    rows, columns = -(-len(shown) // COLUMNS), min(len(shown), COLUMNS)
    size = (2.0 + 2.1 * columns, 1.0 + rows * (0.9 + 0.28 * len(scores)))
    figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False, layout="constrained")
    axes = list(grid.flat)[: len(shown)]
    for spare in list(grid.flat)[len(shown) :]:
        spare.remove()
    for i, name in enumerate(shown):
        _draw(axes[i], scores, name, named=i % columns == 0)
    title = str(record["verdict"]) + _of_other_spots(record, table.n_obs)
    figure.suptitle(textwrap.fill(title, int(13 * size[0])), fontsize="small", parse_math=False)
    _legend(figure, axes[0], scores)
    return axes[0] if len(axes) == 1 else axes


def _known(scores: pd.DataFrame) -> list[str]:
    """Measures that were computed."""
    return [name for name in TITLES if scores[name].notna().any()]


def _of_other_spots(record: Mapping[str, Any], n_spots: int) -> str:
    """Note for a table that is a subset of the evaluated spots."""
    n_judged = int(record.get("parameters", {}).get("n_spots", 0))
    return f" (Evaluated on {n_judged:,} spots, of which this table has {n_spots:,}.)" if n_judged > n_spots else ""


def _legend(figure: Figure, ax: Axes, scores: pd.DataFrame) -> None:
    """Legend of the points, below the panels."""
    from matplotlib.lines import Line2D

    ours, baseline = on_page(ax, OURS), on_page(ax, BASELINE)
    kinds: list[tuple[str, Any, Any]] = (
        [("embedding", ours, ours)] if ((scores["kind"] == "embedding") & scores["thinned"]).any() else []
    )
    kinds += [("baseline", baseline, baseline)]
    if not scores["thinned"].all():
        kinds += [("embedding without thinning: score too high", ours, page_of(ax))]
    points = [
        Line2D([], [], linestyle="", marker="o", markersize=5, color=edge, markerfacecolor=face, label=label)
        for label, edge, face in kinds
    ]
    columns = len(points) if figure.get_figwidth() > LEGEND_INCHES else 1
    figure.legend(handles=points, loc="outside lower center", ncols=columns, fontsize="small", frameon=False)


def _draw(ax: Axes, scores: pd.DataFrame, name: str, *, named: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    spread = scores.get(f"{name}_std")
    for y, label in enumerate(scores.index):
        colour = on_page(ax, OURS if scores.loc[label, "kind"] == "embedding" else BASELINE)
        bar = None if spread is None or np.isnan(spread[label]) else spread[label]
        face = colour if scores.loc[label, "thinned"] else page_of(ax)
        ax.errorbar(
            scores.loc[label, name], y, xerr=bar, fmt="o", color=colour, markerfacecolor=face, markersize=5, capsize=2
        )
    values = scores[name].to_numpy(dtype=float)
    ax.set_xlim(min(0.0, np.nanmin(values)) - 0.02, max(np.nanmax(values), 0.05) * 1.12)
    ax.set_ylim(len(scores) - 0.5, -0.5)
    if named:
        ax.set_yticks(range(len(scores)), list(scores.index), parse_math=False)
    ax.set_title(TITLES[name], fontsize="small")
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.grid(axis="y", color=on_page(ax, "0.92"))
    ax.set_axisbelow(True)
    ax.tick_params(labelsize="small", length=2)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
