"""Principal components and variable genes equal those of scanpy."""

import anndata as ad
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stampy.tl._methods import principal_components as components
from stampy.tl._methods.principal_components import principal_components, variable_genes


def counts_of(n_spots, n_genes, seed):
    rng = np.random.default_rng(seed)
    means = rng.gamma(0.3, 2.0, n_genes) * rng.gamma(2.0, 1.0, (n_spots, 1))
    return sparse.csr_matrix(rng.poisson(means).astype(np.float32))


def scanpys(counts, n_genes):
    """The usual recipe."""
    import scanpy as sc

    adata = ad.AnnData(counts.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.filter_genes(adata, min_cells=1)
    sc.pp.highly_variable_genes(adata, n_top_genes=n_genes)
    return adata


@pytest.mark.filterwarnings("ignore:Some cells have zero counts", "ignore:`n_top_genes` > number")
@settings(max_examples=15, deadline=None)
@given(st.integers(5, 60), st.integers(30, 150), st.integers(0, 2**20), st.sampled_from([5, 20]))
def test_variable_genes_equal_scanpy(n_spots, n_genes, seed, n):
    expected = scanpys(counts_of(n_spots, n_genes, seed), n)
    np.testing.assert_array_equal(variable_genes(expected.X, n), expected.var["highly_variable"])


def test_constant_genes_and_genes_of_their_own_bin():
    rng = np.random.default_rng(0)
    counts = rng.poisson(2, (30, 12)).astype(np.float32)
    counts[:, 3] = 5  # no dispersion
    counts[:, 7] = rng.poisson(900, 30)  # far above the others
    logged = sparse.csr_matrix(np.log1p(counts))
    adata = ad.AnnData(logged.copy())
    import scanpy as sc

    sc.pp.highly_variable_genes(adata, n_top_genes=4)
    np.testing.assert_array_equal(variable_genes(logged, 4), adata.var["highly_variable"])
    assert not variable_genes(logged, 11)[3]
    assert not variable_genes(sparse.csr_matrix(np.ones((4, 6), dtype=np.float32)), 3).any()


def test_components_of_variable_genes_equal_scanpy(monkeypatch):
    import scanpy as sc

    monkeypatch.setattr(components, "N_GENES", 100)
    counts = counts_of(80, 400, 1)
    expected = scanpys(counts, 100)
    expected = expected[:, expected.var["highly_variable"]].copy()
    sc.pp.pca(expected, n_comps=50, random_state=0)
    values, n_genes, n_empty = principal_components(counts)
    assert (n_genes, n_empty) == (expected.n_vars, 0)
    np.testing.assert_allclose(values, expected.obsm["X_pca"], atol=1e-4)


def test_neither_order_nor_storage_of_the_counts_matters():
    counts = counts_of(40, 100, 2)
    values = principal_components(counts)[0]
    twice = sparse.csr_matrix(  # every count in two entries, the genes in falling order, with zeros among them
        (
            np.concatenate([counts.data - 1, np.ones_like(counts.data)]),
            (np.tile(counts.tocoo().row, 2), np.tile(counts.tocoo().col, 2)),
        ),
        shape=counts.shape,
    )
    np.testing.assert_allclose(principal_components(twice)[0], values, atol=1e-5)
    np.testing.assert_array_equal(principal_components(counts.astype(np.int64))[0], values)
