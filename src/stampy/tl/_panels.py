"""Sections that measure different genes: how much that matters, and the genes that all of them measure.

Shapes: s sections, G genes of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from stampy import _checks, models
from stampy._utils import table_of
from stampy.pp._counts import LARGEST_SUM, checked_rows, counts_of, source_of

from ._arguments import named
from ._encoders import match_genes, vocabulary_of

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

    from stampy.pp._match_report import GeneMatch

    from ._arguments import Request
    from ._embed import Sections
    from ._encoders import Encoder

__all__ = ["panel_of_table", "shared_panel", "within"]

EXPECTED = 10.0  # counts of a gene in a section; none at all has probability 5e-5 then, by Poisson
MOST_APART = 0.05  # of a section's counts, in genes that not all sections measure; above, a warning


def within(match: GeneMatch, panel: np.ndarray | None) -> GeneMatch:
    """The match without genes outside of the panel (G,) bool; None: all genes."""
    if panel is None:
        return match
    kept = np.where((match.rows >= 0) & panel[np.maximum(match.rows, 0)], match.rows, -1).astype(np.int32)
    return replace(match, rows=kept, n_matched=len(np.unique(kept[kept >= 0])))


def shared_panel(data: Sections, request: Request, model: str | Path | Encoder) -> np.ndarray | None:
    """The genes (G,) bool that all of several sections have in ``var``, if they are asked for; None for all genes.

    Warns where sections differ and all genes are used.
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
    """The same for the sections of one table: a section measures the genes of which it has a count.

    Also those of which it is too small or shallow to have one: fewer than `EXPECTED` are expected.
    """
    codes, names = _checks.libraries(table, request.library_key)
    if len(names) < 2:
        return None
    sums = _sums(table, match.rows, request, codes, len(names), n_genes)
    elsewhere = sums.sum(axis=0) - sums
    share = elsewhere / np.maximum(elsewhere.sum(axis=1, keepdims=True), 1)
    expected = share * sums.sum(axis=1, keepdims=True)
    return _agreed((sums > 0) | (expected < EXPECTED), sums, names, request)


def _sums(
    table: AnnData, rows: np.ndarray, request: Request, codes: np.ndarray, n_sections: int, n_genes: int
) -> np.ndarray:
    """Counts (s, G) of each section in the genes of the vocabulary, read block by block."""
    known = np.flatnonzero(rows >= 0)
    to_gene = sparse.csr_matrix((np.ones(len(known)), (known, rows[known])), (len(rows), n_genes))
    total = np.zeros((n_sections, len(rows)))
    for start, block in checked_rows(counts_of(table, request.layer), source=source_of(request.layer)):
        here = codes[start : start + block.shape[0]]
        spots = sparse.csr_matrix((np.ones(len(here)), (here, np.arange(len(here)))), (n_sections, len(here)))
        total += (spots @ sparse.csr_matrix(block, dtype=np.float64)).toarray()
    return np.asarray(np.minimum(total, LARGEST_SUM) @ to_gene)  # differences and shares of sums stay finite


def _agreed(measured: np.ndarray, sums: np.ndarray, names: Sequence[str], request: Request) -> np.ndarray | None:
    shared = measured.all(axis=0)
    if request.genes == "shared":
        if not shared.any():
            raise ValueError(
                f"genes='shared' leaves no gene: none is measured by all {len(names)} sections "
                f"({_checks.shortlist(names)}). Leave out the section with another panel."
            )
        return np.asarray(shared)
    apart = 1 - sums[:, shared].sum(axis=1) / np.maximum(sums.sum(axis=1), 1)
    most = int(np.argmax(apart))
    if apart[most] > MOST_APART:
        _checks.warn(
            f"The {len(names)} sections measure different genes: {apart[most]:.0%} of the counts of section "
            f"{names[most]!r} are in genes that not all sections measure ({int(shared.sum())} of "
            f"{int(measured.any(axis=0).sum())} genes are shared). That alone sets sections apart in the embedding. "
            "Use genes='shared' to embed all by the genes that they share."
        )
    return None
