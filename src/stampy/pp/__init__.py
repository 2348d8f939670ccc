"""Preprocessing: from raw data to the arrays that models take, without torch."""

from stampy._section.image.slide_image import SlideImage
from stampy._section.pixel_size import infer_um_per_px

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
