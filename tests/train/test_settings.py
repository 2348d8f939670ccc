"""Settings: wrong types, impossible values, conflicts and settings without effect raise at construction."""

import inspect
import json
import pickle
import re
from dataclasses import fields, replace

import numpy as np
import pytest

from stampy import train
from stampy._field_names import ELSEWHERE
from stampy.models import GeneConfig, ImageConfig, StampConfig
from stampy.train import AlignConfig, PretrainConfig

SPECTRAL = {"start": "spectral", "norm": "pre", "rank_gate": True}


MEANT = [
    (PretrainConfig, "lerning_rate", "Did you mean 'lr'?"),
    (PretrainConfig, "learning_rate", "Did you mean 'lr'?"),
    (PretrainConfig, "learning-rate", "Did you mean 'lr'?"),
    (PretrainConfig, "batch_size", "Did you mean 'groups_per_batch'?"),
    (PretrainConfig, "pairs_per_batch", "Did you mean 'groups_per_batch'"),
    (PretrainConfig, "epochs", "Did you mean 'epochs_igr' or 'epochs_cgr'?"),
    (PretrainConfig, "num_epochs", "Did you mean 'epochs_igr' or 'epochs_cgr'?"),
    (PretrainConfig, "n_layers", "Did you mean 'depth'?"),
    (PretrainConfig, "widht", "Did you mean 'width'"),
    (PretrainConfig, "zzz", "PretrainConfig. There are: ['accumulate'"),
    (AlignConfig, "learning_rate", "Did you mean 'lr'?"),
    (AlignConfig, "batch_size", "Did you mean 'pairs_per_batch'?"),
    (AlignConfig, "num_epochs", "Did you mean 'epochs'?"),
    (AlignConfig, "image_encoder", "Did you mean 'backbone'?"),
    (GeneConfig, "num_heads", "Did you mean 'heads'?"),
    (ImageConfig, "tile_px", "Did you mean 'tile_um'"),
    (StampConfig, "embed_dim", "Did you mean 'embedding'?"),
]


@pytest.mark.parametrize(("kind", "name", "message"), MEANT)
def test_unknown_setting_by_argument(kind, name, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        kind(**{name: 3})


@pytest.mark.parametrize(("kind", "name", "message"), [row for row in MEANT if hasattr(row[0], "of")])
def test_unknown_setting_by_mapping_and_file(kind, name, message, tmp_path):
    message = message.replace(f"{kind.__name__}.", "")
    with pytest.raises(ValueError, match=re.escape(message)):
        kind.of({name: 3})
    (tmp_path / "config.json").write_text(json.dumps({name: 3}))
    with pytest.raises(ValueError, match=re.escape(message)):
        kind.of(tmp_path / "config.json")


def test_unknown_setting_in_replace():
    with pytest.raises(TypeError, match="Did you mean 'lr'"):
        replace(PretrainConfig(), learning_rate=1e-3)


def test_checked_settings_keep_signature_and_pickle():
    assert list(inspect.signature(PretrainConfig).parameters) == [f.name for f in fields(PretrainConfig)]
    assert pickle.loads(pickle.dumps(PretrainConfig(lr=1e-3))) == PretrainConfig(lr=1e-3)


def test_names_elsewhere_mean_existing_settings():
    known = {f.name for kind in (PretrainConfig, AlignConfig, GeneConfig, StampConfig) for f in fields(kind)}
    assert {ours for names in ELSEWHERE.values() for ours in names} <= known


@pytest.mark.parametrize(
    ("kind", "settings", "error", "message"),
    [
        # wrong kinds
        (PretrainConfig, {"lr": "1e-4"}, TypeError, "`lr` must be a number above 0, found '1e-4'"),
        (PretrainConfig, {"width": 64.0}, TypeError, "`width` must be an integer"),
        (PretrainConfig, {"depth": True}, TypeError, "`depth` must be an integer"),
        (PretrainConfig, {"tied_heads": 1}, TypeError, "`tied_heads` must be True or False"),
        (PretrainConfig, {"frozen": "gene."}, TypeError, "`frozen` must be a sequence of names"),
        (PretrainConfig, {"start": None}, TypeError, "`start` must be one of"),
        (PretrainConfig, {"warmup_steps": 2.5}, TypeError, "`warmup_steps` must be an integer"),
        (AlignConfig, {"trainable": ("gene.*", 3)}, TypeError, "`trainable` must be a sequence of names"),
        (AlignConfig, {"backbone": 3}, TypeError, "`backbone` must be text"),
        (AlignConfig, {"backbone_kwargs": [1]}, TypeError, "`backbone_kwargs` must be a mapping"),
        (AlignConfig, {"backbone_kwargs": {"act": object}}, TypeError, "`backbone_kwargs` must contain plain values"),
        (AlignConfig, {"augment": "no"}, TypeError, "`augment` must be True or False"),
        # impossible values
        (PretrainConfig, {"cgr_targets": "mask"}, ValueError, "Did you mean 'masked'"),
        (PretrainConfig, {"pooling": "token"}, ValueError, "Did you mean 'tokens'"),
        (PretrainConfig, {"norm": "Pre"}, ValueError, "Did you mean 'pre'"),
        (PretrainConfig, {"precision": "fp16"}, ValueError, "`precision` must be one of"),
        (PretrainConfig, {"fused": "triton"}, ValueError, "`fused` must be one of"),
        (PretrainConfig, {"embedding": 0}, ValueError, "`embedding` must be at least 1"),
        (PretrainConfig, {"embedding": 2**21}, ValueError, "`embedding` must be at least 1 and at most"),
        (PretrainConfig, {"max_tokens": 70_000}, ValueError, "`max_tokens` must be at least 1 and at most 65535"),
        (PretrainConfig, {"lr": float("nan")}, ValueError, "`lr` must be above 0"),
        (PretrainConfig, {"lr": -1.0}, ValueError, "`lr` must be above 0"),
        (PretrainConfig, {"clip": 0}, ValueError, "`clip` must be above 0"),
        (PretrainConfig, {"dropout": 1.0}, ValueError, "`dropout` must be at least 0 and below 1"),
        (PretrainConfig, {"mask_fraction": 1.0}, ValueError, "`mask_fraction` must be above 0 and below 1"),
        (PretrainConfig, {"max_distance": float("inf")}, ValueError, "`max_distance` must be above 0"),
        (PretrainConfig, {"seed": -1}, ValueError, "`seed` must be at least 0"),
        (PretrainConfig, {"keep": 0}, ValueError, "`keep` must be at least 1"),
        (AlignConfig, {"epochs": 0}, ValueError, "`epochs` must be at least 1"),
        (AlignConfig, {"losses": ("patch_genes",)}, ValueError, "Did you mean 'patch_gene'"),
        (AlignConfig, {"losses": ()}, ValueError, "`losses` is empty"),
        (AlignConfig, {"losses": ("patch_gene", "patch_gene")}, ValueError, "has a name twice"),
        (AlignConfig, {"trainable": ()}, ValueError, "`trainable` is empty"),
        (AlignConfig, {"image_tower": "lorra"}, ValueError, "Did you mean 'lora'"),
        # conflicts
        (PretrainConfig, {"width": 10, "heads": 4}, ValueError, "`heads` must divide `width`"),
        (PretrainConfig, {"min_lr": 1e-3, "lr": 1e-4}, ValueError, "`min_lr` must be at most `lr`"),
        (PretrainConfig, {"epochs_igr": 0, "epochs_cgr": 0}, ValueError, "both 0"),
        (PretrainConfig, SPECTRAL, ValueError, "start='spectral' needs .* found .*pooling='tokens'"),
        (PretrainConfig, {"accumulate": 9}, ValueError, "`accumulate` must be at most `groups_per_batch`"),
        (AlignConfig, {"accumulate": 300}, ValueError, "`accumulate` must be at most `pairs_per_batch`"),
        (AlignConfig, {"pairs_per_batch": 25}, ValueError, "`pairs_per_batch` must be even"),
        (AlignConfig, {"start": "spectral", "pretrained": True}, ValueError, "conflict"),
        # without effect
        (PretrainConfig, {"positions_per_step": 2000}, ValueError, "positions_per_step=2000 has no effect"),
        (PretrainConfig, {"cgr_targets": "all", "epochs_cgr": 0}, ValueError, "has no effect: `epochs_cgr` is 0"),
        (AlignConfig, {"lora_rank": 4}, ValueError, "lora_rank=4 has no effect: `image_tower` is 'full'"),
    ],
)
def test_invalid_settings_raise(kind, settings, error, message):
    with pytest.raises(error, match=message):
        kind(**settings)
    with pytest.raises(error, match=message):
        kind.of(settings)


def test_settings_from_json_and_numpy_keep_their_types(tmp_path):
    (tmp_path / "c.json").write_text('{"losses": ["patch_gene"], "lr": 1, "min_lr": 0}')
    found = AlignConfig.of(tmp_path / "c.json")
    assert (found.losses, found.lr, type(found.lr)) == (("patch_gene",), 1.0, float)
    assert type(PretrainConfig(seed=np.int64(3), lr=np.float32(0.5), min_lr=0.0).seed) is int
    json.dumps(PretrainConfig(seed=np.int64(3)).to_dict())
    (tmp_path / "d.json").write_text("{lr: 1}")
    with pytest.raises(ValueError, match=r"d\.json' is not a JSON file"):
        AlignConfig.of(tmp_path / "d.json")


def test_shortened_warm_up_warns():
    assert AlignConfig().warmup(40_830) == 5000  # the paper's own run
    assert AlignConfig().warmup(1000) == 200
    assert PretrainConfig().warmup(40_830) == 100
    assert AlignConfig(warmup_steps=999).warmup(1000) == 999
    with pytest.raises(ValueError, match=r"`warmup_steps` is 5,000, the run has 1,000 steps"):
        AlignConfig(warmup_steps=5000).warmup(1000)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start": "spectral"}, "start='spectral' has no effect: the model to start from has an image encoder"),
        ({"pretrained": True}, "pretrained=True has no effect"),
        ({"backbone": "vit_small_patch16_224"}, "backbone='vit_small_patch16_224' has no effect"),
        ({"backbone_kwargs": {"depth": 3}}, "backbone_kwargs={'depth': 3} has no effect"),
        ({"frozen": ("genes.",)}, "`frozen`: no parameter starts with 'genes.'"),
    ],
)
def test_tower_settings_with_a_model_that_has_the_tower_raise(settings, message, model, tmp_path):
    """Before anything is read or made: the section is no HDF5 file."""
    (tmp_path / "none.h5ad").touch()
    with pytest.raises(ValueError, match=message):
        train.align(tmp_path / "none.h5ad", tmp_path / "out", model=model, config=settings, device="cpu")
    assert not (tmp_path / "out").exists()


def test_prefixes_of_stage_1_are_checked_before_anything_is_read(tmp_path):
    (tmp_path / "none.h5ad").touch()
    with pytest.raises(ValueError, match=r"no parameter starts with 'embedding\.'"):
        train.pretrain(tmp_path / "none.h5ad", tmp_path / "out", config={"frozen": ("embedding.",)}, device="cpu")
    everything = ("embeddings.", "positional", "layers.", "igr_head.", "cgr_head.")
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        train.pretrain(tmp_path / "none.h5ad", tmp_path / "out", config={"frozen": everything}, device="cpu")
    assert not (tmp_path / "out").exists()
