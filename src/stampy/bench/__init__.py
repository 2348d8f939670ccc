"""The tables: data sets x systems x tasks, each by the functions of `stampy.tl`, as one tidy DataFrame."""

from ._config import Config, DataSet, Reported, Section, System, Task, configs, read_config
from ._export import to_html, to_latex, to_markdown
from ._run import run
from ._table import read_results, skipped, summary

__all__ = [
    "Config",
    "DataSet",
    "Reported",
    "Section",
    "System",
    "Task",
    "configs",
    "read_config",
    "read_results",
    "run",
    "skipped",
    "summary",
    "to_html",
    "to_latex",
    "to_markdown",
]
