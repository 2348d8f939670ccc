"""The arrays of a corpus: sharded zarr v3, made and filled; needs zarr, which reading does not."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stampy import _files

if TYPE_CHECKING:
    import zarr

__all__ = ["GROUP", "ROWS_PER_SHARD", "TILES_PER_SHARD", "new_array", "put", "write_group"]

GROUP = "zarr.json"  # of a section's group: its attributes hold the record
ROWS_PER_SHARD = 4608  # of tokens: 14 MB before compression
TILES_PER_SHARD = 256  # 39 MB before compression


def write_group(folder: Path, attributes: Mapping[str, object]) -> None:
    """The metadata of a zarr group."""
    with _files.atomic(folder / GROUP) as temporary:
        temporary.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}) + "\n")


def put(group: zarr.Group, name: str, values: np.ndarray) -> None:
    """A small array in one piece."""
    new_array(group, name, values.shape, values.dtype, len(values), 1)[:] = values


def new_array(
    group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, rows: int, chunks: int,
    codec: str = "zstd", quality: int = 90,
) -> zarr.Array:  # fmt: skip
    """A new array with `rows` rows in a chunk and `chunks` chunks in a shard."""
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
