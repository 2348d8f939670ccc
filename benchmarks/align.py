"""A step of stage 2 compared with a straightforward implementation: peak memory, pairs per second, same losses.

    python benchmarks/align.py --backbone vit_small_patch16_224 --layers 4 --steps 1               CPU
    python benchmarks/align.py --device cuda --pairs 128 --precision bf16-mixed --compile         ViT-L/16
    python benchmarks/align.py --device cuda --pairs 128 --precision bf16-mixed --profile         profile

The straightforward step passes patches and regions through the ViT one after the other, pads all spots to 1,500
positions with a float32 attention mask, and loops over `nn.TransformerEncoderLayer`. Both steps train all parameters of
both encoders, on random tiles. A step consists of normalisation of the tiles (uint8), forward, backward and AdamW.
Memory, time and fraction of the GPU's peak are measured as in `train.py`.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn
from train import LENGTHS, MAX, matmul_peak, measured, run, table

from stampy.models import GeneConfig, ImageConfig, Stamp, StampConfig
from stampy.models._gene import ready_to_compile
from stampy.train import AlignConfig
from stampy.train._align_step import Alignment

VARIANTS = ("plain", "ours", "checkpointed", "in 4 pieces")


def batch_of(options) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    n, size = options.pairs, 224
    lengths = np.interp((np.arange(n) + 0.5) / n * 10, range(11), LENGTHS).astype(int)
    rng.shuffle(lengths)
    tokens = np.zeros((n, MAX), dtype=np.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = 30 + rng.permutation(20_310)[:length]
    tiles = rng.integers(0, 256, (2, n, size, size, 3), dtype=np.uint8)
    arrays = {"tokens": tokens, "patches": tiles[0], "regions": tiles[1]}
    arrays |= {"cells": rng.integers(0, 9, n), "rows": np.arange(n)}
    return {k: torch.from_numpy(v) for k, v in arrays.items()}


class Plain(nn.Module):
    """The straightforward step, with the weights of the same model."""

    def __init__(self, stage: Alignment):
        super().__init__()
        self.model, self.losses = stage.model, stage.losses
        c = self.model.gene.config
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(c.width, c.heads, c.feedforward, 0.0, F.relu, 1e-12, batch_first=True)
            for _ in range(c.depth)
        )
        for layer, own in zip(self.layers, self.model.gene.layers, strict=True):
            layer.load_state_dict(own.state_dict())
        self.model.gene.layers = nn.ModuleList()

    def forward(self, piece):
        model = self.model
        patches, regions = (model.image.normalize(piece[k]) for k in ("patches", "regions"))
        region = model.regions(regions, model.image.shrink(patches))
        out = {"scale": model.scale, "patch": model.image_embeddings(patches), "gene": self.genes(piece["tokens"])}
        out |= {"region": region.embeddings, "query": region.query, "grid": region.grid}
        return self.losses(out, [piece], piece["there"].cpu())

    def genes(self, tokens):
        gene = self.model.gene
        ids, lengths = gene.ids(tokens)
        mask = torch.zeros(ids.shape, device=ids.device).masked_fill(ids == 1, float("-inf"))
        x = gene.embeddings(ids) + gene.positional_embedding.weight
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask)
        own = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
        feature = (x * own[..., None]).sum(dim=1) / lengths.clamp(min=1)[:, None]
        return self.model.project_genes(feature * (lengths > 0)[:, None])


def measure(options) -> dict:
    torch.manual_seed(0)
    config = AlignConfig(
        precision=options.precision,
        checkpoint_activations=options.variant == "checkpointed",
        accumulate=4 if options.variant == "in 4 pieces" else 1,
        compile=options.compile,
        augment=False,
    )
    fabric = Fabric(accelerator=options.device, devices=1, precision=config.precision)
    extra = {} if options.backbone != "vit_large_patch16_224" else ImageConfig().backbone_kwargs
    image = ImageConfig(backbone=options.backbone, backbone_kwargs=extra)
    model = Stamp(StampConfig(gene=GeneConfig(depth=options.layers), image=image))
    for head in (model.gene.igr_head, model.gene.cgr_head):  # not used in this stage
        head.requires_grad_(False)
    plain, batch = options.variant == "plain", batch_of(options)
    stage = Alignment(model, config)
    if config.compile and not plain:
        ready_to_compile()
        for layer in stage.layers():
            layer.compile(dynamic=True)
    stage = Plain(stage) if plain else stage
    stage.train()
    there = torch.stack([(batch["tokens"] != 0).any(dim=1), batch["cells"] >= 0])  # spots with genes, with a region
    whole = {**batch, "there": there}
    pieces_of = (lambda step: [whole | {"step": step}]) if plain else (lambda step: stage.pieces(batch, step))
    result, again = measured(options, fabric, stage, pieces_of, lr=1e-5, batch=batch)
    seconds = result.pop("seconds")
    result["pairs_per_s"] = options.pairs / seconds
    if options.device == "cuda":
        result |= {"TFLOPS": operations(model, options, batch) / seconds / 1e12, "peak_TFLOPS": matmul_peak()}
        if options.profile:
            table(again)
    return result


def operations(model, options, batch) -> float:
    """Floating-point operations of forward and backward of both encoders; multiply and add count separately."""
    vit, gene = model.image.base_model, GeneConfig(depth=options.layers)
    n_tokens, width = (224 // model.image.patch_px) ** 2 + 2, model.image.width
    images = 2 * options.pairs * len(vit.blocks) * (12 * n_tokens * width**2 + 2 * n_tokens**2 * width)
    lengths = (batch["tokens"] != 0).sum(dim=1).double()
    own = lengths.sum().item()
    layer = own * (4 * gene.width**2 + 2 * gene.width * gene.feedforward)
    return 6 * (images + gene.depth * (layer + 2 * gene.width * (lengths**2).sum().item()))


def parsed():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--backbone", default="vit_large_patch16_224")
    parser.add_argument("--layers", type=int, default=12, help="of the gene encoder")
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument(
        "--attention",
        default="ours",
        choices=("ours", "torch"),
        help="kernels on CUDA in bfloat16, of the loss, too",
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--only", choices=VARIANTS, nargs="+", default=VARIANTS, help="steps to time")
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parsed()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    threads = f"{torch.get_num_threads()} threads" if options.device == "cpu" else torch.cuda.get_device_name()
    print(f"{options.backbone}, {options.layers} gene layers, {options.pairs} pairs, {options.precision}, {threads}\n")
    print(
        "| step | memory, GB | pairs/s | memory ratio | speed ratio | of the peak | data_wait_s | losses of the steps |"
    )
    print("|---|---|---|---|---|---|---|---|")
    first = None
    for variant in options.only:
        found = run(variant)
        if found is None:
            print(f"| {variant} | failed, see above | | | | | | |", flush=True)
            continue
        first = first or found
        share = f"{found['TFLOPS'] / found['peak_TFLOPS']:.0%}" if "TFLOPS" in found else "–"
        print(
            f"| {variant} | {found['GB']:.2f} | {found['pairs_per_s']:.3g} | {found['GB'] / first['GB']:.2f} "
            f"| {found['pairs_per_s'] / first['pairs_per_s']:.2f} | {share} "
            f"| {found.get('data_wait_s', float('nan')):.4f} "
            f"| {' '.join(f'{x:.4f}' for x in found['losses'])} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
