"""`tl.embed(center="direction")`: without the direction of the mean gene feature of each section."""

import numpy as np
import pytest
import scipy.sparse as sp

from stampy import StampyWarning, datasets, tl, train
from stampy.cli.main import main
from stampy.models._linear_gene import linear_parts
from stampy.pp import Vocabulary
from stampy.pp._linear_encoder import weighted_genes
from stampy.pp._rank_tokens import rank_tokens
from stampy.tl._evaluation.recompute import job_of

QUIET = {"show_progress_bar": False, "device": "cpu"}
GENES = {**QUIET, "modality": "gene"}
BOTH = {**GENES, "library_key": "section", "center": "direction"}


@pytest.fixture(scope="module")
def two():
    table = datasets.toy(n_spots=60, n_sections=2, rng=3, image=False)
    table.obsm["spatial"] += np.random.default_rng(0).normal(size=(120, 2))  # no two neighbours at the same distance
    return table


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def each(table):
    """Rows of each section."""
    return [np.flatnonzero(table.obs["section"] == name) for name in table.obs["section"].cat.categories]


def around(table, rows, values):
    """Mean over each spot of a section and its six nearest."""
    xy = table.obsm["spatial"][rows]
    near = np.argsort(np.linalg.norm(xy[:, None] - xy, axis=2), axis=1, kind="stable")[:, :7]
    return values[near].mean(axis=1)


def expected(table, model, *, context, normalize):
    """The definition, from weighted genes along orthonormal axes."""
    parts, vocabulary = linear_parts(model), Vocabulary(model.genes)
    tokens = rank_tokens(sp.csr_matrix(table.X), vocabulary.match(table).rows, vocabulary.divisors, len(parts.gate))
    norm = unit if normalize else np.asarray
    found = np.zeros((table.n_obs, len(parts.head)))
    for rows in each(table):
        x = (weighted_genes(tokens[rows], parts.gate, parts.level) @ parts.axes).astype(float)
        mean = x.mean(axis=0) / np.linalg.norm(x.mean(axis=0))
        v = (x - np.outer(x @ mean, mean)) @ parts.head.T
        v = norm(v - v.mean(axis=0))
        if context:
            v = around(table, rows, v)
            v = norm(v - v.mean(axis=0))
        found[rows] = v
    return found


@pytest.mark.parametrize("context", [None, "neighbors"])
@pytest.mark.parametrize("normalize", [True, False])
def test_vectors_are_those_of_the_definition(two, few_genes, context, normalize):
    found = tl.embed(two, few_genes, context=context, normalize=normalize, copy=True, **BOTH)
    values = found.obsm["X_stamp"]
    np.testing.assert_allclose(
        values, expected(two, few_genes, context=context, normalize=normalize), atol=1e-4 * np.abs(values).max()
    )
    record = found.uns["stamp"]["X_stamp"]
    assert (record["center"], record["level"], record["modality"]) == ("direction", "embedding", "gene")
    section = tl.embed(two, few_genes, context=context, normalize=normalize, copy=True, **BOTH | {"center": "section"})
    assert np.abs(unit(values) - unit(section.obsm["X_stamp"])).max() > 0.1


@pytest.mark.parametrize("context", [None, "neighbors"])
def test_adapted_models(two, few_genes, context):
    """In context, the axes of the model and of the sections are not orthogonal to each other."""
    adapted = train.adapt(few_genes, [two[rows] for rows in each(two)], strength=0.25, n_axes=8, context=context)
    values = tl.embed(two, adapted, context=context, copy=True, **BOTH).obsm["X_stamp"]
    np.testing.assert_allclose(values, expected(two, adapted, context=context, normalize=True), atol=1e-3)


def test_model_adapted_in_the_same_call(two, few_genes):
    found = tl.embed(two, few_genes, adapt=True, copy=True, **BOTH)
    assert found.uns["stamp"]["X_stamp"]["adapted"]["model"] == "few"
    for rows in each(two):
        np.testing.assert_allclose(np.linalg.norm(found.obsm["X_stamp"][rows], axis=1), 1, atol=1e-5)
    plain = tl.embed(two, few_genes, adapt=True, copy=True, **BOTH | {"center": "section"})
    assert np.abs(found.obsm["X_stamp"] - plain.obsm["X_stamp"]).max() > 0.1


def test_sections_of_a_table_and_of_a_list_are_equal(two, few_genes):
    whole = tl.embed(two, few_genes, copy=True, **BOTH).obsm["X_stamp"]
    parts = [two[rows].copy() for rows in each(two)]
    tl.embed(parts, few_genes, center="direction", **GENES)
    for rows, part in zip(each(two), parts, strict=True):
        np.testing.assert_allclose(part.obsm["X_stamp"], whole[rows], atol=1e-5)


def test_empty_spots_stay_zero_and_do_not_matter(two, few_genes):
    adata = two.copy()
    adata.X = sp.csr_matrix(adata.X.multiply((np.arange(adata.n_obs) != 5)[:, None]))
    without = adata[np.arange(adata.n_obs) != 5].copy()
    tl.embed(without, few_genes, **BOTH)
    for context in (None, "neighbors"):
        with pytest.warns(StampyWarning, match="1 of 120 spots have no counts"):
            tl.embed(adata, few_genes, context=context, **BOTH)
        assert not adata.obsm["X_stamp"][5].any()
        assert np.isfinite(adata.obsm["X_stamp"]).all()
        if context is None:
            np.testing.assert_allclose(np.delete(adata.obsm["X_stamp"], 5, 0), without.obsm["X_stamp"], atol=1e-5)


def test_other_spaces_are_refused(two, few_genes):
    adata = two.copy()
    tl.embed(adata, few_genes, key_added="X_direction", **BOTH)
    for center in (None, "section"):
        tl.embed(adata, few_genes, **BOTH | {"center": center})
        with pytest.raises(ValueError, match=r"center='direction'.*cosines between them are meaningless"):
            tl.retrieve(adata, query="gene", target="gene", embedding_key="X_direction", reference_key="X_stamp",
                        reference=adata)  # fmt: skip
    with pytest.raises(ValueError, match=r"is centred .center='direction'"):
        tl.score(adata, list(adata.var_names[:20]), model=few_genes, modality="gene", embedding_key="X_direction")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "image"}, "only for genes, but the modality is 'image'.*center='section'"),
        ({"modality": "fused"}, "only for genes, but the modality is 'fused'.*modality='gene'"),
        (
            {"modality": None},
            "only for genes, but the modality is 'fused'.*modality='gene'",
        ),
        ({"model": "pca"}, "'pca' does not have. Use center='section'"),
        ({"model": "pixels", "modality": None}, "the modality is 'image'"),
        ({"level": "feature"}, "needs level='embedding'"),
    ],
)
def test_what_cannot_be_embedded_so(toy, options, message):
    with pytest.raises(ValueError, match=message):
        tl.embed(toy, **{**GENES, "center": "direction"} | options)
    assert "X_stamp" not in toy.obsm


def test_models_without_sums_of_genes_are_refused(toy, model):
    with pytest.raises(ValueError, match=r"needs features that are sums of gene vectors.*'small' has none"):
        tl.embed(toy, model, center="direction", **GENES)


def test_bags_without_a_gate_of_ranks_are_refused(toy, vocabulary, small_model):
    bag = small_model(vocabulary, pooling="bag")
    with pytest.raises(ValueError, match="one gate per rank"):
        tl.embed(toy, bag, center="direction", **GENES)
    with pytest.raises(ValueError, match="one gate per rank"):
        train.adapt(bag, toy)


def test_image_that_is_ignored_by_default_does_not_matter(toy, few_genes):
    with pytest.warns(StampyWarning, match="has no image encoder: only genes are embedded"):
        found = tl.embed(toy, few_genes, center="direction", copy=True, **QUIET)
    np.testing.assert_array_equal(
        found.obsm["X_stamp"], tl.embed(toy, few_genes, center="direction", copy=True, **GENES).obsm["X_stamp"]
    )


def test_sections_that_cannot_be_centred(two, few_genes):
    with pytest.raises(ValueError, match="center='direction' needs two spots with counts in every section"):
        tl.embed(two[:61].copy(), few_genes, **BOTH)
    same = two[:60].copy()
    same.X = sp.csr_matrix(two.X)[np.zeros(60, dtype=int)]
    with pytest.raises(ValueError, match="leaves nothing of section 'toy_1': all its spots have the same genes"):
        tl.embed(same, few_genes, **BOTH)


@pytest.mark.parametrize("context", [None, "neighbors"])
def test_evaluation_recomputes_the_vectors(few_genes, context):
    both = datasets.toy(n_spots=200, n_sections=2, image=False, rng=3)
    tl.embed(both, few_genes, context=context, **BOTH)
    job = job_of(both, "X_stamp", None, few_genes)
    np.testing.assert_allclose(job(both.copy()), both.obsm["X_stamp"], atol=1e-6)
    options = {"library_key": "section", "n_splits": 1, "model": few_genes}
    tl.evaluate(both, "X_stamp", **options)
    assert both.uns["stamp_evaluate"]["scores"].loc["X_stamp", "thinned"]
    with pytest.warns(StampyWarning, match="100 of 400 spots"):  # the only warning
        tl.evaluate(both, "X_stamp", max_spots=100, **options)
    assert both.uns["stamp_evaluate"]["scores"].loc["X_stamp", "thinned"]


def test_both_ways_of_centring_are_evaluated_together(two, few_genes):
    adata = two.copy()
    for center in ("section", "direction"):
        tl.embed(adata, few_genes, key_added=f"X_{center}", **BOTH | {"center": center})
    tl.evaluate(adata, ["X_section", "X_direction"], library_key="section", n_splits=1, model=few_genes)
    scores = adata.uns["stamp_evaluate"]["scores"]
    assert scores.loc[["X_section", "X_direction"], "thinned"].all()
    assert scores.loc["X_section", "score"] != scores.loc["X_direction", "score"]
    verdict = adata.uns["stamp_evaluate"]["verdict"]
    assert "['X_section', 'X_direction'] are centred by section" in verdict
    assert "scores are too low" in verdict
    one = adata[adata.obs["section"] == adata.obs["section"].iloc[0]].copy()
    tl.embed(one, few_genes, **BOTH)
    tl.evaluate(one, library_key="section", n_splits=1, model=few_genes, keys="X_stamp")
    assert "centred" not in one.uns["stamp_evaluate"]["verdict"]


def test_resumed_run_is_the_same_and_other_centring_is_refused(two, few_genes, tmp_path):
    whole = tl.embed(two, few_genes, copy=True, **BOTH).obsm["X_stamp"]
    for _ in range(2):
        found = tl.embed(two, few_genes, resume=tmp_path / "direction", copy=True, **BOTH).obsm["X_stamp"]
        np.testing.assert_array_equal(found, whole)
    tl.embed(two, few_genes, resume=tmp_path / "plain", copy=True, **GENES)
    for folder, center, message in (
        ("direction", "section", "center: 'direction' there, None now"),
        ("plain", "direction", "center: None there, 'direction' now"),
    ):
        with pytest.raises(ValueError, match=message):
            tl.embed(two, few_genes, resume=tmp_path / folder, **BOTH | {"center": center})


def test_cohorts_and_the_command_line(two, few_genes, tmp_path, capsys):
    part = two[each(two)[0]].copy()
    expected = tl.embed(part, center="direction", copy=True, **GENES).obsm["X_stamp"]
    part.write_h5ad(tmp_path / "a.h5ad")
    arguments = ["--modality", "gene", "--center", "direction", "--device", "cpu", "--quiet"]
    assert main(["embed", str(tmp_path / "a.h5ad"), str(tmp_path / "b.h5ad"), *arguments]) in (0, None)
    table = tl.embed_sections(
        [tmp_path / "a.h5ad"], tmp_path / "out", n_workers=1, center="direction", contents="results", **GENES
    )
    import anndata as ad

    for path in (tmp_path / "b.h5ad", tmp_path / "out" / table["output"][0]):
        written = ad.read_h5ad(path)
        np.testing.assert_allclose(written.obsm["X_stamp"], expected, atol=1e-6)
        assert written.uns["stamp"]["X_stamp"]["center"] == "direction"
