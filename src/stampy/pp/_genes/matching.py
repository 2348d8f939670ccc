"""Match the names of a section's columns to genes of a vocabulary: exact names first, then guesses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from .annotation import Features
from .names import HumanGenes, cut_genome, ensembl_ids, human_genes, is_title_case, mended, without_serials

__all__ = ["CASE", "ID", "MENDED", "PREVIOUS", "SYMBOL", "WAYS", "FoundRows", "GeneIndex", "find", "lookup"]


class GeneIndex:
    """Names of a vocabulary's genes; for human genes also the names listed by HGNC.

    Rows of the same gene are merged: the row with an Ensembl id is used, the others (`merged`) are never matched.

    Parameters
    ----------
    gene_ids, symbols
        Columns of the vocabulary.
    exact
        Accept only these names, exactly as written: no aliases and no correction of changed names.
    """

    def __init__(self, gene_ids: Iterable[str], symbols: Iterable[str], *, exact: bool = False):
        self.exact = exact
        self.gene_ids, self.symbols = list(gene_ids), list(symbols)
        self.first_symbols = [cell.split("|", 1)[0] for cell in self.symbols]
        self._inner = ensembl_ids(self.gene_ids)  # also CYB561D2-ENSG00000114395, where the id is another gene's
        self._proper = [
            bool(inner) and name[:3] == "ENS" for name, inner in zip(self.gene_ids, self._inner, strict=True)
        ]
        self.human = self._human_genes()
        self._gene_of_row = self._genes_of_rows()
        self.merged = self._merged()  # row -> row that is used instead

    def _human_genes(self) -> HumanGenes | None:
        """HGNC's names, if HGNC lists at least half of the rows."""
        if self.exact or sum(inner.startswith("ENSG") for inner in self._inner) < sum(map(bool, self._inner)) / 2:
            return None
        human = human_genes()
        known = sum(
            gene in human.of_id if gene else human.find(symbol or name) >= 0
            for gene, symbol, name in zip(self._inner, self.first_symbols, self.gene_ids, strict=True)
        )
        return human if 2 * known >= len(self.gene_ids) else None

    def _genes_of_rows(self) -> list[int]:
        """HGNC's gene of every row; -1 without gene."""
        human = self.human
        if human is None:
            return [-1] * len(self.gene_ids)
        genes = [human.of_id.get(inner, -1) if inner else -1 for inner in self._inner]
        for row in (row for row, inner in enumerate(self._inner) if not inner):
            name = self.first_symbols[row] or self.gene_ids[row]
            genes[row] = human.guess(name)
        return genes

    def _merged(self) -> dict[int, int]:
        """Rows without an Ensembl id that are the same gene as another row -> that row."""
        by_id = {inner: row for row, inner in reversed(list(enumerate(self._inner))) if self._proper[row]}
        by_gene: dict[int, int] = {}
        for proper in (True, False):
            for row, gene in enumerate(self._gene_of_row):
                if gene >= 0 and self._proper[row] == proper:
                    by_gene.setdefault(gene, row)
        merged = {}
        for row in (row for row, proper in enumerate(self._proper) if not proper):
            kept = by_id.get(self._inner[row], by_gene.get(self._gene_of_row[row], row))
            if kept != row:
                merged[row] = kept
        return merged

    @cached_property
    def by_id(self) -> dict[str, int]:
        """Ensembl id, or other `gene_id`, -> row."""
        rows: dict[str, int] = {}
        for names in (self.gene_ids, self._inner):
            for row, name in enumerate(names):
                if name:
                    rows.setdefault(name, self.merged.get(row, row))
        return rows

    @cached_property
    def by_retired(self) -> dict[str, int]:
        """Retired Ensembl id, listed after the symbol, -> row."""
        rows: dict[str, int] = {}
        for row, cell in enumerate(self.symbols):
            if "|ENSG" in cell:
                for name in filter(None, ensembl_ids(cell.split("|")[1:])):
                    rows.setdefault(name, self.merged.get(row, row))
        return rows

    @cached_property
    def by_symbol(self) -> dict[str, int]:
        """Symbol -> row; a symbol of several rows belongs to the row that lists it earliest, then to the lower row."""
        rows: dict[str, int] = {}
        for row, name in enumerate(self.first_symbols):
            if name:
                rows.setdefault(name, self.merged.get(row, row))
        for row, cell in enumerate(self.symbols):
            if "|" in cell:
                for name in filter(None, cell.split("|")[1:]):
                    rows.setdefault(name, self.merged.get(row, row))
        for row, name in enumerate(self.gene_ids):
            if not self._proper[row]:
                rows.setdefault(name, self.merged.get(row, row))
        return rows

    @cached_property
    def by_folded(self) -> dict[str, int]:
        """Symbol in capitals -> row; -1 if symbols that differ only by case belong to several rows."""
        rows: dict[str, int] = {}
        for name, row in self.by_symbol.items():
            upper = name.upper()
            rows[upper] = row if rows.get(upper, row) == row else -1
        if self.human is not None:
            for upper, gene in self.human.folded.items():
                if upper not in rows and (row := self.row_of_gene(gene)) >= 0:
                    rows[upper] = row
        return rows

    @cached_property
    def by_gene(self) -> dict[int, int]:
        """HGNC's gene -> row."""
        rows: dict[int, int] = {}
        for row, gene in enumerate(self._gene_of_row):
            if gene >= 0 and row not in self.merged:
                rows.setdefault(gene, row)
        return rows

    def row_of_gene(self, gene: int) -> int:
        """Row of an HGNC gene; -1 if it is not in the vocabulary.

        A row whose id is unknown to HGNC, e.g. a retired id, is found by the gene's approved symbol.
        """
        if gene < 0 or self.human is None:
            return -1
        row = self.by_gene.get(gene)
        if row is None:
            row = self.by_symbol.get(self.human.symbols[gene], -1)
            if row >= 0 and self._gene_of_row[row] >= 0:
                return -1  # the row belongs to a different gene
        return row

    @cached_property
    def title_case(self) -> bool:
        """Whether most symbols are in title case, as in mouse and rat."""
        names = [name for name in self.first_symbols[:2000] if name]
        return 2 * sum(map(is_title_case, names)) > len(names)

    def row_of_id(self, gene_id: str) -> int | None:
        """Row of an Ensembl id; -1 if the gene is known to have no row, None if the id is unknown."""
        row = self.by_id.get(gene_id)
        if row is not None:
            return row
        if self.human is None:
            return -1 if self._has_ids else None
        gene = self.human.of_id.get(gene_id)
        if gene is None:
            return None if gene_id.startswith("ENSG") else -1
        return self.row_of_gene(gene)

    @cached_property
    def _has_ids(self) -> bool:
        return any(self._inner)


NONE, ID, SYMBOL, PREVIOUS, ALIAS, MENDED, CASE = range(7)
WAYS = ("none", "Ensembl id", "symbol", "previous symbol", "alias", "mended name", "symbol in another case")


@dataclass(eq=False)
class FoundRows:
    """Rows of the vocabulary for the columns of a section, and the rule that matched each."""

    rows: np.ndarray  # int32 (n,), -1 for none
    ways: np.ndarray  # int8 (n,), index into WAYS
    sources: np.ndarray  # object (n,), source of the matched name
    settled: np.ndarray  # bool (n,): decided, with or without a row
    ambiguous: list[str] = field(default_factory=list)  # names that may stand for several genes; they have no row
    guessed: list[str] = field(default_factory=list)  # "1-Mar as MARCH1, not MARC1"

    def put(self, column: int, row: int, way: int, source: str) -> None:
        """Settle a column; row -1 if its gene is not in the vocabulary or must not be guessed."""
        self.settled[column] = True
        if row >= 0:
            self.rows[column], self.ways[column], self.sources[column] = row, way, source

    def refuse(self, column: int, name: str) -> None:
        """Settle a column whose name may stand for several genes."""
        self.settled[column] = True
        self.ambiguous.append(name)

    def open(self) -> list[int]:
        """Columns that are not settled."""
        return np.flatnonzero(~self.settled).tolist()


def find(features: Features, index: GeneIndex) -> FoundRows:
    """Rows of a section's columns in a vocabulary.

    Examples
    --------
    >>> import pandas as pd
    >>> from stampy.pp._genes.annotation import features_of
    >>> index = GeneIndex(["ENSG00000168385", "ENSG00000206503"], ["SEPTIN2", "HLA-A"])
    >>> found = find(features_of(pd.DataFrame(index=["SEPT2", "HLA.A", "2-Sep", "XIST"])), index)
    >>> found.rows.tolist(), [WAYS[way] for way in found.ways]
    ([0, 1, 0, -1], ['previous symbol', 'mended name', 'mended name', 'none'])
    """
    n = len(features)
    settled = ~features.is_gene | (features.foreign if index.human else False)
    found = FoundRows(np.full(n, -1, np.int32), np.zeros(n, np.int8), np.full(n, "", dtype=object), settled)
    _by_ids(features, index, found)
    by_id = set(found.rows[found.ways == ID].tolist())
    _by_names(features, index, found)
    # An unknown id may be retired. But if the gene of its symbol matched by another id, it is a different gene.
    doubtful = np.flatnonzero((features.ids != "") & (found.ways > ID))
    for column in doubtful[[row in by_id for row in found.rows[doubtful].tolist()]] if len(doubtful) else ():
        found.rows[column], found.ways[column], found.sources[column] = -1, NONE, ""
    found.settled |= features.ids != ""
    _by_guess(features, index, found)
    return found


def lookup(names: Iterable[str], kind: str, index: GeneIndex) -> FoundRows:
    """Rows of names of one kind: ``gene_id`` (an id, or a name used as id) or ``symbol``."""
    texts = [str(name).strip() for name in names]
    n, none = len(texts), [""] * len(texts)
    ids = np.array(ensembl_ids(texts) if kind == "gene_id" else none, dtype=object)
    bare, foreign = cut_genome(texts)
    names_of = {"names": list(bare)} if kind == "symbol" else {}
    features = Features(ids, np.array(none, dtype=object), names_of, np.array(none, dtype=object), foreign, texts)
    if kind == "symbol":
        return find(features, index)
    found = FoundRows(
        np.full(n, -1, np.int32), np.zeros(n, np.int8), np.full(n, "", dtype=object), np.zeros(n, dtype=bool)
    )
    _by_ids(features, index, found)
    for column in found.open():
        found.put(column, index.by_id.get(texts[column], -1), ID, "names")
    return found


def _by_ids(features: Features, index: GeneIndex, found: FoundRows) -> None:
    by_id = index.by_id
    for column in np.flatnonzero((features.ids != "") & ~found.settled).tolist():
        row = by_id.get(gene_id := features.ids[column])
        if row is None:
            row = index.row_of_id(gene_id)
        if row is not None:
            found.put(column, row, ID, features.id_sources[column])
    if not (retired := index.by_retired):
        return
    taken = set(found.rows.tolist())  # a section that has both ids has two genes
    for column in np.flatnonzero((features.ids != "") & ~found.settled & (found.rows < 0)).tolist():
        row = retired.get(features.ids[column])
        if row is not None and row not in taken:
            found.put(column, row, ID, features.id_sources[column])


def _by_names(features: Features, index: GeneIndex, found: FoundRows) -> None:
    """Match exact names: the vocabulary's own, then approved and previous symbols of HGNC."""
    for source, names in features.symbols.items():
        for column in found.open():
            row = index.by_symbol.get(names[column]) if names[column] else None
            if row is not None:
                found.put(column, row, SYMBOL, source)
    if index.human is None:
        return
    for way, genes in ((SYMBOL, index.human.approved), (PREVIOUS, index.human.previous)):
        for source, names in features.symbols.items():
            for column in found.open():
                gene = genes.get(names[column]) if names[column] else None
                if gene is not None and gene < 0:
                    found.refuse(column, names[column])
                elif gene is not None:
                    found.put(column, index.row_of_gene(gene), way, source)


def _by_guess(features: Features, index: GeneIndex, found: FoundRows) -> None:
    """Match aliases, then names changed by programs, then names in another case."""
    taken = set(found.rows[found.rows >= 0].tolist())
    if index.human is not None:
        for source, names in features.symbols.items():
            for column in found.open():
                gene = index.human.find_alias(names[column]) if names[column] else None
                if gene is None:
                    continue
                row = index.row_of_gene(gene)
                if gene < 0 or row in taken:  # genes have one column each, so the alias refers to another gene
                    found.refuse(column, names[column])
                else:
                    found.put(column, row, ALIAS, source)
    for source, names in features.symbols.items() if not index.exact else ():
        if not found.open():
            break
        dated = without_serials(names)
        repeated = Counter(map(_undated, dated))
        for column in found.open():
            if names[column]:
                _mend(column, dated[column], source, index, found, taken, repeated)
    for source, names in features.symbols.items():
        _fold(source, names, index, found)


def _undated(name: str) -> str:
    """The name without the suffix that make.unique appends to a second 1-Mar."""
    head, _, tail = name.rpartition(".")
    return head if tail.isdecimal() and "-" in head else name


def _mend(
    column: int, name: str, source: str, index: GeneIndex, found: FoundRows, taken: set[int], repeated: Counter[str]
) -> None:
    """Match a name that a program changed, if reverting the change gives a gene."""
    rows: dict[int, str] = {}
    for how, other in mended(name):
        row = _exact(other, index, aliases=how == "date" or other[:1].isdecimal())
        if row is None:
            continue
        if how not in ("date", "joined"):
            found.put(column, row, MENDED, source)
            return
        rows.setdefault(row, other)
    if len(rows) > 1:  # of the genes of a date (1-Mar), keep those not matched by another column
        rows = {row: other for row, other in rows.items() if row not in taken} or rows
    if not rows:
        return
    names = list(rows.values())
    if len(rows) > 1 and (not names[0].startswith("MARCH") or names[1][:4] != "MARC" or repeated[_undated(name)] > 1):
        found.refuse(column, name)
        return
    if len(rows) > 1:
        found.guessed.append(f"{name} as {names[0]}, not {names[1]}")
    found.put(column, next(iter(rows)), MENDED, source)


def _exact(name: str, index: GeneIndex, *, aliases: bool) -> int | None:
    """Row of a symbol (or alias) as written; -1 if its gene has no row, None if there is no such gene."""
    row = index.by_symbol.get(name)
    if row is None and index.human is not None:
        gene = index.human.find(name)
        gene = index.human.aliases.get(name, -1) if gene < 0 and aliases else gene
        row = index.row_of_gene(gene) if gene >= 0 else None
    return row


def _fold(source: str, names: Sequence[str], index: GeneIndex, found: FoundRows) -> None:
    """Match names regardless of case, but never mouse names to human genes or human names to mouse genes."""
    columns = list(_foldable(names, index, found.open()))
    if not columns:
        return
    folded = Counter(name.upper() for name in set(names))
    for column, row in columns:
        # ambiguous if names of the section differ only by case, e.g. those of two species
        if row >= 0 and folded[names[column].upper()] == 1:
            found.put(column, row, CASE, source)


def _foldable(names: Sequence[str], index: GeneIndex, columns: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (column, row) for names that match a gene in capitals, as they are or with changes by programs reverted."""
    for column in columns:
        name = names[column]
        if not name or (name.isupper() if index.title_case else is_title_case(name)):
            continue
        upper = name.upper()
        row = index.by_folded.get(upper)
        if row is None and upper != name and not index.exact:
            row = next((index.by_folded[other] for how, other in mended(upper) if _is_folded(how, other, index)), None)
        if row is not None:
            yield column, row


def _is_folded(how: str, name: str, index: GeneIndex) -> bool:
    return how in ("hyphen", "suffix") and name in index.by_folded
