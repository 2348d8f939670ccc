"""Spots shared out among threads; compiled functions let go of Python's lock while they work."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise

import numpy as np

from stampy import _utils

__all__ = ["share_spots"]

PARTS_PER_THREAD = 8  # spots differ in size: a thread that is done early takes another part
MIN_SPOTS = 64  # of a part; fewer take less time than to hand them to a thread


def share_spots(function: Callable[[int, int], None], n_spots: int) -> None:
    """Call ``function(first, end)`` for parts that cover all spots, in as many threads as torch uses.

    numba's own threads share the spots out beforehand and wait for each other in a loop: on a busy machine two of them
    took longer than one. Here no thread waits for one that has not begun.
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
    """Threads that are kept: to start one takes a while on a busy machine."""
    return ThreadPoolExecutor(n, thread_name_prefix="spots")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.cache_clear)  # threads are not inherited by a fork
