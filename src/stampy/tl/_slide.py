"""Predict slide labels from embedded tiles, cross-validated by patient."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from stampy import _checks, _keys
from stampy._settings import DEFAULT_SEED
from stampy._utils import check_device, device_of, generator, hidden, table_of

from ._evaluation import metrics
from ._results import Result, write_result

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._methods.slide_classifiers import Bag, Recipe

__all__ = ["slide"]

logger = logging.getLogger(__name__)

METHODS = ("abmil", "mean")


@dataclass(frozen=True, eq=False)
class Slides:
    """Slides with their tiles, patients and labels; S of them."""

    names: list[str]
    rows: list[np.ndarray | slice]  # rows of the table
    patients: np.ndarray  # (S,) text
    classes: np.ndarray  # (S,) int
    class_names: list[str]


def slide(
    adata: AnnData | SpatialData,
    label: str,
    *,
    use_rep: str = _keys.EMBEDDING,
    library_key: str = _keys.SLIDE,
    patient_key: str = _keys.PATIENT,
    methods: Sequence[str] = METHODS,
    n_folds: int = 5,
    hidden: int = 128,
    n_epochs: int = 60,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    max_tiles: int = 2048,
    n_bootstrap: int = 1000,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    device: str | torch.device | None = None,
    show_progress_bar: bool = True,
    table_key: str = _keys.TABLE,
    key_added: str = _keys.SLIDE_RESULT,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict slide labels from embedded tiles, by attention pooling and by the mean of the tiles.

    ``"abmil"`` is gated attention pooling (Ilse et al. 2018) over frozen embeddings, ``"mean"`` is logistic regression
    on the mean of a slide's tiles. Both are cross-validated by patient: all slides of a patient are in one fold, and
    folds are stratified by label. Every score and every attention comes from a model that was trained without the
    slides of that patient.

    Parameters
    ----------
    adata
        Tiles of many slides with an embedding, from `stampy.pp.slide_tiles` or `stampy.tl.embed_slide`, combined with
        ``anndata.concat(slides, uns_merge="unique")``.
    label
        Column of obs with the slides' labels, the same for all tiles of a slide.
    use_rep
        Key of obsm with the embeddings of the tiles: numpy, or dask if they do not fit into memory, for example
        ``dask.array.concatenate([dask.array.from_zarr(f"{store}/obsm/X_stamp") for store in stores])``.
    library_key, patient_key
        Columns of obs with the slide and the patient of each tile.
    methods
        ``"abmil"``, ``"mean"``, or both.
    n_folds
        Number of folds, at least 2; each label needs at least as many patients.
    hidden, n_epochs, learning_rate, weight_decay
        Size of the attention pooling, and settings of AdamW (cosine schedule). They are not tuned on the data.
    max_tiles
        Maximum number of tiles of a slide per training step, drawn again in each epoch; predictions use all tiles.
    n_bootstrap
        Number of bootstrap draws of patients for the intervals.
    rng
        Seed or generator for folds, initial weights, order and draws. On the CPU, the result is bit-identical for every
        number of threads.
    device
        Device for the attention pooling. None: CUDA if available, else an Apple GPU (MPS), else the CPU.
    show_progress_bar
        Show the folds.
    table_key
        Table of a SpatialData.
    key_added
        Key for the results.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``uns[key_added]["metrics"]``
        DataFrame, one row per method: ``auc`` (from the held-out probabilities of all slides; for more than two labels
        the mean of one versus rest), ``balanced_accuracy``, their 95 % intervals ``_low`` and ``_high`` over draws of
        patients, ``n_slides``, ``n_patients``.
    ``uns[key_added]["predictions"]``
        DataFrame, one row per slide: ``patient``, ``label``, ``fold``, and the held-out probability of each label as
        ``{method}_{label}``.
    ``obs[key_added + "_attention"]``
        float32, from ``"abmil"``: attention of the tile; 1 is the average of the slide.
    ``uns["stamp"][key_added]``
        Parameters.

    Raises
    ------
    KeyError
        If a key is missing.
    ValueError
        If labels or patients are missing or differ within a slide, a patient has two labels, there is only one label, a
        label has fewer patients than folds, or the embedding has NaN.

    Notes
    -----
    Attention shows which tiles the decision depends on, not which label a tile supports. The intervals describe the
    variation over test patients, not over training sets.

    Examples
    --------
    Twelve slides of 30 tiles; those with label 1 have 6 tiles that differ:

    >>> import anndata, numpy as np, pandas as pd, stampy
    >>> random = np.random.default_rng(0)
    >>> slides = np.repeat(np.arange(12), 30)
    >>> tumour = (slides % 2 == 1) & (np.tile(np.arange(30), 12) < 6)
    >>> obs = pd.DataFrame({"slide": slides, "patient": slides, "label": slides % 2}).astype(str)
    >>> obs.index = obs.index.astype(str)
    >>> adata = anndata.AnnData(obs=obs, obsm={"X_stamp": random.normal(size=(360, 16)) + 2.0 * tumour[:, None]})
    >>> stampy.tl.slide(adata, "label", n_folds=3, device="cpu", show_progress_bar=False)
    >>> float(adata.uns["stamp_slide"]["metrics"].loc["abmil", "auc"])
    1.0
    >>> attention = adata.obs["stamp_slide_attention"]
    >>> bool(attention[tumour].mean() > attention[~tumour].mean())
    True
    """
    sizes = {"n_folds": n_folds, "n_bootstrap": n_bootstrap, "hidden": hidden, "n_epochs": n_epochs,
             "max_tiles": max_tiles}  # fmt: skip
    _check_arguments(methods, sizes, learning_rate, weight_decay, device)
    table = table_of(adata, table_key)
    slides = labelled_slides(table, label, library_key, patient_key)
    _check_folds(slides, n_folds)
    bag = _bags(table, use_rep, slides)
    from ._methods.slide_classifiers import Recipe

    recipe = Recipe(
        hidden=hidden, n_epochs=n_epochs, learning_rate=learning_rate, weight_decay=weight_decay, max_tiles=max_tiles
    )
    where = device_of(device)
    random = generator(rng)
    folds = _folds(slides, n_folds, random)
    found, attention = _held_out(bag, slides, folds, methods, recipe, random, where, table.n_obs, show_progress_bar)
    tables = {
        "metrics": _metric_table(slides, found, n_bootstrap, random),
        "predictions": _predictions(slides, folds, found),
    }
    record = {"label": label, "classes": slides.class_names, "use_rep": use_rep,
              "library_key": library_key, "patient_key": patient_key, "n_folds": n_folds, "n_bootstrap": n_bootstrap,
              **asdict(recipe)}  # fmt: skip
    obs = {} if attention is None else {key_added + _keys.ATTENTION_SUFFIX: attention}
    result = Result(key_added, record, obs=obs, uns={key_added: tables})
    return write_result(adata, result, copy=copy, table_key=table_key)


def _check_arguments(
    methods: Sequence[str],
    sizes: Mapping[str, int],
    learning_rate: float,
    weight_decay: float,
    device: str | torch.device | None,
) -> None:
    if isinstance(methods, str) or not methods:
        raise ValueError(f"`methods` must be a list of some of {list(METHODS)}, found {methods!r}.")
    for method in methods:
        _checks.one_of("methods", method, METHODS)
    for name, size in sizes.items():
        _checks.at_least(name, size, 2 if name == "n_folds" else 1)
    _checks.positive("learning_rate", learning_rate)
    _checks.at_least("weight_decay", weight_decay, 0, integer=False)
    check_device(device)


def labelled_slides(table: AnnData, label: str, library_key: str, patient_key: str) -> Slides:
    """Slides of a table of tiles, checked, in the order of their names."""
    _checks.not_empty(table, genes=False)
    _checks.has_key(table.obs, label, slot="adata.obs", needs="`label` names the column with the slides' labels.")
    _checks.has_key(
        table.obs, patient_key, slot="adata.obs", needs="`patient_key` names the column with the patient of each slide."
    )
    codes, names = _checks.libraries(table, library_key)
    patients = _unique_values(table.obs[patient_key], codes, names, patient_key)
    labels = _unique_values(table.obs[label], codes, names, label)
    class_names = sorted(set(labels))
    if len(class_names) < 2:
        raise ValueError(f"All {len(names)} slides have the label {class_names[0]!r}; at least two labels are needed.")
    mixed = pd.Series(labels).groupby(patients).nunique()
    mixed = mixed.index[mixed > 1].tolist()
    if mixed:
        raise ValueError(
            f"{len(mixed)} patients have slides of different labels (first: {_checks.shortlist(mixed, 3)}). Folds are "
            "stratified by patient: give each patient one label, or remove these slides."
        )
    order = np.argsort(codes, kind="stable")
    ends = np.searchsorted(codes[order], np.arange(len(names) + 1))
    rows = [_as_slice(order[a:b]) for a, b in itertools.pairwise(ends)]
    return Slides(names, rows, patients, np.searchsorted(class_names, labels), class_names)


def _unique_values(column: pd.Series, codes: np.ndarray, names: list[str], key: str) -> np.ndarray:
    """The unique value of each slide (S,) as text."""
    missing = sorted({names[c] for c in codes[column.isna().to_numpy()]})
    if missing:
        raise ValueError(
            f"`adata.obs[{key!r}]` is missing for {len(missing)} of {len(names)} slides "
            f"(first: {_checks.shortlist(missing, 3)}). Fill it in, or remove these slides: `adata = "
            f"adata[adata.obs[{key!r}].notna()].copy()`."
        )
    pairs = pd.DataFrame({"slide": codes, "value": column.astype(str).to_numpy()}).drop_duplicates()
    several = pairs["slide"][pairs["slide"].duplicated()].tolist()
    if several:
        values = pairs["value"][pairs["slide"] == several[0]].tolist()
        raise ValueError(
            f"`adata.obs[{key!r}]` must be the same for all tiles of a slide, found {_checks.shortlist(values)} on "
            f"slide {names[several[0]]!r}."
        )
    return pairs.sort_values("slide")["value"].to_numpy(dtype=str)


def _as_slice(rows: np.ndarray) -> np.ndarray | slice:
    """Convert consecutive rows to a slice, which avoids a copy."""
    whole = rows[-1] - rows[0] + 1 == len(rows)
    return slice(int(rows[0]), int(rows[-1]) + 1) if whole else rows


def _check_folds(slides: Slides, n_folds: int) -> None:
    patients = pd.Series(slides.classes).groupby(slides.patients).first()
    counts = {name: int((patients == c).sum()) for c, name in enumerate(slides.class_names)}
    few = {name: n for name, n in counts.items() if n < n_folds}
    if few:
        raise ValueError(
            f"Each label needs at least as many patients as there are folds ({n_folds}), found {few}. "
            f"Choose `n_folds={max(2, min(counts.values()))}` or less, or remove rare labels."
        )


def _bags(table: AnnData, use_rep: str, slides: Slides) -> Bag:
    """Function that reads the tiles of a slide; ValueError for NaN before any training."""
    _checks.has_key(table.obsm, use_rep, slot="adata.obsm", needs="`use_rep` names the tiles' embedding.")
    values = table.obsm[use_rep]

    def bag(slide: int) -> np.ndarray:
        part = values[slides.rows[slide]]
        return np.asarray(part.compute() if hasattr(part, "compute") else part)

    for i, name in enumerate(slides.names):
        bad = int((~np.isfinite(bag(i)).all(axis=1)).sum())
        if bad:
            raise ValueError(f"`adata.obsm[{use_rep!r}]` has NaN or infinite values in {bad} tiles of slide {name!r}.")
    return bag


def _folds(slides: Slides, n_folds: int, random: np.random.Generator) -> np.ndarray:
    """Fold of each slide (S,): by patient, stratified by label."""
    from sklearn.model_selection import StratifiedKFold

    patients, first, code = np.unique(slides.patients, return_index=True, return_inverse=True)
    split = StratifiedKFold(n_folds, shuffle=True, random_state=int(random.integers(2**31)))
    fold = np.empty(len(patients), dtype=np.int64)
    for i, (_, held) in enumerate(split.split(patients, slides.classes[first])):
        fold[held] = i
    return fold[code]


def _held_out(bag: Bag, slides: Slides, folds: np.ndarray, methods: Sequence[str], recipe: Recipe,
              random: np.random.Generator, device: torch.device, n_tiles: int,
              progress: bool) -> tuple[dict[str, np.ndarray], np.ndarray | None]:  # fmt: skip
    """Probabilities (S, C) by method, and the attention (n,), each from the model trained without the slide's fold."""
    from ._methods.slide_classifiers import AttentionPooling, MeanPooling, one_thread

    found = {m: np.empty((len(folds), len(slides.class_names))) for m in methods}
    attention = np.empty(n_tiles, dtype=np.float32) if "abmil" in methods else None
    means = np.array([bag(s).mean(axis=0) for s in range(len(folds))]) if "mean" in methods else None
    for fold in tqdm(np.unique(folds), desc="folds", disable=hidden(progress)):
        held, seen = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        if means is not None:
            found["mean"][held] = MeanPooling().fit(means[seen], slides.classes[seen]).predict(means[held])
        if attention is not None:
            with one_thread(device):
                pooling = AttentionPooling(len(slides.class_names), recipe, random, device)
                pooling.fit(bag, seen, slides.classes[seen])
                for s in held:
                    found["abmil"][s], weights = pooling.predict(bag(int(s)))
                    attention[slides.rows[s]] = weights * len(weights)
    return found, attention


def _metric_table(
    slides: Slides, found: dict[str, np.ndarray], n_bootstrap: int, random: np.random.Generator
) -> pd.DataFrame:
    weights = metrics.draws(slides.patients, n_bootstrap, random)
    rows: dict[str, dict[str, Any]] = {}
    for method, scores in found.items():
        row: dict[str, Any] = {}
        for name, measure in {"auc": metrics.auc, "balanced_accuracy": metrics.balanced_accuracy}.items():
            row[name] = float(measure(slides.classes, scores)[0])
            row[f"{name}_low"], row[f"{name}_high"] = metrics.interval(measure(slides.classes, scores, weights))
        rows[method] = {**row, "n_slides": len(slides.names), "n_patients": len(np.unique(slides.patients))}
    return pd.DataFrame.from_dict(rows, orient="index")


def _predictions(slides: Slides, folds: np.ndarray, found: dict[str, np.ndarray]) -> pd.DataFrame:
    labels = pd.Categorical.from_codes(slides.classes, slides.class_names)
    table = pd.DataFrame({"patient": slides.patients, "label": labels, "fold": folds}, index=slides.names)
    for method, scores in found.items():
        for c, name in enumerate(slides.class_names):
            table[f"{method}_{name}"] = scores[:, c]
    return table
