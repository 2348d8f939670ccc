"""``python -m stampy`` and the entry point of the command line."""

import gc
import os
import sys
from collections.abc import MutableMapping, Sequence

from stampy.cli import main as command_line

__all__ = ["main"]

# Idle threads of OpenMP and OpenBLAS spin for milliseconds by default. On a crowded machine, or with several pools
# (torch, scikit-learn, numpy), they take cores from threads that work: `stampy demo` took 38 s of CPU time, not 11 s.
IDLE_THREADS = {"OMP_WAIT_POLICY": "passive", "OPENBLAS_THREAD_TIMEOUT": "16"}  # 2^16 cycles, then sleep
TRAINING = ("pretrain", "align")  # was not measured


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command as `stampy.cli.main.main`, in a process that ends with it."""
    _let_idle_threads_sleep(sys.argv[1:] if argv is None else argv, os.environ)
    status = command_line.main(argv)
    gc.freeze()  # skip the final garbage collection, which takes up to a second after torch and matplotlib
    return status


def _let_idle_threads_sleep(argv: Sequence[str], environment: MutableMapping[str, str]) -> None:
    """Set how idle threads wait, unless the user did, before the libraries that read it are loaded."""
    command = next((word for word in argv if not word.startswith("-")), None)
    if command in TRAINING:
        return
    for name, value in IDLE_THREADS.items():
        environment.setdefault(name, value)


if __name__ == "__main__":
    sys.exit(main())
