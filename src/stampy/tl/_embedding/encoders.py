"""Model of a tool: load by name or adapt to sections; modalities; matching of its genes."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd

from stampy import _keys, models
from stampy._files import digest, digest_of_arrays, digest_of_tensors
from stampy._utils import check_device, device_of
from stampy.models import packaged
from stampy.models._load import load_stamp
from stampy.models._systems.catalogue import check_name
from stampy.pp import Vocabulary, orthologs
from stampy.pp._orthologs import human_matched

from .arguments import Organism

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from torch import nn

    from stampy.pp._genes.match_report import GeneMatch

    from .arguments import Modality

    ImageModel: TypeAlias = models.Stamp | models.ImageSystem
    Encoder: TypeAlias = ImageModel | models.GeneSystem

__all__ = [
    "BASELINES",
    "Encoder",
    "ImageModel",
    "agreed_modality",
    "check_loadable",
    "digest_of_towers",
    "genes_of",
    "hint_bfloat16",
    "human_names",
    "image_model",
    "is_baseline",
    "loaded_model",
    "loaded_stamp",
    "match_genes",
    "stamp_of",
    "vocabulary_of",
]

logger = logging.getLogger(__name__)

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # PEP 562: aliases for documentation tools, which evaluate annotations; at import they would import torch
        if name == "ImageModel":
            return models.Stamp | models.ImageSystem
        if name == "Encoder":
            return models.Stamp | models.ImageSystem | models.GeneSystem
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


BASELINES = ("pca", "pca-smoothed")  # fitted to the section; nothing is loaded


def is_baseline(model: str | Path | Encoder) -> bool:
    """Whether `model` is a baseline such as PCA, which is fitted to the section itself."""
    return isinstance(model, str) and model in BASELINES


def agreed_modality(asked: Modality | None, model: str | Path | Encoder) -> Modality | None:
    """The requested modality, or the only one of the model; ValueError if they differ."""
    embeds = _only_modality(model)
    if asked and embeds and asked != embeds:
        name = getattr(model, "name", model)
        raise ValueError(f"modality={asked!r} was requested, but {name!r} embeds only modality {embeds!r}.")
    return asked or embeds


def _only_modality(model: str | Path | Encoder) -> Modality | None:
    """Modality of a model if it has only one; ValueError for models that do not embed spots."""
    named = models.split_name(str(model)) if isinstance(model, str | Path) else None
    card = models.card(named[0]) if named else getattr(model, "card", None)
    if card is None or card.name == "stampy-mini":
        return None
    if card.modality == "slide":
        raise ValueError(
            f"{card.title} embeds slides, not spots. Embed the tiles with the encoder that it was trained with, "
            f"then call `stampy.models.load_system({card.name!r}, path).embed_slide(features)`."
        )
    if card.modality == "predictor":
        raise ValueError(f"{card.title} predicts expression and gives no embedding: see `stampy.models.Predictor`.")
    return card.modality


def loaded_model(model: str | Path | Encoder, device: str | torch.device | None) -> Encoder:
    """Load `model` onto the device if it is a name or path. Packaged models are shared and must not be changed."""
    if isinstance(model, str) and model in packaged():
        return _packaged_model(model, str(device_of(device)))
    check_loadable(model, device)
    found = models.load(model, device=device) if isinstance(model, str | Path) else model
    if not isinstance(found, models.Stamp | models.ImageSystem | models.GeneSystem):
        raise TypeError(f"`model` must be a name, a path or a loaded model, found {type(found).__qualname__}.")
    return found if device is None else found.to(device)


def check_loadable(model: object, device: object) -> None:
    """Raise for an unknown name or device, and for objects that are no models, before torch is imported."""
    check_device(device)
    if isinstance(model, str | Path):
        check_name(str(model))
    elif not hasattr(model, "state_dict"):
        raise TypeError(f"`model` must be a name, a path or a loaded model, found {type(model).__qualname__}.")


@lru_cache(maxsize=2)
def _packaged_model(name: str, device: str) -> models.Stamp:
    return load_stamp(name, device=device)


def loaded_stamp(model: str | Path | models.Stamp, device: str | torch.device | None) -> models.Stamp:
    """Load `model`; ValueError unless it is a `stampy.models.Stamp`, whose gene encoder accepts gene lists."""
    return stamp_of(loaded_model(model, device))


def stamp_of(model: Encoder) -> models.Stamp:
    """Return `model` if it is a `stampy.models.Stamp`; ValueError otherwise."""
    if not isinstance(model, models.Stamp):
        raise ValueError(
            f"The model {model.name!r} cannot embed a list of genes: this needs a `stampy.models.Stamp`, such as "
            "'stampy-mini'."
        )
    return model


def genes_of(model: models.Stamp | models.GeneSystem) -> pd.DataFrame:
    """Vocabulary of the model as a table; ValueError if it has none."""
    if model.genes is None:
        raise ValueError(
            f"The model {model.name!r} has no vocabulary. Give it one: `model.genes` is a table with the columns "
            "gene_id, symbol and divisor; for the published checkpoint pandas reads it from "
            "`stampy.datasets.published_vocabulary()` (sep='\\t')."
        )
    return model.genes


_VOCABULARIES: OrderedDict[bytes, Vocabulary] = OrderedDict()  # by the hash of their tables, most recent last
_N_VOCABULARIES = 4


def vocabulary_of(model: models.Stamp | models.GeneSystem) -> Vocabulary:
    """Vocabulary of the model, whose index of names is cached; ValueError if it has none."""
    genes = genes_of(model)
    key = pd.util.hash_pandas_object(genes).to_numpy().tobytes() + repr(list(genes)).encode()
    vocabulary = _VOCABULARIES.pop(key, None) or Vocabulary(genes)
    _VOCABULARIES[key] = vocabulary
    while len(_VOCABULARIES) > _N_VOCABULARIES:
        _VOCABULARIES.popitem(last=False)
    return vocabulary


def image_model(model: Encoder, otherwise: str = "Use another model.") -> ImageModel:
    """Return `model` if it has an image encoder; otherwise ValueError, whose message ends with `otherwise`."""
    if isinstance(model, models.GeneSystem) or (isinstance(model, models.Stamp) and model.image is None):
        raise ValueError(f"The model {model.name!r} has no image encoder. {otherwise}")
    return model


def match_genes(table: AnnData, vocabulary: Vocabulary, organism: Organism, layer: str | None) -> GeneMatch:
    """Match the genes of a section to a vocabulary of human genes.

    Mouse genes are matched by their human orthologs: those in `var` from `stampy.pp.orthologs`, else computed ones.
    """
    if organism == "human":
        return vocabulary.match(table, layer=layer)
    return human_matched(table, vocabulary, layer=layer)


def human_names(genes: Sequence[str], organism: Organism, vocabulary: Vocabulary) -> list[str]:
    """Names of human genes; mouse genes without ortholog keep their names, which are not in the vocabulary."""
    names = [str(gene).strip() for gene in genes]
    if organism == "human":
        return names
    from anndata import AnnData

    unique = list(dict.fromkeys(names))
    named = AnnData(np.ones((1, len(unique)), dtype=np.float32), var=pd.DataFrame(index=unique))
    orthologs(named, vocabulary=vocabulary)
    human = dict(zip(unique, named.var[_keys.ORTHOLOG].astype(str), strict=True))
    return [human[name] or name for name in names]


_DIGESTS: WeakKeyDictionary[nn.Module, tuple[object, dict[str, str]]] = WeakKeyDictionary()


def digest_of_towers(model: Encoder) -> dict[str, str]:
    """Hash of the weights of each encoder, by modality; computed once for a state of the weights.

    Hashes do not depend on the file, so a model has the same hash in memory and on disk. Heads belong to their encoder,
    the vocabulary to the gene encoder; settings are not included. An encoder whose weights are not all plain tensors,
    such as a quantised one, has no hash.
    """
    weights = dict(model.state_dict())
    state = [_state_of(name, tensor) for name, tensor in weights.items() if _is_plain(tensor)]
    before, hashes = _DIGESTS.get(model, (None, {}))
    if before != state:
        towers = {what: {k: t for k, t in weights.items() if k.startswith(b)} for what, b in _towers(model).items()}
        hashes = {what: digest_of_tensors(own) for what, own in towers.items() if all(map(_is_plain, own.values()))}
        _DIGESTS[model] = state, hashes
    found = dict(hashes)
    if "gene" in found and (genes := getattr(model, "genes", None)) is not None:
        vocabulary = digest(genes["gene_id"]) + digest_of_arrays(genes["divisor"].to_numpy(np.float64))
        found["gene"] = digest([found["gene"], vocabulary])
    return found


def _is_plain(weight: object) -> bool:
    """Whether a weight is a tensor of numbers in memory, not a quantised one or another state of a module."""
    import torch

    if not isinstance(weight, torch.Tensor) or type(weight) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return not (weight.is_quantized or weight.is_sparse)


def _state_of(name: str, tensor: torch.Tensor) -> tuple[object, ...]:
    """Key that changes with the values of a tensor; the sum, since changes of ``tensor.data`` leave no other trace."""
    import torch

    total = tensor.sum(dtype=torch.float32) if tensor.is_floating_point() else tensor.sum()
    version = 0 if tensor.is_inference() else tensor._version
    return name, tensor.dtype, tensor.data_ptr(), version, total.item()


def _towers(model: Encoder) -> dict[Literal["gene", "image"], tuple[str, ...]]:
    """Modalities of a model, and the prefixes of their weights."""
    if not isinstance(model, models.Stamp):
        return {"image" if isinstance(model, models.ImageSystem) else "gene": ("",)}
    gene: dict[Literal["gene", "image"], tuple[str, ...]] = {"gene": ("gene.", "gene_head.")}
    return gene if model.image is None else {**gene, "image": ("image.", "patch_head.")}


MIN_TILES, MIN_PARAMETERS = 500, 50_000_000  # minutes in float32 on one core; ViT-B/16 has 86 million parameters
_FLAGS = ("avx512_bf16", "amx_bf16")
_hinted = False


def hint_bfloat16(model: nn.Module, n_tiles: int, precision: str | None) -> None:
    """Log that bfloat16 is faster for many tiles and a large encoder, on a CPU with bfloat16 instructions.

    Parameters
    ----------
    model
        Encoder.
    n_tiles
        Number of tiles to embed.
    precision
        Precision given by the user; if given, nothing is logged.
    """
    global _hinted
    if _hinted or precision is not None or n_tiles < MIN_TILES:
        return
    parameters = list(model.parameters())  # none in "pixels"
    if sum(p.numel() for p in parameters) < MIN_PARAMETERS or parameters[0].device.type != "cpu":
        return
    if not _cpu_has_bfloat16():
        return
    _hinted = True
    logger.warning(
        "This CPU multiplies in bfloat16 (AVX512-BF16 or AMX), which is about twice as fast for large image encoders "
        'and changes vectors by about 1 %. Use precision="bfloat16" for it, or "float32" to hide this hint.'
    )


def _cpu_has_bfloat16() -> bool:
    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # newer versions of torch only
    return any(capabilities.get(flag, False) for flag in _FLAGS)
