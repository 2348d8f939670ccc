"""Training: stage 1 (`pretrain`), stage 2 (`align`), and adaptation of a model to sections in closed form (`adapt`)."""

from typing import TYPE_CHECKING, Any

from stampy import _imports

if TYPE_CHECKING:
    from stampy._io.sections import SectionInput
    from stampy.train._corpus.corpus import Corpus

    from ._adapt import adapt
    from ._align import align
    from ._config import AlignConfig, PretrainConfig
    from ._evaluate import evaluate
    from ._pretrain import pretrain

__all__ = ["AlignConfig", "Corpus", "PretrainConfig", "SectionInput", "adapt", "align", "evaluate", "pretrain"]

_MODULES = {
    "AlignConfig": "stampy.train._config",
    "Corpus": "stampy.train._corpus.corpus",
    "PretrainConfig": "stampy.train._config",
    "SectionInput": "stampy._io.sections",
    "adapt": "stampy.train._adapt",
    "align": "stampy.train._align",
    "evaluate": "stampy.train._evaluate",
    "pretrain": "stampy.train._pretrain",
}


def __getattr__(name: str) -> Any:
    # PEP 562: importing a training function imports torch; checking settings does not.
    if name == "Section":
        from stampy import _checks

        _checks.warn("`stampy.train.Section` is deprecated; its new name is `stampy.train.SectionInput`.")
        name = "SectionInput"
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(_imports.module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
