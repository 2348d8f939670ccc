"""The process that embeds: its device, its threads, and the model, which it loads once for a run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stampy._section.choose_image import VARIABLE

from .plan import Plan

if TYPE_CHECKING:
    from queue import Queue

    from stampy.tl._encoders import Encoder

__all__ = ["LoadedModel", "loaded", "named_images_of", "prepare", "worker_name"]

_device: str | None = None  # of this process, where several share the GPUs of a machine
_n_threads: int | None = None
_held: dict[str, LoadedModel] = {}  # of the latest run alone: workers of a cluster outlive runs


@dataclass(frozen=True)
class LoadedModel:
    """A model, or the name of a baseline, with the hash of its weights."""

    model: Encoder | str
    weights: str
    precision: str


def prepare(n_threads: int | None, devices: Queue[str] | None) -> None:
    """In a new process: take a device from the queue, and compute with so many threads."""
    global _device, _n_threads
    _n_threads = n_threads
    if devices is not None:
        _device = devices.get()


def worker_name() -> str:
    """Machine and number of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def loaded(plan: Plan) -> LoadedModel:
    """The model of a run; the first job of a process loads it."""
    if plan.run not in _held:
        _held.clear()
        _held[plan.run] = _load(plan)
    return _held[plan.run]


def _load(plan: Plan) -> LoadedModel:
    import torch

    from stampy.tl._encoders import is_baseline, loaded_model
    from stampy.tl._resume import digest_of_model

    if _n_threads is not None:
        torch.set_num_threads(_n_threads)
    if is_baseline(plan.model):
        return LoadedModel(str(plan.model), "", "float32")
    model = loaded_model(plan.model, plan.device or _device)
    asked = plan.options.get("precision")
    return LoadedModel(
        model, digest_of_model(model), asked or ("bfloat16" if model.device.type == "cuda" else "float32")
    )


@contextmanager
def named_images_of(plan: Plan) -> Iterator[None]:
    """Where images that a section names may lie: as in the process that began the run, also on another machine."""
    before = os.environ.get(VARIABLE)
    if plan.named_images is not None:
        os.environ[VARIABLE] = plan.named_images
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
