"""Files and folders are written atomically, also if the process is killed."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from stampy import _checks, _files


def run(code, *arguments, **options):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], **options)


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from stampy import _files

    step, replace, path = sys.argv[1], os.replace, Path(sys.argv[2])
    if step.startswith("rename"):
        _files._exchange = lambda a, b: False  # a system that cannot exchange two folders
    count = 0

    def counted(a, b):
        global count
        replace(a, b)
        count += 1
        if step == f"rename {count}":
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = counted
    with _files.atomic_folder(path) as folder:
        folder.mkdir()
        (folder / "text").write_text("new")
        if step == "writing":
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("step", "found"), [("writing", "old"), ("rename 1", "new"), ("rename 2", "new")])
def test_a_kill_at_any_step_leaves_a_folder_under_its_name(step, found, tmp_path):
    path = tmp_path / "store.zarr"
    path.mkdir()
    (path / "text").write_text("old")
    assert run(KILLED, step, path).returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == (1 if step == "rename 1" else 2)  # the store, what the killed one left
    _files.recover(path)
    assert (path / "text").read_text() == found
    assert list(tmp_path.iterdir()) == [path]


def test_exchange_swaps_two_folders(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a, b):
        path.mkdir()
        (path / path.name).touch()
    if not _files._exchange(a, b):
        pytest.skip("this file system cannot exchange two folders")
    assert (a / "b").exists()
    assert (b / "a").exists()


@pytest.mark.parametrize("can", [True, False])
def test_a_folder_is_replaced(can, tmp_path, monkeypatch):
    if not can:
        monkeypatch.setattr(_files, "_exchange", lambda a, b: False)
    path = tmp_path / "store"
    for text in ("first", "second"):
        with _files.atomic_folder(path) as folder:
            folder.mkdir()
            (folder / text).touch()
        assert [p.name for p in path.iterdir()] == [text]
    with pytest.raises(FileNotFoundError), _files.atomic_folder(path) as folder:
        (folder / "missing").touch()
    assert [p.name for p in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


WRITING = """
    import sys, time
    from stampy import _files
    with _files.atomic(sys.argv[1]) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""


def test_leftovers_of_killed_processes_are_removed_and_files_of_live_ones_kept(tmp_path):
    path = tmp_path / "a.h5ad"
    command = [sys.executable, "-c", textwrap.dedent(WRITING), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as live:
        assert live.stdout.readline() == "writing\n"
        _files.recover(path)
        (temporary,) = tmp_path.iterdir()
        with _files.atomic(path) as other:
            other.write_text("whole")
        assert {p.name for p in tmp_path.iterdir()} == {path.name, temporary.name}
        live.kill()
        live.wait()
    _files.recover(tmp_path / "a")  # of another file's leftovers nothing is touched
    assert temporary.exists()
    _files.recover(path)
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_another_machine_are_kept(tmp_path):
    path = tmp_path / "a.h5ad"
    stem, here = _files._stem(path), _files._machine()
    (tmp_path / f"{stem}{here}-1-12345-x.h5ad").touch()  # its number has another process by now
    (tmp_path / f"{stem}00000000-1-12345-x.h5ad").touch()
    (tmp_path / f"{stem}x.h5ad").touch()
    _files.recover(path)
    assert len(list(tmp_path.iterdir())) == 2


def test_link_is_replaced_and_its_target_kept(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("precious")
    link.symlink_to(target)
    with _files.atomic(link) as temporary:
        temporary.write_text("new")
    assert not link.is_symlink()
    assert target.read_text() == "precious"


def test_linked_folder_is_replaced_and_its_target_kept(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "precious").touch()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with _files.atomic_folder(tmp_path / "link") as folder:
        folder.mkdir()
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "target" / "precious").exists()


def test_names_up_to_the_longest_that_file_systems_take(tmp_path):
    for name in ("x" * 250 + ".h5ad", "é" * 125 + ".h5ad"):
        with _files.atomic(tmp_path / name) as temporary:
            temporary.touch()
        assert (tmp_path / name).exists()
    with pytest.raises(ValueError, match="256 bytes"):
        _checks.replaceable(tmp_path / "new" / ("x" * 251 + ".h5ad"), overwrite=False)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_link_as_output(target, tmp_path):
    (tmp_path / "there").touch()
    link = tmp_path / "out.h5ad"
    link.symlink_to(tmp_path / target)
    with pytest.raises(FileExistsError, match="a symbolic link to"):
        _checks.replaceable(link, overwrite=False)
    with pytest.warns(UserWarning, match="the link is replaced"):
        _checks.replaceable(link, overwrite=True)


@pytest.mark.parametrize("damage", ["cut", "flipped", "seal"])
def test_checksum_detects_damage(damage, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(os.urandom(3_000_000))
    assert _files.sealed(path) is None
    _files.seal(path)
    assert _files.sealed(path) is True
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[1_000_000]
    else:
        content[-3 if damage == "seal" else 2_000_000] ^= 1
    path.write_bytes(content)
    assert _files.sealed(path) is False
    Path(path).write_bytes(b"")
    assert _files.sealed(path) is None
