"""The model of a tool: loaded by name, what it embeds, and the genes of a section in its vocabulary."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd

from stampy import _keys, models
from stampy._utils import device_of
from stampy.models import packaged
from stampy.models._load import load_stamp
from stampy.pp import Vocabulary, orthologs
from stampy.pp._orthologs import human_matched

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from stampy.pp._match_report import GeneMatch

    from ._arguments import Modality, Organism

__all__ = [
    "BASELINES",
    "Encoder",
    "ImageModel",
    "agreed_modality",
    "genes_of",
    "human_names",
    "image_model",
    "is_baseline",
    "loaded_model",
    "loaded_stamp",
    "match_genes",
    "stamp_of",
    "vocabulary_of",
]

BASELINES = ("pca", "pca-smoothed")  # fitted to the section: nothing is loaded
ImageModel: TypeAlias = models.Stamp | models.ImageSystem
Encoder: TypeAlias = ImageModel | models.GeneSystem


def is_baseline(model: str | Path | Encoder) -> bool:
    """Whether `model` is a baseline such as PCA, which is fitted to the section itself."""
    return isinstance(model, str) and model in BASELINES


def agreed_modality(asked: Modality | None, model: str | Path | Encoder) -> Modality | None:
    """The modality that was asked for, or the only one that the model has; ValueError where they differ."""
    embeds = _only_modality(model)
    if asked and embeds and asked != embeds:
        name = getattr(model, "name", model)
        raise ValueError(f"modality={asked!r} was asked for, but {name!r} embeds modality {embeds!r} alone.")
    return asked or embeds


def _only_modality(model: str | Path | Encoder) -> Modality | None:
    """What a model embeds, if that is one thing; ValueError for those that embed no spots."""
    if isinstance(model, models.Stamp):
        return None
    named = models.split_name(str(model)) if isinstance(model, str | Path) else None
    card = models.card(named[0]) if named else getattr(model, "card", None)
    if card is None or card.name == "stampy-mini":
        return None
    if card.modality == "slide":
        raise ValueError(
            f"{card.title} embeds slides, not spots. Embed the tiles by the encoder that it was trained with, then "
            f"call `stampy.models.load_system({card.name!r}, path).embed_slide(features)`."
        )
    if card.modality == "predictor":
        raise ValueError(f"{card.title} predicts expression and gives no embedding: see `stampy.models.Predictor`.")
    return card.modality


def loaded_model(model: str | Path | Encoder, device: str | torch.device | None) -> Encoder:
    """`model`, loaded where it is a name or a path, on the device. A packaged one is shared: leave it as it is."""
    if isinstance(model, str) and model in packaged():
        return _packaged_model(model, str(device_of(device)))
    found = models.load(model, device=device) if isinstance(model, str | Path) else model
    if not isinstance(found, Encoder):
        raise TypeError(f"`model` must be a name, a path or a loaded model, found {type(found).__qualname__}.")
    return found if device is None else found.to(device)


@lru_cache(maxsize=2)
def _packaged_model(name: str, device: str) -> models.Stamp:
    return load_stamp(name, device=device)


def loaded_stamp(model: str | Path | models.Stamp, device: str | torch.device | None) -> models.Stamp:
    """`model`, loaded; ValueError unless it is a `stampy.models.Stamp`, whose gene tower takes lists of genes."""
    return stamp_of(loaded_model(model, device))


def stamp_of(model: Encoder) -> models.Stamp:
    """`model`, if it is a `stampy.models.Stamp`; else ValueError."""
    if not isinstance(model, models.Stamp):
        raise ValueError(
            f"The model {model.name!r} takes no list of genes: that needs a `stampy.models.Stamp`, such as "
            "'stampy-mini'."
        )
    return model


def genes_of(model: models.Stamp | models.GeneSystem) -> pd.DataFrame:
    """The model's vocabulary as a table; ValueError where it has none."""
    if model.genes is None:
        raise ValueError(
            f"The model {model.name!r} has no vocabulary. Give it one: `model.genes` is a table with the columns "
            "gene_id, symbol and divisor; for the published checkpoint pandas reads it from "
            "`stampy.datasets.published_vocabulary()` (sep='\\t')."
        )
    return model.genes


_VOCABULARIES: OrderedDict[bytes, Vocabulary] = OrderedDict()  # by the hash of their tables; the latest last
_N_VOCABULARIES = 4


def vocabulary_of(model: models.Stamp | models.GeneSystem) -> Vocabulary:
    """The model's vocabulary, whose index of names is made once; ValueError where it has none."""
    genes = genes_of(model)
    key = pd.util.hash_pandas_object(genes).to_numpy().tobytes() + repr(list(genes)).encode()
    vocabulary = _VOCABULARIES.pop(key, None) or Vocabulary(genes)
    _VOCABULARIES[key] = vocabulary
    while len(_VOCABULARIES) > _N_VOCABULARIES:
        _VOCABULARIES.popitem(last=False)
    return vocabulary


def image_model(model: Encoder, otherwise: str = "Use another model.") -> ImageModel:
    """`model`, if it has an image tower; ValueError, which ends with `otherwise`, if it has none."""
    if isinstance(model, models.GeneSystem) or (isinstance(model, models.Stamp) and model.image is None):
        raise ValueError(f"The model {model.name!r} has no image tower. {otherwise}")
    return model


def match_genes(table: AnnData, vocabulary: Vocabulary, organism: Organism, layer: str | None) -> GeneMatch:
    """The genes of a section in a vocabulary of human genes.

    Genes of mouse go by their human orthologs: those in `var`, by `stampy.pp.orthologs`, else those that it would find.
    """
    if organism == "human":
        return vocabulary.match(table, layer=layer)
    return human_matched(table, vocabulary, layer=layer)


def human_names(genes: Sequence[str], organism: Organism, vocabulary: Vocabulary) -> list[str]:
    """Names of human genes; a mouse gene without an ortholog keeps its own, which the vocabulary does not have."""
    names = [str(gene).strip() for gene in genes]
    if organism == "human":
        return names
    from anndata import AnnData

    unique = list(dict.fromkeys(names))
    named = AnnData(np.ones((1, len(unique)), dtype=np.float32), var=pd.DataFrame(index=unique))
    orthologs(named, vocabulary=vocabulary)
    human = dict(zip(unique, named.var[_keys.ORTHOLOG].astype(str), strict=True))
    return [human[name] or name for name in names]
