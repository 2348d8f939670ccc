"""Models in pure torch: both encoders, their losses, weights on disk, and encoders of other groups."""

from typing import TYPE_CHECKING, Any

from stampy import _imports

if TYPE_CHECKING:
    from stampy.models._systems.base import GeneSystem, ImageSystem, SlideSystem
    from stampy.models._systems.cards import Card
    from stampy.models._systems.catalogue import card, split_name, systems
    from stampy.models._systems.egn import EGN
    from stampy.models._systems.predictors import Predictor, STNet

    from . import losses
    from ._gene import GeneConfig, GeneEncoder
    from ._image import ImageConfig, ImageEncoder, ImageOutput
    from ._load import load, load_system
    from ._mil import GatedAttentionMIL, MILOutput
    from ._published import load_published, load_published_gene_encoder
    from ._stamp import RegionOutput, Stamp, StampConfig
    from ._systems.catalogue import packaged
    from ._weights import push, save

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
    "push",
    "save",
    "split_name",
    "systems",
]

_WHERE = {
    "_systems.base": ("GeneSystem", "ImageSystem", "SlideSystem"),
    "_systems.cards": ("Card",),
    "_systems.catalogue": ("card", "packaged", "split_name", "systems"),
    "_systems.egn": ("EGN",),
    "_systems.predictors": ("Predictor", "STNet"),
    "_gene": ("GeneConfig", "GeneEncoder"),
    "_image": ("ImageConfig", "ImageEncoder", "ImageOutput"),
    "_load": ("load", "load_system"),
    "_mil": ("GatedAttentionMIL", "MILOutput"),
    "_published": ("load_published", "load_published_gene_encoder"),
    "_stamp": ("RegionOutput", "Stamp", "StampConfig"),
    "_weights": ("push", "save"),
}
_MODULES = {name: f".{module}" for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    # PEP 562: importing a model class imports torch; names and cards do not need it.
    if name == "losses":
        return _imports.module(f"{__name__}.losses")
    return _imports.attribute(__name__, _MODULES, name)


def __dir__() -> list[str]:
    return __all__
