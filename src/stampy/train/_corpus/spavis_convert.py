"""Convert one section of SpaVis-6M block by block; memory use does not depend on the size of files or sections.

Shapes: b rows of a block, N spots of a group, L positions, n spots.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stampy import _checks, _keys
from stampy.train._corpus.layout import ROWS_PER_SHARD, TILES_PER_SHARD, ArrayRecord, CorpusSettings, new_array, put
from stampy.train._corpus.spavis import CELLS, PATCHES, REGIONS, TOKENS, Slide
from stampy.train._corpus.spavis_index import open_file

__all__ = ["write_slide"]

READ_BYTES = 2**25  # bytes per read
CACHE_BYTES = 2**28  # maximum cache for chunks of a file that span more rows than one read
PADS = (0, 1)


class _Rows(NamedTuple):
    """Consecutive rows from one read."""

    name: str  # name of the file
    start: int
    values: np.ndarray  # (b, ...)


def write_slide(slide: Slide, settings: CorpusSettings, n_genes: int, folder: Path) -> ArrayRecord:
    """Write the arrays of a section into `folder`, and return its record.

    Raises
    ------
    ValueError
        A file is damaged or has impossible tokens, cells or rows; the message names file and row.
    """
    import zarr

    grouped = slide.parts[0].file.grouped
    size = settings["group_size"] if grouped else 1
    n_rows = sum(part.n_rows for part in slide.parts)
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    put(group, "xy", np.full((n_rows * size, 2), np.nan))
    put(group, "spots", np.arange(n_rows * size, dtype=np.int32))
    n_cut, n_empty = _put_tokens(group, slide, settings["max_tokens"], size, n_rows, n_genes + _keys.N_SPECIAL)
    rows = {part.file.name: part.n_rows for part in slide.parts}
    record: ArrayRecord = {
        "n_spots": n_rows * size,
        "n_groups": [n_rows if grouped else 0],
        "genes": {"n_vars": n_genes, "n_matched": n_genes, "source": "token ids of SpaVis-6M"},
        "image": None,
        "notes": [],
        "spavis": {"rows": rows, "n_cut": n_cut, "n_empty": n_empty},
    }
    if slide.parts[0].file.tiles:
        _put_tiles(group, slide, settings, n_rows)
        record["image"] = {"um_per_px": None, "um_per_px_from": "tiles of SpaVis-6M, as published", "upsampling": None}
    return record


def _pieces(slide: Slide, key: str, row_bytes: int, width: int | None = None) -> Iterator[_Rows]:
    """Yield the rows of a section in order, in pieces bounded by memory that end at chunk boundaries of the file.

    Only the first `width` positions of the last axis are read.
    """
    for part in slide.parts:
        with open_file(part.file.path, part.file.name) as file:
            chunk = (file[key].chunks or (1,))[0]
        rows = max(READ_BYTES // row_bytes, 1)
        rows = rows // chunk * chunk or rows
        cache = min(max(chunk * row_bytes * 2, 2**20), CACHE_BYTES)
        with open_file(part.file.path, part.file.name, cache_bytes=cache) as file:
            for start, stop in part.runs.tolist():
                while start < stop:
                    end = min((start // rows + 1) * rows, stop)
                    yield _Rows(
                        part.file.name, start, file[key][start:end, ..., :width] if width else file[key][start:end]
                    )
                    start = end


class _ShardWriter:
    """Write an array shard by shard from pieces of any size."""

    def __init__(self, array: Any, rows_per_shard: int):
        self._array, self._done, self._filled = array, 0, 0
        self._rows = np.empty((min(rows_per_shard, array.shape[0]), *array.shape[1:]), dtype=array.dtype)

    def add(self, values: np.ndarray) -> None:
        """Append rows."""
        while len(values):
            n = min(len(self._rows) - self._filled, len(values))
            self._rows[self._filled : self._filled + n] = values[:n]
            self._filled, values = self._filled + n, values[n:]
            if self._filled == len(self._rows):
                self.flush()

    def flush(self) -> None:
        """Write the remaining rows."""
        self._array[self._done : self._done + self._filled] = self._rows[: self._filled]
        self._done, self._filled = self._done + self._filled, 0


def _put_tokens(group: Any, slide: Slide, max_tokens: int, size: int, n_rows: int, n_tokens: int) -> tuple[int, int]:
    """Write tokens and their lengths; returns the numbers of spots with too many tokens and of spots without tokens."""
    per_shard = ROWS_PER_SHARD // size
    dtype = np.dtype(np.uint16 if n_tokens <= 2**16 else np.int32)
    array = new_array(group, "tokens", (n_rows * size, max_tokens), dtype, size, per_shard, "none")
    shards, lengths, n_cut = _ShardWriter(array, per_shard * size), [np.empty(0, dtype=np.uint16)], 0
    wanted = max_tokens + 1  # one more, to detect spots with more tokens
    for name, start, values in _pieces(slide, TOKENS, size * wanted * 8, wanted):
        found = values.reshape(len(values), size, -1)
        if found.shape[2] > max_tokens:
            n_cut += int((found[..., max_tokens] > 1).sum())
            found = found[..., :max_tokens]
        tokens, own = _cleaned(found, dtype, n_tokens, name, start)
        wide = np.zeros((len(own), max_tokens), dtype=dtype)
        wide[:, : tokens.shape[1]] = tokens
        shards.add(wide)
        lengths.append(own)
    shards.flush()
    joined = np.concatenate(lengths)
    put(group, "lengths", joined)
    return n_cut, int((joined == 0).sum())


def _cleaned(found: np.ndarray, dtype: np.dtype, n_tokens: int, name: str, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Convert ids (b, N, L) to tokens (b x N, L), padded with 0, and the number of tokens per spot (b x N,)."""
    if found.min() < 0 or found.max() >= n_tokens:
        _refuse_id(found, (found < 0) | (found >= n_tokens), n_tokens, name, first)
    tokens = found.astype(dtype)
    tokens[tokens == PADS[1]] = _keys.PAD
    there = tokens != _keys.PAD
    if (there & (tokens < _keys.N_SPECIAL)).any():
        _refuse_id(found, there & (tokens < _keys.N_SPECIAL), n_tokens, name, first)
    gaps = (there[..., 1:] & ~there[..., :-1]).any(axis=2)
    if gaps.any():
        row, spot = (int(i) for i in np.argwhere(gaps)[0])
        raise ValueError(
            f"{name}, row {first + row}{_of_group(found, spot)}: a token follows padding. Ids are expected in the "
            "order of their rank, padding (0 or 1) last."
        )
    ordered = np.sort(tokens, axis=2)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] != _keys.PAD)
    if twice.any():
        row, spot, at = (int(i) for i in np.argwhere(twice)[0])
        positions = np.flatnonzero(tokens[row, spot] == ordered[row, spot, at])
        raise ValueError(
            f"{name}, row {first + row}{_of_group(found, spot)}: id {ordered[row, spot, at]} at positions "
            f"{_checks.shortlist(positions.tolist())}; a spot has each gene once. The file is damaged, or two of its "
            "genes were given one id."
        )
    lengths = there.sum(axis=2, dtype=np.uint16)
    if found.shape[1] > 1 and (lengths.max(axis=1) == 0).any():
        row = first + int((lengths.max(axis=1) == 0).argmax())
        raise ValueError(
            f"{name}, row {row}: no spot of the group has a token. The file is truncated: download it again."
        )
    return tokens.reshape(-1, tokens.shape[2]), lengths.ravel()


def _of_group(found: np.ndarray, spot: int) -> str:
    return f" (spot {spot} of its group)" if found.shape[1] > 1 else ""


def _refuse_id(found: np.ndarray, wrong: np.ndarray, n_tokens: int, name: str, first: int) -> None:
    row, spot, position = (int(i) for i in np.argwhere(wrong)[0])
    raise ValueError(
        f"{name}, row {first + row}{_of_group(found, spot)}: id {found[row, spot, position]} at position {position}, "
        f"expected {_keys.N_SPECIAL} to {n_tokens - 1} (row of the vocabulary of {n_tokens - _keys.N_SPECIAL:,} genes "
        f"+ {_keys.N_SPECIAL}), or 0 or 1 for padding. The file is damaged, or was made with another vocabulary."
    )


def _put_tiles(group: Any, slide: Slide, settings: Mapping[str, Any], n_rows: int) -> None:
    """Write patches, regions, and the cells of the patches in their regions."""
    px, how = settings["size_px"], (settings["codec"], settings["quality"])
    for key, what in ((PATCHES, "patches"), (REGIONS, "regions")):
        array = new_array(group, what, (n_rows, px, px, 3), np.dtype(np.uint8), 1, TILES_PER_SHARD, *how)
        shards = _ShardWriter(array, TILES_PER_SHARD)
        for name, start, tiles in _pieces(slide, key, 3 * px * px):
            blank = ~tiles.any(axis=(1, 2, 3))
            if blank.any():
                raise ValueError(
                    f"{name}, row {start + int(blank.argmax())}: {key!r} is 0 throughout. The file is truncated: "
                    "download it again."
                )
            shards.add(tiles.transpose(0, 2, 3, 1))
        shards.flush()
    put(group, "cells", np.concatenate([_cells(*piece) for piece in _pieces(slide, CELLS, 8)]))


def _cells(name: str, start: int, values: np.ndarray) -> np.ndarray:
    """Cells (b, 1) int8, -1 at borders."""
    found = values.reshape(-1, 1)
    wrong = (found < -1) | (found > 8)
    if wrong.any():
        row = int(wrong.ravel().argmax())
        raise ValueError(
            f"{name}, row {start + row}: {CELLS!r} is {found[row, 0]}, expected 0 to 8 (row by row), or -1 at borders."
        )
    return found.astype(np.int8)
