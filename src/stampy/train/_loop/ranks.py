"""Distributed training: starting the ranks, sums over ranks, and gathering of rows."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from stampy._checks import at_least, one_of
from stampy._settings import settings
from stampy.train._launch_checks import STRATEGIES

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["Ranks", "is_sharded", "make_fabric", "synchronised"]


def make_fabric(
    precision: str,
    *,
    device: str | None = None,
    devices: int | None = None,
    num_nodes: int | None = None,
    strategy: str | None = None,
) -> Fabric:
    """Create Fabric for one or several processes.

    Parameters
    ----------
    precision
        Precision in Fabric's notation.
    device
        None: CUDA if available, else the CPU.
    devices, num_nodes
        Devices per node, and nodes. None: the number of processes started by torchrun or SLURM, else one.
    strategy
        One of "ddp", "ddp_spawn", "ddp_notebook", "fsdp"; None: "ddp" for more than one device.
    """
    found_devices, found_nodes = _launched()
    devices = found_devices if devices is None else devices
    num_nodes = found_nodes if num_nodes is None else num_nodes
    at_least("devices", devices, 1)
    at_least("num_nodes", num_nodes, 1)
    if strategy is not None:
        one_of("strategy", strategy, STRATEGIES)
    target = torch.device(device or settings.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    _check_devices(target, devices)
    if devices * num_nodes == 1 and strategy != "fsdp":
        chosen: Any = "auto"
    elif strategy == "fsdp":
        chosen = ModelParallelStrategy(_shard)
    else:
        chosen = DDPStrategy(
            start_method=STRATEGIES[strategy or "ddp"],
            find_unused_parameters=True,  # the CGR head is unused in the first epochs
            gradient_as_bucket_view=True,
        )
    which = [target.index] if target.index is not None and target.type != "cpu" else devices
    return Fabric(accelerator=target.type, devices=which, num_nodes=num_nodes, strategy=chosen, precision=precision)


def _launched() -> tuple[int, int]:
    if "TORCHELASTIC_RUN_ID" in os.environ:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        return here, int(os.environ["WORLD_SIZE"]) // here
    if SLURMEnvironment.detect() and "SLURM_STEP_ID" in os.environ:  # srun, not a shell within an allocation
        nodes = int(os.environ.get("SLURM_NNODES", 1))
        return int(os.environ.get("SLURM_NTASKS", nodes)) // nodes, nodes
    return 1, 1


def _check_devices(target: torch.device, devices: int) -> None:
    if target.type == "cuda":
        there = torch.cuda.device_count()
        if devices > there or (target.index or 0) >= there:
            raise ValueError(f"`devices`={devices} on {target} were requested; this machine has {there} CUDA devices.")
    if target.index is not None and devices > 1:
        raise ValueError(f"device={str(target)!r} names one device, but `devices` is {devices}. Give device='cuda'.")


class Layered(nn.Module):
    """Module that lists its Transformer layers."""

    def layers(self) -> list[nn.Module]:
        """Layers to compile or shard individually."""
        raise NotImplementedError


def _shard(stage: Layered, mesh: DeviceMesh) -> Layered:
    # Shard by Transformer layer; embeddings and heads form another unit.
    from torch.distributed.fsdp import fully_shard

    for layer in stage.layers():
        fully_shard(layer)
    fully_shard(stage)  # in place
    return stage


def is_sharded(fabric: Fabric) -> bool:
    """Whether each rank holds only a shard of the weights."""
    return isinstance(fabric.strategy, ModelParallelStrategy)


def synchronised(fabric: Fabric, module: nn.Module, now: bool) -> AbstractContextManager[None]:
    """Synchronise gradients only if `now`, as in the last piece of a batch."""
    return nullcontext() if now or fabric.world_size == 1 else fabric.no_backward_sync(module)


@dataclass(frozen=True, slots=True)
class Ranks:
    """One of `world_size` processes that share every batch; computes sums and gathers rows over all of them."""

    rank: int = 0
    world_size: int = 1

    def total(self, values: Tensor) -> Tensor:
        """Sum over ranks."""
        if self.world_size > 1:
            dist.all_reduce(values := values.clone())
        return values

    def gather(self, rows: Tensor) -> Tensor:
        """Rows of all ranks in order; gradients flow back to the rank of each row."""
        return rows if self.world_size == 1 else _Gather.apply(rows, self)


class _GatherContext(FunctionCtx):
    ranks: Ranks


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _GatherContext, rows: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks = ranks
        everyone = [torch.empty_like(rows) for _ in range(ranks.world_size)]
        dist.all_gather(everyone, rows.contiguous())
        return torch.cat(everyone)

    @staticmethod
    def backward(ctx: _GatherContext, grad: Tensor) -> tuple[Tensor, None]:
        # Gradient of the losses of all ranks with respect to the rows of this rank.
        return ctx.ranks.total(grad).chunk(ctx.ranks.world_size)[ctx.ranks.rank], None
