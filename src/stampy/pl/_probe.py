"""Scores of a linear probe: bars per embedding, and the confusion matrix of one embedding."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys, _utils
from stampy.pl._drawing.panel import inches_of, on_page
from stampy.pl._drawing.view import ProbeRecord, record_of, shown_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from spatialdata import SpatialData

METRICS = {"balanced_accuracy": "balanced accuracy", "weighted_f1": "weighted F1", "accuracy": "accuracy"}
PANELS = ("bars", "confusion")
BAR_INCHES, ROW_INCHES, CELL_INCHES = 2.6, 0.35, 0.42  # width of bars, height of a bar, cell of the matrix
SHORT_INCHES = 0.35  # longest label that is not slanted
LABEL_CHARS = 24  # per line of a label
MAX_NUMBERS = 14  # number of classes above which numbers in the cells are too small to read
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
        sizes = {"bars": _size_of_bars(names), "confusion": _size_of_confusion(record["classes"])}
        widths, heights = zip(*(sizes[s] for s in shown), strict=True)
        figure, axes = plt.subplots(
            1, len(shown), figsize=(sum(widths), max(heights)), squeeze=False, width_ratios=widths
        )
        figure.set_layout_engine("constrained", wspace=0.06)
        panels: list[Axes] = list(axes[0])
    else:
        panels = [ax]
    for panel, what in zip(panels, shown, strict=True):
        if what == "bars" and len(shown) > 1:  # next to a large matrix, bars keep their usual height
            panel.set_box_aspect((ROW_INCHES * len(names) + 0.3) / BAR_INCHES)
            panel.set_anchor("N")
        if what == "bars":
            _bars(panel, record, names, metric)
        else:
            _confusion(panel, record, embedding, cmap, own_figure=ax is None)
    return panels[0] if len(panels) == 1 else panels


def _wrapped(names: Sequence[str]) -> list[str]:
    return ["\n".join(textwrap.wrap(str(name), LABEL_CHARS)) for name in names]


def _text_inches(labels: Sequence[str], points: float) -> float:
    """Estimate the width of the longest line."""
    return 0.6 * points / 72 * max(len(line) for label in labels for line in label.split("\n"))


def _size_of_bars(names: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches, with labels and legend."""
    return BAR_INCHES + 0.9 + _text_inches(_wrapped(names), 10), 1.8 + ROW_INCHES * len(names)


def _matrix_inches(classes: Sequence[str]) -> float:
    return max(CELL_INCHES * min(len(classes), 20), 1.7)


def _size_of_confusion(classes: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches, with labels and colour bar."""
    cells = _matrix_inches(classes)
    label = _text_inches(_wrapped(classes), 8.3)
    return cells + label + 2.1, max(cells + 1.0 + label * (label > SHORT_INCHES), 3.0)


def _bars(ax: Axes, record: ProbeRecord, names: list[str], metric: str) -> None:
    from matplotlib.transforms import ScaledTranslation

    scores = record["scores"]
    whole = scores["fold"] == "all"
    for y, name in enumerate(names):
        mine = scores["embedding"] == name
        together = float(scores.loc[mine & whole, metric].iloc[0])
        folds = scores.loc[mine & ~whole, metric].to_numpy()
        value = float(folds.mean())
        bar = ax.barh(y, value, height=0.7, color=on_page(ax, BAR), zorder=1)
        dots = ax.plot(
            folds,
            np.full(len(folds), y),
            "o",
            color=on_page(ax, POINT),
            markersize=3.5,
            alpha=0.8,
            zorder=3,
            clip_on=False,
        )
        diamond = ax.plot(together, y, "D", color=WHOLE, mec="w", mew=0.6, markersize=6, zorder=4, clip_on=False)
        ax.text(1.03, y, f"{value:.3f}", va="center", ha="left", fontsize="small")  # outside, not hidden by dots
    drawn: list[Any] = [bar, dots[0], diamond[0]]
    if metric == "balanced_accuracy":
        drawn.append(
            ax.axvline(1 / len(record["classes"]), color=on_page(ax, "0.35"), linestyle="--", linewidth=0.8, zorder=2)
        )
    said = ["mean of the folds", "one fold", "all held-out spots together", "chance"][: len(drawn)]
    ax.set(xlim=(0, 1), xticks=(0, 0.25, 0.5, 0.75, 1), ylim=(len(names) - 0.4, -0.6), xlabel=METRICS[metric])
    ax.set_yticks(range(len(names)), _wrapped(names), parse_math=False)
    ax.set_title(f"{record['label_key']}, held out by {record['folds']}", fontsize="medium", parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)
    below = ScaledTranslation(0, -0.5, ax.get_figure(root=True).dpi_scale_trans)  # type: ignore[union-attr]
    ax.legend(drawn, said, ncols=2, fontsize="x-small", frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0),
              bbox_transform=ax.transAxes + below)  # fmt: skip


def _cell_inches(ax: Axes, labels: Sequence[str]) -> float:
    """Estimate the edge of a cell in the caller's axes, after the layout of labels and colour bar."""
    label = _text_inches(_wrapped(labels), 8.3)
    width, height = inches_of(ax)
    return max(min(1.2 * width - label - 1.0, 1.2 * height - label - 0.5) / len(labels), 0.05)


def _confusion(ax: Axes, record: ProbeRecord, embedding: str, cmap: Any, *, own_figure: bool) -> None:
    from matplotlib.font_manager import FontProperties

    classes = [str(name) for name in record["classes"]]
    counts = np.asarray(record["confusion"][embedding])
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = ax.imshow(share, cmap=cmap, vmin=0, vmax=1)
    numbered = [f"{name} ({n})" for name, n in zip(classes, counts.sum(axis=1), strict=True)]
    cell = _matrix_inches(classes) / len(classes) if own_figure else _cell_inches(ax, numbered)
    lines = max(label.count("\n") + 1 for label in _wrapped(numbered))
    points = float(np.clip(60 * cell / lines, 4, FontProperties(size="small").get_size_in_points()))
    if len(classes) <= MAX_NUMBERS and cell > 0.2:
        for (i, j), value in np.ndenumerate(share):
            if counts[i, j]:
                dark = np.dot(image.cmap(value)[:3], (0.3, 0.59, 0.11)) < 0.5
                # ".34" for 0.34, to fit into a cell
                text = f"{value:.2f}".lstrip("0") if value < 0.995 else "1"
                ax.text(j, i, text, ha="center", va="center", fontsize="x-small", color="w" if dark else "k")
    ax.set_xticks(range(len(classes)), _wrapped(classes), parse_math=False)
    for label in ax.get_xticklabels() if max(map(len, classes)) > 4 else ():
        if cell < 0.2 * lines or lines > 2:  # too close for slanted labels
            label.set(rotation=90)
        else:
            label.set(rotation=45, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(classes)), _wrapped(numbered), parse_math=False)
    ax.tick_params(length=0, labelsize=points)
    ax.set(xlabel="predicted", ylabel="truth (spots)")
    ax.set_title(_wrapped([embedding])[0], fontsize="medium", parse_math=False)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.8, aspect=25, pad=0.02)
    bar.set_label("share of the row", fontsize="small")
    bar.ax.tick_params(labelsize="small")
    bar.outline.set_visible(False)
