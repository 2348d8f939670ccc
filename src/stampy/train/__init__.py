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
    "AlignConfig": "._config",
    "Corpus": "._corpus.corpus",
    "PretrainConfig": "._config",
    "SectionInput": "stampy._io.sections",
    "adapt": "._adapt",
    "align": "._align",
    "evaluate": "._evaluate",
    "pretrain": "._pretrain",
}


def __getattr__(name: str) -> Any:
    # PEP 562: importing a training function imports torch; checking settings does not.
    return _imports.attribute(__name__, _MODULES, name, renamed={"Section": "SectionInput"})


def __dir__() -> list[str]:
    return __all__
