"""Files of the registry: from an offline mirror, the cache or their pinned address, never without the right hash."""

from __future__ import annotations

import logging
import os
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

from stampy import _checks
from stampy._files import sha256_of
from stampy._settings import settings
from stampy.datasets import _registry
from stampy.datasets._registry import MIRROR_VARIABLE, Entry, File

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "STAMPY_CACHE_DIR"


def fetch(
    name: str,
    *,
    file: str | None = None,
    sha256: str | None = None,
    allow_unverified: bool = False,
    progressbar: bool = False,
) -> Path | dict[str, Path]:
    """Return the files of a data set, and download missing files.

    Files are searched in the offline mirror named by the environment variable `STAMPY_DATA_DIR` (never changed), then
    in the cache (`STAMPY_CACHE_DIR`, by default the cache folder of the operating system), and otherwise downloaded
    from the address at a pinned commit. The SHA-256 of every file is checked each time. A wrong file raises an error
    and is removed from the cache, never from the mirror. Several processes may download at the same time.

    Parameters
    ----------
    name
        One of `names()`.
    file
        Name of the file, e.g. `"image"`. None: all files. If the mirror has the finished section, these are the files
        of the mirror, otherwise the files of the origin without those that only a mirror can have.
    sha256
        Hash of a file whose hash stampy does not know: the counts of the `spatialLIBD_` sections, which are not in a
        repository with commits.
    allow_unverified
        Accept such a file without a hash; a warning states its hash.
    progressbar
        Show a progress bar for each download.

    Returns
    -------
    The path of `file`, or all paths by file.

    Raises
    ------
    ValueError
        If the name or file is unknown, a hash is wrong, or a hash is neither known nor passed.
    FileNotFoundError
        If the file is only available from a mirror, and there is no mirror or it lacks the file.
    ConnectionError
        If the download fails.

    Examples
    --------
    >>> import stampy
    >>> paths = stampy.datasets.fetch("HER2ST_A1")  # doctest: +SKIP
    >>> image = stampy.datasets.fetch("HER2ST_C2", file="image")  # doctest: +SKIP
    """
    entry = _registry.info(name)
    options: dict[str, Any] = {"sha256": sha256, "allow_unverified": allow_unverified, "progressbar": progressbar}
    if file is not None:
        _checks.one_of("file", file, entry.files)
        return fetch_file(entry, file, **options)
    return {role: fetch_file(entry, role, **options) for role in wanted(entry)}


def wanted(entry: Entry) -> list[str]:
    """The files that `fetch` gets by itself; FileNotFoundError where there are none."""
    mirrored = [role for role, f in entry.files.items() if f.in_mirror()]
    if "section" in mirrored:
        return mirrored
    roles = [role for role, f in entry.files.items() if f.url or role in mirrored]
    if not roles:
        raise _only_in_mirror(entry, next(iter(entry.files.values())))
    return roles


def fetch_file(
    entry: Entry,
    role: str,
    *,
    sha256: str | None = None,
    allow_unverified: bool = False,
    progressbar: bool = False,
) -> Path:
    """One file of `fetch`."""
    file = entry.files[role]
    path = file.in_mirror()
    if path is not None:
        _verify_mirrored(path, file)
        return path
    if file.url is None:
        raise _only_in_mirror(entry, file)
    known = file.sha256 or sha256
    if known is None and not allow_unverified:
        raise ValueError(
            f"stampy does not know the hash of the {role} of {entry.name!r} ({file.url}). "
            "Give it by `sha256=`, or pass `allow_unverified=True` to take the file as it is."
        )
    target = cache_dir() / entry.name / PurePosixPath(urlsplit(file.url).path).name
    if not _cached(target, known):
        _download(file.url, target, known, progressbar)
    if known is None:
        _checks.warn(f"{target.name}, SHA-256 {sha256_of(target)}, was not verified.")
    return target


def cache_dir() -> Path:
    """The folder of the cache, not made yet."""
    import pooch

    return settings.cache_dir or Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("stampy")).expanduser()


def _cached(target: Path, known: str | None) -> bool:
    """Whether the cache has the right file; one with a wrong hash is removed."""
    if not target.is_file():
        return False
    if known is None or sha256_of(target) == known.lower():
        return True
    logger.warning("%s has a wrong hash: removed; it will be downloaded again.", target)
    target.unlink(missing_ok=True)
    return False


def _verify_mirrored(path: Path, file: File) -> None:
    expected, found = file.mirror_sha256 or file.sha256, sha256_of(path)
    if expected is not None and found != expected:
        raise ValueError(
            f"{str(path)!r} in the mirror has SHA-256 {found}, expected {expected}. It is refused and left as it is: "
            f"replace it, or point {MIRROR_VARIABLE} elsewhere."
        )


def _download(url: str, target: Path, known: str | None, progressbar: bool) -> None:
    """Download beside `target`, check, rename."""
    import pooch
    import requests

    try:
        _checks.writable(target.parent)
    except OSError as error:
        raise type(error)(f"{error} The environment variable {CACHE_VARIABLE} names the cache.") from error
    downloader = pooch.HTTPDownloader(progressbar=progressbar, timeout=30)
    try:
        # pooch downloads to a temporary file, which it removes if the hash is wrong and renames if it is right
        pooch.retrieve(quote(url, safe=":/%?=&"), known, target.name, target.parent, downloader=downloader)
    except requests.RequestException as error:
        raise ConnectionError(
            f"{url} can't be downloaded ({error}). Without a network, point the environment variable "
            f"{MIRROR_VARIABLE} to a folder that holds the data (see the documentation of stampy.datasets)."
        ) from error
    except ValueError as error:  # pooch's word for a wrong hash
        raise ValueError(f"{url} is not the file that stampy knows: {error}") from error


def _only_in_mirror(entry: Entry, file: File) -> FileNotFoundError:
    places, now = " or ".join(file.mirror), os.environ.get(MIRROR_VARIABLE)
    return FileNotFoundError(
        f"The {file.role} of {entry.name!r} has no public address; it comes from an offline mirror only. "
        f"Point the environment variable {MIRROR_VARIABLE} (now {now!r}) to a folder with {places}."
    )
