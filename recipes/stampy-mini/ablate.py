"""Ablation of the training: short runs without one part at a time, three seeds each.

    python recipes/stampy-mini/ablate.py FOLDER [--stage gene|image] [--seeds 3] [--out FILE.md]

FOLDER is that of `prepare.py`. Prints Markdown tables: mean and standard deviation over the seeds. The runs are smaller
than those of the recipe (see `GENE` and `IMAGE` below) and compare parts with each other, not with other models.
Completed runs are not repeated.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import stampy

sys.path.insert(0, str(Path(__file__).parent))
from evaluate import IMAGED, LABELLED, clusters

from stampy._labels import known_labels
from stampy.tl._evaluation.folds import block_folds
from stampy.tl._probe import probe_predictions, probe_scores

GENE = {
    "width": 128,
    "depth": 2,
    "heads": 4,
    "feedforward": 256,
    "max_tokens": 512,
    "pooling": "sum",
    "tied_heads": True,
    "norm": "pre",
    "rank_gate": True,
    "start": "spectral",
    "embedding": 128,
    "positions_per_step": 64,
    "groups_per_batch": 8,
    "lr": 1e-4,
    "min_lr": 1e-5,
    "precision": "bf16-mixed",
}
STILL = {"lr": 1e-12, "min_lr": 1e-12, "groups_per_batch": 256, "epochs_igr": 1, "epochs_cgr": 0}
GENE_VARIANTS = {
    "spectral start, not trained": STILL,
    "then IGR alone": {"epochs_igr": 2, "epochs_cgr": 0},
    "then IGR, IGR + CGR (masked genes)": {"cgr_targets": "masked"},
    "then IGR, IGR + CGR (all genes)": {"cgr_targets": "all"},
    "random start, IGR, IGR + CGR": {"start": "random", "lr": 1e-3},
}
IMAGE = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_kwargs": {"patch_size": 32, "depth": 2},
    "start": "spectral",
    "epochs": 4,
    "pairs_per_batch": 128,
    "lr": 3e-4,
    "warmup_steps": 20,
    "weight_decay": 0.05,
    "frozen": ("gene.", "gene_head."),
    "precision": "bf16-mixed",
}
LOSSES = ("patch_gene", "region_gene", "patch_region", "localization")
IMAGE_VARIANTS = {"all four losses": {}} | {
    f"without {name}": {"losses": tuple(x for x in LOSSES if x != name)} for name in LOSSES[1:]
}


def probe(values, codes, xy):
    """Balanced accuracy over spatially blocked folds."""
    folds = block_folds(xy)
    return probe_scores(codes, probe_predictions(values, codes, folds, method="ridge"), folds)[
        "balanced_accuracy"
    ].iloc[-1]


def gene_scores(model):
    """Means over the labelled sections."""
    found = []
    for name, key in LABELLED.items():
        adata = stampy.datasets.load(name)
        stampy.tl.embed(adata, model, modality="gene", precision="bfloat16", show_progress_bar=False)
        codes, _ = known_labels(adata.obs[key])
        known, values, xy = codes >= 0, adata.obsm["X_stamp"], adata.obsm["spatial"].astype(float)
        found.append([probe(values[known], codes[known], xy[known]), *clusters(values[known], codes[known])])
    return dict(zip(("balanced accuracy", "ARI", "NMI"), np.mean(found, axis=0), strict=True))


def image_scores(model):
    """Labels from the image alone, and image -> gene retrieval."""
    adata = stampy.datasets.load(IMAGED)
    key = next(k for k in ("annot_type", "label") if k in adata.obs)
    stampy.tl.embed(adata, model, modality="image", show_progress_bar=False)
    codes, _ = known_labels(adata.obs[key])
    known, values, xy = codes >= 0, adata.obsm["X_stamp"], adata.obsm["spatial"].astype(float)
    scores = {"hbc_blockA balanced accuracy": probe(values[known], codes[known], xy[known])}
    adata = stampy.datasets.load("HER2ST_A1")
    stampy.tl.embed(adata, model, modality="fused", show_progress_bar=False)
    similar = adata.obsm["X_stamp_image"] @ adata.obsm["X_stamp_gene"].T
    rank = (similar > np.diag(similar)[:, None]).sum(axis=1)
    return scores | {"HER2ST_A1 recall@10": (rank < 10).mean(), "(chance)": 10 / adata.n_obs}


def model_of(run, train, *arguments, **options):
    """The model of a run, trained if it does not exist."""
    if not (run / "model" / "config.json").is_file():
        train(*arguments, run, progress=False, **options)
    return stampy.models.load(run / "model")


def table(variants, seeds, score):
    """One line per variant: mean ± standard deviation over the seeds."""
    for number, (name, changes) in enumerate(variants.items()):
        found = [score(number, changes, seed) for seed in range(seeds)]
        if number == 0:
            yield f"| | {' | '.join(found[0])} |"
            yield "|---|" + "---|" * len(found[0])
        cells = [f"{np.mean(v):.3f} ± {np.std(v):.3f}" for v in zip(*(f.values() for f in found), strict=True)]
        yield f"| {name} | {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stage", choices=("gene", "image"), action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # coarse images are expected here
    folder, lines = arguments.folder, []

    def gene(number, changes, seed):
        run = folder / "ablation" / f"gene-{number}-{seed}"
        how = {"vocabulary": folder / "genes.tsv", "config": GENE | changes | {"seed": seed}}
        return gene_scores(model_of(run, stampy.train.pretrain, folder / "pretrain.tsv", **how))

    def image(number, changes, seed):
        run, start = folder / "ablation" / f"image-{number}-{seed}", folder / "ablation" / "image-start"
        bag = {"vocabulary": folder / "genes.tsv", "config": GENE | STILL | {"pooling": "bag"}}
        model = model_of(start, stampy.train.pretrain, folder / "pretrain.tsv", **bag)
        paired = folder / "full_resolution.tsv"  # sections with the image in a separate file
        table = pd.read_csv(folder / "align.tsv", sep="\t")
        table[table["image"].notna()].to_csv(paired, sep="\t", index=False)
        how = {"model": model, "config": IMAGE | changes | {"seed": seed}}
        return image_scores(model_of(run, stampy.train.align, paired, **how))

    for stage in arguments.stage or ("gene", "image"):
        variants, score = (GENE_VARIANTS, gene) if stage == "gene" else (IMAGE_VARIANTS, image)
        for line in table(variants, arguments.seeds, score):
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    if arguments.out:
        arguments.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
