"""Space Ranger and GEO: parts are found under any name; missing and unused files are reported."""

import json

import numpy as np
import pytest
from small_section import BARCODES, GENES, IDS, XY, N, X, features, h5, mtx, png, positions, put, same, spatial

import stampy


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("prefix", ["", "GSM123_S1_"])
@pytest.mark.parametrize("counts", ["h5", "mtx", "old mtx", "folder"])
def test_flat_and_nested_layouts_with_any_prefix(tmp_path, end, prefix, counts):
    spatial(tmp_path, end, prefix)
    if counts == "h5":
        put(tmp_path / f"{prefix}filtered_feature_bc_matrix.h5{end}", h5())
    else:
        where = tmp_path / f"{prefix}filtered_feature_bc_matrix" if counts == "folder" else tmp_path
        front = "" if counts == "folder" else prefix
        put(where / f"{front}matrix.mtx{end}", mtx())
        genes = "genes.tsv" if counts == "old mtx" else "features.tsv"
        put(where / f"{front}{genes}{end}", features(2 if counts == "old mtx" else 3))
        put(where / f"{front}barcodes.tsv{end}", "\n".join(BARCODES) + "\n")
    found = stampy.read(tmp_path)
    same(found)
    library = found.uns["spatial"][tmp_path.name]
    assert library["images"]["hires"].shape == (20, 30, 3)
    assert found.var["gene_ids"].tolist() == IDS


@pytest.mark.parametrize(
    "options",
    [{"quoted": True}, {"bom": True}, {"newline": "\r\n"}, {"separator": ";"}, {"separator": "\t"},
     {"quoted": True, "bom": True, "newline": "\r\n"}],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("table", ["tissue_positions.csv", "tissue_positions_list.csv"])
def test_positions_in_every_form(tmp_path, options, table):
    spatial(tmp_path / "spatial", table=table, **options)
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5())
    same(stampy.read(tmp_path))


def test_positions_under_the_names_of_other_packages(tmp_path):
    spatial(tmp_path / "spatial")
    rows = [f'"{b}",{i},{y:.0f},{x:.0f},TRUE,0,{i}' for i, (b, (x, y)) in enumerate(zip(BARCODES, XY, strict=True))]
    text = '"","row","imagerow","imagecol","tissue","col","other"\n' + "\n".join(rows)
    put(tmp_path / "spatial" / "tissue_positions.csv", text)
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5())
    same(stampy.read(tmp_path))


def test_two_sections_in_a_folder(tmp_path):
    for prefix in ("GSM1_", "GSM2_"):
        spatial(tmp_path, ".gz", prefix)
        put(tmp_path / f"{prefix}filtered_feature_bc_matrix.h5", h5(X * (2 if prefix == "GSM2_" else 1)))
    with pytest.raises(ValueError, match=r"several sections: \['GSM1', 'GSM2'\].*'GSM1_filtered_feature"):
        stampy.read(tmp_path)
    found = stampy.read(tmp_path / "GSM2_filtered_feature_bc_matrix.h5")
    same(found, X * 2)
    assert list(found.uns["spatial"]) == ["GSM2"]


def test_raw_matrix_is_restricted_to_tissue(tmp_path):
    inside = np.arange(N) % 3 != 0
    spatial(tmp_path / "spatial", in_tissue=inside.astype(int))
    put(tmp_path / "raw_feature_bc_matrix.h5", h5())
    with pytest.warns(stampy.StampyWarning, match=r"no filtered matrix; raw.*restricted to the 8 of 12 spots"):
        found = stampy.read(tmp_path)
    same(found, X[inside], XY[inside], np.array(BARCODES)[inside])


@pytest.mark.parametrize("place", ["run", "run/outs", "run/outs/segmented_outputs"])
def test_segmented_cells_of_visium_hd(tmp_path, place):
    cells = tmp_path / "run" / "outs" / "segmented_outputs"
    spatial(cells / "spatial")
    (cells / "spatial" / "tissue_positions.csv").unlink()
    corners = np.array([[-4, -3], [4, -3], [4, 3], [-4, 3], [-4, -3]])
    outlines = [
        {"type": "Feature", "properties": {"cell_id": i + 1},
         "geometry": {"type": "Polygon", "coordinates": [(corners + XY[i]).tolist()]}}
        for i in reversed(range(N))
    ]  # fmt: skip
    put(cells / "cell_segmentations.geojson", json.dumps({"type": "FeatureCollection", "features": outlines}))
    names = [f"cellid_{i + 1:09d}-1" for i in range(N)]
    put(cells / "filtered_feature_cell_matrix.h5", h5(barcodes=names))
    factors = json.loads((cells / "spatial" / "scalefactors_json.json").read_text())
    put(cells / "spatial" / "scalefactors_json.json", json.dumps({**factors, "microns_per_pixel": 0.5}))
    found = stampy.read(tmp_path / place)
    same(found, names=names)
    binned = stampy.read(tmp_path / place, bin_um=100)
    assert 1 < binned.n_obs < N
    assert binned.X.sum() == X.sum()


def test_counts_without_positions(tmp_path):
    put(tmp_path / "GSM9_filtered_feature_bc_matrix.h5", h5())
    for path in (tmp_path, tmp_path / "GSM9_filtered_feature_bc_matrix.h5"):
        with pytest.warns(stampy.StampyWarning, match="no tissue_positions were found.*genes, but no positions"):
            same(stampy.read(path), xy=None)
    put(tmp_path / "GSM9_spatial.tar.gz", b"")
    with pytest.warns(stampy.StampyWarning, match=r"Unpack \['GSM9_spatial.tar.gz'\]"):
        stampy.read(tmp_path)
    put(tmp_path / "a.tif", b"")
    with pytest.warns(stampy.StampyWarning), pytest.raises(ValueError, match="no coordinates of spots"):
        stampy.read(tmp_path, image=tmp_path / "a.tif")


def test_counts_beside_a_table_of_coordinates(tmp_path):
    put(tmp_path / "matrix.mtx.gz", mtx())
    put(tmp_path / "features.tsv.gz", features())
    put(tmp_path / "barcodes.tsv.gz", "\n".join(BARCODES) + "\n")
    put(
        tmp_path / "coords.csv",
        "cell,x,y\n" + "\n".join(f"{b},{x},{y}" for b, (x, y) in zip(BARCODES, XY, strict=True)),
    )
    with pytest.warns(stampy.StampyWarning, match=r"coords\.csv was used as the coordinates"):
        same(stampy.read(tmp_path))


@pytest.mark.parametrize("kind", ["h5", "mtx"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_fractions_are_kept_with_a_warning(tmp_path, kind, dtype):
    spatial(tmp_path / "spatial")
    x = (X * 0.75).astype(dtype)
    if kind == "h5":
        put(tmp_path / "filtered_feature_bc_matrix.h5", h5(x))
    else:
        put(tmp_path / "matrix.mtx", mtx(x))
        put(tmp_path / "genes.tsv", features(2))
        put(tmp_path / "barcodes.tsv", "\n".join(BARCODES) + "\n")
    with pytest.warns(stampy.StampyWarning, match="% of the counts in .* are fractions; they are kept"):
        found = stampy.read(tmp_path)
    np.testing.assert_allclose(found.X.toarray(), x, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.uint8, np.int64, np.uint32])
def test_whole_counts_of_any_type(tmp_path, dtype):
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(X.astype(dtype)))
    spatial(tmp_path / "spatial")
    found = stampy.read(tmp_path)
    same(found)
    assert found.X.dtype == np.int32


def test_counts_beyond_32_bits_and_missing_ones(tmp_path):
    x = X.astype(np.float64)
    x[0, 0] = 2**40
    spatial(tmp_path / "spatial")
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(x))
    assert stampy.read(tmp_path).X[0, 0] == 2**40
    x[0, 0] = np.nan
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(x))
    with pytest.raises(ValueError, match=r"1 counts in .* are missing or infinite"):
        stampy.read(tmp_path)


def test_indices_that_r_wrote_as_floats(tmp_path):
    import h5py

    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(X.astype(float)))
    with h5py.File(tmp_path / "filtered_feature_bc_matrix.h5", "r+") as file:
        for name in ("indices", "indptr", "shape"):
            values = file["matrix"][name][:].astype(float)
            del file["matrix"][name]
            file["matrix"][name] = values
    spatial(tmp_path / "spatial")
    same(stampy.read(tmp_path))


def test_two_genomes_and_probes(tmp_path):
    spatial(tmp_path / "spatial")
    genomes = ["GRCh38"] * 3 + ["mm10"] * 2
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(genome=genomes, _all_tag_keys=["genome"]))
    found = stampy.read(tmp_path)
    same(found)
    assert found.var["genome"].tolist() == genomes


def test_cell_ranger_2_with_a_group_for_each_genome(tmp_path):
    import h5py
    from scipy import sparse

    spatial(tmp_path / "spatial")
    with h5py.File(tmp_path / "filtered_gene_bc_matrices_h5.h5", "w") as file:
        for genome, columns, rows in (("hg19", [0, 1, 2], range(N)), ("mm10", [3, 4], range(2, N))):
            x = sparse.csr_matrix(X[list(rows)][:, columns])
            group = file.create_group(genome)
            for name, value in (("data", x.data), ("indices", x.indices), ("indptr", x.indptr)):
                group[name] = value
            group["shape"] = x.shape[::-1]
            group["barcodes"] = np.array([BARCODES[i] for i in rows], dtype="S")
            group["genes"] = np.array([IDS[i] for i in columns], dtype="S")
            group["gene_names"] = np.array([GENES[i] for i in columns], dtype="S")
    expected = X.copy()
    expected[:2, 3:] = 0
    found = stampy.read(tmp_path)
    same(found, expected)
    assert found.var["genome"].tolist() == ["hg19"] * 3 + ["mm10"] * 2


def test_barcodes_with_and_without_a_suffix(tmp_path):
    spatial(tmp_path / "spatial", barcodes=[b[:-2] for b in BARCODES])
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5())
    with pytest.warns(stampy.StampyWarning, match=r"12 barcodes .* were matched without the suffix"):
        same(stampy.read(tmp_path))
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(barcodes=[f"S1_{b}" for b in BARCODES]))
    with pytest.warns(stampy.StampyWarning, match="only by their sequence"):
        same(stampy.read(tmp_path), names=[f"S1_{b}" for b in BARCODES])


def test_spots_of_one_table_only_are_counted(tmp_path):
    spatial(tmp_path / "spatial")
    others = [*BARCODES[:10], "T" * 16 + "-1", "T" * 15 + "G-1"]
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(barcodes=others))
    with pytest.warns(stampy.StampyWarning) as said:
        found = stampy.read(tmp_path)
    same(found, X[:10], XY[:10], BARCODES[:10])
    text = " ".join(str(w.message) for w in said)
    assert "2 of 12 spots of filtered_feature_bc_matrix.h5 have no position" in text
    assert "2 spots under tissue have no counts" in text
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(barcodes=[f"{i}" for i in range(N)]))
    with pytest.raises(ValueError, match=r"None of the 12 barcodes .* Counts and positions are of different sections"):
        stampy.read(tmp_path)


def test_duplicate_barcodes(tmp_path):
    spatial(tmp_path / "spatial")
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5(barcodes=[BARCODES[0], *BARCODES[:-1]]))
    with pytest.warns(stampy.StampyWarning) as said:
        found = stampy.read(tmp_path)
    assert "1 barcodes of filtered_feature_bc_matrix.h5 occur more than once" in str([w.message for w in said])
    assert found.obs_names.is_unique
    table = positions() + f"{BARCODES[0]},1,9,9,9,9\n"
    put(tmp_path / "spatial" / "tissue_positions.csv", table)
    with pytest.raises(ValueError, match=r"1 barcodes have several positions in tissue_positions.csv"):
        stampy.read(tmp_path)


def test_missing_image_is_reported(tmp_path):
    spatial(tmp_path / "spatial")
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5())
    for image in (tmp_path / "spatial").glob("*.png"):
        image.unlink()
    with pytest.warns(stampy.StampyWarning, match="no tissue_hires_image or tissue_lowres_image"):
        stampy.read(tmp_path)


def test_matrix_and_names_of_different_runs(tmp_path):
    put(tmp_path / "matrix.mtx", mtx())
    put(tmp_path / "features.tsv", features() + "ENSG9\tNEW\tGene Expression\n" * 3)
    put(tmp_path / "barcodes.tsv", "\n".join(BARCODES) + "\n")
    with pytest.raises(ValueError, match=r"5 x 12 values, but features.tsv has 8 lines and barcodes.tsv 12"):
        stampy.read(tmp_path)


def test_two_files_of_positions_that_differ(tmp_path):
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5())
    spatial(tmp_path / "spatial")
    put(tmp_path / "spatial" / "tissue_positions_list.csv", positions(header=False))
    same(stampy.read(tmp_path))
    moved = positions(header=False).replace("300", "340")  # another alignment of the section
    put(tmp_path / "spatial" / "tissue_positions_list.csv", moved)
    says = r"tissue_positions\.csv is read; tissue_positions_list\.csv .* other coordinates for 3 of 12 spots"
    with pytest.warns(UserWarning, match=says):
        same(stampy.read(tmp_path))
    fewer = positions(header=False).splitlines(keepends=True)[:9]
    put(tmp_path / "spatial" / "tissue_positions_list.csv", "".join(fewer))
    same(stampy.read(tmp_path))  # the same coordinates of fewer spots: nothing to warn about
    put(tmp_path / "spatial" / "tissue_positions_list.csv", "")
    with pytest.warns(UserWarning, match=r"tissue_positions\.csv is read; tissue_positions_list\.csv .*it is empty"):
        same(stampy.read(tmp_path))


def test_one_damaged_picture_of_two(tmp_path):
    put(tmp_path / "filtered_feature_bc_matrix.h5", h5())
    spatial(tmp_path / "spatial")
    put(tmp_path / "spatial" / "tissue_lowres_image.png", png()[:60])
    with pytest.warns(UserWarning, match=r"lowres image is ignored; \['hires'\] is used.*damaged"):
        found = stampy.read(tmp_path)
    assert list(next(iter(found.uns["spatial"].values()))["images"]) == ["hires"]
    put(tmp_path / "spatial" / "tissue_hires_image.png", b"")
    with pytest.raises(ValueError, match="tissue_hires_image"):
        stampy.read(tmp_path)


def test_bins_of_visium_hd_without_their_folder(tmp_path):
    for um in (2, 8, 16):
        folder = tmp_path / f"square_{um:03d}um"
        put(folder / "filtered_feature_bc_matrix.h5", h5(X * um))
        spatial(folder / "spatial")
    same(stampy.read(tmp_path), x=X * 8)
    same(stampy.read(tmp_path, bin_um=16), x=X * 16)
    with pytest.raises(ValueError, match=r"Available: \[2, 8, 16\]"):
        stampy.read(tmp_path, bin_um=4)
