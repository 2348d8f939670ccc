"""Checks of names in a stored section, before heavy imports, before reading it and before creating folders."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks
from stampy.datasets import _registry

if TYPE_CHECKING:
    import h5py

__all__ = [
    "OFFLINE",
    "TOY",
    "TOY_COLUMNS",
    "check_names",
    "check_section_names",
    "check_vocabulary_file",
    "checked_file",
    "offline_section",
]

TOY = "toy"
TOY_COLUMNS = "in_tissue", "array_row", "array_col", "domain", "section"
_COMPRESSED = (".gz", ".bz2", ".zip", ".xz", ".zst")  # pandas reads these
VOCABULARY = "gene_id", "symbol", "divisor"  # columns
OFFLINE = "HER2ST_A1"  # preferred for the demo if a mirror exists, since it has an image and labels


def offline_section() -> str | None:
    """Section of the registry that the demo uses if a mirror exists; None without mirror."""
    names = [name for name in _registry.names(in_mirror=True) if _registry.info(name).kind == "section"]
    return OFFLINE if OFFLINE in names else next(iter(names), None)


def check_section_names(
    section: str | None, *, obs: Mapping[str, str | None], layers: Mapping[str, str | None]
) -> None:
    """Raise KeyError if the demo's section lacks a column or layer and they are known without reading it."""
    if section == TOY:
        for slot, there, given in (("obs", TOY_COLUMNS, obs), ("layers", (), layers)):
            for option, name in given.items():
                if name is not None:
                    _check(there, slot, name, option)
    elif any((*obs.values(), *layers.values())) and (path := _stored(section or offline_section())) is not None:
        check_names(path, obs=obs, layers=layers)


def check_names(
    path: str | Path,
    *,
    obs: Mapping[str, str | None],
    layers: Mapping[str, str | None] | None = None,
    obsm: Mapping[str, str | None] | None = None,
    table_key: str = "table",
) -> None:
    """Raise KeyError if an .h5ad or .zarr lacks a column of obs, a layer or a key of obsm; others are not checked.

    Parameters
    ----------
    path
        Local path of the section.
    obs, layers, obsm
        Option -> given name; None if not given.
    table_key
        Table of a SpatialData.
    """
    for slot, given in (("obs", obs), ("layers", layers or {}), ("obsm", obsm or {})):
        wanted = {option: name for option, name in given.items() if name is not None}
        there = _listed_in(Path(path).expanduser(), slot, table_key) if wanted else None
        for option, name in wanted.items():
            if there is not None:
                _check(there, slot, name, option)


def check_vocabulary_file(path: str | Path) -> None:
    """Raise for a missing file, or one without a vocabulary's columns; its reader checks the rest."""
    place = _checks.existing(path, what="vocabulary")
    place = _checks.existing(place / "genes.tsv", what="vocabulary") if place.is_dir() else place
    if place.suffix.lower() in _COMPRESSED:
        return
    with place.open("rb") as file:
        found = file.readline(2**16).decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\t")
    if missing := [name for name in VOCABULARY if name not in found]:
        raise ValueError(
            f"{str(path)!r} is not a vocabulary: it needs the columns {list(VOCABULARY)}; {missing} are missing. "
            f"Its first line is {_checks.shortlist(found)}."
        )


def checked_file(path: str | Path, *, overwrite: bool) -> Path:
    """Return the path of a file to write, and create its folder; raise before any work if it must not be written.

    Raises
    ------
    FileExistsError
        It exists and `overwrite` is not set, or it is a folder.
    NotADirectoryError, PermissionError
        Its folder is not a directory, or is not writable.
    """
    path = Path(path).expanduser()
    _checks.replaceable(path, overwrite=overwrite)
    if path.is_dir() and not path.is_symlink():
        raise FileExistsError(f"{str(path)!r} is a folder; it is not changed. Choose another name.")
    return path


def _check(there: Collection[str], slot: str, name: str, option: str) -> None:
    kinds = {"layers": "the raw counts", "obsm": "an embedding"}
    named = kinds.get(slot, f"a column{' of labels' * (option == 'labels')}")
    _checks.has_key(there, name, slot=f"adata.{slot}", needs=f"`--{option.replace('_', '-')}` names {named}.")


def _stored(section: str | None) -> Path | None:
    if section in _registry.entries():
        file = _registry.info(str(section)).files.get("section")
        return None if file is None else file.in_mirror()
    return None if section is None else Path(section).expanduser()


def _listed_in(path: Path, slot: str, table_key: str) -> Collection[str] | None:
    """Names in `slot`; None if the file or format must be read by its reader."""
    if path.suffix == ".h5ad" and path.is_file():
        import h5py

        try:
            with h5py.File(path) as file:
                return _names_of(file, slot)
        except OSError:  # the reader reports the error later
            return None
    for folder in (path, path / "tables" / table_key):
        if (folder / "obs").is_dir():
            return _columns_of(folder / "obs") if slot == "obs" else _folders(folder / slot)
    return None


def _names_of(file: h5py.File, slot: str) -> Collection[str] | None:
    import h5py

    group = file.get(slot)
    if slot == "obs":
        return _column_order(group.attrs) if isinstance(group, h5py.Group) else None
    if "X" not in file and "obs" not in file:  # not an AnnData
        return None
    if isinstance(group, h5py.Dataset):  # a table of an early version of anndata
        return None
    return [] if group is None else list(group)


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.is_dir())


def _columns_of(obs: Path) -> Collection[str] | None:
    for name, key in (("zarr.json", "attributes"), (".zattrs", None)):
        if (obs / name).is_file():
            try:
                raw = json.loads((obs / name).read_text("utf-8"))
            except ValueError:
                return None
            return _column_order(raw.get(key, {}) if key else raw) if isinstance(raw, dict) else None
    return None


def _column_order(attributes: Mapping[str, object]) -> list[str] | None:
    order = attributes.get("column-order")
    if not isinstance(order, Iterable):
        return None
    return [name.decode() if isinstance(name, bytes) else str(name) for name in order]
