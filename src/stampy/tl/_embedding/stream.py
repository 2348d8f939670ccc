"""Stream a section through an encoder in batches, at its precision, so that memory does not grow with the section.

Shapes: B spots of a batch, L positions, D size of the output.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TextIO, TypeVar

import numpy as np
from scipy import sparse
from tqdm.auto import tqdm

from stampy import _checks
from stampy._files import digest_of_arrays
from stampy._utils import hidden
from stampy.pp._counts import CHUNK
from stampy.pp._rank_tokens import weighted_bag

from .encoders import hint_bfloat16
from .resume import Chunk, Chunks

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stampy.models import GeneConfig, GeneSystem, Stamp
    from stampy.pp._genes.match_report import GeneMatch
    from stampy.pp._tiles import TileSource

    from .arguments import Level
    from .encoders import Encoder, ImageModel

__all__ = ["Tower", "iter_images", "positions_per_batch", "stream_counts", "stream_genes", "stream_images"]

T = TypeVar("T")
M = TypeVar("M", bound="Encoder", covariant=True)  # an encoder of one kind is accepted for several

_TOKENS_PER_BATCH = {"cpu": 16_384, "cuda": 262_144}
_IMAGES_PER_BATCH = {"cpu": 32, "cuda": 512}
_COMPILED_FROM = 20_000  # spots; for fewer, compiling takes longer than it saves


class Tower(Generic[M]):
    """Forward pass of a model on its device and in its precision.

    Parameters
    ----------
    model
        Model with weights on the device to use.
    n_spots
        Number of spots to embed; determines whether the model is compiled (on CUDA).
    precision
        ``"float32"`` or ``"bfloat16"``; None: bfloat16 on CUDA, float32 on the CPU.
    """

    def __init__(self, model: M, n_spots: int, precision: str | None):
        self.model, self.device, self.asked = model, model.device, precision
        self.precision = precision or ("bfloat16" if self.device.type == "cuda" else "float32")
        self._compiled = self.device.type == "cuda" and n_spots >= _COMPILED_FROM

    def compiled(self, function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """Compile `function` if this saves time."""
        if not self._compiled:
            return function
        import torch

        from stampy.models._gene import ready_to_compile

        ready_to_compile()
        return torch.compile(function, dynamic=True)

    def projection(
        self, what: Literal["genes", "images"], level: Level, *, normalize: bool = True
    ) -> Callable[[Tensor], Tensor]:
        """Function from gene or image features to outputs: the ``"embedding"``, or the ``"feature"`` unchanged."""
        if level == "feature":
            return _same
        project = getattr(self.model, f"project_{what}")
        return project if normalize else partial(project, normalize=False)

    def checked(self, values: Tensor) -> np.ndarray:
        """A batch of outputs as float32; ValueError if any is not finite."""
        return _checks.results(values.float().cpu().numpy(), self.model.name)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Inference in the encoder's precision; the model's training flag is restored afterwards."""
        training = self.model.training
        self.model.eval()
        import torch

        low = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")
        on_mps = _explained_mps_limits() if self.device.type == "mps" else contextlib.nullcontext()
        try:
            with torch.inference_mode(), low, on_mps:
                yield
        finally:
            self.model.train(training)


@contextlib.contextmanager
def _explained_mps_limits() -> Iterator[None]:
    """Warn once about operations that run on the CPU for lack of support on Apple GPUs; RuntimeError if they cannot."""
    with warnings.catch_warnings():
        # torch warns once per process, at the first such operation
        warnings.filterwarnings("always", message=".*not currently supported on the MPS backend")
        show = warnings.showwarning

        def told(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if "not currently supported on the MPS backend" in str(message):
                operation = str(message).partition("'")[2].partition("'")[0] or "an operation"
                _checks.warn(
                    f"The Apple GPU (MPS) lacks {operation}, and maybe other operations: they run on the CPU, which is "
                    "slower and gives the same result. device='cpu' may be quicker."
                )
            else:
                show(message, category, filename, lineno, file, line)

        warnings.showwarning = told
        try:
            yield
        except NotImplementedError as error:
            if "MPS" not in str(error):
                raise
            raise RuntimeError(
                "The Apple GPU (MPS) lacks an operation of this model, and torch was loaded before it was "
                "configured to run such operations on the CPU. Import stampy before torch, set "
                "PYTORCH_ENABLE_MPS_FALLBACK=1, or use "
                f"device='cpu'. ({str(error).partition('.')[0]})"
            ) from error


def _same(values: Tensor) -> Tensor:
    return values


def positions_per_batch(device: torch.device) -> int:
    """Number of token positions per batch that suits a device, over all spots."""
    return _TOKENS_PER_BATCH["cuda" if device.type == "cuda" else "cpu"]


class _Output:
    """Outputs (n, D) float32 of an encoder for n spots, allocated with the first batch, which determines D."""

    def __init__(self, n: int):
        self.n = n
        self._values: np.ndarray | None = None

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Store the values (m, D) of some rows."""
        if self._values is None:
            self._values = np.zeros((self.n, values.shape[1]), dtype=np.float32)
        self._values[rows] = values

    def values(self) -> np.ndarray:
        """All outputs (n, D)."""
        if self._values is None:
            raise RuntimeError(f"No batch of the {self.n} spots was run.")
        return self._values


def stream_genes(
    tower: Tower[Stamp],
    blocks: Iterable[tuple[int, np.ndarray]],
    n_spots: int,
    *,
    batch_size: int | None,
    project: Callable[[Tensor], Tensor],
    progress: bool,
    parts: Chunks,
) -> np.ndarray:
    """Gene outputs (n, D) float32 of blocks of tokens as (first spot, (m, L)); zeros for a spot without tokens.

    Within a block, spots of similar length share a batch to minimise padding. Rows in `parts` are not computed again.
    """
    features = _gene_features(tower)
    whole = features.is_bag and batch_size is None
    out = _Output(n_spots)
    with tower.running(), tqdm(total=n_spots, desc="genes", unit="spot", disable=hidden(progress)) as bar:
        for start, tokens in blocks:
            lengths = (tokens != 0).sum(axis=1)
            order = np.argsort(lengths, kind="stable")
            with parts.chunk("gene", start, len(tokens), partial(digest_of_arrays, tokens)) as chunk:
                config = tower.model.gene.config
                batches = [order] if whole else _by_length(order, lengths, batch_size, config, tower.device)
                for batch in batches:
                    if chunk.has(batch):
                        values = chunk.get(batch)
                    else:
                        cut = np.ascontiguousarray(tokens[batch, : max(int(lengths[batch].max()), 1)])
                        values = tower.checked(project(features.run(cut)))
                        chunk.put(batch, values)
                    out.put(start + batch, values)
                    bar.update(len(batch))
    return out.values()


class _GeneFeatures(NamedTuple):
    """Function from tokens (B, L) to features (B, D) of a gene encoder."""

    run: Callable[[np.ndarray], Tensor]
    is_bag: bool  # a compiled loop over spots, for which padding costs nothing


def _gene_features(tower: Tower[Stamp]) -> _GeneFeatures:
    """Gene encoder in torch; for bag encoders on the CPU, a compiled loop, which moves less through memory."""
    import torch

    encoder = tower.model.gene
    if encoder.config.pooling == "bag" and tower.device.type == "cpu" and tower.precision == "float32":
        table = encoder.embeddings.weight.detach().numpy()
        gate = encoder.rank_gate.detach().numpy() if encoder.config.rank_gate else None
        bag = partial(weighted_bag, table=table, gate=gate, share=float(encoder.config.max_tokens))
        return _GeneFeatures(lambda tokens: torch.from_numpy(bag(tokens)), is_bag=True)
    features = tower.compiled(encoder.features)
    return _GeneFeatures(lambda tokens: features(torch.from_numpy(tokens).to(tower.device)), is_bag=False)


def _by_length(
    order: np.ndarray, lengths: np.ndarray, batch_size: int | None, config: GeneConfig, device: torch.device
) -> Iterator[np.ndarray]:
    """Batches of rows in ascending order of length: `batch_size` each, or limited by a number of positions."""
    first = 0
    while first < len(order):
        if batch_size is not None:
            size = batch_size
        else:
            budget = positions_per_batch(device)
            full = config.pooling == "positions"  # then every spot has the full length
            size = max(budget // config.max_tokens, 1)
            while (
                not full and first + size < len(order) and (size + 1) * max(lengths[order[first + size]], 1) <= budget
            ):
                size += 1
        yield order[first : first + size]
        first += size


def stream_counts(
    tower: Tower[GeneSystem],
    blocks: Iterable[tuple[int, sparse.csr_matrix]],
    n_spots: int,
    match: GeneMatch,
    *,
    batch_size: int | None,
    level: Level,
    progress: bool,
    parts: Chunks,
) -> np.ndarray:
    """Outputs (n, D) float32 of a `stampy.models.GeneSystem`, whose input is counts of its own vocabulary.

    The blocks are raw counts as (first spot, (m, n_vars)). Rows in `parts` are not computed again.
    """
    system = tower.model
    (columns,) = np.nonzero(match.rows >= 0)
    shape = (match.n_vars, len(system.genes))
    chosen = sparse.csr_matrix((np.ones(len(columns)), (columns, match.rows[columns])), shape=shape)
    size = batch_size or max(positions_per_batch(tower.device) // 1500, 1)
    out = _Output(n_spots)
    with tower.running(), tqdm(total=n_spots, desc="genes", unit="spot", disable=hidden(progress)) as bar:
        for start, block in blocks:
            own = sparse.csr_matrix(block) @ chosen
            own.sort_indices()
            key = partial(digest_of_arrays, own.data, own.indices, own.indptr)
            with parts.chunk("gene", start, own.shape[0], key) as chunk:
                for first in range(0, own.shape[0], size):
                    batch = np.arange(first, min(first + size, own.shape[0]))
                    if chunk.has(batch):
                        values = chunk.get(batch)
                    else:
                        values = tower.checked(system.embed_counts(own[batch], level=level))
                        chunk.put(batch, values)
                    out.put(start + batch, values)
                    bar.update(len(batch))
    return out.values()


def stream_images(
    tower: Tower[ImageModel],
    tiles: TileSource,
    *,
    batch_size: int | None,
    n_workers: int,
    project: Callable[[Tensor], Tensor],
    progress: bool,
    parts: Chunks,
) -> np.ndarray:
    """Image outputs (n, D) float32 of a section's tiles; threads read tiles in advance.

    Rows in `parts` are not read and computed again.
    """
    hint_bfloat16(tower.model, len(tiles), tower.asked)
    run = _image_outputs(tower, project)
    out = _Output(len(tiles))
    saved = contextlib.ExitStack()  # chunks are finished in order; if interrupted, the last one is saved in part
    with (
        saved,
        tower.running(),
        tqdm(total=len(tiles), desc="tiles", unit="spot", disable=hidden(progress)) as bar,
    ):
        batches = _batches(tiles, batch_size or _images_per_batch(tower.device), parts)
        for batch, pixels in _read_ahead(tiles, batches, n_workers):
            saved.pop_all()
            saved.enter_context(batch.chunk)
            if len(pixels):
                values = run(pixels)
                batch.chunk.put(batch.within, values)
            else:
                values = batch.chunk.get(batch.within)
            out.put(batch.rows, values)
            bar.update(len(batch.rows))
    return out.values()


def iter_images(
    tower: Tower[ImageModel],
    tiles: TileSource,
    spans: list[tuple[int, int]],
    *,
    batch_size: int | None,
    n_workers: int,
    project: Callable[[Tensor], Tensor],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows (B,) and their image outputs (B, D) float32, in order; batches do not cross the spans of rows."""
    hint_bfloat16(tower.model, len(tiles), tower.asked)
    run = _image_outputs(tower, project)
    size = batch_size or _images_per_batch(tower.device)
    batches = (np.arange(i, min(i + size, end)) for start, end in spans for i in range(start, end, size))
    for rows, pixels in _read_ahead(tiles, ((rows, rows) for rows in batches), n_workers):
        with tower.running():  # not around the loop, where a generator would leave the mode set in the caller
            values = run(pixels)
        yield rows, values


def _images_per_batch(device: torch.device) -> int:
    return _IMAGES_PER_BATCH["cuda" if device.type == "cuda" else "cpu"]


def _image_outputs(tower: Tower[ImageModel], project: Callable[[Tensor], Tensor]) -> Callable[[np.ndarray], np.ndarray]:
    """Function from uint8 tiles, as returned by `TileSource.inputs`, to outputs (B, D) float32."""
    import torch

    features = tower.compiled(tower.model.image_features)
    ahead = tower.device.type == "cuda"  # on MPS, asynchronous copies could read memory that is reused

    def run(pixels: np.ndarray) -> np.ndarray:
        tiles = torch.from_numpy(pixels).to(tower.device, non_blocking=ahead)
        return tower.checked(project(features(tower.model.normalize(tiles))))

    return run


class _TileBatch(NamedTuple):
    """Tiles of one chunk that are embedded together."""

    chunk: Chunk
    within: np.ndarray  # positions in the chunk
    rows: np.ndarray  # rows of the section


def _batches(tiles: TileSource, size: int, parts: Chunks) -> Iterator[tuple[_TileBatch, np.ndarray]]:
    """Batches in order, each with the rows to read: all, or none if the chunk has them."""
    for start in range(0, len(tiles), CHUNK):
        n = min(CHUNK, len(tiles) - start)
        chunk = parts.chunk("image", start, n, partial(tiles.digest, np.arange(start, start + n)))
        for first in range(0, n, size):
            within = np.arange(first, min(first + size, n))
            rows = start + within
            yield _TileBatch(chunk, within, rows), rows[:0] if chunk.has(within) else rows


def _read_ahead(
    tiles: TileSource, batches: Iterable[tuple[T, np.ndarray]], n_workers: int
) -> Iterator[tuple[T, np.ndarray]]:
    """Batches (anything, rows to read) with tiles instead of rows, in order, read in advance."""
    with ThreadPoolExecutor(n_workers) as pool:
        waiting: deque[tuple[T, Future[np.ndarray]]] = deque()
        for batch, rows in batches:
            waiting.append((batch, pool.submit(tiles.inputs, rows)))
            if len(waiting) > n_workers:
                done, future = waiting.popleft()
                yield done, future.result()
        for done, future in waiting:
            yield done, future.result()
