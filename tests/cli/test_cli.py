"""The command line: outputs, messages, and errors of one line that leave no files."""

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pytest
from matplotlib import image as mpl_image

import stampy
from stampy import _checks, datasets, models, pp
from stampy.__main__ import _let_idle_threads_sleep
from stampy._io import read as _formats
from stampy.cli import demo as _demo
from stampy.cli.early_checks import TOY_COLUMNS, check_names, check_vocabulary_file
from stampy.cli.main import EXAMPLES, main
from stampy.cli.options import in_options

GENE = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 48, "tied_heads": True, "embedding": 12}
STAGE1 = GENE | {"groups_per_batch": 4, "epochs_igr": 1, "epochs_cgr": 1, "lr": 1e-2}
VIT = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
STAGE2 = {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": VIT, "epochs": 1, "pairs_per_batch": 24}
KEYS = ("X_stamp", "X_stamp_gene", "X_stamp_image")


@pytest.fixture(autouse=True)
def _no_surroundings(monkeypatch, tmp_path):
    """No mirror, no network, a working directory of its own."""
    monkeypatch.delenv("STAMPY_DATA_DIR", raising=False)
    monkeypatch.delenv("STAMPY_TRACEBACK", raising=False)
    monkeypatch.setenv("STAMPY_CACHE_DIR", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)

    def no_network(url):
        raise ConnectionError(f"{url.split('/')[2]}: there is no network in tests")

    monkeypatch.setattr(_demo, "_check_network", no_network)


@pytest.fixture
def run(capsys):
    """Run a command; return its exit status, stdout and stderr."""

    def run(*argv):
        capsys.readouterr()
        try:
            status = main([str(a) for a in argv])
        except SystemExit as stop:  # argparse
            status = stop.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


@pytest.fixture
def fails(run):
    """Runs a command that must fail; gives its one line."""

    def fails(*argv):
        status, out, err = run(*argv)
        assert status == 1, err
        assert "Traceback" not in out + err
        (line,) = [line for line in err.splitlines() if not line.startswith("stampy: warning:")]
        assert line.startswith("stampy: error: ")
        return line.removeprefix("stampy: error: ")

    return fails


@pytest.fixture(scope="module")
def weights(model, tmp_path_factory):
    """The small model in a folder."""
    folder = tmp_path_factory.mktemp("weights") / "small"
    models.save(model, folder)
    return folder


@pytest.fixture(scope="module")
def section(toy, tmp_path_factory):
    """The toy section in a file."""
    path = tmp_path_factory.mktemp("section") / "toy.h5ad"
    toy.write_h5ad(path)
    return path


@pytest.fixture
def unwritable(monkeypatch):
    """Says which folder cannot be written to, also to root, for whom rights do not count."""

    def forbid(folder):
        ordinary = tempfile.NamedTemporaryFile

        def refuse(*args, **kwargs):
            if os.path.samefile(kwargs.get("dir", "/"), folder):
                raise PermissionError(13, "Permission denied")
            return ordinary(*args, **kwargs)

        monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)

    return forbid


def names_in(folder):
    return sorted(p.name for p in folder.iterdir())


def space_ranger_folder(adata, folder, *, mtx=False):
    """`adata` as Space Ranger would have written it."""
    import gzip

    from scipy import io, sparse

    (folder / "spatial").mkdir(parents=True)
    by_spot = sparse.csr_matrix(adata.X)
    if mtx:
        matrix = folder / "filtered_feature_bc_matrix"
        matrix.mkdir()
        with gzip.open(matrix / "matrix.mtx.gz", "wb") as stream:
            io.mmwrite(stream, by_spot.T.tocoo())
        genes = [f"{i}\t{s}\tGene Expression\n" for s, i in adata.var["gene_ids"].items()]
        (matrix / "features.tsv.gz").write_bytes(gzip.compress("".join(genes).encode()))
        (matrix / "barcodes.tsv.gz").write_bytes(gzip.compress("".join(f"{b}\n" for b in adata.obs_names).encode()))
    else:
        with h5py.File(folder / "filtered_feature_bc_matrix.h5", "w") as file:
            group = file.create_group("matrix")
            for key in ("data", "indices", "indptr"):
                group[key] = getattr(by_spot, key)
            group["shape"] = by_spot.shape[::-1]
            group["barcodes"] = [name.encode() for name in adata.obs_names]
            group["features/id"] = [name.encode() for name in adata.var["gene_ids"]]
            group["features/name"] = [name.encode() for name in adata.var_names]
    (library,) = adata.uns["spatial"].values()
    x, y = adata.obsm["spatial"].T
    rows = [f"{b},1,0,0,{v},{u}\n" for b, u, v in zip(adata.obs_names, x, y, strict=True)]
    (folder / "spatial/tissue_positions_list.csv").write_text("".join(rows))
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(library["scalefactors"]))
    mpl_image.imsave(folder / "spatial/tissue_hires_image.png", library["images"]["hires"])
    return folder


# ---- demo ----------------------------------------------------------------------------------------------------------


def test_demo_on_a_file(run, section, weights, tmp_path):
    out = tmp_path / "new" / "demo"
    status, said, err = run("demo", "--section", section, "--model", weights, "--labels", "domain", "--n-domains", 4,
                            "--out", out, "--seed", 1)  # fmt: skip
    assert (status, err) == (0, "")
    for words in ("120 spots x 800 genes", "Embedding: fused (genes and image)", "Clusters: ", "marker genes",
                  "agree with `domain`", "over 120 of 120 spots", "Verdict, without labels: X_stamp is ",
                  "Probe: balanced accuracy", "chance, of 4 labels", str(out), "Time: loading "):  # fmt: skip
        assert words in said
    pictures = ["clusters.png", "embedding.png", "labels.png", "tissue.png"]
    assert names_in(out) == sorted([*pictures, "section.h5ad"])
    assert all(name in said for name in names_in(out))
    for name in pictures:
        pixels = mpl_image.imread(out / name)
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 50  # it shows something
    written = ad.read_h5ad(out / "section.h5ad")
    assert set(written.obsm) == {*KEYS, "spatial"}  # results of the comparison are not kept
    sizes = written.obs["stamp_cluster"].value_counts(sort=False)
    assert sizes.index.tolist() == [str(i) for i in range(len(sizes))]
    assert sizes.is_monotonic_decreasing  # "0" is the largest
    assert _demo._checked_folder(out, section) == out  # the folder of a demo may get another


def test_demo_without_a_section_explains_why_it_uses_the_toy(run, weights):
    status, said, err = run("demo", "--model", weights, "--modality", "gene")
    assert status == 0
    assert "dropped" not in err  # the small model's vocabulary is the toy's
    assert "toy, made up" in said
    assert "STAMPY_DATA_DIR is not set" in said
    assert "no network in tests" in said
    assert "Embedding: genes only" in said
    assert "agree with `domain`" in said
    assert os.path.exists("stampy-demo/section.h5ad")


def test_demo_on_several_sections(run, weights, tmp_path):
    adata = datasets.toy(n_spots=40, n_sections=2)
    adata.write_h5ad(tmp_path / "two.h5ad")
    status, _, err = run("demo", "--section", tmp_path / "two.h5ad", "--library-key", "section", "--model", weights,
                         "--quiet")  # fmt: skip
    assert (status, err) == (0, "")


def test_demo_on_a_real_section(run, data_dir, monkeypatch, weights):
    monkeypatch.setenv("STAMPY_DATA_DIR", str(data_dir))
    status, said, err = run("demo", "--model", weights, "--modality", "gene")
    assert status == 0
    assert ["of the counts are dropped" in line for line in err.splitlines()] == [True]  # the vocabulary is the toy's
    assert "HER2ST_A1, real: " in said
    assert "341 of 346 spots" in said  # the others are "undetermined"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--section", "HER2ST_A11"], "Similar names: ['HER2ST_A1'"),
        (["--section", "nowhere/section.h5ad"], "--section nowhere/section.h5ad was found in none of"),
        (["--labels", "domains"], "Key `domains` not found in `adata.obs`"),
        (["--n-domains", "0"], "--n-domains must be at least 2"),
        (["--n-domains", "1000"], "--n-domains must be at most 119"),
        (["--model", "stampy-mino"], "stampy-mini"),
        (["--layer", "counts"], "Key `counts` not found in `adata.layers`"),
        (["--image", "slide.tif"], "slide.tif"),
    ],
)
def test_demo_raises(fails, section, weights, options, words):
    given = {"--section": str(section), "--model": str(weights), "--out": "out"} | dict([options])
    assert words in fails("demo", *[part for pair in given.items() for part in pair])
    assert not Path("out").exists()


def test_demo_needs_spots_to_cluster(fails, toy, weights, tmp_path):
    toy[:2].copy().write_h5ad(tmp_path / "two.h5ad")
    assert "at least 3 spots" in fails("demo", "--section", tmp_path / "two.h5ad", "--model", weights)


def test_demo_does_not_change_other_files(fails, section, weights, tmp_path):
    mine = shutil.copy(section, tmp_path / "section.h5ad")
    before = (tmp_path / "section.h5ad").read_bytes()
    assert "is not from a demo" in fails("demo", "--section", mine, "--model", weights, "--out", tmp_path)
    assert (tmp_path / "section.h5ad").read_bytes() == before


# ---- embed ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data", "ignore:zarr v3 autosharding")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_embed_any_format(run, toy, section, weights, model, tmp_path, suffix):
    expected = stampy.tl.embed(toy, model, copy=True)
    source = section
    if suffix == ".zarr":
        source = tmp_path / "in.zarr"
        toy.write_zarr(source)
    out = tmp_path / f"out{suffix}"
    status, said, err = run("embed", source, out, "--model", weights, "--batch-size", 50)
    assert (status, err) == (0, "")
    assert "120 spots, fused, by small, " in said
    assert "of 800 genes matched" in said
    assert f"Written: {out}, obsm['X_stamp'] (120, 24)" in said
    written = _formats.read(out)
    for key in KEYS:
        np.testing.assert_allclose(written.obsm[key], expected.obsm[key], atol=1e-5)
    assert (written.X != toy.X).nnz == 0
    assert written.obs["domain"].tolist() == toy.obs["domain"].tolist()
    assert names_in(tmp_path) == sorted({out.name, "work", *([source.name] if suffix == ".zarr" else [])})


@pytest.mark.parametrize("mtx", [False, True])
def test_embed_a_space_ranger_folder(run, toy, weights, model, tmp_path, mtx):
    toy = toy[:60].copy()
    expected = stampy.tl.embed(toy, model, copy=True)
    folder = space_ranger_folder(toy, tmp_path / "sample" / "outs", mtx=mtx)
    for source in (folder, folder.parent):
        status, _, err = run("embed", source, "out.h5ad", "--model", weights, "--quiet", "--overwrite")
        assert (status, err) == (0, "")
    written = ad.read_h5ad("out.h5ad")
    assert list(written.uns["spatial"]) == ["sample"]
    np.testing.assert_allclose(written.obsm["X_stamp"], expected.obsm["X_stamp"], atol=1e-5)
    (folder / "spatial" / "scalefactors_json.json").unlink()
    status, _, err = run("embed", folder, "other.h5ad", "--model", weights)
    assert status == 1
    assert "None of ['scalefactors_json.json', 'scalefactors.json'] was found" in err
    assert names_in(Path()) == ["out.h5ad"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_embed_spatialdata(run, toy, section, weights, model, tmp_path):
    import spatialdata

    sdata = spatialdata.SpatialData(tables={"table": toy.copy()})
    sdata.write(tmp_path / "in.zarr")
    for out in ("out.zarr", "out.h5ad"):
        status, _, err = run("embed", tmp_path / "in.zarr", out, "--model", weights, "--modality", "gene")
        assert status == 0, err
    table = spatialdata.read_zarr("out.zarr").tables["table"]
    expected = stampy.tl.embed(toy, model, modality="gene", copy=True).obsm["X_stamp"]
    np.testing.assert_allclose(table.obsm["X_stamp"], expected, atol=1e-5)
    np.testing.assert_allclose(ad.read_h5ad("out.h5ad").obsm["X_stamp"], expected, atol=1e-5)


def test_embed_options_reach_the_function(run, section, toy, weights):
    toy = toy.copy()
    toy.layers["raw"] = toy.X.copy()
    toy.X = toy.X.astype(np.float32)
    toy.X.data = np.log1p(toy.X.data)
    toy.write_h5ad("log.h5ad")
    status, said, err = run("embed", "log.h5ad", "out.h5ad", "--model", weights, "--layer", "raw", "--key-added", "Z",
                            "--modality", "gene")  # fmt: skip
    assert (status, err) == (0, "")
    assert "obsm['Z']" in said
    assert "Z" in ad.read_h5ad("out.h5ad").obsm


def test_embed_onto_itself(run, fails, section, weights):
    shutil.copy(section, "mine.h5ad")
    before = Path("mine.h5ad").read_bytes()
    assert "replace it with --overwrite" in fails("embed", "mine.h5ad", "mine.h5ad", "--model", weights)
    assert Path("mine.h5ad").read_bytes() == before
    status, _, _ = run("embed", "mine.h5ad", "mine.h5ad", "--model", weights, "--overwrite", "--modality", "gene")
    assert status == 0
    assert "X_stamp" in ad.read_h5ad("mine.h5ad").obsm


def spoilt(toy, how):
    adata = toy.copy()
    if how == "nan":
        adata.obsm["spatial"] = adata.obsm["spatial"].astype(float)
        adata.obsm["spatial"][3, 1] = np.nan
    elif how == "outside":
        adata.obsm["spatial"] = adata.obsm["spatial"] + 1e6
    elif how == "no spatial":
        del adata.obsm["spatial"]
    elif how == "no image":
        del adata.uns["spatial"]
    elif how == "empty":
        adata = adata[:0].copy()
    elif how == "log":
        adata.X = adata.X.astype(np.float32)
        adata.X.data = np.log1p(adata.X.data)
    elif how == "mouse":
        adata.var = adata.var[[]].set_axis([name.capitalize() for name in adata.var_names])
    elif how == "foreign":
        adata.var_names = [f"probe-{i}" for i in range(adata.n_vars)]
        adata.var["gene_ids"] = adata.var_names
    elif how == "transposed":
        obs, var = adata.obs.copy(), adata.var.copy()
        adata = ad.AnnData(adata.X.T.tocsr(), obs=var, var=obs)
    return adata


@pytest.mark.parametrize(
    ("how", "modality", "words"),
    [
        ("nan", "fused", "NaN or infinite coordinates for 1 of 120 spots"),
        ("outside", "fused", "outside"),
        ("no spatial", "image", "Key `spatial` not found in `adata.obsm`"),
        ("no image", "image", "--image"),
        ("empty", "gene", "The section is empty"),
        ("log", "gene", "log-normalised"),
        ("mouse", "gene", "or, in one call, `stampy embed --organism mouse`"),
        ("foreign", "gene", "Only 0 of 800 genes"),
        ("transposed", "gene", "transposed"),
    ],
)
def test_embed_rejects_invalid_sections(fails, toy, weights, how, modality, words):
    spoilt(toy, how).write_h5ad("bad.h5ad")
    line = fails("embed", "bad.h5ad", "out.h5ad", "--model", weights, "--modality", modality)
    assert words in line
    assert "None" not in line
    assert names_in(Path()) == ["bad.h5ad"]


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        ("toy.h5ae", "out.h5ad", "No section at 'toy.h5ae'. Similar names there: ['toy.h5ad']"),
        ("toy.h5ad", "out.csv", "must end in .h5ad or .zarr, found 'out.csv'"),
        ("toy.h5ad", "taken.zarr", "'taken.zarr' exists"),
        ("toy.h5ad", "file/out.h5ad", "'file' cannot be a folder to write into"),
        (
            "notes.txt",
            "out.h5ad",
            "'notes.txt' is not a section",
        ),
        ("half.h5ad", "out.h5ad", "'half.h5ad' cannot be read: it is truncated"),
        ("empty", "out.h5ad", "'empty' is not a section in a format that stampy knows"),
    ],
)
def test_embed_rejects_invalid_paths(fails, section, weights, source, target, words):
    here = Path()
    shutil.copy(section, "toy.h5ad")
    (here / "half.h5ad").write_bytes(section.read_bytes()[:5000])
    (here / "notes.txt").write_text("hello")
    (here / "file").write_text("")
    (here / "taken.zarr").mkdir()
    (here / "empty").mkdir()
    before = names_in(here)
    options = ["--overwrite"] if target == "taken.zarr" else []
    assert words in fails("embed", source, target, "--model", weights, *options)
    assert names_in(here) == before


def test_embed_rejects_invalid_weights(fails, section, weights):
    here = Path()
    shutil.copytree(weights, "cut")
    tensors = here / "cut" / "model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-100])
    (here / "other").mkdir()
    (here / "other" / "config.json").write_text('{"model_type": "bert"}')
    assert "model.safetensors" in fails("embed", section, "out.h5ad", "--model", "cut")
    assert "config" in fails("embed", section, "out.h5ad", "--model", "other")
    assert "stampy-mini" in fails("embed", section, "out.h5ad", "--model", "stampy-mino")
    assert not (here / "out.h5ad").exists()


@pytest.mark.parametrize("command", ["demo", "embed", "pretrain", "align"])
def test_a_folder_that_cannot_be_written_to_is_refused_before_any_work(
    fails, unwritable, section, weights, tmp_path, monkeypatch, command
):
    locked = tmp_path / "locked"
    locked.mkdir()
    unwritable(locked)
    monkeypatch.setattr(models, "load", lambda *_, **__: pytest.fail("it began to work"))
    argv = {
        "demo": ["demo", "--section", section, "--out", locked],
        "embed": ["embed", section, locked / "out.h5ad"],
        "pretrain": ["pretrain", section, "--out", locked],
        "align": ["align", section, "--model", weights, "--out", locked],
    }
    line = fails(*argv[command])
    assert f"'{locked}' cannot be written to (Permission denied). Choose another." in line
    assert names_in(locked) == []


def test_a_folder_that_cannot_be_made():
    with pytest.raises(NotADirectoryError, match="a part of its path, is a file"):
        _checks.writable("/dev/null/stampy")


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data", "ignore:zarr v3 autosharding")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_no_partial_files_remain(fails, section, weights, monkeypatch, suffix):
    here = Path()
    shutil.copy(section, "toy.h5ad")
    old = here / f"out{suffix}"
    ad.read_h5ad("toy.h5ad").write_h5ad(old) if suffix == ".h5ad" else ad.read_h5ad("toy.h5ad").write_zarr(old)
    # from .h5ad to .h5ad the results alone are added to a copy
    place, kind = (ad.io, "write_elem") if suffix == ".h5ad" else (ad.AnnData, "write_zarr")
    ordinary = getattr(place, kind)

    def fill_the_disk(*args, **kwargs):
        ordinary(*args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(place, kind, fill_the_disk)
    message = fails("embed", "toy.h5ad", old, "--model", weights, "--overwrite", "--modality", "gene")
    assert f"No space left on the disk of '.' for {old}" in message
    assert names_in(here) == sorted(["toy.h5ad", old.name])
    assert "X_stamp" not in _formats.read(old).obsm  # the earlier embedding


# ---- training ------------------------------------------------------------------------------------------------------


def test_pretrain_align_embed(run, section, tmp_path):
    (tmp_path / "one.json").write_text(json.dumps(STAGE1))
    (tmp_path / "two.json").write_text(json.dumps(STAGE2))
    status, said, err = run("pretrain", section, "--out", "genes", "--config", tmp_path / "one.json", "--seed", 3)
    assert status == 0
    assert all(line.startswith("step ") for line in err.splitlines())  # no terminal: lines instead of a bar
    assert "Model: genes/model" in said
    (tmp_path / "sections.tsv").write_text(f"path\tname\n{section}\ttoy\n")
    status, said, err = run("align", tmp_path / "sections.tsv", "--model", "genes/model", "--out", "both", "--config",
                            tmp_path / "two.json", "--quiet")  # fmt: skip
    assert (status, said, err) == (0, "", "")
    assert Path("genes/metrics.jsonl").stat().st_size > 0
    status, said, err = run("embed", section, "out.h5ad", "--model", "both/model")
    assert (status, err) == (0, "")
    assert "120 spots, fused" in said


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pretrain", "nowhere.h5ad"], "nowhere.h5ad"),
        (["pretrain", "SECTION", "--config", "none.json"], "No config at 'none.json'"),
        (["pretrain", "SECTION", "--config", "bad.json"], "Did you mean 'width'"),
        (["pretrain", "SECTION", "--config", "half.json"], "line 1 column"),
        (["pretrain", "SECTION", "--vocabulary", "none.tsv"], "none.tsv"),
        (["align", "SECTION", "--model", "nowhere"], "nowhere"),
    ],
)
def test_training_raises(fails, section, argv, words):
    here = Path()
    (here / "bad.json").write_text('{"widht": 8}')
    (here / "half.json").write_text('{"width": ')
    assert words in fails(*[section if a == "SECTION" else a for a in argv], "--out", "out")


# ---- lists, help, errors -------------------------------------------------------------------------------------------


def test_models_and_datasets(run):
    status, said, _ = run("models")
    assert status == 0
    assert "stampy-mini" in said
    assert "hf-hub:" in said
    status, said, _ = run("datasets")
    assert status == 0
    assert all(name in said for name in datasets.names())


def test_help_and_version(run):
    for command in (
        [],
        ["demo"],
        ["embed"],
        ["slide"],
        ["report"],
        ["pretrain"],
        ["align"],
        ["evaluate"],
        ["models"],
        ["datasets"],
    ):
        status, said, err = run(*command, "--help")
        assert (status, err) == (0, "")
        assert "usage: stampy" in said
    assert run("--version")[1] == f"stampy {stampy.__version__}\n"
    assert {line.split()[1] for text in EXAMPLES.values() for line in text.strip().splitlines()} == {
        "demo", "embed", "slide", "corpus", "pretrain", "align", "evaluate", "bench", "--nproc-per-node", "report"
    }  # fmt: skip


@pytest.mark.parametrize("argv", [[], ["embed"], ["embed", "a.h5ad"], ["embbed"], ["demo", "--n-domains", "few"]])
def test_wrong_usage(run, argv):
    status, out, err = run(*argv)
    assert (status, out) == (2, "")
    assert "stampy" in err.splitlines()[-1]
    assert "Traceback" not in err


@pytest.mark.parametrize("where", ["before", "after", "environment"])
def test_traceback_on_request(run, monkeypatch, where):
    argv = ["embed", "none.h5ad", "out.h5ad"]
    if where == "environment":
        monkeypatch.setenv("STAMPY_TRACEBACK", "1")
    else:
        argv.insert(0 if where == "before" else 3, "--traceback")
    status, _, err = run(*argv)
    assert status == 1
    assert "Traceback (most recent call last)" in err
    assert err.splitlines()[-1] == "stampy: error: No section at 'none.h5ad'."


def test_interrupt_is_not_an_error(run, section, weights, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("stampy.tl.embed", interrupt)
    status, _, err = run("embed", section, "out.h5ad", "--model", weights)
    assert (status, err) == (130, "stampy: interrupted\n")
    assert names_in(Path()) == []


def test_a_bug_shows_its_traceback(section, weights, monkeypatch):
    class Bug(Exception):
        pass

    def bug(*_, **__):
        raise Bug

    monkeypatch.setattr("stampy.tl.embed", bug)
    with pytest.raises(Bug):
        main(["embed", str(section), "out.h5ad", "--model", str(weights)])


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("Pass it with `image=`.", "Pass it with `--image`."),
        ("Pass `um_per_px=` or\n `spot_um=`.", "Pass `--um-per-px` or `--spot-um`."),
        ("use modality='gene', or layer='counts'", "use --modality gene, or --layer counts"),
        ('use modality="gene"', "use --modality gene"),
        ("leave image=False", "leave image=False"),  # without a corresponding option
        (KeyError("`layer=`"), "`--layer`"),
        (ValueError(), "ValueError"),
    ],
)
def test_parameters_are_named_as_options(message, line):
    assert in_options(message) == line


def test_warnings_are_single_lines_and_those_of_other_packages_are_hidden(run, toy, weights, monkeypatch):
    adata = toy.copy()
    image = adata.uns["spatial"]["toy"]["images"].pop("hires")
    assert image is not None
    adata.write_h5ad("coarse.h5ad")  # only lowres is left
    ordinary = stampy.tl.embed

    def noisy(*args, **kwargs):
        warnings.warn("of a package below", FutureWarning, stacklevel=1)
        ordinary(*args, **kwargs)
        ordinary(*args, **kwargs)

    monkeypatch.setattr("stampy.tl.embed", noisy)
    status, _, err = run("embed", "coarse.h5ad", "out.h5ad", "--model", weights, "--quiet")
    assert status == 0
    (line,) = err.splitlines()  # once, though it was given twice
    assert line.startswith("stampy: warning: The image is coarse")
    assert "`--image`" in line
    assert "None" not in line


def test_python_dash_m(section, tmp_path):
    def stampy_(*argv):
        argv = [sys.executable, "-m", "stampy", *map(str, argv)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300)

    done = stampy_("embed", section, "out.h5ad", "--modality", "gene")
    assert (done.returncode, done.stderr) == (0, "")
    assert "120 spots, gene, by stampy-mini" in done.stdout
    assert names_in(tmp_path) == ["out.h5ad", "work"]
    done = stampy_("embed", "nowhere/none.h5ad", "other.h5ad")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "stampy: error: No section at 'nowhere/none.h5ad'.\n")


def test_names_that_begin_with_a_dash(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    toy[:30].copy().write_h5ad("./-in.h5ad")
    assert main(["embed", "--modality", "gene", "--quiet", "--device", "cpu", "--", "-in.h5ad", "-out.h5ad"]) == 0
    assert "X_stamp" in ad.read_h5ad("./-out.h5ad").obsm


@pytest.mark.parametrize("target", ["there.h5ad", "nowhere.h5ad"])
def test_a_link_as_output_is_not_followed(target, toy, tmp_path, capsys):
    toy[:30].copy().write_h5ad(tmp_path / "in.h5ad")
    (tmp_path / "there.h5ad").write_text("precious")
    link = tmp_path / "out.h5ad"
    link.symlink_to(tmp_path / target)
    command = ["embed", str(tmp_path / "in.h5ad"), str(link), "--modality", "gene", "--quiet", "--device", "cpu"]
    assert main(command) == 1
    assert "a symbolic link to" in capsys.readouterr().err
    assert link.is_symlink()
    assert main([*command, "--overwrite"]) == 0
    assert "the link is replaced" in capsys.readouterr().err
    assert not link.is_symlink()
    assert (tmp_path / "there.h5ad").read_text() == "precious"
    assert not (tmp_path / "nowhere.h5ad").exists()


def test_too_long_name_raises_before_any_computation(tmp_path, capsys):
    (tmp_path / "broken.h5ad").write_bytes(b"never read")
    assert main(["embed", str(tmp_path / "broken.h5ad"), str(tmp_path / "new" / f"{'x' * 260}.h5ad")]) == 1
    assert "265 bytes" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("embd", "a", "b"), "there is no 'embd'. Did you mean 'embed'?"),
        (("corpus", "biuld", "a"), "Did you mean 'build'?"),
        (("embed", "a.h5ad", "b.h5ad", "--modality", "genes"), "Did you mean 'gene'?"),
        (("embed", "a.h5ad", "b.h5ad", "--modle=x"), "there is no option --modle. Did you mean --model?"),
        (("corpus", "build", "a.h5ad", "--out", "o", "--vocabluary=x"), "Did you mean --vocabulary?"),
        (("embed", "a.h5ad", "--out", "b.h5ad"), "For a single file: stampy embed IN b.h5ad"),
        (("slide", "a.tif", "--out", "b.zarr"), "For a single file: stampy slide IN b.zarr"),
    ],
)
def test_similar_names_are_suggested(run, argv, words):
    status, _, complaint = run(*argv)
    assert status == 2
    assert words in complaint


@pytest.mark.parametrize(
    "argv",
    [
        ("embed", "no.h5ad", "new/sub/out.h5ad"),
        ("embed", "SECTION", "new/out.h5ad", "--model", "stampy-mimi"),
        ("embed", "SECTION", "new/out.h5ad", "--modality", "gene", "--um-per-px", "1"),
        ("embed", "SECTION", "new/out.h5ad", "--image", "no.tif"),
        ("embed", "SECTION", "new/out.pdf"),
        ("slide", "no.svs", "new/out.zarr"),
        ("report", "no.h5ad", "new/out.html"),
        ("demo", "--model", "stampy-mimi", "--out", "new"),
        ("demo", "--section", "no.h5ad", "--out", "new"),
    ],
)
def test_an_error_leaves_no_folder(run, section, argv):
    status, _, complaint = run(*(str(section) if a == "SECTION" else a for a in argv))
    assert status == 1, complaint
    assert not Path("new").exists()


def test_wrong_names_raise_before_torch_is_imported(section, tmp_path):
    bad, unknown = tmp_path / "bad.json", tmp_path / "unknown.json"
    bad.write_text("{")
    unknown.write_text('{"dataset": []}')
    zarr = tmp_path / "section.zarr"
    (zarr / "obs").mkdir(parents=True)
    (zarr / "obs" / "zarr.json").write_text('{"attributes": {"column-order": ["domain"]}}')
    embed = ["embed", str(section), "o.h5ad"]
    wrong = [
        [*embed, "--model", "stampy-mimi"],
        [*embed, "--modality", "gene", "--image-key", "hires"],
        ["demo", "--section", str(section), "--labels", "domains"],
        ["demo", "--section", str(zarr), "--labels", "domains"],
        ["demo", "--section", "toy", "--labels", "domains"],
        ["demo", "--section", "toy", "--n-domains", "1"],
        ["demo", "--section", "toy", "--image", "nowhere.png"],
        [*embed, "--library-key", "domains"],
        [*embed, "--layer", "raw"],
        [*embed, "--device", "gpu"],
        ["report", str(section), "--domains", "domains"],
        ["report", str(section), "--layer", "raw"],
        ["slide", str(section), "o.zarr"],
        ["slide", str(section), "o.zarr", "--min-tissue", "2"],
        ["bench", "run", str(bad)],
        ["bench", "run", str(unknown)],
    ]
    code = (
        f"import sys; from stampy.cli.main import main; print([main(argv) for argv in {wrong!r}], "
        "sorted({'torch', 'numba', 'anndata'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[1] * len(wrong)} []", done.stderr
    assert done.stderr.count("Key `domains` not found in `adata.obs`") == 5
    assert done.stderr.count("Key `raw` not found in `adata.layers`") == 2
    assert "Did you mean 'datasets'" in done.stderr


def test_the_columns_of_the_toy_are_known():
    assert (*datasets.toy(n_spots=20).obs.columns,) == TOY_COLUMNS


@pytest.mark.parametrize(
    "wrong", [["--vocabulary", "nowhere.tsv"], ["--devices", "0"], ["--device", "gpu"], ["--config", "nowhere.json"]]
)
def test_wrong_options_of_training_leave_no_folder(fails, section, tmp_path, wrong):
    fails("pretrain", section, "--out", tmp_path / "run", *wrong)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["genes.tsv", "genes.tsv.gz"])
def test_a_vocabulary_that_can_be_read_passes_the_early_check(tmp_path, name):
    """Also with a byte order mark, or compressed."""
    text = "gene_id\tsymbol\tdivisor\nENSG00000141510\tTP53\t1.5\n".encode("utf-8-sig")
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    assert len(pp.Vocabulary.load(tmp_path / name)) == 1
    check_vocabulary_file(tmp_path / name)


def test_slots_that_are_tables_are_left_to_the_reader(tmp_path):
    """As early versions of anndata wrote obs and obsm."""
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        file["X"] = np.ones((2, 3))
        for slot in ("obs", "obsm"):
            file[slot] = np.zeros(2, dtype=[("mine", "f4", 2)])
    check_names(tmp_path / "old.h5ad", obs={"labels": "layer"}, obsm={"embedding": "mine"})
    with pytest.raises(KeyError, match="layers"):
        check_names(tmp_path / "old.h5ad", obs={}, layers={"layer": "counts"})


def test_run_that_cannot_start_leaves_no_folder(fails, section, tmp_path):
    (tmp_path / "genes.tsv").write_text("gene_id\tsymbol\tdivisor\nENSG00000141510\tTP53\t-1\n")
    fails("pretrain", section, "--out", tmp_path / "run", "--vocabulary", tmp_path / "genes.tsv")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["pretrain", "align"])
def test_training_on_missing_files_leaves_no_folder(fails, tmp_path, command):
    assert "No section or manifest at 'nothing.h5ad'" in fails(command, "nothing.h5ad", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_report_takes_its_path_also_as_an_option(run, section):
    for i, option in enumerate(("--out", "-o")):
        status, _, err = run("report", section, option, f"page{i}.html", "--quiet")
        assert status == 0, err
    assert names_in(Path()) == ["page0.html", "page1.html"]
    status, _, err = run("report", section, "a.html", "--out", "b.html")
    assert status == 2
    assert "Two paths of the report were given: 'a.html' and --out b.html" in err


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("evaluate stampy-mini {section} --out {file}.csv", "--out"),
        ("bench table {folder} --out {file}.md", "--out"),
        ("bench table {folder} --picture {file}.png", "--picture"),
        ("bench report {folder} --out {file}.html", "--out"),
        ("corpus hest {folder} --out {file}.tsv", "--out"),
        ("report {section} {file}.html", "OUT"),
        ("embed {section} {file}.h5ad", "OUT"),
    ],
)
def test_no_command_replaces_a_file_unasked(run, section, command, option, tmp_path):
    """The error comes before any work, so even an empty folder of results gives it."""
    (tmp_path / "results").mkdir()
    words = command.format(section=section, folder=tmp_path / "results", file=tmp_path / "kept").split()
    kept = Path(next(word for word in words if word.startswith(str(tmp_path / "kept"))))
    kept.write_text("kept")
    status, _, err = run(*words)
    assert (status, kept.read_text()) == (1, "kept")
    assert f"{str(kept)!r} exists. Choose another name, or replace it with --overwrite." in err
    kept.unlink()
    kept.mkdir()
    status, _, err = run(*words, "--overwrite")
    assert status == 1
    assert "it is not changed" in err
    assert list(kept.iterdir()) == []


def test_table_and_picture_are_two_files(run, tmp_path):
    """The table replaced the picture that was just written."""
    (tmp_path / "results").mkdir()
    same = str(tmp_path / "same")
    status, _, err = run("bench", "table", tmp_path / "results", "--out", same, "--picture", same)
    assert (status, "--out and --picture are the same file" in err) == (1, True)


def test_other_use_of_an_adapted_model_in_the_words_of_the_command_line(run, toy, section, few_genes, tmp_path):
    for context, options, remedy in (
        ("neighbors", (), "Pass --context neighbors, or adapt a model for single spots"),
        (None, ("--context", "neighbors"), "Omit --context, or adapt a model for use in context"),
    ):
        adapted = stampy.train.adapt(few_genes, toy, strength=0.2, n_axes=8, context=context)
        models.save(adapted, tmp_path / f"{context}")
        out = tmp_path / f"{context}.h5ad"
        _, _, err = run("embed", section, out, "--model", tmp_path / f"{context}", "--modality", "gene", *options)
        assert remedy in err
        assert "context=" not in err


def test_every_command_that_writes_a_file_takes_overwrite(run):
    for command in ("report", "embed", "evaluate", "corpus hest", "bench table", "bench report"):
        status, out, _ = run(*command.split(), "--help")
        assert (status, "--overwrite" in out) == (0, True), command


def test_every_command_with_an_output_path_takes_the_short_option(run):
    commands = ["demo", "report", "embed", "slide", "corpus build", "corpus hest", "pretrain", "align", "evaluate",
                "bench run", "bench table", "bench report"]  # fmt: skip
    for command in commands:
        status, out, _ = run(*command.split(), "--help")
        assert (status, "-o " in out, "--out " in out) == (0, True, True), command


def test_idle_threads_sleep_unless_the_user_chose():
    """Spinning threads of OpenMP and OpenBLAS tripled the CPU time of the demo on a crowded machine."""
    environment = {}
    _let_idle_threads_sleep(["--traceback", "demo"], environment)
    assert environment == {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "16"}
    chosen = {"OMP_WAIT_POLICY": "active"}
    _let_idle_threads_sleep(["demo"], chosen)
    assert chosen["OMP_WAIT_POLICY"] == "active"
    training = {}
    _let_idle_threads_sleep(["pretrain", "a.h5ad"], training)
    assert training == {}


def test_entry_point_loads_no_library_before_threads_are_set():
    code = "import sys, stampy.__main__; print({'numpy', 'scipy', 'sklearn', 'torch', 'numba'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"
