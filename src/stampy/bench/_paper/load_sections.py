"""Config of a paper's table for the user's files, and each section as evaluated (counts, image, labels)."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stampy import _checks, _files, _keys
from stampy._io.assemble import refer_to_image
from stampy._io.formats.space_ranger import read_matrix
from stampy._io.read import read
from stampy.bench._config import Config, DataSet, SectionConfig, System
from stampy.models._systems.catalogue import check_name

from .find_sections import Place
from .label_columns import BARCODE, LabelTable, cortical_layer, label_table, plain, word
from .pieces import Found

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["labels_of", "on_folder", "read_section", "with_models"]

logger = logging.getLogger(__name__)

# columns of obs with coordinates, as exported from R: x, y, and whether they are px of the full image
IN_OBS = (
    ("pxl_col_in_fullres", "pxl_row_in_fullres", True),
    ("imagecol", "imagerow", False),
    ("array_col", "array_row", False),
    ("col", "row", False),
)
GRID = ("array_col", "col")
ROW = np.sqrt(3.0)  # row height of Visium's grid, whose columns step by 2 within a row


def read_section(section: SectionConfig, folder: Path) -> AnnData:
    """Read the section at a path; raises the errors of `stampy.read`."""
    path = _checks.existing(folder / Path(section.source).expanduser(), what="section")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r".*has no obsm\['spatial'\]", _checks.StampyWarning)  # `_place` adds it
        return _read(section, path, folder)


def _read(section: SectionConfig, path: Path, folder: Path) -> AnnData:
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
    """Rows of one section in a table of several."""
    column, _, value = part.partition("=")
    _checks.has_key(adata.obs, column, slot=f"obs of {path.name}", needs="`part` names the column of the section.")
    rows = np.flatnonzero(adata.obs[column].map(plain).to_numpy() == value)
    if not len(rows):
        raise ValueError(f"No row of {str(path)!r} has {value!r} in obs[{column!r}].")
    one: AnnData = adata[rows].to_memory()
    libraries = one.uns.get(_keys.UNS_SPATIAL)
    if isinstance(libraries, dict) and len(libraries) > 1:  # keep only the image of this section
        one.uns[_keys.UNS_SPATIAL] = {k: v for k, v in libraries.items() if k == value}
    return one


def _raw_counts(adata: AnnData, section: SectionConfig) -> None:
    """Put raw counts into X: ``layers["counts"]`` if X is something else, as in exports from R."""
    if adata.n_vars == 0 or _is_counts(adata.X):
        return
    if "counts" in adata.layers and _is_counts(adata.layers["counts"]):
        adata.X = adata.layers["counts"]
        logger.warning("%s: X does not contain raw counts; layers['counts'] was used.", section.name)
        return
    raise ValueError(
        f"{section.source!r} contains no raw counts: X has fractions, and there is no layer 'counts'. Export them, "
        "in R "
        'by zellkonverter::writeH5AD(spe, file, X_name = "counts").'
    )


def _is_counts(matrix: Any) -> bool:
    values = np.asarray(matrix[: min(matrix.shape[0], 200)].toarray() if hasattr(matrix, "toarray") else matrix[:200])
    return bool(np.isfinite(values).all() and (values >= 0).all() and (values == np.rint(values)).all())


def _place(adata: AnnData, section: SectionConfig) -> bool:
    """Take coordinates from obs if obsm has none; returns whether they are px of the full-resolution image."""
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


def labels_of(section: SectionConfig, data: DataSet, adata: AnnData, folder: Path) -> pd.Series | None:
    """Labels of a section's spots, with a uniform spelling of cortical layers; None without labels."""
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


def _from_text(section: SectionConfig, adata: AnnData, path: Path, means: Any) -> pd.Series:
    """Labels from a text file, matched by barcode."""
    import pandas as pd

    columns = [section.column] if section.column else []
    found = label_table(path, columns, [section.name], means)
    if found is None:
        raise ValueError(f"{str(path)!r} is not a table of labels with barcodes and a column {section.column!r}.")
    labels = _by_barcode(found, section, adata.obs_names)
    known = labels.notna().sum()
    if not known:
        raise ValueError(f"No barcode of {str(path)!r} is one of {section.name!r} ({adata.obs_names[0]!r}).")
    if known < len(labels):
        logger.warning(
            "%s: %d of %d spots have no label in %s.", section.name, len(labels) - known, len(labels), path.name
        )
    return pd.Series(labels.to_numpy(), index=adata.obs_names)


def _by_barcode(found: LabelTable, section: SectionConfig, names: pd.Index) -> pd.Series:
    import pandas as pd

    sections = found.sections or (section.name,) * len(found.barcodes)
    mine = [i for i, name in enumerate(sections) if name == section.name]
    labels = pd.Series([word(found.labels[i]) for i in mine], index=[found.barcodes[i] for i in mine], dtype=object)
    if not labels.index.is_unique:
        raise ValueError(f"{str(found.path)!r} has a barcode of {section.name!r} twice.")
    if labels.index.isin(names).any():
        return labels.reindex(names)

    def sequence(index: pd.Index) -> pd.Index:  # removes appended suffixes
        return index.map(lambda barcode: (BARCODE.findall(str(barcode)) or [str(barcode)])[0])

    labels.index = sequence(labels.index)
    if not labels.index.is_unique or not sequence(names).is_unique:
        raise ValueError(
            f"Barcodes of {str(found.path)!r} and of {section.name!r} cannot be distinguished without suffix."
        )
    return labels.reindex(sequence(names))


def on_folder(config: Config, found: Found, out: Path) -> Config:
    """The config restricted to the sections, slides and weights that were found.

    Raises
    ------
    FileNotFoundError
        No section or slide was found.
    """
    (data,) = config.datasets
    data = _slides(data, found, out) if data.slides else _sections(data, found)
    systems = tuple(_with_weights(system, found) for system in config.systems)
    return replace(config, datasets=(data,), systems=systems)


def _sections(data: DataSet, found: Found) -> DataSet:
    known = {section.name: section for section in data.sections}
    there = [place for place in found.places if place.path is not None]
    if not there:
        first = next(piece for piece in found.pieces if piece.what == "counts")
        raise FileNotFoundError(f"No section of {data.name} was found. {first.steps}")
    sections = tuple(_section(place, known.get(place.name)) for place in there)
    return _with_folds(replace(data, sections=sections))


def _section(place: Place, known: SectionConfig | None) -> SectionConfig:
    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return SectionConfig(
        name=place.name, source=str(place.path), patient=known.patient if known else None,
        part="=".join(place.part) if place.part else None, image=text(place.image), positions=text(place.positions),
        labels=text(place.labels), column=place.column or None, entry=known.source if known else None,
    )  # fmt: skip


def _with_folds(data: DataSet) -> DataSet:
    """Hold out sections or patients in turn; with a single one, hold out its blocks."""
    if data.folds not in ("section", "patient"):
        return data
    groups = {s.patient if data.folds == "patient" else s.name for s in data.sections}
    if len(groups) > 1:
        return replace(data, n_folds=len(groups))
    _checks.warn(
        f"{data.name} has one {data.folds} here, so none can be held out: folds are five spatial blocks of it. Figures "
        "are not those of the table's protocol."
    )
    return replace(data, folds="blocks", n_folds=5)


def _slides(data: DataSet, found: Found, out: Path) -> DataSet:
    """Existing slides, as a new table in `out`."""
    if not found.slides:
        first = next(piece for piece in found.pieces if piece.what == "slides")
        raise FileNotFoundError(f"No slide of {data.name} can be used: {first.steps}")
    columns = list(found.slides[0])
    named = [found.label if c == "label" else c for c in columns]
    lines = ["\t".join(named), *("\t".join(row[c] or "" for c in columns) for row in found.slides)]
    path = out / "slides.tsv"
    with _files.atomic(path) as beside:
        beside.write_text("\n".join(lines) + "\n", "utf-8")
    md5 = {"md5": "md5"} if "md5" in columns else {}
    return replace(data, slides={"path": str(path), "label": found.label, **md5}, n_folds=_n_folds(data, found))


def _n_folds(data: DataSet, found: Found) -> int:
    """Number of folds: at most the number of patients of the rarest label."""
    patients: dict[str, set[str]] = {}
    for row in found.slides:
        patients.setdefault(row["label"], set()).add(row["patient"])
    rarest = min(patients, key=lambda label: len(patients[label]))
    fewest = len(patients[rarest])
    if fewest >= data.n_folds or fewest < 2:  # with one patient, `tl.slide` reports the problem
        return data.n_folds
    _checks.warn(
        f"{data.name}: label {rarest!r} has {fewest} patients, so there are {fewest} folds, not {data.n_folds}."
    )
    return fewest


def _with_weights(system: System, found: Found) -> System:
    path = found.weights.get(system.name)
    return replace(system, model=f"{system.model}:{path}") if path else system


def with_models(config: Config, names: Sequence[str]) -> Config:
    """The config with the user's models as further systems, each as genes, image and fused."""
    systems = [*config.systems, *(system for name in names for system in _systems(name))]
    keys = [(system.name, system.replicate) for system in systems]
    twice = sorted({name for name, replicate in keys if keys.count((name, replicate)) > 1})
    if twice:
        raise ValueError(f"Systems must have unique names, found twice: {_checks.shortlist(twice)}.")
    return replace(config, systems=tuple(systems))


def _systems(name: str) -> list[System]:
    path = Path(name)
    if "/" in name and not name.startswith("hf-hub:"):
        _checks.existing(name, what="folder of a model")
    check_name(name)
    title = path.parent.name if path.name == "model" and path.parent.name else path.name
    kinds: dict[str, Literal["gene", "image", "fused"]] = {"genes": "gene", "image": "image", "fused": "fused"}
    return [System(name=f"{title}, {word}", model=name, modality=kind) for word, kind in kinds.items()]
