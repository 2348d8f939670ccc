"""Nearest vectors by cosine: exact in blocks of bounded memory, or approximate by nearest-neighbour descent.

All vectors have L2 norm 1. Shapes: n queries, m rows of the reference, k nearest.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from tqdm.auto import tqdm

from stampy._utils import hidden, keeping_threads

__all__ = ["Nearest", "approximate", "exact", "hit_rates"]

QUERIES, REFERENCES = 1024, 16_384  # per block; its cosines take 64 MB, the search about 200 MB in total
TIE = 1e-6  # cosines that differ by less are equal up to rounding


@dataclass(frozen=True, eq=False)
class Nearest:
    """Results for each query, best first."""

    index: np.ndarray  # (n, k) int64
    score: np.ndarray  # (n, k) float32
    above: np.ndarray | None = None  # (n,) int64, number of candidates nearer than the query's pair
    tied: np.ndarray | None = None  # (n,) int64, number of other candidates as near as the pair


def exact(
    query: np.ndarray,
    reference: np.ndarray,
    k: int,
    *,
    excluded: sparse.csr_array | None = None,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
    pairs: np.ndarray | None = None,
    block: tuple[int, int] = (QUERIES, REFERENCES),
    progress: bool = False,
) -> Nearest:
    """The `k` nearest rows of the reference for each query; ties are broken by order in the reference.

    Parameters
    ----------
    query, reference
        (n, d) and (m, d) float32.
    k
        At most the number of candidates of every query.
    excluded
        (n, m), nonzero for excluded pairs.
    groups
        Codes (n,) and (m,); pairs with equal codes are excluded.
    pairs
        (n,) row of the reference that belongs to each query, -1 for none; its rank is also computed.
    block
        Numbers of queries and reference vectors whose cosines are in memory at a time.

    Examples
    --------
    >>> x = np.eye(3, dtype=np.float32)
    >>> exact(x, x, 1, pairs=np.arange(3)).index.ravel().tolist()
    [0, 1, 2]
    """
    n, m = len(query), len(reference)
    above, tied = (None, None) if pairs is None else (np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64))
    out = Nearest(np.empty((n, k), dtype=np.int64), np.empty((n, k), dtype=np.float32), above, tied)
    with tqdm(total=n, desc="retrieve", unit="spot", disable=hidden(progress)) as bar:
        for start in range(0, n, block[0]):
            rows = slice(start, min(start + block[0], n))
            own = None if pairs is None else _pair_scores(query[rows], reference, pairs[rows])
            index = np.empty((rows.stop - start, 0), dtype=np.int64)
            score = np.empty((rows.stop - start, 0), dtype=np.float32)
            for first in range(0, m, block[1]):
                columns = slice(first, min(first + block[1], m))
                cosines = query[rows] @ reference[columns].T
                _exclude(cosines, rows, columns, excluded, groups)
                if pairs is not None and own is not None and above is not None and tied is not None:
                    _count(cosines, own, pairs[rows] - first, above[rows], tied[rows])
                best = _top(cosines, k)
                index = np.hstack([index, best + first])
                score = np.hstack([score, np.take_along_axis(cosines, best, axis=1)])
                keep = _top(score, k)  # earlier blocks come first, so ties keep the reference's order
                index, score = np.take_along_axis(index, keep, axis=1), np.take_along_axis(score, keep, axis=1)
            out.index[rows], out.score[rows] = index, score
            bar.update(rows.stop - start)
    return out


def _pair_scores(query: np.ndarray, reference: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Cosine of each query with its pair (n,), infinity without pair."""
    return np.where(pairs >= 0, np.einsum("nd,nd->n", query, reference[np.maximum(pairs, 0)]), np.inf)


def _exclude(cosines: np.ndarray, rows: slice, columns: slice, excluded: sparse.csr_array | None,
             groups: tuple[np.ndarray, np.ndarray] | None) -> None:  # fmt: skip
    if excluded is not None:
        part = excluded[rows, columns].tocoo()
        cosines[part.row, part.col] = -np.inf
    if groups is not None:
        cosines[groups[0][rows, None] == groups[1][None, columns]] = -np.inf


def _count(cosines: np.ndarray, own: np.ndarray, place: np.ndarray, above: np.ndarray, tied: np.ndarray) -> None:
    """Count candidates above and equal to the pair; `place` is the pair's own column, if in the block."""
    above += (cosines > own[:, None] + TIE).sum(axis=1)
    tied += (np.abs(cosines - own[:, None]) <= TIE).sum(axis=1)
    tied -= (place >= 0) & (place < cosines.shape[1])


def _top(scores: np.ndarray, k: int) -> np.ndarray:
    """Columns of the `k` largest values of each row, descending; ties are broken by order."""
    k = min(k, scores.shape[1])
    if k == scores.shape[1]:
        return np.argsort(-scores, axis=1, kind="stable")
    best = np.sort(np.argpartition(scores, -k, axis=1)[:, -k:], axis=1)
    values = np.take_along_axis(scores, best, axis=1)
    unclear = np.flatnonzero((scores >= values.min(axis=1, keepdims=True)).sum(axis=1) > k)
    if unclear.size:  # more values tie with the last one than fit
        best[unclear] = np.sort(np.argsort(-scores[unclear], axis=1, kind="stable")[:, :k], axis=1)
        values = np.take_along_axis(scores, best, axis=1)
    return np.take_along_axis(best, np.argsort(-values, axis=1, kind="stable"), axis=1)


@keeping_threads()
def approximate(query: np.ndarray, reference: np.ndarray, k: int, *, rng: np.random.Generator) -> Nearest:
    """Approximate `k` nearest rows for each query, by nearest-neighbour descent (pynndescent)."""
    from pynndescent import NNDescent

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on small k, and numba's on types
        graph = NNDescent(
            reference, metric="cosine", n_neighbors=max(30, k), random_state=int(rng.integers(2**31)), verbose=False
        )
        graph.prepare()
        index, distance = graph.query(query, k=k, epsilon=0.2)
    index, score = index.astype(np.int64), (1 - distance).astype(np.float32)
    lost = np.flatnonzero((index < 0).any(axis=1))  # queries with fewer than k results
    if lost.size:
        again = exact(query[lost], reference, k)
        index[lost], score[lost] = again.index, again.score
    return Nearest(index, score)


def hit_rates(found: Nearest, pairs: np.ndarray, k: int) -> np.ndarray:
    """Probability (n,) that each query's pair is among its first `k`; NaN without pair.

    Ties are broken at random in expectation, so that a constant embedding scores at chance. Approximate search does not
    report ties, so a pair is either found or not.
    """
    if found.above is None or found.tied is None:
        hits = (found.index[:, :k] == pairs[:, None]).any(axis=1).astype(float)
    else:
        hits = np.clip((k - found.above) / (found.tied + 1), 0, 1)
    return np.where(pairs >= 0, hits, np.nan)
