"""Preprocessing: raw data -> arrays that a model takes. No torch here."""

from stampy._section.grid_scale import infer_um_per_px
from stampy._section.image import SlideImage

from ._bins import bins
from ._neighborhoods import neighborhoods
from ._orthologs import orthologs
from ._slide_tiles import slide_tiles
from ._tiles import tiles
from ._tokens import tokenize
from ._vocabulary import Vocabulary

__all__ = [
    "SlideImage",
    "Vocabulary",
    "bins",
    "infer_um_per_px",
    "neighborhoods",
    "orthologs",
    "slide_tiles",
    "tiles",
    "tokenize",
]
