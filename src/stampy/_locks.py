"""A lock that admits one process to a folder, and what killed processes left there."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from stampy import _checks

__all__ = ["FolderLock", "remove_leftovers"]


class FolderLock:
    """A lock that admits one process to a folder; the system releases it when the process ends, for any reason.

    The lock uses ``flock``. Linux forwards it to the server of a network file system (NFSv4 always, NFSv3 with its lock
    daemon). A warning is given if the file system has no locks, or if the lock file names a process of another machine.

    Parameters
    ----------
    folder
        Folder to lock; it must exist.
    what
        Description for the error message, such as "run".

    Raises
    ------
    RuntimeError
        Another process holds the lock.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, FolderLock(Path(folder), what="run"):
    ...     try:
    ...         FolderLock(Path(folder), what="run")
    ...     except RuntimeError as error:
    ...         print(str(error)[:24])
    Another process is using
    """

    NAME = ".stampy.lock"

    def __init__(self, folder: Path, *, what: str):
        self._file = (folder / self.NAME).open("a+")
        self._file.seek(0)
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
            holder = self._file.read().strip() or "unknown"
            raise RuntimeError(
                f"Another process is using {str(folder)!r} (process {holder}). Two processes would damage the "
                f"{what}: wait for it, end it, or choose another folder."
            ) from error
        except OSError as error:
            _checks.warn(
                f"The file system of {str(folder)!r} cannot lock files ({error.strerror}): stampy cannot prevent a "
                f"second process from using it. Start no other {what} there."
            )
            return
        if (before := self._file.read().strip()) and not before.endswith(f" on {socket.gethostname()}"):
            _checks.warn(f"{str(folder)!r} is still marked by process {before}: make sure that this process has ended.")
        with contextlib.suppress(OSError):  # the lock also holds if its owner cannot be written, as on a full disk
            os.truncate(self._file.fileno(), 0)
            os.write(self._file.fileno(), f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def close(self) -> None:
        """Release the lock."""
        with contextlib.suppress(OSError, ValueError):  # ValueError: the file is already closed
            os.truncate(self._file.fileno(), 0)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove temporary files that killed processes left behind; call it under a `FolderLock`.

    Parameters
    ----------
    folder
        Folder of the files.
    names
        First parts of the files' names, such as "checkpoint-".
    """
    beginnings = tuple(f".{name}" for name in names)
    for path in folder.iterdir():
        if path.name.startswith(beginnings) and path.is_file() and path.name != FolderLock.NAME:
            path.unlink(missing_ok=True)
