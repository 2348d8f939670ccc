"""Domains on the tissue, next to the labels that they were compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

import numpy as np

from stampy import _checks, _keys, _utils
from stampy._labels import known_labels
from stampy._section.section import library_key_of
from stampy.pl._drawing.view import DomainsRecord, record_of
from stampy.pl._spatial import SpatialLook, spatial

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def domains(
    adata: AnnData | SpatialData,
    key: str | Sequence[str] = _keys.DOMAINS,
    *,
    labels: bool = True,
    library_key: str | None = None,
    sections: str | Sequence[str] | None = None,
    ax: Axes | None = None,
    table_key: str = _keys.TABLE,
    **looks: Unpack[SpatialLook],
) -> Axes | list[Axes]:
    """Plot the domains of `stampy.tl.domains`, next to the labels that they were compared with.

    If the domains were compared with labels, titles state the adjusted Rand index (ARI) of the plotted spots: in a
    subset of the table, or one of its sections, it is not that of the run.

    Parameters
    ----------
    adata
        AnnData with results of `stampy.tl.domains`.
    key
        `key_added` of the domains, or several to compare them.
    labels
        Also plot the labels that the domains were compared with, if any.
    library_key, sections
        Column of obs that names the section of each spot, and the sections to plot; see `stampy.pl.spatial`.
    ax
        Axes for a single panel: one section, `labels=False`.
    table_key
        Table of a SpatialData.
    looks
        Further arguments of `stampy.pl.spatial`, such as `size` or `palette`.

    Returns
    -------
    The Axes, or a list of them: all sections of the labels, then of each key.

    Raises
    ------
    KeyError
        The results are missing.
    ValueError
        `ax` with several panels, and the errors of `stampy.pl.spatial`.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=150)
    >>> adata.obsm["X_counts"] = adata.X[:, :200].toarray()
    >>> stampy.tl.domains(adata, 4, use_rep="X_counts", method="kmeans", labels="domain")
    >>> truth, found = stampy.pl.domains(adata)
    >>> truth.get_title()
    'domain'
    """
    table = _utils.table_of(adata, table_key)
    keys = [key] if isinstance(key, str) else list(key)
    records = {k: record_of(table, k, tool="domains", holds="chosen_by") for k in keys}
    for k in keys:
        _checks.has_key(table.obs, k, slot="adata.obs", needs="The domains of `stampy.tl.domains` should be there.")
    given = list(dict.fromkeys(r["label_key"] for r in records.values() if "label_key" in r)) if labels else []
    for column in given:
        needs = "The domains were compared with these labels; `labels=False` plots the domains alone."
        _checks.has_key(table.obs, column, slot="adata.obs", needs=needs)
    if "title" not in looks:
        names = drawn_sections(adata, library_key, sections, table_key)
        rows = _rows_of(adata, names, library_key, table_key)
        looks["title"] = [
            _title(table, column, records.get(column), name if len(names) > 1 else "", rows[name])
            for column in [*given, *keys]
            for name in names
        ]
    return spatial(
        adata, [*given, *keys], library_key=library_key, sections=sections, ax=ax, table_key=table_key, **looks
    )


def drawn_sections(
    adata: AnnData | SpatialData, library_key: str | None, sections: str | Sequence[str] | None, table_key: str
) -> list[str]:
    """Names of the sections that `pl.spatial` draws, for titles."""
    if sections is not None:
        return [sections] if isinstance(sections, str) else list(sections)
    return _checks.libraries(_utils.table_of(adata, table_key), library_key_of(adata, library_key, table_key))[1]


def _rows_of(
    adata: AnnData | SpatialData, names: Sequence[str], library_key: str | None, table_key: str
) -> dict[str, np.ndarray]:
    """Mask (n,) of the spots of each section."""
    table = _utils.table_of(adata, table_key)
    codes, known = _checks.libraries(table, library_key_of(adata, library_key, table_key))
    return {name: codes == known.index(name) if name in known else np.zeros(len(codes), dtype=bool) for name in names}


def _title(table: AnnData, column: str, record: DomainsRecord | None, section: str, rows: np.ndarray) -> str:
    """Name of a column and section, and the ARI of these spots (n,)."""
    title = f"{column} · {section}" if section else column
    labels = None if record is None else record.get("label_key")
    if labels is None or labels not in table.obs:
        return title
    from sklearn.metrics import adjusted_rand_score

    (truth, _), (found, _) = (known_labels(table.obs[c][rows], warn=False) for c in (labels, column))
    both = (truth >= 0) & (found >= 0)
    if len(np.unique(truth[both])) < 2:  # no partition to agree with
        return title
    return f"{title} (ARI {adjusted_rand_score(truth[both], found[both]):.2f})"
