"""Closed-form adaptation of a model to sections."""

import numpy as np
import pytest
import torch
from scipy import sparse

import stampy
from stampy import datasets, models, tl, train
from stampy.models._linear_gene import linear_parts, with_axes
from stampy.pp import Vocabulary
from stampy.pp._adaptation import LinearEncoder, adapt_encoder, pieces_of
from stampy.pp._linear_encoder import SpotGenes, leading_axes, neighbor_graph
from stampy.tl._embedding.adaptation import fitted

QUIET = {"show_progress_bar": False, "device": "cpu"}


@pytest.fixture(scope="module")
def mini():
    return models.load("stampy-mini", device="cpu")


@pytest.fixture(scope="module")
def section():
    return datasets.toy(n_spots=150, image=False, rng=2)


@pytest.fixture(scope="module")
def adapted(few_genes, section):
    return train.adapt(few_genes, section, strength=0.5, n_axes=16)


@pytest.fixture(scope="module")
def chosen(few_genes, section):
    """Models whose strength and number of axes were selected, by context."""
    return {context: train.adapt(few_genes, section, context=context) for context in (None, "neighbors")}


def test_axes_are_the_eigenvectors_of_the_whole_matrix():
    rng = np.random.default_rng(0)
    xy = rng.uniform(size=(60, 2))
    signal = np.sin(3 * xy) @ rng.normal(size=(2, 12))
    genes = sparse.csr_matrix((signal + 0.1 * rng.normal(size=(60, 12))).astype(np.float32))
    graph = neighbor_graph(xy)
    found = leading_axes([SpotGenes(genes, graph)], 2, rng)
    centred = genes.toarray() - genes.toarray().mean(axis=0)
    whole = centred.T @ (graph + graph.T).toarray() @ centred
    expected = np.linalg.eigh(whole)[1][:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(np.linalg.svd(found.T @ expected)[1]), 1, atol=1e-3)


def test_model_is_rebuilt_from_its_parts(few_genes, section):
    """A model that is rebuilt with its own axes gives the same vectors."""
    parts = linear_parts(few_genes)
    np.testing.assert_allclose(parts.axes.T @ parts.axes, np.eye(parts.axes.shape[1]), atol=1e-4)
    assert np.linalg.eigvalsh(parts.covariance).min() > -1e-9
    again = with_axes(few_genes, parts.axes, parts.head, parts.bias)
    expected = tl.embed(section, few_genes, modality="gene", copy=True, **QUIET).obsm["X_stamp"]
    found = tl.embed(section, again, copy=True, **QUIET).obsm["X_stamp"]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_adapted_model_embeds_the_solution(few_genes, section, adapted):
    values = tl.embed(section, adapted, copy=True, **QUIET).obsm["X_stamp"]
    vocabulary = Vocabulary(few_genes.genes)
    rng = np.random.default_rng(0)
    pieces = pieces_of(section, vocabulary.match, rng=rng)
    parts = LinearEncoder(*linear_parts(few_genes))
    found = adapt_encoder(pieces, parts, vocabulary.divisors, strength=0.5, n_axes=16, rng=rng)
    from stampy.pp._adaptation import _weighted

    features = _weighted(pieces[0].counts, pieces[0].rows, parts, vocabulary.divisors) @ found.axes
    expected = features @ found.head.T + found.bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(values, expected, atol=1e-3)


def test_strength_zero_keeps_the_space_of_the_model(few_genes, section):
    kept = train.adapt(few_genes, section, strength=0, n_axes=128)
    own, other = (linear_parts(m).axes for m in (few_genes, kept))
    np.testing.assert_allclose(np.linalg.svd(own.T @ other)[1], 1, atol=1e-2)


def test_choice_follows_the_measure_and_is_reproducible(few_genes, section, chosen):
    first, second = chosen[None], train.adapt(few_genes, section, rng=0)  # the default seed
    assert first.name == second.name
    assert first.adapted == second.adapted
    assert 0 <= first.adapted["strength"] <= 1
    assert first.adapted["n_spots"] == 150
    assert torch.equal(first.gene_head.weight, second.gene_head.weight)


def test_in_context_the_sections_axes_stand_beside_the_models(few_genes, section):
    """The first columns are the model's embedding; shares of the squared norm are those asked for."""
    made = train.adapt(few_genes, section, strength=0.2, n_axes=8, context="neighbors")
    assert made.adapted == {
        "model": "few",
        "strength": 0.2,
        "n_axes": 8,
        "n_spots": 150,
        "context": "neighbors",
    }
    plain = {**QUIET, "normalize": False, "modality": "gene", "copy": True}
    own = tl.embed(section, few_genes, **plain).obsm["X_stamp"].astype(float)
    with pytest.warns(stampy.StampyWarning, match="adapted for use in context"):
        both = tl.embed(section, made, **plain).obsm["X_stamp"].astype(float)
    assert both.shape == (150, 136)
    ratio = (both[:, :128] * own).sum() / (own * own).sum()
    np.testing.assert_allclose(both[:, :128], ratio * own, atol=2e-3 * np.abs(ratio * own).max())
    squares = np.square(both).sum(axis=0)
    assert squares[128:].sum() / squares.sum() == pytest.approx(0.2, abs=0.01)


def test_in_context_a_share_of_zero_is_the_model_and_of_one_the_sections(few_genes, section):
    section_alone = train.adapt(few_genes, section, strength=1, n_axes=8, context="neighbors")
    kept = train.adapt(few_genes, section, strength=0, context="neighbors")
    assert kept.adapted["n_axes"] == 0
    own, same = (tl.embed(section, m, copy=True, modality="gene", **QUIET).obsm["X_stamp"] for m in (few_genes, kept))
    np.testing.assert_allclose(own, same, atol=2e-3)
    assert section_alone.config.embedding == 8


def test_axes_that_strength_zero_leaves_out_are_not_ignored_in_silence(few_genes, section):
    with pytest.warns(stampy.StampyWarning, match="`n_axes=8` has no effect: `strength` is 0"):
        made = train.adapt(few_genes, section, strength=0, n_axes=8, context="neighbors")
    assert made.adapted["n_axes"] == 0
    assert made.config.embedding == 128
    assert train.adapt(few_genes, section, strength=0, n_axes=8).config.embedding == 8  # of the model's own


def test_heads_of_the_same_axes_have_other_names(few_genes, section):
    """Vectors of two shares share no space, though the axes are the same."""
    some, more = (train.adapt(few_genes, section, strength=a, n_axes=8, context="neighbors") for a in (0.2, 0.5))
    assert some.name != more.name


def test_a_strength_means_the_same_for_any_number_of_axes(few_genes, section, chosen):
    """What was chosen can be fitted again by its settings alone, as `tl.evaluate` does for half of the molecules."""
    for context, first in chosen.items():
        record = first.adapted
        again = train.adapt(few_genes, section, strength=record["strength"], n_axes=record["n_axes"], context=context)
        how = {"context": context, "copy": True, **QUIET}
        rows = [tl.embed(section, m, **how).obsm["X_stamp"].astype(float) for m in (first, again)]
        grams = [x @ x.T for x in rows]
        assert np.corrcoef(grams[0].ravel(), grams[1].ravel())[0, 1] > 0.99


def test_embed_adapts_for_use_in_context(section):
    table = section.copy()
    tl.embed(table, adapt=True, context="neighbors", **QUIET)
    assert table.uns["stamp"]["X_stamp"]["adapted"]["context"] == "neighbors"
    tl.evaluate(table, n_splits=1)
    assert "X_stamp" in table.uns["stamp_evaluate"]["scores"].index


def test_a_model_adapted_for_another_use_gives_a_warning(few_genes, section, tmp_path):
    """Silent before; the result differs from what was chosen by the label-free measure."""
    single = train.adapt(few_genes, section, strength=0.5, n_axes=8)
    in_context = train.adapt(few_genes, section, strength=0.1, n_axes=8, context="neighbors")
    tl.embed(section, single, copy=True, **QUIET)
    tl.embed(section, in_context, context="neighbors", copy=True, **QUIET)
    tl.embed(section, train.adapt(few_genes, section, strength=0, context="neighbors"), copy=True, **QUIET)  # the model
    with pytest.warns(stampy.StampyWarning, match=r"adapted for single spots.*Omit `context`, or adapt a model"):
        tl.embed(section, single, context="neighbors", copy=True, **QUIET)
    models.save(in_context, tmp_path / "mine")
    for model in (in_context, tmp_path / "mine"):
        with pytest.warns(stampy.StampyWarning, match=r"adapted for use in context.*Pass `context='neighbors'`"):
            tl.embed(section, model, copy=True, **QUIET)


def test_planted_domains_are_found_better(mini, section):
    table, adapted = section.copy(), train.adapt(mini, section, strength=0.5, n_axes=16)
    tl.embed(table, mini, modality="gene", key_added="X_packaged", **QUIET)
    tl.embed(table, adapted, key_added="X_adapted", **QUIET)
    tl.evaluate(table, ["X_packaged", "X_adapted"], n_splits=1)
    scores = table.uns["stamp_evaluate"]["scores"]["score"]
    assert scores["X_adapted"] > scores["X_packaged"]


def test_embed_adapts_in_one_call(section):
    table = section.copy()
    tl.embed(table, adapt=True, **QUIET)
    record = table.uns["stamp"]["X_stamp"]
    assert record["model"].startswith("stampy-mini, adapted ")
    assert record["adapted"]["model"] == "stampy-mini"
    assert record["modality"] == "gene"
    assert table.obsm["X_stamp"].shape == (150, record["adapted"]["n_axes"])
    np.testing.assert_allclose(np.linalg.norm(table.obsm["X_stamp"], axis=1), 1, atol=1e-5)


def test_sections_of_one_call_share_a_space_and_others_do_not(section, few_genes):
    a, b, c = (datasets.toy(n_spots=60, image=False, rng=r) for r in (5, 6, 7))
    tl.embed([a, b], few_genes, adapt=True, **QUIET)
    assert a.uns["stamp"]["X_stamp"]["model"] == b.uns["stamp"]["X_stamp"]["model"]
    tl.retrieve(a, b, query="gene", target="gene", k=3)
    tl.embed(c, few_genes, adapt=True, key_added="X_stamp", **QUIET)
    with pytest.raises(ValueError, match=r"are meaningless|not of one space"):
        tl.retrieve(c, b, query="gene", target="gene", k=3)
    with pytest.raises(ValueError, match="adapted"):
        tl.score(a, ["COL1A1", "COL1A2", "COL3A1"], model=few_genes, modality="gene")


def test_saved_adaptation_gives_the_same_vectors(adapted, section, tmp_path):
    models.save(adapted, tmp_path / "mine")
    again = models.load(tmp_path / "mine", device="cpu")
    mine, theirs = (tl.embed(section, m, copy=True, **QUIET).obsm["X_stamp"] for m in (adapted, again))
    np.testing.assert_array_equal(mine, theirs)


def test_large_sections_are_cut_to_a_piece(few_genes, section):
    assert train.adapt(few_genes, section, strength=1, n_axes=8, max_spots=100).adapted["n_spots"] == 100


def test_several_sections_of_a_table_are_each_centred(mini):
    both = datasets.toy(n_spots=120, n_sections=2, image=False, rng=3)
    pieces = pieces_of(both, Vocabulary(mini.genes).match, library_key="section", rng=np.random.default_rng(0))
    assert [len(p.xy) for p in pieces] == both.obs["section"].value_counts(sort=False).tolist()


def test_invalid_arguments_raise(few_genes, model, section):
    with pytest.raises(ValueError, match="pooling='bag'"):
        train.adapt(model, section)
    with pytest.raises(ValueError, match="50 spots or more"):
        train.adapt(few_genes, section[:20].copy())
    with pytest.raises(ValueError, match="strength"):
        train.adapt(few_genes, section, strength=1.5)
    with pytest.raises(ValueError, match="n_axes"):
        train.adapt(few_genes, section, n_axes=1)
    with pytest.raises(ValueError, match="context"):
        train.adapt(few_genes, section, context="tissue")
    with pytest.raises(ValueError, match="only genes"):
        tl.embed(section, adapt=True, modality="fused", **QUIET)
    with pytest.raises(ValueError, match="always fitted to the section"):
        tl.embed(section, "pca", adapt=True, **QUIET)
    lost = section.copy()
    del lost.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial"):
        tl.embed(lost, adapt=True, **QUIET)
    assert stampy.models.load("stampy-mini", device="cpu").adapted is None


def test_sections_without_variation_raise(section):
    empty, equal = section.copy(), section.copy()
    empty.X = sparse.csr_matrix(section.shape, dtype=np.float32)
    equal.X = sparse.csr_matrix(np.tile(section.X[0].toarray(), (section.n_obs, 1)))
    for table, message in (
        (empty, "no counts|No spot of a section has counts"),
        (equal, "same genes in the same order"),
    ):
        with pytest.raises(ValueError, match=message):
            tl.embed(table, adapt=True, **QUIET)


def test_more_axes_than_model_and_spots_have_raise(few_genes, section):
    with pytest.raises(ValueError, match="`n_axes` must be at most 278"):
        train.adapt(few_genes, section, n_axes=279)


def test_a_guessed_library_key_is_announced(few_genes):
    both = datasets.toy(n_spots=60, n_sections=2, rng=1)
    both.obsm["spatial"] = both.obsm["spatial"] + 1e5 * both.obs["section"].cat.codes.to_numpy()[:, None]
    with pytest.warns(stampy.StampyWarning, match="separated by `adata.obs\\['section'\\]`"):
        tl.embed(both, few_genes, adapt=True, **QUIET)
    assert both.uns["stamp"]["X_stamp"]["library_key"] == "section"


def test_adapt_is_a_flag(section):
    with pytest.raises(TypeError, match="`adapt` must be True or False"):
        tl.embed(section, adapt="neighbors", **QUIET)


def test_saved_adaptation_keeps_its_space_and_provenance(adapted, section, tmp_path):
    models.save(adapted, tmp_path / "mine")
    again = models.load(tmp_path / "mine", device="cpu")
    assert again.adapted == adapted.adapted
    mine, theirs = (tl.embed(section, m, copy=True, **QUIET) for m in (adapted, again))
    assert theirs.uns["stamp"]["X_stamp"]["adapted"] == adapted.adapted
    tl.retrieve(mine, theirs, query="gene", target="gene", k=3)  # one model under two names
    tl.score(theirs, section.var_names[:20].tolist(), model=adapted, modality="gene")


def panels():
    """Two sections that measure different genes."""
    both = datasets.toy(n_spots=120, n_sections=2, image=False, rng=3)
    return both[:120, :500].copy(), both[120:, 300:].copy()


def test_sections_with_other_panels_give_a_warning(few_genes):
    first, second = panels()
    with pytest.warns(stampy.StampyWarning, match=r"sections measure different genes: up to 62% of the counts"):
        train.adapt(few_genes, [first, second], strength=0.5, n_axes=8)
    train.adapt(few_genes, [first, first.copy()], strength=0.5, n_axes=8)


def test_shared_genes_are_those_of_the_fit_too(few_genes):
    """The axes were fitted to all genes, and used with the shared ones."""
    first, second = panels()
    tl.embed([first, second], few_genes, adapt=True, genes="shared", **QUIET)
    record = first.uns["stamp"]["X_stamp"]
    common = [name for name in first.var_names if name in set(second.var_names)]
    alone = [part[:, common].copy() for part in panels()]
    model = fitted(few_genes, alone, strength=record["adapted"]["strength"], n_axes=record["adapted"]["n_axes"])
    tl.embed(alone, model, **QUIET)
    grams = [x.obsm["X_stamp"].astype(float) @ x.obsm["X_stamp"].T for x in (first, alone[0])]
    assert np.corrcoef(grams[0].ravel(), grams[1].ravel())[0, 1] > 0.99


def test_no_section_to_adapt_to():
    with pytest.raises(ValueError, match="There is no section"):
        tl.embed([], adapt=True, **QUIET)


def stored_otherwise(table):
    """The same counts with shuffled columns and with entries in two parts."""
    counts, random = table.X.tocoo(), np.random.default_rng(0)
    half = np.floor(counts.data / 2)
    rows, columns = (np.concatenate([c, c]) for c in (counts.row, counts.col))
    data = np.concatenate([half, counts.data - half]).astype(np.float32)
    order = np.lexsort([random.permutation(len(rows)), rows])
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=table.n_obs))])
    found = table.copy()
    found.X = sparse.csr_matrix((data[order], columns[order], starts), table.shape)
    assert (found.X != table.X).nnz == 0
    return found


def test_equal_counts_give_equal_results_however_they_are_stored(section, few_genes):
    other = stored_otherwise(section)
    for data in (table := section.copy(), other):
        tl.embed(data, few_genes, adapt=True, **QUIET)
        tl.evaluate(data, n_splits=1, model=few_genes)
    np.testing.assert_array_equal(table.obsm["X_stamp"], other.obsm["X_stamp"])
    assert table.uns["stamp_evaluate"]["scores"].equals(other.uns["stamp_evaluate"]["scores"])


@pytest.mark.parametrize("context", [None, "neighbors"])
def test_signs_of_the_axes_do_not_depend_on_the_solver(mini, section, monkeypatch, context):
    """Eigenvectors may have either sign, for example with another number of threads."""
    how = {"strength": 0.5, "n_axes": 8, "context": context}
    first = train.adapt(mini, section, **how)
    solve = np.linalg.eigh

    def flipped(matrix):
        values, vectors = solve(matrix)
        return values, vectors * np.where(np.arange(len(values)) % 2, 1, -1)

    monkeypatch.setattr(np.linalg, "eigh", flipped)
    other = train.adapt(mini, section, **how)
    rows = [tl.embed(section, m, context=context, copy=True, **QUIET).obsm["X_stamp"] for m in (first, other)]
    np.testing.assert_allclose(rows[0], rows[1], atol=1e-4)
