"""What the order of a spot's tokens alone tells of its hidden genes.

Counts are integers. Genes with the same count stand in the order of their usual level, so the neighbours of a hidden
token in the order bracket its usual level, whatever the spot is made of.

Shapes: L positions, V visible and M hidden ones of a spot, G tokens including special ones, K guesses.
"""

from __future__ import annotations

import numpy as np

from stampy import _keys

__all__ = ["level_places", "mixture_weights", "order_guesses"]

REACH = (1, 2, 4, 8, 16, 32)  # how many visible tokens away the two ends of the bracket are
ROUNDS = 50


def level_places(divisors: np.ndarray) -> np.ndarray:
    """(G,) position of each token among all genes by usual level; special tokens come first.

    Examples
    --------
    >>> level_places(np.array([3.0, 1.0, 2.0]))[-3:] - _keys.N_SPECIAL
    array([2, 0, 1])
    """
    order = np.concatenate([np.arange(_keys.N_SPECIAL), _keys.N_SPECIAL + np.argsort(divisors, kind="stable")])
    found = np.empty_like(order)
    found[order] = np.arange(len(order))
    return found


def order_guesses(tokens_L: np.ndarray, hidden_L: np.ndarray, share_G: np.ndarray, place_G: np.ndarray) -> np.ndarray:
    """(M, K) probabilities that guesses give to the hidden genes of a spot.

    The first guess is the frequency of genes. Each of the others is the frequency among the genes whose usual level
    lies between those of two visible tokens, the k-th before and the k-th after the hidden one, and 0 if their levels
    are in the other order.

    Parameters
    ----------
    tokens_L
        Tokens of a spot without padding, highest first.
    hidden_L
        Which of them are hidden; the others are visible.
    share_G
        Frequency of each token, with sum 1.
    place_G
        from `level_places`.
    """
    sorted_G = np.empty_like(share_G)
    sorted_G[place_G] = share_G
    below = np.concatenate([[0.0], sorted_G.cumsum()])  # the frequency of all genes of a lower place
    seen = np.flatnonzero(~hidden_L)
    target, at = tokens_L[hidden_L], np.searchsorted(seen, np.flatnonzero(hidden_L))
    place_V, place_M = place_G[tokens_L[seen]], place_G[target]
    found = [share_G[target]]
    for k in REACH:
        first, last = at - k, at + k - 1
        low = np.where(first >= 0, place_V[np.clip(first, 0, None)] if len(seen) else 0, -1)
        high = np.where(last < len(seen), place_V[np.clip(last, None, len(seen) - 1)] if len(seen) else 0, len(place_G))
        mass = below[np.maximum(high, low + 1)] - below[low + 1]
        inside = (low < place_M) & (place_M < high) & (mass > 0)
        found.append(np.where(inside, share_G[target] / np.where(mass > 0, mass, 1.0), 0.0))
    return np.minimum(np.stack(found, axis=1), 1.0)


def mixture_weights(guesses_MK: np.ndarray) -> np.ndarray:
    """(K,) weights of the guesses whose mixture gives the hidden genes the highest probability (EM).

    Examples
    --------
    >>> mixture_weights(np.array([[0.1, 0.8], [0.1, 0.8], [0.1, 0.0]])).round(2)
    array([0.38, 0.62])
    """
    weights = np.full(guesses_MK.shape[1], 1 / guesses_MK.shape[1])
    for _ in range(ROUNDS):
        parts = guesses_MK * weights
        weights = (parts / np.maximum(parts.sum(axis=1, keepdims=True), 1e-300)).mean(axis=0)
    return weights
