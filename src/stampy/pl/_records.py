"""Where plots find what a tool has left in `uns["stamp"]`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stampy import _checks, _keys

if TYPE_CHECKING:
    from anndata import AnnData


def record_of(adata: AnnData, key: str, *, tool: str, holds: str) -> Mapping[str, Any]:
    """The record of a tool under `key`; KeyError, with those that are there, if it is none of that tool's."""
    records = adata.uns.get(_keys.UNS, {})
    fitting = [name for name, record in records.items() if isinstance(record, Mapping) and holds in record]
    if key not in fitting:
        raise KeyError(
            f"No result of `stampy.tl.{tool}` in `adata.uns['stamp']['{key}']`. Found: {_checks.shortlist(fitting)}. "
            f"Run `stampy.tl.{tool}(adata, ...)` first, or name its `key_added` by `key=`."
        )
    return records[key]


def shown_of(show: str | Sequence[str], allowed: tuple[str, ...], ax: Any) -> list[str]:
    """The panels asked for; ValueError for an unknown one, or for several into one `ax`."""
    shown = [show] if isinstance(show, str) else list(show)
    if not shown:
        raise ValueError(f"`show` is empty. Name some of {list(allowed)}.")
    for name in shown:
        _checks.one_of("show", name, allowed)
    if ax is not None and len(shown) > 1:
        raise ValueError(f"`ax` takes one panel, but `show` names {len(shown)}: {shown}. Name one, or leave out `ax`.")
    return shown
