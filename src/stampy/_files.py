"""Files and folders that appear whole or not at all, and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["atomic", "atomic_folder", "digest", "make_ordinary", "sha256_of"]


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
