"""The genes of a section as embeddings: by tokens, by counts, or by principal components."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import sparse

from stampy import _checks, models
from stampy.pp import Vocabulary
from stampy.pp._counts import CHUNK, checked_rows, counts_of, source_of
from stampy.pp._gene_annotation import features_of
from stampy.pp._tokens import iter_tokens

from ._arguments import Request
from ._clustering import smoothed
from ._encoders import match_genes, vocabulary_of
from ._panels import panel_of_table, within
from ._resume import Chunks
from ._stream import Tower, stream_counts, stream_genes

if TYPE_CHECKING:
    from anndata import AnnData

    from stampy._section.section import Places
    from stampy.pp._match_report import GeneMatch

__all__ = ["embed_genes", "embed_pca"]

logger = logging.getLogger(__name__)

Record: TypeAlias = dict[str, object]  # what is kept of how a result was made

N_GENES, N_COMPONENTS, N_NEIGHBORS = 2000, 50, 6  # of the baselines


def embed_genes(
    model: models.Stamp | models.GeneSystem, table: AnnData, request: Request, parts: Chunks
) -> tuple[np.ndarray, Record]:
    """Gene outputs, and what to keep of their origin; warns of spots without a gene of the vocabulary."""
    _checks.not_empty(table)
    vocabulary = vocabulary_of(model)
    match = match_genes(table, vocabulary, request.organism, request.layer)
    logger.info("%s", match)
    match, n_shared = _shared(table, match, len(vocabulary), request)
    values = _streamed(model, table, request, match, vocabulary, parts)
    empty = int((values == 0).all(axis=1).sum())
    if empty:
        _checks.warn(
            f"{empty} of {len(values)} spots have no counts in the model's genes; their gene vector is all zeros. "
            "Leave them out before clustering."
        )
    record: Record = {
        "counts": source_of(request.layer),
        "matched_by": match.source,
        **match.record(),
        "n_vocabulary": len(vocabulary),
        "vocabulary": vocabulary.digest,
        "n_empty_spots": empty,
        **({} if n_shared is None else {"shared": n_shared}),
    }
    return values, record


def _shared(table: AnnData, match: GeneMatch, n_genes: int, request: Request) -> tuple[GeneMatch, int | None]:
    """The match within the genes that all sections measure, and their number, where they were asked for."""
    panel = request.panel
    if panel is None and (request.library_key is not None or request.genes is not None):
        panel = panel_of_table(table, match, n_genes, request)
    return within(match, panel), None if panel is None else int(panel.sum())


def _streamed(
    model: models.Stamp | models.GeneSystem,
    table: AnnData,
    request: Request,
    match: GeneMatch,
    vocabulary: Vocabulary,
    parts: Chunks,
) -> np.ndarray:
    """The outputs (n, D) of the gene tower, block by block."""
    counts, source = counts_of(table, request.layer), source_of(request.layer)
    size, progress = request.batch_size, request.progress
    if isinstance(model, models.GeneSystem):
        rows = checked_rows(counts, CHUNK, source=source, layers=table.layers)
        return stream_counts(
            Tower(model, table.n_obs, request.precision), rows, table.n_obs, match,
            batch_size=size, level=request.level, progress=progress, parts=parts,
        )  # fmt: skip
    tower = Tower(model, table.n_obs, request.precision)
    most = model.gene.config.max_tokens
    tokens = iter_tokens(counts, match, vocabulary.divisors, most, CHUNK, source=source, layers=table.layers)
    return stream_genes(
        tower, tokens, table.n_obs,
        batch_size=size, project=tower.projection("genes", request.level, normalize=request.normalize),
        progress=progress, parts=parts,
    )  # fmt: skip


def embed_pca(table: AnnData, *, layer: str | None, around: Places | None) -> tuple[np.ndarray, Record]:
    """Principal components (n, D) of the most variable genes, log-normalised, and what to keep of their origin.

    With the spots' places `around` each is the mean with those of its nearest spots.
    """
    _checks.not_empty(table)
    if min(table.shape) < 3:
        raise ValueError(
            f"Principal components need at least 3 spots and 3 genes, found {table.n_obs} x {table.n_vars}."
        )
    source = source_of(layer)
    genes = np.flatnonzero(features_of(table.var).is_gene)  # without antibodies and control probes
    rows = checked_rows(counts_of(table, layer), source=source, layers=table.layers)
    blocks = [sparse.csr_matrix(block)[:, genes] for _, block in rows]
    values, n_genes, n_empty = principal_components(sparse.vstack(blocks, format="csr"))
    if around is not None:
        values = smoothed(values, around.xy, N_NEIGHBORS, around.codes)
    record = {"counts": source, "n_vars": table.n_vars, "n_genes": n_genes, "n_empty_spots": n_empty}
    return values, record | ({"n_neighbors": N_NEIGHBORS} if around is not None else {})


def principal_components(counts: sparse.csr_matrix) -> tuple[np.ndarray, int, int]:
    """Components (n, D) float32 of raw counts, the number of genes used, and of spots without counts."""
    import scanpy as sc
    from anndata import AnnData

    adata = AnnData(counts.astype(np.float32))
    empty = np.asarray(counts.sum(axis=1)).ravel() == 0
    if empty.any():
        _checks.warn(
            f"{int(empty.sum())} of {len(empty)} spots have no counts; their gene vector is all zeros. "
            "Leave them out before clustering."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Some cells have zero counts")
        sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.filter_genes(adata, min_cells=1)
    if adata.n_vars > N_GENES:
        sc.pp.highly_variable_genes(adata, n_top_genes=N_GENES)
        adata = adata[:, adata.var["highly_variable"]].copy()
    n = min(N_COMPONENTS, min(adata.shape) - 1)
    if n < 1:
        raise ValueError(f"Only {adata.n_vars} genes have counts: too few for principal components.")
    sc.pp.pca(adata, n_comps=n, random_state=0)
    values = np.ascontiguousarray(adata.obsm["X_pca"], dtype=np.float32)
    values[empty] = 0
    return values, adata.n_vars, int(empty.sum())
