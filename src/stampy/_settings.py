"""`stampy.settings`: defaults for all calls, modelled on ``scanpy.settings``."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, TypedDict, Unpack

Verbosity: TypeAlias = Literal["error", "warning", "info", "debug"]

__all__ = ["DEFAULT_SEED", "DefaultSeed", "Settings", "settings"]

LEVELS: Final = {"error": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO, "debug": logging.DEBUG}
PREFIX: Final = "STAMPY_"


class SettingValues(TypedDict, total=False):
    """Settings by name, each optional."""

    verbosity: Verbosity
    progress_bars: bool
    device: str | None
    cache_dir: str | Path | None
    seed: int


class Settings:
    """Defaults for all calls of stampy in this process.

    The initial value of a setting is that of its environment variable, if it is set, so worker processes and cluster
    jobs inherit it. An argument of a function takes precedence over the setting.

    Parameters
    ----------
    verbosity
        ``"error"``, ``"warning"`` (default), ``"info"`` or ``"debug"``: lowest level of messages of the logger
        ``stampy`` that are printed to stderr (``STAMPY_VERBOSITY``). Warnings of the class `stampy.StampyWarning` are
        Python warnings and do not depend on it.
    progress_bars
        Show progress bars in terminals and notebooks, and lines of progress of a training run in logs
        (``STAMPY_PROGRESS_BARS``: 1 or 0). Default: True.
    device
        Device for ``device=None``: ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"`` (``STAMPY_DEVICE``). None (default):
        CUDA if available, else an Apple GPU, else the CPU; training uses an Apple GPU only on request.
    cache_dir
        Folder for downloads of `stampy.datasets` (``STAMPY_CACHE_DIR``). Default: the cache folder of the operating
        system. Weights from the Hugging Face Hub are stored in its own cache (``HF_HOME``).
    seed
        Default of `rng` and `seed` in all functions (``STAMPY_SEED``), except those that generate data sets, such as
        `stampy.datasets.toy`, whose default is always 0. Default: 0.

    Raises
    ------
    AttributeError
        The setting is unknown; the message states the nearest name.
    ValueError, TypeError
        The value is not valid for the setting.

    Examples
    --------
    >>> import stampy
    >>> stampy.settings.seed
    0
    >>> with stampy.settings.override(seed=3, progress_bars=False):
    ...     stampy.settings.seed
    3
    >>> stampy.settings.sed = 1
    Traceback (most recent call last):
        ...
    AttributeError: There is no setting 'sed'. Did you mean 'seed'?
    """

    __slots__ = ("_values",)
    _values: dict[str, Any]

    verbosity: Verbosity
    progress_bars: bool
    device: str | None
    cache_dir: Path | None
    seed: int

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {})
        for name, default in DEFAULTS.items():
            # the cache folder is looked up on use
            given = os.environ.get(PREFIX + name.upper()) if name != "cache_dir" else None
            try:
                if given:
                    setattr(self, name, _parsed(name, given))
                else:
                    self._values[name] = default
            except (TypeError, ValueError) as error:
                raise ValueError(f"The environment variable {PREFIX}{name.upper()}={given!r}: {error}") from error

    def __getattr__(self, name: str) -> Any:
        if name not in DEFAULTS:
            raise _unknown(name)
        return self._values[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in DEFAULTS:
            raise _unknown(name)
        self._values[name] = _checked(name, value)
        if name == "verbosity":
            _show(LEVELS[self._values[name]])

    def __dir__(self) -> list[str]:
        return [*DEFAULTS, "override"]

    def __repr__(self) -> str:
        return "\n".join(["stampy.settings", *(f"    {name} = {value!r}" for name, value in self._values.items())])

    @contextlib.contextmanager
    def override(self, **values: Unpack[SettingValues]) -> Iterator[Settings]:
        """Change settings within a ``with`` block.

        Examples
        --------
        >>> import stampy
        >>> with stampy.settings.override(device="cpu"):
        ...     stampy.settings.device
        'cpu'
        """
        before = dict(self._values)
        try:
            if unknown := [name for name in values if name not in DEFAULTS]:
                raise _unknown(unknown[0])
            for name, value in values.items():
                setattr(self, name, value)
            yield self
        finally:
            for name in values.keys() & before.keys():
                setattr(self, name, before[name])

    def as_dict(self) -> dict[str, object]:
        """All settings by name, e.g. for a worker process."""
        return dict(self._values)


DEFAULTS: Final[dict[str, Any]] = {
    "verbosity": "warning",
    "progress_bars": True,
    "device": None,
    "cache_dir": None,
    "seed": 0,
}


def _unknown(name: str) -> AttributeError:
    import difflib

    near = difflib.get_close_matches(name, DEFAULTS, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"There are: {', '.join(DEFAULTS)}."
    return AttributeError(f"There is no setting {name!r}. {hint}")


def _parsed(name: str, text: str) -> Any:
    """Parse a value of an environment variable."""
    if name == "seed":
        return int(text)
    if name == "progress_bars":
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        if text.lower() not in words:
            raise ValueError("1 or 0 was expected.")
        return words[text.lower()]
    return text


def _checked(name: str, value: Any) -> Any:
    if name == "verbosity":
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 4:  # scanpy's numeric levels
            value = ("error", "warning", "info", "info", "debug")[value]
        if value not in LEVELS:
            raise ValueError(f"`verbosity` must be one of {', '.join(LEVELS)}, found {value!r}.")
    elif name == "progress_bars" and not isinstance(value, bool):
        raise TypeError(f"`progress_bars` must be True or False, found {value!r}.")
    elif name == "seed" and (isinstance(value, bool) or not hasattr(value, "__index__") or value < 0):
        raise TypeError(f"`seed` must be an integer from 0 on, found {value!r}.")
    elif name == "cache_dir":
        return None if value is None else Path(value).expanduser()
    elif name == "device" and value is not None:
        kind, _, number = str(value).partition(":")
        if kind not in ("cpu", "cuda", "mps") or (number and not number.isdecimal()):
            raise ValueError(f"`device` must be None, 'cpu', 'cuda', 'cuda:N' or 'mps', found {value!r}.")
        return str(value)
    return int(value) if name == "seed" else value


def _show(level: int) -> None:
    """Show messages of the logger ``stampy`` from this level on; on stderr unless the program has its own handlers."""
    logger = logging.getLogger("stampy")
    logger.setLevel(level if level != logging.WARNING else logging.NOTSET)  # NOTSET: the program's level applies
    own = [handler for handler in logger.handlers if isinstance(handler, _Stderr)]
    if level < logging.WARNING and not own and not logger.hasHandlers():
        handler = _Stderr()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
    for handler in own if level >= logging.WARNING else ():
        logger.removeHandler(handler)


class _Stderr(logging.StreamHandler):
    """Handler of stampy, distinct from handlers that the program adds."""


settings = Settings()


class DefaultSeed(int):
    """Placeholder for ``settings.seed``, the default of `rng` and `seed`."""

    def __repr__(self) -> str:
        return "settings.seed"


DEFAULT_SEED: Final = DefaultSeed(0)
