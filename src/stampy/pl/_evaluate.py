"""Embeddings judged without labels, beside simple baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stampy import _checks, _keys, _utils

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

OURS, BASELINE = "#003C5F", "#8A9BA8"
TITLES = {
    "score": "score",
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
    """Draw the scores of `stampy.tl.evaluate`: a row for each embedding, a panel for each measure.

    Embeddings are dark, baselines grey; open circles were judged without thinning, which flatters them. Bars are one
    standard deviation over splits. The verdict stands above.

    Parameters
    ----------
    adata
        Judged by `stampy.tl.evaluate`.
    key
        Where the results are.
    show
        Measures to draw, columns of ``uns[key]["scores"]``. None: all that are known.
    ax
        Axes for a single measure.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes, or a list of them for several measures.

    Raises
    ------
    KeyError
        There is no such result.
    ValueError
        An unknown measure, or several for one `ax`.

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
        show = [name for name in TITLES if scores[name].notna().any()]
    shown = [show] if isinstance(show, str) else list(show)
    for name in shown:
        _checks.one_of("show", name, tuple(TITLES))
    if ax is not None:
        if len(shown) != 1:
            raise ValueError(f"`ax` takes one measure; name it by `show=`, one of {list(TITLES)}.")
        _draw(ax, scores, shown[0], named=True)
        return ax
    height = 1.3 + 0.3 * len(scores)
    figure, axes = plt.subplots(
        1, len(shown), figsize=(1.8 + 1.75 * len(shown), height), sharey=True, squeeze=False, layout="constrained"
    )
    for i, name in enumerate(shown):
        _draw(axes[0, i], scores, name, named=i == 0)
    figure.suptitle(str(record["verdict"]), fontsize="small", wrap=True)
    return axes[0, 0] if len(shown) == 1 else list(axes[0])


def _draw(ax: Axes, scores: pd.DataFrame, name: str, *, named: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    spread = scores.get(f"{name}_std")
    for y, label in enumerate(scores.index):
        colour = OURS if scores.loc[label, "kind"] == "embedding" else BASELINE
        bar = None if spread is None or np.isnan(spread[label]) else spread[label]
        face = colour if scores.loc[label, "thinned"] else "white"
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
    ax.grid(axis="y", color="0.92")
    ax.set_axisbelow(True)
    ax.tick_params(labelsize="small", length=2)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
