"""Cards of the supported systems: location of the weights, input, training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

from stampy import _checks, _keys

__all__ = ["BENCHMARKS", "Card", "image_input"]

BENCHMARKS = ("DLPFC", "HBC", "PSC", "HHK", "HER2+", "TCGA-LUAD")  # the data sets of the paper's tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """One system: an encoder, a predictor or a baseline.

    Parameters
    ----------
    name
        Name for `stampy.tl.embed` and `stampy.models.load`.
    title
        Name as written by its authors.
    modality
        Input of the system: ``"image"``, ``"gene"``, ``"fused"``; ``"slide"`` for bags of tile features;
        ``"predictor"`` for networks that are trained to predict expression.
    loader
        Library that builds the network; ``"stampy"`` if stampy does.
    repository, files
        Repository on the Hugging Face hub, and possible names of its weight files (the first that exists is used).
    revision, sha256
        Commit of the repository to download, and the hash of each of its files (`files`), if known. Other commits are
        downloaded only if the name contains a revision (``"uni@..."``).
    address
        Address of the description of the weights, or of the weights if there is no hub repository.
    licence
        Licence of the weights, if known.
    gate
        ``"gated"``: access must be requested. ``"open"``. ``"unclear"``. ``"none"``: there are no weights.
    dim, feature_dim
        Size of the embedding, and of the feature before a projection (equal without projection).
    size_px, tile_um, mean, std
        Edge of the input in px and in µm of tissue; mean and standard deviation of the channels, scaled to 0..1. None
        for systems without image input.
    parameters
        Number of parameters of the part that computes the embedding; None if it depends on the file.
    citation
        DOI or arXiv number.
    trained_on
        Training data, in words.
    seen
        For data sets of the paper's tables: True if it was trained on them, False if not. Missing data sets are
        unknown.
    note
        Further remarks.
    architecture
        Arguments of the constructor; replace it for a variant of another size.

    Examples
    --------
    >>> import stampy
    >>> card = stampy.models.card("uni")
    >>> card.modality, card.gate
    ('image', 'gated')
    """

    name: str
    title: str
    modality: Literal["image", "gene", "fused", "slide", "predictor"]
    loader: Literal["timm", "transformers", "open_clip", "stampy", "scanpy"]
    licence: str
    gate: Literal["gated", "open", "unclear", "none"]
    dim: int | None
    citation: str
    trained_on: str
    feature_dim: int | None = None
    repository: str | None = None
    files: tuple[str, ...] = ()
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    size_px: int | None = None
    tile_um: float | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    parameters: int | None = None
    seen: Mapping[str, bool] = field(default_factory=dict)
    note: str = ""
    architecture: Mapping[str, Any] = field(default_factory=dict)

    def has_seen(self, dataset: str) -> bool | None:
        """Whether it was trained on a data set of the paper's tables; None if unknown.

        >>> import stampy
        >>> mstar = stampy.models.card("mstar")
        >>> mstar.has_seen("TCGA-LUAD"), mstar.has_seen("DLPFC")
        (True, None)
        """
        _checks.one_of("dataset", dataset, BENCHMARKS)
        return self.seen.get(dataset)

    @property
    def weights_at(self) -> str:
        """Human-readable location of the weights."""
        return f"hf-hub:{self.repository}" if self.repository else self.address


class ImageInput(TypedDict):
    """Fields of a `Card` that describe the input of an image encoder."""

    size_px: int
    tile_um: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def image_input(
    size_px: int = _keys.TILE_PX,
    tile_um: float = _keys.TILE_UM,
    mean: tuple[float, float, float] = _keys.IMAGENET_MEAN,
    std: tuple[float, float, float] = _keys.IMAGENET_STD,
) -> ImageInput:
    """Fields of a card that describe the input of an image encoder."""
    return {"size_px": size_px, "tile_um": tile_um, "mean": mean, "std": std}
