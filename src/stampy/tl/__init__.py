"""Tools: model and data -> results in AnnData."""

from ._embed import embed

__all__ = ["embed"]
