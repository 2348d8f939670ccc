"""Results of a long run, saved in a folder chunk by chunk, so that an interrupted run can be resumed.

The file of a chunk contains a hash of its inputs, the finished rows and their values. Files are written under a
temporary name and renamed, so no file is incomplete after a kill.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from stampy import _checks, _files, models
from stampy._files import DAMAGED, digest_of_tensors

if TYPE_CHECKING:
    from .encoders import Encoder

__all__ = ["Chunk", "Chunks", "digest_of_model"]

logger = logging.getLogger(__name__)

MANIFEST = "parts.json"
FORMAT = 1
SAVE_EVERY_S = 20.0  # within a chunk, since chunks of a large model take long on a CPU


def digest_of_model(model: Encoder, *, below: tuple[str, ...] = ("",)) -> str:
    """Hash of a model's settings and weights, optionally only of weights whose names begin with `below`."""
    found = hashlib.blake2b(digest_size=16)
    config = model.config if isinstance(model, models.Stamp) else None
    found.update(repr(None if config is None else config.to_dict()).encode())
    found.update(digest_of_tensors({k: v for k, v in model.state_dict().items() if k.startswith(below)}).encode())
    return found.hexdigest()


class Chunk:
    """Values (n, D) of the finished rows of a chunk. Leaving the block saves them, also after an exception."""

    def __init__(self, path: Path | None, key: str, n: int):
        self.path, self.key = path, key
        self.done = np.zeros(n, dtype=bool)
        self.values: np.ndarray | None = None
        self._saved, self._unsaved = time.monotonic(), False
        if path is not None and path.is_file():
            self._load(path, n)

    def _load(self, path: Path, n: int) -> None:
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                key, done, values = str(file["key"]), file["done"], file["values"]
            if done.dtype != bool or done.ndim != 1 or values.dtype != np.float32 or values.ndim != 2:
                raise ValueError(f"arrays of {done.dtype} {done.shape} and {values.dtype} {values.shape}")
            if len(values) != len(done) or not np.isfinite(values).all():
                raise ValueError("values that no model gave")
        except DAMAGED as error:
            _checks.warn(f"{str(path)!r} is damaged ({str(error) or type(error).__name__:.200}) and is computed again.")
            return
        if key != self.key or len(done) != n:
            raise ValueError(
                f"{str(path)!r} contains results of other counts, coordinates or images than these. "
                "Pass another folder as `resume=`, or empty this one."
            )
        self.done, self.values = done, values

    def has(self, rows: np.ndarray) -> bool:
        """Whether all these rows of the chunk are finished."""
        return bool(self.done[rows].all())

    def get(self, rows: np.ndarray) -> np.ndarray:
        """Values (m, D) of finished rows."""
        if self.values is None or not self.has(rows):
            raise KeyError("Rows of this chunk are not done yet.")
        return self.values[rows]

    def put(self, rows: np.ndarray, values: np.ndarray) -> None:
        """Store the values (m, D) of some rows."""
        if self.path is None:
            return
        if self.values is None:
            self.values = np.zeros((len(self.done), values.shape[1]), dtype=np.float32)
        self.values[rows] = values
        self.done[rows] = self._unsaved = True
        if self.done.all() or time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Save new values."""
        if self.path is None or self.values is None or not self._unsaved:
            return
        with _files.atomic(self.path) as temporary, temporary.open("wb") as stream:
            np.savez(stream, key=np.array(self.key), done=self.done, values=self.values)
        self._saved, self._unsaved = time.monotonic(), False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.save()


class Chunks:
    """Chunks of a run in a folder; without folder, nothing is saved.

    Parameters
    ----------
    folder
        Created if needed; None: nothing is saved.
    settings
        Settings that affect all chunks; a folder with other settings is refused.

    Raises
    ------
    ValueError
        The folder has other settings, or unrelated files.
    """

    def __init__(self, folder: str | Path | None = None, settings: Mapping[str, object] | None = None):
        self.folder = None if folder is None else _checks.writable(folder)
        if self.folder is not None:
            _check_manifest(self.folder, {"format": FORMAT, **(settings or {})})

    def chunk(self, name: str, start: int, n: int, key: Callable[[], str]) -> Chunk:
        """The chunk `name` with rows from `start`; `key` returns the hash of its inputs."""
        if self.folder is None:
            return Chunk(None, "", n)
        return Chunk(self.folder / f"{name}-{start:09d}.npz", key(), n)


def _check_manifest(folder: Path, settings: Mapping[str, object]) -> None:
    """Write the settings into the folder, or compare them with existing ones."""
    path = folder / MANIFEST
    settings = json.loads(json.dumps(settings))
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{str(path)!r} is damaged ({error}). Pass another folder as `resume=`.") from error
        changed = [k for k in dict.fromkeys([*settings, *known]) if known.get(k) != settings.get(k)]
        other = [f"{k}: {known.get(k)!r} there, {settings.get(k)!r} now" for k in changed]
        if other:
            raise ValueError(
                f"{str(folder)!r} contains results of another run ({'; '.join(other)}). Pass another folder as "
                "`resume=`, or "
                "empty that one."
            )
        return
    strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if strangers:
        raise ValueError(f"`resume` needs a separate folder; {str(folder)!r} has {_checks.shortlist(strangers, 3)}.")
    with _files.atomic(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
