"""Two processes with half a batch each have the losses and weights of one process with the whole batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from stampy import datasets, models, train
from stampy.train._loop.ranks import Ranks, make_fabric

# float64: Adam makes steps of full size out of gradients that are nothing but rounding errors.
COMMON = {"precision": "64-true", "lr": 1e-2, "warmup_steps": 2}
STAGE1 = COMMON | {
    "width": 16,
    "depth": 2,
    "heads": 2,
    "feedforward": 16,
    "max_tokens": 40,
    "tied_heads": True,
    "groups_per_batch": 4,
    "epochs_igr": 1,
    "epochs_cgr": 1,
    "embedding": 12,
    "positions_per_step": 30,
}
SINGLE = STAGE1 | {"precision": "32-true", "lr": 1e-3, "checkpoint_every": 2}  # sharding does not support float64
STAGE2 = COMMON | {
    "backbone": "vit_tiny_patch16_224",
    "backbone_kwargs": {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "lr": 1e-3,
    "epochs": 1,
    "pairs_per_batch": 20,
}
QUIET = {"device": "cpu", "progress": False}


def section():
    return datasets.toy(n_spots=80, rng=0)


def pairs():
    """For stage 2: few tiles, and spots that have no genes."""
    few = section()[:20].copy()
    return [few, few[:, :0].copy()]


def halved(config):
    return {k: v // 2 if k in ("groups_per_batch", "pairs_per_batch") else v for k, v in config.items()}


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    command = [sys.executable, str(Path(__file__).with_name("_two_ranks.py")), str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as torchrun sets it
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-9000:]
    return out


def assert_alike(two, one, *, rtol=1e-4, atol=1e-5, noise=()):
    lines, expected = metrics(two), metrics(one)
    assert [x["step"] for x in lines] == [x["step"] for x in expected]
    for line, other in zip(lines, expected, strict=True):
        same = set(other) - {"spots_per_s", "step_s", "data_wait_s"}
        assert {k: line[k] for k in same} == pytest.approx({k: other[k] for k in same}, rel=rtol)
    assert json.loads((two / "config.json").read_text())["devices"] == 2
    weights, others = (models.load(f / "model", device="cpu").state_dict() for f in (two, one))
    for name, value in weights.items():
        if not name.endswith(tuple(noise)):
            torch.testing.assert_close(value, others[name], rtol=1e-4, atol=atol, msg=lambda m, name=name: name + m)


def test_stage_1_on_two_ranks_is_one_of_twice_the_batch(two, tmp_path):
    train.pretrain(section(), tmp_path, config=STAGE1, **QUIET)
    assert any("cgr" in line for line in metrics(tmp_path))
    assert_alike(two / "ddp1", tmp_path)


def test_sharded_weights_learn_like_whole_ones(two, tmp_path):
    train.pretrain(section(), tmp_path, config=SINGLE, **QUIET)
    # The bias of keys has no gradient; the gene head is made of components, which have no sign.
    assert_alike(
        two / "fsdp1", tmp_path, rtol=1e-3, atol=2e-4, noise=("in_proj_bias", "gene_head.weight", "gene_head.bias")
    )


@pytest.mark.parametrize("accumulate", [1, 3])
def test_stage_2_on_two_ranks_is_one_of_twice_the_batch(two, accumulate, tmp_path):
    """With spots that have no genes, which ranks have in different numbers."""
    config = STAGE2 | {"accumulate": accumulate}
    train.align(pairs(), tmp_path, model=two / "ddp1" / "model", config=config, **QUIET)
    assert_alike(two / "ddp2", tmp_path, rtol=1e-3, atol=1e-4)  # Fabric converts embeddings to float32


def test_a_signal_to_one_rank_stops_both_at_the_same_step(two):
    for rank in range(2):
        found = json.loads((two / f"stopped-{rank}.json").read_text())
        assert found == {"code": 143, "checkpoints": ["checkpoint-00000003.ckpt"]}
    assert_alike(two / "stopped", two / "ddp1", rtol=1e-12, atol=1e-12)


def test_one_rank_needs_no_processes():
    rows = torch.ones(2, 3, requires_grad=True)
    assert Ranks().gather(rows) is rows
    assert Ranks().total(rows) is rows


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"devices": 0}, "`devices` must be at least 1"),
        ({"strategy": "dpp"}, "Did you mean 'ddp'"),
        ({"device": "cpu:0", "devices": 2}, "names one device"),
    ],
)
def test_invalid_devices_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_fabric("32-true", **arguments)


def test_more_devices_than_available():
    with pytest.raises(ValueError, match="this machine has"):
        make_fabric("32-true", device="cuda", devices=99)


def test_settings_from_launchers(monkeypatch):
    from stampy.train._loop.ranks import _launched

    assert _launched() == (1, 1)
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert _launched() == (4, 2)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, value in {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "a"}.items():
        monkeypatch.setenv(name, value)
    assert _launched() == (2, 3)
