"""Imports on first use without garbage collection, which would search a million new objects that are all kept."""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType

__all__ = ["attribute", "collection_paused", "module"]


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause the garbage collector during the block; heavy imports take a sixth less time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def module(name: str, package: str | None = None) -> ModuleType:
    """Import a module, with the collector paused; names that start with a dot are relative to `package`."""
    with collection_paused():
        return importlib.import_module(name, package)


def attribute(
    package: str, modules: Mapping[str, str], name: str, *, renamed: Mapping[str, str] | None = None
) -> object:
    """The public `name` of a package (PEP 562), imported from its module on first access and kept in the package.

    `modules` maps each name to the module that defines it (relative to the package if it starts with a dot), `renamed`
    maps deprecated names to new ones.
    """
    if renamed is not None and name in renamed:
        from stampy import _checks

        _checks.warn(f"`{package}.{name}` is deprecated; its new name is `{package}.{renamed[name]}`.")
        name = renamed[name]
    if name not in modules:
        raise AttributeError(f"module {package!r} has no attribute {name!r}{_nearest(name, modules)}")
    value = getattr(module(modules[name], package), name)
    setattr(sys.modules[package], name, value)
    return value


def _nearest(name: str, modules: Mapping[str, str]) -> str:
    """Hint at the nearest public name, which notebooks do not add themselves."""
    if name.startswith("_"):  # asked for by tools, often
        return ""
    import difflib

    near = difflib.get_close_matches(name, modules, n=1)
    return f". Did you mean {near[0]!r}?" if near else ""
