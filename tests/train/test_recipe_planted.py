"""The learning runs of recipes/planted: what they compute beside training."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stampy.datasets._toy.planted import allowed_loss, hidden_genes, planted, planted_spots
from stampy.models._gene import MASK_ID

RECIPES = Path(__file__).parents[2] / "recipes" / "planted"
SIZES = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 12}


@pytest.fixture
def recipe(monkeypatch):
    """Import a script of the folder by name."""
    monkeypatch.syspath_prepend(str(RECIPES))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == RECIPES:
            del sys.modules[name]


@pytest.fixture
def tokens():
    rng = np.random.default_rng(0)
    found = np.stack([rng.permutation(20)[:12] + 30 for _ in range(18)])
    found[3, 9:] = 0
    return torch.from_numpy(found)


@torch.no_grad()
def test_bare_loop_has_the_losses_of_the_encoder(recipe, tokens):
    bare = recipe("bare")
    encoder = bare.encoder_of(20, 0, **SIZES).eval()
    torch.manual_seed(0)
    ids, hidden = bare.masked(tokens, 0.3)
    assert (ids[hidden] == MASK_ID).all()
    x_BLD = encoder(ids)
    real = tokens != 0
    for small in (True, False):
        assert torch.allclose(bare.outputs(encoder, ids, small=small)[real], x_BLD[real], atol=1e-5)
    grouped = [x.unflatten(0, (2, 9)) for x in (tokens, ids, hidden)]
    igr, cgr = bare.losses_of(encoder, *grouped, cgr=True, cgr_targets="all")
    assert float(igr) == pytest.approx(float(encoder.reconstruction(x_BLD[hidden], tokens[hidden])), rel=1e-5)
    around, own = x_BLD.unflatten(0, (2, 9))[:, 1:].mean(dim=1), grouped[0][:, 0]
    wanted = own != 0
    assert float(cgr) == pytest.approx(float(encoder.reconstruction(around[wanted], own[wanted], head="cgr")), rel=1e-4)


def test_masked_genes_are_not_visible_to_the_measured_model(recipe, tokens):
    bare = recipe("bare")
    encoder = bare.encoder_of(20, 0, **SIZES).eval()
    seen = []
    encoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    gone = (torch.rand(tokens.shape, generator=torch.Generator().manual_seed(1)) < 0.3) & (tokens != 0)
    for known in (tokens, torch.where(gone, 31, tokens)):
        bare.hidden_loss(encoder, known, gone)
    assert torch.equal(*seen)


def test_step_is_chosen_on_sections_that_are_not_reported(recipe):
    table = recipe("table")
    keys = ("step", "s", "train_igr", "choosing_masked", "reported_masked", "reported_masked_unseen")
    points = [dict(zip(keys, row, strict=True)) for row in ((1, 1, 3, 2.5, 2.9, 2.8), (2, 2, 2, 2.6, 2.1, 2.0))]
    found = table.chosen({"curve": points})
    assert (found["step"], found["masked"], found["masked_at_end"]) == (1, 2.9, 2.1)


def test_spots_as_arrays_are_those_of_sections():
    world = planted(40, 3, n_genes=30, shown=8, rng=5)
    sections, known = planted_spots(40, 3, n_genes=30, shown=8, rng=5)
    for one, two in zip(world.sections, sections, strict=True):
        assert np.array_equal(one.X.toarray(), two.counts)
    assert np.array_equal(known.states, world.programmes.states)


def test_niches_differ_in_what_occurs_together_and_not_in_means():
    sections, known = planted_spots(
        900, 6, n_genes=16, n_domains=4, n_states=4, shown=6, domain_effect=0, state_effect=3, batch_effect=0,
        together=True, rng=0,
    )  # fmt: skip
    shows = np.concatenate([s.counts > 0 for s in sections]).astype(float)
    domain = np.concatenate([s.domain for s in sections])
    means = np.stack([shows[domain == d].mean(axis=0) for d in range(4)])
    joint = np.stack([np.corrcoef(shows[domain == d].T) for d in range(4)])
    assert np.ptp(means, axis=0).mean() < 0.12
    assert np.ptp(joint, axis=0).max() > 0.6
    assert known.states.shape == (4, 4, 16)


def test_no_guess_from_visible_genes_is_better_than_the_best_possible_loss():
    """Frequency among unseen genes, and the composition without ruling out visible genes, are worse."""
    sections, known = planted_spots(300, 2, n_genes=40, shown=12, batch_effect=0.5, rng=2)
    for section in sections:
        shown = section.counts > 0
        hidden = hidden_genes(shown)
        best = allowed_loss(known, shown)
        often = np.tile(shown.mean(axis=0), (len(shown), 1)) * ~(shown & ~hidden)
        share = often / often.sum(axis=1, keepdims=True)
        assert best < -np.log(share[hidden]).mean()
        assert best < allowed_loss(known, shown, rule_out=False)
