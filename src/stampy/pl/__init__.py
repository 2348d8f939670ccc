"""Plots of results. These functions compute no results and write nothing into AnnData."""

from stampy.pl._attribute import attribute
from stampy.pl._bench import bench
from stampy.pl._domains import domains
from stampy.pl._evaluate import evaluate
from stampy.pl._expression import expression
from stampy.pl._probe import probe
from stampy.pl._retrieve import retrieve
from stampy.pl._score import score
from stampy.pl._slide import slide
from stampy.pl._spatial import spatial
from stampy.pl._tiles import tiles
from stampy.pl._training import training
from stampy.pl._umap import umap

__all__ = [
    "attribute",
    "bench",
    "domains",
    "evaluate",
    "expression",
    "probe",
    "retrieve",
    "score",
    "slide",
    "spatial",
    "tiles",
    "training",
    "umap",
]
