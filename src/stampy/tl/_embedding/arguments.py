"""Arguments of `tl.embed`, typed and checked before the model is loaded; calls with several sections."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeGuard, TypeVar

import numpy as np

from stampy import _checks, _keys
from stampy._section.image.image_options import ImageOptions
from stampy._utils import table_of, with_columns

if TYPE_CHECKING:
    from anndata.experimental import AnnCollection

    from stampy._section.image.image_options import ImageSource
    from stampy.tl._embed import SectionData, SectionsData

__all__ = [
    "ORGANISMS",
    "Center",
    "Level",
    "Modality",
    "Organism",
    "Precision",
    "Request",
    "check_running",
    "check_sections",
    "each_of",
    "is_several",
    "named",
]

Organism: TypeAlias = Literal["human", "mouse"]
Modality: TypeAlias = Literal["gene", "image", "fused"]
Level: TypeAlias = Literal["embedding", "feature"]
Center: TypeAlias = Literal["section", "direction"]
Precision: TypeAlias = Literal["float32", "bfloat16"]

Value = TypeVar("Value")

ORGANISMS = ("human", "mouse")
MODALITIES = ("gene", "image", "fused")
CENTERS = ("section", "direction")
BY_SECTION = ("image", "image_key", "um_per_px")  # can be given by section
OF_IMAGES = ("image", "image_key", "um_per_px", "spot_um")
OF_GENES = ("layer", "genes")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Arguments of `stampy.tl.embed`, documented there.

    Raises
    ------
    TypeError, ValueError
        A value is invalid, or arguments conflict or have no effect.
    FileNotFoundError
        The image does not exist.
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
    center: Center | None = None
    genes: Literal["shared"] | None = None
    normalize: bool = True
    panel: np.ndarray | None = None  # (G,) genes shared by several sections, computed later
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
            _checks.one_of("center", self.center, CENTERS)
        if self.genes is not None:
            _checks.one_of("genes", self.genes, ("shared",))
        self._check_norm()
        check_running(self.level, self.precision, self.batch_size, self.n_workers)
        if self.center == "direction" and self.level == "feature":
            raise ValueError(
                "center='direction' changes features before the projection, and needs level='embedding'. For features, "
                "use center='section'."
            )
        ImageOptions(self.image, self.image_key, self.um_per_px, self.spot_um)  # raises for invalid values
        for image in self.image.values() if isinstance(self.image, Mapping) else [self.image]:
            if isinstance(image, str | Path):
                _checks.existing(image, what="image")
        if self.modality is not None:
            self.check_effect(self.modality)

    def _check_norm(self) -> None:
        if not isinstance(self.normalize, bool | np.bool_):
            raise TypeError(f"`normalize` must be True or False, found {self.normalize!r}.")
        if not self.normalize and self.level == "feature":
            raise ValueError("Features (`level='feature'`) are never normalised: omit `normalize`.")
        if not self.normalize and self.modality == "fused":
            raise ValueError(
                "Fused vectors are two concatenated unit vectors: normalize=False needs modality='gene' or 'image'."
            )

    @property
    def normed(self) -> bool:
        """Whether vectors are scaled to L2 norm 1."""
        return self.normalize and self.level == "embedding"

    @property
    def names_image(self) -> bool:
        """Whether the user selected an image."""
        return self.image is not None or self.image_key is not None

    def check_effect(self, modality: Modality) -> None:
        """Raise ValueError for arguments that have no effect or cannot be used with an explicit modality."""
        self.check_center(modality)
        useless = {"gene": OF_IMAGES, "image": OF_GENES}.get(modality, ())
        given = [name for name in useless if getattr(self, name) is not None]
        given += ["organism"] if modality == "image" and self.organism != "human" else []
        if given:
            needs = "uses no image" if modality == "gene" else "uses no counts"
            were = "was" if len(given) == 1 else "were"
            raise ValueError(
                f"modality={modality!r} {needs}, but `{'=` and `'.join(given)}=` {were} given. Omit one of them."
            )

    def check_center(self, modality: Modality) -> None:
        """Raise ValueError if images are to be embedded without the direction of the mean gene feature."""
        if self.center == "direction" and modality != "gene":
            raise ValueError(
                f"center='direction' is defined only for genes, but the modality is {modality!r}. Pass "
                "modality='gene', or use center='section'."
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
    """Raise for invalid arguments among those shared with whole slides."""
    _checks.one_of("level", level, ("embedding", "feature"))
    if precision is not None:
        _checks.one_of("precision", precision, ("float32", "bfloat16"))
    if batch_size is not None:
        _checks.at_least("batch_size", batch_size, 1)
    _checks.at_least("n_workers", n_workers, 1)


def _pick(value: Value | Mapping[Any, Value], section: object) -> Value | None:
    """Value for a section: its own, the common one, or None for the default."""
    return value.get(section) if isinstance(value, Mapping) else value


logger = logging.getLogger(__name__)


def is_collection(data: object) -> TypeGuard[AnnCollection]:
    """Whether `data` is an `anndata.experimental.AnnCollection`, without importing it."""
    return any(c.__name__ == "AnnCollection" and c.__module__.startswith("anndata") for c in type(data).__mro__)


def is_several(data: object) -> bool:
    """Whether `data` is a list, tuple, dict or AnnCollection of sections."""
    return isinstance(data, list | tuple | Mapping) or is_collection(data)


def each_of(
    function: Callable[[SectionData, Request], SectionData | None], data: SectionsData, request: Request, *, copy: bool
) -> list[SectionData] | dict[str, SectionData] | None:
    """Run `function` on each section in order; each result is written as soon as it is computed.

    Sections are named by the keys of a dict, else 0, 1, ...; arguments given by section use these names.
    """
    if is_collection(data) and copy:
        raise ValueError(
            "`copy=True` cannot be used with an AnnCollection, which contains no data itself. Copy its sections."
        )
    sections, copies = named(data), []
    for i, (name, section) in enumerate(sections.items()):
        logger.info("Section %r, %d of %d", name, i + 1, len(sections))
        folder = None if request.resume is None else request.resume / f"{i:04d}"
        copies.append(function(section, request.of(name, folder)))
    if is_collection(data):
        _join(data, request.key_added)
    if not copy:
        return None
    return dict(zip(data, copies, strict=True)) if isinstance(data, Mapping) else copies


def named(data: SectionsData) -> Mapping[str, SectionData] | Mapping[int, SectionData]:
    """Sections by the keys of a dict, else by 0, 1, ..."""
    if isinstance(data, Mapping):
        return dict(data)
    return dict(enumerate(data.adatas if is_collection(data) else data))


def check_sections(data: SectionsData, request: Request) -> None:
    """Check all sections before the first is read, so that none fails after hours."""
    sections: Mapping[Any, SectionData] = named(data)
    if not sections:
        raise ValueError("There is no section: the list or dict is empty.")
    for key in BY_SECTION:
        value = getattr(request, key)
        unknown = [name for name in value if name not in sections] if isinstance(value, Mapping) else []
        if unknown and request.library_key is None:
            raise KeyError(
                f"`{key}` names {_checks.shortlist(unknown)}, but the sections are {_checks.shortlist(sections)}."
            )
    if request.image is not None and not isinstance(request.image, Mapping) and len(sections) > 1:
        raise ValueError(f"One `image` was given for {len(sections)} sections; give a dict by section.")
    for name, section in sections.items():
        try:
            _check_section(section, request)
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(f"Section {name!r}: {error.args[0]}") from error


def _check_section(section: SectionData, request: Request) -> None:
    from stampy._section.section import coordinates_of
    from stampy.pp._counts import counts_of  # a slow import: only after cheap checks

    section = with_columns(section, request.table_key)
    table = table_of(section, request.table_key)
    _checks.not_empty(table, genes=False)
    if request.modality in ("gene", "fused"):
        counts_of(table, request.layer)
    _checks.libraries(table, request.library_key)
    if table is section and request.modality in ("image", "fused"):
        coordinates_of(section, request.table_key)


def _join(collection: Any, key: str) -> None:
    """Write into the joined ``obsm`` of a collection, if it has one."""
    if getattr(collection, "obsm", None) is None:
        return
    for name in (key, key + _keys.GENE_SUFFIX, key + _keys.IMAGE_SUFFIX):
        if all(name in part.obsm for part in collection.adatas):
            collection.obsm[name] = np.concatenate([part.obsm[name] for part in collection.adatas])
        elif name in collection.obsm:  # result of an earlier call
            del collection.obsm[name]
