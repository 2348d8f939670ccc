"""Combine the results of a run over many sections: a collection of the files, or one store."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks, _files, _keys

from ._cohort.plan import TABLE
from ._embedding.spaces import Origin, check_same_origin

if TYPE_CHECKING:
    import zarr
    from anndata.experimental import AnnCollection

__all__ = ["checked_store", "collect_sections"]

MARK = "stampy_joined"  # attribute of the store
ROWS = 65_536  # rows per chunk of the joined embedding


def collect_sections(
    out: str | Path, store: str | Path | None = None, *, key: str = _keys.EMBEDDING, overwrite: bool = False
) -> AnnCollection | Path:
    """Combine all results of `stampy.tl.embed_sections` or `embed_slides`.

    Parameters
    ----------
    out
        The folder of the run.
    store
        A ``.zarr`` to write; None: return an `anndata.experimental.AnnCollection` of the files, with the counts on
        disk.
    key
        The embedding in obsm.
    overwrite
        Replace a store that an earlier call wrote.

    Returns
    -------
    The `AnnCollection`, which joins ``obs`` and ``obsm`` and opens all files; or the path of the store. The store is an
    AnnData without counts, written section by section in bounded memory:

    ``obs["section"]``
        Name of the section of each spot. The columns that all sections have are also kept.
    ``obsm[key]``, ``obsm[key + "_gene"]``, ``obsm[key + "_image"]``, ``obsm["spatial"]``
        If all sections have them.
    ``uns["stamp"][key]``
        The entries that the records of all sections have in common.

    Raises
    ------
    FileNotFoundError
        `out` contains no ``sections.tsv``, or no result.
    ValueError
        The sections have no embedding in common: embed all with one `modality`. Or they were embedded by other models
        or settings, so that their vectors are not comparable.
    FileExistsError
        `store` exists.

    Warns
    -----
    StampyWarning
        An embedding is skipped because some sections lack it or have it in another width (some fused, others only
        genes). Or the model was fitted to each section, so that the axes differ.

    Examples
    --------
    >>> import anndata, tempfile, stampy
    >>> sections = {name: stampy.datasets.toy(n_spots=60, rng=i) for i, name in enumerate(["a", "b"])}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = stampy.tl.embed_sections(
    ...         sections, folder, modality="gene", n_workers=1, show_progress_bar=False
    ...     )
    ...     path = stampy.tl.collect_sections(folder, f"{folder}/all.zarr")
    ...     adata = anndata.read_zarr(path)
    >>> adata.n_obs, adata.obs["section"].value_counts().to_dict()
    (120, {'a': 60, 'b': 60})
    """
    paths = _results(Path(out).expanduser())
    _check_one_space(paths, key)
    if store is None:
        return _collection(paths)
    store = checked_store(store, overwrite=overwrite)
    _write(paths, store, key)
    return store


def checked_store(store: str | Path, *, overwrite: bool) -> Path:
    """Return the path; raise if it must not be written."""
    store = Path(store).expanduser()
    if store.suffix != ".zarr":
        raise ValueError(f"`store` must end in .zarr, found {store.name!r}.")
    try:
        ours = MARK in json.loads((store / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, LookupError):
        ours = False
    _checks.replaceable(store, overwrite=overwrite and ours)
    return store


def _results(out: Path) -> dict[str, Path]:
    """Files of the finished sections, by name."""
    table = _checks.existing(out, what="folder of a run") / TABLE
    if not table.is_file():
        raise FileNotFoundError(f"{str(out)!r} has no {TABLE}: give the folder that `embed_sections` wrote.")
    with _checks.readable(table):
        rows = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
        done = rows.loc[rows["status"].isin(["embedded", "kept"]), ["name", "output"]]
    if done.empty:
        raise FileNotFoundError(f"{str(table)!r} names no section that is done.")
    if len(done) < len(rows):
        left = rows.loc[~rows.index.isin(done.index), "name"]
        _checks.warn(f"{len(left)} of {len(rows)} sections have no result and are skipped: {_checks.shortlist(left)}.")
    return {name: _checks.existing(out / path, what="result") for name, path in done[["name", "output"]].to_numpy()}


def _check_one_space(paths: Mapping[str, Path], key: str) -> None:
    """Raise ValueError if vectors of sections are not comparable; warn if each section has its own axes."""
    import anndata

    first: Origin | None = None
    fits = set()
    for name, group in _opened(paths):
        records = group["uns"].get(_keys.UNS, {})
        if key not in records:
            continue
        record = dict(anndata.io.read_elem(records[key]))
        fits.add(record.pop("fit", None))
        origin = Origin(f"{name}: {key}", record.get("modality", "fused"), record)
        first = first or origin
        modality = origin.modality if first.modality == "fused" else first.modality  # modality of the joined vectors
        if origin.modality in (modality, "fused"):
            check_same_origin(replace(first, modality=modality), replace(origin, modality=modality))
    if len(fits) > 1:
        _checks.warn(
            f"The embedding {key!r} was fitted to each section, so that its axes differ between sections: compare "
            "spots only within a section."
        )


def _collection(paths: Mapping[str, Path]) -> AnnCollection:
    from anndata.experimental import AnnCollection
    from scipy import sparse

    from stampy._io.formats.anndata_mudata_spatialdata import read_h5ad, read_zarr

    reading = {".h5ad": read_h5ad, ".zarr": read_zarr}
    with_counts = {name: "X" in group for name, group in _opened(paths)}
    parts = {name: reading[path.suffix](path, backed=with_counts[name]) for name, path in paths.items()}
    for name, adata in parts.items():
        if not with_counts[name]:  # an AnnCollection needs a matrix
            adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    return AnnCollection(
        parts, join_obs="inner", join_obsm="inner", join_vars="inner", label="section", index_unique="-"
    )


def _write(paths: Mapping[str, Path], store: Path, key: str) -> None:
    import anndata
    import zarr

    shapes, n = _shapes(paths, key)
    with _files.atomic_folder(store) as temporary:
        root = zarr.open_group(temporary, mode="w", zarr_format=3)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(Zarr V3 specification|autosharding)")
            obs, record = _fill(root.require_group("obsm"), paths, shapes, n, key)
            uns = {_keys.UNS: {key: record}}
            no_genes = pd.DataFrame(index=pd.Index([], dtype=str))
            empty: list[tuple[str, Any]] = [(slot, {}) for slot in ("varm", "layers", "obsp", "varp")]
            for slot, value in [("obs", obs), ("var", no_genes), ("uns", uns), *empty]:
                anndata.io.write_elem(root, slot, value)
        root["obsm"].attrs.update({"encoding-type": "dict", "encoding-version": "0.1.0"})
        root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0", MARK: True})


def _opened(paths: Mapping[str, Path]) -> Iterator[tuple[str, Any]]:
    """Yield each result as an open group, in order."""
    import h5py
    import zarr

    for name, path in paths.items():
        if path.suffix == ".h5ad":
            with h5py.File(path) as file:
                yield name, file
        else:
            yield name, zarr.open_group(path, mode="r")


def _shapes(paths: Mapping[str, Path], key: str) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], int]:
    """Shape without spots, and type, of each key of obsm that all sections have; and the number of spots."""
    wanted = (key, key + _keys.GENE_SUFFIX, key + _keys.IMAGE_SUFFIX, _keys.SPATIAL)
    found: dict[str, set[tuple[int, ...] | None]] = {k: set() for k in wanted}
    types: dict[str, list[np.dtype]] = {k: [] for k in wanted}
    n = 0
    for _, group in _opened(paths):
        obsm = group["obsm"]
        n += obsm[key].shape[0] if key in obsm else 0
        for name in wanted:
            found[name].add(tuple(obsm[name].shape[1:]) if name in obsm else None)
            types[name] += [obsm[name].dtype] if name in obsm else []
    alone = {name: next(iter(s)) for name, s in found.items() if len(s) == 1}
    # integers in one section and floats in another become floats
    shapes = {name: (shape, np.result_type(*types[name])) for name, shape in alone.items() if shape is not None}
    if not set(shapes) - {_keys.SPATIAL}:
        raise ValueError(
            f"The sections have no embedding {key!r} in common. Embed all with one `modality`, such as modality='gene'."
        )
    if uneven := [name for name, s in found.items() if name not in shapes and s != {None}]:
        _checks.warn(f"Not all sections have obsm {uneven} in one width: it is skipped. Embed all with one `modality`.")
    return shapes, n


def _fill(
    obsm: zarr.Group,
    paths: Mapping[str, Path],
    shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    n: int,
    key: str,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Write the arrays section by section; returns obs, and the common entries of the sections' records."""
    import anndata

    arrays, start = {}, 0
    frames: list[pd.DataFrame] = []
    common: dict[str, Any] | None = None
    for name, group in _opened(paths):
        obs = anndata.io.read_elem(group["obs"])
        for slot, (shape, dtype) in shapes.items():
            values = np.asarray(group["obsm"][slot][...])
            if slot not in arrays:
                chunks = (min(ROWS, n), *shape)
                arrays[slot] = obsm.create_array(slot, shape=(n, *shape), chunks=chunks, dtype=dtype)
                arrays[slot].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            arrays[slot][start : start + len(values)] = values
        start += len(obs)
        frames.append(obs.drop(columns="section", errors="ignore").set_index(f"{name}-" + obs.index.astype(str)))
        record = anndata.io.read_elem(group["uns"][_keys.UNS][key])
        plain = {k: v for k, v in record.items() if isinstance(v, str | int | float) or k == "weights_digest"}
        common = plain if common is None else {k: v for k, v in common.items() if plain.get(k) == v}
    joined = pd.concat(frames, join="inner")
    for column in joined:  # as categories, so that missing labels stay missing
        labels = all(isinstance(frame[column].dtype, pd.CategoricalDtype) for frame in frames)
        if labels or pd.api.types.is_object_dtype(joined[column]):
            joined[column] = pd.Categorical(joined[column])
    sizes = [len(frame) for frame in frames]
    joined.insert(0, "section", pd.Categorical(np.repeat(list(paths), sizes), categories=list(paths)))
    return joined, common or {}
