"""Names of the packaged configs and of the tasks with their options, available without importing pandas or torch."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from stampy import _checks
from stampy._field_names import known_field

__all__ = ["FIELDS", "TABLES", "TASKS", "TaskKind", "config_path", "configs", "raw_config"]

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
    """Path of a config: a packaged one by name, or an existing .json or .toml file.

    Raises
    ------
    ValueError
        No packaged config has this name (similar names are given), or the file is neither .json nor .toml.
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
    """Contents of a config file; only its top-level names are checked.

    Raises
    ------
    ValueError
        The file is not a JSON or TOML object, or has an unknown field (the nearest name is given).
    """
    try:
        raw = tomllib.loads(path.read_text("utf-8")) if path.suffix == ".toml" else json.loads(path.read_text("utf-8"))
    except (json.JSONDecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} is not a valid {path.suffix[1:].upper()}: {error}.") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{str(path)!r} must contain an object with datasets, systems and tasks.")
    for key in raw:
        known_field(key, FIELDS, where=repr(str(path)))
    return raw


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """Fixed properties of a task.

    Parameters
    ----------
    about
        Description in tables.
    metrics
        Metric -> heading.
    shown
        Metrics shown in tables.
    needs
        Required parts of a section: ``"labels"``, ``"counts"``.
    jointly
        Whether sections of a data set are evaluated together if its folds require it; otherwise each separately.
    lower_is_better
        Metrics for which lower is better.
    chance
        Name of the chance row in tables.
    options, choices
        Options with their defaults, and the allowed values of some.
    """

    about: str
    metrics: Mapping[str, str]
    shown: tuple[str, ...]
    needs: tuple[str, ...] = ()
    jointly: bool = False
    lower_is_better: tuple[str, ...] = ()
    chance: str = "chance"
    options: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


TASKS: dict[str, TaskKind] = {
    "probe": TaskKind(
        about="linear probe of the labels",
        metrics={"balanced_accuracy": "balanced accuracy", "weighted_f1": "weighted F1", "accuracy": "accuracy"},
        shown=("balanced_accuracy", "weighted_f1"), needs=("labels",), jointly=True,
        options={"method": "logistic"}, choices={"method": ("logistic", "ridge")},
    ),
    "domains": TaskKind(
        about="clusters, with the number of labels",
        metrics={"ari": "ARI", "nmi": "NMI", "ami": "AMI", "silhouette": "silhouette", "coherence": "coherence"},
        shown=("ari", "nmi"), needs=("labels",), options={"methods": ["kmeans", "leiden"]},
        choices={"methods": ("kmeans", "leiden", "gmm")},
    ),
    "retrieve": TaskKind(
        about="retrieval of a spot's own counterpart among the first k of its section",
        metrics={"recall@1": "recall@1", "recall@5": "recall@5", "recall@10": "recall@10"},
        shown=("recall@1", "recall@5", "recall@10"), needs=("counts",),
        options={"directions": ["image to gene", "gene to image"]},
        choices={"directions": ("image to gene", "gene to image")},
    ),
    "expression": TaskKind(
        about="genes predicted from the image",
        metrics={"pearson": "r", "pearson_pooled": "r, pooled", "mse": "MSE"},
        shown=("pearson", "mse"), needs=("counts",), jointly=True, lower_is_better=("mse",),
        options={"methods": ["ridge"], "n_top_genes": 50, "transform": "log1p_cp10k"},
        choices={"methods": ("ridge", "linear", "hest", "knn"), "transform": ("log1p_cp10k", "log1p", "none")},
    ),
    "masked": TaskKind(
        about="masked genes, predicted by the gene encoder",
        metrics={"top1": "top-1", "top10": "top-10", "majority_top1": "most frequent, top-1",
                 "majority_top10": "most frequent, top-10"},
        shown=("top1", "top10", "majority_top1", "majority_top10"), needs=("counts",),
        chance="most frequent of those that the spot does not show",
        options={"fraction": 0.15, "n_spots": 500},
    ),
    "slide": TaskKind(
        about="labels of whole slides, cross-validated by patient",
        metrics={"auc": "AUC", "balanced_accuracy": "balanced accuracy"}, shown=("auc", "balanced_accuracy"),
        options={"methods": ["abmil", "mean"]},
        choices={"methods": ("abmil", "mean")},
    ),
}  # fmt: skip
