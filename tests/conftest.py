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
