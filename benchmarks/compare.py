"""Time of a comparison of ten sections, six systems and four tasks from cached embeddings.

    python benchmarks/compare.py [SECTIONS [SPOTS]]

Sections are toy sections of 3,600 spots (a Visium slide), embeddings are random numbers of the systems' usual widths,
with one seed. The time covers everything after embedding (digests, tasks, tables), in seconds on one core, for each
task and for all.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import stampy
from stampy.bench import _embeddings, _run

WIDTHS = {"pca": 50, "pca-smoothed": 50, "pixels": 192, "uni": 1024, "stamp-g": 512, "stampy-mini": 256}
TASKS = ["probe", {"task": "domains", "methods": ["kmeans", "leiden"]}, "retrieve", "expression"]
SECTIONS = 10


def config(n_sections):
    sections = [f"toy:{i}" for i in range(n_sections)]
    fused = {"name": "both", "model": "stampy-mini", "modality": "fused"}
    systems = [*(name for name in WIDTHS if name != "stampy-mini"), fused]
    return {"datasets": [{"name": "ten", "sections": sections, "labels": "domain"}], "systems": systems,
            "tasks": TASKS, "seeds": [0]}  # fmt: skip


def fake_embedding(section, system):
    """Noise around a centre per domain, so that clustering and probes find structure."""
    rng = np.random.default_rng(len(system.name))
    codes = section.adata.obs["domain"].cat.codes.to_numpy()

    def draw(width):
        return (rng.normal(size=(4, width))[codes] + rng.normal(size=(len(codes), width)) * 2).astype(np.float32)

    if system.modality == "fused":
        gene, image = draw(128), draw(128)
        return _embeddings.Embedded({"": np.hstack([gene, image]), "gene": gene, "image": image}, "fused")
    kind = "gene" if system.model in ("pca", "pca-smoothed", "stamp-g") else "image"
    values = draw(WIDTHS[system.model])
    return _embeddings.Embedded({"": values, kind: values}, kind)


def track_tasks(n_sections=SECTIONS, n_spots=3600):
    """Seconds of each task over all sections and systems, and of the whole run."""
    spent = dict.fromkeys(_run.RUNNERS, 0.0)

    def timed(name, runner):
        def run(case, seed):
            start = time.process_time()
            scores = list(runner(case, seed))
            spent[name] += time.process_time() - start
            return scores

        return run

    made = {}
    toy, runners, embedded = stampy.datasets.toy, dict(_run.RUNNERS), _run.Cache.embedded
    stampy.datasets.toy = lambda rng=0: made.setdefault(rng, toy(n_spots=n_spots, rng=rng))
    _run.RUNNERS.update({name: timed(name, runner) for name, runner in runners.items()})
    _run.Cache.embedded = lambda self, section, system: fake_embedding(section, system)
    try:
        for i in range(n_sections):
            stampy.datasets.toy(rng=i)
        with tempfile.TemporaryDirectory() as folder:
            start = time.process_time()
            results = stampy.bench.run(config(n_sections), Path(folder), show_progress_bar=False)
            stampy.bench.to_markdown(results)
            whole = time.process_time() - start
    finally:
        stampy.datasets.toy, _run.Cache.embedded = toy, embedded
        _run.RUNNERS.update(runners)
    return {**{k: v for k, v in spent.items() if v}, "whole": whole}


def main():
    given = [int(argument) for argument in sys.argv[1:]]
    n_sections, n_spots = [*given, *(SECTIONS, 3600)[len(given) :]]
    print(f"{n_sections} sections of {n_spots} spots\n\n| task | s |\n|---|---|")
    for name, seconds in track_tasks(n_sections, n_spots).items():
        print(f"| {name} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
