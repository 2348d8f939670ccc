"""Validators of user input, the wording of their errors, and warnings that point to the line of the user."""

from __future__ import annotations

import contextlib
import difflib
import errno
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stampy import _keys

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "StampyWarning",
    "at_least",
    "at_most",
    "embedding",
    "existing",
    "factor",
    "has_key",
    "libraries",
    "naming_full_disk",
    "no_file_in",
    "not_empty",
    "one_of",
    "positive",
    "provenance",
    "readable",
    "replaceable",
    "results",
    "single",
    "two_labels",
    "unknown",
    "warn",
    "warnings_about",
    "window",
    "writable",
]


_MAX_NAME_BYTES = 255
_PACKAGE = str(Path(__file__).parent) + os.sep
_IMPORTLIB = "<frozen importlib"


class StampyWarning(UserWarning):
    """A result may not be what the user expects; the message says why and what to do."""


_SUBJECT: ContextVar[str] = ContextVar("subject", default="")


@contextlib.contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Turn the error of a full disk into one that names the file instead of its temporary copy."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or "No space left on the disk" in str(error):
            raise
        free = shutil.disk_usage(path.parent).free / 1e6
        text = f"No space left on the disk of {str(path.parent)!r} for {path.name} ({free:.1f} MB free)."
        raise OSError(error.errno, text) from error


@contextlib.contextmanager
def warnings_about(subject: str) -> Iterator[None]:
    """Prefix the warnings of the block with the subject, such as "Section 'A1'", unless they name it."""
    token = _SUBJECT.set(subject)
    try:
        yield
    finally:
        _SUBJECT.reset(token)


def warn(message: str) -> None:
    """Emit a `StampyWarning` that points to the line of the user's code."""
    subject = _SUBJECT.get()
    if subject and subject.split(" ", 1)[-1] not in message:
        message = f"{subject}: {message}"
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and _is_internal(frame.f_code.co_filename):
        skipped = frame.f_code.co_filename.startswith(_IMPORTLIB)  # by `warnings.warn` too
        frame, level = frame.f_back, level + (not skipped)
    warnings.warn(message, StampyWarning, stacklevel=level)


def _is_internal(filename: str) -> bool:
    """Whether a frame belongs to stampy, or to a decorator or context manager between two of its functions."""
    return filename.startswith((_PACKAGE, _IMPORTLIB)) or filename.endswith(
        (f"{os.sep}contextlib.py", f"{os.sep}functools.py")
    )


def shortlist(names: Iterable[object], n: int = 8) -> str:
    """The first names, for an error message.

    >>> shortlist(range(20), 3)
    '[0, 1, 2, ... (20 in all)]'
    """
    # anndata 0.13 lists X among the layers, under the name None
    names = [n.item() if isinstance(n, np.generic) else n for n in names if n is not None]
    if len(names) <= n:
        return repr(names)
    return f"{repr(names[:n])[:-1]}, ... ({len(names)} in all)]"


def has_key(mapping: Mapping[str, object] | Collection[str], key: str, *, slot: str, needs: str) -> None:
    """Raise KeyError unless `key` is in `mapping`; `needs` states what stampy expects there."""
    if key not in mapping:
        raise KeyError(f"Key `{key}` not found in `{slot}`. Available: {shortlist(mapping)}. {needs}")


def one_of(name: str, value: object, allowed: Collection[object]) -> None:
    """Raise ValueError, with the nearest names, unless `value` is one of `allowed`."""
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value), [str(a) for a in allowed], n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"`{name}` must be one of {shortlist(sorted(allowed, key=str), 40)}, found {value!r}.{hint}")


def unknown(name: str, value: object, pools: Mapping[str, Iterable[object]]) -> KeyError:
    """Return a KeyError, with the nearest names, for a name that is in none of the pools (place -> its names)."""
    near = []
    for place, names in pools.items():
        folded = {str(n).casefold(): str(n) for n in names}
        close = difflib.get_close_matches(str(value).casefold(), folded, n=3, cutoff=0.6)
        near += [f"{[folded[c] for c in close]} in {place}"] if close else []
    hint = f"Similar names: {'; '.join(near)}." if near else "There are no similar names."
    return KeyError(f"`{name}`={value!r} was found in none of {', '.join(pools)}. {hint}")


def positive(name: str, value: object) -> None:
    """Raise unless `value` is a number above zero."""
    at_least(name, value, 0, integer=False)
    if value == 0:
        raise ValueError(f"`{name}` must be above 0, found {value!r}.")


def at_least(name: str, value: object, minimum: float, *, integer: bool = True) -> None:
    """Raise unless `value` is a (whole) number of at least `minimum`."""
    kinds = (int, np.integer) if integer else (int, float, np.integer, np.floating)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"`{name}` must be {'an integer' if integer else 'a number'}, found {value!r}.")
    if not np.isfinite(value) or value < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, found {value!r}.")


def at_most(name: str, value: float, maximum: float) -> None:
    """Raise ValueError if `value` is above `maximum`."""
    if value > maximum:
        raise ValueError(f"`{name}` must be at most {maximum}, found {value!r}.")


def window(name: str, value: Iterable[float]) -> None:
    """Raise unless `value` is (left, right, top, bottom), each side below its opposite."""
    try:
        left, right, top, bottom = (float(v) for v in value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be True, False or four numbers (left, right, top, bottom), found {value!r}."
        ) from error
    if not (left < right and top < bottom):  # also catches NaN
        raise ValueError(
            f"`{name}` must have left < right and top < bottom (y points down), found {(left, right, top, bottom)}."
        )


def not_empty(adata: AnnData, *, genes: bool = True) -> None:
    """Raise ValueError for a section without spots or, with `genes`, without genes."""
    if adata.n_obs == 0:
        raise ValueError(f"The section is empty: it has 0 spots and {adata.n_vars} genes. Was everything filtered out?")
    if genes and adata.n_vars == 0:
        raise ValueError(
            f"The section has {adata.n_obs} spots but 0 genes. Was everything filtered out? "
            "To embed only the image, use modality='image'."
        )


def points(xy: object) -> np.ndarray:
    """Return `xy` as (n, 2) float64; ValueError for another shape, NaN or infinity."""
    xy = np.asarray(xy, dtype=np.float64)
    if xy.ndim != 2 or xy.shape[1] != 2:
        raise ValueError(f"Coordinates must have shape (n, 2), found {xy.shape}.")
    bad = int((~np.isfinite(xy).all(axis=1)).sum())
    if bad:
        raise ValueError(f"{bad} of {len(xy)} spots have NaN or infinite coordinates. Drop those spots first.")
    return xy


def embedding(adata: AnnData, key: str) -> np.ndarray:
    """Return `adata.obsm[key]` as a dense (n, d) float array; ValueError for missing values or no columns."""
    has_key(adata.obsm, key, slot="adata.obsm", needs="Name an embedding, e.g. of `stampy.tl.embed`.")
    values = adata.obsm[key]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"`adata.obsm['{key}']` must have shape (n, d), found {values.shape}.")
    if values.dtype.kind not in "buif":
        raise TypeError(f"`adata.obsm['{key}']` must contain numbers, found dtype {values.dtype}.")
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"`adata.obsm['{key}']` has NaN or infinite values for {bad} of {len(values)} spots. Remove these "
            f"spots, e.g. `adata = adata[np.isfinite(adata.obsm['{key}']).all(axis=1)].copy()`."
        )
    return single(values, f"adata.obsm['{key}']")


def results(values: np.ndarray, model: str) -> np.ndarray:
    """Return `values` (n, d), computed by a model; ValueError, before any are written, if some are not finite."""
    bad = int((~np.isfinite(values).all(axis=tuple(range(1, values.ndim)))).sum())
    if bad:
        raise ValueError(
            f"The model {model!r} gave NaN or infinite values for {bad} of {len(values)} inputs; nothing was written. "
            "Its weights overflow or are damaged: load them again, or try `precision='float32'`."
        )
    return values


def single(values: np.ndarray, name: str) -> np.ndarray:
    """Convert finite numbers to float32; ValueError if any is too large, or all are too small."""
    with np.errstate(over="ignore"):
        found = values.astype(np.float32, copy=False)
    if not np.isfinite(found).all():
        raise ValueError(f"`{name}` has values up to {np.abs(values).max():.3g}, too large for float32. Scale it down.")
    if values.any() and not found.any():
        raise ValueError(f"`{name}` has values up to {np.abs(values).max():.3g}, too small for float32. Scale it up.")
    return found


def provenance(adata: AnnData) -> None:
    """Raise TypeError early if stampy cannot write its records into ``uns["stamp"]``."""
    found = adata.uns.get(_keys.UNS, {})
    if not isinstance(found, Mapping):
        raise TypeError(
            f"`adata.uns['{_keys.UNS}']` must be a dict, where stampy notes what it wrote; found "
            f"{type(found).__name__}. Rename or remove it."
        )


def factor(factors: Mapping[str, object], key: str) -> float:
    """Return a scale factor as float, from a number, text or a one-value array; ValueError unless it is positive."""
    value = float("nan")
    with contextlib.suppress(TypeError, ValueError):
        found = np.asarray(factors[key])
        value = float(found.item()) if found.size == 1 and found.dtype.kind != "b" else value
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"The scale factor `{key}` must be a positive number, found {factors[key]!r}.")
    return value


def two_labels(names: Collection[str], n_known: int, n: int, *, key: str) -> None:
    """Raise ValueError unless there are at least two different labels."""
    if len(names) >= 2:
        return
    raise ValueError(
        f"`adata.obs['{key}']` must have at least two labels, found {shortlist(names)} at {n_known} of {n} spots. "
        f"Missing values and {shortlist(sorted(_keys.NO_LABELS), len(_keys.NO_LABELS))} are not labels."
    )


def enough_spots(counts: Mapping[str, int], size: int, *, setting: str = "size") -> None:
    """Raise unless each section (name -> number of spots) has the `size` spots that a neighbourhood group needs."""
    at_least(setting, size, 2)
    small = {name: int(n) for name, n in counts.items() if n < size}
    if not small:
        return
    found = shortlist(f"{name}: {n}" if name else f"{n} spots" for name, n in small.items())
    raise ValueError(
        f"A section needs at least {size} spots to form a neighbourhood group, found {found}. "
        f"Choose a smaller `{setting}` or remove the section."
    )


def libraries(adata: AnnData, library_key: str | None) -> tuple[np.ndarray, list[str]]:
    """Return the section of every spot as (codes (n,) int, names); one section if `library_key` is None."""
    if library_key is None:
        return np.zeros(adata.n_obs, dtype=np.int64), [""]
    has_key(adata.obs, library_key, slot="adata.obs", needs="`library_key` names the column that contains the section.")
    column = adata.obs[library_key]
    if column.dtype.kind == "f" and (column.dropna() % 1).any():
        raise ValueError(f"`adata.obs[{library_key!r}]` must contain labels, found numbers. Give the sections' column.")
    column = column.astype("category")
    if column.isna().any():
        raise ValueError(
            f"`adata.obs['{library_key}']` is missing for {int(column.isna().sum())} of {adata.n_obs} spots; "
            "every spot must belong to a section."
        )
    column = column.cat.remove_unused_categories()
    return column.cat.codes.to_numpy().astype(np.int64), [str(c) for c in column.cat.categories]


def existing(path: str | Path, *, what: str, suffixes: tuple[str, ...] = ()) -> Path:
    """Return `path` as a Path; FileNotFoundError, with similar names, if it does not exist."""
    if "://" in str(path):
        raise ValueError(
            f"{str(path)!r} is an address, where a {what} on this machine was expected. Download it first."
        )
    path = Path(path).expanduser()
    if not path.exists():
        if path.is_symlink():
            raise FileNotFoundError(f"No {what} at {str(path)!r}: it is a link to {os.readlink(path)!r}.")
        near = []
        if path.parent.is_dir():
            near = difflib.get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=3, cutoff=0.5)
        hint = f" Similar names there: {near}." if near else ""
        raise FileNotFoundError(f"No {what} at {str(path)!r}.{hint}")
    if suffixes and not path.name.lower().endswith(suffixes):
        raise ValueError(f"A {what} must end in {' or '.join(suffixes)}, found {path.name!r}.")
    return path


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of a format's reader into a ValueError that names the file."""
    try:
        yield
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, EOFError) as error:
        if isinstance(error, FileNotFoundError) or str(path) in str(error):
            raise
        raise ValueError(
            f"{str(path)!r} cannot be read: it is truncated, damaged or of another format ({error})."
        ) from error


def nameable(path: Path) -> None:
    """Raise ValueError if the last part of a path is longer than file systems allow."""
    if (size := len(os.fsencode(path.name))) > _MAX_NAME_BYTES:
        raise ValueError(
            f"The name {path.name[:40]!r}... has {size} bytes; at most {_MAX_NAME_BYTES} are possible. Choose another."
        )


def replaceable(path: Path, *, overwrite: bool) -> None:
    """Create the parent folder of `path`; raise if it is not writable, or if `path` exists and must not be replaced.

    A symbolic link counts as existing, even if its target is missing. With `overwrite`, a warning says that the link
    is replaced.
    """
    nameable(path)
    writable(path.parent)
    if not os.path.lexists(path):
        return
    target = f"a symbolic link to {os.readlink(path)!r}" if path.is_symlink() else ""
    if not overwrite:
        kind = f" ({target})" if target else ""
        raise FileExistsError(f"{str(path)!r} exists{kind}. Choose another name, or replace it with --overwrite.")
    if target:
        warn(f"{str(path)!r} is {target}: the link is replaced, and its target is not changed.")


def no_file_in(folder: str | Path) -> None:
    """Raise NotADirectoryError if a path, or a part of it, is a file, so that it cannot be a folder."""
    folder = Path(folder).expanduser()
    if any(os.path.lexists(part) and not part.is_dir() for part in (folder, *folder.parents)):
        raise NotADirectoryError(
            f"{str(folder)!r} cannot be a folder to write into: it, or a part of its path, is a file. Choose another."
        )


def writable(folder: str | Path) -> Path:
    """Return `folder`, created if needed; PermissionError or NotADirectoryError if it is not writable."""
    folder = Path(folder).expanduser()
    no_file_in(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"The folder {str(folder)!r} cannot be made ({error.strerror}). Choose another."
        ) from error
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".stampy-"):
            pass
    except OSError as error:
        raise PermissionError(
            f"The folder {str(folder)!r} cannot be written to ({error.strerror}). Choose another."
        ) from error
    return folder
