"""Summarise how the genes of a section match a vocabulary (matched in `stampy.pp._genes.matching`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from .annotation import Features
from .matching import CASE, ID, MENDED, SYMBOL, WAYS, FoundRows, GeneIndex, find
from .names import REPEATED

__all__ = ["GeneMatch", "match"]


@dataclass(frozen=True, eq=False)
class GeneMatch:
    """Positions of the columns of a section in a vocabulary; prints as a report of the overlap."""

    rows: np.ndarray
    """int32 (n_vars,): row of the vocabulary; -1 if the gene is not in it or the column is not a gene."""
    source: str
    """Source of most of the matched names, e.g. ``var['gene_ids']`` or ``var_names``."""
    kind: str
    """Kind of most of the matched names: ``gene_id`` or ``symbol``."""
    n_matched: int
    """Genes of the vocabulary that the section contains."""
    n_vocabulary: int
    unmatched: tuple[str, ...]
    """Some unmatched genes, by falling counts if counts were read."""
    n_folded: int = 0
    """Columns matched by symbol only after ignoring case."""
    by: dict[str, int] = field(default_factory=dict)
    """Columns by rule of the match: ``Ensembl id``, ``symbol``, ``previous symbol``, ``alias``, ``mended name``, ..."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Columns that are not genes, by kind, e.g. ``Antibody Capture``."""
    n_contradictions: int = 0
    """Columns whose symbol and id belong to different genes; the id was used."""
    ambiguous: tuple[str, ...] = ()
    """Names that may stand for several genes and were not matched."""
    guessed: tuple[str, ...] = ()
    """Names matched to the more likely of two genes, with both."""
    unmatched_share: float | None = None
    """Fraction of the genes' counts in unmatched columns; None if the counts were not read."""
    repeated_share: float | None = None
    """Fraction of the genes' counts in columns that repeat a gene by name alone; None if they were not read."""

    @property
    def n_vars(self) -> int:
        """Columns of the section."""
        return len(self.rows)

    @property
    def n_left_out(self) -> int:
        """Columns that are not genes."""
        return sum(self.left_out.values())

    @property
    def n_columns(self) -> int:
        """Matched columns."""
        return int((self.rows >= 0).sum())

    @property
    def n_duplicated(self) -> int:
        """Columns beyond the first of their gene; counts of such columns are summed."""
        return self.n_columns - self.n_matched

    def record(self) -> dict[str, str | int | float]:
        """The match as a record for ``uns``, in types that every file format supports."""
        numbers = {f"n_by_{way.replace(' ', '_')}": n for way, n in self.by.items()}
        share = {} if self.unmatched_share is None else {"unmatched_share": round(self.unmatched_share, 6)}
        return {
            "n_matched": self.n_matched,
            "n_vars": self.n_vars,
            "n_duplicated": self.n_duplicated,
            "n_left_out": self.n_left_out,
            "n_ambiguous": len(self.ambiguous),
            "n_contradictions": self.n_contradictions,
            **numbers,
            **share,
        }

    def __str__(self) -> str:
        n_genes = self.n_vars - self.n_left_out
        text = (
            f"{self.n_columns} of {n_genes} genes of the section are in the vocabulary "
            f"({self.n_columns / max(n_genes, 1):.0%}; {self.n_matched / max(self.n_vocabulary, 1):.0%} of its "
            f"{self.n_vocabulary}), matched as {self.kind} by {self.source}"
        )
        if len(self.by) > 1:
            text += f" ({', '.join(f'{n} by {way}' for way, n in self.by.items())})"
        if self.n_folded:
            text += f", {self.n_folded} of them in another case"
        if self.unmatched_share is not None:
            text += f"; they account for {1 - self.unmatched_share:.1%} of the counts"
        if self.n_duplicated:
            text += f"; {self.n_duplicated} columns repeat a gene and are summed"
        if self.left_out:
            text += f"; not genes, and ignored: {', '.join(f'{n} {kind}' for kind, n in self.left_out.items())}"
        if self.n_contradictions:
            text += f"; for {self.n_contradictions} the symbol belongs to a different gene than the id; the id was used"
        if self.ambiguous:
            text += f"; {len(self.ambiguous)} names are ambiguous, e.g.: {', '.join(self.ambiguous[:5])}"
        if self.guessed:
            text += f"; guessed: {', '.join(self.guessed)}"
        if self.unmatched:
            text += f"; not in it, e.g.: {', '.join(self.unmatched)}"
        return text


def match(features: Features, index: GeneIndex, sums: np.ndarray | None = None) -> GeneMatch:
    """Match the columns of a section.

    Parameters
    ----------
    features
        Columns from :func:`features_of`.
    index
        Index of the vocabulary.
    sums
        Counts of each column (n_vars,), for the shares; None: no shares are reported.
    """
    found, n_contradictions = _found(features, index)
    ways, rows = found.ways.tolist(), found.rows
    by = {WAYS[way]: n for way, n in sorted(Counter(ways).items()) if way}
    sources = Counter(zip(found.sources[rows >= 0].tolist(), (way == ID for way in ways if way), strict=True))
    # of two sources with equal numbers, prefer ids, then the first
    source, is_id = max(sources, key=lambda s: (sources[s], s[1])) if sources else ("any column", False)
    lost = (rows < 0) & features.is_gene
    order = np.flatnonzero(lost)
    shares: dict[str, float] = {}
    if sums is not None:
        order = order[np.argsort(-sums[order], kind="stable")]
        total = max(float(sums[features.is_gene].sum()), 1e-300)
        shares = {
            "unmatched_share": float(sums[lost].sum()) / total,
            "repeated_share": float(sums[_repeated(features, rows, found.ways)].sum()) / total,
        }
    return GeneMatch(
        rows=rows,
        source=source,
        kind="gene_id" if is_id else "symbol",
        n_matched=len(np.unique(rows[rows >= 0])),
        n_vocabulary=len(index.gene_ids),
        unmatched=tuple(name_of(features, column) for column in order[:5]),
        n_folded=by.get(WAYS[CASE], 0),
        by=by,
        left_out=dict(Counter(kind for kind in features.left_out.tolist() if kind)),
        n_contradictions=n_contradictions,
        ambiguous=tuple(found.ambiguous),
        guessed=tuple(found.guessed),
        **shares,
    )


@lru_cache(maxsize=4)  # the genes of a cohort's sections are often the same
def _found(features: Features, index: GeneIndex) -> tuple[FoundRows, int]:
    """The match, read-only, and the number of contradictions."""
    found = find(features, index)
    found.rows.setflags(write=False)
    return found, len(contradictions(features, index))


def name_of(features: Features, column: int) -> str:
    """Name of a column in messages: its first symbol, else its name as written."""
    return next((names[column] for names in features.symbols.values() if names[column]), features.names[column])


def contradictions(features: Features, index: GeneIndex) -> list[int]:
    """Columns with an id and the approved symbol of a gene with another id."""
    if index.human is None or not features.symbols:
        return []
    human, names = index.human, next(iter(features.symbols.values()))
    found = []
    for column in np.flatnonzero(features.ids != "").tolist():
        gene = human.approved.get(names[column])
        other = human.ids[gene] if gene is not None else ""
        if other not in ("", features.ids[column]) and features.ids[column] in human.of_id:
            found.append(column)
    return found


def _repeated(features: Features, rows: np.ndarray, ways: np.ndarray) -> np.ndarray:
    """Bool (n,): columns that repeat the gene of an earlier column by name, such as CD4 and CD4-1."""
    repeated = np.zeros(len(rows), dtype=bool)
    named = np.flatnonzero((ways == SYMBOL) | (ways >= MENDED))
    numbers = np.bincount(rows[named], minlength=1)
    seen: set[tuple[int, str]] = set()
    for column in named[numbers[rows[named]] > 1].tolist():
        name = name_of(features, column)
        stem = found[1] if (found := REPEATED.fullmatch(name)) else name
        repeated[column] = bool({(rows[column], name), (rows[column], stem)} & seen)
        seen |= {(rows[column], name), (rows[column], stem)}
    return repeated
