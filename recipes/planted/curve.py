"""Does stage 1 learn? A planted corpus, whose best possible loss is known, at several sizes and lengths of run.

    python recipes/planted/curve.py --spots 500 2000 --steps 300 1000 --out curve.csv
    python recipes/planted/curve.py --spots 100000 --steps 10000 --groups 64 --losses igr both --device cuda

Every row is a run: spots in training, steps, the loss at masked positions of sections that were left out, beside that
of in-section frequency among unseen genes and the best that the simulator allows; and how well features tell planted
domains (shared by neighbours) from the states (each spot's own): adjusted Rand index of k-means, and the accuracy of a
linear probe that is fitted on one left-out section and measured on another. ``--start spectral`` is the linear start
that a Transformer has to beat.
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
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from stampy import train
from stampy._io.sections import Section
from stampy.datasets._toy.planted import best_loss, planted
from stampy.pp import Vocabulary
from stampy.train._data import prepare

COMMON = {"max_tokens": 80, "tied_heads": True, "norm": "pre", "embedding": 32, "checkpoint_every": 10**6}  # fmt: skip
SPECTRAL = {"start": "spectral", "rank_gate": True, "pooling": "bag", "frozen": ("embeddings.", "rank_gate")}
N_KEPT = 2


def run(n_spots: int, steps: int, options, *, cgr: bool) -> dict[str, float]:
    """Train on a planted corpus for about so many steps; what is reached on sections that were left out."""
    per_section = min(n_spots, options.per_section)
    n_sections = max(n_spots // per_section, 1)
    effects = {"domain_effect": options.domain_effect, "state_effect": options.state_effect}
    world = planted(per_section, n_sections + N_KEPT, rng=options.seed, **effects)
    vocabulary = Vocabulary(world.genes)
    epochs = max(round(steps * options.groups * 9 / n_spots), 1)
    config = COMMON | {
        "width": options.width, "depth": options.depth, "heads": 4, "feedforward": 2 * options.width,
        "groups_per_batch": options.groups, "lr": options.lr, "precision": options.precision, "prefetch": 4,
        "mask_share": options.mask_share, "head_bias": options.head_bias,
        "epochs_igr": 0 if cgr else epochs, "epochs_cgr": epochs if cgr else 0, "seed": options.seed,
    }  # fmt: skip
    config |= SPECTRAL if options.start == "spectral" else {}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = train.pretrain(
            world.sections[N_KEPT:], folder, vocabulary=vocabulary, config=config, device=options.device, progress=False
        )
        done = len((Path(folder) / "metrics.jsonl").read_text().splitlines())
    seconds = time.perf_counter() - began
    table = train.evaluate(model, world.sections[:N_KEPT], n_groups=40, device=options.device)
    kept = zip(world.odds[:N_KEPT], world.sections[:N_KEPT], strict=True)
    best = np.mean([best_loss(odds, section.X.toarray() > 0) for odds, section in kept])
    found = {"steps": done, "start": options.start, "domain_effect": options.domain_effect, "best": best}
    found |= table.loc["all", ["igr_masked", "section_frequency", "section_frequency_unseen"]].to_dict()
    return found | told_apart(model, world.sections[:N_KEPT], vocabulary) | {"seconds": seconds}


@torch.inference_mode()
def told_apart(model, sections, vocabulary) -> dict[str, float]:
    """What features say of domains and states: clusters within a section, a linear probe from one to another."""
    features = []
    for section in sections:
        tokens = prepare(Section(data=section, name="kept"), vocabulary, max_tokens=80).tokens.astype(np.int64)
        own = model.cpu().gene_features(torch.from_numpy(tokens)).float().numpy()
        features.append((own - own.mean(axis=0)) / own.std())
    found = {}
    for key in ("domain", "state"):
        labels = [section.obs[key].astype(str).to_numpy() for section in sections]
        pairs = list(zip(features, labels, strict=True))
        found[f"ari_{key}"] = np.mean([
            adjusted_rand_score(y, KMeans(len(set(y)), n_init=5, random_state=0).fit_predict(x)) for x, y in pairs
        ])  # fmt: skip
        found[f"probe_{key}"] = np.mean([
            LogisticRegression(max_iter=2000).fit(*a).score(*b) for a, b in (pairs[:2], pairs[1::-1])
        ])  # fmt: skip
    return found


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000, 3000])
    parser.add_argument("--losses", choices=("igr", "both"), nargs="+", default=["igr"], help="both: IGR + CGR")
    parser.add_argument("--start", choices=("random", "spectral"), default="random")
    parser.add_argument("--groups", type=int, default=4, help="of 9 spots, in a step")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--mask-share", type=float, default=1.0)
    parser.add_argument("--head-bias", default="frequency")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--per-section", type=int, default=250)
    parser.add_argument("--domain-effect", type=float, default=1.5)
    parser.add_argument("--state-effect", type=float, default=2.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="CSV; rows that are there are not run again")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    rows = pd.read_csv(options.out).to_dict("records") if options.out and options.out.exists() else []
    for spots in options.spots:
        for steps in options.steps:
            for cgr in (losses == "both" for losses in options.losses):
                key = {"spots": spots, "asked": steps, "cgr": cgr, "width": options.width, "groups": options.groups}
                if any(all(row[k] == v for k, v in key.items()) for row in rows):
                    continue
                rows.append({**key, **run(spots, steps, options, cgr=cgr)})
                print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False), flush=True)
                if options.out:
                    pd.DataFrame(rows).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
