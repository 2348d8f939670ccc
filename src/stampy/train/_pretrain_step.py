"""Step of stage 1: masking, the targets of IGR and CGR, and the losses of one piece of a batch.

Shapes: S groups, N spots per group, L positions, B = S N spots, T positions of all spots concatenated, M scored
positions, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from stampy import _keys
from stampy._utils import stream
from stampy.models import Stamp, losses
from stampy.models._gene import MASK_ID, PAD_ID
from stampy.models._kernels.packed import Packing

from ._config import PretrainConfig
from ._loop.loop import Stage
from ._loop.ranks import synchronised
from ._samplers import GroupBatch, GroupPiece, Losses

__all__ = ["KINDS", "Reconstruction", "mask_tokens"]

# Kinds of selected positions. Kept genes can be copied by a model.
KINDS = ("igr_masked", "igr_replaced", "igr_kept")


class Reconstruction(Stage[GroupBatch, GroupPiece, PretrainConfig]):
    """IGR, and from step `igr_steps` on also CGR."""

    def __init__(self, model: Stamp, config: PretrainConfig, igr_steps: int):
        super().__init__(model, config, ("igr", "cgr"), KINDS)
        self.igr_steps = igr_steps

    def pieces(self, batch: GroupBatch, step: int) -> list[GroupPiece]:
        """Mask the tokens by group, so that the mask of a group does not depend on its rank."""
        config, tokens_SNL = self.config, batch["tokens"].long()
        first = self.ranks.rank * len(tokens_SNL)
        width = config.positions_per_step or config.max_tokens
        draws = [
            _draw(stream(config.seed, "masks", step, first + s), tokens.shape, self.model.gene.config.n_tokens, width)
            for s, tokens in enumerate(tokens_SNL)
        ]
        drawn = (torch.from_numpy(np.stack(parts)) for parts in zip(*draws, strict=True))
        inputs, selected = _masked(tokens_SNL, *drawn, fraction=config.mask_fraction, share=config.mask_share)
        centre_SL = tokens_SNL[:, 0]
        scored_SL = selected[:, 0] if config.cgr_targets == "masked" else centre_SL != _keys.PAD
        scored_SL = scored_SL & (step >= self.igr_steps)
        n = min(config.accumulate, len(tokens_SNL))
        cut = zip(*(x.tensor_split(n) for x in (tokens_SNL, inputs, selected, scored_SL)), strict=True)
        cgr = step >= self.igr_steps
        return [_piece(t, i, chosen, scored, batch["positions"], cgr=cgr) for t, i, chosen, scored in cut]

    def run(self, fabric: Fabric, module: nn.Module, pieces: list[GroupPiece]) -> Losses:
        """Train on the means over the selected positions of all pieces and ranks."""
        names = list(pieces[0]["counts"])
        local = [float(sum(piece["counts"][name] for piece in pieces)) for name in names]
        if self.ranks.world_size > 1:
            local = self.ranks.total(torch.tensor(local, device=fabric.device)).tolist()
        totals = {name: total for name, total in zip(names, local, strict=True) if total or name in self.names}
        found: Losses = {}
        for number, piece in enumerate(pieces, start=1):
            with synchronised(fabric, module, number == len(pieces)):
                # convert sums to contributions to the mean over all pieces and ranks
                weights = {k: self.ranks.world_size / max(total, 1) for k, total in totals.items()}
                shares: Losses = module({**piece, "weights": weights})
                fabric.backward(torch.stack([v for k, v in shares.items() if k in self.names]).sum())
            for name, share in shares.items():
                found[name] = found.get(name, 0) + share.detach()
        return found

    def forward(self, piece: GroupPiece) -> Losses:
        """Losses and measures of a piece, as contributions to the means over all positions."""
        weights, counts = piece["weights"], piece["counts"]
        means, sums = self.scored(piece)
        found = {name: mean * (counts[name] * weights[name]) for name, mean in means.items()}
        return found | {name: sums[i] * weights[name] for i, name in enumerate(KINDS) if name in weights}

    def scored(self, piece: GroupPiece) -> tuple[Losses, Tensor]:
        """Mean losses of a piece, and the sums of the IGR loss by kind of position, see `KINDS`."""
        encoder, sums = self.model.gene, []
        score = partial(encoder.reconstruction, kernel=self.config.fused)

        def igr_score(hidden_MD: Tensor, targets_M: Tensor) -> Tensor:
            mean, by_kind = encoder.reconstruction_by_kind(
                hidden_MD, targets_M, piece["igr_kinds"], len(KINDS), kernel=self.config.fused
            )
            sums.append(by_kind)
            return mean

        packing = Packing(piece["queries"], piece["keys"], piece["inputs"].device)
        hidden_TD = encoder.packed(piece["inputs"], packing, piece["positions"])
        selected_MD = hidden_TD.index_select(0, piece["igr_at"])  # accumulates its gradient without sorting
        found = {"igr": losses.igr(selected_MD, piece["igr_targets"], None, igr_score)}
        if "cgr" in piece["counts"]:
            around_1NMD = hidden_TD.index_select(0, piece["cgr_at"].flatten()).unflatten(0, piece["cgr_at"].shape)[None]
            targets_1M = piece["cgr_targets"][None]
            found["cgr"] = losses.cgr(around_1NMD, targets_1M, None, partial(score, head="cgr"))
        return found, sums[0] if sums else selected_MD.new_zeros(len(KINDS))


def _piece(
    tokens_SNL: Tensor, inputs_SNL: Tensor, selected_SNL: Tensor, scored_SL: Tensor, positions: Tensor, *, cgr: bool
) -> GroupPiece:
    """Concatenate the spots, those of equal length together; losses are taken at positions of this sequence."""
    lengths_SN = (tokens_SNL != _keys.PAD).sum(dim=2)
    # A neighbour predicts at all scored positions of its central spot; past its own tokens it is padded.
    last_S = (scored_SL * torch.arange(1, scored_SL.shape[1] + 1)).amax(dim=1)
    wanted_SN = torch.maximum(lengths_SN, last_S[:, None].expand_as(lengths_SN))
    lengths_B, wanted_B = lengths_SN.flatten(), wanted_SN.flatten()
    order = torch.argsort(wanted_B * (int(wanted_B.max()) + 1) + lengths_B, stable=True)
    packing = Packing.of(lengths_B[order], wanted_B[order], "cpu")
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    start_SN = packing.starts[:-1][place].view_as(lengths_SN)
    s, n, column = selected_SNL.nonzero(as_tuple=True)
    shown_M = inputs_SNL[s, n, column]
    kinds_M = torch.where(shown_M == MASK_ID, 0, torch.where(shown_M != tokens_SNL[s, n, column], 1, 2))
    piece: GroupPiece = {
        "queries": packing.queries,
        "keys": packing.keys,
        "inputs": packing.pack(inputs_SNL.flatten(0, 1)[order], PAD_ID),
        "positions": positions,
        "igr_at": start_SN[s, n] + column,
        "igr_targets": tokens_SNL[s, n, column],
        "igr_kinds": kinds_M,
        "counts": {"igr": len(s), **dict(zip(KINDS, kinds_M.bincount(minlength=len(KINDS)).tolist(), strict=True))},
    }
    if cgr:
        s, column = scored_SL.nonzero(as_tuple=True)
        piece["cgr_at"] = (start_SN[s] + column[:, None]).T
        piece["cgr_targets"] = tokens_SNL[s, 0, column]
        piece["counts"]["cgr"] = len(s)
    return piece


def mask_tokens(
    tokens_BL: Tensor,
    n_tokens: int,
    *,
    fraction: float = 0.15,
    share: float = 0.8,
    rng: np.random.Generator,
    width: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Select tokens: 80% are masked, 10% replaced by a random gene, and 10% kept (section 3.2).

    Parameters
    ----------
    tokens_BL
        (B, L), padded with 0.
    n_tokens
        Genes + 30.
    fraction
        Fraction of a spot's tokens that are selected.
    share
        Fraction of these that are masked; half of the others are replaced, half are kept.
    rng
        Generator for the draw.
    width
        Number of positions for the draw, independent of L; None: L.

    Returns
    -------
    Ids for the encoder (padding is 1, mask 0), and the selected positions (bool).
    """
    shape = tokens_BL.shape
    drawn = (torch.from_numpy(part) for part in _draw(rng, shape, n_tokens, max(width or 0, shape[1])))
    return _masked(tokens_BL, *drawn, fraction=fraction, share=share)


def _draw(
    rng: np.random.Generator, shape: Sequence[int], n_tokens: int, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random numbers for each of (B, L) tokens: for selection, for its effect, and a random gene."""
    B, L = shape
    width = max(width, L)
    draw, what = (rng.random((B, width), dtype=np.float32)[:, :L] for _ in range(2))
    return draw, what, rng.integers(_keys.N_SPECIAL, n_tokens, (B, width))[:, :L]


def _masked(
    tokens: Tensor, draw: Tensor, what: Tensor, random_gene: Tensor, *, fraction: float, share: float
) -> tuple[Tensor, Tensor]:
    real = tokens != _keys.PAD
    selected = (draw < fraction) & real
    inputs = tokens.masked_fill(~real, PAD_ID)
    inputs = inputs.masked_fill(selected & (what < share), MASK_ID)
    inputs = torch.where(selected & (what >= share) & (what < (1 + share) / 2), random_gene, inputs)
    return inputs, selected
