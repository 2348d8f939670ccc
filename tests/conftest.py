"""Fixtures that the layers share."""

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")

REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("STAMPY_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
REFERENCE = DATA.parent / "reference"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real sections; the test is skipped where there is none."""
    if not (DATA / "sections").is_dir():
        pytest.skip("no real sections here (STAMPY_DATA_DIR)")
    return DATA


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Inputs and outputs of the published implementation; the test is skipped where there are none."""
    if not (REFERENCE / "golden").is_dir():
        pytest.skip("no reference outputs here (STAMPY_DATA_DIR)")
    return REFERENCE


def _small_model(vocabulary, **changes):
    import torch

    from stampy import models

    gene = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 64} | changes
    vit = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=vit)
    config = models.StampConfig(gene=models.GeneConfig(n_genes=len(vocabulary), **gene), image=image, embedding=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.Stamp(config, vocabulary.frame).eval()
    model.name = "small"
    return model


@pytest.fixture(scope="session")
def toy():
    """A toy section; a test that changes it takes a copy."""
    from stampy import datasets

    return datasets.toy(n_spots=120, rng=0)


@pytest.fixture(scope="session")
def vocabulary(toy):
    """The toy section's own vocabulary."""
    from stampy.pp import Vocabulary

    return Vocabulary.from_sections([toy], min_spots=1)


@pytest.fixture(scope="session")
def small_model():
    """Makes a `Stamp` of random weights that runs in milliseconds, for a vocabulary."""
    return _small_model


@pytest.fixture(scope="session")
def model(vocabulary):
    """A small model of random weights for the toy section."""
    return _small_model(vocabulary)
