"""Checkpoints of a run, verified by SHA-256, and the identity that is compared on resume."""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

import stampy
from stampy import _checks
from stampy._files import DAMAGED, atomic, is_full, seal, sealed
from stampy.train._config import RESULT_NEUTRAL

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = [
    "CONFIG",
    "check_same_run",
    "load_state",
    "newest",
    "no_space",
    "prune",
    "save_state",
    "state_of",
    "write_config",
]

CONFIG = "config.json"  # of a run

logger = logging.getLogger(__name__)

State = dict[str, Any]


def check_same_run(out: Path, described: State) -> None:
    """Raise ValueError if the folder contains another run."""
    path = out / CONFIG
    if not path.exists():
        return
    found, described = _described(path), json.loads(json.dumps(described))
    if found.get("stage") != described["stage"]:
        what = f"stage: {found.get('stage')}"
    elif found.get("identity") != described["identity"]:
        raise ValueError(
            f"{str(out)!r} contains a run of stampy {found.get('stampy')}, which this version cannot resume: it draws "
            "different batches and also compares start weights and images. Choose another folder, or use that version."
        )
    else:
        what = _difference(found, described)
    if what:
        raise ValueError(
            f"{str(out)!r} contains a run with other {what}. Choose another folder, or use the settings in "
            "its config.json."
        )


def _described(path: Path) -> State:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged ({error}). Choose another folder.") from error
    return found if isinstance(found, dict) else {}


def _difference(found: State, described: State) -> str:
    """Description of the difference between two runs; "" for the same run."""
    before, now = found.get("config", {}), described["config"]
    differs = [k for k in now if k not in RESULT_NEUTRAL and (k not in before or before[k] != now[k])]
    if differs:
        return f"settings: {differs}"
    if found.get("devices", 1) != described["devices"]:
        return f"number of devices: {found.get('devices', 1)}, found now {described['devices']}"
    if found.get("start") != described.get("start"):
        return f"start model: its weights or settings (hash {found.get('start')}, found now {described.get('start')})"
    before, now = found.get("data", {}), described["data"]
    names, names_now = list(before.get("sections") or {}), list(now.get("sections") or {})
    if names != names_now and sorted(names) != sorted(names_now):
        return f"data: sections {_checks.shortlist(names)}, found now {_checks.shortlist(names_now)}"
    if names != names_now:
        return f"data: sections in another order: {_checks.shortlist(names)}, found now {_checks.shortlist(names_now)}"
    if before.get("vocabulary") != now.get("vocabulary"):
        return (
            "data: the vocabulary (its genes or their usual levels). One that is made from the sections changes with "
            "their counts"
        )
    if before.get("corpus") != now.get("corpus"):
        return "data: the corpus (by the digest of its contents)"
    before, now = before.get("sections") or {}, now.get("sections") or {}
    changed = [name for name in now if before[name] != now[name]]
    return f"data: counts, coordinates or images of the sections {_checks.shortlist(changed)}" if changed else ""


def write_config(out: Path, described: State) -> None:
    """Write config.json before the first step; an existing file is kept."""
    if not (out / CONFIG).exists():
        with atomic(out / CONFIG) as temporary:
            temporary.write_text(json.dumps({"stampy": stampy.__version__, **described}, indent=2) + "\n")


def state_of(model: nn.Module, optimizer: Optimizer, *, sharded: bool) -> State:
    """Collect weights and optimiser state on rank 0; every rank must call it."""
    if not sharded:
        return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def load_state(state: State, model: nn.Module, optimizer: Optimizer, *, sharded: bool) -> None:
    """The inverse of `state_of`."""
    if not sharded:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return
    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    # Parameters without gradient so far have no state.
    partial = StateDictOptions(full_state_dict=True, strict=False)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=partial)
    saved = state["optimizer"]["state"]
    for name, parameter in model.named_parameters():  # remove the state that torch initialised for these
        if name not in saved:
            optimizer.state.pop(parameter, None)


def save_state(path: Path, state: State) -> None:
    """Write to disk beside `path` and rename; if the disk is full, the partial file is removed."""
    try:
        with atomic(path) as temporary, temporary.open("wb", buffering=0) as file:
            writer = _Writer(file)
            try:
                torch.save(state, cast("IO[bytes]", writer))  # torch only calls `write` and `flush`
            except RuntimeError as error:  # raised by torch for a failed write
                raise (writer.failed or error) from error
            os.fsync(file.fileno())
            seal(temporary)
    except OSError as error:
        raise no_space(error, path) from error


class _Writer:
    """File for torch that keeps the OSError of a failed write, which torch replaces."""

    def __init__(self, file: io.RawIOBase):
        self.file = file
        self.failed: OSError | None = None

    def write(self, data: Buffer) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while len(rest):  # a raw file may write fewer bytes than given
                rest = rest[self.file.write(rest) :]
        except OSError as error:
            self.failed = error
            raise
        return size

    def flush(self) -> None:
        self.file.flush()


def no_space(error: OSError, path: Path) -> OSError:
    """`error`, with a clearer message if the disk is full."""
    if not is_full(error):
        return error
    whole = sorted(path.parent.glob("checkpoint-*.ckpt"))
    return OSError(
        error.errno,
        f"No space left on the disk of {str(path.parent)!r} for {path.name} "
        f"({shutil.disk_usage(path.parent).free / 1e6:.0f} MB free). Free space and run the same command again; it "
        f"continues from {whole[-1].name if whole else 'the start'}.",
    )


def newest(out: Path) -> State | None:
    """Newest intact state; damaged checkpoints are skipped with a warning."""
    paths = sorted(out.glob("checkpoint-*.ckpt"), reverse=True)
    for left, path in zip(reversed(range(len(paths))), paths, strict=True):
        try:
            state = _read(path)
        except DAMAGED as error:
            then = "continuing from the checkpoint before it" if left else "the run starts again: it was the only one"
            _checks.warn(f"{str(path)!r} is damaged; {then} ({str(error) or type(error).__name__:.200}).")
        else:
            logger.info("Continuing from %s", path)
            return state
    return None


def _read(path: Path) -> State:
    """Read a checkpoint after checking its SHA-256, or for older checkpoints the archive's checksums."""
    whole = sealed(path)
    if whole is False:
        raise ValueError("its SHA-256 does not match")
    if whole is None:
        _check_archive(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not {"model", "optimizer", "step"} <= set(state):
        raise ValueError("it contains no state of a run")
    return state


def _check_archive(path: Path) -> None:
    """Raise unless the ZIP archive is intact: members match their checksums, and the directory matches their headers.

    torch trusts the directory; with wrong sizes it would return uninitialised memory.
    """
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        if (bad := archive.testzip()) is not None:
            raise ValueError(f"the checksum of {bad!r} does not match")
        for member in archive.infolist():
            file.seek(member.header_offset)
            header = file.read(30)
            name = file.read(int.from_bytes(header[26:28], "little"))
            method = int.from_bytes(header[8:10], "little")
            if (name != member.orig_filename.encode() or method != zipfile.ZIP_STORED) or (
                member.compress_type != zipfile.ZIP_STORED or member.file_size != member.compress_size
            ):
                raise ValueError(f"the directory's entry of {member.filename!r} is wrong")


def prune(out: Path, keep: int) -> None:
    """Keep the newest checkpoints."""
    for old in sorted(out.glob("checkpoint-*.ckpt"))[: -max(keep, 1)]:
        old.unlink(missing_ok=True)
