"""Jobs in processes: what SIGTERM leaves, and the number of threads."""

import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from stampy import _workers

PROGRAM = """
import signal, sys, time
from functools import partial
from pathlib import Path
from stampy._workers import workers

def job(folder, i):
    if i < 2:
        return i
    Path(folder, "started").touch()
    time.sleep(600)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also if the test runner ignores Ctrl-C
    folder, n_workers = sys.argv[1], int(sys.argv[2])
    found = []
    try:
        with workers(None, n_workers, False) as run:
            for i in run([partial(job, folder, i) for i in range(8)], "sections"):
                found.append(i)
    finally:
        print(sorted(found), flush=True)
"""


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -2)])
def test_a_signal_ends_the_run_at_once(tmp_path, n_workers, number, status):
    """The caller can still record its results, no process is left, and nothing else is printed."""
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, tmp_path / "program.py", tmp_path, str(n_workers)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "started").exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2)  # the first results arrive
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == status, err
    assert out == "[0, 1]\n"
    if number == signal.SIGTERM:
        assert err.strip() == "stampy: SIGTERM: the run ends; repeat it to continue"
    assert "leaked" not in err


def test_a_handler_of_the_user_stays():
    seen = []
    before = signal.signal(signal.SIGTERM, lambda *about: seen.append(about))
    try:
        with _workers.workers(None, 1, False):
            signal.raise_signal(signal.SIGTERM)
        assert len(seen) == 1
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, before)
    finally:
        signal.signal(signal.SIGTERM, before)


def test_threads_are_limited_in_new_processes_alone(monkeypatch):
    for name in _workers.THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    with _workers.workers(None, 2, False, n_threads=3) as run:
        found = sorted(run([partial(os.getenv, name) for name in _workers.THREADS], "jobs"))
    assert found == ["3", "3", "7"]
    assert "OMP_NUM_THREADS" not in os.environ
    assert os.environ["MKL_NUM_THREADS"] == "7"
