"""Common functions of the fuzzers: outcome of a case, and whether an input was changed."""

import copy
import traceback
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

import stampy

SOURCE = str(Path(stampy.__file__).parent)
DOCUMENTED = (KeyError, TypeError, ValueError, ImportError, FileNotFoundError)


class BrokenError(AssertionError):
    """A case that ended otherwise than in a right result or a clear error."""


def same(a, b):
    """Whether two values are the same to the last bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, pd.DataFrame):
        return a.index.equals(b.index) and list(a) == list(b) and all(same(a[c], b[c]) for c in a)
    if isinstance(a, pd.Series):
        return a.dtype == b.dtype and (a.equals(b) or repr(a.tolist()) == repr(b.tolist()))
    if sparse.issparse(a):
        return a.shape == b.shape and all(same(getattr(a, k), getattr(b, k)) for k in ("data", "indices", "indptr"))
    if isinstance(a, np.ndarray) and a.dtype != object:
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if hasattr(a, "dask"):
        return a.name == b.name
    return repr(a) == repr(b)


def contents(a):
    """All that a table holds, copied."""
    a = a.copy() if a.is_view else a  # a deep copy of a view's parts would be one of the whole table
    parts = {"X": a.X, "obs": a.obs, "var": a.var, "uns": dict(a.uns), "raw": None if a.raw is None else a.raw.X}
    return copy.deepcopy(parts | {slot: dict(getattr(a, slot)) for slot in ("obsm", "layers")})


def only_added(before, after):
    """Whether all that was there is still there: columns and keys may have come, `stamp*` and `probe*` be replaced."""
    for slot in ("obs", "obsm", "uns", "layers"):
        for key in before[slot]:
            ours = str(key).startswith(("stamp", "probe")) or (slot == "obsm" and str(key).startswith("X_stamp"))
            if not ours and (key not in after[slot] or not same(before[slot][key], after[slot][key])):
                return f"{slot}[{key!r}]"
    for slot in ("X", "var", "raw"):
        if not same(before[slot], after[slot]):
            return slot
    return "the order of spots" if not before["obs"].index.equals(after["obs"].index) else ""


def is_clear(error):
    """Whether an error was raised, and so worded, by stampy itself."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return isinstance(error, DOCUMENTED) and frame.filename.startswith(SOURCE) and len(str(error)) >= 25


def dense(a):
    return np.asarray(a.X.toarray() if sparse.issparse(a.X) else a.X)


def choice(rng, *options):
    return options[rng.integers(len(options))]
