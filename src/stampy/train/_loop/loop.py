"""Training loop of both stages: optimiser, learning rate, steps, checkpoints, logs."""

from __future__ import annotations

import contextlib
import math
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, NoReturn, Protocol, TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from stampy import _checks
from stampy._files import is_full
from stampy._locks import FolderLock, remove_leftovers
from stampy._utils import seed_of
from stampy.models import Stamp
from stampy.models._gene import ready_to_compile
from stampy.train._config import AlignConfig, PretrainConfig
from stampy.train._samplers import Batch, Losses, moved, pinned

from . import checkpoints
from .logs import Logs
from .ranks import Layered, Ranks, is_sharded
from .signals import Signals, stop

__all__ = ["Sampler", "Stage", "TrainState", "fit", "locked_folder"]

# Version of a run's identity and random streams; runs of another version cannot be resumed.
IDENTITY = 2
_TERM = 2**20  # encodes SIGTERM in a sum over ranks, in which each SIGINT counts 1
TEMPORARY = ("checkpoint-", "failed-", "config.json", "data.json", "metrics.", "stampy-")

B = TypeVar("B", bound=Batch)
B_co = TypeVar("B_co", bound=Batch, covariant=True)
P = TypeVar("P", bound=Mapping[str, object])  # piece of a batch
C = TypeVar("C", PretrainConfig, AlignConfig)


class Sampler(Protocol[B_co]):
    """Source of batches. A batch depends only on its step, so any thread can make it."""

    @property
    def steps(self) -> int:
        """Number of steps of the whole run."""

    def place(self, rank: int, world_size: int) -> None:
        """Return only slice number `rank` of `world_size` of every batch from now on."""

    def batch(self, step: int) -> B_co:
        """Slice of a batch for this rank."""

    def names(self, rows: Tensor) -> list[str]:
        """Names of the sections of some rows."""


class Stage(Layered, Generic[B, P, C]):
    """Model and losses, trained on batches B that are divided into pieces P.

    Parameters
    ----------
    model
        Model with both encoders.
    config
        Settings of the stage.
    names
        Names of the losses.
    measures
        Names of measures that are logged with the losses.
    """

    def __init__(self, model: Stamp, config: C, names: Sequence[str], measures: Sequence[str] = ()):
        super().__init__()
        self.model, self.names, self.measures = model, tuple(names), tuple(measures)
        self.config: C = config
        self.ranks = Ranks()
        model.gene.checkpointing = config.checkpoint_activations
        if model.image is not None:
            model.image.checkpointing = config.checkpoint_activations

    def layers(self) -> list[nn.Module]:
        """Layers of both Transformers, which are compiled or sharded individually."""
        found = [*self.model.gene.layers]
        if self.model.image is not None:
            found += self.model.image.base_model.blocks
        return found

    def pieces(self, batch: B, step: int) -> list[P]:
        """Draw the random numbers of a step and divide the batch; runs in advance, in a thread, on the CPU."""
        raise NotImplementedError

    def run(self, fabric: Fabric, module: nn.Module, pieces: list[P]) -> Losses:
        """Forward and backward pass. Losses and measures are means over the values returned by all ranks."""
        raise NotImplementedError


@contextlib.contextmanager
def locked_folder(fabric: Fabric, out: str | Path) -> Iterator[Path]:
    """Lock the run's folder, and remove files left by killed processes.

    Raises
    ------
    RuntimeError
        Another process is using the folder.
    OSError
        The disk is full; the message states how to resume.
    """
    out = _checks.writable(out)
    with contextlib.ExitStack() as held:
        problem = ""
        if fabric.is_global_zero:
            try:
                held.enter_context(FolderLock(out, what="run"))
                remove_leftovers(out, TEMPORARY)
            except RuntimeError as error:
                problem = str(error)
        problem = fabric.broadcast(problem)
        if problem:
            raise RuntimeError(problem)
        try:
            yield out
        except OSError as error:
            if is_full(error) and "same command again" not in str(error):
                raise checkpoints.no_space(error, out / "a file") from error
            raise


def fit(
    stage: Stage[B, P, C],
    sampler: Sampler[B],
    config: C,
    out: Path,
    *,
    fabric: Fabric,
    identity: Mapping[str, object],
    progress: bool = True,
    loggers: Sequence[str] = (),
) -> dict[str, Tensor] | None:
    """Train ``stage.model`` in place, continuing from the newest checkpoint in `out`, if any.

    Parameters
    ----------
    stage
        Stage; its model is changed.
    sampler
        Source of batches.
    config
        Settings of the stage.
    out
        Folder of config.json, metrics.jsonl and the checkpoints, from `locked_folder`.
    fabric
        Launched Fabric.
    identity
        Record of the run beside its settings; a checkpoint with another record is refused.
    progress
        Show a progress bar, or without terminal a line every minute.
    loggers
        Additional logs: "csv", "tensorboard", "wandb".

    Returns
    -------
    None; for sharded weights, the complete weights on rank 0.

    Raises
    ------
    FloatingPointError
        The loss is NaN or infinite; the message states step and sections.
    ValueError
        `out` contains a run with other settings or data, or the warm-up is as long as the run.
    KeyboardInterrupt, SystemExit
        SIGINT or SIGTERM was received; a checkpoint was saved.
    """
    stage.ranks = ranks = Ranks(fabric.global_rank, fabric.world_size)
    _record_run(out, config, fabric, ranks, identity)
    sampler.place(ranks.rank, ranks.world_size)
    _check_warmup(config, sampler.steps)
    run = TrainState(out, fabric, stage)
    first = run.resume()
    logs: contextlib.AbstractContextManager[Logs | None] = contextlib.nullcontext()
    if fabric.is_global_zero:
        logs = Logs(
            out, names=(*stage.names, *stage.measures), loggers=loggers, first=first, steps=sampler.steps,
            config=config.to_dict(), progress=progress,
        )  # fmt: skip
    # Dropout uses torch's global generator, which is seeded for every step and restored at the end.
    own_generators = torch.random.fork_rng(devices=[fabric.device] if fabric.device.type == "cuda" else [])
    with logs as log, own_generators, Signals() as signals:
        for step, batch, pieces, waited in _prefetched(sampler, stage, first):
            began = time.perf_counter()
            line, caught = run.step(step, batch, pieces, sampler, signals)
            seconds = time.perf_counter() - began + waited
            if log is not None:
                rate = batch["rows"].numel() * ranks.world_size / seconds
                log.write(line | {"spots_per_s": rate, "step_s": seconds, "data_wait_s": waited})
            last = step + 1 == sampler.steps
            if (step + 1) % config.checkpoint_every == 0 or last or caught:
                run.save(f"checkpoint-{step + 1:08d}.ckpt", step + 1)
                if fabric.is_global_zero:
                    checkpoints.prune(out, config.keep)
            if caught and not last:
                run.stop(caught, step + 1, sampler.steps)
    return run.whole()


def _record_run(
    out: Path, config: PretrainConfig | AlignConfig, fabric: Fabric, ranks: Ranks, identity: Mapping[str, Any]
) -> None:
    """Write the record of the run into the folder; ValueError if it contains another run."""
    described = {"stage": type(config).__name__, "identity": IDENTITY, **identity, "devices": ranks.world_size}
    described["config"] = config.to_dict()
    checkpoints.check_same_run(out, described)
    fabric.barrier()
    if fabric.is_global_zero:
        checkpoints.write_config(out, described)


def _check_warmup(config: PretrainConfig | AlignConfig, steps: int) -> None:
    warmup = config.warmup(steps)
    if config.warmup_steps is not None and warmup > steps / 2:
        _checks.warn(
            f"The warm-up takes {warmup:,} of the run's {steps:,} steps (`warmup_steps`). Lower it, or omit it: "
            f"then it is {min(config.USUAL_WARMUP, max(steps // 5, 1)):,}."
        )


class TrainState(Generic[B, P, C]):
    """Model, optimiser and precision of a run; performs training steps, saves and resumes."""

    def __init__(self, out: Path, fabric: Fabric, stage: Stage[B, P, C]):
        self.out, self.fabric, self.model = out, fabric, stage.model
        self.stage: Stage[B, P, C] = stage
        config = stage.config
        stage.train()
        if config.compile:
            ready_to_compile()
        for layer in stage.layers() if config.compile else ():
            layer.compile(dynamic=True)
        self.module = fabric.setup_module(stage)  # before the optimiser, since sharding replaces the parameters
        trained = [p for p in stage.parameters() if p.requires_grad]
        # A fused step would unscale gradients itself, but they are clipped before it.
        scales = getattr(fabric.strategy.precision, "scaler", None) is not None
        fused = (fabric.device.type in ("cpu", "cuda") and not scales) or None
        self.optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
        self._fabrics_optimizer = fabric.setup_optimizers(self.optimizer)  # wraps self.optimizer for its precision
        self.sharded = is_sharded(fabric)

    def step(
        self, step: int, batch: B, pieces: list[P], sampler: Sampler[B], signals: Signals
    ) -> tuple[dict[str, float], int]:
        """Train on a batch; returns values to log, and the signal that any rank received, or 0."""
        fabric, config, ranks, optimizer = self.fabric, self.stage.config, self.stage.ranks, self._fabrics_optimizer
        torch.manual_seed(seed_of(config.seed, "dropout", step, ranks.rank) >> 1)
        lr = _learning_rate(config, step, sampler.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        losses = self.stage.run(fabric, self.module, [moved(piece, fabric.device) for piece in pieces])
        norm = fabric.clip_gradients(self.module, optimizer, max_norm=config.clip, error_if_nonfinite=False)
        values, norm, caught = _values(losses, norm, ranks, signals.caught)
        loss = sum(value for name, value in values.items() if name in self.stage.names)
        if not (math.isfinite(loss) and (math.isfinite(norm) or _skips(fabric.strategy.precision))):
            _stop(self, sampler, batch, step, values, norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return {"step": step, "loss": loss, **values, "lr": lr, "grad_norm": norm}, caught

    def save(self, name: str, step: int, **more: object) -> None:
        """Save a checkpoint; every rank must call it, and rank 0 writes."""
        state = checkpoints.state_of(self.model, self.optimizer, sharded=self.sharded)
        state |= {"step": step, "precision": self.fabric.strategy.precision.state_dict(), **more}
        if self.fabric.is_global_zero:
            checkpoints.save_state(self.out / name, state)
        self.fabric.barrier()

    def resume(self) -> int:
        """Load the newest intact checkpoint; returns the next step."""
        state = checkpoints.newest(self.out)
        if state is not None:
            checkpoints.load_state(state, self.model, self.optimizer, sharded=self.sharded)
            if state.get("precision"):
                self.fabric.strategy.precision.load_state_dict(state["precision"])
        step = 0 if state is None else state["step"]
        steps = self.fabric.all_gather(torch.tensor(step, device=self.fabric.device)).flatten().tolist()
        if len(set(steps)) > 1:
            raise RuntimeError(f"Ranks found checkpoints of steps {steps} in {str(self.out)!r}. Do all nodes share it?")
        return step

    def stop(self, number: int, step: int, steps: int) -> NoReturn:
        """Stop the run on all ranks after a signal."""
        message = (
            f"Stopped after {step:,} of {steps:,} steps; the checkpoint is saved in {str(self.out)!r}. "
            "Repeat the command to resume."
        )
        if self.fabric.is_global_zero:
            sys.stderr.write(f"stampy: {message}\n")
        stop(number, message)

    def whole(self) -> dict[str, Tensor] | None:
        """Complete weights on rank 0, if they are sharded."""
        return checkpoints.state_of(self.model, self.optimizer, sharded=True)["model"] if self.sharded else None


def _skips(precision: object) -> bool:
    """Whether a step with infinite gradients is skipped, as in float16: the next one has half the scale.

    At a scale below 1, the gradients themselves are infinite or NaN, and all further steps would be skipped too.
    """
    scaler = getattr(precision, "scaler", None)
    return scaler is not None and scaler.get_scale() >= 1


def _learning_rate(config: PretrainConfig | AlignConfig, step: int, steps: int) -> float:
    warmup = config.warmup(steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2


def _prefetched(sampler: Sampler[B], stage: Stage[B, P, C], first: int) -> Iterator[tuple[int, B, list[P], float]]:
    """Yield step, batch, pieces and waiting time in s; next batches are prepared during training."""
    ahead = stage.config.prefetch
    pin = torch.cuda.is_available() and stage.model.device.type == "cuda"

    def make(step: int) -> tuple[B, list[P]]:
        batch = sampler.batch(step)
        pieces = stage.pieces(batch, step)
        return batch, [pinned(piece) for piece in pieces] if pin else pieces

    pool = ThreadPoolExecutor(ahead, thread_name_prefix="batch")
    try:
        futures = deque(pool.submit(make, step) for step in range(first, min(first + ahead, sampler.steps)))
        for step in range(first, sampler.steps):
            began = time.perf_counter()
            try:
                batch, pieces = futures.popleft().result()
            except Exception as error:
                error.add_note(f"This was in the batch of step {step}.")
                raise
            if step + ahead < sampler.steps:
                futures.append(pool.submit(make, step + ahead))
            yield step, batch, pieces, time.perf_counter() - began
    finally:
        pool.shutdown(cancel_futures=True)


def _values(losses: Losses, norm: Tensor, ranks: Ranks, caught: int) -> tuple[dict[str, float], float, int]:
    """Mean losses over all ranks, norm of the gradient, and the signal that any rank received, or 0.

    The only point in a step at which the CPU waits for the device.
    """
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    local = torch.stack([*(v.detach().float() for v in losses.values()), norm.float()])
    if ranks.world_size > 1:  # ranks must stop together, since a remaining rank would wait forever
        flag = {0: 0, signal.SIGINT: 1}.get(caught, _TERM)
        total = ranks.total(torch.cat([local, torch.full_like(local[:1], flag)]))
        local, flags = total[:-1] / ranks.world_size, total[-1:]
    *values, length, flag = torch.cat([local, flags]).tolist() if ranks.world_size > 1 else [*local.tolist(), 0]
    if ranks.world_size > 1:
        caught = signal.SIGTERM if flag >= _TERM else signal.SIGINT if flag else 0
    return dict(zip(losses, values, strict=True)), length, caught


def _stop(
    run: TrainState[B, P, C], sampler: Sampler[B], batch: B, step: int, values: dict[str, float], norm: float
) -> NoReturn:
    """Save the state, and raise FloatingPointError with the step and the sections of the batch."""
    rows = run.fabric.all_gather(batch["rows"].to(run.fabric.device)).cpu().flatten()
    name = f"failed-{step:08d}.ckpt"
    run.save(name, step, rows=rows, losses=values)
    raise FloatingPointError(
        f"The loss is {values}, the gradient's norm {norm:g}, at step {step}, sections {sampler.names(rows)}. The "
        f"state before this step and the rows of its batch are in {str(run.out / name)!r}. Look at these sections, or "
        "lower `lr`."
    )
