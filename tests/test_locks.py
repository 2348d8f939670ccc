"""One process per folder, and hashes of all inputs."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from stampy import _files, _locks
from stampy._section.image.levels import ArrayLevel
from stampy._section.image.slide_image import SlideImage

HOLDER = """
import sys, time
from pathlib import Path
from stampy._locks import FolderLock
lock = FolderLock(Path(sys.argv[1]), what="run")
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_dies_with_its_process(number, tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match=rf"process {holder.pid} on .*would damage the run"):
            _locks.FolderLock(tmp_path, what="run")
        holder.send_signal(number)
        holder.wait()
    with _locks.FolderLock(tmp_path, what="run"):
        assert f"{os.getpid()} on" in (tmp_path / ".stampy.lock").read_text()


def test_error_names_the_other_machine(tmp_path):
    """With locks local to a machine, only the name in the file shows a process on another machine."""
    (tmp_path / ".stampy.lock").write_text("123 on elsewhere\n")
    with pytest.warns(UserWarning, match="still marked by process 123 on elsewhere"):
        _locks.FolderLock(tmp_path, what="run").close()
    assert (tmp_path / ".stampy.lock").read_text() == ""
    _locks.FolderLock(tmp_path, what="run").close()  # without a warning


def test_file_system_without_locks_warns(tmp_path, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="cannot lock files"), _locks.FolderLock(tmp_path, what="run"):
        pass


def test_leftovers_of_killed_processes_are_removed(tmp_path):
    for name in (".checkpoint-1.ckpt.x_1.ckpt", ".metrics.jsonl.x", ".other", "checkpoint-1.ckpt", ".stampy.lock"):
        (tmp_path / name).touch()
    _locks.remove_leftovers(tmp_path, ("checkpoint-", "metrics."))
    assert {p.name for p in tmp_path.iterdir()} == {".other", "checkpoint-1.ckpt", ".stampy.lock"}


def test_digest_of_a_large_file_is_from_size_time_and_samples(tmp_path, monkeypatch):
    path = tmp_path / "large"
    path.write_bytes(bytes(10_000))
    whole = _files.digest_of_file(path)
    os.utime(path, ns=(1, 1))
    assert _files.digest_of_file(path) == whole  # the content alone
    monkeypatch.setattr(_files, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(_files, "_PART_BYTES", 100)
    found = {whole, _files.digest_of_file(path)}
    os.utime(path, ns=(2, 2))
    found.add(_files.digest_of_file(path))
    path.write_bytes(bytes(9_999) + b"x")
    os.utime(path, ns=(2, 2))
    found.add(_files.digest_of_file(path))
    assert len(found) == 4
    (tmp_path / "more").touch()
    assert _files.digest_of_path(tmp_path) != _files.digest_of_path(path)


def test_one_pixel_anywhere_changes_the_digest_of_an_image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    base = SlideImage.from_array(pixels).digest
    for y, x in ((0, 0), (699, 899), (350, 1)):
        changed = pixels.copy()
        changed[y, x, 1] ^= 1
        assert SlideImage.from_array(changed).digest != base
    assert SlideImage.from_array(pixels.copy()).digest == base
    Image.fromarray(pixels).save(tmp_path / "a.png")
    on_disk = SlideImage.open(tmp_path / "a.png").digest
    changed = pixels.copy()
    changed[9, 9] ^= 1
    Image.fromarray(changed).save(tmp_path / "a.png")
    assert SlideImage.open(tmp_path / "a.png").digest != on_disk


def test_a_large_image_on_disk_is_hashed_in_bands(monkeypatch):
    class OnDisk:
        def __init__(self, array):
            self.array, self.shape, self.dtype = array, array.shape, array.dtype

        def __getitem__(self, window):
            return self.array[window]

    monkeypatch.setattr("stampy._section.image.slide_image._WHOLE_PX", 1000)
    pixels = np.zeros((6000, 30, 3), dtype=np.uint8)

    def digest_of(finest):
        return SlideImage([ArrayLevel(OnDisk(finest), "yxc"), ArrayLevel(OnDisk(pixels[::200]), "yxc")]).digest

    changed = pixels.copy()
    changed[:64] = 1
    assert digest_of(changed) != digest_of(pixels)
