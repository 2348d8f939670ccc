"""Folders in the usual layouts for the tables of the paper, filled with toy sections for tests and rehearsals."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys
from stampy.datasets._toy.toy import toy
from stampy.datasets._toy.toy_slide import toy_slide

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["FORMS", "toy_folder"]

DLPFC = tuple(f"1515{n:02d}" for n in (7, 8, 9, 10)) + tuple(f"1516{n}" for n in (69, 70, 71, 72, 73, 74, 75, 76))
LAYERS = ("Layer1", "Layer2", "Layer3", "Layer4", "Layer5", "Layer6", "WM")
FORMS = {
    "dlpfc": ("10x", "humanpilot", "h5ad", "spe", "sce"),
    "hbc": ("10x", "h5ad"),
    "her2": ("her2st", "h5ad"),
    "psc": ("10x", "h5ad"),
    "hhk": ("10x", "h5ad"),
    "tcga-luad": ("gdc",),
}


def toy_folder(
    table: str,
    folder: str | Path,
    *,
    form: str | None = None,
    n_sections: int | None = None,
    n_spots: int = 150,
    rng: int = 0,
) -> Path:
    """Fill a folder with inputs of `stampy bench run TABLE FOLDER`; sections are those of `stampy.datasets.toy`.

    Parameters
    ----------
    table
        One of `FORMS`.
    folder
        Output folder, created if needed.
    form
        Layout, one of ``FORMS[table]``; None: the first.
    n_sections
        Number of sections; None: 12 for the cortex, 1 for breast cancer, 4 for others. For slides, number of patients.
    n_spots, rng
        See `stampy.datasets.toy`; each section gets its own seed.

    Returns
    -------
    The folder.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     folder = toy_folder("dlpfc", place, form="h5ad", n_sections=1, n_spots=60)
    ...     sorted(path.name for path in folder.iterdir())
    ['151507.h5ad']
    """
    _checks.one_of("table", table, FORMS)
    form = form or FORMS[table][0]
    _checks.one_of("form", form, FORMS[table])
    folder = _checks.writable(folder)
    if table == "tcga-luad":
        return _slides(folder, n_sections or 12, rng)
    names = {"dlpfc": DLPFC, "hbc": ("hbc",), "her2": ("A1", "A2", "B1", "B2", "C1", "C2")}.get(table)
    names = (names or tuple(f"{table}_{i + 1}" for i in range(4)))[:n_sections]
    grid, n_domains = ("st" if table == "her2" else "visium"), {"dlpfc": 7, "hbc": 5}.get(table, 4)
    first = rng + 100 * list(FORMS).index(table)  # different sections in every table
    made = {n: _section(n, n_spots, n_domains, grid, first + i) for i, n in enumerate(names)}
    _WRITERS[form](folder, made, table)
    return folder


def _section(name: str, n_spots: int, n_domains: int, grid: str, rng: int) -> AnnData:
    adata = toy(n_spots, n_domains, grid=grid, rng=np.random.default_rng([rng, 7]))
    random = np.random.default_rng([rng, 8])
    letters = np.array(list("ACGT"))[random.integers(0, 4, (adata.n_obs, 16))]
    adata.obs_names = ["".join(row) + "-1" for row in letters]
    domain = adata.obs["domain"].cat.codes.to_numpy()
    adata.obs["label"] = [LAYERS[i] for i in domain] if n_domains == 7 else [f"tissue {i + 1}" for i in domain]
    adata.obs.loc[adata.obs_names[0], "label"] = None  # some spots have no label, as in the real sections
    library = adata.uns[_keys.UNS_SPATIAL]
    adata.uns[_keys.UNS_SPATIAL] = {name: next(iter(library.values()))}
    return adata


def _library(adata: AnnData) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    entry = next(iter(adata.uns[_keys.UNS_SPATIAL].values()))
    return entry["images"], entry["scalefactors"]


def _tiff(path: Path, adata: AnnData) -> None:
    import tifffile

    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, _library(adata)[0]["hires"], tile=(256, 256), compression="zlib", photometric="rgb")


def _tenx_h5(path: Path, adata: AnnData) -> None:
    """Write the matrix in the format of Cell Ranger 3 and later."""
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    x = sparse.csr_matrix(adata.X)
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["barcodes"] = np.array(adata.obs_names, dtype="S")
        matrix["data"], matrix["indices"], matrix["indptr"] = (
            x.data,
            x.indices.astype(np.int64),
            x.indptr.astype(np.int64),
        )
        matrix["shape"] = np.array(x.shape[::-1], dtype=np.int32)
        features = matrix.create_group("features")
        features["id"] = adata.var["gene_ids"].to_numpy().astype("S")
        features["name"] = np.array(adata.var_names, dtype="S")
        features["feature_type"] = np.array(["Gene Expression"] * adata.n_vars, dtype="S")
        features["genome"] = np.array(["GRCh38"] * adata.n_vars, dtype="S")


def _spatial(folder: Path, adata: AnnData, positions: str) -> None:
    """Write positions without header, scale factors and reduced images, as in Space Ranger 1."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    xy = np.rint(adata.obsm[_keys.SPATIAL]).astype(int)
    columns = (adata.obs_names, [1] * adata.n_obs, adata.obs["array_row"], adata.obs["array_col"], xy[:, 1], xy[:, 0])
    lines = (",".join(map(str, row)) for row in zip(*columns, strict=True))
    (folder / positions).write_text("\n".join(lines) + "\n", "utf-8")
    images, factors = _library(adata)
    (folder / "scalefactors_json.json").write_text(json.dumps({k: float(v) for k, v in factors.items()}), "utf-8")
    for kind in ("hires", "lowres"):
        Image.fromarray(images[kind]).save(folder / f"tissue_{kind}_image.png")


def _metadata(path: Path, adata: AnnData, column: str) -> None:
    """Write labels in the format of R's write.table: the header has no name for the barcodes."""
    rows = (f"{name}\t{adata.n_vars}\t{'NA' if pd.isna(v) else v}" for name, v in adata.obs["label"].items())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([f"nFeature\t{column}", *rows]) + "\n", "utf-8")


def _write_10x(folder: Path, made: dict[str, AnnData], table: str) -> None:
    for name, adata in made.items():
        place = folder if table == "hbc" else folder / name
        prefix = "V1_Breast_Cancer_Block_A_Section_1_" if table == "hbc" else ""
        _tenx_h5(place / f"{prefix}filtered_feature_bc_matrix.h5", adata)
        _spatial(place / "spatial", adata, "tissue_positions_list.csv")
        _tiff(place / (f"{prefix}image.tif" if prefix else f"{name}_full_image.tif"), adata)
        if table in ("dlpfc", "hbc"):
            _metadata(place / "metadata.tsv", adata, "layer_guess_reordered" if table == "dlpfc" else "fine_annot_type")


def _write_humanpilot(folder: Path, made: dict[str, AnnData], _: str) -> None:
    """Matrices as in spatialLIBD, other files as in a clone of HumanPilot."""
    lines = []
    for name, adata in made.items():
        _tenx_h5(folder / "h5" / f"{name}_filtered_feature_bc_matrix.h5", adata)
        _spatial(folder / "HumanPilot" / "10X" / name, adata, "tissue_positions_list.txt")
        _tiff(folder / "images" / f"{name}_full_image.tif", adata)
        known = adata.obs["label"].dropna()
        lines += [f"{barcode}\t{name}\t{layer.replace('Layer', 'L')}" for barcode, layer in known.items()]
    text = "\n".join(lines) + "\n"
    (folder / "HumanPilot" / "barcode_level_layer_map.tsv").write_text(text, "utf-8")


def _write_h5ad(folder: Path, made: dict[str, AnnData], table: str) -> None:
    for name, adata in made.items():
        columns = {"label": "layer_guess_reordered" if table == "dlpfc" else "label"}
        adata.obs = adata.obs.rename(columns=columns).drop(columns=["domain"])
        adata.write_h5ad(folder / f"{name}.h5ad")


def _exported(made: dict[str, AnnData], sample: str) -> AnnData:
    """All sections in one table, as exported from R: Ensembl ids, coordinates in obs, no images."""
    import anndata

    parts = []
    for name, adata in made.items():
        part = anndata.AnnData(
            adata.X, obs=adata.obs[["array_row", "array_col"]].copy(), var=adata.var[["gene_ids"]].copy()
        )
        part.obs[sample] = name
        part.obs["layer_guess_reordered"] = pd.Categorical(adata.obs["label"], LAYERS)
        part.obs["spatialLIBD"] = pd.Categorical(adata.obs["label"].str.replace("Layer", "L"))
        part.obs[["pxl_col_in_fullres", "pxl_row_in_fullres"]] = adata.obsm[_keys.SPATIAL]
        part.var["gene_name"], part.var_names = part.var_names.astype(object), part.var.pop("gene_ids")
        part.obs_names = [f"{barcode}_{name}" for barcode in part.obs_names]
        parts.append(part)
    return anndata.concat(parts, merge="same")


def _write_spe(folder: Path, made: dict[str, AnnData], _: str) -> None:
    """A SpatialExperiment converted by zellkonverter, with coordinates in colData."""
    whole = _exported(made, "sample_id")
    whole.obs["sample_id"] = whole.obs["sample_id"].astype("category")
    whole.write_h5ad(folder / "spe.h5ad")
    for name, adata in made.items():
        _tiff(folder / "images" / f"{name}_full_image.tif", adata)


def _write_sce(folder: Path, made: dict[str, AnnData], _: str) -> None:
    """A SingleCellExperiment as zarr: log counts in X, numbers as section names, px of the reduced image."""
    import anndata

    whole = _exported(made, "sample_name")
    whole.obs["sample_name"] = whole.obs["sample_name"].astype(float)
    whole.obs = whole.obs.rename(columns={"pxl_col_in_fullres": "imagecol", "pxl_row_in_fullres": "imagerow"})
    whole.layers["counts"] = whole.X.copy()
    whole.X = sparse.csr_matrix(np.log1p(whole.X.astype(np.float32)))
    with anndata.settings.override(zarr_write_format=3), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about anndata's next release
        whole.write_zarr(folder / "sce_scran_spatialLIBD.zarr")


def _write_her2st(folder: Path, made: dict[str, AnnData], _: str) -> None:
    """A clone of the repository her2st."""
    from PIL import Image

    for name in ("ST-cnts", "ST-spotfiles", "ST-imgs"):
        (folder / "data" / name).mkdir(parents=True, exist_ok=True)
    for name, adata in made.items():
        row, col = adata.obs["array_row"].to_numpy(), adata.obs["array_col"].to_numpy()
        row, col = row - row.min() + 2, col - col.min() + 2
        spots = [f"{x}x{y}" for x, y in zip(col, row, strict=True)]
        counts = pd.DataFrame(sparse.csr_matrix(adata.X).toarray(), index=spots, columns=list(adata.var_names))
        counts.to_csv(folder / "data" / "ST-cnts" / f"{name}.tsv.gz", sep="\t")
        xy = adata.obsm[_keys.SPATIAL]
        table = {
            "x": col,
            "y": row,
            "new_x": col,
            "new_y": row,
            "pixel_x": xy[:, 0],
            "pixel_y": xy[:, 1],
            "selected": 1,
        }
        pd.DataFrame(table).to_csv(folder / "data" / "ST-spotfiles" / f"{name}_selection.tsv", sep="\t", index=False)
        image = folder / "data" / "ST-imgs" / name[0] / name / f"HE_BT_{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_library(adata)[0]["hires"]).save(image, quality=95)


_WRITERS: dict[str, Callable[[Path, dict[str, AnnData], str], None]] = {
    "10x": _write_10x,
    "humanpilot": _write_humanpilot,
    "h5ad": _write_h5ad,
    "spe": _write_spe,
    "sce": _write_sce,
    "her2st": _write_her2st,
}


def _slides(folder: Path, n: int, rng: int) -> Path:
    """Slides as downloaded by gdc-client, one folder each, next to the table of the GDC."""
    lines = ["file_name\tcases.0.submitter_id\tcases.0.diagnoses.0.ajcc_pathologic_stage"]
    for i in range(n):
        name, label = f"TCGA-{i:02d}-DX1.tif", ("Stage I", "Stage II")[i % 2]
        place = _checks.writable(folder / f"{i:08x}")
        toy_slide(place / name, tumor=0.1 + 0.5 * (i % 2), rng=rng + i)
        lines.append(f"{name}\tTCGA-{i:02d}\t{label}")
    (folder / "gdc.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    return folder
