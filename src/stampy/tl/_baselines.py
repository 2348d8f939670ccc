"""Baselines that are fitted to the section(s) that they embed: principal components, plain and smoothed.

Shapes: n spots, D components.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stampy import _checks
from stampy.pp._counts import checked_rows, counts_of, source_of

from ._cluster import smoothed as smooth

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["embed_pca"]

N_GENES, N_COMPONENTS, N_NEIGHBORS = 2000, 50, 6


def embed_pca(
    table: AnnData, *, smoothed: bool, layer: str | None, library_key: str | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Principal components (n, D) of the most variable genes, log-normalised, and what to keep of their origin."""
    _checks.not_empty(table)
    if min(table.shape) < 3:
        raise ValueError(
            f"Principal components need at least 3 spots and 3 genes, found {table.n_obs} x {table.n_vars}."
        )
    codes = xy = None
    if smoothed:  # the checks come before the work
        xy = _checks.coordinates(table)
        codes, _ = _checks.libraries(table, library_key)
    source = source_of(layer)
    blocks = [sparse.csr_matrix(b) for _, b in checked_rows(counts_of(table, layer), source=source)]
    values, n_genes, n_empty = principal_components(sparse.vstack(blocks, format="csr"))
    if smoothed:
        values = smooth(values, xy, N_NEIGHBORS, codes)
    record = {"counts": source, "n_vars": table.n_vars, "n_genes": n_genes, "n_empty_spots": n_empty}
    return values, record | ({"n_neighbors": N_NEIGHBORS} if smoothed else {})


def principal_components(counts: sparse.csr_matrix) -> tuple[np.ndarray, int, int]:
    """Components (n, D) float32 of raw counts, the number of genes used, and of spots without counts."""
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(counts.astype(np.float32))
    empty = np.asarray(counts.sum(axis=1)).ravel() == 0
    if empty.any():
        _checks.warn(
            f"{int(empty.sum())} of {len(empty)} spots have no counts; they are embedded as if no gene were there. "
            "Leave them out before clustering."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some cells have zero counts")
        sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.filter_genes(adata, min_cells=1)
    if adata.n_vars > N_GENES:
        sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES)
        adata = adata[:, adata.var["highly_variable"]].copy()
    n = min(N_COMPONENTS, min(adata.shape) - 1)
    if n < 1:
        raise ValueError(f"Only {adata.n_vars} genes have counts: too few for principal components.")
    sc.pp.pca(adata, n_comps=n, random_state=0)
    return np.ascontiguousarray(adata.obsm["X_pca"], dtype=np.float32), adata.n_vars, int(empty.sum())
