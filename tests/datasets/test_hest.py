"""Manifests of HEST folders; excluded and missing sections are named."""

import numpy as np
import pandas as pd
import pytest

import stampy
from stampy import datasets, train
from stampy.cli import main as cli
from stampy.datasets._hest_manifest import hest_counts
from stampy.datasets._toy.toy_hest import HEST_COLUMNS


@pytest.fixture(scope="module")
def hest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hest")
    datasets.toy_hest(folder, n_sections=3, n_spots=30, n_genes=200)
    return folder


def table_only(folder, rows, name="HEST_v1_1_0.csv", files=True):
    """A folder whose sections are empty files."""
    table = pd.DataFrame(rows).reindex(columns=list(HEST_COLUMNS))
    folder.mkdir(exist_ok=True)
    table.to_csv(folder / name, index=False, encoding="utf-8-sig")
    for place, end in (("st", "h5ad"), ("wsis", "tif")):
        (folder / place).mkdir(exist_ok=True)
        for row in rows if files else []:
            (folder / place / f"{row['id']}.{end}").touch()
    return folder


def row(name, **more):
    return {"id": name, "image_filename": f"{name}.tif", "species": "Homo sapiens", "organ": "Breast",
            "st_technology": "Visium", "pixel_size_um_estimated": 0.5, "spots_under_tissue": 100} | more  # fmt: skip


def test_manifest_matches_the_table(hest):
    manifest = datasets.hest_manifest(hest)
    assert manifest["name"].tolist() == ["TOY1", "TOY2", "TOY3"]
    assert manifest["um_per_px"].tolist() == [1.6] * 3
    assert manifest["patient"].tolist() == ["Patient 1", "Patient 1", "Patient 2"]
    assert set(manifest["species"]) == {"Homo sapiens"}
    assert manifest.attrs == {
        "left_out": {"TENX13": "HBC"},
        "spots": dict.fromkeys(["TOY1", "TOY2", "TOY3"], 30),
        "table": "HEST_v1_1_0.csv",
    }
    counts = hest_counts(manifest)
    assert counts.loc["all"].to_dict() == {"Visium": 3, "all": 3, "spots": 90}


def test_toy_section_is_read_like_hest(hest):
    found = stampy.read(hest / "st" / "TOY1.h5ad")
    library = found.uns["spatial"]["ST"]
    assert library["scalefactors"]["microns_per_pixel"] == 1.6
    assert library["metadata"]["source_image_path"].endswith("TOY1.tif")
    assert np.allclose(found.obsm["spatial"], found.obs[["pxl_col_in_fullres", "pxl_row_in_fullres"]])


def test_sections_of_the_papers_tables_are_left_out(tmp_path):
    known = datasets.hest_evaluation()
    assert known["data_set"].value_counts().to_dict() == {"HER2+": 36, "HHK": 23, "DLPFC": 12, "PSC": 4, "HBC": 2}
    assert set(known["known"]) == {"certain", "likely"}
    assert known["id"].is_unique
    assert {"SPA119", "SPA154", "NCBI714", "MISC1", "TENX14"} <= set(known["id"])
    rows = [row(name) for name in known["id"]]
    rows += [row("NEW1", dataset_title="SpatialLIBD"), row("MINE")]  # a later section of a study that is known
    folder = table_only(tmp_path / "hest", rows)
    manifest = datasets.hest_manifest(folder)
    assert manifest["name"].tolist() == ["MINE"]
    assert manifest.attrs["left_out"]["NEW1"] == "DLPFC"
    with pytest.warns(UserWarning, match=r"78 sections are kept that the paper's tables are computed on"):
        assert len(datasets.hest_manifest(folder, exclude_evaluation=False)) == 79


def test_filters(tmp_path):
    rows = [row("A"), row("B", species="Mus musculus"), row("C", organ="Brain", disease_state="Cancer"),
            row("D", st_technology="Visium HD")]  # fmt: skip
    folder = table_only(tmp_path / "hest", rows)

    def names(**filters):
        return "".join(datasets.hest_manifest(folder, **filters)["name"])

    assert names(species="human") == "ACD"
    assert names(species="Mouse") == "B"
    assert names(species=["human", "Mus musculus"]) == "ABCD"
    assert names(platform="visium") == "ABC"
    with pytest.warns(UserWarning, match=r"states no disease_state for 3 sections, .*: \['A', 'B', 'D'\]"):
        assert names(organ=["brain"], disease="cancer") == "C"
    assert names(exclude=["A", "B"]) == "CD"
    with pytest.raises(ValueError, match=r"has no organ 'Brian'. It has \['Brain', 'Breast'\]"):
        names(organ="Brian")
    with pytest.raises(ValueError, match=r"`exclude` names sections that .* does not have: \['E'\]"):
        names(exclude=iter(["E"]))
    with pytest.raises(ValueError, match=r"No section is left of the 4 .*: 0 fit the filters"):
        names(species="mouse", organ="Brain")


def test_missing_files_are_named(tmp_path):
    folder = table_only(tmp_path / "hest", [row("A"), row("B"), row("C")])
    (folder / "st" / "B.h5ad").unlink()
    (folder / "wsis" / "C.tif").unlink()
    with pytest.warns(UserWarning, match=r"2 of 3 sections are skipped, because a file is missing: .*B\.h5ad.*C\.tif"):
        assert datasets.hest_manifest(folder)["name"].tolist() == ["A"]
    with pytest.warns(UserWarning, match=r"1 of 3 sections are skipped"):
        manifest = datasets.hest_manifest(folder, images=False)
    assert manifest["image"].map(bool).tolist() == [True, False]
    with pytest.raises(ValueError, match=r"No section is left .*2 lack files, such as '.*A\.h5ad'"):
        datasets.hest_manifest(table_only(tmp_path / "none", [row("A"), row("B")], files=False))


def test_the_newest_table_is_read(tmp_path):
    folder = table_only(tmp_path / "hest", [row("A")], name="HEST_v1_9_0.csv")
    table_only(folder, [row("B")], name="HEST_v1_10_0.csv")
    manifest = datasets.hest_manifest(folder)
    assert (manifest["name"].tolist(), manifest.attrs["table"]) == (["B"], "HEST_v1_10_0.csv")


def test_pixel_sizes(tmp_path):
    rows = [row("A"), row("B", pixel_size_um_estimated="", pixel_size_um_embedded=0.25),
            row("C", pixel_size_um_estimated=-1)]  # fmt: skip
    with pytest.warns(
        UserWarning, match=r"`pixel_size_um_estimated` of 1 sections is not a positive number .* \['C'\]"
    ):
        found = datasets.hest_manifest(table_only(tmp_path / "hest", rows))["um_per_px"]
    assert found[:2].tolist() == [0.5, 0.25]
    assert np.isnan(found[2])


def test_missing_metadata_warns(tmp_path):
    rows = [row("A"), row("B", species="")]
    with pytest.warns(UserWarning, match=r"states no species for 1 sections, which the filter leaves out: \['B'\]"):
        datasets.hest_manifest(table_only(tmp_path / "a", rows), species="human", images=False)
    folder = table_only(tmp_path / "b", [row("A")])
    table = pd.read_csv(folder / "HEST_v1_1_0.csv").drop(columns="dataset_title")
    table.to_csv(folder / "HEST_v1_1_0.csv", index=False)
    with pytest.warns(UserWarning, match="no column `dataset_title`: sections of evaluation data are recognised by id"):
        datasets.hest_manifest(folder, images=False)


def test_bad_tables(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no table HEST_v\*.csv"):
        datasets.hest_manifest(tmp_path)
    with pytest.raises(ValueError, match=r"ids occur twice or are empty: \['A'\]"):
        datasets.hest_manifest(table_only(tmp_path / "twice", [row("A"), row("A")]))
    with pytest.raises(ValueError, match="leads out of the folder"):
        datasets.hest_manifest(table_only(tmp_path / "out", [row("A", image_filename="../../a.tif")]))
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / "HEST_v1_0_0.csv").write_text("id,species\nA,Homo sapiens\n")
    with pytest.raises(KeyError, match="organ"):
        datasets.hest_manifest(tmp_path / "few")


def test_a_corpus_of_a_manifest(hest, tmp_path, capsys):
    assert cli.main(["corpus", "hest", str(hest), "--out", str(tmp_path / "m.tsv"), "--species", "human"]) == 0
    out = capsys.readouterr().out
    assert "3 sections, 90 spots" in out
    assert "excluded, the paper is compared on HBC: 1 (TENX13)" in out
    small = {"max_tokens": 32, "size_px": 32, "codec": "zstd", "n_workers": 1, "progress": False, "images": True}
    corpus = train.Corpus.build(tmp_path / "m.tsv", tmp_path / "corpus", **small)
    assert corpus.table["patient"].tolist() == ["Patient 1", "Patient 1", "Patient 2"]
    assert corpus.table["tiles"].all()
    assert corpus.section("TOY2").record["study"] == "Toy study 1"
    again = train.Corpus.build(datasets.hest_manifest(hest), tmp_path / "again", **small)
    assert again.digest == corpus.digest


def test_missing_spots_and_platforms_warn(tmp_path):
    rows = [row("A", spots_under_tissue=""), row("B", spots_under_tissue=-5), row("C"), row("D", st_technology="")]
    with pytest.warns(stampy.StampyWarning, match=r"no number of spots .* for 2 sections.*\['A', 'B'\]"):
        manifest = datasets.hest_manifest(table_only(tmp_path, rows))
    assert manifest.attrs["spots"] == {"C": 100, "D": 100}
    assert hest_counts(manifest).loc["all"].to_dict() == {"(not stated)": 1, "Visium": 3, "all": 4, "spots": 200}


def test_one_id_to_exclude_and_filters_of_another_type(tmp_path):
    folder = table_only(tmp_path, [row("A"), row("B")])
    assert datasets.hest_manifest(folder, exclude="A")["name"].tolist() == ["B"]
    for wrong in (3, ["Homo sapiens", None]):
        with pytest.raises(TypeError, match="`species` must be text or a list of texts"):
            datasets.hest_manifest(folder, species=wrong)
