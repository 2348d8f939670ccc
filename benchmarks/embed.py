"""Gene features of the published architecture: the plain path against ours, same numbers.

    python benchmarks/embed.py [LAYERS]

The plain path loops over `nn.TransformerEncoderLayer`, all 1,500 positions, float32. Seconds a spot are
those of LAYERS layers (default 2; the published encoder has 12 of the same size).
"""

from __future__ import annotations

import sys
import time
from functools import partial

import torch
import torch.nn.functional as F

from stampy.models import GeneConfig, GeneEncoder

N_SPOTS = 4
LENGTHS = (473, 1000, 1500)  # tokens a spot; 473 is the mean of the CRC16 section


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


def tokens_of(length: int) -> torch.Tensor:
    tokens = torch.zeros(N_SPOTS, 1500, dtype=torch.long)
    tokens[:, :length] = torch.randint(30, 20_000, (N_SPOTS, length))
    return tokens


def plain_features(ours, plain, tokens):
    ids = tokens.masked_fill(tokens == 0, 1)
    x = ours.embeddings(ids) + ours.positional_embedding.weight
    for layer in plain:
        x = layer(x, src_key_padding_mask=ids == 1)
    return x[:, 3:].mean(dim=1)


def seconds(function, repeats: int = 3) -> float:
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2] / N_SPOTS


@torch.inference_mode()
def track_speedup(depth: int = 2):
    ours, plain = encoders(depth)
    for length in LENGTHS:
        tokens = tokens_of(length)
        slow = seconds(partial(plain_features, ours, plain, tokens))
        fast = seconds(partial(ours.features, tokens))
        error = (plain_features(ours, plain, tokens) - ours.features(tokens)).abs().max().item()
        yield length, slow, fast, slow / fast, error


if __name__ == "__main__":
    depth = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    print(f"{depth} layers, {torch.get_num_threads()} threads")
    print()
    print("| tokens | plain s/spot | stampy s/spot | ratio | difference |")
    print("|---|---|---|---|---|")
    for length, slow, fast, ratio, error in track_speedup(depth):
        print(f"| {length} | {slow:.3f} | {fast:.3f} | {ratio:.1f} | {error:.0e} |")
