"""Prediction of gene expression from image embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stampy import _checks, _keys
from stampy._section.section import library_key_of
from stampy._settings import DEFAULT_SEED
from stampy._utils import table_of
from stampy.pp._counts import checked_rows, counts_name, counts_of, iter_rows
from stampy.pp._genes.annotation import features_of, gene_columns

from ._embedding.spaces import check_one_space, check_same_origin, origin_of
from ._evaluation.folds import Scheme
from ._evaluation.metrics import gene_scores, gene_summary
from ._methods.linear_models import (
    METHODS,
    TRANSFORMS,
    Method,
    Transform,
    nearest_mean,
    predict_folds,
    top_variable_genes,
    transformed,
)
from ._probe import folds_in, with_text_index
from ._results import Result, write_result

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["expression"]

LARGEST = 1e15  # maximum absolute value; squares of larger values overflow float32
LARGEST_LOG = 20.0  # larger values are not logarithms of counts


def expression(
    adata: AnnData | SpatialData,
    genes: Sequence[str] | None = None,
    *,
    use_rep: str = f"{_keys.EMBEDDING}{_keys.IMAGE_SUFFIX}",
    method: Method = "ridge",
    n_top_genes: int = 50,
    layer: str | None = None,
    transform: Transform | None = None,
    folds: Scheme | None = None,
    library_key: str | None = None,
    patient_key: str | None = None,
    n_folds: int = 5,
    penalty: float | None = None,
    n_components: int = 256,
    n_neighbors: int = 30,
    reference: AnnData | None = None,
    reference_rep: str | None = None,
    table_key: str = _keys.TABLE,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    key_added: str = _keys.EXPRESSION,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Predict genes from an embedding with every spot held out once, or from a reference with counts.

    All genes are fitted together in closed form, so many genes take little longer than one.

    Parameters
    ----------
    adata
        Section(s) with an embedding in obsm and raw counts. With `reference`, counts are optional and used only to
        evaluate the prediction.
    genes
        Names in `var_names`; `adata.var_names` for all. None: the `n_top_genes` most variable genes, selected as in
        HEST-Bench: detected in a tenth of the spots of every section, with the highest dispersion. Features that are
        not genes (antibodies, guides, control probes) are predicted only if they are named, and never contribute to the
        depth.
    use_rep
        Key of obsm, for example an embedding of the image.
    method
        - ``"ridge"``: ridge regression on the standardised embedding
        - ``"linear"``: least squares on the standardised embedding (linear probe)
        - ``"hest"``: the recipe of HEST-Bench: 256 principal components and ridge regression with penalty
          100 / (components x genes), on log1p of counts. In HEST-Bench, folds are patients and r is per fold
        - ``"knn"``: mean of the `n_neighbors` spots with the highest cosine, from the other folds or from `reference`;
          no model is fitted
    n_top_genes
        Number of genes to select.
    layer
        Layer with raw counts; None: `X`.
    transform
        Scale of the prediction: ``"log1p_cp10k"``, log(1 + counts per 10,000 of the spot); ``"log1p"``, log(1 +
        counts), in which depth is part of the signal and r is higher; ``"none"``, unchanged values. None: ``"log1p"``
        for ``"hest"``, otherwise ``"log1p_cp10k"``.
    folds, library_key, patient_key, n_folds
        How spots are held out, see `stampy.tl.probe`.
    penalty
        Weight of the squared coefficients for ``"ridge"`` (None: the number of dimensions) and ``"hest"``.
    n_components
        Principal components for ``"hest"``.
    n_neighbors
        Number of spots to average for ``"knn"``.
    reference
        Spots with counts (in the same `layer`) and an embedding in the same space, for ``"knn"``: predict without
        counts in `adata`.
    reference_rep
        Key of the embedding of the reference (without `reference`: of the other folds); None: `use_rep`. With
        ``"X_stamp_gene"``, images are compared with genes.
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

    ``obsm[key_added]``
        float32 (n, genes), predicted while the spot was held out.
    ``obsm[key_added + "_measured"]``
        float32 (n, genes), measured expression on the same scale.
    ``obs[key_added + "_fold"]``
        int32, the fold in which the spot was held out; absent with `reference`.
    ``uns["stamp"][key_added]``
        `genes`, the names of the columns; `scores`, MSE and Pearson's r of each gene at the levels "pooled" (all
        spots), "slide" (within each section, with `library_key`) and "fold"; `summary`, their means and spread; and the
        parameters.

    Warns
    -----
    StampyWarning
        Least squares with fewer training spots than dimensions; features that are not genes are excluded.

    Raises
    ------
    KeyError
        A gene, column, layer or embedding is missing.
    ValueError
        Values that are not raw counts, no gene in common, too few spots, sections or patients for the folds, NaN in the
        embedding, a reference embedded with another model or other weights, or conflicting arguments.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=120, image=False)
    >>> adata.obsm["X_xy"] = adata.obsm["spatial"]
    >>> stampy.tl.expression(adata, use_rep="X_xy", n_top_genes=20)
    >>> adata.obsm["stamp_expression"].shape
    (120, 20)
    >>> adata.uns["stamp"]["stamp_expression"]["summary"]["level"].tolist()
    ['pooled', 'fold']
    """
    table = table_of(adata, table_key)
    _check(method, transform, n_top_genes, n_components, n_neighbors, penalty, reference, reference_rep, folds)
    transform = transform or ("log1p" if method == "hest" else "log1p_cp10k")
    library_key = library_key_of(adata, library_key, table_key)
    sections, names = _checks.libraries(table, library_key)
    fold, scheme, fold_names = None, "reference", list[str]()
    if reference is None:
        fold, fold_names, scheme = folds_in(
            adata, np.ones(table.n_obs, dtype=bool), folds, n_folds=n_folds, library_key=library_key,
            patient_key=patient_key, rng=rng, table_key=table_key,
        )  # fmt: skip
        values = _checks.embedding(table, use_rep)
        check_one_space(table, use_rep)
        chosen = _genes(table, genes, n_top_genes, layer, transform, sections)
        known = _matrix(table, chosen, layer, transform)
        measured: np.ndarray | None = known
        keys = None if reference_rep is None else _of_one_space(table, table, use_rep, reference_rep)[1]
        _warn_if_underdetermined(method, values, fold)
        predicted = predict_folds(
            values, known, fold, method=method, penalty=penalty, n_components=n_components,
            n_neighbors=n_neighbors, reference=keys, rng=rng,
        )  # fmt: skip
    else:
        values, keys = _of_one_space(table, reference, use_rep, reference_rep or use_rep)
        chosen = _shared_genes(table, reference, genes, n_top_genes, layer, transform)
        predicted = nearest_mean(values, keys, _matrix(reference, chosen, layer, transform), n_neighbors)
        measured = _measured(table, chosen, layer, transform)
    record: dict[str, Any] = {
        "genes": np.array(chosen, dtype=object), "use_rep": use_rep, "method": method,
        "transform": transform, "folds": scheme, "n_folds": len(fold_names),
    }  # fmt: skip
    if measured is not None:
        groups = {} if library_key is None else {"slide": np.array(names, dtype=object)[sections]}
        groups |= {} if fold is None else {"fold": np.array(fold_names, dtype=object)[fold]}
        record |= _scored(measured, predicted, chosen, groups)
    obsm = {key_added: predicted} | ({} if measured is None else {f"{key_added}{_keys.MEASURED_SUFFIX}": measured})
    obs = {} if fold is None else {f"{key_added}{_keys.FOLD_SUFFIX}": fold.astype(np.int32)}
    return write_result(adata, Result(key_added, record, obs=obs, obsm=obsm), copy=copy, table_key=table_key)


def _scored(
    measured: np.ndarray, predicted: np.ndarray, genes: list[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, pd.DataFrame]:
    """Scores of each gene in each group, and their summary."""
    scores = gene_scores(measured, predicted, genes, groups)
    return {"scores": with_text_index(scores), "summary": with_text_index(gene_summary(scores))}


def _check(method: Any, transform: Any, n_top_genes: Any, n_components: Any, n_neighbors: Any, penalty: Any,
           reference: Any, reference_rep: Any, folds: Any) -> None:  # fmt: skip
    """Raise for values out of range and conflicting arguments."""
    _checks.one_of("method", method, METHODS)
    if transform is not None:
        _checks.one_of("transform", transform, TRANSFORMS)
    for name, value in {"n_top_genes": n_top_genes, "n_components": n_components, "n_neighbors": n_neighbors}.items():
        _checks.at_least(name, value, 1)
    if penalty is not None:
        _checks.positive("penalty", penalty)
        if method not in ("ridge", "hest"):
            raise ValueError(f"`penalty` has no effect for method='{method}'. Omit it, or use method='ridge'.")
    if method != "knn" and (reference is not None or reference_rep is not None):
        raise ValueError(f"`reference` and `reference_rep` are for method='knn', found method='{method}'.")
    if reference is not None and folds is not None:
        raise ValueError("With `reference` nothing is held out: omit `folds`.")
    if reference is not None:
        table_of(reference)


def _same_space(values: np.ndarray, keys: np.ndarray, name: str, other: str | None) -> None:
    if values.shape[1] != keys.shape[1]:
        raise ValueError(
            f"Spots must be in one space; `{name}` has {values.shape[1]} dimensions, the reference's `{other}` "
            f"{keys.shape[1]}. Embed both with the same model."
        )


def _of_one_space(table: AnnData, reference: AnnData, name: str, other: str) -> tuple[np.ndarray, np.ndarray]:
    """The embeddings of both tables; ValueError if they are known to be of different models or settings."""
    values, keys = _checks.embedding(table, name), _checks.embedding(reference, other)
    _same_space(values, keys, name, other)
    for data, key in ((table, name), (reference, other)):
        check_one_space(data, key)
    slot = "adata.obsm" if reference is table else "reference.obsm"
    ours, theirs = origin_of(table, name), origin_of(reference, other, slot=slot)
    if ours is not None and theirs is not None:
        check_same_origin(ours, theirs)
    return values, keys


def _warn_if_underdetermined(method: str, values: np.ndarray, folds: np.ndarray) -> None:
    n_train = len(folds) - int(np.bincount(folds).max())
    if method == "linear" and n_train <= values.shape[1]:
        _checks.warn(
            f"Least squares with {n_train} training spots for {values.shape[1]} dimensions fits them perfectly and "
            "predicts poorly. Use method='ridge' or 'hest'."
        )


def _genes(table: AnnData, genes: Sequence[str] | None, n: int, layer: Any, transform: Transform,
           sections: np.ndarray) -> list[str]:  # fmt: skip
    """Names of the genes to predict: as given, or the most variable genes."""
    _checks.not_empty(table)
    if not table.var_names.is_unique:
        raise ValueError("`adata.var_names` are not unique. Make them so first: `adata.var_names_make_unique()`.")
    if genes is not None:
        return _named(genes, {"adata.var_names": table.var_names})
    is_gene, left_out = gene_columns(table.var)
    if left_out:
        _checks.warn(left_out)
    numbers = np.flatnonzero(is_gene)
    logged = _logged(table, layer, transform)
    chosen = numbers[top_variable_genes(logged if is_gene.all() else logged[:, numbers], sections, n)]
    if not len(chosen):
        raise ValueError(
            "No gene is detected in a tenth of the spots of every section, so none can be selected. Do the sections "
            "use the same gene names? Name genes with `genes=`."
        )
    return table.var_names[chosen].tolist()


def _logged(table: AnnData, layer: str | None, transform: Transform) -> sparse.csr_matrix:
    """Log counts for selecting genes; ValueError for values without dispersions."""
    values = _rows(table, layer, "none" if transform == "none" else "log1p")
    if not values.nnz:
        return values
    low, high = float(values.data.min()), float(values.data.max())
    if transform != "none":
        low, high = float(np.expm1(low)), float(np.expm1(high))
    if not (low >= 0 and high < LARGEST):
        raise ValueError(
            f"The values go from {low:.3g} to {high:.3g} (NaN: some are missing), so the dispersion for selecting "
            "genes cannot be computed. Correct them, or name genes with `genes=`."
        )
    return values.log1p() if transform == "none" and high > LARGEST_LOG else values


def _named(genes: Sequence[str], pools: dict[str, Any]) -> list[str]:
    """The genes as a list; KeyError for genes that are not in all pools."""
    names = list(dict.fromkeys([genes] if isinstance(genes, str) else genes))
    if not names:
        raise ValueError("`genes` is empty. Name some, or omit it for the most variable ones.")
    for pool, known in pools.items():
        absent = [name for name in names if name not in known]
        if absent:
            raise _checks.unknown("genes", absent[0], {pool: known})
    return [str(name) for name in names]


def _shared_genes(table: AnnData, reference: AnnData, genes: Sequence[str] | None, n: int, layer: Any,
                  transform: Transform) -> list[str]:  # fmt: skip
    """Genes of the reference to predict; if the spots also have genes, the shared genes."""
    if genes is not None:
        return _genes(reference, genes, n, layer, transform, np.zeros(reference.n_obs))
    if table.n_vars:
        both = reference.var_names.intersection(table.var_names)
        if not len(both):
            raise ValueError(
                f"`adata` and `reference` have no gene in common, e.g. {_checks.shortlist(table.var_names, 3)} and "
                f"{_checks.shortlist(reference.var_names, 3)}. Use the same type of gene names in both, or pass "
                "`genes=`."
            )
        return _genes(reference[:, both], None, n, layer, transform, np.zeros(reference.n_obs))
    return _genes(reference, None, n, layer, transform, np.zeros(reference.n_obs))


def _measured(table: AnnData, genes: list[str], layer: str | None, transform: Transform) -> np.ndarray | None:
    """Measured expression for comparison with a prediction from a reference; None if genes are missing."""
    counted = table.n_vars > 0 and (layer in table.layers if layer is not None else table.X is not None)
    if not counted or not set(genes) <= set(table.var_names):
        return None
    return _matrix(table, genes, layer, transform)


def _matrix(table: AnnData, genes: list[str], layer: str | None, transform: Transform) -> np.ndarray:
    """Expression of the genes (n, genes), dense float32."""
    return _rows(table, layer, transform, table.var_names.get_indexer(genes)).toarray()


def _rows(table: AnnData, layer: str | None, transform: Transform, columns: Any = slice(None)) -> sparse.csr_matrix:
    """Transformed counts (n, columns), sparse, read block by block; the depth includes only genes, but all of them."""
    counts = counts_of(table, layer)
    features = features_of(table.var)
    is_gene = None if features.is_gene.all() or not features.is_gene.any() else features.is_gene
    source = counts_name(layer)
    blocks = iter_rows(counts) if transform == "none" else checked_rows(counts, source=source, layers=table.layers)
    return sparse.vstack([transformed(block, transform, is_gene)[:, columns] for _, block in blocks], format="csr")
