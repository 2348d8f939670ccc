"""Slide classification from tiles by gated attention pooling (Ilse, Tomczak, Welling, ICML 2018, section 2.4).

Shapes: B slides, N tiles (padded), D size of a tile's feature, H hidden size, C classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["GatedAttentionMIL", "MILOutput"]


class MILOutput(NamedTuple):
    """Output of the pooling for slides."""

    logits: Tensor  # (B, C)
    attention: Tensor  # (B, N), sums to 1 over the tiles of a slide; 0 where padded


class GatedAttentionMIL(nn.Module):
    """Slide label from a bag of frozen tile features, by gated attention pooling.

    h = relu(W x); attention a = softmax over tiles of w · (tanh(V h) * sigmoid(U h)); slide z = sum of a h; logits C z.

    Parameters
    ----------
    n_features
        Size of a tile's feature.
    n_classes
        Classes.
    hidden
        Size of h and of the attention's branches.
    generator
        Generator for the initial weights; None: a new generator with seed 0. The global state is not changed.

    Examples
    --------
    >>> model = GatedAttentionMIL(8, 2, hidden=4)
    >>> out = model(torch.zeros(3, 5, 8), torch.tensor([5, 2, 1]))
    >>> out.logits.shape, out.attention.sum(dim=1).tolist()
    (torch.Size([3, 2]), [1.0, 1.0, 1.0])
    """

    def __init__(self, n_features: int, n_classes: int, *, hidden: int = 128, generator: torch.Generator | None = None):
        super().__init__()
        linear = nn.utils.skip_init
        self.project = linear(nn.Linear, n_features, hidden)
        self.tanh = linear(nn.Linear, hidden, hidden)
        self.gate = linear(nn.Linear, hidden, hidden)
        self.score = linear(nn.Linear, hidden, 1)
        self.classify = linear(nn.Linear, hidden, n_classes)
        self.reset(generator)

    def reset(self, generator: torch.Generator | None = None) -> None:
        """Redraw all weights."""
        generator = generator or torch.Generator().manual_seed(0)
        for module in (self.project, self.tanh, self.gate, self.score, self.classify):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)

    def embed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return h (..., H) of tiles (..., D), and their attention before the softmax (...,)."""
        h = torch.relu(self.project(x))
        return h, self.score(torch.tanh(self.tanh(h)) * torch.sigmoid(self.gate(h))).squeeze(-1)

    def forward(self, x_BND: Tensor, lengths_B: Tensor) -> MILOutput:
        """Pool padded bags; only the first `lengths` tiles of each bag are used."""
        if x_BND.ndim != 3 or int(lengths_B.min()) < 1:
            raise ValueError(f"Bags (B, N, D) of at least one tile were expected, found {tuple(x_BND.shape)}.")
        h_BNH, score_BN = self.embed(x_BND)
        padded = torch.arange(x_BND.shape[1], device=x_BND.device) >= lengths_B[:, None]
        attention = score_BN.masked_fill(padded, float("-inf")).softmax(dim=1)
        return MILOutput(self.classify(torch.einsum("bn,bnh->bh", attention, h_BNH)), attention)
