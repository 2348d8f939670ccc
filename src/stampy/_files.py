"""Files and folders that appear whole or not at all, locks, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from stampy import _checks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "FolderLock",
    "atomic",
    "atomic_folder",
    "digest",
    "digest_of_arrays",
    "digest_of_file",
    "digest_of_path",
    "digest_of_tensors",
    "make_ordinary",
    "remove_leftovers",
    "sha256_of",
]

WHOLE_BYTES = 2**28  # a file up to this size is hashed as a whole, in a fraction of a second
_PARTS, _PART_BYTES = 64, 2**20  # of a larger one


def make_ordinary(path: Path) -> None:
    """Give a file the rights that an ordinary new file gets here."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it when the block ends well, and is removed when it does not."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        make_ordinary(temporary)  # mkstemp makes it private
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, beside: Path | None = None) -> Iterator[Path]:
    """As `atomic`, for a folder, which must not exist yet when it is written."""
    work = Path(tempfile.mkdtemp(dir=beside or path.parent, prefix=f".{path.name}."))
    try:
        new, old = work / path.name, work / "old"
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except OSError:
            if old.exists():
                os.replace(old, path)
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def digest(names: Iterable[str]) -> str:
    """The first 16 characters of a SHA-256: tells whether rows are still those that they were.

    >>> digest(["a", "b"]) == digest(["b", "a"])
    False
    """
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_of_arrays(*arrays: np.ndarray) -> str:
    """A hash of types, shapes and all values.

    >>> digest_of_arrays(np.zeros(3)) == digest_of_arrays(np.zeros((3, 1)))
    False
    """
    found = hashlib.blake2b(digest_size=16)
    for array in arrays:
        array = np.asarray(array)
        found.update(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype.hasobject:
            found.update(repr(array.tolist()).encode())
        else:
            found.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return found.hexdigest()


def digest_of_file(path: str | Path) -> str:
    """A hash of a file's content; of one above `WHOLE_BYTES` of its size, its time and parts spread over it."""
    path = Path(path)
    found = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        state = os.fstat(file.fileno())
        if state.st_size <= WHOLE_BYTES:
            found.update(hashlib.file_digest(file, "sha256").digest())
        else:
            found.update(f"{state.st_size} {state.st_mtime_ns}".encode())
            for start in np.linspace(0, state.st_size - _PART_BYTES, _PARTS, dtype=np.int64).tolist():
                file.seek(start)
                found.update(file.read(_PART_BYTES))
    return found.hexdigest()


def digest_of_path(path: str | Path) -> str:
    """`digest_of_file`, for a folder that of every file in it by its place."""
    path = Path(path)
    if path.is_file():
        return digest_of_file(path)
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        found.update(f"{file.relative_to(path).as_posix()} {digest_of_file(file)}\n".encode())
    return found.hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, types, shapes and all values of tensors, such as a state dict."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(values.numpy().data)
    return found.hexdigest()


class FolderLock:
    """At most one process works in a folder. The system lets go of the lock when the process ends, however it ends.

    The lock is ``flock`` on a file in the folder. Linux passes it on to the server of a network file system (NFSv4
    always, NFSv3 with its lock daemon); where the file system knows no locks, a warning says so.

    Parameters
    ----------
    folder
        Which must exist.
    what
        For the message, such as "run".

    Raises
    ------
    RuntimeError
        Another process holds the lock.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder, FolderLock(Path(folder), what="run"):
    ...     try:
    ...         FolderLock(Path(folder), what="run")
    ...     except RuntimeError as error:
    ...         print(str(error).split(" in ")[0])
    Another process is at work
    """

    NAME = ".stampy.lock"

    def __init__(self, folder: Path, *, what: str):
        self._file = (folder / self.NAME).open("a+")
        try:
            self._lock(folder, what)
        except BaseException:
            self._file.close()
            raise

    def _lock(self, folder: Path, what: str) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            holder = self._file.read().strip() or "unknown"
            raise RuntimeError(
                f"Another process is at work in {str(folder)!r} (process {holder}). Two of them would spoil the "
                f"{what}: wait for it, end it, or choose another folder."
            ) from error
        except OSError as error:
            _checks.warn(
                f"The file system of {str(folder)!r} can't lock files ({error.strerror}): nothing keeps a second "
                f"process from working in it. Start no other {what} there."
            )
            return
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            os.truncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def close(self) -> None:
        """Let go of the lock."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed processes left of files that `atomic` was writing; call it under a `FolderLock`.

    Parameters
    ----------
    folder
        Where they were written.
    names
        Beginnings of the files' names, such as "checkpoint-".
    """
    beginnings = tuple(f".{name}" for name in names)
    for path in folder.iterdir():
        if path.name.startswith(beginnings) and path.is_file() and path.name != FolderLock.NAME:
            path.unlink(missing_ok=True)
