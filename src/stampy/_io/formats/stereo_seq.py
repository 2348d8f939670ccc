"""Stereo-seq: a .gem of transcripts (gene, x, y, count), summed in square bins while it is read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _keys
from stampy._io.assemble import add_library, unique_names
from stampy._io.delimited import TableLayout, is_table, layout_of
from stampy._io.input_files import listed, opened, reading, refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["EXPECTED_FILES", "is_gem", "read_gem"]

EXPECTED_FILES = "Stereo-seq is a .gem or .gem.gz with the columns geneID, x, y, MIDCount."
DNB_UM = 0.5  # distance of spots on the chip, the unit of x and y
DEFAULT_BIN_UM = 50.0
_GENE, _NAME = ("geneid", "gene", "gene_id"), ("genename", "gene_name")
_COUNT = ("midcount", "midcounts", "umicount", "umi_count", "count", "umis")
_ROWS = 4_000_000


def is_gem(path: Path) -> bool:
    """Whether a file is a .gem by name or columns, or a folder contains one."""
    if path.is_dir():
        return any(is_gem(p) for p in listed(path) if p.is_file())
    low = path.name.lower().removesuffix(".gz")
    if low.endswith(".gem"):
        return True
    if not is_table(path):
        return False
    try:
        return _columns(layout_of(path)) is not None
    except ValueError:
        return False


def _columns(layout: TableLayout) -> dict[str, int] | None:
    """Indices of the columns gene, name, x, y and count; None if one is missing."""
    if len(layout.header) > 12:
        return None
    low = [c.lower() for c in layout.header]
    found = {what: next((low.index(n) for n in names if n in low), None)
             for what, names in (("gene", _GENE), ("x", ("x",)), ("y", ("y",)), ("count", _COUNT))}  # fmt: skip
    if None in found.values():
        return None
    name = next((low.index(n) for n in _NAME if n in low), None)
    return {**found, **({} if name is None else {"name": name})}  # type: ignore[dict-item]


def read_gem(path: Path, *, bin_um: float | None = None) -> AnnData:
    """Square bins of `bin_um` µm (50 by default, "bin100"); coordinates in units of 0.5 µm."""
    path = path if path.is_file() else _only_file(path)
    layout = layout_of(path)
    columns = _columns(layout)
    if columns is None:
        raise refuse(f"{str(path)!r} has the columns {layout.header[:12]}. {EXPECTED_FILES}")
    edge = round((DEFAULT_BIN_UM if bin_um is None else bin_um) / DNB_UM)
    if edge < 1:
        raise ValueError(f"`bin_um` must be at least {DNB_UM} for Stereo-seq, found {bin_um}.")
    return _section(*_summed(path, layout, columns, edge), edge, path)


def _only_file(folder: Path) -> Path:
    found = [p for p in listed(folder) if p.is_file() and is_gem(p)]
    if len(found) != 1:
        raise refuse(
            f"{str(folder)!r} has several .gem files: {[p.name for p in found]}. Pass one of them to `stampy.read`."
        )
    return found[0]


def _summed(
    path: Path, layout: TableLayout, columns: dict[str, int], edge: int
) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Sums with bin (column, row) and gene of each, and the genes; read in blocks."""
    used = {columns[what]: what for what in columns}
    kinds = {columns[what]: str for what in ("gene", "name") if what in columns}
    genes: dict[tuple[str, ...], int] = {}
    parts = []
    with reading(path), opened(path) as stream:
        reader = pd.read_csv(stream, sep=layout.separator, encoding=layout.encoding, header=None,
                             names=range(len(layout.header)), skiprows=layout.comments + 1, usecols=sorted(used),
                             dtype=kinds, keep_default_na=False, chunksize=_ROWS)  # fmt: skip
        for block in reader:
            block = block.rename(columns=used)
            keys = [c for c in ("gene", "name") if c in block]
            number = block.groupby(keys, sort=False).ngroup().to_numpy()
            first = block.loc[~block.duplicated(keys), keys]
            codes = np.array([genes.setdefault(tuple(row), len(genes)) for row in first.to_numpy()], dtype=np.int64)
            frame = pd.DataFrame({"row": block["y"].to_numpy() // edge, "column": block["x"].to_numpy() // edge,
                                  "gene": codes[number], "count": block["count"].to_numpy()})  # fmt: skip
            parts.append(frame.groupby(["row", "column", "gene"], sort=False, as_index=False)["count"].sum())
    if not parts:
        raise refuse(f"{str(path)!r} has no transcripts.")
    summed = pd.concat(parts, ignore_index=True)
    if summed["count"].to_numpy().dtype.kind not in "iu" or (summed["count"] < 0).any():
        raise refuse(f"{str(path)!r} has counts that are not integers.")
    names = pd.DataFrame(list(genes), columns=[c for c in ("gene", "name") if c in columns])
    return summed[["column", "row", "gene"]].to_numpy(dtype=np.int64), summed["count"].to_numpy(dtype=np.int64), names


def _section(places: np.ndarray, sums: np.ndarray, genes: pd.DataFrame, edge: int, path: Path) -> AnnData:
    import anndata

    grid, rows = np.unique(places[:, 1::-1], axis=0, return_inverse=True)
    x = sparse.csr_matrix((sums, (rows.reshape(-1), places[:, 2])), shape=(len(grid), len(genes)))
    x.sort_indices()
    index = pd.Index([f"{column}_{row}" for row, column in grid])
    obs = pd.DataFrame({"array_row": grid[:, 0], "array_col": grid[:, 1]}, index=index)
    var = pd.DataFrame(index=unique_names(genes["name" if "name" in genes else "gene"]))
    if "name" in genes:
        var["gene_ids"] = genes["gene"].to_numpy()
    adata = anndata.AnnData(x.astype(np.int32) if x.max() < 2**31 else x, obs=obs, var=var)
    adata.obsm[_keys.SPATIAL] = (grid[:, ::-1] + 0.5) * edge
    factors = {"microns_per_pixel": DNB_UM, "spot_diameter_fullres": float(edge), "bin_size_um": edge * DNB_UM}
    add_library(adata, re.split(r"[.]", path.name)[0], factors)
    return adata
