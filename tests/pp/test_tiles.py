"""Tiles: geometry, pixel size, AnnData and SpatialData as input, real sections, and invalid input."""

import threading
import tracemalloc
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stampy import datasets
from stampy._section.image.slide_image import SlideImage, open_spatialdata_image
from stampy._section.pixel_size import infer_um_per_px, lattice
from stampy._section.tile_boxes import choose_cells, region_boxes, region_cells, tile_boxes
from stampy.pp._tiles import TileSource, tiles

quick = settings(deadline=None, max_examples=30)


def ramp(height=240, width=250):
    """R is x, G is y: where a crop comes from can be read off it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


def smooth(height=600, width=700):
    y, x = np.mgrid[:height, :width]
    return (127 + 120 * np.stack([np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)], axis=-1)).astype(np.uint8)


def section(xy, image=None, scale=1.0, key="hires", **scalefactors):
    adata = ad.AnnData(np.ones((len(xy), 3), np.float32))
    adata.obsm["spatial"] = np.asarray(xy, dtype=float)
    if image is not None:
        factors = {"spot_diameter_fullres": 55.0, f"tissue_{key}_scalef": scale, **scalefactors}
        adata.uns["spatial"] = {"a": {"images": {key: image}, "scalefactors": factors}}
    return adata


def grid(kind, pitch=100.0, n=8, angle=0.0):
    row, column = (a.ravel().astype(float) for a in np.mgrid[:n, :n])
    if kind == "hexagonal":
        column, row = column + 0.5 * (row % 2), row * np.sqrt(0.75)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return pitch * np.column_stack([column, row]) @ turn.T


# geometry


def test_boxes_are_centred_and_cells_are_row_major():
    xy = np.array([[100.0, 50.0]])
    np.testing.assert_allclose(tile_boxes(xy, 0.5, 10.0), [[90, 40, 110, 60]])
    for cell in range(9):
        left, top, right, bottom = region_boxes(xy, 0.5, 10.0, cells=np.array([cell]))[0]
        assert (right - left, bottom - top) == (60, 60)
        assert (left + 20 * (cell % 3), top + 20 * (cell // 3)) == (90, 40)
    np.testing.assert_array_equal(region_boxes(xy, 0.5, 10.0, cells=np.array([-1])), region_boxes(xy, 0.5, 10.0))


@pytest.mark.parametrize("cells", [np.array([9]), np.array([-2]), np.array([1, 2])])
def test_invalid_cells_raise(cells):
    with pytest.raises(ValueError, match="-1 to 8"):
        region_boxes(np.zeros((1, 2)), 1.0, cells=cells)


@quick
@given(st.lists(st.tuples(st.floats(0, 90), st.floats(0, 70)), min_size=1, max_size=20), st.floats(0.5, 30))
def test_region_cells_are_those_inside(points, tile):
    xy = np.array(points)
    allowed = region_cells(xy, (70, 90), 1.0, tile)
    for cell in range(9):
        box = region_boxes(xy, 1.0, tile, cells=np.full(len(xy), cell))
        inside = (box >= -1e-6).all(axis=1) & (box[:, 2] <= 90 + 1e-6) & (box[:, 3] <= 70 + 1e-6)
        np.testing.assert_array_equal(allowed[:, cell], inside)


def test_choose_cells_is_uniform_among_the_allowed():
    allowed = np.zeros((30_000, 9), dtype=bool)
    allowed[:, [1, 5, 7]] = True
    allowed[:100] = False
    cells = choose_cells(allowed, np.random.default_rng(0))
    assert (cells[:100] == -1).all()
    share = np.bincount(cells[100:], minlength=9) / (len(cells) - 100)
    np.testing.assert_allclose(share[[1, 5, 7]], 1 / 3, atol=0.02)
    assert share.sum() == pytest.approx(share[[1, 5, 7]].sum())
    np.testing.assert_array_equal(cells, choose_cells(allowed, np.random.default_rng(0)))


# size of a pixel


@quick
@given(
    st.sampled_from(["hexagonal", "square"]),
    st.floats(1, 500),
    st.floats(0, np.pi),
    st.floats(0, 0.3),
    st.integers(0, 100),
)
def test_lattice_at_any_rotation_with_missing_spots(kind, pitch, angle, missing, seed):
    xy = grid(kind, pitch, 12, angle)
    xy = xy[np.random.default_rng(seed).random(len(xy)) >= missing]
    found = lattice(xy)
    assert found.kind == kind
    assert found.pitch == pytest.approx(pitch, rel=1e-6)


@pytest.mark.parametrize(
    "xy",
    [
        np.zeros((1, 2)),
        grid("square", n=2),
        np.zeros((30, 2)),
        np.column_stack([np.arange(30.0), np.zeros(30)]),
        np.random.default_rng(0).random((200, 2)),
    ],
    ids=["one", "four", "same", "line", "random"],
)
def test_no_lattice(xy):
    assert lattice(xy) is None


@pytest.mark.parametrize(
    ("kind", "spot_px", "um_per_px"),
    [
        ("hexagonal", 55.0, 1.0),  # as the platform has them
        ("hexagonal", 65.0, 1.0),  # Space Ranger's theoretical spots
        ("hexagonal", 70.0, 1.0),
        ("square", 50.0, 2.0),
        ("square", 51.0, 100 / 51),  # near the nominal diameter it counts, not the distance
    ],
)
def test_pixel_size_of_known_grids(kind, spot_px, um_per_px):
    pixel = infer_um_per_px(grid(kind), {"spot_diameter_fullres": spot_px})
    assert pixel.um_per_px == pytest.approx(um_per_px)
    assert not pixel.doubt


def test_pixel_size_in_order():
    factors = {"spot_diameter_fullres": 65.0, "fiducial_diameter_fullres": 105.0}
    few = grid("hexagonal")[:3]
    assert infer_um_per_px(few, factors).um_per_px == pytest.approx(1.0)
    assert infer_um_per_px(few, factors, spot_um=130).um_per_px == pytest.approx(2.0)
    assert infer_um_per_px(few, factors | {"microns_per_pixel": 0.27}).um_per_px == 0.27
    alone = infer_um_per_px(few, {"spot_diameter_fullres": 110.0})
    assert alone.um_per_px == pytest.approx(0.5)
    assert "3 spots" in alone.doubt
    assert "um_per_px" in alone.doubt
    odd = infer_um_per_px(grid("square"), {"spot_diameter_fullres": 70.0})
    assert odd.um_per_px == pytest.approx(2.0)
    assert "140 µm wide" in odd.doubt


@pytest.mark.parametrize(
    ("factors", "spot_um", "message"),
    [
        ({}, None, "no `spot_diameter_fullres`"),
        ({}, 55.0, "`spot_um` needs"),
        ({"spot_diameter_fullres": 100.0}, None, "neither Visium"),
        ({"spot_diameter_fullres": -1.0}, None, "positive number"),
        ({"spot_diameter_fullres": np.nan}, None, "positive number"),
    ],
)
def test_pixel_size_unknown(factors, spot_um, message):
    with pytest.raises(ValueError, match=message):
        infer_um_per_px(grid("square"), factors, spot_um=spot_um)


# crops


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_tiles_are_the_right_pixels(scale):
    picture = ramp()
    xy = np.array([[100, 60], [16, 16], [240, 230], [0, 0], [250, 240]]) / scale  # the last three cross the border
    adata = section(xy, picture, scale)
    got = TileSource.open(adata, um_per_px=1.0, tile_um=32 / scale, size_px=32, fill=(1, 2, 3)).read(np.arange(5))
    padded = np.empty((240 + 64, 250 + 64, 3), np.uint8)
    padded[:] = (1, 2, 3)
    padded[32:-32, 32:-32] = picture
    for tile, (x, y) in zip(got, (xy * scale).astype(int), strict=True):
        np.testing.assert_array_equal(tile, padded[y + 16 : y + 48, x + 16 : x + 48])


@quick
@given(st.floats(60, 180), st.floats(60, 180), st.floats(8, 60))
def test_centres_are_exact_below_a_pixel(x, y, edge):
    tile = SlideImage.from_array(ramp()).tile((x - edge / 2, y - edge / 2, x + edge / 2, y + edge / 2), 64)
    red, green = tile[:, :, 0].mean(), tile[:, :, 1].mean()  # value i is at i + 0.5
    rounding = 0.26  # of 8 bits, up to a quarter if every second pixel is halfway between two values, as at edge 32
    assert abs(red - (x - 0.5)) < rounding
    assert abs(green - (y - 0.5)) < rounding
    assert abs((tile[:, -1, 0].mean() - tile[:, 0, 0].mean()) - edge * 63 / 64) < 1.1


@quick
@given(st.permutations(range(12)))
def test_row_i_is_spot_i(order):
    xy = np.random.default_rng(0).uniform(0, 230, (12, 2))
    adata = section(xy, ramp())
    options = {"um_per_px": 1.0, "tile_um": 20, "size_px": 20}
    straight = TileSource.open(adata, **options).read(np.arange(12))
    order = np.array(order)
    np.testing.assert_array_equal(TileSource.open(adata[order], **options).read(np.arange(12)), straight[order])
    np.testing.assert_array_equal(TileSource.open(adata, **options).read(order), straight[order])


def test_a_region_holds_its_patch_in_the_cell():
    source = TileSource.open(section([[120.0, 110.0]] * 10, ramp()), um_per_px=1.0, tile_um=16, size_px=48)
    cells = np.array([*range(9), -1])
    regions = source.read(np.arange(10), region=True, cells=cells)
    for region, cell in zip(regions, np.where(cells < 0, 4, cells), strict=True):
        row, column = 16 * (cell // 3), 16 * (cell % 3)
        patch = region[row : row + 16, column : column + 16]
        np.testing.assert_array_equal(patch, ramp()[102:118, 112:128])
    np.testing.assert_array_equal(source.read([0], region=True)[0], regions[-1])
    assert source.region_cells().all()


def test_threads_read_equal_tiles():
    xy = np.full((40, 2), 100.0) + np.arange(40)[:, None]
    source = TileSource.open(section(xy, ramp()), um_per_px=3.0, size_px=64)
    alone = source.read(np.arange(40))
    barrier = threading.Barrier(4)

    def part(rows):
        barrier.wait(timeout=10)
        return source.read(rows)

    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(part, np.split(np.arange(40), 4)))
    np.testing.assert_array_equal(np.concatenate(parts), alone)


def test_a_large_slide_costs_little_memory(tmp_path):
    edge, step = 20_000, 512
    across = -(-edge // step)
    filled = np.full((step, step, 3), 90, np.uint8)
    path = tmp_path / "large.tif"
    tifffile.imwrite(
        path,
        (filled if i == 0 else None for i in range(across**2)),  # the others are left out of the file
        shape=(edge, edge, 3),
        dtype=np.uint8,
        photometric="rgb",
        tile=(step, step),
        compression="deflate",
    )
    xy = np.array([[256, 256], [19_990, 30], [12_000, 9_000]])
    tracemalloc.start()
    source = TileSource.open(section(xy), image=path, um_per_px=0.25)
    got = source.read(np.arange(3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()
    assert peak < 40e6
    assert (got[0] == 90).all()
    assert (got[1:] == 255).all()


# AnnData at the door


def test_tiles_writes_only_its_keys(tmp_path):
    adata = datasets.toy(n_spots=30)
    before = adata.copy()
    changed = tiles(adata, size_px=32, copy=True)
    assert "stamp_tiles" not in adata.obsm
    assert tiles(adata, size_px=32) is None
    assert adata.obsm["stamp_tiles"].shape == (30, 32, 32, 3)
    assert adata.obsm["stamp_tiles"].dtype == np.uint8
    np.testing.assert_array_equal(changed.obsm["stamp_tiles"], adata.obsm["stamp_tiles"])
    tiles(adata, size_px=32, region=True, key_added="regions")
    assert not np.array_equal(adata.obsm["regions"], adata.obsm["stamp_tiles"])
    library = next(iter(before.uns["spatial"]))
    for name, image in before.uns["spatial"][library]["images"].items():
        np.testing.assert_array_equal(adata.uns["spatial"][library]["images"][name], image)
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.obsm["stamp_tiles"], adata.obsm["stamp_tiles"])
    about = back.uns["stamp"]["stamp_tiles"]
    assert about["um_per_px"][0] == pytest.approx(1.6, rel=0.01)
    assert about["tile_um"] == 112
    assert not about["region"]
    assert back.uns["stamp"]["regions"]["region"]


def test_finest_image_is_used_by_default():
    adata = section(grid("hexagonal", 20.0), ramp(), 1.0, spot_diameter_fullres=4.0)
    library = adata.uns["spatial"]["a"]
    library["images"] = {"lowres": ramp()[::4, ::4], **library["images"], "unscaled": ramp()}
    library["scalefactors"]["tissue_lowres_scalef"] = 0.25
    options = {"um_per_px": 1.0, "size_px": 20}
    assert TileSource.open(adata, **options).sections[0].image.name == "hires"
    source = TileSource.open(adata, image_key="lowres", **options)
    assert source.sections[0].image.name == "lowres"
    assert source.upsampling == {"": pytest.approx(20 / 28)}
    with pytest.raises(KeyError, match="`medium` not found"):
        TileSource.open(adata, image_key="medium")
    with pytest.raises(KeyError, match="tissue_unscaled_scalef"):
        TileSource.open(adata, image_key="unscaled")


def test_sections_each_have_their_image():
    one = section([[50.0, 150.0], [100.0, 50.0]])
    two = section([[150.0, 100.0], [60.0, 70.0]])
    adata = ad.concat([one, two], label="slide", keys=["b", "a"], index_unique="-")[[0, 2, 1, 3]].copy()
    adata.uns["spatial"] = {
        name: {"images": {"hires": ramp() + np.uint8([0, 0, value])}, "scalefactors": {"tissue_hires_scalef": 1.0}}
        for name, value in (("a", 10), ("b", 20))
    }
    source = TileSource.open(adata, library_key="slide", um_per_px={"a": 1.0, "b": 2.0}, tile_um=20, size_px=10)
    assert source.um_per_px == {"a": 1.0, "b": 2.0}
    middles = source.read(np.array([0, 3, 1, 2])).mean(axis=(1, 2)) + np.array([0.5, 0.5, 0])  # value i: i + 0.5
    expected = [[50, 150, 27], [60, 70, 17], [150, 100, 17], [100, 50, 27]]
    np.testing.assert_allclose(middles, expected, atol=0.6)
    assert source.region_cells().all()
    given = {"a": np.full((160, 160), 1, np.uint8), "b": np.full((160, 160), 2, np.uint8)}
    source = TileSource.open(adata, library_key="slide", image=given, um_per_px=1.0, tile_um=20, size_px=10)
    assert source.read(np.arange(4))[:, 0, 0, 0].tolist() == [2, 1, 2, 1]
    with pytest.raises(ValueError, match="2 sections"):
        TileSource.open(adata, um_per_px=1.0)
    with pytest.raises(ValueError, match="One `image` was given for 2 sections"):
        TileSource.open(adata, library_key="slide", image=given["a"], um_per_px=1.0)
    with pytest.raises(KeyError, match="`a` not found in `image`"):
        TileSource.open(adata, library_key="slide", image={"b": given["b"]}, um_per_px=1.0)
    del adata.uns["spatial"]["b"]
    with pytest.raises(KeyError, match="Section 'b' not found"):
        TileSource.open(adata, library_key="slide", um_per_px=1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.obsm.clear(), KeyError, "`spatial` not found"),
        (lambda a: a.uns.clear(), KeyError, "`spatial` not found in `adata.uns`"),
        (lambda a: a.uns["spatial"].clear(), KeyError, "has no section: .* found an empty dict"),
        (lambda a: a.uns["spatial"]["a"]["images"].clear(), KeyError, "No image with a scale factor"),
        (lambda a: a.uns["spatial"]["a"].clear(), KeyError, "No image with a scale factor"),
        (lambda a: a.obsm["spatial"].__setitem__((0, 0), np.nan), ValueError, "NaN"),
        (lambda a: a.obsm["spatial"].__iadd__(5000), ValueError, r"outside.*x 5000 to .* 250 px wide and 240 px high"),
        (
            lambda a: a.uns["spatial"]["a"]["scalefactors"].__setitem__("tissue_hires_scalef", 0.0),
            ValueError,
            "positive",
        ),
    ],
)
def test_bad_sections(change, error, message):
    adata = section(grid("hexagonal", 20.0), ramp(), spot_diameter_fullres=11.0)
    change(adata)
    with pytest.raises(error, match=message):
        TileSource.open(adata, um_per_px=5.0)


def test_swapped_axes_are_named():
    adata = section([[10, 300], [40, 280], [90, 350], [30, 120]], np.zeros((100, 400, 3), np.uint8))
    with pytest.raises(ValueError, match=r"4 of 4 spots.*would fit with x and y swapped"):
        TileSource.open(adata, um_per_px=1.0)


def test_some_spots_outside_are_padded():
    adata = section([[10, 20], [40, 50], [900, 50]], ramp())
    with pytest.warns(UserWarning, match="1 of 3 spots are outside"):
        source = TileSource.open(adata, um_per_px=1.0, tile_um=10, size_px=10)
    assert (source.read([2]) == 255).all()
    assert not source.region_cells()[2].any()


def test_coarse_images_warn_once_with_the_factor():
    adata = section(grid("hexagonal", 40.0), ramp(300, 300), 0.5, spot_diameter_fullres=22.0)
    with pytest.warns(UserWarning, match=r"22 px across, enlarged 10\.0 times to 224 px.*`image=`") as caught:
        TileSource.open(adata)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TileSource.open(adata, size_px=64)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"um_per_px": 1.0, "spot_um": 55.0}, ValueError, "not both"),
        ({"image": ramp(), "image_key": "hires"}, ValueError, "not both"),
        ({"um_per_px": 0.0}, ValueError, "above 0"),
        ({"um_per_px": "1"}, TypeError, "must be a number"),
        ({"um_per_px": 1e-4}, ValueError, "1120000 px wide"),
        ({"um_per_px": 1.0, "tile_um": -1}, ValueError, "at least 0"),
        ({"um_per_px": 1.0, "size_px": 10.5}, TypeError, "integer"),
        ({"um_per_px": 1.0, "fill": (0, 0, 256)}, ValueError, "`fill`"),
        ({"um_per_px": 1.0, "fill": "white"}, ValueError, "`fill`"),
        ({"um_per_px": 1.0, "image": 3}, TypeError, "path, an array, a SlideImage or a WSIData"),
        ({"um_per_px": 1.0, "library_key": "slide"}, KeyError, "`slide` not found"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        TileSource.open(section([[20, 20], [60, 30], [100, 90]], ramp(), spot_diameter_fullres=11.0), **options)


def test_bad_rows():
    source = TileSource.open(section([[50, 60]], ramp()), um_per_px=1.0, size_px=100)
    for rows in ([1], [-1]):
        with pytest.raises(IndexError, match=r"0\.\.0"):
            source.read(rows)
    with pytest.raises(ValueError, match="without `region=True`"):
        source.read([0], cells=np.array([1]))
    assert source.read([]).shape == (0, 100, 100, 3)


def test_empty_section_and_wrong_type():
    with pytest.raises(ValueError, match="is empty"):
        TileSource.open(section(np.zeros((0, 2)), ramp()))
    with pytest.raises(TypeError, match="AnnData or SpatialData"):
        TileSource.open(SimpleNamespace())


# SpatialData

sdata_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*:UserWarning:(spatialdata|xarray|dask|zarr)"
)


def make_sdata(xy, picture, *, factor=1.0, multiscale=False, radius=5.5, n_images=1):
    import pandas as pd
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Scale

    names = [f"s{i}" for i in range(len(xy))]
    image = Image2DModel.parse(
        np.moveaxis(picture, -1, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        scale_factors=[2, 2] if multiscale else None,
        transformations={"global": Scale([factor, factor], axes=("x", "y"))},
    ).persist()  # else each tile of a coarse level averages the fine ones again
    shapes = ShapesModel.parse(np.asarray(xy, float)[::-1], geometry=0, radius=radius, index=names[::-1])
    obs = pd.DataFrame({"region": pd.Categorical(["spots"] * len(xy)), "id": names}, index=names)
    table = TableModel.parse(
        ad.AnnData(np.ones((len(xy), 2), np.float32), obs=obs), region="spots", region_key="region", instance_key="id"
    )
    images = {f"image{i}": image for i in range(n_images)}
    return sd.SpatialData(images=images, shapes={"spots": shapes}, tables={"table": table})


@sdata_warnings
@pytest.mark.parametrize("multiscale", [False, True])
def test_spatialdata_gives_the_tiles_of_the_array(multiscale):
    picture = smooth()
    xy = grid("hexagonal", 40.0) * 3 + 200  # of an image 3 times as fine: 120 px are 100 µm
    sdata = make_sdata(xy, picture, factor=3.0, multiscale=multiscale, radius=33.0)
    expected = TileSource.open(section(xy, picture, 1 / 3, spot_diameter_fullres=66.0), size_px=20)
    source = TileSource.open(sdata, size_px=20)
    assert source.um_per_px == {"spots": pytest.approx(100 / 120)}
    assert source.upsampling["spots"] == pytest.approx(expected.upsampling[""])
    assert len(source.sections[0].image.levels) == (3 if multiscale else 1)
    error = np.abs(source.read(np.arange(64)).astype(int) - expected.read(np.arange(64)))
    assert error.max() <= (10 if multiscale else 0)
    tiles(sdata, size_px=20)
    np.testing.assert_array_equal(sdata.tables["table"].obsm["stamp_tiles"], source.read(np.arange(64)))


@sdata_warnings
def test_spatialdata_is_read_lazily():
    import dask.array as da

    read = []

    def block(block_info=None):
        read.append(block_info[None]["chunk-location"])
        return np.zeros((3, 500, 500), np.uint8)

    lazy = da.map_blocks(
        block, chunks=((3,), (500,) * 10, (500,) * 10), dtype=np.uint8, meta=np.zeros((0, 0, 0), np.uint8)
    )
    read.clear()
    from xarray import DataArray

    image = open_spatialdata_image(DataArray(lazy, dims=("c", "y", "x"), coords={"c": ["r", "g", "b"]}))
    image.tile((600, 1600, 800, 1800), 100)
    assert read == [(0, 3, 1)]


@sdata_warnings
def test_spatialdata_other_sources():
    xy = grid("hexagonal", 20.0) + 30
    sdata = make_sdata(xy, ramp())
    copied = tiles(sdata, size_px=20, copy=True)
    assert "stamp_tiles" in copied.tables["table"].obsm
    assert "stamp_tiles" not in sdata.tables["table"].obsm
    assert copied.images["image0"] is sdata.images["image0"]
    table = sdata.tables["table"]
    table.obsm["spatial"] = xy
    given = TileSource.open(sdata, image=ramp(), um_per_px=5.0, size_px=20)
    np.testing.assert_array_equal(given.read([3]), TileSource.open(sdata, um_per_px=5.0, size_px=20).read([3]))
    del table.uns["spatialdata_attrs"]  # without a region, coordinates are px of the image
    np.testing.assert_array_equal(given.read([3]), TileSource.open(sdata, um_per_px=5.0, size_px=20).read([3]))


@sdata_warnings
def test_spatialdata_bad_input():
    xy = grid("hexagonal", 20.0) + 30
    with pytest.raises(ValueError, match=r"several images.*image_key"):
        TileSource.open(make_sdata(xy, ramp(), n_images=2))
    assert len(TileSource.open(make_sdata(xy, ramp(), n_images=2), image_key="image1", size_px=20)) == 64
    with pytest.raises(KeyError, match=r"`other` not found in `sdata\.images`"):
        TileSource.open(make_sdata(xy, ramp()), image_key="other")
    with pytest.raises(KeyError, match=r"`cells` not found in `sdata\.tables`"):
        TileSource.open(make_sdata(xy, ramp()), table_key="cells")
    with pytest.raises(ValueError, match="outside the image"):
        TileSource.open(make_sdata(xy + 1000, ramp()))
    lost = make_sdata(xy, ramp())
    lost.shapes["spots"] = lost.shapes["spots"].iloc[:-2]
    with pytest.raises(ValueError, match=r"2 of 64 spots of the table are not in"):
        TileSource.open(lost)


# real sections


@pytest.mark.parametrize(
    ("name", "um_per_px", "platform"),
    [
        ("CRC16_human", 1.297, "Visium"),
        ("LymphNode_V1_human", 0.725, "Visium"),
        ("DLPFC_151673", 0.726, "Visium"),
        ("HER2ST_C2", 0.690, "ST"),
        ("HER2ST_A1", 0.920, "ST"),
    ],
)
def test_pixel_size_of_real_sections(data_dir, name, um_per_px, platform):
    adata = ad.read_h5ad(data_dir / "sections" / f"{name}.h5ad", backed="r")
    factors = adata.uns["spatial"][name]["scalefactors"]
    pixel = infer_um_per_px(adata.obsm["spatial"], factors)
    adata.file.close()
    assert pixel.um_per_px == pytest.approx(um_per_px, rel=0.01)
    assert pixel.source.startswith(platform)
    assert not pixel.doubt
    if platform == "Visium":  # a single spot gets the scale of its section
        one = infer_um_per_px(adata.obsm["spatial"][:1], factors)
        assert one.um_per_px == pytest.approx(pixel.um_per_px, rel=0.01)


def test_a_grid_of_no_known_platform(data_dir):
    folder = data_dir / "10x" / "breast_msti" / "spatial"
    columns = np.loadtxt(folder / "tissue_positions_list.csv", delimiter=",", usecols=(5, 4))
    adata = section(columns, np.asarray(Image.open(folder / "tissue_lowres_image.png")), 0.1, "lowres")
    factors = adata.uns["spatial"]["a"]["scalefactors"]
    factors |= {"spot_diameter_fullres": 117.647, "fiducial_diameter_fullres": 147.647}
    with pytest.raises(ValueError, match=r"117\.6 px apart on a square grid.*um_per_px"):
        TileSource.open(adata)
    assert TileSource.open(adata, spot_um=15, size_px=50).um_per_px == {"": pytest.approx(15 / 117.647)}


def test_a_full_resolution_jpeg(data_dir):
    adata = ad.read_h5ad(data_dir / "sections" / "HER2ST_C2.h5ad")
    source = TileSource.open(adata, image=data_dir / "images" / "HER2ST_C2.jpg")  # 92 Mpx, without a warning
    assert source.um_per_px[""] == pytest.approx(0.69, abs=0.01)
    assert source.upsampling[""] == pytest.approx(1.38, abs=0.02)
    got = source.read(np.arange(0, 187, 10))
    assert got.mean() < 200  # tissue, not the white slide
    x, y = adata.obsm["spatial"][50]
    edge = 112 / source.um_per_px[""]
    picture = source.sections[0].image.levels[0].array
    around = picture[int(y - edge / 2) : int(y + edge / 2), int(x - edge / 2) : int(x + edge / 2)]
    np.testing.assert_allclose(got[5].mean(axis=(0, 1)), around.mean(axis=(0, 1)), atol=2)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::SyntaxWarning", "ignore:Variable names:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_space_ranger_folder(data_dir):
    import scanpy as sc

    adata = sc.read_visium(data_dir / "10x" / "crc16")
    with pytest.warns(UserWarning, match=r"25 px across, enlarged 9\.0 times"):
        source = TileSource.open(adata)
    assert source.sections[0].image.name == "hires"
    assert source.read(np.arange(5)).shape == (5, 224, 224, 3)
    assert source.region_cells().all(axis=1).mean() > 0.9
