"""TANGLE: a slide encoder with gated attention pooling over tile features.

Shapes: N tiles, D width, K heads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from stampy.models._systems.base import SlideSystem
from stampy.models._systems.cards import Card
from stampy.models._tensors import fill, only, read_state_dict

__all__ = ["Tangle", "load_tangle"]

_OTHER = ("rna_embedder.", "rna_reconstruction.", "mean_projector.")  # used in training, not for the embedding
_GATES = {"softmax": lambda a: a.softmax(dim=0), "sigmoid": torch.sigmoid, "relu": torch.relu,
          "leaky_relu": nn.functional.leaky_relu}  # fmt: skip


class _GatedAttention(nn.Module):
    # Gated attention: product of a tanh and a sigmoid branch, then one score.
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.attention_a = nn.Sequential(nn.Linear(width, hidden), nn.Tanh())
        self.attention_b = nn.Sequential(nn.Linear(width, hidden), nn.Sigmoid())
        self.attention_c = nn.Linear(hidden, 1)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.attention_c(self.attention_a(x_ND) * self.attention_b(x_ND))


class Tangle(SlideSystem):
    """TANGLE with one head (as published for one cohort) or several (its pan-cancer variant).

    Parameters
    ----------
    card
        Card of the system.
    in_dim, width, hidden, heads
        Size of the tile features, of the embedding, of the attention, and its heads.
    activation
        Function that turns scores into weights.
    """

    def __init__(self, card: Card, *, in_dim: int, width: int, hidden: int, heads: int | None, activation: str):
        super().__init__(card)
        self.heads, self.activation = heads, activation
        # Their nn.Sequential has a dropout after each activation, hence gaps in the numbering.
        blocks = [(in_dim, width), (width, width)] + ([(width, width * heads)] if heads else [])
        layers: dict[str, nn.Module] = {}
        for i, (a, b) in enumerate(blocks):
            layers |= {f"{4 * i}": nn.Linear(a, b), f"{4 * i + 1}": nn.LayerNorm(b), f"{4 * i + 2}": nn.GELU()}
        self.pre_attn = nn.ModuleDict(layers)
        one = _GatedAttention(width, hidden)
        self.attn = nn.ModuleList([one, *(_GatedAttention(width, hidden) for _ in range(heads - 1))]) if heads else one
        if heads:
            self.proj_multihead = nn.Linear(width * heads, width)

    def _tokens(self, features: Tensor) -> Tensor:
        """Tiles as input of each head, (N, D, K)."""
        for layer in self.pre_attn.values():
            features = layer(features)
        return features.unflatten(1, (-1, self.heads or 1))

    def _weights(self, tokens_NDK: Tensor) -> Tensor:
        nets: Iterable[nn.Module] = self.attn if isinstance(self.attn, nn.ModuleList) else [self.attn]
        scores_NK = torch.cat([net(tokens_NDK[:, :, i]) for i, net in enumerate(nets)], dim=1)
        return _GATES[self.activation](scores_NK)

    def attention(self, features: Tensor) -> Tensor:
        """Weights (N, K) of the tiles; with softmax each column sums to 1."""
        return self._weights(self._tokens(_checked(features, self)))

    def embed_slide(self, features: Tensor) -> Tensor:
        """Tile features (N, d), such as UNI's, of one slide -> (D,)."""
        tokens_NDK = self._tokens(_checked(features, self))
        weighted_NDK = tokens_NDK * self._weights(tokens_NDK)[:, None, :]
        mean = self.activation == "sigmoid" and not self.heads
        pooled_DK = weighted_NDK.mean(dim=0) if mean else weighted_NDK.sum(dim=0)
        return self.proj_multihead(pooled_DK.flatten()) if self.heads else pooled_DK[:, 0]


def _checked(features: Tensor, system: Tangle) -> Tensor:
    width = system.pre_attn["0"].in_features
    if features.ndim != 2 or features.shape[1] != width or not len(features):
        raise ValueError(
            f"TANGLE expects the features (N, {width}) of at least one tile of a slide, found {tuple(features.shape)}. "
            "They must be of the encoder that it was trained with (UNI)."
        )
    return features


def load_tangle(card: Card, path: Path) -> Tangle:
    """Load `model.pt` (or the folder with it and config.json) with TANGLE's names; sizes follow from the tensors."""
    folder = path if path.is_dir() else path.parent
    file = path / "model.pt" if path.is_dir() else path
    where = str(file)
    tensors = only(read_state_dict(file), where=where, prefix="wsi_embedder.", ignored=_OTHER)
    first, multi = tensors.get("pre_attn.0.weight"), "proj_multihead.weight" in tensors
    hidden = tensors.get("attn.0.attention_c.weight" if multi else "attn.attention_c.weight")
    if first is None or hidden is None:
        raise ValueError(f"{where!r} is not a TANGLE checkpoint. First names found: {list(tensors)[:5]}.")
    numbers = {int(m[1]) for k in tensors if multi and (m := re.match(r"attn\.(\d+)\.", k))}
    with torch.device("meta"):
        system = Tangle(card, in_dim=first.shape[1], width=first.shape[0], hidden=hidden.shape[1],
                        heads=len(numbers) or None, activation=_activation(folder / "config.json"))  # fmt: skip
    fill(system, tensors, where=where)
    return system


def _activation(config: Path) -> str:
    """Activation named in the config.json next to the weights; softmax, the default, if there is none."""
    if not config.is_file():
        return "softmax"
    name = json.loads(config.read_text()).get("activation", "softmax")
    if name not in _GATES:
        raise ValueError(f"{str(config)!r} names the activation {name!r}; known are {sorted(_GATES)}.")
    return name
