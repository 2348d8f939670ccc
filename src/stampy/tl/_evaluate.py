"""Label-free evaluation of embeddings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np
import pandas as pd
from scipy import sparse

import stampy
from stampy import _checks, _keys
from stampy._section.neighbors import graph
from stampy._section.section import library_key_of, places_of
from stampy._settings import DEFAULT_SEED
from stampy._utils import generator, table_of
from stampy.pp._counts import canonical, checked_rows, counts_name, counts_of
from stampy.pp._genes.annotation import gene_columns

from ._embedding.context import N_NEIGHBORS
from ._embedding.encoders import loaded_model
from ._embedding.spaces import check_one_space
from ._evaluation.folds import int_seed
from ._evaluation.label_free import BASELINES, MEASURES, JudgedSpots, scores_of_split
from ._evaluation.recompute import SAME, Recomputed, StoredVectors, job_of
from ._evaluation.verdict import about_centring, verdict_of
from ._results import Result, write_result

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData
    from spatialdata import SpatialData

    from ._embedding.encoders import Encoder
    from ._evaluation.label_free import Embedder, Job, Scores

__all__ = ["Judgement", "evaluate", "judged"]

logger = logging.getLogger(__name__)

SUBSET = "evaluate before you take a subset of the spots, or embed the subset again"
BASE = (
    "pass the base model (`model=`), which is adapted to each half. If the spots of the adaptation are others, pass a "
    "function that embeds a table by the adapted model (`keys={'name': function}`)"
)
LEAST_INNER = 20  # spots, for a comparison without the edges of a piece


class Judgement(TypedDict):
    """Results of `evaluate` in uns."""

    scores: pd.DataFrame
    verdict: str
    parameters: Mapping[str, object]


def evaluate(
    adata: AnnData | SpatialData,
    keys: str | Sequence[str] | Mapping[str, Embedder] | None = None,
    *,
    library_key: str | None = None,
    layer: str | None = None,
    model: str | Path | Encoder | None = None,
    n_splits: int = 3,
    n_genes: int = 200,
    max_spots: int | None = 10_000,
    table_key: str = _keys.TABLE,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    key_added: str = _keys.EVALUATE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Evaluate embeddings on this section without labels, compared with simple baselines.

    The molecules of every spot are split at random into two halves. One half is embedded, and variable genes of the
    other half are predicted from the embedding by ridge regression, with compact regions as folds. The noise of the
    halves is independent, so only information about the tissue improves the prediction. A useful embedding predicts
    better than principal components of the section itself, and better than the position of the spots alone. A
    graph-based method may have learned the position, which increases `neighbors` but not `own`.

    Parameters
    ----------
    adata
        Section(s) with raw counts, ``obsm["spatial"]`` and embeddings.
    keys
        Embeddings to evaluate. None: every embedding that `stampy.tl.embed` wrote. A key of obsm, or several. Or a dict
        of functions by name that take a table of counts like `adata` and return its embedding (n, d), for a fair
        evaluation of other methods.
    library_key
        Column of obs that names the section of each spot.
    layer
        Layer with raw counts; None: ``adata.X``.
    model
        Model of embeddings that stampy cannot load by the name in their record: a folder of weights, an address on the
        hub, or a loaded model, such as one of your own or of `stampy.train.adapt`. A model that was adapted to these
        spots is adapted again to each half, since it has seen all molecules; if its base is your own model, pass that.
        Paths and addresses in records are not followed. None: baselines and models that stampy knows by name.
    n_splits
        Number of random splits of the molecules. Each half predicts the other once; the spread is over splits.
    n_genes
        Number of genes to predict: the genes that vary most beyond chance.
    max_spots
        Maximum number of spots. In a larger table, a compact piece of each section is evaluated, with a warning. None:
        all.
    table_key
        Table of a SpatialData.
    rng
        Seed or generator for the splits.
    key_added
        Key for the results.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``uns[key_added]["scores"]``
        DataFrame with a row per embedding and baseline:

        - ``score``, ``score_std``: geometric mean of `own` and `neighbors`, and its spread over splits
        - ``own``, ``neighbors``: mean correlation of predicted and measured genes of the other half, of the spot itself
          and of the mean of its six nearest spots, after regressing out log depth
        - ``coherence``: similarity of neighbouring spots (Moran's I, mean over columns, weighted by variance)
        - ``depth_r2``: share of the variance of log depth that the embedding explains, by ridge, held out. High values
          mean that clusters may follow sequencing depth
        - ``stability``: share of a spot's 15 nearest spots that are the same in the embedding of the other half
        - ``mixing``: how often the 15 nearest spots are from another section, divided by chance (1: fully mixed); NaN
          for one section
        - ``kind`` (embedding or baseline), ``thinned`` (False: the vectors contain the molecules that they predict,
          because they could not be recomputed from half of the molecules; image vectors contain none), ``n_dims``
    ``uns[key_added]["verdict"]``
        One sentence: the best embedding, and whether it is ahead of the best baseline.
    ``uns[key_added]["parameters"]``
        Splits, genes, spots, seed, version.

    Warns
    -----
    StampyWarning
        An embedding was used unchanged, because its model is unknown, or because counts, genes, spots or sections are
        not those from which it was made: it contains the molecules that it predicts, so its score is too high. This
        includes a subset of the spots of an embedding with `context`, `center` or `adapt=True`, whose vectors depend on
        the spots that are missing. A given model was adapted to other spots, perhaps with these among them. A table
        larger than `max_spots`.

    Raises
    ------
    KeyError
        Embedding, coordinates, layer or column are missing.
    ValueError
        Counts that are not integers, too few spots (25 per section), or too few variable genes.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=150, image=False)
    >>> stampy.tl.embed(adata, modality="gene", show_progress_bar=False)
    >>> stampy.tl.evaluate(adata, n_splits=1)
    >>> adata.uns["stamp_evaluate"]["scores"].index.tolist()
    ['X_stamp', 'PCA', 'PCA, L2, smoothed', 'tf-idf SVD, L2, smoothed', 'position alone']
    """
    found = judged(
        adata, keys, library_key=library_key, layer=layer, n_splits=n_splits, n_genes=n_genes, max_spots=max_spots,
        table_key=table_key, rng=rng, stability=True, model=model,
    )  # fmt: skip
    ours = found["scores"].index[found["scores"]["kind"] == "embedding"].tolist()
    result = Result(key_added, {"embeddings": ours}, uns={key_added: found})
    return write_result(adata, result, copy=copy, table_key=table_key)


def judged(
    adata: AnnData | SpatialData,
    keys: str | Sequence[str] | Mapping[str, Embedder] | None,
    *,
    library_key: str | None,
    layer: str | None,
    n_splits: int,
    n_genes: int,
    max_spots: int | None,
    table_key: str,
    rng: int | np.random.Generator | None,
    stability: bool,
    model: str | Path | Encoder | None = None,
) -> Judgement:
    """Compute the results of `evaluate`; without `stability` (half of the time) if only the verdict is needed."""
    table = table_of(adata, table_key)
    _check(table, n_splits, n_genes, max_spots)
    library_key = library_key_of(adata, library_key, table_key)
    xy, sections, names, _ = places_of(adata, library_key=library_key, table_key=table_key)
    jobs = _jobs(table, keys, library_key, model)
    seed = int_seed(rng)
    rng = generator(seed)
    is_gene, left_out = gene_columns(table.var)
    if left_out:
        _checks.warn(left_out)
    rows = _rows(xy, sections, max_spots, rng)
    _enough(sections[rows], names)
    counts = _whole_counts(table, layer)[rows][:, is_gene]
    recomputed = [job for job in jobs.values() if isinstance(job, Recomputed)]
    columns = dict.fromkeys(c for c in (library_key, *(job.library_key for job in recomputed)) if c is not None)
    part = JudgedSpots(
        table[rows, is_gene], counts, xy[rows], sections[rows], n_genes,
        columns=tuple(columns), carried=tuple(job.key for job in recomputed if job.fused),
    )  # fmt: skip
    jobs = _confirmed(part, jobs, _inner(xy, sections, rows), adata, layer, table_key)
    _warn_of_unfair(jobs)
    found = [scores_of_split(part, jobs, r, stability=stability) for r in rng.spawn(n_splits)]
    scores = _table(found, jobs)
    n_sections = len(np.unique(part.sections))
    sentence = verdict_of(scores, found) + about_centring(jobs, table.uns.get(_keys.UNS, {}), n_sections)
    parameters = {
        "stampy": stampy.__version__, "counts": counts_name(layer), "seed": seed, "n_splits": int(n_splits),
        "n_spots": len(rows), "n_genes": len(part.genes), "n_sections": n_sections,
    }  # fmt: skip
    logger.info("%s", sentence)
    return {"scores": scores, "verdict": sentence, "parameters": parameters}


def _check(table: AnnData, n_splits: int, n_genes: int, max_spots: int | None) -> None:
    _checks.not_empty(table)
    _checks.at_least("n_splits", n_splits, 1)
    _checks.at_least("n_genes", n_genes, 1)
    if max_spots is not None:
        _checks.at_least("max_spots", max_spots, 100)


def _jobs(
    table: AnnData,
    keys: str | Sequence[str] | Mapping[str, Embedder] | None,
    library_key: str | None,
    model: str | Path | Encoder | None,
) -> dict[str, Job]:
    """How each embedding is judged, by name."""
    if isinstance(keys, Mapping):
        if wrong := [name for name, function in keys.items() if not callable(function)]:
            raise TypeError(f"`keys` as a dict must contain functions that embed a table; {wrong} are not functions.")
        if model is not None:
            raise ValueError("`model` has no effect if `keys` is a dict of functions. Omit it.")
        return _named({str(name): function for name, function in keys.items()})
    if keys is None:
        records = table.uns.get(_keys.UNS, {})
        keys = [k for k, r in records.items() if k in table.obsm and isinstance(r, Mapping) and "modality" in r]
        if not keys:
            raise KeyError(
                "There is no embedding of `stampy.tl.embed` to evaluate. Embed first, or name a key of `adata.obsm`. "
                f"Available: {_checks.shortlist(table.obsm)}."
            )
    if not isinstance(keys, str | Iterable):
        raise TypeError(f"`keys` must be a key of obsm, several, or a dict of functions, found {keys!r}.")
    listed = [keys] if isinstance(keys, str) else list(keys)
    for key in listed:
        _checks.embedding(table, key)
        check_one_space(table, key)
    given = None if model is None else loaded_model(model, None)
    jobs: dict[str, Job] = {key: job_of(table, key, library_key, given) for key in listed}
    if given is not None and not any(isinstance(job, Recomputed) and job.model is given for job in jobs.values()):
        raise ValueError(f"`model` is {given.name!r}, which made none of {_checks.shortlist(listed)}. Omit it.")
    return _named(jobs)


def _named(jobs: dict[str, Job]) -> dict[str, Job]:
    """The jobs; ValueError if there are none, or if a name is that of a baseline."""
    if not jobs:
        raise ValueError("`keys` is empty. Name embeddings, or pass None for all embeddings of `tl.embed`.")
    if taken := [name for name in jobs if name in BASELINES]:
        raise ValueError(f"{taken} are names of baselines. Give your embedding another name.")
    return jobs


def _inner(xy: np.ndarray, sections: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
    """Which evaluated spots (m,) have all their neighbours among them; None if all spots are evaluated."""
    if len(rows) == len(xy):
        return None
    left_out = np.ones(len(xy))
    left_out[rows] = 0
    inner = np.asarray(graph(xy, N_NEIGHBORS, sections)[rows] @ left_out == 0)
    return inner if inner.sum() >= LEAST_INNER else np.ones_like(inner)


def _confirmed(
    part: JudgedSpots,
    jobs: dict[str, Job],
    inner: np.ndarray | None,
    adata: AnnData | SpatialData,
    layer: str | None,
    table_key: str,
) -> dict[str, Job]:
    """Jobs that reproduce the stored vectors from all molecules; other stored vectors are judged unchanged."""
    whole, found = part.with_counts(part.counts, part.carried), dict(jobs)

    def difference(job: Recomputed, least: float | None = None) -> str:
        with warnings.catch_warnings():  # shown when the section was embedded
            warnings.simplefilter("ignore", _checks.StampyWarning)
            try:  # a model adapted to all spots is not that of a piece
                sections = None if inner is None else _checks.libraries(whole, job.library_key)[0][inner]
                values = job(whole, job.fitted_to(adata, layer, table_key) if inner is not None else None)
                stored = _checks.embedding(part.table, job.key)
                compared = slice(None) if inner is None else inner
                return job.differs(values[compared], stored[compared], sections, least=least)
            except ValueError as error:
                return f"embedding it again failed: {error}"

    for name, job in jobs.items():
        if not isinstance(job, Recomputed):
            continue
        if (again := job.fitted_here()) is not None and not difference(again, SAME):
            found[name] = again  # the model given has seen the molecules that it would predict
        elif why := difference(job):
            how = job.in_other_spots(table_of(adata, table_key).n_obs)
            found[name] = StoredVectors(name, why=how, remedy=SUBSET) if how else StoredVectors(name, why=why)
        elif again is None and job.base is not None:
            why = f"the model given may have been adapted to these spots, and its base {job.base!r} is not packaged"
            found[name] = StoredVectors(name, why=why, remedy=BASE)
    return found


def _warn_of_unfair(jobs: Mapping[str, Job]) -> None:
    """Warn about embeddings that contain the molecules that they predict, once for each reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, job in jobs.items():
        if isinstance(job, StoredVectors) and not job.of_image:
            reasons.setdefault((job.why, job.remedy), []).append(name)
    for (why, remedy), names in reasons.items():
        _checks.warn(
            f"{_checks.shortlist(names)} cannot be recomputed from half of the molecules ({why}). The vectors are used "
            "unchanged. They contain the molecules that they predict, so their scores are too high. For a fair "
            f"comparison, {remedy}."
        )
    adapted = {name: job.record["adapted"] for name, job in jobs.items() if isinstance(job, Recomputed) and job.base}
    for name, fit in adapted.items():
        _checks.warn(
            f"The model of {name!r} was adapted to {int(fit['n_spots']):,} spots. If the evaluated spots are among "
            "them, its score is too high, since the model has seen all of their molecules: evaluate all sections of "
            "the adaptation in one table, or spots that are not among them."
        )


def _rows(xy: np.ndarray, sections: np.ndarray, most: int | None, rng: np.random.Generator) -> np.ndarray:
    """Rows (m,) in order: all, or in each section the spots nearest to a random one."""
    n = len(xy)
    if most is None or n <= most:
        return np.arange(n)
    _checks.warn(
        f"{most} of {n} spots are evaluated, a compact piece of each section. `max_spots=None` evaluates all spots."
    )
    rows = []
    for section in np.unique(sections):
        mine = np.flatnonzero(sections == section)
        distance = np.linalg.norm(xy[mine] - xy[rng.choice(mine)], axis=1)
        rows.append(mine[np.argsort(distance, kind="stable")[: max(round(most * len(mine) / n), 1)]])
    return np.sort(np.concatenate(rows))


def _enough(sections: np.ndarray, names: Sequence[str]) -> None:
    counts = np.bincount(sections, minlength=len(names))
    small = {names[i]: int(n) for i, n in enumerate(counts) if n < 25}
    if small:
        found = _checks.shortlist(f"{name}: {n}" if name else f"{n} spots" for name, n in small.items())
        raise ValueError(f"An evaluation over regions needs at least 25 spots in every section, found {found}.")


def _whole_counts(table: AnnData, layer: str | None) -> sparse.csr_matrix:
    """Counts as CSR; ValueError unless they are integers, since molecules are split."""
    source = counts_name(layer)
    parts = [sparse.csr_matrix(b) for _, b in checked_rows(counts_of(table, layer), source=source)]
    counts = canonical(sparse.vstack(parts, format="csr"))
    odd = int((counts.data != np.trunc(counts.data)).sum())
    if odd:
        raise ValueError(
            f"`{source}` has {odd} values that are not integers, and molecules cannot be split in two halves. Give raw "
            "counts with `layer=`, or round them first."
        )
    return counts


def _table(found: list[Scores], jobs: Mapping[str, Job]) -> pd.DataFrame:
    """One row per embedding: means over splits, and standard deviations of the three predicted measures."""
    rows = {}
    for name in found[0]:
        per_split = pd.DataFrame([split[name] for split in found])
        mean, spread = per_split.mean(), per_split.std(ddof=1) if len(per_split) > 1 else per_split.mean() * np.nan
        ours = name in jobs
        rows[name] = {
            "kind": "embedding" if ours else "baseline",
            "score": mean["score"], "score_std": spread["score"],
            "own": mean["own"], "own_std": spread["own"],
            "neighbors": mean["neighbors"], "neighbors_std": spread["neighbors"],
            **{k: mean[k] for k in MEASURES[2:]},
            "thinned": not (ours and isinstance(job := jobs[name], StoredVectors) and not job.of_image),
            "n_dims": int(mean["n_dims"]),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="embedding")
