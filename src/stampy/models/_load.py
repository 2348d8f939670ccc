"""`load` for every model: stampy's own weights, the published checkpoint, and systems of other groups."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from stampy._utils import check_device, device_of
from stampy.models._systems import hub
from stampy.models._systems.cards import Card
from stampy.models._systems.catalogue import CARDS, card, check_name, packaged, split_name, split_revision

from ._published import load_published

if TYPE_CHECKING:
    from typing import TypeAlias

    import torch

    from stampy.models._systems.base import GeneSystem, ImageSystem, SlideSystem

    from ._stamp import Stamp

    System: TypeAlias = ImageSystem | GeneSystem | SlideSystem

__all__ = ["load", "load_stamp", "load_system"]


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
    check_device(device)
    check_name(name)  # before torch is imported
    if name == "stamp" or name.startswith("stamp@"):
        return _published(CARDS["stamp-f"], None, device, name.partition("@")[2] or None)
    if name.startswith("stamp:"):
        name = name.replace("stamp:", "stamp-f:", 1)  # with all parts of the checkpoint
    if split_name(name) is not None and name not in packaged() and not Path(name).expanduser().is_dir():
        return load_system(name, device=device)
    from ._weights import from_hub, read_folder

    if name.startswith("hf-hub:"):
        return read_folder(from_hub(name), name, device)
    if name in packaged():
        return read_folder(Path(str(files("stampy") / "models" / "weights" / name)), name, device)
    path = Path(name).expanduser()
    return read_folder(path, path.name, device)


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
    check_device(device)
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
            f"{system.title} is fitted to a section and has no weights to load. Pass its name, {system.name!r}, to "
            "`stampy.tl.embed`."
        )
    loaded = _build(system, weights, device, revision)
    return loaded.to(device_of(device)).eval()


def _build(
    card: Card, weights: str | Path | None, device: str | torch.device | None, revision: str | None = None
) -> Stamp | System:
    """The system with its weights, which are found before torch is imported."""
    if card.name == "stampy-mini":
        return load("stampy-mini", device=device)
    if card.name == "pixels":
        from stampy.models._systems.image_encoders import Pixels

        return Pixels(card)
    if card.repository == CARDS["stamp-g"].repository:
        return _published(card, weights, device, revision)
    if card.loader in ("transformers", "open_clip"):
        hub.require(card.loader, card)
    path, source = hub.find_weights(card, weights, revision)
    from stampy.models._systems.readers import READERS

    loaded = READERS[card.name](card, path)
    loaded.source = source
    return loaded


def _published(
    card: Card, weights: str | Path | None, device: str | torch.device | None, revision: str | None
) -> Stamp:
    """Load the checkpoint of the paper's authors from the hub, or from a local file next to `genes.tsv`."""
    if weights is None:
        path, _ = hub.download(CARDS["stamp-f"], revision)
        return load_published(path, device=device)
    path, _ = hub.find_weights(card, weights)
    genes = path.parent / "genes.tsv"
    from ._weights import read_genes

    return load_published(path, genes=read_genes(genes) if genes.is_file() else None, device=device)


def load_stamp(name_or_path: str | Path, *, device: str | torch.device | None = None) -> Stamp:
    """`load` for STAMP models only; TypeError for one of the other systems."""
    from ._stamp import Stamp

    model = load(name_or_path, device=device)
    if not isinstance(model, Stamp):
        raise TypeError(f"A STAMP model was expected, found the system {str(name_or_path)!r} ({type(model).__name__}).")
    return model
