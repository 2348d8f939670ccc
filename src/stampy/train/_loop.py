"""The loop of both stages. It reads top to bottom."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from tqdm.auto import tqdm

import stampy
from stampy._checks import writable
from stampy._utils import atomic

from ._config import AlignConfig, PretrainConfig

__all__ = ["fit"]

logger = logging.getLogger(__name__)

Batch = dict[str, Tensor]
Objective = Callable[[Batch, int, torch.Generator], dict[str, Tensor]]


class Sampler(Protocol):
    """Where batches come from."""

    steps: int

    def batch(self, step: int) -> Batch:
        """The batch of a step."""

    def names(self, rows: Tensor) -> list[str]:
        """Sections of some rows."""


def fit(
    model: nn.Module,
    objective: Objective,
    sampler: Sampler,
    config: PretrainConfig | AlignConfig,
    out: str | Path,
    *,
    device: str | None = None,
    identity: str = "",
    progress: bool = True,
) -> None:
    """Train `model` in place; go on from the newest checkpoint in `out` if there is one.

    Parameters
    ----------
    model
        Is changed.
    objective
        (batch, step, generator) -> named losses, which are summed.
    sampler
        Of batches.
    config
        Of the stage.
    out
        Folder of config.json, metrics.jsonl and the checkpoints.
    device
        None: CUDA if there is one, else the CPU.
    identity
        Says what data the run is about; a checkpoint of another run is refused.
    progress
        Show a bar.

    Raises
    ------
    FloatingPointError
        The loss is NaN or infinite; the message says at which step and in which sections.
    ValueError
        `out` holds a run with other settings or other data.
    """
    out = writable(out)
    fabric = Fabric(accelerator=_accelerator(device), devices=1, precision=config.precision)
    fabric.launch()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    module, optimizer = fabric.setup(model, optimizer)
    _describe(out, config, identity)
    first = _resume(out, model, optimizer)
    module.train()
    bar = tqdm(total=sampler.steps, initial=first, disable=not progress, unit="step")
    with (out / "metrics.jsonl").open("a", buffering=1) as metrics:
        for step, batch, waited in _prefetched(sampler, first):
            began = time.perf_counter()
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            lr = _learning_rate(config, step, sampler.steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            with fabric.autocast():
                losses = objective(fabric.to_device(batch), step, generator)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                values = {k: v.item() for k, v in losses.items()}
                raise FloatingPointError(
                    f"The loss is {values} at step {step}, sections {sampler.names(batch['rows'])}. The newest "
                    f"checkpoint in {str(out)!r} is from before. Look at these sections, or lower `lr`."
                )
            fabric.backward(loss)
            norm = fabric.clip_gradients(module, optimizer, max_norm=config.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds = time.perf_counter() - began
            line = {"step": step, "loss": loss.item(), **{k: v.item() for k, v in losses.items()}, "lr": lr}
            line |= {"grad_norm": float(norm), "spots_per_s": batch["rows"].numel() / (seconds + waited)}
            metrics.write(json.dumps({k: _short(v) for k, v in line.items()} | {"data_wait_s": _short(waited)}) + "\n")
            bar.set_postfix(loss=f"{line['loss']:.3f}", spots_per_s=f"{line['spots_per_s']:.0f}", refresh=False)
            bar.update()
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == sampler.steps:
                _checkpoint(out, model, optimizer, step + 1, config.keep)
    bar.close()


def _accelerator(device: str | None) -> str:
    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device).type


def _learning_rate(config: PretrainConfig | AlignConfig, step: int, steps: int) -> float:
    warmup = min(config.warmup_steps, max(steps // 10, 1))  # a short run is not all warm-up
    if step < warmup:
        return config.lr * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return config.min_lr + (config.lr - config.min_lr) * (1 + math.cos(math.pi * done)) / 2


def _prefetched(sampler: Sampler, first: int) -> Iterator[tuple[int, Batch, float]]:
    """Step, batch, seconds waited for it; the next batch is made while this one is trained on."""
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(sampler.batch, first) if first < sampler.steps else None
        for step in range(first, sampler.steps):
            began = time.perf_counter()
            batch = future.result()
            waited = time.perf_counter() - began
            if step + 1 < sampler.steps:
                future = pool.submit(sampler.batch, step + 1)
            yield step, batch, waited


def _describe(out: Path, config: PretrainConfig | AlignConfig, identity: str) -> None:
    """Write config.json before the first step, or refuse a folder that holds another run."""
    described = {"stage": type(config).__name__, "data": identity, "config": config.to_dict()}
    described = json.loads(json.dumps(described))
    path = out / "config.json"
    if path.exists():
        found = json.loads(path.read_text())
        found.pop("stampy", None)
        if found != described:
            differs = [k for k in described["config"] if found.get("config", {}).get(k) != described["config"][k]]
            raise ValueError(
                f"{str(out)!r} holds a run with other {'settings: ' + str(differs) if differs else 'data'}. "
                "Choose another folder, or go on with the settings in its config.json."
            )
        return
    with atomic(path) as temporary:
        temporary.write_text(json.dumps({"stampy": stampy.__version__, **described}, indent=2) + "\n")


def _checkpoint(out: Path, model: nn.Module, optimizer: Any, step: int, keep: int) -> None:
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    with atomic(out / f"checkpoint-{step:08d}.ckpt") as temporary:
        torch.save(state, temporary)
    for old in sorted(out.glob("checkpoint-*.ckpt"))[:-keep]:
        old.unlink()


def _resume(out: Path, model: nn.Module, optimizer: Any) -> int:
    """Load the newest checkpoint, cut the metrics back to it, and return the step to go on with."""
    checkpoints = sorted(out.glob("checkpoint-*.ckpt"))
    step = 0
    if checkpoints:
        state = torch.load(checkpoints[-1], map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
        logger.info("Going on from %s", checkpoints[-1])
    metrics = out / "metrics.jsonl"
    if metrics.exists():
        kept = [x for x in metrics.read_text().splitlines() if x.endswith("}") and json.loads(x)["step"] < step]
        with atomic(metrics) as temporary:
            temporary.write_text("".join(f"{x}\n" for x in kept))
    return step


def _short(value: float) -> float:
    return float(f"{value:.6g}")
