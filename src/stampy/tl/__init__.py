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


def __getattr__(name: str) -> Any:
    # PEP 562: importing a tool imports torch; checking arguments does not.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    file = "_embed_sections" if name == "embed_slides" else f"_{name}"
    value = getattr(_imports.module(f"{__name__}.{file}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
