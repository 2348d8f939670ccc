"""JPEG and JPEG XL tiles as a codec of zarr v3, for reading and writing with zarr; imported on demand."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.common import parse_named_configuration
from zarr.registry import register_codec

from stampy.train._corpus.shards import TILE_CODEC, decode_tile, encode_tile

if TYPE_CHECKING:
    from zarr.core.array_spec import ArraySpec
    from zarr.core.common import JSON

__all__ = ["TileCodec"]


@dataclass(frozen=True)
class TileCodec(ArrayBytesCodec):
    """One RGB tile per chunk, (1, h, w, 3) uint8.

    Parameters
    ----------
    format
        jpeg or jpegxl.
    quality
        1 to 100.
    """

    format: str = "jpeg"
    quality: int = 90
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        """Read the codec from its entry in zarr.json."""
        _, configuration = parse_named_configuration(data, TILE_CODEC)
        return cls(**configuration)

    def to_dict(self) -> dict[str, JSON]:
        """The codec's entry in zarr.json."""
        return {"name": TILE_CODEC, "configuration": asdict(self)}

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """The encoded size is not known in advance."""
        raise NotImplementedError

    async def _encode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        tile = np.ascontiguousarray(chunk_data.as_numpy_array().reshape(chunk_spec.shape)[0])
        return chunk_spec.prototype.buffer.from_bytes(encode_tile(tile, self.format, self.quality))

    async def _decode_single(self, chunk_data: Any, chunk_spec: Any) -> Any:
        tile = decode_tile(chunk_data.to_bytes(), self.format).reshape(chunk_spec.shape)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(tile)


register_codec(TILE_CODEC, TileCodec)
