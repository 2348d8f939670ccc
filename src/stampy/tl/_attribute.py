"""Attribution of an embedding to genes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys, models
from stampy._labels import no_fractions
from stampy._settings import DEFAULT_SEED
from stampy._utils import generator, table_of
from stampy.pp._counts import counts_name, counts_of
from stampy.pp._genes.match_report import GeneMatch
from stampy.pp._tokens import iter_tokens

from ._embedding.arguments import ORGANISMS, Organism
from ._embedding.encoders import check_loadable, digest_of_towers, genes_of, loaded_stamp, match_genes
from ._embedding.spaces import Space, check_model, space_of, unit
from ._embedding.stream import Tower
from ._methods.token_attribution import N_STEPS, captum, embed_tokens, integrated_gradients, leave_one_out
from ._results import Result, write_result
from ._score import rows_of_genes, vocabulary_of

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from spatialdata import SpatialData

    from stampy.pp import Vocabulary

__all__ = ["attribute"]

ALIKE = 0.99  # minimum cosine of a recomputed with the stored embedding; bfloat16 stays well above


def attribute(
    adata: AnnData | SpatialData,
    target: Literal["embedding", "cluster", "match"] = "embedding",
    *,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    method: Literal["leave_one_out", "integrated_gradients"] = "leave_one_out",
    model: str | Path | models.Stamp = "stampy-mini",
    genes: Sequence[str] | None = None,
    n_spots: int | None = 5,
    max_rank: int | None = None,
    n_steps: int | None = None,
    layer: str | None = None,
    organism: Organism = "human",
    embedding_key: str = _keys.EMBEDDING,
    per_spot: bool = False,
    table_key: str = _keys.TABLE,
    batch_size: int | None = None,
    device: str | torch.device | None = None,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    show_progress_bar: bool = True,
    key_added: str = _keys.ATTRIBUTE,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Attribute the gene embedding, a cluster, or the match of genes and image to single genes.

    Parameters
    ----------
    adata
        Section(s) with raw counts.
    target
        The quantity to explain:

        - ``"embedding"``: the vector of the spot. The attribution of a gene is 1 − the cosine of the vectors with and
          without it, i.e. how far it rotates the vector
        - ``"cluster"``: the spot's cosine with the mean of its own cluster (`groupby`) minus the mean of its cosines
          with the means of the others. Above 0: the gene moves its spots towards their cluster
        - ``"match"``: the cosine of the spot's gene and image embeddings. Above 0: the gene agrees with the image
    groupby
        Column of obs with labels; the table then has one column per label. Required for clusters.
    groups
        The labels to explain; all by default.
    method
        ``"leave_one_out"`` embeds each spot again without each of its genes, in batches; genes of lower rank move up.
        ``"integrated_gradients"`` follows the gradient from a spot of masked tokens (captum, the extra ``attribute``):
        faster for long token lists, but an approximation, and blind to the change of ranks.
    model
        A name, a folder, or a loaded `stampy.models.Stamp`.
    genes
        Remove only these genes (names or ids); others are not in the table.
    n_spots
        Number of spots to explain, drawn at random from each group (from all spots without `groupby`); None: all spots.
        ``"leave_one_out"`` takes one pass of the gene encoder per token of a spot: with ``"stampy-mini"`` and 400
        tokens about ten seconds on one core, and a quarter of that with integrated gradients. `genes` and `max_rank`
        reduce the time.
    max_rank
        Remove only the first `max_rank` tokens of each spot.
    n_steps
        Steps of the integrated gradients, 32 by default.
    layer
        Layer with raw counts; None: ``adata.X``.
    organism
        Organism of the section's genes and of `genes`: see `stampy.tl.embed`.
    embedding_key
        Key of `stampy.tl.embed`: ``obsm[key + "_gene"]`` is used for clusters and ``obsm[key + "_image"]`` for the
        match.
    per_spot
        Also write the attributions of each spot.
    table_key
        Table of a SpatialData.
    batch_size
        Token lists per batch; None: chosen for the device.
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.
    rng
        Seed for drawing spots.
    show_progress_bar
        Show a progress bar.
    key_added
        Key for the results.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``uns["stamp"][key_added]``
        Parameters, the names of the explained spots, and ``["attribution"]``: a table of genes (names as in
        `var_names`) by groups ("all" without `groupby`; a "/" in a label becomes "|", because .h5ad files do not allow
        it). Values are means over the explained spots of the group; a spot without the gene counts as 0. Genes that no
        spot has are dropped, unless they are in `genes`.
    ``layers[key_added]``
        With `per_spot`: CSR float32 (n, n_vars); rows of other spots are empty.

    Raises
    ------
    KeyError
        A missing column or embedding.
    ValueError
        One label only, missing labels, no gene in common, embeddings of another model, other weights or other counts,
        or conflicting arguments.
    ImportError
        Integrated gradients without captum.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=40, image=False)
    >>> stampy.tl.attribute(adata, genes=["COL1A1", "COL3A1"], n_spots=3, show_progress_bar=False)
    >>> table = adata.uns["stamp"]["stamp_attribute"]["attribution"]
    >>> table.shape, bool((table["all"] >= 0).all())
    ((2, 1), True)

    References
    ----------
    Integrated gradients: Sundararajan et al., Axiomatic Attribution for Deep Networks, 2017 (arXiv 1703.01365).
    """
    table = table_of(adata, table_key)
    _check_arguments(target, groupby, groups, method, n_spots, max_rank, n_steps, batch_size)
    _checks.one_of("organism", organism, ORGANISMS)
    _checks.not_empty(table)
    labels = None if groupby is None else _labels(table, groupby, groups, target)
    check_loadable(model, device)
    counts_of(table, layer)
    space, loaded = _space_and_model(table, embedding_key, target, model, device)
    vocabulary = vocabulary_of(loaded)
    match = match_genes(table, vocabulary, organism, layer)
    asked = _selected_genes(genes, loaded, match, organism)

    spots = _draw(table.n_obs, labels, groups, n_spots, generator(rng))
    most = loaded.gene.config.max_tokens
    tokens = _tokens(table, spots, layer, match, vocabulary, most + 1)
    ask = (tokens > 0) & asked[np.maximum(tokens - _keys.N_SPECIAL, 0)]
    ask[:, most if max_rank is None else min(max_rank, most) :] = False
    tower = Tower(loaded, 0, "float32")
    weights = _weights(target, tower, tokens, spots, space, labels)
    if method == "leave_one_out":
        values = leave_one_out(tower, tokens, weights, ask, batch_size=batch_size, progress=show_progress_bar)
    else:
        values = integrated_gradients(
            tower, tokens, weights, n_steps=n_steps or N_STEPS, batch_size=batch_size, progress=show_progress_bar
        )
    found = _by_column(tokens, values, match, ask)
    shown = np.unique(found.indices) if genes is None else _columns(match, np.flatnonzero(asked))
    record = {
        "model": loaded.name,
        "target": target,
        "method": method,
        "groupby": groupby or "",
        "embedding_key": embedding_key,
        "spots": table.obs_names[spots].to_numpy(dtype=object),
        "attribution": _table(found, table.var_names, shown, labels, groups, spots),
    }
    layers = {key_added: _spread(found, spots, table.n_obs)} if per_spot else {}
    return write_result(adata, Result(key_added, record, layers=layers), copy=copy, table_key=table_key)


def _space_and_model(
    table: AnnData, embedding_key: str, target: str, model: str | Path | models.Stamp, device: str | torch.device | None
) -> tuple[Space | None, models.Stamp]:
    """Stored vectors that the target is compared with, and the loaded model; ValueError if they do not fit together."""
    space = None
    if target != "embedding":
        space = space_of(table, embedding_key, "gene" if target == "cluster" else "image")
    loaded = loaded_stamp(model, device)
    if target == "match" and loaded.image is None:
        raise ValueError(f"The model {loaded.name!r} has no image encoder: there is no match to explain.")
    if space is not None:
        check_model(space, loaded.name, loaded.config.embedding, digest_of_towers(loaded))
    return space, loaded


def _tokens(
    table: AnnData, spots: np.ndarray, layer: str | None, match: GeneMatch, vocabulary: Vocabulary, most: int
) -> np.ndarray:
    """Tokens (n, most) of some spots."""
    counts, source = counts_of(table[spots], layer), counts_name(layer)
    blocks = iter_tokens(counts, match, vocabulary.divisors, most, source=source, layers=table.layers)
    return np.concatenate([block for _, block in blocks])


def _check_arguments(target: Any, groupby: Any, groups: Any, method: Any, n_spots: Any, max_rank: Any, n_steps: Any,
                     batch_size: Any) -> None:  # fmt: skip
    _checks.one_of("target", target, ("embedding", "cluster", "match"))
    _checks.one_of("method", method, ("leave_one_out", "integrated_gradients"))
    numbers = {"n_spots": n_spots, "max_rank": max_rank, "n_steps": n_steps, "batch_size": batch_size}
    for name, value in numbers.items():
        if value is not None:
            _checks.at_least(name, value, 1)
    if target == "cluster" and groupby is None:
        raise ValueError("target='cluster' needs `groupby`, the column of obs with the clusters.")
    if groups is not None and groupby is None:
        raise ValueError("`groups` was given without `groupby`, the column of obs with the labels.")
    if method == "leave_one_out" and n_steps is not None:
        raise ValueError("`n_steps` belongs to method='integrated_gradients'. Omit one of them.")
    if method == "integrated_gradients":
        if max_rank is not None:
            raise ValueError("`max_rank` belongs to method='leave_one_out'. Omit one of them.")
        captum()


def _labels(table: AnnData, groupby: str, groups: Sequence[str] | None, target: str) -> pd.Series:
    """Labels as text, checked."""
    _checks.has_key(table.obs, groupby, slot="adata.obs", needs="`groupby` names a column of labels.")
    labels = table.obs[groupby]
    no_fractions(labels)
    if labels.isna().any():
        raise ValueError(
            f"`adata.obs['{groupby}']` is missing for {int(labels.isna().sum())} of {table.n_obs} spots. Remove "
            f"these spots: `adata = adata[adata.obs['{groupby}'].notna()].copy()`."
        )
    labels = labels.astype(str)
    names = sorted(labels.unique())
    for name in [] if groups is None else groups:
        _checks.one_of("groups", name, names)
    if target == "cluster" and len(names) < 2:
        raise ValueError(
            f"target='cluster' needs at least two labels in `adata.obs['{groupby}']`, found {names}: a cluster is "
            "compared with the others."
        )
    return labels


def _selected_genes(
    genes: Sequence[str] | None, model: models.Stamp, match: GeneMatch, organism: Organism
) -> np.ndarray:
    """Mask (n_vocabulary,) of the genes of the vocabulary to include in the table."""
    asked = np.zeros(match.n_vocabulary, dtype=bool)
    asked[match.rows[match.rows >= 0]] = True
    if genes is None:
        return asked
    rows, unknown = rows_of_genes(genes, model, 1, organism)
    table = genes_of(model)
    absent = [*unknown, *(str(table["symbol"].iloc[r].split("|")[0] or table["gene_id"].iloc[r])
                          for r in rows if not asked[r])]  # fmt: skip
    if absent:
        raise ValueError(
            f"{len(absent)} of `genes` are not in both the section and the vocabulary of {model.name!r}: "
            f"{_checks.shortlist(absent)}. Omit them."
        )
    return np.isin(np.arange(match.n_vocabulary), rows)


def _draw(n: int, labels: pd.Series | None, groups: Sequence[str] | None, n_spots: int | None,
          random: np.random.Generator) -> np.ndarray:  # fmt: skip
    """Rows to explain, ascending: `n_spots` of each group, or all of a smaller group."""
    pools = [np.arange(n)]
    if labels is not None:
        pools = [np.flatnonzero(labels == name) for name in _wanted(labels, groups)]
    few = [pool if n_spots is None or len(pool) <= n_spots else random.choice(pool, n_spots, False) for pool in pools]
    return np.sort(np.concatenate(few))


def _wanted(labels: pd.Series, groups: Sequence[str] | None) -> list[str]:
    return sorted(labels.unique()) if groups is None else list(dict.fromkeys(groups))


def _weights(target: str, tower: Tower[models.Stamp], tokens: np.ndarray, spots: np.ndarray, space: Space | None,
             labels: pd.Series | None) -> np.ndarray:  # fmt: skip
    """Vector w of each spot (n, E), which defines the explained quantity e · w."""
    if target == "match" and space is not None:
        return space.vectors[spots]
    own = embed_tokens(tower, tokens)
    if space is None or labels is None:  # the embedding itself
        return own
    known = space.known[spots] & own.any(axis=1)
    alike = np.einsum("ne,ne->n", own, space.vectors[spots])
    if not known.any() or alike[known].min() < ALIKE:
        raise ValueError(
            f"`{space.name}` is not what the model {tower.model.name!r} gives for these counts (cosine "
            f"{alike[known].min(initial=1):.2f} for one spot). Embed again: `stampy.tl.embed(adata, model)`."
        )
    names = sorted(labels.unique())
    codes = pd.Index(names).get_indexer(labels)
    means = np.stack([space.vectors[codes == i].mean(axis=0) for i in range(len(names))])
    means = unit(means)
    others = (means.sum(axis=0) - means) / (len(names) - 1)
    return (means - others)[codes[spots]].astype(np.float32)


def _columns(match: GeneMatch, rows: np.ndarray) -> np.ndarray:
    """Columns of the section for rows of the vocabulary; the first if there are several."""
    column = np.full(match.n_vocabulary, -1)
    at = np.flatnonzero(match.rows >= 0)[::-1]
    column[match.rows[at]] = at
    return column[rows]


def _by_column(tokens: np.ndarray, values: np.ndarray, match: GeneMatch, ask: np.ndarray) -> sparse.csr_array:
    """Attributions of the explained spots by column of the section (spots, n_vars)."""
    spot, place = np.nonzero(ask)
    where = _columns(match, tokens[spot, place] - _keys.N_SPECIAL)
    shape = (len(tokens), match.n_vars)
    return sparse.coo_array((values[spot, place].astype(np.float32), (spot, where)), shape=shape).tocsr()


def _table(found: sparse.csr_array, genes: pd.Index, shown: np.ndarray, labels: pd.Series | None,
           groups: Sequence[str] | None, spots: np.ndarray) -> pd.DataFrame:  # fmt: skip
    """Genes (columns `shown`) by groups: mean over the explained spots of each group."""
    if labels is None:
        return pd.DataFrame({"all": np.asarray(found.mean(axis=0))[shown]}, index=genes[shown])
    own = labels.to_numpy()[spots]
    means = {
        name.replace("/", "|"): np.asarray(found[own == name].mean(axis=0))[shown] for name in _wanted(labels, groups)
    }
    return pd.DataFrame(means, index=genes[shown])


def _spread(found: sparse.csr_array, spots: np.ndarray, n: int) -> sparse.csr_matrix:
    """Add empty rows for all other spots of the table."""
    found = found.tocoo()
    return sparse.coo_matrix((found.data, (spots[found.row], found.col)), shape=(n, found.shape[1])).tocsr()
