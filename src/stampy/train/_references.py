"""What guessing by frequency gives at masked positions: the lines that a curve of stage 1 must cross.

Shapes: n spots, L positions, G tokens of the vocabulary and special ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stampy import _keys
from stampy._utils import stream

__all__ = ["frequencies", "references"]

SPOTS = 200  # of a section, on which the share of visible genes is measured


def references(
    tokens: Mapping[str, np.ndarray],
    n_tokens: int,
    *,
    fraction: float,
    seed: int,
    positions: int | None = None,
    corpus: np.ndarray | None = None,
) -> dict[str, float]:
    """Cross-entropies (nats) of three guesses that know frequencies alone, at positions drawn for masking.

    Parameters
    ----------
    tokens
        (n, L) by section, 0 pads.
    n_tokens
        Classes: genes and special tokens.
    fraction
        Share of a spot's tokens that are selected.
    seed
        Of the draw for the third.
    positions
        A step shows so many positions alone, drawn at random; None: all.
    corpus
        (n, L) to count the frequency in the corpus on; None: all of `tokens`.

    Returns
    -------
    ``corpus_frequency``: how frequent a gene is among all tokens. ``section_frequency``: among those of the section.
    ``section_frequency_unseen``: likewise, over the genes that the spot does not show elsewhere. A gene has one token
    in a spot, so a model that learns nothing but this rule gets there.

    Examples
    --------
    >>> tokens = np.array([[30, 31], [30, 32]])
    >>> found = references({"a": tokens, "b": tokens + 10}, 50, fraction=0.15, seed=0)
    >>> {k: round(v, 3) for k, v in found.items() if "unseen" not in k}
    {'corpus_frequency': 1.733, 'section_frequency': 1.04}
    """
    counts = {name: frequencies(values, n_tokens) for name, values in tokens.items()}
    whole = sum(counts.values())
    total = max(whole.sum(), 1)
    known = whole if corpus is None else frequencies(corpus, n_tokens)
    section = sum(_entropy_sum(own, own) for own in counts.values())
    unseen, n_unseen = 0.0, 0
    for number, (name, values) in enumerate(tokens.items()):
        found, n = _unseen_sum(values, counts[name], fraction, positions, stream(seed, "references", number))
        share = counts[name].sum() / max(n, 1)  # sections weigh by their tokens
        unseen, n_unseen = unseen + found * share, n_unseen + n * share
    return {
        "corpus_frequency": float(_entropy_sum(whole, known) / total),
        "section_frequency": float(section / total),
        "section_frequency_unseen": float(unseen / max(n_unseen, 1)),
    }


def frequencies(tokens: np.ndarray, n_tokens: int) -> np.ndarray:
    """(G,) how often each token occurs; padding does not count."""
    found = np.bincount(tokens.ravel(), minlength=n_tokens).astype(np.float64)
    found[: _keys.N_SPECIAL] = 0
    return found


def _entropy_sum(counts: np.ndarray, model: np.ndarray) -> float:
    """Sum over the counted tokens of -log of their share in `model`."""
    there = counts > 0
    return float(-(counts[there] * np.log(model[there] / model.sum())).sum())


def _unseen_sum(
    tokens: np.ndarray, counts: np.ndarray, fraction: float, positions: int | None, rng: np.random.Generator
) -> tuple[float, int]:
    """Sum of -log over tokens selected in some spots, and their number, where visible genes are ruled out."""
    share = counts / max(counts.sum(), 1)
    total, n = 0.0, 0
    for row in tokens[rng.permutation(len(tokens))[:SPOTS]]:
        if positions is not None:
            row = row[rng.permutation(len(row))[:positions]]
        own = share[row[row != _keys.PAD]]
        selected = rng.random(len(own)) < fraction
        left = max(1.0 - own[~selected].sum(), 1e-12)
        total -= float(np.log(np.minimum(own[selected] / left, 1.0)).sum())
        n += int(selected.sum())
    return total, n
