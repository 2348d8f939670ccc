"""Preprocessing: raw data -> arrays that a model takes. No torch here."""

from stampy._scale import infer_um_per_px

from ._images import SlideImage
from ._neighborhoods import neighborhoods
from ._slides import slide_tiles
from ._tiles import tiles
from ._tokens import tokenize
from ._vocabulary import Vocabulary

__all__ = ["SlideImage", "Vocabulary", "infer_um_per_px", "neighborhoods", "slide_tiles", "tiles", "tokenize"]
