"""A small folder in the layout of HEST on the hub, with known ground truth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks, _keys
from stampy._files import atomic
from stampy.datasets._toy.toy import UM_PER_PX, VISIUM_SPOT_UM, toy

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["HEST_COLUMNS", "toy_hest"]

# of HEST_v1_1_0.csv
HEST_COLUMNS = (
    "dataset_title", "id", "image_filename", "organ", "disease_state", "oncotree_code", "species", "patient",
    "st_technology", "data_publication_date", "license", "study_link", "download_page_link1", "inter_spot_dist",
    "spot_diameter", "spots_under_tissue", "preservation_method", "nb_genes", "treatment_comment",
    "pixel_size_um_embedded", "pixel_size_um_estimated", "magnification", "fullres_px_width", "fullres_px_height",
    "tissue", "disease_comment", "subseries", "hest_version_added",
)  # fmt: skip
ORGANS = ("Breast", "Kidney", "Bowel")
LEAK = {"id": "TENX13", "dataset_title": "Human Breast Cancer (Block A Section 1)", "organ": "Breast"}


def toy_hest(
    folder: str | Path,
    *,
    n_sections: int = 4,
    n_spots: int = 200,
    n_domains: int = 4,
    n_genes: int = 800,
    leak: bool = True,
    rng: int = 0,
) -> list[AnnData]:
    """Write toy sections to a folder with the layout of HEST.

    Files written: ``HEST_v1_1_0.csv`` with the columns of the real table, and for each section ``st/ID.h5ad``,
    ``wsis/ID.tif`` (tiled, with its pixel size) and ``metadata/ID.json``. Ids are TOY1, TOY2, ...; two sections belong
    to one patient.

    Parameters
    ----------
    folder
        Where to write.
    n_sections, n_spots, n_domains, n_genes
        As for `stampy.datasets.toy`.
    leak
        Add a section with the id of a section of the paper's tables, TENX13.
    rng
        Seed. The sections are those of ``toy(n_spots, n_domains, n_sections=n_sections + leak, rng=rng)``; with the
        same seed, `toy_spavis` has the same domains and genes.

    Returns
    -------
    The sections, with ``obs["domain"]``, which is not in the files.

    Raises
    ------
    TypeError, ValueError
        A number is out of its range.

    Examples
    --------
    >>> import stampy, tempfile
    >>> from pathlib import Path
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sections = stampy.datasets.toy_hest(folder, n_sections=1, n_spots=20, leak=False)
    ...     sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*.*"))
    ['HEST_v1_1_0.csv', 'metadata/TOY1.json', 'st/TOY1.h5ad', 'wsis/TOY1.tif']
    """
    _checks.at_least("n_sections", n_sections, 1)
    folder = _checks.writable(folder)
    adata = toy(n_spots, n_domains, n_genes=n_genes, n_sections=n_sections + leak, rng=rng)
    column = adata.obs["section"]
    sections = [adata[column == name].copy() for name in column.cat.categories]
    for name in ("st", "wsis", "metadata"):
        _checks.writable(folder / name)
    rows = [_about(section, i) for i, section in enumerate(sections)]
    if leak:
        rows[-1] |= {**LEAK, "image_filename": f"{LEAK['id']}.tif"}
    for section, row in zip(sections, rows, strict=True):
        _write(folder, section, row)
    with atomic(folder / "HEST_v1_1_0.csv") as temporary:
        pd.DataFrame(rows, columns=list(HEST_COLUMNS)).to_csv(temporary, index=False, encoding="utf-8-sig")
    return sections


def _image(section: AnnData) -> np.ndarray:
    return section.uns[_keys.UNS_SPATIAL][str(section.obs["section"].iloc[0])]["images"]["hires"]


def _about(section: AnnData, number: int) -> dict[str, Any]:
    height, width = _image(section).shape[:2]
    return {
        "dataset_title": f"Toy study {number // 4 + 1}",
        "id": f"TOY{number + 1}",
        "image_filename": f"TOY{number + 1}.tif",
        "organ": ORGANS[number % len(ORGANS)],
        "disease_state": ("Healthy", "Cancer")[number % 2],
        "species": "Homo sapiens",
        "patient": f"Patient {number // 2 + 1}",
        "st_technology": "Visium",
        "inter_spot_dist": 100,
        "spot_diameter": VISIUM_SPOT_UM,
        "spots_under_tissue": section.n_obs,
        "preservation_method": "FFPE",
        "nb_genes": section.n_vars,
        "pixel_size_um_embedded": UM_PER_PX,
        "pixel_size_um_estimated": UM_PER_PX,
        "fullres_px_width": width,
        "fullres_px_height": height,
        "subseries": str(section.obs["section"].iloc[0]),
        "hest_version_added": "v1_1_0",
    }


def _write(folder: Path, section: AnnData, row: dict[str, Any]) -> None:
    import anndata
    import tifffile

    image = _image(section)
    xy = np.asarray(section.obsm[_keys.SPATIAL])
    obs = section.obs[["in_tissue", "array_row", "array_col"]].copy()
    obs["pxl_col_in_fullres"], obs["pxl_row_in_fullres"] = xy.T
    stored = anndata.AnnData(section.X.copy(), obs=obs, var=section.var[[]].copy())  # HEST names genes by symbol
    stored.obsm[_keys.SPATIAL] = xy
    step = max(image.shape) // 1000 + 1
    stored.uns[_keys.UNS_SPATIAL] = {"ST": {
        "images": {"downscaled_fullres": image[::step, ::step].copy()},
        "scalefactors": {"spot_diameter_fullres": VISIUM_SPOT_UM / UM_PER_PX,
                         "tissue_downscaled_fullres_scalef": 1 / step},
    }}  # fmt: skip
    with atomic(folder / "st" / f"{row['id']}.h5ad") as temporary:
        stored.write_h5ad(temporary)
    with atomic(folder / "wsis" / f"{row['id']}.tif") as temporary:
        tifffile.imwrite(temporary, image, tile=(256, 256), photometric="rgb", compression="deflate",
                         resolution=(1e4 / UM_PER_PX, 1e4 / UM_PER_PX), resolutionunit="CENTIMETER")  # fmt: skip
    with atomic(folder / "metadata" / f"{row['id']}.json") as temporary:
        temporary.write_text(json.dumps(row) + "\n")
