"""Training: stage 1 (`pretrain`) and stage 2 (`align`); `adapt` fits a model to sections in closed form."""

from stampy._io.sections import Section
from stampy.train._corpus.corpus import Corpus

from ._adapt import adapt
from ._align import align
from ._config import AlignConfig, PretrainConfig
from ._evaluate import evaluate
from ._pretrain import pretrain

__all__ = ["AlignConfig", "Corpus", "PretrainConfig", "Section", "adapt", "align", "evaluate", "pretrain"]
