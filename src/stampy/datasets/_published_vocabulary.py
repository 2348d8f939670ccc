"""The published model's vocabulary, put together from the files of its authors."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from stampy import _checks, _files
from stampy.datasets import _fetch, _registry

NAME = "stamp_vocabulary"


def published_vocabulary() -> Path:
    """Create the `genes.tsv` of the published STAMP model: 20,310 genes in its order with its divisors.

    The order is that of Nicheformer's model file. The divisors are the published non-zero means of a Visium corpus,
    rounded half-up to integers; NaN and 0 become 1. Symbols are added if a mirror has them
    (`stamp_vocabulary/symbol_to_ensembl.json`). Otherwise they are empty, and genes match by Ensembl id.

    Returns
    -------
    Path of a tab-separated file in the cache with columns `gene_id`, `symbol` (several separated by ``|``) and
    `divisor`, for `stampy.pp.Vocabulary.load`.

    Raises
    ------
    ValueError
        If a file has a wrong hash, or order and divisors differ in length.
    ConnectionError
        A file must be downloaded, and the download fails.

    References
    ----------
    STAMP (arXiv 2602.13944), section on gene tokens. Nicheformer (bioRxiv 2024.04.15.589472).

    Examples
    --------
    >>> import stampy
    >>> path = stampy.datasets.published_vocabulary()  # doctest: +SKIP
    >>> stampy.pp.Vocabulary.load(path)  # doctest: +SKIP
    Vocabulary of 20310 genes: TSPAN6, TNMD, DPM1, ...
    """
    entry = _registry.info(NAME)
    gene_ids = _order(_fetch.fetch_file(entry, "order"))
    means = np.load(_fetch.fetch_file(entry, "divisors"), allow_pickle=False)
    if means.shape != (len(gene_ids),):
        raise ValueError(
            f"{len(gene_ids)} genes but divisors of shape {means.shape}: the files do not belong together."
        )
    symbols: dict[str, str] = {}
    if entry.files["symbols"].in_mirror():
        symbols = json.loads(_fetch.fetch_file(entry, "symbols").read_text(encoding="utf-8"))
    text = _table(gene_ids, _symbols(gene_ids, symbols), divisors(means))
    folder = _checks.writable(_fetch.cache_dir() / NAME)
    path = folder / "genes.tsv"
    with _files.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def divisors(means: np.ndarray) -> np.ndarray:
    """The published rule: means (n,) rounded half-up to whole numbers, NaN and 0 become 1.

    >>> divisors(np.array([1.5, 2.49, 0.3, np.nan]))
    array([2, 2, 1, 1])
    """
    rounded = np.floor(np.nan_to_num(means, nan=0.0) + 0.5).astype(np.int64)
    return np.where(rounded == 0, 1, rounded)


def _order(path: Path) -> list[str]:
    """`var_names` of an h5ad file, of which nothing else is read."""
    import h5py

    with h5py.File(path) as file:
        var = file["var"]
        return list(var[var.attrs["_index"]].asstr()[:])


def _symbols(gene_ids: Iterable[str], id_of: dict[str, str]) -> list[str]:
    """Symbols of each id, parted by `|`; empty where there is none."""
    of = defaultdict(list)
    for symbol, gene_id in id_of.items():
        of[gene_id].append(symbol)
    return ["|".join(of.get(gene_id, ())) for gene_id in gene_ids]


def _table(gene_ids: list[str], symbols: list[str], values: np.ndarray) -> str:
    rows = (f"{g}\t{s}\t{v}\n" for g, s, v in zip(gene_ids, symbols, values.tolist(), strict=True))
    return "gene_id\tsymbol\tdivisor\n" + "".join(rows)
