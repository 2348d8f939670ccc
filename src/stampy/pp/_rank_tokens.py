"""Compiled loops over the genes of a spot: ranking in linear time, and sums of gene vectors weighted by rank."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numba
import numpy as np

from stampy import _keys, _utils

if TYPE_CHECKING:
    from scipy import sparse

__all__ = [
    "rank_tokens",
    "share_spots",
    "weighted_bag",
]

PARTS_PER_THREAD = 8  # more parts than threads balance spots of unequal size
MIN_SPOTS = 64  # minimum spots per part; below this, threads cost more than they save


def share_spots(function: Callable[[int, int], None], n_spots: int) -> None:
    """Call ``function(first, end)`` for parts that cover all spots, in as many threads as torch uses.

    numba's own threads divide the spots in advance and wait for each other in a busy loop; on a busy machine, two
    threads were slower than one. Here the calling thread processes all parts that no other thread has started.
    """
    n_threads = _utils.n_threads()
    n_parts = min(PARTS_PER_THREAD * n_threads, n_spots // MIN_SPOTS)
    if n_threads == 1 or n_parts < 2:
        function(0, n_spots)
        return
    ends = np.linspace(0, n_spots, n_parts + 1).astype(np.int64).tolist()
    waiting = deque(pairwise(ends))

    def work() -> None:
        while True:
            try:
                first, end = waiting.popleft()
            except IndexError:
                return
            function(first, end)

    helpers = [_helpers(n_threads - 1).submit(work) for _ in range(n_threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@lru_cache(maxsize=1)
def _helpers(n: int) -> ThreadPoolExecutor:
    """A reused pool of threads, since starting threads is slow on a busy machine."""
    return ThreadPoolExecutor(n, thread_name_prefix="spots")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # a fork does not inherit threads


# position of the only set bit of a 64-bit word, by a de Bruijn sequence: times that bit, its top six bits are unique
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_BIT = np.zeros(64, dtype=np.int64)
_BIT[[((0x03F79D71B4CB0A89 << place) & (2**64 - 1)) >> 58 for place in range(64)]] = np.arange(64)

_DEPTH = 10_000.0  # counts per spot, as in the published tokens


def rank_tokens(
    block: sparse.csr_matrix | sparse.csr_array, rows: np.ndarray, divisors: np.ndarray, max_tokens: int
) -> np.ndarray:
    """Tokens of a block of spots.

    Parameters
    ----------
    block
        (spots, genes) CSR, finite and not negative; duplicate entries, explicit zeros and columns in any order are
        allowed.
    rows
        int32 (genes,): row of the vocabulary, -1 for a gene outside it.
    divisors
        float64 (vocabulary,), above 0.
    max_tokens
        Length of a row.

    Returns
    -------
    int32 (spots, max_tokens)

    Examples
    --------
    >>> from scipy import sparse
    >>> rank_tokens(sparse.csr_array([[4, 0, 1, 6]]), np.array([0, 1, 2, -1]), np.array([8.0, 1.0, 2.0]), 3)
    array([[30, 32,  0]], dtype=int32)
    """
    tokens = np.zeros((block.shape[0], max_tokens), dtype=np.int32)
    rank = partial(_rank_spots, block, rows.astype(np.int32, copy=False), 1.0 / divisors.astype(np.float64), tokens)
    share_spots(rank, block.shape[0])
    return tokens


def _rank_spots(
    block: sparse.csr_matrix | sparse.csr_array,
    rows: np.ndarray,
    shares: np.ndarray,
    tokens: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Fill the tokens of spots `first` to `last` - 1."""
    low, high = block.indptr[first], block.indptr[last]
    _rank(  # one set of types, to compile only once
        block.indptr[first : last + 1].astype(np.int64) - low,
        block.indices[low:high].astype(np.int32, copy=False),
        block.data[low:high].astype(np.float64, copy=False),
        rows,
        shares,
        tokens[first:last],
    )


@numba.njit(nogil=True, cache=True)
def _rank(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, rows: np.ndarray, shares: np.ndarray, tokens: np.ndarray
) -> None:
    """Fill `tokens`, which must be zeros."""
    n_genes = len(shares)
    value = np.zeros(n_genes)  # by vocabulary row; all zero between spots
    seen = np.zeros(n_genes // 64 + 1, np.uint64)  # one bit per vocabulary row; all zero between spots
    keys = np.empty((2, n_genes), np.uint64)
    for i in range(len(tokens)):
        low, high = indptr[i], indptr[i + 1]
        _sum_genes(indices[low:high], data[low:high], rows, value, seen)
        n = _collect(value, shares, seen, keys[1])
        _sort(keys[1, :n], keys[0, :n], value)
        for k in range(min(n, tokens.shape[1])):
            tokens[i, k] = np.int64(keys[1, k]) + _keys.N_SPECIAL
        for k in range(n):
            value[np.int64(keys[1, k])] = 0


@numba.njit(nogil=True, cache=True)
def _sum_genes(indices: np.ndarray, data: np.ndarray, rows: np.ndarray, value: np.ndarray, seen: np.ndarray) -> None:
    """Sum the counts of a spot by vocabulary row, and mark the rows in `seen`."""
    for j in range(len(indices)):
        row = rows[indices[j]]
        if row >= 0 and data[j] > 0:
            value[row] += data[j]
            seen[row >> 6] |= np.uint64(1) << np.uint64(row & 63)


@numba.njit(nogil=True, cache=True)
def _collect(value: np.ndarray, shares: np.ndarray, seen: np.ndarray, found: np.ndarray) -> int:
    """Scale the counts of marked rows, list these rows in ascending order, clear the marks and return their number.

    As in the published tokens, counts are scaled to 10,000 per spot in float32 and multiplied by the reciprocal of the
    divisor, since rounding decides which values are ties. Counts are first divided by their greatest common divisor, so
    that a spot sequenced twice as deep has identical tokens.
    """
    n = 0
    total, common = 0.0, 0.0
    for word in range(len(seen)):
        marks = seen[word]
        seen[word] = 0
        while marks:
            last = marks & (~marks + np.uint64(1))
            row = 64 * word + _BIT[(last * _DE_BRUIJN) >> np.uint64(58)]
            total += value[row]
            if common != 1.0:
                common = _common(common, value[row])
            found[n] = row
            n += 1
            marks ^= last
    depth = np.float32(_DEPTH / (total / common)) if n else np.float32(0)
    for k in range(n):
        row = np.int64(found[k])
        value[row] = np.float64(np.float32(value[row] / common) * depth) * shares[row]
    return n


@numba.njit(nogil=True, cache=True)
def _common(a: float, b: float) -> float:
    """Greatest common divisor of whole numbers (b if a is 0); 1 if `b` is not whole."""
    if b != np.floor(b):
        return 1.0
    while b > 0:
        a, b = b, a % b
    return a


@numba.njit(nogil=True, cache=True)
def _sort(order: np.ndarray, keys: np.ndarray, value: np.ndarray) -> None:
    """Sort the rows in `order` by descending value; rows of equal value stay in ascending order.

    Read as integers, the bits of positive floats are in the same order. Two stable counting passes sort by the upper 16
    bits of the difference from the highest; an insertion pass, with few moves, sorts by the rest.
    """
    if len(order) < 2:
        return
    bits = value.view(np.uint64)
    high = low = bits[order[0]]
    for k in range(1, len(order)):
        high = max(high, bits[order[k]])
        low = min(low, bits[order[k]])
    shift = np.uint64(0)
    while (high - low) >> shift > np.uint64(0xFFFF):
        shift += np.uint64(1)

    for k in range(len(order)):
        keys[k] = (((high - bits[order[k]]) >> shift) << np.uint64(32)) | order[k]
    _counting_pass(keys, order, np.uint64(32))
    _counting_pass(order, keys, np.uint64(40))

    for k in range(len(order)):
        row = keys[k] & np.uint64(0xFFFFFFFF)
        j = k
        while j > 0 and value[order[j - 1]] < value[row]:
            order[j] = order[j - 1]
            j -= 1
        order[j] = row


@numba.njit(nogil=True, cache=True)
def _counting_pass(keys: np.ndarray, out: np.ndarray, shift: np.uint64) -> None:
    """Write the keys to `out`, sorted stably by the 8 bits starting at `shift`."""
    byte = np.uint64(0xFF)
    start = np.zeros(257, np.int64)
    for k in range(len(keys)):
        start[((keys[k] >> shift) & byte) + np.uint64(1)] += 1
    for digit in range(256):
        start[digit + 1] += start[digit]
    for k in range(len(keys)):
        digit = (keys[k] >> shift) & byte
        out[start[digit]] = keys[k]
        start[digit] += 1


def weighted_bag(tokens: np.ndarray, table: np.ndarray, gate: np.ndarray | None, share: float) -> np.ndarray:
    """Sum the vectors of each spot's tokens, weighted by the gate of their rank, and divide by `share`.

    Parameters
    ----------
    tokens
        (spots, positions) int32, padded with 0 on the right.
    table
        (tokens, width) float32, the vector of each token.
    gate
        (positions or more, width) float32; None: all 1.
    share
        Divisor of the sums.

    Returns
    -------
    (spots, width) float32; zeros for a spot without tokens. The sum of a spot does not depend on other spots.

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


# "contract" only fuses multiply and add: for each output, the sum runs over positions in order
@numba.njit(nogil=True, cache=True, fastmath={"contract"})
def _add(
    tokens: np.ndarray, table: np.ndarray, gate: np.ndarray, share: np.float32, out: np.ndarray, first: int, end: int
) -> None:
    width = table.shape[1]
    for spot in range(first, end):
        row = out[spot]
        for position in range(tokens.shape[1]):
            token = tokens[spot, position]
            if token == 0:  # _keys.PAD, only on the right
                break
            vector, weight = table[token], gate[position]
            for d in range(width):
                row[d] += vector[d] * weight[d]
        for d in range(width):
            row[d] /= share
