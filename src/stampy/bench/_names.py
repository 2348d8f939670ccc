"""Names and paths of the packaged configs, found without importing pandas or torch."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from stampy import _checks

__all__ = ["TABLES", "config_path", "configs"]

PACKAGED = ".json"
TABLES = ("dlpfc", "hbc", "her2", "psc", "hhk", "tcga-luad")  # the tables of the paper


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
    """The file of a config: a packaged one by its name, else the path of an existing .json or .toml.

    Raises
    ------
    ValueError
        No packaged config has that name (the nearest are given), or the file is neither .json nor .toml.
    FileNotFoundError
        There is no such file.
    """
    packaged = configs().get(str(source))
    if packaged is not None:
        return packaged
    if Path(source).suffix not in (".json", ".toml"):
        _checks.one_of("config", str(source), [*configs(), "PATH.json", "PATH.toml"])
    return _checks.existing(source, what="config", suffixes=(".json", ".toml"))
