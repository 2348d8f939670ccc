"""Read `var` of a section: Ensembl id and symbols of each column, and whether the column is a gene."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd

from stampy import _keys

from .names import FOREIGN, control_of, cut_common, cut_genome, cut_quotes, ensembl_ids, human_genes, is_title_case

__all__ = ["Features", "features_of", "gene_columns", "gene_names", "resolved_names"]

ID_COLUMNS = (
    *("gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "ensembl_gene_id", "ensembl_gene", "ensemblid"),
    *("feature_id", "feature_ids", "gene_stable_id", "geneid", "gene_ensembl", "id", "ids"),
)
SYMBOL_COLUMNS = (
    *("symbol", "symbols", "gene_symbol", "gene_symbols", "hgnc_symbol", "gene_name", "gene_names", "feature_name"),
    *("feature_names", "name", "names", "gene", "genes", "gene_short_name", "external_gene_name", "genename"),
    *("genesymbol", "symbol_id", "target_name", "targetname", "original_name"),
)
RANKS = {name: rank for rank, name in enumerate(ID_COLUMNS + SYMBOL_COLUMNS)}
KIND_COLUMNS = ("feature_types", "feature_type", "featuretype", "type", "codeclass", "code_class")
GENES = "gene expression"
NOT_GENES = re.compile(
    r"antibod|crispr|guide|multiplex|hashtag|\bhto\b|\badt\b|^protein$|peaks?$|control|codeword|blank|negative|spike"
    r"|^custom$|^antigen|^vdj",
    re.I,
)
OF_OTHER_GENES = re.compile(r"ortho|homolog|paralog|mouse|transcript|protein|target|nearest|neighbo|partner|pair", re.I)


@dataclass(frozen=True, eq=False)
class Features:
    """Columns of a section as described by `var`; every array has one entry per column."""

    ids: np.ndarray
    """Ensembl id without version; empty without id."""
    id_sources: np.ndarray
    """Source of the id, ``var_names`` or e.g. ``var['gene_ids']``; empty without id."""
    symbols: dict[str, list[str]]
    """Source -> names that are not ids, without blanks and genome prefix, empty if missing; most trusted first."""
    left_out: np.ndarray
    """Kind of a feature that is not a gene, e.g. ``Antibody Capture`` or ``blank``; empty for genes."""
    foreign: np.ndarray
    """Bool: the name has the genome prefix of another species."""
    names: list[str]
    """Names as written, for messages."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_gene(self) -> np.ndarray:
        """(n,) bool, True for genes."""
        return self.left_out == ""


def features_of(var: pd.DataFrame) -> Features:
    """Read `var`: its index, columns that usually contain gene names, and ids in any text column.

    If `stampy.pp.orthologs` has added human genes, only these are used.

    Examples
    --------
    >>> found = features_of(pd.DataFrame({"gene_ids": ["ENSG00000141510.2", "none"]}, index=["TP53", "GRCh38_GAPDH"]))
    >>> found.ids.tolist(), found.symbols["var_names"]
    (['ENSG00000141510', ''], ['TP53', 'GAPDH'])
    """
    key = _key(var)
    if key not in _CACHE:
        if len(_CACHE) == _CACHE_SIZE:
            _CACHE.pop(next(iter(_CACHE)))
        _CACHE[key] = _read(var)
    return _CACHE[key]


_CACHE: dict[str, Features] = {}  # most recent results by hash of `var`: sections of a cohort share their genes
_CACHE_SIZE = 4


def _key(var: pd.DataFrame) -> str:
    """Hash of all entries of `var` that may be a name or a feature type."""
    found = hashlib.blake2b(digest_size=16)
    columns = [c for c in var.columns if var[c].dtype.kind not in "biufcmM"]
    for title, values in (("", var.index), *((c, var[c]) for c in columns)):
        found.update(f"\x1e{title!r}\x1e".encode())
        found.update("\x1f".join(map(str, values.tolist())).encode("utf-8", "surrogatepass"))
    return found.hexdigest()


def _read(var: pd.DataFrame) -> Features:
    n = len(var)
    written = list(map(str, var.index))
    sources = _sources(var)
    ids, id_sources = np.full(n, "", dtype=object), np.full(n, "", dtype=object)
    symbols: dict[str, list[str]] = {}
    foreign = np.zeros(n, dtype=bool)
    for source, names in sources.items():
        found = ensembl_ids(names)
        _fill(ids, id_sources, found, source)
        bare, of_others = cut_genome(names)
        foreign |= of_others
        bare = cut_common(bare)
        symbols[source] = [
            _symbol_beside_id(name, gene_id) if gene_id else name for name, gene_id in zip(bare, found, strict=True)
        ]
    foreign |= _of_another_genome(var)
    if not (ids != "").any() and _keys.ORTHOLOG not in var:
        for source, names in _other_columns(var):
            _fill(ids, id_sources, ensembl_ids(names), source)
    symbols = {source: names for source, names in symbols.items() if any(names)}
    return Features(ids, id_sources, symbols, _left_out(var, written), foreign, written)


def gene_columns(var: pd.DataFrame) -> tuple[np.ndarray, str]:
    """Return which columns are genes, bool (n_vars,), and a message about the others (antibodies, guides, peaks).

    Raises
    ------
    ValueError
        No column is a gene.

    Examples
    --------
    >>> var = pd.DataFrame({"feature_types": ["Gene Expression", "Antibody Capture"]}, index=["CD4", "CD4_prot"])
    >>> gene_columns(var)
    (array([ True, False]), '1 of 2 columns is not a gene and is dropped: 1 Antibody Capture.')
    """
    found = features_of(var)
    kinds = Counter(kind for kind in found.left_out.tolist() if kind)
    counted = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
    n = sum(kinds.values())
    if n == len(found) and n:
        raise ValueError(f"None of the {n} columns of the section is a gene: {counted}. stampy needs gene expression.")
    verb = "is not a gene and is" if n == 1 else "are not genes and are"
    return found.is_gene, f"{n} of {len(found)} columns {verb} dropped: {counted}." if n else ""


def gene_names(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Ensembl id (without version) and symbol of every column; empty if unknown."""
    found = features_of(var)
    return found.ids, _first_symbols(found)


def _first_symbols(features: Features) -> np.ndarray:
    """Most trusted symbol of every column; empty without symbol."""
    symbols = np.full(len(features), "", dtype=object)
    for names in features.symbols.values():
        symbols = np.where(symbols == "", np.array(names, dtype=object), symbols)
    return symbols


def _of_another_genome(var: pd.DataFrame) -> np.ndarray:
    """Columns (bool) of mouse or rat genes, by a column with the genomes of several species."""
    if "genome" not in var or _keys.ORTHOLOG in var:
        return np.zeros(len(var), dtype=bool)
    found = np.array([name.lower().startswith(FOREIGN) for name in _texts(var["genome"])])
    return found if not found.all() else np.zeros(len(var), dtype=bool)


def _sources(var: pd.DataFrame) -> dict[str, list[str]]:
    """`var_names` and the columns that usually contain gene names, stripped of blanks; missing names are empty."""
    if _keys.ORTHOLOG in var:  # genes were mapped to human: the original names are not used
        columns = [c for c in (f"{_keys.ORTHOLOG}_id", _keys.ORTHOLOG) if c in var]
        return {f"var['{column}']": _texts(var[column]) for column in columns}
    found = {"var_names": cut_quotes([str(name).strip() for name in var.index])}
    known = [(rank, column) for column in var.columns if (rank := _rank(column)) is not None]
    for _, column in sorted(known, key=lambda pair: pair[0]):
        found[f"var['{column}']"] = _texts(var[column])
    return found


def _rank(column: object) -> int | None:
    return RANKS.get(re.sub(r"[-. ]", "_", str(column)).lower())


def _texts(column: pd.Series) -> list[str]:
    values = column.astype(object)
    known = values.notna()
    values = values if known.all() else values.where(known, "")
    return cut_quotes([str(value).strip() for value in values.tolist()])


def _other_columns(var: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Other text columns as (source, names), except columns that name other genes."""
    return [
        (f"var['{column}']", _texts(var[column]))
        for column in var.columns
        if re.sub(r"[-. ]", "_", str(column)).lower() not in RANKS
        and not OF_OTHER_GENES.search(str(column))
        and var[column].dtype.kind not in "biufcmM"
    ]


def _fill(ids: np.ndarray, id_sources: np.ndarray, found: list[str], source: str) -> None:
    """Fill in missing ids in place."""
    new = np.array(found, dtype=object)
    here = (ids == "") & (new != "")
    ids[here], id_sources[here] = new[here], source


def _symbol_beside_id(name: str, gene_id: str) -> str:
    """Symbol next to an id in names such as ``TP53_ENSG00000141510`` or ``ENSG00000141510|TP53``."""
    if name == gene_id:
        return ""
    rest = re.sub(r"ENS[A-Z]*G\d+(?:\.\d+)?(?:[-_]PAR[-_]Y)?", "", name, flags=re.I).strip(" |:;,-_.()[]/")
    return "" if rest.upper() == "DEPRECATED" else rest


def _left_out(var: pd.DataFrame, names: list[str]) -> np.ndarray:
    """Kind of each column that is not a gene, from a column of feature types, else from its name."""
    kinds = np.array(control_of(names), dtype=object)
    for column in var.columns:
        if str(column).lower().replace(" ", "_") not in KIND_COLUMNS:
            continue
        values = np.array(_texts(var[column]), dtype=object)
        written = {value: value.lower().replace("_", " ") for value in set(values)}
        strict = GENES in written.values()
        other = {v for v, low in written.items() if v and (low != GENES if strict else NOT_GENES.search(low))}
        if other:
            kinds = np.where(np.isin(values, list(other)), values, kinds)
    return kinds


def resolved_names(var: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Current HGNC id and symbol of every column, and which columns are genes (bool).

    In a table of human genes, symbols, previous symbols, aliases and corrected names are resolved to the gene's id, and
    every gene gets HGNC's symbol. Names in tables of other species, and names unknown to HGNC, are not changed.

    Examples
    --------
    >>> ids, symbols, is_gene = resolved_names(pd.DataFrame(index=["SEPT2", "GAPDH", "HLA.A", "Blank-1"]))
    >>> symbols.tolist(), is_gene.tolist()
    (['SEPTIN2', 'GAPDH', 'HLA-A', 'Blank-1'], [True, True, True, False])
    """
    features = features_of(var)
    ids, symbols = features.ids.copy(), _first_symbols(features)
    human = human_genes()
    genes = np.array([human.of_id.get(i, -1) if i else human.find(s) for i, s in zip(ids, symbols, strict=True)])
    is_gene = features.is_gene
    if 2 * int((genes[is_gene] >= 0).sum()) < int(is_gene.sum()):
        return ids, symbols, is_gene
    taken = set(genes.tolist())
    for column in np.flatnonzero((genes < 0) & (ids == "") & (symbols != "") & ~features.foreign).tolist():
        gene = human.guess(symbols[column])
        if gene < 0 and symbols[column] not in human.aliases and not is_title_case(symbols[column]):
            gene = human.folded.get(symbols[column].upper(), -1)
            gene = -1 if gene in taken else gene
        genes[column] = -1 if gene in taken and human.aliases.get(symbols[column]) == gene else gene
    for column in np.flatnonzero(genes >= 0).tolist():
        ids[column] = ids[column] or human.ids[genes[column]]
        symbols[column] = human.symbols[genes[column]]
    return ids, symbols, is_gene
