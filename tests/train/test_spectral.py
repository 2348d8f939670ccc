"""Spectral starts: towers that start from axes and components of the sections."""

import numpy as np
import pytest
import torch
from scipy import sparse

from stampy import models, train
from stampy._io.sections import as_sections
from stampy.train._data import MemorySection, prepare
from stampy.train._spectral_start import ANCHORS, anomaly_of_rank, neighbor_graph, spatial_axes, start_spectral_image

GENE = {
    "width": 16,
    "depth": 1,
    "heads": 2,
    "feedforward": 16,
    "max_tokens": 64,
    "tied_heads": True,
    "embedding": 8,
    "norm": "pre",
    "rank_gate": True,
    "pooling": "sum",
    "start": "spectral",
}


@pytest.fixture(scope="module")
def section(toy, vocabulary):
    return prepare(as_sections(toy)[0], vocabulary, max_tokens=64)


def test_axes_are_the_leading_eigenvectors(section, vocabulary):
    gate, level = np.log1p(anomaly_of_rank(64)), np.log1p(vocabulary.divisors)
    axes = spatial_axes([section], gate, level, 4, seed=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-4)
    dense = np.zeros((len(section.xy), len(vocabulary)))
    for row, tokens in enumerate(section.tokens.astype(int)):
        own = tokens[tokens > 0] - 30
        dense[row, own] = gate[: len(own)] * level[own]
    dense -= dense.mean(axis=0)
    graph = neighbor_graph(section.xy).toarray()
    values, vectors = np.linalg.eigh(dense.T @ ((graph + graph.T) / 2) @ dense)
    leading = vectors[:, np.argsort(-values)[:2]]
    assert np.linalg.svd(leading.T @ axes[:, :2])[1].min() > 0.99  # the same plane


def test_axes_do_not_depend_on_the_seed(section, vocabulary):
    gate, level = np.log1p(anomaly_of_rank(64)), np.log1p(vocabulary.divisors)
    one, other = (spatial_axes([section], gate, level, 24, seed=seed) for seed in (0, 1))
    assert np.linalg.svd(one.T @ other)[1].min() > 0.999


@pytest.mark.parametrize("n_genes", [60, 400])
def test_axes_of_identical_spots_are_finite_and_orthonormal(n_genes):
    tokens = np.tile(np.arange(30, 60, dtype=np.uint16), (12, 1))
    section = MemorySection("a", np.stack(np.divmod(np.arange(12), 4), axis=1).astype(float), tokens, None)
    axes = spatial_axes([section], np.log1p(anomaly_of_rank(30)), np.ones(n_genes), 50, seed=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(50), atol=1e-4)


def test_neighbours_leave_the_spot_out_even_where_spots_coincide():
    xy = np.zeros((12, 2))
    xy[6:] += np.arange(6)[:, None]
    graph = neighbor_graph(xy, k=3)
    assert sparse.issparse(graph)
    assert graph.diagonal().sum() == 0
    np.testing.assert_allclose(graph.sum(axis=1), 1)


def test_features_start_at_the_axes(section, vocabulary, toy, tmp_path):
    frozen = {"lr": 1e-12, "min_lr": 1e-12, "epochs_igr": 1, "epochs_cgr": 0}
    model = train.pretrain(toy, tmp_path, vocabulary=vocabulary, config=GENE | frozen, device="cpu", progress=False)
    tokens = torch.from_numpy(section.tokens.astype(np.int64))
    with torch.inference_mode():
        features = model.gene_features(tokens).numpy()
    gate, level = np.log1p(anomaly_of_rank(64)), np.log1p(vocabulary.divisors)
    axes = spatial_axes([section], gate, level, 16, seed=0)
    expected = np.zeros_like(features)
    for row, found in enumerate(section.tokens.astype(int)):
        own = found[found > 0] - 30
        expected[row] = (gate[: len(own)] * level[own]) @ axes[own]
    ratio = features / expected
    np.testing.assert_allclose(ratio, np.median(ratio), rtol=2e-2)


def test_planted_domains_are_separated_at_the_start(toy, vocabulary, tmp_path):
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_score

    accuracy = {}
    for start in ("random", "spectral"):
        config = GENE | {"start": start, "lr": 1e-12, "min_lr": 1e-12, "epochs_cgr": 0}
        model = train.pretrain(
            toy, tmp_path / start, vocabulary=vocabulary, config=config, device="cpu", progress=False
        )
        section = prepare(as_sections(toy)[0], vocabulary, max_tokens=64)
        with torch.inference_mode():
            values = model.gene_embeddings(torch.from_numpy(section.tokens.astype(np.int64))).numpy()
        accuracy[start] = cross_val_score(LogisticRegression(max_iter=500), values, toy.obs["domain"], cv=3).mean()
    assert accuracy["spectral"] > 0.9
    assert accuracy["spectral"] > accuracy["random"]


def test_a_spectral_start_needs_its_architecture(toy, tmp_path):
    with pytest.raises(ValueError, match="needs norm='pre'"):
        train.pretrain(toy, tmp_path, config=GENE | {"norm": "post"}, device="cpu", progress=False)


def test_image_tower_encodes_colours_at_the_start():
    kwargs = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    encoder = models.ImageEncoder(models.ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=kwargs)).eval()
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 200, (64, 1, 1, 3))
    tiles = np.clip(colours + rng.normal(0, 20, (64, 224, 224, 3)), 0, 255).astype(np.uint8)
    start_spectral_image(encoder, torch.from_numpy(tiles), seed=0)
    with torch.inference_mode():
        features = encoder(encoder.normalize(torch.from_numpy(tiles))).feature.numpy()
    design = np.c_[features[:, :-ANCHORS], np.ones(64)]
    wanted = colours[:, 0, 0].astype(float)
    predicted = design @ np.linalg.lstsq(design, wanted, rcond=1e-4)[0]
    assert 1 - ((predicted - wanted) ** 2).sum() / ((wanted - wanted.mean(axis=0)) ** 2).sum() > 0.95


def test_a_spectral_image_tower_aligns(toy, model, tmp_path):
    gene = models.Stamp(models.StampConfig(gene=model.config.gene, embedding=12), model.genes)
    config = {
        "backbone": "vit_tiny_patch16_224",
        "start": "spectral",
        "epochs": 1,
        "pairs_per_batch": 64,
        "backbone_kwargs": {"patch_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2},
    }
    aligned = train.align(toy[:64].copy(), tmp_path, model=gene, config=config, device="cpu", progress=False)
    assert aligned.image.width == 32


def test_frozen_gene_bag_stays_while_layers_train(section, vocabulary, toy, tmp_path):
    gene = GENE | {"pooling": "bag", "frozen": ["embeddings.", "rank_gate"], "lr": 1e-2, "groups_per_batch": 2}
    frozen = {"lr": 1e-12, "min_lr": 1e-12}
    tokens = torch.from_numpy(section.tokens.astype(np.int64))
    found = []
    for name, config in (("learned", gene), ("still", gene | frozen)):
        model = train.pretrain(toy, tmp_path / name, vocabulary=vocabulary, config=config, device="cpu", progress=False)
        with torch.inference_mode():
            found.append((model.gene_features(tokens), model.gene(model.gene.ids(tokens)[0])))
    torch.testing.assert_close(found[0][0], found[1][0])
    assert not torch.allclose(found[0][1], found[1][1], atol=1e-3)
    with torch.inference_mode():  # padding and company change nothing
        half = model.gene_features(torch.nn.functional.pad(tokens[:3, :20], (0, 44)))
        torch.testing.assert_close(half, model.gene_features(tokens[:3, :20]))
        model.gene.train()
        torch.testing.assert_close(model.gene_features(tokens), found[1][0])
    with pytest.raises(ValueError, match="no parameter starts with 'embedding_'"):
        train.pretrain(toy, tmp_path / "x", vocabulary=vocabulary, config=gene | {"frozen": ["embedding_"]},
                       device="cpu", progress=False)  # fmt: skip


def test_axes_need_a_section_with_neighbours(section, vocabulary):
    few = MemorySection("few", section.xy[:8], section.tokens[:8], None)
    empty = MemorySection("empty", section.xy, np.zeros_like(section.tokens), None)
    gate, level = np.log1p(anomaly_of_rank(64)), np.log1p(vocabulary.divisors)
    with pytest.raises(ValueError, match=r"more than 8 spots with genes and coord.* of \[8, \d+\] spots"):
        spatial_axes([few, empty], gate, level, 4, seed=0)
