"""Our own kernel for the loss over all genes: against PyTorch's operators, by Triton's interpreter and on CUDA."""

import logging

import pytest
import torch
import torch.nn.functional as F

from stampy.models._kernels import cross_entropy, cross_entropy_triton, triton_check
from stampy.models._kernels.cross_entropy import _in_blocks, _runs, _tried, linear_cross_entropy


def problem(rows, classes, dtype, device, width=48):
    generator = torch.Generator(device).manual_seed(0)
    hidden, weight = (torch.randn(n, width, device=device, generator=generator) for n in (rows, classes))
    bias = torch.randn(classes, device=device, generator=generator)
    targets = torch.randint(classes, (rows,), device=device, generator=generator)
    return hidden.to(dtype), (weight * 0.2).to(dtype), bias, targets


def off(found, expected):
    """The error as a share of the norm."""
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def compare(rows, classes, dtype, device, most):
    """Both against float32, on the same rounded input."""
    given = problem(rows, classes, dtype, device)
    hidden, weight = (t.float().requires_grad_() for t in given[:2])
    bias = given[2].clone().requires_grad_()
    each = F.cross_entropy(F.linear(hidden, weight, bias), given[3], reduction="none")
    exact = [each.sum().detach(), each.detach(), *torch.autograd.grad(each.sum(), (hidden, weight, bias))]
    for of in (cross_entropy_triton.loss_and_gradients, _in_blocks):
        total, losses, grads = of(*given, wanted=True)
        found = [total, losses, *grads]
        assert [t.dtype for t in found] == [torch.float32] * 5
        assert [t.shape for t in found] == [t.shape for t in exact]
        assert max(off(a, b) for a, b in zip(found, exact, strict=True)) < most
    alone = cross_entropy_triton.loss_and_gradients(*given, wanted=False)
    assert off(alone[1], exact[1]) < most
    assert alone[2] == []


def _right():
    compare(7, 130, torch.float16, "cpu", 2e-3)
    compare(3, 64, torch.float16, "cpu", 2e-3)
    cross_entropy_triton._ELEMENTS = 3 * 192  # several blocks of rows
    compare(7, 130, torch.float16, "cpu", 2e-3)
    hidden, weight, bias, targets = problem(7, 130, torch.float16, "cpu")
    turned = weight.T.contiguous().T  # tied heads hand over a view
    for a, b in zip(
        cross_entropy_triton.loss_and_gradients(hidden, weight, bias, targets, wanted=True)[2],
        cross_entropy_triton.loss_and_gradients(hidden, turned, bias.half(), targets, wanted=True)[2],
        strict=True,
    ):
        assert off(a, b) < 2e-3
    try:
        cross_entropy_triton.loss_and_gradients(hidden, weight, bias, targets + 100, wanted=True)
    except RuntimeError:
        return
    raise AssertionError("a class that does not exist was taken")


def test_the_kernel_is_right(interpreted):
    interpreted(_right)


def test_elsewhere_pytorchs_operators_run(monkeypatch, caplog):
    _tried.cache_clear()
    monkeypatch.setattr(triton_check, "_missing", lambda index: "Triton is not installed")
    on_cuda = torch.device("cuda", 7)
    with caplog.at_level(logging.INFO, logger="stampy"):
        assert not _runs(on_cuda, torch.bfloat16, 20_340)
        assert not _runs(on_cuda, torch.bfloat16, 20_340)
        assert not _runs(torch.device("cpu"), torch.bfloat16, 20_340)
    assert [r.message for r in caplog.records if "Triton" in r.message] == [
        "The loss runs on PyTorch's operators, which are slower: Triton's cannot be used, since Triton is not installed"
    ]
    _tried.cache_clear()


def test_only_problems_that_were_tried_use_it(monkeypatch):
    monkeypatch.setattr(cross_entropy, "_tried", lambda *_: True)
    on_cuda = torch.device("cuda", 7)
    assert _runs(on_cuda, torch.bfloat16, 20_340)
    assert _runs(on_cuda, torch.float16, 32_768)
    assert not _runs(on_cuda, torch.bfloat16, 32_769)
    assert not _runs(on_cuda, torch.float32, 20_340)


@pytest.mark.parametrize(("wrong", "expected"), [(False, True), (True, False)])
def test_a_kernel_with_a_wrong_result_is_not_used(wrong, expected, monkeypatch):
    """The trial itself, on the CPU."""

    def kernel(*given, wanted):
        total, rows, grads = _in_blocks(*given, wanted=wanted)
        return total, rows, [grads[0], grads[1] * (1.1 if wrong else 1), grads[2]]

    monkeypatch.setattr(triton_check, "_missing", lambda index: "")
    monkeypatch.setattr(cross_entropy, "_in_one_pass", kernel)
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *given, device: arange(*given))
    _tried.cache_clear()
    assert _tried(0, torch.bfloat16) is expected
    _tried.cache_clear()


# On CUDA

with_marks = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")


@pytest.mark.gpu
@with_marks
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_on_cuda(dtype):
    assert _tried(torch.cuda.current_device(), dtype)
    most = 1e-2 if dtype == torch.bfloat16 else 2e-3
    compare(300, 20_340, dtype, "cuda", most)
    compare(7, 130, dtype, "cuda", most)


@pytest.mark.gpu
@with_marks
def test_the_loss_on_cuda_is_that_of_pytorchs_operators(monkeypatch):
    hidden, weight, bias, targets = problem(300, 20_340, torch.float32, "cuda")
    given = [t.requires_grad_() for t in (hidden, weight, bias)]
    found = []
    for enabled in (True, False):
        monkeypatch.setattr(cross_entropy, "ENABLED", enabled)
        with torch.autocast("cuda", torch.bfloat16):
            loss = linear_cross_entropy(*given, targets)
        found.append([loss.detach(), *torch.autograd.grad(loss, given)])
    assert max(off(a, b) for a, b in zip(*found, strict=True)) < 1e-2
