"""bfloat16 compared with float32 on this CPU: ``python benchmarks/precision.py``.

A tile of 224 px through ViT-L/16, and spots of 1,000 tokens through 2 gene layers of the published size, with random
weights. Reports median CPU seconds over several turns, and the maximum distance of an output vector from that in
float32, relative to its norm.
"""

import time

import timm
import torch
from embed import encoders, tokens_of

TURNS = 3


def outputs(function, *, low: bool) -> tuple[torch.Tensor, float]:
    """Outputs (n, d), and CPU seconds per output."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        began = time.process_time()
        found = function()
        return found.float(), (time.process_time() - began) / len(found)


def main() -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_large_patch16_224", pretrained=False, num_classes=0).eval()
    tiles = torch.rand(2, 3, 224, 224)
    ours, _ = encoders(2)
    tokens = tokens_of(1000)
    told = torch.cpu.get_capabilities()
    print("AVX512-BF16:", told.get("avx512_bf16", False), " AMX-BF16:", told.get("amx_bf16", False))
    print(f"{'':26}{'float32 s':>10}{'bfloat16 s':>11}{'times':>7}{'distance':>10}")
    for name, function in (("ViT-L/16, a tile", lambda: vit(tiles)), ("2 gene layers, a spot", lambda: ours(tokens))):
        turns = [[outputs(function, low=low) for low in (False, True)] for _ in range(TURNS + 1)][1:]
        full, half = (sorted(turn[i][1] for turn in turns)[TURNS // 2] for i in (0, 1))
        exact, rough = turns[0][0][0], turns[0][1][0]
        far = float(((rough - exact).norm(dim=-1) / exact.norm(dim=-1)).max())
        print(f"{name:26}{full:>10.3f}{half:>11.3f}{full / half:>7.2f}{far:>10.4f}", flush=True)


if __name__ == "__main__":
    main()
