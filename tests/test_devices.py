"""Devices: selection, and no float64 on Apple GPUs, which do not support it."""

import contextlib
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from stampy import StampyWarning, _utils, models, pp, tl
from stampy.tl._embedding import stream
from stampy.tl._methods import slide_classifiers


@pytest.mark.parametrize(
    ("cuda", "mps", "taken"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)  # fmt: skip
def test_the_best_device_is_taken(monkeypatch, cuda, mps, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert _utils.device_of(None).type == taken
    assert _utils.device_of("cpu").type == "cpu"


@pytest.mark.parametrize(("device", "what"), [("mps", "Apple GPU"), ("cuda:1", "CUDA device")])
def test_unavailable_device(monkeypatch, device, what):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match=f"torch sees no {what}"):
        _utils.device_of(device)


class NoFloat64(TorchDispatchMode):
    """Refuses every operation with a float64, as MPS does."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, found)):
            if isinstance(value, torch.Tensor) and value.dtype in (torch.float64, torch.complex128):
                raise TypeError(f"{function} on float64")
        return found


@pytest.fixture
def no_float64(monkeypatch):
    """Simulate a device without float64; tensors moved to the CPU are exempt."""
    double = _utils.float64

    def exempt(values):
        with _disable_current_modes():
            return double(values).float()  # keeps a supported type

    monkeypatch.setattr(slide_classifiers, "float64", exempt)
    monkeypatch.setattr(_utils, "float64", exempt)
    return NoFloat64()


def test_the_mode_refuses_float64(no_float64):
    with no_float64, pytest.raises(TypeError, match="float64"):
        torch.ones(2) * torch.ones(2, dtype=torch.float64)
    with no_float64, pytest.raises(TypeError, match="float64"):
        torch.from_numpy(np.ones(2)).float()


@pytest.mark.parametrize("modality", ["gene", "image", "fused"])
def test_towers_use_no_float64(toy, model, no_float64, modality):
    with no_float64:
        found = tl.embed(toy, model, modality=modality, level="embedding", copy=True, show_progress_bar=False)
    assert np.isfinite(found.obsm["X_stamp"]).all()


def test_the_packaged_model_uses_no_float64(toy, no_float64):
    model = models.load("stampy-mini", device="cpu")
    assert {v.dtype for v in model.state_dict().values()} <= {torch.float32, torch.int64}
    found = tl.embed(toy, model, modality="gene", copy=True, show_progress_bar=False).obsm["X_stamp"]
    tokens = np.ascontiguousarray(pp.tokenize(toy, pp.Vocabulary(model.genes), copy=True).obsm["stamp_tokens"][:8])
    with no_float64, torch.inference_mode():  # the path of GPUs; on the CPU a compiled loop takes its place
        values = model.project_genes(model.gene.features(torch.from_numpy(tokens)))
    np.testing.assert_allclose(values.numpy(), found[:8], atol=1e-5)


def test_slide_classifiers_use_no_float64(no_float64):
    random = np.random.default_rng(0)
    bags = [random.normal(size=(20, 4)).astype(np.float32) for _ in range(6)]
    recipe = slide_classifiers.Recipe(n_epochs=2)
    with no_float64:
        fitted = slide_classifiers.AttentionPooling(2, recipe, random, torch.device("cpu"))
        fitted.fit(lambda i: bags[i], np.arange(6), np.array([0, 1, 0, 1, 0, 1]))
        probabilities, attention = fitted.predict(bags[0])
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert attention.sum() == pytest.approx(1, abs=1e-5)


def test_missing_features_of_apple_gpus_warn_once():
    said = (
        "The operator 'aten::nonsense' is not currently supported on the MPS backend and will fall back to run on the "
        "CPU. This may have performance implications."
    )
    with (
        pytest.warns(StampyWarning, match="lacks aten::nonsense, and maybe other operations") as caught,
        stream._explained_mps_limits(),
    ):
        warnings.warn(said, UserWarning, stacklevel=1)
    assert len([w for w in caught if "MPS" in str(w.message)]) == 1
    with pytest.raises(RuntimeError, match="Import stampy before torch"), stream._explained_mps_limits():
        raise NotImplementedError("The operator 'aten::nonsense' is not currently implemented for the MPS device.")
    with pytest.raises(NotImplementedError, match="other"), stream._explained_mps_limits():
        raise NotImplementedError("other")


def test_apple_computers_fall_back_by_operation():
    code = "import sys, os; sys.platform = 'darwin'; import stampy; print(os.environ['PYTORCH_ENABLE_MPS_FALLBACK'])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "1"


@pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no Apple GPU here")
@pytest.mark.parametrize("modality", ["gene", "image", "fused"])
def test_an_apple_gpu_gives_the_same(toy, model, modality):
    here = tl.embed(toy, model, modality=modality, device="cpu", copy=True, show_progress_bar=False)
    with warnings.catch_warnings() if modality != "gene" else contextlib.nullcontext():
        warnings.simplefilter("ignore", StampyWarning)
        there = tl.embed(toy, model, modality=modality, device="mps", copy=True, show_progress_bar=False)
    assert there.uns["stamp"]["X_stamp"]["precision"] == "float32"
    np.testing.assert_allclose(there.obsm["X_stamp"], here.obsm["X_stamp"], atol=1e-3)
