"""Low-rank updates of linear layers (LoRA, Hu et al. 2022), merged into the layers at the end."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["LoRALinear", "add_lora", "merge_lora"]


class LoRALinear(nn.Module):
    """A frozen linear layer plus a product of two low-rank matrices, which is initially zero.

    Parameters
    ----------
    linear
        Layer to update; it is not changed.
    rank
        Rank of the update.
    """

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, linear.in_features))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Apply `linear` and the update."""
        return self.linear(x) + F.linear(F.linear(x, self.down), self.up)

    @property
    def weight(self) -> Tensor:
        """Weight of the equivalent plain layer, for blocks that read it directly."""
        return self.linear.weight + self.up @ self.down

    @property
    def bias(self) -> Tensor | None:
        """Bias of the layer."""
        return self.linear.bias

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The equivalent plain layer."""
        self.linear.weight += self.up @ self.down
        return self.linear.requires_grad_(True)


def add_lora(module: nn.Module, rank: int) -> int:
    """Freeze `module` and replace every linear layer in it by a `LoRALinear`. Returns their number.

    Examples
    --------
    >>> block = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4))
    >>> add_lora(block, rank=2), merge_lora(block)
    (2, 2)
    """
    module.requires_grad_(False)
    places = [(m, name) for m in module.modules() for name, child in m.named_children() if isinstance(child, nn.Linear)]
    for parent, name in places:
        setattr(parent, name, LoRALinear(getattr(parent, name), rank))
    return len(places)


def merge_lora(module: nn.Module) -> int:
    """Undo `add_lora`, with the updates merged into the layers. Returns their number."""
    places = [
        (m, name) for m in module.modules() for name, child in m.named_children() if isinstance(child, LoRALinear)
    ]
    for parent, name in places:
        setattr(parent, name, getattr(parent, name).merged())
    return len(places)
