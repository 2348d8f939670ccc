"""Layout of a corpus on disk: types of its JSON files, and functions that create its arrays (sharded zarr v3)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, final

import numpy as np

from stampy import _files

if TYPE_CHECKING:
    import zarr

__all__ = [
    "GROUP",
    "ROWS_PER_SHARD",
    "TILES_PER_SHARD",
    "ArrayRecord",
    "CorpusSettings",
    "GeneRecord",
    "ImageRecord",
    "Manifest",
    "SectionMetadata",
    "SectionRecord",
    "SkippedSection",
    "new_array",
    "put",
    "write_group",
]


class CorpusSettings(TypedDict):
    """Arguments of `Corpus.build`, documented there."""

    max_tokens: int
    group_size: int
    max_distance: float | None  # None: groups of the source are kept
    draws: int
    images: bool | None
    tile_um: float
    size_px: int
    regions: int
    codec: Literal["jpeg", "jpegxl", "zstd"]
    quality: int
    seed: int
    layout: NotRequired[str]  # layout of the source, if it does not consist of sections


class GeneRecord(TypedDict):
    """Result of matching the genes of a section."""

    n_vars: int
    n_matched: int
    source: str


class ImageRecord(TypedDict):
    """Pixel size and upsampling of a section's tiles."""

    um_per_px: list[float] | None
    um_per_px_from: list[str] | str
    upsampling: list[float] | None


class SpavisRecord(TypedDict):
    """Rows, and losses, of a section of SpaVis-6M."""

    rows: dict[str, int]  # by file
    n_cut: int
    n_empty: int


class ArrayRecord(TypedDict):
    """Properties of a section after its arrays are written."""

    n_spots: int
    n_groups: list[int]  # per draw
    genes: GeneRecord | None
    image: ImageRecord | None
    notes: list[str]
    spavis: NotRequired[SpavisRecord]


class SectionMetadata(TypedDict, total=False):
    """Optional metadata of a section."""

    species: str
    patient: str
    study: str


@final
class SectionRecord(ArrayRecord, SectionMetadata):
    """Record of a section in a corpus."""

    name: str
    organ: str
    platform: str
    source: str  # a digest
    files: Mapping[str, tuple[int, str]]  # size in bytes and SHA-256 by path; JSON stores the pairs as lists


@final
class SkippedSection(TypedDict):
    """A section that was skipped, with the reason."""

    name: str
    error: str


class Manifest(TypedDict):
    """Contents of manifest.json."""

    format: int
    stampy: str
    settings: CorpusSettings
    vocabulary: str  # a digest
    sections: list[SectionRecord]
    skipped: list[SkippedSection]
    digest: NotRequired[str]


GROUP = "zarr.json"  # of a section's group; its attributes contain the record
ROWS_PER_SHARD = 4608  # of tokens; 14 MB before compression
TILES_PER_SHARD = 256  # 39 MB before compression


def write_group(folder: Path, attributes: Mapping[str, object]) -> None:
    """Write the metadata of a zarr group."""
    with _files.atomic(folder / GROUP) as temporary:
        temporary.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}) + "\n")


def put(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """Write a small array as a single chunk."""
    new_array(group, name, values.shape, values.dtype, len(values), 1)[:] = values


def new_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int, chunks: int,
    codec: str = "zstd", quality: int = 90,
) -> zarr.Array:  # fmt: skip
    """Create an array with `rows` rows per chunk and `chunks` chunks per shard."""
    from zarr.codecs import ZstdCodec

    if codec in ("none", "zstd"):
        how = {"compressors": None if codec == "none" else ZstdCodec(level=1, checksum=True)}
    else:
        from stampy.train._corpus.codec import TileCodec

        how = {"serializer": TileCodec(codec, quality), "compressors": None}
    return group.create_array(
        name,
        shape=shape,
        dtype=dtype,
        chunks=(rows, *shape[1:]),
        shards=(rows * chunks, *shape[1:]),
        config={"write_empty_chunks": True},
        **how,
    )
