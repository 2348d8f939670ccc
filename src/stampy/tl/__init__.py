"""Tools: model and data -> results in AnnData."""

from ._attribute import attribute
from ._domains import domains
from ._embed import embed
from ._embed_slide import embed_slide
from ._evaluate import evaluate
from ._expression import expression
from ._probe import probe
from ._retrieve import retrieve
from ._score import score
from ._slide import slide

__all__ = [
    "attribute",
    "domains",
    "embed",
    "embed_slide",
    "evaluate",
    "expression",
    "probe",
    "retrieve",
    "score",
    "slide",
]
