"""Baselines for trained models: gene frequencies, the order of tokens, and a linear model of colours and texture.

Shapes: n spots, L positions, G tokens including special ones, F features of tiles, K components of the genes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from stampy import _keys
from stampy._utils import stream

from ._rank_order import level_places, mixture_weights, order_guesses
from ._spectral_start import anomaly_of_rank

__all__ = [
    "frequencies",
    "ranks_of_own",
    "references",
    "ridge_ranks",
    "tile_features",
]

SPOTS = 200  # per section, to estimate the fraction of visible genes


def references(
    tokens: Mapping[str, np.ndarray],
    n_tokens: int,
    *,
    fraction: float,
    seed: int,
    positions: int | None = None,
    corpus: np.ndarray | None = None,
    divisors: np.ndarray | None = None,
) -> dict[str, float]:
    """Cross-entropies (nats) of baselines that know nothing of tissues, at randomly masked positions.

    Parameters
    ----------
    tokens
        (n, L) by section, padded with 0.
    n_tokens
        Number of classes: genes and special tokens.
    fraction
        Fraction of a spot's tokens that are selected.
    seed
        Seed of the masks for the last two baselines.
    positions
        Number of randomly drawn positions per step; None: all.
    corpus
        (n, L) tokens that define the corpus frequencies; None: all of `tokens`.
    divisors
        (genes,) usual levels; None: without the last baseline.

    Returns
    -------
    ``corpus_frequency``: by the frequency of a gene among all tokens. ``section_frequency``: among those of the
    section. ``section_frequency_unseen``: among those of the section, excluding genes visible in the spot. A gene
    occurs once per spot, so this is what a model attains by learning only this rule. ``section_frequency_order``: among
    those of the section, narrowed by the order of tokens. Genes with the same count stand in the order of their usual
    level, so the levels of the visible neighbours in the order bracket that of a hidden gene.

    Examples
    --------
    >>> tokens = np.array([[30, 31], [30, 32]])
    >>> found = references({"a": tokens, "b": tokens + 10}, 50, fraction=0.15, seed=0)
    >>> {k: round(v, 3) for k, v in found.items() if "unseen" not in k}
    {'corpus_frequency': 1.733, 'section_frequency': 1.04}
    """
    counts = {name: frequencies(values, n_tokens) for name, values in tokens.items()}
    whole = np.sum([*counts.values()], axis=0)
    total = max(whole.sum(), 1)
    known = whole if corpus is None else frequencies(corpus, n_tokens)
    section = sum(_entropy_sum(own, own) for own in counts.values())
    place_G = None if divisors is None else level_places(divisors)
    losses, weights = [], []
    for number, (name, values) in enumerate(tokens.items()):
        spots = _some_hidden(values, fraction, positions, stream(seed, "references", number))
        if not any(hidden.any() for _, hidden in spots):
            continue
        share_G = counts[name] / max(counts[name].sum(), 1)
        order = np.nan if place_G is None else _order_loss(spots, share_G, place_G)
        losses.append((_unseen_loss(spots, share_G), order))
        weights.append(counts[name].sum())  # sections are weighted by their number of tokens
    unseen, order = np.average(losses, axis=0, weights=weights) if losses else (0.0, 0.0)
    found = {
        "corpus_frequency": float(_entropy_sum(whole, known) / total),
        "section_frequency": float(section / total),
        "section_frequency_unseen": float(unseen),
    }
    return found if place_G is None else found | {"section_frequency_order": float(order)}


def frequencies(tokens: np.ndarray, n_tokens: int) -> np.ndarray:
    """(G,) counts of each token, without padding."""
    found = np.bincount(tokens.ravel(), minlength=n_tokens).astype(np.float64)
    found[: _keys.N_SPECIAL] = 0
    return found


def _entropy_sum(counts: np.ndarray, model: np.ndarray) -> float:
    """Sum of -log of the frequency in `model` over the counted tokens."""
    there = counts > 0
    return float(-(counts[there] * np.log(model[there] / model.sum())).sum())


def _some_hidden(
    tokens: np.ndarray, fraction: float, positions: int | None, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Tokens of some spots, in their order and without padding, and which of them are hidden."""
    found = []
    for row in tokens[rng.permutation(len(tokens))[:SPOTS]]:
        if positions is not None:
            row = row[np.sort(rng.permutation(len(row))[:positions])]
        row = row[row != _keys.PAD].astype(np.int64)
        found.append((row, rng.random(len(row)) < fraction))
    return found


def _unseen_loss(spots: list[tuple[np.ndarray, np.ndarray]], share_G: np.ndarray) -> float:
    """Mean of -log of the frequency of hidden tokens among those that are not visible in the spot."""
    total, n = 0.0, 0
    for row, hidden in spots:
        left = max(1.0 - share_G[row[~hidden]].sum(), 1e-12)
        total -= float(np.log(np.minimum(share_G[row[hidden]] / left, 1.0)).sum())
        n += int(hidden.sum())
    return total / max(n, 1)


def _order_loss(spots: list[tuple[np.ndarray, np.ndarray]], share_G: np.ndarray, place_G: np.ndarray) -> float:
    """The same for their frequency, narrowed by the order of tokens as far as this helps in the section."""
    guesses = np.concatenate([order_guesses(row, hidden, share_G, place_G) for row, hidden in spots])
    return float(-np.log(guesses @ mixture_weights(guesses)).mean())


COMPONENTS = 32
ALPHAS = np.logspace(-1, 5, 13)
QUANTILES = (0.1, 0.5, 0.9)


def tile_features(tiles: np.ndarray) -> np.ndarray:
    """Colours and texture (n, F) of tiles (n, px, px, 3) uint8.

    Mean and standard deviation of brightness and of the optical density of each channel, quantiles of the latter, and
    the variation of its mean over channels at scales of 1 to 16 px.
    """
    density = -np.log((tiles.astype(np.float32) + 1) / 256)
    flat = density.reshape(len(tiles), -1, 3)
    bright = tiles.reshape(len(tiles), -1, 3).astype(np.float32) / 255
    found = [bright.mean(axis=1), bright.std(axis=1), flat.mean(axis=1), flat.std(axis=1)]
    found += [*np.quantile(flat[:, ::7], QUANTILES, axis=1)]
    grey = density.mean(axis=3)
    for _ in range(5):
        steps = [np.abs(np.diff(grey, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
        found.append(np.stack([sum(steps) / 2, grey.std(axis=(1, 2))], axis=1))
        h, w = (size // 2 * 2 for size in grey.shape[1:])
        if min(h, w) < 4:
            break
        grey = grey[:, :h, :w].reshape(len(grey), h // 2, 2, w // 2, 2).mean(axis=(2, 4))
    return np.concatenate(found, axis=1).astype(np.float64)


def ridge_ranks(
    features: Mapping[str, np.ndarray], tokens: Mapping[str, np.ndarray], xy: Mapping[str, np.ndarray], n_tokens: int
) -> dict[str, np.ndarray]:
    """For each spot, the number of spots in its section whose genes are nearer to its tile's prediction than its own.

    A section is predicted from the others. A single section is predicted by halves, the left from the right and vice
    versa; neighbours are searched in the whole section.

    Parameters
    ----------
    features
        (n, F) by section, from `tile_features`.
    tokens
        (n, L) by section.
    xy
        (n, 2) by section, to divide a section into halves.
    n_tokens
        Number of genes and special tokens.
    """
    names = list(features)
    genes = {name: weighted(tokens[name], n_tokens) for name in names}
    scaled = {name: _standardised(features[name]) for name in names}
    found = {}
    for name in names:
        others = [other for other in names if other != name]
        if others:
            rows = np.ones(len(scaled[name]), dtype=bool)
            known = np.concatenate([scaled[o] for o in others]), sparse.vstack([genes[o] for o in others])
            folds = [(rows, *known)]
        else:
            x = xy[name][:, 0]
            x = (
                x if np.isfinite(x).all() else np.arange(len(x))
            )  # without coordinates, by row: neighbouring rows are often neighbouring spots
            left = x <= np.median(x)
            folds = [(part, scaled[name][~part], genes[name][np.flatnonzero(~part)]) for part in (left, ~left)]
        found[name] = np.empty(len(scaled[name]), dtype=np.int64)
        for rows, x, y in folds:
            found[name][rows] = _fold(scaled[name], genes[name], rows, x, y)
    return found


def weighted(tokens: np.ndarray, n_tokens: int) -> sparse.csr_matrix:
    """(n, genes): typical ratio of a gene of this rank to its usual level."""
    rows, ranks = np.nonzero(tokens)
    gates = np.log1p(anomaly_of_rank(tokens.shape[1])).astype(np.float32)
    genes = tokens[rows, ranks].astype(np.int64) - _keys.N_SPECIAL
    return sparse.csr_matrix((gates[ranks], (rows, genes)), (len(tokens), n_tokens - _keys.N_SPECIAL))


def ranks_of_own(queries: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """For each query (m, K), the number of keys (n, K) nearer by cosine than its own key, in row `rows` (m,).

    Ties count as nearer, so a model with the same output for all spots has no hits.
    """
    cosine = queries @ keys.T
    at = np.arange(len(rows))
    own = cosine[at, rows].copy()
    cosine[at, rows] = -np.inf
    return (cosine >= own[:, None]).sum(axis=1)


def _fold(
    features: np.ndarray, genes: sparse.csr_matrix, rows: np.ndarray, x: np.ndarray, y: sparse.csr_matrix
) -> np.ndarray:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.linear_model import RidgeCV

    k = max(min(COMPONENTS, min(y.shape) - 1), 1)
    svd = TruncatedSVD(k, random_state=0)
    known = svd.fit_transform(y)
    spread = np.maximum(known.std(axis=0), 1e-12)
    model = RidgeCV(ALPHAS, alpha_per_target=True).fit(x, (known - known.mean(axis=0)) / spread)
    keys = svd.transform(genes)
    return ranks_of_own(
        _unit(model.predict(features[rows])), _unit((keys - keys.mean(axis=0)) / spread), np.flatnonzero(rows)
    )


def _standardised(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-12)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
