"""Several sections at once: a list, a dict, an AnnCollection."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys
from stampy._section.section import coordinates_of
from stampy._utils import table_of
from stampy.pp._counts import counts_of

from ._request import BY_SECTION, Request

if TYPE_CHECKING:
    from ._embed import Section, Sections

__all__ = ["each_of", "is_several", "named"]

logger = logging.getLogger(__name__)


def is_collection(data: Any) -> bool:
    """Whether `data` is an `anndata.experimental.AnnCollection`, without importing it."""
    return any(c.__name__ == "AnnCollection" and c.__module__.startswith("anndata") for c in type(data).__mro__)


def is_several(data: Any) -> bool:
    """Whether `data` is a list, tuple, dict or AnnCollection of sections."""
    return isinstance(data, list | tuple | Mapping) or is_collection(data)


def each_of(
    function: Callable[[Section, Request], Section | None], data: Sections, request: Request, *, copy: bool
) -> list[Section] | dict[str, Section] | None:
    """Run `function` on each section, in order; each has its result as soon as it is done.

    Sections are named by the keys of a dict, else 0, 1, ...; what the request has by section goes by those names. All
    sections are checked before the first is run.
    """
    if is_collection(data) and copy:
        raise ValueError(
            "`copy=True` does not go with an AnnCollection, which holds no data itself. Copy its sections."
        )
    sections = named(data)
    _check(sections, request)
    copies: dict[str, Section] = {}
    for i, (name, section) in enumerate(sections.items()):
        logger.info("Section %r, %d of %d", name, i + 1, len(sections))
        folder = None if request.resume is None else request.resume / f"{i:04d}"
        copies[name] = function(section, request.of(name, folder))
    if is_collection(data):
        _join(data, request.key_added)
    if not copy:
        return None
    return copies if isinstance(data, Mapping) else list(copies.values())


def named(data: Any) -> dict[Any, Any]:
    """Sections by the keys of a dict, else by 0, 1, ..."""
    if isinstance(data, Mapping):
        return dict(data)
    return dict(enumerate(data.adatas if is_collection(data) else data))


def _check(sections: Mapping[Any, Section], request: Request) -> None:
    """Raise for what would fail after hours only."""
    if not sections:
        raise ValueError("There is no section: the list or dict is empty.")
    for key in BY_SECTION:
        value = getattr(request, key)
        unknown = [name for name in value if name not in sections] if isinstance(value, Mapping) else []
        if unknown and request.library_key is None:
            raise KeyError(
                f"`{key}` names {_checks.shortlist(unknown)}, but the sections are {_checks.shortlist(sections)}."
            )
    if request.image is not None and not isinstance(request.image, Mapping) and len(sections) > 1:
        raise ValueError(f"One `image` was given for {len(sections)} sections; give a dict by section.")
    for name, section in sections.items():
        try:
            _check_section(section, request)
        except (KeyError, TypeError, ValueError) as error:
            raise type(error)(f"Section {name!r}: {error.args[0]}") from error


def _check_section(section: Section, request: Request) -> None:
    table = table_of(section, request.table_key)
    _checks.not_empty(table, genes=False)
    if request.modality in ("gene", "fused"):
        counts_of(table, request.layer)
    _checks.libraries(table, request.library_key)
    if table is section and request.modality in ("image", "fused"):
        coordinates_of(section, request.table_key)


def _join(collection: Any, key: str) -> None:
    """Into the joined ``obsm``, where the collection has one; else its parts alone have the result."""
    if getattr(collection, "obsm", None) is None:
        return
    for name in (key, key + _keys.GENE_SUFFIX, key + _keys.IMAGE_SUFFIX):
        if all(name in part.obsm for part in collection.adatas):
            collection.obsm[name] = np.concatenate([part.obsm[name] for part in collection.adatas])
        elif name in collection.obsm:  # of an earlier call
            del collection.obsm[name]
