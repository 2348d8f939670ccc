"""The neighbour graph and its communities equal those of scanpy."""

import numpy as np
import pytest
from scipy import sparse

from stampy import StampyWarning
from stampy.tl._methods.clustering import connectivities, find_domains, leiden


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other packages'
def test_graph_and_clusters_equal_scanpy():
    pytest.importorskip("umap")
    sc, anndata = pytest.importorskip("scanpy"), pytest.importorskip("anndata")
    rng = np.random.default_rng(0)
    pairs = np.repeat(rng.normal(size=(80, 6)), 3, axis=0)  # spots of equal vectors
    for values in (rng.normal(size=(400, 30)), rng.normal(size=(300, 64)).astype(np.float32), pairs):
        table = anndata.AnnData(obsm={"X": values})
        sc.pp.neighbors(table, n_neighbors=15, use_rep="X", random_state=3)
        ours = connectivities(values, 15)
        assert abs(ours - table.obsp["connectivities"]).max() < 2e-6
        for resolution in (0.5, 1.0, 2.0):
            sc.tl.leiden(table, resolution, flavor="igraph", n_iterations=2, directed=False, random_state=3)
            assert np.array_equal(leiden(ours, resolution, 3), table.obs["leiden"].cat.codes)


@pytest.mark.parametrize("values", [np.zeros((30, 4)), np.ones((5, 2), dtype=np.float32), np.arange(4.0)[:, None]])
def test_a_graph_of_few_or_equal_spots(values):
    graph = connectivities(values, min(15, len(values) - 1))
    assert graph.shape == (len(values),) * 2
    assert abs(graph - graph.T).max() == 0
    assert graph.diagonal().max() == 0
    assert graph.data.min() > 0
    assert graph.data.max() <= 1
    assert len(leiden(graph, 1.0, 0)) == len(values)


def test_communities_do_not_change_the_global_random_state():
    import random

    values = np.random.default_rng(0).normal(size=(60, 5))
    graph = connectivities(values, 8)
    random.seed(1)
    before = random.getstate()
    first = leiden(graph, 1.0, 0)
    assert random.getstate() == before
    random.seed(2)
    assert np.array_equal(leiden(graph, 1.0, 0), first)
    assert np.array_equal(leiden(sparse.csr_matrix((4, 4)), 1.0, 0), np.arange(4))


def test_mixture_with_fewer_domains_than_requested_warns():
    with pytest.warns(StampyWarning, match="1 instead of 5 domains"):
        find_domains(np.ones((40, 3)), 5, method="gmm")
