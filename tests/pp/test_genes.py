"""Matching of the genes of a section to a vocabulary: names, errors and warnings."""

from contextlib import nullcontext

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from stampy import StampyWarning, pp, tl
from stampy.pp import Vocabulary, tokenize
from stampy.pp._counts import column_sums, raw_layers
from stampy.pp._genes.annotation import features_of, resolved_names
from stampy.pp._genes.names import control_of, human_genes, mended
from stampy.pp._vocabulary import packaged_vocabulary

pytestmark = pytest.mark.filterwarnings("ignore:Variable names are not unique")
QUIET = {"show_progress_bar": False, "device": "cpu"}
# approved symbol, Ensembl id; other names
GENES = {
    "GAPDH": "ENSG00000111640",
    "SEPTIN2": "ENSG00000168385",
    "MARCHF1": "ENSG00000145416",
    "MTARC1": "ENSG00000186205",
    "DELEC1": "ENSG00000173077",
    "HLA-A": "ENSG00000206503",
    "NKX2-1": "ENSG00000136352",
    "C1orf74": "ENSG00000162757",
    "TENT5C": "ENSG00000183508",
    "POU5F1": "ENSG00000204531",
    "SELENOF": "ENSG00000183291",
    "TP53": "ENSG00000141510",
    "CD4": "ENSG00000010610",
    "ADGRE5": "ENSG00000123146",
}
NAMES = list(GENES)


@pytest.fixture(scope="module")
def human():
    """A vocabulary of the genes above, in that order."""
    return Vocabulary(pd.DataFrame({"gene_id": list(GENES.values()), "symbol": NAMES, "divisor": 1.0}))


def section(names, counts=None, **columns):
    counts = np.ones((2, len(names))) if counts is None else np.tile(counts, (2, 1))
    return AnnData(counts.astype(np.float32), var=pd.DataFrame(columns, index=list(names)))


def found(vocabulary, names, **columns):
    """Symbols of the rows that the names were matched to, None for none."""
    rows = vocabulary.match(section(names, **columns)).rows
    return [NAMES[row] if row >= 0 else None for row in rows]


# ---- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gene"),
    [
        ("ENSG00000111640", "GAPDH"),
        ("ENSG00000111640.15", "GAPDH"),
        ("GRCh38_ENSG00000111640", "GAPDH"),
        ("hg19_ENSG00000111640.3", "GAPDH"),
        ("ENSG00000111640.15_PAR_Y", "GAPDH"),
        ("ENSGR0000111640", "GAPDH"),
        ("GAPDH_ENSG00000111640", "GAPDH"),
        ("ENSG00000111640|GAPDH", "GAPDH"),
        ("ENSG00000111640:GAPDH", "GAPDH"),
        ("GAPDH|2597", "GAPDH"),
        (" GAPDH ", "GAPDH"),
        ("GRCh38_GAPDH", "GAPDH"),
        ("GRCh38_____GAPDH", "GAPDH"),
        ("hg19-GAPDH", "GAPDH"),
        ("HUMAN_GAPDH", "GAPDH"),
        ("gapdh", "GAPDH"),
        ("hla.a", "HLA-A"),
        ("hla-a-1", "HLA-A"),
        ("sept2", "SEPTIN2"),
        ("ensg00000111640", "GAPDH"),
        ("Ensg00000111640.15", "GAPDH"),
        ("gapdh_ensg00000111640", "GAPDH"),
        ("GRCH38_GAPDH", "GAPDH"),
        ("grch38_gapdh", "GAPDH"),
        ("ensmusg00000057666", None),  # mouse
        ("GAPDH.1", "GAPDH"),
        ("GAPDH-1", "GAPDH"),
        ("SEPT2", "SEPTIN2"),
        ("2-Sep", "SEPTIN2"),
        ("02-Sep", "SEPTIN2"),
        ("Sep-02", "SEPTIN2"),
        ("Sep 2", "SEPTIN2"),
        ("2021-09-02", "SEPTIN2"),
        ("2021-09-02 00:00:00", "SEPTIN2"),
        ("02.09.2021", "SEPTIN2"),
        ("X2.Sep", "SEPTIN2"),
        ("MARCH1", "MARCHF1"),
        ("MARC1", "MTARC1"),
        ("DEC1", "DELEC1"),
        ("1-Dec", "DELEC1"),
        ("15-Sep", "SELENOF"),
        ("HLA.A", "HLA-A"),
        ("HLA_A", "HLA-A"),
        ("NKX2.1", "NKX2-1"),
        ("NKX2.1.1", "NKX2-1"),
        ("C1ORF74", "C1orf74"),
        ("c1orf74", "C1orf74"),
        ("FAM46C", "TENT5C"),
        ("OCT3", None),  # several genes
        ("CD97", "ADGRE5"),
        ("p53", "TP53"),
        ("Trp53", None),  # mouse
        ("Gapdh", None),
        ("mm10_GAPDH", None),
        ("GAPDHS", None),  # another gene
        ("", None),
    ],
)
@pytest.mark.filterwarnings("ignore:.*of the counts are dropped", "ignore:.*only in another case")
def test_single_names(human, name, gene):
    assert found(human, ["CD4", name]) == ["CD4", gene]


@pytest.mark.filterwarnings("ignore:.*of the counts are dropped")
@given(st.data())
@settings(deadline=None, max_examples=60)
def test_genes_are_matched_one_by_one(human, data):
    """Any mixture of ways to write the names leads to the same genes."""
    ways = [
        lambda s: s,
        lambda s: GENES[s],
        lambda s: f"{GENES[s]}.7",
        lambda s: f"GRCh38_{GENES[s]}",
        lambda s: f"{s}|{GENES[s]}",
        lambda s: f" {s}",
        lambda s: s.replace("-", "."),
    ]
    names = data.draw(st.permutations(NAMES))
    written = [data.draw(st.sampled_from(ways))(name) for name in names]
    assert found(human, written) == names


@pytest.mark.parametrize("write", [str.lower, str.upper, lambda name: name.replace("-", ".").lower()])
def test_names_in_one_case(write):
    """Every approved symbol of HGNC in one case is its own gene, those of the mitochondria included."""
    human = packaged_vocabulary()
    names = [human.index.human.symbols[gene] for gene in human.index.by_gene]
    rows = list(human.index.by_gene.values())
    kept = [k for k, name in enumerate(names) if human.index.by_symbol.get(name) == rows[k]][::20]
    names = [names[k] for k in kept] + ["MT-CO1", "MT-ND4L", "HLA-DRA"]
    rows = [rows[k] for k in kept] + [human.index.by_symbol[name] for name in names[-3:]]
    with pytest.warns(StampyWarning, match="only in another case") if write is not str.upper else nullcontext():
        match = human.match(section([write(name) for name in names]))
    assert [name for name, row, true in zip(names, match.rows, rows, strict=True) if row != true] == []


def test_ids_win_over_symbols(human):
    names = ["GAPDH", "TP53", "CD4"]
    swapped = [GENES["TP53"], GENES["GAPDH"], GENES["CD4"]]
    for column in ("gene_ids", "ENSEMBL", "Gene.ID", "gene_name", "my_annotation"):
        match = human.match(section(names, **{column: swapped}))
        assert [NAMES[row] for row in match.rows] == ["TP53", "GAPDH", "CD4"]
        assert match.n_contradictions == 2
        assert "for 2 the symbol belongs to a different gene than the id" in str(match)
    with pytest.warns(StampyWarning, match=r"For 12 of 14 genes the symbol is that of another gene"):
        human.match(section(NAMES, gene_ids=[*list(GENES.values())[1:12], GENES["GAPDH"], *list(GENES.values())[12:]]))


def test_a_column_that_claims_ids_but_holds_none(human):
    assert found(human, NAMES, gene_ids=[f"gene{i}" for i in range(len(NAMES))]) == NAMES
    assert found(human, NAMES, gene_ids=["-", np.nan, *[None] * 12]) == NAMES
    # ids of other genes than the column's own are not taken for its own
    assert found(human, NAMES, paralog_id=[GENES["TP53"]] * 14) == NAMES


def test_unknown_ids_fall_back_to_symbols(human):
    names = ["GAPDH", "TP53", "TP53", "CD4"]
    ids = ["ENSG00009999999", GENES["TP53"], "ENSG00009999998", GENES["CD4"]]
    with pytest.warns(StampyWarning, match="25% of the counts are dropped"):
        assert found(human, names, gene_ids=ids) == ["GAPDH", "TP53", None, "CD4"]


def test_names_of_a_new_vocabulary_in_another_case():
    ids, symbols, _ = resolved_names(pd.DataFrame(index=["TP53", "gapdh", "CD4", "Cd8a", "ensg00000105383"]))
    assert symbols.tolist() == ["TP53", "GAPDH", "CD4", "Cd8a", "CD33"]  # Cd8a may be of mouse
    assert ids.tolist() == [GENES["TP53"], GENES["GAPDH"], GENES["CD4"], "", "ENSG00000105383"]


def test_duplicates_are_summed(human):
    one = section(["GAPDH", "TP53"], np.array([3, 5]))
    two = section(["GAPDH", "TP53", "ENSG00000111640"], np.array([1, 5, 2]))
    np.testing.assert_array_equal(
        tokenize(one, human, copy=True).obsm["stamp_tokens"], tokenize(two, human, copy=True).obsm["stamp_tokens"]
    )
    match = human.match(two)
    assert (match.n_matched, match.n_duplicated) == (2, 1)


def test_dates_of_two_genes(human):
    with pytest.warns(StampyWarning, match="1-Mar as MARCH1, not MARC1"):
        assert found(human, ["GAPDH", "1-Mar"]) == ["GAPDH", "MARCHF1"]
    assert found(human, ["MARC1", "1-Mar"]) == ["MTARC1", "MARCHF1"]
    assert found(human, ["MARCHF1", "1-Mar"]) == ["MARCHF1", "MTARC1"]
    for twice in (["1-Mar", "1-Mar"], ["1-Mar", "1-Mar.1"]):
        with pytest.warns(StampyWarning, match="may be several genes were dropped"):
            match = human.match(section(["GAPDH", "CD4", *twice], [50, 50, 1, 1]))
        assert match.rows.tolist() == [0, 12, -1, -1]


def test_an_alias_of_a_gene_that_is_there(human):
    with pytest.warns(StampyWarning, match="are ambiguous"):
        assert found(human, ["ADGRE5", "TP53", "p53"]) == ["ADGRE5", "TP53", None]


def test_names_of_several_genes_are_refused_and_counted(human):
    several = [name for name, gene in human_genes().previous.items() if gene < 0][:3]
    match = human.match(section([*NAMES, *several], np.array([100] * 14 + [1] * 3)))
    assert match.ambiguous == tuple(several)
    assert match.n_matched == 14
    assert "3 names are ambiguous" in str(match)


# ---- features that are not genes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["feature_types", "feature_type"])
@pytest.mark.parametrize("kind", ["Antibody Capture", "CRISPR Guide Capture", "Custom", "Negative Control Probe"])
def test_features_that_are_not_genes(human, column, kind):
    kinds = ["Gene Expression"] * 3 + [kind]
    match = human.match(section(["GAPDH", "TP53", "CD4", "CD4"], np.array([1, 1, 1, 900]), **{column: kinds}))
    assert match.rows.tolist() == [0, 11, 12, -1]
    assert match.left_out == {kind: 1}
    assert match.unmatched_share == 0
    assert f"not genes, and ignored: 1 {kind}" in str(match)


@pytest.mark.parametrize(
    "name",
    [
        *("NegControlProbe_00042", "NegControlCodeword_0500", "UnassignedCodeword_0001", "BLANK_0069", "Blank-12"),
        *("antisense_PROKR2", "NegPrb3", "Negative14", "SystemControl23", "ERCC-00002", "CD3_TotalSeqB", "ADT-CD3"),
        *("DeprecatedCodeword_0010", "Intergenic_Region_12", "Hashtag1", "FalseCode12"),
    ],
)
def test_controls_by_name_alone(human, name):
    match = human.match(section(["GAPDH", "TP53", name], np.array([1, 1, 900])))
    assert match.rows.tolist() == [0, 11, -1]
    assert match.n_left_out == 1
    assert match.unmatched_share == 0


def test_human_genes_are_not_taken_for_controls():
    genes = human_genes()
    names = [*genes.symbols, *genes.previous]
    assert not [name for name, kind in zip(names, control_of(names), strict=True) if kind]


def test_biotypes_are_genes(human):
    kinds = ["protein_coding", "lncRNA", "IG_C_gene"]  # as CELLxGENE has them
    assert human.match(section(["GAPDH", "TP53", "CD4"], feature_type=kinds)).n_matched == 3


def test_nothing_but_antibodies(human):
    with pytest.raises(ValueError, match=r"None of the 2 columns of the section is a gene: 2 Antibody Capture"):
        human.match(section(["CD4", "TP53"], feature_types=["Antibody Capture"] * 2))


def test_antibodies_with_repeated_gene_names(human):
    with pytest.warns(StampyWarning, match="repeat a gene only by its name account for 90% of the counts"):
        human.match(section(["GAPDH", "CD4", "CD4-1"], np.array([5, 5, 90])))


# ---- warnings about lost counts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["ENST00000311111", "ENST00000322222.3"], "transcripts"),
        (["2597", "7157"], "Entrez"),
        (["1007_s_at", "ILMN_12345"], "probe ids"),
        (["Xkr4", "Rp1"], "mouse"),
        (["mm10_Xkr4", "mm10_Rp1"], "another species"),
        (["ENSMUSG00000051951", "ENSMUSG00000025900"], "mouse"),
        (["ENSDARG00000051951", "ENSDARG00000025900"], "another species"),
        (["AKT1", "AKT2"], "not in the model's vocabulary"),
        (["foo1x", "foo2x"], "not in HGNC"),
    ],
)
def test_warning_names_the_likely_reason(human, names, reason):
    with pytest.warns(StampyWarning, match=rf"40% of the counts are dropped: 2 of .*{reason}"):
        human.match(section(["GAPDH", "TP53", *names], np.array([30, 30, 20, 20])))


def test_small_loss_does_not_warn(human):
    match = human.match(section(["GAPDH", "TP53", "AKT1"], np.array([50, 47, 3])))
    assert match.unmatched_share == pytest.approx(0.03)
    assert "they account for 97.0% of the counts" in str(match)
    assert match.record()["unmatched_share"] == pytest.approx(0.03)


def test_errors_show_real_ids():
    with pytest.raises(ValueError, match=r"expected ids such as \['ENSG0\d+', .*symbols such as \['TSPAN6'"):
        packaged_vocabulary().match(section([f"x{i}" for i in range(50)]))


def test_the_layer_is_named(toy, model):
    adata = toy.copy()
    adata.layers["umi"] = adata.X.copy()
    adata.layers["log"] = adata.X.astype(np.float32).log1p()
    adata.X = adata.layers["log"].copy()
    for run in (lambda: tl.embed(adata, model, modality="gene", **QUIET), lambda: tokenize(adata)):
        with pytest.raises(ValueError, match=r"`adata\.X` looks log-normalised.*pass layer='umi'"):
            run()
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    with pytest.raises(ValueError, match=r"`adata\.X` has no counts: .*use layer='umi'"):
        tokenize(adata)
    with pytest.raises(KeyError, match=r"`adata\.layers`.*Raw counts are in \['umi'\]: use layer='umi'"):
        tokenize(adata, layer="raw")
    assert raw_layers(adata.layers) == ["umi"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int64, np.float32])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix])
def test_sums_do_not_overflow(dtype, form):
    X = np.full((400, 3), 100, dtype=dtype)
    sums, complete = column_sums(form(X))
    assert complete
    assert sums.tolist() == [40_000.0] * 3


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16])
def test_bins_and_divisors_of_small_integers(dtype):
    X = np.full((600, 2), 120, dtype=dtype)
    cells = AnnData(sparse.csr_matrix(X), var=pd.DataFrame(index=["GAPDH", "TP53"]))
    cells.obsm["spatial"] = np.random.default_rng(0).uniform(0, 10, (600, 2))
    binned = pp.bins(cells, 100, um_per_px=1)
    assert binned.X.toarray().tolist() == [[72_000, 72_000]]
    vocabulary = Vocabulary.from_sections([cells])
    assert vocabulary.divisors.tolist() == [5000.0, 5000.0]


# ---- vocabularies --------------------------------------------------------------------------------------------------


def test_one_token_per_gene():
    """A vocabulary with old symbols and ids: both names refer to the row with the id, other tokens do not change."""
    frame = pd.DataFrame(
        {
            "gene_id": ["SEPT2", GENES["GAPDH"], "MT.CO2", GENES["SEPTIN2"], "TP53.1", "TP53", "ABC-17.1"],
            "symbol": ["SEPT2", "GAPDH", "MT.CO2", "SEPTIN2", "TP53.1", "TP53", "ABC-17.1"],
            "divisor": 1.0,
        }
    )
    vocabulary = Vocabulary(frame)
    assert vocabulary.merged == {"SEPT2": GENES["SEPTIN2"], "TP53": "TP53.1"} or vocabulary.merged == {
        "SEPT2": GENES["SEPTIN2"],
        "TP53.1": "TP53",
    }
    names = ["SEPT2", "SEPTIN2", GENES["SEPTIN2"], "MT-CO2", "GAPDH", "ABC-17.1"]
    assert [vocabulary.token_of(name) - 30 for name in names] == [3, 3, 3, 2, 1, 6]
    both = section(["SEPT2", "SEPTIN2", "GAPDH"], np.array([2, 3, 4]))
    match = vocabulary.match(both)
    assert match.rows.tolist() == [3, 3, 1]
    assert tokenize(both, vocabulary, max_tokens=3, copy=True).obsm["stamp_tokens"][0].tolist() == [33, 31, 0]
    pd.testing.assert_frame_equal(vocabulary.frame, frame)  # the file, its digest and all tokens stay


def test_the_packaged_vocabulary():
    """Approved genes with an Ensembl id, one token each; old names refer to the same tokens."""
    vocabulary, human = packaged_vocabulary(), human_genes()
    assert len(vocabulary) == 19_664
    assert vocabulary.merged == {}
    first = [cell.split("|")[0] for cell in vocabulary.symbols]
    assert first == [human.symbols[human.of_id[gene_id]] for gene_id in vocabulary.gene_ids]
    for old, new in (("ADRBK1", "GRK2"), ("MARCH1", "MARCHF1"), ("SEPT2", "SEPTIN2"), ("C10orf54", "VSIR")):
        assert vocabulary.token_of(old) == vocabulary.token_of(new)


def test_retired_ids_of_the_packaged_vocabulary():
    """SOD2 had another id until 2022. In a section that has both, the older id is another gene."""
    vocabulary = packaged_vocabulary()
    row = vocabulary.token_of("SOD2") - 30
    assert vocabulary.gene_ids[row] == "ENSG00000291237"
    for name in ("ENSG00000112096.19", "SOD2"):
        assert vocabulary.match(section([name, *GENES.values()])).rows[0] == row
    both = section(["ENSG00000112096", "ENSG00000291237", *GENES.values()])
    with pytest.warns(StampyWarning, match="ENSG00000112096"):
        assert vocabulary.match(both).rows[:2].tolist() == [-1, row]


def test_a_vocabulary_of_another_species_keeps_its_names():
    names = ["Gapdh", "Trp53", "Cd4", "H2-K1"]
    mouse = Vocabulary(pd.DataFrame({"gene_id": names, "symbol": names, "divisor": 1.0}))
    assert mouse.merged == {}
    assert mouse.match(section(names)).rows.tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="Only 0 of 3 genes"):
        mouse.match(section(["GAPDH", "TP53", "CD4"]))


def test_names_are_resolved_before_a_vocabulary_is_made():
    sections = [
        section(["SEPT2", "GAPDH", "HLA.A", "Blank-1", "FAM46C", "TP53"], np.array([10, 10, 10, 900, 5, 5])),
        section(["a", "b", "c"], gene_ids=[GENES["SEPTIN2"], GENES["TENT5C"], GENES["TP53"]]),
    ]
    vocabulary = Vocabulary.from_sections(sections, min_spots=1)
    expected = {GENES[name]: name for name in ("SEPTIN2", "GAPDH", "HLA-A", "TENT5C", "TP53")}
    assert dict(zip(vocabulary.gene_ids, vocabulary.symbols, strict=True)) == expected
    frame = vocabulary.frame.set_index("symbol")
    assert frame.loc["GAPDH", "divisor"] == 2500  # the blank is no count
    assert vocabulary.merged == {}


def test_mouse_names_are_not_resolved_by_hgnc():
    ids, symbols, _ = resolved_names(pd.DataFrame(index=["Gapdh", "Trp53", "H19", "Sept2"]))
    assert symbols.tolist() == ["Gapdh", "Trp53", "H19", "Sept2"]
    assert (ids == "").all()


def test_sources_of_ids_by_column():
    var = pd.DataFrame({"feature_name": ["GAPDH", "x"]}, index=[GENES["GAPDH"], "GRCh38_ENSG00000141510.4"])
    features = features_of(var)
    assert features.ids.tolist() == [GENES["GAPDH"], GENES["TP53"]]
    assert set(features.id_sources) == {"var_names"}
    assert features_of(pd.DataFrame({"n": [1, 2]}, index=["a", "b"])).symbols == {"var_names": ["a", "b"]}


# ---- real sections -------------------------------------------------------------------------------------------------


def test_share_of_the_counts_of_real_sections(data_dir):
    """All counts, and those of names that HGNC knows; the vocabulary has no clones, such as CH507-513H4.5."""
    for name, least, of_known in (("melanoma_ST_sepal", 0.988, 0.997), ("PDAC_A_human", 0.980, 0.985),
                                  ("prostate_CP_mini", 0.999, 0.999)):  # fmt: skip
        section = anndata.read_h5ad(data_dir / "sections" / f"{name}.h5ad")
        match, sums = packaged_vocabulary().match(section), column_sums(section.X)[0]
        assert 1 - match.unmatched_share > least, str(match)
        known = np.array([human_genes().guess(gene) >= 0 for gene in section.var_names])
        assert sums[known & (match.rows >= 0)].sum() / sums[known].sum() > of_known


def test_cached_matches_are_not_mixed_up():
    """Sections with the same names share what was found; one changed name, kind or column does not."""
    vocabulary = Vocabulary(
        pd.DataFrame({"gene_id": ["ENSG00000111640", "ENSG00000141510"], "symbol": ["GAPDH", "TP53"], "divisor": 1.0})
    )

    def rows(names, **columns):
        var = pd.DataFrame(columns, index=pd.Index(names, dtype=str))
        return vocabulary.match(AnnData(np.ones((2, len(names)), dtype=np.float32), var=var)).rows.tolist()

    for _ in range(2):
        assert rows(["GAPDH", "TP53"]) == [0, 1]
        assert rows(["TP53", "GAPDH"]) == [1, 0]
        assert rows(["a", "b"], gene_ids=["ENSG00000141510", "ENSG00000111640"]) == [1, 0]
        assert rows(["GAPDH", "TP53"], feature_types=["Gene Expression", "Antibody Capture"]) == [0, -1]
        assert rows(["GAPDH", "TP53"], note=["x", "y"]) == [0, 1]


@pytest.mark.parametrize("storage", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
def test_sums_of_columns_beside_huge_ones(storage):
    """A column's sum does not depend on its neighbours', however large these are."""
    x = np.array([[1e300, 0, 3, 1e308, 0], [0, 0, 4, 1e308, 5]])
    assert column_sums(storage(x))[0].tolist() == [1e300, 0, 7, 1e300, 5]


WRITTEN = {
    "quoted": lambda name: f'"{name}"',
    "bytes": lambda name: f"b'{name}'",
    "Seurat's assay": lambda name: f"rna_{name}",
    "Seurat's key": lambda name: f"Spatial.{name}",
    "species": lambda name: f"Homo_sapiens_{name}",
}


@pytest.mark.parametrize("how", WRITTEN)
def test_common_prefixes_and_suffixes_are_removed(how):
    vocabulary = packaged_vocabulary()
    names = [name for name in vocabulary.index.first_symbols if name][:200]
    expected = vocabulary.match(section(names)).rows
    np.testing.assert_array_equal(vocabulary.match(section([WRITTEN[how](name) for name in names])).rows, expected)


def test_common_starts_of_gene_families_are_kept(human):
    names = [f"MT-ND{i}" for i in range(1, 7)]
    assert features_of(pd.DataFrame(index=names)).symbols["var_names"] == names


@pytest.mark.parametrize(
    ("date", "symbol"),
    [
        ("2-September", "SEPTIN2"),
        ("9/2", "SEPTIN2"),
        ("2-Sep-20", "SEPTIN2"),
        ("44076", "SEPTIN2"),
    ],
)
def test_more_dates(human, date, symbol):
    others = [name for name in NAMES if name != symbol]
    many = [f"LOC{i}" for i in range(99)]
    match = human.match(section([date, *others, *many], np.r_[np.ones(len(NAMES)), np.zeros(99)]))
    assert match.rows[0] == NAMES.index(symbol)


def test_mars_is_distinguished_from_dates():
    assert list(mended("1-mars")) == [("date", "MARCH1"), ("date", "MARC1")]
    for name, gene in {"MARS.1": "MARS", "MARS-2": "MARS", "Mars.1": "Mars"}.items():  # as make.unique writes them
        assert ("suffix", gene) in mended(name)
        assert all(how != "date" for how, _ in mended(name))


def test_numbers_are_dates_only_if_few(human):
    with pytest.warns(StampyWarning, match="numbers, e.g. Entrez"):
        match = human.match(section([*NAMES, *map(str, range(44070, 44090))]))
    assert (match.rows[len(NAMES) :] < 0).all()


def test_genomes_in_a_column(human):
    columns = {"genome": ["GRCh38"] * len(NAMES) + ["mm10"] * len(NAMES)}
    with pytest.warns(StampyWarning, match="genes of another species, according to the genome"):
        match = human.match(section([*NAMES, *NAMES], **columns))
    assert (match.rows[: len(NAMES)] >= 0).all()
    assert (match.rows[len(NAMES) :] < 0).all()
    mapped = section(NAMES, genome="mm10")  # human names that somebody gave to mouse genes
    assert (human.match(mapped).rows >= 0).all()


def test_a_table_of_variable_genes_only(human):
    adata = section(NAMES, highly_variable=True)
    with pytest.warns(StampyWarning, match=r"All 14 genes are marked.* seem to have been removed\. Models"):
        human.match(adata)
    adata.raw = section([*NAMES, "a", "b"])
    with pytest.warns(StampyWarning, match=r"removed \(`adata.raw` has 16\)"):
        human.match(adata)
    adata.raw = section(NAMES)  # nothing was removed
    human.match(adata)
    adata.raw, adata.var["highly_variable"] = None, np.arange(len(NAMES)) > 0
    human.match(adata)


def test_negative_counts_have_no_shares(human):
    names, counts = [*NAMES, "NOGENE"], np.r_[np.ones(len(NAMES)), -13.9]  # a share would be -1390 %
    assert human.match(section(names, counts)).unmatched_share is None
    with pytest.raises(ValueError, match="2 negative values"):
        tokenize(section(names, counts), human)
