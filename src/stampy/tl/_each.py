"""Several sections at once: a list, a dict, an AnnCollection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from stampy import _checks, _keys
from stampy._utils import table_of
from stampy.pp._counts import counts_of

__all__ = ["each_of", "is_several"]

logger = logging.getLogger(__name__)

BY_SECTION = ("image", "image_key", "um_per_px")  # parameters that may be given by section


def is_collection(data: Any) -> bool:
    """Whether `data` is an `anndata.experimental.AnnCollection`, without importing it."""
    return any(c.__name__ == "AnnCollection" and c.__module__.startswith("anndata") for c in type(data).__mro__)


def is_several(data: Any) -> bool:
    """Whether `data` is a list, tuple, dict or AnnCollection of sections."""
    return isinstance(data, list | tuple | Mapping) or is_collection(data)


def each_of(
    function: Callable[..., Any], data: Any, *, copy: bool, resume: str | Path | None, **options: Any
) -> list[Any] | dict[Any, Any] | None:
    """Run `function` on each section, in order; each has its result as soon as it is done.

    Sections are named by the keys of a dict, else 0, 1, ...; parameters such as `image` may be a dict by those names.
    All sections are checked before the first is run.
    """
    if is_collection(data) and copy:
        raise ValueError(
            "`copy=True` does not go with an AnnCollection, which holds no data itself. Copy its sections."
        )
    sections = _named(data)
    _check(sections, options)
    copies = {}
    for i, (name, section) in enumerate(sections.items()):
        logger.info("Section %r, %d of %d", name, i + 1, len(sections))
        mine = {key: _pick(value, name) if key in BY_SECTION else value for key, value in options.items()}
        folder = None if resume is None else Path(resume) / f"{i:04d}"
        copies[name] = function(section, copy=copy, resume=folder, **mine)
    if is_collection(data):
        _join(data, options["key_added"])
    if not copy:
        return None
    return copies if isinstance(data, Mapping) else list(copies.values())


def _named(data: Any) -> dict[Any, Any]:
    if isinstance(data, Mapping):
        return dict(data)
    return dict(enumerate(data.adatas if is_collection(data) else data))


def _check(sections: dict[Any, Any], options: dict[str, Any]) -> None:
    """Raise for what would fail after hours only."""
    if not sections:
        raise ValueError("There is no section: the list or dict is empty.")
    for key in BY_SECTION:
        value = options.get(key)
        if isinstance(value, Mapping):
            unknown = [name for name in value if name not in sections]
            if unknown and options.get("library_key") is None:
                raise KeyError(
                    f"`{key}` names {_checks.shortlist(unknown)}, but the sections are {_checks.shortlist(sections)}."
                )
    if options.get("image") is not None and not isinstance(options["image"], Mapping) and len(sections) > 1:
        raise ValueError(f"One `image` was given for {len(sections)} sections; give a dict by section.")
    for name, section in sections.items():
        try:
            table = table_of(section, options.get("table_key", _keys.TABLE))
            _checks.not_empty(table, genes=False)
            if options.get("modality") in ("gene", "fused"):
                counts_of(table, options.get("layer"))
            if options.get("modality") in ("image", "fused") and table is section:
                _checks.coordinates(table)
            _checks.libraries(table, options.get("library_key"))
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(f"Section {name!r}: {error.args[0]}") from error


def _pick(value: Any, name: Any) -> Any:
    """The section's own value, or that of all; sections without one keep the default."""
    return value.get(name) if isinstance(value, Mapping) else value


def _join(collection: Any, key: str) -> None:
    """Into the joined ``obsm``, where the collection has one; else its parts alone have the result."""
    if getattr(collection, "obsm", None) is None:
        return
    for name in (key, key + _keys.GENE_SUFFIX, key + _keys.IMAGE_SUFFIX):
        if all(name in part.obsm for part in collection.adatas):
            collection.obsm[name] = np.concatenate([part.obsm[name] for part in collection.adatas])
        elif name in collection.obsm:  # of an earlier call
            del collection.obsm[name]
