"""Masked genes: how often a gene tower names the gene that was hidden. Arrays and a model, no AnnData.

Shapes: n spots, B spots of a batch, L positions, M masked tokens, C classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from stampy import _keys, _utils

if TYPE_CHECKING:
    from stampy.models import Stamp

__all__ = ["masked_accuracy"]

MASK_ID = 0  # of the encoder, see stampy.models
TOP = (1, 10)
TOKENS_PER_BATCH = 8192


def masked_accuracy(
    model: Stamp, tokens: np.ndarray, *, fraction: float = 0.15, rng: int | np.random.Generator | None = 0
) -> dict[str, float]:
    """Share of masked tokens whose gene is the model's first guess, or among its first ten (head IGR).

    Parameters
    ----------
    model
        With a trained head for its spots' own genes.
    tokens
        (n, L) as in ``obsm["stamp_tokens"]``: 0 pads on the right.
    fraction
        Share of each spot's tokens that are masked, all of them by the mask id.
    rng
        Which tokens.

    Returns
    -------
    ``top1``, ``top10``; ``majority_top1``, ``majority_top10``: the same for a guess that knows no spot, the genes that
    most spots show; ``unseen_top1``, ``unseen_top10``: those of them that the spot does not show already, which is the
    best that can be said without looking at the other genes; ``n_masked``.

    Examples
    --------
    >>> import stampy
    >>> from stampy.models import GeneConfig, Stamp, StampConfig
    >>> small = GeneConfig(n_genes=20, width=8, depth=1, heads=2, feedforward=8, max_tokens=12)
    >>> tokens = np.tile(np.arange(30, 40), (4, 1))
    >>> found = masked_accuracy(Stamp(StampConfig(gene=small, embedding=4)), tokens)
    >>> found["n_masked"] >= 4, found["unseen_top10"]
    (True, 1.0)
    """
    random = _utils.generator(rng)
    selected = _selected(tokens, fraction, random)
    targets = tokens[selected]
    shown = _shown(tokens, selected, model.gene.config.n_tokens)
    frequency = shown.sum(axis=0)
    frequency[: _keys.N_SPECIAL] = -1
    hits = {"": _model_hits(model, tokens, selected)}
    order = np.argsort(-frequency, kind="stable")
    hits["majority_"] = _rank_in(order)[targets]
    rows = np.nonzero(selected)[0]
    hits["unseen_"] = np.concatenate(
        [_rank_in(order[~shown[row, order]])[targets[rows == row]] for row in np.unique(rows)]
    )
    found = {f"{who}top{k}": float((ranks < k).mean()) for who, ranks in hits.items() for k in TOP}
    return {**found, "n_masked": len(targets)}


def _selected(tokens: np.ndarray, fraction: float, random: np.random.Generator) -> np.ndarray:
    """Where tokens are masked (n, L) bool: the share of each spot's, at least one, never all."""
    real = tokens != _keys.PAD
    draw = np.where(real, random.random(tokens.shape), np.inf)
    lengths = real.sum(axis=1)
    take = np.minimum(np.maximum(np.rint(fraction * lengths), 1), lengths - 1)
    selected = draw.argsort(axis=1).argsort(axis=1) < take[:, None]
    if not selected.any():
        raise ValueError("No spot has two genes of the model's vocabulary: there is nothing to mask.")
    return selected


def _shown(tokens: np.ndarray, selected: np.ndarray, n_tokens: int) -> np.ndarray:
    """Genes that each spot still shows, (n, C) bool; special tokens count as shown, they are never a guess."""
    shown = np.zeros((len(tokens), n_tokens), dtype=bool)
    shown[:, : _keys.N_SPECIAL] = True
    rows, columns = np.nonzero((tokens != _keys.PAD) & ~selected)
    shown[rows, tokens[rows, columns]] = True
    return shown


def _rank_in(order: np.ndarray) -> np.ndarray:
    """Place of each token in an order of guesses; a large number for what isn't in it."""
    rank = np.full(int(order.max()) + 1 if len(order) else 1, np.iinfo(np.int64).max)
    rank[order] = np.arange(len(order))
    return rank


@torch.inference_mode()
def _model_hits(model: Stamp, tokens: np.ndarray, selected: np.ndarray) -> np.ndarray:
    """How many tokens the model finds likelier than the right one (M,), in the order of the masked tokens."""
    lengths = (tokens != _keys.PAD).sum(axis=1)
    size = max(TOKENS_PER_BATCH // max(int(lengths.max()), 1), 1)
    ranks = []
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        cut = max(int(lengths[rows].max()), 1)
        where = torch.from_numpy(selected[rows, :cut]).to(model.device)
        ids, _ = model.gene.ids(torch.from_numpy(tokens[rows, :cut].astype(np.int64)).to(model.device))
        targets = ids[:, :cut][where]
        hidden = model.gene(ids.masked_fill(torch.nn.functional.pad(where, (0, ids.shape[1] - cut)), MASK_ID))
        logits = model.gene.logits(hidden[:, :cut][where])
        own = logits.gather(1, targets[:, None])
        # ties are broken against the model: a constant head must not score
        ranks.append(((logits >= own).sum(dim=1) - 1).cpu().numpy())
    return np.concatenate(ranks)
