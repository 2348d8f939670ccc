"""Commands that continue an interrupted run: what they say when stopped, and what they leave."""

import json
import os
import signal

import pytest

from stampy import datasets
from stampy.cli.main import main
from stampy.cli.stopping import Stopped, explained_stop
from stampy.train._corpus import build as _build


def status_of(*argv):
    try:
        return main([str(a) for a in argv])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def sections(tmp_path):
    paths = [tmp_path / f"{name}.h5ad" for name in "ab"]
    for i, path in enumerate(paths):
        datasets.toy(n_spots=60, n_genes=60, image=False, rng=i).write_h5ad(path)
    return paths


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_build_says_what_is_complete_and_continues(sections, tmp_path, monkeypatch, capsys, number):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    command = "corpus", "build", *sections, "--workers", 1, "--quiet", "--out"
    assert status_of(*command, tmp_path / "whole") == 0

    def write(section, *rest):
        if section.name == "b":
            signal.raise_signal(number)
        return _write(section, *rest)

    _write = _build.write_section
    with monkeypatch.context() as patch:
        patch.setattr(_build, "write_section", write)
        assert status_of(*command, tmp_path / "corpus") == 128 + number
    said = capsys.readouterr().err
    assert f"stopped by {number.name}: 1 section is complete in {str(tmp_path / 'corpus')!r}" in said
    assert "Run the same command again to continue" in said
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert status_of(*command, tmp_path / "corpus") == 0
    assert files_of(tmp_path / "corpus").keys() == files_of(tmp_path / "whole").keys()
    manifests = [json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("corpus", "whole")]
    assert manifests[0]["digest"] == manifests[1]["digest"]


def test_a_stop_ends_worker_processes_and_sets_the_handler_back(monkeypatch, capfd):
    ended = []

    class Worker:
        def terminate(self):
            ended.append(self)

    monkeypatch.setattr("multiprocessing.active_children", lambda: [Worker()])
    with pytest.raises(Stopped) as stopped, explained_stop(lambda: "2 are complete"):
        signal.raise_signal(signal.SIGTERM)
    assert stopped.value.code == 143
    assert len(ended) == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert "stopped by SIGTERM: 2 are complete" in capfd.readouterr().err


def test_handlers_of_others_are_left_alone():
    received = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        with explained_stop(lambda: "nothing"):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == [signal.SIGTERM]


@pytest.mark.parametrize("mode", ["raise", "skip"])
@pytest.mark.parametrize("there", [False, True])
def test_a_build_without_a_usable_section_leaves_nothing(tmp_path, there, mode):
    (tmp_path / "bad.h5ad").write_bytes(b"not a section")
    out = tmp_path / "corpus"
    if there:
        out.mkdir()
    assert status_of("corpus", "build", tmp_path / "bad.h5ad", "--out", out, "--workers", 1, "--on-error", mode) == 1
    assert out.exists() == there
    assert not there or not list(out.iterdir())


def test_a_failed_build_keeps_complete_sections(sections, tmp_path):
    (tmp_path / "c.h5ad").write_bytes(b"not a section")
    genes = tmp_path / "genes.tsv"
    from stampy.pp import Vocabulary

    Vocabulary.from_sections([datasets.toy(n_spots=60, n_genes=60, image=False)], min_spots=1).save(genes)
    out = tmp_path / "corpus"
    command = "corpus", "build", *sections, tmp_path / "c.h5ad", "--out", out, "--vocabulary", genes, "--workers", 1
    assert status_of(*command) == 1
    assert sorted(p.name for p in (out / "sections").iterdir() if p.is_dir()) == ["a", "b"]
