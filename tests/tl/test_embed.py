"""`tl.embed`."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stampy import StampyWarning, datasets, models, pl, pp, tl
from stampy._section.section import sections_of

QUIET = {"show_progress_bar": False, "device": "cpu"}
PROPERTY = settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def embedded(toy, model):
    return tl.embed(toy, model, copy=True, **QUIET)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_fused_is_both_side_by_side(embedded, toy):
    gene, image = embedded.obsm["X_stamp_gene"], embedded.obsm["X_stamp_image"]
    assert gene.dtype == image.dtype == embedded.obsm["X_stamp"].dtype == np.float32
    np.testing.assert_allclose(embedded.obsm["X_stamp"], np.hstack([unit(gene), unit(image)]), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(gene, axis=1), 1, rtol=1e-5)
    assert "X_stamp" not in toy.obsm
    assert "stamp" not in toy.uns


def test_matches_the_model_run_by_hand(embedded, toy, model):
    import torch

    counted = pp.tokenize(toy, pp.Vocabulary(model.genes), copy=True)
    seen = pp.tiles(toy, copy=True)
    with torch.no_grad():
        gene = model.gene_embeddings(torch.from_numpy(counted.obsm["stamp_tokens"]))
        image = model.image_embeddings(model.image.normalize(torch.from_numpy(seen.obsm["stamp_tiles"])))
    np.testing.assert_allclose(embedded.obsm["X_stamp_gene"], gene.numpy(), atol=1e-5)
    np.testing.assert_allclose(embedded.obsm["X_stamp_image"], image.numpy(), atol=1e-5)


@pytest.mark.parametrize(("batch_size", "n_workers"), [(1, 1), (7, 3), (1000, 2)])
def test_batch_size_and_workers_change_nothing(embedded, toy, model, batch_size, n_workers):
    again = tl.embed(toy, model, batch_size=batch_size, n_workers=n_workers, copy=True, **QUIET)
    for key in ("X_stamp", "X_stamp_gene", "X_stamp_image"):
        np.testing.assert_allclose(again.obsm[key], embedded.obsm[key], atol=1e-5)


@PROPERTY
@given(seed=st.integers(0, 1000))
def test_permuting_spots_permutes_rows(embedded, toy, model, seed):
    order = np.random.default_rng(seed).permutation(toy.n_obs)[:40]
    moved = tl.embed(toy[order].copy(), model, copy=True, **QUIET)
    np.testing.assert_allclose(moved.obsm["X_stamp"], embedded.obsm["X_stamp"][order], atol=1e-5)


@PROPERTY
@given(factor=st.integers(2, 50), row=st.integers(0, 119))
def test_depth_of_a_spot_changes_nothing(embedded, toy, model, factor, row):
    deeper = toy.copy()
    scale = np.ones(toy.n_obs, dtype=np.int32)
    scale[row] = factor
    deeper.X = sp.csr_matrix(deeper.X.multiply(scale[:, None]))
    again = tl.embed(deeper, model, modality="gene", copy=True, **QUIET)
    np.testing.assert_allclose(again.obsm["X_stamp"], embedded.obsm["X_stamp_gene"], atol=1e-6)


def test_a_gene_outside_the_vocabulary_changes_nothing(embedded, toy, model):
    extra = ad.AnnData(
        sp.hstack([toy.X, np.full((toy.n_obs, 1), 1000)], format="csr"),
        obs=toy.obs.copy(),
        var=pd.concat([toy.var[["gene_ids"]], pd.DataFrame({"gene_ids": ["ENSG99999999999"]}, index=["NOVEL1"])]),
    )
    with pytest.warns(StampyWarning, match=r"44% of the counts are dropped: .*NOVEL1 \(43\.8%\)"):
        again = tl.embed(extra, model, copy=True, **QUIET)
    np.testing.assert_allclose(again.obsm["X_stamp"], embedded.obsm["X_stamp_gene"], atol=1e-6)


@pytest.mark.parametrize("kind", ["csc", "dense", "float", "layer", "backed", "view", "dask"])
def test_every_kind_of_counts(embedded, toy, model, kind, tmp_path):
    adata, arguments = toy.copy(), {}
    if kind == "csc":
        adata.X = adata.X.tocsc()
    elif kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "float":
        adata.X = adata.X.astype(np.float32)
    elif kind == "layer":
        adata.layers["raw"] = adata.X.copy()
        adata.X = np.log1p(adata.X.toarray())
        arguments["layer"] = "raw"
    elif kind == "backed":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    elif kind == "view":
        adata = adata[:100]
    elif kind == "dask":
        import dask.array as da

        adata.X = da.from_array(adata.X.toarray(), chunks=(50, 800))
    again = tl.embed(adata, model, modality="gene", copy=True, **arguments, **QUIET)
    np.testing.assert_allclose(again.obsm["X_stamp"], embedded.obsm["X_stamp_gene"][: len(again)], atol=1e-6)


def test_modalities(toy, model):
    gene = tl.embed(toy, model, modality="gene", copy=True, **QUIET)
    assert list(gene.obsm) == ["spatial", "X_stamp_gene", "X_stamp"]
    image = tl.embed(toy[:, :0].copy(), model, copy=True, **QUIET)  # no counts: the image alone
    assert image.uns["stamp"]["X_stamp"]["modality"] == "image"
    assert "X_stamp_gene" not in image.obsm
    blind = toy.copy()
    del blind.uns["spatial"]
    assert tl.embed(blind, model, copy=True, **QUIET).uns["stamp"]["X_stamp"]["modality"] == "gene"


def test_features_before_the_projection(toy, model):
    again = tl.embed(toy, model, level="feature", copy=True, **QUIET)
    assert again.obsm["X_stamp_gene"].shape == (toy.n_obs, 16)
    assert not np.allclose(np.linalg.norm(again.obsm["X_stamp_gene"], axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(again.obsm["X_stamp"], axis=1), np.sqrt(2), rtol=1e-5)


def test_spot_without_counts(toy, model):
    empty = toy.copy()
    empty.X = sp.csr_matrix(empty.X.multiply((np.arange(toy.n_obs) != 5)[:, None]))
    with pytest.warns(UserWarning, match="1 of 120 spots have no counts"):
        tl.embed(empty, model, **QUIET)
    assert (empty.obsm["X_stamp_gene"][5] == 0).all()
    assert np.isfinite(empty.obsm["X_stamp"]).all()


def test_several_sections_in_one_table(model):
    both = datasets.toy(n_spots=50, n_sections=2, rng=3)
    tl.embed(both, model, library_key="section", **QUIET)
    for name in both.obs["section"].cat.categories:
        one = both[both.obs["section"] == name].copy()
        one.uns["spatial"] = {name: one.uns["spatial"][name]}
        tl.embed(one, model, **QUIET)
        mine = (both.obs["section"] == name).to_numpy()
        np.testing.assert_allclose(one.obsm["X_stamp"], both.obsm["X_stamp"][mine], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
def test_results_survive_a_file(embedded, tmp_path):
    embedded.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm["X_stamp"], embedded.obsm["X_stamp"])
    record = again.uns["stamp"]["X_stamp"]
    assert record["model"] == "small"
    assert record["genes"]["n_matched"] == record["genes"]["n_vocabulary"]
    embedded.write_zarr(tmp_path / "a.zarr")
    again = ad.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.obsm["X_stamp"], embedded.obsm["X_stamp"])


def test_names_of_the_results(toy, model):
    adata = toy.copy()
    tl.embed(adata, model, modality="gene", **QUIET)
    tl.embed(adata, model, modality="gene", key_added="X_other", **QUIET)
    assert {"X_stamp", "X_stamp_gene", "X_other", "X_other_gene"} <= set(adata.obsm)
    assert set(adata.uns["stamp"]) == {"X_stamp", "X_other"}


def test_spatialdata(toy, model, embedded):
    import spatialdata as sd

    sdata = sd.SpatialData(tables={"table": toy.copy()})
    tl.embed(sdata, model, modality="gene", **QUIET)
    np.testing.assert_allclose(sdata["table"].obsm["X_stamp"], embedded.obsm["X_stamp_gene"], atol=1e-6)
    copied = tl.embed(sdata, model, modality="gene", key_added="X_b", copy=True, **QUIET)
    assert "X_b" in copied["table"].obsm
    assert "X_b" not in sdata["table"].obsm
    with pytest.raises(KeyError, match=r"`counts` not found in `sdata\.tables`"):
        tl.embed(sdata, model, table_key="counts", **QUIET)


# Bad input


def test_no_spatial(toy, model):
    adata = toy.copy()
    del adata.obsm["spatial"]
    with pytest.raises(KeyError, match=r"`spatial` not found in `adata\.obsm`"):
        tl.embed(adata, model, **QUIET)


def test_no_image(toy, model):
    adata = toy.copy()
    del adata.uns["spatial"]
    with pytest.raises(KeyError, match="image"):
        tl.embed(adata, model, modality="fused", **QUIET)


def test_nan_coordinates(toy, model):
    adata = toy.copy()
    adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
    adata.obsm["spatial"][3, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite coordinates for 1 of 120 spots"):
        tl.embed(adata, model, **QUIET)


def test_coordinates_outside_the_image(toy, model):
    adata = toy.copy()
    adata.obsm["spatial"] = adata.obsm["spatial"] + 1e5
    with pytest.raises(ValueError, match="are outside the image"):
        tl.embed(adata, model, **QUIET)


def test_empty_section(toy, model):
    with pytest.raises(ValueError, match="0 spots"):
        tl.embed(toy[:0].copy(), model, **QUIET)
    blind = toy[:, :0].copy()
    del blind.uns["spatial"]
    with pytest.raises(ValueError, match="0 genes"):
        tl.embed(blind, model, **QUIET)


@pytest.mark.parametrize("n", [1, 3])
def test_one_spot_and_few_spots(toy, model, embedded, n):
    few = tl.embed(toy[:n].copy(), model, um_per_px=1.6, copy=True, **QUIET)
    np.testing.assert_allclose(few.obsm["X_stamp"], embedded.obsm["X_stamp"][:n], atol=1e-5)


def test_no_gene_in_common(toy, model):
    adata = toy.copy()
    adata.var_names = [f"x{i}" for i in range(adata.n_vars)]
    del adata.var["gene_ids"]
    with pytest.raises(ValueError, match="x0"):
        tl.embed(adata, model, **QUIET)


def test_transposed_counts(toy, model):
    turned = ad.AnnData(toy.X.T.tocsr(), obs=toy.var[[]].copy(), var=toy.obs[[]].copy())
    with pytest.raises(ValueError, match="transposed"):
        tl.embed(turned, model, **QUIET)


def test_log_normalised(toy, model):
    import scanpy as sc

    adata = toy.copy()
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    with pytest.raises(ValueError, match="log"):
        tl.embed(adata, model, **QUIET)
    assert "X_stamp" not in adata.obsm


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"modality": "genes"}, ValueError, "Did you mean 'gene'"),
        ({"modality": "gene", "image_key": "hires"}, ValueError, "uses no image"),
        ({"level": "logits"}, ValueError, "`level` must be one of"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"n_workers": 1.5}, TypeError, "`n_workers` must be an integer"),
        ({"layer": "counts"}, KeyError, "counts"),
        ({"library_key": "donor"}, KeyError, "`donor` not found in `adata.obs`"),
        ({"precision": "float8"}, ValueError, "`precision` must be one of"),
    ],
)
def test_invalid_arguments_raise(toy, model, arguments, error, message):
    with pytest.raises(error, match=message):
        tl.embed(toy, model, **arguments, **QUIET)


def test_wrong_type(model):
    with pytest.raises(TypeError, match="Expected AnnData or SpatialData"):
        tl.embed(np.zeros((3, 3)), model)


def test_model_without_an_image_tower(toy, model):
    alone = models.Stamp(models.StampConfig(gene=model.config.gene), model.genes)
    with pytest.warns(UserWarning, match="has no image encoder: only genes"):
        found = tl.embed(toy, alone, copy=True, **QUIET)
    assert found.uns["stamp"]["X_stamp"]["modality"] == "gene"
    for asked in ("image", "fused"):
        with pytest.raises(ValueError, match="has no image encoder"):
            tl.embed(toy, alone, modality=asked, **QUIET)


def test_too_coarse_image_is_used_only_on_request(toy, model):
    adata = toy.copy()
    del adata.uns["spatial"]["toy"]["images"]["hires"]
    scales = adata.uns["spatial"]["toy"]["scalefactors"]
    lowres = adata.uns["spatial"]["toy"]["images"]["lowres"]
    adata.uns["spatial"]["toy"]["images"]["lowres"] = lowres[::8, ::8]
    scales["tissue_lowres_scalef"] /= 8
    alone_says = r"Only genes are embedded: a tile would be \d+ px across in \['lowres'\]"
    with pytest.warns(UserWarning, match=alone_says) as caught:
        alone = tl.embed(adata, model, copy=True, **QUIET)
    assert len(caught) == 1  # not another that speaks of tiles that are cut
    assert alone.uns["stamp"]["X_stamp"]["modality"] == "gene"
    np.testing.assert_array_equal(alone.obsm["X_stamp"], alone.obsm["X_stamp_gene"])
    assert "X_stamp_image" not in alone.obsm
    for asked in ({"modality": "fused"}, {"image_key": "lowres"}):
        with pytest.warns(UserWarning, match="is coarse") as caught:
            both = tl.embed(adata, model, copy=True, **asked, **QUIET)
        assert len(caught) == 1
        assert both.uns["stamp"]["X_stamp"]["modality"] == "fused"


def test_image_that_is_not_histology_is_used_only_on_request(toy, model):
    adata = toy.copy()
    library = adata.uns["spatial"]["toy"]
    library["images"] = {"hires": np.zeros_like(library["images"]["hires"])}
    says = r"Only genes are embedded. The image 'hires' does not look like H&E: it is black.*modality='fused'"
    with pytest.warns(UserWarning, match=says):
        alone = tl.embed(adata, model, copy=True, **QUIET)
    assert alone.uns["stamp"]["X_stamp"]["modality"] == "gene"
    assert "X_stamp_image" not in alone.obsm
    for asked in ({"modality": "fused"}, {"image_key": "hires"}):
        with pytest.warns(UserWarning, match="does not look like H&E: it is black"):
            both = tl.embed(adata, model, copy=True, **asked, **QUIET)
        assert both.uns["stamp"]["X_stamp"]["modality"] == "fused"
    with pytest.warns(UserWarning, match="does not look like H&E"):
        tl.embed(adata, model, modality="image", copy=True, **QUIET)


NO_PICTURES = {
    "mask": (lambda p: (p > 200).astype(np.uint8), "0 and 1"),
    "cast": (lambda p: (p / 255).astype(np.int64), "0 and 1"),
    "five channels": (lambda p: np.dstack([p, p[..., :2]]), "shape"),
    "standardised": (lambda p: p / 127.5 - 1, "negative values"),
    "holes": (lambda p: np.where(p > 250, np.nan, p / 255), "NaN"),
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_arrays_that_are_not_images_are_used_only_on_request(toy, model, name):
    adata = toy.copy()
    library = adata.uns["spatial"]["toy"]
    change, reason = NO_PICTURES[name]
    library["images"] = {"hires": change(library["images"]["hires"])}
    with pytest.warns(UserWarning, match=f"the image cannot be used.*{reason}") as caught:
        alone = tl.embed(adata, model, copy=True, **QUIET)
    assert len(caught) == 1
    assert alone.uns["stamp"]["X_stamp"]["modality"] == "gene"
    for asked in ({"modality": "fused"}, {"modality": "image"}, {"image_key": "hires"}):
        with pytest.raises(ValueError, match=reason):
            tl.embed(adata, model, copy=True, **asked, **QUIET)
    with pytest.warns(UserWarning, match=f"{reason}.*drawn without image"):
        axes = pl.spatial(adata, "domain")
    assert not axes.images


def test_placeholder_is_not_an_image(toy, model):
    for nothing in (None, np.array([]), np.zeros((0, 0, 3))):
        adata = toy.copy()
        adata.uns["spatial"]["toy"]["images"] = {"hires": nothing}
        tl.embed(adata, model, **QUIET)
        assert adata.uns["stamp"]["X_stamp"]["modality"] == "gene"
        assert not pl.spatial(adata, "domain").images


def test_a_larger_image_without_a_scale_factor_is_named(toy, model):
    adata = toy.copy()
    library = adata.uns["spatial"]["toy"]
    library["scalefactors"] = dict(library["scalefactors"])
    del library["scalefactors"]["tissue_hires_scalef"]
    says = "larger image 'hires'.*no scale factor `tissue_hires_scalef`.*'lowres' is used"
    with pytest.warns(UserWarning, match=says):
        sections_of(adata, needs=["image"])


def test_baselines_are_recorded(toy):
    record = tl.embed(toy, "pca", copy=True, **QUIET).uns["stamp"]["X_stamp"]
    assert record["stampy"]
    assert (record["modality"], record["level"], record["model"]) == ("gene", "embedding", "pca")


def test_model_without_a_vocabulary(toy, model):
    nameless = models.Stamp(model.config)
    with pytest.raises(ValueError, match="has no vocabulary"):
        tl.embed(toy, nameless, modality="gene", **QUIET)


def test_training_mode_is_restored(toy, model):
    model.train()
    tl.embed(toy[:5].copy(), model, modality="gene", copy=True, **QUIET)
    assert model.training
    model.eval()


def test_context_is_the_mean_with_the_nearest_of_the_same_section(toy, model):
    adata = toy[:40].copy()
    adata.obs["section"] = ["a", "b"] * 20
    tl.embed(adata, model, modality="gene", show_progress_bar=False)
    alone = adata.obsm["X_stamp_gene"].copy()
    tl.embed(adata, model, modality="gene", context="neighbors", library_key="section", show_progress_bar=False)
    xy, own = adata.obsm["spatial"], (adata.obs["section"] == "a").to_numpy()
    row = 0  # of section a
    near = np.argsort(np.linalg.norm(xy - xy[row], axis=1) + 1e9 * ~own)[:7]
    expected = alone[near].mean(axis=0)
    np.testing.assert_allclose(
        adata.obsm["X_stamp_gene"][row], expected / np.linalg.norm(expected), rtol=1e-4, atol=1e-5
    )
    assert adata.uns["stamp"]["X_stamp"]["context"] == "neighbors, 6"
    with pytest.raises(ValueError, match="`context` must be one of"):
        tl.embed(adata, model, modality="gene", context="image")
    with pytest.raises(ValueError, match="needs 7 spots in every section"):
        tl.embed(adata[:4].copy(), model, modality="gene", context="neighbors", show_progress_bar=False)


# --- empty spots and arguments without effect


@pytest.mark.parametrize("name", ["small", "pca-smoothed"])
def test_empty_spots_stay_empty_in_context_and_are_not_averaged_in(toy, model, name):
    section = toy[:, :].copy()
    xy = section.obsm["spatial"]
    empty = np.zeros(section.n_obs, dtype=bool)
    empty[[3, 40, 41]] = True
    counts = section.X.toarray()
    counts[empty] = 0
    section.X = sp.csr_matrix(counts)
    options = {"modality": "gene", "copy": True, **QUIET}
    calls = {"small": [(model, {}), (model, {"context": "neighbors"})], "pca-smoothed": [("pca", {}), (name, {})]}
    vectors = []
    for which, more in calls[name]:
        with pytest.warns(UserWarning, match="3 of 120 spots have no counts"):
            vectors.append(tl.embed(section, which, **options, **more).obsm["X_stamp"])
    alone, found = vectors
    assert not alone[empty].any()
    assert not found[empty].any()
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=-1)
    for i in np.flatnonzero(~empty)[::7]:
        order = np.argsort(distance[i], kind="stable")
        if distance[i, order[6]] == distance[i, order[7]]:  # which of equally near ones count is the graph's choice
            continue
        near = order[:7]
        expected = alone[near[~empty[near]]].mean(axis=0)
        expected = unit(expected[None])[0] if name == "small" else expected
        np.testing.assert_allclose(found[i], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "gene", "um_per_px": 0.5}, "`um_per_px=` was given"),
        ({"modality": "gene", "spot_um": 55, "image_key": "hires"}, "`image_key=` and `spot_um=` were given"),
        ({"modality": "image", "layer": "counts"}, "uses no counts"),
    ],
)
def test_arguments_without_effect(toy, model, options, message):
    with pytest.raises(ValueError, match=message):
        tl.embed(toy, model, copy=True, **options, **QUIET)


def test_arguments_are_checked_before_the_model_is_loaded(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(models, "load", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(FileNotFoundError, match="No image at"):
        tl.embed(toy, image=tmp_path / "no.tif")
    with pytest.raises(ValueError, match="either names the image"):
        tl.embed(toy, image=np.zeros((9, 9, 3), np.uint8), image_key="hires")
    with pytest.raises(ValueError, match="at least 1"):
        tl.embed([toy, toy], batch_size=0)


def test_a_scale_without_an_image_is_named(toy, model):
    section = toy.copy()
    del section.uns["spatial"]
    with pytest.warns(UserWarning, match="`um_per_px` has no effect"):
        tl.embed(section, model, um_per_px=0.5, **QUIET)


def test_counts_only_in_a_layer_warn(toy, model):
    adata = toy.copy()
    adata.layers["counts"] = adata.X
    adata.X = None
    with pytest.warns(StampyWarning, match="layer='counts'"):
        tl.embed(adata, model, **QUIET)
    assert "X_stamp_gene" not in adata.obsm
    tl.embed(adata, model, modality="image", **QUIET)
