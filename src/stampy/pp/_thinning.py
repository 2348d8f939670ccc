"""Data thinning: split molecules into two independent halves, and predict the genes of one half from the other.

This measure needs no labels. The module is in pp because both `stampy.tl` (evaluation of embeddings) and
`stampy.train` (choice of settings for adaptation) use it, and these two never import each other.

Shapes: n spots, G genes of the section, g target genes, d columns of an embedding.
"""

from __future__ import annotations

import numpy as np
from scipy import linalg, sparse

__all__ = ["gene_targets", "halves", "heldout_correlation", "overdispersed_genes", "regions"]

N_FOLDS = 5
MIN_SHARE = 0.05  # of the spots in which a target gene must be detected


def halves(counts: sparse.csr_matrix, rng: np.random.Generator) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
    """Split the molecules (n, G) at random, each with probability one half.

    If counts are Poisson, the counts of the two halves are independent given their means. What an embedding of one half
    predicts of the other half therefore reflects the tissue, not the noise.

    Examples
    --------
    >>> counts = sparse.csr_matrix(np.array([[3, 0], [1, 4]]))
    >>> a, b = halves(counts, np.random.default_rng(0))
    >>> (a + b).toarray().tolist()
    [[3.0, 0.0], [1.0, 4.0]]
    """
    counts = sparse.csr_matrix(counts)
    first = rng.binomial(counts.data.astype(np.int64), 0.5)
    parts = []
    for data in (first, counts.data.astype(np.int64) - first):
        half = sparse.csr_matrix((data.astype(np.float32), counts.indices, counts.indptr), counts.shape, copy=True)
        half.eliminate_zeros()
        parts.append(half)
    return parts[0], parts[1]


def regions(xy: np.ndarray, sections: np.ndarray | None = None, n_folds: int = N_FOLDS) -> np.ndarray:
    """Folds (n,) that each are a compact region: every section is divided into `n_folds` regions of similar size.

    Small scattered blocks are unsuitable: with them, the position of a spot alone predicts the genes of its neighbours
    well (correlation 0.34 on a section of 295 spots), so an embedding fitted to the section may merely encode position.
    Between regions, position predicts little.

    Examples
    --------
    >>> xy = np.stack(np.mgrid[:10, :10], axis=-1).reshape(-1, 2)
    >>> np.bincount(regions(xy)).tolist()
    [20, 20, 20, 20, 20]
    """
    sections = np.zeros(len(xy), dtype=np.int64) if sections is None else np.asarray(sections)
    folds = np.empty(len(xy), dtype=np.int64)
    for section in np.unique(sections):
        rows = np.flatnonzero(sections == section)
        _cut(xy, rows, np.arange(n_folds), folds)
    return folds


def _cut(xy: np.ndarray, rows: np.ndarray, names: np.ndarray, folds: np.ndarray) -> None:
    """Halve the rows across their longer side until there is one part per name."""
    if len(names) == 1 or not len(rows):
        folds[rows] = names[0]
        return
    side = int(np.argmax(np.ptp(xy[rows], axis=0)))
    order = rows[np.argsort(xy[rows, side], kind="stable")]
    low = len(names) // 2
    at = len(order) * low // len(names)
    _cut(xy, order[:at], names[:low], folds)
    _cut(xy, order[at:], names[low:], folds)


def overdispersed_genes(counts: sparse.csr_matrix, n: int = 200) -> np.ndarray:
    """Columns of the `n` most variable genes, in ascending order.

    Ranked by the variance of Pearson residuals against Poisson noise, among genes detected in at least 5% of the spots.
    """
    counts = sparse.csr_matrix(counts, dtype=np.float64)
    totals = np.asarray(counts.sum(axis=1)).ravel()
    found = counts.getnnz(axis=0) >= max(MIN_SHARE * counts.shape[0], 3)
    columns = np.flatnonzero(found)
    part = sparse.csc_matrix(counts[:, columns])
    shares = np.asarray(part.sum(axis=0)).ravel() / max(totals.sum(), 1.0)
    inverse = 1 / np.maximum(totals, 1.0)
    # sum of (x - ts)^2 / (ts) over spots of depth t, with the gene's share s: only x > 0 must be visited
    squares = sparse.csc_matrix((part.data**2, part.indices, part.indptr), part.shape)
    variance = (squares.T @ inverse) / np.maximum(shares, 1e-300) - 2 * np.asarray(part.sum(axis=0)).ravel()
    variance = (variance + totals.sum() * shares) / counts.shape[0]
    return np.sort(columns[np.argsort(-variance, kind="stable")[:n]])


def gene_targets(counts: sparse.csr_matrix, genes: np.ndarray) -> np.ndarray:
    """Targets (n, g) float32: log1p of counts per 10,000, with the effect of log depth removed.

    Log-normalised counts of sparse spots still depend on sequencing depth. The effect is removed by regression of each
    gene on a quadratic function of log depth, so that an embedding gains nothing by encoding depth.
    """
    totals = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    part = np.asarray(counts[:, genes].todense(), dtype=np.float64)
    logged = np.log1p(part * (1e4 / np.maximum(totals, 1.0))[:, None])
    depth = np.log1p(totals)
    design = np.stack([np.ones_like(depth), depth, depth**2], axis=1)
    basis = linalg.orth(design / np.maximum(np.linalg.norm(design, axis=0), 1e-12))
    return (logged - basis @ (basis.T @ logged)).astype(np.float32)


def heldout_correlation(values: np.ndarray, targets: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """Pearson correlation (g,) of targets with their ridge prediction from `values`; each fold is held out once.

    Columns are standardised. The penalty is the number of columns `d`, so that all columns together are expected to
    explain half of the variance. Predictions omit the mean of the training spots: it is low where the held-out region
    is high, so noise would score below 0. NaN for a constant target.
    """
    x = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    scale = x.std(axis=0)
    x *= np.where(scale > 1e-9, 1 / np.maximum(scale, 1e-300), 0.0)
    y = targets.astype(np.float64) - targets.mean(axis=0, dtype=np.float64)
    held = [folds == fold for fold in np.unique(folds)]
    sums = [(x[h].T @ x[h], x[h].T @ y[h], x[h].sum(axis=0), y[h].sum(axis=0), int(h.sum())) for h in held]
    xx, xy, sx, sy, n = (sum(part) for part in zip(*sums, strict=True))
    predicted = np.empty_like(y)
    for rows, (fxx, fxy, fsx, fsy, fn) in zip(held, sums, strict=True):
        m = max(n - fn, 1)
        mx, my = (sx - fsx) / m, (sy - fsy) / m
        gram = xx - fxx - m * np.outer(mx, mx)
        gram[np.diag_indices_from(gram)] += x.shape[1]
        w = linalg.solve(gram, xy - fxy - m * np.outer(mx, my), assume_a="pos", check_finite=False)
        predicted[rows] = (x[rows] - mx) @ w
    return correlations(predicted, y)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation of corresponding columns; NaN where one of them is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.where(norm > 1e-12, (a * b).sum(axis=0) / np.where(norm > 1e-12, norm, 1.0), np.nan)
