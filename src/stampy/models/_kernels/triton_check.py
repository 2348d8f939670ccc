"""Whether kernels written in Triton run on a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import torch

__all__ = ["problem"]

_CAPABILITY = (8, 0)
_VERSION = (3, 4)  # version in the oldest supported torch


def problem(index: int, right: Callable[[], bool]) -> str:
    """Reason why the kernels cannot be used on a GPU; "" if they can.

    Parameters
    ----------
    index
        Index of the GPU.
    right
        Run the kernels on it, and compare the result: Triton also needs a C compiler on the machine.
    """
    try:
        found = _missing(index)
        return found or ("" if right() else "their result is wrong")
    except _errors() as error:
        return f"they failed ({type(error).__name__}: {error})"


def _errors() -> tuple[type[Exception], ...]:
    """Errors of kernels that cannot run; Triton's own, such as that of its assembler on a newer GPU, have one base."""
    own = getattr(sys.modules.get("triton"), "TritonError", None)
    common = (RuntimeError, OSError, ImportError, subprocess.SubprocessError)
    return common if own is None else (*common, own)


def _missing(index: int) -> str:
    if torch.version.hip or torch.cuda.get_device_capability(index) < _CAPABILITY:
        return "they need an NVIDIA GPU of compute capability 8.0"
    if find_spec("triton") is None:
        return "Triton is not installed"
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return "" if version >= _VERSION else f"version {triton.__version__} of Triton is too old"
