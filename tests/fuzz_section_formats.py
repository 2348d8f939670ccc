"""A section as MuData, loom, bins and cells of Visium HD, and Stereo-seq's table of transcripts."""

import json

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from fuzz_common import choice
from fuzz_section_files import (
    HALF,
    features,
    named,
    order_of,
    text_of,
    write_h5,
    write_mtx,
    write_text,
    write_text_plain,
)
from fuzz_sections import UM, plain
from PIL import Image


def mudata(case, folder, rng):
    """RNA beside other modalities; places and picture at the RNA, or at the whole, whose rows have another order."""
    adata = plain(case.truth)
    order = order_of(case, rng)
    adata = adata[order].copy()
    named(case, list(adata.obs_names), order)
    rna = choice(rng, "rna", "RNA", "gex", "spatial")
    others = rng.random() < 0.7
    at_whole = rng.random() < 0.5
    xy, libraries = adata.obsm["spatial"], adata.uns["spatial"]
    if at_whole:
        del adata.obsm["spatial"], adata.uns["spatial"]
    rows = rng.permutation(len(order))
    path = folder / choice(rng, "m.h5mu", "m.zarr")
    root = h5py.File(path, "w") if path.suffix == ".h5mu" else zarr.open_group(path, mode="w")
    root.attrs["encoding-type"] = "MuData"
    mods = root.create_group("mod")
    write = anndata.io.write_elem
    write(mods, rna, adata)
    if others:
        write(mods, "prot", anndata.AnnData(np.full((3, 2), 9.0), var=pd.DataFrame(index=["CD3", "CD4"])))
        case.matters.append("were ignored")
    write(root, "obs", pd.DataFrame(index=adata.obs_names[rows]))
    write(root, "obsm", {"spatial": xy[rows]} if at_whole else {})
    write(root, "obsmap", {rna: (rows + 1).astype(np.uint32)})
    write(root, "uns", {"spatial": libraries} if at_whole else {})
    if path.suffix == ".h5mu":
        root.close()
    case.told.append(f"({path.suffix}, {rna}, {'whole' if at_whole else 'own'})")
    return path


def loom(case, folder, rng):
    """Genes by cells; names, ids and coordinates under several names."""
    order = order_of(case, rng)
    cells = [f"cell:{i}" for i in order]
    named(case, cells, order)
    xy = case.truth.xy[order]
    path = folder / "s.loom"
    gene, accession, cell = (
        choice(rng, *names) for names in (("Gene", "var_names"), ("Accession", "gene_ids"), ("CellID", "obs_names"))
    )
    with h5py.File(path, "w") as file:
        file["matrix"] = case.truth.counts[order].T.astype(choice(rng, "f4", "f8", "i4"))
        file[f"row_attrs/{gene}"] = np.array(case.truth.symbols, dtype=object)
        if rng.random() < 0.6:
            file[f"row_attrs/{accession}"] = np.array(case.truth.ids, dtype=object)
        file[f"col_attrs/{cell}"] = np.array(cells, dtype=object)
        if rng.random() < 0.3:
            file["col_attrs/spatial"] = xy
        else:
            for name, value in zip(choice(rng, ("x", "y"), ("X", "Y"), ("imagecol", "imagerow")), xy.T, strict=True):
                file[f"col_attrs/{name}"] = value
    return path


def _pictured(spatial, truth, factors, rng):
    """Scale factors and pictures in `spatial`."""
    spatial.mkdir(parents=True, exist_ok=True)
    write_text(spatial / "scalefactors_json.json", json.dumps(factors), rng, zipped=False)
    Image.fromarray(truth.picture).save(spatial / "tissue_hires_image.png")
    if rng.random() < 0.5:
        Image.fromarray(truth.picture[::4, ::4]).save(spatial / "tissue_lowres_image.png")


FACTORS = {"tissue_hires_scalef": 1.0, "tissue_lowres_scalef": 0.25, "microns_per_pixel": UM}


def bins_of_hd(case, folder, rng):
    """Bins of 8 and of 16 µm: either is requested; the other has other counts."""
    truth = case.truth
    order = order_of(case, rng)
    wanted = choice(rng, None, 8, 16)
    if wanted is not None:
        case.reading["bin_um"] = wanted
    ids, symbols, types, x = features(case, rng)
    outs = folder / choice(rng, "outs", ".") / "binned_outputs"
    for size in (8, 16):
        names = [f"s_{size:03d}um_{i // 11:05d}_{i % 11:05d}-1" for i in range(len(truth.xy))]
        place = outs / f"square_{size:03d}um"
        meant = size == (wanted or 8)
        factors = FACTORS | {"bin_size_um": float(size), "spot_diameter_fullres": size / UM}
        _pictured(place / "spatial", truth, factors, rng)
        if meant:
            named(case, [names[i] for i in order], order)
        counts = x[order] if meant else np.ones_like(x)
        write_h5(place / "filtered_feature_bc_matrix.h5", counts, [names[i] for i in order], ids, symbols, types, rng)
        xy = truth.xy.astype(float)
        frame = pd.DataFrame({"barcode": names, "in_tissue": 1, "array_row": np.arange(len(xy)) // 11,
                              "array_col": np.arange(len(xy)) % 11, "pxl_row_in_fullres": xy[:, 1],
                              "pxl_col_in_fullres": xy[:, 0]})  # fmt: skip
        frame.iloc[rng.permutation(len(frame))].to_parquet(place / "spatial" / "tissue_positions.parquet", index=False)
    case.told.append(f"(bins {wanted})")
    return folder


def cells_of_hd(case, folder, rng):
    """Segmented cells: outlines, whose centres of mass are the places."""
    truth = case.truth
    order = order_of(case, rng)
    names = [f"cellid_{i + 1:09d}-1" for i in range(len(truth.xy))]
    named(case, [names[i] for i in order], order)
    ids, symbols, types, x = features(case, rng)
    place = folder / "segmented_outputs"
    _pictured(place / "spatial", truth, FACTORS | {"spot_diameter_fullres": 8.0}, rng)
    kind = choice(rng, "h5", "folder")
    if kind == "h5":
        write_h5(
            place / "filtered_feature_cell_matrix.h5", x[order], [names[i] for i in order], ids, symbols, types, rng
        )
    else:
        (place / "filtered_feature_cell_matrix").mkdir()
        write_mtx(place / "filtered_feature_cell_matrix", "", x[order], [names[i] for i in order], ids, symbols, types,
                  rng, zipped=True)  # fmt: skip
    outlines = []
    for i in rng.permutation(len(truth.xy)).tolist():
        half = rng.integers(1, 8, 2)
        ring = truth.xy[i] + half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1], [-1, -1]])
        outline = {"type": "Polygon", "coordinates": [ring.tolist()]}
        if rng.random() < 0.1:  # a small piece beside it
            outline = {"type": "MultiPolygon", "coordinates": [[ring.tolist()], [(ring / 100 + 3).tolist()]]}
        outlines.append({"type": "Feature", "geometry": outline, "properties": {"cell_id": int(i) + 1}})
    text = json.dumps({"type": "FeatureCollection", "features": outlines})
    (place / "cell_segmentations.geojson").write_text(text)
    case.told.append(f"(cells, {kind})")
    return folder


def stereo_seq(case, folder, rng):
    """Transcripts, some lines a gene and bin, in any order, within square bins of 50 µm, or as asked for."""
    truth = case.truth
    edge = choice(rng, 100, 100, 20)
    if edge != 100:
        case.reading["bin_um"] = edge * HALF
    order = np.lexsort(truth.xy.T)
    corner = truth.xy.astype(int)
    named(case, [f"{x}_{y}" for x, y in corner[order]], order)
    case.shuffled = not np.array_equal(order, np.arange(len(order)))
    spot, gene = np.nonzero(truth.counts)
    count = truth.counts[spot, gene]
    part = rng.binomial(count, 0.5)
    spot, gene, count = np.tile(spot, 2), np.tile(gene, 2), np.concatenate([part, count - part])
    x, y = (corner[spot] * edge + rng.integers(0, edge, (len(spot), 2))).T
    columns = {
        "geneID": np.array(truth.ids)[gene],
        "x": x,
        "y": y,
        choice(rng, "MIDCount", "MIDCounts", "UMICount"): count,
    }
    if rng.random() < 0.3:
        columns = {"geneID": columns.pop("geneID"), "geneName": np.array(truth.symbols)[gene], **columns}
    elif rng.random() < 0.5:
        columns["geneID"] = np.array(truth.symbols)[gene]
    if rng.random() < 0.5:
        columns["ExonCount"] = count
    frame = pd.DataFrame(columns)[count > 0]
    frame = frame.iloc[rng.permutation(len(frame))]
    header = choice(rng, "", "#FileFormat=GEMv0.1\n#SortedBy=None\n#BinSize=1\n#OffsetX=0\n#OffsetY=0\n")
    text = header + text_of(frame, rng, sep="\t", index=False)
    write_text_plain(folder / choice(rng, "S1.gem", "GSM5_S1.tissue.gem"), text, rng.random() < 0.5)
    case.told.append(f"({edge * HALF} µm)")
    return folder


LAYOUTS = (mudata, loom, bins_of_hd, cells_of_hd, stereo_seq)
PICTURED = (mudata, bins_of_hd, cells_of_hd)
