"""Tools: model and data -> results in AnnData."""

from ._attribute import attribute
from ._domains import domains
from ._embed import embed
from ._expression import expression
from ._probe import probe
from ._retrieve import retrieve
from ._score import score

__all__ = ["attribute", "domains", "embed", "expression", "probe", "retrieve", "score"]
from ._embed_slide import embed_slide
from ._slide import slide

__all__ = ["embed", "embed_slide", "slide"]
