"""Losses of both stages as plain functions of tensors (paper, sections 3.2 and 3.3).

`train/_pretrain_step.py` creates the targets of IGR and CGR, `train/_align_step.py` the views of stage 2.

Means are over the given rows. With several ranks, the overall mean is the sum of the ranks' means weighted by their
fraction of rows; `info_nce` takes keys of all ranks.

Shapes: B spots, L positions, D width, S groups, N spots per group, E size of the shared space, K keys (B of this rank,
or of all ranks).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["cgr", "igr", "info_nce", "localization", "symmetric_info_nce"]

Scores: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def igr(hidden_BLD: Tensor, targets_BL: Tensor, selected_BL: Tensor | None, score: Scores) -> Tensor:
    """Intrinsic gene reconstruction: cross-entropy at a spot's selected positions.

    Parameters
    ----------
    hidden_BLD
        Outputs of the last layer for the masked input.
    targets_BL
        The tokens before masking.
    selected_BL
        bool, positions of the loss. The head runs only at these positions. None: all positions; outputs (M, D) and
        tokens (M,) are already those of the selected positions.
    score
        Outputs (M, D) and their tokens (M,) -> mean cross-entropy: `GeneEncoder.reconstruction` with head "igr".

    Returns
    -------
    Scalar, the mean over the selected positions; 0 where none is selected.

    Examples
    --------
    >>> import torch
    >>> hidden, tokens = torch.zeros(2, 3, 4), torch.tensor([[30, 31, 32], [33, 34, 35]])
    >>> hidden_there = torch.tensor([[True, False, False], [False, True, True]])
    >>> guess = lambda hidden_MD, tokens_M: F.cross_entropy(torch.zeros(len(tokens_M), 50), tokens_M)
    >>> round(float(igr(hidden, tokens, hidden_there, guess)), 3)  # the logarithm of 50
    3.912
    """
    if selected_BL is not None:
        hidden_BLD, targets_BL = hidden_BLD[selected_BL], targets_BL[selected_BL]
    return _reconstruction(hidden_BLD, targets_BL, score)


def cgr(hidden_SNLD: Tensor, targets_SL: Tensor, selected_SL: Tensor | None, score: Scores) -> Tensor:
    """Contextual gene reconstruction: genes of the central spot from the mean output of its neighbours.

    Parameters
    ----------
    hidden_SNLD
        Outputs of the last layer for groups of spots; the central spot is the first of the N.
    targets_SL
        Tokens of the central spots before masking.
    selected_SL
        bool, positions of the loss: the masked positions of the central spot (paper) or all its tokens (released code).
        None: all positions.
    score
        Outputs (M, D) and their tokens (M,) -> mean cross-entropy: `GeneEncoder.reconstruction` with head "cgr".

    Returns
    -------
    Scalar, the mean over the selected positions; 0 where none is selected.

    Examples
    --------
    >>> import torch
    >>> hidden = torch.arange(9.0)[None, :, None, None]  # one group of nine spots, one position, width 1
    >>> mean_of_neighbours = lambda hidden_MD, tokens_M: hidden_MD.mean()
    >>> float(cgr(hidden, torch.tensor([[30]]), None, mean_of_neighbours))
    4.5
    """
    context_SLD = hidden_SNLD[:, 1:].mean(dim=1)
    if selected_SL is None:
        return _reconstruction(context_SLD.flatten(0, 1), targets_SL.flatten(), score)
    return _reconstruction(context_SLD[selected_SL], targets_SL[selected_SL], score)


def _reconstruction(hidden_MD: Tensor, targets_M: Tensor, score: Scores) -> Tensor:
    if not len(targets_M):
        return hidden_MD.sum() * 0  # keeps the graph, so that every rank takes part in the backward pass
    return score(hidden_MD, targets_M.long())


def info_nce(
    query_BE: Tensor,
    key_KE: Tensor,
    scale: Tensor | float,
    query_ids: Tensor | None = None,
    *,
    key_ids: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """InfoNCE loss in one direction: each row of `query_BE` should be closest to the row of `key_KE` with its number.

    Parameters
    ----------
    query_BE, key_KE
        L2-normalised embeddings.
    scale
        Factor of the cosine (the exponentiated learned scale).
    query_ids
        (B,), the same number for rows of the same spot (drawn twice), which are not used as negatives of each other.
        None: all rows differ.
    key_ids
        (K,), the same for the keys; None: those of the queries.
    first
        Row of `key_KE` that is the partner of row 0, if the keys are those of several ranks.

    Examples
    --------
    >>> import torch
    >>> pairs = torch.eye(3)
    >>> round(float(info_nce(pairs, pairs, 100.0)), 3), round(float(info_nce(pairs, pairs[[1, 2, 0]], 100.0)), 3)
    (0.0, 100.0)
    """
    logits_BK = scale * _wide(query_BE) @ _wide(key_KE).T
    partners_B = torch.arange(first, first + len(logits_BK), device=logits_BK.device)
    if query_ids is not None:
        same = query_ids[:, None] == (query_ids if key_ids is None else key_ids)[None, :]
        same = same.scatter(1, partners_B[:, None], False)  # assigning a Python number would synchronise
        logits_BK = logits_BK.masked_fill(same, float("-inf"))
    return F.cross_entropy(logits_BK, partners_B)


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def symmetric_info_nce(
    a_BE: Tensor,
    b_BE: Tensor,
    scale: Tensor | float,
    ids: Tensor | None = None,
    *,
    keys: tuple[Tensor, Tensor] | None = None,
    key_ids: Tensor | None = None,
    first: int = 0,
) -> Tensor:
    """InfoNCE loss in both directions, averaged; `keys`: rows of all devices, by default those given.

    Examples
    --------
    >>> import torch
    >>> pairs = torch.eye(3)
    >>> round(float(symmetric_info_nce(pairs, pairs, 100.0)), 3)
    0.0
    """
    a_KE, b_KE = keys if keys is not None else (a_BE, b_BE)
    there = info_nce(a_BE, b_KE, scale, ids, key_ids=key_ids, first=first)
    return (there + info_nce(b_BE, a_KE, scale, ids, key_ids=key_ids, first=first)) / 2


def localization(
    query_BE: Tensor, grid_B9E: Tensor, cells_B: Tensor, scale: Tensor | float, *, known: Tensor | None = None
) -> Tensor:
    """Cross-scale patch localisation: cross-entropy over the nine cells of a region, one of which is the patch.

    Parameters
    ----------
    query_BE
        Projected output of the region's pretext token.
    grid_B9E
        Projected outputs of the region's nine cells, row by row.
    cells_B
        The cell, 0 to 8; -1 if the spot has no region inside the image. Such spots do not contribute.
    scale
        Factor of the cosine.
    known
        Rows of the spots that have a region, if known; None: computed from the cells.

    Returns
    -------
    Scalar, the mean over the spots that have a region; 0 where none has.

    Examples
    --------
    >>> import torch
    >>> query, cells = torch.eye(9)[[4]], torch.eye(9)[None]
    >>> round(float(localization(query, cells, torch.tensor([4]), 100.0)), 3)
    0.0
    >>> float(localization(query, cells, torch.tensor([-1]), 100.0))  # no region inside the image: no term
    0.0
    """
    if known is None:
        known = (cells_B >= 0).nonzero()[:, 0]
    cosine_B9 = torch.einsum("be,bce->bc", F.normalize(_wide(query_BE), dim=-1), F.normalize(_wide(grid_B9E), dim=-1))
    if not len(known):
        return cosine_B9.sum() * 0
    return F.cross_entropy(scale * cosine_B9[known], cells_B[known].long())
