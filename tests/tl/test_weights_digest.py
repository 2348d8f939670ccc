"""Vectors of models that differ in nothing but their weights are told apart."""

import copy

import anndata
import numpy as np
import pytest
import torch

from stampy import StampyWarning, datasets, models, tl
from stampy.tl._embedding.encoders import digest_of_towers

QUIET = {"show_progress_bar": False}


def shifted(model, *begin):
    """The same model, with other weights whose names begin so."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name.startswith(begin):
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(len(name))))
    return other


@pytest.fixture(scope="module")
def embedded(toy, model):
    """The toy section embedded by the model and by two that differ in a tower."""
    towers = {"same": (), "gene": ("gene.",), "image": ("image.",), "both": ("gene.", "image.")}
    made = {name: shifted(model, *begin) if begin else model for name, begin in towers.items()}
    return {name: tl.embed(toy, one, copy=True, **QUIET) for name, one in made.items()}


def test_a_hash_is_of_the_weights_alone(model, tmp_path):
    found = digest_of_towers(model)
    assert set(found) == {"gene", "image"}
    assert digest_of_towers(model) == found
    models.save(model, tmp_path / "saved")
    assert digest_of_towers(models.load(tmp_path / "saved")) == found  # in memory and on disk
    gene, image = (digest_of_towers(shifted(model, begin)) for begin in ("gene.", "image."))
    assert [gene[k] == found[k] for k in ("gene", "image")] == [False, True]
    assert [image[k] == found[k] for k in ("gene", "image")] == [True, False]
    other = copy.deepcopy(model)
    other.genes.loc[3, "divisor"] *= 2
    assert digest_of_towers(other)["gene"] != found["gene"]


def test_a_hash_follows_weights_that_change_in_place(model):
    other = copy.deepcopy(model)
    before = digest_of_towers(other)
    with torch.no_grad():
        other.gene_head.bias.add_(1)
    assert digest_of_towers(other)["gene"] != before["gene"]
    assert digest_of_towers(other)["image"] == before["image"]
    other.load_state_dict(model.state_dict())
    assert digest_of_towers(other) == before
    other.gene_head.bias.data.add_(1)  # leaves no trace in torch's count of versions
    assert digest_of_towers(other)["gene"] != before["gene"]


def test_towers_of_other_states_than_tensors_have_no_hash(model, toy):
    """Such as quantised ones: they can be used, and are compared by name."""

    class Scale(torch.nn.Module):
        def get_extra_state(self):
            return {"scale": 0.5}

    other = copy.deepcopy(model)
    other.gene.scale = Scale()
    assert digest_of_towers(other) == {"image": digest_of_towers(model)["image"]}
    record = tl.embed(toy, other, copy=True, **QUIET).uns["stamp"]["X_stamp"]
    assert set(record["weights_digest"]) == {"image"}


def test_records_hold_it(embedded, model, toy, tmp_path):
    embedded["same"].write_h5ad(tmp_path / "a.h5ad")
    found = anndata.read_h5ad(tmp_path / "a.h5ad").uns["stamp"]["X_stamp"]["weights_digest"]
    assert dict(found) == digest_of_towers(model)
    alone = tl.embed(toy, "pixels", copy=True, **QUIET).uns["stamp"]["X_stamp"]["weights_digest"]
    assert set(alone) == {"image"}


@pytest.mark.parametrize(
    ("other", "query", "target", "fits"),
    [
        ("gene", "gene", "gene", False), ("gene", "image", "image", True), ("image", "gene", "gene", True),
        ("image", "image", "image", False), ("both", "image", "gene", False), ("both", "gene", "image", False),
        ("gene", "image", "gene", True),  # the image encoder is common: it was trained towards both gene encoders
        ("same", "image", "gene", True),
    ],
)  # fmt: skip
def test_retrieval_across_weights(embedded, other, query, target, fits):
    a, b = embedded["same"], embedded[other]

    def retrieve():
        return tl.retrieve(a, query=query, target=target, reference=b, k=3, copy=True, **QUIET)

    if fits:
        assert retrieve().obsm["stamp_retrieve_index"].shape == (a.n_obs, 3)
    else:
        with pytest.raises(ValueError, match=r"models of one name, .* with different weights"):
            retrieve()


def test_records_of_earlier_versions_stay_usable(embedded):
    old = embedded["both"].copy()
    del old.uns["stamp"]["X_stamp"]["weights_digest"]
    for a, b in ((embedded["same"], old), (old, embedded["same"])):
        tl.retrieve(a, query="gene", target="gene", reference=b, k=3, copy=True, **QUIET)


def test_transfer_across_weights(embedded):
    a, b = embedded["same"], embedded["both"]
    how = {"use_rep": "X_stamp_image", "method": "knn", "n_neighbors": 3, "copy": True}
    assert tl.expression(a, reference=embedded["gene"], **how).obsm["stamp_expression"].shape[0] == a.n_obs
    for rep in ("X_stamp_image", "X_stamp"):
        with pytest.raises(ValueError, match=r"`reference.obsm\['X_stamp.*different weights"):
            tl.expression(a, reference=b, **how | {"use_rep": rep})


def test_scores_and_attributions_by_other_weights(embedded, model):
    genes = model.genes["symbol"].head(20).tolist()
    a, other = embedded["same"], shifted(model, "gene.", "image.")
    assert tl.score(a, genes, model=model, copy=True).obs["stamp_score"].notna().any()
    with pytest.raises(ValueError, match="with other weights than `model` has"):
        tl.score(a, genes, model=other, copy=True)
    with pytest.raises(ValueError, match="with other weights than `model` has"):
        tl.attribute(a, model=other, target="match", n_spots=2, **QUIET)


def test_two_fits_of_pca_are_not_compared():
    sections = {name: datasets.toy(n_spots=60, rng=i, image=False) for i, name in enumerate("ab")}
    tl.embed(sections, "pca", **QUIET)
    how = {"query": "gene", "target": "gene", "k": 3, "copy": True, **QUIET}
    with pytest.raises(ValueError, match="two fits of 'pca', whose axes differ"):
        tl.retrieve(sections["a"], reference=sections["b"], **how)
    one = sections["a"]
    assert tl.retrieve(one[:30].copy(), reference=one[30:].copy(), **how).n_obs == 30


def test_sections_of_one_folder_by_two_models(toy, model, tmp_path):
    """As after an update of the model, where a run was not completed again."""
    sections = {name: toy[rows].copy() for name, rows in (("a", slice(0, 40)), ("b", slice(40, 90)))}
    how = {"n_workers": 1, "modality": "gene", **QUIET}
    tl.embed_sections(sections, tmp_path / "out", model=model, **how)
    assert dict(anndata.read_zarr(tl.collect_sections(tmp_path / "out", tmp_path / "all.zarr"))
                .uns["stamp"]["X_stamp"]["weights_digest"]) == digest_of_towers(model)  # fmt: skip
    other = tl.embed(sections["b"], shifted(model, "gene."), modality="gene", copy=True, **QUIET)
    other.write_h5ad(tmp_path / "out" / "b.h5ad")
    for store in (None, tmp_path / "more.zarr"):
        with pytest.raises(ValueError, match="`a: X_stamp` and `b: X_stamp` were made by models of one name"):
            tl.collect_sections(tmp_path / "out", store)
    assert not (tmp_path / "more.zarr").exists()


def test_joined_components_are_told_to_be_of_each_section(tmp_path):
    sections = {name: datasets.toy(n_spots=60, rng=i, image=False) for i, name in enumerate("ab")}
    tl.embed_sections(sections, tmp_path / "out", model="pca", n_workers=1, **QUIET)
    with pytest.warns(StampyWarning, match="fitted to each section"):
        store = tl.collect_sections(tmp_path / "out", tmp_path / "all.zarr")
    assert np.isfinite(anndata.read_zarr(store).obsm["X_stamp"]).all()
