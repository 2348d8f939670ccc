"""The tasks by name: their options, what they measure, and how it is called in tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["TASKS", "TaskKind"]


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """What is fixed about a task.

    Parameters
    ----------
    about
        Description in tables.
    metrics
        Metric -> its heading.
    shown
        Metrics that tables show.
    needs
        ``"labels"``, ``"counts"``: what a section must have.
    jointly
        Whether the sections of a data set are judged together where its folds say so; else each by itself.
    lower_is_better
        Metrics for which lower is better.
    chance
        What the row of chance is called in tables.
    options, choices
        Options with their defaults, and what is allowed for some.
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
        about="clusters, as many as there are labels",
        metrics={"ari": "ARI", "nmi": "NMI", "ami": "AMI", "silhouette": "silhouette", "coherence": "coherence"},
        shown=("ari", "nmi"), needs=("labels",), options={"methods": ["kmeans", "leiden"]},
        choices={"methods": ("kmeans", "leiden", "gmm")},
    ),
    "retrieve": TaskKind(
        about="a spot's own counterpart among the first k of its section",
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
        about="masked genes, predicted by the gene tower",
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
