"""A section in the files of the platforms, as SpatialData, and in one table with another section."""

import csv
import gzip
import io
import json
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from fuzz_common import choice
from fuzz_sections import UM, plain
from PIL import Image
from scipy import sparse
from scipy.io import mmwrite

HALF = 0.5  # µm per px of cells, exact in binary
DAMAGE = r"."  # any message of stampy about a damaged file
PREFIXES = ("", "", "GSM1234567_", "GSM99_S1_", "sample.", "A1-")


def text_of(frame, rng, *, sep=",", header=True, index=True, label=""):
    """A table as text, with quotes or not, any line ends."""
    quoting = csv.QUOTE_MINIMAL if rng.random() < 0.7 else csv.QUOTE_NONNUMERIC
    ends = choice(rng, "\n", "\n", "\r\n")
    return frame.to_csv(sep=sep, header=header, index=index, index_label=label, quoting=quoting, lineterminator=ends)


def write_text(path, text, rng, *, zipped=None):
    """With a byte order mark or not, gzipped or not; the path as it became."""
    content = (b"\xef\xbb\xbf" if rng.random() < 0.2 else b"") + text.encode()
    if zipped or (zipped is None and rng.random() < 0.3):
        path = path.with_name(path.name + ".gz")
        content = gzip.compress(content, 1)
    path.write_bytes(content)
    return path


def spoil(case, folder, rng, most=0.15):
    """Cut one of the files short, or put garbage into it."""
    if rng.random() > most:
        return
    found = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    path = found[rng.integers(len(found))]
    content = bytearray(path.read_bytes())
    if rng.random() < 0.6 or len(content) < 40:
        del content[int(rng.integers(len(content))) :]
    else:
        at = int(rng.integers(len(content) - 20))
        content[at : at + 20] = rng.bytes(20)
    path.write_bytes(bytes(content))
    case.told.append(f"spoilt {path.name}")
    case.matters.append(DAMAGE)
    case.spoilt = True


def order_of(case, rng):
    """The spots in their order, or in another."""
    n = len(case.truth.xy)
    case.shuffled = bool(rng.random() < 0.4)
    return rng.permutation(n) if case.shuffled else np.arange(n)


def named(case, names, order):
    case.names = dict(zip(names, order.tolist(), strict=True))
    case.rows = order


def features(case, rng):
    """Ids, symbols and types, with antibodies at times."""
    ids, symbols, x = case.truth.ids, case.truth.symbols, case.truth.counts
    types = ["Gene Expression"] * len(ids)
    if rng.random() < 0.25:
        ids, symbols, types = [*ids, "CD3", "IgG"], [*symbols, "CD3", "IgG"], [*types, *["Antibody Capture"] * 2]
        x = np.hstack([x, np.full((len(x), 2), 99)])
        case.matters.append("left out|dropped|ignored")
    return ids, symbols, types, x


def write_h5(path, x, barcodes, ids, symbols, types, rng):
    kind = choice(rng, "i4", "i8", "u2", "f4")
    by_spot = sparse.csr_matrix(x.astype(kind))
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"], group["indices"], group["indptr"] = by_spot.data, by_spot.indices, by_spot.indptr
        group["shape"] = np.array([x.shape[1], x.shape[0]], dtype=np.int32)
        found = group.create_group("features")
        found["id"], found["name"] = np.array(ids, dtype="S"), np.array(symbols, dtype="S")
        found["feature_type"] = np.array(types, dtype="S")
        found["genome"] = np.array(["GRCh38"] * len(ids), dtype="S")


def write_mtx(folder, prefix, x, barcodes, ids, symbols, types, rng, *, zipped):
    stream = io.BytesIO()
    mmwrite(stream, sparse.coo_matrix(x.T.astype(int)), field="integer")
    write_text_plain(folder / f"{prefix}matrix.mtx", stream.getvalue().decode(), zipped)
    old = rng.random() < 0.3
    if old and len(set(types)) > 1:
        old = False
    columns = [ids, symbols] if old else [ids, symbols, types]
    quote = '"' if rng.random() < 0.2 else ""
    end = choice(rng, "\n", "\n", "\r\n")
    lines = "".join("\t".join(f"{quote}{v}{quote}" for v in row) + end for row in zip(*columns, strict=True))
    if rng.random() < 0.15:
        lines = "\t".join(["gene_id", "gene_name", "feature_type"][: len(columns)]) + end + lines
    write_text_plain(folder / f"{prefix}{'genes' if old else 'features'}.tsv", lines, zipped)
    write_text_plain(folder / f"{prefix}barcodes.tsv", "".join(f"{b}\n" for b in barcodes), zipped)


def write_text_plain(path, text, zipped):
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(text.encode(), 1))
    else:
        path.write_text(text)


def space_ranger(case, folder, rng):
    """Every version's names, GEO's prefixes, raw matrices, parts missing, barcodes that differ by a suffix."""
    order = order_of(case, rng)
    barcodes = [f"{b}" for b in plain(case.truth).obs_names[order]]
    named(case, barcodes, order)
    ids, symbols, types, x = features(case, rng)
    x = x[order]
    prefix = choice(rng, *PREFIXES)
    flat = rng.random() < 0.3
    spatial = folder if flat else folder / "spatial"
    spatial.mkdir(exist_ok=True)
    raw = rng.random() < 0.2
    extra = int(rng.integers(1, 9)) if raw else 0
    far = [f"{'ACGT' * 4}{'ACGT'[i % 4]}{'ACGT'[i // 4]}-1" for i in range(extra)]
    x_all, barcodes_all = np.vstack([x, np.ones((extra, x.shape[1]), int)]), [*barcodes, *far]
    if raw:
        case.matters.append("restricted|no filtered")
    bare = rng.random() < 0.15
    written = [b[:-2] for b in barcodes_all] if bare else barcodes_all
    if bare:
        case.names |= {b[:-2]: i for b, i in list(case.names.items())}
    layout = choice(rng, "h5", "folder", "flat")
    kind = "raw" if raw else "filtered"
    if layout == "flat" and raw:
        layout = "h5"
    if layout == "h5":
        write_h5(folder / f"{prefix}{kind}_feature_bc_matrix.h5", x_all, written, ids, symbols, types, rng)
    elif layout == "folder":
        place = folder / f"{kind}_feature_bc_matrix"
        place.mkdir()
        write_mtx(place, "", x_all, written, ids, symbols, types, rng, zipped=rng.random() < 0.7)
    else:
        write_mtx(folder, prefix, x_all, written, ids, symbols, types, rng, zipped=rng.random() < 0.7)
    missing = choice(rng, *[""] * 8, "positions", "factors", "images")
    case.strangers = raw and missing == "positions"
    case.pictured = missing not in ("images", "positions")
    if missing:
        case.matters.append({"positions": "no positions|tissue_positions|coordinates", "factors": "scalefactors",
                             "images": "no image|no tissue_hires|uns"}[missing])  # fmt: skip
    write_places(case, spatial, prefix, missing, far, rng)
    case.told.append(f"({layout}, {prefix!r}, {'flat' if flat else 'spatial'}, missing {missing!r}, {kind})")
    return folder


def write_places(case, spatial, prefix, missing, far, rng):
    truth = case.truth
    xy = truth.xy
    if missing != "positions":
        header = ["in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
        index = [*plain(truth).obs_names, *far]
        n, m = len(xy), len(far)
        row = [*np.rint((xy[:, 1] - 40) / 26).astype(int), *[90] * m]
        col = [*np.rint((xy[:, 0] - 40) / 15).astype(int), *range(m)]
        columns = [[1] * n + [0] * m, row, col, [*xy[:, 1].astype(int), *range(m)], [*xy[:, 0].astype(int), *[3] * m]]
        frame = pd.DataFrame(dict(zip(header, columns, strict=True)), index=pd.Index(index, name="barcode"))
        frame = frame.iloc[rng.permutation(len(frame))] if rng.random() < 0.5 else frame
        if rng.random() < 0.1:
            frame = pd.concat([frame, frame.iloc[:2]])
        if rng.random() < 0.1:
            frame["in_tissue"] = frame["in_tissue"].astype(bool)
        if rng.random() < 0.1:
            frame = frame.drop(index=frame.index[3])
            case.matters.append("position|no counts")
        how = choice(rng, "csv", "list", "parquet", "tsv")
        if how == "parquet":
            frame.reset_index().to_parquet(spatial / f"{prefix}tissue_positions.parquet")
        elif how == "list":
            text = text_of(frame, rng, header=False)
            write_text(spatial / f"{prefix}tissue_positions_list.csv", text, rng)
        else:
            text = text_of(frame, rng, label="barcode", sep="," if how == "csv" else "\t")
            write_text(spatial / f"{prefix}tissue_positions.{how}", text, rng)
    if missing != "factors":
        factors = {"spot_diameter_fullres": 55 / UM * choice(rng, 1, 65 / 55), "tissue_hires_scalef": 1.0,
                   "fiducial_diameter_fullres": 105 / UM, "tissue_lowres_scalef": 0.25}  # fmt: skip
        write_text(spatial / f"{prefix}scalefactors_json.json", json.dumps(factors), rng)
    if missing != "images":
        stream = io.BytesIO()
        Image.fromarray(truth.picture).save(stream, "png")
        if rng.random() < 0.3:
            (spatial / f"{prefix}tissue_hires_image.png.gz").write_bytes(gzip.compress(stream.getvalue(), 1))
        else:
            (spatial / f"{prefix}tissue_hires_image.png").write_bytes(stream.getvalue())
        if rng.random() < 0.6:
            Image.fromarray(truth.picture[::4, ::4]).save(spatial / f"{prefix}tissue_lowres_image.png")


def cells_of(case, rng, ids):
    """Names of the cells in an order, and their centres in µm."""
    order = order_of(case, rng)
    names = [ids(i) for i in order]
    named(case, names, order)
    return order, names, case.truth.xy[order] * HALF


def xenium(case, folder, rng):
    letters = "abcdefghijklmnop"
    order, names, xy = cells_of(case, rng, lambda i: f"aaaaaa{letters[i // 16]}{letters[i % 16]}-1")
    ids, symbols, types, x = features(case, rng)
    if rng.random() < 0.5:
        write_h5(folder / "cell_feature_matrix.h5", x[order], names, ids, symbols, types, rng)
    else:
        (folder / "cell_feature_matrix").mkdir()
        write_mtx(folder / "cell_feature_matrix", "", x[order], names, ids, symbols, types, rng, zipped=True)
    cells = pd.DataFrame({"cell_id": names, "x_centroid": xy[:, 0], "y_centroid": xy[:, 1], "cell_area": 30.5})
    cells = cells.iloc[rng.permutation(len(cells))]
    if rng.random() < 0.4:
        if rng.random() < 0.5:
            cells["cell_id"] = cells["cell_id"].str.encode("utf-8")
        cells.to_parquet(folder / "cells.parquet", index=False)
    else:
        write_text(folder / "cells.csv", text_of(cells, rng, index=False), rng)
    if rng.random() < 0.5:
        (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}))
    return folder


def wide(case, order, names, rng, *, controls=()):
    """Counts as a table of symbols, with control probes."""
    frame = pd.DataFrame(case.truth.counts[order], index=names, columns=case.truth.symbols)
    for control in controls:
        frame.insert(int(rng.integers(len(frame.columns) + 1)), control, rng.poisson(40, len(frame)))
    return frame


def merscope(case, folder, rng):
    first = choice(rng, 7, 110883424764611924400221639916314253469)
    order, names, xy = cells_of(case, rng, lambda i: str(first + int(i)))
    suffix = choice(rng, "", "", "_S1R1")
    counts = wide(case, order, names, rng, controls=["Blank-1", "Blank-22"][: int(rng.integers(3))])
    write_text(folder / f"cell_by_gene{suffix}.csv", text_of(counts, rng, label=choice(rng, "cell", "")), rng)
    cells = pd.DataFrame({"fov": 3, "volume": 55.5, "center_x": xy[:, 0], "center_y": xy[:, 1]}, index=names)
    cells = cells.iloc[rng.permutation(len(cells))]
    write_text(folder / f"cell_metadata{suffix}.csv", text_of(cells, rng, label=choice(rng, "", "EntityID")), rng)
    case.matters.append("control|blank")
    return folder


def cosmx(case, folder, rng):
    order, names, xy = cells_of(case, rng, lambda i: f"{1 + i % 3}_{i // 3 + 1}")
    prefix = choice(rng, "", "Lung5_", "S0_")
    counts = wide(case, order, names, rng, controls=["NegPrb1", "SystemControl12"][: int(rng.integers(3))])
    fov, cell = ([int(n.split("_")[k]) for n in names] for k in (0, 1))
    keyed = counts.reset_index(drop=True)
    keyed.insert(0, "fov", fov)
    keyed.insert(int(rng.integers(2)), "cell_ID", cell)
    zero = keyed.iloc[:1].copy()
    zero["cell_ID"] = 0
    if rng.random() < 0.5:
        keyed = pd.concat([zero, keyed])
    write_text(folder / f"{prefix}exprMat_file.csv", text_of(keyed, rng, index=False), rng)
    cells = pd.DataFrame({"fov": fov, "cell_ID": cell, "Area": 100, "CenterX_global_px": xy[:, 0],
                          "CenterY_global_px": xy[:, 1]})  # fmt: skip
    if rng.random() < 0.5:
        cells["Area.um2"] = 100 * 0.12**2
    cells = cells.iloc[rng.permutation(len(cells))]
    write_text(folder / f"{prefix}metadata_file.csv", text_of(cells, rng, index=False), rng)
    case.matters.append("how large a pixel|control")
    return folder


def tables(case, folder, rng):
    """Counts and coordinates of an unknown platform, turned either way, separated anyhow."""
    order, names, xy = cells_of(case, rng, lambda i: choice_name(case, i))
    sep = choice(rng, ",", "\t", "\t", ";")
    counts = wide(case, order, names, rng)
    if rng.random() < 0.4:
        counts = counts.T
    ending = "csv" if sep in ",;" else choice(rng, "tsv", "txt")
    text = text_of(counts, rng, sep=sep, label=choice(rng, "", "gene", "barcode"))
    if rng.random() < 0.2:  # R's write.table: no name for the first column
        text = counts.to_csv(sep=sep).split(sep, 1)[1]
    write_text(folder / f"{choice(rng, 'counts', 'GSM1_expression', 'MappedDGEForR')}.{ending}", text, rng)
    header = choice(rng, ("x", "y"), ("xcoord", "ycoord"), ("pixel_x", "pixel_y"), ("imagecol", "imagerow"), ("X", "Y"))
    places = pd.DataFrame(xy, index=names, columns=header).iloc[rng.permutation(len(names))]
    if rng.random() < 0.3:
        places = places[places.columns[::-1]]
    headed = rng.random() < 0.8 or list(places.columns) != list(header)
    text = text_of(places, rng, sep=sep, label=choice(rng, "", "barcode", "cell_id"), header=headed)
    write_text(folder / f"{choice(rng, 'coordinates', 'BeadLocations', 'spots')}.{ending}", text, rng)
    case.matters.append("unit of the coordinates|um_per_px")
    return folder


def choice_name(case, i):
    return plain(case.truth).obs_names[i] if len(case.truth.xy) % 2 else f"cell_{i}"


def st(case, folder, rng):
    """ST: spots by genes or genes by spots, with its table of spots."""
    order = order_of(case, rng)
    place = [(5 + i % 11, 3 + i // 11) for i in order]
    names = [f"{x}x{y}" for x, y in place]
    named(case, names, order)
    counts = wide(case, order, names, rng)
    counts = counts.T if rng.random() < 0.3 else counts
    write_text(folder / "rep1_stdata.tsv", text_of(counts, rng, sep="\t"), rng)
    xy = case.truth.xy[order]
    spots = pd.DataFrame(place, columns=["x", "y"])
    spots["new_x"], spots["new_y"] = spots["x"] + 0.03, spots["y"] - 0.02
    spots["pixel_x"], spots["pixel_y"] = xy[:, 0], xy[:, 1]
    if rng.random() < 0.5:
        spots["selected"] = 1
    write_text(folder / "spot_data-selection-rep1.tsv", text_of(spots, rng, sep="\t", index=False), rng)
    return folder


LAYOUTS = (space_ranger, space_ranger, space_ranger, xenium, merscope, cosmx, tables, tables, st)
PICTURED = (space_ranger,)
