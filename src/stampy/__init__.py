"""stampy: histology and spatial gene expression in one embedding."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING

from stampy import _imports

if TYPE_CHECKING:
    from stampy._settings import Settings

__version__ = "0.2.0"

if sys.platform == "darwin":  # torch reads it on import: operations that MPS lacks then run on the CPU, with a warning
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_SUBPACKAGES = ("bench", "datasets", "models", "pl", "pp", "tl", "train")
__all__ = ["StampyWarning", "__version__", "bench", "datasets", "models", "pl", "pp", "read", "settings", "tl", "train"]


def __getattr__(name: str) -> ModuleType | Callable | type[Warning] | Settings:
    # PEP 562: subpackages are imported on first access, which keeps `import stampy` below 0.1 s.
    if name in _SUBPACKAGES:
        return _imports.module(f"{__name__}.{name}")
    if name == "read":
        return _imports.module(f"{__name__}._io.read").read
    if name == "settings":
        from stampy._settings import settings

        return settings
    if name == "StampyWarning":
        from stampy._checks import StampyWarning

        return StampyWarning
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
