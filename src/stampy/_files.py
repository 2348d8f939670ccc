"""Atomic files and folders, and every hash; locks are in `_locks`."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import pickle
import re
import shutil
import socket
import struct
import tempfile
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from stampy import _checks

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "atomic",
    "atomic_folder",
    "digest",
    "digest_of_arrays",
    "digest_of_file",
    "digest_of_path",
    "digest_of_tensors",
    "make_ordinary",
    "recover",
    "seal",
    "sealed",
    "sha256_of",
]

# Errors that readers raise for damaged or malicious files.
DAMAGED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    pickle.UnpicklingError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)
_SEAL = b"\nstampy-sha256:"
_SEAL_BYTES = len(_SEAL) + 64
WHOLE_BYTES = 2**28  # a file up to this size is hashed whole, in a fraction of a second
_PARTS, _PART_BYTES = 64, 2**20  # number and size of the parts of a larger file that are hashed


def make_ordinary(path: Path) -> None:
    """Give a file the permissions of an ordinary new file."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` on success and is removed on error.

    A symbolic link is itself replaced, not its target. Temporary files for `path` left behind by killed processes are
    removed.
    """
    path = Path(path)
    recover(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        with _checks.naming_full_disk(path):
            yield temporary
            make_ordinary(temporary)  # mkstemp makes it private
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, beside: Path | None = None) -> Iterator[Path]:
    """Like `atomic`, for a folder; the block creates the folder at the temporary path.

    The old and the new folder are exchanged in one step where the system supports it (Linux, on most file systems).
    Elsewhere this takes two steps, and `recover` completes an exchange that was interrupted between them.
    """
    recover(path, beside=beside)
    work = Path(tempfile.mkdtemp(dir=beside or path.parent, prefix=_prefix(path)))
    try:
        new, old = work / _NEW, work / _OLD
        with _checks.naming_full_disk(path):
            yield new
        if not os.path.lexists(path):
            os.replace(new, path)
        elif not _exchange(new, path):
            os.replace(path, old)
            try:
                os.replace(new, path)
            except OSError:
                os.replace(old, path)
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def recover(path: str | Path, *, beside: Path | None = None) -> None:
    """Complete or remove what killed processes left while writing `path`; files of live processes are not touched.

    If the old folder was moved away and not yet replaced, the new folder is put in place if complete, else the old one.
    """
    path = Path(path)
    with contextlib.suppress(OSError):  # ignore folders that cannot be listed or written
        for left in list((beside or path.parent).iterdir()):
            if not left.name.startswith(_stem(path)) or not _is_dead(left.name.removeprefix(_stem(path))):
                continue
            if left.is_dir() and not left.is_symlink():
                for part in (left / _NEW, left / _OLD):
                    # the old folder is moved here only once the new one is complete
                    if os.path.lexists(left / _OLD) and os.path.lexists(part) and not os.path.lexists(path):
                        os.replace(part, path)
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


_NEW, _OLD = "new", "old"
_MAX_STEM = 100  # bytes; with the process, the machine and the ending, the name stays below the 255 of file systems
_OWNER = re.compile(r"([0-9a-f]{8})-(\d+)-(\d+)-")


def _stem(path: Path) -> str:
    name = os.fsencode(path.name)
    return f".{name[:_MAX_STEM].decode(errors='ignore')}.{hashlib.sha256(name).hexdigest()[:8]}-"


def _prefix(path: Path) -> str:
    """Prefix of temporary files for `path`, with the process and the machine that write them."""
    return f"{_stem(path)}{_machine()}-{os.getpid()}-{_start_ticks(os.getpid())}-"


@cache
def _machine() -> str:
    """Identify the machine since its last boot, and the container: process ids are unique within these."""
    parts = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(read())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _start_ticks(process: int) -> int:
    """Start time of a process in ticks after boot; -1 if there is no such process, 0 if the time is unknown."""
    if not Path("/proc/self/stat").is_file():
        with contextlib.suppress(PermissionError):
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                return -1
        return 0
    try:
        state, *numbers = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return -1 if state in "ZX" else int(numbers[18])
    except (OSError, ValueError, IndexError):
        return -1


def _is_dead(owner_and_rest: str) -> bool:
    """Whether the process named in a temporary file's name has ended; False for a process of another machine."""
    owner = _OWNER.match(owner_and_rest)
    return owner is not None and owner[1] == _machine() and _start_ticks(int(owner[2])) != int(owner[3])


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two paths in one step (`renameat2`); False, with nothing changed, where this is not possible."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return call(-100, os.fsencode(a), -100, os.fsencode(b), 2) == 0  # AT_FDCWD, RENAME_EXCHANGE


def digest(names: Iterable[str]) -> str:
    """The first 16 characters of a SHA-256 of names, to detect whether rows have changed.

    >>> digest(["a", "b"]) == digest(["b", "a"])
    False
    """
    return hashlib.sha256("\n".join(map(str, names)).encode()).hexdigest()[:16]


def is_full(error: BaseException) -> TypeGuard[OSError]:
    """Whether an error reports that the disk or the user's quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: str | Path) -> None:
    """Append the SHA-256 of a file's content to the file, and sync it; readers of ZIP archives ignore it."""
    found = sha256_of(path)
    with Path(path).open("ab") as file:
        file.write(_SEAL + found.encode())
        file.flush()
        os.fsync(file.fileno())


def sealed(path: str | Path) -> bool | None:
    """Whether a file is unchanged since it was sealed; None if it was not sealed.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "a")
    ...     _ = path.write_bytes(b"content")
    ...     before = sealed(path)
    ...     seal(path)
    ...     whole = sealed(path)
    ...     _ = path.write_bytes(path.read_bytes().replace(b"c", b"C", 1))
    ...     before, whole, sealed(path)
    (None, True, False)
    """
    found = hashlib.sha256()
    with Path(path).open("rb") as file:
        rest = max(os.fstat(file.fileno()).st_size - _SEAL_BYTES, 0)
        while rest and (block := file.read(min(rest, 2**20))):
            found.update(block)
            rest -= len(block)
        end = file.read()
    return end[len(_SEAL) :] == found.hexdigest().encode() if end.startswith(_SEAL) else None


def digest_of_arrays(*arrays: np.ndarray) -> str:
    """Hash of types, shapes and all values.

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
    """Hash of a file's content; above `WHOLE_BYTES`, of its size, modification time and parts spread over it."""
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
    """Like `digest_of_file`; for a folder, the hash of all files in it with their relative paths."""
    path = Path(path)
    if path.is_file():
        return digest_of_file(path)
    found = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        found.update(f"{file.relative_to(path).as_posix()} {digest_of_file(file)}\n".encode())
    return found.hexdigest()


def digest_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and all values of tensors, such as a state dict."""
    import torch

    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(values.numpy().data)
    return found.hexdigest()
