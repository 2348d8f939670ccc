"""The columns of obs of a stored section, read before anything heavy is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stampy import _checks
from stampy.datasets import _registry

__all__ = ["OFFLINE", "check_labels", "offline_section"]

OFFLINE = "HER2ST_A1"  # of the demo, preferred from a mirror: it has an image and labels


def offline_section() -> str | None:
    """The section of the registry that the demo takes where a mirror is at hand; None without one."""
    names = [name for name in _registry.names(in_mirror=True) if _registry.info(name).kind == "section"]
    return OFFLINE if OFFLINE in names else next(iter(names), None)


def check_labels(section: str | None, labels: str) -> None:
    """Raise KeyError for a column that a section lacks, where its columns are known without reading the section."""
    path = _stored(section or offline_section())
    columns = None if path is None else _columns(path)
    if columns is not None:
        _checks.has_key(dict.fromkeys(columns), labels, slot="adata.obs", needs="`--labels` names a column of labels.")


def _stored(section: str | None) -> Path | None:
    if section in _registry.entries():
        file = _registry.info(str(section)).files.get("section")
        return None if file is None else file.in_mirror()
    return None if section is None else Path(section).expanduser()


def _columns(path: Path) -> list[str] | None:
    """Names of the columns; None for a format, or a file, that only its reader understands."""
    if path.suffix == ".h5ad" and path.is_file():
        import h5py

        try:
            with h5py.File(path) as file:
                obs = file.get("obs")
                return _listed(obs.attrs) if isinstance(obs, h5py.Group) else None
        except OSError:  # its reader says what is wrong
            return None
    for name, key in (("zarr.json", "attributes"), (".zattrs", None)):
        place = path / "obs" / name
        if place.is_file():
            try:
                raw = json.loads(place.read_text("utf-8"))
            except ValueError:
                return None
            return _listed(raw.get(key, {}) if key else raw) if isinstance(raw, dict) else None
    return None


def _listed(attributes: Mapping[str, object]) -> list[str] | None:
    order = attributes.get("column-order")
    if order is None:
        return None
    return [name.decode() if isinstance(name, bytes) else str(name) for name in order]  # type: ignore[attr-defined]
