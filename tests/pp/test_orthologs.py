"""Mouse sections for human models: mapping, tables and messages."""

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from stampy import StampyWarning, datasets, pp, tl
from stampy.pp._genes.names import FOLDER
from stampy.pp._orthologs import human_matched

QUIET = {"show_progress_bar": False, "device": "cpu"}
# Ensembl 112, by hand
KNOWN = [
    ("ENSMUSG00000002985", "Apoe", "ENSG00000130203", "APOE"),
    ("ENSMUSG00000015090", "Ptgds", "ENSG00000107317", "PTGDS"),
    ("ENSMUSG00000027273", "Snap25", "ENSG00000132639", "SNAP25"),
    ("ENSMUSG00000029580", "Actb", "ENSG00000075624", "ACTB"),
]
BIOMART = ["Gene stable ID", "Gene name", "Human gene stable ID", "Human gene name"]


def section(names, **var):
    x = sparse.csr_matrix(np.arange(1, 3 * len(names) + 1, dtype=np.int32).reshape(3, -1))
    return ad.AnnData(x, obs=pd.DataFrame(index=list("abc")), var=pd.DataFrame(var, index=names))


def of(adata):
    return list(zip(adata.var["human_ortholog"], adata.var["human_ortholog_by"], strict=True))


@pytest.fixture
def small():
    return pp.Vocabulary(
        pd.DataFrame({"gene_id": [k[2] for k in KNOWN], "symbol": [k[3] for k in KNOWN], "divisor": 1.0})
    )


@pytest.mark.parametrize("kind", ["frame", "tsv", "csv", "gz"])
def test_table_of_ensembl(tmp_path, small, kind):
    # a gene with two human partners, and a human gene with two mouse partners, are left out, with all their pairs
    more = [
        ("ENSMUSG1", "Two", "ENSG1", "TWO1"),
        ("ENSMUSG1", "Two", "ENSG2", "TWO2"),
        ("ENSMUSG2", "Too", "ENSG2", "TWO2"),
        ("ENSMUSG3", "Lone", "", ""),
    ]
    table = pd.DataFrame([*KNOWN, *more], columns=BIOMART)
    path = tmp_path / {"tsv": "martservice", "csv": "t.csv", "gz": "t.tsv.gz"}.get(kind, "x")
    if kind != "frame":
        table.to_csv(path, sep="," if kind == "csv" else "\t", index=False)
    adata = section(["ENSMUSG00000002985.16", "ENSMUSG00000027273.1", "ENSMUSG00000099999", "ENSMUSG1", "ENSMUSG2"])
    before = adata.X.copy()
    pp.orthologs(adata, table if kind == "frame" else path, vocabulary=small)
    assert of(adata) == [("APOE", "table"), ("SNAP25", "table"), *[("", "none")] * 3]
    assert adata.var["human_ortholog_id"].tolist()[:2] == ["ENSG00000130203", "ENSG00000132639"]
    report = adata.uns["stamp"]["human_ortholog"]
    assert {k: report[k] for k in ("n_vars", "n_table", "n_same_symbol", "n_none", "n_pairs", "n_not_one_to_one")} == {
        "n_vars": 5, "n_table": 2, "n_same_symbol": 0, "n_none": 3, "n_pairs": 4, "n_not_one_to_one": 3,
    }  # fmt: skip
    assert len(report["sha256"]) == (0 if kind == "frame" else 64)
    assert (before != adata.X).nnz == 0
    with pytest.warns(StampyWarning, match="of the counts are dropped: 3 of the section's 5 genes"):
        match = small.match(adata)
    assert match.n_matched == 2
    assert match.source.startswith("var['human_ortholog")


@pytest.mark.filterwarnings("ignore:.*of the counts are dropped")
def test_table_of_mgi_and_the_rule(tmp_path, small):
    lines = ["DB Class Key\tCommon Organism Name\tNCBI Taxon ID\tSymbol\tEntrezGene ID"]
    for key, mouse, human in [(1, ["Apoe"], ["APOE"]), (2, ["Amy1", "Amy2"], ["AMY1A"]), (3, ["Odd"], ["PTGDS"])]:
        lines += [f"{key}\tmouse, laboratory\t10090\t{m}\t1" for m in mouse]
        lines += [f"{key}\thuman\t9606\t{h}\t2" for h in human]
    path = tmp_path / "HOM_MouseHumanSequence.rpt"
    path.write_text("\n".join(lines) + "\n")
    names = ["Apoe", "Amy1", "Odd", "Ptgds", "Actb", "Gm1"]
    adata = section(names)
    pp.orthologs(adata, path, vocabulary=small)
    # Ptgds has PTGDS's name, but the table gave that to another gene
    assert of(adata) == [("APOE", "table"), ("", "none"), ("PTGDS", "table"), ("", "none"), ("ACTB", "same symbol"),
                         ("", "none")]  # fmt: skip
    strict = pp.orthologs(section(names), path, same_symbol=False, vocabulary=small, copy=True)
    assert strict.uns["stamp"]["human_ortholog"]["n_same_symbol"] == 0
    assert small.match(strict).n_matched == 2  # not 3: the names themselves no longer count
    again = pp.orthologs(strict, None, vocabulary=small, copy=True)  # replaces earlier results
    assert [b for _, b in of(again)].count("table") == 3


def test_embedding_is_that_of_the_human_genes(toy, model):
    human = toy.copy()
    mouse = toy.copy()
    ids = [f"ENSMUSG{i:011d}" for i in range(toy.n_vars)]
    mouse.var = pd.DataFrame(index=ids)
    table = pd.DataFrame({"mouse_id": ids, "human_id": toy.var["gene_ids"].to_numpy()})
    with pytest.raises(ValueError, match=r"mouse ids \(ENSMUSG\); map them with `stampy\.pp\.orthologs\(adata\)`"):
        tl.embed(mouse, model, modality="gene", **QUIET)
    pp.orthologs(mouse, table)
    for adata in (human, mouse):
        tl.embed(adata, model, modality="gene", **QUIET)
    np.testing.assert_array_equal(human.obsm["X_stamp"], mouse.obsm["X_stamp"])
    assert mouse.uns["stamp"]["X_stamp"]["genes"]["matched_by"] == "var['human_ortholog_id']"
    assert "human_ortholog" in mouse.uns["stamp"]


def test_the_packaged_table():
    adata = section(["Actb", "Apoe", "Gm10244", "mm10___Cd74", "Tyrobp"])
    pp.orthologs(adata)
    assert of(adata)[:4] == [("ACTB", "table"), ("APOE", "table"), ("", "none"), ("CD74", "table")]
    assert adata.var["human_ortholog_id"].tolist()[:2] == ["ENSG00000075624", "ENSG00000130203"]
    report = adata.uns["stamp"]["human_ortholog"]
    assert report["table"].startswith("packaged: MGI")
    assert report["n_pairs"] > 16_000
    by_id = section([k[0] for k in KNOWN])
    pp.orthologs(by_id)
    assert by_id.var["human_ortholog"].tolist() == [k[3] for k in KNOWN]


def test_packaged_table_states_its_source():
    text = gzip.decompress((FOLDER / "mouse_orthologs.tsv.gz").read_bytes()).decode()
    head = [line for line in text.split("\n") if line.startswith("#")]
    assert "Mouse Genome Informatics" in head[0]
    assert any("CC BY 4.0" in line for line in head)


def test_symbols_in_another_case(small):
    adata = section(["APOE", "ptgds", "SNAP25", "Snap25"])
    pp.orthologs(adata, vocabulary=small)
    assert of(adata) == [("APOE", "table"), ("PTGDS", "table"), ("", "none"), ("SNAP25", "table")]


def test_matching_does_not_change_the_object(small):
    adata = section(["Apoe", "Actb", "Ptgds", "Snap25"])
    with pytest.raises(ValueError, match=r"look like mouse genes.*organism='mouse'"):
        small.match(adata)
    match = human_matched(adata, small)
    assert match.rows.tolist() == [0, 3, 1, 2]
    assert match.source == "var['human_ortholog_id']"
    assert list(adata.var) == []
    assert "stamp" not in adata.uns
    pp.orthologs(adata)
    np.testing.assert_array_equal(small.match(adata).rows, match.rows)
    np.testing.assert_array_equal(human_matched(adata, small).rows, match.rows)


def test_written_and_read(tmp_path, small):
    adata = section(["Apoe", "Actb"])
    pp.orthologs(adata, vocabulary=small)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    assert of(again) == of(adata)
    assert again.uns["stamp"]["human_ortholog"]["n_table"] == 2


def test_bad_input(tmp_path, small):
    ids = section(["ENSMUSG00000002985", "ENSMUSG00000027273"])
    with pytest.raises(ValueError, match=r"columns \['a', 'b'\]; expected a table of Ensembl"):
        pp.orthologs(ids, pd.DataFrame({"a": [1], "b": [2]}))
    with pytest.raises(FileNotFoundError, match="No table of orthologs at"):
        pp.orthologs(ids, tmp_path / "none.tsv")
    (tmp_path / "t.tsv.gz").write_bytes(gzip.compress(b"mouse\thuman\n")[:10])
    with pytest.raises(ValueError, match="is not a table of text"):
        pp.orthologs(ids, tmp_path / "t.tsv.gz")
    with pytest.raises(ValueError, match=r"No gene was mapped: the section has .*Are they mouse genes"):
        pp.orthologs(section(["foo", "bar"]), vocabulary=small)
    assert "human_ortholog" not in ids.var


def test_registry_has_tables():
    entry = datasets.info("mouse_human_orthologs")
    assert set(entry.files) == {"ensembl", "mgi"}
    assert all(f.sha256 is None and f.url.startswith("https://") for f in entry.files.values())
    assert "mouse_human_orthologs" not in datasets.names(in_mirror=True)
    with pytest.raises(ValueError, match="does not know the hash"):
        datasets.fetch("mouse_human_orthologs", file="ensembl")
    with pytest.raises(ValueError, match="must be one of"):
        datasets.load("mouse_human_orthologs")


def test_real_mouse_section(data_dir, small):
    adata = ad.read_h5ad(data_dir / "sections" / "mouse_MOB_ST1.h5ad")  # ids alone
    with pytest.raises(ValueError, match=r"These are mouse ids.*stampy\.pp\.orthologs\(adata\)"):
        pp.tokenize(adata)
    pp.orthologs(adata)
    with pytest.warns(StampyWarning, match="27% of the counts are dropped.*no one-to-one human ortholog"):
        pp.tokenize(adata)
    assert adata.uns["stamp"]["stamp_tokens"]["n_matched"] == 938
    pp.orthologs(adata, pd.DataFrame(KNOWN, columns=BIOMART))
    report = adata.uns["stamp"]["human_ortholog"]
    assert (report["n_table"], report["n_same_symbol"], report["n_none"]) == (4, 0, 996)
    with pytest.warns(StampyWarning, match="99% of the counts are dropped"):
        assert small.match(adata).n_matched == 4
    with pytest.raises(ValueError, match="Only 4 of 1000 genes"):  # four genes are not a useful overlap
        tl.embed(adata, modality="gene", **QUIET)
