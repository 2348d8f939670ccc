"""Folds of cross-validation: by blocks, sections, patients or at random. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd

from stampy import _checks, _utils
from stampy._settings import DefaultSeed, settings

__all__ = ["block_folds", "folds_of", "group_folds", "random_folds"]

Scheme = Literal["section", "patient", "blocks", "random"]
SCHEMES = ("section", "patient", "blocks", "random")
BLOCKS_PER_FOLD = 5


def int_seed(rng: int | np.random.Generator | None) -> int:
    """Seed for scikit-learn, scanpy etc.: an integer of 32 bits unchanged, else drawn."""
    if isinstance(rng, DefaultSeed):
        rng = settings.seed
    if isinstance(rng, int | np.integer) and 0 <= rng < 2**32:
        return int(rng)
    return int(_utils.generator(rng).integers(2**31 - 1))


def block_folds(
    xy: np.ndarray,
    n_folds: int = 5,
    *,
    sections: np.ndarray | None = None,
    blocks_per_fold: int = BLOCKS_PER_FOLD,
    rng: int | np.random.Generator | None = 0,
) -> np.ndarray:
    """Spatially blocked folds: compact pieces of tissue are held out, so that few spots have a neighbour in training.

    k-means divides the coordinates of each section into `blocks_per_fold` blocks per fold. Blocks are assigned to folds
    in descending order of size, each to the fold with the fewest spots so far.

    Parameters
    ----------
    xy
        (n, 2) coordinates in any unit.
    sections
        (n,) section of each spot; every section is divided separately, and fold k combines block set k of all sections.
    blocks_per_fold
        Fewer, larger blocks leak less information, but more often hold out all spots of a label.

    Returns
    -------
    (n,) int64 in 0 to n_folds - 1.

    Examples
    --------
    >>> xy = np.stack(np.mgrid[:10, :10], axis=-1).reshape(-1, 2)
    >>> np.bincount(block_folds(xy, 5)).sum()
    np.int64(100)
    """
    xy, seed = _checks.points(xy), int_seed(rng)
    _checks.at_least("n_folds", n_folds, 2)
    _checks.at_least("blocks_per_fold", blocks_per_fold, 1)
    sections = np.zeros(len(xy), dtype=int) if sections is None else np.asarray(sections)
    folds = np.empty(len(xy), dtype=np.int64)
    for section in np.unique(sections):
        rows = sections == section
        _enough(int(rows.sum()), n_folds, "spots with a value in a section")
        folds[rows] = _blocks(xy[rows], n_folds, blocks_per_fold, seed)
    return folds


def _blocks(xy: np.ndarray, n_folds: int, per_fold: int, seed: int) -> np.ndarray:
    from sklearn.cluster import KMeans

    n_places = len(np.unique(xy, axis=0))
    _enough(n_places, n_folds, "different coordinates in a section")
    block = KMeans(min(per_fold * n_folds, n_places), n_init=1, random_state=seed).fit_predict(xy)
    return _balanced(np.bincount(block), n_folds)[block]


def _balanced(sizes: np.ndarray, n_folds: int) -> np.ndarray:
    """Fold of each group: in descending order of size, each to the smallest fold so far."""
    fold, filled = np.empty(len(sizes), dtype=np.int64), np.zeros(n_folds)
    for group in np.argsort(-sizes):
        fold[group] = np.argmin(filled)
        filled[fold[group]] += sizes[group]
    return fold


def group_folds(groups: Sequence[object] | np.ndarray, n_folds: int = 5) -> tuple[np.ndarray, list[str]]:
    """Hold out whole groups (sections, patients): folds (n,) int64, and a name for each fold.

    Up to `n_folds` groups are held out one by one and name the folds; more groups are assigned by size.

    Examples
    --------
    >>> group_folds(["s1", "s1", "s2"])
    (array([0, 0, 1]), ['s1', 's2'])
    """
    codes, names = pd.factorize(pd.Series(groups), sort=True)
    if (codes < 0).any():
        raise ValueError(f"{int((codes < 0).sum())} of {len(codes)} spots belong to no group. Name one for every spot.")
    if len(names) < 2:
        raise ValueError(
            f"Folds by group need two groups or more, found {_checks.shortlist(names)}. Use folds='blocks'."
        )
    if len(names) <= n_folds:
        return codes.astype(np.int64), [str(n) for n in names]
    return _balanced(np.bincount(codes), n_folds)[codes], [str(i) for i in range(n_folds)]


def random_folds(n: int, n_folds: int = 5, *, rng: int | np.random.Generator | None = 0) -> np.ndarray:
    """Random folds of (nearly) equal size. Neighbouring spots share counts and tissue, so within a section these leak.

    >>> np.bincount(random_folds(11, 5)).tolist()
    [3, 2, 2, 2, 2]
    """
    _enough(n, n_folds, "spots")
    return _utils.generator(rng).permutation(n) % n_folds


def folds_of(
    scheme: Scheme,
    n: int,
    *,
    n_folds: int = 5,
    xy: np.ndarray | None = None,
    sections: np.ndarray | None = None,
    patients: np.ndarray | None = None,
    rng: int | np.random.Generator | None = 0,
) -> tuple[np.ndarray, list[str]]:
    """Folds (n,) by one of the schemes, and their names."""
    check_folds(scheme, n, n_folds)
    if scheme in ("section", "patient"):
        groups = sections if scheme == "section" else patients
        if groups is None:
            raise ValueError(f"folds='{scheme}' needs `{'library' if scheme == 'section' else 'patient'}_key=`.")
        return group_folds(groups, n_folds)
    if scheme == "random":
        folds = random_folds(n, n_folds, rng=rng)
    elif xy is None:
        raise ValueError("folds='blocks' needs coordinates, obsm['spatial'].")
    else:
        folds = block_folds(xy, n_folds, sections=sections, rng=rng)
    return folds, [str(i) for i in range(n_folds)]


def check_folds(scheme: str, n: int, n_folds: int) -> None:
    """Raise for an unknown scheme, or more folds than spots."""
    _checks.one_of("folds", scheme, SCHEMES)
    _checks.at_least("n_folds", n_folds, 2)
    _enough(n, n_folds if scheme in ("blocks", "random") else 2, "spots with a value")


def _enough(n: int, n_folds: int, what: str) -> None:
    if n < n_folds:
        raise ValueError(f"{n_folds} folds need at least {n_folds} {what}, found {n}. Choose a smaller `n_folds`.")
