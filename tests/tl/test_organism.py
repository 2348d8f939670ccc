"""Mouse sections with a human model."""

import numpy as np
import pandas as pd
import pytest

from stampy import pp, tl

QUIET = {"show_progress_bar": False, "device": "cpu"}


@pytest.fixture
def mouse(toy):
    """The toy section with its genes named as those of mouse, without Ensembl ids."""
    section = toy.copy()
    section.var = pd.DataFrame(index=[name.capitalize() for name in toy.var_names])
    return section


def test_mouse_is_embedded_by_orthologs_and_var_stays(mouse, toy, model):
    before = mouse.var.copy()
    tl.embed(mouse, model, modality="gene", organism="mouse", **QUIET)
    pd.testing.assert_frame_equal(mouse.var, before)
    record = mouse.uns["stamp"]["X_stamp"]
    assert record["organism"] == "mouse"
    assert record["genes"]["n_matched"] > 0.8 * toy.n_vars
    named = pp.orthologs(mouse, vocabulary=pp.Vocabulary(model.genes), copy=True)
    tl.embed(named, model, modality="gene", **QUIET)
    np.testing.assert_array_equal(named.obsm["X_stamp"], mouse.obsm["X_stamp"])


def test_human_is_not_recorded(toy, model):
    assert "organism" not in tl.embed(toy, model, modality="gene", copy=True, **QUIET).uns["stamp"]["X_stamp"]


def test_resume_distinguishes_organisms(mouse, model, tmp_path):
    named = pp.orthologs(mouse, vocabulary=pp.Vocabulary(model.genes), copy=True)
    tl.embed(named, model, modality="gene", resume=tmp_path / "parts", **QUIET)
    with pytest.raises(ValueError, match="another run"):
        tl.embed(mouse, model, modality="gene", organism="mouse", resume=tmp_path / "parts", **QUIET)


def test_score_and_attribute_take_names_of_mouse(mouse, toy, model):
    tl.embed(mouse, model, modality="gene", organism="mouse", **QUIET)
    human = tl.embed(toy, model, modality="gene", copy=True, **QUIET)
    genes = [str(g) for g in toy.var_names[:6]]
    tl.score(human, genes, model=model, modality="gene", device="cpu")
    tl.score(mouse, [g.capitalize() for g in genes], model=model, modality="gene", organism="mouse", device="cpu")
    assert mouse.uns["stamp"]["stamp_score"]["genes"] == human.uns["stamp"]["stamp_score"]["genes"]
    names = [str(g) for g in mouse.var_names[:2]]
    tl.attribute(mouse, model=model, genes=names, n_spots=2, organism="mouse", **QUIET)
    assert mouse.uns["stamp"]["stamp_attribute"]["attribution"].index.tolist() == names


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("small", {"organism": "rat"}, "must be one of"),
        ("small", {"organism": "mouse", "modality": "image"}, "uses no counts"),
        ("pca", {"organism": "mouse", "modality": "gene"}, "no effect"),
    ],
)
def test_invalid_arguments_raise(mouse, model, name, options, message):
    with pytest.raises(ValueError, match=message):
        tl.embed(mouse, model if name == "small" else name, **options, **QUIET)
