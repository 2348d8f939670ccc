"""Reliability of runs: identity, locks, signals, full disks, logs, and warnings about skipped input."""

import contextlib
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

from stampy import datasets, models, train
from stampy._io.sections import SectionInput, as_sections
from stampy._locks import FolderLock
from stampy.cli import main as cli
from stampy.pp import Vocabulary
from stampy.train._corpus.training_data import pairs_on_disk
from stampy.train._data import TrainingData, prepare
from stampy.train._loop import logs, loop
from stampy.train._loop.signals import Signals
from stampy.train._samplers import GroupSampler, PairSampler

GENE = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 48, "tied_heads": True}
STAGE1 = GENE | {"groups_per_batch": 4, "lr": 1e-2, "checkpoint_every": 100, "embedding": 12, "epochs_cgr": 2}
STAGE2 = {"epochs": 1, "pairs_per_batch": 24, "lr": 1e-3, "checkpoint_every": 100}
QUIET = {"device": "cpu", "progress": False}
CORPUS = {"max_tokens": 48, "size_px": 32, "codec": "zstd", "n_workers": 1, "progress": False}


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def steps_of(out):
    return [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]


# Identity


@pytest.fixture(scope="module")
def aligned(toy, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("stage2")
    train.align(_own(toy), out, model=model, config=STAGE2, **QUIET)
    return out


def _own(toy):
    own = toy.copy()
    own.uns = copy.deepcopy(dict(toy.uns))
    return own


def _pixel(toy, model):
    own = _own(toy)
    next(iter(own.uns["spatial"]["toy"]["images"].values()))[0, 0, 0] ^= 1
    return own, model, STAGE2


def _start(toy, model):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.gene_head.weight[0, 0] += 1e-6
    return _own(toy), other, STAGE2


def _divisor(toy, model):
    other = copy.deepcopy(model)
    other.genes.loc[3, "divisor"] *= 2
    return _own(toy), other, STAGE2


def _scale(toy, model):
    return [SectionInput(data=_own(toy), name="section 0", um_per_px=1.5)], model, STAGE2


def _spot(toy, model):
    own = _own(toy)
    own.obsm["spatial"][7, 0] += 1
    return own, model, STAGE2


def _count(toy, model):
    own = _own(toy)
    own.X = own.X.toarray()
    own.X[7] = np.roll(own.X[7], 1)
    return own, model, STAGE2


def _settings(toy, model):
    return _own(toy), model, STAGE2 | {"augment": False}


CHANGES = {
    _pixel: "counts, coordinates or images of the sections .'section 0'",
    _start: "start model",
    _divisor: "vocabulary|start model",
    _scale: "counts, coordinates or images",
    _spot: "counts, coordinates or images",
    _count: "counts, coordinates or images",
    _settings: r"settings: \['augment'\]",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_run_with_any_other_input_is_refused(change, toy, model, aligned):
    sections, start, config = change(toy, model)
    with pytest.raises(ValueError, match=f"contains a run with other .*({CHANGES[change]})"):
        train.align(sections, aligned, model=start, config=config, **QUIET)


def test_equal_input_in_another_format_resumes(toy, model, aligned, tmp_path):
    shutil.copytree(aligned, tmp_path, dirs_exist_ok=True)
    own = _own(toy)
    own.X = own.X.toarray()
    again = train.align(own, tmp_path, model=copy.deepcopy(model), config=STAGE2, **QUIET)
    assert equal(again, models.load(aligned / "model", device="cpu"))


def test_run_of_an_earlier_version_raises(toy, model, aligned, tmp_path):
    shutil.copytree(aligned, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["identity"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"contains a run of stampy .*, which this version cannot resume"):
        train.align(_own(toy), tmp_path, model=model, config=STAGE2, **QUIET)


# Locks


def test_two_runs_into_one_folder(toy, tmp_path):
    with FolderLock(tmp_path, what="run"), pytest.raises(RuntimeError, match="Another process is using"):
        train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)
    with FolderLock(tmp_path, what="corpus"), pytest.raises(RuntimeError, match="Another process is using"):
        train.Corpus.build(toy, tmp_path, n_workers=1, progress=False)


# Signals


@pytest.fixture(scope="module")
def pretrained(toy, tmp_path_factory):
    return train.pretrain(toy, tmp_path_factory.mktemp("whole"), config=STAGE1, **QUIET)


def signalling(monkeypatch, *numbers, at=3):
    rate, note, noted = loop._learning_rate, Signals._note, []

    def noting(self, number, frame):
        noted.append(number)
        note(self, number, frame)

    def at_a_step(config, step, steps):
        for sent, number in enumerate(numbers if step == at else (), start=1):
            signal.raise_signal(number)
            # Python may call a handler late; two signals that wait together are one
            end = time.monotonic() + 10
            while len(noted) < sent and time.monotonic() < end:
                time.sleep(0.001)
        return rate(config, step, steps)

    monkeypatch.setattr(Signals, "_note", noting)

    monkeypatch.setattr(loop, "_learning_rate", at_a_step)
    return rate


@pytest.mark.parametrize(("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signal_saves_a_checkpoint_and_the_run_resumes(number, error, toy, pretrained, tmp_path, monkeypatch, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    rate = signalling(monkeypatch, number)
    with pytest.raises(error, match=r"Stopped after 4 of .* steps; .* Repeat the command") as caught:
        train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert (tmp_path / "checkpoint-00000004.ckpt").is_file()
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert f"stampy: {number.name}: saving a checkpoint" in capfd.readouterr().err
    monkeypatch.setattr(loop, "_learning_rate", rate)
    assert equal(train.pretrain(toy, tmp_path, config=STAGE1, **QUIET), pretrained)
    assert steps_of(tmp_path) == list(range(len(steps_of(tmp_path))))


def test_rejected_run_does_not_write_the_record_of_the_data(toy, tmp_path):
    train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)
    (tmp_path / "data.json").unlink()
    with pytest.raises(ValueError, match=r"another run|other settings|lr"):
        train.pretrain(toy, tmp_path, config=STAGE1 | {"lr": 2e-2}, **QUIET)
    assert not (tmp_path / "data.json").exists()


@pytest.mark.usefixtures("interruptible")
def test_a_second_signal_stops_at_once(toy, tmp_path, monkeypatch):
    signalling(monkeypatch, signal.SIGINT, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)
    assert not list(tmp_path.glob("*.ckpt"))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_run_in_another_thread_does_not_change_signals(toy, pretrained, tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(train.pretrain(toy, tmp_path, config=STAGE1, **QUIET)))
    thread.start()
    thread.join()
    assert equal(found[0], pretrained)


def test_command_line_explains_how_to_resume(toy, tmp_path, monkeypatch, capsys):
    toy.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "c.json").write_text(json.dumps(STAGE1))
    command = [
        "pretrain",
        str(tmp_path / "a.h5ad"),
        "--out",
        str(tmp_path / "run"),
        "--config",
        str(tmp_path / "c.json"),
    ]
    rate = signalling(monkeypatch, signal.SIGINT)
    assert cli.main([*command, "--device", "cpu"]) == 130
    err = capsys.readouterr().err
    assert err.count("Repeat the command to resume") == 1
    monkeypatch.setattr(loop, "_learning_rate", rate)
    monkeypatch.setattr(logs, "LINE_EVERY_S", 0.0)
    assert cli.main([*command, "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert out.count("Model: ") == 1
    lines = [line for line in err.splitlines() if line.startswith("step ")]
    assert len(lines) >= 2
    assert all("igr" in line and "spots/s" in line and line.endswith(" left") for line in lines)


# A full disk


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 600 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)] if mount else ["false"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_the_last_checkpoint_and_leaves_nothing_half_written(toy, pretrained, small_disk):
    config = STAGE1 | {"checkpoint_every": 3, "keep": 100}
    with pytest.raises(OSError, match=r"No space left on the disk .*same command again; it continues from checkpoint-"):
        train.pretrain(toy, small_disk, config=config, **QUIET)
    left = sorted(p.name for p in small_disk.iterdir() if p.name.startswith((".checkpoint", "checkpoint")))
    assert left
    assert all(name.startswith("checkpoint-") for name in left)
    states = [torch.load(small_disk / name, weights_only=True)["step"] for name in left]
    assert states == sorted(states)
    for name in left[:-1]:
        (small_disk / name).unlink()
    assert equal(train.pretrain(toy, small_disk, config=config | {"keep": 1}, **QUIET), pretrained)


def test_a_disk_that_is_full_from_the_start(toy, small_disk):
    with (small_disk / "other").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    with pytest.raises(OSError, match=r"No space left on the disk|cannot be written to"):
        train.pretrain(toy, small_disk, config=STAGE1, **QUIET)


# Errors name the section


def _nan(adata):
    adata.obsm["spatial"][3] = np.nan


def _no_place(adata):
    del adata.obsm["spatial"]


def _logs_of_counts(adata):
    adata.X = np.log1p(adata.X.toarray())


def _no_image(adata):
    del adata.uns["spatial"]


SECTION_ERRORS = {_nan: "NaN", _no_place: "`spatial` not found", _logs_of_counts: "raw counts", _no_image: "spatial"}


@pytest.mark.parametrize("way", ["memory", "file", "manifest", "corpus"])
@pytest.mark.parametrize("fault", SECTION_ERRORS, ids=lambda f: f.__name__)
def test_errors_name_the_section_for_every_input(way, fault, toy, model, tmp_path):
    bad = _own(toy)
    fault(bad)
    sections = [SectionInput(data=toy, name="good"), SectionInput(data=bad, name="bad one")]
    if way in ("file", "manifest"):
        bad.write_h5ad(tmp_path / "bad one.h5ad")
        sections = tmp_path / "bad one.h5ad"
    if way == "manifest":
        sections = tmp_path / "m.tsv"
        pd.DataFrame({"path": ["bad one.h5ad"]}).to_csv(sections, sep="\t", index=False)
    run = partial(train.align, sections, tmp_path / "out", model=model, config=STAGE2, **QUIET)
    if way == "corpus":
        run = partial(train.Corpus.build, sections, tmp_path / "c", images=True, **CORPUS)
    with pytest.raises((ValueError, KeyError), match=f"bad one.*{SECTION_ERRORS[fault]}"):
        run()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"path": ["a.h5ad"], "um_per_px": ["half"]}, r"m.tsv, line 2 \('a.h5ad'\): `um_per_px` must be a positive"),
        ({"path": ["a.h5ad"], "spot_um": ["-3"]}, r"`spot_um` must be a positive number, found '-3'"),
        ({"path": ["a.h5ad", "a.h5ad"]}, r"Sections must have different names, found \['a: .*a.h5ad, .*a.h5ad'\]"),
        ({"path": ["a.h5ad", ""]}, "line 3: `path` is empty"),
    ],
)
def test_faults_of_a_manifest(rows, message, toy, tmp_path):
    toy.write_h5ad(tmp_path / "a.h5ad")
    pd.DataFrame(rows).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match=message):
        train.pretrain(tmp_path / "m.tsv", tmp_path / "out", config=STAGE1, **QUIET)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", r"m\.tsv' is empty"),
        (b"\n\n", r"m\.tsv' is empty"),
        (b"path\tname\na.h5ad\tone\ttwo\n", r"m\.tsv, line 2: 3 cells, but 2 columns \(path, name\)"),
        (b"path\tname\n\n\nb.h5ad\tx\ty\n", r"m\.tsv, line 4: 3 cells"),
        (b"path\tname\tname\na.h5ad\tone\ttwo\n", r"several columns \['name'\]"),
        (b"path\tname\na.h5ad\t\xff\n", r"m\.tsv' is not a text in UTF-8"),
    ],
)
def test_manifest_that_is_not_a_table_is_named(text, message, tmp_path):
    (tmp_path / "m.tsv").write_bytes(text)
    with pytest.raises(ValueError, match=message):
        train.pretrain(tmp_path / "m.tsv", tmp_path / "out", config=STAGE1, **QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["path\tname\torgan\na.h5ad\n", "path\tname\na.h5ad\t\t\n", "\ufeffpath\n\na.h5ad\n"])
def test_short_lines_and_empty_cells_of_a_manifest(text, toy, tmp_path):
    toy.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "m.tsv").write_text(text, encoding="utf-8")
    (section,) = as_sections(tmp_path / "m.tsv")
    assert (section.name, section.organ) == ("a", "")


def test_missing_files_raise_before_anything_is_read(tmp_path):
    pd.DataFrame({"path": ["a.h5ad"]}).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    with pytest.raises(FileNotFoundError, match=r"a\.h5ad"):
        train.pretrain(tmp_path / "m.tsv", tmp_path / "out", config=STAGE1, **QUIET)
    (tmp_path / "a.h5ad").touch()
    pd.DataFrame({"path": ["a.h5ad"], "image": ["b.tif"]}).to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    with pytest.raises(FileNotFoundError, match=r"Section 'a': No image at .*b\.tif"):
        train.align(tmp_path / "m.tsv", tmp_path / "out", **QUIET)


def test_sections_that_stage_1_cannot_use(toy, tmp_path):
    few = SectionInput(data=toy[:5].copy(), name="few")
    with pytest.raises(ValueError, match=r"needs at least 9 spots .* found .'few: 5'"):
        train.pretrain([toy, few], tmp_path, config=STAGE1, **QUIET)
    blind = SectionInput(data=toy[:, :0].copy(), name="image alone")
    with pytest.warns(UserWarning, match=r"1 of the sections have no genes .*'image alone'"):
        train.pretrain([toy, blind], tmp_path, config=STAGE1 | {"epochs_cgr": 0}, **QUIET)
    with pytest.raises(ValueError, match="No section has genes"):
        train.pretrain(blind, tmp_path / "other", config=STAGE1, **QUIET)


# Nothing is left out without a word


def test_dropped_spots_are_counted_and_reported(toy, vocabulary, tmp_path):
    sparse = toy.copy()
    sparse.obsm["spatial"] = toy.obsm["spatial"].copy()
    sparse.obsm["spatial"][:40] += 1e6 * np.arange(40)[:, None]  # each alone
    section = prepare(SectionInput(data=sparse, name="s"), vocabulary, max_tokens=48)
    sampler = GroupSampler(TrainingData([section], vocabulary, 48), train.PretrainConfig())
    assert sampler.dropped() == {"s": (40, 120)}
    with pytest.warns(UserWarning, match=r"skips 40 of 120 spots.*'section 0: 40 of 120'"):
        train.pretrain(sparse, tmp_path, config=STAGE1 | {"epochs_cgr": 0}, **QUIET)
    with pytest.warns(UserWarning, match="No neighbourhood group|near each other|fewer"):
        corpus = train.Corpus.build(
            [SectionInput(data=toy, name="a"), SectionInput(data=sparse[:40].copy(), name="b")], tmp_path / "c",
            n_workers=1, max_tokens=48, images=False, progress=False,
        )  # fmt: skip
    assert corpus.table["n_groups"].tolist()[1] == 0


def test_spots_without_tokens_are_counted_and_reported(toy, model, tmp_path):
    bare = _own(toy)
    bare.X = bare.X.toarray()
    bare.X[[3, 7]] = 0
    told = r"Section 'bare': 2 of 120 spots have no counts of genes"
    with pytest.warns(UserWarning, match=told):
        train.pretrain({"bare": bare}, tmp_path / "p", config=STAGE1 | {"epochs_cgr": 0}, **QUIET)
    with pytest.warns(UserWarning, match=told):
        train.align({"bare": bare}, tmp_path / "a", model=model, config=STAGE2, **QUIET)
    with pytest.warns(UserWarning, match=told):
        train.Corpus.build({"bare": bare}, tmp_path / "c", **CORPUS)


def test_warnings_name_the_section(toy, model):
    halved = toy.copy()
    halved.X = toy.X * 0.3
    with pytest.warns(UserWarning, match=r"Section 'few': `adata.X` seems to be depth-normalised"):
        prepare(SectionInput(data=halved, name="few"), Vocabulary(model.genes), max_tokens=48, tower=model.config.image)


def test_sections_of_a_corpus_that_a_stage_cannot_use_are_named(toy, model, tmp_path):
    blind = toy[:, :0].copy()
    deaf = toy.copy()
    del deaf.uns["spatial"]
    sections, vocabulary = {"toy": toy, "blind": blind, "deaf": deaf}, Vocabulary(model.genes)
    options = CORPUS | {"size_px": model.config.image.size_px, "max_tokens": model.config.gene.max_tokens}
    corpus = train.Corpus.build(sections, tmp_path / "c", vocabulary=vocabulary, **options)
    with pytest.warns(UserWarning, match=r"Stage 1 uses only 2 of .*\['blind'\] have no neighbourhood groups"):
        train.pretrain(corpus, tmp_path / "p", config=STAGE1 | {"epochs_cgr": 0}, **QUIET)
    with pytest.warns(UserWarning, match=r"Stage 2 uses only 2 of .*\['deaf'\] have no tiles"):
        pairs_on_disk(corpus, vocabulary, model.config)


def test_pairs_are_permuted_once_an_epoch(toy, vocabulary, monkeypatch):
    section = prepare(SectionInput(data=toy, name="s"), vocabulary, max_tokens=48, tower=models.ImageConfig())
    sampler = PairSampler(TrainingData([section], vocabulary, 48), train.AlignConfig.of(STAGE2 | {"epochs": 2}))
    drawn = []
    draw = PairSampler._draw_order
    monkeypatch.setattr(PairSampler, "_draw_order", lambda self, epoch: drawn.append(epoch) or draw(self, epoch))
    sampler = PairSampler(TrainingData([section], vocabulary, 48), train.AlignConfig.of(STAGE2 | {"epochs": 2}))
    rows = np.concatenate([sampler._draw(step)[0][:12] for step in range(sampler.steps)])
    assert drawn == [0, 1]
    assert sorted(rows[:120]) == sorted(rows[120:]) == list(range(120))


def test_too_long_warm_up_warns(toy, tmp_path):
    with pytest.raises(ValueError, match=r"`warmup_steps` is 500, the run has \d+ steps"):
        train.pretrain(toy, tmp_path, config=STAGE1 | {"warmup_steps": 500}, **QUIET)
    with pytest.warns(UserWarning, match=r"warm-up takes 7 of the run's \d+ steps"):
        train.pretrain(toy, tmp_path / "b", config=STAGE1 | {"warmup_steps": 7}, **QUIET)


# A corpus


def _dense(adata):
    adata.X[5] = np.roll(adata.X[5], 1)


def _indices(adata):
    adata.X.indices[:] = np.roll(adata.X.indices, 1)
    adata.X.has_sorted_indices = False


def _one_pixel(adata):
    next(iter(adata.uns["spatial"]["toy"]["images"].values()))[0, 0, 0] ^= 1


def _place(adata):
    adata.obsm["spatial"][5, 0] += 1


def _gene(adata):
    names = adata.var_names.to_numpy().copy()
    names[60:62] = names[60:62][::-1]
    adata.var_names = names


@pytest.mark.parametrize("change", [_dense, _indices, _one_pixel, _place, _gene], ids=lambda f: f.__name__)
def test_changed_parts_of_a_corpus_are_rewritten(change, toy, tmp_path):
    own = _own(toy)
    if change is _dense:
        own.X = own.X.toarray()
    first = train.Corpus.build(own, tmp_path, **CORPUS).section("section 0").record["source"]
    assert train.Corpus.build(_own(own), tmp_path, **CORPUS).section("section 0").record["source"] == first
    change(own)
    assert train.Corpus.build(own, tmp_path, **CORPUS).section("section 0").record["source"] != first


def test_a_file_of_the_same_size_and_time_is_noticed(toy, tmp_path):
    other = datasets.toy(n_spots=120, rng=0)
    for name, adata in (("a", toy), ("b", other)):
        adata.obs["x"] = 1.0 if name == "a" else 2.0
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    del toy.obs["x"]
    path = tmp_path / "a.h5ad"
    first = train.Corpus.build(path, tmp_path / "c", **CORPUS).section("a").record["source"]
    state = path.stat()
    path.write_bytes((tmp_path / "b.h5ad").read_bytes())
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size
    assert train.Corpus.build(path, tmp_path / "c", **CORPUS).section("a").record["source"] != first


def test_a_vocabulary_made_by_a_run_is_that_of_its_sections(toy, pretrained):
    assert Vocabulary(pretrained.genes) == Vocabulary.from_sections([toy])
    assert sys.modules["stampy.train"] is train
