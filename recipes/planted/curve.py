"""Does stage 1 learn? A planted corpus, whose best possible loss is known, at several sizes and lengths of run.

    python recipes/planted/curve.py --spots 500 2000 --steps 300 1000 --out curve.csv

Every row is a run: spots in training, steps, the loss at masked positions of sections that were left out, beside that
of in-section frequency among unseen genes and the best that the simulator allows; and the adjusted Rand index of
clusters of the features with the planted domains (shared by neighbours) and states (each spot's own), for IGR alone and
with CGR.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from stampy import train
from stampy.datasets._toy.planted import best_loss, planted
from stampy.pp import Vocabulary
from stampy.train._sections import Section, prepare

SMALL = {"width": 64, "depth": 2, "heads": 4, "feedforward": 128, "max_tokens": 80, "tied_heads": True, "norm": "pre",
         "groups_per_batch": 4, "lr": 3e-3, "embedding": 32, "checkpoint_every": 10**6}  # fmt: skip
PER_SECTION = 250


def run(n_spots: int, steps: int, *, cgr: bool, seed: int = 0, n_kept: int = 2) -> dict[str, float]:
    """Train on a planted corpus for about so many steps; what is reached on sections that were left out."""
    n_sections = max(n_spots // PER_SECTION, 1)
    world = planted(min(n_spots, PER_SECTION), n_sections + n_kept, rng=seed)
    vocabulary = Vocabulary(world.genes)
    epochs = max(round(steps * 4 * 9 / n_spots), 1)
    config = SMALL | {"epochs_igr": 0 if cgr else epochs, "epochs_cgr": epochs if cgr else 0, "seed": seed}
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = train.pretrain(
            world.sections[n_kept:], folder, vocabulary=vocabulary, config=config, device="cpu", progress=False
        )
        done = len((Path(folder) / "metrics.jsonl").read_text().splitlines())
    seconds = time.process_time() - began
    table = train.evaluate(model, world.sections[:n_kept], n_groups=20, device="cpu")
    kept = zip(world.odds[:n_kept], world.sections[:n_kept], strict=True)
    best = np.mean([best_loss(odds, section.X.toarray() > 0) for odds, section in kept])
    found = {"spots": n_spots, "steps": done, "cgr": cgr, "seconds": seconds, "best": best}
    found |= table.loc["all", ["igr_masked", "section_frequency", "section_frequency_unseen"]].to_dict()
    return found | clusters(model, world.sections[:n_kept], vocabulary)


@torch.inference_mode()
def clusters(model, sections, vocabulary) -> dict[str, float]:
    """Adjusted Rand index of k-means on the features with domains and states, the mean over sections."""
    rows = []
    for section in sections:
        tokens = prepare(Section(data=section, name="kept"), vocabulary, max_tokens=80).tokens.astype(np.int64)
        features = model.gene_features(torch.from_numpy(tokens)).numpy()
        features = (features - features.mean(axis=0)) / features.std()
        rows.append({
            f"ari_{key}": adjusted_rand_score(
                section.obs[key], KMeans(section.obs[key].nunique(), n_init=5, random_state=0).fit_predict(features)
            )
            for key in ("domain", "state")
        })  # fmt: skip
    return pd.DataFrame(rows).mean().to_dict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--cgr", action="store_true", help="IGR and CGR together, too")
    parser.add_argument("--out", type=Path, help="CSV; rows that are there are not run again")
    options = parser.parse_args()
    rows = pd.read_csv(options.out).to_dict("records") if options.out and options.out.exists() else []
    for spots in options.spots:
        for steps in options.steps:
            for cgr in (False, True) if options.cgr else (False,):
                key = {"spots": spots, "asked": steps, "cgr": cgr}
                if any(all(row[k] == v for k, v in key.items()) for row in rows):
                    continue
                rows.append({**key, **run(spots, steps, cgr=cgr)})
                print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
                if options.out:
                    pd.DataFrame(rows).to_csv(options.out, index=False)
    print(pd.DataFrame(rows).round(3).to_markdown(index=False) if rows else "")


if __name__ == "__main__":
    main()
