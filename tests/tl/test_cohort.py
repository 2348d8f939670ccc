"""Many sections or slides in one run: outputs, resuming and errors."""

import json
import shutil
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile

from stampy import StampyWarning, datasets, models, tl
from stampy.cli.main import main
from stampy.tl._cohort import jobs, records
from stampy.tl._cohort import jobs as worker

HERE = {"n_workers": 1, "show_progress_bar": False}
GENES = HERE | {"modality": "gene"}


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """The small model as a folder."""
    path = tmp_path_factory.mktemp("weights") / "small"
    models.save(model, path)
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Three sections as files."""
    folder = tmp_path_factory.mktemp("cohort")
    for i, name in enumerate("abc"):
        datasets.toy(n_spots=40 + i, rng=i, image=False).write_h5ad(folder / f"{name}.h5ad")
    return folder


@pytest.fixture
def folder(made, tmp_path):
    """A copy of the three, to be changed."""
    return shutil.copytree(made, tmp_path / "in")


@pytest.fixture
def manifest(folder):
    path = folder / "sections.tsv"
    path.write_text("path\tname\torgan\tpatient\na.h5ad\tone\tbreast\tP1\nb.h5ad\ttwo\t\t\nc.h5ad\t\tlung\tP2\n")
    return path


def status(table):
    return dict(zip(table["name"], table["status"], strict=True))


def test_each_section_has_its_file_and_its_row(manifest, weights, tmp_path):
    table = tl.embed_sections(manifest, tmp_path / "out", model=weights, **GENES)
    assert status(table) == {"one": "embedded", "two": "embedded", "c": "embedded"}
    assert table["n_spots"].tolist() == [40, 41, 42]
    assert table["organ"].tolist() == ["breast", "", "lung"]
    assert table["patient"].tolist() == ["P1", "", "P2"]
    written = anndata.read_h5ad(tmp_path / "out" / "two.h5ad")
    alone = anndata.read_h5ad(manifest.parent / "b.h5ad")
    tl.embed(alone, weights, modality="gene", show_progress_bar=False)
    np.testing.assert_array_equal(written.obsm["X_stamp"], alone.obsm["X_stamp"])
    assert (written.X != alone.X).nnz == 0
    genes = alone.uns["stamp"]["X_stamp"]["genes"]
    assert table["n_matched"][1] == genes["n_matched"]
    assert table["counts_share"][1] == pytest.approx(1 - genes["unmatched_share"], abs=1e-4)
    on_disk = pd.read_csv(tmp_path / "out" / "sections.tsv", sep="\t", keep_default_na=False)
    assert on_disk["name"].tolist() == ["one", "two", "c"]
    assert list(on_disk) == list(table)


def test_finished_sections_are_kept_and_changed_ones_recomputed(manifest, model, weights, tmp_path):
    out = tmp_path / "out"
    options = GENES | {"model": weights}
    tl.embed_sections(manifest, out, **options)
    before = (out / "one.h5ad").stat().st_mtime_ns
    assert set(status(tl.embed_sections(manifest, out, **options)).values()) == {"kept"}
    assert (out / "one.h5ad").stat().st_mtime_ns == before
    # an input
    adata = anndata.read_h5ad(manifest.parent / "b.h5ad")
    adata.X[0, 0] += 1
    adata.write_h5ad(manifest.parent / "b.h5ad")
    assert status(tl.embed_sections(manifest, out, **options)) == {"one": "kept", "two": "embedded", "c": "kept"}
    # an output that is gone
    (out / "c.h5ad").unlink()
    assert status(tl.embed_sections(manifest, out, **options)) == {"one": "kept", "two": "kept", "c": "embedded"}
    # a setting
    assert set(status(tl.embed_sections(manifest, out, **options, level="feature")).values()) == {"embedded"}
    # the weights, under the same name
    import torch

    other = models.load(weights, device="cpu")
    with torch.no_grad():
        next(other.gene.parameters()).add_(0.01)
    models.save(other, tmp_path / "other" / "small")
    table = tl.embed_sections(manifest, out, **options | {"model": tmp_path / "other" / "small"}, level="feature")
    assert set(status(table).values()) == {"embedded"}


@pytest.mark.filterwarnings("ignore::stampy.StampyWarning")  # the scale contradicts the toy's own
def test_the_scale_of_the_manifest_counts(toy, weights, tmp_path):
    toy[:40].copy().write_h5ad(tmp_path / "a.h5ad")
    rows = tmp_path / "m.tsv"
    found, scales = [], []
    for um in ("", "2.1", "2.1"):
        rows.write_text(f"path\tum_per_px\na.h5ad\t{um}\n")
        found += tl.embed_sections(rows, tmp_path / "out", model=weights, modality="fused", **HERE)["status"].tolist()
        tiles = anndata.read_h5ad(tmp_path / "out" / "a.h5ad").uns["stamp"]["X_stamp"]["tiles"]
        scales.append(str(tiles))
    assert found == ["embedded", "embedded", "kept"]
    assert scales[0] != scales[1] == scales[2]
    assert "2.1" in scales[1]


def test_interrupted_run_resumes(manifest, weights, tmp_path, monkeypatch):
    out = tmp_path / "out"
    ended = records.finish

    def cut(plan, name, *about):
        if name == "two":
            raise KeyboardInterrupt
        ended(plan, name, *about)

    monkeypatch.setattr(records, "finish", cut)
    with pytest.raises(KeyboardInterrupt):
        tl.embed_sections(manifest, out, model=weights, **GENES)
    rows = pd.read_csv(out / "sections.tsv", sep="\t")
    assert status(rows) == {"one": "embedded", "two": "pending", "c": "pending"}
    assert (out / "two.h5ad").exists()  # written, but not known to be whole
    monkeypatch.setattr(records, "finish", ended)
    table = tl.embed_sections(manifest, out, model=weights, **GENES)
    assert status(table) == {"one": "kept", "two": "embedded", "c": "embedded"}


def test_a_bad_section_is_named(manifest, weights, tmp_path):
    (manifest.parent / "b.h5ad").write_bytes(b"no section")
    with pytest.raises(ValueError, match=r"'two'.*cannot be read"):
        tl.embed_sections(manifest, tmp_path / "out", model=weights, **GENES)
    with pytest.warns(StampyWarning, match=r"Section 'two' was skipped: .*cannot be read"):
        table = tl.embed_sections(manifest, tmp_path / "out", model=weights, on_error="skip", **GENES)
    assert status(table) == {"one": "kept", "two": "failed", "c": "embedded"}
    assert "cannot be read" in table["error"][1]
    assert not (tmp_path / "out" / "two.h5ad").exists()
    (manifest.parent / "a.h5ad").unlink()
    with pytest.raises(FileNotFoundError, match="'one'"):
        tl.embed_sections(manifest, tmp_path / "new", model=weights, **GENES)
    assert not (tmp_path / "new").exists()
    with pytest.raises(ValueError, match="No section could be used"):
        tl.embed_sections(
            [manifest.parent / "b.h5ad"], tmp_path / "new", model=weights, on_error="skip", **GENES
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"modality": "genes"}, ValueError, "Did you mean 'gene'"),
        ({"model": "stampy-mimi"}, ValueError, "Did you mean 'stampy-mini'"),
        ({"n_workers": 0}, ValueError, "`n_workers` must be at least 1"),
        ({"suffix": "h5ad"}, ValueError, "`suffix` must be one of"),
        ({"on_error": "ignore"}, ValueError, "`on_error` must be one of"),
        ({"contents": "some"}, ValueError, "`contents` must be one of"),
        ({"scheduler": "tcp://nowhere:1"}, ValueError, "`n_workers` has no effect with `scheduler`"),
        ({"modalities": "gene"}, ValueError, "Did you mean 'modality'"),
        ({"device": "cpu", "n_devices": 2}, ValueError, "`device` and `n_devices` were given"),
    ],
)
def test_invalid_arguments_raise_before_anything_is_read(folder, tmp_path, options, error, message):
    for path in folder.glob("*.h5ad"):
        path.write_bytes(b"no section")
    with pytest.raises(error, match=message):
        tl.embed_sections(sorted(folder.glob("*.h5ad")), tmp_path / "out", **GENES | options)
    assert not (tmp_path / "out").exists()


def test_names_are_unique_before_anything_is_read(folder, tmp_path):
    for path in folder.glob("*.h5ad"):
        path.write_bytes(b"no section")
    (folder / "m.tsv").write_text("path\tname\na.h5ad\tx\nb.h5ad\tx\n")
    with pytest.raises(ValueError, match=r"different names, found \['x"):
        tl.embed_sections(folder / "m.tsv", tmp_path / "out", **GENES)
    (folder / "m.tsv").write_text("path\tname\na.h5ad\tx\nb.h5ad\tX\n")
    with pytest.raises(ValueError, match=r"differ in more than upper and lower case: .*'x' and 'X'"):
        tl.embed_sections(folder / "m.tsv", tmp_path / "out", **GENES)
    assert not (tmp_path / "out").exists()


def test_other_files_are_kept(folder, weights, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.h5ad").write_bytes(b"mine")
    options = GENES | {"model": weights}
    with pytest.raises(FileExistsError, match=r"a.h5ad \(not of such a run\)"):
        tl.embed_sections([folder / "a.h5ad"], out, **options)
    assert (out / "a.h5ad").read_bytes() == b"mine"
    tl.embed_sections([folder / "a.h5ad"], out, overwrite=True, **options)
    written = anndata.read_h5ad(out / "a.h5ad")
    written.obs["mine"] = 1
    written.write_h5ad(out / "a.h5ad")
    with pytest.raises(FileExistsError, match=r"a.h5ad \(changed since\)"):
        tl.embed_sections([folder / "a.h5ad"], out, **options)
    with pytest.warns(StampyWarning, match=r"earlier runs for 1 sections .*\['a'\]"):
        tl.embed_sections([folder / "b.h5ad"], out, **options)


def test_a_copied_folder_is_still_that_of_the_run(folder, weights, tmp_path):
    tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", model=weights, **GENES)
    shutil.copytree(tmp_path / "out", tmp_path / "moved", copy_function=shutil.copyfile)  # with other times
    table = tl.embed_sections([folder / "a.h5ad"], tmp_path / "moved", model=weights, **GENES)
    assert status(table) == {"a": "kept"}


def test_the_model_is_loaded_once(manifest, weights, tmp_path, monkeypatch):
    from stampy.tl._embedding import encoders

    loads = []
    load = encoders.loaded_model
    monkeypatch.setattr(encoders, "loaded_model", lambda m, d: loads.append(str(m)) or load(m, d))
    tl.embed_sections(manifest, tmp_path / "out", model=weights, **GENES)
    assert loads == [weights]
    assert len(worker._models) == 1


def test_sections_in_memory_and_a_loaded_model(toy, model, tmp_path):
    sections = {"first": toy[:50].copy(), "second": toy[50:].copy()}
    before = {name: list(s.obsm) for name, s in sections.items()}
    table = tl.embed_sections(sections, tmp_path / "out", model=model, **GENES)
    assert table["name"].tolist() == ["first", "second"]
    assert {name: list(s.obsm) for name, s in sections.items()} == before
    sections["second"].obs["domain"] = "other"
    table = tl.embed_sections(sections, tmp_path / "out", model=model, **GENES)
    assert status(table) == {"first": "kept", "second": "embedded"}  # obs is in the result
    with pytest.raises(TypeError, match="loaded model stays in this process"):
        tl.embed_sections(sections, tmp_path / "out", model=model, show_progress_bar=False, n_workers=2)


def test_results_alone_in_either_format(folder, weights, tmp_path):
    for suffix, read in ((".h5ad", anndata.read_h5ad), (".zarr", anndata.read_zarr)):
        out = tmp_path / suffix[1:]
        tl.embed_sections([folder / "a.h5ad"], out, model=weights, suffix=suffix, contents="results", **GENES)
        found = read(out / f"a{suffix}")
        assert found.shape == (40, 0)
        assert set(found.obsm) == {"spatial", "X_stamp", "X_stamp_gene"}
        assert found.uns["stamp"]["X_stamp"]["model"] == "small"


def test_verdict_on_request(toy, weights, tmp_path):
    toy.write_h5ad(tmp_path / "a.h5ad")
    toy[:30].copy().write_h5ad(tmp_path / "few.h5ad")
    paths = [tmp_path / "a.h5ad", tmp_path / "few.h5ad"]
    table = tl.embed_sections(paths[:1], tmp_path / "out", model=weights, verdict=True, **GENES)
    assert table["verdict"][0].startswith("X_stamp is ")
    assert 0 < table["score"][0] < 1
    assert 0 < table["baseline_score"][0] < 1


def test_all_as_one(manifest, weights, tmp_path):
    out = tmp_path / "out"
    tl.embed_sections(manifest, out, model=weights, **GENES)
    together = tl.collect_sections(out)
    assert together.shape[0] == 123
    store = tl.collect_sections(out, tmp_path / "all.zarr")
    adata = anndata.read_zarr(store)
    assert adata.obs["section"].value_counts().to_dict() == {"c": 42, "two": 41, "one": 40}
    assert adata.obs_names.is_unique
    np.testing.assert_array_equal(
        adata.obsm["X_stamp"][40:81], anndata.read_h5ad(out / "two.h5ad").obsm["X_stamp"]
    )  # fmt: skip
    np.testing.assert_array_equal(together.obsm["X_stamp"], adata.obsm["X_stamp"])
    assert adata.uns["stamp"]["X_stamp"]["modality"] == "gene"
    assert "domain" in adata.obs
    with pytest.raises(FileExistsError, match=r"all\.zarr"):
        tl.collect_sections(out, tmp_path / "all.zarr")
    assert tl.collect_sections(out, tmp_path / "all.zarr", overwrite=True) == store
    with pytest.raises(FileNotFoundError, match=r"has no sections\.tsv"):
        tl.collect_sections(tmp_path)


def test_incomparable_vectors_are_not_joined(toy, folder, model, tmp_path):
    toy[:40].copy().write_h5ad(folder / "pictured.h5ad")
    paths = [folder / "a.h5ad", folder / "pictured.h5ad"]
    tl.embed_sections(paths, tmp_path / "out", model=model, **HERE)
    with pytest.warns(StampyWarning, match=r"Not all sections have obsm \['X_stamp', 'X_stamp_image'\]"):
        store = tl.collect_sections(tmp_path / "out", tmp_path / "all.zarr")
    assert set(anndata.read_zarr(store).obsm) == {"X_stamp_gene", "spatial"}


def test_differing_panels_warn(folder, weights, tmp_path):
    whole = anndata.read_h5ad(folder / "a.h5ad")
    whole[:, :500].copy().write_h5ad(folder / "b.h5ad")
    with pytest.warns(StampyWarning, match=r"measure between \d+ \('b'\) and \d+ \('a'\) of the model's genes"):
        tl.embed_sections([folder / "a.h5ad", folder / "b.h5ad"], tmp_path / "out", model=weights, **GENES)


@pytest.mark.slow
def test_processes_write_the_same(manifest, weights, tmp_path):
    here = tl.embed_sections(manifest, tmp_path / "here", model=weights, **GENES)
    there = tl.embed_sections(manifest, tmp_path / "there", model=weights, **GENES | {"n_workers": 2})
    columns = ["name", "status", "n_spots", "n_matched", "overlap"]
    pd.testing.assert_frame_equal(here[columns], there[columns])
    for name in ("one", "two", "c"):
        a, b = (anndata.read_h5ad(tmp_path / w / f"{name}.h5ad").obsm["X_stamp"] for w in ("here", "there"))
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore")  # of the cluster's own
def test_a_cluster_writes_the_same(manifest, weights, tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 2, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options, protocol="tcp") as cluster:
        table = tl.embed_sections(
            manifest, tmp_path / "out", model=weights, modality="gene", show_progress_bar=False,
            scheduler=cluster.scheduler_address,
        )  # fmt: skip
    assert status(table) == {"one": "embedded", "two": "embedded", "c": "embedded"}
    assert table["n_spots"].tolist() == [40, 41, 42]


def test_slides(toy, model, tmp_path, monkeypatch):
    picture = toy.uns["spatial"]["toy"]["images"]["hires"][200:600, 200:600]
    for name in "ab":
        tifffile.imwrite(tmp_path / f"{name}.tif", picture)
    rows = tmp_path / "slides.tsv"
    rows.write_text("path\tum_per_px\na.tif\t1.6\nb.tif\t1.6\n")
    options = HERE | {"model": model, "min_tissue": 0.9}
    table = tl.embed_slides(rows, tmp_path / "out", **options)
    assert status(table) == {"a": "embedded", "b": "embedded"}
    store = anndata.read_zarr(tmp_path / "out" / "a.zarr")
    assert table["n_spots"][0] == store.n_obs
    assert np.isfinite(store.obsm["X_stamp"]).all()
    assert set(status(tl.embed_slides(rows, tmp_path / "out", **options)).values()) == {"kept"}
    rows.write_text("path\tum_per_px\na.tif\t1.6\nb.tif\t1.5\n")
    assert status(tl.embed_slides(rows, tmp_path / "out", **options)) == {"a": "kept", "b": "embedded"}
    rows.write_text("path\tspot_um\na.tif\t55\n")
    with pytest.raises(ValueError, match="`spot_um` has no effect"):
        tl.embed_slides(rows, tmp_path / "new", **options)


def test_a_run_that_fails_before_its_first_result_leaves_no_folder(folder, weights, tmp_path):
    (folder / "a.h5ad").write_bytes(b"no section")
    with pytest.raises(ValueError, match="cannot be read"):
        tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", model=weights, **GENES)
    assert not (tmp_path / "out").exists()


def test_full_disk_is_not_an_error_of_the_section(folder, weights, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", model=weights, on_error="skip", **GENES)


def test_records_that_are_damaged_are_not_trusted(folder, weights, tmp_path):
    out = tmp_path / "out"
    tl.embed_sections([folder / "a.h5ad"], out, model=weights, **GENES)
    (out / ".stampy" / "a.json").write_text("{")
    with pytest.raises(FileExistsError, match=r"a.h5ad \(not of such a run\)"):
        tl.embed_sections([folder / "a.h5ad"], out, model=weights, **GENES)
    (out / ".stampy" / "a.json").write_text(json.dumps({"state": "begun"}))
    assert status(tl.embed_sections([folder / "a.h5ad"], out, model=weights, **GENES)) == {"a": "embedded"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.h5ad"], "Expected IN OUT, found 1 paths"),
        (["a.h5ad", "b.h5ad", "--workers", "2"], "--workers needs --out FOLDER"),
        (["a.h5ad", "b.h5ad", "--out", "o", "--image", "x.tif"], "--image is only for a single section"),
        (["a.h5ad", "b.h5ad", "--out", "o", "--resume", "r"], "--resume is only for a single section"),
    ],
)
def test_command_line_explains_conflicting_options(folder, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit, match="2"):
        main(["embed", *arguments])
    assert message in capsys.readouterr().err
    assert not (folder / "o").exists()


MISTAKES = [
    (["embed", "a.h5ad", "b.h5ad", "--out", "o", "--workers", "0"], "--workers must be at least 1"),
    (["corpus", "build", "a.h5ad", "--out", "o", "--max-tokens", "0"], "--max-tokens must be at least 1"),
    (["corpus", "info", "a.h5ad"], "'a.h5ad' is not a corpus: it has no corpus.json"),
    (["pretrain", "a.h5ad", "--out", "o", "--config", "bad.json"], "'bad.json' is not a JSON file"),
    (["pretrain", "a.h5ad", "--out", "o", "--config", "unknown.json"],
     "There is no setting 'lrr' in 'unknown.json'. Did you mean 'lr'?"),
    (["align", "a.h5ad", "--model", "stampy-mimi", "--out", "o"], "Did you mean 'stampy-mini'"),
    (["evaluate", "stampy-mimi", "a.h5ad"], "Did you mean 'stampy-mini'"),
    (["slide", "a.h5ad", "o.h5ad"], "OUT must end in .zarr"),
    (["demo", "--section", "HER2ST_A11", "--out", "o"], "HER2ST_A1"),
]  # fmt: skip


def test_mistakes_raise_before_torch_is_imported(folder):
    """In the words of the command line, and without a folder left behind."""
    (folder / "bad.json").write_text("{,}")
    (folder / "unknown.json").write_text('{"lrr": 1}')
    code = (
        "import contextlib, io, json, os, sys\nfrom stampy.cli.main import main\nfound = []\n"
        "for arguments in json.loads(sys.argv[1]):\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as said:\n"
        "        status = main(arguments)\n"
        "    found.append([status, said.getvalue(), 'torch' in sys.modules, os.path.exists('o')])\n"
        "print(json.dumps(found))"
    )
    command = [sys.executable, "-c", code, json.dumps([arguments for arguments, _ in MISTAKES])]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    for (arguments, message), (status, said, *left) in zip(MISTAKES, found, strict=True):
        assert message in said
        assert (status, left) == (1, [False, False]), arguments


def test_command_line(manifest, weights, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["embed", manifest, "--out", out, "--model", weights, "--modality", "gene", "--workers", "1", "--join"]
    assert main([str(a) for a in argv]) == 0
    said = capsys.readouterr().out
    assert "3 sections: 3 embedded, 0 kept, 0 failed; 123 rows" in said
    assert main([str(a) for a in argv]) == 0
    assert "0 embedded, 3 kept" in capsys.readouterr().out
    assert anndata.read_zarr(out / "joined.zarr").n_obs == 123
