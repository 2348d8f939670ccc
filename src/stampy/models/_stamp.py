"""Both encoders in one model.

Shapes: B spots, L positions, E size of the shared space.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stampy._field_names import checked_names, known_field

from ._gene import GeneConfig, GeneEncoder
from ._image import ImageConfig, ImageEncoder, image_encoder
from ._limits import check_gene, check_image
from ._stem import RegionFeatures, StemEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

__all__ = ["RegionOutput", "Stamp", "StampConfig"]

_LARGEST_SIZE = 2**20


@checked_names
@dataclass(frozen=True, kw_only=True, slots=True)
class StampConfig:
    """Settings of a `Stamp`: its encoders and the size of their shared space.

    Parameters
    ----------
    gene
        The gene encoder.
    image
        The image encoder; None for a gene encoder only, as from `stampy.train.pretrain`.
    embedding
        Size of the shared space.

    Examples
    --------
    >>> config = StampConfig(gene=GeneConfig(n_genes=100), image=None, embedding=32)
    >>> StampConfig.from_dict(config.to_dict()) == config
    True
    """

    gene: GeneConfig
    image: ImageConfig | None = None
    embedding: int = 512

    def to_dict(self) -> dict[str, object]:
        """Convert to plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, object]) -> StampConfig:
        """Inverse of `to_dict`; ValueError for an unknown field or an invalid value."""
        gene = _build(GeneConfig, values["gene"])
        check_gene(gene)
        image = None if values.get("image") is None else _build(ImageConfig, values["image"])
        if image is not None:
            check_image(image)
        embedding: Any = values["embedding"]
        _check_field("embedding", embedding, 512)
        return cls(gene=gene, image=image, embedding=embedding)


def _build(kind: type, values: Any) -> Any:
    if not isinstance(values, dict):
        raise ValueError(f"{kind.__name__} must be given by names and values, found {values!r}.")
    usual = {f.name: getattr(kind(), f.name) for f in fields(kind)}
    for name in values:
        known_field(name, usual, where=kind.__name__)
    values = {k: tuple(v) if isinstance(usual[k], tuple) and isinstance(v, list) else v for k, v in values.items()}
    for name, value in values.items():
        _check_field(name, value, usual[name])
    return kind(**values)


def _check_field(name: str, value: Any, usual: Any) -> None:
    """Raise ValueError for a value of a different type than the `usual` one, or an impossible size."""
    kinds = (int, float) if isinstance(usual, float) else type(usual)
    if not isinstance(value, kinds) or isinstance(value, bool) != isinstance(usual, bool):
        raise ValueError(f"`{name}` must be like {usual!r}, found {value!r}.")
    if type(usual) is int and not 1 <= value <= _LARGEST_SIZE:
        raise ValueError(f"`{name}` must lie between 1 and {_LARGEST_SIZE}, found {value}.")
    if isinstance(value, tuple) and (len(value) != len(usual) or not all(isinstance(v, int | float) for v in value)):
        raise ValueError(f"`{name}` must be {len(usual)} numbers, found {value!r}.")


class RegionOutput(NamedTuple):
    """Output of the image encoder for regions."""

    embeddings: Tensor  # (B, E), L2 norm 1
    query: Tensor  # (B, E), localisation query, not normalised
    grid: Tensor  # (B, 9, E), the nine cells, not normalised


class Stamp(nn.Module):
    """Gene encoder, image encoder, and the heads into their shared space.

    Parameters
    ----------
    config
        Sizes.
    genes
        The vocabulary as a table with the columns gene_id, symbol and divisor, one row per gene in token order
        (`stampy.pp.Vocabulary` reads it). It is stored with the weights.

    Attributes
    ----------
    name
        Name under which the model was loaded; written into the provenance of embeddings.
    adapted
        Settings of `stampy.train.adapt`: model, strength, n_axes, n_spots. None for all other models.

    Examples
    --------
    >>> import stampy
    >>> model = stampy.models.load("stampy-mini", device="cpu")
    >>> model.name, len(model.genes)
    ('stampy-mini', 19664)
    """

    name: str = "unnamed"
    adapted: Mapping[str, str | float | int] | None = None
    image: ImageEncoder | StemEncoder | None

    def __init__(self, config: StampConfig, genes: pd.DataFrame | None = None):
        super().__init__()
        if genes is not None and len(genes) != config.gene.n_genes:
            raise ValueError(f"The vocabulary has {len(genes)} genes, the gene encoder {config.gene.n_genes}.")
        self.config = config
        self.genes = genes
        self.gene = GeneEncoder(config.gene)
        self.gene_head = nn.Linear(config.gene.width, config.embedding)
        self.image = None
        if config.image is not None:
            self.image = image_encoder(config.image)
            self.patch_head = nn.Linear(self.image.width, config.embedding)
            self.region_head = nn.Linear(self.image.width, config.embedding)
            self.localization_head = nn.Linear(self.image.width, config.embedding)
            self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.gene.embeddings.weight.device

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines in the losses of stage 2 (at most 100, as is usual)."""
        return self.logit_scale.exp().clamp(max=100)

    def gene_features(self, tokens: Tensor) -> Tensor:
        """Gene features (B, width) before the projection; tokens (B, L) as in ``obsm["stamp_tokens"]``, 0 pads."""
        return self.gene.features(tokens)

    def gene_embeddings(self, tokens: Tensor) -> Tensor:
        """Gene embeddings (B, E), projected and L2-normalised; zeros for a spot without tokens."""
        return self.project_genes(self.gene_features(tokens))

    def project_genes(self, features: Tensor, *, normalize: bool = True) -> Tensor:
        """Gene features -> embeddings (B, E), by default of L2 norm 1; a spot without tokens stays a row of zeros."""
        projected = self.gene_head(features)
        projected = F.normalize(projected, dim=-1) if normalize else projected
        return projected * (features != 0).any(dim=-1, keepdim=True)

    @property
    def size_px(self) -> int:
        """Edge of the input tiles of the image encoder."""
        return self.image_tower().config.size_px

    @property
    def tile_um(self) -> float:
        """Edge of the tissue in a tile, in µm."""
        return self.image_tower().config.tile_um

    @property
    def surroundings(self) -> bool:
        """Whether the input of the image encoder is each tile with the surrounding region of three times its edge."""
        return self.image_tower().config.surroundings

    def normalize(self, tiles: Tensor) -> Tensor:
        """uint8 tiles (..., size, size, 3) as float input (..., 3, size, size)."""
        return self.image_tower().normalize(tiles)

    def image_features(self, images: Tensor) -> Tensor:
        """Image features (B, D) before the projection.

        Parameters
        ----------
        images
            Normalised: (B, 3, size, size); with `surroundings` (B, 2, 3, size, size), the tile and the region.
        """
        return self.image_tower().features(images)

    def image_embeddings(self, images: Tensor) -> Tensor:
        """Image embeddings (B, E), projected and L2-normalised; images as for `image_features`."""
        return self.project_images(self.image_features(images))

    def project_images(self, features: Tensor, *, normalize: bool = True) -> Tensor:
        """Image features -> embeddings (B, E), by default of L2 norm 1."""
        projected = self.patch_head(features)
        return F.normalize(projected, dim=-1) if normalize else projected

    def embed_images(self, tiles: Tensor, *, level: Literal["embedding", "feature"] = "embedding") -> Tensor:
        """uint8 tiles -> (B, E), or features with `level="feature"`; see `ImageSystem`.

        Tiles are (B, size, size, 3); with `surroundings` (B, 2, size, size, 3), the tile and the region.
        """
        features = self.image_features(self.normalize(tiles))
        return self.project_images(features) if level == "embedding" else features

    def regions(self, images: Tensor, references: Tensor) -> RegionOutput:
        """Embed regions (B, 3, size, size) and the patches to be located in them, shrunk, both normalised."""
        return self._region(self.image_tower().regions(images, references))

    def patches_and_regions(self, patches: Tensor, regions: Tensor, references: Tensor) -> tuple[Tensor, RegionOutput]:
        """Embed patches (B, 3, size, size) and `regions` together.

        An encoder with surroundings uses the regions as surroundings.
        """
        features, region = self.image_tower().with_regions(patches, regions, references)
        return self.project_images(features), self._region(region)

    def _region(self, found: RegionFeatures) -> RegionOutput:
        return RegionOutput(
            F.normalize(self.region_head(found.feature), dim=-1),
            self.localization_head(found.query),
            self.localization_head(found.grid),
        )

    def image_tower(self) -> ImageEncoder | StemEncoder:
        """The image encoder; ValueError if the model has none."""
        if self.image is None:
            raise ValueError(f"The model {self.name!r} has no image encoder. Use modality='gene', or align it first.")
        return self.image
