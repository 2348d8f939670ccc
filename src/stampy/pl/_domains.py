"""Domains on the tissue, next to the labels that they were compared with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from stampy import _checks, _keys, _utils
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

    Titles state the adjusted Rand index (ARI), if there is one; with several sections, of each section.

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
    names = drawn_sections(adata, library_key, sections, table_key)
    if "title" not in looks:
        looks["title"] = [
            _title(c, records.get(c), n if len(names) > 1 else "") for c in [*given, *keys] for n in names
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


def _title(name: str, record: DomainsRecord | None, section: str) -> str:
    title = f"{name} · {section}" if section else name
    if record is None or "label_key" not in record:
        return title
    scores = record["scores"].set_index("section")["ari"]
    at = section or "all"
    return f"{title} (ARI {scores[at]:.2f})" if at in scores.index else title
