"""Tools: model and data -> results in AnnData."""

from ._domains import domains
from ._embed import embed
from ._expression import expression
from ._probe import probe

__all__ = ["domains", "embed", "expression", "probe"]
