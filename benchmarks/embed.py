"""Gene features of the published architecture: a plain implementation compared with stampy's, with equal results.

    python benchmarks/embed.py [LAYERS]
    python benchmarks/embed.py 12 --device cuda      spots and tiles per second of both published encoders, bfloat16

The plain implementation loops over `nn.TransformerEncoderLayer` with all 1,500 positions in float32: once with
PyTorch's inference kernel ("fast path") and once without. Seconds per spot are those of LAYERS layers (default 2; the
published encoder has 12 of the same size).
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial

import torch
import torch.nn.functional as F

from stampy.models import GeneConfig, GeneEncoder, ImageConfig, Stamp, StampConfig

N_SPOTS = 4
LENGTHS = (473, 1000, 1500)  # tokens per spot; 473 is the mean of the CRC16 section


def encoders(depth: int):
    torch.manual_seed(0)
    ours = GeneEncoder(GeneConfig(pooling="positions", depth=depth)).eval()
    plain = [
        torch.nn.TransformerEncoderLayer(512, 16, 1024, 0.0, F.relu, 1e-12, batch_first=True).eval()
        for _ in range(depth)
    ]
    for layer, other in zip(ours.layers, plain, strict=True):
        other.load_state_dict(layer.state_dict())
    return ours, plain


def tokens_of(length: int, n: int = N_SPOTS) -> torch.Tensor:
    tokens = torch.zeros(n, 1500, dtype=torch.long)
    tokens[:, :length] = torch.randint(30, 20_000, (n, length))
    return tokens


def plain_features(ours, plain, tokens):
    ids = tokens.masked_fill(tokens == 0, 1)
    x = ours.embeddings(ids) + ours.positional_embedding.weight
    for layer in plain:
        x = layer(x, src_key_padding_mask=ids == 1)
    return x[:, 3:].mean(dim=1)


def seconds(functions, repeats: int = 5) -> list[float]:
    """Median seconds per spot of each function, alternating so that other load affects all equally."""
    times = [[] for _ in functions]
    for turn in range(repeats + 1):
        for function, took in zip(functions, times, strict=True):
            began = time.perf_counter()
            function()
            if turn:  # the first turn is a warm-up
                took.append(time.perf_counter() - began)
    return [sorted(took)[repeats // 2] / N_SPOTS for took in times]


def without_fast_path(function):
    """The same without PyTorch's inference kernel of the layer (`set_fastpath_enabled(False)`)."""
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        function()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


@torch.inference_mode()
def rows(depth: int):
    """Tokens per spot; seconds per spot of the plain code with and without fast path, and of stampy; difference."""
    ours, plain = encoders(depth)
    for length in LENGTHS:
        tokens = tokens_of(length)
        plainly = partial(plain_features, ours, plain, tokens)
        times = seconds([plainly, partial(without_fast_path, plainly), partial(ours.features, tokens)])
        error = (plainly() - ours.features(tokens)).abs().max().item()
        yield length, *times, error


@torch.inference_mode()
def on_card(depth: int, n: int = 256) -> None:
    """Spots and tiles per second of `gene_features` and `image_features`, as called by `tl.embed` on CUDA."""
    image = ImageConfig()
    model = Stamp(StampConfig(gene=GeneConfig(depth=depth), image=image)).cuda().eval()
    tiles = torch.randint(256, (n, image.size_px, image.size_px, 3), dtype=torch.uint8, device="cuda")
    print(f"{depth} layers, {image.backbone}, bfloat16, {torch.cuda.get_device_name()}\n")
    print("| of a batch of 256 | a second | GB at most |\n|---|---|---|")
    cases = {f"spots of {k} tokens": partial(model.gene_features, tokens_of(k, n).cuda()) for k in LENGTHS}
    cases["tiles of 224 px"] = partial(model.embed_images, tiles)
    for title, function in cases.items():
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            for repeats in (2, 5):
                torch.cuda.synchronize()
                began = time.perf_counter()
                for _ in range(repeats):
                    function()
                torch.cuda.synchronize()
        took = (time.perf_counter() - began) / repeats
        print(f"| {title} | {n / took:,.0f} | {torch.cuda.max_memory_allocated() / 1e9:.1f} |", flush=True)


def main(depth: int = 2) -> None:
    print(f"{depth} layers, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print()
    print("| tokens | plain s/spot | without fast path | stampy s/spot | ratio | ratio without | difference |")
    print("|---|---|---|---|---|---|---|")
    for length, plain, slow, fast, error in rows(depth):
        ratios = f"{plain / fast:.1f} | {slow / fast:.1f}"
        print(f"| {length} | {plain:.3f} | {slow:.3f} | {fast:.3f} | {ratios} | {error:.0e} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("layers", type=int, nargs="?", default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args()
    (on_card if options.device == "cuda" else main)(options.layers)
