"""Names of human genes by HGNC: approved symbols, Ensembl ids, previous symbols, aliases; packaged."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

from ._names import hyphens, mended

__all__ = ["FOLDER", "HumanGenes", "human_genes"]

FOLDER = Path(str(resources.files("stampy") / "pp" / "genes"))


@dataclass(frozen=True)
class HumanGenes:
    """All human genes that HGNC names; gene i has `symbols[i]` and `ids[i]`."""

    symbols: list[str]
    ids: list[str]
    """Ensembl ids, empty where HGNC gives none."""
    approved: dict[str, int]
    """Approved symbol -> gene."""
    previous: dict[str, int]
    """Previous symbol -> gene, -1 where it is one of several genes; approved symbols are not among them."""
    aliases: dict[str, int]
    """Alias -> gene, -1 where it is one of several genes; approved and previous symbols are not among them."""

    @cached_property
    def of_id(self) -> dict[str, int]:
        """Ensembl id -> gene."""
        genes = dict(zip(reversed(self.ids), reversed(range(len(self.ids))), strict=True))
        genes.pop("", None)
        return genes

    @cached_property
    def folded(self) -> dict[str, int]:
        """Approved or previous symbol in capitals -> gene, -1 where that is one of several genes."""
        genes: dict[str, int] = {name.upper(): gene for name, gene in self.approved.items()}
        for name, gene in self.previous.items():
            genes.setdefault(name.upper(), gene)
        return genes

    def find(self, name: str) -> int:
        """The gene of an approved or previous symbol; -1 where there is none, or several."""
        gene = self.approved.get(name)
        return self.previous.get(name, -1) if gene is None else gene

    def find_alias(self, name: str) -> int | None:
        """The gene of an alias, -1 where it is one of several; None where it is none.

        NKX6.1 is no alias of NKX6-2 here, as HGNC has it, but NKX6-1 as R writes it.
        """
        gene = self.aliases.get(name)
        if gene is not None and "." in name and any(other in self.approved for other in hyphens(name)):
            return None
        return gene

    def guess(self, name: str) -> int:
        """The gene of a name of any kind, also one that a program changed; -1 where there is none, or doubt."""
        if (gene := self.find(name)) >= 0 or name in self.previous:
            return gene
        if (alias := self.find_alias(name)) is not None:
            return alias
        genes = [gene for _, other in mended(name) if (gene := self.find(other)) >= 0]
        return genes[0] if len(set(genes)) == 1 else -1


@lru_cache(maxsize=1)
def human_genes() -> HumanGenes:
    """The packaged table, read once.

    Examples
    --------
    >>> genes = human_genes()
    >>> genes.symbols[genes.previous["SEPT2"]], genes.ids[genes.approved["TP53"]]
    ('SEPTIN2', 'ENSG00000141510')
    """
    text = gzip.decompress((FOLDER / "hgnc.tsv.gz").read_bytes()).decode()
    columns = dict(line.split("\t", 1) for line in text.split("\n") if line and not line.startswith("#"))
    symbols = columns["symbol"].split("\t")
    return HumanGenes(
        symbols=symbols,
        ids=columns["gene_id"].split("\t"),
        approved=dict(zip(symbols, range(len(symbols)), strict=True)),
        previous=_numbered(columns["previous"], columns["previous_gene"]),
        aliases=_numbered(columns["alias"], columns["alias_gene"]),
    )


def _numbered(names: str, genes: str) -> dict[str, int]:
    return dict(zip(names.split("\t"), map(int, genes.split("\t")), strict=True))
