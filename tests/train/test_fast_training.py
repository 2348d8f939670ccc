"""Fast training equals plain training: packed spots, pieces, kernels, low-rank updates."""

import re
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from stampy import models, train
from stampy._utils import stream
from stampy.models import losses
from stampy.models._gene import MASK_ID, PAD_ID
from stampy.models._kernels.cross_entropy import kernel_for, linear_cross_entropy
from stampy.models._kernels.packed import Packing, attend
from stampy.models._lora import LoRALinear, add_lora, merge_lora
from stampy.train._loop.ranks import make_fabric
from stampy.train._pretrain_step import KINDS, Reconstruction

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
GENE = models.GeneConfig(n_genes=60, width=16, depth=2, heads=2, feedforward=24, max_tokens=12)


def stage(**config):
    torch.manual_seed(0)
    model = models.Stamp(models.StampConfig(gene=GENE, embedding=8)).double()
    return Reconstruction(model, train.PretrainConfig(max_tokens=12, **config), igr_steps=0)


def batch(lengths, width=12):
    tokens = torch.zeros(len(lengths) // 3, 3, width, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for row, length in zip(tokens.flatten(0, 1), lengths, strict=True):
        row[:length] = 30 + torch.randperm(60, generator=generator)[:length]
    return {"tokens": tokens, "positions": torch.arange(width), "rows": torch.arange(len(lengths)).view(-1, 3)}


def trained(found, data, step=3):
    """Losses and gradients of a step."""
    values = found.run(make_fabric("64-true", device="cpu"), found, found.pieces(data, step))
    return values, {k: p.grad for k, p in found.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("positions", [torch.arange(12), torch.tensor([0, 1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11])])
@pytest.mark.parametrize("cgr_targets", ["masked", "all"])
def test_packed_spots_give_the_losses_of_padded_ones(cgr_targets, positions):
    data = batch([12, 5, 12, 1, 9, 2]) | {"positions": positions}
    found = stage(cgr_targets=cgr_targets, mask_fraction=0.4)
    values, grads = trained(found, data)
    other = stage(cgr_targets=cgr_targets, mask_fraction=0.4)
    encoder, tokens = other.model.gene, data["tokens"]
    rows = [
        train._pretrain_step.mask_tokens(t, 90, fraction=0.4, rng=stream(0, "masks", 3, i))
        for i, t in enumerate(tokens)
    ]
    inputs, selected = torch.stack([a for a, _ in rows]), torch.stack([b for _, b in rows])
    hidden = encoder(inputs.flatten(0, 1), positions=positions)
    igr = losses.igr(hidden, tokens.flatten(0, 1), selected.flatten(0, 1), encoder.reconstruction)
    scored = selected[:, 0] if cgr_targets == "masked" else tokens[:, 0] != 0
    score = lambda h, t: encoder.reconstruction(h, t, head="cgr")  # noqa: E731
    cgr = losses.cgr(hidden.unflatten(0, tokens.shape[:2]), tokens[:, 0], scored, score)
    (igr + cgr).backward()
    assert set(values) - {"igr", "cgr"} <= set(KINDS)
    torch.testing.assert_close({k: values[k] for k in ("igr", "cgr")}, {"igr": igr.detach(), "cgr": cgr.detach()})
    own, ids = tokens.flatten(0, 1), inputs.flatten(0, 1)
    for kind, there in zip(KINDS, (ids == MASK_ID, (ids != own) & (ids != MASK_ID), ids == own), strict=True):
        at = there & selected.flatten(0, 1)
        if at.any():
            torch.testing.assert_close(values[kind], losses.igr(hidden, own, at, encoder.reconstruction).detach())
    for name, p in other.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(grads[name], p.grad, rtol=1e-8, atol=1e-10, msg=name)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=9, max_size=9), st.integers(2, 3), st.booleans())
def test_pieces_and_checkpointing_change_nothing(lengths, accumulate, checkpointing):
    data = batch(lengths)
    values, grads = trained(stage(mask_fraction=0.5), data)
    others, gradients = trained(
        stage(mask_fraction=0.5, accumulate=accumulate, checkpoint_activations=checkpointing), data
    )
    torch.testing.assert_close(values, others)
    for name, grad in grads.items():
        torch.testing.assert_close(gradients[name], grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "changes", [{}, {"pooling": "positions"}, {"pooling": "sum", "norm": "pre", "rank_gate": True}], ids=str
)
def test_features_in_training_are_those_of_inference(changes):
    torch.manual_seed(0)
    encoder = models.GeneEncoder(replace(GENE, **changes)).double()
    if encoder.config.rank_gate:
        torch.nn.init.normal_(encoder.rank_gate)
    tokens = batch([7, 0, 12, 3, 3, 1])["tokens"].flatten(0, 1)
    expected = encoder.eval().features(tokens)
    torch.testing.assert_close(encoder.train().features(tokens), expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_kernels_equal_runs():
    """The call that is made on CUDA, here by PyTorch's own CPU code for nested tensors."""
    packing = Packing((5, 3, 3, 1), (4, 3, 3, 1), torch.device("cpu"))
    q, k, v = torch.randn(3, 12, 2, 4, generator=torch.Generator().manual_seed(0))
    expected = attend(q, k, v, packing)
    k, v = k[packing.attended], v[packing.attended]
    nested = [
        torch.nested.nested_tensor_from_jagged(t, starts, min_seqlen=1, max_seqlen=5).transpose(1, 2)
        for t, starts in ((q, packing.starts), (k, packing.key_starts), (v, packing.key_starts))
    ]
    found = F.scaled_dot_product_attention(*nested).transpose(1, 2).values()
    torch.testing.assert_close(found, expected)
    assert packing.pack(torch.arange(8).view(4, 2), PAD_ID).tolist() == [0, 1, 1, 1, 1, 2, 3, 1, 4, 5, 1, 6]


def test_keys_of_other_ranks():
    a, b = (F.normalize(torch.randn(6, 4), dim=-1) for _ in range(2))
    ids = torch.tensor([0, 1, 2, 0, 4, 5])
    whole = losses.symmetric_info_nce(a, b, 3.0, ids)
    parts = [
        losses.symmetric_info_nce(a[i : i + 2], b[i : i + 2], 3.0, ids[i : i + 2], keys=(a, b), key_ids=ids, first=i)
        for i in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(parts) / 3, whole)


# Kernels


def test_missing_kernels():
    assert kernel_for("auto", "cpu", torch.bfloat16) == "torch"
    with pytest.raises(ImportError, match=r"needs the package liger-kernel"):
        kernel_for("liger", "cuda", torch.bfloat16)


def test_kernels_get_what_they_expect(monkeypatch):
    """Replacement with the signature of the package, which needs CUDA."""

    class Liger:
        def __init__(self, accum_dtype=None):
            assert accum_dtype == torch.float32  # else gradients add up in bfloat16

        def __call__(self, lin_weight, _input, target, bias=None):
            return F.cross_entropy(F.linear(_input, lin_weight, bias), target)

    packages = {"liger_kernel.transformers": {"LigerFusedLinearCrossEntropyLoss": Liger}, "liger_kernel": {}}
    for name, content in packages.items():
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(ValueError, match="runs only on CUDA"):
        kernel_for("liger", "cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="'torch', 'auto' or 'liger'"):
        kernel_for("cut", "cuda", torch.bfloat16)
    assert kernel_for("auto", "cuda", torch.bfloat16) == "liger"
    assert kernel_for("auto", "cuda", torch.float32) == "torch"
    hidden, weight, bias = torch.randn(5, 4), torch.randn(9, 4), torch.randn(9)
    targets = torch.tensor([0, 8, 3, 3, 1])
    monkeypatch.setattr("stampy.models._kernels.cross_entropy.kernel_for", lambda k, *_: k)
    found = linear_cross_entropy(hidden, weight, bias, targets, kernel="liger")
    torch.testing.assert_close(found, linear_cross_entropy(hidden, weight, bias, targets, kernel="torch"))


@pytest.mark.gpu
def test_kernels_on_cuda():
    pytest.importorskip("liger_kernel")
    hidden, weight = torch.randn(64, 512, device="cuda"), torch.randn(20_340, 512, device="cuda") * 0.05
    bias, targets = torch.randn(20_340, device="cuda") * 0.1, torch.randint(20_340, (64,), device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found = linear_cross_entropy(hidden, weight, bias, targets, kernel="liger")
        torch.testing.assert_close(found, linear_cross_entropy(hidden, weight, bias, targets), rtol=2e-2, atol=2e-2)


@pytest.mark.gpu
def test_spots_of_any_length_on_cuda():
    packing = Packing((70, 33, 33, 1), (40, 33, 33, 1), torch.device("cuda"))
    q, k, v = torch.randn(3, 137, 4, 32, device="cuda", dtype=torch.bfloat16).requires_grad_().unbind(0)
    found = attend(q, k, v, packing)
    on_cpu = Packing(packing.queries, packing.keys, torch.device("cpu"))
    expected = attend(*(t.detach().float().cpu() for t in (q, k, v)), on_cpu)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=2e-2, atol=2e-2)
    found.sum().backward()


# Low-rank updates


def test_merged_updates_do_the_same():
    torch.manual_seed(0)
    block = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4, bias=False))
    names, x = [n for n, _ in block.named_parameters()], torch.randn(3, 4)
    before = block(x)
    assert add_lora(block, 2) == 2
    torch.testing.assert_close(block(x), before)
    assert {n for n, p in block.named_parameters() if p.requires_grad} == {"0.down", "0.up", "2.down", "2.up"}
    with torch.no_grad():
        block[0].up.normal_()
    assert isinstance(block[0], LoRALinear)
    after = block(x)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(F.linear(x, block[0].weight, block[0].bias), block[0](x))
    assert merge_lora(block) == 2
    torch.testing.assert_close(block(x), after)
    assert [n for n, _ in block.named_parameters()] == names
    assert all(p.requires_grad for p in block.parameters())


def test_patch_and_region_in_one_pass(model):
    patches, regions = torch.randn(2, 3, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        references = model.image.shrink(patches)
        patch, region = model.patches_and_regions(patches, regions, references)
        torch.testing.assert_close(patch, model.image_embeddings(patches))
        for one, two in zip(region, model.regions(regions, references), strict=True):
            torch.testing.assert_close(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train.py --lengths 60", "align.py --backbone vit_tiny_patch16_224 --pairs 6"])
def test_the_benchmarks_run_to_their_end_and_their_steps_agree(script):
    """Each variant in the table has the losses of the plain step, so the comparison is of equal work."""
    file, *options = script.split()
    command = [sys.executable, str(BENCHMARKS / file), *options, "--layers", "1", "--steps", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line for line in done.stdout.splitlines() if re.match(r"\| (plain|ours|checkpointed|in 4)", line)]
    losses = [[float(x) for x in row.split("|")[-2].split()] for row in rows]
    assert len(losses) >= 3
    np.testing.assert_allclose(losses, [losses[0]] * len(losses), rtol=1e-4)
