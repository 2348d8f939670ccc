"""Evaluation of embeddings without labels."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import stampy
from stampy import datasets, pl, tl
from stampy.pp import _thinning
from stampy.tl._evaluate import judged as evaluated
from stampy.tl._evaluation.judge import judge
from stampy.tl._evaluation.verdict import verdict_of

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


def test_plot_of_a_subset_says_for_which_spots_it_holds(judged):
    part = judged[:50].copy()
    title = " ".join(pl.evaluate(part)[0].figure.get_suptitle().split())
    assert title.endswith("(Evaluated on 200 spots, of which this table has 50.)")
    assert "Evaluated on" not in pl.evaluate(judged)[0].figure.get_suptitle()


def scores_of(table, keys=None, **options):
    return tl.evaluate(table, keys, n_splits=1, copy=True, **options).uns["stamp_evaluate"]


def test_functions_that_change_their_table_do_not_change_other_scores(section):
    import scanpy as sc

    def in_place(table):
        sc.pp.normalize_total(table)
        sc.pp.log1p(table)
        sc.pp.pca(table, n_comps=10)
        return table.obsm["X_pca"]

    alone = scores_of(section, {"noise": noise})["scores"]
    scores = scores_of(section, {"first": in_place, "second": in_place, "noise": noise})["scores"]
    pd.testing.assert_frame_equal(scores.loc[alone.index], alone)
    pd.testing.assert_series_equal(scores.loc["first"], scores.loc["second"], check_names=False)


def test_sparse_results_of_functions_are_accepted(section):
    sparse_genes, dense = (lambda t: t.X[:, :20], first_genes)
    scores = scores_of(section, {"sparse": sparse_genes, "dense": dense})["scores"]
    assert scores.loc["sparse", "score"] == scores.loc["dense", "score"]


@pytest.mark.parametrize("keys", [["PCA"], {"position alone": noise}])
def test_names_of_baselines_are_refused(section, keys):
    table = section.copy()
    table.obsm["PCA"] = table.obsm["X_stamp"]
    with pytest.raises(ValueError, match="names of baselines"):
        tl.evaluate(table, keys)


def test_no_key_and_other_types_are_refused(section):
    with pytest.raises(ValueError, match="`keys` is empty"):
        tl.evaluate(section, [])
    with pytest.raises(TypeError, match="must be a key of obsm"):
        tl.evaluate(section, 3)


@pytest.fixture(scope="module")
def pictured():
    adata = datasets.toy(n_spots=80, rng=1)
    tl.embed(adata, **QUIET)
    return adata


def test_images_contain_no_molecules_and_fused_vectors_are_recomputed(pictured):
    record = scores_of(pictured, ["X_stamp", "X_stamp_image", "X_stamp_gene"])
    scores = record["scores"]
    assert scores["thinned"].all()
    assert scores["n_dims"].tolist()[:3] == [256, 128, 128]
    assert "none can be compared" not in record["verdict"]

    def by_hand(half):
        genes = tl.embed(half, modality="gene", copy=True, **QUIET).obsm["X_stamp"]
        return np.hstack([genes, pictured.obsm["X_stamp_image"]])

    expected = scores_of(pictured, {"both": by_hand})["scores"].loc["both", "score"]
    assert scores.loc["X_stamp", "score"] == pytest.approx(expected, abs=1e-4)


def other_weights(model):
    import copy

    import torch

    other = copy.deepcopy(model)
    with torch.no_grad():
        other.gene.embeddings.weight.mul_(torch.rand(len(other.gene.embeddings.weight), 1))
    return other


def test_embedding_of_other_weights_of_the_same_name_is_not_recomputed(section):
    other = other_weights(stampy.models.load("stampy-mini", device="cpu"))
    table = tl.embed(section, other, modality="gene", copy=True, **QUIET)
    with pytest.warns(stampy.StampyWarning, match="other weights than those of 'stampy-mini'"):
        scores = scores_of(table, "X_stamp")["scores"]
    assert not scores.loc["X_stamp", "thinned"]
    scores = scores_of(table, "X_stamp", model=other)["scores"]
    assert scores.loc["X_stamp", "thinned"]


def test_model_from_a_folder_is_given_by_the_user(section, tmp_path):
    stampy.models.save(stampy.models.load("stampy-mini", device="cpu"), tmp_path / "mine")
    table = tl.embed(section, tmp_path / "mine", modality="gene", copy=True, **QUIET)
    with pytest.warns(stampy.StampyWarning, match=r"its model 'mine' is not part of stampy.*`model=`"):
        scores_of(table, "X_stamp")
    found = scores_of(table, "X_stamp", model=tmp_path / "mine")["scores"]
    expected = scores_of(section, "X_stamp")["scores"]
    pd.testing.assert_frame_equal(found, expected)
    pd.testing.assert_frame_equal(scores_of(table, "X_stamp", model="stampy-mini")["scores"], expected)  # its weights
    with pytest.raises(ValueError, match="made none of"):
        tl.evaluate(table, "X_stamp", model=stampy.train.adapt("stampy-mini", section, strength=1, n_axes=8))


def test_vectors_that_were_changed_are_not_recomputed(section):
    table = section.copy()
    table.obsm["X_stamp"] = table.obsm["X_stamp"][np.random.default_rng(0).permutation(table.n_obs)]
    with pytest.warns(stampy.StampyWarning, match="or was changed"):
        scores = scores_of(table, "X_stamp")["scores"]
    assert scores.loc["X_stamp", "score"] < 0.05  # that of the vectors in obsm


def test_model_adapted_to_another_section_is_not_fitted_again(section):
    other = datasets.toy(n_spots=100, image=False, rng=77)
    adapted = stampy.train.adapt("stampy-mini", other, strength=1, n_axes=8)
    table = tl.embed(section, adapted, copy=True, **QUIET)
    with pytest.warns(stampy.StampyWarning, match="embedded again, it differs"):
        assert not scores_of(table, "X_stamp")["scores"].loc["X_stamp", "thinned"]
    with pytest.warns(stampy.StampyWarning, match="adapted to 100 spots. If the evaluated spots are among them"):
        found = scores_of(table, "X_stamp", model=adapted)["scores"]
    by_hand = {"X_stamp": lambda half: tl.embed(half, adapted, copy=True, **QUIET).obsm["X_stamp"]}
    pd.testing.assert_frame_equal(found, scores_of(section, by_hand)["scores"])


@pytest.mark.parametrize("effect", [1, 2])
def test_adapted_sections_are_recomputed_without_a_warning(effect, few_genes):
    table = datasets.toy(n_spots=300, effect=effect, image=False)
    tl.embed(table, few_genes, adapt=True, **QUIET)
    assert scores_of(table, "X_stamp", model=few_genes)["scores"].loc["X_stamp", "thinned"]


def test_piece_of_an_adapted_section_is_recomputed(section, few_genes):
    table = tl.embed(section, few_genes, adapt=True, copy=True, **QUIET)
    with pytest.warns(stampy.StampyWarning, match="100 of 200 spots"):
        scores = scores_of(table, "X_stamp", max_spots=100, model=few_genes)["scores"]
    assert scores.loc["X_stamp", "thinned"]


@pytest.mark.parametrize("context", [None, "neighbors"])
def test_pieces_of_centred_sections_are_recomputed(context):
    both = datasets.toy(n_spots=200, n_sections=2, image=False, rng=3)
    tl.embed(both, center="section", context=context, library_key="section", **QUIET)
    with pytest.warns(stampy.StampyWarning, match="100 of 400 spots"):  # the only warning
        scores = scores_of(both, "X_stamp", library_key="section", max_spots=100)["scores"]
    assert scores.loc["X_stamp", "thinned"]
    both.obsm["X_stamp"] = both.obsm["X_stamp"][np.random.default_rng(0).permutation(400)]
    with pytest.warns(stampy.StampyWarning, match="or was changed"), pytest.warns(match="100 of 400 spots"):
        scores_of(both, "X_stamp", library_key="section", max_spots=100)


def test_sections_of_an_embedding_are_those_of_its_record():
    both = datasets.toy(n_spots=60, n_sections=2, image=False, rng=3)
    both.obsm["spatial"] = both.obsm["spatial"] + 1e5 * both.obs["section"].cat.codes.to_numpy()[:, None]
    tl.embed(both, modality="gene", library_key="section", center="section", context="neighbors", **QUIET)
    assert both.uns["stamp"]["X_stamp"]["library_key"] == "section"
    assert scores_of(both)["scores"].loc["X_stamp", "thinned"]  # without `library_key`
    del both.obs["section"]
    with pytest.warns(stampy.StampyWarning, match=r"obs\['section'\].*missing"):
        assert not scores_of(both)["scores"].loc["X_stamp", "thinned"]


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({"context": "neighbors"}, "each vector is a mean over a spot and its nearest spots"),
        ({"context": "neighbors", "adapt": True}, "its model was fitted to all of them, and each vector is a mean"),
    ],
)
def test_subsets_say_which_spots_are_missing(section, options, how):
    table = tl.embed(section, copy=True, **options, **QUIET)
    part = table[np.random.default_rng(0).permutation(table.n_obs) < 60].copy()
    expected = rf"it was made from 200 spots, of which this table has 60: {how}.*evaluate before you take a subset"
    with pytest.warns(stampy.StampyWarning, match=expected) as told:
        found = scores_of(part, "X_stamp")["scores"]
    assert not found.loc["X_stamp", "thinned"]
    assert len(told) == 1
    tl.embed(part, **options, **QUIET)  # the remedy
    assert scores_of(part, "X_stamp")["scores"].loc["X_stamp", "thinned"]


def test_subset_of_an_embedding_of_single_spots_is_recomputed(section):
    part = section[:80].copy()
    assert scores_of(part, "X_stamp")["scores"].loc["X_stamp", "thinned"]


BASE = ["PCA", "PCA, L2, smoothed", "tf-idf SVD, L2, smoothed", "position alone"]
FIGURES = st.lists(st.floats(0, 0.6), min_size=6, max_size=6)


@settings(deadline=None, max_examples=60)
@given(st.lists(FIGURES, min_size=1, max_size=4), st.booleans(), st.booleans())
def test_verdict_is_true_of_the_scores(splits, first_is_fair, second_is_fair):
    names = ["one", "two", *BASE]
    found = [{name: {"score": v} for name, v in zip(names, figures, strict=True)} for figures in splits]
    means = np.mean(splits, axis=0)
    scores = pd.DataFrame({"kind": ["embedding"] * 2 + ["baseline"] * 4, "score": means,
                           "thinned": [first_is_fair, second_is_fair, *[True] * 4]}, index=names)  # fmt: skip
    text = verdict_of(scores, found)
    assert text.count(". ") == 0
    assert text.endswith(".")
    fair = scores.iloc[:2][scores["thinned"].iloc[:2]]
    if fair.empty:
        assert "none can be compared" in text
        return
    best, base = fair["score"].idxmax(), scores.iloc[2:]["score"].idxmax()
    assert text.startswith(f"{best} is ")
    assert f"{scores.loc[best, 'score']:.3f} against {scores.loc[base, 'score']:.3f}" in text
    gain = scores.loc[best, "score"] - scores.loc[base, "score"]
    assert "more informative" not in text or gain > 0.005
    assert "less informative" not in text or gain < -0.005
    if "use that baseline" in text:
        assert base != "position alone"
        assert scores.loc[base, "score"] > scores.loc["position alone", "score"]
    if len(splits) == 1:
        assert ("about as" in text) == (abs(gain) <= 0.005)


def test_position_is_not_recommended():
    names = ["mine", *BASE]
    split = dict(zip(names, ({"score": v} for v in (0.01, 0.0, 0.02, 0.0, 0.1)), strict=True))
    scores = pd.DataFrame({"kind": ["embedding"] + ["baseline"] * 4, "thinned": True,
                           "score": [split[n]["score"] for n in names]}, index=names)  # fmt: skip
    assert "none of them is of use here" in verdict_of(scores, [split])


@pytest.mark.parametrize("bad", ["random", "depth", "constant", "permuted", "coordinates"])
def test_uninformative_embeddings_get_no_good_verdict(section, bad):
    def permuted(table):
        values = tl.embed(table, modality="gene", copy=True, **QUIET).obsm["X_stamp"]
        return values[np.random.default_rng(0).permutation(len(values))]

    functions = {
        "random": noise,
        "depth": lambda t: np.log1p(np.asarray(t.X.sum(axis=1))),
        "constant": lambda t: np.ones((t.n_obs, 4)),
        "permuted": permuted,
        "coordinates": lambda t: t.obsm["spatial"],
    }
    assert f"{bad} is less informative" in scores_of(section, {bad: functions[bad]})["verdict"]


@pytest.mark.parametrize(
    "options",
    [
        {"context": "neighbors"},
        {"level": "feature"},
        {"normalize": False},
        {"center": "section", "library_key": "section"},
        {"adapt": True, "context": "neighbors"},
        {"model": "pca"},
    ],
    ids=str,
)
def test_verdict_of_demo_and_report_is_that_of_the_stored_embedding(options):
    """They embedded half of the molecules with settings of their own: a verdict about other vectors."""
    table = datasets.toy(n_spots=100, n_sections=2, image=False, rng=3)
    tl.embed(table, modality="gene", **{"library_key": "section"} | options, **QUIET)
    found = judge(table, library_key="section")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = evaluated(
            table, "X_stamp", library_key="section", layer=None, n_splits=2, n_genes=200, max_spots=2000,
            table_key="table", rng=0, stability=False,
        )  # fmt: skip
    pd.testing.assert_frame_equal(found["scores"], expected["scores"])
    assert found["scores"].loc["X_stamp", "thinned"]
    assert found["verdict"] == expected["verdict"]


def test_model_is_recognised_by_its_weights(section, tmp_path):
    """A model that was saved has the name of its folder."""
    adapted = stampy.train.adapt("stampy-mini", section, strength=0.5, n_axes=8)
    stampy.models.save(adapted, tmp_path / "mine")
    for made, other in ((adapted, tmp_path / "mine"), (tmp_path / "mine", adapted)):
        table = tl.embed(section, made, copy=True, **QUIET)
        assert scores_of(table, "X_stamp", model=other)["scores"].loc["X_stamp", "thinned"]


def test_given_model_that_was_adapted_to_these_spots_is_adapted_to_each_half(section):
    """Its axes were fitted to the molecules that it predicts: scores were up to a quarter too high."""
    adapted = stampy.train.adapt("stampy-mini", section, strength=1, n_axes=64)
    table = tl.embed(section, adapted, copy=True, **QUIET)
    fair = scores_of(table, "X_stamp")["scores"]
    pd.testing.assert_frame_equal(scores_of(table, "X_stamp", model=adapted)["scores"], fair)
    by_hand = {"X_stamp": lambda half: tl.embed(half, adapted, copy=True, **QUIET).obsm["X_stamp"]}
    assert fair.loc["X_stamp", "score"] < scores_of(table, by_hand)["scores"].loc["X_stamp", "score"]


def test_given_model_that_was_adapted_to_more_spots_gives_a_warning(section):
    """It has seen all molecules of the subset, and cannot be adapted again from the subset alone."""
    adapted = stampy.train.adapt("stampy-mini", section, strength=1, n_axes=64)
    part = tl.embed(section[:80].copy(), adapted, copy=True, **QUIET)
    with pytest.warns(stampy.StampyWarning, match="adapted to 200 spots. If the evaluated spots are among them"):
        scores_of(part, "X_stamp", model=adapted)


def test_given_model_that_was_adapted_from_an_own_model_is_not_trusted(section, few_genes):
    """Its scores were too high without a word: it cannot be adapted again, and nothing says to which spots it was."""
    adapted = stampy.train.adapt(few_genes, section, strength=1, n_axes=64)
    table = tl.embed(section, adapted, copy=True, **QUIET)
    with pytest.warns(stampy.StampyWarning, match=r"its base 'few' is not packaged.*pass the base model \(`model=`\)"):
        found = scores_of(table, "X_stamp", model=adapted)
    assert "none can be compared fairly" in found["verdict"]
    fair = scores_of(table, "X_stamp", model=few_genes)["scores"].loc["X_stamp"]  # the remedy
    assert fair["thinned"]
    assert fair["score"] < found["scores"].loc["X_stamp", "score"]


@pytest.mark.parametrize("scale", [2.0**100, 2.0**-100])
def test_scores_do_not_depend_on_the_scale_of_the_vectors(section, scale):
    table = section.copy()
    table.obsm["X_a"] = domain_means(table) + 0.01 * noise(table)[:, :1].astype(np.float32)
    table.obsm["X_b"] = table.obsm["X_a"] * np.float32(scale)
    with pytest.warns(stampy.StampyWarning, match="no record"):
        scores = scores_of(table, ["X_a", "X_b"])["scores"].drop(columns="kind")
    pd.testing.assert_series_equal(scores.loc["X_a"], scores.loc["X_b"], check_names=False)
    table.obsm["X_b"] = table.obsm["X_a"].astype(float) * 1e-200
    with pytest.raises(ValueError, match="too small for float32"):
        tl.evaluate(table, "X_b")


@pytest.mark.parametrize("function", [tl.evaluate, tl.domains])
@pytest.mark.parametrize(("rng", "error"), [(-1, ValueError), ("a", TypeError), (1.5, TypeError)])
def test_seeds_that_are_none(section, function, rng, error):
    with pytest.raises(error, match="`rng` must be an integer from 0 on"):
        function(section, rng=rng, copy=True)


def test_measures_that_cannot_be_plotted(judged):
    with pytest.raises(ValueError, match="`mixing` was not computed: it needs several sections"):
        pl.evaluate(judged, show="mixing")
    with pytest.raises(ValueError, match="`show` is empty"):
        pl.evaluate(judged, show=[])


def test_results_of_functions_in_another_order_or_without_columns(section):
    """A DataFrame was read by position, whatever its index."""

    def counted(half):
        return pd.DataFrame(half.X[:, :3].toarray(), index=half.obs_names)

    scores_of(section, {"mine": counted})
    scores_of(section, {"mine": lambda half: counted(half).reset_index(drop=True)})
    with pytest.raises(ValueError, match=r"whose index is not `obs_names`, in their order"):
        tl.evaluate(section, {"mine": lambda half: counted(half).iloc[::-1]})
    with pytest.raises(ValueError, match=r"of shape \(200, d\), found float32 \(200, 0\)"):
        tl.evaluate(section, {"mine": lambda half: half.X[:, :0].toarray()})
