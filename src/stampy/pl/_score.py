"""Map of a gene programme."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

import numpy as np

from stampy import _checks, _keys, _utils
from stampy.pl._domains import drawn_sections
from stampy.pl._spatial import SpatialOptions, spatial

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from spatialdata import SpatialData


def score(
    adata: AnnData | SpatialData,
    key: str = _keys.SCORE,
    *,
    table_key: str = _keys.TABLE,
    **kwargs: Unpack[SpatialOptions],
) -> Axes | list[Axes]:
    """Plot the score of each spot for a gene programme on the tissue.

    Colour limits are the 1st and 99th percentile; standardised scores are centred on 0, blue below and red above.

    Parameters
    ----------
    adata
        Spots scored by `stampy.tl.score`.
    key
        Key of the scores.
    table_key
        Table of a SpatialData.
    **kwargs
        Further arguments of `stampy.pl.spatial`, such as `library_key`, `cmap`, `vmin` or `ax`.

    Returns
    -------
    The Axes, or a list of Axes for several sections.

    Raises
    ------
    KeyError
        There are no such scores.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=40)
    >>> stampy.tl.embed(adata, modality="gene", show_progress_bar=False)
    >>> stampy.tl.score(adata, ["COL1A1", "COL1A2", "COL3A1", "DCN", "LUM"], modality="gene")
    >>> ax = stampy.pl.score(adata)
    >>> ax.get_title().splitlines()
    ['COL1A1, COL1A2, COL3A1, ...', '(gene embedding, cosine)']
    """
    table = _utils.table_of(adata, table_key)
    needs = f"Score first: `stampy.tl.score(adata, genes, key_added={key!r})`."
    _checks.has_key(table.obs, key, slot="adata.obs", needs=needs)
    record = table.uns.get(_keys.UNS, {}).get(key, {})
    look: SpatialOptions = {"vmin": "p1", "vmax": "p99"}
    if record.get("standardize"):
        most = np.nanpercentile(np.abs(table.obs[key].to_numpy(dtype=float)), 99)
        look = {"cmap": "RdBu_r", "vmin": -float(most), "vmax": float(most)}
    measure = "z score of the cosine" if record.get("standardize") else "cosine"
    if len(record.get("genes", ())):
        genes = list(record["genes"])
        said = f"{record['modality']} embedding, {measure}" if "modality" in record else measure
        title = f"{', '.join(genes[:3])}{', ...' if len(genes) > 3 else ''}\n({said})"
        names = drawn_sections(adata, kwargs.get("library_key"), kwargs.get("sections"), table_key)
        look["title"] = [f"{name} · {title}" for name in names] if len(names) > 1 else title
    look.update(kwargs)
    axes = spatial(adata, key, table_key=table_key, **look)
    for bar in (bar for ax in (axes if isinstance(axes, list) else [axes]) for bar in ax.child_axes):
        if bar.get_ylabel() == key:
            bar.set_ylabel(measure)
    return axes
