"""A section of the user's files as it is judged: its rows, counts, coordinates, image and labels."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stampy import _checks, _keys
from stampy._io.assemble import refer_to_image
from stampy._io.formats.space_ranger import read_matrix
from stampy._io.read import read

from .labels import BARCODE, LabelTable, cortical_layer, label_table, plain, word

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from stampy.bench._config import DataSet, Section

__all__ = ["labels_of", "read_section"]

logger = logging.getLogger(__name__)

# columns of obs with coordinates, as R's packages leave them: x, y, and whether these are px of the full image
IN_OBS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres", True),
    ("imagecol", "imagerow", False),
    ("array_col", "array_row", False),
    ("col", "row", False),
)
GRID = ("array_col", "col")
ROW = np.sqrt(3.0)  # of Visium's grid, whose columns step by 2 in a row


def read_section(section: Section, folder: Path) -> AnnData:
    """The section at a path; raises what `stampy.read` raises."""
    path = _checks.existing(folder / Path(section.source).expanduser(), what="section")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*has no obsm\['spatial'\]", _checks.StampyWarning)  # `_place` sees to it
        return _read(section, path, folder)


def _read(section: Section, path: Path, folder: Path) -> AnnData:
    image = None if section.image is None else folder / section.image
    if section.positions is not None:
        adata: Any = read_matrix(path, folder / section.positions, name=section.name, needs_image=image is None)
    elif section.part is not None:
        adata = _part(read(path, backed=True), section.part, path)
    else:
        adata = read(path)
    if not hasattr(adata, "obs"):
        raise ValueError(
            f"{str(path)!r} is a SpatialData; a table is expected here. Write the table of its one section as .h5ad."
        )
    _raw_counts(adata, section)
    if _place(adata, section) and image is not None:
        refer_to_image(adata, image, section.name)
    return adata


def _part(adata: AnnData, part: str, path: Path) -> AnnData:
    """The rows of one section of a table of several."""
    column, _, value = part.partition("=")
    _checks.has_key(adata.obs, column, slot=f"obs of {path.name}", needs="`part` names the column of the section.")
    rows = np.flatnonzero(adata.obs[column].map(plain).to_numpy() == value)
    if not len(rows):
        raise ValueError(f"No row of {str(path)!r} has {value!r} in obs[{column!r}].")
    one: AnnData = adata[rows].to_memory()
    libraries = one.uns.get(_keys.UNS_SPATIAL)
    if isinstance(libraries, dict) and len(libraries) > 1:  # pictures of the others
        one.uns[_keys.UNS_SPATIAL] = {k: v for k, v in libraries.items() if k == value}
    return one


def _raw_counts(adata: AnnData, section: Section) -> None:
    """Raw counts in X: those of ``layers["counts"]`` where X holds something else, as exports from R may have it."""
    if adata.n_vars == 0 or _is_counts(adata.X):
        return
    if "counts" in adata.layers and _is_counts(adata.layers["counts"]):
        adata.X = adata.layers["counts"]
        logger.warning("%s: X does not hold raw counts; layers['counts'] was taken.", section.name)
        return
    raise ValueError(
        f"{section.source!r} holds no raw counts: X has fractions, and there is no layer 'counts'. Export them, in R "
        'by zellkonverter::writeH5AD(spe, file, X_name = "counts").'
    )


def _is_counts(matrix: Any) -> bool:
    values = np.asarray(matrix[: min(matrix.shape[0], 200)].toarray() if hasattr(matrix, "toarray") else matrix[:200])
    return bool(np.isfinite(values).all() and (values >= 0).all() and (values == np.rint(values)).all())


def _place(adata: AnnData, section: Section) -> bool:
    """Coordinates from obs where obsm has none; whether they are px of the full-resolution image."""
    if _keys.SPATIAL in adata.obsm:
        return True
    for x, y, full in IN_OBS:
        if x in adata.obs and y in adata.obs:
            xy = adata.obs[[x, y]].to_numpy(dtype=np.float64)
            adata.obsm[_keys.SPATIAL] = xy * [1.0, ROW] if x in GRID else xy
            told = "px of the full-resolution image" if full else "not px of the full-resolution image; it has no tiles"
            logger.warning("%s: coordinates are obs[%r] and obs[%r], %s.", section.name, x, y, told)
            return full
    raise ValueError(
        f"{section.source!r} has no coordinates: neither obsm['spatial'] nor columns such as pxl_col_in_fullres and "
        "pxl_row_in_fullres. In R: colData(spe) <- cbind(colData(spe), spatialCoords(spe)) before writeH5AD."
    )


def labels_of(section: Section, data: DataSet, adata: AnnData, folder: Path) -> pd.Series | None:
    """The labels of a section's spots, cortical layers by one spelling; None where there are none."""
    means = cortical_layer if data.known_as == "DLPFC" else word
    column = section.column or data.labels
    if section.labels is not None:
        found = _from_text(section, adata, folder / section.labels, means)
    elif column is not None and column in adata.obs:
        found = adata.obs[column]
    else:
        return None
    if data.known_as != "DLPFC" or section.entry is None:
        return found
    return found.astype(object).map(means)


def _from_text(section: Section, adata: AnnData, path: Path, means: Any) -> pd.Series:
    """Labels of a text, by barcode."""
    import pandas as pd

    columns = [section.column] if section.column else []
    found = label_table(path, columns, [section.name], means)
    if found is None:
        raise ValueError(f"{str(path)!r} is no table of labels with barcodes and a column {section.column!r}.")
    labels = _by_barcode(found, section, adata.obs_names)
    known = labels.notna().sum()
    if not known:
        raise ValueError(f"No barcode of {str(path)!r} is one of {section.name!r} ({adata.obs_names[0]!r}).")
    if known < len(labels):
        logger.warning(
            "%s: %d of %d spots have no label in %s.", section.name, len(labels) - known, len(labels), path.name
        )
    return pd.Series(labels.to_numpy(), index=adata.obs_names)


def _by_barcode(found: LabelTable, section: Section, names: pd.Index) -> pd.Series:
    import pandas as pd

    sections = found.sections or (section.name,) * len(found.barcodes)
    mine = [i for i, name in enumerate(sections) if name == section.name]
    labels = pd.Series([word(found.labels[i]) for i in mine], index=[found.barcodes[i] for i in mine], dtype=object)
    if not labels.index.is_unique:
        raise ValueError(f"{str(found.path)!r} has a barcode of {section.name!r} twice.")
    if labels.index.isin(names).any():
        return labels.reindex(names)

    def sequence(index: pd.Index) -> pd.Index:  # whatever is appended to it
        return index.map(lambda barcode: (BARCODE.findall(str(barcode)) or [str(barcode)])[0])

    labels.index = sequence(labels.index)
    if not labels.index.is_unique or not sequence(names).is_unique:
        raise ValueError(f"Barcodes of {str(found.path)!r} and of {section.name!r} can't be told apart without suffix.")
    return labels.reindex(sequence(names))
