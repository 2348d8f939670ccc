"""Which gene of the vocabulary each column of a section is: by Ensembl id or symbol, found by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _checks, _keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from ._vocabulary import Vocabulary

__all__ = ["GeneMatch", "cut_version", "gene_names", "match"]

ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id", "feature_ids", "id", "ids")
SYMBOL_COLUMNS = (
    *("symbol", "symbols", "gene_symbol", "gene_symbols", "hgnc_symbol", "gene_name", "gene_names", "feature_name"),
    *("feature_names", "name", "names", "gene", "genes", "gene_short_name", "external_gene_name", "genename"),
)
ENSEMBL = re.compile(r"ENS[A-Z]*G\d{6,}")
VERSION = re.compile(r"(ENS[A-Z]*G\d{6,})\.\d+")
VERSION_IN_LINES = re.compile(rf"\n{VERSION.pattern}\n")
MINIMUM = 0.1  # of the smaller of the two gene lists; even a section of another platform has more in common


@dataclass(frozen=True, eq=False)
class GeneMatch:
    """Where the columns of a section are in a vocabulary; as text, a report of the overlap."""

    rows: np.ndarray
    """int32 (n_vars,): row of the vocabulary, -1 where the gene is not in it."""
    source: str
    """Where the names were found, e.g. ``var['gene_ids']`` or ``var_names``."""
    kind: str
    """``gene_id`` or ``symbol``."""
    n_matched: int
    """Genes of the vocabulary that the section has."""
    n_vocabulary: int
    unmatched: tuple[str, ...]
    """Some genes of the section that are not in the vocabulary."""
    n_folded: int = 0
    """Columns matched by symbol only after upper and lower case were made equal."""

    @property
    def n_vars(self) -> int:
        """Columns of the section."""
        return len(self.rows)

    @property
    def n_duplicated(self) -> int:
        """Columns beyond the first of their gene; their counts are summed."""
        return int((self.rows >= 0).sum()) - self.n_matched

    def __str__(self) -> str:
        n_columns = self.n_matched + self.n_duplicated
        text = (
            f"{n_columns} of {self.n_vars} genes of the section are in the vocabulary "
            f"({n_columns / max(self.n_vars, 1):.0%}; {self.n_matched / max(self.n_vocabulary, 1):.0%} of its "
            f"{self.n_vocabulary}), matched as {self.kind} by {self.source}"
        )
        if self.n_folded:
            text += f", {self.n_folded} of them in another case"
        if self.n_duplicated:
            text += f"; {self.n_duplicated} columns repeat a gene and are summed"
        if self.unmatched:
            text += f"; not in it, e.g.: {', '.join(self.unmatched)}"
        return text


def cut_version(names: pd.Index) -> pd.Index:
    """Ensembl ids without `.version`; anything else, such as the symbol AC010608.1, as it is.

    >>> cut_version(pd.Index(["ENSG00000141510.18", "AC010608.1"])).tolist()
    ['ENSG00000141510', 'AC010608.1']
    """
    text = "\n".join(("", *names, ""))  # a search in all of them is far faster than one in each
    if "." not in text or "\nENS" not in text or not VERSION_IN_LINES.search(text):
        return names
    return pd.Index([_cut(name) if "." in name else name for name in names], dtype=object)


def _cut(name: str) -> str:
    return found[1] if (found := VERSION.fullmatch(name)) else name


def sources(var: pd.DataFrame) -> Iterator[tuple[str, pd.Index]]:
    """`var_names` and the columns that usually hold names of genes, as (source, names); missing names are empty.

    Where `stampy.pp.orthologs` has named human genes, only these.
    """
    if _keys.ORTHOLOG in var:  # of another species: its own names say nothing here
        for column in (f"{_keys.ORTHOLOG}_id", _keys.ORTHOLOG):
            if column in var:
                yield f"var['{column}']", pd.Index(var[column].astype(str), dtype=object)
        return
    yield "var_names", pd.Index(var.index.astype(str), dtype=object)
    ranks = {name: rank for rank, name in enumerate(ID_COLUMNS + SYMBOL_COLUMNS)}
    for column in sorted((c for c in var.columns if str(c).lower() in ranks), key=lambda c: ranks[str(c).lower()]):
        values = var[column].astype(object)
        known = values.notna()
        values = values if known.all() else values.where(known, "")
        names = list(map(str.strip, map(str, values.tolist())))
        yield f"var['{column}']", pd.Index(names, dtype=object)


def gene_names(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ensembl id (without version) and symbol of every column, each empty where it is not known."""
    ids = np.full(len(var), "", dtype=object)
    symbols = np.full(len(var), "", dtype=object)
    for _, names in sources(var):
        is_id = np.array([ENSEMBL.match(name) is not None for name in names], dtype=bool)
        ids = np.where((ids == "") & is_id, cut_version(names), ids)
        symbols = np.where((symbols == "") & ~is_id, names, symbols)
    return ids, symbols


def match(var: pd.DataFrame, vocabulary: Vocabulary) -> GeneMatch:
    """The match of the columns described by `var`, by the one source with most genes; ids before symbols."""
    best = None
    for kind in ("gene_id", "symbol"):
        for source, names in sources(var):
            rows, n_folded = vocabulary.rows_of(names, kind)
            n_matched = int(np.count_nonzero(np.bincount(rows[rows >= 0], minlength=1)))
            if best is None or n_matched > best.n_matched:
                unmatched = tuple(names[rows < 0][:5])
                best = GeneMatch(rows, source, kind, n_matched, len(vocabulary), unmatched, n_folded)
            if best.n_matched == min(len(var), len(vocabulary)):
                return best  # none can have more
    return best


def match_or_raise(adata: AnnData, vocabulary: Vocabulary) -> GeneMatch:
    """The match of a section; ValueError where it is too small to be right, a warning where it looks like mouse."""
    found = match(adata.var, vocabulary)
    if found.n_matched == 0 or found.n_matched < MINIMUM * min(found.n_vars, len(vocabulary)):
        raise ValueError(_too_small(adata, vocabulary, found))
    n_columns = found.n_matched + found.n_duplicated
    if found.kind == "symbol" and 2 * found.n_folded > n_columns and _is_title_case(adata.var_names):
        _checks.warn(
            f"Gene symbols such as {_checks.shortlist(adata.var_names, 3)} look like mouse: {found.n_folded} of "
            f"{n_columns} matched the vocabulary only in another case, as if each were the human gene of that name. "
            "`stampy.pp.orthologs` maps them by a table."
        )
    return found


def _is_title_case(names: pd.Index) -> bool:
    return np.mean([re.match(r"[A-Z][a-z0-9-]*[a-z]", str(name)) is not None for name in names]) > 0.5


def _too_small(adata: AnnData, vocabulary: Vocabulary, found: GeneMatch) -> str:
    """The message: what was seen, what was expected, and what to do."""
    ids, symbols = gene_names(adata.var)
    seen = _checks.shortlist([a or b for a, b in zip(ids, symbols, strict=True)], 4)
    text = (
        f"Only {found.n_matched} of {found.n_vars} genes of the section are in the vocabulary of {len(vocabulary)}: "
        f"seen {seen}, expected ids such as {_checks.shortlist(vocabulary.gene_ids[:3])} or symbols such as "
        f"{_checks.shortlist([s for s in vocabulary.symbols[:50] if s][:3])} "
        f"(best of all sources: {found.kind} by {found.source})."
    )
    if match(adata.obs[[]], vocabulary).n_matched > found.n_matched:
        return f"{text} The names in `adata.obs_names` match better: the table seems transposed, use `adata.T`."
    mouse = np.mean([gene.startswith("ENSMUSG") for gene in ids]) if len(ids) else 0
    if mouse > 0.5:
        return f"{text} These are mouse ids (ENSMUSG); map them by `stampy.pp.orthologs`, or use a mouse vocabulary."
    return (
        f"{text} Put Ensembl ids or symbols of the same species into `adata.var_names` or a column such as "
        "`adata.var['gene_ids']`, or use a vocabulary built from such data (`Vocabulary.from_sections`)."
    )
