"""The paper's tables from a folder: layouts of the data, missing data, comparison of figures."""

import functools
import json
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from stampy import bench
from stampy.bench._paper.find_sections import KINDS
from stampy.bench._paper.label_columns import label_table
from stampy.bench._paper.load_sections import read_section
from stampy.bench._run import _chosen
from stampy.cli.main import main
from stampy.datasets._toy import toy_paper_folder
from stampy.datasets._toy.toy_paper_folder import DLPFC, FORMS, LAYERS, toy_folder

LAYER_NAMES = {"L1", "L2", "L3", "L4", "L5", "L6", "WM"}
QUICK = {"systems": ["PCA"], "show_progress_bar": False, "device": "cpu", "seeds": [0]}
TWO = [n.replace("Layer", "L") for n in LAYERS]


def chosen(table, folder, tmp_path):
    """The config on the folder, and its one data set."""
    config, found = _chosen(table, folder, (), None, tmp_path / "out")
    return config.datasets[0], found


@pytest.fixture(scope="module", autouse=True)
def _sections_are_drawn_once():
    """The same sections are written in several layouts."""
    drawn = functools.cache(toy_paper_folder._section)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_paper_folder, "_section", lambda *given: drawn(*given).copy())
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of two sections of the cortex in each form."""
    root = tmp_path_factory.mktemp("forms")
    return {form: toy_folder("dlpfc", root / form, form=form, n_sections=2, n_spots=80) for form in FORMS["dlpfc"]}


@pytest.mark.parametrize("form", FORMS["dlpfc"])
def test_every_layout_of_the_cortex_data_gives_the_same_sections(folders, form, tmp_path):
    data, found = chosen("dlpfc", folders[form], tmp_path)
    there = [p for p in found.pieces if p.found and p.what in ("counts", "labels")]
    assert {(p.what, p.name) for p in there} == {(w, n) for w in ("counts", "labels") for n in DLPFC[:2]}
    assert [s.name for s in data.sections] == list(DLPFC[:2])
    assert data.n_folds == 2
    from stampy.bench._embeddings import LABELS, load_section

    for section in data.sections:
        loaded = load_section(section, data, tmp_path)
        adata = loaded.adata
        assert adata.n_obs == 80
        labels = adata.obs[LABELS].dropna()
        assert set(labels) == LAYER_NAMES
        assert len(labels) == 79
        assert (adata.X.toarray() == np.rint(adata.X.toarray())).all()
        assert np.isfinite(adata.obsm["spatial"]).all()
        genes = set(adata.var_names) | set(adata.var.get("gene_ids", []))
        assert any(gene.startswith("ENSG") for gene in genes)
    if form != "h5ad":  # it holds its own
        images = {p.name: p.found for p in found.pieces if p.what == "image"}
        assert all(bool(images[n]) == (form != "sce") for n in DLPFC[:2])


def test_all_layouts_have_the_same_labels(folders, tmp_path):
    from stampy.bench._embeddings import LABELS, load_section

    known = {}
    for form, folder in folders.items():
        data, _ = chosen("dlpfc", folder, tmp_path / form)
        section = load_section(data.sections[0], data, tmp_path).adata
        names = section.obs_names.str.extract(r"([ACGT]{16})")[0]
        known[form] = pd.Series(section.obs[LABELS].astype(object).to_numpy(), index=names).dropna().sort_index()
    for form in known:
        pd.testing.assert_series_equal(known[form], known["h5ad"], check_names=False)


def test_missing_data_are_listed_with_download_steps(tmp_path, capsys):
    folder = toy_folder("dlpfc", tmp_path / "data", form="10x", n_sections=1, n_spots=60)
    (folder / "151507" / "metadata.tsv").unlink()
    (folder / "151507" / "151507_full_image.tif").unlink()
    (folder / "Human_DLPFC.Rda").write_bytes(b"R")
    found = {(p.what, p.name): p for p in bench.pieces("dlpfc", folder)}
    assert found["counts", "151507"].found == "151507/filtered_feature_bc_matrix.h5"
    assert "writeH5AD" in found["counts", "151508"].steps
    assert "Human_DLPFC.Rda" in found["counts", "151508"].steps
    assert "metadata.tsv" in found["labels", "151507"].steps
    assert "151507_full_image.tif" in found["image", "151507"].steps
    assert "weights/stamp.bin" in found["weights", "Stamp_F"].steps
    assert all(bool(p.found) != bool(p.steps) for p in found.values())
    (folder / "weights").mkdir()
    (folder / "weights" / "stamp.bin").write_bytes(b"x")
    found = {(p.what, p.name): p for p in bench.pieces("dlpfc", folder)}
    assert found["weights", "Stamp_F"].found.endswith("stamp.bin")


def test_an_empty_folder_is_refused_with_the_list(tmp_path, capsys):
    for table in FORMS:
        (tmp_path / table).mkdir()
        assert main(["bench", "run", table, str(tmp_path / table), "--out", str(tmp_path / f"out-{table}")]) == 1
        told = capsys.readouterr()
        assert "missing" in told.out
        assert "error" in told.err
        assert not (tmp_path / f"out-{table}").exists()


def test_names_and_parts_are_checked_before_heavy_imports(tmp_path):
    code = (
        "import sys; from stampy.cli.main import main; code = main(sys.argv[1:]); "
        "print(code, sorted({'torch', 'scanpy'} & set(sys.modules)))"
    )
    for args in (["bench", "run", "dlpcf", "--out", str(tmp_path / "a")],
                 ["bench", "run", "dlpfc", str(tmp_path), "--out", str(tmp_path / "b")]):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "1 []"
    assert not (tmp_path / "a").exists()
    unknown = subprocess.run([sys.executable, "-m", "stampy", "bench", "run", "dlpcf"], capture_output=True, text=True)
    assert "Did you mean 'dlpfc'" in unknown.stderr


def test_labels_of_another_table_are_not_used_as_layers(tmp_path):
    folder = toy_folder("dlpfc", tmp_path / "data", form="h5ad", n_sections=1, n_spots=60)
    import anndata

    path = folder / "151507.h5ad"
    adata = anndata.read_h5ad(path)
    adata.obs["layer_guess_reordered"] = "cluster 3"
    adata.write_h5ad(path)
    (piece,) = [p for p in bench.pieces("dlpfc", folder) if (p.what, p.name) == ("labels", "151507")]
    assert "'cluster 3'" in piece.steps


@pytest.mark.parametrize(
    ("text", "column"),
    [
        ("AAACAAGTATCTCCCA-1\tLayer_3\nAAACACCAATAACTGC-1\tWM\n", "column 2"),
        ("barcode,ground_truth\nAAACAAGTATCTCCCA-1,L3\nAAACACCAATAACTGC-1,WM\n", "ground_truth"),
        ('"x" "layer_guess"\n"AAACAAGTATCTCCCA-1" 3 "Layer3"\n"AAACACCAATAACTGC-1" 4 "WM"\n', "layer_guess"),
        ("AAACAAGTATCTCCCA-1\t151507\tL3\nAAACACCAATAACTGC-1\t151507\tWM\n", "column 3"),
    ],
)
def test_tables_of_labels(tmp_path, text, column):
    path = tmp_path / "labels.txt"
    path.write_text(text)
    found = label_table(path, KINDS["dlpfc"].columns, ["151507"], KINDS["dlpfc"].means)
    assert found.column == column
    assert [KINDS["dlpfc"].means(word) for word in found.labels] == ["L3", "WM"]


def test_column_with_an_unknown_word_is_not_a_label_column(tmp_path):
    path = tmp_path / "labels.txt"
    for word in map("unknown{}".format, range(20)):  # words in a set come in any order
        path.write_text(f"AAACAAGTATCTCCCA-1\tLayer_3\nAAACACCAATAACTGC-1\t{word}\n")
        assert label_table(path, KINDS["dlpfc"].columns, ["151507"], KINDS["dlpfc"].means) is None


def test_one_label_file_for_sections_that_share_barcodes(tmp_path):
    path, barcodes = tmp_path / "labels.tsv", ["AAACAAGTATCTCCCA-1", "AAACACCAATAACTGC-1"]
    rows = [(b, s, w) for s, words in {"151507": ("L3", "WM"), "151508": ("L1", "L2")}.items()
            for b, w in zip(barcodes, words, strict=True)]  # fmt: skip
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    for name in ("151507", "151508"):
        found = label_table(path, KINDS["dlpfc"].columns, [name], KINDS["dlpfc"].means)
        assert found.sections == ("151507", "151507", "151508", "151508")
        assert found.labels == ("L3", "WM", "L1", "L2")


def test_text_files_that_are_not_labels(tmp_path):
    for name, text in {"a.txt": "hello\nworld\n", "b.csv": "x,y\n1,2\n", "c.tsv": "gene\tn\nACTB\t3\n"}.items():
        (tmp_path / name).write_text(text)
        assert label_table(tmp_path / name, KINDS["dlpfc"].columns, ["151507"], KINDS["dlpfc"].means) is None
    (tmp_path / "d.txt").write_bytes(b"\xff\xfe\x00\x01\n\xff")
    assert label_table(tmp_path / "d.txt", (), [], str) is None


def test_fractions_without_counts_are_refused(tmp_path):
    folder = toy_folder("dlpfc", tmp_path / "data", form="sce", n_sections=1, n_spots=60)
    import anndata

    (path,) = folder.glob("*.zarr")
    adata = anndata.read_zarr(path)
    del adata.layers["counts"]
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of anndata's next release
        adata.write_zarr(path)
    section = bench.SectionConfig(source=str(path), name="151507", part="sample_name=151507")
    with pytest.raises(ValueError, match="no raw counts"):
        read_section(section, tmp_path)
    with pytest.raises(ValueError, match="No row of"):
        read_section(bench.SectionConfig(source=str(path), name="1", part="sample_name=1"), tmp_path)


def test_systems_that_see_images_are_skipped_without_images(tmp_path):
    folder = toy_folder("dlpfc", tmp_path / "data", form="sce", n_sections=2, n_spots=30)
    results = bench.run(
        "dlpfc", tmp_path / "out", folder=folder, systems=["pixels"], seeds=[0], device="cpu", show_progress_bar=False
    )
    skipped = results[(results["system"] == "pixels") & results["task"].isin(["probe", "domains"])]
    assert set(skipped["reason"]) == {"it sees images, and the section has none"}


@pytest.mark.parametrize(("table", "form"), [(t, f) for t in ("hbc", "her2", "psc", "hhk") for f in FORMS[t]])
def test_other_tables_are_found(table, form, tmp_path):
    n = {"hbc": 1, "her2": 3}.get(table, 2)
    folder = toy_folder(table, tmp_path / "data", form=form, n_sections=n, n_spots=30)
    data, found = chosen(table, folder, tmp_path)
    assert len(data.sections) == n
    assert all(
        p.found for p in found.pieces if p.what in ("labels", "image") and p.name in {s.name for s in data.sections}
    )
    if table == "her2":
        assert [s.patient for s in data.sections] == ["A", "A", "B"]
        assert data.n_folds == 2
    for section in data.sections:
        adata = read_section(section, tmp_path)
        assert adata.n_obs == 30
        assert "spatial" in adata.uns


def test_slides_that_are_absent_or_unlabelled_are_listed(tmp_path):
    folder = toy_folder("tcga-luad", tmp_path / "data", n_sections=3)
    lines = (folder / "gdc.tsv").read_text().splitlines()
    lines[1] = lines[1].replace("Stage I", "'--")
    (folder / "gdc.tsv").write_text("\n".join([*lines, "TCGA-99.svs\tTCGA-99\tStage I"]) + "\n")
    lines = (folder / "gdc.tsv").read_text().splitlines()
    data, found = chosen("tcga-luad", folder, tmp_path)
    assert data.n_folds == 5  # a label with one patient only, with a warning
    steps = {p.name: p.steps for p in found.pieces if p.what == "slides"}
    assert "TCGA-99.svs" in steps["slides that are absent"]
    assert "TCGA-00-DX1.tif" in steps["slides without a label"]
    table = pd.read_csv(data.slides["path"], sep="\t")
    assert table["patient"].tolist() == ["TCGA-01", "TCGA-02"]
    assert table[data.slides["label"]].tolist() == ["Stage II", "Stage I"]
    assert data.slides["label"] == "cases.0.diagnoses.0.ajcc_pathologic_stage"


def test_figures_are_listed_with_those_of_the_paper(folders, tmp_path, capsys):
    out = tmp_path / "results" / "dlpfc"
    results = bench.run("dlpfc", out, folder=folders["spe"], **QUICK)
    assert (results["status"] == "ok").any()
    table = bench.comparison(out)
    uni = table[(table["system"] == "UNI") & (table["task"] == "probe")].iloc[0]
    assert uni["paper"] == 0.544
    assert np.isnan(uni["own"])
    assert uni["reason"] == "not among the systems of this run"
    pca = table[(table["system"] == "PCA") & (table["task"] == "domains")].iloc[0]
    assert np.isnan(pca["paper"]), "a figure that is not known is not invented"
    assert np.isfinite(pca["own"])
    assert "not known" in pca["protocol"]
    choices = bench.protocol(out)
    folds = choices[(choices["task"] == "probe") & (choices["choice"] == "folds")].iloc[0]
    assert (folds["here"], folds["same"]) == ("each of 2 sections held out in turn", "not known")

    page = tmp_path / "page.html"
    assert main(["bench", "report", str(tmp_path / "results"), "--out", str(page)]) == 0
    text = page.read_text()
    assert "0.544" in text
    assert "data:image/png" in text
    assert "<script" not in text
    assert "Stamp_F" in text
    assert main(["bench", "report", str(out), "--out", str(page)]) == 1  # it exists
    assert main(["bench", "report", str(out), "--out", str(page), "--overwrite"]) == 0
    (tmp_path / "none").mkdir()
    assert main(["bench", "report", str(tmp_path / "none"), "--out", str(page), "--overwrite"]) == 1


def test_difference_is_own_minus_paper(tmp_path):
    config = {
        "datasets": [{"name": "D", "sections": ["toy"], "labels": "domain", "known_as": "DLPFC"}],
        "systems": [{"name": "PCA", "model": "pca"}], "seeds": [0],
        "tasks": [{"task": "domains", "methods": ["kmeans", "gmm"]}],
        "reported": [{"dataset": "D", "system": s, "task": "domains", "metric": "ari", "value": 0.2,
                      "source": "Han et al., 2026"} for s in ("PCA", "UNI")],
    }  # fmt: skip
    bench.run(config, tmp_path, show_progress_bar=False, device="cpu")
    table = bench.comparison(tmp_path)
    mine = table[table["system"] == "PCA"]
    assert mine["variant"].tolist() == ["kmeans", "gmm"]
    assert mine["difference"].tolist() == pytest.approx((mine["own"] - 0.2).tolist())
    assert (table["metric"] == "ari").all()
    about = json.loads((tmp_path / "results.json").read_text())
    assert about["datasets"][0]["sections"] == ["toy"]


def test_own_models_join_the_table(folders, tmp_path, model):
    from stampy import models

    models.save(model, tmp_path / "mine" / "model")
    config, _ = _chosen("dlpfc", folders["h5ad"], [str(tmp_path / "mine" / "model")], ["PCA"], tmp_path / "out")
    assert [s.name for s in config.systems] == ["PCA", "mine, genes", "mine, image", "mine, fused"]
    with pytest.raises(FileNotFoundError):
        _chosen("dlpfc", folders["h5ad"], [str(tmp_path / "nothing")], None, tmp_path / "out")
    with pytest.raises(ValueError, match="UNI"):
        _chosen("dlpfc", folders["h5ad"], (), ["UNY"], tmp_path / "out")
    with pytest.raises(ValueError, match="tables"):
        bench.run("toy", tmp_path / "out", folder=tmp_path)


def test_axes_of_one_section_are_not_evaluated_on_another(tmp_path):
    data = {"name": "T", "sections": ["toy", "toy:1"], "labels": "domain", "folds": "section", "n_folds": 2}
    config = {"datasets": [data], "systems": ["pca", "pixels"], "tasks": ["probe"], "seeds": [0]}
    results = bench.run(config, tmp_path, show_progress_bar=False, device="cpu")
    assert set(results.loc[results["status"] == "ok", "system"]) == {"pixels"}
    assert "fitted to each section" in results.loc[results["system"] == "pca", "reason"].iloc[0]


def test_file_with_links_outside_is_not_opened(tmp_path):
    import h5py

    (tmp_path / "data").mkdir()
    with h5py.File(tmp_path / "elsewhere.h5", "w") as file:
        file.create_group("obs")
    with h5py.File(tmp_path / "data" / "151507.h5ad", "w") as file:
        file["obs"] = h5py.ExternalLink(str(tmp_path / "elsewhere.h5"), "obs")
    (piece,) = [p for p in bench.pieces("dlpfc", tmp_path / "data") if (p.what, p.name) == ("counts", "151507")]
    assert not piece.found
    assert "151507.h5ad" in piece.steps


def test_folds_of_few_slides_warn(tmp_path):
    folder = toy_folder("tcga-luad", tmp_path / "data", n_sections=4)
    with pytest.warns(UserWarning, match="2 patients, so there are 2 folds, not 5"):
        data, _ = chosen("tcga-luad", folder, tmp_path)
    assert data.n_folds == 2
