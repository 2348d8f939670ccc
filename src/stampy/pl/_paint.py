"""What colours the spots: labels, values or an embedding, found by name in obs, genes or obsm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_rgba, to_rgba_array

from stampy import _checks
from stampy._labels import means_none
from stampy.pl import _palettes
from stampy.pl._rgb import embedding_rgb

if TYPE_CHECKING:
    from anndata import AnnData

Limit = float | str | None


@dataclass(frozen=True)
class Paint:
    """The spots' colours and what a legend says about them."""

    title: str
    label: str  # of the colour bar or the legend
    rgba: np.ndarray | None  # (n, 4), a row for each spot of the table; None for outlines only
    entries: tuple[tuple[str, Any], ...] = ()  # label and colour, in the legend's order
    scale: ScalarMappable | None = None  # of the colour bar
    extend: str = "neither"  # ends of the colour bar beyond which there are values
    values: np.ndarray | None = None  # (n,) where it is values that are shown


@dataclass(frozen=True)
class Style:
    """How colours are chosen."""

    palette: _palettes.Palette | None
    cmap: str | Colormap
    vmin: Limit
    vmax: Limit


def paint(
    adata: AnnData,
    color: str | None,
    *,
    style: Style,
    shown: np.ndarray,
    layer: str | None = None,
    gene_symbols: str | None = None,
) -> Paint:
    """The colours by `color`; limits, components and legend from the spots `shown` (row numbers)."""
    if color is None:
        return Paint("", "", None)
    if color in adata.obs:
        column = adata.obs[color]
        if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
            return paint_values(column.to_numpy(dtype=float, na_value=np.nan), color, color, style, shown)
        return _labels(column, adata.uns.get(f"{color}_colors"), style, shown)
    genes = adata.var_names
    if gene_symbols is not None:
        _checks.has_key(adata.var, gene_symbols, slot="adata.var", needs="`gene_symbols` names a column of gene names.")
        genes = pd.Index(adata.var[gene_symbols])
    if color in genes:
        label = color if layer is None else f"{color} ({layer})"
        return paint_values(_gene(adata, genes, color, layer), color, label, style, shown)
    if color in adata.obsm:
        return _embedding(adata.obsm[color], color, shown)
    raise _checks.unknown("color", color, {"adata.obs": adata.obs, "the genes": genes, "adata.obsm": adata.obsm})


def _gene(adata: AnnData, genes: pd.Index, gene: str, layer: str | None) -> np.ndarray:
    """Values (n,) of one gene."""
    at = np.flatnonzero(genes == gene)
    if len(at) > 1:
        raise ValueError(
            f"{len(at)} genes are called {gene!r}. Make names unique first: `adata.var_names_make_unique()`."
        )
    if layer is not None:
        _checks.has_key(adata.layers, layer, slot="adata.layers", needs="`layer` names the matrix to read genes from.")
    elif adata.X is None:
        raise ValueError(f"`adata.X` is empty; name the matrix that holds {gene!r} by `layer=`.")
    column = (adata.X if layer is None else adata.layers[layer])[:, at]
    column = column.compute() if hasattr(column, "compute") else column
    column = column.toarray() if hasattr(column, "toarray") else column
    return np.asarray(column, dtype=float).ravel()


def _labels(column: pd.Series, stored: Sequence | None, style: Style, shown: np.ndarray) -> Paint:
    column = _categorical(column)
    names = [str(c) for c in column.cat.categories]
    real = np.array([not means_none(name) for name in names], dtype=bool)
    colors = np.tile(to_rgba(_palettes.MISSING), (len(names) + 1, 1))  # the last row is for code -1, no label
    if style.palette is None and stored is not None and len(stored) == len(names):
        colors[:-1][real] = to_rgba_array(list(stored))[real]
    else:
        if style.palette is None and stored is not None:
            _checks.warn(
                f"`adata.uns['{column.name}_colors']` has {len(stored)} colours for {len(names)} labels and is left "
                "aside. Remove it, or give `palette=`."
            )
        colors[:-1][real] = _palettes.colors_of([n for n, r in zip(names, real, strict=True) if r], style.palette)
    codes = column.cat.codes.to_numpy()
    present = np.unique(codes[shown])
    entries = [(names[i], tuple(colors[i])) for i in present if i >= 0 and real[i]]
    if any(i < 0 or not real[i] for i in present):
        entries.append((_palettes.MISSING_NAME, _palettes.MISSING))
    return Paint(str(column.name), str(column.name), colors[codes], tuple(entries))


def _categorical(column: pd.Series) -> pd.Series:
    """As it is, or, for plain strings, in the order that AnnData gives them when it is written: D2 before D10."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column
    parts = {v: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", str(v))] for v in column.dropna().unique()}
    return column.astype(pd.CategoricalDtype(sorted(parts, key=parts.__getitem__)))


def paint_values(values: np.ndarray, title: str, label: str, style: Style, shown: np.ndarray) -> Paint:
    """Colours of values (n,); limits from the spots `shown` unless the style gives them."""
    if isinstance(style.cmap, str):
        _checks.one_of("cmap", style.cmap, list(colormaps))
    cmap = colormaps[style.cmap] if isinstance(style.cmap, str) else style.cmap
    missing = np.isnan(values)
    entries = ((_palettes.MISSING_NAME, _palettes.MISSING),) if missing[shown].any() else ()
    finite = values[shown][np.isfinite(values[shown])]
    if not finite.size:
        _checks.warn(f"{title!r} has no value at any spot shown: all are drawn in grey.")
        return Paint(title, label, np.tile(to_rgba(_palettes.MISSING), (len(values), 1)), entries)
    low, high = _limit("vmin", style.vmin, finite, 0), _limit("vmax", style.vmax, finite, 100)
    if low > high:
        raise ValueError(f"`vmin` must not be above `vmax`, found {low:g} and {high:g} for {title!r}.")
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), cmap)
    rgba = cmap(scale.norm(np.where(missing, low, values)))
    rgba[missing] = to_rgba(_palettes.MISSING)
    ends = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
    return Paint(title, label, rgba, entries, scale, ends[bool(finite.min() < low), bool(finite.max() > high)], values)


def _limit(name: str, limit: Limit, values: np.ndarray, default: float) -> float:
    """A number as it is; "p99" as the percentile of the values."""
    if limit is None:
        return float(np.percentile(values, default))
    if not isinstance(limit, str):
        return float(limit)
    try:
        if not limit.startswith("p"):
            raise ValueError
        return float(np.percentile(values, float(limit[1:])))
    except ValueError:
        raise ValueError(f"`{name}` must be a number or a percentile such as 'p99', found {limit!r}.") from None


def _embedding(embedding: Any, name: str, shown: np.ndarray) -> Paint:
    embedding = np.asarray(embedding.toarray() if hasattr(embedding, "toarray") else embedding)
    if embedding.ndim != 2 or embedding.shape[1] < 3:
        raise ValueError(
            f"`adata.obsm['{name}']` must have at least 3 columns to be drawn as RGB, found shape {embedding.shape}."
        )
    rgba = np.tile(to_rgba(_palettes.MISSING), (len(embedding), 1))
    use = np.zeros(len(embedding), dtype=bool)
    use[shown] = True
    rgb = embedding_rgb(embedding, use)
    known = ~np.isnan(rgb[:, 0])
    rgba[known, :3] = rgb[known]
    entries = () if known[shown].all() else ((_palettes.MISSING_NAME, _palettes.MISSING),)
    return Paint(f"{name} (PC 1–3 as RGB)", "", rgba, entries)
