"""Models, pure torch: both towers, their losses, weights on disk, and other people's encoders behind the same door."""

from stampy.models._systems.cards import Card, card, split_name, systems
from stampy.models._systems.egn import EGN
from stampy.models._systems.load import GeneSystem, ImageSystem, SlideSystem, load_system
from stampy.models._systems.predictors import Predictor, STNet

from . import losses
from ._gene import GeneConfig, GeneEncoder
from ._image import ImageConfig, ImageEncoder, ImageOutput
from ._mil import GatedAttentionMIL, MILOutput
from ._published import load_published, load_published_gene_encoder
from ._stamp import RegionOutput, Stamp, StampConfig
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
