"""Registry of real data: `registry.json` as frozen records."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

from stampy import _checks

MIRROR_VARIABLE = "STAMPY_DATA_DIR"
SECTIONS = ("section", "images")  # kinds supported by `load`
USES = ("train", "evaluate only", "format tests")


@dataclass(frozen=True)
class Source:
    """Origin of data: a repository at one commit."""

    repository: str | None
    commit: str | None
    licence: str
    citation: str | None


@dataclass(frozen=True)
class File:
    """One file: URL at a pinned commit, hash, and paths in an offline mirror."""

    role: str  # counts, positions, image, ...; "section" is the finished AnnData, which only a mirror has
    url: str | None  # None: only in a mirror
    sha256: str | None  # None: not verified by stampy
    n_bytes: int | None
    mirror: tuple[str, ...] = ()  # relative to STAMPY_DATA_DIR
    mirror_sha256: str | None = None  # if the mirror has a different edition of the file

    def in_mirror(self) -> Path | None:
        """Path of the file in the mirror STAMPY_DATA_DIR, or None; not verified."""
        folder = mirror()
        if folder is None:
            return None
        return next((folder / place for place in self.mirror if (folder / place).is_file()), None)


@dataclass(frozen=True)
class Entry:
    """Record of one data set.

    Examples
    --------
    >>> import stampy
    >>> entry = stampy.datasets.info("DLPFC_151673")
    >>> entry.use, entry.labels
    ('evaluate only', ('layer',))
    """

    name: str
    kind: str  # "section" (counts), "images" (no counts), "vocabulary", "orthologs"
    title: str
    tissue: str | None
    platform: str | None
    use: str | None  # "train", "evaluate only" (never in any training), "format tests"
    labels: tuple[str, ...]  # columns of obs
    sources: tuple[Source, ...]
    files: Mapping[str, File] = field(repr=False)
    builder: str | None = field(repr=False)  # None: only in a mirror

    @property
    def licence(self) -> str:
        """Licences of all sources."""
        return "; ".join(f"{s.repository}: {s.licence}" if s.repository else s.licence for s in self.sources)

    @property
    def citation(self) -> str:
        """Citations of all sources."""
        return "; ".join(s.citation for s in self.sources if s.citation)

    @property
    def url(self) -> str | None:
        """Web page of the first source that has one."""
        pages = (f"https://github.com/{s.repository}/tree/{s.commit or 'HEAD'}" for s in self.sources if s.repository)
        return next(pages, None)

    @property
    def origin(self) -> str:
        """Repositories and short commits, as written to `uns["source"]`."""
        named = (s for s in self.sources if s.repository)
        return "; ".join(f"{s.repository} @{s.commit[:7]}" if s.commit else str(s.repository) for s in named)


def info(name: str) -> Entry:
    """Licence, citation, source, use and files of a data set.

    Parameters
    ----------
    name
        One of `names()`.

    Returns
    -------
    A frozen record: `name`, `kind`, `title`, `tissue`, `platform`, `use`, `labels`, `licence`, `citation`, `url`,
    `sources`, `files`.

    Raises
    ------
    ValueError
        If the name is unknown; similar names are given.

    Examples
    --------
    >>> import stampy
    >>> entry = stampy.datasets.info("HER2ST_A1")
    >>> entry.use, entry.labels, entry.licence
    ('evaluate only', ('label',), 'almaan/her2st: none stated; also on Zenodo')
    >>> entry.files["counts"].sha256[:8]
    'd91035e5'
    """
    _checks.one_of("name", name, entries())
    return entries()[name]


def names(use: str | None = None, labels: bool | str | None = None, *, in_mirror: bool = False) -> list[str]:
    """Names of the data sets that stampy knows.

    Parameters
    ----------
    use
        `"train"`, `"evaluate only"` (never used for training, so that scores are unbiased) or `"format tests"`; None
        for all.
    labels
        True or False: with or without labels; a string: with this column of labels; None for all.
    in_mirror
        Only data sets that are in the mirror `STAMPY_DATA_DIR` and that `load` can read offline.

    Returns
    -------
    Names in the order of the registry.

    Raises
    ------
    ValueError
        If `use` is none of these.

    Examples
    --------
    >>> import stampy
    >>> stampy.datasets.names("evaluate only", labels="histology")
    ['PDAC_A_human']
    """
    if use is not None:
        _checks.one_of("use", use, USES)
    chosen = [e for e in entries().values() if use is None or e.use == use]
    if isinstance(labels, str):
        chosen = [e for e in chosen if labels in e.labels]
    elif labels is not None:
        chosen = [e for e in chosen if bool(e.labels) == labels]
    return [e.name for e in chosen if not in_mirror or loadable_offline(e)]


def loadable_offline(entry: Entry) -> bool:
    """Whether the mirror contains the section, or all files to build it from."""
    section = entry.files.get("section")
    if section is not None and section.in_mirror():
        return True
    needed = [f for f in entry.files.values() if f.url]
    return entry.kind in SECTIONS and all(f.in_mirror() for f in needed or entry.files.values())


def mirror() -> Path | None:
    """Offline mirror in STAMPY_DATA_DIR, None if it is not set."""
    folder = os.environ.get(MIRROR_VARIABLE)
    if not folder:
        return None
    if not Path(folder).expanduser().is_dir():
        raise NotADirectoryError(f"{MIRROR_VARIABLE} names {folder!r}, which is not a folder. Correct or unset it.")
    return Path(folder).expanduser()


@cache
def entries() -> Mapping[str, Entry]:
    """Registry by name."""
    raw = json.loads((files("stampy.datasets") / "registry.json").read_text(encoding="utf-8"))
    sources = {
        key: Source(s.get("repository"), s.get("commit"), s["licence"], s.get("citation"))
        for key, s in raw["sources"].items()
    }
    return MappingProxyType({name: _entry(name, e, sources) for name, e in raw["entries"].items()})


def _entry(name: str, raw: dict[str, Any], sources: Mapping[str, Source]) -> Entry:
    return Entry(
        name=name,
        kind=raw["kind"],
        title=raw["title"],
        tissue=raw.get("tissue"),
        platform=raw.get("platform"),
        use=raw.get("use"),
        labels=tuple(raw.get("labels", ())),
        sources=tuple(sources[key] for key in raw["sources"]),
        files=MappingProxyType({role: _file(role, f, sources) for role, f in raw["files"].items()}),
        builder=raw.get("builder"),
    )


def _file(role: str, raw: dict[str, Any], sources: Mapping[str, Source]) -> File:
    url = raw.get("url")
    if "source" in raw:
        source = sources[raw["source"]]
        url = f"https://raw.githubusercontent.com/{source.repository}/{source.commit}/{raw['path']}"
    return File(role, url, raw.get("sha256"), raw.get("bytes"), tuple(raw.get("mirror", ())), raw.get("mirror_sha256"))
