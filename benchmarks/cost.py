"""Cost of embedding 10, 1,000 and 100,000 sections, extrapolated from measured slopes.

python benchmarks/cost.py                      seconds of one core, for genes and image encoders of three sizes
python benchmarks/cost.py --device cuda        seconds of this GPU, in bfloat16
"""

from __future__ import annotations

import argparse
import time

import torch

import stampy
from stampy import models, tl

TOWERS = {"ViT-S/16": "vit_small_patch16_224", "ViT-B/16": "vit_base_patch16_224", "ViT-L/16": "vit_large_patch16_224"}
SECTIONS = (10, 1_000, 100_000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--spots", type=int, default=3000, help="of a section")
    parser.add_argument("--laptop", type=int, default=8, help="cores of the laptop")
    parser.add_argument("--cluster", type=int, default=512, help="cores of the cluster, or its GPUs")
    asked = parser.parse_args()
    slopes = {"genes (stampy-mini)": genes(asked.device)}
    slopes |= {name: tiles(kind, asked.device) for name, kind in TOWERS.items()}
    unit = "core" if asked.device == "cpu" else "GPU"
    for name, seconds in slopes.items():
        print(f"{name:22} {seconds * 1e3:10.4g} ms of a {unit} per spot")
    many = [(f"one {unit}", 1), *([("laptop", asked.laptop)] if unit == "core" else []), ("cluster", asked.cluster)]
    print(f"\n| model | {unit} per spot | where | {' | '.join(f'{n:,} sections' for n in SECTIONS)} |")
    print("|---|---|---|" + "---|" * len(SECTIONS))
    for name, seconds in slopes.items():
        for where, n in many:
            found = [told(sections * asked.spots * seconds / n) for sections in SECTIONS]
            where = where if n == 1 else f"{where}, {n} {unit}s"
            print(f"| {name} | {seconds * 1e3:.3g} ms | {where} | {' | '.join(found)} |")


def told(seconds: float) -> str:
    for size, word in ((86400 * 365, "years"), (86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {word}"
    return f"{seconds:.2g} s"


def clock(device: str) -> float:
    """CPU seconds of this process, or wall seconds after synchronising the GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def genes(device: str) -> float:
    """Seconds per spot from the difference of a large and a small section (36,601 genes, 1,300 detected per spot)."""
    took = []
    model = models.load("stampy-mini", device=device)
    for n in (500, 4500):
        adata = section(n)
        tl.embed(adata[:200].copy(), model, modality="gene", show_progress_bar=False)  # compiles
        began = clock(device)
        tl.embed(adata, model, modality="gene", show_progress_bar=False)
        took.append(clock(device) - began)
    return (took[1] - took[0]) / 4000


def section(n: int):
    """Counts as in Visium: genes of the packaged vocabulary, 1,300 of them detected per spot."""
    import anndata
    import numpy as np
    from scipy import sparse

    vocabulary = stampy.pp.Vocabulary(models.load("stampy-mini", device="cpu").genes)
    random = np.random.default_rng(0)
    columns = np.concatenate([random.choice(len(vocabulary), 1300, replace=False) for _ in range(n)])
    values = random.poisson(2, n * 1300).astype(np.float32) + 1
    counts = sparse.csr_matrix((values, columns, np.arange(0, n * 1300 + 1, 1300)), shape=(n, len(vocabulary)))
    counts.sort_indices()
    adata = anndata.AnnData(counts)
    adata.var_names = vocabulary.gene_ids
    return adata


def tiles(backbone: str, device: str) -> float:
    """Seconds per tile of 224 px through the encoder, with random weights."""
    import timm

    model = timm.create_model(backbone, pretrained=False, num_classes=0).to(device).eval()
    n, repeats = (4, 2) if device == "cpu" else (256, 10)
    pixels = torch.rand(n, 3, 224, 224, device=device)
    low = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=device != "cpu")
    with torch.inference_mode(), low:
        model(pixels)
        began = clock(device)
        for _ in range(repeats):
            model(pixels)
        return (clock(device) - began) / (n * repeats)


if __name__ == "__main__":
    main()
