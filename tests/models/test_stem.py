"""The convolutional image encoder: computation, inputs, settings and licence."""

from importlib.resources import files

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import stampy
from stampy import models, train
from stampy.models._stem import BLOCKS, STEM, ConvStem, StemEncoder
from stampy.pp._tiles import TileSource

QUIET = {"device": "cpu", "progress": False}
PX = 48


def settings(**changes):
    return models.ImageConfig(**{"backbone": STEM, "backbone_kwargs": {"n_blocks": 4}, "size_px": PX, **changes})


@pytest.fixture(scope="module")
def model(vocabulary):
    gene = models.GeneConfig(
        n_genes=len(vocabulary), width=16, depth=1, heads=2, feedforward=16, max_tokens=64, pooling="bag"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        found = models.Stamp(models.StampConfig(gene=gene, image=settings(), embedding=12), vocabulary.frame).eval()
    found.image.rate.fill_(2.0)
    found.image.center.fill_(0.1)
    return found


def plain_block(block, x, stride):
    """An inverted residual as TensorFlow has it, written out."""

    def conv(layer, x, stride=1, groups=1):
        size, k = x.shape[-1], layer.weight.shape[-1]
        pad = max((-(-size // stride) - 1) * stride + k - size, 0)
        return F.conv2d(F.pad(x, [pad // 2, pad - pad // 2] * 2), layer.weight, layer.bias, stride, 0, 1, groups)

    y = x if isinstance(block.expand, torch.nn.Identity) else conv(block.expand, x).clamp(0, 6)
    y = conv(block.depthwise, y, stride, y.shape[1]).clamp(0, 6)
    y = conv(block.project, y)
    return y + x if y.shape == x.shape else y


@pytest.mark.parametrize("size", [48, 49, 55])
def test_stem_is_that_of_the_paper(size):
    torch.manual_seed(1)
    stem, x = ConvStem(len(BLOCKS)), torch.randn(2, 3, size, size)
    pad = 1 if size % 2 else 0
    expected = F.conv2d(F.pad(x, [pad, 1, pad, 1]), stem.first.weight, stem.first.bias, 2).clamp(0, 6)
    expected_maps = [expected]
    for block, (_, _, stride, n) in zip(stem.blocks, BLOCKS, strict=True):
        expected = plain_block(block, expected, stride)
        assert expected.shape[1] == n
        expected_maps.append(expected)
    expected_maps = [expected_maps[i] for i in (0, 3, 5, 8, 11)]
    for found, expected in zip(stem(x), expected_maps, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_feature_is_mean_and_deviation_of_tile_and_surroundings(model):
    images = torch.randn(3, 2, 3, PX, PX)
    with torch.inference_mode():
        maps = [m.unflatten(0, (3, 2)) for m in model.image.base_model(images.flatten(0, 1))]
        expected = torch.cat([f(m[:, i]) for i in (0, 1) for m in maps for f in (means, deviations)], dim=1)
        found = model.image_features(images)
    torch.testing.assert_close(found, (expected - 0.1) * 2, rtol=1e-4, atol=1e-3)
    assert found.shape == (3, model.image.width) == (3, 4 * (32 + 24 + 40))


def means(maps):
    return maps.mean(dim=(2, 3))


def deviations(maps):
    return maps.std(dim=(2, 3), correction=0)


def test_tile_alone_is_refused(model):
    with pytest.raises(ValueError, match=r"each tile with its surroundings: images must have shape \(B, 2, 3"):
        model.embed_images(torch.zeros(2, PX, PX, 3, dtype=torch.uint8))
    with pytest.raises(ValueError, match="Tiles of 24 px were given, this image encoder sees 48 px"):
        model.normalize(torch.zeros(2, 2, 24, 24, 3, dtype=torch.uint8))


def test_larger_tiles_are_reduced(model):
    """Those of a corpus, with the same result as tiles that were read at the tower's size."""
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    large = np.asarray(Image.fromarray(picture).resize((96, 96), Image.Resampling.BICUBIC))
    small = np.asarray(Image.fromarray(large).resize((PX, PX), Image.Resampling.BICUBIC))
    found, expected = (model.normalize(torch.from_numpy(np.stack([[x, x]]))) for x in (large, small))
    assert found.shape == expected.shape == (1, 2, 3, PX, PX)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone_kwargs": {}}, "must be {'n_blocks'"),
        ({"backbone_kwargs": {"n_blocks": 4, "depth": 2}}, "must be {'n_blocks'"),
        ({"backbone_kwargs": {"n_blocks": 12}}, "between 1 and 11"),
        ({"backbone_kwargs": {"n_blocks": True}}, "between 1 and 11"),
        ({"size_px": 32}, "at least 48"),
    ],
)
def test_settings(changes, message, vocabulary):
    config = models.StampConfig(gene=models.GeneConfig(n_genes=len(vocabulary)), image=settings(**changes))
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        models.Stamp(config)
    with pytest.raises(ValueError, match=message):
        models.StampConfig.from_dict(config.to_dict())


def test_public_vit_class_refuses_the_stem():
    with pytest.raises(ValueError, match="is not a ViT"):
        models.ImageEncoder(settings())


def test_saved_and_loaded(model, tmp_path):
    models.save(model, tmp_path / "m")
    again = models.load(tmp_path / "m", device="cpu")
    assert isinstance(again.image, StemEncoder)
    assert again.surroundings
    assert again.config == model.config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_packaged_stem_brings_its_licence():
    folder = files("stampy") / "models" / "weights" / "stampy-mini"
    text = (folder / "LICENSE-EfficientNet-Lite0.txt").read_text()
    assert "Copyright (c) 2020, ML Illustrated" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Apache License 2.0" in (folder / "README.md").read_text()


# In the tools


def by_hand(model, toy):
    """Embeddings of all spots from the tiles of `pp.tiles`."""
    tiles = stampy.pp.tiles(toy, size_px=PX, copy=True).obsm["stamp_tiles"]
    regions = stampy.pp.tiles(toy, size_px=PX, region=True, copy=True).obsm["stamp_tiles"]
    with torch.inference_mode():
        return model.embed_images(torch.from_numpy(np.stack([tiles, regions], axis=1))).numpy()


@pytest.mark.parametrize("batch_size", [1, 7, None])
def test_embed_input_equals_pp_tiles(batch_size, model, toy):
    adata = toy.copy()
    options = {"modality": "image", "batch_size": batch_size, "n_workers": 2, "show_progress_bar": False}
    stampy.tl.embed(adata, model, **options)
    np.testing.assert_allclose(adata.obsm["X_stamp"], by_hand(model, toy), atol=2e-5)
    tiles = adata.uns["stamp"]["X_stamp"]["tiles"]
    assert (tiles["tile_um"], tiles["surroundings_um"], tiles["size_px"]) == (112, 336, PX)
    order = np.random.default_rng(0).permutation(len(toy))
    turned = toy[order].copy()
    stampy.tl.embed(turned, model, **options)
    np.testing.assert_allclose(turned.obsm["X_stamp"], adata.obsm["X_stamp"][order], atol=2e-5)


def test_vector_is_a_function_of_the_image_alone(model, toy):
    """The vector of a spot does not depend on other spots of the table."""
    adata, alone = toy.copy(), toy[[5]].copy()
    um_per_px = TileSource.open(toy).um_per_px
    for data in (adata, alone):
        stampy.tl.embed(
            data, model, modality="image", um_per_px=next(iter(um_per_px.values())), show_progress_bar=False
        )
    np.testing.assert_allclose(alone.obsm["X_stamp"][0], adata.obsm["X_stamp"][5], atol=2e-5)


def test_spot_at_the_border_is_padded_with_white(model):
    """Beyond the picture its surroundings are white, as if the picture went on so."""
    picture = np.random.default_rng(1).integers(0, 200, (300, 300, 3), dtype=np.uint8)
    wide = np.full((900, 900, 3), 255, dtype=np.uint8)
    wide[300:600, 300:600] = picture
    inputs = []
    for image, at in ((picture, 5.0), (wide, 305.0)):
        adata = stampy.datasets.toy(n_spots=60)[:1].copy()
        del adata.uns["spatial"]
        adata.obsm["spatial"] = np.array([[at, at]])
        source = TileSource.open(adata, image=image, um_per_px=1.0, size_px=PX, surroundings=True)
        inputs.append(source.inputs(np.array([0])))
    np.testing.assert_array_equal(*inputs)


def test_embed_slide_uses_surroundings(model, tmp_path):
    import anndata

    picture = stampy.datasets.toy(n_spots=60).uns["spatial"]["toy"]["images"]["hires"]
    path = stampy.tl.embed_slide(
        picture, tmp_path / "S.zarr", model=model, um_per_px=1.6, name="S", chunk_size=10, show_progress_bar=False
    )
    found = anndata.read_zarr(path)
    source = TileSource.open(found, image=picture, um_per_px=1.6, size_px=PX, surroundings=True)
    with torch.inference_mode():
        expected = model.embed_images(torch.from_numpy(source.inputs(np.arange(len(found))))).numpy()
    np.testing.assert_allclose(found.obsm["X_stamp"], expected, atol=2e-5)
    assert found.uns["stamp"]["X_stamp"]["tiles"]["surroundings_um"] == 336


def test_digest_differs_with_surroundings(toy):
    digests = {TileSource.open(toy, size_px=PX, surroundings=s).digest(np.arange(3)) for s in (False, True)}
    assert len(digests) == 2


# In training


@pytest.mark.parametrize("losses", [("patch_gene",), ("patch_gene", "region_gene", "patch_region", "localization")])
def test_alignment_trains_it(losses, model, toy, tmp_path):
    config = {"losses": losses, "epochs": 1, "pairs_per_batch": 32, "lr": 1e-3, "accumulate": 2}
    tuned = train.align(toy[:48].copy(), tmp_path, model=model, config=config, **QUIET)
    before, after = model.state_dict(), tuned.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert "image.base_model.first.weight" in changed
    assert "patch_head.weight" in changed
    assert ("localization_head.weight" in changed) == ("localization" in losses)
    assert not {"image.center", "image.rate"} & changed
    again = models.load(tmp_path / "model", device="cpu")
    assert all(torch.equal(again.state_dict()[name], after[name]) for name in after)


def test_frozen_stem_trains_heads_alone(model, toy, tmp_path):
    config = {"image_tower": "frozen", "epochs": 1, "pairs_per_batch": 32, "checkpoint_activations": True}
    tuned = train.align(toy[:48].copy(), tmp_path, model=model, config=config, **QUIET)
    assert all(torch.equal(tuned.state_dict()[k], v) for k, v in model.state_dict().items() if k.startswith("image."))
    assert not torch.equal(tuned.patch_head.weight, model.patch_head.weight)


@pytest.mark.parametrize("useless", [{"image_tower": "lora"}])
def test_settings_of_a_vit_are_refused(useless, model, toy, tmp_path):
    with pytest.raises(ValueError, match="has no effect: the image encoder is a convolutional stem"):
        train.align(toy, tmp_path, model=model, config=useless, **QUIET)


def test_corpora_and_evaluation(model, toy, tmp_path):
    """Patches of a corpus are larger, and lie in any cell of their regions."""
    corpus = train.Corpus.build(toy, tmp_path / "c", max_tokens=64, size_px=2 * PX, n_workers=1, progress=False,
                                vocabulary=stampy.pp.Vocabulary(model.genes))  # fmt: skip
    with pytest.warns(stampy.StampyWarning, match=r"of 1\d\d tiles of the corpus have no surroundings centred on"):
        found = train.evaluate(model, corpus, n_groups=1, device="cpu")
    assert 0 <= found.loc["all", "recall_at_10"] <= 1
    config = {"epochs": 1, "pairs_per_batch": 32, "losses": ("patch_gene",)}
    tuned = train.align(corpus, tmp_path / "run", model=model, config=config, **QUIET)
    assert not torch.equal(tuned.patch_head.weight, model.patch_head.weight)
    here = train.evaluate(model, toy, n_groups=1, device="cpu")
    assert here.loc["all", "n_spots"] == len(toy)


def test_centred_surroundings_of_a_corpus_are_preferred(model, toy, tmp_path):
    corpus = train.Corpus.build(toy, tmp_path / "c", max_tokens=64, size_px=PX, regions=4, codec="zstd", n_workers=1,
                                progress=False, vocabulary=stampy.pp.Vocabulary(model.genes))  # fmt: skip
    (section,) = corpus.sections
    rows = np.flatnonzero(section.centred(np.arange(len(toy))))
    assert 0 < len(rows) < len(toy)
    source = TileSource.open(toy, size_px=PX, surroundings=True)
    np.testing.assert_array_equal(section.inputs(rows), source.inputs(rows))
