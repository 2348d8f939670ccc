"""Scores of a linear probe: bars per embedding and the confusion of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys, _utils
from stampy.pl._drawing.view import ProbeRecord, record_of, shown_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

METRICS = {"balanced_accuracy": "balanced accuracy", "weighted_f1": "weighted F1", "accuracy": "accuracy"}
PANELS = ("bars", "confusion")
MAX_NUMBERS = 14  # classes, beyond which the numbers in the cells get too small to read
BAR, POINT, WHOLE = "#A9C8DF", "#003C5F", "#D55E00"


def probe(
    adata: AnnData | SpatialData,
    embedding: str | None = None,
    *,
    key: str = _keys.PROBE,
    metric: str = "balanced_accuracy",
    show: str | Sequence[str] = PANELS,
    cmap: str | Colormap = "Blues",
    ax: Axes | None = None,
    table_key: str = _keys.TABLE,
) -> Axes | list[Axes]:
    """Plot the scores of `stampy.tl.probe`: one bar per embedding, and a confusion matrix.

    Dots are scores of single folds, bars their mean, and diamonds the score of all held-out spots together. The
    balanced accuracy of a fold covers the labels that occur in it, so the mean of the folds is often above the diamond.
    The dashed line is chance. Rows of the confusion matrix are true labels; colours and numbers are shares of a row.

    Parameters
    ----------
    adata
        AnnData with results of `stampy.tl.probe`.
    embedding
        Embedding for the confusion matrix; None: the embedding with the best score.
    key
        `key_added` of the probe.
    metric
        Metric of the bars: ``"balanced_accuracy"``, ``"weighted_f1"`` or ``"accuracy"``.
    show
        ``"bars"``, ``"confusion"``, or both.
    cmap
        Colours of the confusion matrix.
    ax
        Axes for a single panel.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes, or a list of Axes for several panels.

    Raises
    ------
    KeyError
        The results are missing.
    ValueError
        An unknown embedding, metric or panel, or `ax` with several panels.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=150, image=False)
    >>> adata.obsm["X_counts"] = adata.X[:, :50].toarray()
    >>> stampy.tl.probe(adata, "domain", use_rep="X_counts")
    >>> bars, confusion = stampy.pl.probe(adata)
    >>> bars.get_xlabel()
    'balanced accuracy'
    """
    import matplotlib.pyplot as plt

    record = record_of(_utils.table_of(adata, table_key), key, tool="probe", holds="confusion")
    _checks.one_of("metric", metric, METRICS)
    shown = shown_of(show, PANELS, ax)
    names = [str(name) for name in record["embeddings"]]
    scores = record["scores"]
    overall = scores[scores["fold"] == "all"].set_index("embedding")[metric]
    if embedding is None:
        embedding = str(overall.idxmax())
    _checks.one_of("embedding", embedding, names)
    if ax is None:
        side = 1.6 + 0.42 * min(len(record["classes"]), 20)
        widths = {"bars": 4.4, "confusion": max(side, 3.2) + 0.8}
        height = max([max(side, 3.0)] * ("confusion" in shown) + [1.8 + 0.35 * len(names)])
        figure, axes = plt.subplots(
            1, len(shown), figsize=(sum(widths[s] for s in shown), height), squeeze=False,
            width_ratios=[widths[s] for s in shown],
        )  # fmt: skip
        figure.set_layout_engine("constrained", wspace=0.06)
        panels: list[Axes] = list(axes[0])
    else:
        panels = [ax]
    for panel, what in zip(panels, shown, strict=True):
        if what == "bars":
            _bars(panel, record, names, metric)
        else:
            _confusion(panel, record, embedding, cmap)
    return panels[0] if len(panels) == 1 else panels


def _bars(ax: Axes, record: ProbeRecord, names: list[str], metric: str) -> None:
    scores = record["scores"]
    whole = scores["fold"] == "all"
    for y, name in enumerate(names):
        mine = scores["embedding"] == name
        together = float(scores.loc[mine & whole, metric].iloc[0])
        folds = scores.loc[mine & ~whole, metric].to_numpy()
        value = float(folds.mean())
        bar = ax.barh(y, value, height=0.7, color=BAR, zorder=1)
        dots = ax.plot(
            folds, np.full(len(folds), y), "o", color=POINT, markersize=3.5, alpha=0.8, zorder=3, clip_on=False
        )
        diamond = ax.plot(together, y, "D", color=WHOLE, mec="w", mew=0.6, markersize=6, zorder=4, clip_on=False)
        ax.text(1.03, y, f"{value:.3f}", va="center", ha="left", fontsize="small")  # beside the axes: no dot hides it
    drawn: list[Any] = [bar, dots[0], diamond[0]]
    if metric == "balanced_accuracy":
        drawn.append(ax.axvline(1 / len(record["classes"]), color="0.35", linestyle="--", linewidth=0.8, zorder=2))
    said = ["mean of the folds", "one fold", "all held-out spots together", "chance"][: len(drawn)]
    ax.set(xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75, 1), ylim=(len(names) - 0.4, -0.6), xlabel=METRICS[metric])
    ax.set_yticks(range(len(names)), names, parse_math=False)
    ax.set_title(f"{record['label_key']}, held out by {record['folds']}", fontsize="medium", parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    inches = ax.get_window_extent().height / ax.figure.dpi
    ax.legend(drawn, said, ncols=2, fontsize="x-small", frameon=False, loc="upper center",
              bbox_to_anchor=(0.5, -0.55 / max(inches, 0.5)))  # fmt: skip


def _confusion(ax: Axes, record: ProbeRecord, embedding: str, cmap: Any) -> None:
    classes = [str(name) for name in record["classes"]]
    counts = np.asarray(record["confusion"][embedding])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(share, cmap=cmap, vmin=0, vmax=1)
    if len(classes) <= MAX_NUMBERS:
        for (i, j), value in np.ndenumerate(share):
            if counts[i, j]:
                dark = np.dot(image.cmap(value)[:3], (0.3, 0.59, 0.11)) < 0.5
                # ".34" for 0.34: as much as fits into a cell
                text = f"{value:.2f}".lstrip("0") if value < 0.995 else "1"
                ax.text(j, i, text, ha="center", va="center", fontsize="x-small", color="w" if dark else "k")
    long = max(map(len, classes)) > 4
    ax.set_xticks(
        range(len(classes)),
        classes,
        parse_math=False,
    )
    for label in ax.get_xticklabels() if long else ():
        label.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(
        range(len(classes)),
        [f"{name} ({n})" for name, n in zip(classes, counts.sum(axis=1), strict=True)],
        parse_math=False,
    )
    ax.tick_params(length=0, labelsize="small")
    ax.set(xlabel="predicted", ylabel="truth (spots)")
    ax.set_title(embedding, fontsize="medium", parse_math=False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("share of the row", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)
