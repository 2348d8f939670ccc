"""What `tl.embed` was asked for: typed, and checked as far as that goes without the section and the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np

from stampy import _checks, _keys
from stampy._section.pictures import Wishes

if TYPE_CHECKING:
    from stampy._section.section import ImageSource

__all__ = ["ORGANISMS", "Level", "Modality", "Organism", "Precision", "Request", "check_running"]

Organism: TypeAlias = Literal["human", "mouse"]
Modality: TypeAlias = Literal["gene", "image", "fused"]
Level: TypeAlias = Literal["embedding", "feature"]
Precision: TypeAlias = Literal["float32", "bfloat16"]

Value = TypeVar("Value")

ORGANISMS = ("human", "mouse")
MODALITIES = ("gene", "image", "fused")
BY_SECTION = ("image", "image_key", "um_per_px")  # may be given by section
OF_IMAGES = ("image", "image_key", "um_per_px", "spot_um")
OF_GENES = ("layer", "genes")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `stampy.tl.embed`, which describes them.

    Raises
    ------
    TypeError, ValueError
        A value that can't be, arguments that conflict or have no effect.
    FileNotFoundError
        There is no such image.
    """

    modality: Modality | None = None
    image: ImageSource | Mapping[str, ImageSource] | None = None
    image_key: str | Mapping[str, str] | None = None
    library_key: str | None = None
    table_key: str = _keys.TABLE
    layer: str | None = None
    organism: Organism = "human"
    um_per_px: float | Mapping[str, float] | None = None
    spot_um: float | None = None
    level: Level = "embedding"
    context: Literal["neighbors"] | None = None
    center: Literal["section"] | None = None
    genes: Literal["shared"] | None = None
    normalize: bool = True
    panel: np.ndarray | None = None  # (G,) genes that several sections share; found on the way
    batch_size: int | None = None
    n_workers: int = 1
    precision: Precision | None = None
    progress: bool = True
    key_added: str = _keys.EMBEDDING
    resume: Path | None = None

    def __post_init__(self) -> None:
        if self.modality is not None:
            _checks.one_of("modality", self.modality, MODALITIES)
        _checks.one_of("organism", self.organism, ORGANISMS)
        if self.context is not None:
            _checks.one_of("context", self.context, ("neighbors",))
        if self.center is not None:
            _checks.one_of("center", self.center, ("section",))
        if self.genes is not None:
            _checks.one_of("genes", self.genes, ("shared",))
        self._check_norm()
        check_running(self.level, self.precision, self.batch_size, self.n_workers)
        Wishes(self.image, self.image_key, self.um_per_px, self.spot_um)  # checks them
        for image in self.image.values() if isinstance(self.image, Mapping) else [self.image]:
            if isinstance(image, str | Path):
                _checks.existing(image, what="image")
        if self.modality is not None:
            self.check_effect(self.modality)

    def _check_norm(self) -> None:
        if not isinstance(self.normalize, bool | np.bool_):
            raise TypeError(f"`normalize` must be True or False, found {self.normalize!r}.")
        if not self.normalize and self.level == "feature":
            raise ValueError("Features (`level='feature'`) are never normalised: leave `normalize` out.")
        if not self.normalize and self.modality == "fused":
            raise ValueError(
                "Fused vectors are two unit vectors side by side: normalize=False needs modality='gene' or 'image'."
            )

    @property
    def normed(self) -> bool:
        """Whether vectors are brought to L2 norm 1."""
        return self.normalize and self.level == "embedding"

    @property
    def names_image(self) -> bool:
        """Whether the user said which image to use."""
        return self.image is not None or self.image_key is not None

    def check_effect(self, modality: Modality) -> None:
        """Raise ValueError for arguments that have no effect on the embedding of a modality that was asked for."""
        useless = {"gene": OF_IMAGES, "image": OF_GENES}.get(modality, ())
        given = [name for name in useless if getattr(self, name) is not None]
        given += ["organism"] if modality == "image" and self.organism != "human" else []
        if given:
            needs = "uses no image" if modality == "gene" else "uses no counts"
            were = "was" if len(given) == 1 else "were"
            raise ValueError(
                f"modality={modality!r} {needs}, but `{'=` and `'.join(given)}=` {were} given. Leave one of them out."
            )

    def of(self, section: object, resume: Path | None) -> Request:
        """The request for one of several sections, by its name."""
        return replace(
            self,
            image=_pick(self.image, section),
            image_key=_pick(self.image_key, section),
            um_per_px=_pick(self.um_per_px, section),
            resume=resume,
        )


def check_running(level: str, precision: str | None, batch_size: int | None, n_workers: int) -> None:
    """Raise for arguments, shared with whole slides, that can't be."""
    _checks.one_of("level", level, ("embedding", "feature"))
    if precision is not None:
        _checks.one_of("precision", precision, ("float32", "bfloat16"))
    if batch_size is not None:
        _checks.at_least("batch_size", batch_size, 1)
    _checks.at_least("n_workers", n_workers, 1)


def _pick(value: Value | Mapping[Any, Value], section: object) -> Value | None:
    """The section's own value, or that of all; sections without one keep the default."""
    return value.get(section) if isinstance(value, Mapping) else value
