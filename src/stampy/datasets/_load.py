"""`load`: build a section of the registry from its authors' files, with one builder per layout.

Builders take the name of the section and the paths of its files by role, and return an AnnData.
"""

from __future__ import annotations

import io
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys
from stampy._io import delimited
from stampy._io.assemble import unique_names
from stampy._io.formats import matrix_10x, st
from stampy._io.formats.space_ranger import COLUMNS, positions
from stampy.datasets import _fetch, _registry

if TYPE_CHECKING:
    from anndata import AnnData

_NO_SECTION = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, OSError, RuntimeError, EOFError,
               struct.error, zlib.error, zipfile.BadZipFile)  # fmt: skip


def load(
    name: str,
    *,
    sha256: str | None = None,
    allow_unverified: bool = False,
    progressbar: bool = False,
) -> AnnData:
    """Load a real section.

    The section is read from the mirror `STAMPY_DATA_DIR`, if it is there; otherwise the files of its authors are
    downloaded (see `fetch`) and assembled. Cite the authors: `info(name).citation`.

    The 12 sections of the dorsolateral prefrontal cortex with all genes are `spatialLIBD_151507` and so on. Their
    counts are at an address without versions, and stampy does not know their hashes: pass `sha256=` or
    `allow_unverified=True`. `DLPFC_151673` and `DLPFC_151674` are smaller and have only the most variable genes.

    Parameters
    ----------
    name
        One of `names()`.
    sha256, allow_unverified, progressbar
        As for `fetch`.

    Returns
    -------
    AnnData (spots, genes) with

    - `X`: raw counts, CSR; no genes if there is only an image (`info(name).kind == "images"`)
    - `obs`: array position, and labels in the columns `info(name).labels`; "NA" and "undetermined" are not labels
    - `var["gene_ids"]`: Ensembl ids where known; `var_names` are symbols
    - `obsm["spatial"]`: x and y in px of the full-resolution image, or in spot distances if the study has no image
    - `uns["spatial"][name]`: images and scale factors, if there is an image; `uns["source"]`: origin of the data

    Raises
    ------
    ValueError
        If the name is unknown, or a file has a wrong or no known hash.
    FileNotFoundError
        If the section is only available from a mirror, and there is no mirror.
    ConnectionError
        If a download fails.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.load("HER2ST_A1")  # doctest: +SKIP
    >>> adata.obs["label"].value_counts()  # doctest: +SKIP
    """
    import anndata

    entry = _registry.info(name)
    _checks.one_of("name", name, [n for n, e in _registry.entries().items() if e.kind in _registry.SECTIONS])
    options: dict[str, Any] = {"sha256": sha256, "allow_unverified": allow_unverified, "progressbar": progressbar}
    section = entry.files.get("section")
    if section is not None and (section.in_mirror() or entry.builder is None):
        return anndata.read_h5ad(_fetch.fetch_file(entry, "section", **options))
    paths = {role: _fetch.fetch_file(entry, role, **options) for role in _fetch.wanted(entry)}
    adata = built(entry.builder or "", name, paths)
    adata.uns["source"] = entry.origin or "not stated"
    return adata


def built(builder: str, name: str, paths: Mapping[str, Path]) -> AnnData:
    """Build a section from its authors' files (role -> path); ValueError if they are not as expected."""
    try:
        return BUILDERS[builder](name, paths)
    except _NO_SECTION as error:
        raise ValueError(
            f"The files of {name!r} ({_checks.shortlist(str(p) for p in paths.values())}) cannot be assembled as a "
            f"section: {type(error).__name__}: {error}. They are damaged, or not the expected files."
        ) from error


Paths = Mapping[str, Path]

LOWRES_PX = 600
MAX_UNZIPPED = 2**31


def her2st(name: str, paths: Paths) -> AnnData:
    """ST counts (spots named COLUMNxROW by genes), spots under tissue, and labels and image if available."""
    spots = delimited.table(paths["spots"])
    adata = st.on_pixels(st.st_counts(paths["counts"], fractions=False), spots, paths["spots"].name)
    adata.obs = adata.obs.astype(np.int64)
    if "labels" in paths:
        labels = pd.read_csv(paths["labels"], sep="\t").dropna(subset=["x", "y"])
        labels.index = _spot_names(labels["x"].round(), labels["y"].round())
        label = labels["label"][~labels.index.duplicated()].reindex(adata.obs_names)
        adata.obs["label"] = label.astype("category")
    if "image" in paths:
        # Spots are 200 µm apart and 100 µm wide; `new_x` is in units of this distance.
        spots = spots[spots["selected"] == 1]
        distance_px = np.ptp(spots["pixel_x"]) / np.ptp(spots["new_x"])
        lowres, factor = _reduced(paths["image"])
        scalefactors = {"spot_diameter_fullres": float(distance_px / 2), "tissue_lowres_scalef": factor}
        _add_images(adata, name, {"lowres": lowres}, scalefactors)
    return adata


def paste(name: str, paths: Paths) -> AnnData:
    """ST counts as a table (spots by genes); positions in spot distances as a table without header, in equal order."""
    counts = pd.read_csv(paths["counts"], index_col=0)
    return _section(counts, pd.read_csv(paths["positions"], header=None), pd.DataFrame(index=counts.index))


def sepal(name: str, paths: Paths) -> AnnData:
    """ST counts as a table (spots named XxY by genes)."""
    import anndata

    counts = st.st_counts(paths["counts"], fractions=False)
    adata = anndata.AnnData(counts.x, obs=pd.DataFrame(index=counts.barcodes), var=counts.var)
    adata.obsm[_keys.SPATIAL] = st.numbers_of(counts.barcodes)
    return adata


def spcs(name: str, paths: Paths) -> AnnData:
    """A zip of three comma-separated tables: counts (genes by spots), coordinates and labels of the spots."""
    tables = _zipped_tables(paths["archive"])
    (coordinates,) = (k for k in tables if k.lower().endswith("_coord"))
    counts_name = re.sub("(?i)_coord$", "", coordinates)
    (labels,) = set(tables) - {coordinates, counts_name}
    counts, xy = tables[counts_name].T, tables[coordinates]
    xy = xy.loc[counts.index]
    obs = pd.DataFrame({"array_row": xy.iloc[:, 1], "array_col": xy.iloc[:, 0]}, index=counts.index)
    obs["histology"] = tables[labels].iloc[:, -1].reindex(obs.index).astype("category")
    return _section(counts, xy, obs)


def space_ranger(name: str, paths: Paths) -> AnnData:
    """Space Ranger's counts (.h5, or .mtx with features and barcodes), positions, scale factors and images."""
    import anndata

    if paths["counts"].suffix == ".h5":
        x, barcodes, var = matrix_10x.counts_h5(paths["counts"])
    else:
        x, barcodes, var = matrix_10x.counts_mtx(paths["counts"], paths["features"], paths["barcodes"])
    spots = positions(paths["positions"])
    missing = [b for b in barcodes if b not in spots.index]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(barcodes)} barcodes of {name!r} have no position (first: {missing[0]!r})."
        )
    spots = spots.loc[barcodes]
    adata = anndata.AnnData(x, obs=spots[COLUMNS[1:4]].rename_axis(None), var=var[["gene_ids"]])
    return _with_space_ranger_images(adata, name, spots, paths)


def dlpfc(name: str, paths: Paths) -> AnnData:
    """Like `space_ranger`, with the cortical layer of each spot: L1 to L6, WM, or NA."""
    adata = space_ranger(name, paths)
    labels = pd.read_csv(paths["labels"], sep="\t")
    labels = labels.set_index("barcode") if "barcode" in labels else labels
    layer = labels["layer_guess"].reindex(adata.obs_names).astype("string")
    layer = layer.str.replace(r"^Layer[_ ]?(?=\d)", "L", regex=True).fillna("NA")
    adata.obs["layer"] = layer.astype(object).astype("category")
    return adata


def annotated(name: str, paths: Paths) -> AnnData:
    """Like `space_ranger`, with the columns of a table of labels by barcode."""
    adata = space_ranger(name, paths)
    labels = pd.read_csv(paths["labels"], sep="\t", index_col=0)
    adata.obs = adata.obs.join(labels.astype("category"))
    return adata


def images(name: str, paths: Paths) -> AnnData:
    """A section without counts: spots under tissue, labels if available, image and scale factors."""
    import anndata

    spots = positions(paths["positions"])
    spots = spots[spots["in_tissue"] == 1]
    obs = spots[COLUMNS[1:4]].rename_axis(None)
    if "labels" in paths:
        labels = pd.read_csv(paths["labels"], sep="\t", index_col=0)
        obs = obs.join(labels.astype("category"))
    adata = anndata.AnnData(sparse.csr_matrix((len(obs), 0), dtype=np.int32), obs=obs)
    return _with_space_ranger_images(adata, name, spots, paths)


BUILDERS: dict[str, Callable[[str, Paths], AnnData]] = {
    f.__name__: f for f in (her2st, paste, sepal, spcs, space_ranger, dlpfc, annotated, images)
}


def _spot_names(x: pd.Series, y: pd.Series) -> pd.Index:
    return pd.Index([f"{i:.0f}x{j:.0f}" for i, j in zip(x, y, strict=True)])


def _section(counts: pd.DataFrame, xy: pd.DataFrame, obs: pd.DataFrame) -> AnnData:
    """AnnData from tables with the same spots in the same order."""
    import anndata

    values = counts.to_numpy()
    whole = np.rint(values).astype(np.int32)
    if not np.array_equal(whole, values):
        raise ValueError("The table of counts contains fractions; raw counts were expected.")
    adata = anndata.AnnData(sparse.csr_matrix(whole), obs=obs.rename_axis(None))
    adata.var_names = unique_names(counts.columns)
    adata.obsm[_keys.SPATIAL] = xy.to_numpy(dtype=np.float64)
    return adata


def _with_space_ranger_images(adata: AnnData, name: str, spots: pd.DataFrame, paths: Paths) -> AnnData:
    adata.obsm[_keys.SPATIAL] = spots[["x", "y"]].to_numpy(dtype=np.float64)
    scalefactors = json.loads(paths["scalefactors"].read_text(encoding="utf-8"))
    pictures = {kind: _image(paths[kind]) for kind in ("hires", "lowres") if kind in paths}
    _add_images(adata, name, pictures, scalefactors)
    return adata


def _add_images(adata: AnnData, name: str, pictures: dict[str, np.ndarray], scalefactors: dict[str, float]) -> None:
    adata.uns[_keys.UNS_SPATIAL] = {name: {"images": pictures, "scalefactors": scalefactors}}


def _image(path: Path) -> np.ndarray:
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{str(path)!r} is too large for a hires or lowres image; it is not decoded: {error}"
        ) from error
    with image:
        return np.asarray(image.convert("RGB"))


def _reduced(path: Path) -> tuple[np.ndarray, float]:
    """A JPEG reduced to a width of 600 px, and the scale factor; decoded at a fraction of its size."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # its hash was checked
        image = Image.open(path)
    with image:
        width, height = image.size
        factor = LOWRES_PX / width
        size = LOWRES_PX, round(height * factor)
        image.draft("RGB", (2 * size[0], 2 * size[1]))
        return np.asarray(image.convert("RGB").resize(size, Image.Resampling.LANCZOS)), factor


def _zipped_tables(path: Path) -> dict[str, pd.DataFrame]:
    """Comma-separated tables in an archive, by stem. Members are read without unpacking, so paths are harmless."""
    tables = {}
    with zipfile.ZipFile(path) as archive:
        size = sum(member.file_size for member in archive.infolist())  # no member is read beyond this
        if size > MAX_UNZIPPED:
            raise ValueError(
                f"{str(path)!r} states that it unpacks to {size:,} bytes; at most {MAX_UNZIPPED:,} were expected, "
                "so it "
                "is not read."
            )
        for member in archive.infolist():
            place = PurePosixPath(member.filename)
            if place.suffix in {".txt", ".csv"} and "__MACOSX" not in place.parts:
                with archive.open(member) as stream:
                    tables[place.stem] = _table(stream)
    return tables


def _table(stream: IO[bytes]) -> pd.DataFrame:
    """Table written by R, whose header may lack the name of the first column."""
    return pd.read_csv(io.TextIOWrapper(stream, encoding="utf-8"), index_col=0, keep_default_na=False)
