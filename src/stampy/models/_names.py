"""Names that `load` knows, checked without importing torch, so that a wrong name fails at once."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path

from stampy.models._systems.catalogue import CARDS, split_name

__all__ = ["check_name", "packaged", "unknown_model"]


def packaged() -> list[str]:
    """Names of the models that come with the package.

    Examples
    --------
    >>> "stampy-mini" in packaged()
    True
    """
    folder = files("stampy") / "models" / "weights"
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def check_name(name: str) -> None:
    """Raise ValueError or FileNotFoundError for a name that `stampy.models.load` does not know.

    >>> check_name("stampy-mini")
    """
    if name == "stamp" or name.startswith(("stamp:", "hf-hub:")) or name in packaged():
        return
    if split_name(name) is None and not Path(name).expanduser().is_dir():
        raise unknown_model(name)


def unknown_model(name: str) -> Exception:
    """The error for an unknown name; near names are given."""
    known = [*dict.fromkeys((*packaged(), "stamp", *CARDS))]
    if "/" in name or name.startswith((".", "~")):
        return FileNotFoundError(f"No folder of weights at {name!r}. Packaged models: {known}.")
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.3)
    hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    return ValueError(
        f"Unknown model {name!r}.{hint} Known: {known}, a folder of weights, or 'hf-hub:org/name@revision'."
    )
