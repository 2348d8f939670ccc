"""Tools: model and data -> results in AnnData."""

from ._attribute import attribute
from ._embed import embed
from ._retrieve import retrieve
from ._score import score

__all__ = ["attribute", "embed", "retrieve", "score"]
