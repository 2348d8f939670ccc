"""Names and paths of the packaged configs, found without importing pandas or torch."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path

from stampy import _checks

__all__ = ["FIELDS", "TABLES", "config_path", "configs", "raw_config"]

PACKAGED = ".json"
FIELDS = ("name", "about", "datasets", "systems", "tasks", "seeds", "reported")
TABLES = ("dlpfc", "hbc", "her2", "psc", "hhk", "tcga-luad")  # the tables of the paper


def configs() -> dict[str, Path]:
    """List the configs that come with the package, by name.

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


def raw_config(path: Path) -> dict[str, object]:
    """What a config's file holds, of which only the names of its first level are checked.

    Raises
    ------
    ValueError
        The file is no JSON or TOML, no object, or has a field of another name (the nearest is given).
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8")) if path.suffix == ".toml" else json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is no valid {path.suffix[1:].upper()}: {error}.") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{str(path)!r} must hold an object with datasets, systems and tasks.")
    for key in raw:
        _checks.one_of(f"field of the config {str(path)!r}", key, FIELDS)
    return raw
