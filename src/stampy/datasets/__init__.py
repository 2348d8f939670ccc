"""Toy sections with known ground truth, and a registry of real sections, downloaded on request and checked by hash."""

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
