"""Does stage 1 learn from real sections? Masked genes of sections that were left out, along a run.

    python recipes/real/stage1.py build FOLDER                   the corpora: train, choose (HER2+ patient G), kept
    python recipes/real/stage1.py train FOLDER/train --kept FOLDER/choose --out RUN --steps 4000 --device cuda
    python recipes/real/stage1.py measure RUN/model --kept FOLDER/kept --out kept.csv

``train`` hides all that it scores (`mask_share=1`) and starts the heads at gene frequency; it prints the
loss at masked positions of left-out sections at every checkpoint, beside the references of each: frequency in all these
sections, in-section frequency, and the same among the genes that a spot does not show elsewhere. "choose" is for
choosing settings; "kept" is looked at once, at the end: both cortex sections, HER2+ patient A, PDAC-A.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pandas as pd
import torch

from stampy import datasets, models, train
from stampy.pp import Vocabulary

TOKENS = 512
KEPT = ["DLPFC_151673", "DLPFC_151674", *(f"HER2ST_A{i}" for i in range(1, 7)), "PDAC_A_human"]
COMMON = {"max_tokens": TOKENS, "mask_share": 1.0, "head_bias": "frequency", "norm": "pre", "tied_heads": True,
          "embedding": 128, "epochs_cgr": 0, "prefetch": 6}  # fmt: skip
COLUMNS = ["igr_masked", "corpus_frequency", "section_frequency", "section_frequency_unseen"]


def build(folder: Path) -> None:
    """Corpora of tokens, from `stampy.datasets`; the vocabulary is that of the packaged model."""
    names = [n for n in datasets.names(use="train", in_mirror=True) if not n.startswith("image_only")]
    chosen = [n for n in names if n.startswith("HER2ST_G")]
    vocabulary = Vocabulary(models.load("stampy-mini").genes)
    for part, own in (("train", [n for n in names if n not in chosen]), ("choose", chosen), ("kept", KEPT)):
        sections = [datasets.fetch(n) for n in own]
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


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    parts.add_parser("build").add_argument("folder", type=Path)
    fitting, measuring = parts.add_parser("train"), parts.add_parser("measure")
    fitting.add_argument("corpus", type=Path)
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
    else:
        found = measured(models.load(options.model), options)
        found.to_csv(options.out)
        print(found.round(3).to_string())


if __name__ == "__main__":
    main()
