"""Comparison with outputs of the published implementation on small random weights (float32, 1e-4 relative)."""

import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from stampy import models
from stampy.models import losses
from stampy.models._gene import PAD_ID


def close(actual, expected, tolerance=1e-4):
    actual = torch.as_tensor(actual).detach().double()
    expected = torch.as_tensor(np.asarray(expected)).double()
    assert actual.shape == expected.shape
    error = (actual - expected).norm() / expected.norm()
    assert error < tolerance, f"relative error {error:.2e}"
    assert torch.allclose(actual, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.fixture(scope="module")
def golden(reference_dir):
    return reference_dir / "golden"


@pytest.fixture(scope="module")
def expected(golden):
    return json.loads((golden / "expected.json").read_text())


@pytest.fixture(scope="module")
def model(golden):
    return models.load_published(golden / "pytorch_model.bin", gene_heads=2, image_heads=2, device="cpu")


@pytest.fixture(scope="module")
def alignment(golden):
    return dict(np.load(golden / "alignment.npz"))


@pytest.fixture(scope="module")
def outputs(model, alignment):
    with torch.no_grad():
        images, regions = (model.image.normalize(torch.from_numpy(alignment[k])) for k in ("images", "regions"))
        tokens, references = torch.from_numpy(alignment["tokens"]), torch.from_numpy(alignment["reference_patches"])
        region = model.regions(regions, references)
        return {
            "gene_features": model.gene_features(tokens),
            "gene_embeddings": model.gene_embeddings(tokens),
            "image_features": model.image_features(images),
            "image_embeddings": model.image_embeddings(images),
            "region_embeddings": region.embeddings,
            "localization_query": region.query,
            "localization_grid": region.grid,
        }


OUTPUTS = [
    "gene_features",
    "gene_embeddings",
    "image_features",
    "image_embeddings",
    "region_embeddings",
    "localization_query",
    "localization_grid",
]


@pytest.mark.parametrize("name", OUTPUTS)
def test_outputs(name, outputs, alignment):
    close(outputs[name], alignment[name])


def test_spots_of_every_length(outputs, alignment):
    lengths = (alignment["tokens"] != 0).sum(axis=1)
    assert lengths.min() == 1
    assert lengths.max() == 1500
    for row in range(len(lengths)):
        close(outputs["gene_features"][row], alignment["gene_features"][row])


def test_one_spot_at_a_time_gives_the_same(model, alignment):
    with torch.no_grad():
        for row in (5, 8, 11):
            tokens = torch.from_numpy(alignment["tokens"][row : row + 1])
            close(model.gene_features(tokens)[0], alignment["gene_features"][row])
            trimmed = tokens[:, : int((tokens != 0).sum())]
            close(model.gene_features(trimmed)[0], alignment["gene_features"][row])


def test_alignment_losses(model, outputs, alignment, expected):
    scale, cells = model.scale.detach(), torch.from_numpy(alignment["positions"])
    patch, region, gene = (outputs[f"{k}_embeddings"] for k in ("image", "region", "gene"))
    found = {
        "train_patch_spot_loss": losses.symmetric_info_nce(patch, gene, scale),
        "train_region_spot_loss": losses.symmetric_info_nce(region, gene, scale),
        "train_patch_region_loss": losses.info_nce(patch, region, scale),
        "train_positioning_loss": losses.localization(
            outputs["localization_query"], outputs["localization_grid"], cells, scale
        ),
    }
    for name, value in found.items():
        assert float(value) == pytest.approx(expected["alignment_losses"][name], rel=1e-4), name
    assert float(sum(found.values())) == pytest.approx(expected["alignment_losses"]["train_loss"], rel=1e-4)


def test_references_are_reduced_patches(model, alignment):
    images = model.image.normalize(torch.from_numpy(alignment["images"]))
    assert model.image.shrink(images).shape == alignment["reference_patches"].shape


def test_pretraining_losses_and_gradients(golden, expected):
    encoder = models.load_published_gene_encoder(golden / "gene_encoder.ckpt.bin", heads=2, device="cpu").train()
    data = np.load(golden / "pretraining.npz")
    inputs, selected = torch.from_numpy(data["inputs"]).long(), torch.from_numpy(data["loss_mask"])
    tokens = torch.from_numpy(data["tokens"]).long()
    targets = tokens.flatten(0, 1)
    hidden = encoder(inputs)
    igr = losses.igr(hidden, targets, selected, partial(encoder.reconstruction, head="igr"))
    centre = tokens[:, 0]
    cgr = losses.cgr(
        hidden.unflatten(0, tokens.shape[:2]), centre, centre != 0, partial(encoder.reconstruction, head="cgr")
    )
    assert igr.item() == pytest.approx(expected["pretraining_losses"]["train_ori_loss"], rel=1e-4)
    assert cgr.item() == pytest.approx(expected["pretraining_losses"]["train_spatial_loss"], rel=1e-4)
    (igr + cgr).backward()
    norms = {_published_name(k): float(p.grad.norm()) for k, p in encoder.named_parameters()}
    assert set(norms) == set(expected["gradient_norms"])
    for name, norm in expected["gradient_norms"].items():
        assert norms[name] == pytest.approx(norm, rel=1e-4), name


def _published_name(name):
    for ours, theirs in (
        ("layers.", "encoder.layers."),
        ("igr_head.", "classifier_head."),
        ("cgr_head.", "spatial_classifier_head."),
    ):
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def test_plain_encoder_layer_gives_the_same(golden):
    """Against `nn.TransformerEncoderLayer` itself, on all positions with a key mask."""
    encoder = models.load_published_gene_encoder(golden / "gene_encoder.ckpt.bin", heads=2, device="cpu")
    ids = torch.from_numpy(np.load(golden / "pretraining.npz")["inputs"][[3, 10]]).long()
    with torch.no_grad():
        x = encoder.embeddings(ids) + encoder.positional_embedding.weight
        for layer in encoder.layers:
            plain = torch.nn.TransformerEncoderLayer(16, 2, 24, 0.0, F.relu, 1e-12, batch_first=True)
            plain.load_state_dict(layer.state_dict())
            x = plain(x, src_key_padding_mask=ids == PAD_ID)
        close(encoder(ids), x.numpy())


@pytest.mark.parametrize("wrapped", ["plain", "module", "state_dict"])
def test_published_checkpoint_is_loaded_strictly(golden, tmp_path, wrapped):
    tensors = torch.load(golden / "pytorch_model.bin", weights_only=True)
    if wrapped == "module":
        tensors = {f"module.{k}": v for k, v in tensors.items()}
    torch.save({"state_dict": tensors} if wrapped == "state_dict" else dict(tensors), tmp_path / "model.bin")
    assert models.load_published(tmp_path / "model.bin", gene_heads=2, image_heads=2).name == "stamp"
    for change in ("missing", "extra", "shape"):
        changed = dict(tensors)
        key = next(k for k in changed if k.endswith("spot_projection.weight"))
        if change == "missing":
            del changed[key.replace("spot", "patch")]
        elif change == "extra":
            changed["another.weight"] = torch.zeros(2)
        else:
            changed[key] = torch.zeros(24, 17)
        torch.save(changed, tmp_path / "model.bin")
        with pytest.raises(ValueError, match=r"do not fit"):
            models.load_published(tmp_path / "model.bin", gene_heads=2, image_heads=2)
