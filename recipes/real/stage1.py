"""Does stage 1 learn from real sections? Masked genes of held-out sections during a run.

    python recipes/real/stage1.py build FOLDER                   corpora: train, choose (HER2+ patient G), kept
    python recipes/real/stage1.py train FOLDER/train --kept FOLDER/choose --out RUN --steps 4000 --device cuda
    python recipes/real/stage1.py measure RUN/model --kept FOLDER/kept --out kept.csv
    python recipes/real/stage1.py readers FOLDER/train --kept FOLDER/choose --out readers.csv

``train`` masks all scored positions (`mask_share=1`) and initialises the heads with gene frequencies. At every
checkpoint it prints the loss at masked positions of held-out sections and the baselines of each: frequency in all these
sections, in the section, and in the section without genes visible elsewhere in the spot. "choose" serves for choosing
settings; "kept" is evaluated once, at the end: both cortex sections, HER2+ patient A, PDAC-A.

``readers`` shows the loss without a network: from the frequency of genes in the training sections, in the sections of
other HER2+ patients (of one, two, ... of them), in the 1,000 training spots with the most similar visible genes, by a
linear model of these, in the other sections of the same patient, and in the section itself, which training sections
cannot provide.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd

from stampy import datasets, models, train
from stampy.pp import Vocabulary

TOKENS = 512
KEPT = ["DLPFC_151673", "DLPFC_151674", *(f"HER2ST_A{i}" for i in range(1, 7)), "PDAC_A_human"]
COMMON = {"max_tokens": TOKENS, "mask_share": 1.0, "head_bias": "frequency", "norm": "pre", "tied_heads": True,
          "embedding": 128, "epochs_cgr": 0, "prefetch": 6}  # fmt: skip
COLUMNS = ["igr_masked", "corpus_frequency", "section_frequency", "section_frequency_unseen"]


def build(folder: Path) -> None:
    """Build corpora of tokens from `stampy.datasets`, with the vocabulary of the packaged model."""
    names = [n for n in datasets.names(use="train", in_mirror=True) if not n.startswith("image_only")]
    chosen = [n for n in names if n.startswith("HER2ST_G")]
    vocabulary = Vocabulary(models.load("stampy-mini").genes)
    for part, own in (("train", [n for n in names if n not in chosen]), ("choose", chosen), ("kept", KEPT)):
        sections = [datasets.fetch(n)["section"] for n in own]
        train.Corpus.build(sections, folder / part, vocabulary=vocabulary, max_tokens=TOKENS, images=False)


def fit(options) -> None:
    corpus = train.Corpus(options.corpus)
    n_spots = sum(s.n_spots for s in corpus.sections)
    config = COMMON | {
        "width": options.width, "depth": options.depth, "heads": options.width // 32, "feedforward": 2 * options.width,
        "groups_per_batch": options.groups, "positions_per_step": options.positions, "dropout": options.dropout,
        "lr": options.lr, "weight_decay": options.weight_decay, "precision": options.precision,
        "epochs_igr": max(round(options.steps * options.groups * 9 / n_spots), 1), "seed": options.seed,
        "checkpoint_every": max(options.steps // options.points, 1), "keep": options.points + 1,
    }  # fmt: skip
    began = time.perf_counter()
    train.pretrain(corpus, options.out, config=config, device=options.device, progress=False)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    model, rows = models.load(options.out / "model"), []
    for path in sorted(options.out.glob("checkpoint-*.ckpt")):
        state = torch.load(path, map_location="cpu", weights_only=True)
        model.load_state_dict(state["model"])
        found = measured(model, options)
        rows.append(found.assign(step=state["step"]).set_index("step", append=True))
        print(found.round(3).to_string(), flush=True)
    table = pd.concat(rows)
    table.to_csv(options.out / "left_out.csv")
    known = json.loads((options.out / "data.json").read_text())["references"]
    print({"in training": {k: round(v, 3) for k, v in known.items()}})


def measured(model, options) -> pd.DataFrame:
    found = train.evaluate(model, options.kept, n_groups=options.measured_groups, device=options.device)
    return found[COLUMNS]


def readers(options) -> None:
    """Losses of frequency baselines, over all genes and over genes not visible elsewhere in the spot."""
    rng = np.random.default_rng(0)
    known, kept = tokens_of(options.corpus), tokens_of(options.kept)
    n_tokens = max(int(t.max()) for t in (*known.values(), *kept.values())) + 1
    counts = {name: bag(t, n_tokens).sum(axis=0) for name, t in (known | kept).items()}
    everywhere = 1 + sum(np.asarray(counts[name], dtype=float).ravel() for name in known)

    def share(names) -> np.ndarray:
        total = sum(np.asarray(counts[name], dtype=float).ravel() for name in names)
        return (total + 2000 * everywhere / everywhere.sum()) / (total.sum() + 2000)

    patients = sorted({patient(name) for name in known if name.startswith("HER2ST")})
    similar = Similar(known, n_tokens)
    linear = Linear(known, n_tokens, options.components, options.steps)
    rows = []
    for name, tokens in kept.items():
        tokens = tokens[rng.permutation(len(tokens))[: options.spots]]
        gone = (tokens != 0) & (rng.random(tokens.shape) < 0.15)
        guesses = {"all training sections": [everywhere / everywhere.sum()]}
        for n in range(1, len(patients) + 1):
            chosen = [*combinations(patients, n)]
            chosen = [chosen[i] for i in rng.permutation(len(chosen))[:8]]
            guesses[f"{n} other HER2+ patients"] = [share([k for k in known if patient(k) in some]) for some in chosen]
        guesses["1,000 similar spots"] = [similar.share(np.where(gone, 0, tokens), share(known))]
        guesses["linear model"] = [linear.share(np.where(gone, 0, tokens))]
        same = [k for k in kept if patient(k) == patient(name) and k != name]
        if same:
            guesses["other sections of the patient"] = [share(same)]
        guesses["the section itself"] = [np.asarray(counts[name]).ravel() / counts[name].sum()]
        for guess, shares in guesses.items():
            losses = np.mean([loss_of(own, tokens, gone) for own in shares], axis=0)
            rows.append({"section": name, "guess": guess, "masked": losses[0], "masked_unseen": losses[1]})
    table = pd.DataFrame(rows)
    table.to_csv(options.out, index=False, float_format="%.4f")
    print(table.groupby("guess", sort=False)[["masked", "masked_unseen"]].mean().round(3).to_string())


def patient(name: str) -> str:
    return name[: len("HER2ST_A")]


def tokens_of(corpus: Path) -> dict[str, np.ndarray]:
    return {s.name: s.load(TOKENS).tokens.astype(np.int64) for s in train.Corpus(corpus).sections}


def bag(tokens: np.ndarray, n_tokens: int) -> sparse.csr_matrix:
    """Spots x genes, 1 for genes visible in the spot."""
    rows, columns = np.nonzero(tokens)
    ones = np.ones(len(rows), np.float32)
    return sparse.csr_matrix((ones, (rows, tokens[rows, columns])), (len(tokens), n_tokens))


class Linear:
    """Softmax regression: log frequency plus a linear function of principal components of the visible genes."""

    def __init__(self, known: dict[str, np.ndarray], n_tokens: int, components: int, steps: int, lr: float = 5e-3):
        tokens = np.concatenate([*known.values()])
        often = np.asarray(bag(tokens, n_tokens).mean(axis=0)).ravel()
        self.weights = np.log(1 / np.maximum(often, 1e-4)).astype(np.float32)
        whole = normalised(bag(tokens, n_tokens), self.weights)
        self.axes = randomized_svd(whole, components, n_iter=3, random_state=0)[2].T.astype(np.float32)
        scores = whole @ self.axes
        self.mean, self.deviation = scores.mean(axis=0), scores.std(axis=0)
        counts = np.bincount(tokens.ravel(), minlength=n_tokens) + 0.5
        counts[0] = 1e-9  # padding
        self.bias = torch.from_numpy(np.log(counts / counts.sum())).float()
        self.slopes = torch.nn.Parameter(torch.zeros(n_tokens, components))
        optimizer, rng = torch.optim.AdamW([self.slopes], lr=lr, weight_decay=0.05), np.random.default_rng(0)
        for step in range(steps):
            some = tokens[rng.integers(len(tokens), size=96)]
            gone = (some != 0) & (rng.random(some.shape) < 0.15)
            guess = self.logits(np.where(gone, 0, some)).log_softmax(dim=1)
            rows, columns = np.nonzero(gone)
            optimizer.param_groups[0]["lr"] = lr * (1 - step / steps) * min((step + 1) / 20, 1)
            (-guess[torch.from_numpy(rows), torch.from_numpy(some[rows, columns])].mean()).backward()
            optimizer.step()
            optimizer.zero_grad()

    def logits(self, visible: np.ndarray) -> torch.Tensor:
        scores = normalised(bag(visible, len(self.bias)), self.weights) @ self.axes
        scores = (scores - self.mean) / self.deviation
        return torch.from_numpy(scores.astype(np.float32)) @ self.slopes.T + self.bias

    @torch.inference_mode()
    def share(self, visible: np.ndarray) -> np.ndarray:
        return self.logits(visible).softmax(dim=1).numpy()


def normalised(spots: sparse.csr_matrix, weights: np.ndarray) -> sparse.csr_matrix:
    """Weighted genes, with unit norm per spot."""
    weighted = spots.multiply(weights).tocsr()
    length = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return sparse.diags(1 / np.maximum(length, 1e-9)) @ weighted


class Similar:
    """Frequency of genes in the training spots with the most similar visible genes; rare genes have more weight."""

    def __init__(self, known: dict[str, np.ndarray], n_tokens: int, n: int = 1000):
        self.n, self.spots = n, bag(np.concatenate([*known.values()]), n_tokens)
        often = np.asarray(self.spots.mean(axis=0)).ravel()
        self.weights = np.log(1 / np.maximum(often, 1e-4)).astype(np.float32)
        self.index = normalised(self.spots, self.weights).T.tocsr()

    def share(self, visible: np.ndarray, usual: np.ndarray) -> np.ndarray:
        """Mean of the frequency in similar spots and the usual frequency, (spots, genes)."""
        near = bag(visible, len(usual)).multiply(self.weights).tocsr() @ self.index
        near = np.argpartition(-near.toarray(), self.n, axis=1)[:, : self.n]
        found = np.stack([np.asarray(self.spots[rows].sum(axis=0)).ravel() for rows in near])
        return (found / found.sum(axis=1, keepdims=True) + usual) / 2


def loss_of(share: np.ndarray, tokens: np.ndarray, gone: np.ndarray) -> tuple[float, float]:
    share = np.broadcast_to(share, (len(tokens), share.shape[-1]))
    rows, columns = np.nonzero(gone)
    own = np.take_along_axis(share, tokens, axis=1)
    left = 1 - (own * ((tokens != 0) & ~gone)).sum(axis=1)
    own = own[rows, columns]
    return float(-np.log(own).mean()), float(-np.log(own / left[rows]).mean())


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("build").add_argument("folder", type=Path)
    fitting, measuring, reading = (parts.add_parser(name) for name in ("train", "measure", "readers"))
    fitting.add_argument("corpus", type=Path)
    reading.add_argument("corpus", type=Path)
    reading.add_argument("--spots", type=int, default=120, help="of each section")
    reading.add_argument("--components", type=int, default=64, help="of the linear model")
    reading.add_argument("--steps", type=int, default=1000, help="of the linear model, of 96 spots")
    for option in ("--kept", "--out"):
        reading.add_argument(option, type=Path, required=True)
    measuring.add_argument("model", type=Path)
    for part in (fitting, measuring):
        part.add_argument("--kept", type=Path, required=True, help="corpus of left-out sections")
        part.add_argument("--device")
        part.add_argument("--out", type=Path, required=True)
        part.add_argument("--measured-groups", type=int, default=20, help="of 9 spots, of each section")
    for name, value in {"width": 256, "depth": 4, "groups": 24, "steps": 4000, "points": 8, "seed": 0}.items():
        fitting.add_argument(f"--{name}", type=int, default=value)
    fitting.add_argument("--positions", type=int, help="of 512, in a step; default all")
    for name, value in {"lr": 1e-3, "dropout": 0.1, "weight-decay": 0.05}.items():
        fitting.add_argument(f"--{name}", type=float, default=value)
    fitting.add_argument("--precision", default="32-true")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.part == "build":
        build(options.folder)
    elif options.part == "train":
        fit(options)
    elif options.part == "readers":
        readers(options)
    else:
        found = measured(models.load(options.model), options)
        found.to_csv(options.out)
        print(found.round(3).to_string())


if __name__ == "__main__":
    main()
