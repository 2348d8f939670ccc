"""Count matrices of 10x Genomics: .h5 of all versions, matrix.mtx, and Xenium's zarr."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stampy._io.assemble import Counts, as_counts, genes_only
from stampy._io.delimited import rows_of
from stampy._io.input_files import hdf5, opened, reading, refuse

if TYPE_CHECKING:
    import h5py
    import zarr

__all__ = ["counts_h5", "counts_mtx", "counts_zarr"]


def counts_h5(path: Path) -> Counts:
    """Counts from an HDF5 file of any version; features that are not genes are dropped with a warning."""
    with hdf5(path) as file:
        if "matrix" in file:
            group = file["matrix"]
            features = group["features"]
            columns = {"id": features["id"], "name": features["name"], "feature_type": features.get("feature_type"),
                       "genome": features.get("genome")}  # fmt: skip
            return genes_only(*_csr(group, path), _features(columns), path)
        genomes = [name for name in file if isinstance(file[name], _group()) and "gene_names" in file[name]]
        if not genomes:
            raise refuse(f"{str(path)!r} has {sorted(file)} where the group 'matrix' of Space Ranger was expected.")
        return _of_genomes([(name, file[name]) for name in genomes], path)


def _group() -> type:
    import h5py

    return h5py.Group


def _of_genomes(groups: list[tuple[str, h5py.Group]], path: Path) -> Counts:
    """Cell Ranger 1 and 2: one matrix with its barcodes per genome."""
    parts = [
        (*_csr(group, path), _features({"id": group["genes"], "name": group["gene_names"]})) for _, group in groups
    ]
    barcodes = list(dict.fromkeys(b for _, names, _ in parts for b in names))
    row = {b: i for i, b in enumerate(barcodes)}
    blocks = []
    for x, names, _ in parts:
        to = np.array([row[b] for b in names], dtype=np.int64)
        place = sparse.csr_matrix((np.ones(len(to), dtype=x.dtype), (to, np.arange(len(to)))), (len(barcodes), len(to)))
        blocks.append(place @ x)
    features = pd.concat([f.assign(genome=name) for (name, _), (*_, f) in zip(groups, parts, strict=True)])
    return genes_only(sparse.hstack(blocks, format="csr"), barcodes, features.reset_index(drop=True), path)


def _csr(group: Any, path: Path) -> tuple[sparse.csr_matrix, list[str]]:
    """Matrix of the file, transposed to spots by genes."""
    n_genes, n_spots = (int(n) for n in group["shape"][:])
    indices, indptr = _whole(group["indices"][:], path), _whole(group["indptr"][:], path)
    # read as unsigned, negative indices are large, so that one comparison is enough
    if indices.size and indices.view(f"u{indices.dtype.itemsize}").max() >= n_genes:
        raise refuse(f"{str(path)!r} is damaged: it names gene {int(indices.max())}, but has {n_genes} genes.")
    x = sparse.csr_matrix((as_counts(group["data"][:], path), indices, indptr), shape=(n_spots, n_genes))
    x.sort_indices()
    return x, _text(group["barcodes"]).tolist()


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    """Convert indices that R wrote as floats."""
    if values.dtype.kind == "f":
        whole = values.astype(np.int64)
        if not np.array_equal(whole, values):
            raise refuse(f"{str(path)!r} is damaged: its indices are not integers.")
        return whole
    return values


def _features(columns: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame({k: _text(v) for k, v in columns.items() if v is not None})


def _text(dataset: h5py.Dataset) -> np.ndarray:
    """Decode text; columns with a single repeated value, such as types and genomes, are decoded once."""
    raw = dataset[:]
    if raw.dtype.kind != "S":
        return dataset.asstr()[:]
    if raw.size and raw[0] == raw[-1] and (raw == raw[0]).all():
        return np.full(raw.shape, raw[0].decode(), dtype=object)
    joined = b"\n".join(raw.tolist())
    if joined.count(b"\n") != max(raw.size - 1, 0):  # a name contains the separator
        return dataset.asstr()[:]
    return np.array(joined.decode().split("\n") if raw.size else [], dtype=object)


def counts_mtx(matrix: Path, features: Path, barcodes: Path) -> Counts:
    """Counts from a matrix folder: ``features.tsv`` with three columns, or ``genes.tsv`` with two."""
    from scipy.io import mmread

    with reading(matrix), opened(matrix) as stream:
        read = mmread(stream, spmatrix=False)
    names = rows_of(features)
    spots = rows_of(barcodes)[0]
    shape, sizes = read.shape, (len(names), len(spots))
    headed = shape in ((sizes[0] - 1, sizes[1]), (sizes[0] - 1, sizes[1] - 1)) and sizes[0] > 1
    names = names.iloc[int(headed) :].reset_index(drop=True)
    spots = spots.iloc[int(len(spots) - 1 in shape and len(spots) not in shape) :]
    if shape != (len(names), len(spots)) and shape != (len(spots), len(names)):
        raise refuse(
            f"{str(matrix)!r} has {shape[0]} x {shape[1]} values, but {features.name} has {len(names)} lines and "
            f"{barcodes.name} {len(spots)}. The files are of different runs."
        )
    x = sparse.csr_matrix(read.T if shape == (len(names), len(spots)) else read)
    x = sparse.csr_matrix((as_counts(x.data, matrix), x.indices, x.indptr), shape=x.shape)
    columns = dict(zip(("id", "name", "feature_type"), (names[c] for c in names), strict=False))
    columns.setdefault("name", columns["id"])
    return genes_only(x, spots.tolist(), pd.DataFrame(columns), matrix)


def counts_zarr(group: zarr.Group, path: Path) -> Counts:
    """Xenium's ``cell_feature_matrix.zarr.zip``: compressed by gene or by cell, with cells as pairs of numbers."""
    cells = group["cell_features"]
    names = dict(cells.attrs)
    ids = list(names["feature_ids"])
    features = pd.DataFrame({"id": ids, "name": list(names.get("feature_keys", ids))})
    if "feature_types" in names:
        features["feature_type"] = list(names["feature_types"])
    barcodes = cell_names(np.asarray(cells["cell_id"][:]))
    data, indices, indptr = (np.asarray(cells[key][:]) for key in ("data", "indices", "indptr"))
    by_gene = len(indptr) == len(ids) + 1
    shape = (len(ids), len(barcodes)) if by_gene else (len(barcodes), len(ids))
    x = sparse.csr_matrix((as_counts(data, path), indices.astype(np.int64), indptr.astype(np.int64)), shape=shape)
    x.check_format(full_check=True)
    x = x.T.tocsr() if by_gene else x
    x.sort_indices()
    return genes_only(x, barcodes, features, path)


def cell_names(numbers: np.ndarray) -> list[str]:
    """Xenium's cell names: eight letters a to p for the hexadecimal digits, and the number of the data set.

    >>> cell_names(np.array([[1, 1], [1437536272, 2]], dtype=np.uint32))
    ['aaaaaaab-1', 'ffkpbaba-2']
    """
    if numbers.ndim == 1:
        return [str(n) for n in numbers]
    letters = str.maketrans("0123456789abcdef", "abcdefghijklmnop")
    return [f"{int(cell):08x}".translate(letters) + f"-{int(data_set)}" for cell, data_set in numbers]
