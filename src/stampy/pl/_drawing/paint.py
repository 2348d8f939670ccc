"""Colours of spots by labels, values or an embedding, found by name in obs, genes or obsm."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize, to_rgba, to_rgba_array

from stampy import _checks, _utils
from stampy._labels import is_missing_label

if TYPE_CHECKING:
    from anndata import AnnData

MISSING = "#D9D9D9"  # spots without value or label
MISSING_NAME = "NA"

# The eight colours of Okabe & Ito, ordered for H&E and white paper, then twelve found by greedy search to maximise the
# distance (OKLab, normal vision and simulated protanopia, deuteranopia, tritanopia) to previous ones, white and
# MISSING.
SAFE = (
    *("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#F0E442", "#000000"),
    *("#69001E", "#3C0096", "#7800FF", "#A52D69", "#8778FF", "#694B00", "#87C387", "#D200B4"),
    *("#0000D2", "#691E69", "#0FFF96", "#FF3C69"),
)
# Ten more for full colour vision, found in the same way, as far from all others as the twenty are from each other.
MORE = (
    *("#003C4B", "#FF78FF", "#00F0FF", "#1EC300", "#87784B", "#00695A", "#876996", "#8700B4"),
    *("#B42DFF", "#3C4B87"),
)

Palette = str | Sequence | Mapping
DARKEST = 0.45  # OKLab lightness of further colours; darker small dots all look black
OUTLYING = 0.25  # clip values beyond the 1st or 99th percentile if they would take up a larger fraction of the scale
LOW, HIGH = 0.05, 0.95  # neither black nor white
FEW = 20  # minimum number of values for detecting outliers
CHUNK = 65_536  # rows per block, to avoid a second copy of a large embedding
Limit = float | str | None


@dataclass(frozen=True)
class Paint:
    """Colours of the spots, and their legend."""

    title: str
    label: str  # of the colour bar or legend
    rgba: np.ndarray | None  # (n, 4), one row per spot of the table; None to draw only outlines
    entries: tuple[tuple[str, Any], ...] = ()  # label and colour, in the order of the legend
    scale: ScalarMappable | None = None  # of the colour bar
    extend: str = "neither"  # ends of the colour bar with values beyond
    values: np.ndarray | None = None  # (n,) plotted values, if any

    @property
    def is_whole(self) -> bool:
        """Whether all values are integers, such as counts."""
        if self.values is None:
            return False
        finite = self.values[np.isfinite(self.values)]
        return bool((finite == np.rint(finite)).all())


@dataclass(frozen=True)
class Style:
    """Options for choosing colours."""

    palette: Palette | None
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
    """Colours by `color`; limits, components and legend are computed from the spots `shown` (row numbers)."""
    if color is None:
        return Paint("", "", None)
    if color in adata.obs:
        column = _utils.column_of(adata, color)
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
    error = _checks.unknown("color", color, {"adata.obs": adata.obs, "the genes": genes, "adata.obsm": adata.obsm})
    columns = [c for c in adata.var if adata.var[c].dtype.kind not in "biufcmM" and (adata.var[c] == color).any()]
    if gene_symbols is None and columns:
        raise KeyError(f"{error.args[0]} It is in adata.var[{columns[0]!r}]: pass gene_symbols={columns[0]!r}.")
    raise error


def _gene(adata: AnnData, genes: pd.Index, gene: str, layer: str | None) -> np.ndarray:
    """Values (n,) of a gene."""
    at = np.flatnonzero(genes == gene)
    if len(at) > 1:
        raise ValueError(
            f"{len(at)} genes are called {gene!r}. Make names unique first: `adata.var_names_make_unique()`."
        )
    if layer is not None:
        _checks.has_key(adata.layers, layer, slot="adata.layers", needs="`layer` names the matrix to read genes from.")
    elif adata.X is None:
        raise ValueError(f"`adata.X` is empty; name the matrix that contains {gene!r} with `layer=`.")
    column = (adata.X if layer is None else adata.layers[layer])[:, at]
    column = column.compute() if hasattr(column, "compute") else column
    column = column.toarray() if hasattr(column, "toarray") else column
    return np.asarray(column, dtype=float).ravel()


def _labels(column: pd.Series, stored: Sequence | None, style: Style, shown: np.ndarray) -> Paint:
    column = _categorical(column)
    names = [str(c) for c in column.cat.categories]
    real = np.array([not is_missing_label(name) for name in names], dtype=bool)
    colors = np.tile(to_rgba(MISSING), (len(names) + 1, 1))  # the last row is for code -1, no label
    if style.palette is None and stored is not None and len(stored) == len(names):
        try:
            colors[:-1][real] = to_rgba_array(list(stored))[real]
        except ValueError as error:
            raise ValueError(
                f"`adata.uns['{column.name}_colors']` must contain colours. {error}. Correct or remove it."
            ) from error
    else:
        if style.palette is None and stored is not None:
            _checks.warn(
                f"`adata.uns['{column.name}_colors']` has {len(stored)} colours for {len(names)} labels and is left "
                "aside. Remove it, or pass `palette=`."
            )
        colors[:-1][real] = colors_of([n for n, r in zip(names, real, strict=True) if r], style.palette)
    codes = column.cat.codes.to_numpy()
    present = np.unique(codes[shown])
    entries: list[tuple[str, Any]] = [(names[i], tuple(colors[i])) for i in present if i >= 0 and real[i]]
    if any(i < 0 or not real[i] for i in present):
        entries.append((MISSING_NAME, MISSING))
    return Paint(str(column.name), str(column.name), colors[codes], tuple(entries))


def _categorical(column: pd.Series) -> pd.Series:
    """Unchanged, or for strings in the order in which AnnData writes them: D2 before D10."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column
    parts = {v: [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", str(v))] for v in column.dropna().unique()}
    return column.astype(pd.CategoricalDtype(sorted(parts, key=parts.__getitem__)))


def paint_values(values: np.ndarray, title: str, label: str, style: Style, shown: np.ndarray) -> Paint:
    """Colours of values (n,); limits are computed from the spots `shown` unless the style defines them."""
    if isinstance(style.cmap, str):
        _checks.one_of("cmap", style.cmap, list(colormaps))
    cmap = colormaps[style.cmap] if isinstance(style.cmap, str) else style.cmap
    missing = np.isnan(values)
    entries = ((MISSING_NAME, MISSING),) if missing[shown].any() else ()
    finite = values[shown][np.isfinite(values[shown])]
    if not finite.size:
        _checks.warn(f"{title!r} has no value at any spot shown: all are drawn in grey.")
        return Paint(title, label, np.tile(to_rgba(MISSING), (len(values), 1)), entries)
    least, most = without_outliers(finite)
    low = least if style.vmin is None else _limit("vmin", style.vmin, finite)
    high = most if style.vmax is None else _limit("vmax", style.vmax, finite)
    if low > high:
        raise ValueError(f"`vmin` must not be above `vmax`, found {low:g} and {high:g} for {title!r}.")
    scale = ScalarMappable(Normalize(low, high if high > low else low + 1), cmap)
    rgba = np.asarray(cmap(scale.norm(np.where(missing, low, values))))
    rgba[missing] = to_rgba(MISSING)
    ends = {(True, True): "both", (True, False): "min", (False, True): "max", (False, False): "neither"}
    known = values[shown][~missing[shown]]  # infinite values are beyond every limit
    beyond = ends[bool(known.min() < low), bool(known.max() > high)]
    return Paint(title, label, rgba, entries, scale, beyond, values)


def without_outliers(values: np.ndarray) -> tuple[float, float]:
    """Minimum and maximum, or the 1st or 99th percentile if few values are far beyond it.

    >>> without_outliers(np.r_[np.arange(1000.0), 9000.0]), without_outliers(np.arange(9.0))
    ((0.0, 990.0), (0.0, 8.0))
    """
    least, most = float(values.min()), float(values.max())
    low, high = float(np.percentile(values, 1, method="higher")), float(np.percentile(values, 99, method="lower"))
    if len(values) < FEW or high <= low:  # keeps genes visible that few spots express
        return least, most
    far = OUTLYING * (high - low)
    return (low if low - least > far else least), (high if most - high > far else most)


def _limit(name: str, limit: float | str, values: np.ndarray) -> float:
    """A number unchanged; "p99" as percentile of the values."""
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
    if embedding.dtype.kind not in "buif":
        raise TypeError(f"`adata.obsm['{name}']` must contain numbers, found dtype {embedding.dtype}.")
    rgba = np.tile(to_rgba(MISSING), (len(embedding), 1))
    use = np.zeros(len(embedding), dtype=bool)
    use[shown] = True
    rgb = embedding_rgb(embedding, use)
    known = ~np.isnan(rgb[:, 0])
    rgba[known, :3] = rgb[known]
    entries = () if known[shown].all() else ((MISSING_NAME, MISSING),)
    return Paint(f"{name} (PC 1–3 as RGB)", "", rgba, entries)


def default_colors(n: int) -> np.ndarray:
    """RGBA (n, 4): 30 selected colours, then those farthest from all previous ones; repeated above 2,000 labels.

    >>> default_colors(2).round(2).tolist()
    [[0.0, 0.45, 0.7, 1.0], [0.9, 0.62, 0.0, 1.0]]
    >>> len(set(map(tuple, default_colors(500))))
    500
    """
    chosen = to_rgba_array(SAFE + MORE)
    if n > len(chosen):
        chosen = np.vstack([chosen, _far_from(chosen, min(n, 2_000) - len(chosen))])
    return chosen[np.arange(n) % len(chosen)]


def _far_from(colors: np.ndarray, n: int) -> np.ndarray:
    """RGBA (n, 4) from a grid, each the farthest in OKLab from all previous colours, white and MISSING."""
    levels = np.linspace(0, 1, 16)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = _oklab(grid)
    grid, lab = grid[lab[:, 0] > DARKEST], lab[lab[:, 0] > DARKEST]
    distance = np.full(len(grid), np.inf)
    for taken in _oklab(np.vstack([colors[:, :3], to_rgba_array([MISSING, "w"])[:, :3]])):
        distance = np.minimum(distance, np.linalg.norm(lab - taken, axis=1))
    found = np.empty(n, dtype=int)
    for i in range(n):
        found[i] = distance.argmax()
        distance = np.minimum(distance, np.linalg.norm(lab - lab[found[i]], axis=1))
    return to_rgba_array(grid[found])


def _oklab(rgb: np.ndarray) -> np.ndarray:
    """Colours (n, 3) in OKLab (Ottosson 2020), where distances are roughly perceptual."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    lms = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    lab = [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    return np.cbrt(linear @ np.array(lms).T) @ np.array(lab).T


def colors_of(names: Sequence[str], palette: Palette | None) -> np.ndarray:
    """RGBA (len(names), 4) of the labels, from a palette in any form accepted by `pl.spatial`.

    >>> colors_of(["a", "b"], {"b": "red", "a": "white"}).tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]]
    """
    if palette is None:
        return default_colors(len(names))
    if isinstance(palette, str):
        return _from_colormap(palette, len(names))
    if isinstance(palette, Mapping):
        absent = [name for name in names if name not in palette]
        if absent:
            raise ValueError(f"`palette` gives no colour for {_checks.shortlist(absent)}. Name every label.")
        return to_rgba_array([to_rgba(palette[name]) for name in names])
    if len(palette) < len(names):
        raise ValueError(f"`palette` has {len(palette)} colours for {len(names)} labels. Give one for each label.")
    return to_rgba_array([to_rgba(c) for c in palette[: len(names)]])


def _from_colormap(name: str, n: int) -> np.ndarray:
    _checks.one_of("palette", name, list(colormaps))
    cmap = colormaps[name]
    listed = isinstance(cmap, ListedColormap) and n <= cmap.N < 256  # a list of distinct colours, not a gradient
    return cmap(np.arange(n)) if listed else cmap(np.linspace(0, 1, n))


def embedding_rgb(embedding: np.ndarray, use: np.ndarray | None = None) -> np.ndarray:
    """First three principal components as red, green and blue.

    The 1st to 99th percentile of each component is mapped to 0.05 to 0.95, and other values are clipped. Signs are
    determined by a positive largest loading of every component.

    Parameters
    ----------
    embedding
        (n, d), d >= 3.
    use
        (n,) bool, rows to colour; all by default.

    Returns
    -------
    (n, 3) float64 in [0.05, 0.95]; NaN for rows that are not used or not finite. A constant component is 0.5.

    Examples
    --------
    >>> embedding_rgb(np.array([[0.0, 0, 0], [1, 0, 0], [np.nan, 0, 0]])).round(2).tolist()
    [[0.05, 0.5, 0.5], [0.95, 0.5, 0.5], [nan, nan, nan]]
    """
    finite = np.isfinite(embedding).all(axis=1)
    if use is not None:
        finite &= use
    rgb = np.full((len(embedding), 3), np.nan)
    if not finite.any():
        return rgb
    mean, axes = _principal_axes(embedding, finite)
    for part in _chunks(len(embedding)):
        rows = finite[part]
        rgb[part][rows] = (embedding[part][rows] - mean) @ axes
    scores = rgb[finite]
    low, high = np.percentile(scores, [1, 99], axis=0)
    span = high - low
    flat = span <= 1e-6 * max(span.max(), np.abs(mean).max())  # rounding noise rather than a direction of the data
    scaled = LOW + (HIGH - LOW) * (scores - low) / np.where(flat, 1, span)
    rgb[finite] = np.where(flat, 0.5, np.clip(scaled, LOW, HIGH))
    return rgb


def _principal_axes(embedding: np.ndarray, finite: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and the three leading eigenvectors of the covariance (d, 3), largest first."""
    d = embedding.shape[1]
    mean = np.asarray(np.mean(embedding, axis=0, where=finite[:, None], dtype=np.float64))
    covariance = np.zeros((d, d))
    for part in _chunks(len(embedding)):
        centred = embedding[part][finite[part]] - mean
        covariance += centred.T @ centred
    axes = np.linalg.eigh(covariance)[1][:, ::-1][:, :3]
    largest = np.abs(axes).argmax(axis=0)
    return mean, axes * np.where(axes[largest, range(3)] < 0, -1.0, 1.0)


def _chunks(n: int) -> list[slice]:
    return [slice(start, start + CHUNK) for start in range(0, n, CHUNK)]
