"""Sum cells of an imaging platform, or small bins, in square bins."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys, _utils
from stampy._section.section import ImageOptions, PlacedSection, sections_of

from ._counts import counts_of, iter_rows

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["bins"]

CONTRADICTION = 0.15  # relative difference of two scales, as for pixel sizes of images


def bins(
    cells: AnnData | SpatialData,
    bin_um: float,
    *,
    um_per_px: float | None = None,
    layer: str | None = None,
    table_key: str = _keys.TABLE,
) -> AnnData:
    """Sum the counts of cells or of smaller bins in square bins, e.g. of the size of a Visium spot.

    The models were trained on spots with about ten cells; single cells of imaging platforms have few counts. The grid
    starts at the lowest coordinates. Bins without a cell are dropped.

    Parameters
    ----------
    cells
        One section with raw counts and ``obsm["spatial"]``, or a SpatialData; it is not changed. It may be backed.
    bin_um
        Edge of a bin in µm.
    um_per_px
        µm per unit of the coordinates: 1 if they are in µm. None: ``microns_per_pixel`` of the scale factors.
    layer
        Layer with raw counts; None: ``X``.
    table_key
        The table of a SpatialData.

    Returns
    -------
    A new AnnData (bins, genes): summed counts, ``obs["n_cells"]``, ``obs["array_row"]``, ``obs["array_col"]``,
    ``obsm["spatial"]`` (centres, in the units of the cells), and ``uns["spatial"]`` with the bin's edge as
    ``spot_diameter_fullres``.

    Warns
    -----
    StampyWarning
        `um_per_px` contradicts the scale factors.

    Raises
    ------
    KeyError
        No coordinates or no such layer.
    ValueError
        An empty section, several sections, or an unknown scale.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=60)
    >>> binned = bins(adata, 250, um_per_px=1.6)
    >>> binned.n_obs < adata.n_obs, int(binned.X.sum()) == int(adata.X.sum()), int(binned.obs["n_cells"].sum())
    (True, True, 60)
    """
    import anndata

    table = _utils.table_of(cells, table_key)
    _checks.not_empty(table)
    _checks.positive("bin_um", bin_um)
    section = _one_section(cells, um_per_px, table_key)
    scale, xy = _scale(section.factors, um_per_px), section.xy
    edge = bin_um / scale
    places = np.floor((xy - xy.min(axis=0)) / edge).astype(np.int64)
    grid, codes = np.unique(places[:, ::-1], axis=0, return_inverse=True)  # row, column
    codes = codes.reshape(-1)
    obs = pd.DataFrame(
        {"array_row": grid[:, 0], "array_col": grid[:, 1], "n_cells": np.bincount(codes, minlength=len(grid))},
        index=[f"s_{bin_um:g}um_{row:05d}_{column:05d}" for row, column in grid],
    )
    binned = anndata.AnnData(_summed(counts_of(table, layer), codes, len(grid)), obs=obs, var=table.var.copy())
    binned.obsm[_keys.SPATIAL] = xy.min(axis=0) + (grid[:, ::-1] + 0.5) * edge
    factors = {**section.factors, "microns_per_pixel": scale, "spot_diameter_fullres": edge}
    binned.uns[_keys.UNS_SPATIAL] = {
        section.title or "section": {"images": {}, **section.library, "scalefactors": factors}
    }
    return binned


def _one_section(cells: AnnData | SpatialData, um_per_px: float | None, table_key: str) -> PlacedSection:
    sections = sections_of(cells, ImageOptions(um_per_px=um_per_px), table_key=table_key, needs=["neighbors"])
    if len(sections) > 1:
        raise ValueError(
            f"Bins are made of one section, found {len(sections)}: {_checks.shortlist(s.name for s in sections)}. "
            "Take them one by one."
        )
    return sections[0]


def _scale(factors: Mapping[str, Any], um_per_px: float | None) -> float:
    if um_per_px is not None:
        stated = _checks.factor(factors, "microns_per_pixel") if factors.get("microns_per_pixel") is not None else None
        if stated is not None and abs(um_per_px / stated - 1) > CONTRADICTION:
            _checks.warn(
                f"`um_per_px={um_per_px:g}` contradicts `microns_per_pixel` of the scale factors, {stated:.4g}, and is "
                "used: it must be the µm per unit of the coordinates, not those per px of another image. Omit it if "
                "the scale factors are right."
            )
        return float(um_per_px)
    if factors.get("microns_per_pixel") is None:
        raise ValueError(
            "The scale of the coordinates is not known: the scale factors have no `microns_per_pixel`. Give "
            "`um_per_px=` (1 where the coordinates are µm)."
        )
    return _checks.factor(factors, "microns_per_pixel")


def _wide(dtype: np.dtype) -> np.dtype:
    """Data type for the sums; small integer types would overflow."""
    return np.dtype(np.int64) if dtype.kind in "bui" and dtype.itemsize < 4 else dtype


def _summed(counts: Any, codes: np.ndarray, n: int) -> sparse.csr_matrix:
    """Sum the rows of each code, (n, genes) CSR, one block at a time."""
    parts = []
    for start, block in iter_rows(counts):
        here, within = np.unique(codes[start : start + block.shape[0]], return_inverse=True)
        block = block.astype(_wide(block.dtype), copy=False)
        ones = np.ones(len(within), dtype=block.dtype)
        which = sparse.csr_matrix((ones, (within.reshape(-1), np.arange(len(within)))), shape=(len(here), len(within)))
        part = sparse.coo_matrix(which @ block)
        parts.append((part.data, here[part.row], part.col))
    data, rows, columns = (np.concatenate(p) for p in zip(*parts, strict=True))
    summed = sparse.csr_matrix((data, (rows, columns)), shape=(n, counts.shape[1]))  # sums duplicate entries
    summed.sort_indices()
    return summed
