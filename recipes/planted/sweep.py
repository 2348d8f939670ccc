"""Stage 1 on simulated sections at sizes that need a GPU: loss against spots and steps, and niches that are no means.

    python recipes/planted/sweep.py curve  --device cuda --out curve.jsonl
    python recipes/planted/sweep.py niches --device cuda --out niches.jsonl
    python recipes/planted/sweep.py curve  --tiny --out curve.jsonl        # a minute on a CPU

Each run trains stampy's encoder in a bare loop (`bare.py`) and appends lines of JSON: the settings, the losses along
the run, and what features say of domains. Of the sections that no run trains on, the last four are for choosing (when
to stop), and the first eight are reported. Lines that are there are not run again; ``--seconds`` ends all in time.

``niches``: domains differ in which gene programmes occur *together* in a spot, and only a little, by the domain effect,
in the mean of genes (`planted_spots(together=True)`). Linear features cannot read the first.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path

import numpy as np
import torch
from bare import GroupSteps, blocks, encoder_of, features, hidden_loss, tokens_of
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import adjusted_rand_score

from stampy.datasets._toy.planted import PlantedSpots, Programmes, hidden_genes, planted_spots
from stampy.pp._linear_encoder import neighbor_graph

N_REPORTED, N_CHOOSING, PER_SECTION = 8, 4, 250
SMALL = {"n_genes": 60, "shown": 20, "n_domains": 4, "n_states": 4, "domain_effect": 1.5, "state_effect": 2.0}
TOGETHER = {"n_genes": 64, "shown": 20, "n_domains": 4, "n_states": 4, "state_effect": 2.0, "batch_effect": 0.0,
            "together": True}  # fmt: skip
SIZES = {"width": 128, "depth": 2, "heads": 4, "feedforward": 256}


def jobs_of(name: str, part: int, parts: int) -> list[dict]:
    """Runs, the most telling first; of several processes each takes its own."""
    if name == "niches":
        world, found = [TOGETHER | {"domain_effect": e} for e in (0.5, 0.25, 1.0, 0.0)], []
        for seed in range(3):
            found += [
                {"world": w, "seed": seed, "spots": 40_000, "steps": 8000, "cgr": cgr}
                for w, cgr in itertools.product(world, (True, False))
            ]
    else:
        world = SMALL | {"batch_effect": 0.5}
        main = [(100_000, 12_000), (10_000, 6000), (2000, 3000), (500, 1500), (30_000, 6000)]
        found = [{"world": world, "seed": 0, "spots": n, "steps": s} for n, s in main]
        found += [{"world": world, "seed": seed, "spots": n, "steps": s} for seed in (1, 2) for n, s in main[:3]]
        found += [{"world": SMALL | {"batch_effect": 0.0}, "seed": 0, "spots": 100_000, "steps": 12_000}]
        found += [{"world": world, "seed": 0, "spots": 100_000, "steps": s} for s in (1000, 3000, 40_000)]
        found += [{"world": world, "seed": seed, "spots": n, "steps": s} for seed in (1, 2) for n, s in main[3:]]
        found += [
            {"world": SMALL | {"batch_effect": 0.0}, "seed": s, "spots": 100_000, "steps": 12_000} for s in (1, 2)
        ]
    return found[part::parts]


def world_of(job: dict) -> tuple[list[PlantedSpots], list[PlantedSpots], list[PlantedSpots], Programmes]:
    """Sections that are reported, for choosing, and to train on."""
    n = max(job["spots"] // PER_SECTION, 1) + N_REPORTED + N_CHOOSING
    sections, known = planted_spots(PER_SECTION, n, rng=job["seed"], **job["world"])
    kept = N_REPORTED + N_CHOOSING
    return sections[:N_REPORTED], sections[N_REPORTED:kept], sections[kept:], known


def points_of(steps: int, n: int = 24) -> list[int]:
    """Steps at which held-out sections are measured."""
    return sorted({max(round(steps * (i / n) ** 2), 1) for i in range(1, n + 1)})


def run(job: dict, options, ends: float) -> tuple[dict, dict]:
    began = time.time()
    reported, choosing, training, _ = world_of(job)
    n_genes, width = job["world"]["n_genes"], 2 * job["world"]["shown"]
    device = torch.device(options.device)
    known = tokens_of(np.concatenate([s.counts for s in training]), width)
    counts = np.bincount(known.ravel(), minlength=n_genes + 30).astype(float)
    counts[:30] = 0
    sizes = SIZES | {"max_tokens": width}
    encoder = encoder_of(n_genes, job["seed"], counts, **sizes).to(device)
    kept = {"reported": reported, "choosing": choosing}
    measured = {name: [of_section(s, width, device) for s in sections] for name, sections in kept.items()}
    steps = GroupSteps(
        encoder, torch.from_numpy(known).to(device),
        torch.from_numpy(blocks(PER_SECTION, len(training))).to(device),
        n_groups=options.groups, cgr=job.get("cgr", False),
    )  # fmt: skip
    found = {**job, **sizes, "groups": options.groups, "lr": options.lr, "prepared_s": time.time() - began, "curve": []}
    for step, means, seconds in steps.run(job["steps"], options.lr, points_of(job["steps"])):
        line = {"step": step, "s": seconds, "train_igr": means[0], "train_cgr": means[1]}
        for name, own in measured.items():
            losses = [hidden_loss(encoder, *pair) for pair in own]
            line |= {f"{name}_{key}": float(np.mean([loss[key] for loss in losses])) for key in losses[0]}
        found["curve"].append(line)
        if time.time() > ends:
            found["stopped"] = step
            break
    found["graph"] = steps.graph is not None
    if job["world"].get("together"):
        found |= niches([features(encoder, own[0]) for own in measured["reported"]], reported)
    return found, {k: v.half().cpu() for k, v in encoder.state_dict().items()}


def of_section(spots: PlantedSpots, width: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens of a section, and which of them are hidden: the genes of `hidden_genes`, as for the best possible loss."""
    tokens = tokens_of(spots.counts, width)
    hidden = hidden_genes(spots.counts > 0)
    gone = np.zeros(tokens.shape, bool)
    rows, columns = np.nonzero(tokens)
    gone[rows, columns] = hidden[rows, tokens[rows, columns] - 30]
    return torch.from_numpy(tokens).to(device), torch.from_numpy(gone).to(device)


def niches(own: list[np.ndarray], sections: list[PlantedSpots]) -> dict[str, float]:
    """How well features tell domains, of single spots and as means with their 8 neighbours.

    Adjusted Rand index of k-means within a section, and accuracy of a linear probe from the first half of the sections
    to the second.
    """
    found = {}
    own = [x - x.mean(axis=0) for x in own]
    for name in ("spot", "around"):
        if name == "around":
            own = [(x + 8 * (neighbor_graph(s.xy) @ x)) / 9 for x, s in zip(own, sections, strict=True)]
        scaled = [x / max(x.std(), 1e-9) for x in own]
        labels = [s.domain for s in sections]
        aris = [
            adjusted_rand_score(y, KMeans(len(set(y)), n_init=5, random_state=0).fit_predict(x))
            for x, y in zip(scaled, labels, strict=True)
        ]
        half = len(scaled) // 2
        fit = LogisticRegression(max_iter=2000).fit(np.concatenate(scaled[:half]), np.concatenate(labels[:half]))
        probe = fit.score(np.concatenate(scaled[half:]), np.concatenate(labels[half:]))
        found |= {f"ari_{name}": float(np.mean(aris)), f"ari_{name}_sd": float(np.std(aris)), f"probe_{name}": probe}
    return found


def chosen_rate(options, ends: float) -> float:
    """The learning rate of three that is best after a short run on sections of another seed, which are not reported."""
    if options.lr:
        return options.lr
    first, scores = jobs_of(options.what, 0, 1)[0], {}
    for lr in (1e-3, 2e-3, 4e-3)[: 1 if options.tiny else 3]:
        options.lr = lr
        job = {**first, "seed": 100, "spots": 40_000, "steps": 1500, "what": f"{options.what}, rates"}
        found, _ = run(job | ({"spots": 1000, "steps": 4} if options.tiny else {}), options, ends)
        append(options.out, found)
        scores[lr] = found["curve"][-1]["choosing_masked"]
    print("rates:", scores, flush=True)
    return min(scores, key=scores.get)


def append(path: Path, line: dict) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("curve", "niches"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--parts", type=int, default=1, help="processes that share the runs; this one is `part`")
    parser.add_argument("--groups", type=int, default=64, help="of 9 spots, in a step")
    parser.add_argument("--lr", type=float, help="default: chosen")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--tiny", action="store_true", help="few spots and steps, to see whether all runs")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--models", type=Path, help="weights of all runs")
    return parser.parse_args()


def main() -> None:
    options, weights = parsed(), {}
    torch.set_float32_matmul_precision("high")
    ends = time.time() + options.seconds
    lines = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    if options.tiny:
        options.groups = 4
    options.lr = chosen_rate(options, ends)
    for job in jobs_of(options.what, options.part, options.parts):
        if options.tiny:
            job |= {"spots": min(job["spots"], 1000), "steps": 6}
        job |= {"what": options.what}
        if any(all(line.get(k) == v for k, v in job.items()) for line in lines):
            continue
        if time.time() > ends - 5:
            append(options.out, {**job, "left_out": True})
            continue
        found, weights[json.dumps(job)] = run(job, options, ends)
        append(options.out, found)
        last = found["curve"][-1] if found["curve"] else {}
        print(
            {**job, **last, **{k: v for k, v in found.items() if k.startswith(("ari", "probe", "graph"))}}, flush=True
        )
        if options.models:
            torch.save(weights, options.models.with_suffix(".part"))
            os.replace(options.models.with_suffix(".part"), options.models)


if __name__ == "__main__":
    main()
