"""Comparisons: configs, skipped parts, resuming, tables and the figure."""

import copy
import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import stampy
from stampy import bench, datasets, models
from stampy._section.identity import digest_of_section
from stampy.bench import _embeddings, _run, _tasks
from stampy.bench._config import DataSet, SectionConfig, System
from stampy.bench._run import seen
from stampy.bench._table import tidy
from stampy.cli.main import main
from stampy.models._weights import write_trained_on
from stampy.tl._evaluation.label_free import masked_accuracy

BASIC = {"datasets": [{"name": "T", "sections": ["toy"], "labels": "domain"}], "systems": ["pca"], "tasks": ["probe"]}


@pytest.fixture(autouse=True)
def _small_toy(monkeypatch, toy):
    """The toy section of other tests, not a larger one."""
    made = {0: toy}

    def small(*, rng=0):
        if rng not in made:
            made[rng] = datasets._toy.toy.toy(n_spots=120, rng=rng)
        return made[rng].copy()

    monkeypatch.setattr("stampy.datasets.toy", small)
    monkeypatch.delenv("STAMPY_DATA_DIR", raising=False)


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "small"
    models.save(model, folder)
    return str(folder)


@pytest.fixture
def full(weights):
    """Every kind of system on every task."""
    return {
        "datasets": [{"name": "T", "sections": ["toy", "toy:1"], "labels": "domain"}],
        "systems": [
            "pca", "pixels", {"name": "genes", "model": weights, "modality": "gene"},
            {"name": "fused", "model": weights, "modality": "fused"},
        ],
        "tasks": ["probe", {"task": "domains", "methods": ["kmeans"]}, "retrieve",
                  {"task": "expression", "n_top_genes": 5}, "masked"],
        "seeds": [0, 1],
    }  # fmt: skip


def go(config, folder, **options):
    return bench.run(config, folder, show_progress_bar=False, device="cpu", **options)


def test_every_task_and_kind_of_system(full, tmp_path):
    results = go(full, tmp_path)
    done = results[results["status"] == "ok"]
    assert {(s, t) for s, t in zip(done["system"], done["task"], strict=True)} == {
        *((s, t) for s in ("pca", "pixels", "genes", "fused") for t in ("probe", "domains")),
        ("fused", "retrieve"), ("pixels", "expression"), ("genes", "masked"),
    }  # fmt: skip
    assert np.isfinite(done["value"]).all()
    assert set(done["section"]) == {"toy", "toy:1"}
    assert set(done.loc[done["task"] == "probe", "seed"]) == {0, 1}
    assert set(done.loc[done["task"] == "retrieve", "seed"]) == {0}  # nothing is drawn
    reasons = results[results["status"] == "skipped"]
    assert (reasons["reason"] != "").all()
    assert "retrieval needs genes and images" in reasons[reasons["task"] == "retrieve"]["reason"].iloc[0]
    pd.testing.assert_frame_equal(bench.read_results(tmp_path), results)
    # four systems: the genes of the fused one are those of the one of genes alone
    assert len(list((tmp_path / "embeddings").iterdir())) == 2 * 3

    whole = bench.summary(results)
    probe = whole[(whole["task"] == "probe") & (whole["metric"] == "accuracy") & (whole["system"] == "pca")]
    by_section = probe.set_index("section")
    assert by_section.loc["all", "value"] == pytest.approx(by_section.loc[["toy", "toy:1"], "value"].mean())
    assert by_section.loc["all", "n_draws"] == 2
    assert by_section.loc["all", "n_sections"] == 2

    text = bench.to_markdown(results, sections=True)
    assert "| section | system | balanced accuracy |" in text
    assert "| toy:1 | pixels |" in text
    assert "### Skipped combinations" in text
    assert text.count("**") % 2 == 0
    for axes in (stampy.pl.bench(whole), [stampy.pl.bench(whole, tasks="masked")]):
        assert all(ax.get_title() for ax in axes)
        axes[0].figure.canvas.draw()


def test_figures_equal_those_of_the_tools(tmp_path):
    found = go({**BASIC, "seeds": [3]}, tmp_path)
    adata = datasets.toy()
    stampy.tl.embed(adata, "pca")
    stampy.tl.probe(adata, "domain", rng=3)
    scores = adata.uns["stamp"]["probe"]["scores"].iloc[-1]
    value = found.set_index("metric")["value"]
    assert value["balanced_accuracy"] == pytest.approx(scores["balanced_accuracy"])


def test_interrupted_run_resumes(tmp_path, monkeypatch):
    config = {**BASIC, "systems": ["pca", "pixels"], "tasks": ["probe", {"task": "domains", "methods": ["kmeans"]}]}
    real, calls = _run.RUNNERS["domains"], []

    def stops(case, seed):
        calls.append(case.system.name)
        if len(calls) == 4:  # in the middle of the second system
            raise KeyboardInterrupt
        return real(case, seed)

    monkeypatch.setitem(_run.RUNNERS, "domains", stops)
    with pytest.raises(KeyboardInterrupt):
        go(config, tmp_path)
    assert not list(tmp_path.rglob(".*")), "no half-written file"
    embedded = []
    monkeypatch.setattr(_embeddings.tl, "embed", lambda *a, **k: embedded.append(a))
    calls[:] = ["again"] * 4  # stops no more
    results = go(config, tmp_path)
    assert embedded == []
    assert calls[4:] == ["pixels"] * 3  # three seeds of the unfinished part
    assert (results["status"] == "ok").all()
    again = go(config, tmp_path)
    assert len(calls) == 7
    pd.testing.assert_frame_equal(results, again)


def test_damaged_embedding_is_recomputed(tmp_path, caplog):
    first = go({**BASIC, "seeds": [0]}, tmp_path)
    (path,) = (tmp_path / "embeddings").iterdir()
    path.write_bytes(path.read_bytes()[:50])
    with caplog.at_level(logging.WARNING):
        second = go({**BASIC, "seeds": [0], "tasks": [{"task": "probe", "method": "ridge"}]}, tmp_path)
    assert "damaged" in caplog.text
    assert len(first) == len(second)


def test_digest_covers_the_inputs_of_embeddings(toy):
    base, changed = digest_of_section(toy), toy.copy()
    changed.obs["domain"] = changed.obs["domain"].astype(str).str[::-1]
    assert digest_of_section(changed) == base  # labels are not part of it


def _changed_genes(adata):
    adata.var["gene_ids"] = adata.var_names + "x"


def _changed_dense(adata):
    adata.X = adata.X.toarray()
    adata.X[3, 5] += 1


def _changed_columns(adata):  # the values stay, the genes that they are of change
    adata.X.indices[:2] = adata.X.indices[:2][::-1]


CHANGES = {
    "X": lambda a: a.X.data.__imul__(2),
    "dense": _changed_dense,
    "indices": _changed_columns,
    "indptr": lambda a: a.X.indptr.__setitem__(4, a.X.indptr[4] + 1),
    "layer": lambda a: a.layers.__setitem__("more", a.X * 3),
    "genes": _changed_genes,
    "spots": lambda a: setattr(a, "obs_names", a.obs_names + "x"),
    "spatial": lambda a: a.obsm["spatial"].__setitem__((5, 0), 3.0),
    "pixel": lambda a: next(iter(a.uns["spatial"]["toy"]["images"].values())).__setitem__((7, 9), 3),
    "scale": lambda a: a.uns["spatial"]["toy"]["scalefactors"].__setitem__("spot_diameter_fullres", 71.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_input_of_a_section_is_in_its_digest(toy, change):
    changed = toy.copy()
    changed.uns = copy.deepcopy(dict(toy.uns))
    before = digest_of_section(changed)
    if change == "dense":
        changed.X = changed.X.toarray()
        before = digest_of_section(changed)
        changed.X = toy.X.copy()
    CHANGES[change](changed)
    assert digest_of_section(changed) != before


def test_the_file_of_a_full_resolution_image_is_in_the_digest(toy, tmp_path):
    changed, path = toy.copy(), tmp_path / "full.png"
    path.write_bytes(b"one")
    changed.uns["spatial"] = {"toy": {**toy.uns["spatial"]["toy"], "metadata": {"source_image_path": str(path)}}}
    before = digest_of_section(changed)
    path.write_bytes(b"two")
    assert digest_of_section(changed) != before


def test_an_image_given_as_a_path_is_in_the_digest(toy, tmp_path):
    changed, path = toy.copy(), tmp_path / "hires.png"
    path.write_bytes(b"one")
    changed.uns["spatial"] = {"toy": {**toy.uns["spatial"]["toy"], "images": {"hires": str(path)}}}
    before = digest_of_section(changed)
    path.write_bytes(b"two")
    assert digest_of_section(changed) != before


def test_columns_that_choose_among_libraries_are_in_the_digest(toy):
    changed = toy.copy()
    changed.uns["spatial"] = {"a": toy.uns["spatial"]["toy"], "b": {"images": {"hires": np.ones((9, 9, 3), np.uint8)}}}
    digests = set()
    for name in ("a", "b", "other"):
        changed.obs["library"] = name
        digests.add(digest_of_section(changed))
    assert len(digests) == 3


def test_names_of_coordinate_columns_are_in_the_digest(toy):
    changed = toy.copy()
    table = pd.DataFrame(toy.obsm["spatial"], columns=["x", "y"], index=toy.obs_names)
    changed.obsm["spatial"] = table
    before = digest_of_section(changed)
    changed.obsm["spatial"] = table.set_axis(["y", "x"], axis=1)
    assert digest_of_section(changed) != before


def test_sparse_coordinates_are_in_the_digest_value_by_value(toy):
    changed = toy.copy()
    changed.obsm["spatial"] = sparse.csr_matrix(toy.obsm["spatial"])
    before = digest_of_section(changed)
    changed.obsm["spatial"].data[4] += 1
    assert digest_of_section(changed) != before


@pytest.mark.parametrize("folds", ["section", "patient"])
def test_sections_held_out_from_each_other(folds, tmp_path):
    sections = [{"source": f"toy:{i}", "name": f"s{i}", "patient": f"p{i % 2}"} for i in range(3)]
    config = {
        "datasets": [{"name": "T", "sections": sections, "labels": "domain", "folds": folds, "n_folds": 3}],
        "systems": ["pixels"], "tasks": ["probe", {"task": "expression", "n_top_genes": 5}], "seeds": [0, 1],
    }  # fmt: skip
    results = go(config, tmp_path)
    assert (results["status"] == "ok").all()
    assert set(results["seed"]) == {0}  # whole sections and patients are held out one by one: nothing is drawn
    assert set(results.loc[results["metric"] == "pearson", "section"]) == {"s0", "s1", "s2"}
    assert results.loc[results["metric"] == "pearson_pooled", "section"].tolist() == ["all"]


def test_missing_inputs_are_reported(tmp_path, toy):
    bare = toy[:, :0].copy()
    del bare.obs["domain"]
    bare.write_h5ad(tmp_path / "bare.h5ad")
    config = {
        "datasets": [
            {"name": "gone", "sections": ["nowhere.h5ad"], "labels": "domain", "steps": "Ask the authors."},
            {"name": "offline", "sections": ["DLPFC_151673"], "labels": "layer"},
            {"name": "unsigned", "sections": ["spatialLIBD_151507"], "labels": "layer"},
            {"name": "bare", "sections": [str(tmp_path / "bare.h5ad")], "labels": "domain"},
            {"name": "coarse", "sections": ["toy"], "labels": "domain", "without": {"image": "too few px"}},
        ],
        "systems": ["pca", "pixels", "uni:/nowhere/model.bin", {"name": "both", "model": "stampy-mini",
                                                                "modality": "fused"}],
        "tasks": ["probe"], "seeds": [0],
    }  # fmt: skip
    results = go(config, tmp_path / "out")
    left = results[results["status"] == "skipped"].set_index(["dataset", "system"])["reason"]
    assert left["gone", "pca"].endswith("Ask the authors.")
    assert "No section at" in left["gone", "pca"]
    assert "STAMPY_DATA_DIR" in left["offline", "pca"]
    assert "allow_unverified" in left["unsigned", "pca"]
    assert "no counts" in left["bare", "pca"] or "no labels" in left["bare", "pca"]
    assert "no labels 'domain'" in left["bare", "pixels"]
    assert left["coarse", "pixels"] == left["coarse", "both"] == "too few px"
    assert results[results["status"] == "ok"]["dataset"].tolist() == ["coarse"] * 3
    text = bench.to_markdown(results)
    for reason in ("Ask the authors.", "allow_unverified", "too few px"):
        assert reason in text


def test_missing_weights_are_reported(tmp_path):
    results = go({**BASIC, "systems": ["uni:/nowhere/model.bin"], "seeds": [0]}, tmp_path)
    assert results["status"].tolist() == ["skipped"]
    assert "/nowhere/model.bin" in results["reason"][0]
    with pytest.raises(ValueError, match="nothing to draw"):
        stampy.pl.bench(bench.summary(results))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": ["DLPFC_151763"]}, "Did you mean 'DLPFC_151673'"),
        ({"systems": ["unni"]}, "Did you mean 'uni'"),
        ({"systems": ["stnet"]}, "gives no embedding"),
        ({"tasks": ["prob"]}, "Did you mean 'probe'"),
        ({"tasks": [{"task": "probe", "methd": "ridge"}]}, "Did you mean 'method'"),
        ({"tasks": [{"task": "domains", "methods": ["kmean"]}]}, "Did you mean 'kmeans'"),
        ({"tasks": ["probe", "probe"]}, "found twice"),
        ({"systems": []}, "must name `systems`"),
        ({"seeds": []}, "`seeds` is empty"),
        ({"seeds": [-1]}, "at least 0"),
        ({"dataset": []}, "Did you mean 'datasets'"),
        ({"datasets": [{"name": "x"}]}, "needs a `name`, and `sections`"),
        ({"datasets": [{"name": "x", "sections": ["toy"], "folds": "spots"}]}, "must be one of"),
        ({"datasets": [{"name": "x", "sections": ["toy"], "folds": "patient"}]}, "needs the `patient`"),
        ({"datasets": [{"name": "x", "sections": ["toy"], "known_as": "DLFPC"}]}, "Did you mean 'DLPFC'"),
        ({"systems": [{"model": "pca", "modality": "genes"}]}, "Did you mean 'gene'"),
        ({"systems": [{"model": "pca", "embed": {"um_per_pxl": 1}}]}, "Did you mean 'um_per_px'"),
        ({"reported": [{"dataset": "T"}]}, "A reported figure needs"),
    ],
)
def test_bad_configs(change, message):
    with pytest.raises(ValueError, match=message):
        bench.read_config({**BASIC, **change})


def test_bad_files_and_types(tmp_path):
    with pytest.raises(TypeError, match="must be like 50"):
        bench.read_config({**BASIC, "tasks": [{"task": "expression", "n_top_genes": "all"}]})
    with pytest.raises(ValueError, match="Did you mean 'dlpfc'"):
        bench.read_config("dlpf")
    with pytest.raises(FileNotFoundError, match="No config"):
        bench.read_config(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match="not a valid JSON"):
        bench.read_config(tmp_path / "bad.json")
    (tmp_path / "results.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="columns"):
        bench.read_results(tmp_path)


def test_toml_is_json(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps({**BASIC, "seeds": [1]}))
    (tmp_path / "c.toml").write_text(
        'systems = ["pca"]\ntasks = ["probe"]\nseeds = [1]\n'
        '[[datasets]]\nname = "T"\nsections = ["toy"]\nlabels = "domain"\n'
    )
    assert bench.read_config(tmp_path / "c.json") == bench.read_config(tmp_path / "c.toml")


@pytest.mark.parametrize("name", sorted(bench.configs()))
def test_packaged_configs(name):
    config = bench.read_config(name)
    assert all(figure.source for figure in config.reported)
    for data in config.datasets:
        assert data.name == "toy" or (data.known_as and data.steps)


def test_reported_figures_are_separate(tmp_path):
    figure = {"dataset": "T", "system": "UNI", "task": "probe", "metric": "balanced_accuracy", "value": 0.99,
              "source": "Doe 2026"}  # fmt: skip
    results = go({**BASIC, "seeds": [0], "reported": [figure]}, tmp_path)
    ours, theirs = bench.to_markdown(results).split("as reported elsewhere")
    assert "UNI" not in ours
    assert "Doe 2026" in theirs
    assert "**0.990**" not in theirs
    assert "UNI" not in bench.to_markdown(results, reported=False)
    ax = stampy.pl.bench(bench.summary(results))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["pca", "UNI (reported)"]


def test_spread_is_over_replicates(tmp_path, weights):
    system = {"name": "ours", "model": [weights, "stampy-mini"], "modality": "gene"}
    results = go({**BASIC, "systems": [system], "seeds": [0]}, tmp_path)
    row = bench.summary(results).query("metric == 'accuracy' and section == 'all'").iloc[0]
    assert row["n_draws"] == 2
    assert row["value"] == pytest.approx(results.query("metric == 'accuracy'")["value"].mean())


@pytest.mark.parametrize(
    ("names", "before", "answers"),
    [
        (["TENX1", "SPA120"], [], {"HER2+": "yes", "DLPFC": "no", "TCGA-LUAD": "unknown"}),
        (["TENX1"], ["MISC3"], {"DLPFC": "yes", "HER2+": "no"}),
        (["TENX1"], None, {"HER2+": "unknown"}),  # it started from a model of which nothing is known
        (["mine"], [], {"HER2+": "unknown", "DLPFC": "unknown"}),
        (["TENX1"], [], {"PSC": "unknown"}),  # the paper does not name its source
    ],
)
def test_training_data_of_a_run(names, before, answers, tmp_path):
    write_trained_on(tmp_path, dict.fromkeys(names, 10), before)
    for name, answer in answers.items():
        data = DataSet(name="D", known_as=name)
        assert seen(System(name="mine", model=str(tmp_path / "model")), data) == answer
    assert seen(System(name="mine", model=str(tmp_path / "elsewhere" / "model")), data) == "unknown"


def test_training_data_marks():
    def data(*sources, **more):
        return DataSet(name="D", sections=tuple(SectionConfig(source=s, name=s) for s in sources), **more)

    mini, uni = System(name="m", model="stampy-mini"), System(name="u", model="uni")
    assert seen(mini, data("HER2ST_A1")) == "no"
    assert seen(mini, data("HER2ST_A1", "HER2ST_C1")) == "yes"
    assert seen(mini, data("mine.h5ad")) == "unknown"
    assert seen(uni, data("x.h5ad", known_as="TCGA-LUAD")) == "no"
    assert seen(uni, data("x.h5ad")) == "unknown"
    assert seen(System(name="u", model="uni", seen={"D": True}), data("x.h5ad")) == "yes"
    assert seen(System(name="p", model="pca"), data("x.h5ad")) == "no"
    row = {"dataset": "D", "section": "s", "task": "probe", "metric": "accuracy", "value": 1.0, "status": "ok"}
    row |= {"metric": "balanced_accuracy"}
    text = bench.to_markdown(tidy([row | {"system": s, "seen": s} for s in ("yes", "no", "unknown")]))
    assert "| yes † |" in text
    assert "| no |" in text
    assert "| unknown ? |" in text


def test_exports_are_safe():
    row = {"dataset": "a_b & <c>", "section": "s", "system": "x|y_{1}", "task": "probe", "metric": "balanced_accuracy",
           "value": 0.5, "status": "ok", "seen": "yes"}  # fmt: skip
    results = tidy([row])
    assert "x\\|y_{1} †" in bench.to_markdown(results)
    latex = bench.to_latex(results)
    assert r"a\_b \& <c>" in latex
    assert r"x|y\_\{1\} \dag" in latex
    page = bench.to_html(results, title="<t>")
    assert "<c>" not in page
    assert "a_b &amp; &lt;c&gt;" in page


def test_masked_gene_score_of_ideal_and_constant_heads():
    """A head that names the right gene by its position scores 1; one that is constant scores nothing."""
    import torch

    small = models.GeneConfig(n_genes=40, width=32, depth=1, heads=1, feedforward=8, max_tokens=20, norm="pre")
    model = models.Stamp(models.StampConfig(gene=small, embedding=4)).eval()
    tokens = np.tile(np.arange(30, 50), (6, 1))
    with torch.no_grad():
        for parameter in model.gene.layers.parameters():
            parameter.zero_()
        model.gene.embeddings.weight.zero_()
        model.gene.igr_head.weight.zero_()
        assert masked_accuracy(model, tokens)["top1"] == 0  # ties are no hits
        model.gene.positional_embedding.weight.zero_()
        model.gene.positional_embedding.weight[:, :20] = torch.eye(20)
        model.gene.igr_head.weight[30:50, :20] = torch.eye(20)
    found = masked_accuracy(model, tokens)
    assert found["top1"] == found["top10"] == 1
    assert found["n_masked"] == 6 * 3
    assert found["majority_top10"] < 1
    assert found == masked_accuracy(model, tokens)
    with pytest.raises(ValueError, match="nothing to mask"):
        masked_accuracy(model, np.array([[30, 0, 0]]))


def test_whole_slides(tmp_path, weights):
    rows = ["slide,patient,label"]
    for i in range(4):
        datasets.toy_slide(tmp_path / f"s{i}.tif", size_um=500, tumor=0.4 * (i % 2), rng=i)
        rows.append(f"s{i}.tif,p{i},{'ab'[i % 2]}")
    (tmp_path / "slides.csv").write_text("\n".join(rows))
    config = {
        "datasets": [{"name": "W", "slides": {"path": str(tmp_path / "slides.csv")}, "n_folds": 2},
                     {"name": "gone", "slides": {"path": "no.csv"}, "steps": "Ask the GDC."}],
        "systems": [{"name": "image", "model": weights, "modality": "image"},
                    {"name": "genes", "model": weights, "modality": "gene"}],
        "tasks": [{"task": "slide", "methods": ["mean"]}, "probe"], "seeds": [0],
    }  # fmt: skip
    results = go(config, tmp_path / "out")
    done = results[results["status"] == "ok"]
    assert done[["dataset", "system", "task", "variant"]].drop_duplicates().values.tolist() == [
        ["W", "image", "slide", "mean"]
    ]
    assert set(done["metric"]) == {"auc", "balanced_accuracy"}
    assert done["value"].between(0, 1).all()
    reasons = results[results["status"] == "skipped"].set_index(["dataset", "system", "task"])["reason"]
    assert "only an image" in reasons["W", "genes", "slide"]
    assert "for spots" in reasons["W", "image", "probe"]
    assert reasons["gone", "image", "slide"].endswith("Ask the GDC.")
    pd.testing.assert_frame_equal(go(config, tmp_path / "out"), results)
    with pytest.raises(ValueError, match="needs the `path`"):
        bench.read_config({**config, "datasets": [{"name": "x", "slides": {"label": "y"}}]})


def test_command_line(tmp_path, capsys):
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({**BASIC, "seeds": [0]}))
    assert main(["bench", "run", str(config), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    assert "3 figures" in capsys.readouterr().out
    assert main(["bench", "table", str(tmp_path / "out")]) == 0
    assert "| system | balanced accuracy |" in capsys.readouterr().out
    page = tmp_path / "page.html"
    assert main(["bench", "table", str(tmp_path / "out"), "--format", "html", "--out", str(page)]) == 0
    assert "data:image/png;base64," in page.read_text("utf-8")
    assert main(["bench", "table", str(tmp_path / "out"), "--format", "latex"]) == 0
    assert r"\begin{tabular}" in capsys.readouterr().out
    assert main(["bench", "table", str(tmp_path / "nothing")]) == 1
    assert main(["bench", "configs"]) == 0
    assert "dlpfc" in capsys.readouterr().out


def test_depends_on_seed():
    assert _tasks.depends_on_seed("probe", DataSet(name="x"))
    assert not _tasks.depends_on_seed("probe", DataSet(name="x", folds="section"))


def test_features_that_are_not_genes_are_not_predicted():
    var = pd.DataFrame({"feature_types": ["Gene Expression", "Antibody Capture", "Gene Expression"]}, index=list("aPb"))
    counts, names = _tasks._genes_of(ad.AnnData(np.arange(6.0).reshape(2, 3), var=var))
    assert counts.tolist() == [[0, 2], [3, 5]]
    assert (names.index.tolist(), names.columns.tolist()) == (["a", "b"], [])
