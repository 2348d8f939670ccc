"""What the runs of `sweep.py` reached, beside what can be reached on the same sections, as rows of CSV.

    python recipes/planted/table.py curve.jsonl  --out recipes/planted/sweep.csv
    python recipes/planted/table.py niches.jsonl --out recipes/planted/niches.csv

Of each run, the step is chosen on the choosing sections (lowest loss at hidden genes), and its loss on the reported
sections is given. Beside it, on the reported sections: the best possible loss, in-section frequency, and a linear model
of the visible genes that is fitted to the training spots of the run. Of niches, also what linear features tell of
domains: principal components, and the axes of neighbours (the start of ``start="spectral"``).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from curve import linear_model, loss_of
from scipy import sparse
from sweep import niches, world_of

from stampy.datasets._toy.planted import PlantedSpots, Programmes, allowed_loss, hidden_genes
from stampy.pp._linear_encoder import SpotGenes, leading_axes, neighbor_graph

MOST = 40_000  # spots of which linear features are fitted


def chosen(line: dict) -> dict[str, float]:
    """The step with the lowest loss on the choosing sections, and the losses there and at the end."""
    points = line["curve"]
    best = min(points, key=lambda point: point["choosing_masked"])
    return {
        "run_steps": points[-1]["step"], "seconds": points[-1]["s"], "step": best["step"],
        "masked": best["reported_masked"], "masked_unseen": best["reported_masked_unseen"],
        "in_training": best["train_igr"], "masked_at_end": points[-1]["reported_masked"],
        "in_training_at_end": points[-1]["train_igr"],
    }  # fmt: skip


def known(
    reported: list[PlantedSpots], training: list[PlantedSpots], programmes: Programmes, seed: int
) -> dict[str, float]:
    """Means over the reported sections of losses at the genes that `sweep.py` hides, of guesses without a network."""
    predicted = linear_model(np.concatenate([s.counts > 0 for s in training]), seed)
    rows = []
    for section in reported:
        shown = section.counts > 0
        hidden = hidden_genes(shown)
        often = np.log(np.tile(np.maximum(shown.mean(axis=0), 1e-6), (len(shown), 1)))
        rows.append({
            "frequency": loss_of(often, hidden),
            "frequency_unseen": loss_of(np.where(shown & ~hidden, -np.inf, often), hidden),
            "linear": loss_of(predicted(shown & ~hidden), hidden),
            "best_possible": allowed_loss(programmes, shown),
        })  # fmt: skip
    return pd.DataFrame(rows).mean().to_dict()


def linear_features(reported: list[PlantedSpots], training: list[PlantedSpots], seed: int) -> dict[str, float]:
    """`niches` of the genes themselves, of principal components and of the axes of neighbours."""
    fitted = training[: MOST // len(training[0].counts)]
    shown = [(s.counts > 0).astype(np.float64) for s in reported]
    whole = np.concatenate([s.counts > 0 for s in fitted]).astype(np.float64)
    parts = [SpotGenes(sparse.csr_matrix((s.counts > 0).astype(np.float32)), neighbor_graph(s.xy)) for s in fitted]
    components = {
        "genes": np.eye(whole.shape[1]),
        "pca": np.linalg.eigh(np.cov(whole.T))[1][:, :-17:-1],
        "axes": leading_axes(parts, 16, np.random.default_rng(seed)),
    }
    return {f"{key}_{name}": value for name, axes in components.items()
            for key, value in niches([x @ axes for x in shown], reported).items()}  # fmt: skip


def rows_of(lines: list[dict]) -> list[dict]:
    found, reference = [], {}
    for line in lines:
        if line.get("what") not in ("curve", "niches") or not line.get("curve"):
            continue
        job = {k: line[k] for k in ("seed", "spots", "world")}
        key = json.dumps(job)
        if key not in reference:
            reported, _, training, programmes = world_of(job)
            reference[key] = known(reported, training, programmes, line["seed"])
            if line["what"] == "niches":
                reference[key] |= linear_features(reported, training, line["seed"])
        told = {k: v for k, v in line.items() if k.startswith(("ari_", "probe_"))}
        settings = {"spots": line["spots"], "seed": line["seed"], "cgr": line.get("cgr", False), "asked": line["steps"],
                    "lr": line["lr"], "groups": line["groups"]}  # fmt: skip
        found.append(settings | chosen(line) | told | reference[key])
        print(pd.Series(found[-1]).to_string(float_format="{:.3f}".format), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="what sweep.py wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--curves", type=Path, help="CSV with the losses along the runs")
    options = parser.parse_args()
    lines = [json.loads(line) for line in options.runs.read_text().splitlines()]
    pd.DataFrame(rows_of(lines)).to_csv(options.out, index=False, float_format="%.5g")
    if options.curves:
        runs = [line for line in lines if line.get("what") in ("curve", "niches")]
        curves = [
            {"spots": line["spots"], "seed": line["seed"], "cgr": line.get("cgr", False), **point}
            for line in runs
            for point in line.get("curve", ())
        ]
        pd.DataFrame(curves).to_csv(options.curves, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
