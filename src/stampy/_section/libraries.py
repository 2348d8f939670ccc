"""The entries of `uns["spatial"]`: which of them are sections, and their images, scale factors and metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _keys

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["has_image", "is_single", "libraries_of", "library_named", "named_file", "source_of"]

REFUSED = "refused_image_path"  # in place of `source_image_path`, in memory alone, see `sources`
_PARTS = ("images", "scalefactors", "metadata")
_IS_SINGLE = "is_single"  # CELLxGENE: whether the table holds one section


def libraries_of(adata: AnnData) -> dict[str, dict[str, Any]]:
    """The sections in ``uns["spatial"]`` by name, each a dict whose images, scale factors and metadata are dicts.

    Keys that are no text become text. Flags and texts beside the sections (`is_single` of CELLxGENE) are left aside. A
    single section that lies there without a name is called "spatial".

    Raises
    ------
    TypeError
        Where the entry, or a part of it, is laid out in another way; where there is no section, but text or None in
        the place of one.
    """
    found = adata.uns.get(_keys.UNS_SPATIAL)
    if found is None:
        return {}
    where = f"adata.uns['{_keys.UNS_SPATIAL}']"
    if not isinstance(found, Mapping):
        raise _laid_out(where, found)
    if any(isinstance(found.get(part), Mapping) and not _is_library(found[part]) for part in _PARTS[:2]):
        return {_keys.UNS_SPATIAL: _parts(found, where)}
    sections = {}
    for key, entry in found.items():
        if isinstance(entry, Mapping):
            sections[str(key)] = _parts(entry, f"{where}[{key!r}]")
        elif np.ndim(entry) > 1:  # a picture, or a table: nothing that may be left aside
            raise _laid_out(f"{where}[{key!r}]", entry)
    odd = [key for key, entry in found.items() if not _is_flag(entry)]
    if not sections and odd and _IS_SINGLE not in found:
        raise _laid_out(f"{where}[{odd[0]!r}]", found[odd[0]])
    return sections


def is_single(adata: AnnData) -> bool | None:
    """What CELLxGENE's flag says about the table: True for one section, False for several, None where it is missing."""
    found = adata.uns.get(_keys.UNS_SPATIAL)
    flag = found.get(_IS_SINGLE) if isinstance(found, Mapping) else None
    flag = _lone(flag)
    return bool(flag) if isinstance(flag, bool | np.bool_) else None


def library_named(libraries: Mapping[str, Any], name: str) -> str | None:
    """The key of a section: its name, or the same whole number written in another way (1 and 1.0)."""
    if name in libraries:
        return name
    try:
        number = float(name)
    except ValueError:
        return None
    return str(int(number)) if number.is_integer() and str(int(number)) in libraries else None


def has_image(library: Mapping[str, Any]) -> bool:
    """Whether an entry of ``uns["spatial"]`` has pixels, or says where the full-resolution image is."""
    return bool(library.get("images") or source_of(library) or library.get("metadata", {}).get(REFUSED))


def named_file(image: Any) -> str:
    """The path that stands in the place of an image's pixels, or ""."""
    image = _lone(image)
    return str(image) if isinstance(image, str | Path) else ""


def source_of(library: Mapping[str, Any]) -> str:
    """Path of the full-resolution image, or ""."""
    path = _lone(library.get("metadata", {}).get(_keys.SOURCE_IMAGE))
    if isinstance(path, bytes):
        path = path.decode()
    return str(path) if path is not None and str(path) not in _keys.NO_LABELS else ""


def _is_flag(entry: Any) -> bool:
    """Whether an entry is a flag or a number, which tells something beside the sections."""
    return isinstance(_lone(entry), bool | int | float | np.bool_ | np.number)


def _is_library(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(entry.get(part), Mapping) for part in _PARTS)


def _parts(entry: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {**entry, **{part: _part(entry[part], f"{where}['{part}']") for part in _PARTS if part in entry}}


def _part(part: Any, where: str) -> dict[str, Any]:
    """A part as a dict: R's lists come as tables of one row, as JSON, or (empty) as arrays without values."""
    part = _lone(part)
    if part is None or (not isinstance(part, Mapping | str | bytes) and np.size(part) == 0):
        return {}
    if isinstance(part, str | bytes):
        try:
            part = json.loads(part)
        except ValueError:
            part = part or {}
    if hasattr(part, "columns") and len(part) == 1:
        part = part.iloc[0]
    if hasattr(part, "to_dict"):
        part = part.to_dict()
    if not isinstance(part, Mapping):
        raise _laid_out(where, part)
    return {str(key): value for key, value in part.items()}


def _lone(value: Any) -> Any:
    """The value in an array or list of one."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.reshape(-1)[0]
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _laid_out(where: str, found: Any) -> TypeError:
    return TypeError(
        f"`{where}` must hold images and scale factors by section, a dict of dicts; found {type(found).__name__}. Read "
        "the section anew, or remove the entry."
    )
