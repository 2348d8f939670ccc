"""`stampy.settings`: validation, and effect."""

import logging
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

import stampy
from stampy import _settings, _utils, _workers, pp, tl
from stampy._settings import settings


@pytest.fixture(autouse=True)
def as_before():
    before = settings.as_dict()
    yield
    for name, value in before.items():
        setattr(settings, name, value)


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("verbose", 1, AttributeError, "Did you mean 'verbosity'"),
        ("colour", 1, AttributeError, "There are: verbosity, progress_bars, device, cache_dir, seed"),
        ("verbosity", "loud", ValueError, "must be one of error, warning, info, debug, found 'loud'"),
        ("progress_bars", "no", TypeError, "must be True or False"),
        ("device", "gpu", ValueError, "must be None, 'cpu', 'cuda'"),
        ("seed", -1, TypeError, "integer from 0 on"),
        ("seed", True, TypeError, "integer from 0 on"),
    ],
)
def test_invalid_settings_raise(name, value, error, message):
    with pytest.raises(error, match=message):
        setattr(stampy.settings, name, value)
    with pytest.raises(error, match=message), stampy.settings.override(**{name: value}):
        pass


def test_an_override_ends():
    with settings.override(seed=4, device="cpu"):
        assert (settings.seed, settings.device) == (4, "cpu")
    assert (settings.seed, settings.device) == (0, None)
    with pytest.raises(KeyError, match="in the block"), settings.override(seed=4, device="cpu"):
        raise KeyError("in the block")
    assert (settings.seed, settings.device) == (0, None)


def test_seed_is_the_default(toy):
    def drawn(**given):
        return pp.neighborhoods(toy, copy=True, **given).obs["stamp_group"].to_numpy()

    zero, three = drawn(), drawn(rng=3)
    assert not np.array_equal(zero, three)
    with settings.override(seed=3):
        np.testing.assert_array_equal(drawn(), three)
        np.testing.assert_array_equal(drawn(rng=0), zero)  # an argument goes before


def test_the_seed_reaches_tools_and_training(toy, monkeypatch):
    from stampy import train
    from stampy.tl._evaluation import folds

    with settings.override(seed=5):
        assert train.PretrainConfig().seed == 5
        assert folds.int_seed(_settings.DEFAULT_SEED) == 5
        assert _utils.chosen_seed(_settings.DEFAULT_SEED) == 5
        assert _utils.chosen_seed(0) == 0
    adata = toy.copy()
    adata.obsm["X"] = np.random.default_rng(0).normal(size=(toy.n_obs, 4)).astype(np.float32)
    with settings.override(seed=5):
        tl.domains(adata, 3, use_rep="X")
    by_setting = adata.obs["stamp_domain"].tolist()
    tl.domains(adata, 3, use_rep="X", rng=5)
    assert adata.obs["stamp_domain"].tolist() == by_setting


def test_device_is_the_default():
    with settings.override(device="cpu"):
        assert _utils.device_of(None).type == "cpu"
    with settings.override(device="mps"):
        assert _utils.device_of("cpu").type == "cpu"


def test_seed_is_a_plain_integer():
    with settings.override(seed=np.int64(3)):
        assert type(settings.seed) is int


def test_bars(toy, model, capsys, monkeypatch):
    tl.embed(toy, model, modality="gene", copy=True)
    assert capsys.readouterr().err == ""  # not a terminal: no bars in the log of a job
    monkeypatch.setattr(_utils, "is_interactive", lambda: True)
    tl.embed(toy, model, modality="gene", copy=True)
    assert "genes" in capsys.readouterr().err
    with settings.override(progress_bars=False):
        tl.embed(toy, model, modality="gene", copy=True)
    assert capsys.readouterr().err == ""


def test_the_cache(tmp_path, monkeypatch):
    from stampy.datasets import _fetch

    monkeypatch.setenv("STAMPY_CACHE_DIR", str(tmp_path / "variable"))
    assert _fetch.cache_dir() == tmp_path / "variable"
    with settings.override(cache_dir=str(tmp_path / "setting")):
        assert _fetch.cache_dir() == tmp_path / "setting"


def test_verbosity():
    logger = logging.getLogger("stampy")
    with settings.override(verbosity="error"):
        assert logger.getEffectiveLevel() == logging.ERROR
    with settings.override(verbosity=4):
        assert settings.verbosity == "debug"
        assert logger.isEnabledFor(logging.DEBUG)
    assert logger.level == logging.NOTSET  # settings of the program take precedence
    code = "import stampy, logging; stampy.settings.verbosity = 'info'; logging.getLogger('stampy.x').info('told')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said == "told\n"


def test_environment_variables_set_the_defaults(monkeypatch):
    monkeypatch.setenv("STAMPY_SEED", "7")
    monkeypatch.setenv("STAMPY_PROGRESS_BARS", "0")
    monkeypatch.setenv("STAMPY_DEVICE", "cpu")
    made = _settings.Settings()
    assert (made.seed, made.progress_bars, made.device) == (7, False, "cpu")
    monkeypatch.setenv("STAMPY_SEED", "few")
    with pytest.raises(ValueError, match="STAMPY_SEED='few'"):
        _settings.Settings()


def test_workers_have_the_settings(monkeypatch):
    given = []
    monkeypatch.setattr(_workers, "ProcessPoolExecutor", lambda *a, **k: given.append(k) or ProcessPoolExecutor(1))
    with settings.override(seed=9), _workers.workers(None, 2, False):
        pass
    values, *_ = given[0]["initargs"]
    assert values["seed"] == 9
    monkeypatch.setattr(_workers, "_end_with_parent", lambda: None)
    _workers._initialise_worker(values, None, ())
    assert settings.seed == 9


def test_the_settings_are_listed():
    assert "seed = 0" in repr(settings)
    assert {"seed", "override"} <= set(dir(settings))
