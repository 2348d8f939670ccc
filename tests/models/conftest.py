"""Fixtures of the tests of models."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest


@pytest.fixture
def interpreted():
    """Call a function of a test file on the CPU, by Triton's interpreter, in a process of its own."""
    if find_spec("triton") is None:
        pytest.skip("Triton is not installed")

    def run(function):
        paths = [str(Path(__file__).parent), *sys.path]
        done = subprocess.run(
            [sys.executable, "-c", f"import {function.__module__} as here; here.{function.__name__}()"],
            capture_output=True, text=True,
            env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(paths)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    return run
