"""A step of stage 1 compared with a straightforward implementation: peak memory, spots per second, same losses.

    python benchmarks/train.py                                          CPU, published width, 12 layers, one group
    python benchmarks/train.py --layers 4 --lengths 1500                spots with the maximum number of tokens
    python benchmarks/train.py --device cuda --groups 8 --precision bf16-mixed --compile
    python benchmarks/train.py --device cuda --only ours --profile      profile

The straightforward step pads all spots to 1,500 positions, loops over `nn.TransformerEncoderLayer` with a float32
attention mask, computes the logits of both heads at all positions, and takes the cross-entropy of the selected ones.
Lengths of spots are drawn from those of real sections unless --lengths is given. A step consists of forward, backward
and AdamW. Every variant runs in its own process. On the CPU, time is CPU time (set OMP_NUM_THREADS=1), and memory is
what the steps add, without weights and optimizer; on CUDA, memory is the peak allocation. On CUDA, the
fraction of the GPU's bfloat16 peak is the rate of the model's floating-point operations (without padding) relative to
that of a large matrix product.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import nn

from stampy._utils import stream
from stampy.models import GeneConfig, Stamp, StampConfig
from stampy.models._gene import ready_to_compile
from stampy.models._kernels import attention, cross_entropy
from stampy.train import PretrainConfig
from stampy.train._loop.loop import _prefetched
from stampy.train._pretrain_step import Reconstruction, mask_tokens
from stampy.train._samplers import moved

# Deciles of the number of genes detected per spot, at most 1,500, over the 31,716 spots of 43 public sections.
LENGTHS = (0, 231, 321, 446, 603, 766, 997, 1420, 1500, 1500, 1500)
VARIANTS = ("plain", "ours", "checkpointed")
GROUP, MAX = 9, 1500


def config_of(options, *, checkpointed=False) -> PretrainConfig:
    return PretrainConfig(
        depth=options.layers,
        groups_per_batch=options.groups,
        precision=options.precision,
        checkpoint_activations=checkpointed,
        fused=options.fused,
        compile=options.compile,
    )


def batch_of(options) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    n = options.groups * GROUP
    if options.lengths:
        lengths = np.full(n, options.lengths)
    else:
        lengths = np.interp((np.arange(n) + 0.5) / n * 10, range(11), LENGTHS).astype(int)  # the same mean for any n
        rng.shuffle(lengths)
    tokens = np.zeros((n, MAX), dtype=np.int64)
    for row, length in zip(tokens, lengths, strict=True):
        row[:length] = 30 + rng.permutation(20_310)[:length]
    used = lengths.max()
    tokens = torch.from_numpy(tokens).view(options.groups, GROUP, MAX)[..., :used]
    return {"tokens": tokens, "positions": torch.arange(used), "rows": torch.arange(n).view(-1, GROUP)}


class Plain(nn.Module):
    """The straightforward step, with the weights of the same encoder."""

    def __init__(self, model: Stamp, config: PretrainConfig):
        super().__init__()
        self.encoder, self.config, c = model.gene, config, model.gene.config
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(c.width, c.heads, c.feedforward, 0.0, F.relu, 1e-12, batch_first=True)
            for _ in range(c.depth)
        )
        for layer, own in zip(self.layers, model.gene.layers, strict=True):
            layer.load_state_dict(own.state_dict())
        model.gene.layers = nn.ModuleList()

    def forward(self, batch):
        tokens = F.pad(batch["tokens"], (0, MAX - batch["tokens"].shape[-1]))
        inputs, selected = (F.pad(batch[k], (0, MAX - batch[k].shape[-1]), value=v) for k, v in
                            (("inputs", 1), ("selected", False)))  # fmt: skip
        ids = inputs.flatten(0, 1)
        mask = torch.zeros(ids.shape, device=ids.device).masked_fill(ids == 1, float("-inf"))
        x = self.encoder.embeddings(ids) + self.encoder.positional_embedding.weight
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=mask)
        igr = self.cross_entropy(x, tokens.flatten(0, 1), selected.flatten(0, 1), "igr")
        context = x.unflatten(0, tokens.shape[:2])[:, 1:].mean(dim=1)
        return {"igr": igr, "cgr": self.cross_entropy(context, tokens[:, 0], selected[:, 0], "cgr")}

    def cross_entropy(self, hidden, targets, selected, head):
        logits = self.encoder.logits(hidden, head)
        return F.cross_entropy(logits.flatten(0, 1), targets.masked_fill(~selected, -100).flatten())


def masked(batch, config, step):
    tokens = batch["tokens"]
    found = [
        mask_tokens(row, 20_340, rng=stream(config.seed, "masks", step, i), width=MAX) for i, row in enumerate(tokens)
    ]
    return batch | {"inputs": torch.stack([a for a, _ in found]), "selected": torch.stack([b for _, b in found])}


def measure(options) -> dict:
    torch.manual_seed(0)
    config = config_of(options, checkpointed=options.variant == "checkpointed")
    fabric = Fabric(accelerator=options.device, devices=1, precision=config.precision)
    model = Stamp(StampConfig(gene=GeneConfig(depth=options.layers)))
    model.gene_head.requires_grad_(False)
    batch = batch_of(options)
    plain = options.variant == "plain"
    stage = Plain(model, config) if plain else Reconstruction(model, config, igr_steps=0)
    stage.train()
    if config.compile and not plain:
        ready_to_compile()
        for layer in stage.layers():
            layer.compile(dynamic=True)
    pieces_of = (lambda step: [masked(batch, config, step)]) if plain else (lambda step: stage.pieces(batch, step))
    result, again = measured(options, fabric, stage, pieces_of, batch=batch)
    seconds = result.pop("seconds")
    result["spots_per_s"] = options.groups * GROUP / seconds
    if options.device == "cuda":
        result |= {"TFLOPS": operations(options, batch) / seconds / 1e12, "peak_TFLOPS": matmul_peak()}
        if options.profile:
            table(again)
    return result


def measured(options, fabric, stage, pieces_of, lr=1e-4, batch=None):
    """GB, seconds and losses of steps of `stage`, stampy's or plain, on prepared pieces; and the step function."""
    attention.ENABLED = cross_entropy.ENABLED = options.attention == "ours"
    module = fabric.setup_module(stage)
    trained = [p for p in stage.parameters() if p.requires_grad]
    optimizer = fabric.setup_optimizers(torch.optim.AdamW(trained, lr=lr, fused=True))
    for p in trained:  # allocates the optimizer's memory before the first measured step
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    # CPU time on the CPU, independent of other load; use one thread.
    clock = time.perf_counter if options.device == "cuda" else time.process_time
    before, losses, times = memory(options.device), [], []

    def gradients():
        if hasattr(stage, "run"):
            return stage.run(fabric, module, pieces)
        found = module(pieces[0])
        fabric.backward(sum(found.values()))
        return found

    for step in range(options.steps + 1):
        pieces = pieces_of(step)
        pieces = [{k: fabric.to_device(v) if isinstance(v, torch.Tensor) else v for k, v in p.items()} for p in pieces]
        began = clock()
        found = gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        names = getattr(stage, "names", found)  # stage 1 also returns measures
        losses.append(sum(v.item() for k, v in found.items() if k in names))  # waits for the device
        times.append(clock() - began)
    peak = memory(options.device) - (before if options.device == "cpu" else 0)
    result = {"GB": peak / 1e9, "seconds": float(np.median(times[1:])), "losses": losses}
    if batch is not None and hasattr(stage, "run"):
        result["data_wait_s"] = data_wait(options, fabric, stage, module, batch)
    return result, gradients


class Repeated:
    """Sampler that returns the same batch for every step."""

    def __init__(self, batch, steps):
        self.steps, self._batch = steps, batch

    def batch(self, step):
        return self._batch


def data_wait(options, fabric, stage, module, batch) -> float:
    """Seconds that a step waits for its pieces, which the loop prepares in advance; tiles are in memory."""
    waits = []
    for _, _, pieces, waited in _prefetched(Repeated(batch, options.steps + 1), stage, 0):
        found = stage.run(fabric, module, [moved(piece, fabric.device) for piece in pieces])
        sum(v.item() for v in found.values())
        waits.append(waited)
    return float(np.mean(waits[1:]))


def memory(device) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def operations(options, batch) -> float:
    """Floating-point operations of forward and backward without padding; multiply and add count separately."""
    c = GeneConfig(depth=options.layers)
    lengths = (batch["tokens"] != 0).sum(dim=2).double()
    own, scored = lengths.sum().item(), 0.15 * (lengths.sum() + lengths[:, 0].sum()).item()
    layer = own * (4 * c.width**2 + 2 * c.width * c.feedforward) + 2 * c.width * (lengths**2).sum().item()
    return 6 * (c.depth * layer + scored * c.width * c.n_tokens)


def matmul_peak(n=8192, repeats=20) -> float:
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for count in (3, repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(count):
            a @ b
        torch.cuda.synchronize()
    return 2 * n**3 * repeats / (time.perf_counter() - began) / 1e12


def table(function, most=40) -> None:
    """Print the kernels of a step by their own time."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        function()
        torch.cuda.synchronize()
    found = sorted(profiled.key_averages(), key=lambda kernel: -kernel.self_device_time_total)
    print(f"{sum(kernel.self_device_time_total for kernel in found) / 1e3:.1f} ms of kernels", file=sys.stderr)
    for kernel in found[:most]:
        print(f"{kernel.self_device_time_total / 1e3:8.2f} ms {kernel.count:5} x {kernel.key[:150]}", file=sys.stderr)


def parsed(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--groups", type=int, default=1, help="groups of 9 spots in a step")
    parser.add_argument("--lengths", type=int, help="tokens of every spot (default: as in real sections)")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--fused", default="torch")
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
    return parser.parse_args(arguments)


def run(variant: str) -> dict | None:
    """Results of a variant from a new process; None if it failed, most likely out of memory."""
    done = subprocess.run([sys.executable, *sys.argv, "--variant", variant], stdout=subprocess.PIPE, text=True)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = parsed()
    if options.variant:
        print(json.dumps(measure(options)))
        return
    threads = f", {torch.get_num_threads()} threads" if options.device == "cpu" else f", {torch.cuda.get_device_name()}"
    print(f"{options.layers} layers, {options.groups} x {GROUP} spots, {options.precision}{threads}\n")
    print("| step | memory, GB | spots/s | memory, ratio | speed, ratio | data_wait_s | losses of the steps |")
    print("|---|---|---|---|---|---|---|")
    first = None
    for variant in options.only:
        found = run(variant)
        if found is None:
            print(f"| {variant} | failed, see above | | | | | |", flush=True)
            continue
        first = first or found
        print(
            f"| {variant} | {found['GB']:.2f} | {found['spots_per_s']:.3g} | {found['GB'] / first['GB']:.2f} "
            f"| {found['spots_per_s'] / first['spots_per_s']:.2f} | {found.get('data_wait_s', float('nan')):.4f} "
            f"| {' '.join(f'{x:.4f}' for x in found['losses'])} |",
            flush=True,
        )
        if "TFLOPS" in found:
            share = found["TFLOPS"] / found["peak_TFLOPS"]
            print(
                f"|   | {found['TFLOPS']:.0f} of {found['peak_TFLOPS']:.0f} TFLOPS: {share:.0%} | | | | | |", flush=True
            )


if __name__ == "__main__":
    main()
