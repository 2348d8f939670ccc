"""`load` for every model: stampy's own weights, the published checkpoint, and systems of other groups."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch

from stampy._files import recover
from stampy._utils import device_of
from stampy.models._systems import hub
from stampy.models._systems.base import GeneSystem, ImageSystem, SlideSystem
from stampy.models._systems.cards import Card
from stampy.models._systems.catalogue import CARDS, card, split_name, split_revision
from stampy.models._systems.gene_encoders import load_nicheformer, load_scgpt
from stampy.models._systems.image_encoders import Pixels, load_conch, load_omiclip, load_plip, load_vit
from stampy.models._systems.tangle import load_tangle

from ._published import load_published
from ._stamp import Stamp
from ._systems.catalogue import packaged, unknown_model
from ._weights import from_hub, read_folder, read_genes

__all__ = ["load", "load_stamp", "load_system"]

System = ImageSystem | GeneSystem | SlideSystem
# Loaders of the systems' weights in their authors' own formats.
_READERS: dict[str, Callable[[Card, Path], System]] = {
    **dict.fromkeys(("uni", "uni2-h", "h-optimus-0", "virchow2", "mstar"), load_vit),
    "conch": load_conch,
    "plip": load_plip,
    "omiclip": load_omiclip,
    "tangle": load_tangle,
    "scgpt-spatial": load_scgpt,
    "nicheformer": load_nicheformer,
}


def load(name_or_path: str | Path, *, device: str | torch.device | None = None) -> Stamp | System:
    """Load a model, ready for inference.

    Parameters
    ----------
    name_or_path
        A packaged model (``"stampy-mini"``), a folder written by `save`, ``"hf-hub:org/name@revision"`` for such a
        folder on the Hugging Face Hub, ``"stamp"`` for the checkpoint published by the authors of the paper, or one of
        the `systems`, such as ``"uni"`` or ``"uni:/path/to/pytorch_model.bin"`` (see `load_system`).
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.

    Returns
    -------
    A `Stamp` in evaluation mode, float32; for one of the `systems` an `ImageSystem`, `GeneSystem` or `SlideSystem`.

    Raises
    ------
    ValueError
        The name is unknown, or weights are damaged, of a newer format, or do not match config.json.
    FileNotFoundError
        The folder or one of its files is missing.

    Examples
    --------
    >>> import stampy
    >>> model = stampy.models.load("stampy-mini", device="cpu")
    >>> model.name
    'stampy-mini'
    """
    name = str(name_or_path)
    if name == "stamp" or name.startswith("stamp@"):
        return _published(CARDS["stamp-f"], None, device_of(device), name.partition("@")[2] or None)
    if name.startswith("stamp:"):
        name = name.replace("stamp:", "stamp-f:", 1)  # with all parts of the checkpoint
    if name.startswith("hf-hub:"):
        return read_folder(from_hub(name), name, device)
    if name in packaged():
        return read_folder(Path(str(files("stampy") / "models" / "weights" / name)), name, device)
    path = Path(name).expanduser()
    recover(path)
    if path.is_dir():
        return read_folder(path, path.name, device)
    if split_name(name) is not None:
        return load_system(name, device=device)
    raise unknown_model(name)


def load_system(
    system: str | Card, weights: str | Path | None = None, *, device: str | torch.device | None = None
) -> Stamp | System:
    """Load one of the `systems`, ready for inference.

    Parameters
    ----------
    system
        A name (``"uni"``), a name with a path (``"uni:/path/to/pytorch_model.bin"``) or with a revision of the hub
        (``"uni@main"``, unverified), or a `Card` for a variant.
    weights
        The file, or the folder of files, with the system's own weights in its own format. None: from the hub, at
        the commit of its card and checked against the card's SHA-256, with the
        token of `hf auth login` or of the environment variable ``HF_TOKEN``.
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.

    Returns
    -------
    An `ImageSystem`, `GeneSystem`, `SlideSystem` or `Stamp`, in evaluation mode, float32.

    Raises
    ------
    ValueError
        The system is unknown, or is a predictor or a baseline, which have no weights to load; or weights are damaged or
        belong to another model: all tensors must exist with the right shape, without additional tensors.
    ImportError
        The library that builds it is missing.
    FileNotFoundError, PermissionError, ConnectionError
        The weights are not available; the message states what to do.

    Examples
    --------
    >>> import torch, stampy
    >>> pixels = stampy.models.load_system("pixels", device="cpu")
    >>> pixels.embed_images(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).shape
    torch.Size([2, 192])
    """
    revision = None
    if isinstance(system, str):
        system, revision = split_revision(system)
        name, path = split_name(system) or (system, None)
        if path is not None and weights is not None:
            raise ValueError(f"Two paths of weights were given: {path!r} and `weights`={str(weights)!r}. Give one.")
        system, weights = card(name), weights if path is None else path
    if system.modality == "predictor":
        raise ValueError(f"{system.title} is trained by you and has no weights to load: see `stampy.models.Predictor`.")
    if system.loader == "scanpy":
        raise ValueError(
            f"{system.title} is fitted to a section and has no weights to load: "
            f"`stampy.tl.embed(adata, model={system.name!r})`."
        )
    loaded = _build(system, weights, device_of(device), revision)
    return loaded.to(device_of(device)).eval()


def _build(card: Card, weights: str | Path | None, device: torch.device, revision: str | None = None) -> Stamp | System:
    if card.name == "stampy-mini":
        return load("stampy-mini", device=device)
    if card.name == "pixels":
        return Pixels(card)
    if card.repository == CARDS["stamp-g"].repository:
        return _published(card, weights, device, revision)
    if card.loader in ("transformers", "open_clip"):
        hub.require(card.loader, card)
    path, source = hub.find_weights(card, weights, revision)
    loaded = _READERS[card.name](card, path)
    loaded.source = source
    return loaded


def _published(card: Card, weights: str | Path | None, device: torch.device, revision: str | None) -> Stamp:
    """Load the checkpoint of the paper's authors from the hub, or from a local file next to `genes.tsv`."""
    if weights is None:
        path, _ = hub.download(CARDS["stamp-f"], revision)
        return load_published(path, device=device)
    path, _ = hub.find_weights(card, weights)
    genes = path.parent / "genes.tsv"
    return load_published(path, genes=read_genes(genes) if genes.is_file() else None, device=device)


def load_stamp(name_or_path: str | Path, *, device: str | torch.device | None = None) -> Stamp:
    """`load` for STAMP models only; TypeError for one of the other systems."""
    model = load(name_or_path, device=device)
    if not isinstance(model, Stamp):
        raise TypeError(f"A STAMP model was expected, found the system {str(name_or_path)!r} ({type(model).__name__}).")
    return model
