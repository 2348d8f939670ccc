"""Genes that stand out in each domain: for the demo and the report, not a test of anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["MIN_SPOTS", "top_genes"]

MIN_SPOTS = 3


def top_genes(adata: AnnData, column: str, *, layer: str | None = None, n: int = 5) -> dict[str, list[str]]:
    """Genes that stand out in each group of at least 3 spots, from log-normalised counts.

    Parameters
    ----------
    adata
        Raw counts in ``X`` or `layer`.
    column
        Categorical column of obs.
    layer
        Layer with the counts.
    n
        Genes of each group, at most.

    Returns
    -------
    Group -> symbols (or ids), best first; empty where there is nothing to compare.
    """
    import anndata
    import scanpy as sc

    from stampy.pp._features import gene_names

    groups = adata.obs[column].cat.remove_unused_categories()
    sizes = groups.value_counts()
    large = [c for c in groups.cat.categories if sizes[c] >= MIN_SPOTS]
    if len(sizes) < 2 or not large or adata.n_vars == 0:
        return {}
    ids, symbols = gene_names(adata.var)
    names = [s.split("|")[0] or i or v for i, s, v in zip(ids, symbols, adata.var_names, strict=True)]
    X = adata.X if layer is None else adata.layers[layer]
    counts = anndata.AnnData(X.astype(np.float32), obs=pd.DataFrame({column: groups}), var=pd.DataFrame(index=names))
    counts = counts[groups.notna().to_numpy()].copy()
    counts.var_names_make_unique()
    sc.pp.filter_genes(counts, min_cells=min(10, adata.n_obs // 10 + 1))
    if counts.n_vars == 0:
        return {}
    sc.pp.normalize_total(counts, target_sum=1e4)
    sc.pp.log1p(counts)
    sc.tl.rank_genes_groups(counts, column, groups=large, method="t-test_overestim_var", n_genes=n)
    ranked = counts.uns["rank_genes_groups"]
    return {c: [g for g, s in zip(ranked["names"][c], ranked["scores"][c], strict=True) if s > 0] for c in large}
