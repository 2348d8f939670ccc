"""The compiled sum of gene vectors weighted by rank: features of a "bag" encoder without (spots, tokens, width)."""

from __future__ import annotations

from functools import partial

import numba
import numpy as np

from ._threads import share_spots

__all__ = ["weighted_bag"]


def weighted_bag(tokens: np.ndarray, table: np.ndarray, gate: np.ndarray | None, share: float) -> np.ndarray:
    """Sum of the vectors of a spot's tokens, each times the gate of its rank, divided by `share`.

    Parameters
    ----------
    tokens
        (spots, positions) int32, 0 pads on the right.
    table
        (tokens, width) float32, the vector of each token.
    gate
        (positions or more, width) float32; None: 1.
    share
        What sums are divided by.

    Returns
    -------
    (spots, width) float32; zeros for a spot without tokens. A spot's sum does not depend on the spots beside it.

    Examples
    --------
    >>> table = np.array([[0, 0], [1, 2], [3, 4]], dtype=np.float32)
    >>> weighted_bag(np.array([[2, 1], [1, 0]], dtype=np.int32), table, None, 2.0)
    array([[2. , 3. ],
           [0.5, 1. ]], dtype=float32)
    """
    out = np.zeros((len(tokens), table.shape[1]), dtype=np.float32)
    table = np.ascontiguousarray(table)
    if gate is None:
        gate = np.ones((tokens.shape[1], table.shape[1]), dtype=np.float32)
    add = partial(_add, np.ascontiguousarray(tokens), table, np.ascontiguousarray(gate), np.float32(share), out)
    share_spots(add, len(tokens))
    return out


# fastmath: the sum runs over positions one after the other for each output, so only multiply and add are contracted
@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _add(
    tokens: np.ndarray, table: np.ndarray, gate: np.ndarray, share: np.float32, out: np.ndarray, first: int, end: int
) -> None:
    width = table.shape[1]
    for spot in range(first, end):
        row = out[spot]
        for position in range(tokens.shape[1]):
            token = tokens[spot, position]
            if token == 0:  # _keys.PAD, on the right
                break
            vector, weight = table[token], gate[position]
            for d in range(width):
                row[d] += vector[d] * weight[d]
        for d in range(width):
            row[d] /= share
