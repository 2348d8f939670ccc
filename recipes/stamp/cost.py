"""Expected steps, checkpoints and GPU hours of both stages: `python recipes/stamp/cost.py`.

Linear extrapolation: the paper's number of examples, divided by the speed of one H100 in docs/performance.md ("On a
GPU"). For another GPU, pass the speeds that `benchmarks/train.py` and `benchmarks/align.py --device cuda` print.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from stampy import models
from stampy.train import AlignConfig, PretrainConfig

HERE = Path(__file__).parent
SPOTS, PAIRS = 5_750_000, 697_000  # of the paper: SpaVis-6M, HEST
SPOTS_PER_S = (1001.0, 855.0)  # 216 spots, compiled; 72 spots, not compiled
PAIRS_PER_S = (378.0,)  # 112 pairs, compiled
GENES = 20_310
RECOMPUTED = 4 / 3  # a backward pass costs two forward passes; `checkpoint_activations` adds one more
H100, A100 = 989, 312  # TFLOP/s in bfloat16, nominal
BYTES = 12  # per parameter of a checkpoint: the weight and AdamW's two moments in float32
KEPT = 2


def n_parameters(config: PretrainConfig) -> tuple[int, int]:
    """Parameters of the gene encoder, and of both with a ViT-L/16; they are counted without allocating them."""
    gene = models.GeneConfig(
        n_genes=GENES, width=config.width, depth=config.depth, heads=config.heads, feedforward=config.feedforward,
        max_tokens=config.max_tokens,
    )  # fmt: skip
    with torch.device("meta"):
        model = models.Stamp(models.StampConfig(gene=gene, embedding=config.embedding, image=models.ImageConfig()))
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return sum(n for name, n in counts.items() if name.startswith("gene")), sum(counts.values())


def hours(n: float, per_s: tuple[float, ...], factor: float = 1.0) -> str:
    """GPU hours for `n` examples, at the highest and the lowest of these speeds."""
    found = (round(n / speed * factor / 3600) for speed in (max(per_s), min(per_s)))
    return " to ".join(dict.fromkeys(map(str, found)))


def table(gpus: int, spots_per_s: tuple[float, ...], pairs_per_s: tuple[float, ...]) -> list[tuple[str, str, str]]:
    """Rows of what, stage 1, stage 2."""
    first, second = PretrainConfig.of(HERE / "pretrain.json"), AlignConfig.of(HERE / "align.json")
    epochs = first.epochs_igr + first.epochs_cgr
    spots, pairs = epochs * SPOTS, second.epochs * PAIRS * 2  # each pair has a companion of its section
    steps = epochs * (SPOTS // (first.group_size * first.groups_per_batch * gpus))
    steps_2 = second.epochs * (PAIRS // (second.pairs_per_batch // 2 * gpus))
    kept = [n * BYTES * KEPT / 1e9 for n in n_parameters(first)]

    def row(what: str, factor: float) -> tuple[str, str, str]:
        return f"GPU hours, {what}", hours(spots, spots_per_s, factor), hours(pairs, pairs_per_s, factor)

    return [
        ("examples", f"{spots / 1e6:.1f} million", f"{pairs / 1e6:.1f} million"),
        (f"steps on {gpus} GPUs", f"{steps:,}", f"{steps_2:,}"),
        ("warm-up, steps", f"{first.warmup(steps):,}", f"{second.warmup(steps_2):,}"),
        (f"checkpoints, {KEPT} kept", f"{kept[0]:.1f} GB", f"{kept[1]:.1f} GB"),
        row("H100", 1),
        row("H100, checkpoint_activations", RECOMPUTED),
        row("A100, by nominal peaks", H100 / A100),
        row("A100, checkpoint_activations", RECOMPUTED * H100 / A100),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=4, help="for the number of steps (default: %(default)s)")
    parser.add_argument("--spots-per-s", type=float, nargs="+", default=SPOTS_PER_S, help="stage 1, one GPU")
    parser.add_argument("--pairs-per-s", type=float, nargs="+", default=PAIRS_PER_S, help="stage 2, one GPU")
    given = parser.parse_args()
    print(f"{'':40}{'stage 1':>16}{'stage 2':>16}")
    for what, one, two in table(given.gpus, tuple(given.spots_per_s), tuple(given.pairs_per_s)):
        print(f"{what:40}{one:>16}{two:>16}")


if __name__ == "__main__":
    main()
