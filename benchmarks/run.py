"""Run benchmarks, each in its own process: ``python benchmarks/run.py [part of a name ...]``; without a name, all.

Benchmarks are functions in the conventions of asv: ``time_*`` (best of several runs after a warm-up), ``peakmem_*`` (of
the whole process) and ``track_*`` (the returned value, in its ``unit``), with argument values in ``params``. A file
with a ``main`` prints its own table instead.
"""

import importlib
import itertools
import multiprocessing
import resource
import subprocess
import sys
import time
from pathlib import Path

FILES = [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.stem != "run"]
KINDS = {"time_": "s", "peakmem_": "MB", "track_": ""}


def measure(module, name, arguments):
    function = getattr(importlib.import_module(module), name)
    value = function(*arguments)  # compiles and fills caches
    if name.startswith("peakmem_"):
        return peak_mb()
    return min(seconds(function, arguments)) if name.startswith("time_") else value


def peak_mb():
    """Peak memory of this process in MB; `getrusage` on Linux reports at least the peak of the parent process."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def seconds(function, arguments, *, budget=2.0):
    while budget > 0:
        start = time.perf_counter()
        function(*arguments)
        took = time.perf_counter() - start
        budget -= max(took, 0.2)
        yield took


def has_main(path):
    return "\ndef main(" in path.read_text()


def benchmarks(patterns):
    for path in FILES:
        module = None if has_main(path) else importlib.import_module(path.stem)
        for name, function in vars(module).items() if module else ():
            full = f"{path.stem}.{name}"
            if name.startswith(tuple(KINDS)) and any(p in full for p in patterns or [""]):
                params = getattr(function, "params", None)
                params = [] if params is None else params if isinstance(params[0], list | tuple) else [params]
                yield path.stem, name, list(itertools.product(*params)), getattr(function, "unit", None)


if __name__ == "__main__":
    for path in FILES:
        if has_main(path) and any(p in path.stem for p in sys.argv[1:] or [""]):
            print(f"{path.stem}:", flush=True)
            subprocess.run([sys.executable, path], check=True)
    for module, name, grid, unit in benchmarks(sys.argv[1:]):
        unit = unit or next(u for kind, u in KINDS.items() if name.startswith(kind))
        for arguments in grid:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                value = pool.apply(measure, (module, name, arguments))
            print(f"{module}.{name}({', '.join(map(str, arguments))})  {value:.4g} {unit}", flush=True)
