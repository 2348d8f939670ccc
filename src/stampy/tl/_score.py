"""Score every spot for a gene programme."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from stampy import _checks, _keys, models
from stampy._section.section import library_key_of
from stampy._utils import table_of

from ._embedding.arguments import ORGANISMS, Organism
from ._embedding.encoders import (
    check_loadable,
    digest_of_towers,
    genes_of,
    human_names,
    loaded_stamp,
    vocabulary_of,
)
from ._embedding.spaces import check_model, space_of
from ._results import Result, write_result

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["score"]


def score(
    adata: AnnData | SpatialData,
    genes: Sequence[str],
    *,
    model: str | Path | models.Stamp = "stampy-mini",
    modality: Literal["image", "gene"] = "image",
    min_genes: int = 5,
    standardize: bool = False,
    library_key: str | None = None,
    organism: Organism = "human",
    embedding_key: str = _keys.EMBEDDING,
    table_key: str = _keys.TABLE,
    device: str | torch.device | None = None,
    key_added: str = _keys.SCORE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Score every spot by the cosine of its embedding with a gene programme, such as markers on H&E alone.

    The ranked list of genes is embedded by the gene encoder like a spot; the score is the cosine between this vector
    and the embedding of the spot. It needs neither counts nor training on labels (zero-shot).

    Parameters
    ----------
    adata
        Section(s) embedded by `stampy.tl.embed` with the same model.
    genes
        The gene programme, most important gene first: symbols or Ensembl ids. The order matters, as for the tokens of a
        spot.
    model
        The model that embedded the spots: a name, a folder, or a loaded `stampy.models.Stamp`.
    modality
        Compare with the ``"image"`` or the ``"gene"`` embeddings of the spots.
    min_genes
        Minimum number of genes in the model's vocabulary.
    standardize
        Write z scores: mean 0 and standard deviation 1 over the spots of each section. Cosines of different programmes
        have different scales; z scores can be compared within a section.
    library_key
        Column of obs that names the section of each spot, for `standardize`.
    organism
        Organism of the names in `genes`: ``"mouse"`` uses their human orthologs.
    embedding_key
        Key of the embeddings: ``obsm[key + "_image"]`` or ``obsm[key + "_gene"]``.
    table_key
        Table of a SpatialData.
    device
        Device of the model. None: CUDA if available, else an Apple GPU (MPS), else the CPU.
    key_added
        Key for the scores.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``obs[key_added]``
        float32: cosine, −1 to 1, or its z score; NaN for a spot without an embedding.
    ``uns["stamp"][key_added]``
        Model, modality, the genes used, and the genes that are not in the model's vocabulary.

    Warns
    -----
    StampyWarning
        Genes that are not in the model's vocabulary are ignored.

    Raises
    ------
    KeyError
        The spots have no such embedding.
    ValueError
        Too few genes in the vocabulary, embeddings of another model or other weights, or a model without
        image encoder.

    Notes
    -----
    A spot has hundreds of tokens, a list of markers a few dozen. The model was not trained on such short lists, so
    compare scores within a section (`standardize`) and do not interpret their absolute values.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=20)
    >>> stampy.tl.embed(adata, modality="image", show_progress_bar=False)
    >>> stampy.tl.score(adata, ["COL1A1", "COL1A2", "COL3A1", "DCN", "LUM"])
    >>> adata.obs["stamp_score"].dtype
    dtype('float32')
    """
    table = table_of(adata, table_key)
    _checks.not_empty(table, genes=False)
    _checks.one_of("modality", modality, ("image", "gene"))
    _checks.at_least("min_genes", min_genes, 1)
    _checks.one_of("organism", organism, ORGANISMS)
    if library_key is not None and not standardize:
        raise ValueError("`library_key` was given without `standardize=True`: cosines do not depend on the section.")
    sections, _ = _checks.libraries(table, library_key_of(adata, library_key, table_key))
    _check_genes(genes)
    check_loadable(model, device)
    space = space_of(table, embedding_key, modality)
    loaded = loaded_stamp(model, device)
    if modality == "image" and loaded.image is None:
        raise ValueError(f"The model {loaded.name!r} has no image encoder. Use modality='gene' or another model.")
    check_model(space, loaded.name, loaded.config.embedding, digest_of_towers(loaded))
    rows, unknown = rows_of_genes(genes, loaded, min_genes, organism)
    if unknown:
        _checks.warn(
            f"{len(unknown)} of {len(rows) + len(unknown)} genes are not in the vocabulary of {loaded.name!r} and "
            f"are ignored: {_checks.shortlist(unknown)}."
        )
    values = np.where(space.known, space.vectors @ programme(loaded, rows), np.nan)
    if standardize:
        values = _standardized(values, sections)
    record = {
        "model": loaded.name,
        "modality": modality,
        "standardize": standardize,
        "embedding_key": embedding_key,
        "genes": _names(loaded)[rows].tolist(),
        "unknown": unknown,
    }
    result = Result(key_added, record, obs={key_added: values.astype(np.float32)}, blank=~space.known)
    return write_result(adata, result, copy=copy, table_key=table_key)


def rows_of_genes(
    genes: Sequence[str], model: models.Stamp, minimum: int, organism: Organism = "human"
) -> tuple[np.ndarray, list[str]]:
    """Rows of the vocabulary for a ranked list, without repetitions and in order, and the names missing in it."""
    _check_genes(genes)
    vocabulary = vocabulary_of(model)
    names = pd.Index(human_names(genes, organism, vocabulary), dtype=object)
    rows = vocabulary.rows_of(names, "gene_id")[0]
    rows = np.where(rows >= 0, rows, vocabulary.rows_of(names, "symbol")[0])
    known = pd.unique(rows[rows >= 0]).astype(np.int64)
    unknown = list(dict.fromkeys(names[rows < 0]))
    if len(known) < minimum:
        raise ValueError(
            f"Only {len(known)} of {len(names.unique())} genes are in the vocabulary of {model.name!r}, at least "
            f"{minimum} are needed (`min_genes`). Not in it: {_checks.shortlist(unknown)}; it has "
            f"{_checks.shortlist(_names(model)[:3])}."
        )
    return known, unknown


def _check_genes(genes: Sequence[str]) -> None:
    if isinstance(genes, str) or not isinstance(genes, Sequence | np.ndarray | pd.Index | pd.Series):
        raise TypeError(f"`genes` must be a ranked list of symbols or ids, found {type(genes).__name__} {genes!r:.60}.")
    if not len(genes):
        raise ValueError("`genes` is empty. Name the genes of the programme, most important first.")


def _names(model: models.Stamp) -> np.ndarray:
    """First symbol, or id, of every gene in the vocabulary."""
    genes = genes_of(model)
    symbols = genes["symbol"].fillna("").astype(str).str.split("|").str[0]
    return np.asarray(np.where(symbols == "", genes["gene_id"], symbols))


def programme(model: models.Stamp, rows: np.ndarray) -> np.ndarray:
    """Embedding (d,) of a ranked list of rows of the vocabulary, with L2 norm 1."""
    import torch

    tokens = torch.from_numpy(rows[None] + _keys.N_SPECIAL).to(model.device)
    training = model.training
    try:
        with torch.inference_mode():
            return model.eval().gene_embeddings(tokens)[0].float().cpu().numpy()
    finally:
        model.train(training)


def _standardized(values: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Z scores within each section; 0 if all spots of a section have the same score."""
    out = values.copy()
    for code in np.unique(sections):
        mine = values[sections == code]
        if np.isnan(mine).all():
            continue
        deviation = np.nanstd(mine)
        out[sections == code] = (mine - np.nanmean(mine)) / (deviation if deviation > 1e-6 else np.inf)
    return out
