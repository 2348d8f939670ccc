"""Helpers for all layers: the table of a SpatialData, random generators and streams by name, devices, threads."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeGuard, TypeVar, cast

import numpy as np

from stampy import _checks, _keys
from stampy._settings import DefaultSeed, settings

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from anndata import AnnData
    from spatialdata import SpatialData
    from torch import Tensor

    Data = TypeVar("Data", AnnData, SpatialData)

__all__ = [
    "check_device",
    "check_room",
    "chosen_seed",
    "column_of",
    "copy_of",
    "device_of",
    "float64",
    "generator",
    "hidden",
    "is_interactive",
    "is_lazy",
    "make_room",
    "seed_of",
    "stream",
    "table_of",
    "torch_generator",
    "with_columns",
]


RESERVED: Final = {
    ("obsm", _keys.SPATIAL): "the coordinates of the spots",
    ("uns", _keys.UNS_SPATIAL): "the images of the sections",
    ("uns", _keys.UNS): "the records of all results",
}
DEFAULT_NAMES: Final = (_keys.EMBEDDING, "stamp_", _keys.PROBE, _keys.ORTHOLOG)


def n_cores() -> int:
    """Number of cores that this process may use; on a cluster, often fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def n_threads() -> int:
    """Number of compute threads: torch's if it is loaded, else OMP_NUM_THREADS, else one per core.

    numba is not queried, because the query starts its threads and sets the OpenMP thread count, and so torch's, to its
    own.
    """
    if (torch := sys.modules.get("torch")) is not None:
        return torch.get_num_threads()
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(given) if given.isdecimal() and int(given) else n_cores()


@contextlib.contextmanager
def keeping_threads() -> Iterator[None]:
    """Restore torch's number of threads on exit; packages that call numba in the block change it."""
    before = n_threads()
    try:
        yield
    finally:
        if (torch := sys.modules.get("torch")) is not None and torch.get_num_threads() != before:
            torch.set_num_threads(before)


def is_spatialdata(data: object) -> TypeGuard[SpatialData]:
    """Whether `data` is a SpatialData, without importing spatialdata."""
    return any(c.__name__ == "SpatialData" and c.__module__.startswith("spatialdata") for c in type(data).__mro__)


def table_of(data: object, table_key: str = _keys.TABLE) -> AnnData:
    """Return the AnnData in `data`: itself, or the table `table_key` of a SpatialData."""
    from anndata import AnnData

    if isinstance(data, AnnData):
        _checks.provenance(data)
        return data
    if is_spatialdata(data):
        _checks.has_key(
            data.tables, table_key, slot="sdata.tables", needs="Name the table of counts with `table_key=`."
        )
        _checks.provenance(data.tables[table_key])
        return data.tables[table_key]
    hint = f" Read the file first: `stampy.read({str(data)!r})`." if isinstance(data, str | os.PathLike) else ""
    raise TypeError(f"Expected AnnData or SpatialData, found {type(data).__module__}.{type(data).__qualname__}.{hint}")


def is_lazy(table: AnnData) -> bool:
    """Whether a table was opened by ``anndata.experimental.read_lazy``: names and columns are on disk as well."""
    return type(table.obs).__name__ == "Dataset2D"


def column_of(table: AnnData, name: str) -> pd.Series:
    """Column of obs, in memory."""
    return (table.obs.to_memory() if is_lazy(table) else table.obs)[name]


def with_columns(data: Data, table_key: str = _keys.TABLE) -> Data:
    """Return `data`; if its table was opened lazily, with names, columns and vectors in memory but counts on disk."""
    table = table_of(data, table_key)
    if table is not data or not is_lazy(table):
        return data
    from anndata import AnnData

    obsm = {key: np.asarray(value) for key, value in table.obsm.items()}
    obs, var = table.obs.to_memory(), table.var.to_memory()
    return cast("Data", AnnData(table.X, obs=obs, var=var, obsm=obsm, uns=table.uns, layers=dict(table.layers)))


def copy_of(data: Data, table_key: str = _keys.TABLE) -> Data:
    """Return a copy to write into; of a SpatialData only the table is copied, images and shapes are shared."""
    table = table_of(data, table_key)
    copied = table.to_memory() if table.isbacked or is_lazy(table) else table.copy()
    if table is data:
        return copied
    elements = {name: element for _, name, element in data.gen_elements()}
    return type(data).init_from_elements({**elements, table_key: copied}, attrs=data.attrs)


def check_room(table: AnnData, key: str, new: Collection[tuple[str, str]]) -> None:
    """Raise ValueError if a result named `key` cannot be written into the slots `new`, before it is computed.

    A slot holds coordinates, images or records, the table is a view of a backed one, or `key` is no name.
    """
    if not isinstance(key, str) or not key:
        raise ValueError(f"`key_added` must be a name, found {key!r}.")
    for slot, name in new:
        if holds := RESERVED.get((slot, name)):
            raise ValueError(f"`{slot}[{name!r}]` holds {holds} and must not be replaced. Choose another `key_added`.")
    if table.is_view and table.isbacked:
        raise ValueError(
            "`adata` is a part of a table opened with `backed=`, into which nothing can be written. Load it first: "
            "`adata[...].to_memory()`, or pass `copy=True`."
        )


def make_room(
    table: AnnData,
    key: str,
    new: Collection[tuple[str, str]],
    *,
    own: Collection[tuple[str, str]] = (),
    field: str | None = None,
) -> None:
    """Prepare a table for a result in the slots `new`, pairs of slot and name.

    A view becomes a copy, with a warning. Another warning names values that the result replaces, unless they are its
    `own`, from an earlier call, or have a name that stampy gives by default. Without `own`, they are those in `new` if
    the record of `key` has a field that identifies the function, `field`.

    Raises
    ------
    ValueError
        As `check_room`.
    """
    check_room(table, key, new)
    records = table.uns.get(_keys.UNS, {})
    if field is not None and field in records.get(key, {}):
        own = new
    others = {(slot, str(name)): other for other, record in records.items() if isinstance(record, Mapping)
              for slot in record.get("written", ()) for name in record["written"][slot]}  # fmt: skip
    replaced = []
    for slot, name in new:
        if name not in getattr(table, slot) or (slot, name) in own:
            continue
        if (slot, name) in others:
            replaced.append(f"{slot}[{name!r}] of the result {others[slot, name]!r}")
        elif not name.startswith(DEFAULT_NAMES):
            replaced.append(f"{slot}[{name!r}]")
    if replaced:
        _checks.warn(
            f"Replaced by the result {key!r}: {', '.join(replaced)}. To keep earlier values, "
            "choose another `key_added`."
        )
    if table.is_view:
        _checks.warn(
            "`adata` is a view of another AnnData, so results are written into a copy of it, and the other one is "
            "unchanged. To avoid this warning, pass a copy: `adata[...].copy()`."
        )
        table._init_as_actual(table.copy())


def hidden(progress: bool) -> bool:
    """Whether to hide a progress bar: by the argument or the settings, or outside of terminals and notebooks."""
    return not (progress and settings.progress_bars and is_interactive())


def is_interactive() -> bool:
    """Whether a progress bar is visible: in a terminal or a notebook, but not in the log of a job."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def chosen_seed(seed: int) -> int:
    """Return `seed`, or the seed of the settings if none was given."""
    return settings.seed if isinstance(seed, DefaultSeed) else seed


def generator(rng: int | np.random.Generator | None) -> np.random.Generator:
    """Return a numpy generator from a seed, a generator or None (fresh entropy); the global state is not changed."""
    try:
        return np.random.default_rng(settings.seed if isinstance(rng, DefaultSeed) else rng)
    except (TypeError, ValueError) as error:
        raise type(error)(f"`rng` must be an integer from 0 on, a numpy generator or None, found {rng!r}.") from error


def seed_of(seed: int, name: str, *counters: int) -> int:
    """Return a 64-bit seed for a named random stream; other names or counters give unrelated seeds.

    >>> seed_of(0, "masks", 4) == seed_of(0, "groups", 4), seed_of(0, "masks", 4) == seed_of(0, "masks", 4)
    (False, True)
    """
    text = "\0".join([str(int(seed)), name, *(str(int(c)) for c in counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, name: str, *counters: int) -> np.random.Generator:
    """Return a numpy generator for one purpose of a run, determined by seed, name and counters and unrelated to others.

    >>> float(stream(0, "masks", 4, 1).random()) == float(stream(0, "masks", 4, 1).random())
    True
    """
    return np.random.default_rng(seed_of(seed, name, *counters))


def torch_generator(rng: int | np.random.Generator | None) -> torch.Generator:
    """Return a torch CPU generator seeded from `rng`."""
    import torch

    return torch.Generator().manual_seed(int(generator(rng).integers(2**63)))


DEVICES = "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla"  # types of torch devices that run a model


def check_device(value: object) -> None:
    """Raise for the name of a device that torch does not have, before torch is imported; a `torch.device` is one.

    >>> check_device("cuda:1"), check_device(None)
    (None, None)
    """
    if not isinstance(value, str):
        return
    kind, colon, number = value.partition(":")
    _checks.one_of("device", kind if number.isdecimal() or not colon else value, DEVICES)


def device_of(device: str | torch.device | None) -> torch.device:
    """Return `device`, or that of the settings; else CUDA or an Apple GPU (MPS) if available, else the CPU."""
    check_device(device)
    import torch

    device = settings.device if device is None else device
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(device)
    there: dict[str, Callable[[], bool]] = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if device.type in there and not there[device.type]():
        name = "CUDA device" if device.type == "cuda" else "Apple GPU (MPS)"
        raise ValueError(f"device={device.type!r} was requested, but torch sees no {name}. Use device=None or 'cpu'.")
    return device


def float64(values: Tensor) -> Tensor:
    """Return `values` in double precision; on the CPU if their device, such as MPS, does not support it."""
    return (values.cpu() if values.device.type == "mps" else values).double()
