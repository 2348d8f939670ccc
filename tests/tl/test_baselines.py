"""Principal components, plain and smoothed, as models of `tl.embed`."""

import numpy as np
import pytest

from stampy import datasets, tl

QUIET = {"show_progress_bar": False, "device": "cpu"}


def test_pca_equals_scanpy(toy):
    import scanpy as sc

    mine = tl.embed(toy, "pca", copy=True, **QUIET).obsm["X_stamp"]
    adata = toy.copy()
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.filter_genes(adata, min_cells=1)
    sc.pp.pca(adata, n_comps=50, random_state=0)
    np.testing.assert_allclose(mine, adata.obsm["X_pca"], atol=1e-3)
    np.testing.assert_array_equal(mine, tl.embed(toy, "pca", copy=True, **QUIET).obsm["X_stamp"])


def test_smoothing_stays_within_sections():
    both = datasets.toy(n_spots=50, n_sections=2, rng=3)
    plain = tl.embed(both, "pca", copy=True, **QUIET).obsm["X_stamp"]
    smoothed = tl.embed(both, "pca-smoothed", library_key="section", copy=True, **QUIET).obsm["X_stamp"]
    for name in both.obs["section"].cat.categories:
        mine = (both.obs["section"] == name).to_numpy()
        xy = both.obsm["spatial"][mine]
        distance = np.linalg.norm(xy[:, None] - xy, axis=2)
        first = plain[mine][np.argsort(distance[0], kind="stable")[:7]].mean(0)
        assert np.abs(smoothed[mine]).mean() < np.abs(plain[mine]).mean()
        if len(set(np.round(np.sort(distance[0])[6:8], 6))) == 2:  # the six nearest are clear
            np.testing.assert_allclose(smoothed[mine][0], first, atol=1e-4)


def test_pca_of_poor_sections(toy):
    with pytest.raises(ValueError, match="at least 3 spots"):
        tl.embed(toy[:2].copy(), "pca", **QUIET)
    empty = toy[:20].copy()
    empty.X = empty.X * 0
    with pytest.warns(UserWarning, match="20 of 20 spots"), pytest.raises(ValueError, match="too few"):
        tl.embed(empty, "pca", **QUIET)
    lost = toy.copy()
    del lost.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial"):
        tl.embed(lost, "pca-smoothed", **QUIET)
