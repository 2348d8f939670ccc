"""A step of stage 2 does not synchronise before its losses are logged, and gives the same results as before."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch.utils._python_dispatch import TorchDispatchMode

from stampy import models, train
from stampy.models import losses
from stampy.models._kernels.packed import Packing
from stampy.train._align_step import Alignment
from stampy.train._config import LOSSES
from stampy.train._samplers import moved

SMALL = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
GENE = models.GeneConfig(n_genes=60, width=16, depth=1, heads=2, feedforward=24, max_tokens=12)


class Waits(TorchDispatchMode):
    """Record operations that synchronise with a GPU: numbers read from tensors, and counts of positions."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func) in {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.is_nonzero.default"}:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def stage(**config):
    torch.manual_seed(0)
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=SMALL)
    model = models.Stamp(models.StampConfig(gene=GENE, image=image, embedding=8))
    return Alignment(model, train.AlignConfig(**config)).train()


def batch(paired, known):
    generator = torch.Generator().manual_seed(1)
    n = len(paired)
    tokens = torch.randint(30, 90, (n, 12), generator=generator) * torch.tensor(paired)[:, None]
    tokens[:, 7:] = 0
    tiles = torch.randint(256, (2, n, 224, 224, 3), generator=generator, dtype=torch.uint8)
    cells = torch.where(torch.tensor(known), torch.arange(n) % 9, -1)
    return {"tokens": tokens, "patches": tiles[0], "regions": tiles[1], "cells": cells, "rows": torch.arange(n) // 2}


def former(out, data, cells):
    """The four losses by masks, as they were first written, for one process."""
    own, rows, scale = {k: out[k] for k in ("patch", "region", "gene")}, data["rows"], out["scale"]
    gathered = torch.cat(list(own.values()), dim=1)
    keys = dict(zip(own, gathered.split([x.shape[1] for x in own.values()], dim=1), strict=True))
    paired, known = (data["tokens"] != 0).any(dim=1), cells >= 0
    zero = (sum(x.sum() for x in out.values()) + gathered.sum()) * 0

    def with_genes(name):
        if int(paired.sum()) < 2:
            return zero
        return losses.symmetric_info_nce(
            own[name][paired], own["gene"][paired], scale, rows[paired],
            keys=(keys[name][paired], keys["gene"][paired]), key_ids=rows[paired],
        ) * 1.0  # fmt: skip

    def localization():
        query, grid = (F.normalize(out[k], dim=-1) for k in ("query", "grid"))
        cosine = torch.einsum("be,bce->bc", query, grid)
        if not bool(known.any()):
            return cosine.sum() * 0
        return F.cross_entropy(scale * cosine[known], cells[known].long())

    return {
        "patch_gene": with_genes("patch") + zero,
        "region_gene": with_genes("region") + zero,
        "patch_region": losses.info_nce(own["patch"], keys["region"], scale, rows, key_ids=rows) + zero,
        "localization": localization() * 1.0 + zero,
    }


@pytest.mark.parametrize(
    ("paired", "known"),
    [([True, False, True, True], [True, True, False, True]), ([True, False, False, False], [False] * 4)],
)
def test_losses_are_the_former_ones_bit_for_bit(paired, known):
    found, data = stage(augment=False), batch(paired, known)
    pieces = found.pieces(data, 0)
    there, views = found._genes_and_regions(pieces, torch.device("cpu")), found._views(pieces)
    with torch.no_grad():
        out = found(views[0])
        assert torch.equal(out["gene"], found.model.gene_embeddings(data["tokens"]))
    out, other = ({k: v.clone().requires_grad_() for k, v in out.items()} for _ in range(2))
    values, expected = found.losses(out, views, there), former(other, data, views[0]["cells"])
    assert tuple(values) == LOSSES
    for both in (values, expected):
        torch.stack([both[name] for name in LOSSES]).sum().backward()
    assert all(torch.equal(values[name], expected[name]) for name in LOSSES)
    for name in out:
        assert torch.equal(out[name].grad, other[name].grad), name


def test_forward_and_losses_do_not_synchronise():
    found, data = stage(augment=False), batch([True, False, True, True], [True, True, False, True])
    pieces = found.pieces(data, 0)
    there, views = found._genes_and_regions(pieces, torch.device("cpu")), found._views(pieces)
    with Waits() as forward:
        out = found(views[0])
    # On the CPU, `Packing` reads the lengths, one by one or as a list, from tensors that were never on a GPU.
    assert "aten.nonzero.default" not in forward.found
    with Waits() as scored:
        found.losses(out, views, there)
    assert scored.found.count("aten.nonzero.default") == 3  # of `there`, on the CPU


def test_attended_places_are_not_counted():
    packing = Packing((5, 3, 3, 1), (4, 2, 3, 1), torch.device("cpu"))
    expected = (packing.column < packing.key_starts.diff()[packing.spot]).nonzero()[:, 0]
    found = Packing(packing.queries, packing.keys, packing.device)
    with Waits() as waits:
        assert found.attended is not None
    assert not waits.found
    assert torch.equal(found.attended, expected)


def gradients(precision, accumulate, device="cpu"):
    """Of a step, by name; in float16 without the scale of the loss, which is halved until none overflows."""
    found = stage(accumulate=accumulate, precision=precision, augment=False)
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    module = fabric.setup_module(found)
    data = batch([True, False, True, True, True, True], [True, True, False, True, True, True])
    pieces = [moved(piece, fabric.device) for piece in found.pieces(data, 0)]
    scaler = getattr(fabric.strategy.precision, "scaler", None)
    while True:
        losses = found.run(fabric, module, pieces)
        scale = 1 if scaler is None else scaler.get_scale()
        grads = {k: (p.grad / scale).cpu() for k, p in found.named_parameters() if p.grad is not None}
        if all(grad.isfinite().all() for grad in grads.values()):
            return sum(float(v.detach()) for v in losses.values()), grads
        assert scale > 1, "the gradients themselves overflow"
        scaler.update(scale / 2)  # as training does after a step whose gradients overflow
        found.zero_grad()


def same_in_pieces(precision, device="cpu"):
    loss, whole = gradients(precision, 1, device)
    again, pieces = gradients(precision, 3, device)
    assert again == pytest.approx(loss, rel=1e-2)
    assert whole.keys() == pieces.keys()
    for name, grad in whole.items():
        assert (pieces[name] - grad).norm() <= 0.05 * grad.norm() + 1e-3, name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_gradients_of_a_batch_in_pieces_are_those_of_the_whole(precision):
    same_in_pieces(precision)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_gradients_of_a_batch_in_pieces_on_cuda(precision):
    same_in_pieces(precision, "cuda")


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")  # PyTorch's own
def test_step_on_cuda_does_not_synchronise():
    found = stage().cuda()
    data = batch([True, False, True, True], [True, True, False, True])
    pieces = [
        {k: v.pin_memory().cuda(non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in p.items()}
        for p in found.pieces(data, 0)
    ]
    try:
        torch.cuda.set_sync_debug_mode("error")
        there = found._genes_and_regions(pieces, torch.device("cuda"))
        views = found._views(pieces)
        torch.stack(list(found.losses(found(views[0]), views, there).values())).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
