"""Assemble a section from counts and positions: check counts, keep genes only, match barcodes."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys
from stampy._io.input_files import SectionFiles, reading, refuse
from stampy._section.libraries import Library

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "Counts",
    "add_library",
    "as_counts",
    "genes_only",
    "picture",
    "pictures",
    "refer_to_image",
    "unique_names",
    "unplaced",
    "with_positions",
    "without_controls",
]

logger = logging.getLogger(__name__)

GENES = "Gene Expression"  # other types: antibodies, control probes, codewords
_GENES = {"gene expression", "gene", "genes", "rna"}
_CONTROLS = ("control", "codeword", "blank")  # in every Xenium panel; removed without a message
_INT32 = np.iinfo(np.int32).max


class Counts(NamedTuple):
    """Spots by genes, with barcodes and the table of genes."""

    x: sparse.csr_matrix
    barcodes: list[str]
    var: pd.DataFrame


def unique_names(names: object) -> pd.Index:
    """Names with -1, -2, ... appended from the second occurrence on, as Space Ranger's readers do."""
    index = pd.Index(np.asarray(names, dtype=str))  # without the name of a column
    again = np.flatnonzero(index.duplicated())
    if not len(again):
        return index
    found = index.to_numpy(dtype=object, copy=True)
    taken, numbers = set(found.tolist()), dict[str, int]()
    for place in again.tolist():
        name, number = found[place], numbers.get(found[place], 0) + 1
        while f"{name}-{number}" in taken:
            number += 1
        numbers[name] = number
        found[place] = f"{name}-{number}"
        taken.add(found[place])
    return pd.Index(found, dtype=index.dtype)


def as_counts(values: np.ndarray, path: Path, *, fractions: bool = True) -> np.ndarray:
    """Convert whole numbers to int32 (int64 if larger); fractions are kept with a warning, or refused."""
    if values.dtype.kind not in "iufb":
        raise refuse(f"The counts in {str(path)!r} are not numbers: {values.dtype}.")
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
                f"{share:.1%} of the counts in {path.name!r} are fractions; they are kept unchanged. stampy expects "
                "raw counts: make sure that these are not normalised (EM counts of multi-mapped reads are fine)."
            )
            return values if values.dtype.itemsize >= 4 else values.astype(np.float32)
        values = whole
    if values.dtype != np.int32 and values.size and max(int(values.max()), -int(values.min())) > _INT32:
        return values.astype(np.int64, copy=False)
    return values.astype(np.int32, copy=False)


def genes_only(x: sparse.csr_matrix, barcodes: list[str], features: pd.DataFrame, path: Path) -> Counts:
    """Remove features that are not genes; a warning states their number by type."""
    kinds = features.get("feature_type")
    if kinds is not None:
        is_gene = kinds.isin([kind for kind in kinds.unique() if str(kind).lower() in _GENES]).to_numpy()
        if not is_gene.any():
            _checks.warn(
                f"No feature in {path.name!r} is has the type {GENES!r}, found {_counted(kinds)}; all are kept."
            )
        elif not is_gene.all():
            _warn_of_excluded(kinds[~is_gene], path)
            kept = np.flatnonzero(is_gene)
            x, features = x[:, kept], features.iloc[kept]
    named = {"id": "gene_ids", "feature_type": "feature_types", "genome": "genome"}
    columns = {name: features[column].to_numpy() for column, name in named.items() if column in features}
    return Counts(x, barcodes, pd.DataFrame(columns, index=unique_names(features["name"])))


def _counted(kinds: pd.Series) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in Counter(kinds).most_common())


def _warn_of_excluded(kinds: pd.Series, path: Path) -> None:
    logger.info("%s: dropped features that are not genes: %s", path.name, _counted(kinds))
    others = kinds[~kinds.str.lower().str.contains("|".join(_CONTROLS))]
    if len(others):
        _checks.warn(f"{path.name!r}: dropped {len(others)} features that are not genes ({_counted(others)}).")


IN_TISSUE = "in_tissue"
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
_SUFFIX = re.compile(r"[-_](?:\d+|[A-Za-z]\w?)$")  # of the GEM well, or added when sections were merged
_SEQUENCE = re.compile(r"(?<![A-Za-z])[ACGT]{12,}(?![A-Za-z])")


def with_positions(counts: Counts, positions: pd.DataFrame, *, counts_name: str, positions_name: str) -> AnnData:
    """AnnData of the spots with counts and a position (`positions`: by barcode, with columns ``x`` and ``y``).

    Barcodes that differ by the suffix "-1" or by a prefix are matched, with a warning. Spots in only one of the two
    tables are dropped, with a warning. Other columns of `positions` are added to ``obs``.
    """
    import anndata

    positions = _unique_positions(positions, positions_name)
    barcodes = pd.Index(counts.barcodes, dtype=object)
    rows = _matched(barcodes, positions.index, counts_name, positions_name)
    kept = np.flatnonzero(rows >= 0)
    if not len(kept):
        raise refuse(
            f"None of the {len(counts.barcodes)} barcodes of {counts_name} (such as {counts.barcodes[:1]}) is in "
            f"{positions_name} (such as {list(positions.index[:1])}). Counts and positions are of different sections."
        )
    if len(kept) < len(rows):
        first = counts.barcodes[int(np.argmax(rows < 0))]
        _checks.warn(
            f"{len(rows) - len(kept)} of {len(rows)} spots of {counts_name} have no position in {positions_name} "
            f"(first: {first!r}) and are dropped. Are the files of one section?"
        )
    in_order = np.array_equal(rows, np.arange(len(positions)))
    spots = positions if in_order else positions.iloc[rows[kept]]
    xy = _numbers(spots, positions_name)
    _warn_of_missing_counts(positions, rows, counts_name)
    x = counts.x if len(kept) == len(rows) else counts.x[kept]
    obs = spots.drop(columns=["x", "y"])
    obs.index = _unique(barcodes if len(kept) == len(rows) else barcodes[kept], counts_name)
    adata = anndata.AnnData(x, obs=obs, var=counts.var)
    adata.obsm[_keys.SPATIAL] = xy
    return adata


def unplaced(counts: Counts, *, name: str, why: str) -> AnnData:
    """AnnData of counts without positions, with a warning about the consequences."""
    import anndata

    _checks.warn(f"{name}: {why} The section has genes, but no positions and no image.")
    obs = pd.DataFrame(index=_unique(pd.Index(counts.barcodes, dtype=object), name))
    return anndata.AnnData(counts.x, obs=obs, var=counts.var)


def _unique(index: pd.Index, name: str) -> pd.Index:
    if index.is_unique:
        return index
    _checks.warn(
        f"{int(index.duplicated().sum())} barcodes of {name} occur more than once; each row is kept, with -1, "
        "-2, ... appended to its name. Were several sections combined?"
    )
    return unique_names(index)


def _unique_positions(positions: pd.DataFrame, name: str) -> pd.DataFrame:
    """One position per barcode; identical repeated lines are merged."""
    if positions.index.is_unique:
        return positions
    once = positions[~positions.reset_index().duplicated().to_numpy()]
    twice = once.index[once.index.duplicated()]
    if len(twice):
        raise refuse(
            f"{len(twice)} barcodes have several positions in {name} (first: {twice[0]!r}). It contains several "
            "sections; "
            "read them one by one."
        )
    return once


def _matched(barcodes: pd.Index, known: pd.Index, counts_name: str, positions_name: str) -> np.ndarray:
    """Row of each barcode in the positions, -1 if missing."""
    rows = known.get_indexer(barcodes)
    for words, key in (("without the suffix -1, -2, ...", _plain), ("only by their sequence", _sequence)):
        if (rows >= 0).all() or (rows >= 0).sum() * 2 > len(rows):  # only positions are missing, the names match
            return rows
        ours, theirs = barcodes.map(key), known.map(key)
        if not theirs.is_unique or not ours.is_unique:
            continue
        found = theirs.get_indexer(ours)
        if (found >= 0).sum() > (rows >= 0).sum():
            _checks.warn(
                f"{int((found >= 0).sum())} barcodes of {counts_name} and {positions_name} were matched {words} "
                f"({barcodes[int(np.argmax(found >= 0))]!r} and {known[found[int(np.argmax(found >= 0))]]!r})."
            )
            rows = found
    return rows


def _plain(barcode: str) -> str:
    return _SUFFIX.sub("", str(barcode))


def _sequence(barcode: str) -> str:
    found = _SEQUENCE.findall(str(barcode))
    return found[0] if len(found) == 1 else str(barcode)


def _numbers(spots: pd.DataFrame, name: str) -> np.ndarray:
    try:
        xy = spots[["x", "y"]].to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise refuse(f"The positions in {name} are not numbers ({error}).") from error
    bad = int((~np.isfinite(xy)).any(axis=1).sum())
    if bad:
        raise refuse(f"{bad} of {len(xy)} spots have a missing or infinite position in {name}.")
    return xy


def _warn_of_missing_counts(positions: pd.DataFrame, rows: np.ndarray, counts_name: str) -> None:
    """Warn about spots under tissue that are missing from the table of counts."""
    left = np.ones(len(positions), dtype=bool)
    left[rows[rows >= 0]] = False
    if IN_TISSUE in positions:
        left &= positions[IN_TISSUE].to_numpy() == 1
    if left.any():
        under = " under tissue" if IN_TISSUE in positions else ""
        _checks.warn(
            f"{int(left.sum())} spots{under} have no counts in {counts_name} (first: "
            f"{positions.index[int(np.argmax(left))]!r}) and are dropped."
        )


def picture(path: Path) -> np.ndarray:
    """Read a PNG, JPEG or TIFF, optionally gzipped, as (h, w, 3) uint8."""
    from stampy._section.image.slide_image import SlideImage

    with reading(path), SlideImage.open(path) as image:
        height, width = image.shape
        return image.read(0, 0, width, height)


def pictures(parts: SectionFiles, *, kinds: tuple[str, ...] = ("hires", "lowres")) -> dict[str, np.ndarray]:
    """Space Ranger's reduced images; an unreadable one is dropped with a warning if the other is readable.

    Raises
    ------
    ValueError
        No image is readable.
    """
    found: dict[str, np.ndarray] = {}
    failed: dict[str, ValueError] = {}
    for kind in kinds:
        path = parts.find(*(f"tissue_{kind}_image{end}" for end in _PICTURES))
        try:
            found |= {} if path is None else {kind: picture(path)}
        except ValueError as error:
            failed[kind] = error
    for kind, reason in failed.items():
        if not found:
            raise reason
        _checks.warn(f"The {kind} image is ignored; {_checks.shortlist(found)} is used. {reason}")
    return found


def add_library(
    adata: AnnData, name: str, scalefactors: Mapping[str, object], images: dict[str, np.ndarray] | None = None
) -> Library:
    """Write ``uns["spatial"][name]`` and return it."""
    library: Library = {"images": dict(images or {}), "scalefactors": dict(scalefactors), "metadata": {}}
    adata.uns[_keys.UNS_SPATIAL] = {name: library}
    return library


def refer_to_image(adata: AnnData, path: str | Path, name: str) -> None:
    """Record the path of the full-resolution image, as scanpy does; `stampy.tl.embed` opens it on demand."""
    path = _checks.existing(path, what="image file").resolve()
    known = adata.uns.setdefault(_keys.UNS_SPATIAL, {})
    if not isinstance(known, MutableMapping):
        raise ValueError(
            f"uns['spatial'] must contain sections by name, found {type(known).__name__}. Remove it first."
        )
    libraries = {key: entry for key, entry in known.items() if isinstance(entry, MutableMapping)}  # not `is_single`
    if len(libraries) > 1:
        raise ValueError(
            f"One `image` was given for {len(libraries)} sections ({_checks.shortlist(libraries)}); "
            "give one for each to `stampy.tl.embed(adata, image={...})`."
        )
    library: MutableMapping[str, Any] | None = next(iter(libraries.values()), None)
    if library is None:
        library = known[name] = {"images": {}, "scalefactors": {}}
    library["metadata"] = {**library.get("metadata", {}), _keys.SOURCE_IMAGE: str(path)}


def without_controls(genes: list[str], controls: tuple[str, ...]) -> np.ndarray:
    """Columns of genes, excluding control probes by their prefixes."""
    return np.flatnonzero([not gene.lower().startswith(controls) for gene in genes])
