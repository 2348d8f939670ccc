"""Map genes of another species to the human genes of the models, with a report."""

from __future__ import annotations

import gzip
import hashlib
import logging
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stampy
from stampy import _checks, _keys, _utils

from ._genes.annotation import gene_names
from ._genes.match_checks import checked_match
from ._genes.match_report import GeneMatch
from ._genes.matching import PREVIOUS, SYMBOL, lookup
from ._genes.names import FOLDER, cut_version
from ._vocabulary import Vocabulary, packaged_vocabulary

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["human_matched", "orthologs"]

logger = logging.getLogger(__name__)

# columns of Ensembl's BioMart and their names here
_ENSEMBL = {
    "Gene stable ID": "other_id",
    "Gene name": "other",
    "Human gene stable ID": "human_id",
    "Human gene name": "human",
}
_PLAIN = {"mouse": "other", "mouse_id": "other_id", "human": "human", "human_id": "human_id"}
_COLUMNS = ["other", "other_id", "human", "human_id"]
TABLES = (
    "a table of Ensembl's BioMart ('Gene stable ID', 'Gene name', 'Human gene stable ID', 'Human gene name'), MGI's "
    "HOM_MouseHumanSequence.rpt ('DB Class Key', 'Common Organism Name', 'Symbol'), or columns such as mouse, "
    "mouse_id, human, human_id"
)


def orthologs(
    adata: AnnData | SpatialData,
    table: pd.DataFrame | str | Path | None = None,
    *,
    same_symbol: bool = True,
    vocabulary: Vocabulary | str | Path | None = None,
    table_key: str = _keys.TABLE,
    key_added: str = _keys.ORTHOLOG,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Add the human orthologs of the genes of a mouse section, so that human models can be used.

    Afterwards, `stampy.tl.embed` and all other functions match genes by this column. Only one-to-one pairs are used.
    Counts are not changed. Results depend on the assumption that orthologs are expressed similarly.

    Parameters
    ----------
    adata
        Section of mouse genes: Ensembl ids (ENSMUSG...) or symbols in ``var_names`` or a column.
    table
        Orthologs: a table or the path of a table (tab- or comma-separated) as downloaded from Ensembl's BioMart or MGI,
        or with some of the columns mouse, mouse_id, human, human_id.
        ``stampy.datasets.fetch("mouse_human_orthologs", file="ensembl", allow_unverified=True)`` downloads one. None:
        the packaged table of MGI (CC BY 4.0), 20,120 mouse genes.
    same_symbol
        Map a gene that is not in the table to the human gene with the same symbol in capitals, if it is in the
        vocabulary (Actb to ACTB). This is correct for most genes, but not for all; the report states how many were
        mapped this way.
    vocabulary
        Human genes for `same_symbol`; None: the vocabulary of the packaged model.
    table_key
        Table of a SpatialData.
    key_added
        Key for the results. Gene matching uses only the default key.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``var[key_added]``
        Symbol of the human ortholog; empty without ortholog.
    ``var[key_added + "_id"]``
        Its Ensembl id, if the table contains it.
    ``var[key_added + "_by"]``
        ``"table"``, ``"same symbol"`` or ``"none"``.
    ``uns["stamp"][key_added]``
        Report: number of genes mapped by each rule, pairs in the table, pairs that are not one-to-one, and the hash of
        the table.

    Raises
    ------
    ValueError
        The columns of the table are not known, or no gene was mapped.
    FileNotFoundError
        There is no such table.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> section = AnnData(np.eye(3, dtype=np.float32), var=pd.DataFrame(index=["Actb", "Cd74", "Gm10244"]))
    >>> orthologs(section, pd.DataFrame({"mouse": ["Cd74"], "human": ["CD74"]}))
    >>> section.var["human_ortholog"].tolist(), section.var["human_ortholog_by"].tolist()
    (['ACTB', 'CD74', ''], ['same symbol', 'table', 'none'])
    """
    if copy:
        adata = _utils.copy_of(adata, table_key)
    section = _utils.table_of(adata, table_key)
    _checks.not_empty(section)
    pairs, report = _pairs(table)
    named = _named(section.var, pairs, _vocabulary(vocabulary) if same_symbol else None)
    by = named[f"{_keys.ORTHOLOG}_by"]
    columns = {column.replace(_keys.ORTHOLOG, key_added): named[column] for column in named}
    _utils.make_room(section, key_added, [("var", column) for column in columns], field="n_same_symbol")
    for column, values in columns.items():
        section.var[column] = values
    counted = {f"n_{name.replace(' ', '_')}": int((by == name).sum()) for name in ("table", "same symbol", "none")}
    record = {"stampy": stampy.__version__, "n_vars": section.n_vars, **counted, **report}
    section.uns[_keys.UNS] = {**section.uns.get(_keys.UNS, {}), key_added: record}
    logger.info(
        "%d of %d genes mapped to human orthologs: %d by the table, %d by the same symbol",
        record["n_table"] + record["n_same_symbol"], record["n_vars"], record["n_table"], record["n_same_symbol"],
    )  # fmt: skip
    return adata if copy else None


def human_matched(adata: AnnData, vocabulary: Vocabulary, *, layer: str | None = None) -> GeneMatch:
    """Match of a mouse section to a human vocabulary by `orthologs`; writes nothing.

    Parameters
    ----------
    adata
        Section of mouse genes.
    vocabulary
        Human genes.
    layer
        Layer with the counts for the shares; None: ``X``.

    Raises
    ------
    ValueError
        No gene was mapped, or too few genes are in the vocabulary.
    """
    _checks.not_empty(adata)
    if _keys.ORTHOLOG in adata.var:  # mapped before, perhaps by another table
        return vocabulary.match(adata, layer=layer)
    var = adata.var.join(_named(adata.var, _pairs(None)[0], vocabulary))
    return checked_match(adata, vocabulary.index, layer, var=var)


def _vocabulary(vocabulary: Vocabulary | str | Path | None) -> Vocabulary:
    if isinstance(vocabulary, Vocabulary):
        return vocabulary
    return packaged_vocabulary() if vocabulary is None else Vocabulary.load(vocabulary)


def _named(var: pd.DataFrame, pairs: pd.DataFrame, vocabulary: Vocabulary | None) -> pd.DataFrame:
    """The columns that `orthologs` writes; with a vocabulary, genes are also mapped by symbol."""
    var = var.drop(columns=[c for c in var if str(c).startswith(_keys.ORTHOLOG)])
    ids, symbols = gene_names(var)
    n_human, n_ids = sum(gene.startswith("ENSG") for gene in ids), int((ids != "").sum())
    if 2 * n_human > n_ids:
        _checks.warn(
            f"{n_human} of {n_ids} Ensembl ids are human (ENSG): human genes need no orthologs, and genes without a "
            "mouse ortholog are lost. Omit `pp.orthologs`, or organism='mouse'."
        )
    rows = _by_table(pairs, ids, symbols)
    # row -1 (no pair) selects the appended empty string
    human, human_id = (np.append(pairs[name].to_numpy(dtype=object), "")[rows] for name in ("human", "human_id"))
    by = np.where(rows >= 0, "table", "none").astype(object)
    if vocabulary is not None:
        _by_symbol(vocabulary, symbols, human, human_id, by)
    if not (by != "none").any():
        raise ValueError(_nothing(ids, symbols))
    columns = {
        _keys.ORTHOLOG: human.astype(str),
        f"{_keys.ORTHOLOG}_id": human_id.astype(str),
        f"{_keys.ORTHOLOG}_by": pd.Categorical(by, categories=["table", "same symbol", "none"]),
    }
    return pd.DataFrame(columns, index=var.index)


@lru_cache(maxsize=1)
def _packaged_pairs() -> tuple[pd.DataFrame, dict[str, Any]]:
    path = FOLDER / "mouse_orthologs.tsv.gz"
    data = path.read_bytes()
    lines = (line.split("\t") for line in gzip.decompress(data).decode().split("\n") if line and line[0] != "#")
    header = [_PLAIN[name] for name in next(lines)]
    pairs = pd.DataFrame(dict(zip(header, map(list, zip(*lines, strict=True)), strict=True)), columns=_COLUMNS)
    return _one_to_one(pairs, "packaged: MGI, HGNC_AllianceHomology", hashlib.sha256(data).hexdigest())


def _pairs(table: pd.DataFrame | str | Path | None) -> tuple[pd.DataFrame, dict[str, Any]]:
    """One-to-one pairs (text, empty if unknown), and a report of the table."""
    if table is None:
        return _packaged_pairs()
    name, sha256 = "given", ""
    if not isinstance(table, pd.DataFrame):
        path = _checks.existing(table, what="table of orthologs")
        name = path.name
        with path.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        table = _read(path)
    return _one_to_one(_normalised(table), name, sha256)


def _one_to_one(pairs: pd.DataFrame, name: str, sha256: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    several = np.zeros(len(pairs), dtype=bool)
    for gene_id, symbol in (("other_id", "other"), ("human_id", "human")):
        several |= pairs[gene_id].where(pairs[gene_id] != "", pairs[symbol]).duplicated(keep=False).to_numpy()
    report = {"table": name, "n_pairs": int((~several).sum()), "n_not_one_to_one": int(several.sum()), "sha256": sha256}
    return pairs[~several].reset_index(drop=True), report


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, sep="," if ".csv" in path.suffixes else "\t", dtype=str, keep_default_na=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{str(path)!r} is not a table of text ({error}); expected {TABLES}.") from error


def _normalised(table: pd.DataFrame) -> pd.DataFrame:
    """Convert any supported layout to the columns other, other_id, human, human_id, without duplicate pairs."""
    if {"DB Class Key", "Common Organism Name", "Symbol"} <= set(table):
        table = _of_classes(table)
    else:
        table = table.rename(columns=_ENSEMBL).rename(columns=lambda c: _PLAIN.get(str(c).lower(), c))
    found = [c for c in _COLUMNS if c in table]
    if not {"other", "other_id"} & set(found) or not {"human", "human_id"} & set(found):
        raise ValueError(
            f"The table of orthologs has the columns {_checks.shortlist(table.columns)}; expected {TABLES}."
        )
    table = table[found].reindex(columns=_COLUMNS).fillna("").astype(str)
    for column in ("other_id", "human_id"):
        table[column] = cut_version(pd.Index(table[column])).to_numpy()
    known = ((table["other"] != "") | (table["other_id"] != "")) & ((table["human"] != "") | (table["human_id"] != ""))
    return table[known].drop_duplicates()


def _of_classes(table: pd.DataFrame) -> pd.DataFrame:
    """Pairs from MGI's layout of one line per gene; genes of the same class are orthologs."""
    organism = table["Common Organism Name"].astype(str)
    genes = table[["DB Class Key", "Symbol"]]
    mouse = genes[organism.str.startswith("mouse")].rename(columns={"Symbol": "other"})
    return mouse.merge(genes[organism == "human"].rename(columns={"Symbol": "human"}), on="DB Class Key")


def _by_table(pairs: pd.DataFrame, ids: np.ndarray, symbols: np.ndarray) -> np.ndarray:
    """Row of the pairs for each gene, by id, else by symbol, else by symbol in any case; -1 without pair."""
    rows = np.full(len(ids), -1)
    # names that differ only by case may belong to two species: use only names that are unique in capitals
    capitals = pd.Series(symbols, dtype=object).str.upper()
    once = capitals.where(~capitals.duplicated(keep=False), "").to_numpy()
    in_capitals = pairs["other"].str.upper()
    for names, column in (
        (ids, pairs["other_id"]), (symbols, pairs["other"]),
        (once, in_capitals[~in_capitals.duplicated(keep=False)]),
    ):  # fmt: skip
        known = column[(column != "") & ~column.duplicated()]
        where = pd.Index(known).get_indexer(pd.Index(names, dtype=object))
        rows = np.where((rows < 0) & (where >= 0), known.index.to_numpy()[where] if len(known) else -1, rows)
    return rows


def _by_symbol(
    vocabulary: Vocabulary, symbols: np.ndarray, human: np.ndarray, human_id: np.ndarray, by: np.ndarray
) -> None:
    """Map, in place, genes by their symbol in capitals, unless the human gene is mapped already."""
    index = vocabulary.index
    taken = set()
    for kind, names in (("gene_id", human_id), ("symbol", human)):
        taken |= set(lookup([name for name in names if name], kind, index).rows.tolist())
    rest = np.flatnonzero((by == "none") & (symbols != ""))
    found = lookup([str(s).upper() for s in symbols[rest]], "symbol", index)
    exact = (found.ways == SYMBOL) | (found.ways == PREVIOUS)  # an alias in capitals may be another gene
    for place, row in zip(rest[exact].tolist(), found.rows[exact].tolist(), strict=True):
        symbol = index.first_symbols[row]
        if symbol and row not in taken:
            human[place], by[place] = symbol, "same symbol"
            taken.add(row)


def _nothing(ids: np.ndarray, symbols: np.ndarray) -> str:
    seen = _checks.shortlist([a or b for a, b in zip(ids, symbols, strict=True)], 4)
    return (
        f"No gene was mapped: the section has {seen}, none of which the table or the vocabulary has. "
        "Are they mouse genes? For rat and other species pass `table=`."
    )
