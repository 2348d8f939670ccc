"""Find, list and open the input files of all readers: any prefix, .gz, size limits, uniform errors."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from stampy import _checks
from stampy._section.outside_links import refuse_links_h5, refuse_links_zarr

if TYPE_CHECKING:
    import h5py
    from _typeshed import WriteableBuffer

__all__ = [
    "SectionFiles",
    "hdf5",
    "is_address",
    "json_of",
    "listed",
    "listing",
    "opened",
    "reading",
    "refuse",
    "unpacked",
    "unzipped",
]

MAX_UNPACKED = 2**30  # bytes; any compressed file may unpack to this size ...
MAX_RATIO = 500  # ... and to larger sizes only up to this ratio, since tables of counts are mostly zeros
MAX_MEMBERS = 1_000_000
_BETWEEN = "_-. "  # separators between a prefix, such as GSM123_S1, and the name of a part
_LONGEST = 300  # maximum length of another package's message


def is_address(path: object) -> bool:
    """Whether a text is a URL for fsspec rather than a path."""
    return isinstance(path, str) and ("://" in path or "::" in path)


def refuse(message: str) -> ValueError:
    """Return a ValueError that `reading` does not change."""
    error = ValueError(message)
    error.stampy = True  # type: ignore[attr-defined]
    return error


class reading:
    """Context that converts errors of another package into a ValueError with the name of the file."""

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> None:
        """Enter the context."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Convert an error of another package into a ValueError that names the file."""
        if not isinstance(error, Exception) or isinstance(error, Warning):
            return
        worded = getattr(error, "stampy", False) or repr(str(self.path)) in str(error)
        if worded and type(error).__module__.split(".")[0] in ("builtins", "stampy"):
            return
        raise refuse(
            f"{str(self.path)!r} cannot be read: it is truncated, damaged or of another format ({_short(error)})."
        ) from error


def _short(error: BaseException) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + " ..."
    return text or type(error).__name__


def listed(folder: Path) -> list[Path]:
    """Contents of a folder by name, without hidden entries."""
    return sorted(p for p in folder.iterdir() if not p.name.startswith("."))


def listing(folder: Path, n: int = 12) -> str:
    """Contents of a folder, for an error message."""
    return _checks.shortlist([p.name + ("/" if p.is_dir() else "") for p in listed(folder)], n)


class _Bounded(io.RawIOBase):
    """Decompressed stream that raises if a small file unpacks to a very large one."""

    def __init__(self, stream: gzip.GzipFile, path: Path):
        self._stream, self._path, self._left = stream, path, _max_unpacked(path.stat().st_size)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read and check the unpacked size."""
        n = self._stream.readinto(buffer)
        self._left -= n
        if self._left < 0:
            raise _too_large(self._path)
        return n

    def close(self) -> None:
        """Also close the underlying file."""
        self._stream.close()
        super().close()


def _max_unpacked(packed: int) -> int:
    return MAX_UNPACKED + MAX_RATIO * packed


def _too_large(path: Path) -> ValueError:
    return refuse(f"{str(path)!r} unpacks to far more than files of its size hold; it is not read.")


def opened(path: Path) -> IO[bytes]:
    """Open a file as a stream of bytes; gzip is recognised by content and unpacked."""
    if not _is_gzip(path):
        return path.open("rb")
    return io.BufferedReader(_Bounded(gzip.open(path), path), 2**20)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(2) == b"\x1f\x8b"


def json_of(path: Path) -> dict[str, object]:
    """Contents of a .json or .json.gz, which must be an object."""
    with reading(path), opened(path) as stream:
        found = json.loads(stream.read().decode("utf-8-sig"))
    if not isinstance(found, dict):
        raise refuse(f"{str(path)!r} must contain values by name, found {type(found).__name__}.")
    return found


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Yield the file, or a decompressed temporary copy if it is gzipped, for packages that need a path."""
    if not _is_gzip(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="stampy-") as folder:
        name = path.name[:-3] if path.name.lower().endswith(".gz") else path.name
        target = Path(folder) / name
        with reading(path), opened(path) as stream, target.open("wb") as out:
            while block := stream.read(2**22):
                out.write(block)
        yield target


@contextlib.contextmanager
def unzipped(path: Path) -> Iterator[Path]:
    """Yield a temporary folder with the files of a .zip or .tar.gz; limited in size, regular files only."""
    with tempfile.TemporaryDirectory(prefix="stampy-") as folder:
        target = Path(folder)
        with reading(path):
            _unzip(path, target) if zipfile.is_zipfile(path) else _untar(path, target)
            refuse_links_zarr(target)
        yield target


def _unzip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        _check_members(path, [(m.filename, m.file_size) for m in members])
        for member in members:
            archive.extract(member, target)  # never reads beyond the declared size


def _untar(path: Path, target: Path) -> None:
    with opened(path) as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
        sizes = []
        for member in archive:
            sizes.append((member.name, member.size))
            _check_members(path, sizes[-1:] if len(sizes) <= MAX_MEMBERS else sizes)
            if member.isfile() and (content := archive.extractfile(member)) is not None:
                # Not `extract`: Python 3.11.0 to 3.11.3 lack its `filter`, which resets modes and owners.
                place = target / member.name
                place.parent.mkdir(parents=True, exist_ok=True)
                with place.open("wb") as out:
                    shutil.copyfileobj(content, out)


def _check_members(path: Path, members: list[tuple[str, int]]) -> None:
    if len(members) > MAX_MEMBERS or sum(size for _, size in members) > _max_unpacked(path.stat().st_size):
        raise _too_large(path)
    for name, _ in members:
        place = PurePosixPath(name.replace("\\", "/"))
        if place.is_absolute() or ".." in place.parts or re.match(r"[A-Za-z]:", name):
            raise refuse(f"{str(path)!r} contains the name {name!r}, which is outside the archive; it is not read.")


@contextlib.contextmanager
def hdf5(path: Path) -> Iterator[h5py.File]:
    """Open an HDF5 file, optionally gzipped as a whole."""
    import h5py

    with unpacked(path) as plain, reading(path):
        refuse_links_h5(plain)
        with h5py.File(plain, "r") as file:
            yield file


class SectionFiles:
    """Files of one section, by the names used on their platform.

    A part is found with any prefix (``GSM123_S1_``), optionally gzipped, in the order of names and folders; a name
    without prefix is preferred. If a folder contains files of several sections, `prefix` selects one section.
    """

    def __init__(self, *folders: Path, prefix: str | None = None):
        self.folders = [f for f in dict.fromkeys(folders) if f.is_dir()]
        self.prefix = prefix
        self._entries = [listed(folder) for folder in self.folders]

    def all(self, *names: str) -> list[tuple[str, Path]]:
        """All files or folders with one of the names, as (prefix, path), best first."""
        found = []
        for name in names:
            for entries in self._entries:
                hits = [(p, path) for path in entries if (p := _prefix(path.name, name)) is not None]
                found += sorted(hits, key=lambda hit: (bool(hit[0]), hit[1].name.lower().endswith(".gz"), hit[1].name))
        return list(dict.fromkeys(found))

    def find(self, *names: str) -> Path | None:
        """The first matching file; ValueError if files of several sections match."""
        for name in names:
            for entries in self._entries:
                hits: dict[str, list[Path]] = {}
                for path in entries:
                    prefix = _prefix(path.name, name)
                    if prefix is not None and _may_be_one_section(prefix, self.prefix):
                        hits.setdefault(prefix, []).append(path)
                if hits:
                    return self._best(hits, entries[0].parent)
        return None

    def _best(self, hits: dict[str, list[Path]], folder: Path) -> Path:
        for prefix in (self.prefix or "", ""):
            if prefix in hits:
                return min(hits[prefix], key=lambda p: len(p.name))
        if len(hits) > 1:
            raise refuse(
                f"{str(folder)!r} has the files of several sections: {_checks.shortlist(sorted(hits))}. Pass the "
                f"file of counts of one section to `stampy.read`, such as {next(iter(hits.values()))[0].name!r}, or "
                "put each "
                "section into a separate folder."
            )
        return min(next(iter(hits.values())), key=lambda p: len(p.name))

    def need(self, *names: str, looked_for: str) -> Path:
        """Like `find`; FileNotFoundError if there is none."""
        found = self.find(*names)
        if found is None:
            seen = "; ".join(f"{folder.name}/: {listing(folder)}" for folder in self.folders)
            raise FileNotFoundError(
                f"None of {_checks.shortlist(names)} was found in {str(self.folders[0])!r}. {looked_for} Found: {seen}."
            )
        return found

    def of(self, path: Path, *names: str) -> SectionFiles:
        """Files that belong to `path`, which has one of `names`."""
        prefix = next((p for name in names if (p := _prefix(path.name, name)) is not None), None)
        return SectionFiles(*self.folders, prefix=prefix)


def _prefix(filename: str, name: str) -> str | None:
    """Prefix before `name` in a file name; None if the file is not that part."""
    low = filename.lower()
    for end in (name.lower(), name.lower() + ".gz"):
        if low.endswith(end):
            prefix = filename[: len(filename) - len(end)]
            if not prefix or prefix[-1] in _BETWEEN:
                return prefix.rstrip(_BETWEEN)
    return None


def _may_be_one_section(one: str, other: str | None) -> bool:
    """Whether two prefixes may be of one section: equal, or one contains the other (S1, GSM123_S1)."""
    if not one or not other:
        return True
    short, long = sorted((re.split(r"[_\-. ]+", one), re.split(r"[_\-. ]+", other)), key=len)
    return any(long[i : i + len(short)] == short for i in range(len(long) - len(short) + 1))
