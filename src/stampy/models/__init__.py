"""Models, pure torch: the gene encoder, the image encoder, both towers, their losses, weights on disk."""

from . import losses
from ._gene import GeneConfig, GeneEncoder
from ._image import ImageConfig, ImageEncoder, ImageOutput
from ._published import load_published, load_published_gene_encoder
from ._stamp import RegionOutput, Stamp, StampConfig
from ._weights import load, packaged, save

__all__ = [
    "GeneConfig",
    "GeneEncoder",
    "ImageConfig",
    "ImageEncoder",
    "ImageOutput",
    "RegionOutput",
    "Stamp",
    "StampConfig",
    "load",
    "load_published",
    "load_published_gene_encoder",
    "losses",
    "packaged",
    "save",
]
