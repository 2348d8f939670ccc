"""Files that Space Ranger and Xenium write: matrices of counts and tables of positions, of every version."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd
from scipy import sparse

from stampy._section.links import refuse_links_h5

__all__ = ["POSITIONS", "counts_h5", "counts_mtx", "positions", "table", "unique_names"]

POSITIONS = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]  # Space Ranger: row first
GENES = "Gene Expression"  # beside it: antibodies, control probes, codewords

Counts = tuple[sparse.csr_matrix, list[str], pd.DataFrame]


def unique_names(names: pd.Index | np.ndarray) -> pd.Index:
    """Names with -1, -2, ... appended from the second occurrence on, as Space Ranger's readers do."""
    from anndata.utils import make_index_unique

    return make_index_unique(pd.Index(np.asarray(names, dtype=str)))  # a column's name must not become the index's


def counts_h5(path: Path) -> Counts:
    """Counts (spots, genes), barcodes and var of an HDF5 file; what is no gene, such as antibodies, is left out."""
    import h5py

    refuse_links_h5(path)
    with h5py.File(path) as file:
        if "matrix" not in file:
            raise ValueError(f"it has {sorted(file)} where the group 'matrix' of Space Ranger was expected")
        matrix = file["matrix"]
        n_genes, n_spots = matrix["shape"][:]
        # Compressed by spot: the columns of the file's matrix are the rows of ours.
        parts = matrix["data"][:].astype(np.int32, copy=False), matrix["indices"][:], matrix["indptr"][:]
        x = sparse.csr_matrix(parts, shape=(n_spots, n_genes))
        features = matrix["features"]
        ids, symbols = features["id"].asstr()[:], features["name"].asstr()[:]
        kinds = features["feature_type"].asstr()[:] if "feature_type" in features else None
        barcodes = list(matrix["barcodes"].asstr()[:])
    x.sort_indices()
    return _genes_only(x, barcodes, ids, symbols, kinds)


def counts_mtx(matrix: Path, features: Path, barcodes: Path) -> Counts:
    """The same of a matrix folder: ``features.tsv`` with three columns, or ``genes.tsv`` with two."""
    from scipy.io import mmread

    with _opened(matrix) as stream:
        x = sparse.csr_matrix(mmread(stream, spmatrix=False).T).astype(np.int32)
    names = pd.read_csv(features, sep="\t", header=None, keep_default_na=False, dtype=str)
    kinds = names[2].to_numpy() if names.shape[1] > 2 else None
    spots = pd.read_csv(barcodes, header=None, keep_default_na=False, dtype=str)[0].tolist()
    return _genes_only(x, spots, names[0].to_numpy(), names[1].to_numpy(), kinds)


def positions(path: Path) -> pd.DataFrame:
    """Space Ranger's table of spots by barcode: .csv with or without a header, .parquet."""
    if path.suffix == ".parquet":
        spots = pd.read_parquet(path)
        if spots.shape[1] < len(POSITIONS):
            raise ValueError(
                f"it has the columns {list(spots.columns)}, those of Space Ranger's positions were expected"
            )
        spots = spots.iloc[:, : len(POSITIONS)].set_axis(POSITIONS, axis=1)
    else:
        with _opened(path) as stream:
            has_header = stream.readline().startswith(b"barcode")
        spots = pd.read_csv(path, header=0 if has_header else None, names=POSITIONS, dtype={"barcode": str})
    return spots.set_index("barcode")


def table(path: Path) -> pd.DataFrame:
    """A table by its ending: .parquet, .csv, .csv.gz, .tsv, .tsv.gz."""
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t" if ".tsv" in path.suffixes else ",")


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _genes_only(
    x: sparse.csr_matrix, barcodes: list[str], ids: np.ndarray, symbols: np.ndarray, kinds: np.ndarray | None
) -> Counts:
    if kinds is not None and not (kinds == GENES).all() and (kinds == GENES).any():
        kept = np.flatnonzero(kinds == GENES)
        x, ids, symbols = x[:, kept], ids[kept], symbols[kept]
    return x, barcodes, pd.DataFrame({"gene_ids": ids}, index=unique_names(symbols))
