"""Cells of an imaging platform, or small bins, summed up in square bins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys

from ._counts import counts_of, iter_rows

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["bins"]


def bins(cells: AnnData, bin_um: float, *, um_per_px: float | None = None, layer: str | None = None) -> AnnData:
    """Sum the counts of cells (or of smaller bins) up in square bins, e.g. as wide as a Visium spot.

    The models were made for spots of some ten cells; a single cell of an imaging platform has few counts. The grid
    starts at the lowest coordinates. Bins without a cell are left out.

    Parameters
    ----------
    cells
        One section with raw counts and ``obsm["spatial"]``; it is not changed. It may be backed.
    bin_um
        Edge of a bin in µm.
    um_per_px
        µm per unit of the coordinates: 1 where they are µm. None: ``microns_per_pixel`` of the scale factors.
    layer
        Layer with raw counts; None: ``X``.

    Returns
    -------
    A new AnnData (bins, genes): summed counts, ``obs["n_cells"]``, ``obs["array_row"]``, ``obs["array_col"]``,
    ``obsm["spatial"]`` (centres, in the units of the cells), and ``uns["spatial"]`` with the bin's edge as
    ``spot_diameter_fullres``.

    Raises
    ------
    KeyError
        No coordinates or no such layer.
    ValueError
        An empty section, several sections, or a scale that is not known.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=60)
    >>> binned = bins(adata, 250, um_per_px=1.6)
    >>> binned.n_obs < adata.n_obs, int(binned.X.sum()) == int(adata.X.sum()), int(binned.obs["n_cells"].sum())
    (True, True, 60)
    """
    import anndata

    _checks.not_empty(cells)
    _checks.positive("bin_um", bin_um)
    name, library = _library(cells)
    scale = _scale(library, um_per_px)
    xy = _checks.coordinates(cells)
    edge = bin_um / scale
    places = np.floor((xy - xy.min(axis=0)) / edge).astype(np.int64)
    grid, codes = np.unique(places[:, ::-1], axis=0, return_inverse=True)  # row, column
    codes = codes.reshape(-1)
    obs = pd.DataFrame(
        {"array_row": grid[:, 0], "array_col": grid[:, 1], "n_cells": np.bincount(codes, minlength=len(grid))},
        index=[f"s_{bin_um:g}um_{row:05d}_{column:05d}" for row, column in grid],
    )
    binned = anndata.AnnData(_summed(counts_of(cells, layer), codes, len(grid)), obs=obs, var=cells.var.copy())
    binned.obsm[_keys.SPATIAL] = xy.min(axis=0) + (grid[:, ::-1] + 0.5) * edge
    factors = {**library.get("scalefactors", {}), "microns_per_pixel": scale, "spot_diameter_fullres": edge}
    binned.uns[_keys.UNS_SPATIAL] = {name: {"images": {}, **library, "scalefactors": factors}}
    return binned


def _library(cells: AnnData) -> tuple[str, dict[str, Any]]:
    libraries = cells.uns.get(_keys.UNS_SPATIAL, {})
    if len(libraries) > 1:
        raise ValueError(
            f"Bins are made of one section, found {len(libraries)}: {_checks.shortlist(libraries)}. "
            "Take them one by one."
        )
    return next(((str(name), dict(library)) for name, library in libraries.items()), ("section", {}))


def _scale(library: dict[str, Any], um_per_px: float | None) -> float:
    scale = um_per_px if um_per_px is not None else library.get("scalefactors", {}).get("microns_per_pixel")
    if scale is None:
        raise ValueError(
            "The scale of the coordinates is not known: the scale factors have no `microns_per_pixel`. Give "
            "`um_per_px=` (1 where the coordinates are µm)."
        )
    _checks.positive("um_per_px", float(scale))
    return float(scale)


def _wide(dtype: np.dtype) -> np.dtype:
    """The type to add counts up in: small integers would overflow."""
    return np.dtype(np.int64) if dtype.kind in "bui" and dtype.itemsize < 4 else dtype


def _summed(counts: Any, codes: np.ndarray, n: int) -> sparse.csr_matrix:
    """Sums of the rows of each code, (n, genes) CSR; a block at a time."""
    parts = []
    for start, block in iter_rows(counts):
        here, within = np.unique(codes[start : start + block.shape[0]], return_inverse=True)
        block = block.astype(_wide(block.dtype), copy=False)
        ones = np.ones(len(within), dtype=block.dtype)
        which = sparse.csr_matrix((ones, (within.reshape(-1), np.arange(len(within)))), shape=(len(here), len(within)))
        part = sparse.coo_matrix(which @ block)
        parts.append((part.data, here[part.row], part.col))
    data, rows, columns = (np.concatenate(p) for p in zip(*parts, strict=True))
    summed = sparse.csr_matrix((data, (rows, columns)), shape=(n, counts.shape[1]))  # adds what has the same place
    summed.sort_indices()
    return summed
