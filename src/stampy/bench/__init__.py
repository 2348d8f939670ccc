"""Benchmarks: data sets x systems x tasks, computed with the functions of `stampy.tl`, as one tidy DataFrame."""

from typing import TYPE_CHECKING, Any

from stampy import _imports

if TYPE_CHECKING:
    from ._config import Config, DataSet, Reported, SectionConfig, System, Task, read_config
    from ._config_names import configs
    from ._export import to_html, to_latex, to_markdown
    from ._paper.pieces import Piece, pieces
    from ._paper.protocol import comparison, protocol
    from ._run import run
    from ._table import read_results, skipped, summary

__all__ = [
    "Config",
    "DataSet",
    "Piece",
    "Reported",
    "SectionConfig",
    "System",
    "Task",
    "comparison",
    "configs",
    "pieces",
    "protocol",
    "read_config",
    "read_results",
    "run",
    "skipped",
    "summary",
    "to_html",
    "to_latex",
    "to_markdown",
]

_WHERE = {
    "_config": ("Config", "DataSet", "Reported", "SectionConfig", "System", "Task", "read_config"),
    "_export": ("to_html", "to_latex", "to_markdown"),
    "_config_names": ("configs",),
    "_paper.pieces": ("Piece", "pieces"),
    "_paper.protocol": ("comparison", "protocol"),
    "_run": ("run",),
    "_table": ("read_results", "skipped", "summary"),
}
_MODULES = {name: f".{module}" for module, names in _WHERE.items() for name in names}


def __getattr__(name: str) -> Any:
    # PEP 562: errors for unknown configs and missing files come before pandas and torch are imported.
    return _imports.attribute(__name__, _MODULES, name, renamed={"Section": "SectionConfig"})


def __dir__() -> list[str]:
    return __all__
