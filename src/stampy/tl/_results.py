"""Write results into AnnData atomically, with their provenance, and remove stale ones.

A tool first computes a `Result`. Its record in ``uns["stamp"]`` lists the slots that were written, so that the next
call with the same key can remove them, whatever its settings.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
import pandas as pd

import stampy
from stampy import _checks, _keys
from stampy._utils import copy_of, make_room, table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from scipy import sparse
    from spatialdata import SpatialData

    Column: TypeAlias = np.ndarray | pd.Categorical
    Data = TypeVar("Data", bound=AnnData | SpatialData)

__all__ = [
    "Result",
    "check_finite",
    "write_result",
]


logger = logging.getLogger(__name__)

Slot = Literal["obs", "obsm", "layers", "uns"]
SLOTS: tuple[Slot, ...] = ("obs", "obsm", "layers", "uns")
WRITTEN = "written"  # key in a record: slot -> keys
_ABSENT = object()

# Versions before 0.3, whose records have no such list: a field that identifies the record -> slots and suffixes.
_BEFORE: dict[str, tuple[tuple[Slot, str], ...]] = {
    "level": (("obsm", ""), ("obsm", _keys.GENE_SUFFIX), ("obsm", _keys.IMAGE_SUFFIX)),
    "n_reference": (("obsm", _keys.INDEX_SUFFIX), ("obsm", _keys.SCORE_SUFFIX)),
    "transform": (("obsm", ""), ("obsm", _keys.MEASURED_SUFFIX), ("obs", _keys.FOLD_SUFFIX)),
    "n_bootstrap": (("uns", ""), ("obs", _keys.ATTENTION_SUFFIX)),
    "attribution": (("layers", ""),),
    "n_unlabelled": (("obs", _keys.FOLD_SUFFIX),),
    "smooth": (("obs", ""),),
    "standardize": (("obs", ""),),
}
_TOOLS = {"level": "embed", "n_reference": "retrieve", "transform": "expression", "n_bootstrap": "slide",
          "attribution": "attribute", "n_unlabelled": "probe", "smooth": "domains",
          "standardize": "score"}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Result:
    """Results of a tool for a table of n spots: values by slot and key, and their record."""

    key: str  # of the record in uns["stamp"]
    record: Mapping[str, object]
    obs: Mapping[str, Column] = field(default_factory=dict)  # (n,)
    obsm: Mapping[str, np.ndarray] = field(default_factory=dict)  # (n, d)
    layers: Mapping[str, sparse.csr_matrix] = field(default_factory=dict)  # (n, n_vars)
    uns: Mapping[str, object] = field(default_factory=dict)
    blank: np.ndarray | None = None  # (n,) bool: spots whose values may be missing (NaN)

    def items(self) -> Iterator[tuple[Slot, str, object]]:
        """Slot, key and value of everything to write, except the record."""
        for slot in SLOTS:
            for name, value in getattr(self, slot).items():
                yield slot, name, value


def write_result(adata: Data, result: Result, *, copy: bool, table_key: str = _keys.TABLE) -> Data | None:
    """Write a result in place, or into a returned copy.

    Slots written by an earlier call with the same key and not by this one are removed. A warning names results of other
    calls that were computed from changed values. If anything fails, the table is not changed.

    Raises
    ------
    ValueError
        Values are not finite, or a key is one of the inputs; nothing is written then.
    """
    table = table_of(adata, table_key)
    for slot, name, value in result.items():
        check_finite(f"{slot}[{name!r}]", value, blank=result.blank)
    _check_inputs(result)
    if copy:
        adata = copy_of(adata, table_key)
        table = table_of(adata, table_key)
    records: Mapping[str, object] = table.uns.get(_keys.UNS, {})
    new = [(slot, name) for slot, name, _ in result.items()]
    own = _slots_of(table, result.key, records.get(result.key))
    earlier, tool = _tool_of(records.get(result.key, result.record)), _tool_of(result.record)
    make_room(table, result.key, new, own=own if earlier == tool else ())
    stale = [place for place in own if place not in new]
    if stale and earlier != tool:
        _checks.warn(
            f"{_names_of(stale)} of `stampy.tl.{earlier}` are removed, because `stampy.tl.{tool}` writes under the "
            f"same key, {result.key!r}. To keep them, choose another `key_added`."
        )
    changed = {name for slot, name in stale if slot == "obsm"}
    changed |= {name for name, value in result.obsm.items() if name in table.obsm and _differ(table.obsm[name], value)}
    listed = {slot: list(getattr(result, slot)) for slot in SLOTS if getattr(result, slot)}
    record = {"stampy": stampy.__version__, **result.record, WRITTEN: listed}
    _replace(table, result, stale, {**records, result.key: record})
    logger.info("Written: %s, uns['%s'][%r]", _names_of(new), _keys.UNS, result.key)
    if stale:
        logger.info("Removed, of an earlier call: %s", _names_of(stale))
    _warn_of_dependents(table, changed, result.key)
    return adata if copy else None


def check_finite(name: str, value: object, *, blank: np.ndarray | None = None) -> None:
    """Raise ValueError if computed numbers are NaN or infinite; rows in `blank` (n,) may be NaN."""
    values = getattr(value, "data", None) if hasattr(value, "indptr") else value
    if not isinstance(values, np.ndarray) or values.dtype.kind != "f":
        return
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    rows: np.ndarray = np.any(bad.reshape(len(bad), -1), axis=1)
    if blank is not None and values is value:
        rows &= ~blank
    if rows.any():
        raise ValueError(
            f"The result for {name} is NaN or infinite for {int(rows.sum())} of {len(rows)} rows (first: row "
            f"{int(rows.argmax())}), so nothing was written. The model's weights, the input or the precision are the "
            "likely cause: check the weights and the input for NaN or huge values, and try precision='float32'."
        )


def _check_inputs(result: Result) -> None:
    """Raise ValueError if a result would replace its inputs."""
    record = result.record
    columns = [record.get(f) for f in ("label_key", "label", "library_key", "patient_key", "groupby")]
    inputs: dict[str, set[object]] = {"obs": {c for c in columns if c}, "obsm": set(embeddings_of(record))}
    for slot, name, _ in result.items():
        if name in inputs.get(slot, ()):
            raise ValueError(
                f"`{slot}[{name!r}]` is an input of this call and would be replaced by its result. Choose another "
                "`key_added`."
            )


def _tool_of(record: object) -> str:
    """Tool that wrote a record."""
    return next((tool for f, tool in _TOOLS.items() if isinstance(record, Mapping) and f in record), "evaluate")


def _slots_of(table: AnnData, key: str, record: object) -> list[tuple[Slot, str]]:
    """Existing slots that an earlier call with this key wrote."""
    if not isinstance(record, Mapping):
        return []
    if WRITTEN in record:
        found = [(slot, str(name)) for slot in SLOTS for name in record[WRITTEN].get(slot, ())]
    else:
        found = [(slot, key + suffix) for f, places in _BEFORE.items() if f in record for slot, suffix in places]
        if "n_unlabelled" in record:
            found += [("obs", f"{key}_{rep}") for rep in record.get("embeddings", ())]
    return [(slot, name) for slot, name in dict.fromkeys(found) if name in getattr(table, slot)]


def _replace(table: AnnData, result: Result, stale: list[tuple[Slot, str]], records: dict[str, object]) -> None:
    """Write new values and remove stale ones; undo all changes if one fails."""
    before: list[tuple[Slot, str, object]] = []

    def keep(slot: Slot, name: str) -> None:
        place = getattr(table, slot)
        before.append((slot, name, place.get(name, _ABSENT)))

    try:
        for slot, name, value in [*result.items(), ("uns", _keys.UNS, records)]:
            keep(slot, name)
            getattr(table, slot)[name] = value
        for slot, name in stale:
            keep(slot, name)
            del getattr(table, slot)[name]
    except BaseException:
        for slot, name, value in reversed(before):
            if value is not _ABSENT:
                getattr(table, slot)[name] = value
            elif name in getattr(table, slot):
                del getattr(table, slot)[name]
        raise


def embeddings_of(record: Mapping[str, object]) -> list[str]:
    """Keys of obsm from which a result was computed, according to its record."""
    suffix = {"gene": _keys.GENE_SUFFIX, "image": _keys.IMAGE_SUFFIX, "cluster": _keys.GENE_SUFFIX,
              "match": _keys.IMAGE_SUFFIX, "fused": ""}  # fmt: skip
    named = [str(record[f]) for f in ("use_rep", "reference_rep") if record.get(f)]
    named += [str(rep) for rep in record.get("embeddings", ())]  # type: ignore[attr-defined]
    keys = record.get("embedding_key")
    if isinstance(keys, str):  # records of `score` and `attribute`
        what = str(record.get("modality") or record.get("target"))
        return named + ([keys + suffix[what]] if what in suffix else [])
    if keys is not None:  # record of `retrieve`: keys of the queries and of the reference
        asked, sought = (str(k) for k in keys)  # type: ignore[attr-defined]
        named.append(asked + suffix[str(record["query"])])
        if record.get("reference") == "self":
            named.append(sought + suffix[str(record["target"])])
    return named


def _warn_of_dependents(table: AnnData, changed: set[str], key: str) -> None:
    """Warn about results, also of scanpy, that were computed from embeddings that have changed."""
    if not changed:
        return
    records: Mapping[str, object] = table.uns[_keys.UNS]
    stale = [f"uns['{_keys.UNS}'][{name!r}]" for name, record in records.items() if name != key
             and isinstance(record, Mapping) and changed & set(embeddings_of(record))]  # fmt: skip
    for name, value in table.uns.items():
        parameters = value.get("params") if isinstance(value, Mapping) else None
        if isinstance(parameters, Mapping) and parameters.get("use_rep") in changed:
            stale.append(f"uns[{name!r}]")
    if stale:
        _checks.warn(
            f"obsm {_checks.shortlist(sorted(changed))} changed. These results were computed from the earlier "
            f"values: {', '.join(stale)}, with what belongs to them. Compute them again, or remove them."
        )


def _differ(old: object, new: np.ndarray) -> bool:
    return not (isinstance(old, np.ndarray) and np.array_equal(old, new, equal_nan=new.dtype.kind == "f"))


def _names_of(places: list[tuple[Slot, str]]) -> str:
    return ", ".join(f"{slot}[{name!r}]" for slot, name in places)
