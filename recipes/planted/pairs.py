"""Does stage 2 learn? Simulated pairs: genes determine the direction of a tile's fibres but not its colour.

    python recipes/planted/pairs.py --sections 20 --epochs 15
    python recipes/planted/pairs.py --sections 40 --epochs 40 --device cuda

Both encoders start from random weights. Prints the fraction of tiles whose own genes are among the 1, 10 and 50 nearest
in their section, for held-out sections: of the model, of a ridge on colours and texture fitted to all other sections,
and by chance.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from stampy import models, train
from stampy._io.sections import SectionInput
from stampy.datasets._toy.planted import TILE_PX, UM_PER_PX, planted
from stampy.pp import Vocabulary

N_KEPT, N_SPOTS = 2, 256
GENE = {"width": 64, "depth": 2, "heads": 4, "feedforward": 128, "max_tokens": 80}
VIT = {"patch_size": 16, "embed_dim": 96, "depth": 2, "num_heads": 3}


def both_towers(world, seed: int) -> models.Stamp:
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=VIT, size_px=TILE_PX)
    gene = models.GeneConfig(n_genes=len(world.genes), **GENE)
    torch.manual_seed(seed)
    return models.Stamp(models.StampConfig(gene=gene, image=image, embedding=32), Vocabulary(world.genes).frame)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"sections": 20, "epochs": 15, "pairs": 128, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="CSV")
    options = parser.parse_args()
    world = planted(N_SPOTS, options.sections + N_KEPT, texture_effect=2.5, state_effect=0.5, rng=options.seed)
    sections = [
        SectionInput(data=data, name=f"left out {i}" if i < N_KEPT else f"s{i}", um_per_px=UM_PER_PX)
        for i, data in enumerate(world.sections)
    ]
    config = {"epochs": options.epochs, "pairs_per_batch": options.pairs, "lr": options.lr, "losses": ("patch_gene",),
              "augment": False, "checkpoint_every": 10**6, "prefetch": 8, "seed": options.seed}  # fmt: skip
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = train.align(
            sections[N_KEPT:], folder, model=both_towers(world, options.seed), config=config, device=options.device,
            progress=False,
        )  # fmt: skip
        steps = len((Path(folder) / "metrics.jsonl").read_text().splitlines())
    print(f"{steps} steps, {time.perf_counter() - began:.0f} s", flush=True)
    found = train.evaluate(model, sections[: N_KEPT + 10], n_groups=1, device=options.device)
    found = found[[c for c in found if c.startswith("recall")]].iloc[:N_KEPT].assign(steps=steps)
    print(found.round(3).to_string())
    if options.out:
        found.to_csv(options.out)


if __name__ == "__main__":
    main()
