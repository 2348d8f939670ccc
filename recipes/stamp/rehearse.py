"""Steps of rehearse.sh that are not commands of stampy: `python rehearse.py generate | killed | whole | ... OUT`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SEED = int(os.environ.get("REHEARSAL_SEED", "0"))
# Six tissues: the first four differ so much in colour that k-means finds nearly all of them in a random ViT. 1,200
# pairs in stage 2: with 450, the encoders memorised single spots soon after they told the tissues apart.
N_DOMAINS, N_SPOTS, N_TRAINED = 6, 200, 6
DATA = "planted sections, kept out"
KEPT_OUT = (f"TOY{N_TRAINED + 1}", "TENX13")  # of the HEST-like folder
TABLES = {"dlpfc": 3, "hbc": 1, "her2": 4, "psc": 2, "hhk": 2, "tcga-luad": 6}  # sections, or slides
# (system before, system after, task, metric, variant): each must be higher after than before, and than chance
STEPS = {
    "stage 1": [
        ("genes, untrained", "genes, after stage 1", "domains", "ari", "kmeans"),
        ("genes, untrained", "genes, after stage 1", "probe", "balanced_accuracy", "logistic"),
    ],
    "stage 2": [
        ("genes, after stage 1", "genes, after stage 2", "domains", "ari", "kmeans"),
        ("genes, after stage 1", "genes, after stage 2", "probe", "balanced_accuracy", "logistic"),
        ("image, before stage 2", "image, after stage 2", "domains", "ari", "kmeans"),
        ("image, before stage 2", "image, after stage 2", "probe", "balanced_accuracy", "logistic"),
        ("both, before stage 2", "both, after stage 2", "domains", "ari", "kmeans"),
        ("both, before stage 2", "both, after stage 2", "retrieve", "recall@10", "image to gene"),
        ("both, before stage 2", "both, after stage 2", "retrieve", "recall@10", "gene to image"),
    ],
}


def generate(out: Path) -> None:
    """Write the folders, and the held-out sections with their ground truth."""
    from stampy import datasets

    # The same seed gives the same domains and genes in both folders. Toy sections are drawn one after the other, so the
    # three sections of stage 1 differ from the last two, which are used for evaluation.
    shared = {"n_domains": N_DOMAINS, "rng": SEED}
    datasets.toy_spavis(out / "spavis", n_spots=300, n_sections=3, n_val=0, n_positions=64, **shared)
    sections = datasets.toy_hest(out / "hest", n_spots=N_SPOTS, n_sections=N_TRAINED + 1, **shared)
    (out / "truth").mkdir()
    for section, name in zip(sections[-2:], KEPT_OUT, strict=True):
        section.write_h5ad(out / "truth" / f"{name}.h5ad")


def killed(name: str, steps: str, run: Path, command: list[str]) -> None:
    """Start a training run, and kill it with all its processes after a number of steps."""
    log = run / "metrics.jsonl"
    process = subprocess.Popen(command, start_new_session=True)
    while not log.is_file() or len(log.read_text().splitlines()) < int(steps):
        if process.poll() is not None:
            raise SystemExit(f"The run ended by itself with status {process.returncode} before it could be killed.")
        time.sleep(0.2)
    os.killpg(process.pid, getattr(signal, f"SIG{name}"))
    status = process.wait(timeout=300)
    if status == 0 or (run / "model").exists():
        raise SystemExit(f"The run was to be killed by SIG{name}, but it went to its end.")
    print(f"killed by SIG{name} after step {len(log.read_text().splitlines())}: status {status}")


def whole(run: Path) -> None:
    """Check that every step of a resumed run was logged, and that there is a model."""
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    if sorted(set(steps)) != list(range(max(steps) + 1)) or not (run / "model").is_dir():
        raise SystemExit(f"{run} is no whole run: {len(steps)} steps are logged, the last is {max(steps)}.")
    print(f"{len(set(steps))} steps, none missing; model: {run / 'model'}")


def start(out: Path) -> None:
    """Save the models before each stage, and the config that compares them on the held-out sections."""
    import torch

    from stampy import models

    trained = json.loads((out / "both" / "data.json").read_text())["spots"]
    if len(trained) != N_TRAINED or set(KEPT_OUT) & set(trained):
        raise SystemExit(f"Stage 2 was to see {N_TRAINED} sections without {KEPT_OUT}, but saw {sorted(trained)}.")
    after = models.load(out / "both" / "model")
    genes = models.load(out / "genes" / "model")
    torch.manual_seed(SEED)
    untrained = models.Stamp(after.config)
    untrained.genes = after.genes
    models.save(untrained, out / "untrained")
    untrained.load_state_dict(genes.state_dict(), strict=False)  # genes of stage 1, images untrained
    models.save(untrained, out / "before-2")
    systems = [
        ("genes, untrained", "untrained", "gene"), ("genes, after stage 1", "genes/model", "gene"),
        ("genes, after stage 2", "both/model", "gene"), ("image, before stage 2", "before-2", "image"),
        ("image, after stage 2", "both/model", "image"), ("both, before stage 2", "before-2", "fused"),
        ("both, after stage 2", "both/model", "fused"),
    ]  # fmt: skip
    sections = [{"source": f"{name}.h5ad", "name": name} for name in KEPT_OUT]
    known = {"seen": {DATA: False}}  # for the tables: no model was trained on it
    config = {
        "datasets": [{"name": DATA, "sections": sections, "labels": "domain"}],
        "systems": [{"name": n, "model": str(out / path), "modality": kind, **known} for n, path, kind in systems],
        "tasks": ["probe", {"task": "domains", "methods": ["kmeans"]}, "retrieve"],
        "seeds": [0, 1, 2],
    }
    (out / "truth" / "planted.json").write_text(json.dumps(config, indent=1))


def tables(out: Path) -> None:
    """Every table of the paper on a generated folder, and the loss curves of both stages."""
    import matplotlib.pyplot as plt

    from stampy import bench, pl
    from stampy.datasets._toy.toy_paper_folder import toy_folder

    systems = {"tcga-luad": []}
    for table, n in TABLES.items():
        folder = toy_folder(table, out / "tables" / table, n_sections=n, n_spots=60)
        chosen = systems.get(table, ["pixels"] if table in ("her2", "psc", "hhk") else ["PCA", "pixels"])
        bench.run(table, out / "results" / table, folder=folder, models=[str(out / "both" / "model")], systems=chosen,
                  seeds=[0], device="cpu", show_progress_bar=False)  # fmt: skip
        print(f"{table}: done", flush=True)
    for stage, run in (("Stage 1", "genes"), ("Stage 2", "both")):
        axes = pl.training(out / run)
        figure = (axes[0] if isinstance(axes, list) else axes).figure
        figure.savefig(out / "results" / f"{stage}, loss by step.png", dpi=110)
        plt.close(figure)


def told(table, step) -> tuple[bool, str]:
    """Whether a result is above the previous one and above chance, and a line about it."""
    before, after, *what = step
    first, last = table.loc[(before, *what)], table.loc[(after, *what)]
    values = f"{before} {first['value']:.3f} -> {after} {last['value']:.3f}, chance {last['chance']:.3f}"
    return last["value"] > max(first["value"], last["chance"]), f"{what[0]}, {what[1]}: {values}"


def check(out: Path) -> None:
    """Fail unless each stage improved the recovery of the ground truth, and every table has results."""
    from stampy import bench

    table = bench.summary(bench.read_results(out / "results" / "00-planted-truth"))
    table = table[table["section"] == "all"].set_index(["system", "task", "metric", "variant"])
    failed = []
    for stage, steps in STEPS.items():
        for step in steps:
            better, line = told(table, step)
            print(f"{stage}: {line}{'' if better else '  NOT BETTER'}")
            failed += [] if better else [f"{stage}, {', '.join(step[1:4])}"]
    empty = [name for name in TABLES if not (bench.read_results(out / "results" / name)["status"] == "ok").any()]
    if failed or empty:
        raise SystemExit(f"Not better after than before: {failed}. Tables without a figure: {empty}.")


if __name__ == "__main__":
    what, *given = sys.argv[1:]
    if what == "killed":
        killed(given[0], given[1], Path(given[2]), given[4:])
    else:
        {"generate": generate, "whole": whole, "start": start, "tables": tables, "check": check}[what](Path(given[0]))
