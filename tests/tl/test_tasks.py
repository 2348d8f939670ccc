"""Probing, domains, expression: folds, scores equal to reference implementations, simulated structure."""

import warnings

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from sklearn import metrics
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

import stampy
from stampy import StampyWarning, datasets, pl, tl
from stampy.tl import _probe
from stampy.tl._embedding.context import smoothed
from stampy.tl._evaluation import folds as _folds
from stampy.tl._evaluation import metrics as _metrics
from stampy.tl._methods import clustering, linear_models

quick = settings(deadline=None, max_examples=25)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def base():
    """Two sections with counts, an embedding that contains the domains and one of noise."""
    adata = datasets.toy(n_spots=150, n_sections=2, n_genes=120)
    random = np.random.default_rng(0)
    truth = np.eye(4)[adata.obs["domain"].cat.codes]
    adata.obsm["X_good"] = np.hstack([truth + 0.2 * random.normal(size=truth.shape), random.normal(size=(300, 4))])
    adata.obsm["X_noise"] = random.normal(size=(300, 8)).astype(np.float32)
    adata.obs["patient"] = np.where(adata.obs["section"] == "toy_1", "p1", "p2")
    return adata


@pytest.fixture
def sections(base):
    return base.copy()


@pytest.fixture
def one(base):
    """One section; its image goes with it."""
    adata = base[base.obs["section"] == "toy_1"].copy()
    adata.uns["spatial"] = {"toy_1": base.uns["spatial"]["toy_1"]}
    return adata


def result(adata, key="probe"):
    return adata.uns["stamp"][key]


# --- folds


@quick
@given(st.integers(2, 6), st.integers(30, 120), st.integers(0, 5))
def test_folds_are_a_partition(n_folds, n, seed):
    xy = np.random.default_rng(seed).normal(size=(n, 2))
    for folds in (_folds.block_folds(xy, n_folds, rng=seed), _folds.random_folds(n, n_folds, rng=seed)):
        assert set(folds) == set(range(n_folds))
        assert len(folds) == n


def test_blocks_are_compact_and_cut_each_section_by_itself(sections):
    xy, codes = sections.obsm["spatial"], (sections.obs["section"] == "toy_2").to_numpy()
    blocks = _folds.block_folds(xy, 5, sections=codes)
    chance = _folds.random_folds(len(xy), 5)
    together = [_metrics.coherence(f, xy, codes).mean() for f in (blocks, chance)]
    assert together[0] > 0.6
    assert together[1] < 0.3
    for part in (codes, ~codes):
        np.testing.assert_array_equal(_folds.block_folds(xy[part], 5), blocks[part])
        assert np.bincount(blocks[part]).min() > 15


def test_groups_stay_together_and_give_folds_their_names():
    folds, names = _folds.group_folds(["b", "a", "b", "c"], 5)
    assert ([names[f] for f in folds], len(names)) == (["b", "a", "b", "c"], 3)
    many = np.repeat(np.arange(12), 3)
    folds, names = _folds.group_folds(many, 4)
    assert len(names) == 4
    assert all(len(set(folds[many == g])) == 1 for g in range(12))
    assert np.bincount(folds).tolist() == [9, 9, 9, 9]


def test_folds_need_enough_groups():
    for call, message in (
        (lambda: _folds.block_folds(np.zeros((3, 2)), 5), "at least 5 spots"),
        (lambda: _folds.block_folds(np.zeros((30, 2)), 5), "different coordinates"),
        (lambda: _folds.random_folds(3, 5), "at least 5"),
        (lambda: _folds.group_folds(["a", "a"]), "two groups"),
        (lambda: _folds.group_folds(["a", None]), "no group"),
        (lambda: _folds.folds_of("section", 9), "library_key"),
        (lambda: _folds.folds_of("blocks", 9), "coordinates"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


# --- solvers and scores, against other implementations


@pytest.mark.parametrize("d", [6, 200])
def test_logistic_equals_scikit_learn(d):
    random = np.random.default_rng(0)
    codes = random.integers(3, size=90)
    x = StandardScaler().fit_transform(random.normal(size=(90, d)) + codes[:, None] * 0.4)
    w, b = linear_models.logistic(x, codes, 3, 10.0, linear_models.balanced_weights(codes, 3))
    other = LogisticRegression(C=0.1, class_weight="balanced", max_iter=5000, tol=1e-8).fit(x, codes)
    scores = x @ w + b
    np.testing.assert_allclose(np.exp(scores) / np.exp(scores).sum(1, keepdims=True), other.predict_proba(x), atol=2e-3)


@pytest.mark.parametrize("d", [5, 60])
@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_ridge_equals_scikit_learn_for_all_targets(d, penalty):
    random = np.random.default_rng(1)
    x, y, weights = random.normal(size=(40, d)) + 3, random.normal(size=(40, 7)) + 5, random.uniform(0.5, 2, 40)
    w, b = linear_models.solve_ridge(x, y, penalty, weights)
    model = Ridge(penalty, solver="svd") if penalty else LinearRegression()
    np.testing.assert_allclose(x @ w + b, model.fit(x, y, sample_weight=weights).predict(x), atol=1e-6)


def test_constant_column_has_no_effect():
    values = np.column_stack([np.full(40, 3.0), np.repeat([0.0, 1.0], 20)])
    codes = np.repeat([0, 1], 20)
    for method in _probe.METHODS:
        assert (_probe.probe_predictions(values, codes, np.arange(40) % 4, method=method) == codes).all()


@quick
@given(st.integers(2, 5), st.integers(0, 1000))
def test_label_scores_equal_scikit_learn(k, seed):
    random = np.random.default_rng(seed)
    truth, predicted = random.integers(k, size=40), random.integers(k, size=40)
    found = _metrics.label_scores(_metrics.confusion(truth, predicted, k))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(truth, predicted))
        assert found["weighted_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="weighted"))
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))


def test_pearson_equals_scipy_and_is_nan_for_a_constant_gene():
    random = np.random.default_rng(0)
    a, b = random.normal(size=(30, 4)).astype(np.float32), random.normal(size=(30, 4)).astype(np.float32)
    a[:, 3] = 7.1
    found = _metrics.pearson(a, b)
    np.testing.assert_allclose(found[:3], [stats.pearsonr(a[:, i], b[:, i])[0] for i in range(3)], atol=1e-6)
    assert np.isnan(found[3])


def test_pooled_slide_and_fold_correlations_differ():
    """Two slides that differ in level only: r is high when pooled and nil within each."""
    random = np.random.default_rng(0)
    slide = np.repeat(["a", "b"], 500)
    level = np.repeat([0.0, 10.0], 500)[:, None]
    scores = _metrics.gene_scores(
        level + random.normal(size=(1000, 3)), level + random.normal(size=(1000, 3)), list("xyz"), {"slide": slide}
    )
    table = _metrics.gene_summary(scores).set_index("level")
    assert table.loc["pooled", "pearson"] > 0.9
    assert abs(table.loc["slide", "pearson"]) < 0.1
    assert table.loc["slide", "n_groups"] == 2
    assert table.loc["pooled", "mse"] == pytest.approx(2.0, abs=0.3)


# --- probe


def test_probe_finds_signal_and_not_noise(sections):
    tl.probe(sections, "domain", use_rep=["X_good", "X_noise"], library_key="section")
    found = result(sections)
    overall = found["summary"].query("metric == 'balanced_accuracy'").set_index("embedding")["overall"]
    assert overall["X_good"] > 0.95
    assert overall["X_noise"] < 0.4
    assert found["folds"] == "section"
    assert found["scores"]["fold"].tolist() == ["toy_1", "toy_2", "all"] * 2
    assert found["confusion"]["X_good"].sum() == 300
    predicted = sections.obs["probe_X_good"]
    assert (predicted == sections.obs["domain"]).mean() == pytest.approx(
        found["scores"].query("embedding == 'X_good' and fold == 'all'")["accuracy"].item()
    )
    np.testing.assert_array_equal(sections.obs["probe_fold"], (sections.obs["section"] == "toy_2").astype(int))


def test_probe_holds_out(sections):
    """A fold's own labels change nothing in its predictions."""
    codes = sections.obs["domain"].cat.codes.to_numpy().astype(int)
    values, folds = sections.obsm["X_good"], np.arange(300) % 3
    first = _probe.probe_predictions(values, codes, folds)
    changed = np.where(folds == 1, np.random.default_rng(0).permutation(codes), codes)
    second = _probe.probe_predictions(values, changed, folds)
    np.testing.assert_array_equal(first[folds == 1], second[folds == 1])
    assert (first[folds != 1] != second[folds != 1]).any()


@pytest.mark.parametrize(
    ("arguments", "folds"),
    [
        ({"library_key": "section"}, "section"),
        ({"library_key": "section", "patient_key": "patient"}, "patient"),
        ({"folds": "random"}, "random"),
        ({"library_key": "section", "folds": "blocks"}, "blocks"),
    ],
)
def test_folds_that_are_chosen(sections, arguments, folds):
    changed = tl.probe(sections, "domain", use_rep="X_good", method="ridge", n_folds=3, copy=True, **arguments)
    assert result(changed)["folds"] == folds
    assert "stamp" not in sections.uns


def test_folds_of_one_section_are_blocks(one):
    tl.probe(one, "domain", use_rep="X_good", method="ridge", n_folds=3)
    assert result(one)["folds"] == "blocks"


def test_spots_without_a_label_take_no_part(one):
    one.obs["layer"] = one.obs["domain"].astype(str)
    one.obs.iloc[:20, one.obs.columns.get_loc("layer")] = ["NA", "undetermined"] * 10
    with pytest.warns(stampy.StampyWarning, match="10 of 150 spots are ignored"):
        tl.probe(one, "layer", use_rep="X_good")
    found = result(one)
    assert (found["n_spots"], found["n_unlabelled"]) == (130, 20)
    assert one.obs["probe_X_good"].isna().to_numpy().nonzero()[0].tolist() == list(range(20))
    assert (one.obs["probe_fold"][:20] == -1).all()
    assert found["classes"].tolist() == ["D1", "D2", "D3", "D4"]


def test_a_label_that_training_lacks_counts_as_wrong(sections):
    sections.obs["label"] = sections.obs["domain"].astype(str)
    rows = (sections.obs["section"] == "toy_2") & (sections.obs["domain"] == "D1")
    sections.obs.loc[rows, "label"] = "only/here"  # a slash is no separator of keys
    tl.probe(sections, "label", use_rep="X_good", library_key="section")
    scores = result(sections)["scores"].set_index("fold")
    assert scores.loc["toy_2", "n_unseen"] == rows.sum()
    assert scores.loc["toy_2", "balanced_accuracy"] < 0.8


def test_same_seed_same_result(one):
    copies = [tl.probe(one, "domain", use_rep="X_noise", rng=3, copy=True) for _ in range(2)]
    pd.testing.assert_frame_equal(*(result(c)["scores"] for c in copies))


def bad_probes():
    def one_class(a):
        a.obs["domain"] = "same"

    def few(a):
        a.obs["domain"] = [*"ab", *(["NA"] * (a.n_obs - 2))]

    def nan_labels(a):
        a.obs["domain"] = np.nan

    def nan_values(a):
        a.obsm["X_good"][3, 1] = np.nan

    def numbers(a):
        a.obs["domain"] = np.linspace(0, 1, a.n_obs)

    def apart(a):
        a.obs["domain"] = a.obs["section"].astype(str) + "_" + a.obs["domain"].astype(str)

    def lonely(a):
        a.obs["domain"] = np.where(a.obs["section"] == "toy_1", "a", np.where(np.arange(a.n_obs) % 2, "a", "b"))

    def no_section(a):
        a.obs["section"] = a.obs["section"].where(np.arange(a.n_obs) > 3)

    def nothing(a):
        pass

    by_section = {"library_key": "section"}
    yield from (
        (one_class, {}, ValueError, "at least two labels"),
        (few, {}, ValueError, "at least 5 spots"),
        (nan_labels, {}, ValueError, "at least two labels"),
        (nan_values, {}, ValueError, "NaN or infinite values for 1"),
        (numbers, {}, ValueError, "fractions"),
        (apart, by_section, ValueError, "none of which occurs outside"),
        (lonely, by_section, ValueError, "only one label remains"),
        (no_section, by_section, ValueError, "missing for 4"),
        (nothing, {"labels": "domian"}, KeyError, "domian"),
        (nothing, {"use_rep": "X_goood"}, KeyError, "X_goood"),
        (nothing, {"use_rep": []}, ValueError, "empty"),
        (nothing, {"library_key": "nope"}, KeyError, "nope"),
        (nothing, {"folds": "patient"}, ValueError, "patient_key"),
        (nothing, {"folds": "kfold"}, ValueError, "must be one of"),
        (nothing, {"method": "svm"}, ValueError, "must be one of"),
        (nothing, {"penalty": 0}, ValueError, "above 0"),
        (nothing, {"n_folds": 1}, ValueError, "at least 2"),
    )


@pytest.mark.parametrize(("change", "arguments", "error", "message"), list(bad_probes()))
def test_probe_raises(sections, change, arguments, error, message):
    change(sections)
    before = set(sections.obs), set(sections.uns)
    with pytest.raises(error, match=message):
        tl.probe(sections, **({"labels": "domain", "use_rep": "X_good"} | arguments))
    assert (set(sections.obs), set(sections.uns)) == before


# --- domains


@pytest.mark.parametrize("method", ["leiden", "kmeans", "gmm"])
def test_domains_find_the_planted_ones(one, method):
    one.obsm["X_e"] = one.obsm["X_good"][:, :4]
    tl.domains(one, 4, use_rep="X_e", method=method, labels="domain")
    found = result(one, "stamp_domain")
    scores = found["scores"].iloc[0]
    assert (found["n_domains"], found["chosen_by"]) == (4, "given")
    assert min(scores["ari"], scores["nmi"], scores["ami"]) > 0.9
    assert scores["coherence"] > 0.7 > 0.3 > scores["coherence_by_chance"]
    column = one.obs["stamp_domain"]
    assert column.cat.categories.tolist() == ["0", "1", "2", "3"]
    assert column.value_counts(sort=False).is_monotonic_decreasing


def test_domains_choose_their_number(one):
    one.obsm["X_e"] = one.obsm["X_good"][:, :4]
    for method, by in (("kmeans", "silhouette"), ("gmm", "BIC")):
        tl.domains(one, use_rep="X_e", method=method, max_domains=6)
        found = result(one, "stamp_domain")
        assert (found["n_domains"], found["chosen_by"]) == (4, by)
    tl.domains(one, use_rep="X_e", resolution=0.1)
    assert result(one, "stamp_domain")["chosen_by"] == "resolution 0.1"


def test_domains_over_sections_have_scores_in_each(sections):
    tl.domains(sections, 4, use_rep="X_good", method="kmeans", labels="domain", library_key="section")
    scores = result(sections, "stamp_domain")["scores"]
    assert scores["section"].tolist() == ["all", "toy_1", "toy_2"]
    assert scores["ari"].iloc[1:].mean() == pytest.approx(scores["ari"].iloc[0], abs=0.1)


def test_smoothing_is_the_mean_over_nearest_spots_of_the_section(sections):
    from sklearn.neighbors import NearestNeighbors

    values, xy = sections.obsm["X_noise"], sections.obsm["spatial"] + np.random.default_rng(0).normal(size=(300, 2))
    codes = (sections.obs["section"] == "toy_2").to_numpy()
    found = smoothed(values, xy, 6, codes)
    for part in (codes, ~codes):
        near = NearestNeighbors(n_neighbors=7).fit(xy[part]).kneighbors(xy[part], return_distance=False)
        np.testing.assert_allclose(found[part], values[part][near].mean(axis=1), atol=1e-5)
    assert smoothed(values, xy, 0) is values


def test_smoothing_makes_domains_coherent(sections):
    scores = {}
    for smooth in (0, 6):
        tl.domains(sections, 4, use_rep="X_good", method="kmeans", smooth=smooth, library_key="section")
        scores[smooth] = result(sections, "stamp_domain")["scores"]["coherence"].iloc[0]
    assert scores[6] > scores[0]


def test_coherence_counts_neighbours_even_at_the_same_place():
    xy = np.zeros((8, 2))
    np.testing.assert_allclose(_metrics.coherence(np.zeros(8, dtype=int), xy, np.zeros(8)), 1.0)
    assert np.isnan(_metrics.coherence(np.zeros(1, dtype=int), xy[:1], np.zeros(1))).all()


def test_leiden_warns_if_the_number_is_not_reached(one):
    one.obsm["X_e"] = np.repeat(np.eye(2, 5) * 9, 75, axis=0) + np.random.default_rng(0).normal(size=(150, 5)) * 0.01
    with pytest.warns(UserWarning, match=r"gives 140 domains"):
        tl.domains(one, 140, use_rep="X_e", method="leiden", n_neighbors=10)


def test_a_number_alone_means_kmeans(one):
    one = one.copy()
    tl.domains(one, 3, use_rep="X_good")
    assert one.uns["stamp"]["stamp_domain"]["method"] == "kmeans"
    tl.domains(one, use_rep="X_good")
    assert one.uns["stamp"]["stamp_domain"]["method"] == "leiden"


@pytest.mark.parametrize("record", [{"context": "neighbors, 6"}, {"model": "pca-smoothed"}])
def test_averaging_twice_warns(one, record):
    one = one.copy()
    one.uns["stamp"] = {"X_good": record}
    with pytest.warns(stampy.StampyWarning, match="averages again"):
        tl.domains(one, 3, use_rep="X_good", smooth=6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_domains": 1}, ValueError, "at least 2"),
        ({"n_domains": 150}, ValueError, "at most 149"),
        ({"n_domains": 4.5}, TypeError, "integer"),
        ({"n_domains": 4, "resolution": 1.0}, ValueError, "without `n_domains`"),
        ({"method": "kmeans", "resolution": 1.0}, ValueError, "Omit one"),
        ({"method": "mclust"}, ValueError, "must be one of"),
        ({"smooth": 150}, ValueError, "needs 151 spots"),
        ({"labels": "section"}, ValueError, "two labels"),
        ({"labels": "nope"}, KeyError, "nope"),
        ({"use_rep": "nope"}, KeyError, "nope"),
        ({"smooth": -1}, ValueError, "at least 0"),
    ],
)
def test_domains_raises(one, arguments, error, message):
    with pytest.raises(error, match=message):
        tl.domains(one, **({"use_rep": "X_good"} | arguments))


# --- expression


@pytest.mark.parametrize("method", ["ridge", "linear", "hest", "knn"])
def test_expression_of_planted_genes(sections, method):
    markers = sections.var_names[sections.var["domain"].notna()][:12].tolist()
    tl.expression(sections, markers, use_rep="X_good", method=method, library_key="section")
    found = result(sections, "stamp_expression")
    table = found["summary"].set_index("level")
    assert table.index.tolist() == ["pooled", "slide", "fold"]
    assert table.loc["slide", "pearson"] > 0.3
    assert found["genes"].tolist() == markers
    assert found["transform"] == ("log1p" if method == "hest" else "log1p_cp10k")
    assert sections.obsm["stamp_expression"].shape == (300, 12)
    assert sections.obsm["stamp_expression"].dtype == np.float32
    measured, predicted = sections.obsm["stamp_expression_measured"], sections.obsm["stamp_expression"]
    pooled = found["scores"].query("level == 'pooled'")
    assert pooled["mse"].to_numpy() == pytest.approx(((measured - predicted) ** 2).mean(axis=0), rel=1e-4)
    assert pooled["pearson"].iloc[0] == pytest.approx(stats.pearsonr(measured[:, 0], predicted[:, 0])[0], abs=1e-4)


def test_hest_split_follows_the_published_recipe():
    """Standardise, components, ridge with penalty 100 / (components x genes), no intercept: the same r in a fold."""
    from sklearn.decomposition import PCA

    random = np.random.default_rng(0)
    x, folds = random.normal(size=(200, 40)), np.arange(200) % 4
    y = (x[:, :6] + random.normal(size=(200, 6)) + 2).astype(np.float32)
    found = linear_models.predict_folds(x, y, folds, method="hest", n_components=10)
    test = folds == 2
    scaler = StandardScaler().fit(x[~test])
    pca = PCA(10, random_state=0).fit(scaler.transform(x[~test]))
    z, z_test = (pca.transform(scaler.transform(part)) for part in (x[~test], x[test]))
    other = Ridge(100 / (10 * 6), fit_intercept=False).fit(z, y[~test]).predict(z_test)
    np.testing.assert_allclose(_metrics.pearson(y[test], found[test]), _metrics.pearson(y[test], other), atol=1e-5)


def test_expression_holds_out():
    random = np.random.default_rng(0)
    x, y, folds = random.normal(size=(90, 4)), random.normal(size=(90, 3)), np.arange(90) % 3
    changed = np.where((folds == 1)[:, None], 99.0, y)
    for method in linear_models.METHODS:
        first, second = (linear_models.predict_folds(x, t, folds, method=method) for t in (y, changed))
        np.testing.assert_allclose(first[folds == 1], second[folds == 1])


def test_genes_are_chosen_among_those_of_every_section(sections):
    dense = sections.X.toarray()
    dense[:150, 5] = 0  # absent in one section
    found = linear_models.top_variable_genes(sparse.csr_matrix(np.log1p(dense)), np.repeat([0, 1], 150), 20)
    assert len(found) == 20
    assert 5 not in found
    markers = sections.var["domain"].notna().to_numpy()
    assert markers[found].mean() > markers.mean()


@pytest.mark.parametrize("storage", ["csc", "dense", "layer", "dask"])
def test_expression_reads_any_storage(one, storage):
    tl.expression(one, use_rep="X_good", n_top_genes=8)
    other = one.copy()
    counts = one.X.copy()
    layer = None
    if storage == "csc":
        other.X = counts.tocsc()
    elif storage == "dense":
        other.X = counts.toarray()
    elif storage == "layer":
        other.layers["counts"], other.X, layer = counts, None, "counts"
    else:
        import dask.array as da

        other.X = da.from_array(counts.toarray(), chunks=(50, -1))
    tl.expression(other, use_rep="X_good", n_top_genes=8, layer=layer)
    np.testing.assert_allclose(other.obsm["stamp_expression"], one.obsm["stamp_expression"], atol=1e-5)


@pytest.mark.parametrize("kind", ["Antibody Capture", "CRISPR Guide Capture", "Peaks"])
def test_features_that_are_not_genes_are_neither_predicted_nor_counted(one, kind):
    rng = np.random.default_rng(0)
    more = rng.poisson(rng.uniform(20, 900, (one.n_obs, 3)))
    both = ad.AnnData(sparse.hstack([one.X, more], format="csr"), obs=one.obs[[]], obsm=dict(one.obsm))
    both.var = pd.DataFrame({"feature_types": ["Gene Expression"] * one.n_vars + [kind] * 3},
                            index=[*one.var_names, "p1", "p2", "p3"])  # fmt: skip
    with pytest.warns(StampyWarning, match=rf"3 of {both.n_vars} columns are not genes and are dropped: 3 {kind}"):
        tl.expression(both, use_rep="X_good", n_top_genes=20)
    tl.expression(one, use_rep="X_good", n_top_genes=20)
    assert list(result(both, "stamp_expression")["genes"]) == list(result(one, "stamp_expression")["genes"])
    np.testing.assert_array_equal(both.obsm["stamp_expression_measured"], one.obsm["stamp_expression_measured"])
    tl.expression(both, ["p2"], use_rep="X_good")  # requested
    assert list(result(both, "stamp_expression")["genes"]) == ["p2"]


def test_expression_from_a_reference(sections):
    query = sections[sections.obs["section"] == "toy_1"].copy()
    reference = sections[sections.obs["section"] == "toy_2"].copy()
    for adata in (query, reference):
        adata.obsm["X_other"] = adata.obsm["X_good"][:, :4]
        adata.obsm["X_good"] = adata.obsm["X_good"][:, :4]
    tl.expression(query, use_rep="X_good", method="knn", reference=reference, reference_rep="X_other", n_top_genes=10)
    found = result(query, "stamp_expression")
    assert found["folds"] == "reference"
    assert found["summary"]["level"].tolist() == ["pooled"]
    assert found["summary"]["pearson"].item() > 0.2
    assert "stamp_expression_fold" not in query.obs
    without = ad.AnnData(obs=query.obs[["domain"]], obsm={"X_good": query.obsm["X_good"]})
    tl.expression(without, found["genes"], use_rep="X_good", method="knn", reference=reference)
    np.testing.assert_allclose(without.obsm["stamp_expression"], query.obsm["stamp_expression"], atol=1e-6)
    assert "scores" not in result(without, "stamp_expression")
    assert "stamp_expression_measured" not in without.obsm


def test_later_run_removes_earlier_results(sections):
    tl.expression(sections, use_rep="X_good", n_top_genes=5, library_key="section")
    reference = sections.copy()
    tl.expression(sections, use_rep="X_good", method="knn", n_top_genes=5, reference=reference)
    assert "stamp_expression_fold" not in sections.obs


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"genes": ["COL1A"]}, KeyError, "COL1A1"),
        ({"genes": []}, ValueError, "empty"),
        ({"method": "forest"}, ValueError, "must be one of"),
        ({"transform": "cpm"}, ValueError, "must be one of"),
        ({"method": "knn", "penalty": 1.0}, ValueError, "has no effect"),
        ({"reference_rep": "X_noise"}, ValueError, "for method='knn'"),
        ({"n_top_genes": 0}, ValueError, "at least 1"),
        ({"layer": "nope"}, KeyError, "nope"),
        ({"use_rep": "nope"}, KeyError, "nope"),
        ({"folds": "section"}, ValueError, "library_key"),
        ({"n_folds": 200, "folds": "random"}, ValueError, "200 folds need"),
    ],
)
def test_expression_raises(one, arguments, error, message):
    with pytest.raises(error, match=message):
        tl.expression(one, **({"use_rep": "X_good"} | arguments))


def test_expression_rejects_unsuitable_tables(one):
    logged = one.copy()
    logged.X = logged.X.log1p()
    with pytest.raises(ValueError, match="log-normalised"):
        tl.expression(logged, use_rep="X_good")
    tl.expression(logged, use_rep="X_good", transform="none", n_top_genes=5)
    apart = one.copy()
    apart.var_names = [f"other_{i}" for i in range(apart.n_vars)]
    with pytest.raises(ValueError, match="no gene in common"):
        tl.expression(one, use_rep="X_good", method="knn", reference=apart)
    apart.obsm["X_good"] = apart.obsm["X_good"][:, :3]
    with pytest.raises(ValueError, match="dimensions"):
        tl.expression(one, use_rep="X_good", method="knn", reference=apart)
    with pytest.raises(ValueError, match="omit `folds`"):
        tl.expression(one, use_rep="X_good", method="knn", reference=one, folds="blocks")


def test_sections_without_a_gene_in_common(sections):
    counts = sections.X.toarray()
    counts[:150, :60] = 0
    counts[150:, 60:] = 0
    sections.X = sparse.csr_matrix(counts)
    with pytest.raises(ValueError, match="every section"):
        tl.expression(sections, use_rep="X_good", library_key="section")


def test_least_squares_warns_if_underdetermined(one):
    one.obsm["X_wide"] = np.random.default_rng(0).normal(size=(150, 140))
    with pytest.warns(UserWarning, match="ridge"):
        tl.expression(one, use_rep="X_wide", method="linear", n_top_genes=3)


# --- files and pictures


@pytest.fixture(scope="module")
def with_results(base):
    sections = base.copy()
    sections.obs["domain"] = sections.obs["domain"].cat.rename_categories({"D1": "in situ / invasive"})
    tl.probe(sections, "domain", use_rep=["X_good", "X_noise"], library_key="section", method="ridge")
    tl.domains(sections, use_rep="X_good", method="gmm", max_domains=3, labels="domain", library_key="section")
    tl.expression(sections, use_rep="X_good", n_top_genes=5, library_key="section")
    return sections


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
def test_results_survive_files(with_results, tmp_path, store):
    sections = with_results
    if store == "h5ad":
        sections.write_h5ad(tmp_path / "a.h5ad")
        read = ad.read_h5ad(tmp_path / "a.h5ad")
    else:
        with ad.settings.override(zarr_write_format=3), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of changes in a coming release of anndata
            sections.write_zarr(tmp_path / "a.zarr")
        read = ad.read_zarr(tmp_path / "a.zarr")
    for key in ("probe", "stamp_domain", "stamp_expression"):
        a, b = result(sections, key), result(read, key)
        assert a.keys() == b.keys()
        pd.testing.assert_frame_equal(a["scores"], b["scores"], check_dtype=False, check_index_type=False)
    np.testing.assert_array_equal(result(read)["confusion"]["X_good"], result(sections)["confusion"]["X_good"])
    assert len(pl.probe(read)) == 2
    assert len(pl.domains(read, library_key="section")) == 4
    assert len(pl.expression(read, library_key="section")) == 6


def test_pl_probe(sections):
    tl.probe(sections, "domain", use_rep=["X_noise", "X_good"], library_key="section")
    bars, confusion = pl.probe(sections)
    assert [t.get_text() for t in bars.get_yticklabels()] == ["X_noise", "X_good"]
    assert confusion.get_title() == "X_good"
    share = confusion.images[0].get_array()
    np.testing.assert_allclose(share.sum(axis=1), 1)
    _, ax = plt.subplots()
    assert pl.probe(sections, "X_noise", show="confusion", ax=ax) is ax
    with pytest.raises(ValueError, match="one panel"):
        pl.probe(sections, ax=ax)
    with pytest.raises(ValueError, match="must be one of"):
        pl.probe(sections, "X_god")
    with pytest.raises(KeyError, match=r"Run `stampy\.tl\.probe"):
        pl.probe(sections, key="other")


def test_pl_domains(one):
    tl.domains(one, 4, use_rep="X_good", method="kmeans", labels="domain")
    truth, found = pl.domains(one)
    assert (truth.get_title(), found.get_title()[:18]) == ("domain", "stamp_domain (ARI ")
    _, ax = plt.subplots()
    assert pl.domains(one, labels=False, ax=ax, image=False) is ax
    with pytest.raises(KeyError, match=r"tl\.domains"):
        pl.domains(one, "probe")


def test_pl_expression(one):
    tl.expression(one, ["COL1A1", "EPCAM"], use_rep="X_good")
    axes = pl.expression(one, "EPCAM")
    measured, predicted, error = (ax.collections[0] for ax in axes)
    values = one.obsm["stamp_expression"][:, 1]
    assert axes[1].get_title().startswith("EPCAM predicted, pooled r")
    both = np.concatenate([values, one.obsm["stamp_expression_measured"][:, 1]])
    bars = [ax.child_axes[0] for ax in axes]
    assert bars[0].get_ylim() == bars[1].get_ylim() == pytest.approx((both.min(), both.max()))
    assert -bars[2].get_ylim()[0] == pytest.approx(bars[2].get_ylim()[1])
    assert len(measured.get_offsets()) == len(predicted.get_offsets()) == len(error.get_offsets()) == 150
    with pytest.raises(KeyError, match="EPCAM"):
        pl.expression(one, "EPCAMM")
    _, ax = plt.subplots()
    assert pl.expression(one, show="error", ax=ax) is ax
    with pytest.raises(ValueError, match="one panel"):
        pl.expression(one, ax=ax)


def test_plots_write_nothing(one):
    tl.probe(one, "domain", use_rep="X_good", method="ridge")
    tl.expression(one, use_rep="X_good", n_top_genes=3)
    before = one.copy()
    pl.probe(one)
    pl.expression(one)
    assert (set(one.obs), set(one.uns), set(one.obsm)) == (set(before.obs), set(before.uns), set(before.obsm))


# --- real sections


def test_random_folds_are_optimistic_on_a_real_section(data_dir):
    adata = ad.read_h5ad(data_dir / "sections" / "DLPFC_151673.h5ad")
    counts = adata.X[:, np.argsort(-np.asarray(adata.X.sum(axis=0)).ravel())[:200]]
    total = np.asarray(adata.X.sum(axis=1)).reshape(-1, 1)
    adata.obsm["X_log"] = smoothed(np.log1p(counts.toarray() / total * 1e4).astype(np.float32), adata.obsm["spatial"])
    found = {}
    for folds in ("blocks", "random"):
        tl.probe(adata, "layer", use_rep="X_log", folds=folds, method="ridge")
        found[folds] = result(adata)["scores"].iloc[-1]
    assert found["blocks"]["n_test"] == 3611
    assert found["random"]["balanced_accuracy"] > found["blocks"]["balanced_accuracy"] + 0.02


def test_empty_spots_are_named_and_stay_out_of_the_means_of_others(one):
    one.obsm["X_e"] = one.obsm["X_good"][:, :4].copy()
    one.obsm["X_e"][:5] = 0
    with pytest.warns(stampy.StampyWarning, match="5 of 150 spots are all zeros"):
        tl.domains(one, 3, use_rep="X_e", method="kmeans", smooth=6)
    ones = np.ones((150, 2), np.float32)
    ones[:5] = 0
    smooth = smoothed(ones, one.obsm["spatial"], 6)
    assert (smooth[5:] == 1).all()
    assert not smooth[:5].any()


def test_fewer_domains_than_requested_warn():
    values = np.repeat(np.eye(2, 4, dtype=np.float32), 20, axis=0)
    with pytest.warns(UserWarning, match="2 instead of 3 domains: the embedding has only 2 different vectors"):
        codes, how = clustering.find_domains(values, 3, method="kmeans")
    assert how["n_domains"] == 2
    assert np.bincount(codes).tolist() == [20, 20]


def test_settings_of_domains_that_have_no_effect_are_named():
    adata = datasets.toy(n_spots=40, image=False)
    adata.obsm["X"] = np.random.default_rng(0).normal(size=(40, 6))
    with pytest.warns(StampyWarning, match="n_pcs=50 has no effect: the embedding has 6 dimensions and 40 spots"):
        tl.domains(adata, 3, use_rep="X", method="kmeans", n_pcs=50)
    with pytest.warns(StampyWarning, match="n_neighbors=90 was reduced to 39"):
        tl.domains(adata, use_rep="X", method="leiden", n_neighbors=90, resolution=1.0)


def test_measurements_name_no_groups():
    adata = datasets.toy(n_spots=40)
    adata.obsm["X"] = np.random.default_rng(0).normal(size=(40, 6))
    adata.obs["score"] = np.linspace(0, 1, 40)
    for call in (
        lambda: tl.domains(adata, 3, use_rep="X", library_key="score"),
        lambda: tl.attribute(adata, "cluster", groupby="score"),
        lambda: pl.tiles(adata, "score"),
    ):
        with pytest.raises(ValueError, match=r"`adata.obs.*score.*` must contain labels, found numbers"):
            call()


def test_names_and_paths_that_are_nearly_right():
    with pytest.raises(AttributeError, match="Did you mean 'embed'"):
        _ = tl.embd
    with pytest.raises(TypeError, match=r"Read the file first: `stampy.read\('a.h5ad'\)`"):
        tl.embed("a.h5ad")


@pytest.mark.parametrize(("method", "n"), [("kmeans", 4), ("gmm", 4), ("leiden", None)])
def test_domains_do_not_depend_on_the_scale_of_the_vectors(one, method, n):
    """Squares overflowed or underflowed in float32: one domain, or as many as spots."""
    table = one.copy()
    table.obsm["X_small"], table.obsm["X_large"] = (table.obsm["X_good"] * 2.0**p for p in (-100, 100))
    found = []
    for key in ("X_good", "X_small", "X_large"):
        tl.domains(table, n, use_rep=key, method=method)
        found.append(table.obs["stamp_domain"].tolist())
    assert found[0] == found[1] == found[2]


def test_equal_vectors_are_one_domain(one):
    """Leiden divided them at random."""
    table = one.copy()
    table.obsm["X_same"] = np.ones((table.n_obs, 4))
    with pytest.warns(stampy.StampyWarning, match="All spots have the same vector"):
        tl.domains(table, use_rep="X_same")
    assert table.obs["stamp_domain"].nunique() == 1


@pytest.mark.parametrize("method", ["kmeans", "gmm", "leiden"])
def test_seeds_of_64_bits(one, method):
    tl.domains(one, use_rep="X_good", method=method, max_domains=3, rng=2**40, copy=True)
    tl.domains(one, use_rep="X_good", method=method, max_domains=3, rng=2**32 - 1, copy=True)


def test_small_section_is_named_in_the_error_of_smoothing(sections):
    names = sections.obs["section"].astype(str).to_numpy()
    keep = (names == names[0]) | (np.cumsum(names != names[0]) <= 3) & (names != names[0])
    part = sections[keep].copy()
    with pytest.raises(
        ValueError, match=rf"needs 7 spots in every section, found \['{names[names != names[0]][0]}: 3'"
    ):
        tl.domains(part, 2, use_rep="X_good", smooth=6, library_key="section")


def test_shared_genes_of_one_section_have_no_effect(one):
    with pytest.warns(stampy.StampyWarning, match="genes='shared' has no effect: there is one section"):
        tl.embed(one, modality="gene", genes="shared", show_progress_bar=False, copy=True)
