"""Build the two packaged tables of gene names from those of HGNC and MGI.

Run as ``python package.py hgnc.tsv.gz mouse_orthologs.tsv.gz``. The first has the columns symbol, ensembl_gene_id,
prev_symbol, alias_symbol and hgnc_id of HGNC's complete set, the second mouse_symbol, mouse_ensembl_id and hgnc_id of
MGI's HGNC_AllianceHomology report. The output is reproducible to the byte.
"""

import gzip
import sys
from pathlib import Path

import pandas as pd

OUT = Path(__file__).parents[2] / "src" / "stampy" / "pp" / "genes"
HGNC = """\
# Names of human genes: HGNC complete set of November 2024, https://www.genenames.org, CC0.
# A column a line, for speed: symbol and gene_id (Ensembl, may be empty) have an entry a gene; previous symbols and
# aliases are names, each followed by a line with the number of its gene, -1 where it is a name of several.
"""
MOUSE = """\
# Mouse genes and their human orthologs, from the report HGNC_AllianceHomology of Mouse Genome Informatics (MGI),
# The Jackson Laboratory, https://www.informatics.jax.org, licensed under CC BY 4.0
# (https://creativecommons.org/licenses/by/4.0). Changed by stampy: columns chosen, human names by HGNC (CC0) added.
"""


def read(path: str) -> pd.DataFrame:
    """Read a table as text, without missing values."""
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)


def write(name: str, text: str) -> None:
    """Compress without a time stamp."""
    path = OUT / name
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def names_of(hgnc: pd.DataFrame, column: str, taken: set[str]) -> dict[str, int]:
    """Name -> number of its gene, -1 if several genes have it; without the names in `taken`."""
    genes: dict[str, int] = {}
    for gene, cell in enumerate(hgnc[column]):
        for name in filter(None, cell.split("|")):
            if name not in taken:
                genes[name] = gene if genes.get(name, gene) == gene else -1
    return genes


def write_hgnc(hgnc: pd.DataFrame) -> None:
    """Names of human genes, one column per line."""
    previous = names_of(hgnc, "prev_symbol", set(hgnc["symbol"]))
    aliases = names_of(hgnc, "alias_symbol", set(hgnc["symbol"]) | set(previous))
    columns = {
        "symbol": hgnc["symbol"],
        "gene_id": hgnc["ensembl_gene_id"],
        "previous": previous,
        "previous_gene": map(str, previous.values()),
        "alias": aliases,
        "alias_gene": map(str, aliases.values()),
    }
    write("hgnc.tsv.gz", HGNC + "".join("\t".join((name, *values)) + "\n" for name, values in columns.items()))


def write_mouse(mouse: pd.DataFrame, hgnc: pd.DataFrame) -> None:
    """One pair of mouse and human gene per line; a gene with several partners has several lines."""
    mouse = mouse.assign(hgnc_id=mouse["hgnc_id"].str.split("|")).explode("hgnc_id")
    human = hgnc.set_index("hgnc_id")[["symbol", "ensembl_gene_id"]].set_axis(["human", "human_id"], axis=1)
    mouse = mouse.rename(columns={"mouse_symbol": "mouse", "mouse_ensembl_id": "mouse_id"})
    pairs = mouse.join(human, on="hgnc_id", how="inner")[["mouse", "mouse_id", "human", "human_id"]]
    print(f"{len(pairs)} pairs")
    write("mouse_orthologs.tsv.gz", MOUSE + pairs.to_csv(sep="\t", index=False, lineterminator="\n", quoting=3))


if __name__ == "__main__":
    hgnc_table = read(sys.argv[1])
    write_hgnc(hgnc_table)
    write_mouse(read(sys.argv[2]), hgnc_table)
