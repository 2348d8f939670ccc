"""`stampy.read` and the writer: every format is recognised, and only results are written back."""

import gzip
import hashlib
import json
import shutil
import subprocess
import sys

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image
from scipy import io, sparse

import stampy
from stampy import datasets, models, pp, tl
from stampy._io import read as _formats
from stampy.cli.main import main

pytestmark = [  # of the writers, not ours
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler"),
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
]
QUIET = {"show_progress_bar": False, "device": "cpu"}
FACTORS = {
    "spot_diameter_fullres": 40.0,
    "tissue_hires_scalef": 0.5,
    "tissue_lowres_scalef": 0.1,
    "fiducial_diameter_fullres": 65.0,
}


# Folders as the platforms write them


def write_counts_h5(path, adata, *, antibodies=0, others="Antibody Capture"):
    x = sparse.csr_matrix(adata.X)
    if antibodies:
        x = sparse.hstack([x, np.full((adata.n_obs, antibodies), 999)], format="csr")
    ids = [*adata.var["gene_ids"], *(f"CD{i}" for i in range(antibodies))]
    kinds = ["Gene Expression"] * adata.n_vars + [others] * antibodies
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name, value in (("data", x.data), ("indices", x.indices), ("indptr", x.indptr), ("shape", x.shape[::-1])):
            group[name] = np.asarray(value)
        group["barcodes"] = np.array(adata.obs_names, dtype="S")
        group["features/id"] = np.array(ids, dtype="S")
        group["features/name"] = np.array([*adata.var_names, *ids[adata.n_vars :]], dtype="S")
        group["features/feature_type"] = np.array(kinds, dtype="S")


def write_counts_mtx(folder, adata, *, zipped=True, old=False):
    folder.mkdir(parents=True)
    end, opened = (".gz", gzip.open) if zipped else ("", open)
    with opened(folder / f"matrix.mtx{end}", "wb") as stream:
        io.mmwrite(stream, sparse.coo_matrix(adata.X.T), field="integer")
    features = pd.DataFrame({0: adata.var["gene_ids"], 1: adata.var_names, 2: "Gene Expression"})
    features = features.iloc[:, :2] if old else features
    features.to_csv(folder / f"{'genes' if old else 'features'}.tsv{end}", sep="\t", header=False, index=False)
    pd.Series(adata.obs_names).to_csv(folder / f"barcodes.tsv{end}", header=False, index=False)


def write_spatial(folder, adata, positions, factors=FACTORS, *, images=True):
    """Positions in another order than the counts, with a spot more."""
    folder.mkdir(parents=True)
    xy = adata.obsm["spatial"]
    table = pd.DataFrame(
        {
            "barcode": adata.obs_names,
            "in_tissue": 1,
            "array_row": adata.obs["array_row"].to_numpy(),
            "array_col": adata.obs["array_col"].to_numpy(),
            "pxl_row_in_fullres": xy[:, 1],
            "pxl_col_in_fullres": xy[:, 0],
        }
    )
    table.loc[len(table)] = ["EMPTY-1", 0, 77, 127, 1.0, 1.0]
    table = table.iloc[::-1]
    if positions.endswith(".parquet"):
        table.to_parquet(folder / positions)
    else:
        table.to_csv(folder / positions, index=False, header="list" not in positions)
    (folder / "scalefactors_json.json").write_text(json.dumps(factors))
    if images:
        Image.new("RGB", (120, 100), (200, 150, 180)).save(folder / "tissue_hires_image.png")
        Image.new("RGB", (24, 20), (200, 150, 180)).save(folder / "tissue_lowres_image.png")


def same(found, toy, *, spatial=True):
    assert found.obs_names.tolist() == toy.obs_names.tolist()
    assert found.var_names.tolist() == toy.var_names.tolist()
    assert (found.X != toy.X).nnz == 0
    assert np.issubdtype(found.X.dtype, np.integer)
    if spatial:
        np.testing.assert_allclose(found.obsm["spatial"], toy.obsm["spatial"])


@pytest.fixture(scope="module")
def toy():
    return datasets.toy(n_spots=80, rng=1)


@pytest.fixture(scope="module")
def toy_model(toy, small_model):
    return small_model(pp.Vocabulary.from_sections([toy], min_spots=1))


# Space Ranger


@pytest.mark.parametrize("outs", [True, False])
@pytest.mark.parametrize("positions", ["tissue_positions_list.csv", "tissue_positions.csv", "tissue_positions.parquet"])
@pytest.mark.parametrize("counts", ["h5", "named h5", "mtx.gz", "mtx", "old mtx"])
def test_space_ranger_of_every_version(toy, tmp_path, outs, positions, counts):
    folder = tmp_path / "run" / "outs" if outs else tmp_path / "run"
    write_spatial(folder / "spatial", toy, positions)
    if counts.endswith("h5"):
        write_counts_h5(folder / ("S1_" * counts.startswith("named") + "filtered_feature_bc_matrix.h5"), toy)
    else:
        old = counts.startswith("old")
        write_counts_mtx(folder / "filtered_feature_bc_matrix", toy, zipped=counts.endswith("gz"), old=old)
    found = stampy.read(tmp_path / "run")
    same(found, toy)
    library = found.uns["spatial"]["run"]
    assert library["images"]["hires"].shape == (100, 120, 3)
    assert library["scalefactors"] == FACTORS
    assert found.obs["in_tissue"].eq(1).all()


def test_cytassist_with_antibodies(toy, tmp_path):
    write_spatial(tmp_path / "spatial", toy, "tissue_positions.csv")
    write_counts_h5(tmp_path / "filtered_feature_bc_matrix.h5", toy, antibodies=3)
    with pytest.warns(stampy.StampyWarning, match=r"dropped 3 features that are not genes \(3 Antibody Capture\)"):
        found = stampy.read(tmp_path)
    same(found, toy)
    assert found.var["feature_types"].eq("Gene Expression").all()


@pytest.mark.parametrize(("bin_um", "n"), [(None, 80), (8, 80), (16, 40)])
def test_visium_hd_by_bins(toy, tmp_path, bin_um, n):
    for size, part in ((2, toy[:10]), (8, toy), (16, toy[:40])):
        folder = tmp_path / "run" / "outs" / "binned_outputs" / f"square_{size:03d}um"
        factors = FACTORS | {"microns_per_pixel": 1.6, "bin_size_um": size, "spot_diameter_fullres": 55 / 1.6}
        write_spatial(folder / "spatial", part, "tissue_positions.parquet", factors, images=False)
        write_counts_h5(folder / "filtered_feature_bc_matrix.h5", part)
    shared = tmp_path / "run" / "outs" / "spatial"
    shared.mkdir()
    Image.new("RGB", (60, 50)).save(shared / "tissue_hires_image.png")
    found = stampy.read(tmp_path / "run", bin_um=bin_um)
    same(found, toy[:n])
    assert found.uns["spatial"]["run"]["images"]["hires"].shape == (50, 60, 3)
    assert pp.infer_um_per_px(found.obsm["spatial"], found.uns["spatial"]["run"]["scalefactors"]).um_per_px == 1.6
    with pytest.raises(ValueError, match=r"No bins of 5 µm .*\[2, 8, 16\]"):
        stampy.read(tmp_path / "run", bin_um=5)


def test_full_image_is_referenced_and_used(toy, toy_model, tmp_path):
    library = next(iter(toy.uns["spatial"].values()))
    full = np.asarray(Image.fromarray(library["images"]["hires"]).resize((1300, 900)))
    full = np.clip(full + np.random.default_rng(0).normal(0, 25, full.shape), 0, 255).astype(np.uint8)
    tifffile.imwrite(tmp_path / "slide.tif", full, tile=(128, 128), photometric="rgb")
    adata = toy.copy()
    adata.obsm["spatial"] = toy.obsm["spatial"] * (800 / toy.obsm["spatial"].max()) + 20
    write_spatial(tmp_path / "run" / "spatial", adata, "tissue_positions.csv", images=False)
    write_counts_h5(tmp_path / "run" / "filtered_feature_bc_matrix.h5", adata)
    found = stampy.read(tmp_path / "run", image=tmp_path / "slide.tif")
    assert found.uns["spatial"]["run"]["metadata"]["source_image_path"] == str((tmp_path / "slide.tif").resolve())
    found.write_h5ad(tmp_path / "a.h5ad")
    again = stampy.read(tmp_path / "a.h5ad")
    a = tl.embed(again, toy_model, um_per_px=1.35, copy=True, **QUIET)
    b = tl.embed(adata, toy_model, image=full, um_per_px=1.35, copy=True, **QUIET)
    np.testing.assert_allclose(a.obsm["X_stamp_image"], b.obsm["X_stamp_image"], atol=1e-6)
    assert a.uns["stamp"]["X_stamp"]["tiles"]["image"] == ["slide.tif"]
    (tmp_path / "slide.tif").unlink()
    with pytest.raises(KeyError, match="does not exist, and there is no other"):
        tl.embed(again, toy_model, um_per_px=1.35, modality="image", **QUIET)


def test_missing_full_image_with_a_replacement(toy, toy_model):
    adata = toy.copy()
    library = next(iter(adata.uns["spatial"].values()))
    library["metadata"] = {"source_image_path": "/nowhere/slide.tif"}
    with pytest.warns(UserWarning, match="does not exist; the one in"):
        tl.embed(adata, toy_model, modality="image", **QUIET)


def test_space_ranger_errors(toy, tmp_path):
    write_spatial(tmp_path / "a" / "spatial", toy, "tissue_positions.csv")
    with pytest.raises(FileNotFoundError, match=r"no matrix of counts.*filtered_feature_bc_matrix\.h5.*spatial/"):
        stampy.read(tmp_path / "a")
    write_counts_h5(tmp_path / "a" / "filtered_feature_bc_matrix.h5", toy)
    with pytest.raises(ValueError, match="contains spots, not bins"):
        stampy.read(tmp_path / "a", bin_um=8)
    with pytest.raises(ValueError, match=r"`backed` is for \.h5ad and \.zarr, found Space Ranger"):
        stampy.read(tmp_path / "a", backed=True)
    (tmp_path / "a" / "spatial" / "scalefactors_json.json").rename(tmp_path / "kept.json")
    with pytest.raises(FileNotFoundError, match=r"scalefactors_json\.json.*Found: spatial/: \['tissue_hires"):
        stampy.read(tmp_path / "a")
    (tmp_path / "a" / "filtered_feature_bc_matrix.h5").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    with pytest.raises(ValueError, match="truncated, damaged"):
        stampy.read(tmp_path / "a")


def test_unknown(tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"not a section .*Nearest: an image; it lacks the counts\..*\['holiday\.jpg'\]"
    ):
        stampy.read(tmp_path)
    with pytest.raises(ValueError, match=r"'holiday\.jpg' is an image"):
        stampy.read(tmp_path / "holiday.jpg")
    with pytest.raises(FileNotFoundError, match=r"Similar names there: \['holiday\.jpg'\]"):
        stampy.read(tmp_path / "holidays.jpg")


# Cells


def write_xenium(folder, toy, *, cells="cells.parquet", h5=True, alignment=None):
    folder.mkdir(parents=True)
    if h5:
        write_counts_h5(folder / "cell_feature_matrix.h5", toy, antibodies=2, others="Negative Control Codeword")
    else:
        write_counts_mtx(folder / "cell_feature_matrix", toy)
    um = toy.obsm["spatial"]
    table = pd.DataFrame({"cell_id": toy.obs_names, "x_centroid": um[:, 0], "y_centroid": um[:, 1], "cell_area": 9.0})
    table = table.iloc[::-1]
    table.to_parquet(folder / cells) if cells.endswith("parquet") else table.to_csv(folder / cells, index=False)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.25}))
    if alignment is not None:
        np.savetxt(folder / "run_he_imagealignment.csv", alignment, delimiter=",")
        tifffile.imwrite(folder / "run_he_image.ome.tif", np.zeros((64, 64, 3), np.uint8), photometric="rgb")


@pytest.mark.parametrize(("cells", "h5"), [("cells.parquet", True), ("cells.csv.gz", True), ("cells.csv", False)])
def test_xenium_by_cells_and_by_bins(toy, tmp_path, cells, h5):
    write_xenium(tmp_path / "run", toy, cells=cells, h5=h5)
    found = stampy.read(tmp_path / "run")
    same(found, toy)
    assert found.uns["spatial"]["run"]["scalefactors"]["microns_per_pixel"] == 1
    assert found.obs["cell_area"].eq(9).all()
    binned = stampy.read(tmp_path / "run", bin_um=300)
    place = np.floor((found.obsm["spatial"] - found.obsm["spatial"].min(axis=0)) / 300).astype(int)
    expected = pd.DataFrame(toy.X.toarray()).groupby([place[:, 1], place[:, 0]]).sum()
    assert binned.obs[["array_row", "array_col"]].to_numpy().tolist() == [list(i) for i in expected.index]
    np.testing.assert_array_equal(binned.X.toarray(), expected)
    inside = np.abs(binned.obsm["spatial"][:, None] - found.obsm["spatial"][None]).max(axis=2) <= 150
    assert (inside.sum(axis=1) == binned.obs["n_cells"]).all()


def test_xenium_on_its_h_and_e_image(toy, tmp_path):
    turn = np.array([[0.0, -2.0, 900.0], [2.0, 0.0, 40.0], [0, 0, 1]])  # H&E px -> px of the morphology image
    write_xenium(tmp_path / "run", toy, alignment=turn)
    found = stampy.read(tmp_path / "run")
    back = np.column_stack([found.obsm["spatial"], np.ones(len(toy))]) @ turn.T
    np.testing.assert_allclose(back[:, :2] * 0.25, toy.obsm["spatial"], atol=1e-9)
    library = found.uns["spatial"]["run"]
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(0.5)
    assert library["metadata"]["source_image_path"].endswith("run_he_image.ome.tif")


def test_xenium_errors(toy, tmp_path):
    write_xenium(tmp_path / "run", toy)
    Image.new("RGB", (9, 9)).save(tmp_path / "he.png")
    with pytest.raises(FileNotFoundError, match="imagealignment"):
        stampy.read(tmp_path / "run", image=tmp_path / "he.png")
    (tmp_path / "run" / "cells.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"no table of cells.*cells\.parquet.*Found: "):
        stampy.read(tmp_path / "run")


def test_merscope(toy, tmp_path):
    counts = pd.DataFrame(toy.X.toarray(), index=range(100, 180), columns=toy.var_names)
    counts["Blank-1"] = 7
    counts.to_csv(tmp_path / "cell_by_gene.csv", index_label="cell")
    um = toy.obsm["spatial"]
    cells = pd.DataFrame({"fov": 1, "center_x": um[:, 0], "center_y": um[:, 1]}, index=counts.index)
    cells.iloc[::-1].to_csv(tmp_path / "cell_metadata.csv")
    found = stampy.read(tmp_path)
    assert found.var_names.tolist() == toy.var_names.tolist()
    assert (found.X != toy.X).nnz == 0
    np.testing.assert_allclose(found.obsm["spatial"], um)
    (tmp_path / "cell_metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks cell_metadata\.csv"):
        stampy.read(tmp_path)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("backed", [False, True])
def test_cells_of_any_platform_by_bins(toy, tmp_path, suffix, backed):
    cells = ad.AnnData(toy.X.copy(), obs=toy.obs[[]], var=toy.var, obsm={"spatial": toy.obsm["spatial"]})
    cells.write_h5ad(tmp_path / "c.h5ad") if suffix == ".h5ad" else cells.write_zarr(tmp_path / "c.zarr")
    path = tmp_path / f"c{suffix}"
    binned = stampy.read(path, bin_um=500, um_per_px=1, backed=backed)
    assert binned.X.sum() == toy.X.sum()
    assert 1 < binned.n_obs < toy.n_obs
    with pytest.raises(ValueError, match="`um_per_px=` \\(1 where"):
        stampy.read(path, bin_um=500)
    with pytest.raises(ValueError, match="used with `bin_um`"):
        stampy.read(path, um_per_px=1)
    with pytest.raises(ValueError, match="`bin_um` must be above 0"):
        stampy.read(path, bin_um=0, um_per_px=1)


def test_bins_embed(toy, toy_model):
    binned = pp.bins(toy, 400, um_per_px=1.6)
    tl.embed(binned, toy_model, modality="gene", **QUIET)
    assert binned.obsm["X_stamp"].shape[0] == binned.n_obs


# ST and HEST


def write_st(folder, toy, *, nested, spots=True):
    names = [f"{c}x{r}" for r, c in toy.obs[["array_row", "array_col"]].to_numpy()]
    counts, files = (folder / "ST-cnts", folder / "ST-spotfiles") if nested else (folder, folder)
    for place in (counts, files):
        place.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(toy.X.toarray(), index=names, columns=toy.var_names).to_csv(counts / "A1.tsv.gz", sep="\t")
    grid = toy.obs[["array_col", "array_row"]].to_numpy()
    table = pd.DataFrame(grid, columns=["x", "y"])
    table[["new_x", "new_y"]] = grid + 0.02
    table[["pixel_x", "pixel_y"]] = grid * 290.0 + 33
    table["selected"] = [0, *[1] * (len(table) - 1)]
    if spots:
        table.iloc[::-1].to_csv(files / "A1_selection.tsv", sep="\t", index=False)
    pictures = folder / "ST-imgs" / "A" / "A1" if nested else folder
    pictures.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(pictures / "slide_A1.jpg")
    return counts / "A1.tsv.gz", grid


@pytest.mark.parametrize("nested", [True, False])
def test_st(toy, tmp_path, nested):
    path, grid = write_st(tmp_path / "st", toy, nested=nested)
    found = stampy.read(path if nested else path.parent)
    assert found.n_obs == toy.n_obs - 1
    assert abs(found.X - toy.X[1:]).nnz == 0
    np.testing.assert_allclose(found.obsm["spatial"], grid[1:] * 290.0 + 33)
    library = found.uns["spatial"]["A1"]
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / 290)
    assert library["metadata"]["source_image_path"].endswith("slide_A1.jpg")


def test_st_without_positions(toy, tmp_path):
    path, grid = write_st(tmp_path / "st", toy, nested=False, spots=False)
    found = stampy.read(path)
    np.testing.assert_allclose(found.obsm["spatial"], grid)
    assert found.uns["spatial"]["A1"]["scalefactors"]["microns_per_pixel"] == 200
    with pytest.raises(FileNotFoundError, match="No file of the spots"):
        stampy.read(path, image=path.parent / "slide_A1.jpg")
    shutil.copy(path, path.parent / "A2.tsv.gz")
    with pytest.raises(ValueError, match="has 2 tables of counts"):
        stampy.read(path.parent)


def test_hest(toy, toy_model, tmp_path):
    adata = toy.copy()
    adata.uns["spatial"] = {"ST": {"images": {}, "scalefactors": {"spot_diameter_fullres": 38.2}}}
    adata.obsm["spatial"] = toy.obsm["spatial"] * (750 / toy.obsm["spatial"].max())
    for name in ("st", "wsis", "metadata"):
        (tmp_path / name).mkdir()
    adata.write_h5ad(tmp_path / "st" / "TENX1.h5ad")
    library = next(iter(toy.uns["spatial"].values()))
    pixels = np.asarray(Image.fromarray(library["images"]["hires"]).resize((1000, 1000)))
    tifffile.imwrite(tmp_path / "wsis" / "TENX1.tif", pixels, tile=(64, 64), photometric="rgb")
    (tmp_path / "metadata" / "TENX1.json").write_text(json.dumps({"pixel_size_um_estimated": 1.44}))
    found = stampy.read(tmp_path / "st" / "TENX1.h5ad")
    assert found.uns["spatial"]["ST"]["scalefactors"]["microns_per_pixel"] == 1.44
    tl.embed(found, toy_model, **QUIET)
    record = found.uns["stamp"]["X_stamp"]
    assert (record["modality"], record["tiles"]["image"], record["tiles"]["um_per_px"]) == (
        "fused",
        ["TENX1.tif"],
        [1.44],
    )


# SpatialData


def spatialdata_of(toy, affine, *, system="global", regions=1):
    """The toy's spots as circles in coordinates of their own, which `affine` takes to px of the full image."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Scale, Sequence, Translation

    library = next(iter(toy.uns["spatial"].values()))
    hires, scale = library["images"]["hires"], float(library["scalefactors"]["tissue_hires_scalef"])
    own = np.column_stack([toy.obsm["spatial"], np.ones(len(toy))]) @ np.linalg.inv(affine).T
    radius = library["scalefactors"]["spot_diameter_fullres"] / 2 / np.sqrt(abs(np.linalg.det(affine[:2, :2])))
    to_world = Affine(affine, ("x", "y"), ("x", "y"))
    table = ad.AnnData(toy.X.copy(), obs=toy.obs[[]].copy(), var=toy.var.copy())
    elements = {}
    part = np.arange(len(toy)) % regions
    for i in range(regions):
        rows = np.flatnonzero(part == i)
        elements[f"spots{i}"] = ShapesModel.parse(
            own[rows, :2], geometry=0, radius=radius, index=rows + 1000, transformations={system: to_world}
        )
    # the image is stored at an offset, and smaller, as stated by the transformation only
    shifted = np.zeros((hires.shape[0] + 3, hires.shape[1] + 7, 3), np.uint8)
    back = Sequence([Translation([-7.0, -3.0], ("x", "y")), Scale([1 / scale, 1 / scale], ("x", "y"))])
    shifted[3:, 7:] = hires
    elements["he"] = Image2DModel.parse(
        shifted, dims=("y", "x", "c"), scale_factors=[2], c_coords=["r", "g", "b"], transformations={system: back}
    ).persist()  # else each tile of the coarse level averages the fine one again
    table.obs["region"] = pd.Categorical([f"spots{i}" for i in part])
    table.obs["instance_id"] = np.arange(len(toy)) + 1000
    table = TableModel.parse(
        table, region=[f"spots{i}" for i in range(regions)], region_key="region", instance_key="instance_id"
    )
    return sd.SpatialData.init_from_elements({**elements, "table": table})


TURN = np.array([[0.0, -1.5, 3000.0], [1.5, 0.0, -100.0], [0, 0, 1.0]])
STRETCH = np.array([[0.5, 0.0, 12.0], [0.0, 0.5, -8.0], [0, 0, 1.0]])


@pytest.fixture(scope="module")
def reference(toy, toy_model):
    return tl.embed(toy, toy_model, um_per_px=1.6, image_key="hires", copy=True, **QUIET)


@pytest.mark.parametrize("system", ["global", "slide_7"])
@pytest.mark.parametrize(("affine", "regions"), [(np.eye(3), 1), (TURN, 1), (STRETCH, 2)])
def test_spatialdata_of_any_coordinates(toy, toy_model, reference, affine, system, regions):
    sdata = spatialdata_of(toy, affine, system=system, regions=regions)
    um = 1.6 * np.sqrt(np.linalg.det(affine[:2, :2]))  # of a unit of the shapes
    tl.embed(sdata, toy_model, um_per_px=um, **QUIET)
    np.testing.assert_allclose(sdata["table"].obsm["X_stamp_gene"], reference.obsm["X_stamp_gene"], atol=1e-6)
    np.testing.assert_allclose(sdata["table"].obsm["X_stamp_image"], reference.obsm["X_stamp_image"], atol=2e-3)


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def weights(toy_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "small"
    models.save(toy_model, folder)
    return folder


def test_command_line_writes_into_a_spatialdata_in_place(toy, toy_model, weights, tmp_path):
    path = tmp_path / "s.zarr"
    with_raw = spatialdata_of(toy, TURN, regions=2)
    with_raw.write(path)
    before = digests(path)
    options = ["--model", str(weights), "--um-per-px", "2.4", "--device", "cpu", "--quiet"]
    assert main(["embed", str(path), str(path), *options]) == 1  # without --overwrite
    assert digests(path) == before
    assert main(["embed", str(path), str(path), "--overwrite", *options]) == 0
    after = digests(path)
    new = {name for name in after if before.get(name) != after[name]}
    assert before.keys() <= after.keys()
    assert all(
        n.startswith(("tables/table/obsm", "tables/table/uns")) or n in ("zarr.json", "tables/table/zarr.json")
        for n in new
    )
    assert not [p for p in tmp_path.iterdir() if p != path]
    import spatialdata as sd

    again = sd.read_zarr(path)
    tl.embed(with_raw, toy_model, um_per_px=2.4, **QUIET)
    np.testing.assert_allclose(again["table"].obsm["X_stamp"], with_raw["table"].obsm["X_stamp"], atol=1e-6)
    assert set(again.images) == {"he"}
    options = [*options[:2], "--modality", "gene", "--device", "cpu", "--quiet"]
    assert main(["embed", str(path), str(path), "--overwrite", "--key-added", "X_b", *options]) == 0
    assert {"X_stamp", "X_b"} <= set(sd.read_zarr(path)["table"].obsm)
    assert set(sd.read_zarr(path)["table"].uns["stamp"]) == {"X_stamp", "X_b"}
    assert main(["embed", str(path), str(tmp_path / "t.zarr"), *options]) == 0
    assert {"X_stamp"} <= set(sd.read_zarr(tmp_path / "t.zarr")["table"].obsm)
    assert main(["embed", str(path), str(tmp_path / "t.h5ad"), *options]) == 0
    assert "X_stamp" in stampy.read(tmp_path / "t.h5ad").obsm


def test_failed_write_changes_nothing(toy, tmp_path, monkeypatch):
    path = tmp_path / "s.zarr"
    spatialdata_of(toy, np.eye(3)).write(path)
    before = digests(path)
    table = stampy.read(path)["table"]
    table.obsm["X_stamp"] = np.zeros((len(table), 2), np.float32)
    table.uns["stamp"] = {"X_stamp": {"bad": object()}}
    with pytest.raises(Exception, match="object"):
        _formats.append(table, ["X_stamp"], path, path)
    assert digests(path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_command_line_copies_all_other_elements(toy, weights, tmp_path, suffix):
    adata = toy.copy()
    adata.raw = adata
    adata.layers["counts"] = adata.X.copy()
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    adata.write_h5ad(source) if suffix == ".h5ad" else adata.write_zarr(source)
    options = ["--model", str(weights), "--device", "cpu", "--quiet", "--modality", "gene"]
    assert main(["embed", str(source), str(target), *options]) == 0
    assert main(["embed", str(source), str(source), "--overwrite", *options]) == 0
    for path in (source, target):
        found = stampy.read(path)
        same(found, toy)
        assert found.raw.shape == toy.shape
        assert found.obsm["X_stamp"].shape[0] == toy.n_obs
        assert found.uns["stamp"]["X_stamp"]["modality"] == "gene"


def test_command_line_of_bins_and_folders(toy, weights, tmp_path):
    write_xenium(tmp_path / "run", toy)
    options = ["--model", str(weights), "--device", "cpu", "--quiet"]
    assert main(["embed", str(tmp_path / "run"), str(tmp_path / "x.h5ad"), "--bin-um", "300", *options]) == 0
    found = stampy.read(tmp_path / "x.h5ad")
    assert found.obsm["X_stamp"].shape[0] == found.n_obs < toy.n_obs


@pytest.mark.parametrize("modality", [None, "gene"])
@pytest.mark.parametrize("many", [False, True])
def test_command_line_of_bins_with_their_scale(toy, weights, tmp_path, capsys, many, modality):
    """With bins of cells, --um-per-px is the scale of the coordinates: of use also for genes alone."""
    cells = ad.AnnData(toy.X.copy(), obs=toy.obs[[]], var=toy.var, obsm={"spatial": toy.obsm["spatial"]})
    cells.write_h5ad(tmp_path / "c.h5ad")
    options = ["--model", str(weights), "--device", "cpu", "--bin-um", "300", "--um-per-px", "1.5"]
    options += [] if modality is None else ["--modality", modality]
    target = ["--out", str(tmp_path / "many")] if many else [str(tmp_path / "x.h5ad")]
    assert main(["embed", str(tmp_path / "c.h5ad"), *target, *options]) == 0
    assert "warning" not in capsys.readouterr().err
    found = stampy.read(tmp_path / ("many/c.h5ad" if many else "x.h5ad"))
    expected = stampy.pp.bins(toy, 300, um_per_px=1.5)
    np.testing.assert_array_equal(found.obsm["spatial"], expected.obsm["spatial"])
    assert found.X.sum() == toy.X.sum()
    (factors,) = (library["scalefactors"] for library in found.uns["spatial"].values())
    assert (factors["microns_per_pixel"], factors["spot_diameter_fullres"]) == (1.5, 200)


def test_tiles_of_bins_have_the_scale_of_the_bins(tmp_path):
    toy = stampy.datasets.toy(n_spots=60)
    (library,) = toy.uns["spatial"].values()
    del library["scalefactors"]["spot_diameter_fullres"]
    toy.write_h5ad(tmp_path / "c.h5ad")
    options = ["--device", "cpu", "--bin-um", "300", "--um-per-px", "1.6", "--image-key", next(iter(library["images"]))]
    assert main(["embed", str(tmp_path / "c.h5ad"), str(tmp_path / "x.h5ad"), *options]) == 0
    assert stampy.read(tmp_path / "x.h5ad").uns["stamp"]["X_stamp"]["tiles"]["um_per_px"] == 1.6


def test_scale_of_bins_that_contradicts_the_section(toy):
    cells = ad.AnnData(toy.X.copy(), var=toy.var, obsm={"spatial": toy.obsm["spatial"]})
    cells.uns["spatial"] = {"run": {"images": {}, "scalefactors": {"microns_per_pixel": 1.0}}}
    stampy.pp.bins(cells, 300, um_per_px=1.05)
    with pytest.warns(stampy.StampyWarning, match="`um_per_px=0.2125` contradicts `microns_per_pixel`"):
        stampy.pp.bins(cells, 100, um_per_px=0.2125)


@pytest.mark.parametrize("kind", ["csr", "csc", "dense"])
def test_counts_left_in_a_zarr(toy, toy_model, tmp_path, kind):
    adata = toy.copy()
    adata.X = {"csr": adata.X, "csc": adata.X.tocsc(), "dense": adata.X.toarray()}[kind]
    adata.layers["counts"] = adata.X.copy()
    adata.write_zarr(tmp_path / "a.zarr")
    found = stampy.read(tmp_path / "a.zarr", backed=True)
    assert not isinstance(found.X, np.ndarray) or kind == "dense"
    expected = tl.embed(toy, toy_model, modality="gene", copy=True, **QUIET)
    for layer in (None, "counts"):
        tl.embed(found, toy_model, modality="gene", layer=layer, **QUIET)
        np.testing.assert_allclose(found.obsm["X_stamp"], expected.obsm["X_stamp"], atol=1e-6)


def test_spatialdata_with_counts_on_disk(toy, toy_model, reference, tmp_path):
    spatialdata_of(toy, np.eye(3)).write(tmp_path / "s.zarr")
    found = stampy.read(tmp_path / "s.zarr", backed=True)
    tl.embed(found, toy_model, um_per_px=1.6, **QUIET)
    np.testing.assert_allclose(found["table"].obsm["X_stamp_gene"], reference.obsm["X_stamp_gene"], atol=1e-6)


# Real ones


@pytest.mark.parametrize(("name", "section"), [("crc16", "CRC16_human"), ("breast_msti", None)])
def test_real_space_ranger_folders(data_dir, name, section):
    found = stampy.read(data_dir / "10x" / name)
    assert found.n_vars == 36601
    assert found.obs["in_tissue"].eq(1).all()
    if section:
        known = ad.read_h5ad(data_dir / "sections" / f"{section}.h5ad")
        assert found.obs_names.tolist() == known.obs_names.tolist()
        assert (found.X != known.X).nnz == 0
        np.testing.assert_allclose(found.obsm["spatial"], known.obsm["spatial"])
    else:
        assert found.n_obs == 2172


def test_read_is_lazy():
    code = "import sys, stampy; stampy.read; print({'torch', 'scanpy', 'anndata', 'spatialdata'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
