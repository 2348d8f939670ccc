"""A section through a tower, piece by piece: memory does not grow with the section.

Shapes: B spots of a batch, L positions, D size of the output.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
import torch
from scipy import sparse
from torch import Tensor
from tqdm.auto import tqdm

from stampy import _checks
from stampy._files import digest_of_arrays
from stampy.pp._bag import weighted_bag
from stampy.pp._counts import CHUNK, checked_rows
from stampy.pp._tokens import iter_tokens

from ._resume import Chunk, Parts

if TYPE_CHECKING:
    from stampy.models import GeneSystem, ImageSystem, Stamp
    from stampy.pp._match import GeneMatch
    from stampy.pp._tiles import TileSource

__all__ = ["Tower", "iter_images", "stream_counts", "stream_genes", "stream_images"]

T = TypeVar("T")

_TOKENS_PER_BATCH = {"cpu": 16_384, "cuda": 262_144}
_IMAGES_PER_BATCH = {"cpu": 32, "cuda": 512}
_COMPILED_FROM = 20_000  # spots; below, compiling takes longer than it saves


class Tower:
    """A model's forward pass, on its device and in its precision.

    Parameters
    ----------
    model
        With weights on the device to use.
    n_spots
        To come; decides whether compiling pays (on CUDA).
    precision
        ``"float32"`` or ``"bfloat16"``; None: bfloat16 on CUDA, float32 on the CPU.
    """

    def __init__(self, model: Stamp | ImageSystem | GeneSystem, n_spots: int, precision: str | None):
        self.model, self.device = model, model.device
        self.precision = precision or ("bfloat16" if self.device.type == "cuda" else "float32")
        self._compiled = self.device.type == "cuda" and n_spots >= _COMPILED_FROM

    def compiled(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """`function`, compiled where that pays."""
        return torch.compile(function, dynamic=True) if self._compiled else function

    def bag_features(self) -> Callable[[np.ndarray], np.ndarray] | None:
        """From tokens (B, L) to features (B, D) of a bag encoder by a compiled loop; None where torch has to do it.

        On the CPU torch would spend most of its time on moving (B, L, D) tensors through memory.
        """
        encoder = self.model.gene
        if encoder.config.pooling != "bag" or self.device.type != "cpu" or self.precision != "float32":
            return None
        table = encoder.embeddings.weight.detach().numpy()
        gate = encoder.rank_gate.detach().numpy() if encoder.config.rank_gate else None
        return partial(weighted_bag, table=table, gate=gate, share=float(encoder.config.max_tokens))

    def projection(self, what: Literal["genes", "images"], level: str) -> Callable[[Tensor], Tensor]:
        """From the features of genes or images to what is written: the ``"embedding"``, or the ``"feature"`` itself."""
        return getattr(self.model, f"project_{what}") if level == "embedding" else _same

    def checked(self, values: Tensor) -> np.ndarray:
        """A batch of outputs as float32; ValueError where any is not finite."""
        return _checks.results(values.float().cpu().numpy(), self.model.name)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inference in the tower's precision; the model's training flag is put back afterwards."""
        training = self.model.training
        self.model.eval()
        low = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        try:
            with torch.inference_mode(), low:
                yield
        finally:
            self.model.train(training)


def _same(values: Tensor) -> Tensor:
    return values


def stream_genes(
    tower: Tower,
    counts: object,
    match: GeneMatch,
    divisors: np.ndarray,
    *,
    batch_size: int | None,
    project: Callable[[Tensor], Tensor],
    progress: bool,
    source: str,
    layers: Mapping[str, Any] | None = None,
    parts: Parts | None = None,
) -> np.ndarray:
    """Gene outputs (n, D) float32 of a matrix of counts; a row of zeros for a spot without tokens.

    Counts are read, ranked and run in chunks; in a chunk spots of like length share a batch, so little is padded. What
    `parts` has is not run again.
    """
    parts = parts or Parts()
    encoder = tower.model.gene
    features = tower.compiled(encoder.features)
    bag = tower.bag_features()
    n, out = counts.shape[0], None
    with tower.running(), tqdm(total=n, desc="genes", unit="spot", disable=not progress) as bar:
        for start, tokens in iter_tokens(
            counts, match, divisors, encoder.config.max_tokens, CHUNK, source=source, layers=layers or {}
        ):
            lengths = (tokens != 0).sum(axis=1)
            order = np.argsort(lengths, kind="stable")
            with parts.chunk("gene", start, len(tokens), partial(digest_of_arrays, tokens)) as chunk:
                whole = [order] if bag is not None and batch_size is None else None
                for batch in whole or _of_like_length(order, lengths, batch_size, encoder.config, tower.device.type):
                    if chunk.has(batch):
                        values = chunk.values[batch]
                    else:
                        cut = np.ascontiguousarray(tokens[batch, : max(int(lengths[batch].max()), 1)])
                        if bag is None:
                            outputs = features(torch.from_numpy(cut).to(tower.device))
                        else:
                            outputs = torch.from_numpy(bag(cut))
                        values = tower.checked(project(outputs))
                        chunk.put(batch, values)
                    if out is None:
                        out = np.zeros((n, values.shape[1]), dtype=np.float32)
                    out[start + batch] = values
                    bar.update(len(batch))
    return out


def _of_like_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int | None, config: object, device: str
) -> Iterator[np.ndarray]:
    """Batches of rows in rising order of length: `batch_size` each, or as many as a budget of positions allows."""
    first = 0
    while first < len(order):
        if batch_size is not None:
            size = batch_size
        else:
            budget = _TOKENS_PER_BATCH[device if device == "cuda" else "cpu"]
            full = config.pooling == "positions"  # then every spot runs at full length
            size = max(budget // config.max_tokens, 1)
            while (
                not full and first + size < len(order) and (size + 1) * max(lengths[order[first + size]], 1) <= budget
            ):
                size += 1
        yield order[first : first + size]
        first += size


def stream_counts(
    tower: Tower,
    counts: object,
    match: GeneMatch,
    *,
    batch_size: int | None,
    level: str,
    progress: bool,
    source: str,
    layers: Mapping[str, Any] | None = None,
    parts: Parts | None = None,
) -> np.ndarray:
    """Outputs (n, D) float32 of a `stampy.models.GeneSystem`, which sees counts of its own vocabulary."""
    parts = parts or Parts()
    system, n, out = tower.model, counts.shape[0], None
    (columns,) = np.nonzero(match.rows >= 0)
    shape = (match.n_vars, len(system.genes))
    chosen = sparse.csr_matrix((np.ones(len(columns)), (columns, match.rows[columns])), shape=shape)
    size = batch_size or max(_TOKENS_PER_BATCH["cuda" if tower.device.type == "cuda" else "cpu"] // 1500, 1)
    with tower.running(), tqdm(total=n, desc="genes", unit="spot", disable=not progress) as bar:
        for start, block in checked_rows(counts, CHUNK, source=source, layers=layers or {}):
            own = sparse.csr_matrix(block) @ chosen
            own.sort_indices()
            key = partial(digest_of_arrays, own.data, own.indices, own.indptr)
            with parts.chunk("gene", start, own.shape[0], key) as chunk:
                for first in range(0, own.shape[0], size):
                    batch = np.arange(first, min(first + size, own.shape[0]))
                    if chunk.has(batch):
                        values = chunk.values[batch]
                    else:
                        values = tower.checked(system.embed_counts(own[batch], level=level))
                        chunk.put(batch, values)
                    if out is None:
                        out = np.zeros((n, values.shape[1]), dtype=np.float32)
                    out[start + batch] = values
                    bar.update(len(batch))
    return out


def stream_images(
    tower: Tower,
    tiles: TileSource,
    *,
    batch_size: int | None,
    n_workers: int,
    project: Callable[[Tensor], Tensor],
    progress: bool,
    parts: Parts | None = None,
) -> np.ndarray:
    """Image outputs (n, D) float32 of a section's tiles; threads read the next tiles while these run.

    What `parts` has is not read and run again.
    """
    features = tower.compiled(tower.model.image_features)
    size = batch_size or _IMAGES_PER_BATCH["cuda" if tower.device.type == "cuda" else "cpu"]
    out = None
    saved = contextlib.ExitStack()  # chunks are done in order: when it ends early, the last one is in part
    with saved, tower.running(), tqdm(total=len(tiles), desc="tiles", unit="spot", disable=not progress) as bar:
        batches = _batches(tiles, size, parts or Parts())
        for (chunk, within), rows, pixels in _read_ahead(tiles, batches, n_workers):
            saved.pop_all()
            saved.enter_context(chunk)
            if pixels is None:
                values = chunk.values[within]
            else:
                images = tower.model.normalize(torch.from_numpy(pixels).to(tower.device, non_blocking=True))
                values = tower.checked(project(features(images)))
                chunk.put(within, values)
            if out is None:
                out = np.empty((len(tiles), values.shape[1]), dtype=np.float32)
            out[rows] = values
            bar.update(len(rows))
    return out


def iter_images(
    tower: Tower,
    tiles: TileSource,
    spans: list[tuple[int, int]],
    *,
    batch_size: int | None,
    n_workers: int,
    project: Callable[[Tensor], Tensor],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (B,) and their image outputs (B, D) float32, in order; a batch never lies in two of the spans of rows."""
    features = tower.compiled(tower.model.image_features)
    size = batch_size or _IMAGES_PER_BATCH["cuda" if tower.device.type == "cuda" else "cpu"]
    batches = ((None, np.arange(i, min(i + size, end)), True) for start, end in spans for i in range(start, end, size))
    for _, rows, pixels in _read_ahead(tiles, batches, n_workers):
        with tower.running():  # not around the loop: a generator would leave the mode on in its caller's code
            images = tower.model.normalize(torch.from_numpy(pixels).to(tower.device, non_blocking=True))
            values = tower.checked(project(features(images)))
        yield rows, values


def _batches(tiles: TileSource, size: int, parts: Parts) -> Iterator[tuple[tuple[Chunk, np.ndarray], np.ndarray, bool]]:
    """Batches in order, each in one chunk, as (chunk and rows of it, rows of the section, whether to be read)."""
    for start in range(0, len(tiles), CHUNK):
        n = min(CHUNK, len(tiles) - start)
        chunk = parts.chunk("image", start, n, partial(tiles.digest, np.arange(start, start + n)))
        for first in range(0, n, size):
            within = np.arange(first, min(first + size, n))
            yield (chunk, within), start + within, not chunk.has(within)


def _read_ahead(
    tiles: TileSource, batches: Iterable[tuple[T, np.ndarray, bool]], n_workers: int
) -> Iterator[tuple[T, np.ndarray, np.ndarray | None]]:
    """Batches (anything, rows, whether to be read) with their tiles, or None, in order, a few ahead."""
    with ThreadPoolExecutor(n_workers) as pool:
        waiting: deque = deque()
        for key, rows, wanted in batches:
            waiting.append((key, rows, pool.submit(tiles.read, rows) if wanted else None))
            if len(waiting) > n_workers:
                key_done, done, future = waiting.popleft()
                yield key_done, done, future and future.result()
        for key_done, done, future in waiting:
            yield key_done, done, future and future.result()
