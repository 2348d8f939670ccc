"""Neighbourhood groups: nearly linear in the number of spots, compared with a plain quadratic implementation."""

import time
from functools import cache

import numpy as np

from stampy.pp._neighborhoods import group_spots


@cache
def section(n):
    """A hexagonal grid of `n` spots in random order, like barcodes."""
    row, column = np.divmod(np.arange(n), int(np.sqrt(n)))
    xy = np.column_stack([column + row % 2 / 2, row * np.sqrt(3) / 2])
    return np.random.default_rng(0).permutation(xy)


def group_spots_plainly(xy, size=9):
    """Random free seeds; all free spots are sorted for each group. Without left-over spots and limit: a lower bound."""
    free = np.random.default_rng(0).permutation(len(xy))
    members = []
    while len(free) >= size:
        near = np.argsort(((xy[free] - xy[free[0]]) ** 2).sum(axis=1), kind="stable")[:size]
        group = free[near]
        distances = np.sqrt(((xy[group, None] - xy[group]) ** 2).sum(axis=2))
        center = distances.mean(axis=1).argmin()
        group[[0, center]] = group[[center, 0]]
        members.append(group)
        free = np.delete(free, near)
    return np.array(members)


def time_group_spots(n):
    group_spots(section(n))


def time_plain(n):
    group_spots_plainly(section(n))


def peakmem_group_spots(n):
    group_spots(section(n))


def track_slope():
    """Exponent of the time as a function of the number of spots, from 10^4 to 10^6."""
    return slope(group_spots, [10**4, 10**5, 10**6])


def track_slope_plain():
    """The same for the plain implementation, from 10^4 to 4 x 10^4, where arithmetic dominates the overhead."""
    return slope(group_spots_plainly, [10**4, 2 * 10**4, 4 * 10**4])


def track_left_over(n):
    """Percentage of spots in groups with borrowed spots."""
    groups = group_spots(section(n))
    own = np.bincount(groups.own, minlength=len(groups.members))
    return 100 * own[own < groups.members.shape[1]].sum() / n


def slope(function, sizes):
    function(section(1000))
    took = []
    for n in sizes:
        start = time.perf_counter()
        function(section(n))
        took.append(time.perf_counter() - start)
    return np.polyfit(np.log(sizes), np.log(took), 1)[0]


time_group_spots.params = peakmem_group_spots.params = [10**3, 10**4, 10**5, 10**6]
time_plain.params = [10**3, 3 * 10**3, 10**4]
track_slope.unit = track_slope_plain.unit = "(exponent)"
track_left_over.params = [10**3, 10**4, 10**5]
track_left_over.unit = "%"
