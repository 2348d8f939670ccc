"""Our own kernels for the attention of packed spots: against float32, by Triton's interpreter and on CUDA."""

import logging
import sys
import types

import pytest
import torch
import torch.nn.functional as F

from stampy.models import GeneConfig, GeneEncoder, Stamp, StampConfig
from stampy.models._kernels import attention, triton_check
from stampy.models._kernels.attention import Spans, _forward, _tried, spans_for
from stampy.models._kernels.packed import Packing

QUERIES = (1, 16, 17, 64, 65, 128, 130, 333)
KEYS = (1, 16, 12, 40, 65, 128, 129, 300)


def in_float32(qkv, grad, queries, keys):
    """Output and gradient, spot by spot."""
    x = qkv.detach().float().requires_grad_()
    found = []
    for spot, n in zip(x.split(list(queries)), keys, strict=True):
        q, k, v = (t.transpose(0, 1) for t in spot.unbind(1))
        found.append(F.scaled_dot_product_attention(q, k[:, :n], v[:, :n]).transpose(0, 1))
    out = torch.cat(found)
    return out.detach(), torch.autograd.grad(out, x, grad.float())[0]


def errors(queries, keys, heads, width, dtype, device):
    """Errors of the output and of the gradients of q, k and v, as shares of their norms."""
    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(sum(queries), 3, heads, width, device=device, generator=generator) * 1.4
    grad = torch.randn(heads, sum(queries), width, device=device, generator=generator).to(dtype).transpose(0, 1)
    qkv = qkv.to(dtype).requires_grad_()
    starts = torch.tensor([0, *queries], device=device).cumsum(0)
    found, _ = _forward(qkv, starts, torch.tensor(keys, device=device), max(queries))
    expected, expected_grad = in_float32(qkv, grad, queries, keys)
    (found_grad,) = torch.autograd.grad(found, qkv, grad)
    pairs = [(found, expected), *zip(found_grad.unbind(1), expected_grad.unbind(1), strict=True)]
    return [off(a, b) for a, b in pairs]


def off(found, expected):
    """The error as a share of the norm."""
    return ((found.detach().float() - expected.float()).norm() / expected.float().norm()).item()


def _some_lengths():
    assert max(errors((17, 130, 1, 64), (12, 129, 1, 64), 1, 32, torch.float16, "cpu")) < 1e-3
    assert max(errors((1, 65), (1, 60), 2, 64, torch.float16, "cpu")) < 1e-3


def test_kernels_are_right(interpreted):
    interpreted(_some_lengths)


def _every_length():
    for width in (32, 64):
        assert max(errors(QUERIES, KEYS, 2, width, torch.float16, "cpu")) < 1e-3


@pytest.mark.slow
def test_kernels_are_right_at_every_length(interpreted):
    interpreted(_every_length)


def _one_graph():
    from torch._dynamo.utils import counters

    attention._runs = lambda *_: True
    torch.manual_seed(0)
    encoder = GeneEncoder(GeneConfig(n_genes=60, width=64, depth=2, heads=2, feedforward=24, max_tokens=70)).train()

    for layer in encoder.layers:  # inputs of the ReLU far from 0, where rounding turns gradients on and off
        layer.linear1.bias.data.copy_(torch.tensor([8.0, -8.0]).repeat(12))

    def results(lengths, half=True):
        ids = torch.arange(30, 30 + sum(lengths)) % 60 + 30
        encoder.zero_grad()
        with torch.autocast("cpu", torch.float16, enabled=half):
            found = encoder.packed(ids, Packing(lengths, lengths, torch.device("cpu")))
        found.float().pow(3).sum().backward()
        return [found.detach(), *(p.grad for p in encoder.layers.parameters())]

    batches = [(5, 3, 1), (70, 33), (9, 9, 65, 1)]
    expected = [results(lengths) for lengths in batches]
    attention.ENABLED = False
    exact = results(batches[2], half=False)
    for found in (expected[2], results(batches[2])):
        assert max(off(a, b) for a, b in zip(found, exact, strict=True)) < 2e-3
    attention.ENABLED = True
    for layer in encoder.layers:
        layer.compile(dynamic=True, backend="aot_eager")
    for lengths, values in zip(batches, expected, strict=True):
        for a, b in zip(results(lengths), values, strict=True):
            assert off(a, b) < 1e-3
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compiled_layers_are_one_graph_at_all_lengths(interpreted):
    interpreted(_one_graph)


def test_elsewhere_pytorchs_own_kernels_run(monkeypatch, caplog):
    packing = Packing((3, 1), (3, 1), torch.device("cpu"))
    assert spans_for(packing, torch.bfloat16, 2, 32) is packing
    _tried.cache_clear()
    monkeypatch.setattr(triton_check, "_missing", lambda index: "Triton is not installed")
    on_cuda = Packing((3, 1), (3, 1), torch.device("cuda", 7))
    with caplog.at_level(logging.INFO, logger="stampy"):
        for width in (32, 32, 48):
            assert spans_for(on_cuda, torch.bfloat16, 2, width) is on_cuda
        assert spans_for(on_cuda, torch.float32, 2, 32) is on_cuda
    assert [r.message for r in caplog.records if "Triton" in r.message] == [
        "Attention runs on PyTorch's kernels, which are slower: Triton's cannot be used, since Triton is not installed"
    ]
    _tried.cache_clear()


def test_errors_of_triton_are_reasons(monkeypatch):
    """Its assembler does not know newer GPUs, and broken installations cannot be imported."""

    class TritonError(Exception):
        pass

    monkeypatch.setitem(sys.modules, "triton", types.SimpleNamespace(TritonError=TritonError))
    for error in (TritonError("sm_999 is not defined"), ImportError("libtriton.so")):

        def fail(*_, error=error):
            raise error

        said = f"they failed ({type(error).__name__}: {error})"
        monkeypatch.setattr(triton_check, "_missing", fail)
        assert triton_check.problem(0, bool) == said
        monkeypatch.setattr(triton_check, "_missing", lambda index: "")
        assert triton_check.problem(0, fail) == said
    with pytest.raises(ZeroDivisionError):
        triton_check.problem(0, lambda: bool(1 / 0))


def test_layers_in_another_precision_than_expected():
    """A wrapper may cast what goes into a layer: then PyTorch's own kernels run."""
    encoder = GeneEncoder(GeneConfig(n_genes=60, width=64, depth=1, heads=2, feedforward=24, max_tokens=9))
    packing = Packing((3, 1), (3, 1), torch.device("cpu"))
    x = torch.randn(4, 64)
    spans = Spans(packing, torch.bfloat16, packing.starts, packing.key_starts.diff(), 3)
    assert torch.equal(encoder.layers[0](x, spans), encoder.layers[0](x, packing))


# On CUDA

on_cuda = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def with_marks(test):
    """The compilers warn of what they do themselves."""
    for mark in on_cuda:
        test = mark(test)
    return test


@with_marks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [32, 64])
def test_kernels_on_cuda(width, dtype):
    assert _tried(torch.cuda.current_device(), dtype, 3, width)
    most = 8e-3 if dtype == torch.bfloat16 else 1e-3
    assert max(errors((*QUERIES, 1500, 700), (*KEYS, 1500, 256), 3, width, dtype, "cuda")) < most
    assert max(errors((64,) * 9, (64,) * 9, 3, width, dtype, "cuda")) < most


@with_marks
def test_gradients_are_the_same_every_time():
    qkv = torch.randn(1333, 3, 4, 32, device="cuda", dtype=torch.bfloat16).requires_grad_()
    starts = torch.tensor([0, 1000, 1333], device="cuda")
    first, second = (
        torch.autograd.grad(_forward(qkv, starts, starts.diff(), 1000)[0].sin().sum(), qkv)[0] for _ in "12"
    )
    assert torch.equal(first, second)


@with_marks
def test_the_operator_keeps_torchs_rules():
    qkv = torch.randn(83, 3, 2, 32, device="cuda", dtype=torch.bfloat16).requires_grad_()
    starts = torch.tensor([0, 70, 83], device="cuda")
    torch.library.opcheck(
        torch.ops.stampy.attention.default, (qkv, starts, starts.diff(), 70),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )  # fmt: skip


def step_of(compiled, precision="bf16-mixed"):
    """Losses and gradients of a step of stage 1, at the width of a head of the published encoder."""
    from lightning.fabric import Fabric  # not above: the process of the interpreter would import it as well

    from stampy.train import PretrainConfig
    from stampy.train._pretrain_step import Reconstruction

    torch.manual_seed(0)
    gene = GeneConfig(n_genes=400, width=128, depth=3, heads=4, feedforward=128, max_tokens=300)
    model = Stamp(StampConfig(gene=gene, embedding=8))
    model.gene_head.requires_grad_(False)
    stage = Reconstruction(model, PretrainConfig(max_tokens=300, precision=precision), igr_steps=0).train()
    for layer in stage.layers() if compiled else ():
        layer.compile(dynamic=True)
    fabric = Fabric(accelerator="cuda", devices=1, precision=precision)
    module = fabric.setup_module(stage)
    tokens = torch.zeros(3, 9, 300, dtype=torch.long)
    generator = torch.Generator().manual_seed(1)
    for n, row in enumerate(tokens.flatten(0, 1)):
        row[: 3 + 11 * n] = 30 + torch.randperm(400, generator=generator)[: 3 + 11 * n]
    pieces = stage.pieces({"tokens": tokens, "positions": torch.arange(300), "rows": torch.arange(27).view(3, 9)}, 0)
    pieces = [{k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in piece.items()} for piece in pieces]
    losses = {k: v.item() for k, v in stage.run(fabric, module, pieces).items()}
    return losses, torch.cat([p.grad.flatten() for p in stage.parameters() if p.grad is not None])


@with_marks
@pytest.mark.parametrize("compiled", [False, True])
def test_a_step_of_stage_1_is_that_of_pytorchs_kernels(compiled, monkeypatch):
    found, grad = step_of(compiled)
    again, grad_again = step_of(compiled)
    assert again == pytest.approx(found, rel=1e-5)  # sums by kind are atomic
    monkeypatch.setattr(attention, "ENABLED", False)
    expected, expected_grad = step_of(False)
    assert found == pytest.approx(expected, rel=3e-3)
    assert F.cosine_similarity(grad, expected_grad, dim=0) > 0.999
    # Embeddings are added up by atomic operations, whose order may differ.
    torch.testing.assert_close(grad_again, grad, rtol=1e-2, atol=1e-4)
