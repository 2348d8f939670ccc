"""Label-free evaluation of embeddings."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import pandas as pd
from scipy import sparse

import stampy
from stampy import _checks, _keys
from stampy._section.section import library_key_of, places_of
from stampy._settings import DEFAULT_SEED
from stampy._utils import generator, table_of
from stampy.pp._counts import checked_rows, counts_name, counts_of
from stampy.pp._genes.annotation import gene_columns

from ._embed import embed
from ._embedding.context import centered, in_context
from ._embedding.encoders import BASELINES as PCA_MODELS
from ._embedding.encoders import fitted, loaded_model
from ._evaluation.label_free import MEASURES, JudgedSpots, StoredVectors, scores_of_split
from ._results import Result, write_result

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._embedding.encoders import Encoder
    from ._evaluation.label_free import Embedder, Scores

__all__ = ["Judgement", "evaluate", "judged"]

logger = logging.getLogger(__name__)

LEVEL = 0.005  # smaller differences of the score are not relevant in practice


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
        - ``kind`` (embedding or baseline), ``thinned`` (False: the vectors in obsm could not be recomputed from half of
          the molecules and were used unchanged), ``n_dims``
    ``uns[key_added]["verdict"]``
        One sentence: the best embedding, and whether it is ahead of the best baseline.
    ``uns[key_added]["parameters"]``
        Splits, genes, spots, seed, version.

    Warns
    -----
    StampyWarning
        An embedding was used unchanged: it contains the molecules that it predicts, so its score is too high. A table
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
        table_key=table_key, rng=rng, stability=True,
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
) -> Judgement:
    """Compute the results of `evaluate`; without `stability` (half of the time) if only the verdict is needed."""
    table = table_of(adata, table_key)
    _check(table, n_splits, n_genes, max_spots)
    library_key = library_key_of(adata, library_key, table_key)
    xy, sections, names, _ = places_of(adata, library_key=library_key, table_key=table_key)
    jobs, as_they_are = _jobs(table, keys, library_key)
    rng = generator(rng)
    is_gene, left_out = gene_columns(table.var)
    if left_out:
        _checks.warn(left_out)
    rows = _rows(xy, sections, max_spots, rng)
    _enough(sections[rows], names)
    counts = _whole_counts(table, layer)[rows][:, is_gene]
    part = JudgedSpots(table[rows, is_gene], counts, xy[rows], sections[rows], library_key, n_genes)
    found = [scores_of_split(part, jobs, r, stability=stability) for r in rng.spawn(n_splits)]
    scores = _table(found, jobs)
    sentence = _verdict(scores, found)
    if as_they_are:
        _checks.warn(
            f"{_checks.shortlist(as_they_are)}: stampy cannot recompute these embeddings from half of the "
            "molecules, so they are scored unchanged. They contain the molecules that they predict: their scores "
            f"are too high. For a fair comparison, pass a function that embeds a table (`keys={{'name': function}}`)."
        )
    parameters = {
        "stampy": stampy.__version__, "counts": counts_name(layer), "n_splits": n_splits, "n_spots": len(rows),
        "n_genes": len(part.genes), "n_sections": len(np.unique(part.sections)),
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
    table: AnnData, keys: str | Sequence[str] | Mapping[str, Embedder] | None, library_key: str | None
) -> tuple[dict[str, Embedder | StoredVectors], list[str]]:
    """Functions that embed a half by name, and the names of embeddings that cannot be recomputed."""
    if isinstance(keys, Mapping):
        if not keys:
            raise ValueError("`keys` is empty. Pass functions by name, or None for all embeddings of `tl.embed`.")
        if wrong := [name for name, function in keys.items() if not callable(function)]:
            raise TypeError(f"`keys` as a dict must contain functions that embed a table; {wrong} are not functions.")
        return dict(keys), []
    records = table.uns.get(_keys.UNS, {})
    if keys is None:
        keys = [k for k, r in records.items() if k in table.obsm and isinstance(r, Mapping) and "modality" in r]
        if not keys:
            raise KeyError(
                "There is no embedding of `stampy.tl.embed` to evaluate. Embed first, or name a key of `adata.obsm`. "
                f"Available: {_checks.shortlist(table.obsm)}."
            )
    jobs: dict[str, Embedder | StoredVectors] = {}
    loaded: dict[str, Encoder | str] = {}
    for key in [keys] if isinstance(keys, str) else list(keys):
        _checks.embedding(table, key)
        jobs[key] = _embedder_of(records, key, library_key, loaded) or StoredVectors(key)
    return jobs, [key for key, job in jobs.items() if isinstance(job, StoredVectors)]


def _embedder_of(
    records: Mapping[str, Mapping[str, Any]], key: str, library_key: str | None, loaded: dict[str, Encoder | str]
) -> Embedder | None:
    """Function that embeds genes with model and settings of a key; None if these are not recorded."""
    main = key.removesuffix(_keys.GENE_SUFFIX)
    record = records.get(key) if key in records else records.get(main)
    if not isinstance(record, Mapping) or "model" not in record:
        return None
    if record.get("modality") != "gene" and key == main:
        return None
    if "shared" in record.get("genes", {}):  # genes of other sections are not known from this table
        return None
    context, center = str(record.get("context", "")).partition(",")[0] or None, record.get("center")
    normalize = bool(record.get("normalize", True))
    organism = record.get("organism", "human")
    level = record.get("level", "embedding")
    normed = normalize and level == "embedding"
    name = f"{record['model']} {level} {organism} {normalize}"  # without context and centring

    def run(table: AnnData) -> np.ndarray:
        if name not in table.obsm:
            encoder = _encoder(record, table, library_key, loaded)
            embed(
                table, encoder, modality="gene", level=level, organism=organism, library_key=library_key,
                normalize=normalize, show_progress_bar=False, key_added=name,
            )  # fmt: skip
        values = table.obsm[name]
        sections, names = _checks.libraries(table, library_key)
        if center:
            values = centered(values, sections, names, normed=normed and record["model"] not in PCA_MODELS)
        return in_context(values, table.obsm[_keys.SPATIAL], sections, normed=normed) if context else values

    return run


def _encoder(
    record: Mapping[str, Any], table: AnnData, library_key: str | None, loaded: dict[str, Encoder | str]
) -> Encoder | str:
    """Model of a record; an adapted model is fitted to the table with the recorded settings."""
    fit = record.get("adapted")
    model = fit["model"] if fit else record["model"]
    if model not in loaded:
        loaded[model] = model if model in PCA_MODELS else loaded_model(model, None)
    if not fit:
        return loaded[model]
    return fitted(
        loaded_model(loaded[model], None), [table], library_key=library_key,
        organism=record.get("organism", "human"), strength=float(fit["strength"]), n_axes=int(fit["n_axes"]),
        in_context="context" in fit,
    )  # fmt: skip


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
    counts = sparse.vstack(parts, format="csr")
    odd = int((counts.data != np.trunc(counts.data)).sum())
    if odd:
        raise ValueError(
            f"`{source}` has {odd} values that are not integers, and molecules cannot be split in two halves. Give raw "
            "counts with `layer=`, or round them first."
        )
    return counts


def _table(found: list[Scores], jobs: Mapping[str, Embedder | StoredVectors]) -> pd.DataFrame:
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
            "thinned": not (ours and isinstance(jobs[name], StoredVectors)),
            "n_dims": int(mean["n_dims"]),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index="embedding")


def _verdict(scores: pd.DataFrame, found: list[Scores]) -> str:
    """One sentence: the best embedding compared with the best baseline."""
    ours = scores[scores["kind"] == "embedding"]
    fair = ours[ours["thinned"]]
    base = scores.loc[scores["kind"] == "baseline", "score"].idxmax()
    if fair.empty:
        return (
            f"No embedding here could be recomputed from half of the molecules, so none can be compared fairly with "
            f"the best baseline ({base}, {scores.loc[base, 'score']:.3f})."
        )
    best = fair["score"].idxmax()
    gains = np.array([split[best]["score"] - split[base]["score"] for split in found])
    margin = max(LEVEL, 2 * gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else LEVEL)
    figures = f"{scores.loc[best, 'score']:.3f} against {scores.loc[base, 'score']:.3f}"
    if gains.mean() > margin:
        return f"{best} is more informative about this tissue than the best baseline, {base} ({figures}): use it."
    if gains.mean() < -margin:
        return f"{best} is less informative about this tissue than {base} ({figures}): use that baseline here."
    return f"{best} is about as informative about this tissue as {base} ({figures}): it has no advantage here."
