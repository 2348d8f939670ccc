"""A gene on the tissue: measured, predicted, and the error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Colormap

from stampy import _checks, _keys, _utils
from stampy.pl._drawing.paint import Paint, Style, paint_values, without_outliers
from stampy.pl._drawing.view import ExpressionRecord, Window, record_of, shown_of, views_of
from stampy.pl._spatial import draw_panels

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

PANELS = ("measured", "predicted", "error")


def expression(
    adata: AnnData | SpatialData,
    gene: str | None = None,
    *,
    key: str = _keys.EXPRESSION,
    show: str | Sequence[str] | None = None,
    library_key: str | None = None,
    sections: str | Sequence[str] | None = None,
    image: bool = True,
    image_key: str | None = None,
    image_alpha: float | None = None,
    image_grey: bool | None = None,
    crop: bool | Window = True,
    alpha: float = 1.0,
    size: float = 1.0,
    cmap: str | Colormap = "viridis",
    error_cmap: str | Colormap = "RdBu_r",
    scale_bar: bool = True,
    um_per_px: float | None = None,
    legend: bool = True,
    ncols: int = 4,
    ax: Axes | None = None,
    table_key: str = _keys.TABLE,
) -> Axes | list[Axes]:
    """Plot a gene of `stampy.tl.expression`: measured, predicted, and predicted minus measured.

    Measured and predicted values share one colour scale, so a flat prediction is visible. The scale of the error is
    symmetric about 0. Colour limits are as in `stampy.pl.spatial`: outliers do not stretch them. The title of the
    prediction states Pearson's r over the plotted spots.

    Parameters
    ----------
    adata
        AnnData with results of `stampy.tl.expression` and `obsm["spatial"]`.
    gene
        One of the predicted genes; None: the gene with the highest pooled r.
    key
        `key_added` of the prediction.
    show
        Any of ``"measured"``, ``"predicted"`` and ``"error"``; None: all available panels.
    library_key, sections, image, image_key, image_alpha, image_grey, crop, alpha, size
        As for `stampy.pl.spatial`.
    scale_bar, um_per_px, legend, ncols
        As for `stampy.pl.spatial`.
    cmap, error_cmap
        Colour maps of the values and of the error.
    ax
        Axes for a single panel.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes, or a list of them: all sections of the first panel, then of the next.

    Raises
    ------
    KeyError
        The results or the gene are missing (similar names are given), or nothing was measured.
    ValueError
        An unknown panel, or `ax` with several panels.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=120)
    >>> adata.obsm["X_xy"] = adata.obsm["spatial"]
    >>> stampy.tl.expression(adata, ["COL1A1", "EPCAM"], use_rep="X_xy")
    >>> [ax.get_title().split(",")[0] for ax in stampy.pl.expression(adata, "COL1A1")]
    ['COL1A1 measured', 'COL1A1 predicted', 'COL1A1 error']
    """
    table = _utils.table_of(adata, table_key)
    record = record_of(table, key, tool="expression", holds="transform")
    measured = f"{key}{_keys.MEASURED_SUFFIX}" in table.obsm
    shown = shown_of(show if show is not None else PANELS if measured else "predicted", PANELS, ax)
    if not measured and set(shown) != {"predicted"}:
        raise KeyError(f"Nothing was measured for `{key}`: only show='predicted' can be drawn.")
    gene = _best(record) if gene is None else gene
    values = _values(table, record, key, gene, measured)
    drawn = views_of(
        adata, library_key=library_key, sections=sections, image=image, image_key=image_key, um_per_px=um_per_px,
        table_key=table_key,
    )  # fmt: skip
    rows = np.concatenate([section.rows for section in drawn])
    panels = [(_paint(values, what, rows, record, cmap, error_cmap), s) for what in shown for s in drawn]
    names = [what for what in shown for _ in drawn]
    titles = [
        _title(gene, what, s.name if len(drawn) > 1 else "", values, s.rows)
        for what, (_, s) in zip(names, panels, strict=True)
    ]
    if ax is not None and len(panels) > 1:
        raise ValueError(f"`ax` takes one panel, but there are {len(panels)} (panels x sections). Omit `ax`.")
    return draw_panels(
        panels, titles, per_color=len(drawn), parse_titles=False, size=size, crop=crop, alpha=alpha,
        image_alpha=image_alpha, image_grey=image_grey, scale_bar=scale_bar, legend=legend, ncols=ncols, ax=ax,
    )  # fmt: skip


def _pooled(record: ExpressionRecord) -> Any:
    """Pooled r of each gene, or None without measured values."""
    if "scores" not in record:
        return None
    scores = record["scores"]
    return scores[scores["level"] == "pooled"].set_index("gene")["pearson"]


def _best(record: ExpressionRecord) -> str:
    pooled = _pooled(record)
    return str(record["genes"][0] if pooled is None or pooled.isna().all() else pooled.idxmax())


def _values(table: AnnData, record: ExpressionRecord, key: str, gene: str, measured: bool) -> dict[str, np.ndarray]:
    names = [str(name) for name in record["genes"]]
    if gene not in names:
        raise _checks.unknown("gene", gene, {f"the genes predicted under '{key}'": names})
    at = names.index(gene)
    values = {"predicted": np.asarray(table.obsm[key])[:, at].astype(float)}
    if measured:
        values["measured"] = np.asarray(table.obsm[f"{key}{_keys.MEASURED_SUFFIX}"])[:, at].astype(float)
        values["error"] = values["predicted"] - values["measured"]
    return values


def _paint(values: dict[str, np.ndarray], what: str, rows: np.ndarray, record: ExpressionRecord, cmap: Any,
           error_cmap: Any) -> Paint:  # fmt: skip
    """Colours of one panel, with limits shared between panels."""
    if what == "error":
        errors = np.abs(values["error"][rows])
        limit = (without_outliers(errors[np.isfinite(errors)])[1] if np.isfinite(errors).any() else 0.0) or 1.0
        return paint_values(values[what], "error", "predicted − measured", Style(None, error_cmap, -limit, limit), rows)
    both = np.concatenate([values[name][rows] for name in ("measured", "predicted") if name in values])
    both = both[np.isfinite(both)] if np.isfinite(both).any() else np.zeros(1)
    label = {"log1p_cp10k": "log(1 + counts per 10,000)", "log1p": "log(1 + counts)"}.get(record["transform"], "value")
    return paint_values(values[what], what, label, Style(None, cmap, *without_outliers(both)), rows)


def _title(gene: str, what: str, section: str, values: Mapping[str, np.ndarray], rows: np.ndarray) -> str:
    """Gene, panel and section; for predictions, Pearson's r over the plotted spots, if it is defined."""
    title = f"{gene} {what}" + (f" · {section}" if section else "")
    if what != "predicted" or "measured" not in values:
        return title
    pair = np.stack([values["measured"][rows], values["predicted"][rows]])
    pair = pair[:, np.isfinite(pair).all(axis=0)]
    if pair.shape[1] < 2 or (np.ptp(pair, axis=1) <= 1e-6 * np.abs(pair).max(axis=1)).any():
        return title
    return f"{title}, {'' if section else 'pooled '}r {np.corrcoef(pair)[0, 1]:.2f}"
