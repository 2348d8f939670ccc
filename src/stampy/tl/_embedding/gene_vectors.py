"""Gene embeddings of a section from tokens, counts or principal components; sections with different gene panels.

Shapes: s sections, G genes of the vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from scipy import sparse

import stampy
from stampy import _checks, models
from stampy._files import digest_of_arrays
from stampy._utils import table_of
from stampy.pp import Vocabulary
from stampy.pp._counts import CHUNK, LARGEST_SUM, checked_rows, counts_name, counts_of
from stampy.pp._genes.annotation import features_of
from stampy.pp._tokens import iter_tokens
from stampy.tl._methods.principal_components import principal_components

from .arguments import Request, named
from .context import N_NEIGHBORS, smoothed, without_direction
from .encoders import match_genes, vocabulary_of
from .resume import Chunks
from .stream import Tower, stream_counts, stream_genes

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from stampy._section.section import Places
    from stampy.pp._genes.match_report import GeneMatch
    from stampy.tl._embed import SectionsData

    from .encoders import Encoder

__all__ = ["Record", "embed_baseline", "embed_genes", "panel_of_table", "shared_panel", "within"]

logger = logging.getLogger(__name__)

Record: TypeAlias = dict[str, object]  # provenance of a result


def embed_genes(
    model: models.Stamp | models.GeneSystem, table: AnnData, request: Request, parts: Chunks
) -> tuple[np.ndarray, Record]:
    """Gene outputs, and their provenance; warns about spots without genes in the vocabulary."""
    _checks.not_empty(table)
    if request.center == "direction":
        _check_features(model)
    vocabulary = vocabulary_of(model)
    match = match_genes(table, vocabulary, request.organism, request.layer)
    logger.info("%s", match)
    match, n_shared = _shared(table, match, len(vocabulary), request)
    values = _streamed(model, table, request, match, vocabulary, parts)
    empty = int((values == 0).all(axis=1).sum())
    if empty:
        _checks.warn(
            f"{empty} of {len(values)} spots have no counts in the model's genes; their gene vector is all zeros. "
            "Remove them before clustering."
        )
    if request.center == "direction" and isinstance(model, models.Stamp):
        codes, names = _checks.libraries(table, request.library_key)
        values = without_direction(values, model, codes, names, normed=request.normed)
    record: Record = {
        "counts": counts_name(request.layer),
        "matched_by": match.source,
        **match.record(),
        "n_vocabulary": len(vocabulary),
        "vocabulary": vocabulary.digest,
        "n_empty_spots": empty,
        **({} if n_shared is None else {"shared": n_shared}),
    }
    return values, record


def _check_features(model: models.Stamp | models.GeneSystem) -> None:
    """Raise ValueError unless the direction of a mean feature can be projected out before the head of the model."""
    from stampy.models._linear_gene import is_linear

    if not is_linear(model):
        raise ValueError(
            "center='direction' needs features that are sums of gene vectors (pooling='bag', one gate per rank, and a "
            f"vocabulary), such as those of 'stampy-mini'; the model {model.name!r} has none. Use center='section'."
        )


def _shared(table: AnnData, match: GeneMatch, n_genes: int, request: Request) -> tuple[GeneMatch, int | None]:
    """Match restricted to the genes shared by all sections, and their number, if requested."""
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
    """Outputs (n, D) of the gene encoder, block by block."""
    counts, source = counts_of(table, request.layer), counts_name(request.layer)
    size, progress = request.batch_size, request.progress
    if isinstance(model, models.GeneSystem):
        rows = checked_rows(counts, CHUNK, source=source, layers=table.layers)
        return stream_counts(
            Tower(model, table.n_obs, request.precision), rows, table.n_obs, match,
            batch_size=size, level=request.level, progress=progress, parts=parts,
        )  # fmt: skip
    tower = Tower(model, table.n_obs, request.precision)
    most = model.gene.config.max_tokens
    level = "feature" if request.center == "direction" else request.level
    tokens = iter_tokens(counts, match, vocabulary.divisors, most, CHUNK, source=source, layers=table.layers)
    return stream_genes(
        tower, tokens, table.n_obs,
        batch_size=size, project=tower.projection("genes", level, normalize=request.normalize),
        progress=progress, parts=parts,
    )  # fmt: skip


def embed_baseline(
    model: str, table: AnnData, request: Request, places: Places | None
) -> tuple[dict[str, np.ndarray], Record]:
    """Embedding by a baseline, by modality, and its record."""
    if request.organism != "human":
        raise ValueError(f"`organism` has no effect with {model!r}, which has no gene vocabulary. Omit it.")
    if request.genes is not None or not request.normalize:
        name = "genes" if request.genes is not None else "normalize"
        raise ValueError(f"`{name}` has no effect with {model!r}. Omit it.")
    if request.center == "direction":
        raise ValueError(
            f"center='direction' needs features before a projection, which {model!r} does not have. Use "
            "center='section'."
        )
    if request.resume is not None:
        raise ValueError(f"`resume` cannot be used with {model!r}, which is fitted to the entire section. Omit it.")
    values, genes = _pca(table, layer=request.layer, around=places if model == "pca-smoothed" else None)
    record: Record = {"model": model, "precision": "float32", "genes": genes, "fit": digest_of_arrays(values)}
    record |= {"stampy": stampy.__version__, "modality": "gene", "level": request.level}
    return {"gene": values}, record


def _pca(table: AnnData, *, layer: str | None, around: Places | None) -> tuple[np.ndarray, Record]:
    """Principal components (n, D) of the most variable genes, log-normalised, and their provenance.

    With the coordinates `around`, each is averaged over the spot and its nearest spots.
    """
    _checks.not_empty(table)
    if min(table.shape) < 3:
        raise ValueError(
            f"Principal components need at least 3 spots and 3 genes, found {table.n_obs} x {table.n_vars}."
        )
    source = counts_name(layer)
    genes = np.flatnonzero(features_of(table.var).is_gene)  # without antibodies and control probes
    rows = checked_rows(counts_of(table, layer), source=source, layers=table.layers)
    blocks = [sparse.csr_matrix(block)[:, genes] for _, block in rows]
    values, n_genes, n_empty = principal_components(sparse.vstack(blocks, format="csr"))
    if around is not None:
        values = smoothed(values, around.xy, N_NEIGHBORS, around.codes)
    record = {"counts": source, "n_vars": table.n_vars, "n_genes": n_genes, "n_empty_spots": n_empty}
    return values, record | ({"n_neighbors": N_NEIGHBORS} if around is not None else {})


EXPECTED = 10.0  # expected counts of a gene in a section; then 0 counts has Poisson probability 5e-5
MAX_UNSHARED = 0.05  # warn above this fraction of a section's counts in genes that are not shared


def within(match: GeneMatch, panel: np.ndarray | None) -> GeneMatch:
    """Match restricted to the genes of the panel (G,) bool; None: all genes."""
    if panel is None:
        return match
    kept = np.where((match.rows >= 0) & panel[np.maximum(match.rows, 0)], match.rows, -1).astype(np.int32)
    return replace(match, rows=kept, n_matched=len(np.unique(kept[kept >= 0])))


def shared_panel(data: SectionsData, request: Request, model: str | Path | Encoder) -> np.ndarray | None:
    """Mask (G,) of the genes in ``var`` of all sections, if requested; None for all genes.

    Warns if sections differ and all genes are used.
    """
    everything = {str(name): table_of(section, request.table_key) for name, section in named(data).items()}
    tables = {k: t for k, t in everything.items() if t.n_vars and (t.X is not None or request.layer is not None)}
    if len(everything) < 2 or request.modality == "image":
        return None
    if len(tables) < 2:
        if request.genes is not None:
            raise ValueError(f"genes={request.genes!r} needs two sections with counts, found {len(tables)}.")
        return None
    if not isinstance(model, models.Stamp | models.GeneSystem) or model.genes is None:
        return None
    vocabulary = vocabulary_of(model)
    measured, sums = np.zeros((len(tables), len(vocabulary)), dtype=bool), np.zeros((len(tables), len(vocabulary)))
    for i, table in enumerate(tables.values()):
        rows = match_genes(table, vocabulary, request.organism, request.layer).rows
        measured[i, rows[rows >= 0]] = True
        if request.genes is None:
            sums[i] = _sums(table, rows, request, np.zeros(table.n_obs, dtype=np.int64), 1, len(vocabulary))[0]
    return _agreed(measured, sums, list(map(str, tables)), request)


def panel_of_table(table: AnnData, match: GeneMatch, n_genes: int, request: Request) -> np.ndarray | None:
    """Like `shared_panel` for sections of one table, where a gene counts as measured if it has a count.

    A gene without counts also counts as measured if the section is too small or shallow to expect `EXPECTED` counts.
    """
    codes, names = _checks.libraries(table, request.library_key)
    if len(names) < 2:
        if request.genes is not None:
            _checks.warn(
                f"genes={request.genes!r} has no effect: there is one section. Name the column that separates several "
                "sections with `library_key=`, pass a list of sections, or omit it."
            )
        return None
    sums = _sums(table, match.rows, request, codes, len(names), n_genes)
    elsewhere = sums.sum(axis=0) - sums
    share = elsewhere / np.maximum(elsewhere.sum(axis=1, keepdims=True), 1)
    expected = share * sums.sum(axis=1, keepdims=True)
    return _agreed((sums > 0) | (expected < EXPECTED), sums, names, request)


def _sums(
    table: AnnData, rows: np.ndarray, request: Request, codes: np.ndarray, n_sections: int, n_genes: int
) -> np.ndarray:
    """Counts (s, G) of each section in genes of the vocabulary, read block by block."""
    known = np.flatnonzero(rows >= 0)
    to_gene = sparse.csr_matrix((np.ones(len(known)), (known, rows[known])), (len(rows), n_genes))
    total = np.zeros((n_sections, len(rows)))
    for start, block in checked_rows(counts_of(table, request.layer), source=counts_name(request.layer)):
        here = codes[start : start + block.shape[0]]
        spots = sparse.csr_matrix((np.ones(len(here)), (here, np.arange(len(here)))), (n_sections, len(here)))
        total += (spots @ sparse.csr_matrix(block, dtype=np.float64)).toarray()
    return np.asarray(np.minimum(total, LARGEST_SUM) @ to_gene)  # keeps differences and ratios of sums finite


def _agreed(measured: np.ndarray, sums: np.ndarray, names: Sequence[str], request: Request) -> np.ndarray | None:
    shared = measured.all(axis=0)
    if request.genes == "shared":
        if not shared.any():
            raise ValueError(
                f"genes='shared' leaves no gene: none is measured by all {len(names)} sections "
                f"({_checks.shortlist(names)}). Remove the section with another panel."
            )
        return np.asarray(shared)
    apart = 1 - sums[:, shared].sum(axis=1) / np.maximum(sums.sum(axis=1), 1)
    most = int(np.argmax(apart))
    if apart[most] > MAX_UNSHARED:
        _checks.warn(
            f"The {len(names)} sections measure different genes: {apart[most]:.0%} of the counts of section "
            f"{names[most]!r} are in genes that not all sections measure ({int(shared.sum())} of "
            f"{int(measured.any(axis=0).sum())} genes are shared). This alone separates the sections in the "
            "embedding. Use genes='shared' to embed all of them with their shared genes."
        )
    return None
