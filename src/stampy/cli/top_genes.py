"""Marker genes of each domain, for the demo and the report; not a statistical test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

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
    from stampy.pp._gene_annotation import features_of, gene_names

    groups = adata.obs[column].cat.remove_unused_categories()
    sizes = groups.value_counts()
    large = [c for c in groups.cat.categories if sizes[c] >= MIN_SPOTS]
    if len(sizes) < 2 or not large or adata.n_vars == 0:
        return {}
    ids, symbols = gene_names(adata.var)
    names = [s.split("|")[0] or i or v for i, s, v in zip(ids, symbols, adata.var_names, strict=True)]
    counts = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer], dtype=np.float32)
    is_gene = features_of(adata.var).is_gene  # without antibodies and control probes, in the depth too
    counts, names = counts[groups.notna().to_numpy()][:, is_gene], np.array(names, dtype=object)[is_gene]
    seen = counts.getnnz(axis=0) >= min(10, adata.n_obs // 10 + 1)
    if not seen.any():
        return {}
    names = names[seen]
    scores = _scores(_log_normalised(counts[:, seen]), groups.dropna(), large)
    ranked = {c: np.argsort(-s, kind="stable")[:n] for c, s in scores.items()}
    return {c: [names[g] for g in best if scores[c][g] > 0] for c, best in ranked.items()}


def _log_normalised(counts: sparse.csr_matrix, to: float = 1e4) -> sparse.csr_matrix:
    """Log of 1 + counts per 10,000, as scanpy has it; spots without counts stay empty."""
    depth = np.asarray(counts.sum(axis=1)).ravel()
    scaled = sparse.diags((to / np.where(depth > 0, depth, to)).astype(np.float32)) @ counts
    return scaled.log1p().tocsr()


def _scores(X: sparse.csr_matrix, groups: pd.Series, large: list[str]) -> dict[str, np.ndarray]:
    """Welch's t of each gene in each of the groups against all other spots; scanpy's ``"t-test_overestim_var"``."""
    found = {}
    codes = groups.to_numpy()
    for group in large:
        inside = codes == group
        n = int(inside.sum())
        mean, var = _moments(X[inside])
        rest_mean, rest_var = _moments(X[~inside])
        spread = np.sqrt((var + rest_var) / n)  # the rest counts as if it were as small: fewer genes by its size alone
        found[group] = np.divide(mean - rest_mean, spread, out=np.zeros_like(mean), where=spread > 0)
    return found


def _moments(X: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (ddof 1) of each column."""
    n = X.shape[0]
    mean = np.asarray(X.mean(axis=0, dtype=np.float64)).ravel()
    squares = np.asarray(X.power(2).mean(axis=0, dtype=np.float64)).ravel()
    return mean, np.maximum(squares - mean**2, 0) * n / max(n - 1, 1)
