"""Training on a CUDA device equals training on the CPU, and does not synchronise before losses are logged."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.distributed as dist
from lightning.fabric import Fabric

from stampy.models import GeneConfig, Stamp, StampConfig
from stampy.pp import Vocabulary
from stampy.train import PretrainConfig
from stampy.train._data import MemorySection, TrainingData
from stampy.train._loop.loop import fit, locked_folder
from stampy.train._loop.ranks import make_fabric
from stampy.train._pretrain_step import Reconstruction
from stampy.train._samplers import GroupSampler, moved, pinned

# warnings of torch's compiler and process groups about themselves
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")]

N_GENES, N_SPOTS, WIDTH = 90, 64, 24
SMALL = {"width": 32, "depth": 2, "heads": 2, "feedforward": 32, "max_tokens": WIDTH, "groups_per_batch": 3,
         "lr": 1e-2, "warmup_steps": 1, "checkpoint_every": 3, "embedding": 8}  # fmt: skip


def data():
    """A section of spots of several lengths, made without anndata."""
    rng = np.random.default_rng(0)
    tokens = np.zeros((N_SPOTS, WIDTH), np.uint16)
    for row in tokens:
        n = rng.integers(5, WIDTH)
        row[:n] = 30 + rng.permutation(N_GENES)[:n]
    xy = np.stack(np.divmod(np.arange(N_SPOTS), 8), axis=1).astype(float)
    names = [f"G{i}" for i in range(N_GENES)]
    vocabulary = Vocabulary(pd.DataFrame({"gene_id": names, "symbol": names, "divisor": 1.0}))
    return TrainingData([MemorySection("a", xy, tokens, None)], vocabulary, WIDTH, {"made": "here"})


def model_of(config):
    torch.manual_seed(0)
    gene = GeneConfig(n_genes=N_GENES, width=32, depth=2, heads=2, feedforward=32, max_tokens=WIDTH)
    model = Stamp(StampConfig(gene=gene, embedding=8))
    model.gene_head.requires_grad_(False)
    return model


def trained(folder, device, strategy=None, steps=None, **changes):
    """Weights after a run, and the losses of its steps."""
    config = PretrainConfig.of(SMALL | {"epochs_igr": 1, "epochs_cgr": 2} | changes)
    sampler = GroupSampler(data(), config)
    fabric = make_fabric(config.precision, device=device, strategy=strategy)
    model = model_of(config)
    stage = Reconstruction(model, config, sampler.steps_per_epoch)
    losses = []
    run = stage.run

    def watched(*arguments):
        found = run(*arguments)
        losses.append({k: float(v) for k, v in found.items()})
        if steps and len(losses) == steps:
            raise KeyboardInterrupt
        return found

    stage.run = watched

    def whole(fabric):
        with locked_folder(fabric, folder) as out:
            return fit(stage, sampler, config, out, fabric=fabric, identity={"data": {}}, progress=False)

    try:
        found = fabric.launch(whole)
    except KeyboardInterrupt:
        found = None
    state = found if found is not None else model.state_dict()
    if dist.is_initialized():
        dist.destroy_process_group()
    return {k: v.cpu().float() for k, v in state.items()}, losses


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("cpu"), "cpu")


def means(losses):
    return [step["igr"] + step.get("cgr", 0) for step in losses]


@pytest.mark.parametrize("strategy", [None, "ddp", "fsdp"])
def test_a_run_on_cuda_is_that_of_the_cpu(strategy, on_cpu, tmp_path):
    weights, losses = trained(tmp_path, "cuda", strategy)
    assert len(losses) == len(on_cpu[1])
    np.testing.assert_allclose(means(losses), means(on_cpu[1]), rtol=2e-3)
    for name, value in weights.items():
        torch.testing.assert_close(value, on_cpu[0][name], rtol=0.02, atol=0.02)


@pytest.mark.parametrize("changes", [{"precision": "bf16-mixed"}, {"precision": "bf16-mixed", "compile": True},
                                     {"precision": "bf16-true"}, {"precision": "16-mixed"}, {"accumulate": 3},
                                     {"checkpoint_activations": True, "compile": True}], ids=str)  # fmt: skip
def test_precision_and_memory_change_little(changes, on_cpu, tmp_path):
    _, losses = trained(tmp_path, "cuda", **changes)
    np.testing.assert_allclose(means(losses), means(on_cpu[1]), rtol=0.05)


def test_interrupted_run_resumes(tmp_path):
    whole, _ = trained(tmp_path / "whole", "cuda")
    trained(tmp_path / "cut", "cuda", steps=5)
    found, losses = trained(tmp_path / "cut", "cuda")
    assert losses  # the rest alone
    for name, value in found.items():
        torch.testing.assert_close(value, whole[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_stage_1_step_does_not_synchronise(precision):
    config = PretrainConfig.of(SMALL)
    fabric = Fabric(accelerator="cuda", devices=1, precision=precision)
    stage = Reconstruction(model_of(config), config, 0).train()
    module = fabric.setup_module(stage)
    optimizer = torch.optim.AdamW(stage.parameters(), fused=True)
    batch = GroupSampler(data(), config).batch(0)
    pieces = [[pinned(piece) for piece in stage.pieces(batch, step)] for step in range(3)]
    for number, own in enumerate(pieces):
        torch.cuda.synchronize()
        try:
            torch.cuda.set_sync_debug_mode("error" if number else "default")  # the first step fills caches
            stage.run(fabric, module, [moved(piece, fabric.device) for piece in own])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
