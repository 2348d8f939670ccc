"""Download files of the registry and the published vocabulary, checked by hash."""

from __future__ import annotations

import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from stampy import _checks, _files, _utils
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
    """Files downloaded by default; FileNotFoundError if there are none."""
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
    """Fetch one file."""
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
            "Pass it with `sha256=`, or pass `allow_unverified=True` to accept the file."
        )
    target = cache_dir() / entry.name / PurePosixPath(urlsplit(file.url).path).name
    if not _cached(target, known):
        _download(file.url, target, known, progressbar)
    if known is None:
        _checks.warn(f"{target.name}, SHA-256 {sha256_of(target)}, was not verified.")
    return target


def cache_dir() -> Path:
    """Path of the cache folder, which is not created."""
    import pooch

    return settings.cache_dir or Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("stampy")).expanduser()


def _cached(target: Path, known: str | None) -> bool:
    """Whether the cache contains the correct file; a file with a wrong hash is deleted."""
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
            f"{str(path)!r} in the mirror has SHA-256 {found}, expected {expected}. It is rejected and left unchanged: "
            f"replace it, or point {MIRROR_VARIABLE} elsewhere."
        )


def _download(url: str, target: Path, known: str | None, progressbar: bool) -> None:
    """Download to a temporary file, check the hash, and rename to `target`."""
    import pooch
    import requests

    try:
        _checks.writable(target.parent)
    except OSError as error:
        raise type(error)(f"{error} The environment variable {CACHE_VARIABLE} names the cache.") from error
    downloader = pooch.HTTPDownloader(progressbar=not _utils.hidden(progressbar), timeout=30)
    try:
        # pooch deletes its temporary file if the hash is wrong, otherwise renames it
        pooch.retrieve(quote(url, safe=":/%?=&"), known, target.name, target.parent, downloader=downloader)
    except requests.RequestException as error:
        raise ConnectionError(
            f"{url} cannot be downloaded ({error}). Without a network, point the environment variable "
            f"{MIRROR_VARIABLE} to a folder that contains the data (see the documentation of stampy.datasets)."
        ) from error
    except ValueError as error:  # raised by pooch for a wrong hash
        raise ValueError(f"{url} is not the file that stampy knows: {error}") from error


def _only_in_mirror(entry: Entry, file: File) -> FileNotFoundError:
    places, now = " or ".join(file.mirror), os.environ.get(MIRROR_VARIABLE)
    return FileNotFoundError(
        f"The {file.role} of {entry.name!r} has no public address; it comes from an offline mirror only. "
        f"Point the environment variable {MIRROR_VARIABLE} (now {now!r}) to a folder with {places}."
    )


NAME = "stamp_vocabulary"


def published_vocabulary() -> Path:
    """Create the `genes.tsv` of the published STAMP model: 20,310 genes in its order with its divisors.

    The order is that of Nicheformer's model file. The divisors are the published non-zero means of a Visium corpus,
    rounded half-up to integers; NaN and 0 become 1. Symbols are added if a mirror has them
    (`stamp_vocabulary/symbol_to_ensembl.json`). Otherwise they are empty, and genes match by Ensembl id.

    Returns
    -------
    Path of a tab-separated file in the cache with columns `gene_id`, `symbol` (several separated by ``|``) and
    `divisor`, for `stampy.pp.Vocabulary.load`.

    Raises
    ------
    ValueError
        If a file has a wrong hash, or order and divisors differ in length.
    ConnectionError
        A file must be downloaded, and the download fails.

    References
    ----------
    STAMP (arXiv 2602.13944), section on gene tokens. Nicheformer (bioRxiv 2024.04.15.589472).

    Examples
    --------
    >>> import stampy
    >>> path = stampy.datasets.published_vocabulary()  # doctest: +SKIP
    >>> stampy.pp.Vocabulary.load(path)  # doctest: +SKIP
    Vocabulary of 20310 genes: TSPAN6, TNMD, DPM1, ...
    """
    entry = _registry.info(NAME)
    gene_ids = _order(fetch_file(entry, "order"))
    means = np.load(fetch_file(entry, "divisors"), allow_pickle=False)
    if means.shape != (len(gene_ids),):
        raise ValueError(
            f"{len(gene_ids)} genes but divisors of shape {means.shape}: the files do not belong together."
        )
    symbols: dict[str, str] = {}
    if entry.files["symbols"].in_mirror():
        symbols = json.loads(fetch_file(entry, "symbols").read_text(encoding="utf-8"))
    text = _table(gene_ids, _symbols(gene_ids, symbols), divisors(means))
    folder = _checks.writable(cache_dir() / NAME)
    path = folder / "genes.tsv"
    with _files.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def divisors(means: np.ndarray) -> np.ndarray:
    """Published rule: means (n,) rounded half-up to integers; NaN and 0 become 1.

    >>> divisors(np.array([1.5, 2.49, 0.3, np.nan]))
    array([2, 2, 1, 1])
    """
    rounded = np.floor(np.nan_to_num(means, nan=0.0) + 0.5).astype(np.int64)
    return np.where(rounded == 0, 1, rounded)


def _order(path: Path) -> list[str]:
    """Read only `var_names` of an h5ad file."""
    import h5py

    with h5py.File(path) as file:
        var = file["var"]
        return list(var[var.attrs["_index"]].asstr()[:])


def _symbols(gene_ids: Iterable[str], id_of: dict[str, str]) -> list[str]:
    """Symbols of each id, separated by `|`; empty without symbol."""
    of = defaultdict(list)
    for symbol, gene_id in id_of.items():
        of[gene_id].append(symbol)
    return ["|".join(of.get(gene_id, ())) for gene_id in gene_ids]


def _table(gene_ids: list[str], symbols: list[str], values: np.ndarray) -> str:
    rows = (f"{g}\t{s}\t{v}\n" for g, s, v in zip(gene_ids, symbols, values.tolist(), strict=True))
    return "gene_id\tsymbol\tdivisor\n" + "".join(rows)
