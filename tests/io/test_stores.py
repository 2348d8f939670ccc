"""AnnData, SpatialData, MuData and loom in the versions in use."""

import shutil
import zipfile

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse
from small_section import BARCODES, GENES, XY, N, X, same

import stampy

pytestmark = [
    pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning"),
    pytest.mark.filterwarnings("ignore:Writing zarr v2 data"),
    pytest.mark.filterwarnings("ignore:zarr v3 autosharding"),
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler"),
    pytest.mark.filterwarnings("ignore:SpatialData is not stored in the most current format"),
    pytest.mark.filterwarnings("ignore::anndata._warnings.OldFormatWarning"),
]


def section():
    """The small section."""
    return ad.AnnData(sparse.csr_matrix(X), obs=pd.DataFrame(index=BARCODES), var=pd.DataFrame(index=GENES),
                      obsm={"spatial": XY})  # fmt: skip


def zipped(folder, path, inner=""):
    """A store as a zip."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, f"{inner}{file.relative_to(folder).as_posix()}")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("inner", [None, "", "s.zarr/"])
def test_zarr_of_both_formats_zipped_or_not(tmp_path, zarr_format, inner):
    with ad.settings.override(zarr_write_format=zarr_format):
        section().write_zarr(tmp_path / "s.zarr")
    path = tmp_path / "s.zarr"
    if inner is not None:
        zipped(path, tmp_path / "s.zarr.zip", inner)
        path = tmp_path / "s.zarr.zip"
    same(stampy.read(path))


def test_zips_that_hold_something_else(tmp_path):
    (tmp_path / "a.zarr.zip").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match=r"a\.zarr\.zip"):
        stampy.read(tmp_path / "a.zarr.zip")
    with zipfile.ZipFile(tmp_path / "b.zarr.zip", "w") as archive:
        archive.writestr("readme.txt", "none")
    with pytest.raises(ValueError, match="a zip without a zarr store"):
        stampy.read(tmp_path / "b.zarr.zip")


@pytest.mark.parametrize("x", ["group", "h5sparse_format"])
def test_h5ad_of_anndata_0_6(tmp_path, x):
    """Tables as compound datasets, categories and sparse matrices by attributes of old."""
    path = tmp_path / "old.h5ad"
    m = sparse.csr_matrix(X.astype(np.float32))
    with h5py.File(path, "w") as file:
        group = file.create_group("X")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(m, name)
        group.attrs["h5sparse_format"] = b"csr" if x == "group" else "csr"
        group.attrs["h5sparse_shape"] = np.array(m.shape)
        obs = np.zeros(N, dtype=[("index", "S20"), ("n", "i8")])
        obs["index"] = [b.encode() for b in BARCODES]
        file["obs"] = obs
        var = np.zeros(len(GENES), dtype=[("index", "S20")])
        var["index"] = [g.encode() for g in GENES]
        file["var"] = var
        obsm = np.zeros(N, dtype=[("spatial", "f8", (2,))])
        obsm["spatial"] = XY
        file["obsm"] = obsm
    same(stampy.read(path))


def test_format_is_detected_by_content_not_by_extension(tmp_path):
    from small_section import h5, put, spatial

    spatial(tmp_path)
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5())
    section().write_h5ad(tmp_path / "a" / "table.h5") if (tmp_path / "a").mkdir() is None else None
    same(stampy.read(tmp_path / "a" / "table.h5"))
    (tmp_path / "counts.h5ad").write_bytes(h5())
    same(stampy.read(tmp_path / "counts.h5ad"))


@pytest.mark.parametrize("kind", ["cellxgene", "stlearn", "seurat"])
def test_h5ad_as_other_packages_write_them(tmp_path, kind):
    adata = section()
    if kind == "cellxgene":
        adata.uns["spatial"] = {"is_single": np.bool_(True), "lib": {"images": {}, "scalefactors": {}}}
        adata.raw = adata.copy()
    elif kind == "stlearn":
        adata.obs["imagecol"], adata.obs["imagerow"] = XY.T
        adata.uns["spatial"] = {"lib": {"images": {}, "scalefactors": {}, "use_quality": "hires"}}
    else:
        adata.obs["imagecol"], adata.obs["imagerow"] = XY.T
        del adata.obsm["spatial"]
    adata.write_h5ad(tmp_path / "s.h5ad")
    if kind == "seurat":
        with pytest.warns(
            stampy.StampyWarning, match=r"no obsm\['spatial'\]\. If .*adata\.obs\[\['imagecol', 'imagerow'\]\]"
        ):
            same(stampy.read(tmp_path / "s.h5ad"), xy=None)
    else:
        same(stampy.read(tmp_path / "s.h5ad"))


# SpatialData


def spatialdata(path):
    """A table that annotates circles."""
    import spatialdata as sd
    from spatialdata.models import ShapesModel, TableModel

    table = section()
    table.obs["region"], table.obs["instance"] = pd.Categorical(["spots"] * N), np.arange(N)
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="instance")
    spots = ShapesModel.parse(XY, geometry=0, radius=5.0, index=np.arange(N))
    sd.SpatialData.init_from_elements({"spots": spots, "table": table}).write(path)


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("place", ["tables", "table"])
def test_spatialdata_before_0_2(tmp_path, place, backed):
    """Without attributes of the root; before that the table lay in ``table/table``."""
    import json

    spatialdata(tmp_path / "s.zarr")
    root = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())
    root["attributes"] = {}
    root.pop("consolidated_metadata", None)
    (tmp_path / "s.zarr" / "zarr.json").write_text(json.dumps(root))
    if place == "table":
        shutil.move(tmp_path / "s.zarr" / "tables", tmp_path / "s.zarr" / "table")
    found = stampy.read(tmp_path / "s.zarr", backed=backed)
    table = found["table"]
    assert table.obs_names.tolist() == BARCODES
    np.testing.assert_array_equal(table.X[:].toarray() if backed else table.X.toarray(), X)
    assert "spots" in found.shapes


def test_spatialdata_without_a_table(tmp_path):
    spatialdata(tmp_path / "s.zarr")
    zarr.open_group(tmp_path / "s.zarr", mode="r+", use_consolidated=False)
    shutil.rmtree(tmp_path / "s.zarr" / "tables" / "table")
    import json

    root = json.loads((tmp_path / "s.zarr" / "zarr.json").read_text())
    root.pop("consolidated_metadata", None)
    (tmp_path / "s.zarr" / "zarr.json").write_text(json.dumps(root))
    with pytest.warns(stampy.StampyWarning, match="a SpatialData without a table"):
        stampy.read(tmp_path / "s.zarr")


# MuData


def mudata(root, *, rna="rna", protein=True, with_rows=True):
    """A MuData with coordinates in its top-level `obsm`."""
    root.attrs["encoding-type"] = "MuData"
    table = section()
    del table.obsm["spatial"]
    mods = root.create_group("mod")
    ad.io.write_elem(mods, rna, table)
    if protein:
        ad.io.write_elem(mods, "prot", table[:4, :2].copy())
    order = np.arange(N)[::-1]
    ad.io.write_elem(root, "obs", pd.DataFrame(index=np.array(BARCODES)[order]))
    ad.io.write_elem(root, "obsm", {"spatial": XY[order]} if with_rows else {})
    ad.io.write_elem(root, "obsmap", {rna: (order + 1).astype(np.uint32)})
    ad.io.write_elem(root, "uns", {"spatial": {"lib": {"scalefactors": {"spot_diameter_fullres": 9.0}}}})


@pytest.mark.parametrize("rna", ["rna", "RNA", "gex"])
@pytest.mark.parametrize("kind", [".h5mu", ".zarr"])
def test_mudata(tmp_path, rna, kind):
    path = tmp_path / f"m{kind}"
    if kind == ".zarr":
        mudata(zarr.open_group(path, mode="w"), rna=rna)
    else:
        with h5py.File(path, "w") as file:
            mudata(file, rna=rna)
    with pytest.warns(stampy.StampyWarning, match=rf"modality '{rna}' was read, \['prot'\] were ignored"):
        found = stampy.read(path)
    same(found)
    assert found.uns["spatial"]["lib"]["scalefactors"]["spot_diameter_fullres"] == 9


def test_mudata_without_rna(tmp_path):
    with h5py.File(tmp_path / "m.h5mu", "w") as file:
        mudata(file, rna="atac")
    with pytest.raises(ValueError, match=r"a MuData without a modality `rna`, found \['atac', 'prot'\]"):
        stampy.read(tmp_path / "m.h5mu")


# loom


def loom(path, **columns):
    """Genes by cells, with a layer."""
    with h5py.File(path, "w") as file:
        file["matrix"] = X.T.astype(np.float64)
        file["layers/spliced"] = X.T
        file["row_attrs/Gene"] = np.array(GENES, dtype=object)
        file["col_attrs/CellID"] = np.array(BARCODES, dtype=object)
        for name, value in columns.items():
            file[f"col_attrs/{name}"] = value


@pytest.mark.parametrize("columns", [{"X": XY[:, 0], "Y": XY[:, 1]}, {"spatial": XY}, {"x": XY[:, 0], "y": XY[:, 1]}])
def test_loom(tmp_path, columns):
    loom(tmp_path / "s.loom", **columns)
    found = stampy.read(tmp_path / "s.loom")
    same(found)
    np.testing.assert_array_equal(found.layers["spliced"].toarray(), X)


def test_loom_without_coordinates_or_genes(tmp_path):
    loom(tmp_path / "s.loom")
    with pytest.warns(stampy.StampyWarning, match="has no coordinates"):
        same(stampy.read(tmp_path / "s.loom"), xy=None)
    with h5py.File(tmp_path / "s.loom", "r+") as file:
        del file["row_attrs/Gene"]
    with pytest.raises(ValueError, match="names no genes"):
        stampy.read(tmp_path / "s.loom")


def test_results_are_not_written_into_stores_of_other_types(tmp_path):
    """A MuData or a 10x file under the name of an AnnData is not copied for results to be put into it."""
    from small_section import h5

    from stampy._io.write import append

    mudata(zarr.open_group(tmp_path / "m.zarr", mode="w"))
    (tmp_path / "c.h5ad").write_bytes(h5())
    table = section()
    table.obsm["X_stamp"], table.uns["stamp"] = XY.astype(np.float32), {"X_stamp": {}}
    for name in ("m.zarr", "c.h5ad"):
        assert not append(table, ["X_stamp"], tmp_path / name, tmp_path / f"out.{name.split('.')[1]}")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.h5ad", "m.zarr"]


def test_an_image_for_a_section_of_cellxgene(tmp_path):
    """`is_single` in ``uns["spatial"]`` is not a section."""
    from small_section import png, put

    adata = section()
    adata.uns["spatial"] = {"is_single": np.bool_(True), "lib": {"images": {}, "scalefactors": {}}}
    adata.write_h5ad(tmp_path / "s.h5ad")
    found = stampy.read(tmp_path / "s.h5ad", image=put(tmp_path / "he.png", png()))
    assert found.uns["spatial"]["lib"]["metadata"]["source_image_path"].endswith("he.png")
    adata.uns["spatial"] = "none"
    adata.write_h5ad(tmp_path / "s.h5ad")
    with pytest.raises(TypeError, match="a dict of dicts; found str"):
        stampy.read(tmp_path / "s.h5ad")
