"""EGN: a ViT that uses the most similar known spots (exemplars) to predict the expression of a spot.

Implemented from its description (arXiv 2210.16721). Shapes: B tiles, T tokens, S side of the token grid, K exemplars,
G genes, M size of the retrieval feature, D width, H heads of a bridge, C channels of such a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["EGN"]


class _Residual(nn.Module):
    # Adds a feed-forward block after layer norm to the input.
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class _SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int, head_dim: int = 64):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x_BTD)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Bridge(nn.Module):
    """Exchange between the tokens of the image, the tile as a whole, and its exemplars.

    Exemplars and tile update each other through gates. The tile then gates the tokens at each position, and the result
    is added to tokens and tile.
    """

    def __init__(self, width: int, heads: int, channels: int, side: int):
        super().__init__()
        self.heads, self.side = heads, side
        inner = heads * channels
        self.gates = nn.Sequential(
            nn.Linear(2 * width, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 2 * width)
        )  # fmt: skip
        self.value = nn.Linear(width, width)
        self.exemplar_norm = nn.LayerNorm(width)
        self.tokens_in = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, inner))
        self.places = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, heads * side * side))
        self.tokens_out = nn.Linear(inner, width, bias=False)
        self.tile_out = nn.Linear(inner, width, bias=False)

    def forward(self, x_BTD: Tensor, tile_B1D: Tensor, known_BKD: Tensor, values_BKD: Tensor) -> tuple[Tensor, ...]:
        value_BKD = self.value(values_BKD)
        to_tile, to_known = self.gates(torch.cat([tile_B1D - known_BKD, known_BKD], dim=2)).sigmoid().chunk(2, dim=2)
        tile_new = tile_B1D + (to_tile * value_BKD).mean(dim=1, keepdim=True)
        known_BKD = self.exemplar_norm(known_BKD + to_known * value_BKD)
        gate_BTH1 = self.places(tile_new).sigmoid().view(len(x_BTD), self.heads, -1).transpose(1, 2).unsqueeze(3)
        passed_BTHC = self.tokens_in(x_BTD).unflatten(2, (self.heads, -1)) * gate_BTH1
        passed = passed_BTHC.flatten(2)
        return x_BTD + self.tokens_out(passed), tile_B1D + self.tile_out(passed.mean(1, keepdim=True)), known_BKD


class EGN(nn.Module):
    """Exemplar-guided network.

    The default widths are those of its authors. With 5,000 genes and 2,048 features (of a ResNet-50) it has 144.96 M
    trainable parameters. The paper of STAMP states 146.02 M, but not its settings: the settings used here (tiles of 224
    px, bridges of eight heads of 32) agree with it after adding the 1.05 M parameters that the published code declares
    in its bridges (one output layer each) and never uses.

    Parameters
    ----------
    n_genes
        Number of genes to predict.
    feature_dim
        Size of the features for finding exemplars.
    size_px, patch_px
        Edge of a tile and of the ViT's patches.
    width, depth, heads, feedforward
        Size of the ViT.
    bridge_heads, bridge_channels, bridge_every
        Heads and channels of the exchange with the exemplars, and the number of layers between exchanges.
    projector_depth
        Feed-forward blocks that bring features to the width of the ViT.

    Examples
    --------
    >>> import torch
    >>> egn = EGN(3, feature_dim=5, size_px=32, patch_px=16, width=16, depth=2, heads=2, feedforward=32)
    >>> images, features = torch.zeros(2, 3, 32, 32), torch.zeros(2, 5)
    >>> egn(images, features, torch.zeros(2, 4, 5), torch.zeros(2, 4, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        n_genes: int,
        *,
        feature_dim: int = 2048,
        size_px: int = 224,
        patch_px: int = 32,
        width: int = 1024,
        depth: int = 8,
        heads: int = 16,
        feedforward: int = 4096,
        bridge_heads: int = 8,
        bridge_channels: int = 32,
        bridge_every: int = 2,
        projector_depth: int = 2,
    ):
        super().__init__()
        side = size_px // patch_px
        self.size_px, self.patch_px = size_px, patch_px
        self.patches = nn.Linear(3 * patch_px**2, width)
        self.positions = nn.Parameter(torch.randn(1, side**2 + 1, width) * 0.02)
        self.tile = nn.Linear(feature_dim, width)
        self.exemplar = nn.Linear(feature_dim + n_genes, width)
        self.projector = nn.Sequential(*(_Residual(width, width) for _ in range(projector_depth)))
        self.expression = nn.Linear(n_genes, width)
        self.attention = nn.ModuleList(_SelfAttention(width, heads) for _ in range(depth))
        self.mlp = nn.ModuleList(_Residual(width, feedforward) for _ in range(depth))
        bridged = range(bridge_every - 1, depth, bridge_every)
        self.bridges = nn.ModuleDict({str(i): _Bridge(width, bridge_heads, bridge_channels, side) for i in bridged})
        self.pool = nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, n_genes))

    def forward(self, images: Tensor, features: Tensor, known_features: Tensor, known_values: Tensor) -> Tensor:
        """Expression (B, G).

        Parameters
        ----------
        images
            (B, 3, size_px, size_px), normalised.
        features
            (B, M) of the tiles.
        known_features, known_values
            (B, K, M) and (B, K, G) of the exemplars of each tile.
        """
        x_BTD = self._tokens(images)
        places = self.positions[:, : x_BTD.shape[1]]
        x_BTD = x_BTD + places
        tile_B1D = self.projector(self.tile(features)[:, None])
        known_BKD = self.projector(self.exemplar(torch.cat([known_features, known_values], dim=2)))
        values_BKD = self.expression(known_values)
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x_BTD = x_BTD + attention(x_BTD + places)
            if str(i) in self.bridges:
                x_BTD, tile_B1D, known_BKD = self.bridges[str(i)](x_BTD, tile_B1D, known_BKD, values_BKD)
            x_BTD = mlp(x_BTD)
        return self.head(torch.cat([self._pooled(x_BTD), tile_B1D[:, 0]], dim=1))

    def _tokens(self, images: Tensor) -> Tensor:
        p = self.patch_px
        return self.patches(F.unfold(images, kernel_size=p, stride=p).transpose(1, 2))

    def _pooled(self, x_BTD: Tensor) -> Tensor:
        # Channel attention next to the plain mean, with the constants of the publication.
        score_BTD = self.pool(x_BTD)
        return score_BTD.mean(1) + 0.5 * (score_BTD * (0.1 * score_BTD).softmax(dim=1)).sum(1)
