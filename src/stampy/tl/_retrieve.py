"""Retrieval of spots by their image or their genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys
from stampy._files import digest
from stampy._section.neighbors import Tree, nearest
from stampy._section.section import library_key_of, places_of
from stampy._settings import DEFAULT_SEED
from stampy._utils import generator, table_of

from ._embedding.spaces import Modality, Space, check_same_space, space_of
from ._methods.cosine_neighbors import Nearest, approximate, exact, hit_rates
from ._results import Result, write_result

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["retrieve"]

RECALL_AT = (1, 5, 10)
APPROXIMATE_FROM = 10**10  # pairs of query and reference; up to here, exact search takes some minutes on one core
EXCLUDE = ("nothing", "spot", "neighbors", "section")


def retrieve(
    adata: AnnData | SpatialData,
    reference: AnnData | SpatialData | None = None,
    *,
    query: Modality = "image",
    target: Modality = "gene",
    k: int = 10,
    exclude: Literal["nothing", "spot", "neighbors", "section"] | None = None,
    radius: float = 1.5,
    paired: bool | None = None,
    method: Literal["exact", "approximate"] | None = None,
    library_key: str | None = None,
    embedding_key: str = _keys.EMBEDDING,
    reference_key: str | None = None,
    table_key: str = _keys.TABLE,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    show_progress_bar: bool = True,
    key_added: str = _keys.RETRIEVE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Find the nearest spots of every spot by genes or image, in the same table or another.

    Search from image to gene, from gene to image, or within one modality, by the cosine of the two embeddings. If every
    query has its own spot in the reference, the recall states how often this spot is among the first k.

    For a search from image to genes, or the reverse, embed with ``stampy.tl.embed(..., center="section")``: the stain
    shifts all image vectors of a section by about the same amount, and centring removes this shift. The card of
    `stampy-mini` has the recall with and without. Do not centre where the mean of a section is part of the answer, for
    example to find out which of several sections a tile comes from.

    Parameters
    ----------
    adata
        The queries: section(s) with embeddings by `stampy.tl.embed`.
    reference
        Table to search, embedded by the same model. None: `adata` itself.
    query, target
        Modality of the queries and of the reference: ``"image"``, ``"gene"`` or ``"fused"``.
    k
        Number of spots to find for each query.
    exclude
        Spots to exclude from the results: the ``"spot"`` itself, the spot and its spatial ``"neighbors"``, all spots of
        its own ``"section"``, or ``"nothing"``. None: the spot itself for a search within one modality of one table,
        otherwise nothing.
    radius
        Radius of the spatial neighbours, in distances of adjacent spots of the section.
    paired
        With `reference`: whether spots with the same name (and section, with `library_key`) are the same spot. Barcodes
        recur in every slide, so stampy does not guess this. Leave None without `reference`.
    method
        ``"exact"`` compares all pairs, in blocks of bounded memory. ``"approximate"`` uses nearest-neighbour descent
        (pynndescent) and may miss some. None: exact up to 10¹⁰ pairs (100,000 by 100,000 spots).
    library_key
        Column of obs, in both tables, that names the section of each spot.
    embedding_key, reference_key
        Keys of the embeddings of the queries and of the reference: ``obsm[key + "_gene"]``, ``obsm[key + "_image"]`` or
        (fused) ``obsm[key]``; the same key by default.
    table_key
        Table of a SpatialData.
    rng
        Seed of the approximate search.
    show_progress_bar
        Show a progress bar.
    key_added
        Key for the results.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy of `adata` (the reference is only read). Written:

    ``obsm[key_added + "_index"]``
        int64 (n, k): rows of the reference, nearest first; −1 for a spot without embedding.
    ``obsm[key_added + "_score"]``
        float32 (n, k): their cosines; NaN for a spot without embedding.
    ``uns["stamp"][key_added]``
        Parameters, and ``["recall"]`` if queries have their own spot in the reference: a table with the columns section
        ("all", then each), k (1, 5, 10), recall, chance, queries, reference. `recall` is the share of spots whose own
        spot is among the first `k` of the entire reference, with ties broken at random; `chance` is the share for a
        random order.

    Warns
    -----
    StampyWarning
        Spots without an embedding (without counts in the vocabulary) are not searched and not found. The provenance of
        an embedding is not known.

    Raises
    ------
    KeyError
        The embedding, the coordinates (for neighbours) or a column is missing.
    ValueError
        Embeddings of different models, weights, levels or sizes; `k` larger than the number of spots to find; no spots
        in common for `paired`; conflicting arguments.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=20)
    >>> stampy.tl.embed(adata, center="section", show_progress_bar=False)
    >>> stampy.tl.retrieve(adata, query="image", target="gene", show_progress_bar=False)
    >>> adata.obsm["stamp_retrieve_index"].shape
    (20, 10)
    >>> adata.uns["stamp"]["stamp_retrieve"]["recall"][["k", "chance", "queries"]]
        k  chance  queries
    0   1    0.05       20
    1   5    0.25       20
    2  10    0.50       20
    """
    table = table_of(adata, table_key)
    other = table if reference is None else table_of(reference, table_key)
    _check_arguments(query, target, k, exclude, radius, paired, method, reference)
    sought, given = _comparable_spaces(table, other, (embedding_key, reference_key or embedding_key), query, target)
    if exclude is None:
        exclude = "spot" if reference is None and query == target else "nothing"
    library_key = library_key_of(adata, library_key, table_key)
    sections = _sections(table, other, library_key)
    pairs = _pairs(table, other, sections, bool(reference is None if paired is None else paired))
    places = _places(adata, reference, library_key, table_key) if exclude == "neighbors" else None
    excluded = _exclusions(exclude, places, pairs, sections, radius, library_key)
    search = _Search(sought, given, pairs, *excluded)
    search.check(k)
    found, used = search.run(k, method, generator(rng), show_progress_bar)

    record: dict[str, object] = {
        "model": (sought.record or given.record or {}).get("model", ""),
        "query": query,
        "target": target,
        "k": k,
        "method": used,
        "exclude": exclude,
        "embedding_key": [embedding_key, reference_key or embedding_key],
        "library_key": library_key or "",
        "reference": "self" if reference is None else "other",
        "n_reference": other.n_obs,
        "reference_digest": digest(other.obs_names),
    }
    if exclude == "nothing" and (pairs >= 0).any():
        record["recall"] = _recall(found, pairs, search, sections, RECALL_AT)
    known = sought.known[:, None]
    obsm = {
        key_added + _keys.INDEX_SUFFIX: np.where(known, found.index[:, :k], -1),
        key_added + _keys.SCORE_SUFFIX: np.where(known, found.score[:, :k], np.nan).astype(np.float32),
    }
    result = Result(key_added, record, obsm=obsm, blank=~sought.known)
    return write_result(adata, result, copy=copy, table_key=table_key)


def _comparable_spaces(
    table: AnnData, other: AnnData, keys: tuple[str, str], query: Modality, target: Modality
) -> tuple[Space, Space]:
    """Embeddings of queries and reference, which must share a space."""
    _checks.not_empty(table, genes=False)
    _checks.not_empty(other, genes=False)
    sought = space_of(table, keys[0], query)
    given = space_of(other, keys[1], target, slot="adata.obsm" if other is table else "reference.obsm")
    check_same_space(sought, given)
    _warn_of_unknown(sought, given)
    return sought, given


def _check_arguments(query: Any, target: Any, k: Any, exclude: Any, radius: Any, paired: Any, method: Any,
                     reference: Any) -> None:  # fmt: skip
    _checks.one_of("query", query, ("gene", "image", "fused"))
    _checks.one_of("target", target, ("gene", "image", "fused"))
    _checks.at_least("k", k, 1)
    _checks.positive("radius", radius)
    if exclude is not None:
        _checks.one_of("exclude", exclude, EXCLUDE)
    if method is not None:
        _checks.one_of("method", method, ("exact", "approximate"))
    if reference is None and paired is False:
        raise ValueError(
            "`paired=False` was given without `reference`: within one table, every spot is its own counterpart."
        )
    if reference is not None and exclude == "spot" and not paired:
        raise ValueError(
            "exclude='spot' needs `paired=True` where there is another `reference`: it must be clear which of its "
            "spots is the same."
        )


def _warn_of_unknown(query: Space, reference: Space) -> None:
    for space in (query, reference) if query.name != reference.name else (query,):
        empty = int((~space.known).sum())
        if empty == len(space.vectors):
            raise ValueError(f"All {empty} rows of `{space.name}` are zero: no spot has an embedding.")
        if empty:
            _checks.warn(
                f"{empty} of {len(space.vectors)} spots have no embedding in `{space.name}` (all zeros): they are "
                "neither searched nor found."
            )


class _Sections:
    """Section of every query and reference spot, with common codes."""

    def __init__(self, query: np.ndarray, reference: np.ndarray, names: list[str]):
        self.query, self.reference, self.names = query, reference, names


def _sections(table: AnnData, other: AnnData, library_key: str | None) -> _Sections:
    codes, names = _checks.libraries(table, library_key)
    if other is table:
        return _Sections(codes, codes, names)
    other_codes, other_names = _checks.libraries(other, library_key)
    everywhere = sorted({*names, *other_names})
    at = pd.Index(everywhere)
    return _Sections(at.get_indexer(names)[codes], at.get_indexer(other_names)[other_codes], everywhere)


def _pairs(table: AnnData, other: AnnData, sections: _Sections, paired: bool) -> np.ndarray:
    """Row of the reference with the same spot (n,), -1 for none."""
    if not paired:
        return np.full(table.n_obs, -1)
    if other is table:
        return np.arange(table.n_obs)
    mine = pd.MultiIndex.from_arrays([sections.query, table.obs_names])
    theirs = pd.MultiIndex.from_arrays([sections.reference, other.obs_names])
    if theirs.has_duplicates:
        raise ValueError(
            "paired=True needs names of spots that occur once in the reference. Make them unique, or name the column "
            "of their sections with `library_key=`."
        )
    pairs = theirs.get_indexer(mine)
    if not (pairs >= 0).any():
        raise ValueError(
            f"paired=True, but no spot of the queries is in the reference: {_checks.shortlist(table.obs_names, 2)} and "
            f"{_checks.shortlist(other.obs_names, 2)}{' of the same section' if len(sections.names) > 1 else ''}. "
            "Omit `paired` for sections of other spots."
        )
    return pairs


def _places(data: Any, reference: Any, library_key: str | None, table_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of queries and reference."""
    if reference is not None and library_key is None:
        raise ValueError("exclude='neighbors' with another `reference` needs `library_key`, the spots' section.")
    xy = places_of(data, library_key=library_key, table_key=table_key).xy
    return xy, xy if reference is None else places_of(reference, library_key=library_key, table_key=table_key).xy


def _exclusions(exclude: str, places: tuple[np.ndarray, np.ndarray] | None, pairs: np.ndarray, sections: _Sections,
                radius: float, library_key: str | None) -> tuple[sparse.csr_array | None, tuple | None]:  # fmt: skip
    """Excluded pairs, as a sparse matrix or as codes of groups."""
    if exclude == "section":
        if library_key is None:
            raise ValueError("exclude='section' needs `library_key`, the column of obs with the spots' section.")
        return None, (sections.query, sections.reference)
    if exclude == "spot":
        rows = np.flatnonzero(pairs >= 0)
        entries = (np.ones(len(rows), dtype=bool), (rows, pairs[rows]))
        return sparse.coo_array(entries, shape=(len(pairs), len(sections.reference))).tocsr(), None
    if places is not None:
        return _neighbors(*places, sections, radius), None
    return None, None


def _neighbors(xy: np.ndarray, other_xy: np.ndarray, sections: _Sections, radius: float) -> sparse.csr_array:
    """Reference spots within `radius` spot distances of each query in its section, including the query itself."""
    rows, columns = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
    for code in np.intersect1d(sections.query, sections.reference):
        mine, theirs = np.flatnonzero(sections.query == code), np.flatnonzero(sections.reference == code)
        near = Tree(other_xy[theirs]).within(xy[mine], radius * _spot_distance(other_xy[theirs]))
        rows.append(np.repeat(mine, [len(n) for n in near]))
        columns.append(theirs[np.concatenate([np.asarray(n, dtype=np.int64) for n in near])])
    row, col = np.concatenate(rows), np.concatenate(columns)
    return sparse.coo_array((np.ones(len(row), dtype=bool), (row, col)), shape=(len(xy), len(other_xy))).tocsr()


def _spot_distance(xy: np.ndarray) -> float:
    """Median distance to the nearest other spot; 0 for a single spot."""
    return float(np.median(nearest(xy, 1)[0])) if len(xy) > 1 else 0.0


class _Search:
    """Queries and reference without spots that have no embedding, and excluded pairs."""

    def __init__(self, query: Space, reference: Space, pairs: np.ndarray,
                 excluded: sparse.csr_array | None, groups: tuple | None):  # fmt: skip
        self.query, self.excluded, self.groups = query, excluded, groups
        self.rows = np.flatnonzero(reference.known)
        self.vectors = reference.vectors
        if len(self.rows) < len(self.vectors):
            self.vectors = self.vectors[self.rows]
            self.excluded = None if excluded is None else excluded[:, self.rows]
            self.groups = None if groups is None else (groups[0], groups[1][self.rows])
        place = np.full(len(reference.vectors), -1)
        place[self.rows] = np.arange(len(self.rows))
        self.pairs = np.where((pairs >= 0) & query.known, place[pairs], -1)

    def check(self, k: int) -> None:
        """Raise ValueError if a query has fewer than `k` candidates."""
        taken = np.zeros(len(self.query.vectors), dtype=np.int64)
        if self.excluded is not None:
            taken = np.diff(self.excluded.indptr)
        if self.groups is not None:
            taken = np.bincount(self.groups[1], minlength=self.groups[0].max() + 1)[self.groups[0]]
        least = len(self.vectors) - int(taken.max())
        if k <= least:
            return
        if least == 0:
            raise ValueError(
                "Nothing is left to find for some spots: all of the reference is excluded. exclude='section' needs "
                "several sections."
            )
        raise ValueError(
            f"`k` must be at most {least}, the number of spots that can be found for every query, found {k}. The "
            "reference has "
            f"{len(self.vectors)} spots with an embedding, up to {int(taken.max())} of them excluded."
        )

    def run(self, k: int, method: str | None, rng: np.random.Generator, progress: bool) -> tuple[Nearest, str]:
        """Results as rows of the whole reference, and the search method."""
        if method is None:
            pairs = len(self.query.vectors) * len(self.vectors)
            method = "exact" if pairs <= APPROXIMATE_FROM or self.groups is not None else "approximate"
        if method == "exact":
            found = exact(
                self.query.vectors,
                self.vectors,
                k,
                excluded=self.excluded,
                groups=self.groups,
                pairs=self.pairs if (self.pairs >= 0).any() else None,
                progress=progress,
            )
        else:
            found = self._approximate(k, rng)
        return Nearest(self.rows[found.index], found.score, found.above, found.tied), method

    def _approximate(self, k: int, rng: np.random.Generator) -> Nearest:
        if self.groups is not None:
            raise ValueError("method='approximate' cannot exclude entire sections. Use method='exact'.")
        most = 0 if self.excluded is None else int(np.diff(self.excluded.indptr).max())
        wanted = min(max(k, *RECALL_AT) + most, len(self.vectors))
        found = approximate(self.query.vectors, self.vectors, wanted, rng=rng)
        if self.excluded is None:
            return found
        score = found.score.copy()
        for i in range(len(score)):
            row = self.excluded.indices[self.excluded.indptr[i] : self.excluded.indptr[i + 1]]
            score[i, np.isin(found.index[i], row)] = -np.inf
        order = np.argsort(-score, axis=1, kind="stable")[:, : wanted - most]
        return Nearest(np.take_along_axis(found.index, order, axis=1), np.take_along_axis(score, order, axis=1))


def _recall(found: Nearest, pairs: np.ndarray, search: _Search, sections: _Sections, at: tuple) -> pd.DataFrame:
    """Tidy table over all queries and by section."""
    paired = search.pairs >= 0
    m = len(search.vectors)
    groups = [("all", paired)]
    if len(sections.names) > 1:
        groups += [(name, paired & (sections.query == i)) for i, name in enumerate(sections.names)]
    hits = {k: hit_rates(found, np.where(paired, pairs, -1), k) for k in at if k <= m}
    rows = [
        (name, k, float(hits[k][mask].mean()), k / m, int(mask.sum()), m)
        for name, mask in groups
        if mask.any()
        for k in hits
    ]
    return pd.DataFrame(rows, columns=["section", "k", "recall", "chance", "queries", "reference"])
