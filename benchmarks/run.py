"""Run benchmarks, each in its own process: ``python benchmarks/run.py [part of a name ...]``; without a name, all.

Benchmarks are functions as asv knows them: ``time_*`` (best of several runs after a first), ``peakmem_*`` (of the whole
process) and ``track_*`` (what it returns, in its ``unit``), with values for their arguments in ``params``. A file that
has classes instead prints its own table: ``python benchmarks/tiles.py``.
"""

import importlib
import itertools
import multiprocessing
import resource
import sys
import time
from pathlib import Path

KINDS = {"time_": "s", "peakmem_": "MB", "track_": ""}


def measure(module, name, arguments):
    function = getattr(importlib.import_module(module), name)
    value = function(*arguments)  # compiles, fills caches
    if name.startswith("peakmem_"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
    return min(seconds(function, arguments)) if name.startswith("time_") else value


def seconds(function, arguments, *, budget=2.0):
    while budget > 0:
        start = time.perf_counter()
        function(*arguments)
        took = time.perf_counter() - start
        budget -= max(took, 0.2)
        yield took


def benchmarks(patterns):
    for path in sorted(Path(__file__).parent.glob("*.py")):
        module = importlib.import_module(path.stem) if path.stem != "run" else None
        for name, function in vars(module).items() if module else ():
            full = f"{path.stem}.{name}"
            if name.startswith(tuple(KINDS)) and any(p in full for p in patterns or [""]):
                params = getattr(function, "params", None)
                params = [] if params is None else params if isinstance(params[0], list | tuple) else [params]
                yield path.stem, name, list(itertools.product(*params)), getattr(function, "unit", None)


if __name__ == "__main__":
    for module, name, grid, unit in benchmarks(sys.argv[1:]):
        unit = unit or next(u for kind, u in KINDS.items() if name.startswith(kind))
        for arguments in grid:
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                value = pool.apply(measure, (module, name, arguments))
            print(f"{module}.{name}({', '.join(map(str, arguments))})  {value:.4g} {unit}", flush=True)
