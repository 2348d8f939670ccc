"""Principal components of raw counts by scanpy's standard steps: log-normalisation, most variable genes, PCA.

scikit-learn computes the components, as in scanpy. The preceding steps are implemented here, since importing scanpy
takes longer than all of them on a small section; tests compare them with scanpy.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks

__all__ = ["N_COMPONENTS", "log_normalised", "principal_components", "variable_genes"]

N_GENES, N_COMPONENTS = 2000, 50
DEPTH = 1e4  # counts per spot after normalisation
N_BINS = 20  # bins of the genes' means


def principal_components(counts: sparse.csr_matrix) -> tuple[np.ndarray, int, int]:
    """Components (n, D) float32 of raw counts, number of genes used, and number of spots without counts."""
    from sklearn.decomposition import PCA

    logged, empty = log_normalised(counts)
    if empty.any():
        _checks.warn(
            f"{int(empty.sum())} of {len(empty)} spots have no counts; their gene vector is all zeros. "
            "Remove them before clustering."
        )
    logged = logged[:, logged.getnnz(axis=0) > 0]
    if logged.shape[1] > N_GENES:
        logged = logged[:, variable_genes(logged, N_GENES)]
    n = min(N_COMPONENTS, min(logged.shape) - 1)
    if n < 1:
        raise ValueError(f"Only {logged.shape[1]} genes have counts: too few for principal components.")
    values = PCA(n, svd_solver="arpack", random_state=0).fit_transform(logged)
    values = np.ascontiguousarray(values, dtype=np.float32)
    values[empty] = 0
    return values, logged.shape[1], int(empty.sum())


def log_normalised(counts: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Log of 1 + counts per 10,000, float32, and a mask of spots without counts."""
    logged = sparse.csr_matrix(counts, dtype=np.float32, copy=True)
    logged.sum_duplicates()
    logged.eliminate_zeros()
    totals = np.asarray(logged.sum(axis=1, dtype=np.float64)).ravel().astype(np.float32)
    empty = totals == 0
    scale = np.where(empty, np.float32(1), totals / np.float32(DEPTH))
    logged.data /= np.repeat(scale, np.diff(logged.indptr))
    np.log1p(logged.data, out=logged.data)
    return logged, empty


def variable_genes(logged: sparse.csr_matrix, n: int) -> np.ndarray:
    """Mask of the columns with the `n` highest dispersions, normalised among genes of similar mean.

    Equivalent to ``scanpy.pp.highly_variable_genes`` with flavour "seurat". Genes tied with the last one are included;
    constant genes have no dispersion.

    Parameters
    ----------
    logged
        (spots, genes) log1p of counts.
    """
    mean, variance = _moments(logged)
    mean[mean == 0] = 1e-12
    dispersion = variance / mean
    dispersion[dispersion <= 0] = np.nan  # constant; rounding may give values below 0
    genes = pd.DataFrame({"mean": np.log1p(mean), "dispersion": np.log(dispersion)})
    binned = genes.groupby(pd.cut(genes["mean"], N_BINS), observed=True)["dispersion"]
    average, deviation = binned.transform("mean"), binned.transform("std")
    alone = deviation.isna()  # a single gene in its bin gets 1
    normalised = (genes["dispersion"] - average.where(~alone, 0)) / deviation.where(~alone, average)
    known = np.sort(normalised.dropna().to_numpy())
    least = known[-min(n, len(known))] if len(known) else np.inf
    return normalised.fillna(-np.inf).to_numpy() >= least


def _moments(logged: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (ddof 1) of the counts of each gene."""
    n, n_genes = logged.shape
    values = np.expm1(logged.data)
    mean = np.bincount(logged.indices, values, n_genes) / n
    squares = np.bincount(logged.indices, values * values, n_genes) / n
    return mean, (squares - mean**2) * (n / max(n - 1, 1))
