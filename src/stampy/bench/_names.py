"""The configs of the package by name, and whether a name is one: answered without pandas or torch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from stampy import _checks

__all__ = ["TABLES", "config_path", "configs"]

PACKAGED = ".json"
TABLES = ("dlpfc", "hbc", "her2", "psc", "hhk", "tcga-luad")  # those of the paper


def configs() -> dict[str, Path]:
    """The configs that come with the package, by name.

    Examples
    --------
    >>> import stampy
    >>> sorted(stampy.bench.configs())
    ['dlpfc', 'hbc', 'her2', 'hhk', 'psc', 'tcga-luad', 'toy']
    """
    folder = Path(str(files("stampy.bench") / "configs"))
    return {path.stem: path for path in sorted(folder.glob(f"*{PACKAGED}"))}


def config_path(source: str | Path) -> Path:
    """The file of a config: a packaged one by its name, else a .json or .toml that must be there.

    Raises
    ------
    ValueError
        The name is none of the package's (the nearest are given), or the file is of another kind.
    FileNotFoundError
        There is no such file.
    """
    packaged = configs().get(str(source))
    if packaged is not None:
        return packaged
    if Path(source).suffix not in (".json", ".toml"):
        _checks.one_of("config", str(source), [*configs(), "PATH.json", "PATH.toml"])
    return _checks.existing(source, what="config", suffixes=(".json", ".toml"))
