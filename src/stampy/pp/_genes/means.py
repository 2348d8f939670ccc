"""Mean of every gene over the spots of a corpus in which it was detected, computed section by section."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks
from stampy._section.outside_links import refuse_links
from stampy.pp._counts import checked_rows, counts_of

from .annotation import resolved_names

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["add_sums", "corpus_sums", "gene_means", "means_of", "section_sums"]

DEPTH = 10_000.0  # counts per spot after scaling


def gene_means(sections: Iterable[AnnData | str | Path], *, layer: str | None = None) -> pd.DataFrame:
    """Return one row per gene: gene_id, symbol, divisor (mean of the depth-scaled non-zero counts), n_spots.

    Examples
    --------
    >>> from anndata import AnnData
    >>> section = AnnData(np.array([[1.0, 3.0], [0.0, 2.0]]), var=pd.DataFrame(index=["TP53", "GAPDH"]))
    >>> gene_means([section])
               gene_id symbol  divisor  n_spots
    0  ENSG00000111640  GAPDH   8750.0        2
    1  ENSG00000141510   TP53   2500.0        1
    """
    return means_of(corpus_sums(sections, layer=layer))


def corpus_sums(sections: Iterable[AnnData | str | Path], *, layer: str | None = None) -> pd.DataFrame:
    """Sums of the depth-scaled counts of all sections, one row per pair of id and symbol."""
    from anndata import AnnData

    if isinstance(sections, AnnData | str | Path):
        raise TypeError("`sections` must be an iterable of sections or paths, found a single one; put it into a list.")
    sums = None
    for number, section in enumerate(sections):
        with _opened(section, number) as (adata, name):
            sums = add_sums(sums, section_sums(adata, layer, name))
    if sums is None:
        raise ValueError("`sections` is empty; a vocabulary needs at least one section.")
    return sums


def add_sums(sums: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Add the sums of two parts of a corpus; one row per pair of id and symbol."""
    sums = new if sums is None else pd.concat([sums, new])
    return sums.groupby(["gene_id", "symbol"], as_index=False, sort=False).sum()


def means_of(sums: pd.DataFrame) -> pd.DataFrame:
    """Compute the result of `gene_means` from the sums of all sections."""
    return _merged(_resolved(sums))


@contextlib.contextmanager
def _opened(section: AnnData | str | Path, number: int) -> Iterator[tuple[AnnData, str]]:
    """Yield the section and its name for messages; a file is opened backed and closed at the end."""
    import anndata

    if isinstance(section, anndata.AnnData):
        yield section, f"section {number}"
    elif isinstance(section, str | Path):
        path = _checks.existing(section, what="section", suffixes=(".h5ad",))
        refuse_links(path)
        with _checks.readable(path):
            adata = anndata.read_h5ad(path, backed="r")
        try:
            yield adata, repr(str(section))
        finally:
            adata.file.close()
    else:
        raise TypeError(f"`sections` must contain AnnData or paths of .h5ad files, found {type(section).__name__}.")


def section_sums(adata: AnnData, layer: str | None, name: str) -> pd.DataFrame:
    """Sum of the depth-scaled counts of each gene of a section, and the number of spots in which it was detected."""
    _checks.not_empty(adata)
    gene_ids, symbols, is_gene = resolved_names(adata.var)
    if not is_gene.any():
        raise ValueError(f"None of the {adata.n_vars} columns of {name} is a gene, e.g. {adata.var_names[0]!r}.")
    codes, keys = pd.factorize(np.where(gene_ids == "", symbols, gene_ids))
    first = np.unique(codes, return_index=True)[1]  # the first column of a gene gives the symbol
    # exclude features that are not genes, such as antibodies
    columns = sparse.csr_array(
        (is_gene.astype(np.float64), (np.arange(len(codes)), codes)), shape=(len(codes), len(keys))
    )
    columns.eliminate_zeros()
    total, n_spots = np.zeros(len(keys)), np.zeros(len(keys), dtype=np.int64)
    where = f"{'X' if layer is None else f'layers[{layer!r}]'} of {name}"
    for _, block in checked_rows(counts_of(adata, layer), source=where, layers=adata.layers):
        genes = sparse.csr_array(block, dtype=np.float64) @ columns  # also sums duplicate entries of a file
        depth = np.asarray(genes.sum(axis=1)).ravel()
        with np.errstate(over="ignore"):  # infinite values are refused as divisors
            scale = np.divide(DEPTH, depth, out=np.zeros_like(depth), where=depth > 0)
        values = genes.data * np.repeat(scale, np.diff(genes.indptr))
        total += np.bincount(genes.indices, weights=values, minlength=len(keys))
        n_spots += np.bincount(genes.indices[values > 0], minlength=len(keys))
    sums = pd.DataFrame({"gene_id": gene_ids[first], "symbol": symbols[first], "total": total, "n_spots": n_spots})
    named = (gene_ids != "") | (symbols != "")
    return sums[np.isin(np.arange(len(keys)), codes[is_gene & named])]


def _resolved(sums: pd.DataFrame) -> pd.DataFrame:
    """Give every row an id and every symbol a single id."""
    both = sums[(sums["gene_id"] != "") & (sums["symbol"] != "")]
    both = both.sort_values(["n_spots", "gene_id"], ascending=[False, True]).drop_duplicates("symbol")
    id_of = both.set_index("symbol")["gene_id"]
    found = sums["symbol"].map(id_of).astype(object)  # NaN if the symbol is empty or has no id in any section
    gene_id = sums["gene_id"].where(sums["gene_id"] != "", found.fillna(sums["symbol"]))
    return sums.assign(gene_id=gene_id, symbol=sums["symbol"].where(found.isna() | (found == gene_id), ""))


def _merged(sums: pd.DataFrame) -> pd.DataFrame:
    """One row per gene, with its symbols joined by ``|``, the most frequent first."""
    sums = sums.sort_values(["n_spots", "symbol"], ascending=[False, True])
    symbols: dict[str, list[str]] = {}
    for gene_id, symbol in zip(sums["gene_id"], sums["symbol"], strict=True):
        known = symbols.setdefault(gene_id, [])
        if symbol and symbol not in known:
            known.append(symbol)
    genes = sums.groupby("gene_id", sort=True)[["total", "n_spots"]].sum().reset_index()
    return pd.DataFrame(
        {
            "gene_id": genes["gene_id"],
            "symbol": ["|".join(symbols[gene_id]) for gene_id in genes["gene_id"]],
            "divisor": genes["total"] / genes["n_spots"].where(genes["n_spots"] > 0),
            "n_spots": genes["n_spots"],
        }
    )
