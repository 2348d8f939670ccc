"""Read the counts of a section in blocks of rows from any storage, and check that they are raw counts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from scipy import sparse

from stampy import _checks

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["CHUNK", "CountMatrix", "checked_rows", "column_sums", "counts_name", "counts_of", "iter_rows", "raw_layers"]

CHUNK = 2048  # spots per block; a dense block of a whole transcriptome takes a few hundred MB
LARGEST_SUM = 1e300  # keeps differences and ratios of sums finite
SUMMED = 5_000_000  # stored values; larger matrices are sampled by blocks of rows where estimated shares suffice
PRESENT = 50  # genes per spot; with so many detected genes, some counts are above 1
_ROUNDING = 1e-5  # relative; single precision has 7 digits
_LOG2_MAXIMUM = 16  # log2(1 + count); above this, single precision cannot distinguish log2 values from other numbers
LOG_MAXIMUM = 25  # log2(1 + 1e6) is 20: no log-normalised value is larger, while raw counts nearly always are


class CountMatrix(Protocol):
    """Counts (n, genes) in any storage: numpy, scipy sparse, AnnData's and HDF5's on disk, dask, zarr."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers of spots and genes."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the values."""

    def __getitem__(self, rows: Any, /) -> Any:
        """Select rows."""


def counts_of(adata: AnnData, layer: str | None = None) -> CountMatrix:
    """Return `adata.X`, or the layer of that name, as it is stored.

    Raises
    ------
    KeyError
        If there is no such layer, or no `X`.

    Examples
    --------
    >>> import numpy as np
    >>> from anndata import AnnData
    >>> counts_of(AnnData(np.eye(2))).shape
    (2, 2)
    """
    if layer is not None:
        layers = raw_layers(adata.layers)
        hint = f" Raw counts are in {_checks.shortlist(layers)}: use layer={layers[0]!r}." if layers else ""
        _checks.has_key(adata.layers, layer, slot="adata.layers", needs=f"stampy needs raw counts there.{hint}")
        return adata.layers[layer]
    if adata.X is None:
        layers = raw_layers(adata.layers)
        hint = f" Raw counts are in {_checks.shortlist(layers)}: use layer={layers[0]!r}." if layers else ""
        raise KeyError(
            "`adata.X` is empty (None). stampy needs raw counts; name the layer that has them with `layer=`. "
            f"Available: {_checks.shortlist(adata.layers)}.{hint}"
        )
    return adata.X


def raw_layers(layers: Mapping[str, CountMatrix], *, but: str | None = None) -> list[str]:
    """Names of the layers whose first spots contain only non-negative whole numbers, not all 0; ``counts`` first.

    Examples
    --------
    >>> raw_layers({"log": np.log1p(np.eye(2)), "umi": np.eye(2), "zeros": np.zeros((2, 2))})
    ['umi']
    """
    found = []
    for name in sorted((name for name in layers if name not in (but, None)), key=lambda name: name != "counts"):
        try:
            _, block = next(iter_rows(layers[name][:256], 256))
        except (TypeError, StopIteration, ValueError):
            continue  # not a matrix of numbers
        data = block.data
        if data.size and data.min() >= 0 and data.max() > 0 and np.array_equal(data, np.trunc(data)):
            found.append(name)
    return found


def _by_rows_or_columns(X: Any) -> Any:
    """Convert sparse formats without slicing to CSR."""
    return X.tocsr() if sparse.issparse(X) and X.format not in ("csr", "csc") else X


def column_sums(X: CountMatrix) -> tuple[np.ndarray | None, bool]:
    """Sum each column as float64; also return whether all rows were summed, since large matrices are sampled.

    None if `X` is not numeric. NaN and infinity count as 0, sums above 1e300 as 1e300. Use only for shares in messages.

    Examples
    --------
    >>> column_sums(np.array([[200, 1], [100, 0]], dtype=np.uint8))
    (array([300.,   1.]), True)
    """
    if getattr(X, "dtype", np.dtype(object)).kind not in "buif":
        return None, False
    n, width = X.shape
    values = _by_rows_or_columns(X)
    n_values = values.nnz if sparse.issparse(values) else n * width
    in_memory = sparse.issparse(values) or isinstance(values, np.ndarray)
    parts = 1 if n_values <= SUMMED or (in_memory and getattr(values, "format", "") == "csc") else 8
    rows = n if parts == 1 else max(SUMMED * n // max(n_values, 1) // parts, 1)
    if not in_memory and parts > 1:
        parts, rows = 1, min(rows * parts, 512)  # one contiguous part on disk
    starts = np.linspace(0, n - rows, parts).astype(np.int64).tolist()
    sums = np.zeros(width)
    for start in starts:
        sums += _sums_of(values if rows == n else values[start : start + rows])
    return np.minimum(sums, LARGEST_SUM), rows == n


def _sums_of(X: Any) -> np.ndarray:
    """Sum columns in float64, also for small integer types."""
    sums = np.zeros(X.shape[1])
    blocks = [(0, X)] if sparse.issparse(X) else iter_rows(X)
    for _, block in blocks:
        data = block.data.astype(np.float64, copy=False)
        data = np.where(np.isfinite(data), data, 0.0) if block.data.dtype.kind == "f" else data
        if block.format == "csc":
            filled = np.flatnonzero(np.diff(block.indptr))
            with np.errstate(over="ignore"):  # as in bincount below; such large values are refused where they are used
                sums[filled] += np.add.reduceat(data, block.indptr[filled]) if len(filled) else 0.0
        else:
            sums += np.bincount(block.indices, weights=data, minlength=X.shape[1])
    return sums


def counts_name(layer: str | None) -> str:
    """Name of these counts in messages and records."""
    return "adata.X" if layer is None else f"adata.layers[{layer!r}]"


def iter_rows(X: CountMatrix, chunk: int = CHUNK) -> Iterator[tuple[int, sparse.csr_matrix | sparse.csr_array]]:
    """Yield blocks of at most `chunk` rows as (first row, CSR block), without densifying `X`.

    Memory is bounded by the block, with two exceptions: CSC, in memory or on disk, is converted to CSR as a whole, and
    chunks of a dask array are computed whole.

    Parameters
    ----------
    X
        (n, genes): numpy, scipy CSR or CSC (matrix or array), a backed matrix (HDF5 or zarr, sparse or dense), dask.
    chunk
        Rows per block.

    Examples
    --------
    >>> [(start, block.shape) for start, block in iter_rows(np.eye(5), chunk=2)]
    [(0, (2, 5)), (2, (2, 5)), (4, (1, 5))]
    """
    if hasattr(X, "dask"):
        yield from _iter_dask(X, chunk)
        return
    X = _sliceable(X)
    for start in range(0, X.shape[0], chunk):
        if sparse.issparse(X):
            yield start, _rows(X, start, min(start + chunk, X.shape[0]))
            continue
        block = X[start : start + chunk]
        if not sparse.issparse(block):
            block = np.asarray(block)
            # scipy has no sparse matrices in half precision
            block = sparse.csr_matrix(block.astype(np.float32) if block.dtype == np.float16 else block)
        yield start, block


def _rows(X: sparse.csr_matrix | sparse.csr_array, start: int, stop: int) -> sparse.csr_matrix | sparse.csr_array:
    """Return `X[start:stop]` of a CSR matrix in memory without copying its values."""
    low, high = X.indptr[start], X.indptr[stop]
    parts = X.data[low:high], X.indices[low:high], X.indptr[start : stop + 1] - low
    return type(X)(parts, shape=(stop - start, X.shape[1]), copy=False)


def _sliceable(X: Any) -> Any:
    """Return `X`, as CSR if slicing its rows would be slow; TypeError if it is not a numeric matrix."""
    # imported here, since training needs neither package
    import h5py
    import zarr
    from anndata.abc import CSCDataset, CSRDataset

    if isinstance(X, CSCDataset):
        X = X.to_memory()
    if sparse.issparse(X):
        X = X.tocsr()
    elif not isinstance(X, np.ndarray | CSRDataset | h5py.Dataset | zarr.Array):
        raise TypeError(
            "Counts must be a numpy, scipy sparse (CSR, CSC), dask or backed (HDF5, zarr) matrix, found "
            f"{type(X).__module__}.{type(X).__qualname__}."
        )
    if X.dtype.kind not in "buif":
        raise TypeError(f"Counts must be real numbers, found dtype {X.dtype}.")
    return X


def _iter_dask(X: Any, chunk: int) -> Iterator[tuple[int, sparse.csr_matrix | sparse.csr_array]]:
    """Like `iter_rows` for a dask array, one row of chunks at a time, so that no chunk is computed twice."""
    offset = 0
    for i in range(X.numblocks[0]):
        part = X.blocks[i].compute()
        for start, block in iter_rows(part, chunk):
            yield offset + start, block
        offset += part.shape[0]


def canonical(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """Counts with sorted columns and without duplicate entries and zeros: equal matrices have equal arrays.

    Data thinning draws a number per entry, so its result would depend on how a matrix is stored.
    """
    if counts.has_canonical_format and counts.data.all():
        return counts
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def checked_rows(
    X: CountMatrix,
    chunk: int = CHUNK,
    *,
    source: str = "adata.X",
    layers: Mapping[str, CountMatrix] | Collection[str] = (),
) -> Iterator[tuple[int, sparse.csr_matrix | sparse.csr_array]]:
    """Yield the blocks of :func:`iter_rows` after checking that each contains raw counts.

    Whole numbers with rounding errors (up to 1e-5 of the value) are rounded.

    Parameters
    ----------
    X, chunk
        As for :func:`iter_rows`.
    source
        Name of `X` in messages.
    layers
        Layers to search for raw counts, by name (or only their names), for messages.

    Warns
    -----
    StampyWarning
        Once, if values are not whole: depth-normalised (which can only change the order of ties) or fractional counts.
        At the end, if spots have many genes and all values are 1: presence of genes, not counts.

    Raises
    ------
    ValueError
        If values are negative, NaN or infinite, or look log-normalised.
    """
    whole = True  # until the first block with fractions, which is then judged
    largest, n_values = 0.0, 0
    for start, block in iter_rows(X, chunk):
        largest, n_values = max(largest, _check_finite(block, start, source)), n_values + block.nnz
        if whole and block.dtype.kind == "f" and not np.array_equal(block.data, nearest := np.rint(block.data)):
            if (np.abs(block.data - nearest) <= _ROUNDING * block.data).all():
                block = type(block)((nearest, block.indices, block.indptr), shape=block.shape)
            else:
                whole = False
                _judge_fractions(block, start, source, layers)
        yield start, block
    if largest == 1 and n_values > PRESENT * X.shape[0]:
        _checks.warn(
            f"All values of `{source}` are 0 or 1, although {n_values / X.shape[0]:.0f} genes a spot are 1: it "
            "seems to contain the presence of genes instead of their counts. The genes of a spot then have no "
            "order, so tokens are wrong. Give raw counts in X or name a layer with `layer=`."
        )


def _check_finite(block: sparse.csr_matrix, start: int, source: str) -> float:
    """Return the largest value; ValueError with number and first position of negative, NaN or infinite values."""
    data = block.data
    if data.size == 0 or (data.min() >= 0 and data.max() < np.inf):  # NaN fails both comparisons
        return float(data.max()) if data.size else 0.0
    for what, bad, hint in (
        ("NaN", np.isnan(data), "Missing counts must be 0."),
        ("infinite", np.isinf(data), "Counts must be finite."),
        ("negative", data < 0, "Counts cannot be negative; were the values scaled (z-scores)?"),
    ):
        where = np.flatnonzero(bad)
        if where.size:
            row = start + int(np.searchsorted(block.indptr, where[0], side="right")) - 1
            raise ValueError(
                f"`{source}` has {where.size} {what} values in spots {start} to {start + block.shape[0] - 1} "
                f"(first: spot {row}, gene {int(block.indices[where[0]])}, value {data[where[0]]}). {hint} "
                "stampy needs raw counts: store them in X (they may be in `adata.raw`), or name a layer with `layer=`."
            )
    return float(data.max())


def _judge_fractions(block: sparse.csr_matrix, start: int, source: str, layers: Any) -> None:
    """Warn of fractional values; ValueError if they look log-normalised in all or some spots."""
    n_spots = block.shape[0]
    rows = np.flatnonzero(_seem_transformed(block))
    if not len(rows):  # few fractions among whole counts
        rows = np.arange(n_spots)
    if len(rows) < n_spots:
        block = block[rows]
    if _is_depth_normalised(block):
        _checks.warn(
            f"`{source}` seems to be depth-normalised (each spot's values are multiples of its smallest). "
            "This can only change the order of genes with equal values, so it is used unchanged."
        )
    elif block.data.max() < LOG_MAXIMUM:
        raw = raw_layers(layers) if isinstance(layers, Mapping) else [name for name in layers if name == "counts"]
        counts = f"layer={raw[0]!r}" if raw else "`layer=`"
        part = "" if len(rows) == n_spots else f" in {len(rows)} of {n_spots} spots (first: spot {start + rows[0]})"
        raise ValueError(
            f"`{source}` looks log-normalised{part}: values are not integers and none is above {block.data.max():.3g}. "
            f"stampy needs raw counts: pass {counts} (in training, put them into X), or use those in "
            f"`adata.raw` (layers: {_checks.shortlist(layers)}). If they are small corrected counts, round them first."
        )
    else:
        _checks.warn(
            f"`{source}` has fractional values (up to {block.data.max():.4g}). They are used as corrected counts, "
            "e.g. after removal of ambient RNA; normalised values would give wrong tokens."
        )


def _seem_transformed(block: sparse.csr_matrix) -> np.ndarray:
    """Rows (bool) with more fractions than whole numbers, or whose fractions all equal log2(1 + n) of a whole n."""
    rows = np.repeat(np.arange(block.shape[0]), np.diff(block.indptr))
    values = block.data.astype(np.float64)
    is_fraction = values != np.trunc(values)
    counts = np.exp2(np.minimum(values, _LOG2_MAXIMUM))
    is_log2 = (values < _LOG2_MAXIMUM) & (np.abs(counts - np.rint(counts)) < 1e-6 * counts)
    n, n_fractions, n_log2 = (
        np.bincount(rows, kind, minlength=block.shape[0]) for kind in (values > 0, is_fraction, is_fraction & is_log2)
    )
    return (n_fractions > 0) & ((2 * n_fractions > n) | (n_log2 == n_fractions))


def _is_depth_normalised(block: sparse.csr_matrix, tolerance: float = 1e-4) -> bool:
    """Whether the values of nearly every row are whole multiples of its smallest (or half or a third of it)."""
    n_rows = n_multiples = 0
    for low, high in zip(block.indptr[:-1], block.indptr[1:], strict=True):
        values = block.data[low:high].astype(np.float64)
        values = values[values > 0]
        if values.size < 2 or values.min() == values.max():
            continue  # a single value is uninformative, and the order of ties does not depend on the scale
        n_rows += 1
        with np.errstate(over="ignore", invalid="ignore"):  # ratios to a value near 0 overflow
            ratio = values / values.min()
            n_multiples += any(
                np.all(np.abs(ratio * k - np.rint(ratio * k)) <= np.minimum(ratio * k * tolerance, 0.02))
                for k in (1, 2, 3)
            )
    return n_multiples >= 0.9 * n_rows
