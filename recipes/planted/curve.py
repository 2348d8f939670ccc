"""Does stage 1 learn? A simulated corpus with known minimum loss, at several sizes and lengths of run.

    python recipes/planted/curve.py --out recipes/planted/curve.csv
    python recipes/planted/curve.py --spots 8000 --steps 1000 --losses igr both --seeds 0 1 2 3 --out cgr.csv
    python recipes/planted/curve.py --spots 100000 --steps 10000 --groups 64 --losses igr both --device cuda

Each row is a run. All losses are in nats, at the same hidden genes of two held-out sections:

masked              loss of the model
masked_unseen       loss of the model, with genes visible elsewhere in the spot excluded
frequency, _unseen  by the frequency of genes in the section; the second excludes visible genes
linear              softmax regression from the visible genes, fitted to the same spots
composition         optimal inference of a spot's composition from its visible genes, without excluding them
best_allowed        the same with visible genes excluded; the optimum for models of single spots
best_told           given the true gene probabilities of the spot
cgr, cgr_best       loss of CGR, and its value given the domain of each spot

The other columns show how well features separate domains, which neighbours share, from states, which are specific to a
spot, in held-out sections: adjusted Rand index of k-means, fraction of the variance, and accuracy of a linear probe
fitted on one held-out section and tested on the other. The same for two linear encoders fitted to the training spots:
principal components of the genes (``_pca``), and the axes shared by neighbours (``_axes``).
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

from stampy import _keys, train
from stampy._io.sections import SectionInput
from stampy.datasets._toy.planted import best_allowed, best_context, best_loss, hidden_genes, planted
from stampy.models._gene import MASK_ID
from stampy.pp import Vocabulary
from stampy.pp._linear_encoder import SpotGenes, leading_axes, neighbor_graph
from stampy.train._data import prepare

COMMON = {"tied_heads": True, "norm": "pre", "embedding": 32, "checkpoint_every": 10**6}
SPECTRAL = {"start": "spectral", "rank_gate": True, "pooling": "bag", "frozen": ("embeddings.", "rank_gate")}
N_KEPT = 2
WORLD = {
    "genes": "n_genes", "shown": "shown", "domains": "n_domains", "states": "n_states",
    "domain_effect": "domain_effect", "state_effect": "state_effect", "batch_effect": "batch_effect",
}  # fmt: skip


def world_of(n_spots: int, seed: int, options):
    """Training sections with `n_spots` spots, preceded by the held-out sections."""
    per_section = min(n_spots, options.per_section)
    sizes = {name: getattr(options, option) for option, name in WORLD.items()}
    return planted(per_section, max(n_spots // per_section, 1) + N_KEPT, rng=seed, **sizes)


def run(world, steps: int, seed: int, options, *, cgr: bool) -> dict[str, float]:
    """Train for about `steps` steps and evaluate on the held-out sections."""
    vocabulary = Vocabulary(world.genes)
    n_spots = sum(s.n_obs for s in world.sections[N_KEPT:])
    epochs = max(round(steps * options.groups * 9 / n_spots), 1)
    config = COMMON | {
        "max_tokens": 2 * options.shown, "width": options.width, "depth": options.depth, "heads": 4,
        "feedforward": 2 * options.width, "groups_per_batch": options.groups, "lr": options.lr,
        "precision": options.precision, "prefetch": options.prefetch, "mask_share": options.mask_share,
        "head_bias": options.head_bias, "epochs_igr": 0 if cgr else epochs, "epochs_cgr": epochs if cgr else 0,
        "seed": seed,
    }  # fmt: skip
    config |= SPECTRAL if options.start == "spectral" else {}
    config |= {"cgr_targets": options.cgr_targets} if cgr else {}
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = train.pretrain(
            world.sections[N_KEPT:], folder, vocabulary=vocabulary, config=config, device=options.device, progress=False
        )
        lines = pd.read_json(Path(folder) / "metrics.jsonl", lines=True)
    last = lines["igr_masked"].tail(max(len(lines) // 20, 1)).mean()
    found = {"steps": len(lines), "cpu_s": time.process_time() - began, "masked_in_training": last}
    kept = world.sections[:N_KEPT]
    table = train.evaluate(model, kept, n_groups=40, device=options.device)
    if options.table:
        print(table.round(3).to_string(), flush=True)
    model = model.cpu()
    tokens = [
        prepare(SectionInput(data=s, name="kept"), vocabulary, max_tokens=2 * options.shown).tokens.astype(np.int64)
        for s in kept
    ]
    hidden = [hidden_genes(s.X.toarray() > 0) for s in kept]
    losses = [masked_loss(model, *pair) for pair in zip(tokens, hidden, strict=True)]
    found |= pd.DataFrame(losses).mean().to_dict() | {"cgr": table.loc["all", "cgr"]}
    with torch.inference_mode():
        features = [model.gene_features(torch.from_numpy(t)).float().numpy() for t in tokens]
    return found | separation(features, kept)


@torch.inference_mode()
def masked_loss(model, tokens: np.ndarray, hidden: np.ndarray) -> dict[str, float]:
    """Mean cross-entropy at hidden genes, over all genes and over genes not visible elsewhere in the spot."""
    rows, columns = np.nonzero(tokens)
    gone = np.zeros(tokens.shape, bool)
    gone[rows, columns] = hidden[rows, tokens[rows, columns] - _keys.N_SPECIAL]
    total, unseen = 0.0, 0.0
    for part in np.array_split(np.arange(len(tokens)), -(-len(tokens) // 64)):
        ids, _ = model.gene.ids(torch.from_numpy(tokens[part]))
        chosen = torch.from_numpy(gone[part])
        logits = model.gene.logits(model.gene(ids.masked_fill(chosen, MASK_ID))[chosen])
        targets = torch.from_numpy(tokens[part])[chosen]
        total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
        shown = ids.masked_fill(chosen, 1)[chosen.nonzero()[:, 0]]  # 1 is padding
        logits = logits.scatter(1, shown, -torch.inf)
        unseen += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
    n = max(int(gone.sum()), 1)
    return {"masked": total / n, "masked_unseen": unseen / n}


def separation(features, sections, ending: str = "") -> dict[str, float]:
    """Separation of domains and states by features: clusters and variance in a section, a probe between sections."""
    features = [(own - own.mean(axis=0)) / own.std() for own in features]
    found = {}
    for key in ("domain", "state"):
        labels = [section.obs[key].astype(str).to_numpy() for section in sections]
        pairs = list(zip(features, labels, strict=True))
        found[f"ari_{key}{ending}"] = np.mean([
            adjusted_rand_score(y, KMeans(len(set(y)), n_init=5, random_state=0).fit_predict(x)) for x, y in pairs
        ])  # fmt: skip
        found[f"variance_{key}{ending}"] = np.mean([explained(x, y) for x, y in pairs])
        found[f"probe_{key}{ending}"] = np.mean([
            LogisticRegression(max_iter=2000).fit(*a).score(*b) for a, b in (pairs[:2], pairs[1::-1])
        ])  # fmt: skip
    return found


def explained(features: np.ndarray, labels: np.ndarray) -> float:
    """Fraction of the variance between group means."""
    own = features - features.mean(axis=0)
    between = sum((labels == y).sum() * (own[labels == y].mean(axis=0) ** 2).sum() for y in set(labels))
    return between / (own**2).sum()


def known(world, seed: int) -> dict[str, float]:
    """Losses of frequencies, of linear models and of optimal predictors on the held-out sections."""
    kept, training = world.sections[:N_KEPT], world.sections[N_KEPT:]
    shows = [s.X.toarray() > 0 for s in kept]
    predicted = linear_model(np.concatenate([s.X.toarray() > 0 for s in training]), seed)
    rows = []
    for number, shown in enumerate(shows):
        hidden = hidden_genes(shown)
        frequency = np.log(np.tile(np.maximum(shown.mean(axis=0), 1e-6), (len(shown), 1)))
        rows.append({
            "frequency": loss_of(frequency, hidden),
            "frequency_unseen": loss_of(np.where(shown & ~hidden, -np.inf, frequency), hidden),
            "linear": loss_of(predicted(shown & ~hidden), hidden),
            "composition": best_allowed(world, number, rule_out=False),
            "best_allowed": best_allowed(world, number),
            "best_told": best_loss(world.odds[number], shown),
            "cgr_best": best_context(world, number),
        })  # fmt: skip
    genes = [(shown - shown.mean(axis=0)).astype(np.float64) for shown in shows]
    parts = [
        SpotGenes(s.X.astype(bool).astype(np.float32).tocsr(), neighbor_graph(s.obsm["spatial"])) for s in training
    ]
    centred = np.concatenate([(x := s.X.toarray() > 0) - x.mean(axis=0) for s in training])
    components = np.linalg.eigh(centred.T @ centred)[1][:, :-17:-1]
    axes = leading_axes(parts, 16, np.random.default_rng(seed))
    linear = separation([x @ components for x in genes], kept, "_pca") | separation(
        [x @ axes for x in genes], kept, "_axes"
    )
    return pd.DataFrame(rows).mean().to_dict() | linear


def loss_of(logits: np.ndarray, hidden: np.ndarray) -> float:
    return float(-torch.from_numpy(logits).double().log_softmax(dim=1).numpy()[hidden].mean())


def linear_model(shows: np.ndarray, seed: int, steps: int = 1500, batch: int = 256):
    """Softmax regression from visible to hidden genes; keeps the step with the lowest loss on a tenth of the spots."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    shows = shows[random.permutation(len(shows))]
    apart, shows = np.split(shows, [max(min(len(shows) // 10, 500), 1)])
    hidden = hidden_genes(apart, rng=seed + 1)
    model = torch.nn.Linear(shows.shape[1], shows.shape[1])
    torch.nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.from_numpy(np.log(shows.mean(axis=0) + 1e-4)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)
    best, weights = np.inf, None
    for step in range(steps):
        own = shows[random.integers(len(shows), size=batch)]
        gone = own & (random.random(own.shape) < 0.15)
        guess = model(torch.from_numpy((own & ~gone).astype(np.float32))).log_softmax(dim=1)
        (-guess[torch.from_numpy(gone)].mean()).backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 49:
            with torch.inference_mode():
                now = loss_of(model(torch.from_numpy((apart & ~hidden).astype(np.float32))).numpy(), hidden)
            if now < best:
                best, weights = now, [p.detach().clone().numpy() for p in model.parameters()]
    return lambda visible: visible @ weights[0].T + weights[1]


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=[500, 2000, 8000, 20000])
    parser.add_argument("--steps", type=int, nargs="+", default=[250, 1000])
    parser.add_argument("--losses", choices=("igr", "both"), nargs="+", default=["igr"], help="both: IGR + CGR")
    parser.add_argument("--cgr-targets", choices=("masked", "all"), default="masked")
    parser.add_argument("--start", choices=("random", "spectral"), default="random")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the world and of the run")
    for name, value in {"groups": 8, "width": 128, "depth": 1, "per-section": 250, "prefetch": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--mask-share", type=float, default=1.0)
    parser.add_argument("--head-bias", default="frequency")
    parser.add_argument("--precision", default="32-true")
    for name, value in {"genes": 80, "shown": 20, "domains": 4, "states": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"domain": 1.5, "state": 2.0, "batch": 0.0}.items():
        parser.add_argument(f"--{name}-effect", type=float, default=value)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", action="store_true", help="print what `stampy evaluate` prints, too")
    parser.add_argument("--out", type=Path, help="CSV; rows that are there are not run again")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    rows = pd.read_csv(options.out).to_dict("records") if options.out and options.out.exists() else []
    settings = {k: getattr(options, k) for k in (*WORLD, "start", "width", "depth", "groups", "lr", "mask_share",
                                                 "head_bias", "cgr_targets")}  # fmt: skip
    for seed in options.seeds:
        for spots in options.spots:
            world, baselines = world_of(spots, seed, options), None
            for steps in options.steps:
                for losses in options.losses:
                    key = {"spots": spots, "asked": steps, "losses": losses, "seed": seed, **settings}
                    if any(all(row.get(k) == v for k, v in key.items()) for row in rows):
                        continue
                    baselines = baselines or known(world, seed)
                    rows.append({**key, **run(world, steps, seed, options, cgr=losses == "both"), **baselines})
                    print(pd.Series(rows[-1]).to_string(float_format="{:.3f}".format), flush=True)
                    if options.out:
                        pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.5g")


if __name__ == "__main__":
    main()
