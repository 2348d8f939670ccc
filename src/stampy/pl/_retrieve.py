"""Queries and the tiles of retrieved spots."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _files, _keys, _utils
from stampy._settings import DEFAULT_SEED
from stampy.pl._drawing.paint import SAFE
from stampy.pl._drawing.panel import inches_of
from stampy.pl._tiles import TILE_INCHES, Cut, draw, fit_figure, gallery_axes, rows_of_spots, tiles_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData

GAP, QUERY_GAP = 0.08, 0.35  # in tiles; between tiles and after the query
LINE = 0.16  # in tiles; height of a line of text below a tile
LINE_CHARS = 16  # characters per line of a label, to fit the width of a tile
MIN_POINTS = 5  # minimum font size of titles
OWN = SAFE[1]


def retrieve(
    adata: AnnData | SpatialData,
    spots: str | int | Sequence[str] | Sequence[int] | None = None,
    *,
    reference: AnnData | SpatialData | None = None,
    key: str = _keys.RETRIEVE,
    n_nearest: int = 5,
    n_queries: int = 4,
    label: str | None = None,
    tile_um: float | None = None,
    library_key: str | None = None,
    um_per_px: float | None = None,
    tiles_key: str = _keys.TILES,
    image_key: str | None = None,
    scale_bar: bool = True,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    ax: Axes | None = None,
    table_key: str = _keys.TABLE,
) -> Axes:
    """Plot queries and the tiles of the spots that `stampy.tl.retrieve` found for them.

    Spots are represented by their tiles, for both genes and images. The number below a tile is the cosine similarity
    with the query. If the table of the queries itself was searched, the query's own spot has an orange frame where it
    was found, and the title states the recall and its value by chance.

    Parameters
    ----------
    adata
        The queries, with results of `stampy.tl.retrieve`, and with tiles in obsm or an image in ``uns["spatial"]``.
    spots
        Names or row numbers of the queries to plot. None: drawn at random.
    reference
        The searched table, if it is not `adata`.
    key
        Key of the results.
    n_nearest
        Number of tiles per query.
    n_queries
        Number of queries if `spots` is None.
    label
        Column of obs (of both tables) to write below the tiles, such as the domain.
    tile_um, library_key, um_per_px, tiles_key, image_key
        See `stampy.pl.tiles`. `library_key` is by default that of the search.
    scale_bar
        Draw a scale bar in µm.
    rng
        Seed for drawing queries.
    ax
        Axes for the plot.
    table_key
        Table of a SpatialData.

    Returns
    -------
    The Axes; a tile has edge 1.

    Raises
    ------
    KeyError
        Results, tiles and image, a spot or a column are missing.
    ValueError
        A table other than the searched one, more tiles than were found, or a query without embedding.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=20)
    >>> stampy.tl.embed(adata, modality="image", show_progress_bar=False)
    >>> stampy.tl.retrieve(adata, query="image", target="image", show_progress_bar=False)
    >>> ax = stampy.pl.retrieve(adata, [3, 17], n_nearest=4, label="domain")
    >>> len(ax.images)
    10
    """
    data, adata = adata, _utils.table_of(adata, table_key)
    record = _record(adata, key)
    other = _reference(adata, reference, record, table_key)
    index, score = adata.obsm[key + _keys.INDEX_SUFFIX], adata.obsm[key + _keys.SCORE_SUFFIX]
    _checks.at_least("n_nearest", n_nearest, 1)
    _checks.at_most("n_nearest", n_nearest, index.shape[1])
    _checks.at_least("n_queries", n_queries, 1)
    queries = _queries(adata, spots, index, n_queries, _utils.generator(rng))
    sections = library_key or record["library_key"] or None
    cut = Cut(tile_um, sections, um_per_px, tiles_key, image_key, table_key)
    nearest = index[queries][:, :n_nearest]
    asked, edge = tiles_of(data, queries, cut)
    found, other_edge = tiles_of(data if other is adata else reference, nearest.ravel(), replace(cut, tile_um=edge))
    if edge != other_edge:
        raise ValueError(f"Tiles of the queries show {edge} µm, those of the reference {other_edge}. Pass `tile_um`.")

    below, above = _texts(adata, queries, label), _texts(other, nearest.ravel(), label)
    lines = 0 if label is None else max(text.count("\n") + 1 for text in [*below, *above])
    step, row_height = 1 + GAP, 1.1 + LINE * (1 + lines)
    offsets = [0.0, *(1 + QUERY_GAP + step * i for i in range(n_nearest))]
    panel = gallery_axes(offsets[-1] + 1, len(queries) * row_height) if ax is None else ax
    images = [[asked[int(q)], *(found[int(r)] for r in line)] for q, line in zip(queries, nearest, strict=True)]
    names = [str(name) for name in adata.obs_names[queries]]
    draw(panel, images, names, offsets=offsets, row_height=row_height, edge_um=edge if scale_bar else None)
    panel.set_ylim(len(queries) * row_height, 0)
    scale = min(1.0, inches_of(panel)[0] / (offsets[-1] + 1) / TILE_INCHES)
    for i, query in enumerate(queries):
        y = i * row_height
        _write(panel, 0.5, y + 1, below[i], scale)
        for j, row in enumerate(nearest[i]):
            cosine = f"{score[query, j]:.3f}".replace("-", "−")
            _write(panel, offsets[j + 1] + 0.5, y + 1, f"{cosine}\n{above[i * n_nearest + j]}".strip(), scale)
            if other is adata and row == query:
                _frame(panel, offsets[j + 1], y)
    _head(panel, offsets, record, label, scale)
    if ax is None:
        fit_figure(panel)
    return panel


def _record(adata: AnnData, key: str) -> Mapping[str, Any]:
    needs = f"Search first: `stampy.tl.retrieve(adata, key_added={key!r})`."
    _checks.has_key(adata.obsm, key + _keys.INDEX_SUFFIX, slot="adata.obsm", needs=needs)
    _checks.has_key(adata.uns.get(_keys.UNS, {}), key, slot="adata.uns['stamp']", needs=needs)
    return adata.uns[_keys.UNS][key]


def _reference(adata: AnnData, reference: Any, record: Mapping[str, Any], table_key: str) -> AnnData:
    """Reference table of the results; ValueError if it has changed since."""
    if reference is None and record["reference"] != "self":
        raise ValueError("The results are spots of another table. Pass it with `reference=`.")
    other = adata if reference is None else _utils.table_of(reference, table_key)
    if _files.digest(other.obs_names) != record["reference_digest"]:
        raise ValueError(
            f"The results are rows of a table of {record['n_reference']} spots, found {other.n_obs} spots, or others. "
            "Search again after taking a subset: `stampy.tl.retrieve`."
        )
    return adata if record["reference"] == "self" else other


def _queries(adata: AnnData, spots: Any, index: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    known = np.flatnonzero(index[:, 0] >= 0)
    if spots is None:
        return np.sort(random.choice(known, min(n, len(known)), replace=False))
    rows = rows_of_spots(adata, spots)
    lost = [str(adata.obs_names[row]) for row in rows if row not in known]
    if lost:
        raise ValueError(f"Nothing was found for {_checks.shortlist(lost)}: these spots have no embedding.")
    return rows


def _texts(adata: AnnData, rows: np.ndarray, label: str | None) -> list[str]:
    if label is None:
        return [""] * len(rows)
    _checks.has_key(adata.obs, label, slot="adata.obs", needs="`label` names a column to write below the tiles.")
    return ["\n".join(textwrap.wrap(str(value), LINE_CHARS)) for value in adata.obs[label].iloc[rows]]


def _write(ax: Axes, x: float, y: float, text: str, scale: float) -> None:
    ax.text(x, y + 0.05, text, ha="center", va="top", fontsize=_points("x-small", scale), parse_math=False)


def _points(size: str, scale: float) -> float:
    """Font size in points, smaller for small tiles, so that texts do not overlap."""
    from matplotlib.font_manager import FontProperties

    return scale * FontProperties(size=size).get_size_in_points()


def _frame(ax: Axes, x: float, y: float) -> None:
    from matplotlib.patches import Rectangle

    ax.add_patch(Rectangle((x, y), 1, 1, fill=False, edgecolor=OWN, linewidth=2.5))


def _head(ax: Axes, offsets: Sequence[float], record: Mapping[str, Any], label: str | None, scale: float) -> None:
    """Titles above the columns: query, target and recall."""
    below = f"; below: cosine similarity, {label}" if label is not None else "; below: cosine similarity"
    nearest = f"nearest by {record['target']}{below}{_recall(record)}"
    for x, text, align in ((0.5, f"query: {record['query']}", "center"), (offsets[1], nearest, "left")):
        size = max(_points("small", scale), MIN_POINTS)
        ax.text(x, -0.06, text, ha=align, va="bottom", fontsize=size, parse_math=False)


def _recall(record: Mapping[str, Any]) -> str:
    """Recall over all sections with chance, for the largest k; "" if no pair can be found."""
    table = record.get("recall")
    if table is None or not len(table):
        return ""
    row = table[table["section"] == "all"].iloc[-1]
    return (
        f"\nown spot among the {int(row['k'])} nearest: {row['recall']:.1%} of all queries (chance {row['chance']:.1%})"
    )
