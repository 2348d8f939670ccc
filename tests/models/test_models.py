"""Towers, losses, and weights on disk."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stampy import models
from stampy.models import losses
from stampy.models._image import pool_3x3
from stampy.models._kernels import cross_entropy
from stampy.models._kernels.cross_entropy import linear_cross_entropy

QUICK = settings(deadline=None, max_examples=25)


def encoder(**changes):
    sizes = {"n_genes": 60, "width": 8, "depth": 2, "heads": 2, "feedforward": 12, "max_tokens": 9} | changes
    torch.manual_seed(0)
    return models.GeneEncoder(models.GeneConfig(**sizes)).eval()


def ragged(lengths, width, n_genes=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.zeros(len(lengths), width, dtype=torch.int32)
    for row, length in enumerate(lengths):
        tokens[row, :length] = torch.randperm(n_genes, generator=generator)[:length] + 30
    return tokens


@pytest.mark.parametrize("pooling", ["tokens", "positions"])
@QUICK
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 5))
def test_a_spot_does_not_depend_on_its_batch(pooling, lengths, seed):
    gene, tokens = encoder(pooling=pooling), ragged(lengths, 9, seed=seed)
    with torch.no_grad():
        together = gene.features(tokens)
        alone = torch.cat([gene.features(t[None, : max(n, 1)]) for t, n in zip(tokens, lengths, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(together).all()
    assert (together[torch.tensor(lengths) == 0] == 0).all()


def test_pooling_of_own_tokens_is_a_plain_mean():
    gene, tokens = encoder(), ragged([5, 9, 1], 9)
    with torch.no_grad():
        found = gene.features(tokens)
        for row, length in enumerate((5, 9, 1)):
            torch.testing.assert_close(found[row], gene(tokens[row : row + 1, :length].long())[0].mean(0))


def test_longer_token_lists_are_cut_to_the_best_ranked():
    gene, tokens = encoder(), ragged([20], 20)
    torch.testing.assert_close(gene.features(tokens), gene.features(tokens[:, :9]))


@pytest.mark.parametrize("bad", [torch.zeros(2, 3), torch.zeros(3, dtype=torch.int32)])
def test_tokens_of_the_wrong_kind(bad):
    with pytest.raises(TypeError, match=r"integers of shape \(B, L\)"):
        encoder().features(bad)


def test_tokens_of_another_vocabulary():
    with pytest.raises(ValueError, match="vocabulary of another model"):
        encoder().features(torch.tensor([[95]]))


@pytest.mark.parametrize("tied", [False, True])
def test_reconstruction_is_cross_entropy_of_the_logits(tied):
    gene = encoder(tied_heads=tied)
    hidden, targets = torch.randn(7, 8), torch.randint(30, 90, (7,))
    for head in ("igr", "cgr"):
        plain = F.cross_entropy(gene.logits(hidden, head), targets)
        torch.testing.assert_close(gene.reconstruction(hidden, targets, head), plain)


@QUICK
@given(st.integers(1, 40), st.integers(2, 30), st.integers(1, 8), st.integers(0, 99))
def test_linear_cross_entropy_equals_the_plain_one(n, classes, block, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((n, 5), (classes, 5), (classes,))
    )
    targets = torch.randint(classes, (n,), generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cross_entropy._ELEMENTS, "cpu", block * classes)
        ours = linear_cross_entropy(hidden, weight, bias, targets)
        found = torch.autograd.grad(ours * 3, (hidden, weight, bias))
    plain = F.cross_entropy(F.linear(hidden, weight, bias), targets)
    expected = torch.autograd.grad(plain * 3, (hidden, weight, bias))
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-6)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_info_nce_against_a_loop():
    a, b = (F.normalize(torch.randn(6, 4), dim=1) for _ in range(2))
    ids = torch.tensor([0, 1, 2, 1, 4, 5])
    expected = []
    for i in range(6):
        scores = [7.0 * (a[i] @ b[j]) for j in range(6) if j == i or ids[j] != ids[i]]
        own = [j for j in range(6) if j == i or ids[j] != ids[i]].index(i)
        expected.append(-torch.log_softmax(torch.stack(scores), 0)[own])
    torch.testing.assert_close(losses.info_nce(a, b, 7.0, ids), torch.stack(expected).mean())


def test_localization_leaves_out_spots_without_a_region():
    query, grid, cells = torch.randn(5, 4), torch.randn(5, 9, 4), torch.tensor([3, -1, 0, 8, -1])
    known = cells >= 0
    found = losses.localization(query, grid, cells, 10.0)
    torch.testing.assert_close(found, losses.localization(query[known], grid[known], cells[known], 10.0))
    nothing = losses.localization(query.requires_grad_(), grid, torch.full((5,), -1), 10.0)
    assert nothing.item() == 0
    nothing.backward()


@pytest.mark.parametrize(("side", "width"), [(14, 6), (16, 8), (7, 3)])
def test_pool_3x3_covers_the_image_row_by_row(side, width):
    x = torch.arange(side * side).float().view(1, -1, 1)
    grid = pool_3x3(x)[0, :, 0].view(3, 3)
    image = x.view(side, side)
    torch.testing.assert_close(grid[0, 0], image[:width, :width].mean())
    torch.testing.assert_close(grid[0, 2], image[:width, -width:].mean())
    torch.testing.assert_close(grid[2, 1], image[-width:, side * 2 // 7 : side * 2 // 7 + width].mean())


def test_unknown_backbone_and_backbone_that_is_not_a_vit():
    with pytest.raises(ValueError, match="timm knows no model"):
        models.ImageEncoder(models.ImageConfig(backbone="vit_enormous", backbone_kwargs={}))
    with pytest.raises(ValueError, match="not a plain ViT"):
        models.ImageEncoder(models.ImageConfig(backbone="resnet18", backbone_kwargs={}))
    for rotary in ("eva02_tiny_patch14_224", "vit_small_patch16_dinov3"):
        with pytest.raises(ValueError, match="positions that are added once"):
            models.ImageEncoder(models.ImageConfig(backbone=rotary, backbone_kwargs={"depth": 1}))


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2", "vit_small_patch16_384"])
def test_a_backbone_made_for_other_sizes_takes_the_tiles(name):
    small = {"depth": 1, "embed_dim": 16, "num_heads": 2}
    encoder = models.ImageEncoder(models.ImageConfig(backbone=name, backbone_kwargs=small))
    side = 224 // encoder.patch_px
    assert encoder(torch.zeros(1, 3, 224, 224)).patches.shape == (1, side**2, 16)


# Weights on disk


@pytest.fixture
def saved(model, tmp_path):
    models.save(model, tmp_path / "weights")
    return tmp_path / "weights"


def test_round_trip_is_exact(model, saved):
    again = models.load(saved, device="cpu")
    assert again.config == model.config
    assert again.genes.equals(model.genes[["gene_id", "symbol", "divisor"]])
    for (name, a), (_, b) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_parameter_names_are_stable(saved):
    """Weights of today must load tomorrow: these names are a promise."""
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert {
        "gene.embeddings.weight",
        "gene.positional_embedding.weight",
        "gene.layers.0.self_attn.in_proj_weight",
        "gene.igr_head.weight",
        "gene.cgr_head.bias",
        "gene_head.weight",
        "image.base_model.pos_embed",
        "image.p_visual",
        "image.ref_pos_embed.weight",
        "patch_head.weight",
        "region_head.weight",
        "localization_head.weight",
        "logit_scale",
    } <= names


def test_half_precision_halves_the_file(model, saved, tmp_path):
    models.save(model, tmp_path / "half", dtype=torch.float16)
    whole, half = ((p / "model.safetensors").stat().st_size for p in (saved, tmp_path / "half"))
    assert half < 0.6 * whole
    assert models.load(tmp_path / "half").gene.embeddings.weight.dtype == torch.float32


def test_unknown_names():
    with pytest.raises(ValueError, match=r"Unknown model 'stamp-mini'\. Did you mean 'stamp"):
        models.load("stamp-mini")
    with pytest.raises(FileNotFoundError, match="No folder of weights"):
        models.load("./nowhere/at/all")


@pytest.mark.parametrize("name", ["model.safetensors", "genes.tsv"])
@pytest.mark.parametrize("how", ["truncated", "exchanged", "missing"])
def test_damaged_weights(saved, name, how):
    path = saved / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else content[:-1] + b"?")
    with pytest.raises((ValueError, FileNotFoundError), match=r"Copy or download"):
        models.load(saved)


def change(saved, **values):
    config = json.loads((saved / "config.json").read_text()) | values
    (saved / "config.json").write_text(json.dumps(config))


def test_newer_format(saved):
    change(saved, format=99)
    with pytest.raises(ValueError, match="Update stampy"):
        models.load(saved)


def test_config_of_another_model(saved):
    gene = json.loads((saved / "config.json").read_text())["gene"]
    change(saved, gene=gene | {"width": 32})
    with pytest.raises(ValueError, match="do not fit the model"):
        models.load(saved)
    change(saved, gene=gene | {"colour": 3})
    with pytest.raises(ValueError, match="no setting 'colour' in GeneConfig"):
        models.load(saved)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}'])
def test_invalid_config(saved, text):
    (saved / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json"):
        models.load(saved)


def test_folder_without_config(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No `config\.json`"):
        models.load(tmp_path)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a checkpoint was executed",))


def test_pickles_are_never_executed(tmp_path):
    (tmp_path / "model.bin").write_bytes(pickle.dumps({"state_dict": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="not a plain state dict"):
        models.load_published(tmp_path / "model.bin")
    torch.save({"spot_backbone.embeddings.weight": Evil()}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="not a plain state dict"):
        models.load_published(tmp_path / "model.bin")


def test_foreign_checkpoint(tmp_path):
    torch.save({"some.weight": torch.zeros(3)}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="not a published STAMP checkpoint"):
        models.load_published(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match=r"model\.bin"):
        models.load_published(tmp_path / "modle.bin")


def test_save_does_not_replace_other_folders(model, tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not changed"):
        models.save(model, tmp_path / "notes")
    assert (tmp_path / "notes" / "mine.txt").read_text() == "precious"
    models.save(model, tmp_path / "weights")
    models.save(model, tmp_path / "weights")  # weights may be replaced
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "weights"]


def test_interrupted_save_leaves_nothing(model, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(models._weights, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        models.save(model, tmp_path / "weights")
    assert not list(tmp_path.iterdir())


def test_model_without_image_tower(model):
    config = models.StampConfig(gene=model.config.gene, embedding=16)
    alone = models.Stamp(config, model.genes)
    assert alone.gene_embeddings(ragged([3], 5)).shape == (1, 16)
    with pytest.raises(ValueError, match="no image encoder"):
        alone.image_features(torch.zeros(1, 3, 224, 224))


def test_vocabulary_must_fit(vocabulary, model, small_model):
    with pytest.raises(ValueError, match="The vocabulary has 3 genes"):
        models.Stamp(model.config, vocabulary.frame.head(3))
    assert small_model(vocabulary).gene_embeddings(ragged([4], 4)).norm(dim=1).item() == pytest.approx(1)


def test_normalisation_of_tiles(model):
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8))
    found = model.image.normalize(tiles)
    assert found.shape == (2, 3, 8, 8)
    expected = (tiles[1, 2, 3, 0] / 255 - 0.485) / 0.229
    torch.testing.assert_close(found[1, 0, 2, 3], expected)


def test_saved_weights_are_readable_by_all_users(model, tmp_path):
    models.save(model, tmp_path / "m")
    (tmp_path / "ordinary").touch()
    rights = {path.stat().st_mode for path in [*(tmp_path / "m").iterdir(), tmp_path / "ordinary"]}
    assert len(rights) == 1


def test_loading_weights_imports_no_compiler_and_the_packaged_model_no_timm(tmp_path):
    gene = models.GeneConfig(n_genes=30, width=8, depth=1, heads=2, feedforward=16, max_tokens=12, tied_heads=True)
    genes = pd.DataFrame({"gene_id": [f"ENSG{i:011}" for i in range(30)], "symbol": "", "divisor": 1.0})
    model = models.Stamp(models.StampConfig(gene=gene, embedding=8), genes)
    models.save(model, tmp_path / "model")
    code = (
        f"import sys, stampy; model = stampy.models.load({str(tmp_path / 'model')!r}, device='cpu'); "
        "print('torch._dynamo' in sys.modules, sum(v.double().sum().item() for v in model.state_dict().values()));"
        "import torch; m = stampy.models.load('stampy-mini', device='cpu');"
        "print(m.embed_images(torch.zeros(1, 2, m.size_px, m.size_px, 3, dtype=torch.uint8)).shape[1],"
        " [name for name in ('timm', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    imported, total = first.split()
    assert imported == "False"
    assert second == "128 []"
    assert float(total) == sum(v.double().sum().item() for v in model.state_dict().values())
