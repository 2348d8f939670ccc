"""Linear probe: predict labels from an embedding with a linear model, each spot held out once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stampy import _checks, _keys
from stampy._labels import known_labels
from stampy._section.section import library_key_of, places_of
from stampy._settings import DEFAULT_SEED
from stampy._utils import table_of

from ._embedding.spaces import check_one_space
from ._evaluation.folds import Scheme, check_folds, folds_of
from ._evaluation.metrics import confusion, label_scores, summary_of_folds
from ._methods.linear_models import Scaler, balanced_weights, logistic, rotation, solve_ridge
from ._results import Result, write_result

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["probe", "probe_predictions", "probe_scores"]

METHODS = ("logistic", "ridge")
LOGISTIC_PENALTY = 10.0  # C = 0.1 in scikit-learn
RIDGE_PENALTY = 10.0


def probe_predictions(
    values: np.ndarray,
    codes: np.ndarray,
    folds: np.ndarray,
    *,
    method: Literal["logistic", "ridge"] = "logistic",
    penalty: float | None = None,
) -> np.ndarray:
    """Predict every spot's label from the spots of the other folds.

    Columns are standardised by the training spots, and classes have equal weight.

    Parameters
    ----------
    values
        (n, d) embedding.
    codes
        (n,) labels as 0 to k - 1.
    folds
        (n,) fold of each spot.
    method
        ``"logistic"``: multinomial logistic regression. ``"ridge"``: one-vs-rest least squares, all classes in one
        closed-form solve.
    penalty
        Weight of the squared coefficients; None: 10 (for the logistic, that is scikit-learn's C = 0.1).

    Returns
    -------
    (n,) predicted labels.

    Examples
    --------
    >>> values = np.repeat([[0.0, 1.0], [1.0, 0.0]], 10, axis=0)
    >>> codes = np.repeat([0, 1], 10)
    >>> (probe_predictions(values, codes, np.arange(20) % 2) == codes).all()
    np.True_
    """
    _checks.one_of("method", method, METHODS)
    if penalty is None:
        penalty = LOGISTIC_PENALTY if method == "logistic" else RIDGE_PENALTY
    _checks.positive("penalty", penalty)
    axes = rotation(values) if method == "logistic" else None
    predicted = np.empty(len(codes), dtype=np.int64)
    for fold in np.unique(folds):
        test = folds == fold
        present, y = np.unique(codes[~test], return_inverse=True)
        scaler = Scaler(values[~test])
        x, weights = scaler(values[~test]), balanced_weights(y, len(present))
        if method == "logistic":
            w, b = logistic(x, y, len(present), penalty, weights, axes)
        else:
            w, b = solve_ridge(x, np.eye(len(present))[y], penalty, weights)
        predicted[test] = present[(scaler(values[test]) @ w + b).argmax(axis=1)]
    return predicted


def probe_scores(
    codes: np.ndarray, predicted: np.ndarray, folds: np.ndarray, *, names: Sequence[str] | None = None
) -> pd.DataFrame:
    """Scores of held-out predictions in each fold and over all spots.

    Returns
    -------
    One row per fold, and "all": `fold`, `n_train` (for "all" the mean over folds), `n_test`, `n_unseen` (spots with a
    label that no training spot has; they count as errors), `balanced_accuracy` (over the labels in the fold),
    `weighted_f1`, `accuracy`.
    """
    k = int(max(codes.max(), predicted.max())) + 1
    rows, all_unseen = [], 0
    for fold in np.unique(folds):
        test = folds == fold
        unseen = int((~np.isin(codes[test], codes[~test])).sum())
        all_unseen += unseen
        name = str(fold) if names is None else names[fold]
        counts = {"fold": name, "n_train": int((~test).sum()), "n_test": int(test.sum()), "n_unseen": unseen}
        rows.append(counts | label_scores(confusion(codes[test], predicted[test], k)))
    mean_train = round(float(np.mean([row["n_train"] for row in rows])))
    whole = {"fold": "all", "n_train": mean_train, "n_test": len(codes), "n_unseen": all_unseen}
    return pd.DataFrame([*rows, whole | label_scores(confusion(codes, predicted, k))])


def probe(
    adata: AnnData | SpatialData,
    labels: str,
    *,
    use_rep: str | Sequence[str] = _keys.EMBEDDING,
    folds: Scheme | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    n_folds: int = 5,
    method: Literal["logistic", "ridge"] = "logistic",
    penalty: float | None = None,
    table_key: str = _keys.TABLE,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    key_added: str = _keys.PROBE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict labels from one or several embeddings with a linear model, every spot held out once.

    All embeddings are scored on the same spots and folds. Spots without a label are excluded: missing values, values
    such as "NA", and words such as "none", "unknown" and "undetermined". A warning states how many spots have such a
    word.

    Parameters
    ----------
    adata
        Section(s) with embeddings in obsm.
    labels
        Column of obs.
    use_rep
        Key of obsm, or several.
    folds
        How spots are held out.

        - ``"section"``: entire sections (`library_key`); ``"patient"``: all sections of a patient (`patient_key`)
        - ``"blocks"``: compact pieces of tissue, five per fold, in every section
        - ``"random"``: single spots. The neighbours of a spot are then in the training set, and the scores are too
          high; do not report them

        None: ``"patient"`` if `patient_key` is given, otherwise ``"section"`` if `library_key` names several sections,
        otherwise ``"blocks"``.
    library_key, patient_key
        Columns of obs that name the section and the patient of each spot.
    n_folds
        Number of folds. If there are more sections or patients, several are held out together.
    method
        ``"logistic"``: multinomial logistic regression. ``"ridge"``: least squares on all classes together, in closed
        form, several times faster. Both use standardised columns and weight classes equally.
    penalty
        Weight of the squared coefficients; None: 10 (C = 0.1 for logistic regression).
    table_key
        Table of a SpatialData.
    rng
        Seed or generator for blocks and random folds.
    key_added
        Key for the results.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``obs[key_added + "_" + use_rep]``
        Categorical, the label predicted while the spot was held out; missing for spots without a label.
    ``obs[key_added + "_fold"]``
        int32, the fold in which the spot was held out, −1 without a label.
    ``uns["stamp"][key_added]``
        `scores` (per embedding and fold; fold "all" is all held-out spots together), `summary` (per embedding and
        metric: overall, and mean, std, min, max over folds), `confusion` (embedding → (k, k) counts, truth in rows),
        `classes`, `embeddings`, and the parameters.

    Raises
    ------
    KeyError
        A column or embedding is missing.
    ValueError
        Fewer than two labels, too few spots, sections or patients for the folds, a fold whose labels do not occur in
        the other folds, or NaN in an embedding.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=150, image=False)
    >>> adata.obsm["X_counts"] = adata.X[:, :50].toarray()
    >>> stampy.tl.probe(adata, "domain", use_rep="X_counts")
    >>> adata.uns["stamp"]["probe"]["scores"]["fold"].tolist()
    ['0', '1', '2', '3', '4', 'all']
    >>> adata.obs["probe_X_counts"].cat.categories.tolist()
    ['D1', 'D2', 'D3', 'D4']
    """
    table = table_of(adata, table_key)
    _checks.one_of("method", method, METHODS)
    if penalty is not None:
        _checks.positive("penalty", penalty)
    reps = [use_rep] if isinstance(use_rep, str) else list(use_rep)
    _checks.has_key(table.obs, labels, slot="adata.obs", needs="`labels` names the column to predict.")
    codes, classes = known_labels(table.obs[labels], name=f"adata.obs['{labels}']")
    known = codes >= 0
    _checks.two_labels(classes, int(known.sum()), len(codes), key=labels)
    values = {rep: _checks.embedding(table, rep)[known] for rep in reps}
    for rep in reps:
        check_one_space(table, rep)
    if not values:
        raise ValueError("`use_rep` is empty. Name an embedding in `adata.obsm`, or several.")
    library_key = library_key_of(adata, library_key, table_key)
    fold, names, scheme = folds_in(
        adata, known, folds, n_folds=n_folds, library_key=library_key, patient_key=patient_key, rng=rng,
        table_key=table_key,
    )  # fmt: skip
    _check_overlap(codes[known], fold, names, classes)
    tables, matrices, columns = [], {}, {}
    for rep, x in values.items():
        predicted = probe_predictions(x, codes[known], fold, method=method, penalty=penalty)
        found = probe_scores(codes[known], predicted, fold, names=names)
        found.insert(0, "embedding", rep)
        tables.append(found)
        matrices[rep] = confusion(codes[known], predicted, len(classes))
        columns[rep] = spread(predicted, known, -1)
    scores = pd.concat(tables, ignore_index=True)
    scores.index = scores.index.map(str)
    record = {
        "label_key": labels, "classes": np.array(classes, dtype=object),
        "embeddings": np.array(reps, dtype=object), "folds": scheme, "n_folds": len(names), "method": method,
        "n_spots": int(known.sum()), "n_unlabelled": int((~known).sum()), "scores": scores,
        "summary": with_text_index(summary_of_folds(scores)), "confusion": matrices,
    }  # fmt: skip
    obs = {f"{key_added}_{rep}": pd.Categorical.from_codes(column, classes) for rep, column in columns.items()}
    obs[f"{key_added}{_keys.FOLD_SUFFIX}"] = spread(fold, known, -1).astype(np.int32)
    return write_result(adata, Result(key_added, record, obs=obs), copy=copy, table_key=table_key)


def folds_in(
    adata: AnnData | SpatialData,
    use: np.ndarray,
    folds: Scheme | None,
    *,
    n_folds: int,
    library_key: str | None,
    patient_key: str | None,
    rng: int | np.random.Generator | None,
    table_key: str = _keys.TABLE,
) -> tuple[np.ndarray, list[str], str]:
    """Folds of the spots in `use` (bool), their names, and the selected scheme."""
    table = table_of(adata, table_key)
    sections, section_names = _checks.libraries(table, library_key)
    named = np.array(section_names, dtype=object)[sections][use] if library_key else None
    patients = None
    if patient_key is not None:
        codes, names = _checks.libraries(table, patient_key)
        patients = np.array(names, dtype=object)[codes][use]
    if folds is None:
        several = named is not None and len(pd.unique(named)) > 1
        folds = "patient" if patients is not None else "section" if several else "blocks"
    xy = None
    check_folds(folds, int(use.sum()), n_folds)
    if folds == "blocks":
        xy = places_of(adata, library_key=library_key, table_key=table_key).xy[use]
    found, names = folds_of(
        folds, int(use.sum()), n_folds=n_folds, xy=xy, sections=named, patients=patients, rng=rng
    )  # fmt: skip
    return found, names, folds


def _check_overlap(codes: np.ndarray, folds: np.ndarray, names: Sequence[str], classes: Sequence[str]) -> None:
    """Raise if the labels of a fold do not occur in other folds, or only one label remains without it."""
    for fold in np.unique(folds):
        inside, outside = np.unique(codes[folds == fold]), np.unique(codes[folds != fold])
        held, rest = ([classes[c] for c in part] for part in (inside, outside))
        if not np.isin(inside, outside).any():
            raise ValueError(
                f"Fold {names[fold]!r} has the labels {_checks.shortlist(held)}, none of which occurs outside of it "
                f"({_checks.shortlist(rest)}). Are the labels spelled in the same way in all sections? Omit it, or use "
                "folds='blocks'."
            )
        if len(outside) < 2:
            raise ValueError(
                f"Without fold {names[fold]!r} only one label remains, {rest[0]!r}; so no classifier can be trained. "
                "Use other folds, or more sections."
            )


def spread(values: np.ndarray, rows: np.ndarray, fill: object) -> np.ndarray:
    """`values` at `rows` (bool), `fill` elsewhere."""
    full = np.full((len(rows), *values.shape[1:]), fill, dtype=values.dtype)
    full[rows] = values
    return full


def with_text_index(table: pd.DataFrame) -> pd.DataFrame:
    """The table with text row names, as required for AnnData's files."""
    return table.set_axis(table.index.map(str), axis=0)
