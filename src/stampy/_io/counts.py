"""What counts are: whole numbers where they can be, fractions kept with a word, genes only."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks
from stampy._io.parts import refuse

__all__ = ["Counts", "as_counts", "genes_only", "unique_names"]

logger = logging.getLogger(__name__)

GENES = "Gene Expression"  # beside it: antibodies, control probes, codewords
_GENES = {"gene expression", "gene", "genes", "rna"}
_CONTROLS = ("control", "codeword", "blank")  # of every Xenium panel: no user misses them
_INT32 = np.iinfo(np.int32).max


class Counts(NamedTuple):
    """Spots by genes, with the spots' barcodes and what is known of the genes."""

    x: sparse.csr_matrix
    barcodes: list[str]
    var: pd.DataFrame


def unique_names(names: Any) -> pd.Index:
    """Names with -1, -2, ... appended from the second occurrence on, as Space Ranger's readers do."""
    from anndata.utils import make_index_unique

    return make_index_unique(pd.Index(np.asarray(names, dtype=str)))  # a column's name must not become the index's


def as_counts(values: np.ndarray, path: Path, *, fractions: bool = True) -> np.ndarray:
    """Whole numbers as int32 (int64 where larger); fractions stay as they are, with a warning, or are refused."""
    if values.dtype.kind not in "iufb":
        raise refuse(f"The counts in {str(path)!r} are no numbers: {values.dtype}.")
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            n = int((~np.isfinite(values)).sum())
            raise refuse(f"{n} counts in {str(path)!r} are missing or infinite. Raw counts were expected.")
        whole = np.rint(values)
        if not np.array_equal(whole, values):
            share = float((whole != values).mean())
            if not fractions:
                raise refuse(f"{share:.1%} of the counts in {path.name!r} are fractions; raw counts were expected.")
            _checks.warn(
                f"{share:.1%} of the counts in {path.name!r} are fractions; they are kept as they are. stampy expects "
                "raw counts: check that these are not normalised (EM counts of multi-mapped reads are fine)."
            )
            return values if values.dtype.itemsize >= 4 else values.astype(np.float32)
        values = whole
    if values.dtype != np.int32 and values.size and max(int(values.max()), -int(values.min())) > _INT32:
        return values.astype(np.int64, copy=False)
    return values.astype(np.int32, copy=False)


def genes_only(x: sparse.csr_matrix, barcodes: list[str], features: pd.DataFrame, path: Path) -> Counts:
    """Leave out what is no gene; say how many features of which type."""
    kinds = features.get("feature_type")
    if kinds is not None:
        is_gene = kinds.isin([kind for kind in kinds.unique() if str(kind).lower() in _GENES]).to_numpy()
        if not is_gene.any():
            _checks.warn(
                f"No feature in {path.name!r} is of the type {GENES!r}, found {_counted(kinds)}; all are kept."
            )
        elif not is_gene.all():
            _say_left_out(kinds[~is_gene], path)
            kept = np.flatnonzero(is_gene)
            x, features = x[:, kept], features.iloc[kept]
    var = pd.DataFrame({"gene_ids": features["id"].to_numpy()}, index=unique_names(features["name"]))
    for column, name in (("feature_type", "feature_types"), ("genome", "genome")):
        if column in features:
            var[name] = features[column].to_numpy()
    return Counts(x, barcodes, var)


def _counted(kinds: pd.Series) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in Counter(kinds).most_common())


def _say_left_out(kinds: pd.Series, path: Path) -> None:
    logger.info("%s: left out what is no gene: %s", path.name, _counted(kinds))
    others = kinds[~kinds.str.lower().str.contains("|".join(_CONTROLS))]
    if len(others):
        _checks.warn(f"{path.name!r}: left out {len(others)} features that are no genes ({_counted(others)}).")
