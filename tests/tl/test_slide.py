"""Whole slides: tiles on tissue, resumed stores, attention on planted tiles."""

import json
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from stampy import datasets, pl, pp, tl
from stampy._section.pixel_size import openslide_um_per_px
from stampy.models import GatedAttentionMIL
from stampy.pp import SlideImage
from stampy.pp._slide_tiles import covered, overview, tissue_mask
from stampy.tl import _embed_slide
from stampy.tl._evaluation import metrics as _metrics

quick = settings(deadline=None, max_examples=25)
QUIET = {"show_progress_bar": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("slides")


@pytest.fixture(scope="module")
def slide(folder):
    """A pyramidal TIFF of 900 µm and where its tumour is."""
    path = folder / "S1.tif"
    return path, datasets.toy_slide(path, size_um=900, tumor=0.3, rng=3)


# the file


def test_toy_slide_is_a_pyramid_with_its_scale(slide):
    path, truth = slide
    with tifffile.TiffFile(path) as tiff:
        assert tiff.series[0].keyframe.is_tiled
        assert [level.shape[0] for level in tiff.series[0].levels] == [562, 281, 140]
    with SlideImage.open(path) as image:
        assert image.shape == truth.shape
        assert image.um_per_px == pytest.approx(1.6, rel=1e-6)
    assert 0.05 < truth.mean() < 0.3


def test_toy_slide_without_tumour(folder):
    assert not datasets.toy_slide(folder / "none.tif", size_um=500, tumor=0).any()
    with pytest.raises(ValueError, match=r"must end in \.tif"):
        datasets.toy_slide(folder / "none.png")
    with pytest.raises(ValueError, match=r"at most 0\.7"):
        datasets.toy_slide(folder / "none.tif", tumor=0.9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}, 0.25),
        ({"resolution": (50_800, 50_800), "resolutionunit": "INCH"}, 0.5),
        ({"resolution": (72, 72), "resolutionunit": "INCH"}, None),  # a screen's
        ({"description": "Aperio Image Library v1|AppMag = 40|MPP = 0.2525|Left = 1"}, 0.2525),
        ({}, None),
    ],
)
def test_pixel_size_by_the_file(tmp_path, options, expected):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=None, **options)
    with SlideImage.open(tmp_path / "a.tif") as image:
        assert image.um_per_px == pytest.approx(expected)


@pytest.mark.parametrize(("unit", "expected"), [("µm", 0.5), ("nm", 0.0005), ("mm", 500.0)])
def test_pixel_size_by_ome(tmp_path, unit, expected):
    metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": unit}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb", metadata=metadata)
    with SlideImage.open(tmp_path / "a.ome.tif") as image:
        assert image.um_per_px == (pytest.approx(expected) if 0.05 <= expected <= 10 else None)


def test_pixel_size_by_openslide():
    assert openslide_um_per_px({"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.27"}) == pytest.approx(0.26)
    assert openslide_um_per_px({"openslide.mpp-x": "unknown"}) is None
    assert openslide_um_per_px({}) is None


# tissue


@given(
    size=st.tuples(st.integers(30, 300), st.integers(30, 300)),
    factor=st.floats(1, 17),
    band=st.sampled_from([500, 5_000, 2**22]),
)
@quick
def test_overview_is_the_mean_of_areas_whatever_the_bands(size, factor, band):
    y, x = np.mgrid[: size[0], : size[1]]
    image = SlideImage.from_array(np.stack([x * 255 // size[1], y * 255 // size[0], 0 * x], axis=-1).astype(np.uint8))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stampy._section.image.slide_image._BAND_PX", band)
        small = overview(image, factor)
    for axis in (0, 1):  # a ramp stays a ramp
        n = small.shape[1 - axis]
        expected = (np.arange(n) + 0.5) / n * 255 - 0.5
        found = small[..., axis].mean(axis=axis)
        assert np.abs(found - expected).max() < 2 + 255 / min(size)


@pytest.mark.parametrize("tile", [(64, 64), None])
def test_finding_tissue_is_bounded_without_a_pyramid(tmp_path, monkeypatch, tile):
    """One block in several is read of a slide that is too large; the result is nearly the same."""
    y, x = np.mgrid[:2000, :2400]
    pixels = np.full((2000, 2400, 3), 240, np.uint8)
    pixels[((y - 900) / 600) ** 2 + ((x - 1200) / 800) ** 2 < 1] = (190, 110, 170)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", tile=tile, compression="zlib" if tile else None)
    exact = pp.slide_tiles(tmp_path / "a.tif", um_per_px=2.0)
    monkeypatch.setattr("stampy.pp._slide_tiles._MAX_READ_PX", 2000 * 2400 // 8)
    monkeypatch.setattr("stampy.pp._slide_tiles._BLOCK_PX", 64)
    read, crop = [], SlideImage.read

    def counted(self, left, top, width, height, **more):
        read.append(width * height)
        return crop(self, left, top, width, height, **more)

    monkeypatch.setattr(SlideImage, "read", counted)
    with pytest.warns(UserWarning, match=r"one block of pixels in 9 is read.*pyramidal TIFF"):
        found = pp.slide_tiles(tmp_path / "a.tif", um_per_px=2.0)
    assert sum(read) < 2 * 2000 * 2400 / 6  # for the mask and for the thumbnail
    common = set(exact.obs_names) & set(found.obs_names)
    assert len(common) > 0.9 * max(exact.n_obs, found.n_obs)


def test_tissue_mask_of_empty_and_full_slides():
    random = np.random.default_rng(0)
    glass = np.clip(random.normal(240, 2, (60, 80, 3)), 0, 255).astype(np.uint8)
    assert tissue_mask(glass).mean() < 0.02  # Otsu alone would take half of the noise
    tissue = np.clip(random.normal((200, 120, 180), 15, (60, 80, 3)), 0, 255).astype(np.uint8)
    assert tissue_mask(tissue).all()
    assert not tissue_mask(np.zeros((20, 20, 3), np.uint8)).any()
    half = np.concatenate([glass, tissue])
    assert (tissue_mask(half) == (np.arange(120) >= 60)[:, None]).mean() > 0.98


def test_pale_tissue_on_a_grey_background():
    random = np.random.default_rng(0)
    place = np.zeros((120, 80), bool)
    place[30:70, 20:60] = True
    for background, tissue in (((155, 165, 173), (145, 135, 150)), ((160, 160, 160), (125, 125, 125))):
        picture = np.where(place[..., None], tissue, background) + random.normal(0, 2, (120, 80, 3))
        mask = tissue_mask(np.clip(picture, 0, 255).astype(np.uint8))
        assert (mask == place).mean() > 0.97
    scan = np.where(place[..., None], 0, (155, 165, 173)).astype(np.uint8)  # nothing was scanned there
    assert not tissue_mask(scan).any()


@given(st.integers(0, 2**32 - 1))
@quick
def test_covered_is_exact(seed):
    random = np.random.default_rng(seed)
    mask = random.random((7, 9)) < 0.5
    left, top = random.integers(0, 60), random.integers(0, 40)
    right, bottom = left + random.integers(1, 50), top + random.integers(1, 50)
    fine = np.zeros((100, 120))  # a px of the mask is 10 px; outside nothing is tissue
    fine[:70, :90] = np.kron(mask, np.ones((10, 10)))
    found = covered(mask, np.array([[left, top, right, bottom]], dtype=float), (10.0, 10.0))
    assert found[0] == pytest.approx(fine[top:bottom, left:right].mean(), abs=1e-9)


# tiles


def test_tiles_lie_on_tissue(slide):
    path, _ = slide
    adata = pp.slide_tiles(path)
    with SlideImage.open(path) as image:
        pixels = image.read(0, 0, 562, 562)
    everywhere = pp.slide_tiles(path, min_tissue=0)
    assert everywhere.n_obs == 64  # 900 µm of 112 µm tiles, and one more whose centre is not in the image
    assert 0 < adata.n_obs < 64
    for centre in adata.obsm["spatial"]:
        x, y = (centre - 35).astype(int)
        assert tissue_mask(pixels[y : y + 70, x : x + 70]).mean() > 0.4
    assert adata.obs["tissue_fraction"].between(0.5, 1).all()
    assert (adata.obs["slide"] == "S1").all()
    assert adata.obs_names.is_unique
    place = adata.obs[["array_col", "array_row"]].to_numpy() * 70 + 35
    np.testing.assert_allclose(adata.obsm["spatial"], place, rtol=1e-6)
    factors = adata.uns["spatial"]["S1"]["scalefactors"]
    assert factors["microns_per_pixel"] == pytest.approx(1.6)
    assert factors["spot_diameter_fullres"] == pytest.approx(70)
    assert pp.slide_tiles(path, stride_um=56).n_obs > 3 * adata.n_obs


def test_tiles_are_the_same_from_every_level_of_the_pyramid(slide):
    path, _ = slide
    with SlideImage.open(path) as image:
        flat = image.read(0, 0, 562, 562)
    a, b = pp.slide_tiles(path), pp.slide_tiles(flat, um_per_px=1.6, name="S1")
    common = a.obs_names.intersection(b.obs_names)
    assert len(common) >= 0.95 * max(a.n_obs, b.n_obs)
    np.testing.assert_allclose(a[common].obs["tissue_fraction"], b[common].obs["tissue_fraction"], atol=0.1)


def test_tiles_can_be_written_concatenated_and_drawn(slide, tmp_path):
    a, b = pp.slide_tiles(slide[0]), pp.slide_tiles(slide[0], name="S2")
    both = ad.concat([a, b], uns_merge="unique")
    both.write_h5ad(tmp_path / "both.h5ad")
    again = ad.read_h5ad(tmp_path / "both.h5ad")
    axes = pl.spatial(again, "tissue_fraction", library_key="slide")
    assert [ax.get_title() for ax in axes] == ["S1", "S2"]


def test_tiles_of_bad_slides(slide, tmp_path):
    path, _ = slide
    with pytest.raises(FileNotFoundError, match="No image file"):
        pp.slide_tiles(tmp_path / "S1.tif")
    cut = tmp_path / "cut.tif"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="truncated or damaged"):
        pp.slide_tiles(cut)
    with pytest.raises(ValueError, match="Pass `um_per_px=`"):
        pp.slide_tiles(np.full((500, 500, 3), 240, np.uint8))
    with pytest.raises(ValueError, match="No tissue was found"):
        pp.slide_tiles(np.full((500, 500, 3), 240, np.uint8), um_per_px=1.0)
    with pytest.raises(ValueError, match="A tile would be"):
        pp.slide_tiles(path, um_per_px=0.01)
    with pytest.raises(ValueError, match="`min_tissue` must be at most 1"):
        pp.slide_tiles(path, min_tissue=50)
    with pytest.raises(TypeError, match="tile table of a WSIData"):
        pp.slide_tiles(path, tile_key="tiles")


# wsidata


def fake_wsi(picture, boxes=None, mpp=1.6):
    """What stampy uses of a WSIData, with two levels."""
    levels = [picture, picture[::2, ::2]]

    def read_region(x, y, width, height, level=0):
        step = 2**level
        return levels[level][y // step : y // step + height, x // step : x // step + width]

    class WSIData:
        reader = SimpleNamespace(file="/slides/W1.svs")
        properties = SimpleNamespace(
            n_level=2, level_shape=[a.shape[:2] for a in levels], level_downsample=[1.0, 2.0], mpp=mpp
        )
        shapes = {} if boxes is None else {"tiles": SimpleNamespace(bounds=pd.DataFrame(boxes))}

    WSIData.__module__ = "wsidata._model.core"
    WSIData.read_region = staticmethod(read_region)
    return WSIData()


@pytest.fixture(scope="module")
def picture(slide):
    with SlideImage.open(slide[0]) as image:
        return image.read(0, 0, 562, 562)


def test_wsidata_by_grid_and_by_its_own_tiles(picture):
    by_grid = pp.slide_tiles(fake_wsi(picture))
    assert by_grid.obs["slide"].unique().tolist() == ["W1"]
    assert abs(by_grid.n_obs - pp.slide_tiles(picture, um_per_px=1.6).n_obs) <= 1
    boxes = [[100, 200, 170, 270], [300, 200, 370, 270]]
    adata = pp.slide_tiles(fake_wsi(picture, boxes), tile_key="tiles")
    assert adata.obsm["spatial"].tolist() == [[135, 235], [335, 235]]
    assert adata.uns["stamp"]["slide_tiles"]["tile_um"] == pytest.approx(112)
    with pytest.raises(KeyError, match=r"`tiles` not found in `wsi\.shapes`"):
        pp.slide_tiles(fake_wsi(picture), tile_key="tiles")
    with pytest.raises(ValueError, match="not both"):
        pp.slide_tiles(fake_wsi(picture, boxes), tile_key="tiles", tile_um=100)
    with pytest.raises(ValueError, match="has no tiles"):
        pp.slide_tiles(fake_wsi(picture, np.empty((0, 4))), tile_key="tiles")
    with pytest.raises(ValueError, match="Pass `um_per_px=`"):
        pp.slide_tiles(fake_wsi(picture, mpp=None))


def test_wsidata_embeds_as_the_same_pixels(picture, model):
    wsi = fake_wsi(picture)
    a = pp.slide_tiles(wsi, min_tissue=0.9)
    b = a.copy()
    tl.embed(a, model, image=wsi, modality="image", **QUIET)
    tl.embed(b, model, image=picture, modality="image", **QUIET)
    np.testing.assert_array_equal(a.obsm["X_stamp"], b.obsm["X_stamp"])


@pytest.mark.filterwarnings("ignore")  # of other packages at import
def test_real_wsidata(slide):
    wsidata = pytest.importorskip("wsidata")
    path, _ = slide
    wsi = wsidata.open_wsi(str(path), store=None)
    adata = pp.slide_tiles(wsi, um_per_px=1.6)
    assert set(pp.slide_tiles(path).obs_names) == set(adata.obs_names)
    spec = wsidata.TileSpec(height=70, width=70, stride_height=70, stride_width=70, mpp=1.6)
    from wsidata.io import add_tiles

    add_tiles(wsi, "tiles", np.array([[100, 200], [300, 200]]), spec, np.array([0, 0]))
    tabled = pp.slide_tiles(wsi, um_per_px=1.6, tile_key="tiles")
    assert tabled.obsm["spatial"].tolist() == [[135, 235], [335, 235]]


# embeddings on disk


def stored(path):
    return ad.read_zarr(path).obsm["X_stamp"]


def test_embed_slide_equals_embed(slide, model, tmp_path):
    path, _ = slide
    expected = pp.slide_tiles(path)
    tl.embed(expected, model, image=path, modality="image", **QUIET)
    store = tl.embed_slide(path, tmp_path / "S1.zarr", model=model, chunk_size=10, **QUIET)
    adata = ad.read_zarr(store)
    np.testing.assert_allclose(adata.obsm["X_stamp"], expected.obsm["X_stamp"], atol=1e-6)
    pd.testing.assert_frame_equal(adata.obs, expected.obs, check_dtype=False)
    assert adata.uns["stamp"]["X_stamp"]["level"] == "embedding"
    assert not (tmp_path / "S1.zarr.partial").exists()
    before = (store / "zarr.json").stat().st_mtime_ns
    assert tl.embed_slide(path, store, model=model, chunk_size=10, **QUIET) == store  # nothing to do
    assert (store / "zarr.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match="made from another slide or with another model"):
        tl.embed_slide(path, store, model=model, chunk_size=10, level="feature", **QUIET)


class Killed(Exception):
    """Stands for a kill."""


def cut_after(monkeypatch, n_batches):
    """From now on a stream dies after so many batches; returns the rows that were computed."""
    original, rows_seen = _embed_slide.iter_images, []

    def dying(*args, **kwargs):
        for i, (rows, values) in enumerate(original(*args, **kwargs)):
            if i == n_batches:
                raise Killed
            rows_seen.extend(rows.tolist())
            yield rows, values

    monkeypatch.setattr(_embed_slide, "iter_images", dying)
    return rows_seen


@pytest.fixture(scope="module")
def whole(slide, model, folder):
    """All embeddings of the slide."""
    return stored(tl.embed_slide(slide[0], folder / "whole.zarr", model=model, chunk_size=8, batch_size=4, **QUIET))


@pytest.mark.parametrize("n_batches", [0, 1, 3, 5])
def test_interrupted_run_resumes(slide, model, whole, tmp_path, monkeypatch, n_batches):
    path, _ = slide
    how = {"model": model, "chunk_size": 8, "batch_size": 4, **QUIET}
    store = tmp_path / "S1.zarr"
    with monkeypatch.context() as patch:
        cut_after(patch, n_batches)
        with pytest.raises(Killed):
            tl.embed_slide(path, store, **how)
    assert not store.exists()
    with pytest.raises(FileExistsError, match="another"):  # other parameters do not resume it
        tl.embed_slide(path, store, **how | {"chunk_size": 16})
    with monkeypatch.context() as patch:
        seen = cut_after(patch, 10**9)
        tl.embed_slide(path, store, **how)
    done = n_batches * 4 // 8 * 8  # whole chunks
    assert seen == list(range(done, len(whole)))  # less than a chunk was lost
    assert np.array_equal(stored(store), whole)


def test_incomplete_store_is_restarted_and_other_files_are_kept(slide, model, tmp_path):
    how = {"model": model, **QUIET}
    stump = tmp_path / "S1.zarr.partial" / "store.zarr"
    stump.mkdir(parents=True)
    (stump / "zarr.json").write_text("{")
    tl.embed_slide(slide[0], tmp_path / "S1.zarr", **how)
    other = tmp_path / "S2.zarr.partial"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"notes\.txt"):
        tl.embed_slide(slide[0], tmp_path / "S2.zarr", **how)
    (tmp_path / "S3.zarr").mkdir()
    with pytest.raises(FileExistsError):
        tl.embed_slide(slide[0], tmp_path / "S3.zarr", **how)
    with pytest.raises(ValueError, match=r"must end in \.zarr"):
        tl.embed_slide(slide[0], tmp_path / "S1.h5ad", **how)


def test_memory_is_bounded_by_a_chunk(slide, model, tmp_path, monkeypatch):
    held = []
    original = _embed_slide.np.concatenate
    watched = SimpleNamespace(**{**vars(np), "concatenate": lambda parts: held.append(len(parts)) or original(parts)})
    monkeypatch.setattr(_embed_slide, "np", watched)
    store = tl.embed_slide(slide[0], tmp_path / "S1.zarr", model=model, chunk_size=8, batch_size=4, **QUIET)
    n = ad.read_zarr(store).n_obs
    assert held == [2] * (n // 8) + [-(-(n % 8) // 4)] * (n % 8 > 0)


def test_command_line(slide, tmp_path, capsys):
    from stampy.cli.main import main

    assert main(["slide", str(slide[0]), str(tmp_path / "S1.zarr"), "--min-tissue", "0.95"]) == 0
    assert "tiles of 112 µm, by stampy-mini" in capsys.readouterr().out
    assert main(["slide", str(slide[0]), str(tmp_path / "S2.zarr"), "--um-per-px", "0.001"]) == 1
    assert "Pass the right `--um-per-px`" in capsys.readouterr().err
    assert main(["slide", str(tmp_path / "no.tif"), str(tmp_path / "S2.zarr")]) == 1


# attention pooling


def test_padding_and_order_of_tiles_do_not_matter():
    random = np.random.default_rng(0)
    model = GatedAttentionMIL(6, 3, hidden=5)
    x = torch.from_numpy(random.normal(size=(2, 7, 6)).astype(np.float32))
    lengths = torch.tensor([7, 4])
    out = model(x, lengths)
    assert (out.attention[1, 4:] == 0).all()
    torch.testing.assert_close(out.attention.sum(dim=1), torch.ones(2))
    alone = model(x[1:, :4], torch.tensor([4]))
    torch.testing.assert_close(out.logits[1:], alone.logits)
    shuffled = model(x[:, [6, 5, 4, 3, 2, 1, 0]][:1], torch.tensor([7]))
    torch.testing.assert_close(out.logits[:1], shuffled.logits)
    with pytest.raises(ValueError, match="at least one tile"):
        model(x, torch.tensor([7, 0]))


def test_gated_attention_matches_the_paper():
    model = GatedAttentionMIL(4, 2, hidden=3)
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    h = torch.relu(x @ model.project.weight.T + model.project.bias)
    gate = torch.sigmoid(h @ model.gate.weight.T + model.gate.bias)
    score = (torch.tanh(h @ model.tanh.weight.T + model.tanh.bias) * gate) @ model.score.weight[0]
    a = torch.exp(score) / torch.exp(score).sum()
    expected = (a[:, None] * h).sum(dim=0) @ model.classify.weight.T + model.classify.bias
    out = model(x[None], torch.tensor([5]))
    torch.testing.assert_close(out.attention[0], a)
    torch.testing.assert_close(out.logits[0], expected)


def test_initial_weights_do_not_change_the_global_random_state():
    state = torch.get_rng_state()
    GatedAttentionMIL(4, 2)
    assert torch.equal(state, torch.get_rng_state())


@given(st.integers(0, 2**32 - 1), st.integers(2, 3))
@quick
def test_metrics_are_those_of_scikit_learn(seed, n_classes):
    random = np.random.default_rng(seed)
    classes = np.concatenate([np.arange(n_classes), random.integers(0, n_classes, 25)])
    scores = random.dirichlet(np.ones(n_classes), len(classes)).round(1) + 1e-3  # with ties
    expected = [roc_auc_score(classes == c, scores[:, c]) for c in range(n_classes)]
    assert _metrics.auc(classes, scores)[0] == pytest.approx(np.mean(expected[1:] if n_classes == 2 else expected))
    assert _metrics.balanced_accuracy(classes, scores)[0] == pytest.approx(
        balanced_accuracy_score(classes, scores.argmax(axis=1))
    )
    weights = _metrics.draws(np.arange(len(classes)), 3, random)
    for got, weight in zip(_metrics.auc(classes, scores, weights), weights, strict=True):
        if n_classes == 2 and len(np.unique(np.repeat(classes, weight.astype(int)))) == 2:
            assert got == pytest.approx(roc_auc_score(classes, scores[:, 1], sample_weight=weight))


def test_bootstrap_draws_patients():
    patients = np.array(["a", "a", "b", "c", "c", "c"])
    weights = _metrics.draws(patients, 50, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 3] == weights[:, 5]).all()
    assert (weights[:, [0, 2, 3]].sum(axis=1) == 3).all()


# classification


def cohort(n_slides=32, n_tiles=60, n_planted=6, shift=6.0, d=24, slides_per_patient=1, seed=0):
    """Slides of random tiles; those labelled "tumour" have some tiles shifted along one direction."""
    random = np.random.default_rng(seed)
    slides = np.repeat(np.arange(n_slides), n_tiles)
    patients = np.arange(n_slides) // slides_per_patient
    positive = (patients % 2 == 1)[slides]
    planted = positive & (random.permuted(np.tile(np.arange(n_tiles), (n_slides, 1)), axis=1).ravel() < n_planted)
    direction = random.normal(size=d)
    direction *= shift / np.linalg.norm(direction)
    values = random.normal(size=(len(slides), d)) + 0.5 * random.normal(size=(n_slides, d))[slides]
    obs = pd.DataFrame(
        {
            "slide": pd.Categorical([f"S{i:02}" for i in slides]),
            "patient": [f"P{i}" for i in patients[slides]],
            "label": np.where(positive, "tumour", "normal"),
            "planted": planted,
        },
        index=[str(i) for i in range(len(slides))],
    )
    return ad.AnnData(obs=obs, obsm={"X_stamp": (values + planted[:, None] * direction).astype(np.float32)})


FAST = {"n_folds": 4, "n_epochs": 25, "hidden": 64, "learning_rate": 3e-3, "device": "cpu", "n_bootstrap": 200, **QUIET}


@pytest.fixture(scope="module")
def classified():
    adata = cohort()
    tl.slide(adata, "label", **FAST)
    return adata


def test_attention_finds_the_planted_tiles(classified):
    result = classified.uns["stamp_slide"]
    metrics = result["metrics"]
    assert metrics.loc["abmil", "auc"] > 0.9
    assert (metrics["auc_low"] <= metrics["auc"]).all()
    assert (metrics["auc"] <= metrics["auc_high"]).all()
    assert metrics.loc["abmil", "auc"] >= metrics.loc["mean", "auc"]  # few tiles of a slide: the mean drowns them
    of_tumour = classified.obs["label"] == "tumour"
    attention = classified.obs["stamp_slide_attention"]
    assert roc_auc_score(classified.obs["planted"][of_tumour], attention[of_tumour]) > 0.9
    assert attention[classified.obs["planted"]].mean() > 4
    assert attention.dtype == np.float32
    np.testing.assert_allclose(attention.groupby(classified.obs["slide"], observed=True).mean(), 1, rtol=1e-4)


def test_every_slide_has_a_prediction(classified):
    predictions = classified.uns["stamp_slide"]["predictions"]
    assert predictions.index.tolist() == classified.obs["slide"].cat.categories.tolist()
    for method in ("abmil", "mean"):
        np.testing.assert_allclose(predictions[[f"{method}_normal", f"{method}_tumour"]].sum(axis=1), 1)
        auc = roc_auc_score(predictions["label"] == "tumour", predictions[f"{method}_tumour"])
        assert classified.uns["stamp_slide"]["metrics"].loc[method, "auc"] == pytest.approx(auc)
    assert classified.uns["stamp"]["stamp_slide"]["classes"] == ["normal", "tumour"]


def test_permuted_labels_are_chance():
    found = []
    for seed in range(3):
        adata = cohort(seed=seed)
        names = adata.obs["slide"].cat.categories
        drawn = np.random.default_rng(seed).permutation(np.arange(len(names)) % 2)
        adata.obs["label"] = np.array(["normal", "tumour"])[drawn[adata.obs["slide"].cat.codes]]
        tl.slide(adata, "label", **FAST | {"n_epochs": 10})
        found.append(adata.uns["stamp_slide"]["metrics"]["auc"])
    assert (np.mean(found, axis=0) > 0.25).all()
    assert (np.mean(found, axis=0) < 0.7).all()


def test_a_patient_is_in_one_fold():
    adata = cohort(n_slides=24, n_tiles=5, slides_per_patient=3)
    tl.slide(adata, "label", methods=["mean"], **FAST)
    predictions = adata.uns["stamp_slide"]["predictions"]
    assert (predictions.groupby("patient")["fold"].nunique() == 1).all()
    assert "stamp_slide_attention" not in adata.obs
    assert adata.uns["stamp_slide"]["metrics"].loc["mean", "n_patients"] == 8


def test_no_leak_within_a_patient():
    """Every patient's slides share a signature of no meaning: folds by slide would read the label off it."""
    adata = cohort(n_slides=32, n_tiles=10, shift=0.0, slides_per_patient=4)
    random = np.random.default_rng(1)
    codes = adata.obs["patient"].astype("category").cat.codes.to_numpy()
    adata.obsm["X_stamp"] = adata.obsm["X_stamp"] + 3 * random.normal(size=(8, 24))[codes].astype(np.float32)
    tl.slide(adata, "label", methods=["mean"], **FAST)
    assert adata.uns["stamp_slide"]["metrics"].loc["mean", "auc"] < 0.9


def test_same_result_whatever_the_threads(classified):
    before = torch.get_num_threads()
    try:
        for n in (1, 2):
            torch.set_num_threads(n)
            adata = cohort()
            tl.slide(adata, "label", **FAST)
            assert torch.get_num_threads() == n
            assert np.array_equal(adata.obs["stamp_slide_attention"], classified.obs["stamp_slide_attention"])
            pd.testing.assert_frame_equal(
                adata.uns["stamp_slide"]["metrics"], classified.uns["stamp_slide"]["metrics"], check_exact=True
            )
    finally:
        torch.set_num_threads(before)


def test_same_result_from_dask_and_from_scattered_rows():
    import dask.array as da

    short = FAST | {"n_epochs": 3, "n_folds": 2}
    plain, lazy = cohort(n_slides=8), cohort(n_slides=8)
    lazy.obsm["X_stamp"] = da.from_array(lazy.obsm["X_stamp"], chunks=(50, 24))
    interleaved = cohort(n_slides=8)
    interleaved = interleaved[np.arange(480).reshape(8, 60).T.ravel()].copy()
    for adata in (plain, lazy, interleaved):
        tl.slide(adata, "label", **short)
    for other in (lazy, interleaved):
        pd.testing.assert_frame_equal(
            plain.uns["stamp_slide"]["predictions"], other.uns["stamp_slide"]["predictions"], atol=1e-6
        )
        again = other.obs["stamp_slide_attention"][plain.obs_names]
        np.testing.assert_allclose(again, plain.obs["stamp_slide_attention"], rtol=1e-5)


def test_three_labels_copy_and_tiles_drawn(tmp_path):
    adata = cohort(n_slides=12, n_tiles=20)
    adata.obs["label"] = [f"grade {int(s[1:]) % 3}" for s in adata.obs["slide"]]
    out = tl.slide(adata, "label", copy=True, max_tiles=5, key_added="g", **FAST | {"n_epochs": 2})
    assert "g" not in adata.uns
    assert out.uns["g"]["predictions"].filter(like="abmil_").shape == (12, 3)
    out.write_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(
        ad.read_h5ad(tmp_path / "a.h5ad").uns["g"]["metrics"], out.uns["g"]["metrics"], check_exact=True
    )


def changed(**columns):
    adata = cohort(n_slides=8, n_tiles=4)
    for name, value in columns.items():
        adata.obs[name] = value(adata.obs) if callable(value) else value
    return adata


@pytest.mark.parametrize(
    ("adata", "options", "error", "message"),
    [
        (changed(), {"use_rep": "X_pca"}, KeyError, "X_pca"),
        (changed(), {"patient_key": "donor"}, KeyError, "donor"),
        (changed(), {"library_key": "section"}, KeyError, "section"),
        (changed(label="tumour"), {}, ValueError, "at least two labels are needed"),
        (changed(label=lambda o: o["label"].where(o["slide"] != "S03")), {}, ValueError, "missing for 1 of 8 slides"),
        (changed(label=lambda o: np.arange(len(o)) % 2), {}, ValueError, "same for all tiles of a slide"),
        (changed(patient=lambda o: o["patient"].replace("P1", "P0")), {}, ValueError, "slides of different labels"),
        (changed(), {"n_folds": 5}, ValueError, "as many patients as there are folds"),
        (changed(), {"n_folds": 1}, ValueError, "`n_folds` must be at least 2"),
        (changed(), {"methods": ["abml"]}, ValueError, "Did you mean 'abmil'"),
        (changed(), {"methods": "abmil"}, ValueError, "must be a list"),
        (changed(), {"learning_rate": 0.0}, ValueError, "`learning_rate` must be above 0"),
        (changed()[:0].copy(), {}, ValueError, "empty"),
    ],
)
def test_bad_input(adata, options, error, message):
    with pytest.raises(error, match=message):
        tl.slide(adata, "label", **FAST | options)


def test_missing_label_and_nan_features():
    adata = cohort(n_slides=8, n_tiles=4)
    with pytest.raises(KeyError, match="stage"):
        tl.slide(adata, "stage")
    adata.obsm["X_stamp"][5, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite values in 1 tiles of slide 'S01'"):
        tl.slide(adata, "label", **FAST)


# pictures, end to end


def test_from_slides_to_attention_maps(folder, model):
    adatas = []
    for i in range(4):
        path = folder / f"E{i}.tif"
        truth = datasets.toy_slide(path, size_um=600, tumor=0.4 * (i % 2), rng=i)
        adata = ad.read_zarr(tl.embed_slide(path, folder / f"E{i}.zarr", model=model, level="feature", **QUIET))
        x, y = adata.obsm["spatial"].astype(int).T
        adata.obs["truth"] = truth[y, x]
        adata.obs["label"], adata.obs["patient"] = ("normal", "tumour")[i % 2], f"P{i}"
        adatas.append(adata)
    adata = ad.concat(adatas, uns_merge="unique")
    tl.slide(adata, "label", **FAST | {"n_folds": 2, "n_epochs": 5})
    axes = pl.slide(adata, ["E1", "E2"])
    assert len(axes) == 4
    assert axes[0].get_title().startswith("E1\ntumour (p = ")
    squares = axes[1].collections[0]
    assert len(squares.get_paths()) == (adata.obs["slide"] == "E1").sum()
    assert len(pl.slide(adata, tissue=False)) == 4
    with pytest.raises(KeyError, match="stamp_slide_attention"):
        pl.slide(adatas[0])
    with pytest.raises(ValueError, match="must be one of"):
        pl.slide(adata, "E9")


# manifests


def manifest(folder, text, name="slides.csv"):
    (folder / name).write_text(text)
    return folder / name


def test_manifest(tmp_path):
    (tmp_path / "A.x.tif").write_bytes(b"a")
    (tmp_path / "B.tif").write_bytes(b"b")
    table = datasets.slide_manifest(manifest(tmp_path, "slide,patient,label\nA.x.tif,1,T\nB.tif,2,N\n"))
    assert table.index.tolist() == ["A", "B"]
    assert table.loc["B"].tolist() == [str(tmp_path / "B.tif"), "2", "N"]
    gdc = "file_name\tcases.0.submitter_id\tstage\tmd5sum\nA.x.tif\tTCGA-1\tI\t0cc175b9c0f1b6a831c399e269772661\n"
    columns = {"slide": "file_name", "patient": "cases.0.submitter_id", "label": "stage", "md5": "md5sum"}
    table = datasets.slide_manifest(manifest(tmp_path, gdc, "gdc.tsv"), **columns)
    assert table["patient"].tolist() == ["TCGA-1"]
    with pytest.raises(ValueError, match="has MD5"):
        datasets.slide_manifest(manifest(tmp_path, gdc.replace("0cc1", "1cc1"), "gdc.tsv"), **columns)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("slide,patient\nA.tif,1\n", KeyError, "`label` not found"),
        ("slide,patient,label\n", ValueError, "has no rows"),
        ("slide,patient,label\nA.tif,1,\n", ValueError, "'label' is empty in 1 of 1 rows .first: row 2"),
        ("slide,patient,label\nA.tif,1,T\nA.tif,1,T\n", ValueError, "there twice"),
        ("slide,patient,label\nA.tif,1,T\nB.tif,1,N\n", ValueError, "slides of different labels"),
        ("slide,patient,label\nA.tif,1,T\nC.tif,2,N\n", FileNotFoundError, "1 of 2 slides do not exist"),
    ],
)
def test_bad_manifests(tmp_path, text, error, message):
    for name in "AB":
        (tmp_path / f"{name}.tif").write_bytes(b"")
    with pytest.raises(error, match=message):
        datasets.slide_manifest(manifest(tmp_path, text))


def test_gdc_query_is_an_address():
    from urllib.parse import parse_qs, urlsplit

    query = parse_qs(urlsplit(datasets.gdc_query()).query)
    filters = json.loads(query["filters"][0])
    values = {c["content"]["field"]: c["content"]["value"] for c in filters["content"]}
    assert values["cases.project.project_id"] == ["TCGA-LUAD"]
    assert values["access"] == ["open"]
    assert "md5sum" in query["fields"][0]
    with pytest.raises(ValueError, match="must be one of"):
        datasets.gdc_query(strategy="frozen")


def test_tissue_of_a_real_section_on_grey(data_dir):
    folder = data_dir / "10x" / "crc16" / "spatial"
    (positions,) = folder.glob("*positions*")
    (picture,) = folder.glob("*hires*")
    (factors,) = folder.glob("*scalefactors*")
    spots = pd.read_csv(positions, header=None)
    spots = spots[pd.to_numeric(spots[1], errors="coerce").notna()]
    scale = json.loads(factors.read_text())
    xy = spots[[5, 4]].to_numpy(float) * scale["tissue_hires_scalef"]
    with SlideImage.open(picture) as image:
        um = 65 / (scale["spot_diameter_fullres"] * scale["tissue_hires_scalef"])
        seen = overview(image, max(1.0, 8 / um))
        step = image.shape[1] / seen.shape[1]
    x, y = np.clip((xy / step).astype(int), 0, np.array(seen.shape[1::-1]) - 1).T
    found, inside = tissue_mask(seen)[y, x], spots[1].astype(int).to_numpy() == 1
    assert found[inside].mean() > 0.7
    assert found[~inside].mean() < 0.02
