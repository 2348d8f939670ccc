"""Marker genes and figures of the demo and the report."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from stampy.cli.domain_summary import _scores, about_labels, top_genes
from stampy.tl._methods.principal_components import log_normalised


def _section(n=90, n_genes=40):
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 3, n)
    rates = np.ones((n, n_genes))
    for g in range(3):
        rates[groups == g, 4 * g : 4 * g + 4] = 5
    var = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    obs = pd.DataFrame({"g": pd.Categorical(groups.astype(str))}, index=[f"s{i}" for i in range(n)])
    return AnnData(sparse.csr_matrix(rng.poisson(rates).astype(np.float32)), obs=obs, var=var)


def test_planted_genes_are_found():
    found = top_genes(_section(), "g", n=4)
    assert {g: sorted(names) for g, names in found.items()} == {
        str(g): sorted(f"G{i}" for i in range(4 * g, 4 * g + 4)) for g in range(3)
    }


def test_features_that_are_not_genes_are_not_markers():
    adata = _section()
    others = np.where(adata.obs[["g"]] == "1", 5000, 10) * np.ones((1, 2))
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * adata.n_vars + ["Antibody Capture"] * 2},
                       index=[*adata.var_names, "CD3", "IgG"])  # fmt: skip
    both = AnnData(sparse.hstack([adata.X, others], format="csr"), obs=adata.obs, var=var)
    assert top_genes(both, "g", n=4) == top_genes(adata, "g", n=4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # other packages'
def test_scores_equal_scanpy():
    sc = pytest.importorskip("scanpy")
    adata = _section()
    adata.X[3] = 0  # an empty spot
    ours = _scores(log_normalised(sparse.csr_matrix(adata.X))[0], adata.obs["g"], ["0", "1", "2"])
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.tl.rank_genes_groups(adata, "g", method="t-test_overestim_var")
    ranked = adata.uns["rank_genes_groups"]
    for g, scores in ours.items():
        theirs = dict(zip(ranked["names"][g], ranked["scores"][g], strict=True))
        np.testing.assert_allclose(scores, [theirs[name] for name in adata.var_names], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("divided", "words"), [(True, "80% of the labelled spots are 'tumour'"), (False, "")])
def test_a_low_agreement_with_labels_is_explained(divided, words):
    labels = np.array(["tumour"] * 80 + ["stroma"] * 20)
    clusters = np.arange(100) % 5 if divided else (np.arange(100) >= 80).astype(int)
    obs = pd.DataFrame(
        {"label": labels, "c": pd.Categorical(clusters.astype(str))}, index=[f"s{i}" for i in range(100)]
    )
    said = about_labels(AnnData(obs=obs), "label", "c")
    assert words in said
    assert ("do not follow" in said) == divided
