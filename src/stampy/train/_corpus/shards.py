"""Read rows of a sharded zarr v3 array chunk by chunk, for random access from many threads.

zarr can read the same arrays, but takes about a millisecond per call, as long as a hundred reads here. Only the
standard library, numpy and imagecodecs are used, so that training does not need zarr.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

__all__ = ["TILE_CODEC", "TILE_FORMATS", "Shards", "decode_tile", "encode_tile"]

TILE_CODEC = "stampy.tile"
TILE_FORMATS = ("jpeg", "jpegxl", "zstd")
_NO_CHUNK = 2**64 - 1  # index value of an unwritten chunk, whose values are all 0
_CRC_BYTES = 4

_keys = itertools.count()

Decode = Callable[[bytes, tuple[int, ...]], np.ndarray]


def encode_tile(tile: np.ndarray, format: str, quality: int) -> bytes:  # noqa: A002
    """Encode an RGB tile (h, w, 3) uint8 as JPEG or JPEG XL, with quality 1 to 100 (JPEG XL: 100 is lossless)."""
    if format == "jpeg":
        return imagecodecs.jpeg8_encode(tile, level=quality, subsampling="444", optimize=True)
    if quality == 100:
        return imagecodecs.jpegxl_encode(tile, lossless=True, effort=3, numthreads=1)
    # conversion of JPEG's quality to a distance, as in libjxl's tools
    return imagecodecs.jpegxl_encode(tile, distance=0.1 + (100 - quality) * 0.09, effort=3, numthreads=1)


def decode_tile(data: bytes, format: str) -> np.ndarray:  # noqa: A002
    """Decode a tile to (h, w, 3) uint8."""
    if format == "jpeg":
        return imagecodecs.jpeg8_decode(data)
    return imagecodecs.jpegxl_decode(data, numthreads=1)


class Shards:
    """A zarr v3 array that is sharded and chunked only along the first axis.

    Parameters
    ----------
    folder
        Folder of the array.

    Raises
    ------
    ValueError
        It is not such an array, or (when it is read) it is damaged.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            meta = json.loads((folder / "zarr.json").read_text())
            sharding = meta["codecs"][0]["configuration"]
            self.shape, self.dtype = tuple(meta["shape"]), np.dtype(meta["data_type"])
            self._chunk_shape = tuple(sharding["chunk_shape"])
            self._per_shard = meta["chunk_grid"]["configuration"]["chunk_shape"][0] // self._chunk_shape[0]
            self._decode = _decoder(sharding["codecs"], self.dtype)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise damaged_corpus(folder / "zarr.json", repr(error)) from error
        self._key = next(_keys)  # unique per instance, so that files of a rebuilt corpus are opened anew
        self._prefix, self._suffix = f"{folder / 'c'}{os.sep}", f"{os.sep}0" * (len(self.shape) - 1)
        self._index = lru_cache(maxsize=None)(self._read_index)

    @property
    def rows_per_chunk(self) -> int:
        """Number of rows per chunk."""
        return self._chunk_shape[0]

    def __len__(self) -> int:
        return self.shape[0]

    def chunk(self, number: int) -> np.ndarray:
        """Read the rows of a chunk."""
        shard, place = divmod(number, self._per_shard)
        start, size = self._index(shard)[place]
        rows = min(self.rows_per_chunk, len(self) - number * self.rows_per_chunk)
        if start == _NO_CHUNK:
            return np.zeros((rows, *self.shape[1:]), dtype=self.dtype)
        path = self._path(shard)
        data = _pread(path, self._key, int(size), int(start))
        try:
            return self._decode(data, self._chunk_shape)[:rows]
        except (ValueError, RuntimeError) as error:  # errors of imagecodecs are RuntimeErrors
            raise damaged_corpus(path, f"chunk {place}: {error}") from error

    def read_into(self, number: int, out: np.ndarray) -> None:
        """Read a whole chunk of an uncompressed array directly into `out`."""
        shard, place = divmod(number, self._per_shard)
        path = self._path(shard)
        found = _open(path, self._key).read_into(out, int(self._index(shard)[place, 0]))
        if found != out.nbytes:
            raise damaged_corpus(path, f"it ends {out.nbytes - found} bytes early")

    def row(self, number: int) -> np.ndarray:
        """Read one row."""
        chunk, place = divmod(number, self.rows_per_chunk)
        return self.chunk(chunk)[place]

    def all(self) -> np.ndarray:
        """Read the whole array."""
        chunks = [self.chunk(i) for i in range(-(-len(self) // self.rows_per_chunk))]
        return np.concatenate(chunks) if chunks else np.zeros(self.shape, dtype=self.dtype)

    def _path(self, shard: int) -> str:
        return f"{self._prefix}{shard}{self._suffix}"

    def _read_index(self, shard: int) -> np.ndarray:
        """Start and size in bytes of each chunk, from the end of the shard, where they precede a checksum."""
        path, size = self._path(shard), 16 * self._per_shard
        length = _open(path, self._key).length()
        if length < size + _CRC_BYTES:
            raise damaged_corpus(path, f"it has {length} bytes, fewer than its index")
        index = np.frombuffer(_pread(path, self._key, size, length - size - _CRC_BYTES), dtype="<u8").reshape(-1, 2)
        ends = index[index[:, 0] != _NO_CHUNK].sum(axis=1)
        if ends.size and ends.max() > length:
            raise damaged_corpus(path, f"it has {length} bytes where {ends.max()} were expected")
        return index


def damaged_corpus(path: str | Path, why: str) -> ValueError:
    """Return an error for a damaged file of a corpus."""
    return ValueError(
        f"The corpus is damaged at {str(path)!r}: {why}. `stampy corpus verify` lists all that is; building again "
        "from the same sections repairs it."
    )


class _OpenFile:
    """An open file that is closed with its last reference, so that it is never closed while a thread reads."""

    def __init__(self, number: int):
        self._number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self._number)

    def length(self) -> int:
        return os.fstat(self._number).st_size

    def read(self, size: int, start: int) -> bytes:
        return os.pread(self._number, size, start)

    def read_into(self, out: np.ndarray, start: int) -> int:
        return os.preadv(self._number, [out.data.cast("B")], start)


@lru_cache(maxsize=256)  # bounded, since a corpus has more shards than a process may open files
def _open_again(path: str, key: int) -> _OpenFile:
    return _OpenFile(os.open(path, os.O_RDONLY))


def _open(path: str, key: int) -> _OpenFile:
    try:
        return _open_again(path, key)
    except FileNotFoundError as error:
        raise damaged_corpus(path, "it is missing") from error


def _pread(path: str, key: int, size: int, start: int) -> bytes:
    data = _open(path, key).read(size, start)
    if len(data) != size:
        raise damaged_corpus(path, f"it ends {size - len(data)} bytes early")
    return data


def _decoder(codecs: list[Mapping[str, Any]], dtype: np.dtype) -> Decode:
    """Function that decodes the bytes of a chunk with the codecs of the array."""
    names = [codec["name"] for codec in codecs]
    if names == [TILE_CODEC]:
        return partial(_tile_chunk, codecs[0]["configuration"]["format"])
    if names == ["bytes", "zstd"]:
        return partial(_zstd_chunk, dtype.newbyteorder("<"))
    if names == ["bytes"]:
        return partial(_plain_chunk, dtype.newbyteorder("<"))
    raise ValueError(f"codecs {names} are none that stampy writes")


def _tile_chunk(format: str, data: bytes, shape: tuple[int, ...]) -> np.ndarray:  # noqa: A002
    return decode_tile(data, format).reshape(shape)


def _plain_chunk(dtype: np.dtype, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(data, dtype).reshape(shape)


def _zstd_chunk(dtype: np.dtype, data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    out = np.empty(shape, dtype=dtype)
    imagecodecs.zstd_decode(data, out=out.reshape(-1).view(np.uint8).data)
    return out
