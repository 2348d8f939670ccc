"""The vocabulary: the token of each gene, and the gene's usual level."""

from __future__ import annotations

import difflib
import hashlib
import logging
from collections.abc import Iterable
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _checks, _files, _keys

from ._genes.match_checks import checked_match
from ._genes.match_report import GeneMatch
from ._genes.matching import CASE, GeneIndex, lookup
from ._genes.means import corpus_sums, means_of
from ._genes.names import human_genes

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["Vocabulary", "packaged_vocabulary"]

logger = logging.getLogger(__name__)

COLUMNS = ["gene_id", "symbol", "divisor"]
FILE = "genes.tsv"
# Digest of the ids of the published vocabulary. Its genes are matched only by its own symbols, not by HGNC's, so that
# tokens are identical to the published ones.
PUBLISHED = "2100328d6c7832bf"


class Vocabulary:
    """The genes that a model knows: row i is token i + 30.

    Immutable. The value of a gene in a spot is its count divided by its `divisor`, the mean over the spots in which it
    was detected. The tokens of a spot are its genes in descending order of this value.

    Parameters
    ----------
    frame
        One row per gene, in the order of the tokens: `gene_id` (Ensembl id, or any unique name), `symbol` (may be
        empty; several are separated by ``|``, the usual one first) and `divisor` (finite, above 0).

    Raises
    ------
    ValueError
        If a column is missing, an id is empty or occurs twice, or a divisor is not a finite number above 0.

    Examples
    --------
    >>> import pandas as pd
    >>> genes = {"gene_id": ["ENSG00000111640", "ENSG00000141510"], "symbol": ["GAPDH", "TP53"], "divisor": [9.5, 1.2]}
    >>> vocabulary = Vocabulary(pd.DataFrame(genes))
    >>> vocabulary, vocabulary.n_tokens, vocabulary.token_of("TP53")
    (Vocabulary of 2 genes: GAPDH, TP53, 32, 31)

    References
    ----------
    The STAMP paper (arXiv 2602.13944), section on gene tokens; the order of the published one is Nicheformer's.
    """

    def __init__(self, frame: pd.DataFrame):
        frame = _validated(frame)
        self._gene_ids = frame["gene_id"].to_numpy(dtype=object)
        self._symbols = frame["symbol"].to_numpy(dtype=object)
        self._divisors = frame["divisor"].to_numpy(dtype=np.float64).copy()
        for column in (self._gene_ids, self._symbols, self._divisors):
            column.setflags(write=False)

    @property
    def gene_ids(self) -> np.ndarray:
        """(n,) str, read-only."""
        return self._gene_ids

    @property
    def symbols(self) -> np.ndarray:
        """(n,) str, read-only; empty without symbol, several separated by ``|``."""
        return self._symbols

    @property
    def divisors(self) -> np.ndarray:
        """(n,) float64, read-only: mean of the gene over the spots in which it was detected."""
        return self._divisors

    @property
    def frame(self) -> pd.DataFrame:
        """A copy as a table."""
        return pd.DataFrame(dict(zip(COLUMNS, (self.gene_ids, self.symbols, self.divisors), strict=True)))

    @property
    def n_tokens(self) -> int:
        """Number of token ids, including the 30 special ids."""
        return len(self) + _keys.N_SPECIAL

    @cached_property
    def digest(self) -> str:
        """The first 16 characters of the SHA-256 of the file that `save` writes; identifies the vocabulary."""
        return hashlib.sha256(self._text().encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self._gene_ids)

    def __eq__(self, other: object) -> bool:
        return self._text() == other._text() if isinstance(other, Vocabulary) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        names = [symbol.split("|")[0] or gene for gene, symbol in zip(self.gene_ids[:3], self.symbols[:3], strict=True)]
        return f"Vocabulary of {len(self)} genes: {', '.join(names)}{', ...' if len(self) > 3 else ''}"

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Read a `genes.tsv`, or the `genes.tsv` in the folder `path`.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ValueError
            If the file is not a vocabulary.
        """
        path = Path(path).expanduser()
        path = _checks.existing(path / FILE if path.is_dir() else path, what="vocabulary")
        try:
            # quoting=3 (none) and no NA words, since NA and NAN are names; _validated parses floats exactly
            frame = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
            return cls(frame)
        except ValueError as error:  # includes the errors of pandas and of text that is not UTF-8
            raise ValueError(f"{str(path)!r} is not a vocabulary: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write `genes.tsv`: tab-separated with a header, one row per gene, divisors exact.

        A folder gets a file of that name; an existing file is replaced atomically.
        """
        path = Path(path).expanduser()
        path = path / FILE if path.is_dir() else path
        with _files.atomic(path) as temporary:
            temporary.write_text(self._text(), encoding="utf-8", newline="\n")

    def _text(self) -> str:
        rows = zip(self.gene_ids, self.symbols, self.divisors.tolist(), strict=True)
        return "\t".join(COLUMNS) + "\n" + "".join(f"{gene}\t{symbol}\t{divisor!r}\n" for gene, symbol, divisor in rows)

    @classmethod
    def from_sections(
        cls,
        sections: Iterable[AnnData | str | Path],
        *,
        layer: str | None = None,
        min_spots: int = 10,
        max_genes: int | None = None,
        approved: bool = False,
    ) -> Vocabulary:
        """Compute the vocabulary of a corpus: its genes in the order of their ids, with their means.

        Counts are scaled to 10,000 per spot. The mean of a gene is over all spots in which it was detected, in the
        sections that measure it. Sections are read one at a time in blocks of spots; no matrix is kept or densified.
        Names of human genes are first resolved to the Ensembl id and the approved symbol of HGNC. Other genes are
        combined by Ensembl id; symbols in sections without ids are resolved with the sections that have both (a symbol
        of several ids belongs to the id in most spots). An unresolved symbol is used as the id. Features that are not
        genes, such as antibodies and control probes, are excluded.

        Parameters
        ----------
        sections
            Sections with raw counts, or paths of .h5ad files (opened backed), or a generator of these.
        layer
            The layer with raw counts; None is `X`.
        min_spots
            Genes detected in fewer spots are excluded.
        max_genes
            Keep only this number of genes, those detected in most spots.
        approved
            Keep only human genes approved by HGNC that have an Ensembl id, without clone names and retired symbols. An
            id that is not in HGNC, beside an approved symbol, is added to the symbol: older sections match by it.

        Raises
        ------
        ValueError
            If there is no section, a section is empty or has no raw counts, or no gene remains.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from anndata import AnnData
        >>> section = AnnData(np.array([[1.0, 3.0], [0.0, 2.0]]), var=pd.DataFrame(index=["TP53", "GAPDH"]))
        >>> Vocabulary.from_sections([section], min_spots=1).frame
                   gene_id symbol  divisor
        0  ENSG00000111640  GAPDH   8750.0
        1  ENSG00000141510   TP53   2500.0
        """
        _checks.at_least("min_spots", min_spots, 1)
        if max_genes is not None:
            _checks.at_least("max_genes", max_genes, 1)
        sums = corpus_sums(sections, layer=layer)
        means = means_of(sums)
        if approved:
            means = _approved(means, sums)
        return cls._from_means(means, min_spots, max_genes)

    @classmethod
    def _from_means(cls, means: pd.DataFrame, min_spots: int = 10, max_genes: int | None = None) -> Vocabulary:
        kept = means[means["n_spots"] >= min_spots]
        if kept.empty:
            raise ValueError(
                f"None of the {len(means)} genes has a count in at least {min_spots} spots; lower `min_spots`."
            )
        if max_genes is not None:
            kept = kept.sort_values(["n_spots", "gene_id"], ascending=[False, True]).head(max_genes)
        return cls(kept.sort_values("gene_id")[COLUMNS])

    def match(self, adata: AnnData, *, layer: str | None = None) -> GeneMatch:
        """Match the genes of a section to the vocabulary, one by one.

        A gene is matched by its Ensembl id, in ``var_names`` or any column of ``var`` (without version and genome
        prefix such as ``GRCh38_``); otherwise by its symbol, a previous symbol or an alias of HGNC; otherwise by
        reverting changes that programs make to names: spreadsheet dates, dots for hyphens, numbers that make names
        unique, case. If id and symbol contradict each other, the id is used. Names that stand for several genes are not
        matched. Features that are not genes (antibodies, control probes) are excluded.

        Parameters
        ----------
        adata
            The section.
        layer
            Layer with the counts for the shares; None is `X`.

        Returns
        -------
        The match; ``print`` it for a report of the overlap.

        Warns
        -----
        StampyWarning
            If genes outside the vocabulary have more than 5% of the counts, or names are doubtful.

        Raises
        ------
        ValueError
            If less than a tenth of the smaller gene list is matched, or `X` is all zeros and a layer has counts.

        Examples
        --------
        >>> import numpy as np, pandas as pd
        >>> from anndata import AnnData
        >>> genes = pd.DataFrame({"gene_id": ["ENSG00000111640"], "symbol": ["GAPDH"], "divisor": [1.0]})
        >>> section = AnnData(np.array([[0, 7], [1, 92]]), var=pd.DataFrame(index=["XIST", "GAPDH"]))
        >>> print(Vocabulary(genes).match(section))
        1 of 2 genes of the section are in the vocabulary (50%; 100% of its 1), matched as symbol by var_names; they
        account for 99.0% of the counts; not in it, e.g.: XIST
        """
        return checked_match(adata, self.index, layer)

    @cached_property
    def index(self) -> GeneIndex:
        """Index of the names of its genes, for matching."""
        return GeneIndex(self.gene_ids, self.symbols, exact=_files.digest(self.gene_ids) == PUBLISHED)

    @property
    def merged(self) -> dict[str, str]:
        """Rows that duplicate the gene of another row: `gene_id` -> `gene_id` of the row that is used for both.

        A vocabulary that was made before stampy resolved names may contain a gene twice, by an old symbol and by its
        id. The row with the Ensembl id is used for both names, and their counts are summed; the token of the other row
        never occurs. Tokens of all other genes do not change.
        """
        return {self.gene_ids[row]: self.gene_ids[kept] for row, kept in self.index.merged.items()}

    def token_of(self, gene: str) -> int:
        """Token of a gene by id or symbol; KeyError with similar names if it is unknown."""
        for kind in ("gene_id", "symbol"):
            row = int(self.rows_of(pd.Index([gene], dtype=object), kind)[0][0])
            if row >= 0:
                return row + _keys.N_SPECIAL
        near = difflib.get_close_matches(gene, [*self.index.by_symbol, *self.gene_ids], n=3)
        raise KeyError(f"Gene {gene!r} not found in the {self!r}.{f' Similar names: {near}.' if near else ''}")

    def rows_of(self, names: pd.Index, kind: str) -> tuple[np.ndarray, int]:
        """Row of each name (int32, -1 if unknown), and the number of names matched only in another case.

        `kind` is ``gene_id`` (an id, or a name used as one) or ``symbol`` (also a previous symbol, an alias or a name
        that a program changed).
        """
        found = lookup(names, kind, self.index)
        return found.rows, int((found.ways == CASE).sum())


def _approved(means: pd.DataFrame, sums: pd.DataFrame) -> pd.DataFrame:
    """Rows of human genes approved by HGNC, by Ensembl id, with their approved symbols and retired ids."""
    human = human_genes()
    kept = means[means["gene_id"].isin(human.of_id)]
    if kept.empty:
        raise ValueError(
            f"None of the {len(means)} genes is approved by HGNC and has a human Ensembl id; pass `approved=False`."
        )
    names = {gene_id: [human.symbols[human.of_id[gene_id]]] for gene_id in kept["gene_id"]}
    others = sums[sums["gene_id"].str.startswith("ENSG") & ~sums["gene_id"].isin(human.of_id)]
    for retired, symbol in sorted(set(zip(others["gene_id"], others["symbol"], strict=True))):
        gene = human.find(symbol)
        if gene >= 0 and human.ids[gene] in names:
            names[human.ids[gene]].append(retired)
    return kept.assign(symbol=["|".join(names[gene_id]) for gene_id in kept["gene_id"]])


def packaged_vocabulary() -> Vocabulary:
    """The vocabulary of the packaged model; FileNotFoundError if this installation has none."""
    path = Path(str(resources.files("stampy") / "models" / "weights" / "stampy-mini" / FILE))
    if not path.is_file():
        raise FileNotFoundError(
            f"No vocabulary of the packaged model at {str(path)!r}. Install stampy with its weights, or give "
            "`vocabulary=`, e.g. `Vocabulary.from_sections([adata])`."
        )
    return _loaded(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=1)
def _loaded(path: Path, changed: int) -> Vocabulary:
    """Load a vocabulary, cached until the file changes; vocabulary and index are immutable."""
    vocabulary = Vocabulary.load(path)
    if merged := vocabulary.merged:
        logger.info("%d entries of the packaged vocabulary are genes of other entries and were merged", len(merged))
    return vocabulary


def _number(text: str | float) -> float:
    """Parse a number exactly (pandas' own parser is not exact); NaN if it is not a number."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return float("nan")


def _validated(frame: pd.DataFrame) -> pd.DataFrame:
    """Validate the three columns and convert them to text, text and float64."""
    if not isinstance(frame, pd.DataFrame):
        raise TypeError(f"A vocabulary is made from a pandas DataFrame, found {type(frame).__name__}.")
    missing = [column for column in COLUMNS if column not in frame.columns]
    if missing:
        raise ValueError(
            f"a vocabulary needs the columns {COLUMNS}; {missing} not among {_checks.shortlist(frame.columns)}."
        )
    if frame.empty:
        raise ValueError("a vocabulary needs at least one gene, found none.")
    gene_ids = frame["gene_id"].fillna("").astype(str)
    symbols = frame["symbol"].fillna("").astype(str)
    divisors = frame["divisor"].map(_number).astype(np.float64)
    for what, bad in (
        ("an empty `gene_id`", gene_ids == ""),
        ("a `gene_id` that occurs twice", gene_ids.duplicated()),
        ("a tab or line break in a name", (gene_ids + symbols).str.contains(r"[\t\r\n]")),
        ("a `divisor` that is not a finite number above 0", ~(np.isfinite(divisors) & (divisors > 0))),
    ):
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{int(bad.sum())} of {len(frame)} rows have {what} (first: row {row}, {frame.iloc[row].to_dict()})."
            )
    return pd.DataFrame({"gene_id": gene_ids, "symbol": symbols, "divisor": divisors})
