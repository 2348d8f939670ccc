"""Other people's encoders behind one door: what they have in common, and how they are loaded.

Shapes: B spots, H and W px, D size of the output, N tiles of a slide, V genes of the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from stampy import _checks, _keys
from stampy._utils import device_of
from stampy.models._systems.cards import Card, card, catalogue, split_name, split_revision
from stampy.models._systems.hub import find_weights

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

__all__ = ["GeneSystem", "ImageSystem", "SlideSystem", "load_system"]

Level = Literal["embedding", "feature"]


class _System(nn.Module):
    """What every system has: its card, its name, and where its weights are from."""

    def __init__(self, card: Card):
        super().__init__()
        self.card = card
        self.name = card.name
        self.source = ""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters(), torch.empty(0)).device


class ImageSystem(_System):
    """An image encoder: tiles in, one vector each out. `stampy.models.Stamp` has the same methods.

    Parameters
    ----------
    card
        What it is and what it wants to see.
    """

    @property
    def size_px(self) -> int:
        """Edge of the tiles."""
        return self.card.size_px or _keys.TILE_PX

    @property
    def tile_um(self) -> float:
        """Edge of the tissue that a tile shows."""
        return self.card.tile_um or _keys.TILE_UM

    def normalize(self, tiles: Tensor) -> Tensor:
        """uint8 tiles (B, H, W, 3) as float input (B, 3, H, W)."""
        mean = torch.tensor(self.card.mean, device=tiles.device)
        std = torch.tensor(self.card.std, device=tiles.device)
        return ((tiles.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def image_features(self, images: Tensor) -> Tensor:
        """Features (B, D) before any projection; images (B, 3, H, W), normalised."""
        raise NotImplementedError

    def project_images(self, features: Tensor) -> Tensor:
        """Features -> embeddings (B, D): the features themselves where the system has no projection."""
        return features

    def embed_images(self, tiles: Tensor, *, level: Level = "embedding") -> Tensor:
        """uint8 tiles (B, H, W, 3) of `size_px` -> (B, D)."""
        _check_tiles(tiles, self.size_px)
        features = self.image_features(self.normalize(tiles))
        return self.project_images(features) if level == "embedding" else features


class GeneSystem(_System):
    """A gene encoder: counts in, one vector each out.

    Parameters
    ----------
    card
        What it is.
    genes
        Its vocabulary: columns gene_id, symbol and divisor, one row a gene. The columns of the counts are these rows.
    """

    def __init__(self, card: Card, genes: pd.DataFrame):
        super().__init__(card)
        self.genes = genes.reset_index(drop=True)

    def gene_features(self, counts: sparse.csr_matrix) -> Tensor:
        """Features (B, D) of raw counts (B, V); zeros for a spot without counts."""
        raise NotImplementedError

    def project_genes(self, features: Tensor) -> Tensor:
        """Features -> embeddings (B, D): the features themselves where the system has no projection."""
        return features

    def embed_counts(self, counts: sparse.csr_matrix, *, level: Level = "embedding") -> Tensor:
        """Raw counts (B, V), one column for each row of `genes` -> (B, D)."""
        if counts.shape[1] != len(self.genes):
            raise ValueError(f"{self.name!r} expects counts of its {len(self.genes)} genes, found {counts.shape[1]}.")
        features = self.gene_features(counts)
        return self.project_genes(features) if level == "embedding" else features


class SlideSystem(_System):
    """A slide encoder: the tile features of a slide in, one vector out."""

    def attention(self, features: Tensor) -> Tensor:
        """How much each of the tiles counts, (N, heads); each column sums to 1."""
        raise NotImplementedError

    def embed_slide(self, features: Tensor) -> Tensor:
        """Tile features (N, d) of one slide -> (D,)."""
        raise NotImplementedError


def _check_tiles(tiles: Tensor, size_px: int) -> None:
    if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tuple(tiles.shape[1:]) != (size_px, size_px, 3):
        raise ValueError(
            f"Tiles must be uint8 of shape (B, {size_px}, {size_px}, 3), found {tiles.dtype} {tuple(tiles.shape)}."
        )


def load_system(
    system: str | Card, weights: str | Path | None = None, *, device: str | torch.device | None = None
) -> Any:
    """Load one of the `systems`, ready for inference.

    Parameters
    ----------
    system
        A name (``"uni"``), a name with a path (``"uni:/path/to/pytorch_model.bin"``) or with a revision of the hub
        (``"uni@main"``, unverified), or a `Card`, for a variant.
    weights
        The file, or the folder of files, with the system's own weights in its own format. None: from the hub, at
        the commit of its card and checked against the card's SHA-256, with the
        token of `hf auth login` or of the environment variable ``HF_TOKEN``.
    device
        None: CUDA if there is one, else the CPU.

    Returns
    -------
    An `ImageSystem`, `GeneSystem`, `SlideSystem` or `Stamp`, in evaluation mode, float32.

    Raises
    ------
    ValueError
        No system of that name; a predictor or a baseline, which have no weights to load; weights that are damaged or of
        something else: every tensor must be there, of the right shape, and none may be left over unexplained.
    ImportError
        The library that builds it is missing.
    FileNotFoundError, PermissionError, ConnectionError
        The weights can't be had; the message says what to do.

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
            f"{system.title} is fitted to a whole section, there are no weights to load: "
            f"`stampy.tl.embed(adata, model={system.name!r})`."
        )
    loaded = _build(system, weights, device_of(device), revision)
    return loaded.to(device_of(device)).eval()


def _build(card: Card, weights: str | Path | None, device: torch.device, revision: str | None = None) -> nn.Module:
    if card.name == "stampy-mini":
        from stampy.models._weights import load

        return load("stampy-mini", device=device)
    if card.name in ("pixels",):
        from stampy.models._systems.vision import Pixels

        return Pixels(card)
    if card.repository == catalogue()["stamp-g"].repository:
        from stampy.models._published import download, load_published

        if weights is None:
            return download(device=device, revision=revision)
        path, _ = find_weights(card, weights)
        genes = path.parent / "genes.tsv"
        from stampy.models._weights import read_genes

        return load_published(path, genes=read_genes(genes) if genes.is_file() else None, device=device)
    read = _readers()[card.name]
    _require(card)
    path, source = find_weights(card, weights, revision)
    loaded = read(card, path)
    loaded.source = source
    return loaded


def _require(card: Card) -> None:
    if card.loader in ("transformers", "open_clip"):
        from stampy.models._systems.hub import require

        require(card.loader, card)


def _readers() -> dict[str, Any]:
    from stampy.models._systems import language as _language
    from stampy.models._systems import nicheformer as _nicheformer
    from stampy.models._systems import scgpt as _scgpt
    from stampy.models._systems import tangle as _tangle
    from stampy.models._systems import vision as _vision

    return {
        **dict.fromkeys(("uni", "uni2-h", "h-optimus-0", "virchow2", "mstar"), _vision.load_vit),
        "conch": _language.load_conch,
        "plip": _language.load_plip,
        "omiclip": _language.load_omiclip,
        "tangle": _tangle.load_tangle,
        "scgpt-spatial": _scgpt.load_scgpt,
        "nicheformer": _nicheformer.load_nicheformer,
    }


def only(
    tensors: dict[str, Tensor], *, where: str, prefix: str = "", ignored: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """The tensors below `prefix`, without it; ValueError if any other is not below one of `ignored`."""
    kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix) and not k.startswith(ignored)}
    other = [k for k in tensors if not k.startswith(prefix) and not k.startswith(ignored)]
    if other or not kept:
        raise ValueError(
            f"{where!r} is not the file that was expected: names that begin with {prefix!r} were to be there, and "
            f"nothing unknown. Unknown: {_checks.shortlist(other, 5)}."
        )
    return kept


def fill(model: nn.Module, tensors: dict[str, Tensor], *, where: str) -> None:
    """Give a model that was built on the meta device its tensors, strictly, as float32."""
    from stampy.models._weights import load_strictly

    load_strictly(model, {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}, where=where,
                  assign=True)  # fmt: skip
