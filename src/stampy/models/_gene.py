"""Gene encoder: from the ranked gene tokens of a spot to a feature.

Shapes: B spots, L positions, K key positions, T positions of all spots concatenated, D width, H heads, M selected
positions, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from stampy import _keys
from stampy._field_names import checked_names

from ._kernels.attention import Spans, attention, spans_for
from ._kernels.cross_entropy import Kernel, cross_entropy_by_kind, linear_cross_entropy
from ._kernels.packed import Packing, attend
from ._limits import check_gene

__all__ = ["MASK_ID", "PAD_ID", "GeneConfig", "GeneEncoder"]

MASK_ID = 0
PAD_ID = 1  # of the encoder; in obsm["stamp_tokens"], padding is 0, which is not a gene either
_SPARE_ROWS = 5  # the published embedding table has five rows more than tokens
_UNPOOLED = 3  # the published pooling excludes the first three positions


@checked_names
@dataclass(frozen=True, kw_only=True, slots=True)
class GeneConfig:
    """Sizes of a `GeneEncoder`; the defaults are those of the paper.

    Parameters
    ----------
    n_genes
        Genes in the vocabulary; gene i has token i + 30.
    width, depth, heads, feedforward
        Size of the Transformer.
    max_tokens
        Number of positions; longer token lists are truncated to the highest-ranked genes.
    pooling
        ``"tokens"`` averages the outputs of the spot's own tokens. ``"positions"`` averages positions 3 to
        ``max_tokens - 1``, padding included, which the published weights need. ``"sum"`` is the sum of the outputs of
        the spot's own tokens, divided by ``max_tokens``, and thus retains the number of genes. ``"bag"`` is the same
        sum over the input of the first layer, without the position embedding: the contribution of a gene does not
        depend on the other genes, and a feature is cheap to compute. The layers are then used only to reconstruct
        genes.
    tied_heads
        Reconstruct genes through the transposed token embedding (far fewer parameters) instead of a separate matrix.
    dropout
        Dropout rate in training, after the attention and the feed-forward block.
    norm
        ``"post"``: layer norm after each block, as published. ``"pre"``: before each block, so that the embeddings
        reach the pooling unchanged.
    rank_gate
        Multiply the embedding of a gene by a learned vector of its rank, before the position embedding is added, so
        that the weight of a gene depends on how far it exceeds its usual level.

    Examples
    --------
    >>> GeneConfig(n_genes=20_000, width=192, depth=3).n_tokens
    20030
    """

    n_genes: int = 20_310
    width: int = 512
    depth: int = 12
    heads: int = 16
    feedforward: int = 1024
    max_tokens: int = _keys.MAX_TOKENS
    pooling: Literal["tokens", "positions", "sum", "bag"] = "tokens"
    tied_heads: bool = False
    dropout: float = 0.0
    norm: Literal["post", "pre"] = "post"
    rank_gate: bool = False

    @property
    def n_tokens(self) -> int:
        """Number of classes of the reconstruction heads: genes and special tokens."""
        return self.n_genes + _keys.N_SPECIAL


def ready_to_compile() -> None:
    """Exclude `attend` from compilation, since lengths differ between batches; call this before layers are compiled.

    Not done on import, since it loads torch's compiler, which takes a second.
    """
    global _attend
    _attend = torch.compiler.disable(attend)


_attend: Callable[..., Tensor] = attend


class _Attention(nn.Module):
    # Parameter names as in `nn.MultiheadAttention`.
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def packed(self, x_TD: Tensor, packing: Packing | Spans) -> Tensor:
        qkv = F.linear(x_TD, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, -1))
        if isinstance(packing, Spans):
            if qkv.dtype == packing.dtype:
                return self.out_proj(attention(qkv, packing).flatten(1))
            packing = packing.packing
        return self.out_proj(_attend(*qkv.unbind(1), packing).flatten(1))

    def forward(self, x_BLD: Tensor, n_keys: int | Packing | Spans, mask: Tensor | None) -> Tensor:
        if isinstance(n_keys, Packing | Spans):
            return self.packed(x_BLD, n_keys)
        D = x_BLD.shape[-1]
        if n_keys == x_BLD.shape[1]:
            q, k, v = F.linear(x_BLD, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        else:  # padding positions are queries only, never keys or values
            q = F.linear(x_BLD, self.in_proj_weight[:D], self.in_proj_bias[:D])
            kv = F.linear(x_BLD[:, :n_keys], self.in_proj_weight[D:], self.in_proj_bias[D:])
            k, v = kv.chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        out_BHLd = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(out_BHLd.transpose(1, 2).flatten(2))


class _Layer(nn.Module):
    # A Transformer encoder layer with the parameter names of `nn.TransformerEncoderLayer`.
    def __init__(self, config: GeneConfig):
        super().__init__()
        self.self_attn = _Attention(config.width, config.heads)
        self.linear1 = nn.Linear(config.width, config.feedforward)
        self.linear2 = nn.Linear(config.feedforward, config.width)
        self.norm1 = nn.LayerNorm(config.width, eps=1e-12)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-12)
        self.dropout = config.dropout
        self.pre_norm = config.norm == "pre"

    def forward(self, x_BLD: Tensor, n_keys: int | Packing | Spans, mask: Tensor | None = None) -> Tensor:
        if self.pre_norm:
            x_BLD = x_BLD + self._drop(self.self_attn(self.norm1(x_BLD), n_keys, mask))
            return x_BLD + self._drop(self.linear2(self._relu(self.linear1(self.norm2(x_BLD)))))
        x_BLD = self.norm1(x_BLD + self._drop(self.self_attn(x_BLD, n_keys, mask)))
        return self.norm2(x_BLD + self._drop(self.linear2(self._relu(self.linear1(x_BLD)))))

    def _relu(self, x: Tensor) -> Tensor:
        # In place only if no hook can see the input: the gradient needs only the result.
        return F.relu(x, inplace=self.training or not torch.is_grad_enabled())

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class GeneEncoder(nn.Module):
    """Transformer over a spot's gene tokens (paper, section 3.1).

    Parameters
    ----------
    config
        Sizes.

    Examples
    --------
    >>> import torch
    >>> encoder = GeneEncoder(GeneConfig(n_genes=50, width=8, depth=1, heads=2, feedforward=16, max_tokens=6))
    >>> tokens = torch.tensor([[35, 40, 31, 0, 0, 0], [79, 30, 0, 0, 0, 0]])
    >>> encoder.features(tokens).shape
    torch.Size([2, 8])
    """

    def __init__(self, config: GeneConfig):
        super().__init__()
        check_gene(config)
        self.config = config
        self.checkpointing = False  # activation checkpointing: keep only the inputs of layers
        self.embeddings = nn.Embedding(config.n_tokens + _SPARE_ROWS, config.width, padding_idx=PAD_ID)
        self.positional_embedding = nn.Embedding(config.max_tokens, config.width)
        if config.rank_gate:
            self.rank_gate = nn.Parameter(torch.ones(config.max_tokens, config.width))
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.depth))
        self.igr_head = _Head(config)
        self.cgr_head = _Head(config)
        if config.tied_heads:
            # A table that is also a classifier is initialised with small values. Without a final layer norm ("pre"),
            # its outputs would be small too: with 0.02, training takes twice as many steps, and ranks blur genes.
            std = 2 / config.width**0.5 if config.norm == "pre" else 0.02
            nn.init.normal_(self.embeddings.weight, std=std)
            nn.init.normal_(self.positional_embedding.weight, std=0.02)

    def forward(self, ids_BL: Tensor, n_keys: int | None = None, positions: Tensor | None = None) -> Tensor:
        """Outputs of the last layer at every position.

        Parameters
        ----------
        ids_BL
            (B, L) ids of the encoder, L at most ``max_tokens``: `PAD_ID` pads, `MASK_ID` masks.
        n_keys
            Positions from this index on are padding in every row (computed from the ids by default).
        positions
            (L,) positions of the columns of `ids_BL` in the ranking; None: 0, 1, 2, ...

        Returns
        -------
        (B, L, D). Padding is never attended to, except in rows that consist only of padding; their output is finite but
        meaningless.
        """
        pad_BL = ids_BL == PAD_ID
        lengths_B = (~pad_BL).sum(dim=1)
        if n_keys is None:
            n_keys = max(int(lengths_B.max()), 1) if len(ids_BL) else ids_BL.shape[1]
        mask = None
        if bool((lengths_B < n_keys).any()):
            attended = ~pad_BL[:, :n_keys] | (lengths_B == 0)[:, None]
            mask = attended[:, None, None, :]
        x_BLD = self._embed(ids_BL, positions)
        for layer in self.layers:
            x_BLD = layer(x_BLD, n_keys, mask)
        return x_BLD

    def _embed(self, ids_BL: Tensor, positions: Tensor | None) -> Tensor:
        if positions is not None and positions.is_cuda:  # its gradient is faster than that of an index
            places = self.positional_embedding(positions)
        else:
            places = self.positional_embedding.weight[slice(ids_BL.shape[1]) if positions is None else positions]
        return self._genes(ids_BL, positions) + places

    def _genes(self, ids_BL: Tensor, positions: Tensor | None) -> Tensor:
        x_BLD = self.embeddings(ids_BL)
        if not self.config.rank_gate:
            return x_BLD
        return x_BLD * self.rank_gate[slice(ids_BL.shape[1]) if positions is None else positions]

    def packed(self, ids_T: Tensor, packing: Packing, positions: Tensor | None = None) -> Tensor:
        """`forward` for concatenated spots: the same outputs (T, D), padded only where `packing` requests it.

        Parameters
        ----------
        ids_T
            Ids of the encoder, concatenated by `Packing.pack`.
        packing
            Lengths of the spots.
        positions
            (L,) positions of the columns in the ranking; None: 0, 1, 2, ...
        """
        places_T = packing.column if positions is None else positions[packing.column]
        x_TD = self._embed(ids_T, places_T)
        kind, heads = x_TD.device.type, self.config.heads
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x_TD.dtype
        spans = spans_for(packing, low, heads, self.config.width // heads)
        for layer in self.layers:
            if self.checkpointing and torch.is_grad_enabled():
                x_TD = checkpoint(layer, x_TD, spans, use_reentrant=False)
            else:
                x_TD = layer(x_TD, spans)
        return x_TD

    def residual_outputs(self) -> list[nn.Linear]:
        """The linear layers by which attention and feed-forward blocks add to the residual stream."""
        layers = [layer for layer in self.layers if isinstance(layer, _Layer)]
        return [last for layer in layers for last in (layer.self_attn.out_proj, layer.linear2)]

    def features(self, tokens: Tensor) -> Tensor:
        """One feature per spot: the pooled outputs of the last layer.

        Parameters
        ----------
        tokens
            (B, L) as in ``obsm["stamp_tokens"]``: 0 pads on the right.

        Returns
        -------
        (B, D); zeros for a spot without tokens.
        """
        return self.pooled(*self.ids(tokens))

    def pooled(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """`features` of ids of the encoder (B, L) and the number of tokens (B,), as returned by `ids`.

        Separate from `features` for callers that mask tokens. With lengths on the CPU, training does not wait for the
        GPU.
        """
        n_keys = max(int(lengths_B.max()), 1) if len(ids_BL) else 1
        if self.config.pooling == "bag":
            genes_BLD = self._genes(ids_BL[:, :n_keys], None)
            return (genes_BLD * (ids_BL[:, :n_keys, None] != PAD_ID)).sum(dim=1) / self.config.max_tokens
        if self.training and len(ids_BL):
            return self._trained_features(ids_BL, lengths_B)
        lengths_B = lengths_B.to(ids_BL.device, non_blocking=ids_BL.is_cuda)
        if self.config.pooling == "positions":
            pooled = self(ids_BL, n_keys)[:, _UNPOOLED:].mean(dim=1)
        else:
            x_BLD = self(ids_BL[:, :n_keys], n_keys)
            own_BL = torch.arange(n_keys, device=ids_BL.device) < lengths_B[:, None]
            share = self.config.max_tokens if self.config.pooling == "sum" else lengths_B.clamp(min=1)[:, None]
            weights_BL = own_BL / share
            pooled = torch.einsum("bl,bld->bd", weights_BL.to(x_BLD.dtype), x_BLD)
        return pooled * (lengths_B > 0)[:, None]

    def _trained_features(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        # Same as `features`; packed, since training batches are not sorted by length.
        every = self.config.pooling == "positions"
        packing = Packing.of(lengths_B, torch.full_like(lengths_B, ids_BL.shape[1]) if every else None, ids_BL.device)
        lengths_B = lengths_B.to(ids_BL.device, non_blocking=ids_BL.is_cuda)
        x_TD = self.packed(packing.pack(ids_BL, PAD_ID), packing)
        if every:
            weights_T = (packing.column >= _UNPOOLED) / max(ids_BL.shape[1] - _UNPOOLED, 1)
        else:
            lengths_T = lengths_B[packing.spot]
            share = self.config.max_tokens if self.config.pooling == "sum" else lengths_T.clamp(min=1)
            weights_T = (packing.column < lengths_T) / share
        sums_BD = x_TD.new_zeros(len(ids_BL), x_TD.shape[1])
        sums_BD = sums_BD.index_add(0, packing.spot, x_TD * weights_T[:, None].to(x_TD.dtype))
        return sums_BD * (lengths_B > 0)[:, None]

    def ids(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L) as in ``obsm["stamp_tokens"]`` -> ids of the encoder (B, L), number of tokens (B,)."""
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise TypeError(f"Tokens must be integers of shape (B, L), found {tokens.dtype} {tuple(tokens.shape)}.")
        tokens = tokens[:, : self.config.max_tokens].long()
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.config.n_tokens:
            raise ValueError(
                f"Tokens must lie in 0..{self.config.n_tokens - 1} for this model, found {int(tokens.min())} to "
                f"{int(tokens.max())}. Were they made with the vocabulary of another model?"
            )
        lengths_B = (tokens != _keys.PAD).sum(dim=1)
        missing = self.config.max_tokens - tokens.shape[1]
        if self.config.pooling == "positions" and missing:
            tokens = F.pad(tokens, (0, missing))
        return tokens.masked_fill(tokens == _keys.PAD, PAD_ID), lengths_B

    def logits(self, hidden_MD: Tensor, head: Literal["igr", "cgr"] = "igr") -> Tensor:
        """Scores (M, C) of all tokens for outputs (M, D), by the head for a spot's own or its neighbours' genes."""
        return F.linear(*self._head(hidden_MD, head))

    def reconstruction(
        self, hidden_MD: Tensor, targets_M: Tensor, head: Literal["igr", "cgr"] = "igr", kernel: Kernel = "torch"
    ) -> Tensor:
        """Mean cross-entropy of `logits` against the tokens `targets_M`, without the logits in memory."""
        return linear_cross_entropy(*self._head(hidden_MD, head), targets_M, kernel=kernel)

    def reconstruction_by_kind(
        self,
        hidden_MD: Tensor,
        targets_M: Tensor,
        kinds_M: Tensor,
        n_kinds: int,
        head: Literal["igr", "cgr"] = "igr",
        kernel: Kernel = "torch",
    ) -> tuple[Tensor, Tensor]:
        """`reconstruction`, and the sums of the losses (n_kinds,) by kind of position, without gradient."""
        return cross_entropy_by_kind(*self._head(hidden_MD, head), targets_M, kinds_M, n_kinds, kernel=kernel)

    def _head(self, hidden_MD: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs of the last product: outputs (M, D), matrix (C, D), bias (C,)."""
        head = self.igr_head if name == "igr" else self.cgr_head
        if self.config.tied_heads:
            return F.linear(hidden_MD, head.weight), self.embeddings.weight[: self.config.n_tokens], head.bias
        return hidden_MD, head.weight, head.bias


class _Head(nn.Module):
    def __init__(self, config: GeneConfig):
        super().__init__()
        shape = (config.width if config.tied_heads else config.n_tokens, config.width)
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(config.n_tokens))
        nn.init.eye_(self.weight) if config.tied_heads else nn.init.kaiming_uniform_(self.weight, a=5**0.5)
