"""The records of tools in `uns["stamp"]`, as plots read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NotRequired, TypedDict, overload

from stampy import _checks, _keys

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes


class DomainsRecord(TypedDict):
    """Record of `stampy.tl.domains`, the fields that plots use."""

    scores: pd.DataFrame
    label_key: NotRequired[str]


class ProbeRecord(TypedDict):
    """Record of `stampy.tl.probe`, the fields that plots use."""

    embeddings: Sequence[str]
    classes: Sequence[str]
    scores: pd.DataFrame
    confusion: Mapping[str, np.ndarray]
    label_key: str
    folds: str


class ExpressionRecord(TypedDict):
    """Record of `stampy.tl.expression`, the fields that plots use."""

    genes: Sequence[str]
    transform: str
    scores: pd.DataFrame


@overload
def record_of(adata: AnnData, key: str, *, tool: Literal["domains"], holds: str) -> DomainsRecord: ...
@overload
def record_of(adata: AnnData, key: str, *, tool: Literal["probe"], holds: str) -> ProbeRecord: ...
@overload
def record_of(adata: AnnData, key: str, *, tool: Literal["expression"], holds: str) -> ExpressionRecord: ...
def record_of(adata: AnnData, key: str, *, tool: str, holds: str) -> object:
    """The record of a tool under `key`; KeyError, with those that are there, if it is none of that tool's."""
    records = adata.uns.get(_keys.UNS, {})
    fitting = [name for name, record in records.items() if isinstance(record, Mapping) and holds in record]
    if key not in fitting:
        raise KeyError(
            f"No result of `stampy.tl.{tool}` in `adata.uns['stamp']['{key}']`. Found: {_checks.shortlist(fitting)}. "
            f"Run `stampy.tl.{tool}(adata, ...)` first, or name its `key_added` by `key=`."
        )
    return records[key]


def shown_of(show: str | Sequence[str], allowed: tuple[str, ...], ax: Axes | None) -> list[str]:
    """The panels asked for; ValueError for an unknown one, or for several into one `ax`."""
    shown = [show] if isinstance(show, str) else list(show)
    if not shown:
        raise ValueError(f"`show` is empty. Name some of {list(allowed)}.")
    for name in shown:
        _checks.one_of("show", name, allowed)
    if ax is not None and len(shown) > 1:
        raise ValueError(f"`ax` takes one panel, but `show` names {len(shown)}: {shown}. Name one, or leave out `ax`.")
    return shown
