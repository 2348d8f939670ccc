"""Gene names: ids and suffixes in text, names of features that are not genes, and HGNC's table of human genes."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

__all__ = [
    "FOLDER",
    "FOREIGN",
    "HumanGenes",
    "control_of",
    "cut_common",
    "cut_genome",
    "cut_quotes",
    "cut_version",
    "ensembl_ids",
    "human_genes",
    "hyphens",
    "is_title_case",
    "mended",
    "without_serials",
]

SMALL_ENSEMBL = re.compile(r"(?<![A-Za-z0-9])(?!ENS[A-Z]*G)[Ee][Nn][Ss][A-Za-z]{0,6}[Gg][Rr]?\d{6,}(?![A-Za-z0-9])")
ENSEMBL = re.compile(r"(?<![A-Za-z0-9])(ENS[A-Z]{0,6}G)(R?)(\d{6,})(?![A-Za-z0-9])")
VERSION = re.compile(r"(ENS[A-Z]*G\d{6,})\.\d+")
VERSION_IN_LINES = re.compile(rf"\n{VERSION.pattern}\n")
# genome prefixes in tables of two species: GRCh38_, hg19_, mm10___, GRCh38-
GENOME = re.compile(
    r"(Homo_sapiens|Mus_musculus|GRC[a-z]\d+|GRC[HM]\d+|grc[hm]\d+|hg\d\d|HG(?:19|38)|mm\d+|rn\d+|human|mouse|HUMAN|MOUSE)(?:[-_.]?(?:20\d\d[-_.]?[A-Z]|premrna))?[-_.:]+(?=[^-_.:])"
)
FOREIGN = ("mm", "rn", "mouse", "mus_musculus", "grcm", "grcr")  # lower-case prefixes of mouse and rat genomes
GENOME_IN_LINES = re.compile(rf"\n(?:{GENOME.pattern})")
# names of features that are not genes: (kind, pattern)
CONTROLS = tuple(
    (kind, re.compile(pattern, re.I))
    for kind, pattern in (
        ("control probe", r"Neg(?:ative)?[-_ .]?(?:Control|Ctrl|Prb|Probe)|^Negative[-_]?\d+$"),
        ("control probe", r"^(?:System|Genomic)[-_ .]?Control|^FalseCode|^Custom[-_]?NegPr"),
        ("blank", r"^Blank[-_ .]?(?:Codeword[-_ .]?)?\d+"),
        ("codeword", r"^(?:Unassigned|Deprecated|NegControl)[-_ .]?Codeword"),
        ("antisense control", r"^antisense[-_ .]"),
        ("intergenic region", r"^Intergenic[-_ .]Region"),
        ("spike-in", r"^ERCC[-_.]\d{5}$"),
        ("antibody", r"Total[-_ .]?Seq|[-_ .]Total[A-D]$|^(?:ADT|PROT|HTO)[-_:]|[-_.](?:ADT|HTO)$|^Hashtag"),
        ("antibody", r"^IgG[-_ .\d].*(?:control|isotype|ctrl)"),
    )
)
CONTROL_HINT = re.compile(
    r"neg|control|blank|codeword|antisense|intergenic|ERCC|total|adt|prot|hto|hashtag|falsecode|igg", re.I
)
MONTHS = {
    **dict.fromkeys(("mar", "mär", "mrz", "march", "märz", "mars", "marzo", "maart"), 3),
    **dict.fromkeys(("sep", "sept", "september", "septembre", "septiembre", "settembre"), 9),
    **dict.fromkeys(("dec", "dez", "déc", "december", "dezember", "décembre", "diciembre", "dicembre"), 12),
}
GENES_OF_MONTH = {3: ("MARCH", "MARC"), 9: ("SEPT", "SEP"), 12: ("DEC",)}
WORD_DATE = re.compile(
    r"X?(?:(\d{1,2})[-. /_]{1,2}([A-Za-zäé]{3,10})\.?(?:[-. /_]{1,2}(?:(?:19|20)\d\d|\d\d))?"
    r"|([A-Za-zäé]{3,10})[-. /_]{1,2}(\d{1,2}))"
)
YEAR_FIRST = re.compile(r"X?(?:19|20)\d\d[-./](\d{1,2})[-./](\d{1,2})(?:[ T.]00[:.]00(?:[:.]00)?(?:\.0+)?)?")
YEAR_LAST = re.compile(r"X?(\d{1,2})([-./])(\d{1,2})[-./](?:(?:19|20)\d\d|\d\d)")
NO_YEAR = re.compile(r"(\d{1,2})(/)(\d{1,2})")
SERIAL = re.compile(r"[34]\d{4}")  # spreadsheets count days from 1899-12-30; 3xxxx and 4xxxx are 1982 to 2036
FEW_SERIALS = 0.02  # of the names; a larger fraction means ids of another kind
QUOTED = re.compile(r"""b?(["'])(.*)\1""")
SHARED_BY = 50  # names; fewer may be a gene family, such as MT- or HLA-
REPEATED = re.compile(r"(.+?)[-._]\d{1,3}")
TITLE = re.compile(r"[A-Z][a-z0-9]*[a-z][a-z0-9-]*")


def cut_version(names: pd.Index) -> pd.Index:
    """Remove `.version` from Ensembl ids; other names, such as the symbol AC010608.1, are not changed.

    >>> cut_version(pd.Index(["ENSG00000141510.18", "AC010608.1"])).tolist()
    ['ENSG00000141510', 'AC010608.1']
    """
    text = "\n".join(("", *names, ""))  # searching the joined text is far faster than searching each name
    if "." not in text or "\nENS" not in text or not VERSION_IN_LINES.search(text):
        return names
    return pd.Index([_cut(name) if "." in name else name for name in names], dtype=object)


def _cut(name: str) -> str:
    return found[1] if (found := VERSION.fullmatch(name)) else name


def ensembl_ids(names: Sequence[str]) -> list[str]:
    """Ensembl gene id in each name, without version, genome and ``_PAR_Y``; empty if there is none or more than one.

    >>> ensembl_ids(["ENSG00000182378.15_PAR_Y", "GRCh38_ENSG00000141510", "TP53|ensg00000141510", "TP53"])
    ['ENSG00000182378', 'ENSG00000141510', 'ENSG00000141510', '']
    """
    text = "\n".join(names)  # searching the joined text is far faster than searching each name
    if ("ens" in text or "Ens" in text) and SMALL_ENSEMBL.search(text):
        names = [SMALL_ENSEMBL.sub(lambda found: found[0].upper(), name) for name in names]
    elif "ENS" not in text:
        return [""] * len(names)
    return [
        name if name[:4] == "ENSG" and len(name) == 15 and name[4:].isdecimal() else "" if "ENS" not in name
        else _ensembl_id(name)
        for name in names
    ]  # fmt: skip


def _ensembl_id(name: str) -> str:
    # ENSGR0000182378: in older annotations, the copy of ENSG00000182378 on the Y chromosome
    found = {kind + ("0" if again else "") + number for kind, again, number in ENSEMBL.findall(name)}
    return found.pop() if len(found) == 1 else ""


def cut_genome(names: Sequence[str]) -> tuple[Sequence[str], np.ndarray]:
    """Names without genome prefix, and which of them (bool) had the prefix of a genome other than human.

    >>> cut_genome(["GRCh38_____TP53", "mm10___Trp53", "TP53"])
    (['TP53', 'Trp53', 'TP53'], array([False,  True, False]))
    """
    foreign = np.zeros(len(names), dtype=bool)
    if not GENOME_IN_LINES.search("\n".join(("", *names))):
        return names, foreign
    found = [GENOME.match(name) for name in names]
    genomes = [match[1].lower() if match else "" for match in found]
    foreign[:] = [genome.startswith(FOREIGN) for genome in genomes]
    return [name[match.end() :] if match else name for name, match in zip(names, found, strict=True)], foreign


def control_of(names: Sequence[str]) -> list[str]:
    """Kind of each feature that is not a gene, such as ``blank`` or ``control probe``; empty for genes.

    >>> control_of(["BLANK_0012", "NegControlProbe_00042", "antisense_PROKR2", "CD3_TotalSeqB", "NEGR1", "CD3E"])
    ['blank', 'control probe', 'antisense control', 'antibody', '', '']
    """
    if not CONTROL_HINT.search("\n".join(names)):
        return [""] * len(names)
    return [
        next((kind for kind, pattern in CONTROLS if pattern.search(name)), "") if CONTROL_HINT.search(name) else ""
        for name in names
    ]


def is_title_case(name: str) -> bool:
    """Whether a name is in title case, as in mouse and rat (Gapdh); human C1orf74 is not.

    >>> [is_title_case(name) for name in ("Gapdh", "H2-K1", "GAPDH", "C1orf74", "mt-Co1", "mt-co1")]
    [True, False, False, False, True, False]
    """
    return (TITLE.fullmatch(name) is not None and "orf" not in name) or (name[:3] == "mt-" and name[3:4].isupper())


def mended(name: str) -> Iterator[tuple[str, str]]:
    """Candidates for the name before a program changed it, as (kind of change, name), most likely first.

    >>> list(mended("HLA.A")), list(mended("2-Sep")), list(mended("GAPDH|2597"))[0]
    ([('hyphen', 'HLA-A')], [('date', 'SEPT2')], ('joined', 'GAPDH'))
    """
    if dates := _of_date(name):
        yield from (("date", gene) for gene in dates)
        return
    if "|" in name or ";" in name:
        yield from (("joined", part) for part in re.split(r"[|;]", name) if part and not part.isdecimal())
    bare = name[1:] if name[:1] == "X" and name[1:2].isdecimal() else ""
    yield from (("hyphen", other) for start in (name, bare) for other in hyphens(start))
    if bare:
        yield "hyphen", bare
    if again := REPEATED.fullmatch(name):
        yield "suffix", again[1]
        yield from (("suffix", other) for other in hyphens(again[1]))


def without_serials(names: Sequence[str]) -> Sequence[str]:
    """Replace spreadsheets' serial numbers of days by dates, if few names are numbers.

    >>> without_serials(["44076", *["GAPDH"] * 99])[0], without_serials(["44076", "2597"])[0]
    ('2020-09-02', '44076')
    """
    numbers = [name for name in names if name.isdecimal()]
    if not numbers or len(numbers) > FEW_SERIALS * len(names):
        return names
    start = np.datetime64("1899-12-30")
    return [str(start + int(name)) if SERIAL.fullmatch(name) else name for name in names]


def cut_quotes(names: list[str]) -> list[str]:
    """Remove quotation marks around names, including those of printed Python bytes.

    >>> cut_quotes(['"TP53"', "b'TP53'", "TP53"])
    ['TP53', 'TP53', 'TP53']
    """
    if not any(name.endswith(("'", '"')) for name in names):
        return names
    return [found[2].strip() if (found := QUOTED.fullmatch(name)) else name for name in names]


def cut_common(names: Sequence[str]) -> Sequence[str]:
    """Remove a prefix common to all names, such as ``rna_``.

    >>> cut_common([f"rna_GENE{i}" for i in range(99)])[0], cut_common(["MT-ND1", "MT-ND2"])[0]
    ('GENE0', 'MT-ND1')
    """
    if len(names) < SHARED_BY:
        return names
    first, last = min(names), max(names)
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    end = max(first.rfind(sign, 0, same) for sign in "_-.:|") + 1
    return [name[end:] for name in names] if 0 < end < min(map(len, names)) else names


def hyphens(name: str) -> Iterator[str]:
    """Candidates for a name in which R wrote dots for hyphens (HLA.A) or Seurat hyphens for underscores (GTF2H2C-2).

    In RP11.34P13.7 the last dot is original, the first was a hyphen.
    """
    if "." in name:
        yield name.replace(".", "-")
        if name.count(".") > 1:
            head, _, tail = name.rpartition(".")
            yield f"{head.replace('.', '-')}.{tail}"
    if "_" in name:
        yield name.replace("_", "-")
    elif "-" in name:
        yield name.replace("-", "_")


def _of_date(name: str) -> list[str]:
    """Symbols that spreadsheets convert to this date; 1-Mar was MARCH1 or MARC1."""
    if not any(map(str.isdecimal, name)):
        return []
    days = set()
    if found := WORD_DATE.fullmatch(name):
        day, month = (found[1], found[2]) if found[1] else (found[4], found[3])
        # "mars" is March in French, but MARS and Mars are a gene; make.unique renames its second column MARS.1
        days = {(0 if month in ("MARS", "Mars") else MONTHS.get(month.lower(), 0), int(day))}
    elif found := YEAR_FIRST.fullmatch(name):
        days = {(int(found[1]), int(found[2]))}
    elif found := YEAR_LAST.fullmatch(name) or NO_YEAR.fullmatch(name):
        first, second = int(found[1]), int(found[3])
        days = {(second, first)} if found[2] == "." and not name.startswith("X") else {(first, second), (second, first)}
    genes = [f"{gene}{day}" for month, day in days for gene in GENES_OF_MONTH.get(month, ())]
    return [gene for gene in genes if gene not in {"SEP1", "SEP2", "SEP3"}]


FOLDER = Path(str(resources.files("stampy") / "pp" / "_genes"))


@dataclass(frozen=True)
class HumanGenes:
    """All human genes listed by HGNC; gene i has `symbols[i]` and `ids[i]`."""

    symbols: list[str]
    ids: list[str]
    """Ensembl ids; empty if HGNC lists none."""
    approved: dict[str, int]
    """Approved symbol -> gene."""
    previous: dict[str, int]
    """Previous symbol -> gene; -1 if several genes had it; without approved symbols."""
    aliases: dict[str, int]
    """Alias -> gene; -1 if several genes have it; without approved and previous symbols."""

    @cached_property
    def of_id(self) -> dict[str, int]:
        """Ensembl id -> gene."""
        genes = dict(zip(reversed(self.ids), reversed(range(len(self.ids))), strict=True))
        genes.pop("", None)
        return genes

    @cached_property
    def folded(self) -> dict[str, int]:
        """Approved or previous symbol in capitals -> gene; -1 if several genes have it."""
        genes: dict[str, int] = {name.upper(): gene for name, gene in self.approved.items()}
        for name, gene in self.previous.items():
            genes.setdefault(name.upper(), gene)
        return genes

    def find(self, name: str) -> int:
        """Gene of an approved or previous symbol; -1 if there is none or more than one."""
        gene = self.approved.get(name)
        return self.previous.get(name, -1) if gene is None else gene

    def find_alias(self, name: str) -> int | None:
        """Gene of an alias; -1 if several genes have it, None if it is not an alias.

        NKX6.1 is read as R's spelling of NKX6-1, although HGNC lists it as an alias of NKX6-2.
        """
        gene = self.aliases.get(name)
        if gene is not None and "." in name and any(other in self.approved for other in hyphens(name)):
            return None
        return gene

    def guess(self, name: str) -> int:
        """Gene of a name of any kind, including names changed by programs; -1 if unknown or ambiguous."""
        if (gene := self.find(name)) >= 0 or name in self.previous:
            return gene
        if (alias := self.find_alias(name)) is not None:
            return alias
        genes = [gene for _, other in mended(name) if (gene := self.find(other)) >= 0]
        return genes[0] if len(set(genes)) == 1 else -1


@lru_cache(maxsize=1)
def human_genes() -> HumanGenes:
    """Read the packaged table, once.

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
