"""Several sections in one space: centring, shared genes, and vectors without normalisation."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from stampy import StampyWarning, datasets, tl, train

QUIET = {"show_progress_bar": False, "device": "cpu", "modality": "gene"}


@pytest.fixture(scope="module")
def two():
    return datasets.toy(n_spots=60, n_sections=2, rng=3, image=False)


def parts_of(table, key="section"):
    return {name: table[table.obs[key] == name].copy() for name in table.obs[key].cat.categories}


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_sections_are_centred_each_by_itself(two, model):
    plain = tl.embed(two, model, library_key="section", copy=True, **QUIET).obsm["X_stamp"]
    found = tl.embed(two, model, library_key="section", center="section", copy=True, **QUIET)
    for name in two.obs["section"].cat.categories:
        mine = (two.obs["section"] == name).to_numpy()
        expected = unit(plain[mine] - plain[mine].mean(axis=0))
        np.testing.assert_allclose(found.obsm["X_stamp"][mine], expected, atol=1e-5)
    assert found.uns["stamp"]["X_stamp"]["center"] == "section"
    several = tl.embed(parts_of(two), model, center="section", copy=True, **QUIET)
    for name, part in several.items():
        mine = (two.obs["section"] == name).to_numpy()
        np.testing.assert_allclose(part.obsm["X_stamp"], found.obsm["X_stamp"][mine], atol=1e-5)


def test_what_is_averaged_in_context_is_centred_before(two, model):
    one = parts_of(two)[two.obs["section"].iloc[0]]
    centred = tl.embed(one, model, center="section", copy=True, **QUIET).obsm["X_stamp"]
    around = tl.embed(one, model, center="section", context="neighbors", copy=True, **QUIET).obsm["X_stamp"]
    near = np.argsort(np.linalg.norm(one.obsm["spatial"] - one.obsm["spatial"][0], axis=1), kind="stable")[:7]
    np.testing.assert_allclose(around[:1], unit(centred[near].mean(axis=0)[None]), rtol=1e-4, atol=1e-5)


def test_empty_spots_stay_empty_when_centred(two, model):
    adata = two.copy()
    adata.X = sp.csr_matrix(adata.X.multiply((np.arange(adata.n_obs) != 5)[:, None]))
    with pytest.warns(StampyWarning, match="1 of 120 spots have no counts"):
        tl.embed(adata, model, library_key="section", center="section", **QUIET)
    assert not adata.obsm["X_stamp"][5].any()
    assert np.isfinite(adata.obsm["X_stamp"]).all()


def test_section_of_one_spot_cannot_be_centred(two, model):
    adata = two[:61].copy()
    with pytest.raises(ValueError, match="two spots with counts in every section, found one in"):
        tl.embed(adata, model, library_key="section", center="section", **QUIET)


def test_principal_components_are_centred_and_keep_their_length(two):
    found = tl.embed(two, "pca", library_key="section", center="section", copy=True, **QUIET).obsm["X_stamp"]
    for name in two.obs["section"].cat.categories:
        mine = found[(two.obs["section"] == name).to_numpy()]
        np.testing.assert_allclose(mine.mean(axis=0), 0, atol=1e-5)
        assert np.linalg.norm(mine, axis=1).std() > 0


def test_centred_and_plain_vectors_are_not_comparable(two, model):
    adata = two.copy()
    tl.embed(adata, model, **QUIET)
    tl.embed(adata, model, library_key="section", center="section", key_added="X_centred", **QUIET)
    with pytest.raises(ValueError, match="center='section'"):
        tl.retrieve(adata, query="gene", target="gene", embedding_key="X_centred", reference_key="X_stamp",
                    reference=adata)  # fmt: skip
    with pytest.raises(ValueError, match="is centred"):
        tl.score(adata, list(adata.var_names[:20]), model=model, modality="gene", embedding_key="X_centred")


def panels(two, keep=slice(None, None, 2)):
    """The two sections; the second measures every other gene of the first."""
    a, b = parts_of(two).values()
    return {"a": a, "b": b[:, keep].copy()}


def test_differing_panels_warn_and_shared_genes_make_them_comparable(two, model):
    sections = panels(two)
    with pytest.warns(StampyWarning, match=r"of the counts of section 'a' .* Use genes='shared'"):
        tl.embed(sections, model, copy=True, **QUIET)
    found = tl.embed(sections, model, genes="shared", copy=True, **QUIET)
    cut = tl.embed(sections["a"][:, sections["b"].var_names].copy(), model, copy=True, **QUIET)
    np.testing.assert_allclose(found["a"].obsm["X_stamp"], cut.obsm["X_stamp"], atol=1e-6)
    assert (
        found["a"].uns["stamp"]["X_stamp"]["genes"]["shared"] == found["b"].uns["stamp"]["X_stamp"]["genes"]["shared"]
    )


def test_panels_of_one_table_are_inferred_from_the_counts(two, model):
    adata = two.copy()
    second = (adata.obs["section"] == adata.obs["section"].cat.categories[1]).to_numpy()
    measured = np.arange(adata.n_vars) % 2 == 0
    adata.X = sp.csr_matrix(adata.X.multiply(~second[:, None] | measured[None]))
    with pytest.warns(StampyWarning, match="sections measure different genes"):
        tl.embed(adata, model, library_key="section", **QUIET)
    tl.embed(adata, model, library_key="section", genes="shared", **QUIET)
    counts = np.asarray(two.X[~second].sum(axis=0)).ravel()
    rare = (~measured & (counts < 30)).sum()  # none of them in the other section may be chance
    assert adata.uns["stamp"]["X_stamp"]["genes"]["shared"] <= measured.sum() + rare < adata.n_vars


def test_sections_without_a_common_gene_share_none(two, model):
    sections = panels(two)
    sections["a"] = sections["a"][:, 1::2].copy()
    with pytest.raises(ValueError, match="genes='shared' leaves no gene"):
        tl.embed(sections, model, genes="shared", copy=True, **QUIET)


def test_vectors_without_normalisation(two, model):
    plain = tl.embed(two, model, copy=True, **QUIET).obsm["X_stamp"]
    found = tl.embed(two, model, normalize=False, copy=True, **QUIET)
    long = found.obsm["X_stamp"]
    assert np.linalg.norm(long, axis=1).std() > 1e-4
    np.testing.assert_allclose(unit(long), plain, atol=1e-5)
    assert found.uns["stamp"]["X_stamp"]["normalize"] is False


def test_evaluate_recomputes_centred_vectors(two, model, monkeypatch):
    adata = two.copy()
    tl.embed(adata, "pca", library_key="section", center="section", key_added="X_centred", **QUIET)
    tl.embed(adata, "pca", library_key="section", key_added="X_plain", **QUIET)
    tl.evaluate(adata, ["X_centred", "X_plain"], library_key="section", n_splits=1)
    scores = adata.uns["stamp_evaluate"]["scores"]
    assert scores.loc["X_centred", "mixing"] >= scores.loc["X_plain", "mixing"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center": "donor"}, "`center` must be one of"),
        ({"genes": "all"}, "`genes` must be one of"),
        ({"normalize": False, "level": "feature"}, "never normalised"),
        ({"normalize": False, "modality": "fused"}, "two concatenated unit vectors"),
        ({"genes": "shared", "modality": "image"}, "uses no counts"),
    ],
)
def test_arguments_that_conflict(two, model, options, message):
    with pytest.raises(ValueError, match=message):
        tl.embed(two, model, **{**QUIET, **options})


@pytest.mark.parametrize("options", [{"genes": "shared"}, {"normalize": False}])
def test_arguments_without_effect_on_a_baseline(two, options):
    with pytest.raises(ValueError, match="has no effect with 'pca'"):
        tl.embed(two, "pca", library_key="section", **QUIET, **options)


@pytest.fixture(scope="module")
def adapted_apart(two, few_genes):
    """The two sections, each embedded by a model adapted to it alone, with 8 axes."""
    parts = list(parts_of(two).values())
    for part in parts:
        tl.embed(part, train.adapt(few_genes, part, strength=1, n_axes=8), show_progress_bar=False, device="cpu")
    return parts


@pytest.mark.parametrize("merge", ["same", "unique"])
def test_joined_tables_of_several_models_share_no_space(adapted_apart, merge):
    joined = ad.concat(dict(zip("ab", adapted_apart, strict=True)), label="section", uns_merge=merge, index_unique="-")
    for call in (
        lambda: tl.domains(joined, 3, library_key="section"),
        lambda: tl.probe(joined, "domain", library_key="section"),
        lambda: tl.expression(joined, use_rep="X_stamp_gene", n_top_genes=5, library_key="section"),
        lambda: tl.retrieve(joined, query="gene", target="gene", library_key="section"),
        lambda: tl.evaluate(joined, "X_stamp", library_key="section"),
        lambda: tl.score(joined, ["COL1A1", "COL1A2", "COL3A1"], modality="gene"),
    ):
        with pytest.raises(ValueError, match="joins embeddings of several models"):
            call()


def test_tables_embedded_in_one_call_can_be_joined(two, few_genes):
    parts = parts_of(two)
    tl.embed(parts, few_genes, adapt=True, show_progress_bar=False, device="cpu")
    joined = ad.concat(parts, label="section", uns_merge="same", index_unique="-")
    tl.domains(joined, 3, library_key="section")


def test_expression_within_a_table_compares_vectors_of_one_space(adapted_apart, few_genes):
    table = adapted_apart[0].copy()
    small = train.adapt(few_genes, table, strength=0.5, n_axes=8)
    tl.embed(table, small, key_added="X_other", show_progress_bar=False, device="cpu")
    with pytest.raises(ValueError, match="cosines between them are meaningless"):
        tl.expression(table, use_rep="X_stamp", reference_rep="X_other_gene", method="knn", n_neighbors=5)
