"""Closed-form adaptation of a model to sections."""

import numpy as np
import pytest
import torch
from scipy import sparse

import stampy
from stampy import datasets, models, tl, train
from stampy.models._linear_gene import linear_parts, with_axes
from stampy.pp import Vocabulary
from stampy.pp._linear_encoder import LinearEncoder, SpotGenes, adapt_encoder, leading_axes, neighbor_graph, pieces_of

QUIET = {"show_progress_bar": False, "device": "cpu"}


@pytest.fixture(scope="module")
def mini():
    return models.load("stampy-mini", device="cpu")


@pytest.fixture(scope="module")
def section():
    return datasets.toy(n_spots=150, image=False, rng=2)


@pytest.fixture(scope="module")
def adapted(mini, section):
    return train.adapt(mini, section, strength=0.5, n_axes=16)


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


def test_model_is_rebuilt_from_its_parts(mini, section):
    """A model that is rebuilt with its own axes gives the same vectors."""
    _, level, axes, covariance = linear_parts(mini)
    np.testing.assert_allclose(axes.T @ axes, np.eye(axes.shape[1]), atol=1e-4)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9
    rows = slice(30, 30 + len(level))
    table = mini.gene.embeddings.weight.detach()[rows].numpy()
    back = axes.T @ (table / level[:, None])  # the model's features are these of the axes' features
    head = mini.gene_head.weight.detach().numpy() @ back.T / mini.config.gene.max_tokens
    again = with_axes(mini, axes, head, mini.gene_head.bias.detach().numpy())
    expected = tl.embed(section, mini, modality="gene", copy=True, **QUIET).obsm["X_stamp"]
    found = tl.embed(section, again, copy=True, **QUIET).obsm["X_stamp"]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_adapted_model_embeds_the_solution(mini, section, adapted):
    values = tl.embed(section, adapted, copy=True, **QUIET).obsm["X_stamp"]
    vocabulary = Vocabulary(mini.genes)
    rng = np.random.default_rng(0)
    pieces = pieces_of(section, vocabulary.match, rng=rng)
    parts = LinearEncoder(*linear_parts(mini))
    found = adapt_encoder(pieces, parts, vocabulary.divisors, strength=0.5, n_axes=16, rng=rng)
    from stampy.pp._linear_encoder import _weighted

    features = _weighted(pieces[0].counts, pieces[0].rows, parts, vocabulary.divisors) @ found.axes
    expected = features @ found.head.T + found.bias
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(values, expected, atol=1e-3)


def test_strength_zero_keeps_the_space_of_the_model(mini, section):
    kept = train.adapt(mini, section, strength=0, n_axes=128)
    own, other = (linear_parts(m)[2] for m in (mini, kept))
    np.testing.assert_allclose(np.linalg.svd(own.T @ other)[1], 1, atol=1e-2)


def test_choice_follows_the_measure_and_is_reproducible(mini, section):
    first, second = (train.adapt(mini, section, rng=1) for _ in range(2))
    assert first.name == second.name
    assert first.adapted == second.adapted
    assert 0 <= first.adapted["strength"] <= 1
    assert first.adapted["n_spots"] == 150
    assert torch.equal(first.gene_head.weight, second.gene_head.weight)


def test_planted_domains_are_found_better(mini, section, adapted):
    table = section.copy()
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


def test_sections_of_one_call_share_a_space_and_others_do_not(section, mini):
    a, b, c = (datasets.toy(n_spots=60, image=False, rng=r) for r in (5, 6, 7))
    tl.embed([a, b], mini, adapt=True, **QUIET)
    assert a.uns["stamp"]["X_stamp"]["model"] == b.uns["stamp"]["X_stamp"]["model"]
    tl.retrieve(a, b, query="gene", target="gene", k=3)
    tl.embed(c, mini, adapt=True, key_added="X_stamp", **QUIET)
    with pytest.raises(ValueError, match=r"are meaningless|not of one space"):
        tl.retrieve(c, b, query="gene", target="gene", k=3)
    with pytest.raises(ValueError, match="adapted"):
        tl.score(a, ["COL1A1", "COL1A2", "COL3A1"], model=mini, modality="gene")


def test_saved_adaptation_gives_the_same_vectors(adapted, section, tmp_path):
    models.save(adapted, tmp_path / "mine")
    again = models.load(tmp_path / "mine", device="cpu")
    mine, theirs = (tl.embed(section, m, copy=True, **QUIET).obsm["X_stamp"] for m in (adapted, again))
    np.testing.assert_array_equal(mine, theirs)


def test_large_sections_are_cut_to_a_piece(mini, section):
    assert train.adapt(mini, section, strength=1, n_axes=8, max_spots=100).adapted["n_spots"] == 100


def test_several_sections_of_a_table_are_each_centred(mini):
    both = datasets.toy(n_spots=120, n_sections=2, image=False, rng=3)
    pieces = pieces_of(both, Vocabulary(mini.genes).match, library_key="section", rng=np.random.default_rng(0))
    assert [len(p.xy) for p in pieces] == both.obs["section"].value_counts(sort=False).tolist()


def test_invalid_arguments_raise(mini, model, section):
    with pytest.raises(ValueError, match="pooling='bag'"):
        train.adapt(model, section)
    with pytest.raises(ValueError, match="50 spots or more"):
        train.adapt(mini, section[:20].copy())
    with pytest.raises(ValueError, match="strength"):
        train.adapt(mini, section, strength=1.5)
    with pytest.raises(ValueError, match="n_axes"):
        train.adapt(mini, section, n_axes=1)
    with pytest.raises(ValueError, match="only genes"):
        tl.embed(section, adapt=True, modality="fused", **QUIET)
    with pytest.raises(ValueError, match="always fitted to the section"):
        tl.embed(section, "pca", adapt=True, **QUIET)
    lost = section.copy()
    del lost.obsm["spatial"]
    with pytest.raises(KeyError, match="spatial"):
        tl.embed(lost, adapt=True, **QUIET)
    assert stampy.models.load("stampy-mini", device="cpu").adapted is None
