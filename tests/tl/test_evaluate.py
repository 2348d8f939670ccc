"""Evaluation of embeddings without labels."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stampy
from stampy import datasets, pl, tl
from stampy.pp import _thinning
from stampy.tl._evaluate import judged as evaluated

QUIET = {"show_progress_bar": False, "device": "cpu"}


@pytest.fixture(scope="module")
def section():
    adata = datasets.toy(n_spots=200, image=False, rng=1)
    tl.embed(adata, modality="gene", **QUIET)
    tl.embed(adata, modality="gene", context="neighbors", key_added="X_context", **QUIET)
    return adata


@pytest.fixture(scope="module")
def judged(section):
    return tl.evaluate(section, n_splits=2, copy=True)


def domain_means(table):
    """An oracle of the toy section: its true domains."""
    return pd.get_dummies(table.obs["domain"]).to_numpy(dtype=np.float32)


def noise(table):
    return np.random.default_rng(0).normal(size=(table.n_obs, 8))


def test_halves_are_a_split_and_independent():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(4.0, size=(300, 40)))
    a, b = _thinning.halves(counts, rng)
    assert ((a + b) != counts).nnz == 0
    r = np.corrcoef(a.toarray().ravel(), b.toarray().ravel())[0, 1]
    assert abs(r) < 0.05  # Poisson counts of one mean: nothing is shared


def test_folds_are_compact_regions_of_every_section():
    xy = np.random.default_rng(0).uniform(size=(500, 2))
    sections = np.repeat([0, 1], 250)
    folds = _thinning.regions(xy, sections)
    for s in (0, 1):
        assert np.bincount(folds[sections == s]).tolist() == [50] * 5
        spread = [xy[(sections == s) & (folds == f)].std(axis=0).prod() for f in range(5)]
        assert max(spread) < xy.std(axis=0).prod() / 3


def test_features_that_are_not_genes_are_excluded(section):
    other = sparse.csr_matrix(np.random.default_rng(0).poisson(900, (section.n_obs, 2)))
    var = pd.DataFrame({"feature_types": ["Gene Expression"] * section.n_vars + ["Antibody Capture"] * 2},
                       index=[*section.var_names, "CD3", "IgG"])  # fmt: skip
    both = ad.AnnData(sparse.hstack([section.X, other], format="csr"), obs=section.obs, var=var,
                      obsm={"spatial": section.obsm["spatial"]})  # fmt: skip
    alone = ad.AnnData(section.X, obs=section.obs, obsm=dict(both.obsm), var=var.iloc[:-2])
    keys = {"xy": lambda table: np.hstack([table.obsm["spatial"], table.X[:, :5].toarray()])}
    with pytest.warns(
        stampy.StampyWarning, match=r"2 of \d+ columns are not genes and are dropped: 2 Antibody Capture"
    ):
        tl.evaluate(both, keys, n_splits=1, rng=0)
    tl.evaluate(alone, keys, n_splits=1, rng=0)
    pd.testing.assert_frame_equal(*(a.uns["stamp_evaluate"]["scores"] for a in (both, alone)))


def test_bare_position_scores_low(judged):
    scores = judged.uns["stamp_evaluate"]["scores"]["score"]
    assert scores["position alone"] < scores["X_stamp"]


def test_heldout_correlation_is_ridge_by_fold():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    x, folds = rng.normal(size=(120, 5)), np.arange(120) % 4
    y = np.stack([x @ rng.normal(size=5) + rng.normal(size=120), np.ones(120)], axis=1)
    scaled = (x - x.mean(axis=0)) / x.std(axis=0)
    predicted = np.empty(120)
    for fold in range(4):
        model = Ridge(alpha=5).fit(scaled[folds != fold], y[folds != fold, 0])
        predicted[folds == fold] = model.predict(scaled[folds == fold]) - y[folds != fold, 0].mean()
    found = _thinning.heldout_correlation(x, y, folds)
    np.testing.assert_allclose(found[0], np.corrcoef(predicted, y[:, 0])[0, 1], rtol=1e-9)
    assert np.isnan(found[1])


def test_targets_do_not_depend_on_depth():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(rng.gamma(2, 2, size=(400, 1)) * np.ones((1, 30))).astype(float))
    depth = np.log1p(np.asarray(counts.sum(axis=1)).ravel())
    targets = _thinning.gene_targets(counts, np.arange(30))
    assert np.abs([np.corrcoef(depth, t)[0, 1] for t in targets.T]).max() < 1e-3


def test_variable_genes_are_those_that_differ():
    rng = np.random.default_rng(0)
    rate = np.full((300, 50), 3.0)
    rate[:150, 10:15] = 12
    assert _thinning.overdispersed_genes(sparse.csr_matrix(rng.poisson(rate)), 5).tolist() == [10, 11, 12, 13, 14]


def test_truth_beats_noise(section):
    table = section.copy()

    def oracle(half):
        return domain_means(section[half.obs_names])

    tl.evaluate(table, {"truth": oracle, "noise": noise}, n_splits=1)
    scores = table.uns["stamp_evaluate"]["scores"]
    assert scores.loc["truth", "score"] > 0.2 + scores.loc["noise", "score"]
    assert abs(scores.loc["noise", "own"]) < 0.06  # no bias where regions differ in their means
    assert table.uns["stamp_evaluate"]["verdict"].startswith("truth")
    tl.evaluate(table, {"noise": noise}, n_splits=2)
    assert "less" in table.uns["stamp_evaluate"]["verdict"]


def test_stored_results(judged, tmp_path):
    record = judged.uns["stamp_evaluate"]
    scores = record["scores"]
    assert scores.index.tolist()[:2] == ["X_stamp", "X_context"]
    assert scores["kind"].tolist() == ["embedding"] * 2 + ["baseline"] * 4
    assert scores["thinned"].all()
    assert scores["mixing"].isna().all()
    assert (scores["score_std"] < 0.1).all()
    assert scores.loc["X_context", "coherence"] > scores.loc["X_stamp", "coherence"]
    assert record["parameters"]["n_spots"] == 200
    assert isinstance(record["verdict"], str)
    judged.write_h5ad(tmp_path / "judged.h5ad")
    again = ad.read_h5ad(tmp_path / "judged.h5ad").uns["stamp_evaluate"]["scores"]
    pd.testing.assert_frame_equal(again, scores, check_names=False)


def test_the_same_seed_the_same_scores(section):
    a, b = (tl.evaluate(section, "X_stamp", n_splits=1, rng=3, copy=True).uns["stamp_evaluate"] for _ in range(2))
    pd.testing.assert_frame_equal(a["scores"], b["scores"])


def first_genes(table):
    return table.X[:, :20].toarray()


def test_without_stability_other_results_are_the_same(section):
    how = {"library_key": None, "layer": None, "n_splits": 2, "n_genes": 50, "max_spots": None, "table_key": "table"}
    full, short = (evaluated(section, {"genes": first_genes}, rng=0, stability=s, **how) for s in (True, False))
    assert short["verdict"] == full["verdict"]
    assert full["scores"].loc["genes", "stability"] > 0
    assert short["scores"]["stability"].isna().all()
    pd.testing.assert_frame_equal(*(found["scores"].drop(columns="stability") for found in (full, short)))


def test_vectors_without_record_are_used_with_a_warning(section):
    table = section.copy()
    table.obsm["X_mine"] = table.obsm["X_stamp"]
    with pytest.warns(stampy.StampyWarning, match="X_mine.*scores are too high"):
        tl.evaluate(table, ["X_mine", "X_stamp"], n_splits=1)
    scores = table.uns["stamp_evaluate"]["scores"]
    assert scores["thinned"].tolist() == [False, *[True] * 5]
    with pytest.warns(stampy.StampyWarning, match="X_mine"):
        tl.evaluate(table, "X_mine", n_splits=1)
    assert "none can be compared" in table.uns["stamp_evaluate"]["verdict"]


def test_mixing_of_sections():
    both = datasets.toy(n_spots=120, n_sections=2, image=False, rng=3)
    apart = {"apart": lambda t: np.c_[noise(t), 1e3 * (t.obs["section"] == t.obs["section"].iloc[0])], "mixed": noise}
    scores = tl.evaluate(both, apart, library_key="section", n_splits=1, copy=True).uns["stamp_evaluate"]["scores"]
    assert scores.loc["apart", "mixing"] == 0
    assert 0.85 < scores.loc["mixed", "mixing"] < 1.15


def test_large_section_is_evaluated_on_a_piece(section):
    with pytest.warns(stampy.StampyWarning, match="100 of 200 spots"):
        found = tl.evaluate(section, {"noise": noise}, n_splits=1, max_spots=100, copy=True)
    assert found.uns["stamp_evaluate"]["parameters"]["n_spots"] == 100


def test_invalid_arguments_raise(section):
    table = section.copy()
    with pytest.raises(KeyError, match="X_nothing"):
        tl.evaluate(table, "X_nothing")
    with pytest.raises(TypeError, match="functions"):
        tl.evaluate(table, {"a": 1})
    with pytest.raises(ValueError, match=r"finite numbers of shape \(200, d\)"):
        tl.evaluate(table, {"a": lambda t: np.zeros(3)}, n_splits=1)
    with pytest.raises(ValueError, match="25 spots"):
        tl.evaluate(table[:20].copy(), "X_stamp")
    table.X = table.X * 1.5 + 0
    with pytest.warns(UserWarning, match="fractional|normalised"), pytest.raises(ValueError, match="not integers"):
        tl.evaluate(table, "X_stamp")
    del table.uns["stamp"]
    with pytest.raises(KeyError, match="no embedding"):
        tl.evaluate(table)


def test_plot(judged):
    axes = pl.evaluate(judged)
    assert axes[0].get_title().startswith("score")
    assert axes[0].figure.get_suptitle().replace("\n", " ") == judged.uns["stamp_evaluate"]["verdict"]
    assert [t.get_text() for t in axes[0].get_yticklabels()][:2] == ["X_stamp", "X_context"]
    with pytest.raises(KeyError, match=r"stampy\.tl\.evaluate"):
        pl.evaluate(judged, key="nothing")
    with pytest.raises(ValueError, match="show"):
        pl.evaluate(judged, show="beauty")
