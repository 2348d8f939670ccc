"""Stage 1 in a bare loop: stampy's own encoder, heads and losses, with all tokens on the device.

`stampy.train.pretrain` prepares batches on the CPU, logs and writes checkpoints: for networks as small as those of
these recipes, a GPU would wait most of the time. Here a step of the simulated sections is one CUDA graph. On the same
groups and masks, the losses equal those of `stampy.train` (tests/train/test_recipe_planted.py).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stampy import _keys
from stampy.models import GeneConfig, GeneEncoder
from stampy.models._gene import MASK_ID, PAD_ID


def encoder_of(n_genes: int, seed: int, counts: np.ndarray | None = None, **sizes) -> GeneEncoder:
    """A pre-norm encoder with tied heads, whose heads start at the frequency of tokens (C,)."""
    torch.manual_seed(seed)
    encoder = GeneEncoder(GeneConfig(n_genes=n_genes, norm="pre", tied_heads=True, **sizes))
    if counts is not None:
        start_heads(encoder, counts)
    return encoder


@torch.no_grad()
def start_heads(encoder: GeneEncoder, counts: np.ndarray) -> None:
    often = np.maximum(counts, 1)
    for head in (encoder.igr_head, encoder.cgr_head):
        head.bias.copy_(torch.from_numpy(np.log(often / often.sum())))


def outputs(encoder: GeneEncoder, ids_BL: Tensor, positions: Tensor | None = None, *, small: bool = False) -> Tensor:
    """`encoder(ids)`, all on the device; `small`: embed by a product, which a CUDA graph can hold."""
    if small:
        one_hot = (ids_BL[..., None] == torch.arange(len(encoder.embeddings.weight), device=ids_BL.device)).float()
        x_BLD = one_hot @ encoder.embeddings.weight
        if encoder.config.rank_gate:
            x_BLD = x_BLD * encoder.rank_gate[: ids_BL.shape[1]]
        x_BLD = x_BLD + encoder.positional_embedding.weight[: ids_BL.shape[1]]
    else:
        x_BLD = encoder._embed(ids_BL, positions)
    attended = ids_BL != PAD_ID
    attended = (attended | ~attended.any(dim=1, keepdim=True))[:, None, None]
    for layer in encoder.layers:
        x_BLD = layer(x_BLD, ids_BL.shape[1], attended)
    return x_BLD


def masked(tokens_BL: Tensor, fraction: float | Tensor) -> tuple[Tensor, Tensor]:
    """Ids for the encoder, and which positions are hidden."""
    real = tokens_BL != _keys.PAD
    hidden = (torch.rand(tokens_BL.shape, device=tokens_BL.device) < fraction) & real
    return tokens_BL.masked_fill(~real, PAD_ID).masked_fill(hidden, MASK_ID), hidden


def losses_of(
    encoder: GeneEncoder, tokens_SNL: Tensor, ids_SNL: Tensor, hidden_SNL: Tensor, *, cgr: bool, cgr_targets: str
) -> tuple[Tensor, Tensor]:
    """IGR at hidden positions, and CGR (0 without), of groups whose first spot is the centre; few genes."""
    x_SNLD = outputs(encoder, ids_SNL.flatten(0, 1), small=True).unflatten(0, ids_SNL.shape[:2])
    igr = _mean_loss(encoder.logits(x_SNLD), tokens_SNL, hidden_SNL)
    if not cgr:
        return igr, igr.new_zeros(())
    context_SLD = x_SNLD[:, 1:].mean(dim=1)
    wanted = hidden_SNL[:, 0] if cgr_targets == "masked" else tokens_SNL[:, 0] != _keys.PAD
    return igr, _mean_loss(encoder.logits(context_SLD, "cgr"), tokens_SNL[:, 0], wanted)


def _mean_loss(logits: Tensor, targets: Tensor, wanted: Tensor) -> Tensor:
    each = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
    return (each * wanted.flatten()).sum() / wanted.sum().clamp(min=1)


def learning_rate(step: int, steps: int, lr: float, warmup: int) -> float:
    """Linear rise, then a cosine to a tenth."""
    if step < warmup:
        return lr * (step + 1) / warmup
    share = (step - warmup) / max(steps - warmup, 1)
    return lr * (0.1 + 0.45 * (1 + math.cos(math.pi * share)))


def optimizer_of(encoder: GeneEncoder, weight_decay: float) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    """AdamW on what is trained; its rate is a tensor on a GPU, which a graph reads."""
    trained = [p for p in encoder.parameters() if p.requires_grad]
    cuda = trained[0].is_cuda
    lr = torch.zeros((), device=trained[0].device) if cuda else 0.0
    return torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True, capturable=cuda), trained


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


class GroupSteps:
    """Steps on groups of 3 x 3 spots of sections on a grid, drawn with replacement; on a GPU one CUDA graph."""

    def __init__(
        self, encoder: GeneEncoder, tokens: Tensor, groups: Tensor, *, n_groups: int, weight_decay: float = 1e-4,
        cgr: bool = False, cgr_targets: str = "all", fraction: float = 0.15,
    ):  # fmt: skip
        self.encoder, self.tokens, self.groups, self.n_groups = encoder, tokens, groups, n_groups
        self.cgr, self.cgr_targets, self.fraction = cgr, cgr_targets, fraction
        self.optimizer, self.trained = optimizer_of(encoder, weight_decay)
        self.total = torch.zeros(2, device=tokens.device)
        self.graph = None

    def _step(self) -> None:
        chosen = torch.randint(len(self.groups), (self.n_groups,), device=self.tokens.device)
        tokens_SNL = self.tokens[self.groups[chosen]]
        ids, hidden = masked(tokens_SNL, self.fraction)
        found = losses_of(self.encoder, tokens_SNL, ids, hidden, cgr=self.cgr, cgr_targets=self.cgr_targets)
        (found[0] + found[1]).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.total += torch.stack(found).detach()

    def capture(self) -> bool:
        """Make the graph, on a GPU; False where steps run one by one."""
        if not self.tokens.is_cuda or os.environ.get("BARE_EAGER"):
            return False
        saved = {k: v.clone() for k, v in self.encoder.state_dict().items()}
        set_rate(self.optimizer, 0.0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self.graph = graph
        except RuntimeError as error:  # torch's random numbers are not to be trusted after that: start again without
            print("no CUDA graph, set BARE_EAGER=1:", str(error)[:300], flush=True)
            raise SystemExit(3) from error
        self._forget(saved)
        return self.graph is not None

    @torch.no_grad()
    def _forget(self, saved: dict[str, Tensor]) -> None:
        """Weights, moments and losses as before the steps that made the graph."""
        self.encoder.load_state_dict(saved)
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()
        self.total.zero_()

    def run(
        self, steps: int, lr: float, points: list[int], warmup: int = 100
    ) -> Iterator[tuple[int, list[float], float]]:
        """Train; at each of `points`, the step, mean losses since the last and seconds."""
        self.encoder.train()
        self.capture()
        began, last = time.perf_counter(), 0
        for step in range(steps):
            set_rate(self.optimizer, learning_rate(step, steps, lr, min(warmup, max(steps // 5, 1))))
            if self.graph is not None:
                self.graph.replay()
            else:
                self._step()
            if step + 1 in points:
                means = (self.total / (step + 1 - last)).tolist()
                self.total.zero_()
                last = step + 1
                self.encoder.eval()
                yield step + 1, means, time.perf_counter() - began
                self.encoder.train()
        self.encoder.eval()


def blocks(n_spots: int, n_sections: int) -> np.ndarray:
    """(G, 9) rows of all 3 x 3 blocks of sections of so many spots on a grid, the centre first."""
    side = math.ceil(n_spots**0.5)
    row, column = np.divmod(np.arange(n_spots), side)
    number = {(r, c): i for i, (r, c) in enumerate(zip(row.tolist(), column.tolist(), strict=True))}
    around = [(0, 0), *((r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0))]
    found = [[number.get((r + dr, c + dc), -1) for dr, dc in around] for r, c in number]
    found = np.array([own for own in found if min(own) >= 0], dtype=np.int64)
    return (found + (np.arange(n_sections) * n_spots)[:, None, None]).reshape(-1, 9)


def tokens_of(counts: np.ndarray, width: int) -> np.ndarray:
    """(n, width) tokens of planted counts, the highest first, 0 pads: as `stampy.pp.tokenize` with equal divisors."""
    order = np.argsort(-counts, axis=1, kind="stable")[:, :width]
    there = np.take_along_axis(counts, order, axis=1) > 0
    return np.where(there, order + _keys.N_SPECIAL, _keys.PAD).astype(np.int64)


@torch.inference_mode()
def hidden_loss(encoder: GeneEncoder, tokens: Tensor, gone: Tensor) -> dict[str, float]:
    """Mean cross-entropy at hidden genes, as it is and over the genes that the spot does not show elsewhere."""
    total, unseen, copied = 0.0, 0.0, 0.0
    for own, hidden in zip(tokens.split(256), gone.split(256), strict=True):
        real = own != _keys.PAD
        ids = own.masked_fill(~real, PAD_ID).masked_fill(hidden, MASK_ID)
        logits = encoder.logits(outputs(encoder, ids)[hidden]).float()
        targets = own[hidden]
        total += float(F.cross_entropy(logits, targets, reduction="sum"))
        shown = ids.masked_fill(hidden, PAD_ID)[hidden.nonzero()[:, 0]]
        copied += float(
            logits.softmax(dim=1).scatter(1, torch.full_like(shown[:, :1], PAD_ID), 0).gather(1, shown).sum()
        )
        logits = logits.scatter(1, shown, -torch.inf)
        unseen += float(F.cross_entropy(logits, targets, reduction="sum"))
    n = max(int(gone.sum()), 1)
    return {"masked": total / n, "masked_unseen": unseen / n, "on_visible": copied / n}


@torch.inference_mode()
def features(encoder: GeneEncoder, tokens: Tensor) -> np.ndarray:
    """(n, D) means over the outputs of a spot's own tokens."""
    found = []
    for own in tokens.split(256):
        real = own != _keys.PAD
        x_BLD = outputs(encoder, own.masked_fill(~real, PAD_ID))
        found.append(((x_BLD * real[..., None]).sum(dim=1) / real.sum(dim=1, keepdim=True).clamp(min=1)).float().cpu())
    return torch.cat(found).numpy()
