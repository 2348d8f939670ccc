"""Neighbourhood groups: compact groups of neighbouring spots, the most central member first (Algorithm 2)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import numba
import numpy as np

import stampy
from stampy import _checks, _keys, _utils
from stampy._section.neighbors import Tree, spot_distance
from stampy._section.section import places_of
from stampy._settings import DEFAULT_SEED

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["Groups", "group_spots", "neighborhoods"]

logger = logging.getLogger(__name__)

JITTER = 1e-6  # in spot distances; equidistant spots get a random order, so duplicates and grids need no special case
TIE = 1e-9  # relative; mean distances that differ by less count as equal
MANY_DROPPED = 0.1  # warn above this fraction of a section's spots
FREE, TRIED = -1, -2  # a spot without a group; a spot from which no group could be grown


class Groups(NamedTuple):
    """Neighbourhood groups of one section."""

    members: np.ndarray  # int64 (g, size), distinct spots of each group; the most central first, the others ascending
    own: np.ndarray  # int32 (n,), group of each spot, -1 if dropped
    centers: np.ndarray  # int64 (g,), most central of the spots that are not borrowed; may differ from members[:, 0]


def neighborhoods(
    adata: AnnData | SpatialData,
    *,
    size: int = 9,
    max_distance: float = 5.0,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    key_added: str = _keys.GROUP,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Divide the spots into groups of neighbours, for contextual gene reconstruction.

    A group starts from a free spot and adds the nearest free spots. At the end, spots that cannot fill a group form
    smaller groups (in training, these borrow nearby spots that already have a group). No group spans two sections, and
    the groups of a section do not depend on other sections.

    Parameters
    ----------
    adata
        Section(s) with coordinates in ``obsm["spatial"]``, or a SpatialData: its coordinates are those of the shapes,
        labels or points that the table annotates.
    size
        Number of spots of a group, including the central spot.
    max_distance
        Maximum distance between two spots of a group, in spot distances; spots without enough neighbours within this
        limit are dropped. The spot distance is the median distance of the section's spots to their nearest neighbour,
        in real coordinates, so the limit has the same meaning on a hexagonal grid, on a square grid and without a grid.
        (The published code uses 10 units of Visium's array columns, which step by 2: 5 spot distances along a row, more
        than 8 across rows.) A section in which spots are missing at random needs a larger limit.
    library_key
        Column of ``obs`` that names the section of each spot. None: all spots belong to one section; in a SpatialData,
        each region is a section.
    table_key
        The table of a SpatialData.
    key_added
        Key for the results.
    rng
        Seed or generator. The same seed gives the same groups, on any number of threads.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``obs[key_added]``
        int32, number of the group: 0, 1, ... across all sections; -1 for dropped spots.
    ``obs[key_added + "_center"]``
        bool, True for the central spot of each group, i.e. the spot with the smallest mean distance to the other
        members. Borrowed spots are never the central spot.
    ``uns["stamp"][key_added]``
        Parameters, version of stampy, numbers of groups and of dropped spots.

    Raises
    ------
    KeyError
        If there are no coordinates, no such column or no such table.
    ValueError
        If a section has fewer spots than a group, coordinates are NaN or infinite, the table is empty, or several
        sections overlap and `library_key` does not separate them.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=120)
    >>> neighborhoods(adata)
    >>> int(adata.obs["stamp_group"].value_counts().max())
    9
    >>> bool(adata.obs["stamp_group_center"].sum() == adata.obs["stamp_group"].nunique())
    True

    References
    ----------
    The STAMP paper (arXiv 2602.13944), Algorithm 2.
    """
    table = _utils.table_of(adata, table_key)
    _checks.not_empty(table, genes=False)
    xy, codes, names, _ = places_of(adata, library_key=library_key, table_key=table_key)
    _checks.enough_spots(dict(zip(names, np.bincount(codes), strict=True)), size)

    seed = int(_utils.generator(rng).integers(2**63))
    group, is_center = _all_sections(xy, codes, size, max_distance, seed)
    _warn_of_dropped(group, codes, names)
    record = {
        "stampy": stampy.__version__,
        "size": size,
        "max_distance": max_distance,
        "library_key": library_key or "",
        "seed": seed,
        "n_groups": int(is_center.sum()),
        "n_dropped": int((group < 0).sum()),
    }
    logger.info("%(n_groups)d groups, %(n_dropped)d spots dropped", record)

    if copy:
        adata = _utils.copy_of(adata, table_key)
        table = _utils.table_of(adata, table_key)
    new = [("obs", key_added), ("obs", key_added + _keys.CENTER_SUFFIX)]
    _utils.make_room(table, key_added, new, field="max_distance")
    table.obs[key_added] = group
    table.obs[key_added + _keys.CENTER_SUFFIX] = is_center
    table.uns[_keys.UNS] = {**table.uns.get(_keys.UNS, {}), key_added: record}
    return adata if copy else None


def group_spots(
    xy: np.ndarray, *, size: int = 9, max_distance: float = 5.0, rng: int | np.random.Generator | None = 0
) -> Groups:
    """Group neighbouring spots of one section in O(n log n).

    The seed of a group is the free spot next to the last group that has the fewest free spots around it, so that few
    spots are left over between groups; if there is none, a random spot. A group consists of the seed and the nearest
    free spots. Spots left over then form groups of the nearest free spots, completed with the nearest other spots.

    Parameters
    ----------
    xy
        (n, 2) coordinates in any unit.
    size
        Spots per group.
    max_distance
        Maximum distance between two spots of a group, in median nearest-neighbour distances. A spot with `size` spots
        (including itself) within half of it always gets a group; a spot with fewer within all of it never does.
    rng
        Seed or generator.

    Raises
    ------
    ValueError
        If there are fewer spots than `size`, or coordinates are NaN or infinite.

    Examples
    --------
    >>> x, y = np.meshgrid([0, 1, 2], [0, 1, 2])
    >>> group_spots(np.column_stack([x.ravel(), y.ravel()])).members
    array([[4, 0, 1, 2, 3, 5, 6, 7, 8]])
    """
    xy = _checks.points(xy)
    _checks.enough_spots({"": len(xy)}, size)
    _checks.positive("max_distance", max_distance)
    rng = _utils.generator(rng)

    xy = (xy - xy.min(axis=0)) / spot_distance(xy)
    order = rng.permutation(len(xy))
    jittered = xy + rng.uniform(-JITTER, JITTER, xy.shape)
    tree, k = Tree(jittered), min(4 * size, len(xy))

    own = np.full(len(xy), FREE, dtype=np.int32)
    full = _grow(xy, tree.rows(jittered, k), order, max_distance, own, size)
    left = order[own[order] < 0]
    own[left] = FREE
    near = tree.rows(jittered[left], k)
    members = np.concatenate([full, _borrow(xy, near, left, max_distance, own, size, len(full))])
    return Groups(members, own, _put_centre_first(xy, members, own))


def _all_sections(
    xy: np.ndarray, codes: np.ndarray, size: int, max_distance: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Group of the spots of all sections, and whether each spot is the centre of its group."""
    group, is_center = np.empty(len(xy), dtype=np.int32), np.zeros(len(xy), dtype=bool)
    n_groups = 0
    for rows in np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]):
        groups = group_spots(xy[rows], size=size, max_distance=max_distance, rng=seed)
        group[rows] = np.where(groups.own >= 0, groups.own + n_groups, -1)
        is_center[rows[groups.centers]] = True
        n_groups += len(groups.members)
    return group, is_center


def _warn_of_dropped(group: np.ndarray, codes: np.ndarray, names: list[str]) -> None:
    n_dropped, n_spots = np.bincount(codes, weights=group < 0), np.bincount(codes)
    many = np.flatnonzero(n_dropped > MANY_DROPPED * n_spots)
    if many.size:
        found = (f"{names[s] and names[s] + ': '}{n_dropped[s]:.0f} of {n_spots[s]}" for s in many)
        _checks.warn(
            f"Many spots have too few other spots nearby and were dropped from the neighbourhood groups: "
            f"{_checks.shortlist(found)}. Increase `max_distance=` to keep them."
        )


@numba.njit(nogil=True, cache=True)
def _take(
    xy: np.ndarray,
    near: np.ndarray,
    own: np.ndarray,
    any_spot: bool,
    reach: float,
    limit: float,
    row: np.ndarray,
    m: int,
) -> int:
    """Append nearest spots to the `m` in `row`, within `reach` of the seed and `limit` of each other; new `m`."""
    for c in near:
        if m == len(row):
            break
        if not any_spot and own[c] >= 0:
            continue
        fits = True
        for j in range(m):
            apart = np.hypot(xy[c, 0] - xy[row[j], 0], xy[c, 1] - xy[row[j], 1])
            if row[j] == c or apart > limit or (j == 0 and apart > reach):
                fits = False
                break
        if fits:
            row[m] = c
            m += 1
    return m


@numba.njit(nogil=True, cache=True)
def _grow(xy: np.ndarray, near: np.ndarray, order: np.ndarray, limit: float, own: np.ndarray, size: int) -> np.ndarray:
    """Grow groups of free spots (g, size) and enter them in `own`; the remaining spots become TRIED."""
    rank = np.empty(len(xy), np.int64)
    rank[order] = np.arange(len(xy))
    members = np.empty((len(xy) // size, size), np.int64)
    row = np.empty(size, np.int64)
    n_groups, position, seed = 0, 0, -1
    while True:
        if seed < 0:
            while position < len(order) and own[order[position]] != FREE:
                position += 1
            if position == len(order):
                return members[:n_groups]
            seed = order[position]
        row[0] = seed
        own[seed] = TRIED
        m = _take(xy, near[seed], own, False, limit, limit, row, 1)
        if m == size:
            members[n_groups] = row
            own[row] = n_groups
            n_groups += 1
        seed = _next_seed(near, own, rank, row if m == size else row[:1])


@numba.njit(nogil=True, cache=True)
def _next_seed(near: np.ndarray, own: np.ndarray, rank: np.ndarray, row: np.ndarray) -> int:
    """The FREE spot near `row` with the fewest ungrouped spots around it, or -1; ties are broken in random order."""
    best, fewest = -1, near.shape[1] + 1
    for spot in row:
        for c in near[spot]:
            if own[c] != FREE:
                continue
            n = 0
            for around in near[c]:
                n += own[around] < 0
            if n < fewest or (n == fewest and rank[c] < rank[best]):
                best, fewest = c, n
    return best


@numba.njit(nogil=True, cache=True)
def _borrow(
    xy: np.ndarray, near: np.ndarray, left: np.ndarray, limit: float, own: np.ndarray, size: int, n_groups: int
) -> np.ndarray:
    """Groups of left-over spots (g, size), completed with spots of other groups and entered in `own`."""
    members = np.empty((len(left), size), np.int64)
    row = np.empty(size, np.int64)
    made = 0
    for i in range(len(left)):
        if own[left[i]] >= 0:
            continue
        row[0] = left[i]
        # Spots within half the limit of the seed are within the limit of each other, so they never exclude others.
        m = _take(xy, near[i], own, False, limit / 2, limit, row, 1)
        m = _take(xy, near[i], own, True, limit, limit, row, m)
        if m < size:
            continue
        for spot in row:
            if own[spot] < 0:
                own[spot] = n_groups + made
        members[made] = row
        made += 1
    return members[:made]


@numba.njit(nogil=True, cache=True)
def _put_centre_first(xy: np.ndarray, members: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Put the most central spot first and sort the others; return the most central of each group's own spots (g,)."""
    size = members.shape[1]
    centers = np.empty(len(members), np.int64)
    for g in range(len(members)):
        members[g].sort()
        row = members[g].copy()
        total = np.zeros(size)
        for i in range(size):
            for j in range(size):
                total[i] += np.hypot(xy[row[i], 0] - xy[row[j], 0], xy[row[i], 1] - xy[row[j], 1])
        first = _lowest(total)
        center = _lowest(np.where(own[row] == g, total, np.inf))
        members[g, 0] = row[first]
        members[g, 1 : first + 1] = row[:first]
        centers[g] = row[center]
    return centers


@numba.njit(nogil=True, cache=True)
def _lowest(values: np.ndarray) -> np.intp:
    """Position of the first value equal to the lowest, up to rounding."""
    return np.argmax(values <= values.min() * (1 + TIE))
