"""The names of a vocabulary's genes: which row an id or a symbol is, and which rows are one gene."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

from ._hgnc import HumanGenes, human_genes
from ._names import ensembl_ids, is_title_case

__all__ = ["GeneIndex"]


class GeneIndex:
    """The names of a vocabulary's genes, and of HGNC's for one of human genes.

    Rows that are the same gene are one: that with an Ensembl id is used, the others (`merged`) are never found.

    Parameters
    ----------
    gene_ids, symbols
        Columns of the vocabulary.
    exact
        Know no names but these, and undo nothing that programs do to names.
    """

    def __init__(self, gene_ids: Iterable[str], symbols: Iterable[str], *, exact: bool = False):
        self.exact = exact
        self.gene_ids, self.symbols = list(gene_ids), list(symbols)
        self.first_symbols = [cell.split("|", 1)[0] for cell in self.symbols]
        self._inner = ensembl_ids(self.gene_ids)  # also of CYB561D2-ENSG00000114395, whose id is not its own
        self._proper = [
            bool(inner) and name[:3] == "ENS" for name, inner in zip(self.gene_ids, self._inner, strict=True)
        ]
        self.human = self._human_genes()
        self._gene_of_row = self._genes_of_rows()
        self.merged = self._merged()  # row -> row that stands for it

    def _human_genes(self) -> HumanGenes | None:
        """HGNC's names where at least half of the rows are known to it."""
        if self.exact or sum(inner.startswith("ENSG") for inner in self._inner) < sum(map(bool, self._inner)) / 2:
            return None
        human = human_genes()
        known = sum(
            gene in human.of_id if gene else human.find(symbol or name) >= 0
            for gene, symbol, name in zip(self._inner, self.first_symbols, self.gene_ids, strict=True)
        )
        return human if 2 * known >= len(self.gene_ids) else None

    def _genes_of_rows(self) -> list[int]:
        """HGNC's gene of every row, -1 where there is none."""
        human = self.human
        if human is None:
            return [-1] * len(self.gene_ids)
        genes = [human.of_id.get(inner, -1) if inner else -1 for inner in self._inner]
        for row in (row for row, inner in enumerate(self._inner) if not inner):
            name = self.first_symbols[row] or self.gene_ids[row]
            genes[row] = human.guess(name)
        return genes

    def _merged(self) -> dict[int, int]:
        """Rows without an Ensembl id of their own that are the gene of another row, and that row."""
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
    def by_symbol(self) -> dict[str, int]:
        """Symbol -> row; one of several rows belongs to the row that names it first, then to the lower row."""
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
        """Symbol in capitals -> row, -1 where symbols that differ by case alone are of several rows."""
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
        """Row of HGNC's gene, -1 where the vocabulary does not have it.

        A row with an id that HGNC does not know, such as a retired one, is found by the gene's approved symbol.
        """
        if gene < 0 or self.human is None:
            return -1
        row = self.by_gene.get(gene)
        if row is None:
            row = self.by_symbol.get(self.human.symbols[gene], -1)
            if row >= 0 and self._gene_of_row[row] >= 0:
                return -1  # the symbol is another gene's there
        return row

    @cached_property
    def title_case(self) -> bool:
        """Whether most symbols are written as those of mouse and rat are."""
        names = [name for name in self.first_symbols[:2000] if name]
        return 2 * sum(map(is_title_case, names)) > len(names)

    def row_of_id(self, gene_id: str) -> int | None:
        """Row of an Ensembl id; -1 where it is known that there is none, None where the id says nothing."""
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
