"""Plots show the input of the models: image, coordinates and scale, in every storage."""

import anndata as ad
import h5py
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from PIL import Image
from sklearn.metrics import adjusted_rand_score

from stampy import datasets, pl, pp, tl
from stampy.pl._drawing import panel, view
from stampy.pp._tiles import TileSource

EDGE = 24  # px of the image across a tile


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def picture(height=200, width=240):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    values[0, 0] = 255
    return values


def spots(step=40):
    return np.stack(np.meshgrid(np.arange(40.0, 220, step), np.arange(40.0, 180, step)), axis=-1).reshape(-1, 2)


def table(xy):
    n = len(xy)
    obs = pd.DataFrame(
        {"domain": pd.Categorical.from_codes(np.arange(n) % 2, ["a", "b"])}, index=np.arange(n).astype(str)
    )
    return ad.AnnData(np.ones((n, 2), np.float32), obs=obs, var=pd.DataFrame(index=["G1", "G2"]))


def section(image, *, scale=1.0, key="hires"):
    adata = table(spots())
    adata.obsm["spatial"] = spots() / scale
    factors = {"spot_diameter_fullres": 20 / scale, f"tissue_{key}_scalef": scale}
    adata.uns["spatial"] = {"s": {"images": {key: image}, "scalefactors": factors, "metadata": {}}}
    return adata


def drawn(ax):
    """The pixels that are drawn, as 8-bit RGB."""
    (image,) = ax.images
    pixels = np.asarray(image.get_array())
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels * 255).astype(np.uint8)


def assert_drawn_is_what_models_see(data, **said):
    """Every tile of the drawn picture, cut where the drawn spot is, is the tile that a model gets."""
    source = TileSource.open(data, um_per_px=1.0, tile_um=EDGE / said.pop("scale", 1.0), size_px=EDGE, **said)
    ax = pl.spatial(data, "domain", image_alpha=1.0, **said)
    (image,) = ax.images
    left, right, bottom, top = image.get_extent()
    pixels = drawn(ax)
    (found,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    xy = (np.asarray(found.get_offsets()) - (left, top)) / (right - left, bottom - top) * pixels.shape[1::-1]
    for tile, (x, y) in zip(source.read(np.arange(len(source))), np.rint(xy).astype(int), strict=True):
        half = EDGE // 2
        np.testing.assert_array_equal(tile, pixels[y - half : y + half, x - half : x + half])


STORED = {
    "uint8": lambda p: p,
    "uint16 of 8 bit": lambda p: p.astype(np.uint16),
    "12 bit": lambda p: np.rint(p * (4095 / 255)).astype(np.uint16),
    "16 bit": lambda p: p.astype(np.uint16) * 257,
    "int32": lambda p: p.astype(np.int32),
    "int64": lambda p: p.astype(np.int64),
    "float": lambda p: p / 255,
    "float above 1": lambda p: p / 255 * 1.0000002,
    "float of 8 bit": lambda p: p.astype(np.float32),
    "half": lambda p: (p / 255).astype(np.float16),
    "bool": lambda p: p > 127,
    "channels first": lambda p: np.moveaxis(p, -1, 0),
    "rgba": lambda p: np.dstack([p, p[..., :1]]),
    "grey": lambda p: p[..., 0],
    "grey and opacity": lambda p: np.dstack([p[..., 0], np.where(p[..., 1] > 99, 255, 0).astype(np.uint8)]),
}


@pytest.mark.parametrize("name", STORED)
def test_drawn_pixels_are_those_of_the_tiles(name):
    assert_drawn_is_what_models_see(section(STORED[name](picture())))


@pytest.mark.parametrize(("key", "scale"), [("hires", 0.25), ("lowres", 2.0), ("fullres", 1.0)])
def test_view_matches_tiles_for_every_image_and_scale(key, scale):
    adata = section(picture(), key=key, scale=scale)
    if key == "fullres":
        del adata.uns["spatial"]["s"]["scalefactors"]["tissue_fullres_scalef"]
    assert_drawn_is_what_models_see(adata, scale=scale)
    assert_drawn_is_what_models_see(adata, scale=scale, image_key=key)


def test_finest_or_requested_image_is_drawn(tmp_path):
    adata = section(picture(50, 60), scale=0.25)
    library = adata.uns["spatial"]["s"]
    assert drawn(pl.spatial(adata)).shape == (50, 60, 3)
    library["images"]["fullres"] = picture(200, 240)
    assert drawn(pl.spatial(adata)).shape == (200, 240, 3)
    Image.fromarray(picture(200, 240)).save(tmp_path / "slide.png")
    library["metadata"] = {"source_image_path": str(tmp_path / "slide.png")}
    np.testing.assert_array_equal(drawn(pl.spatial(adata)), picture(200, 240))
    assert drawn(pl.spatial(adata, image_key="hires")).shape == (50, 60, 3)
    with pytest.raises(ValueError, match="image=False"):
        pl.spatial(adata, image_key="hires", image=False)
    (tmp_path / "slide.png").unlink()
    library["images"] = {}
    with pytest.warns(UserWarning, match="does not exist, and there is no other.*drawn without image"):
        assert not pl.spatial(adata).images


def test_a_large_image_is_read_where_it_is_shown_and_reduced(monkeypatch):
    monkeypatch.setattr(panel, "PANEL_PX", 50)
    adata = section(picture())
    whole = pl.spatial(adata, crop=False).images[0]
    assert whole.get_array().shape == (42, 50, 3)
    assert whole.get_extent() == [0, 240, 200, 0]
    part = pl.spatial(adata, crop=(100, 140, 60, 90)).images[0]
    np.testing.assert_array_equal(part.get_array(), picture()[60:90, 100:140])
    assert part.get_extent() == [100, 140, 90, 60]
    _, ax = plt.subplots(layout="constrained")  # its size is not known here: more is kept
    assert pl.spatial(adata, ax=ax).images[0].get_array().shape == (200, 240, 3)
    monkeypatch.setattr(view, "MAX_PX", 120)
    assert pl.spatial(adata, crop=False, ax=ax).images[-1].get_array().shape == (100, 120, 3)


# SpatialData


def spatialdata(kind, *, transform=None, dims=("y", "x", "c"), channels=None, image=None, **options):
    import dask.array as da
    import spatialdata as sd
    from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
    from xarray import DataArray

    xy, image = spots(), picture() if image is None else image
    adata = table(xy)
    adata.obs["region"], adata.obs["instance"] = pd.Categorical(["spots"] * len(xy)), np.arange(1, len(xy) + 1)
    if transform is not None:
        options["transformations"] = {"global": transform}
    array = DataArray(da.from_array(image), dims=dims)
    elements = {"images": {"he": Image2DModel.parse(array, c_coords=channels, **options)}}
    if kind == "shapes":
        elements["shapes"] = {"spots": ShapesModel.parse(xy, geometry=0, radius=10, index=adata.obs["instance"])}
    elif kind == "points":
        frame = pd.DataFrame(xy, columns=["x", "y"], index=adata.obs["instance"])
        elements["points"] = {"spots": PointsModel.parse(frame)}
    else:
        labels = np.zeros((200, 240), np.int32)
        for number, (x, y) in zip(adata.obs["instance"], xy.astype(int), strict=True):
            labels[y - 5 : y + 5, x - 5 : x + 5] = number
        elements["labels"] = {"spots": Labels2DModel.parse(labels, dims=("y", "x"))}
    parsed = TableModel.parse(adata, region="spots", region_key="region", instance_key="instance")
    return sd.SpatialData(**elements, tables={"table": parsed})


@pytest.mark.parametrize("kind", ["shapes", "labels", "points"])
def test_drawn_spatialdata_equals_model_input(kind):
    assert_drawn_is_what_models_see(spatialdata(kind))


@pytest.mark.parametrize("scales", [None, [2, 2]])
@pytest.mark.parametrize("channels", [None, ["0", "1", "2"], ["r", "g", "b"], ["B", "G", "R"]])
def test_channels_of_a_spatialdata(scales, channels):
    stored = picture()[..., ::-1] if channels == ["B", "G", "R"] else picture()
    data = spatialdata("shapes", image=stored, channels=channels, scale_factors=scales)
    np.testing.assert_array_equal(drawn(pl.spatial(data)), picture())
    assert_drawn_is_what_models_see(data)


def test_transformations_of_the_image():
    from spatialdata.transformations import Affine, Scale

    half = spatialdata("shapes", image=picture(100, 120), transform=Scale([2.0, 2.0], axes=("x", "y")))
    ax = pl.spatial(half, "domain")
    assert ax.images[0].get_extent() == pytest.approx((0, 240, 200, 0))
    mirrored = Affine([[-1, 0, 240], [0, 1, 0], [0, 0, 1]], input_axes=("x", "y"), output_axes=("x", "y"))
    data = spatialdata("shapes", image=picture()[:, ::-1], transform=mirrored)
    figures = []
    for one in (data, spatialdata("shapes")):
        ax = pl.spatial(one, "domain", image_alpha=1.0, legend=False, scale_bar=False)
        ax.images[0].set_interpolation("nearest")
        ax.figure.canvas.draw()
        figures.append(np.asarray(ax.figure.canvas.buffer_rgba())[..., :3].astype(int))
    assert np.abs(figures[0] - figures[1]).mean() < 2


@pytest.mark.parametrize("kind", ["shapes", "labels", "points"])
def test_every_plot_takes_a_spatialdata(kind):
    data = spatialdata(kind)
    adata = data.tables["table"]
    adata.obsm["X_e"] = np.random.default_rng(0).random((adata.n_obs, 4)).astype(np.float32)
    adata.obsm["X_umap"] = adata.obsm["X_e"][:, :2]
    found = pl.tiles(data, "domain", n_tiles=3, tile_um=EDGE, um_per_px=1.0).images
    assert len(found) == 6
    assert pl.umap(data, "domain") is not None
    assert pl.spatial(data, "X_e").images
    tl.domains(data, 2, use_rep="X_e")
    pl.domains(data)
    pp.tiles(data, size_px=16, um_per_px=1.0, tile_um=EDGE)
    adata.obs["hot"] = np.arange(adata.n_obs) * 1.0
    assert pl.spatial(data, "hot", sections="spots").images


def test_lazy_tables_are_drawn_as_others(tmp_path):
    adata = datasets.toy(n_spots=40)
    adata.write_h5ad(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad") as file:
        lazy = ad.experimental.read_lazy(file)
        for color in ("domain", "COL1A1"):
            assert np.array_equal(*(pl.spatial(x, color).collections[0].get_facecolors() for x in (adata, lazy)))
        assert [t.get_text() for t in pl.tiles(lazy, "domain", n_tiles=1).get_yticklabels()] == ["D1", "D2", "D3", "D4"]
    plt.close("all")


def test_wrong_inputs_of_plots_are_named():
    adata = datasets.toy(n_spots=20)
    adata.uns["domain_colors"] = ["red", "noir", "blue", "green"]
    with pytest.raises(ValueError, match=r"adata.uns\['domain_colors'\]` must contain colours.*noir"):
        pl.spatial(adata, "domain")
    with pytest.raises(KeyError, match=r"Pass the table of `stampy.bench.summary`"):
        pl.bench(pd.DataFrame())


def two_sections():
    """Two sections whose domains agree with the labels in the first only."""
    xy = np.concatenate([spots(), spots() + np.array([400, 0])])
    adata = table(xy)
    n = len(xy)
    adata.obsm["spatial"] = xy
    adata.obs["section"] = pd.Categorical(np.repeat(["s1", "s2"], n // 2))
    good = np.where(np.arange(n)[:, None] < n // 2, [1.0, 0.0], [0.0, 1.0])
    shuffled = np.random.default_rng(0).permutation(np.arange(n) % 2)
    own = np.where(np.arange(n) < n // 2, np.arange(n) % 2, shuffled)
    adata.obsm["X_e"] = np.stack([own, own], axis=1) + 0.01 * good
    tl.domains(adata, 2, use_rep="X_e", labels="domain", library_key="section")
    return adata


def ari(adata):
    return adjusted_rand_score(adata.obs["domain"], adata.obs["stamp_domain"])


def test_ari_in_the_title_is_that_of_the_plotted_spots():
    """A subset kept the ARI of the run on all spots."""
    adata = two_sections()
    one, other = (adata[adata.obs["section"] == name].copy() for name in ("s1", "s2"))
    assert ari(one) == 1.0
    assert ari(other) < ari(adata) < 0.9
    for part in (adata, one, other, adata[::3].copy()):
        del part.obs["section"]
        assert pl.domains(part, image=False)[1].get_title() == f"stamp_domain (ARI {ari(part):.2f})"


def test_ari_in_the_title_of_one_selected_section():
    """It was that of all sections."""
    adata = two_sections()
    axes = pl.domains(adata, library_key="section", sections="s1", image=False)
    assert axes[1].get_title() == "stamp_domain (ARI 1.00)"
    titles = [ax.get_title() for ax in pl.domains(adata, library_key="section", labels=False, image=False)]
    other = ari(adata[adata.obs["section"] == "s2"])
    assert titles == ["stamp_domain · s1 (ARI 1.00)", f"stamp_domain · s2 (ARI {other:.2f})"]


def test_missing_labels_of_domains_are_named():
    adata = two_sections()
    del adata.obs["domain"]
    with pytest.raises(KeyError, match="`labels=False` plots the domains alone"):
        pl.domains(adata, library_key="section", image=False)
    titles = [ax.get_title() for ax in pl.domains(adata, library_key="section", labels=False, image=False)]
    assert titles == ["stamp_domain · s1", "stamp_domain · s2"]


def test_no_ari_without_two_labels():
    adata = two_sections()
    part = adata[adata.obs["domain"] == "a"].copy()
    assert pl.domains(part, image=False)[1].get_title() == "stamp_domain"


def test_r_in_the_title_is_that_of_the_plotted_spots():
    adata = datasets.toy(n_spots=120, image=False)
    adata.obsm["X_xy"] = adata.obsm["spatial"]
    tl.expression(adata, ["COL1A1"], use_rep="X_xy")
    part = adata[:50].copy()
    for data in (adata, part):
        both = data.obsm["stamp_expression"][:, 0], data.obsm["stamp_expression_measured"][:, 0]
        r = np.corrcoef(*both)[0, 1]
        title = pl.expression(data, "COL1A1", show="predicted", image=False).get_title()
        assert title == f"COL1A1 predicted, pooled r {r:.2f}"
    scores = adata.uns["stamp"]["stamp_expression"]["scores"]
    whole = scores.loc[scores["level"] == "pooled", "pearson"].iloc[0]
    assert pl.expression(adata, "COL1A1", show="predicted", image=False).get_title().endswith(f"r {whole:.2f}")
