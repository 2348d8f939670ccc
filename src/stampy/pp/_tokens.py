"""Gene tokens: the genes of a spot in descending order of count divided by usual level."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import stampy
from stampy import _checks, _keys, _utils

from ._counts import CHUNK, checked_rows, counts_name, counts_of
from ._genes.match_report import GeneMatch
from ._rank_tokens import rank_tokens
from ._vocabulary import Vocabulary, packaged_vocabulary

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._counts import CountMatrix

__all__ = ["iter_tokens", "tokenize"]

logger = logging.getLogger(__name__)


def tokenize(
    adata: AnnData | SpatialData,
    vocabulary: Vocabulary | str | Path | None = None,
    *,
    max_tokens: int = _keys.MAX_TOKENS,
    layer: str | None = None,
    table_key: str = _keys.TABLE,
    key_added: str = _keys.TOKENS,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Compute the gene tokens of every spot: its genes in descending order of count divided by usual level.

    The usual level (divisor) of a gene is its mean over the spots of a corpus in which it was detected, after each spot
    is scaled to 10,000 counts. Ties are broken by the order of the vocabulary, on every machine. Multiplying all counts
    of a spot by a factor does not change its tokens. Genes are matched by `Vocabulary.match`; genes outside the
    vocabulary are dropped (with a warning if they have more than 5% of the counts), and columns of the same gene are
    summed.

    Parameters
    ----------
    adata
        Section with raw counts (sparse, dense, backed or dask), or a SpatialData with such a table. `X` is not changed.
    vocabulary
        Genes and their order, or the path of a `genes.tsv`; None is the vocabulary of the packaged model.
    max_tokens
        Maximum number of tokens per spot; the genes with the highest values are kept.
    layer
        The layer with raw counts; None is `X`.
    table_key
        The table of a SpatialData.
    key_added
        Key for the results.
    copy
        Return a changed copy (for a SpatialData only the table is copied) instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``obsm[key_added]``
        int32 (n, max_tokens): a gene is its vocabulary row + 30, 0 pads on the right.
    ``uns["stamp"][key_added]``
        Provenance: version of stampy, digest and size of the vocabulary, overlap, and the counts used.

    Raises
    ------
    KeyError
        If there is no such layer or table.
    ValueError
        If the section is empty, too few of its genes are in the vocabulary, or the values are not counts.
    FileNotFoundError
        If the vocabulary does not exist.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from stampy.pp import Vocabulary, tokenize
    >>> genes = {"gene_id": ["A", "B", "C"], "symbol": ["A", "B", "C"], "divisor": [1.0, 16.0, 2.0]}
    >>> section = AnnData(np.array([[2, 32, 9], [0, 5, 0]]), var=pd.DataFrame(index=["A", "B", "C"]))
    >>> tokenize(section, Vocabulary(pd.DataFrame(genes)), max_tokens=4)
    >>> section.obsm["stamp_tokens"]
    array([[32, 30, 31,  0],
           [31,  0,  0,  0]], dtype=int32)

    References
    ----------
    The STAMP paper (arXiv 2602.13944), section on gene tokens; the ranking is that of Geneformer and Nicheformer.
    """
    table = _utils.table_of(adata, table_key)
    _checks.not_empty(table)
    _checks.at_least("max_tokens", max_tokens, 1)
    vocabulary = _vocabulary_of(vocabulary)
    counts = counts_of(table, layer)
    match = vocabulary.match(table, layer=layer)
    logger.info("%s", match)

    tokens = np.empty((table.n_obs, max_tokens), dtype=np.int32)
    source = counts_name(layer)
    blocks = iter_tokens(counts, match, vocabulary.divisors, max_tokens, source=source, layers=table.layers)
    for start, block in blocks:
        tokens[start : start + len(block)] = block

    if copy:
        adata = _utils.copy_of(adata, table_key)
        table = _utils.table_of(adata, table_key)
    _utils.make_room(table, key_added, [("obsm", key_added)], field="n_vocabulary")
    table.obsm[key_added] = tokens
    table.uns.setdefault(_keys.UNS, {})[key_added] = token_provenance(vocabulary, match, source)
    return adata if copy else None


def token_provenance(vocabulary: Vocabulary, match: GeneMatch, source: str) -> dict[str, str | int | float]:
    """Provenance of tokens for `uns`, in types that every file format supports."""
    return {
        "stampy": stampy.__version__,
        "counts": source,
        "vocabulary": vocabulary.digest,
        "n_vocabulary": len(vocabulary),
        **match.record(),
        "matched_kind": match.kind,
        "matched_source": match.source,
    }


def _vocabulary_of(vocabulary: Vocabulary | str | Path | None) -> Vocabulary:
    """Return the vocabulary itself, load it from a path, or return the packaged one."""
    if vocabulary is None:
        return packaged_vocabulary()
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    if isinstance(vocabulary, str | Path):
        return Vocabulary.load(vocabulary)
    raise TypeError(f"`vocabulary` must be a Vocabulary, a path or None, found {type(vocabulary).__name__}.")


def iter_tokens(
    X: CountMatrix,
    match: GeneMatch,
    divisors: np.ndarray,
    max_tokens: int = _keys.MAX_TOKENS,
    chunk: int = CHUNK,
    *,
    source: str = "adata.X",
    layers: Mapping[str, object] | Collection[str] = (),
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield tokens of blocks of at most `chunk` spots as (first spot, int32 (spots, max_tokens)).

    Parameters
    ----------
    X
        (n, genes) raw counts in any storage; checked block by block as by :func:`checked_rows`.
    match, divisors
        Match of the columns (``Vocabulary.match``), and divisors of the vocabulary.
    max_tokens, chunk
        Length of a row; spots per block.
    source, layers
        Name of `X` and the other layers, for messages.
    """
    for start, block in checked_rows(X, chunk, source=source, layers=layers):
        yield start, rank_tokens(block, match.rows, divisors, max_tokens)
