"""Space Ranger's output of all versions: Visium, CytAssist, bins and cells of Visium HD, GEO's flat files."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks
from stampy._io.assemble import IN_TISSUE, Counts, add_library, pictures, unplaced, with_positions
from stampy._io.delimited import coordinates_table, headed, is_coordinates, layout_of, read_text, tables_in
from stampy._io.formats.matrix_10x import counts_h5, counts_mtx
from stampy._io.input_files import SectionFiles, json_of, listing, reading, refuse

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "COLUMNS",
    "EXPECTED_FILES",
    "POSITIONS",
    "has_cells",
    "is_counts_file",
    "is_space_ranger",
    "outs_of",
    "positions",
    "read_matrix",
    "read_space_ranger",
    "sample_of",
]

logger = logging.getLogger(__name__)

HD, CELLS = "binned_outputs", "segmented_outputs"
DEFAULT_BIN_UM = 8
_SAME_PX = 1.0  # one file may round the coordinates of the other
EXPECTED_FILES = (
    "A Space Ranger folder has filtered_feature_bc_matrix.h5 (or filtered_feature_bc_matrix/ with matrix.mtx) and "
    "spatial/ with tissue_positions (.csv, _list.csv or .parquet) and scalefactors_json.json; one of Visium HD has "
    "binned_outputs/square_008um/ and the like. Names may have a prefix and may end in .gz."
)
_FILTERED = ("filtered_feature_bc_matrix.h5", "filtered_feature_cell_matrix.h5", "filtered_gene_bc_matrices_h5.h5",
             "filtered_gene_bc_matrices.h5", "filtered_matrix.h5")  # fmt: skip
_RAW = ("raw_feature_bc_matrix.h5", "raw_feature_cell_matrix.h5", "raw_gene_bc_matrices_h5.h5")
_FILTERED_FOLDERS = ("filtered_feature_bc_matrix", "filtered_feature_cell_matrix", "filtered_gene_bc_matrices",
                     "filtered_matrix")  # fmt: skip
_RAW_FOLDERS = ("raw_feature_bc_matrix", "raw_feature_cell_matrix", "raw_gene_bc_matrices")
_MTX = ("matrix.mtx", "counts.mtx")
_FEATURES = ("features.tsv", "genes.tsv", "features.txt", "genes.txt")
_BARCODES = ("barcodes.tsv", "barcodes.txt")
_SCALE = ("scalefactors_json.json", "scalefactors.json")
_GEOJSON = ("cell_segmentations.geojson", "graphclust_annotated_cell_segmentations.geojson")
_ARCHIVES = ("spatial.tar.gz", "spatial.tgz", "spatial.zip", "spatial.tar", "filtered_feature_bc_matrix.tar.gz",
             "filtered_feature_bc_matrix.zip")  # fmt: skip


def outs_of(folder: Path) -> Path:
    """Folder with the results of 10x Genomics: the subfolder ``outs`` if it exists, else the folder."""
    return folder / "outs" if (folder / "outs").is_dir() else folder


def sample_of(outs: Path) -> str:
    """The sample's name: the name of the results folder, or of the folder that contains ``outs``."""
    outs = outs.resolve()
    return outs.parent.name if outs.name == "outs" else outs.name


def is_counts_file(path: Path) -> bool:
    """Whether a file name is that of a count matrix: .h5 or matrix.mtx."""
    low = path.name.lower()
    return path.is_file() and low.endswith((".h5", ".h5.gz", *_MTX, *(f"{name}.gz" for name in _MTX)))


def is_space_ranger(folder: Path) -> bool:
    """Whether the folder contains file names of Space Ranger."""
    outs = outs_of(folder)
    if any((outs / name).is_dir() for name in (HD, CELLS)) or _bins_in(outs):
        return True
    parts = SectionFiles(outs, outs / "spatial")
    return bool(parts.all(*_FILTERED, *_RAW, *_FILTERED_FOLDERS, *_RAW_FOLDERS, *POSITIONS, *_MTX))


def has_cells(path: Path) -> bool:
    """Whether a folder contains cells, which can be summed in square bins, rather than spots or bins."""
    outs = outs_of(path)
    return (
        outs.is_dir()
        and not (outs / HD).is_dir()
        and not _bins_in(outs)
        and _is_of_cells(outs / CELLS if (outs / CELLS).is_dir() else outs)
    )


def _is_of_cells(outs: Path) -> bool:
    return bool(SectionFiles(outs).all("filtered_feature_cell_matrix.h5", "filtered_feature_cell_matrix", *_GEOJSON))


def read_space_ranger(path: Path, *, bin_um: float | None = None, image: str | Path | None = None) -> AnnData:
    """Counts, positions, scale factors and reduced images of a folder, with or without ``outs/``.

    `path` may be the count file of a section whose other files are next to it or in ``spatial/``.

    Raises
    ------
    FileNotFoundError
        A file is missing.
    ValueError
        There is no such bin, no barcode has a position, files are damaged, or `bin_um` was given for spots.
    """
    if path.is_dir() and path.name in (*_FILTERED_FOLDERS, *_RAW_FOLDERS):
        folder = path.parent
    else:
        folder = path if path.is_dir() else path.parent
    outs = outs_of(folder)
    name = sample_of(outs)
    shared = [outs / "spatial", outs]
    if (outs / HD).is_dir():
        if (outs / CELLS).is_dir():
            logger.info("%s: bins are read; give the folder %s for segmented cells", name, CELLS)
        outs = _bin_folder(outs / HD, bin_um)
    elif _bins_in(outs):  # folders of bins without their common folder
        outs = _bin_folder(outs, bin_um)
    elif (outs / CELLS).is_dir():
        outs = outs / CELLS
    elif bin_um is not None and not re.fullmatch(r"square_\d+um", outs.name) and not _is_of_cells(outs):
        raise ValueError(
            f"`bin_um` was given, but {str(folder)!r} contains spots, not bins of Visium HD. Omit it: spots of 55 µm "
            "cannot be divided."
        )
    here = SectionFiles(outs)
    matrix = _matrix(path, here)
    if here.of(matrix, *_FILTERED, *_RAW, *_MTX).prefix and path.is_file():
        name = here.of(matrix, *_FILTERED, *_RAW, *_MTX).prefix or name
    prefix = here.of(matrix, *_FILTERED, *_RAW, *_MTX, *_FILTERED_FOLDERS, *_RAW_FOLDERS).prefix
    parts = SectionFiles(outs / "spatial", outs, *shared, prefix=prefix)
    return _section(matrix, parts, name, needs_image=image is None)


def read_matrix(matrix: Path, folder: Path, *, name: str, needs_image: bool = True) -> AnnData:
    """Read a count matrix with positions, scale factors and images of another folder or its ``spatial/``."""
    prefix = SectionFiles(matrix.parent).of(matrix, *_FILTERED, *_RAW, *_MTX, *_FILTERED_FOLDERS, *_RAW_FOLDERS).prefix
    parts = SectionFiles(folder / "spatial", folder, matrix.parent, prefix=prefix)
    return _section(matrix, parts, name, needs_image=needs_image)


def _bins_in(folder: Path) -> dict[int, Path]:
    """Folders of bins by edge length in µm."""
    if not folder.is_dir():
        return {}
    return {int(m[1]): p for p in folder.iterdir() if (m := re.fullmatch(r"square_(\d+)um", p.name)) and p.is_dir()}


def _bin_folder(folder: Path, bin_um: float | None) -> Path:
    """Folder of the requested bins; 8 µm by default."""
    found = _bins_in(folder)
    if not found:
        raise FileNotFoundError(f"{str(folder)!r} has no square_008um/ and the like. Found: {listing(folder)}.")
    wanted = DEFAULT_BIN_UM if bin_um is None else bin_um
    if wanted not in found:
        raise ValueError(
            f"No bins of {wanted:g} µm in {str(folder)!r}. Available: {sorted(found)}; choose with `bin_um=`."
        )
    return found[int(wanted)]


def _matrix(path: Path, here: SectionFiles) -> Path:
    """File or folder of counts: filtered before raw, .h5 before folders, folders before GEO's flat files."""
    if path.is_file() or path.name in (*_FILTERED_FOLDERS, *_RAW_FOLDERS):
        return path
    for names in (_FILTERED, _FILTERED_FOLDERS, _MTX, _RAW, _RAW_FOLDERS):
        if (found := here.find(*names)) is not None:
            return found
    packed = [p.name for _, p in here.all(*_ARCHIVES)]
    hint = f" Unpack {_checks.shortlist(packed)} there first." if packed else ""
    folder = here.folders[0]
    raise FileNotFoundError(
        f"{str(folder)!r} has no matrix of counts.{hint} {EXPECTED_FILES} Found: {listing(folder)}."
    )


def _counts(matrix: Path, parts: SectionFiles) -> Counts:
    if matrix.is_file() and not matrix.name.lower().removesuffix(".gz").endswith(_MTX):
        return counts_h5(matrix)
    if matrix.is_dir():
        inside = SectionFiles(matrix)
        if not inside.all(*_MTX) and len(deeper := [p for p in matrix.iterdir() if p.is_dir()]) == 1:
            inside = SectionFiles(deeper[0])  # Cell Ranger 2: subfolder for the genome
        matrix = inside.need(*_MTX, looked_for=EXPECTED_FILES)
    else:
        inside = SectionFiles(matrix.parent).of(matrix, *_MTX)
    return counts_mtx(
        matrix, inside.need(*_FEATURES, looked_for=EXPECTED_FILES), inside.need(*_BARCODES, looked_for=EXPECTED_FILES)
    )


def _section(matrix: Path, parts: SectionFiles, name: str, *, needs_image: bool) -> AnnData:
    counts = _counts(matrix, parts)
    where, spots = _spots(parts)
    if spots is None or where is None:
        packed = [p.name for _, p in parts.all(*_ARCHIVES)]
        hint = f" Unpack {_checks.shortlist(packed)} to have them." if packed else ""
        return unplaced(counts, name=name, why=f"no tissue_positions were found next to {matrix.name}.{hint}")
    if _is_raw(matrix):
        counts, spots = _under_tissue(counts, spots, matrix, where)
    adata = with_positions(counts, spots, counts_name=matrix.name, positions_name=where.name)
    known = bool(parts.all(*POSITIONS, *_GEOJSON))
    path = parts.need(*_SCALE, looked_for=EXPECTED_FILES) if known else parts.find(*_SCALE)
    if path is None:
        _checks.warn(f"{where.name} was used as the coordinates; their scale is not known without scalefactors_json.")
        add_library(adata, name, {}, pictures(parts))
        return adata
    scalefactors = json_of(path)
    images = pictures(parts)
    if not images and needs_image:
        seen = ", ".join(f"{folder.name}/" for folder in parts.folders)
        _checks.warn(f"{name}: no tissue_hires_image or tissue_lowres_image (.png, .jpg) in {seen}; it has no image.")
    add_library(adata, name, scalefactors, images)
    return adata


def _spots(parts: SectionFiles) -> tuple[Path | None, pd.DataFrame | None]:
    """Positions of spots or bins, or centroids of segmented cells."""
    if (found := parts.find(*POSITIONS)) is not None:
        with reading(found):
            spots = positions(found)
        _warn_of_other_positions(parts, found, spots)
        return found, spots
    if (found := parts.find(*_GEOJSON)) is not None:
        with reading(found):
            return found, _centroids(json_of(found))
    tables = {p: layout for f in parts.folders for p, layout in tables_in(f).items() if is_coordinates(layout)}
    if len(tables) == 1:  # another producer
        found, layout = next(iter(tables.items()))
        return found, coordinates_table(found, layout)
    return None, None


def _warn_of_other_positions(parts: SectionFiles, used: Path, spots: pd.DataFrame) -> None:
    """Warn about a second file of positions with other coordinates, as written by a new alignment."""
    for name in POSITIONS:
        other = parts.find(name)
        if other is None or other == used or other.parent != used.parent:
            continue
        try:
            with reading(other):
                theirs = positions(other)
        except ValueError as error:
            _checks.warn(f"{used.name} is read; {other.name} in the same folder cannot be compared with it. {error}")
            continue
        both = spots.index.intersection(theirs.index[~theirs.index.duplicated()])  # spots may differ
        ours, theirs = (
            frame[~frame.index.duplicated()].loc[both, ["x", "y"]].apply(pd.to_numeric, errors="coerce").to_numpy()
            for frame in (spots, theirs)
        )
        n = int((np.abs(ours - theirs) > _SAME_PX).any(axis=1).sum()) if len(both) else len(spots)
        if n:
            _checks.warn(
                f"{used.name} is read; {other.name} in the same folder has other coordinates for {n} of "
                f"{len(spots)} spots. Move the one that is outdated out of the folder."
            )


def _is_raw(matrix: Path) -> bool:
    return any(re.search(rf"(^|[_\-. ]){re.escape(n)}(\.gz)?$", matrix.name.lower()) for n in (*_RAW, *_RAW_FOLDERS))


def _under_tissue(counts: Counts, spots: pd.DataFrame, matrix: Path, where: Path) -> tuple[Counts, pd.DataFrame]:
    """Spots under tissue of a raw matrix."""
    spots = spots[spots[IN_TISSUE] == 1] if IN_TISSUE in spots else spots
    if not len(spots):
        raise refuse(f"{matrix.name} contains every spot, and none is under tissue (in_tissue 1) in {where.name}.")
    inside = np.flatnonzero(pd.Index(counts.barcodes).isin(spots.index))
    if not len(inside):
        return counts, spots
    _checks.warn(
        f"There is no filtered matrix; {matrix.name} was read and restricted to the {len(inside)} of "
        f"{len(counts.barcodes)} spots under tissue (in_tissue in {where.name})."
    )
    return Counts(counts.x[inside], [counts.barcodes[i] for i in inside], counts.var), spots


def _centroids(geojson: Any) -> pd.DataFrame:
    """Centres of the cell polygons, by the names of the cells in the matrix."""
    ids, xy = [], []
    for feature in geojson["features"]:
        ids.append(f"cellid_{int(feature['properties']['cell_id']):09d}-1")
        xy.append(_centre(feature["geometry"]))
    x, y = np.array(xy, dtype=np.float64).reshape(-1, 2).T
    return pd.DataFrame({"x": x, "y": y}, index=ids)


def _centre(geometry: Any) -> np.ndarray:
    """Centroid of a polygon's outline (of the largest, if there are several)."""
    rings = [geometry["coordinates"][0]] if geometry["type"] == "Polygon" else [p[0] for p in geometry["coordinates"]]
    areas, centres = zip(*(_ring(np.asarray(ring, dtype=np.float64)[:, :2]) for ring in rings), strict=True)
    return centres[int(np.argmax(areas))]


def _ring(ring: np.ndarray) -> tuple[float, np.ndarray]:
    after = np.roll(ring, -1, axis=0)
    origin = ring.mean(axis=0)
    a, b = ring - origin, after - origin
    cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
    area = float(cross.sum()) / 2
    if area == 0:
        return 0.0, origin
    return abs(area), origin + ((a + b) * cross[:, None]).sum(axis=0) / (6 * area)


POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv", "tissue_positions.tsv",
         "tissue_positions.txt", "tissue_positions_list.txt", "tissue_positions_list.tsv")  # fmt: skip
COLUMNS = ["barcode", "in_tissue", "array_row", "array_col", "y", "x"]  # in Space Ranger's order, row first
_OTHER_NAMES = {
    "barcode": ("barcode", "barcodes", "bc", ""),
    "in_tissue": ("in_tissue", "tissue", "intissue"),
    "array_row": ("array_row", "row"),
    "array_col": ("array_col", "col", "array_column"),
    "y": ("pxl_row_in_fullres", "imagerow", "pxl_row"),
    "x": ("pxl_col_in_fullres", "imagecol", "pxl_col"),
}
_TRUE = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0}


def positions(path: Path) -> pd.DataFrame:
    """Spots by barcode, with in_tissue, array_row, array_col, x and y (px of the full-resolution image)."""
    spots = _frame(path).set_index("barcode")
    spots.index = spots.index.astype(str)
    if spots["in_tissue"].dtype.kind not in "iu":
        spots["in_tissue"] = spots["in_tissue"].astype(str).str.lower().map(_TRUE)
        if spots["in_tissue"].isna().any():
            raise refuse(f"The column in_tissue of {str(path)!r} must contain 0 and 1.")
        spots["in_tissue"] = spots["in_tissue"].astype(np.int64)
    return spots


def _frame(path: Path) -> pd.DataFrame:
    if path.name.lower().endswith(".parquet"):
        with reading(path):
            return _by_name(pd.read_parquet(path), path)
    layout = layout_of(path)
    if headed(layout):
        text = [c for c in layout.named if c.lower() in _OTHER_NAMES["barcode"]]
        found = read_text(path, layout, names=layout.named, skip=layout.comments + 1, dtype=dict.fromkeys(text, str))
        return _by_name(found, path)
    if len(layout.header) != len(COLUMNS):
        raise refuse(
            f"{str(path)!r} has {len(layout.header)} columns without names where the {len(COLUMNS)} of Space Ranger's "
            f"positions were expected: {COLUMNS}."
        )
    return read_text(path, layout, names=COLUMNS, skip=layout.comments, dtype={"barcode": str})


def _by_name(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Rename known columns under any of their names; barcodes may be the index."""
    names = {str(c).lower(): c for c in frame.columns}
    found = {ours: next((names[n] for n in theirs if n in names), None) for ours, theirs in _OTHER_NAMES.items()}
    if found["barcode"] is None and frame.index.dtype.kind == "O":
        frame = frame.rename_axis("barcode").reset_index()
        found["barcode"] = "barcode"
    lacking = [ours for ours, theirs in found.items() if theirs is None]
    if lacking:
        raise refuse(
            f"{str(path)!r} has the columns {list(frame.columns)}; those of Space Ranger's positions were expected, "
            f"{[names[0] for names in _OTHER_NAMES.values()]}."
        )
    return frame[[found[c] for c in COLUMNS]].set_axis(COLUMNS, axis=1)
