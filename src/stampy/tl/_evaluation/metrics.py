"""Metrics of predicted labels, genes, domains and slides. Arrays only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stampy._section.neighbors import nearest

__all__ = [
    "auc",
    "balanced_accuracy",
    "coherence",
    "confusion",
    "domain_scores",
    "draws",
    "gene_scores",
    "gene_summary",
    "interval",
    "label_scores",
    "pearson",
    "summary_of_folds",
]

LABEL_METRICS = ("balanced_accuracy", "weighted_f1", "accuracy")
GENES = 256  # per block, since float64 copies of a whole transcriptome would take some GB
MAX_SILHOUETTE = 5000  # spots; the cost is quadratic, and a sample of this size is accurate to 0.01


def confusion(truth: np.ndarray, predicted: np.ndarray, k: int) -> np.ndarray:
    """Counts (k, k) int64, with true labels in rows and predictions in columns.

    >>> confusion(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(truth * k + predicted, minlength=k * k).reshape(k, k)


def label_scores(counts: np.ndarray) -> dict[str, float]:
    """Balanced accuracy, weighted F1 and accuracy from a confusion matrix (k, k).

    Balanced accuracy is the mean recall over the true classes; weighted F1 is weighted by the number of spots per
    class. Both as in scikit-learn.

    >>> label_scores(np.array([[1, 1], [0, 1]]))["balanced_accuracy"]
    0.75
    """
    hit, truth, called = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    occurs = truth > 0
    f1 = 2 * hit / np.maximum(truth + called, 1)
    return {
        "balanced_accuracy": float((hit[occurs] / truth[occurs]).mean()),
        "weighted_f1": float((f1 * truth).sum() / truth.sum()),
        "accuracy": float(hit.sum() / truth.sum()),
    }


def summary_of_folds(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per embedding and metric: `overall` (all held-out spots), and mean, std, min, max over folds."""
    rows = []
    for name, part in scores.groupby("embedding", sort=False):
        folds, overall = part[part["fold"] != "all"], part[part["fold"] == "all"].iloc[0]
        for metric in LABEL_METRICS:
            v = folds[metric].to_numpy()
            spread = {"mean": v.mean(), "std": v.std(), "min": v.min(), "max": v.max(), "n_folds": len(v)}
            rows.append({"embedding": name, "metric": metric, "overall": overall[metric], **spread})
    return pd.DataFrame(rows)


def pearson(measured: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Pearson's r of each column, (genes,); NaN if either is constant.

    >>> pearson(np.array([[1.0, 5], [2, 5], [3, 5]]), np.array([[2.0, 1], [4, 2], [6, 3]])).round(6).tolist()
    [1.0, nan]
    """
    a = measured - measured.mean(axis=0, dtype=np.float64)
    b = predicted - predicted.mean(axis=0, dtype=np.float64)
    sizes = [np.sqrt((v * v).mean(axis=0)) for v in (a, b)]
    # smaller differences are rounding errors of float32
    flat = np.any(
        [s <= 1e-6 * np.abs(v).max(axis=0) for s, v in zip(sizes, (measured, predicted), strict=True)], axis=0
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, np.nan, (a * b).mean(axis=0) / (sizes[0] * sizes[1]))


def gene_scores(
    measured: np.ndarray, predicted: np.ndarray, genes: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """MSE and Pearson's r of each gene over all spots ("pooled") and within each group of spots.

    Parameters
    ----------
    measured, predicted
        (n, genes).
    groups
        Level ("slide", "fold") -> (n,) name of each spot's group.

    Returns
    -------
    One row per gene, level and group: `gene`, `level`, `group`, `n_spots`, `mse`, `pearson`. Pooled r includes
    differences between slides and is usually higher; r within slides corresponds to the map of one slide.
    """
    parts: list[tuple[str, str, slice | np.ndarray]] = [("pooled", "all", slice(None))]
    for level, names in groups.items():
        labels = np.asarray(names)
        parts += [(level, str(group), labels == group) for group in pd.unique(labels)]
    tables = []
    for level, group, rows in parts:
        a, b = measured[rows], predicted[rows]
        columns = [slice(start, start + GENES) for start in range(0, a.shape[1], GENES)]
        mse = [((a[:, c] - b[:, c]) ** 2).mean(axis=0, dtype=np.float64) for c in columns]
        values = {"mse": np.concatenate(mse), "pearson": np.concatenate([pearson(a[:, c], b[:, c]) for c in columns])}
        tables.append(pd.DataFrame({"gene": list(genes), "level": level, "group": group, "n_spots": len(a), **values}))
    return pd.concat(tables, ignore_index=True)


def gene_summary(scores: pd.DataFrame) -> pd.DataFrame:
    """One row per level: means over genes, and standard deviations over groups and over genes.

    `mse` and `pearson`: mean over genes within each group, then over groups. `*_std`: standard deviation of the groups'
    means. `pearson_std_genes`: of the genes' means. `n_undefined`: number of undefined r (constant gene in a group),
    which are excluded.
    """
    rows = []
    for level, part in scores.groupby("level", sort=False):
        by_group = part.groupby("group", sort=False)[["mse", "pearson"]].mean()
        rows.append(
            {
                "level": level,
                "n_groups": len(by_group),
                "n_genes": part["gene"].nunique(),
                "mse": by_group["mse"].mean(),
                "mse_std": by_group["mse"].std(ddof=0),
                "pearson": by_group["pearson"].mean(),
                "pearson_std": by_group["pearson"].std(ddof=0),
                "pearson_std_genes": part.groupby("gene", sort=False)["pearson"].mean().std(ddof=0),
                "n_undefined": int(part["pearson"].isna().sum()),
            }
        )
    return pd.DataFrame(rows)


def coherence(domains: np.ndarray, xy: np.ndarray, sections: np.ndarray, k: int = 6) -> np.ndarray:
    """Fraction (n,) of each spot's `k` nearest spots in the same section that are in its domain.

    >>> coherence(np.array([0, 0, 1]), np.array([[0.0, 0], [1, 0], [2, 0]]), np.zeros(3), k=2).tolist()
    [0.5, 0.5, 0.0]
    """
    share = np.full(len(domains), np.nan)
    for section in np.unique(sections):
        rows = np.flatnonzero(sections == section)
        near = min(k, len(rows) - 1)
        if near:
            others = nearest(xy[rows], near)[1]
            share[rows] = (domains[rows][others] == domains[rows][:, None]).mean(axis=1)
    return share


def domain_scores(
    values: np.ndarray,
    domains: np.ndarray,
    *,
    labels: np.ndarray | None = None,
    xy: np.ndarray | None = None,
    sections: Sequence[str] | None = None,
    rng: int = 0,
) -> pd.DataFrame:
    """Quality of domains over all spots and in each section.

    Parameters
    ----------
    values
        (n, d) embedding, for the silhouette.
    domains, labels
        (n,) codes; a label of -1 is missing, and such spots are excluded from scores with labels.
    xy
        (n, 2) coordinates, for the coherence.
    sections
        (n,) section of each spot.

    Returns
    -------
    A row for "all" and, with several sections, one per section: `n_spots`, `n_domains`, `silhouette` (Euclidean, of a
    sample of at most 5,000 spots), `coherence` (mean fraction of the six nearest spots in the same domain),
    `coherence_by_chance` (for domains at random positions: the sum of squared fractions), `ari`, `nmi`, `ami`.
    """
    names = np.asarray(["all"] * len(domains) if sections is None else sections).astype(str)
    share = None if xy is None else coherence(domains, xy, names)
    groups = [("all", np.ones(len(domains), dtype=bool))]
    if sections is not None and len(pd.unique(names)) > 1:
        groups += [(name, names == name) for name in pd.unique(names)]
    rows = []
    for name, part in groups:
        shares = np.bincount(domains[part]) / part.sum()
        row = {"section": name, "n_spots": int(part.sum()), "n_domains": int((shares > 0).sum())}
        row["silhouette"] = silhouette(values[part], domains[part], rng)
        if share is not None:
            row |= {"coherence": float(np.nanmean(share[part])) if np.isfinite(share[part]).any() else np.nan}
            row["coherence_by_chance"] = float((shares**2).sum())
        if labels is not None:
            row |= _agreement(labels[part], domains[part])
        rows.append(row)
    return pd.DataFrame(rows)


def silhouette(values: np.ndarray, domains: np.ndarray, rng: int = 0) -> float:
    """Mean silhouette, Euclidean; NaN if undefined."""
    from sklearn.metrics import silhouette_score

    if len(values) > MAX_SILHOUETTE:
        some = np.random.default_rng(rng).choice(len(values), MAX_SILHOUETTE, replace=False)
        values, domains = values[some], domains[some]
    n = len(np.unique(domains))
    return float(silhouette_score(values, domains)) if 1 < n < len(values) else float("nan")


def _agreement(labels: np.ndarray, domains: np.ndarray) -> dict[str, float]:
    from sklearn import metrics

    known = labels >= 0
    pair = labels[known], domains[known]
    scores = {
        "ari": metrics.adjusted_rand_score,
        "nmi": metrics.normalized_mutual_info_score,
        "ami": metrics.adjusted_mutual_info_score,
    }
    return {"n_labelled": int(known.sum())} | {
        name: float(score(*pair)) if known.any() else float("nan") for name, score in scores.items()
    }


# Slides. Shapes: S slides, C classes, R draws of patients.


def auc(classes: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Area under the ROC curve; ties count half. For 3 or more classes, the mean of one versus rest.

    Parameters
    ----------
    classes
        (S,) int.
    scores
        (S, C), score of class c in column c.
    weights
        (R, S), weight of each slide; None: 1, with R = 1.

    Returns
    -------
    (R,), NaN if a class has no slide.

    Examples
    --------
    >>> scores = np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3], [0.2, 0.8]])
    >>> auc(np.array([0, 0, 1, 1]), scores).tolist()
    [0.75]
    """
    weights = np.ones((1, len(classes))) if weights is None else weights
    n_classes = scores.shape[1]
    columns = [1] if n_classes == 2 else range(n_classes)
    return np.mean([_binary(classes == c, scores[:, c], weights) for c in columns], axis=0)


def _binary(positive: np.ndarray, score: np.ndarray, weights: np.ndarray) -> np.ndarray:
    above = np.sign(score[positive][:, None] - score[~positive][None])
    won = (above + 1) / 2
    plus, minus = weights[:, positive], weights[:, ~positive]
    pairs = plus.sum(axis=1) * minus.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.einsum("rp,rp->r", plus, minus @ won.T) / np.where(pairs > 0, pairs, np.nan)


def balanced_accuracy(classes: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Mean recall over the classes (R,); NaN if a class has no slide."""
    weights = np.ones((1, len(classes))) if weights is None else weights
    right = scores.argmax(axis=1) == classes
    recalls = []
    for c in range(scores.shape[1]):
        total = weights[:, classes == c].sum(axis=1)
        recalls.append(weights[:, (classes == c) & right].sum(axis=1) / np.where(total > 0, total, np.nan))
    return np.mean(recalls, axis=0)


def draws(patients: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """Number of times each slide is drawn (n, S) when patients are drawn with replacement."""
    _, codes = np.unique(patients, return_inverse=True)
    size = int(codes.max()) + 1
    counts = random.multinomial(size, np.full(size, 1 / size), size=n)
    return counts[:, codes].astype(np.float64)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Central 95% interval of the draws with all classes."""
    known = values[~np.isnan(values)]
    if not known.size:
        return float("nan"), float("nan")
    low, high = np.percentile(known, [2.5, 97.5])
    return float(low), float(high)
