"""Genes that drive an embedding."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _checks, _keys, _utils
from stampy.pl._drawing.paint import SAFE

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

WIDTH_INCHES, ROW_INCHES = 2.6, 0.2
TITLE_CHARS = 28  # per line of a title
XLABELS = {
    "embedding": "turn of the embedding",
    "cluster": "pull to the cluster",
    "match": "gain in match",
}


def attribute(
    adata: AnnData | SpatialData,
    groups: str | Sequence[str] | None = None,
    *,
    key: str = _keys.ATTRIBUTE,
    n_genes: int = 10,
    ncols: int = 4,
    title: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    table_key: str = _keys.TABLE,
) -> Axes | list[Axes]:
    """Plot the genes with the highest attribution, one panel per group; genes with attribution 0 are omitted.

    Parameters
    ----------
    adata
        A section with results of `stampy.tl.attribute`.
    groups
        Columns of the table to plot, in this order; all by default.
    key
        Key of the results.
    n_genes
        Number of genes per panel.
    ncols
        Maximum number of panels per row.
    title
        Title, or one per panel; by default the names of the groups.
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
        An unknown group, `ax` with several panels.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=40, image=False)
    >>> stampy.tl.attribute(adata, genes=["COL1A1", "DCN", "EPCAM"], n_spots=3, show_progress_bar=False)
    >>> ax = stampy.pl.attribute(adata)
    >>> 0 < len(ax.patches) <= 3
    True
    """
    adata = _utils.table_of(adata, table_key)
    needs = f"Explain first: `stampy.tl.attribute(adata, key_added={key!r})`."
    _checks.has_key(adata.uns.get(_keys.UNS, {}), key, slot="adata.uns['stamp']", needs=needs)
    record = adata.uns[_keys.UNS][key]
    table: pd.DataFrame = record["attribution"]
    _checks.at_least("n_genes", n_genes, 1)
    _checks.at_least("ncols", ncols, 1)
    names = list(table.columns) if groups is None else [groups] if isinstance(groups, str) else list(groups)
    for name in names:
        _checks.one_of("groups", name, list(table.columns))
    if ax is not None and len(names) > 1:
        raise ValueError(f"`ax` takes one panel, but there are {len(names)} groups. Omit `ax`, or name a group.")
    by = str(record.get("groupby", ""))
    said = [f"{by} {name}" if by and name.isdigit() else name for name in names]  # add `by` to plain numbers
    titles = (
        [textwrap.fill(name, TITLE_CHARS) for name in said]
        if title is None
        else [title]
        if isinstance(title, str)
        else list(title)
    )
    if len(titles) != len(names):
        raise ValueError(f"`title` must have one title for each of {len(names)} panels, found {len(titles)}.")
    axes = [ax] if ax is not None else _new_axes(len(names), min(n_genes, len(table)), ncols)
    for i, (panel, name) in enumerate(zip(axes, names, strict=True)):
        values = table[name][table[name] != 0].nlargest(n_genes)  # 0: gene not detected in this group
        power = _power(values.to_numpy())
        _bars(panel, values, power)
        panel.set_title("" if titles[i] == "all" else titles[i], fontsize="medium", parse_math=title is not None)
        unit = f"cosine × $10^{{{power}}}$" if power else "cosine"
        panel.set_xlabel(f"{XLABELS[record['target']]} ({unit})", fontsize="small")
    return axes[0] if len(axes) == 1 else axes


def _new_axes(n: int, n_genes: int, ncols: int) -> list[Axes]:
    import matplotlib.pyplot as plt

    cols = min(n, ncols)
    rows = math.ceil(n / cols)
    size = (WIDTH_INCHES * cols, rows * (ROW_INCHES * n_genes + 0.85))
    figure, grid = plt.subplots(rows, cols, figsize=size, squeeze=False, layout="constrained")
    for spare in grid.flat[n:]:
        spare.remove()
    del figure
    return list(grid.flat[:n])


def _power(values: np.ndarray) -> int:
    """Power of ten for the axis of values: 0 for values of about 1.

    >>> _power(np.array([0.0004, -0.01])), _power(np.array([0.3])), _power(np.zeros(2))
    (-2, 0, 0)
    """
    most = np.abs(values).max(initial=0)
    power = math.floor(math.log10(most)) if most > 0 else 0
    return power if power < -1 else 0


def _bars(ax: Axes, values: pd.Series, power: int) -> None:
    """Horizontal bars, highest on top; negative values in another colour."""
    from matplotlib import rcParams
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    at = np.arange(len(values))
    colors = np.where(values.to_numpy() < 0, SAFE[3], SAFE[0])
    ax.barh(at, values.to_numpy(), color=colors, height=0.75)
    ax.set_yticks(at, labels=[str(gene) for gene in values.index], fontsize="small", fontstyle="italic")
    ax.set_ylim(len(values) - 0.4, -0.6)
    ax.axvline(0, color=rcParams["axes.edgecolor"], linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(axis="x", labelsize="small")
    ax.tick_params(axis="y", length=0)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / 10.0**power:.3g}".replace("-", "−")))
    ax.spines[["top", "right", "left"]].set_visible(False)
