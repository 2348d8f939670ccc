"""The JSON files of a corpus as types: its settings, the record of a section, the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NotRequired, TypedDict, final

__all__ = ["CorpusSettings", "Described", "Fault", "GeneRecord", "ImageRecord", "Manifest", "SectionRecord", "Written"]


class CorpusSettings(TypedDict):
    """Arguments of `Corpus.build`, which describes them."""

    max_tokens: int
    group_size: int
    max_distance: float | None  # None: the groups of the source are kept
    draws: int
    images: bool | None
    tile_um: float
    size_px: int
    regions: int
    codec: Literal["jpeg", "jpegxl", "zstd"]
    quality: int
    seed: int
    layout: NotRequired[str]  # of the source, where it is not sections


class GeneRecord(TypedDict):
    """How the genes of a section were matched."""

    n_vars: int
    n_matched: int
    source: str


class ImageRecord(TypedDict):
    """What the tiles of a section were cut from."""

    um_per_px: list[float] | None
    um_per_px_from: list[str] | str
    upsampling: list[float] | None


class SpavisRecord(TypedDict):
    """What was read of files of SpaVis-6M."""

    rows: dict[str, int]  # by file
    n_cut: int
    n_empty: int


class Written(TypedDict):
    """What is known of a section once its arrays are written."""

    n_spots: int
    n_groups: list[int]  # of each draw
    genes: GeneRecord | None
    image: ImageRecord | None
    notes: list[str]
    spavis: NotRequired[SpavisRecord]


class Described(TypedDict, total=False):
    """What may be said of a section."""

    species: str
    patient: str
    study: str


@final
class SectionRecord(Written, Described):
    """A section of a corpus."""

    name: str
    organ: str
    platform: str
    source: str  # a digest
    files: Mapping[str, tuple[int, str]]  # bytes and SHA-256 by path; JSON makes lists of the pairs


@final
class Fault(TypedDict):
    """A section that was left out."""

    name: str
    error: str


class Manifest(TypedDict):
    """manifest.json."""

    format: int
    stampy: str
    settings: CorpusSettings
    vocabulary: str  # a digest
    sections: list[SectionRecord]
    skipped: list[Fault]
    digest: NotRequired[str]
