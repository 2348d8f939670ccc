"""Tools: compute results from models and data, and write them into AnnData."""

from typing import TYPE_CHECKING, Any

from stampy import _imports

if TYPE_CHECKING:
    from ._attribute import attribute
    from ._collect_sections import collect_sections
    from ._domains import domains
    from ._embed import embed
    from ._embed_sections import embed_sections, embed_slides
    from ._embed_slide import embed_slide
    from ._evaluate import evaluate
    from ._expression import expression
    from ._probe import probe
    from ._retrieve import retrieve
    from ._score import score
    from ._slide import slide

__all__ = [
    "attribute",
    "collect_sections",
    "domains",
    "embed",
    "embed_sections",
    "embed_slide",
    "embed_slides",
    "evaluate",
    "expression",
    "probe",
    "retrieve",
    "score",
    "slide",
]

_MODULES = {name: f"._{name}" for name in __all__} | {"embed_slides": "._embed_sections"}


def __getattr__(name: str) -> Any:
    # PEP 562: importing a tool imports torch; checking arguments does not.
    return _imports.attribute(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return __all__
