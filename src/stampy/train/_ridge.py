"""A linear model from colours and texture to genes: what a trained image tower has to beat.

Shapes: n spots, F features of tiles, K components of the genes.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import sparse

from stampy import _keys

from ._start import anomaly_of_rank

__all__ = ["ranks_of_own", "ridge_ranks", "tile_features"]

COMPONENTS = 32
ALPHAS = np.logspace(-1, 5, 13)
QUANTILES = (0.1, 0.5, 0.9)


def tile_features(tiles: np.ndarray) -> np.ndarray:
    """Colours and texture (n, F) of tiles (n, px, px, 3) uint8.

    Mean and deviation of the brightness and of the optical density of each channel, quantiles of the latter, and how
    much its mean over the channels changes from place to place at scales of 1 to 16 px.
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
    """Of each spot, how many spots of its section have genes nearer to what its tile predicts than its own genes.

    A section is predicted from the others. Where there is one alone, its left half is predicted from the right one and
    the other way round; the nearest are sought in the whole section all the same.

    Parameters
    ----------
    features
        (n, F) by section, from `tile_features`.
    tokens
        (n, L) by section.
    xy
        (n, 2) by section, to part a section by.
    n_tokens
        Genes and special tokens.
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
            left = xy[name][:, 0] <= np.median(xy[name][:, 0])
            folds = [(part, scaled[name][~part], genes[name][np.flatnonzero(~part)]) for part in (left, ~left)]
        found[name] = np.empty(len(scaled[name]), dtype=np.int64)
        for rows, x, y in folds:
            found[name][rows] = _fold(scaled[name], genes[name], rows, x, y)
    return found


def weighted(tokens: np.ndarray, n_tokens: int) -> sparse.csr_matrix:
    """(n, genes): how far above its usual level a gene of its rank typically is."""
    rows, ranks = np.nonzero(tokens)
    gates = np.log1p(anomaly_of_rank(tokens.shape[1])).astype(np.float32)
    genes = tokens[rows, ranks].astype(np.int64) - _keys.N_SPECIAL
    return sparse.csr_matrix((gates[ranks], (rows, genes)), (len(tokens), n_tokens - _keys.N_SPECIAL))


def ranks_of_own(queries: np.ndarray, keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of each query (m, K), how many keys (n, K) are nearer, by cosine, than its own, key `rows` (m,).

    Equals count as nearer: a model that says the same of all spots finds none.
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
