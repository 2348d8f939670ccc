"""Hash of everything in a section that determines results, compared by resume, caches and corpora."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from stampy import _files, _keys, _utils
from stampy._section.image.slide_image import SlideImage, open_spatialdata_image
from stampy._section.libraries import Library, image_path_of, libraries_of, library_named, named_file

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["digest_of_references", "digest_of_section"]

_ROWS = 4096  # rows per block of a matrix on disk
_WHOLE_VALUES = 2**28  # a raster on disk up to this size is hashed whole


def digest_of_section(data: AnnData | SpatialData, *, table_key: str = _keys.TABLE) -> str:
    """Hash (32 hexadecimal characters) of a section: counts, names, coordinates, images and scale factors.

    The hash covers all values of ``X``, layers and ``obsm["spatial"]``; names of spots; names and text columns of
    ``var``; all of ``uns["spatial"]`` and the full-resolution image that it refers to; and images, labels and shapes of
    a SpatialData. Columns of ``obs`` are included only if they link a SpatialData or name entries of
    ``uns["spatial"]``. Results are not included.

    Examples
    --------
    >>> import stampy
    >>> one, two = stampy.datasets.toy(n_spots=30), stampy.datasets.toy(n_spots=30)
    >>> digest_of_section(one) == digest_of_section(two)
    True
    >>> two.obsm["spatial"][7, 1] += 1
    >>> digest_of_section(one) == digest_of_section(two)
    False
    """
    found = hashlib.blake2b(digest_size=16)
    table = _utils.table_of(data, table_key)
    for part in _table(table):
        found.update(part.encode() + b"\n")
    if table is not data:
        for part in _elements(data):
            found.update(part.encode() + b"\n")
    return found.hexdigest()


def digest_of_references(table: AnnData) -> str:
    """Hash of ``uns["spatial"]``, which determines the scale, and of the image files that it refers to."""
    parts = [_tree(table.uns.get(_keys.UNS_SPATIAL))]
    for library in _libraries(table).values():
        parts += _referred_images(library)
    return _files.digest(parts)


def _table(table: AnnData) -> Iterator[str]:
    link = table.uns.get("spatialdata_attrs") or {}
    linking = [c for c in (link.get("region_key"), link.get("instance_key")) if c in table.obs]
    yield from _frame("obs", table.obs[linking])
    yield from _frame("var", table.var)
    for name, matrix in (("X", table.X), *sorted(table.layers.items(), key=lambda item: str(item[0]))):
        if matrix is not None:
            yield f"{name} {_matrix(matrix)}"
    if table.raw is not None:
        yield f"raw {_matrix(table.raw.X)}"
        yield from _frame("raw.var", table.raw.var)
    if _keys.SPATIAL in table.obsm:
        yield f"spatial {_coordinates(table.obsm[_keys.SPATIAL])}"
    for name in (_keys.UNS_SPATIAL, "spatialdata_attrs"):
        yield f"{name} {_tree(table.uns.get(name))}"
    libraries = _libraries(table)
    yield from _library_columns(table.obs, libraries)
    for library in libraries.values():
        yield from _referred_images(library)


def _libraries(table: AnnData) -> dict[str, Library]:
    """Entries of ``uns["spatial"]``; none if their layout is invalid (refused later, if they are used)."""
    try:
        return libraries_of(table)
    except TypeError:
        return {}


def _coordinates(found: Any) -> str:
    """Includes the column names of a table, which define x and y."""
    if hasattr(found, "columns"):
        return f"{[str(c) for c in found.columns]} {_files.digest_of_arrays(np.asarray(found))}"
    return _matrix(found) if sparse.issparse(found) else _files.digest_of_arrays(np.asarray(found))


def _library_columns(obs: pd.DataFrame, libraries: Mapping[str, Library]) -> Iterator[str]:
    """Columns of ``obs`` that assign spots to the entries of ``uns["spatial"]``."""
    for column in obs.columns if len(libraries) > 1 else ():
        if obs[column].dtype.kind in "bfcmM":
            continue
        found = obs[column].astype(str)
        if any(library_named(libraries, name) is not None for name in found.unique()):
            yield f"obs.{column} {_files.digest(found)}"


def _referred_images(library: Library) -> Iterator[str]:
    """Existing image files to which an entry of ``uns["spatial"]`` refers."""
    for name in (image_path_of(library), *map(named_file, library.get("images", {}).values())):
        if name and (path := Path(name).expanduser()).is_file():
            yield f"file {_files.digest_of_file(path)}"


def _frame(name: str, frame: pd.DataFrame) -> Iterator[str]:
    """Names and text columns; numeric columns of ``var`` do not affect results."""
    yield f"{name} {_files.digest(frame.index)}"
    for column in frame.columns:
        if name == "obs" or frame[column].dtype.kind not in "biufcmM":
            yield f"{name}.{column} {_files.digest(frame[column].astype(str))}"


def _matrix(matrix: Any) -> str:
    if isinstance(matrix, np.ndarray):
        return _files.digest_of_arrays(matrix)
    if sparse.issparse(matrix):
        matrix = matrix.tocsr()
        return _files.digest_of_arrays(matrix.data, matrix.indices, matrix.indptr)
    found = hashlib.blake2b(repr(tuple(matrix.shape)).encode(), digest_size=16)
    for start in range(0, matrix.shape[0], _ROWS):
        block = matrix[start : start + _ROWS]
        block = block.compute() if hasattr(block, "compute") else block
        found.update(_matrix(block if sparse.issparse(block) else np.asarray(block)).encode())
    return found.hexdigest()


def _tree(value: Any) -> str:
    """Text that identifies nested dicts, lists, arrays and plain values."""
    if isinstance(value, Mapping):
        return repr(sorted((str(k), _tree(v)) for k, v in value.items()))
    if isinstance(value, np.ndarray):
        return _files.digest_of_arrays(value)
    if isinstance(value, list | tuple):
        return repr([_tree(v) for v in value])
    if isinstance(value, SlideImage):
        return value.digest
    if hasattr(value, "shape") and hasattr(value, "dtype") and np.shape(value):
        return _files.digest_of_arrays(np.asarray(value))
    return repr(value)


def _elements(data: SpatialData) -> Iterator[str]:
    """Images, labels and shapes of a SpatialData with their transformations."""
    from spatialdata.transformations import get_transformation

    for name, element in sorted(data.images.items()):
        yield f"image {name} {open_spatialdata_image(element, name=name).digest}"
        yield repr(sorted((k, repr(v)) for k, v in get_transformation(element, get_all=True).items()))
    for name, element in sorted(data.labels.items()):
        yield f"labels {name} {_raster(element)}"
        yield repr(sorted((k, repr(v)) for k, v in get_transformation(element, get_all=True).items()))
    for name, element in sorted(data.shapes.items()):
        outlines = b"".join(element.geometry.to_wkb())
        radius = np.asarray(element["radius"]) if "radius" in element else np.empty(0)
        yield f"shapes {name} {hashlib.sha256(outlines).hexdigest()} {_files.digest_of_arrays(radius)}"
        yield _files.digest(element.index)
        yield repr(sorted((k, repr(v)) for k, v in get_transformation(element, get_all=True).items()))


def _raster(element: Any) -> str:
    """Finest scale of labels: whole if small, else bands spread over it."""
    array = element.data if hasattr(element, "data") else next(iter(element.children.values()))["image"].data
    rows = array.shape[0]
    if array.size <= _WHOLE_VALUES:
        return _matrix(array)
    found = hashlib.blake2b(repr(array.shape).encode(), digest_size=16)
    for start in np.linspace(0, max(rows - 64, 0), 64, dtype=np.int64).tolist():
        found.update(_files.digest_of_arrays(np.asarray(array[start : start + 64])).encode())
    return found.hexdigest()
