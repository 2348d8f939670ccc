"""Xenium, MERSCOPE and CosMx, each in several variants of their files."""

import io
import shutil
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import zarr
from scipy import sparse
from small_section import GENES, IDS, XY, N, X, features, h5, mtx, put, same

import stampy

NAMES = ["aaaaaaab-1", "ffkpbaba-1", *(f"aaaaaaa{c}-1" for c in "cdefghijkl")]
NUMBERS = np.array([[1, 1], [1437536272, 1], *([i, 1] for i in range(2, 12))], dtype=np.uint32)


def cells(names, **columns):
    """Xenium's table of cells, in another order."""
    table = pd.DataFrame(
        {"cell_id": names, "x_centroid": XY[:, 0], "y_centroid": XY[:, 1], "cell_area": 9.0, **columns}
    )
    return table.iloc[::-1].to_csv(index=False)


def xenium_zarr(folder, *, by_gene=True, zarr_format=2):
    """``cell_feature_matrix.zarr`` as Xenium writes it, with a control."""
    x = sparse.csr_matrix(np.column_stack([X, np.full(N, 7)]))
    x = x.T.tocsr() if by_gene else x
    group = zarr.open_group(folder, mode="w", zarr_format=zarr_format).create_group("cell_features")
    for name in ("data", "indices", "indptr"):
        group.create_array(name, data=getattr(x, name).astype(np.uint32))
    group.create_array("cell_id", data=NUMBERS)
    group.attrs.update({"feature_ids": [*IDS, "NegControlProbe_1"], "feature_keys": [*GENES, "NegControlProbe_1"],
                        "feature_types": ["gene"] * 5 + ["negative_control_probe"], "number_cells": N})  # fmt: skip


def zipped(folder, path):
    """All files of a folder in an archive, as a store."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder).as_posix())
    shutil.rmtree(folder)


@pytest.mark.parametrize("by_gene", [True, False])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore::zarr.errors.ZarrUserWarning")
def test_xenium_matrix_as_zarr(tmp_path, by_gene, packed, zarr_format):
    put(tmp_path / "cells.csv.gz", cells(NAMES))
    store = tmp_path / "cell_feature_matrix.zarr"
    xenium_zarr(store, by_gene=by_gene, zarr_format=zarr_format)
    if packed:
        zipped(store, tmp_path / "cell_feature_matrix.zarr.zip")
    found = stampy.read(tmp_path)
    same(found, names=NAMES)
    assert found.var["feature_types"].eq("gene").all()


def test_xenium_matrix_in_an_archive_with_a_prefix(tmp_path):
    put(tmp_path / "GSM5_cells.csv.gz", cells(NAMES))
    with tarfile.open(tmp_path / "GSM5_cell_feature_matrix.tar.gz", "w:gz") as archive:
        names = (
            ("matrix.mtx.gz", mtx()),
            ("features.tsv.gz", features().encode()),
            ("barcodes.tsv.gz", "\n".join(NAMES)),
        )
        for name, content in names:
            content = content.encode() if isinstance(content, str) else content
            content = put(tmp_path / "packed" / name, content).read_bytes()
            member = tarfile.TarInfo(f"cell_feature_matrix/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    shutil.rmtree(tmp_path / "packed")
    same(stampy.read(tmp_path), names=NAMES)


def test_xenium_of_r_with_row_numbers_and_of_other_runs(tmp_path):
    names = [str(i) for i in range(1, N + 1)]
    text = pd.read_csv(io.StringIO(cells(names))).to_csv(quoting=2)  # a column of row numbers without a name
    put(tmp_path / "cells.csv.gz", text)
    put(tmp_path / "cell_feature_matrix.h5", h5(X.astype(float), barcodes=names))
    found = stampy.read(tmp_path)
    same(found, names=names)
    assert found.obs.columns.tolist() == ["cell_area"]
    put(tmp_path / "cell_feature_matrix.h5", h5(barcodes=[*names[:-1], "99"]))
    with pytest.warns(stampy.StampyWarning) as said:
        assert stampy.read(tmp_path).n_obs == N - 1
    assert "1 of 12 spots of cell_feature_matrix.h5 have no position in cells.csv.gz (first: '99')" in str(
        said[0].message
    )


def test_xenium_without_a_centroid(tmp_path):
    put(tmp_path / "cells.csv", "cell_id,x\na,1\n")
    put(tmp_path / "cell_feature_matrix.h5", h5())
    with pytest.raises(ValueError, match=r"lacks the columns \['x_centroid', 'y_centroid'\]"):
        stampy.read(tmp_path)


# MERSCOPE


@pytest.mark.parametrize("end", ["", "_S1R1"])
@pytest.mark.parametrize("zipped_end", ["", ".gz"])
def test_merscope(tmp_path, end, zipped_end):
    names = [str(10**18 + i) for i in range(N)]
    counts = pd.DataFrame(np.column_stack([X, np.full(N, 5)]), index=names, columns=[*GENES, "Blank-1"])
    put(tmp_path / f"d_cell_by_gene{end}.csv{zipped_end}", counts.to_csv(index_label="cell"))
    places = pd.DataFrame({"fov": 0, "center_x": XY[:, 0], "center_y": XY[:, 1]}, index=names)
    put(tmp_path / f"d_cell_metadata{end}.csv{zipped_end}", places.iloc[::-1].to_csv())
    same(stampy.read(tmp_path), names=names)


# CosMx


def cosmx(folder, prefix="S1_", end=".csv", *, fields=False, areas=False, um=0.12):
    """Flat files with a row of transcripts outside of cells, and a negative probe."""
    fov, cell = [1 + i // 6 for i in range(N)], [1 + i % 6 for i in range(N)]
    counts = pd.DataFrame(X, columns=GENES)
    counts["NegPrb1"] = 3
    counts.insert(0, "cell_ID", cell)
    counts.insert(0, "fov", fov)
    outside = pd.DataFrame([[1, 0, *[9] * 6]], columns=counts.columns)
    put(folder / f"{prefix}exprMat_file{end}", pd.concat([outside, counts]).to_csv(index=False, quoting=2))
    places = pd.DataFrame({"fov": fov, "cell_ID": cell, "Area": 100, "CenterX_local_px": 1,
                           "CenterX_global_px": XY[:, 0], "CenterY_global_px": XY[:, 1]})  # fmt: skip
    if areas:
        places["Area.um2"] = 100 * um**2
    put(folder / f"{prefix}metadata_file{end}", places.iloc[::-1].to_csv(index=False))
    if fields:
        table = {"fov": [1, 2], "x_global_px": [0, 4000], "y_global_px": [0, 0], "x_mm": [0, 4 * um], "y_mm": [0, 0]}
        put(folder / f"{prefix}fov_positions_file{end}", pd.DataFrame(table).to_csv(index=False))
    return [f"{f}_{c}" for f, c in zip(fov, cell, strict=True)]


@pytest.mark.parametrize("end", [".csv", ".csv.gz"])
@pytest.mark.parametrize("told", ["areas", "fields"])
def test_cosmx(tmp_path, end, told):
    names = cosmx(tmp_path, end=end, **{told: True})
    found = stampy.read(tmp_path)
    same(found, names=names)
    assert found.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] == pytest.approx(0.12)
    binned = stampy.read(tmp_path, bin_um=15)
    assert 1 < binned.n_obs < N
    assert binned.X.sum() == X.sum()


def test_cosmx_with_other_names_of_the_fields(tmp_path):
    cosmx(tmp_path)
    table = {"FOV": [1, 2], "x_global_px": [0, 4000], "y_global_px": [0, 0], "x_global_mm": [0, 0.48], "y_global_mm": 0}
    put(tmp_path / "S1_fov_positions_file.csv", pd.DataFrame(table).to_csv(index=False))
    assert stampy.read(tmp_path).uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] == pytest.approx(0.12)


def test_cosmx_with_centres_in_mm_alone(tmp_path):
    names = cosmx(tmp_path)
    path = tmp_path / "S1_metadata_file.csv"
    places = pd.read_csv(path)
    x, y = places.pop("CenterX_global_px"), places.pop("CenterY_global_px")
    put(path, places.assign(x_FOV_px=1, y_FOV_px=2, x_slide_mm=x / 1000, y_slide_mm=y / 1000).to_csv(index=False))
    found = stampy.read(tmp_path)
    same(found, names=names)  # in µm
    assert found.uns["spatial"]["S1"]["scalefactors"]["microns_per_pixel"] == 1.0


def test_cosmx_without_a_scale(tmp_path):
    cosmx(tmp_path)
    with pytest.warns(stampy.StampyWarning, match="do not state how large a pixel is"):
        found = stampy.read(tmp_path)
    assert found.uns["spatial"]["S1"]["scalefactors"] == {}
    with pytest.raises(ValueError, match="`image` cannot be given for CosMx"):
        stampy.read(tmp_path, image=put(tmp_path / "he.png", b""))
    (tmp_path / "S1_metadata_file.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"None of \['metadata_file\.csv'\] was found"):
        stampy.read(tmp_path)
