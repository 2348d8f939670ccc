"""Toy sections with known ground truth, and a registry of real sections, downloaded on request and checked by hash."""

from typing import TYPE_CHECKING, Any

from stampy import _imports

if TYPE_CHECKING:
    from stampy.datasets._fetch import fetch, published_vocabulary
    from stampy.datasets._hest_manifest import hest_evaluation, hest_manifest
    from stampy.datasets._load import load
    from stampy.datasets._registry import Entry, File, Source, info, names
    from stampy.datasets._slide_manifest import gdc_query, slide_manifest
    from stampy.datasets._toy.toy import toy
    from stampy.datasets._toy.toy_hest import toy_hest
    from stampy.datasets._toy.toy_slide import toy_slide
    from stampy.datasets._toy.toy_spavis import ToySpavis, toy_spavis

__all__ = [
    "Entry",
    "File",
    "Source",
    "ToySpavis",
    "fetch",
    "gdc_query",
    "hest_evaluation",
    "hest_manifest",
    "info",
    "load",
    "names",
    "published_vocabulary",
    "slide_manifest",
    "toy",
    "toy_hest",
    "toy_slide",
    "toy_spavis",
]

_WHERE = {
    "_fetch": ("fetch", "published_vocabulary"),
    "_hest_manifest": ("hest_evaluation", "hest_manifest"),
    "_registry": ("Entry", "File", "Source", "info", "names"),
    "_load": ("load",),
    "_slide_manifest": ("gdc_query", "slide_manifest"),
    "_toy.toy": ("toy",),
    "_toy.toy_hest": ("toy_hest",),
    "_toy.toy_slide": ("toy_slide",),
    "_toy.toy_spavis": ("ToySpavis", "toy_spavis"),
}
_MODULES = {name: f".{module}" for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    # PEP 562: names and records do not need pandas and scipy, which sections do.
    return _imports.attribute(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return __all__
