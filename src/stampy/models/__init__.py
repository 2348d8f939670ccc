"""Models, pure torch: both towers, their losses, weights on disk, and other people's encoders behind the same door."""

from . import losses
from ._cards import Card, card, split_name, systems
from ._egn import EGN
from ._gene import GeneConfig, GeneEncoder
from ._image import ImageConfig, ImageEncoder, ImageOutput
from ._mil import GatedAttentionMIL, MILOutput
from ._predictors import Predictor, STNet
from ._published import load_published, load_published_gene_encoder
from ._stamp import RegionOutput, Stamp, StampConfig
from ._systems import GeneSystem, ImageSystem, SlideSystem, load_system
from ._weights import load, packaged, save

__all__ = [
    "EGN",
    "Card",
    "GatedAttentionMIL",
    "GeneConfig",
    "GeneEncoder",
    "GeneSystem",
    "ImageConfig",
    "ImageEncoder",
    "ImageOutput",
    "ImageSystem",
    "MILOutput",
    "Predictor",
    "RegionOutput",
    "STNet",
    "SlideSystem",
    "Stamp",
    "StampConfig",
    "card",
    "load",
    "load_published",
    "load_published_gene_encoder",
    "load_system",
    "losses",
    "packaged",
    "save",
    "split_name",
    "systems",
]
