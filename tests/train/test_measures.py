"""Measures of stage 1 by kind of position (masked, replaced, kept), compared with frequency baselines."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stampy import datasets, models, pl, train
from stampy.cli import main as cli
from stampy.models._kernels.cross_entropy import cross_entropy_by_kind, linear_cross_entropy
from stampy.train._baselines import ranks_of_own, references, ridge_ranks, tile_features
from stampy.train._pretrain_step import KINDS, Reconstruction
from stampy.train._rank_order import level_places, order_guesses

STAGE1 = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 48, "tied_heads": True,
          "groups_per_batch": 4, "lr": 1e-2, "embedding": 12}  # fmt: skip
QUIET = {"device": "cpu", "progress": False}


# The loss by kind


@pytest.mark.parametrize("kernel", ["torch", "liger"])
def test_sums_by_kind_are_those_of_the_rows(kernel, monkeypatch):
    def plain(hidden, weight, bias, targets):
        return F.cross_entropy(hidden @ weight.T + bias, targets)

    monkeypatch.setattr("stampy.models._kernels.cross_entropy._liger", plain)
    monkeypatch.setattr("stampy.models._kernels.cross_entropy.kernel_for", lambda kernel, *_: kernel)
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (torch.randn(*s, generator=generator).requires_grad_() for s in ((40, 6), (30, 6), (30,)))
    targets, kinds = torch.randint(30, (40,), generator=generator), torch.arange(40) % 4
    mean, sums = cross_entropy_by_kind(hidden, weight, bias, targets, kinds, 5, kernel=kernel)
    rows = F.cross_entropy(hidden @ weight.T + bias, targets, reduction="none").detach()
    torch.testing.assert_close(sums, torch.stack([rows[kinds == k].sum() for k in range(5)]))
    assert not sums.requires_grad
    mean.backward()
    grads = [t.grad.clone() for t in (hidden, weight, bias)]
    for t in (hidden, weight, bias):
        t.grad = None
    linear_cross_entropy(hidden, weight, bias, targets).backward()
    for grad, t in zip(grads, (hidden, weight, bias), strict=True):
        torch.testing.assert_close(grad, t.grad)


def test_all_selected_positions_may_be_masked(model):
    config = train.PretrainConfig.of({**STAGE1, "max_tokens": 64, "mask_share": 1})
    tokens = torch.arange(4 * 9 * 64).view(4, 9, 64) % 700 + 30
    batch = {"tokens": tokens, "positions": torch.arange(64)}
    counts = Reconstruction(model, config, igr_steps=0).pieces(batch, 0)[0]["counts"]
    assert counts["igr_masked"] == counts["igr"] > 300


def test_heads_start_at_the_frequency_of_genes(toy, vocabulary, tmp_path):
    """From there, the first loss is that of guessing by corpus frequency."""
    settings = {**STAGE1, "head_bias": "frequency", "lr": 1e-9, "min_lr": 0.0, "mask_share": 1}
    train.pretrain(toy, tmp_path, vocabulary=vocabulary, config=settings, **QUIET)
    known = json.loads((tmp_path / "data.json").read_text())["references"]["corpus_frequency"]
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.mean([step["igr"] for step in steps]) == pytest.approx(known, abs=0.1)
    assert steps[-1]["cgr"] == pytest.approx(known, abs=0.25)


def test_a_corpus_is_measured_as_its_sections_are(toy, vocabulary, model, tmp_path):
    """Tokens are the same; tiles of a lossless corpus, too."""
    corpus = train.Corpus.build(
        toy, tmp_path, vocabulary=vocabulary, max_tokens=64, codec="zstd", n_workers=1, progress=False
    )
    expected = train.evaluate(model, toy, n_groups=3, n_spots=40, device="cpu")
    found = train.evaluate(model, tmp_path, n_groups=3, n_spots=40, device="cpu")
    assert "recall_at_10" in found
    pd.testing.assert_frame_equal(found, expected)
    with pytest.raises(ValueError, match="was built with another vocabulary"):
        train.evaluate("stampy-mini", corpus, n_groups=1, device="cpu")


def test_masking_kind_is_inferred_from_the_input(model):
    config = train.PretrainConfig.of({**STAGE1, "max_tokens": 64})
    stage = Reconstruction(model, config, igr_steps=0)
    tokens = torch.arange(4 * 9 * 64).view(4, 9, 64) % 700 + 30
    batch = {"tokens": tokens, "positions": torch.arange(64)}
    counts = stage.pieces(batch, 0)[0]["counts"]
    assert sum(counts[k] for k in KINDS) == counts["igr"]
    shares = [counts[k] / counts["igr"] for k in KINDS]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.05)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_run_logs_each_kind_and_their_mean_is_the_loss(accumulate, toy, tmp_path):
    train.pretrain(toy, tmp_path, config=STAGE1 | {"accumulate": accumulate}, loggers=("csv",), **QUIET)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["igr"] == pytest.approx(
            0.8 * line["igr_masked"] + 0.1 * line["igr_replaced"] + 0.1 * line["igr_kept"], abs=0.15
        )
        assert line["loss"] == pytest.approx(line["igr"] + line.get("cgr", 0), rel=1e-5)
    assert "igr_masked" in (tmp_path / "metrics.csv").read_text().splitlines()[0]


def test_copying_model_is_detected():
    """Trained to copy, its loss at kept positions falls; that at masked ones does not."""
    gene = {"n_genes": 50, "width": 64, "depth": 1, "heads": 2, "feedforward": 8, "max_tokens": 20}
    gene = models.GeneConfig(**gene, tied_heads=True, norm="pre")
    copier = models.Stamp(models.StampConfig(gene=gene, embedding=4))
    with torch.no_grad():
        copier.gene.embeddings.weight.copy_(20 * torch.eye(85, 64).roll(0))
        copier.gene.embeddings.weight[64:] = torch.randn(21, 64, generator=torch.Generator().manual_seed(0)) * 3
        copier.gene.positional_embedding.weight.zero_()
        for layer in copier.gene.layers:
            for last in (layer.self_attn.out_proj, layer.linear2):
                last.weight.zero_()
                last.bias.zero_()
    stage = Reconstruction(copier, train.PretrainConfig(max_tokens=20), igr_steps=9)
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(np.stack([rng.permutation(33)[:20] + 30 for _ in range(72)])).view(8, 9, 20)
    (piece,) = stage.pieces({"tokens": tokens, "positions": torch.arange(20)}, 0)
    _, sums = stage.scored(piece)
    masked, _, kept = (sums[i] / piece["counts"][k] for i, k in enumerate(KINDS))
    assert kept < 0.1
    assert masked > np.log(33)


# What guessing gives


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 4), st.integers(2, 30))
def test_references_are_ordered_and_exact(seed, n_sections, length):
    rng = np.random.default_rng(seed)
    tokens = {str(i): np.stack([rng.permutation(40)[:length] + 30 for _ in range(12)]) for i in range(n_sections)}
    found = references(tokens, 70, fraction=0.3, seed=0)
    everything = np.concatenate([t.ravel() for t in tokens.values()])
    share = np.bincount(everything, minlength=70) / everything.size
    assert found["corpus_frequency"] == pytest.approx(-np.log(share[everything]).mean())
    assert found["section_frequency"] <= found["corpus_frequency"] + 1e-9
    assert found["section_frequency_unseen"] <= found["section_frequency"] + 0.6


def test_unseen_genes_alone_explain_a_spot_that_shows_all_others():
    """All spots have the same genes: hidden genes are among the few that are not visible."""
    tokens = {"a": np.tile(np.arange(30, 70), (50, 1))}
    found = references(tokens, 70, fraction=0.15, seed=0)
    assert found["corpus_frequency"] == pytest.approx(np.log(40))
    assert found["section_frequency_unseen"] == pytest.approx(np.log(6), abs=0.15)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000))
def test_order_of_equal_counts_tells_hidden_genes_and_random_order_does_not(seed):
    """Spots show random genes. Sorted by usual level, a hidden one lies between its neighbours; shuffled, anywhere."""
    rng = np.random.default_rng(seed)
    divisors = rng.permutation(400) + 1.0
    shown = np.stack([rng.permutation(400)[:60] for _ in range(80)])
    ordered = np.take_along_axis(shown, np.argsort(divisors[shown], axis=1), axis=1) + 30
    found = references({"a": ordered}, 430, fraction=0.15, seed=seed, divisors=divisors)
    assert found["section_frequency_order"] == pytest.approx(np.log(400 * 2 / 60), abs=0.4)
    shuffled = references({"a": shown + 30}, 430, fraction=0.15, seed=seed, divisors=divisors)
    assert shuffled["section_frequency_order"] == pytest.approx(shuffled["section_frequency"], abs=0.1)


def test_order_guesses_by_hand():
    """Levels 10 < 20 < 30 < 40 < 50; the hidden second of five tokens lies between the first and the third."""
    divisors = np.array([30.0, 10, 50, 20, 40])
    tokens, hidden = np.array([1, 3, 0, 4, 2]) + 30, np.array([False, True, False, False, False])
    share = np.zeros(35)
    share[30:] = 0.1, 0.2, 0.1, 0.4, 0.2
    one, two, *_ = order_guesses(tokens, hidden, share, level_places(divisors))[0, :3]
    assert (one, two) == pytest.approx((0.4, 1.0))  # gene 3 alone lies between 10 and 30
    descending = order_guesses(tokens[::-1], hidden[::-1], share, level_places(divisors))[0]
    assert descending[0] == 0.4
    assert descending[1] == 0


def test_a_run_writes_its_references_and_the_plot_draws_them(toy, tmp_path):
    train.pretrain([toy, datasets.toy(n_spots=60, n_genes=500, rng=1)], tmp_path, config=STAGE1, **QUIET)
    known = json.loads((tmp_path / "data.json").read_text())
    assert known["references"]["section_frequency"] < known["references"]["corpus_frequency"]
    assert known["spots"] == {"section 0": 120, "section 1": 60}
    axes = {ax.get_title(): ax for ax in pl.training(tmp_path)}
    labels = [line.get_label() for line in axes["igr at masked positions"].get_lines()]
    assert "_in-section frequency" in labels
    assert "_the same, unseen genes" in labels
    assert "_the same, by the order of tokens" in labels
    heights = [line.get_ydata()[0] for line in axes["cgr"].get_lines() if "frequency" in str(line.get_label())]
    assert heights == pytest.approx([known["references"][k] for k in ("corpus_frequency", "section_frequency")])
    assert not any("frequency" in str(line.get_label()) for line in axes["igr"].get_lines())


# Recall compared with a linear model


def test_ties_count_as_nearer():
    x = np.eye(4)
    assert ranks_of_own(x, x, np.arange(4)).tolist() == [0, 0, 0, 0]
    assert ranks_of_own(np.ones((4, 2)), np.ones((4, 2)), np.arange(4)).tolist() == [3, 3, 3, 3]


@pytest.mark.parametrize("n_sections", [1, 3])
def test_ridge_recovers_colour_signal(n_sections):
    """Genes that depend on the colour of the tile non-linearly, and uninformative tiles."""
    rng = np.random.default_rng(0)
    tokens, features, xy = {}, {}, {}
    for name in map(str, range(n_sections)):
        place = rng.random(80)
        order = np.argsort(np.abs(place[:, None] - np.linspace(0, 1, 40)) + rng.normal(0, 0.01, (80, 40)), axis=1)
        tokens[name] = order[:, :20] + 30
        tiles = np.broadcast_to((place * 255).astype(np.uint8)[:, None, None, None], (80, 16, 16, 3))
        features[name], xy[name] = tile_features(tiles), rng.random((80, 2))
    ranks = ridge_ranks(features, tokens, xy, 70)
    assert np.mean([(r < 10).mean() for r in ranks.values()]) > 0.25  # chance: 0.125
    nothing = {k: np.zeros_like(v) for k, v in features.items()}
    chance = [(r < 10).mean() for r in ridge_ranks(nothing, tokens, xy, 70).values()]
    assert np.mean(chance) < 0.15


def test_evaluate_measures_both_stages(toy, model, tmp_path, capsys):
    blind = datasets.toy(n_spots=40, rng=3)
    del blind.uns["spatial"]
    table = train.evaluate(model, [toy, blind], n_groups=3, n_spots=50, device="cpu")
    assert list(table.index) == ["section 0", "section 1", "all"]
    row = table.loc["section 0"]
    assert row["section_frequency"] < row["corpus_frequency"]
    assert row["section_frequency_order"] <= row["section_frequency"] + 0.1
    assert row[["igr_masked", "igr_replaced", "igr_kept", "cgr"]].notna().all()
    assert (row["n_spots"], row["recall_at_10_chance"]) == (50, 0.2)
    assert 0 <= row["recall_at_10"] <= row["recall_at_50"] == 1
    assert np.isnan(table.loc["section 1", "recall_at_10"])
    assert train.evaluate(model, [toy, blind], n_groups=3, n_spots=50, device="cpu").equals(table)
    models.save(model, tmp_path / "m")
    toy.write_h5ad(tmp_path / "a.h5ad")
    command = ["evaluate", str(tmp_path / "m"), str(tmp_path / "a.h5ad"), "--out", str(tmp_path / "t.csv")]
    assert cli.main([*command, "--n-groups", "2", "--n-spots", "20", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "igr_masked" in out
    assert "recall_at_10_ridge" in out
    assert "section_frequency_order" in (tmp_path / "t.csv").read_text()
