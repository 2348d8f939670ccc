"""Results in AnnData are written completely or not at all, and stale results are removed."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import stampy
from stampy import datasets, pp, tl
from stampy.tl._results import Result, check_finite, write_result

QUIET = {"show_progress_bar": False, "device": "cpu"}


@pytest.fixture(scope="module")
def drawn():
    return datasets.toy(n_spots=80, rng=0)


@pytest.fixture(scope="module")
def fused(drawn, model):
    """Vectors of genes and of images."""
    return tl.embed(drawn, model, copy=True, **QUIET)


@pytest.fixture
def section(drawn):
    adata = drawn.copy()
    adata.obsm["X_a"] = adata.X[:, :20].toarray()
    adata.obsm["X_b"] = adata.X[:, 20:40].toarray()
    return adata


def state(adata):
    """Everything but X, to compare."""
    slots = {name: dict(getattr(adata, name)) for name in ("obsm", "layers")}
    return slots | {"obs": adata.obs.copy(), "uns": dict(adata.uns)}


def same(one, other):
    return (
        one["obs"].equals(other["obs"])
        and all(one[s].keys() == other[s].keys() for s in ("obsm", "layers", "uns"))
        and all(one["obsm"][k] is other["obsm"][k] or np.array_equal(one["obsm"][k], other["obsm"][k], equal_nan=True)
                for k in one["obsm"])
    )  # fmt: skip


@pytest.mark.parametrize("copy", [False, True])
def test_another_modality_removes_earlier_results(section, model, copy):
    tl.embed(section, model, **QUIET)
    assert {"X_stamp", "X_stamp_gene", "X_stamp_image"} <= set(section.obsm)
    again = tl.embed(section, model, modality="gene", copy=copy, **QUIET) or section
    assert {k for k in again.obsm if k.startswith("X_stamp")} == {"X_stamp", "X_stamp_gene"}
    assert again.uns["stamp"]["X_stamp"]["modality"] == "gene"
    assert again.uns["stamp"]["X_stamp"]["written"] == {"obsm": ["X_stamp_gene", "X_stamp"]}
    assert ("X_stamp_image" in section.obsm) == copy


def test_record_of_an_earlier_version_names_its_results(section, model):
    tl.embed(section, model, **QUIET)
    del section.uns["stamp"]["X_stamp"]["written"]
    tl.embed(section, model, modality="image", **QUIET)
    assert {k for k in section.obsm if k.startswith("X_stamp")} == {"X_stamp", "X_stamp_image"}


def test_results_of_several_sections_and_a_collection(section, model):
    from anndata.experimental import AnnCollection

    other = datasets.toy(n_spots=80, rng=1)
    tl.embed([section, other], model, **QUIET)
    both = AnnCollection({"a": section, "b": other}, join_obsm="inner", join_vars="inner", index_unique="-")
    tl.embed(both, model, modality="gene", **QUIET)
    for part in (section, other, both):
        assert {k for k in part.obsm if k.startswith("X_stamp")} == {"X_stamp", "X_stamp_gene"}


def test_results_of_a_spatialdata(section, model):
    from spatialdata import SpatialData

    sdata = SpatialData(tables={"table": section})
    tl.embed(sdata, model, **QUIET)
    copied = tl.embed(sdata, model, modality="gene", copy=True, **QUIET)
    assert "X_stamp_image" not in copied.tables["table"].obsm
    assert "X_stamp_image" in sdata.tables["table"].obsm


def test_results_survive_a_file(section, model, tmp_path):
    tl.embed(section, model, **QUIET)
    tl.probe(section, "domain", use_rep=["X_a", "X_b"])
    section.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    tl.embed(again, model, modality="gene", **QUIET)
    tl.probe(again, "domain", use_rep="X_a")
    assert "X_stamp_image" not in again.obsm
    assert [c for c in again.obs if c.startswith("probe")] == ["probe_X_a", "probe_fold"]


def test_probe_of_fewer_embeddings(section):
    tl.probe(section, "domain", use_rep=["X_a", "X_b"])
    section.obs["probe_note"] = "mine"
    tl.probe(section, "domain", use_rep="X_b")
    assert [c for c in section.obs if c.startswith("probe")] == ["probe_X_b", "probe_fold", "probe_note"]


def test_slots_of_another_tool_under_the_same_key(section):
    tl.expression(section, use_rep="X_a", n_top_genes=5, key_added="mine")
    with pytest.warns(stampy.StampyWarning, match=r"obsm\['mine'\].* of `stampy.tl.expression` are removed"):
        tl.domains(section, use_rep="X_b", key_added="mine")
    assert "mine" in section.obs
    assert not {"mine", "mine_measured"} & set(section.obsm)
    assert "mine_fold" not in section.obs


def test_attribution_without_the_single_spots(section, model):
    settings = {"model": model, "n_spots": 2, "max_rank": 3, **QUIET}
    tl.attribute(section, per_spot=True, **settings)
    assert "stamp_attribute" in section.layers
    tl.attribute(section, **settings)
    assert "stamp_attribute" not in section.layers


def test_dependents_are_named_once_they_are_stale(section, model):
    tl.embed(section, model, **QUIET)
    tl.domains(section, 3, method="kmeans")
    tl.retrieve(section, k=2, show_progress_bar=False)
    tl.domains(section, 3, method="kmeans", use_rep="X_a", key_added="other")
    section.uns["neighbors"] = {"params": {"use_rep": "X_stamp"}}
    tl.embed(section, model, **QUIET)  # the same values: nothing is stale
    with pytest.warns(stampy.StampyWarning, match="earlier values") as found:
        tl.embed(section, model, modality="gene", **QUIET)
    (message,) = [str(w.message) for w in found]
    assert "'stamp_domain'" in message
    assert "'stamp_retrieve'" in message
    assert "'neighbors'" in message
    assert "'other'" not in message


@pytest.mark.parametrize("slot", ["spatial", "stamp"])
def test_coordinates_images_and_records_are_not_replaced(section, slot):
    before = state(section)
    with pytest.raises(ValueError, match="must not be replaced"):
        write_result(section, Result(slot, {}, uns={slot: 1}), copy=False)
    with pytest.raises(ValueError, match="holds the coordinates"):
        pp.tiles(section, size_px=16, key_added="spatial")
    assert same(before, state(section))


def test_key_and_place_of_an_embedding_are_checked_before_the_model_is_loaded(section, tmp_path, monkeypatch):
    monkeypatch.setattr("stampy.tl._embed.loaded_model", lambda *_: pytest.fail("the model was loaded"))
    with pytest.raises(ValueError, match="must not be replaced"):
        tl.embed(section, key_added="spatial", modality="gene", **QUIET)
    section.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match="to_memory"):
        tl.embed(backed[:20], modality="gene", **QUIET)
    backed.file.close()


def test_replaced_values_of_the_user_are_named(section, model):
    settings = {"method": "kmeans", "use_rep": "X_a"}
    with pytest.warns(stampy.StampyWarning, match=r"Replaced by the result 'array_row': obs\['array_row'\]"):
        tl.domains(section, 3, key_added="array_row", **settings)
    tl.domains(section, 4, key_added="array_row", **settings)  # its own result
    tl.embed(section, model, modality="gene", **QUIET)
    with pytest.warns(stampy.StampyWarning, match=r"obsm\['X_stamp'\] of the result 'X_stamp'"):
        pp.tiles(section, size_px=16, key_added="X_stamp")
    pp.neighborhoods(section, size=4)
    pp.neighborhoods(section, size=3)


@pytest.mark.parametrize("write", [
    lambda part: tl.domains(part, 3, method="kmeans", use_rep="X_a"),
    lambda part: pp.tiles(part, size_px=16),
    lambda part: pp.neighborhoods(part, size=4),
])  # fmt: skip
def test_a_view_becomes_a_copy(section, write):
    part = section[:40]
    with pytest.warns(stampy.StampyWarning, match="view of another AnnData") as found:
        write(part)
    assert [w.filename for w in found] == [__file__]
    assert not part.is_view
    assert "stamp" not in section.uns


@pytest.mark.parametrize("key", ["", 3])
def test_keys_are_names(section, key):
    with pytest.raises(ValueError, match="must be a name"):
        tl.domains(section, 3, method="kmeans", use_rep="X_a", key_added=key)
    assert key not in section.obs


def test_a_part_of_a_backed_table_is_not_written_into(section, tmp_path):
    section.write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    with pytest.raises(ValueError, match="Load it first"):
        tl.domains(backed[:40], 3, method="kmeans", use_rep="X_a")
    assert "stamp_domain" in tl.domains(backed[:40], 3, method="kmeans", use_rep="X_a", copy=True).obs
    backed.file.close()


def test_result_does_not_replace_its_input(section):
    before = state(section)
    with pytest.raises(ValueError, match="input of this call"):
        tl.domains(section, use_rep="X_a", labels="domain", key_added="domain")
    with pytest.raises(ValueError, match="input of this call"):
        tl.expression(section, use_rep="X_a", n_top_genes=5, key_added="X_a")
    assert same(before, state(section))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("copy", [False, True])
def test_non_finite_results_are_not_written(fused, model, bad, copy):
    """Nor are earlier vectors of images removed, which an embedding of genes alone would replace."""
    import copy as copies

    import torch

    section = fused.copy()
    before = state(section)
    assert "X_stamp_image" in section.obsm
    broken = copies.deepcopy(model)
    with torch.no_grad():
        next(iter(broken.gene.parameters())).fill_(bad)
    with pytest.raises(ValueError, match=r"NaN or infinite|not finite"):
        tl.embed(section, broken, modality="gene", copy=copy, **QUIET)
    assert same(before, state(section))


def test_spots_without_a_value_may_be_missing():
    blank = np.array([True, False])
    check_finite("x", np.array([[np.nan], [1.0]]), blank=blank)
    with pytest.raises(ValueError, match="1 of 2 rows"):
        check_finite("x", np.array([[np.nan], [np.nan]]), blank=blank)


def test_all_writes_are_undone_if_one_fails(section):
    write_result(section, Result("r", {}, obsm={"r": np.zeros((80, 1))}), copy=False)
    before = state(section)
    wrong = Result("r", {}, obs={"new": np.zeros(80)}, obsm={"r": np.ones((80, 2)), "s": np.ones((3, 2))})
    with pytest.raises(ValueError, match=r"shape|dim"):
        write_result(section, wrong, copy=False)
    assert same(before, state(section))


def test_records_of_the_user_are_kept(section):
    section.uns["stamp"] = {"mine": {"a": 1}}
    tl.domains(section, 3, use_rep="X_a", method="kmeans")
    assert section.uns["stamp"]["mine"] == {"a": 1}
    assert isinstance(section.obs["stamp_domain"].dtype, pd.CategoricalDtype)
