"""Closed-form linear gene encoder: axes along which spots and their neighbours agree.

The covariance between a spot and the mean of its neighbours excludes variation that is independent between spots. Its
leading eigenvectors solve contextual gene reconstruction (paper, section 3.2) for a linear encoder: the start of stage
1, and the part of the sections in an adaptation (`stampy.pp._adaptation`).

Shapes: n spots, G genes of the vocabulary, K axes, L positions, m columns of a basis.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg, sparse

from stampy import _keys
from stampy._section.neighbors import nearest

__all__ = ["SpotGenes", "leading_axes", "neighbor_graph", "orthonormal", "weighted_genes"]

NEIGHBORS = 8
ITERATIONS = 6
TOLERANCE = 1e-4  # of eigenvalues, relative
SPARE = 20  # extra columns of the subspace iteration
OWN = 0.1  # weight of a spot's own covariance; stabilises axes that few neighbours support


class SpotGenes:
    """A section: its weighted genes (n, G) and its neighbour graph (n, n)."""

    def __init__(self, genes_nG: sparse.csr_matrix, graph_nn: sparse.csr_matrix):
        self.genes, self.graph = genes_nG, graph_nn
        self.mean = np.asarray(genes_nG.mean(axis=0)).ravel()
        self.weight = float(genes_nG.shape[0] / max(genes_nG.power(2).sum(), 1e-12))  # float(): arrays stay float32

    def agreement(self, basis: np.ndarray, own: float) -> np.ndarray:
        """Product of the covariance between spots and neighbours with `basis` (G, m), scaled to the number of spots."""
        y = self.genes @ basis - self.mean @ basis
        y = (self.graph @ y + self.graph.T @ y) / 2 + own * y
        return (self.genes.T @ y - np.outer(self.mean, y.sum(axis=0))) * self.weight


def weighted_genes(tokens: np.ndarray, gate_L: np.ndarray, level_G: np.ndarray) -> sparse.csr_matrix:
    """Genes of spots (n, G); the weight of a token is (gate of its rank) x (level of the gene)."""
    tokens = np.asarray(tokens)[:, : len(gate_L)].astype(np.int64)
    rows, ranks = np.nonzero(tokens)
    genes = tokens[rows, ranks] - _keys.N_SPECIAL
    values = (gate_L[ranks] * level_G[genes]).astype(np.float32)
    return sparse.csr_matrix((values, (rows, genes)), (len(tokens), len(level_G)))


def leading_axes(
    parts: Sequence[SpotGenes], k: int, rng: np.random.Generator, *, converged: bool = False
) -> np.ndarray:
    """Leading eigenvectors (G, K), orthonormal, of the covariance of genes between a spot and its neighbours.

    Sections are centred and weighted only by their number of spots. Products with vectors avoid the (G, G) matrix. The
    last axes of a few steps of subspace iteration depend on `rng`; `converged` computes all of them in several times as
    long.
    """
    n_genes = len(parts[0].mean)
    n_axes = min(k + SPARE, n_genes)
    basis = _eigenvectors(parts, n_axes, rng) if converged else _subspace(parts, n_axes, rng)
    small = basis.T @ np.sum([p.agreement(basis, 0.0) for p in parts], axis=0)
    values, vectors = np.linalg.eigh((small + small.T) / 2)
    return basis @ vectors[:, np.argsort(-values)[:k]]


def _subspace(parts: Sequence[SpotGenes], k: int, rng: np.random.Generator) -> np.ndarray:
    """Approximate span (G, K) of the leading eigenvectors, by subspace iteration."""
    basis = orthonormal(rng.standard_normal((len(parts[0].mean), k), dtype=np.float32))
    for _ in range(ITERATIONS):
        basis = orthonormal(np.sum([p.agreement(basis, OWN) for p in parts], axis=0))
    return basis


def _eigenvectors(parts: Sequence[SpotGenes], k: int, rng: np.random.Generator) -> np.ndarray:
    """Span (G, K) of the leading eigenvectors, by the Lanczos method."""
    n_genes = len(parts[0].mean)
    if k >= n_genes:
        return np.eye(n_genes, dtype=np.float32)
    operator = sparse.linalg.LinearOperator(
        (n_genes, n_genes),
        matvec=lambda x: np.sum([p.agreement(x.reshape(-1, 1), OWN) for p in parts], axis=0).ravel(),
        dtype=np.float32,
    )
    start = rng.standard_normal(n_genes, dtype=np.float32)
    found = sparse.linalg.eigsh(operator, k, which="LA", v0=start, tol=TOLERANCE)[1]
    return orthonormal(found[:, ::-1])


def orthonormal(columns: np.ndarray) -> np.ndarray:
    """Orthonormal basis of the columns' span in their own precision (numpy's function computes in double precision)."""
    return linalg.qr(columns, mode="economic", overwrite_a=True, check_finite=False)[0]


def neighbor_graph(xy: np.ndarray, k: int = NEIGHBORS) -> sparse.csr_matrix:
    """(n, n) weights; the product with values is the mean over the `k` nearest neighbours of each spot."""
    n = len(xy)
    columns = nearest(xy, k)[1]
    return sparse.csr_matrix((np.full(n * k, 1 / k, np.float32), (np.repeat(np.arange(n), k), columns.ravel())), (n, n))
