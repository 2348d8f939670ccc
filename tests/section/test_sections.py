"""Sections: coordinates in every storage, entries of `uns["spatial"]`, contradicting scales, overlapping sections."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

import stampy
from stampy import datasets, pp, tl
from stampy._section.libraries import libraries_of
from stampy._section.neighbors import graph, nearest
from stampy._section.pixel_size import infer_um_per_px
from stampy._section.section import ImageOptions, coordinates_of, places_of, sections_of

quick = settings(max_examples=25, deadline=None)
QUIET = {"show_progress_bar": False, "device": "cpu"}


def hexagonal(pitch=100.0, n=12):
    row, column = np.divmod(np.arange(n * n), n)
    return np.column_stack([(column + row % 2 / 2) * pitch, row * pitch * np.sqrt(0.75)]) + pitch


def cells(n=2000, edge=1000.0, seed=0):
    """Centres of cells that keep a distance, as nuclei do: a jittered grid."""
    side = int(np.ceil(np.sqrt(n)))
    y, x = np.divmod(np.arange(n), side)
    jitter = np.random.default_rng(seed).uniform(-0.35, 0.35, (n, 2))
    return (np.column_stack([x, y]) + jitter) * edge / side


def table(xy, **obs):
    obs = pd.DataFrame(obs, index=[f"s{i}" for i in range(len(xy))])
    return ad.AnnData(np.ones((len(xy), 3), np.float32), obs=obs, obsm={"spatial": xy})


@pytest.fixture
def one(toy):
    return toy.copy()


# obsm["spatial"]


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ("x", "y"),
        ("X", "Y"),
        ("pxl_col_in_fullres", "pxl_row_in_fullres"),
        ("imagecol", "imagerow"),
        ("col", "row"),
        ("x_centroid", "y_centroid"),
        (0, 1),
    ],
)
def test_tables_are_read_by_the_names_of_their_columns(x, y):
    xy = hexagonal()
    row_first = pd.DataFrame({y: xy[:, 1], x: xy[:, 0]})
    adata = table(xy)
    row_first.index = adata.obs_names
    adata.obsm["spatial"] = row_first[[x, y]] if x == 0 else row_first
    np.testing.assert_array_equal(coordinates_of(adata), xy)
    assert repr(x) in places_of(adata).source


def test_other_columns_are_ignored():
    xy = hexagonal()
    adata = table(xy)
    adata.obsm["spatial"] = pd.DataFrame(
        {"in_tissue": 1, "array_row": 3, "array_col": 4, "pxl_row_in_fullres": xy[:, 1].astype(str),
         "pxl_col_in_fullres": xy[:, 0].astype(str), "barcode": "A"}, index=adata.obs_names,
    )  # fmt: skip
    np.testing.assert_array_equal(coordinates_of(adata), xy)


@pytest.mark.parametrize(
    ("columns", "error", "message"),
    [
        ({"a": 1.0, "b": 2.0}, ValueError, "not clear which are x and y"),
        ({"x": 1.0, "y": 2.0, "imagecol": 3.0, "imagerow": 4.0}, ValueError, "that differ"),
        ({"x": "left", "y": 2.0}, TypeError, "must contain numbers"),
    ],
)
def test_ambiguous_tables(columns, error, message):
    adata = table(hexagonal())
    adata.obsm["spatial"] = pd.DataFrame(columns, index=adata.obs_names)
    with pytest.raises(error, match=message):
        coordinates_of(adata)


def test_a_third_column_is_named():
    xy = np.column_stack([hexagonal(), np.arange(144) % 3])
    with pytest.warns(stampy.StampyWarning, match="third column with 3 different values"):
        found = coordinates_of(table(xy))
    np.testing.assert_array_equal(found, xy[:, :2])
    with pytest.raises(ValueError, match=r"shape \(n, 2\)"):
        coordinates_of(table(np.ones((9, 4))))


# uns["spatial"]


def test_other_entries_of_uns_are_ignored(one):
    expected = pp.tiles(one, size_px=16, copy=True).obsm["stamp_tiles"]
    one.uns["spatial"] |= {"is_single": np.True_, "note": "from the portal", "version": 3}
    np.testing.assert_array_equal(pp.tiles(one, size_px=16, copy=True).obsm["stamp_tiles"], expected)
    assert list(libraries_of(one)) == ["toy"]


def test_integer_keys(one):
    one.uns["spatial"] = {7: one.uns["spatial"]["toy"]}
    one.obs["slide"] = 7
    for column in (one.obs["slide"], one.obs["slide"].astype(float)):
        one.obs["slide"] = column
        (section,) = sections_of(one, library_key="slide", needs=("image",))
        assert section.library_name == "7"


@pytest.mark.parametrize(
    "change",
    [
        lambda factors: {k: np.array([v]) for k, v in factors.items()},
        lambda factors: {k: [v] for k, v in factors.items()},
        lambda factors: {k: str(v) for k, v in factors.items()},
        lambda factors: {k: np.array([[str(v)]]) for k, v in factors.items()},
        lambda factors: pd.DataFrame([factors]),
        lambda factors: pd.Series(factors).to_json(),
    ],
    ids=["arrays", "lists", "text", "arrays of text", "table", "json"],
)
def test_scale_factors_of_other_languages(one, change):
    expected = sections_of(one, needs=("scale",))[0].pixel
    one.uns["spatial"]["toy"]["scalefactors"] = change(one.uns["spatial"]["toy"]["scalefactors"])
    found = sections_of(one, needs=("image", "scale"))[0].pixel
    assert found.um_per_px == pytest.approx(expected.um_per_px)
    assert found.source == expected.source


def test_a_section_without_a_name_in_uns(one):
    one.uns["spatial"] = one.uns["spatial"]["toy"]
    assert sections_of(one, needs=("image", "scale"))[0].image.name == "hires"


@pytest.mark.parametrize("found", ["text", {"toy": np.zeros((9, 9, 3))}, {"toy": {"images": np.zeros((9, 9))}}])
def test_uns_laid_out_in_another_way_is_refused(one, found):
    one.uns["spatial"] = found
    with pytest.raises(TypeError, match="must contain images and scale factors by section"):
        sections_of(one)


def test_entry_of_none_is_not_a_section(one):
    one.uns["spatial"] = None
    with pytest.raises(KeyError, match=r"`adata.uns\['spatial'\]` has no section.*found an empty dict"):
        sections_of(one, needs=("image",))


def test_fullres_needs_no_scale_factor(one):
    library = one.uns["spatial"]["toy"]
    full = library["images"].pop("hires")
    library["images"] = {"lowres": library["images"]["lowres"], "fullres": full}
    (section,) = sections_of(one, needs=("image",))
    assert (section.image.name, section.image.scale) == ("fullres", 1.0)


@pytest.mark.parametrize("wrong", ["tissue_hires_scalef", "tissue_lowres_scalef"])
def test_scale_factors_that_two_sizes_of_a_picture_contradict(one, wrong):
    factors = one.uns["spatial"]["toy"]["scalefactors"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sections_of(one, needs=("image",))
    factors[wrong] = factors[wrong] / 5
    with pytest.warns(stampy.StampyWarning, match="seem to show the same image, but their scale factors"):
        sections_of(one, needs=("image",))


def test_a_label_without_an_entry(one):
    one.obs["sample"] = np.where(np.arange(120) < 60, "toy", "lost")
    named = {s.name: s.library_name for s in sections_of(one, library_key="sample")}
    assert named == {"lost": None, "toy": "toy"}
    with pytest.raises(KeyError, match=r"Section 'lost' not found in `adata.uns\['spatial'\]`"):
        sections_of(one, library_key="sample", needs=("image",))


# scale


FACTORS = {"spot_diameter_fullres": 65.0, "fiducial_diameter_fullres": 105.0, "tissue_hires_scalef": 0.2}


@pytest.mark.parametrize(
    ("xy", "change", "message"),
    [
        (np.rint(hexagonal(2.0) / [1, np.sqrt(3)]), {}, "rows and columns of the array"),
        (hexagonal() * 0.2, {}, "look like px of the hires image: divide them by `tissue_hires_scalef`"),
        (hexagonal(), {"spot_diameter_fullres": 240.0, "tissue_hires_scalef": 0.1}, "look like µm"),
        (hexagonal(), {"spot_diameter_fullres": 20.0, "fiducial_diameter_fullres": None}, "platform is not known"),
        (hexagonal(), {"microns_per_pixel": 0.2}, "`microns_per_pixel` .* contradicts the spots"),
        (hexagonal(), {"spot_diameter_fullres": None, "fiducial_diameter_fullres": None}, "it is 1"),
    ],
)
def test_contradictions_of_scale_are_refused(xy, change, message):
    with pytest.raises(ValueError, match=message):
        infer_um_per_px(xy, FACTORS | change)


@pytest.mark.parametrize(
    ("change", "doubt"),
    [
        ({}, ""),
        ({"microns_per_pixel": 1.02}, ""),
        ({"spot_diameter_fullres": None}, ""),  # grid and fiducials agree
        ({"fiducial_diameter_fullres": 50.0}, "fiducials would be 50 µm wide where they have 105 µm"),
        ({"spot_diameter_fullres": 30.0}, "spots would be 30 µm wide where Visium has 55 µm"),
        ({"spot_diameter_fullres": 30.0, "fiducial_diameter_fullres": 50.0}, "fiducials would be 50 µm wide"),
    ],
)
def test_a_grid_outranks_fiducials(change, doubt):
    pixel = infer_um_per_px(hexagonal(), FACTORS | change)
    assert pixel.um_per_px == pytest.approx(change.get("microns_per_pixel", 1.0))
    assert doubt in pixel.doubt
    assert bool(doubt) == bool(pixel.doubt)


def test_bins_as_wide_as_they_are_apart():
    y, x = np.divmod(np.arange(400), 20)
    bins = np.column_stack([x, y]) * 29.2
    assert infer_um_per_px(bins, {"spot_diameter_fullres": 29.3, "microns_per_pixel": 0.2738}).um_per_px == 0.2738


def test_array_positions_are_not_coordinates(one):
    one.obsm["spatial"] = one.obs[["array_col", "array_row"]].to_numpy(float)
    for options in ({}, {"um_per_px": 1.6}):
        with pytest.raises(ValueError, match="`array_col` and `array_row`, places on the array"):
            pp.tiles(one, size_px=16, **options)


def test_swapped_axes_are_named_on_a_square_image(one):
    hires = one.uns["spatial"]["toy"]["images"]["hires"]
    edge = max(hires.shape[:2])
    square = np.full((edge, edge, 3), 255, np.uint8)
    square[: hires.shape[0], : hires.shape[1]] = hires
    one.uns["spatial"]["toy"]["images"] = {"hires": square}
    pp.tiles(one, size_px=16, copy=True)
    one.obsm["spatial"] = one.obsm["spatial"][:, ::-1].copy()
    with pytest.warns(stampy.StampyWarning, match="x and y of the spots seem to be swapped"):
        pp.tiles(one, size_px=16)


def test_um_per_px_of_the_reduced_image_is_named(one):
    with pytest.warns(stampy.StampyWarning, match="µm apart on a hexagonal grid, but on Visium the distance is 100 µm"):
        pp.tiles(one, size_px=16, um_per_px=8.0)


# several sections in one table


def overlaid(n=2, shift=0.0, **columns):
    xy = np.concatenate([hexagonal() + i * shift for i in range(n)])
    return table(xy, sample=np.repeat([f"s{i}" for i in range(n)], 144).tolist(), **columns)


@pytest.mark.parametrize("shift", [0.0, 1.5, 37.0])
@pytest.mark.parametrize("n", [2, 9])
def test_overlaid_spots_are_refused_and_the_column_is_named(n, shift):
    adata = overlaid(n, shift, cluster=np.random.default_rng(0).integers(0, 7, n * 144).astype(str))
    with pytest.raises(ValueError, match=r"several sections that overlap.*would fit: 'sample'\)"):
        pp.neighborhoods(adata)
    pp.neighborhoods(adata, library_key="sample")


def test_overlaid_cells_are_refused():
    xy = np.concatenate([cells(seed=i) + 3 * i for i in range(3)])
    adata = table(xy, fov=np.repeat([1, 2, 3], 2000), kind=(np.arange(6000) % 5).astype(str))
    with pytest.raises(ValueError, match=r"would fit: 'fov'\)"):
        places_of(adata)


@quick
@given(st.integers(0, 1000), st.integers(2, 30))
def test_dense_cells_of_one_section_pass(seed, n_kinds):
    random = np.random.default_rng(seed)
    kinds = random.integers(0, n_kinds, 2000).astype(str)
    for xy in (cells(seed=seed), random.random((2000, 2)), np.rint(cells(seed=seed))):
        places_of(table(xy, kind=kinds, half=(xy[:, 0] > np.median(xy[:, 0])).astype(str)))


def test_functions_with_neighbours_or_folds_raise(one):
    both = ad.concat([one, one], label="sample", keys=["A", "B"], index_unique="-")
    both.obsm["X_e"] = np.random.default_rng(0).normal(size=(240, 4)).astype(np.float32)
    for call in (
        lambda: tl.domains(both, 2, use_rep="X_e", method="kmeans", smooth=6),
        lambda: tl.probe(both, "domain", use_rep="X_e"),
        lambda: tl.expression(both, use_rep="X_e", n_top_genes=5),
        lambda: tl.embed(both, modality="gene", context="neighbors", **QUIET),
        lambda: pp.bins(both, 250, um_per_px=1.6),
    ):
        with pytest.raises(ValueError, match=r"overlap.*would fit: 'sample'"):
            call()
    with pytest.warns(stampy.StampyWarning, match="coherence of the domains is not computed"):
        tl.domains(both, 2, use_rep="X_e", method="kmeans")


def test_sections_named_in_uns():
    adata = datasets.toy(n_spots=40, n_sections=2)
    with pytest.raises(ValueError, match=r"has 2 sections .*`library_key=` \(would fit: 'section'\)"):
        places_of(adata)
    with pytest.raises(ValueError, match="has 2 sections"):
        pp.tiles(adata, size_px=16)
    alone = adata[adata.obs["section"] == "toy_2"].copy()  # both are still in uns
    assert sections_of(alone, needs=("image", "scale"))[0].library_name == "toy_2"
    alone.uns["spatial"] = {"is_single": False}
    with pytest.raises(ValueError, match="'is_single'"):
        places_of(alone)


def test_embed_takes_the_one_column_that_fits():
    adata = datasets.toy(n_spots=40, n_sections=2)
    expected = tl.embed(adata, modality="gene", context="neighbors", library_key="section", copy=True, **QUIET)
    with pytest.warns(stampy.StampyWarning, match=r"separated by `adata.obs\['section'\]`"):
        tl.embed(adata, modality="gene", context="neighbors", **QUIET)
    np.testing.assert_array_equal(adata.obsm["X_stamp"], expected.obsm["X_stamp"])


# SpatialData

sdata_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@sdata_warnings
@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(["shapes", "points", "labels"]),
    st.floats(-3.2, 3.2),
    st.sampled_from([(1.0, 1.0), (2.0, 0.5), (-1.0, 1.5)]),
    st.floats(-300, 300),
)
def test_any_element_in_any_coordinates(toy, make_sdata, kind, angle, scales, shift):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = turn @ np.diag(scales), shift
    sdata = make_sdata(toy, kind, matrix)
    unit = np.sqrt(abs(scales[0] * scales[1]))
    (section,) = sections_of(sdata, ImageOptions(um_per_px=1.6 * unit), needs=("image", "scale"))
    most = 2.2 if kind == "labels" else 1e-6  # a label is three whole pixels wide
    assert np.abs(section.image_xy - toy.obsm["spatial"]).max() < most
    assert np.abs(section.xy * unit - toy.obsm["spatial"]).max() < most
    assert section.um_per_image_px == pytest.approx(1.6)
    assert section.source == f"sdata.{kind}['cells']"


@sdata_warnings
@pytest.mark.parametrize("kind", ["shapes", "labels"])
def test_everything_works_without_obsm_spatial(toy, make_sdata, kind):
    sdata = make_sdata(toy, kind, np.eye(3))
    tl.embed(sdata, modality="gene", context="neighbors", **QUIET)
    tl.domains(sdata, 3, use_rep="X_stamp", method="kmeans", smooth=6)
    tl.probe(sdata, "domain", use_rep="X_stamp")
    tl.expression(sdata, use_rep="X_stamp", n_top_genes=5)
    tl.retrieve(sdata, query="gene", target="gene", exclude="neighbors")
    pp.neighborhoods(sdata)
    pp.tiles(sdata, size_px=16, um_per_px=1.6)
    assert "spatial" not in sdata["table"].obsm
    if kind == "shapes":
        expected = tl.embed(toy, modality="gene", context="neighbors", copy=True, **QUIET)
        np.testing.assert_allclose(sdata["table"].obsm["X_stamp"], expected.obsm["X_stamp"], atol=1e-6)
        binned, own = pp.bins(sdata, 250, um_per_px=1.6), pp.bins(toy, 250, um_per_px=1.6)
        np.testing.assert_array_equal(binned.X.toarray(), own.X.toarray())


@sdata_warnings
def test_real_labels(data_dir):
    import spatialdata as sd

    sdata = sd.read_zarr(data_dir / "real_files" / "spatialdata_labels_blobs_v3.zarr")
    (section,) = sections_of(sdata)
    raster = sdata.labels["blobs_labels"].to_numpy()
    for i, number in enumerate(sdata["table"].obs["instance_id"]):
        y, x = np.nonzero(raster == number)
        np.testing.assert_allclose(section.xy[i], [x.mean() + 0.5, y.mean() + 0.5])


@sdata_warnings
def test_elements_that_do_not_match_raise(toy, make_sdata):
    sdata = make_sdata(toy, "shapes", np.eye(3))
    sdata.shapes["cells"] = sdata.shapes["cells"].iloc[:-2]
    with pytest.raises(ValueError, match=r"2 of 120 spots of the table are not in `sdata.shapes\['cells'\]`"):
        coordinates_of(sdata)
    del sdata.shapes["cells"]
    with pytest.raises(KeyError, match="annotates 'cells', which is in none of"):
        coordinates_of(sdata)
    sdata["table"].obsm["spatial"] = toy.obsm["spatial"]  # then the table is used alone
    np.testing.assert_array_equal(coordinates_of(sdata), toy.obsm["spatial"])


# neighbours


@quick
@given(st.integers(0, 10**6), st.integers(1, 6))
def test_neighbours_are_the_nearest_others(seed, k):
    xy = np.random.default_rng(seed).integers(0, 12, (60, 2)).astype(float)  # many at one place
    distances, rows = nearest(xy, k)
    apart = np.linalg.norm(xy[:, None] - xy, axis=-1)
    np.fill_diagonal(apart, np.inf)
    np.testing.assert_allclose(distances, np.sort(apart, axis=1)[:, :k])
    assert (rows != np.arange(60)[:, None]).all()
    codes = np.arange(60) % 2
    joined = graph(xy, k, codes).tocoo()
    assert (codes[joined.row] == codes[joined.col]).all()
    assert (graph(xy, k, codes).sum(axis=1) == k).all()


def test_array_rows_and_columns_are_distinguished_from_px_by_neighbors():
    row, column = np.divmod(np.arange(60), 10)
    indices = np.column_stack([2 * column + row % 2, row]).astype(float)
    with pytest.warns(stampy.StampyWarning, match="rows and columns of Visium's array"):
        pp.neighborhoods(table(indices), size=5)
    pp.neighborhoods(table(hexagonal(30.0)), size=5)


def test_um_per_px_does_not_hide_spots_wider_than_their_distance(one):
    one.obsm["spatial"] = one.obsm["spatial"] / 1000
    with pytest.warns(stampy.StampyWarning, match="do not have the same unit"):
        pp.tiles(one, size_px=16, um_per_px=1.6)


def test_array_indices_are_used_only_without_pixels_and_with_a_warning():
    indices = pd.DataFrame({"array_row": [0, 1], "array_col": [0, 1]}, index=["a", "b"])
    adata = table(indices.to_numpy())
    adata.obs_names = ["a", "b"]
    adata.obsm["spatial"] = indices
    with pytest.warns(stampy.StampyWarning, match="rows and columns of the array"):
        coordinates_of(adata)
    adata.obsm["spatial"] = indices.assign(a=[1.5, 2.5], b=[3.5, 4.5])
    with pytest.raises(ValueError, match="not clear which are x and y"):
        coordinates_of(adata)


def test_pixels_outrank_rows_and_columns_of_the_array(one):
    xy = one.obsm["spatial"]
    table = {"tissue": 1, "row": one.obs["array_row"], "col": one.obs["array_col"]}  # as Seurat 4 keeps them
    table |= {"imagerow": xy[:, 1], "imagecol": xy[:, 0]}
    one.obsm["spatial"] = pd.DataFrame(table, index=one.obs_names)
    np.testing.assert_array_equal(coordinates_of(one), xy)


def test_masked_coordinates_are_missing(one):
    one.obsm["spatial"] = np.ma.masked_array(one.obsm["spatial"], mask=np.zeros((one.n_obs, 2), bool))
    one.obsm["spatial"][3] = np.ma.masked
    with pytest.raises(ValueError, match=r"NaN or infinite coordinates for 1 of"):
        coordinates_of(one)


def test_coordinates_in_another_place_are_named(one):
    xy = one.obsm.pop("spatial")
    one.obs["x_pixel"], one.obs["y_pixel"] = xy.T
    with pytest.raises(KeyError, match=r"adata\.obs\[\['x_pixel', 'y_pixel'\]\]\.to_numpy\(\)"):
        coordinates_of(one)
    one.obsm["X_spatial"] = xy
    with pytest.raises(KeyError, match=r"`adata\.obsm\['spatial'\] = adata\.obsm\['X_spatial'\]`"):
        coordinates_of(one)


def test_spots_without_a_position_are_named(one):
    one.obsm["spatial"][:5] = 0
    with pytest.raises(ValueError, match=r"5 of \d+ spots have the same coordinates, \(0, 0\).*Remove them"):
        pp.neighborhoods(one)
    g = np.random.default_rng(0)
    many = ad.AnnData(np.ones((1000, 3)), obsm={"spatial": g.random((1000, 2)) * 900})
    many.obsm["spatial"][:4] = -1
    with pytest.warns(UserWarning, match=r"4 of 1000 spots have the same coordinates, \(-1, -1\)"):
        places_of(many)


def test_error_for_separate_cell_types_names_a_solution():
    y, x = np.mgrid[:30, :30]
    xy = np.column_stack([x.ravel(), y.ravel()]) * 30.0 + np.random.default_rng(0).normal(0, 5, (900, 2))
    cells = ad.AnnData(np.ones((900, 3)), obsm={"spatial": xy})
    cells.obs["kind"] = np.where((x + y).ravel() % 2, "a", "b")
    with pytest.raises(ValueError, match=r"would fit: 'kind'.*If it is one section, pass a column with only one value"):
        places_of(cells)
    cells.obs["section"] = "1"
    assert places_of(cells, library_key="section").names == ["1"]


def test_pixel_size_stated_by_the_file(one, tmp_path):
    picture = one.uns["spatial"]["toy"]["images"]["hires"]
    um = sections_of(one)[0].require_pixel().um_per_px
    for stated, doubted in ((um, False), (1.2 * um, False), (2 * um, True), (25_400 / 96, False)):  # the last: a screen
        path = tmp_path / f"{stated}.tif"
        tifffile.imwrite(path, picture, photometric="rgb", resolution=(1e4 / stated,) * 2, resolutionunit="CENTIMETER")
        notes = []
        sections_of(one, ImageOptions(image=path), needs=["image", "scale"], notes=notes)
        assert [f"states {stated:.4g} µm per px" in note for note in notes] == [True] * doubted
        sections_of(one, ImageOptions(image=path, um_per_px=um), needs=["image", "scale"])
    one.uns["spatial"]["toy"]["scalefactors"] = {"tissue_hires_scalef": 1.0}
    one.obsm["spatial"] = one.obsm["spatial"] + np.random.default_rng(0).normal(0, 20, (one.n_obs, 2))
    with pytest.raises(ValueError, match=r"`um_per_px=`.*The image file states"):
        sections_of(one, ImageOptions(image=path.with_name(f"{um}.tif")), needs=["scale"])
