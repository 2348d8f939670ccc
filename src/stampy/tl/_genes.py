"""The genes of a section as embeddings: by tokens, by counts, or by principal components."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, models
from stampy.pp import Vocabulary
from stampy.pp._counts import counts_of, source_of

from ._resume import Parts
from ._stream import Tower, stream_counts, stream_genes

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["embed_genes"]

logger = logging.getLogger(__name__)


def embed_genes(
    tower: Tower,
    table: AnnData,
    layer: str | None,
    level: str,
    batch_size: int | None,
    progress: bool,
    parts: Parts | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
    """Gene outputs, and what to keep of their origin; warns of spots without a gene of the vocabulary."""
    _checks.not_empty(table)
    model = tower.model
    if model.genes is None:
        raise ValueError(
            f"The model {model.name!r} has no vocabulary. Give it one: `model.genes` is a table with the columns "
            "gene_id, symbol and divisor; for the published checkpoint pandas reads it from "
            "`stampy.datasets.published_vocabulary()` (sep='\\t')."
        )
    vocabulary = Vocabulary(model.genes)
    match = vocabulary.match(table)
    logger.info("%s", match)
    source = source_of(layer)
    common = {"batch_size": batch_size, "progress": progress, "source": source, "parts": parts}
    if isinstance(model, models.GeneSystem):
        values = stream_counts(tower, counts_of(table, layer), match, level=level, **common)
    else:
        project = tower.projection("genes", level)
        values = stream_genes(tower, counts_of(table, layer), match, vocabulary.divisors, project=project, **common)
    empty = int((values == 0).all(axis=1).sum())
    if empty:
        _checks.warn(
            f"{empty} of {len(values)} spots have no counts in the model's genes; their gene vector is all zeros. "
            "Leave them out before clustering."
        )
    record = {
        "counts": source,
        "matched_by": match.source,
        "n_matched": match.n_matched,
        "n_vars": match.n_vars,
        "n_vocabulary": len(vocabulary),
        "vocabulary": vocabulary.digest,
        "n_empty_spots": empty,
    }
    return values, record
