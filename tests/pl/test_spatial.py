"""Plots: contents of the artists, legends and titles; plots write nothing."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import EllipseCollection
from matplotlib.colors import to_hex, to_rgba
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from scipy import sparse

from stampy import datasets, pl
from stampy._section.pixel_size import lattice
from stampy.pl._drawing.paint import HIGH, LOW, MISSING, SAFE, colors_of, default_colors, embedding_rgb
from stampy.pl._drawing.view import drawing_distance

GREY = to_rgba(MISSING)
quick = settings(deadline=None, max_examples=30)


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def hexagons(n_rows=8, n_cols=9, pitch=200.0, origin=500.0):
    row, col = (a.ravel() for a in np.mgrid[:n_rows, :n_cols])
    return np.column_stack([(col + 0.5 * (row % 2)) * pitch, row * pitch * 0.75**0.5]) + origin


def section(xy=None, *, diameter=130.0, images=("hires", "lowres"), name="s1"):
    """Pixel scale 0.5 µm; hires is a quarter, lowres a twentieth of a full resolution of 3200 x 2400."""
    xy = hexagons() if xy is None else np.asarray(xy, dtype=float)
    n = len(xy)
    counts = sparse.csr_matrix(np.column_stack([np.arange(n), np.zeros(n), np.ones(n)]).astype(np.int32))
    adata = ad.AnnData(
        counts,
        obs=pd.DataFrame(
            {
                "domain": pd.Categorical.from_codes(np.arange(n) % 3, ["b", "a", "c"]),
                "score": np.linspace(-1, 1, n),
                "flag": np.arange(n) % 2 == 0,
                "section": name,
            },
            index=[f"{name}-{i}" for i in range(n)],
        ),
        var=pd.DataFrame({"symbol": ["Alpha", "Beta", "Gamma"]}, index=["G1", "G2", "G3"]),
        obsm={"spatial": xy, "X_e": np.column_stack([xy, np.arange(n) % 5, np.zeros(n)])},
    )
    shapes = {"hires": ((600, 800, 3), 0.25), "lowres": ((120, 160, 3), 0.05)}
    adata.uns["spatial"] = {
        name: {
            "images": {k: np.full(shapes[k][0], 200, dtype=np.uint8) for k in images},
            "scalefactors": {"spot_diameter_fullres": diameter, **{f"tissue_{k}_scalef": shapes[k][1] for k in images}},
        }
    }
    return adata


def two_sections():
    both = ad.concat([section(name="s1"), section(hexagons(6, 6), name="s2")], uns_merge="unique")
    both.var = section().var
    return both


def spots(ax) -> EllipseCollection:
    (found,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    return found


def names(ax) -> list[str]:
    return [] if ax.get_legend() is None else [t.get_text() for t in ax.get_legend().get_texts()]


def bar_um(ax) -> str | None:
    bars = [a for a in ax.artists if isinstance(a, AnchoredSizeBar)]
    return bars[0].txt_label.get_text() if bars else None


def inside(ax) -> bool:
    """Whether all that belongs to the panel lies within the figure."""
    box, figure = ax.get_tightbbox(), ax.figure.bbox
    return box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.x1 + 1 and box.y1 <= figure.y1 + 1


# --- where things lie


def test_spots_lie_at_their_coordinates_with_their_diameter():
    adata = section()
    ax = pl.spatial(adata, "domain")
    np.testing.assert_array_equal(spots(ax).get_offsets(), adata.obsm["spatial"])
    ax = pl.spatial(adata, "domain", image=False, palette=["k"] * 3, legend=False, scale_bar=False, title="")
    ax.figure.canvas.draw()
    dark = np.argwhere(np.asarray(ax.figure.canvas.buffer_rgba())[:, :, 0] < 128)
    px = ax.get_window_extent().width / np.ptp(ax.get_xlim())
    np.testing.assert_allclose(
        np.ptp(dark, axis=0)[::-1] + 1, (np.ptp(adata.obsm["spatial"], axis=0) + 130) * px, atol=2
    )
    np.testing.assert_allclose(spots(pl.spatial(adata, "domain", size=2.0)).get_widths(), 260)


@pytest.mark.parametrize(
    ("images", "shape"), [(("hires", "lowres"), (600, 800)), (("lowres",), (120, 160)), (("hires",), (600, 800))]
)
def test_best_image_spans_the_full_resolution(images, shape):
    ax = pl.spatial(section(images=images), "domain")
    (image,) = ax.images
    assert image.get_array().shape[:2] == shape
    assert image.get_extent() == pytest.approx((0, 3200, 2400, 0))


def test_y_runs_downwards_aspect_is_equal_and_there_are_no_ticks():
    for image in (True, False):
        ax = pl.spatial(section(), "domain", image=image)
        assert ax.get_ylim()[0] > ax.get_ylim()[1]
        assert ax.get_aspect() == 1
        assert len(ax.get_xticks()) == len(ax.get_yticks()) == 0
        assert len(ax.images) == image


def test_crop_keeps_every_spot_whole_and_no_crop_shows_the_image():
    adata = section()
    xy = adata.obsm["spatial"]
    (left, right), (bottom, top) = (lambda ax: (ax.get_xlim(), ax.get_ylim()))(pl.spatial(adata, "domain"))
    assert left < xy[:, 0].min() - 65
    assert right > xy[:, 0].max() + 65
    assert top < xy[:, 1].min() - 65
    assert bottom > xy[:, 1].max() + 65
    assert right - left < 3000
    whole = pl.spatial(adata, "domain", crop=False)
    assert (*whole.get_xlim(), *whole.get_ylim()) == (0, 3200, 2400, 0)


def test_opacities():
    ax = pl.spatial(section(), "domain", alpha=0.5)
    assert (spots(ax).get_facecolors()[:, 3] == 0.5).all()
    assert ax.images[0].get_alpha() == 0.6
    assert pl.spatial(section()).images[0].get_alpha() == 1.0
    assert pl.spatial(section(), "domain", image_alpha=0.3).images[0].get_alpha() == 0.3


def test_many_spots_are_rasterised():
    xy = np.random.default_rng(0).random((50_001, 2))
    adata = ad.AnnData(obs=pd.DataFrame({"v": xy[:, 0]}, index=np.arange(len(xy)).astype(str)), obsm={"spatial": xy})
    assert spots(pl.spatial(adata, "v")).get_rasterized()
    assert not spots(pl.spatial(section(), "domain")).get_rasterized()


# --- labels


def test_labels_keep_their_order_and_colours():
    ax = pl.spatial(section(), "domain")
    assert names(ax) == ["b", "a", "c"]
    assert [to_hex(c).upper() for c in spots(ax).get_facecolors()[:3]] == list(SAFE[:3])
    assert ax.get_title() == "domain"


def test_missing_labels_are_grey_and_named_last():
    adata = section()
    adata.obs["label"] = pd.Categorical.from_codes(np.arange(adata.n_obs) % 4 - 1, ["y", "NA", "x"])
    ax = pl.spatial(adata, "label")
    assert names(ax) == ["y", "x", "NA"]
    faces = spots(ax).get_facecolors()
    np.testing.assert_allclose(faces[[0, 2]], [GREY, GREY])  # no label, and a word that means none
    np.testing.assert_allclose(faces[[1, 3]], default_colors(2))


def test_stored_colours_are_used_if_they_fit():
    adata = section()
    adata.uns["domain_colors"] = np.array(["#ff0000", "#00ff00", "#0000ff"], dtype=object)
    np.testing.assert_allclose(spots(pl.spatial(adata, "domain")).get_facecolors()[:3, :3], np.eye(3))
    np.testing.assert_allclose(
        spots(pl.spatial(adata, "domain", palette=["w", "k", "w"])).get_facecolors()[:3, 0], [1, 0, 1]
    )
    adata.uns["domain_colors"] = ["#ff0000"]
    with pytest.warns(UserWarning, match="1 colours for 3 labels") as caught:
        ax = pl.spatial(adata, "domain")
    assert caught[0].filename == __file__
    np.testing.assert_allclose(spots(ax).get_facecolors()[:3], default_colors(3))


@pytest.mark.parametrize("dtype", [object, "string"])
def test_plain_strings_come_in_natural_order(dtype):
    adata = section()
    adata.obs["label"] = pd.Series([f"D{i % 11}" for i in range(adata.n_obs)], adata.obs_names, dtype=dtype)
    adata.obs.iloc[0, adata.obs.columns.get_loc("label")] = None
    assert names(pl.spatial(adata, "label")) == [*(f"D{i}" for i in range(11)), "NA"]


def test_booleans_and_mixed_objects_are_labels():
    adata = section()
    assert names(pl.spatial(adata, "flag")) == ["False", "True"]
    adata.obs["one"] = pd.Categorical(["only"] * adata.n_obs)
    assert names(pl.spatial(adata, "one")) == ["only"]
    adata.obs["mixed"] = [1 if i % 2 else "x" for i in range(adata.n_obs)]
    assert set(names(pl.spatial(adata, "mixed"))) == {"1", "x"}


@pytest.mark.parametrize("label", ["Größe µm β", "$\\frac{$", "_hidden", "a $ b $ c", "x" * 80])
def test_labels_with_markup_are_drawn_verbatim(label):
    adata = section()
    adata.obs[label] = pd.Categorical([label] * adata.n_obs)
    ax = pl.spatial(adata, label)
    ax.figure.canvas.draw()
    assert names(ax) == [label]
    assert inside(ax)


def test_legend_has_columns_or_is_left_out():
    adata = section()
    adata.obs["k"] = pd.Categorical([f"label {i % 45}" for i in range(adata.n_obs)])
    ax = pl.spatial(adata, "k")
    assert len(names(ax)) == 45
    assert ax.get_legend()._ncols > 1
    assert inside(ax)
    adata.obs["k"] = pd.Categorical(adata.obs_names)
    with pytest.warns(UserWarning, match="72 labels") as caught:
        ax = pl.spatial(adata, "k")
    assert caught[0].filename == __file__
    assert ax.get_legend() is None
    assert len(set(map(tuple, spots(ax).get_facecolors()))) == 72
    assert pl.spatial(adata, "k", legend=False).get_legend() is None


def test_legend_overlaps_no_spot():
    ax = pl.spatial(section(), "domain")
    assert ax.get_legend().get_window_extent().x0 > ax.get_window_extent().x1


# --- palettes


def simulated(colors: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """OKLab of the colours as seen with a colour deficiency (Machado et al. 2009, severity 1)."""
    rgb = np.asarray(colors)[:, :3]
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(matrix).T, 0, 1)
    lms = [[0.4122215, 0.5363325, 0.0514460], [0.2119035, 0.6806995, 0.1073970], [0.0883025, 0.2817188, 0.6299787]]
    lab = [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]
    return np.cbrt(linear @ np.array(lms).T) @ np.array(lab).T


@pytest.mark.parametrize(
    ("vision", "matrix"),
    [
        ("normal", np.eye(3).tolist()),
        ("protan", [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]),
        ("deutan", [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]),
    ],
)
def test_default_colours_are_distinguishable(vision, matrix):
    seen = simulated(np.vstack([default_colors(len(SAFE)), GREY]), matrix)
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
    assert distance.min() > 0.07, vision  # just noticeable is about 0.02


@quick
@given(n=st.integers(0, 700))
def test_default_colours_are_all_different(n):
    colors = default_colors(n)
    assert colors.shape == (n, 4)
    assert len(set(map(tuple, colors.round(6)))) == n
    assert GREY not in set(map(tuple, colors))


def test_palettes_of_every_kind():
    assert colors_of(["a", "b"], "tab10").tolist() == [list(c) for c in plt.get_cmap("tab10")([0, 1])]
    assert colors_of(["a", "b"], "viridis").tolist() == [list(c) for c in plt.get_cmap("viridis")([0.0, 1.0])]
    assert colors_of(["a", "b"], {"b": "k", "a": (1, 0, 0), "z": "w"}).tolist() == [[1, 0, 0, 1], [0, 0, 0, 1]]
    with pytest.raises(ValueError, match=r"no colour for \['b'\]"):
        colors_of(["a", "b"], {"a": "k"})
    with pytest.raises(ValueError, match="1 colours for 2 labels"):
        colors_of(["a", "b"], ["k"])
    with pytest.raises(ValueError, match="viridis"):
        colors_of(["a", "b"], "viridiss")


# --- values


def colorbar(ax):
    return ax.child_axes[0] if ax.child_axes else None


def test_values_of_a_gene_over_the_colour_map():
    adata = section()
    ax = pl.spatial(adata, "G1", cmap="magma")
    cmap = plt.get_cmap("magma")
    np.testing.assert_allclose(spots(ax).get_facecolors(), cmap(np.linspace(0, 1, adata.n_obs)), atol=0.02)
    assert colorbar(ax).get_ylabel() == "G1"
    assert colorbar(ax).get_ylim() == (0, adata.n_obs - 1)
    assert colorbar(ax).get_window_extent().width < 0.05 * ax.get_window_extent().width
    assert names(ax) == []


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "dask", "layer", "symbol"])
def test_genes_from_every_storage(kind):
    adata = section()
    expected = spots(pl.spatial(adata, "G1")).get_facecolors()
    if kind == "csc":
        adata.X = adata.X.tocsc()
    elif kind == "dense":
        adata.X = adata.X.toarray()
    elif kind == "dask":
        import dask.array

        adata.X = dask.array.from_array(adata.X.toarray(), chunks=(10, 3))
    elif kind == "layer":
        adata.layers["l"], adata.X = adata.X, None
    name, more = {"layer": ("G1", {"layer": "l"}), "symbol": ("Alpha", {"gene_symbols": "symbol"})}.get(
        kind, ("G1", {})
    )
    ax = pl.spatial(adata, name, **more)
    np.testing.assert_array_equal(spots(ax).get_facecolors(), expected)
    assert colorbar(ax).get_ylabel() == ("G1 (l)" if kind == "layer" else name)


def test_limits_are_numbers_or_percentiles():
    adata = section()
    adata.obs["v"] = np.arange(adata.n_obs, dtype=float)
    assert colorbar(pl.spatial(adata, "v", vmin=-5, vmax=100)).get_ylim() == (-5, 100)
    ax = pl.spatial(adata, "v", vmin="p10", vmax="p90")
    assert colorbar(ax).get_ylim() == pytest.approx((7.1, 63.9))
    np.testing.assert_allclose(spots(ax).get_facecolors()[[0, -1]], plt.get_cmap("viridis")([0.0, 1.0]))
    for bad in ("p", "99", "p101", "pp5"):
        with pytest.raises(ValueError, match="percentile such as"):
            pl.spatial(adata, "v", vmax=bad)
    with pytest.raises(ValueError, match="must not be above"):
        pl.spatial(adata, "v", vmin=2, vmax=1)


def test_missing_values_are_grey_and_named():
    adata = section()
    adata.obs["v"] = pd.array([None if i % 4 == 0 else i for i in range(adata.n_obs)], dtype="Int64")
    ax = pl.spatial(adata, "v")
    faces = spots(ax).get_facecolors()
    np.testing.assert_allclose(faces[::4], np.tile(GREY, (len(faces[::4]), 1)))
    assert GREY not in set(map(tuple, faces[1::4]))
    assert names(ax) == ["NA"]
    assert colorbar(ax) is not None
    assert inside(ax)
    legend, bar = ax.get_legend().get_window_extent(), colorbar(ax).get_window_extent()
    assert legend.y1 < bar.y0


def test_no_values_at_all():
    adata = section()
    adata.obs["v"] = np.nan
    with pytest.warns(UserWarning, match="no value at any spot") as caught:
        ax = pl.spatial(adata, "v")
    assert caught[0].filename == __file__
    assert names(ax) == ["NA"]
    assert colorbar(ax) is None
    assert set(map(tuple, spots(ax).get_facecolors())) == {GREY}


@pytest.mark.parametrize("gene", ["G2", "G3"])
def test_constant_values(gene):
    ax = pl.spatial(section(), gene)
    ax.figure.canvas.draw()
    assert len(set(map(tuple, spots(ax).get_facecolors()))) == 1
    low, high = colorbar(ax).get_ylim()
    assert low < high


# --- embeddings


def test_embedding_as_rgb_shows_its_components():
    adata = section()
    ax = pl.spatial(adata, "X_e")
    faces = spots(ax).get_facecolors()[:, :3]
    assert faces.min() == pytest.approx(LOW)
    assert faces.max() == pytest.approx(HIGH)
    wide = adata.obsm["spatial"][:, 0]
    assert np.corrcoef(faces[:, 0], wide)[0, 1] > 0.98  # the longer side of the section is the first component
    assert ax.get_title().startswith("X_e")
    assert ax.get_legend() is None


def test_embedding_rows_that_are_missing():
    adata = section()
    adata.obsm["X_e"][3, 1] = np.nan
    ax = pl.spatial(adata, "X_e")
    np.testing.assert_allclose(spots(ax).get_facecolors()[3], GREY)
    assert names(ax) == ["NA"]
    adata.obsm["X_e"] = np.full((adata.n_obs, 3), np.nan)
    assert set(map(tuple, spots(pl.spatial(adata, "X_e")).get_facecolors())) == {GREY}
    adata.obsm["X_df"] = pd.DataFrame(np.eye(adata.n_obs)[:, :4], index=adata.obs_names)
    assert spots(pl.spatial(adata, "X_df")).get_facecolors().shape == (adata.n_obs, 4)


@quick
@given(seed=st.integers(0, 2**31), n=st.integers(1, 60), d=st.integers(3, 12), scale=st.floats(1e-3, 1e6))
def test_rgb_is_bounded_equivariant_and_free_of_scale(seed, n, d, scale):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.arange(d, 0, -1) ** 2
    rgb = embedding_rgb(x)
    assert rgb.shape == (n, 3)
    assert ((rgb >= LOW - 1e-12) & (rgb <= HIGH + 1e-12)).all()
    if n < d + 3:
        return  # too few rows to fix three directions
    order = rng.permutation(n)
    np.testing.assert_allclose(embedding_rgb(x[order]), rgb[order], atol=1e-6)
    np.testing.assert_allclose(embedding_rgb(x * scale), rgb, atol=1e-6)
    use = np.arange(n) < n - 2
    np.testing.assert_allclose(embedding_rgb(x, use)[use], embedding_rgb(x[use]), atol=1e-6)


def test_rgb_of_degenerate_embeddings_is_neutral():
    line = np.outer(np.arange(50.0), [1, 2, 3]).astype(np.float32) / 7
    np.testing.assert_allclose(embedding_rgb(line)[:, 1:], 0.5)
    np.testing.assert_allclose(embedding_rgb(np.ones((4, 5))), 0.5)


# --- no colour, no image, few spots


def test_without_color_tissue_and_outlines_are_drawn():
    ax = pl.spatial(section())
    assert len(spots(ax).get_facecolors()) == 0
    assert len(spots(ax).get_edgecolors()) == 1
    assert len(ax.images) == 1
    assert ax.get_title() == ""


def test_without_image_the_size_comes_from_the_distance():
    adata = section()
    del adata.uns["spatial"]
    ax = pl.spatial(adata, "domain")
    assert len(ax.images) == 0
    np.testing.assert_allclose(spots(ax).get_widths(), 0.8 * 200)
    assert bar_um(ax) is None
    xy = np.random.default_rng(0).random((4000, 2)) * 1000
    assert lattice(xy) is None
    assert drawing_distance(xy) == pytest.approx(1000 / 4000**0.5, rel=0.2)  # no grid: about the mean spacing


@pytest.mark.parametrize("xy", [[[5, 5]], [[5, 5], [5, 5]], [[5, 5], [9, 5]], [[0, 0], [1, 1], [1, 1]]])
@pytest.mark.parametrize("color", [None, "domain", "G1", "X_e"])
def test_few_spots(xy, color):
    adata = section(xy)
    del adata.uns["spatial"]
    ax = pl.spatial(adata, color)
    ax.figure.canvas.draw()
    assert len(spots(ax).get_offsets()) == len(xy)
    assert inside(ax)


@quick
@given(n_rows=st.integers(4, 12), n_cols=st.integers(4, 12), pitch=st.floats(1e-2, 1e4), angle=st.floats(0, 6.3))
def test_grids_are_recognised_at_any_rotation(n_rows, n_cols, pitch, angle):
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    squares = np.argwhere(np.ones((n_rows, n_cols))) * 200.0
    for xy, kind in ((hexagons(n_rows, n_cols), "hexagonal"), (squares, "square")):
        turned = xy @ turn * pitch / 200
        assert lattice(turned) == (kind, pytest.approx(pitch))
        assert lattice(np.repeat(turned, 2, axis=0)[:-1])[0] == kind  # spots at the same place do not hide it
        assert drawing_distance(turned) == pytest.approx(pitch)


# --- scale bar


def test_scale_bar_from_the_grid_of_a_known_platform():
    # 200 px between centres are 100 µm on Visium's grid, whichever diameter Space Ranger wrote
    for diameter in (110.0, 130.0, 140.0):
        assert bar_um(pl.spatial(section(diameter=diameter), "domain")) == "200 µm"
    squares = np.argwhere(np.ones((8, 9)))[:, ::-1] * 200.0
    assert bar_um(pl.spatial(section(squares, diameter=100.0), "domain")) == "200 µm"  # ST: 200 px are 200 µm
    assert bar_um(pl.spatial(section(squares, diameter=200.0), "domain")) is None  # bins side by side: some other one
    assert bar_um(pl.spatial(section(), "domain", scale_bar=False)) is None
    known = section(squares, diameter=200.0)
    known.uns["spatial"]["s1"]["scalefactors"]["microns_per_pixel"] = 5.0
    assert bar_um(pl.spatial(known, "domain")) == "2 mm"


def test_scale_bar_length_matches_its_label():
    ax = pl.spatial(section(), "domain", um_per_px=0.1)
    assert bar_um(ax) == "20 µm"
    ax.figure.canvas.draw()
    (bar,) = [a for a in ax.artists if isinstance(a, AnchoredSizeBar)]
    patch = bar.size_bar.get_children()[0]
    assert patch.get_width() == pytest.approx(200)
    px = ax.get_window_extent().width / np.ptp(ax.get_xlim())
    assert patch.get_window_extent().width == pytest.approx(200 * px, rel=0.05)
    assert bar.get_window_extent().y1 <= ax.get_window_extent().y0  # below the panel: it hides no spot


# --- sections, colours, panels


def test_sections_get_their_own_spots_and_image_and_common_colours():
    adata = two_sections()
    axes = pl.spatial(adata, ["domain", "G1"], library_key="section")
    assert [ax.get_title() for ax in axes] == ["domain · s1", "domain · s2", "G1 · s1", "G1 · s2"]
    assert [len(spots(ax).get_offsets()) for ax in axes] == [72, 36, 72, 36]
    assert all(len(ax.images) == 1 for ax in axes)
    assert [names(ax) for ax in axes] == [[], ["b", "a", "c"], [], []]  # one legend for a row
    assert [colorbar(ax) is not None for ax in axes] == [False, False, False, True]
    np.testing.assert_array_equal(spots(axes[2]).get_facecolors()[:36], spots(axes[3]).get_facecolors())
    assert all(inside(ax) for ax in axes)
    boxes = [ax.get_tightbbox() for ax in axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_chosen_sections_in_that_order():
    adata = two_sections()
    axes = pl.spatial(adata, "domain", library_key="section", sections=["s2", "s1"])
    assert [ax.get_title() for ax in axes] == ["s2", "s1"]
    assert axes[1].get_legend().get_title().get_text() == "domain"
    one = pl.spatial(adata, "G1", library_key="section", sections="s2")
    assert isinstance(one, plt.Axes)
    assert colorbar(one).get_ylim() == (0, 35)  # limits of the displayed values
    with pytest.raises(ValueError, match="`sections` must be one of"):
        pl.spatial(adata, "domain", library_key="section", sections="s3")
    with pytest.raises(ValueError, match="empty"):
        pl.spatial(adata, "domain", library_key="section", sections=[])
    with pytest.raises(ValueError, match="needs `library_key`"):
        pl.spatial(section(), "domain", sections="s1")


def test_sections_without_library():
    adata = two_sections()
    with pytest.raises(ValueError, match=r"has 2 sections.*would fit: 'section'"):
        pl.spatial(adata, "domain")
    adata.obs["other"] = "elsewhere"
    with pytest.warns(UserWarning, match="coordinates of another"), pytest.warns(UserWarning, match="without image"):
        ax = pl.spatial(adata, "domain", library_key="other")
    assert len(ax.images) == 0
    del adata.uns["spatial"]["s2"]
    assert [len(ax.images) for ax in pl.spatial(adata, "domain", library_key="section")] == [1, 0]


def test_panels_wrap_and_do_not_overlap():
    axes = pl.spatial(section(), ["domain", "score", None, "G1", "X_e"], ncols=2)
    assert [ax.get_title() for ax in axes] == ["domain", "score", "", "G1", "X_e (PC 1–3 as RGB)"]
    left, top = np.array([(ax.get_position().x0, ax.get_position().y1) for ax in axes]).round(6).T
    assert len(set(left)) == 2
    assert len(set(top)) == 3
    assert all(inside(ax) for ax in axes)
    boxes = [ax.get_tightbbox() for ax in axes]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_given_axes_are_drawn_into():
    figure, axes = plt.subplots(1, 2, layout="constrained")
    before = plt.get_fignums()
    assert pl.spatial(section(), "domain", ax=axes[0], title="mine") is axes[0]
    assert pl.spatial(section(), "G1", ax=axes[1]) is axes[1]
    assert plt.get_fignums() == before
    assert axes[0].get_title() == "mine"
    figure.canvas.draw()
    assert all(inside(ax) for ax in axes)
    with pytest.raises(ValueError, match="`ax` takes one panel, but there are 2"):
        pl.spatial(section(), ["domain", "G1"], ax=axes[0])


def test_global_style_is_left_alone(tmp_path):
    before = dict(plt.rcParams)
    ax = pl.spatial(section(), ["domain", "G1"])[0]
    for suffix in ("png", "pdf", "svg"):
        ax.figure.savefig(tmp_path / f"x.{suffix}", dpi=300)
    assert dict(plt.rcParams) == before


# --- input


def test_non_numeric_embedding_raises():
    adata = two_sections()
    for values in (adata.obsm["X_e"].astype(complex), adata.obsm["X_e"].astype(str)):
        adata.obsm["X_odd"] = values
        with pytest.raises(TypeError, match=r"`adata.obsm\['X_odd'\]` must contain numbers, found dtype"):
            pl.spatial(adata, "X_odd", library_key="section")


def test_input_is_not_changed():
    adata = two_sections()
    adata.obs["text"] = ["a", "b"] * 54
    copy = adata.copy()
    pl.spatial(adata, ["domain", "text", "G1", "X_e", "score", None], library_key="section")
    pd.testing.assert_frame_equal(adata.obs, copy.obs)
    assert list(adata.uns) == list(copy.uns)
    np.testing.assert_array_equal(adata.obsm["X_e"], copy.obsm["X_e"])
    np.testing.assert_array_equal(adata.X.toarray(), copy.X.toarray())
    for name, library in adata.uns["spatial"].items():
        for key, image in library["images"].items():
            np.testing.assert_array_equal(image, copy.uns["spatial"][name]["images"][key])
    view = adata[adata.obs["section"] == "s1"]
    pl.spatial(view, "domain", library_key="section")
    assert view.is_view


def test_spatialdata_gives_its_table():
    class SpatialData:  # recognised by name, so that spatialdata need not be imported
        tables = {"table": section()}  # noqa: RUF012

    SpatialData.__module__ = "spatialdata._core"
    assert names(pl.spatial(SpatialData(), "domain")) == ["b", "a", "c"]
    with pytest.raises(KeyError, match=r"sdata\.tables"):
        pl.spatial(SpatialData(), "domain", table_key="cells")


@pytest.mark.parametrize(
    ("color", "near"),
    [("domains", "domain"), ("SCORE", "score"), ("g1", "G1"), ("x_E", "X_e"), ("zzzz", "no similar names")],
)
def test_unknown_colour_suggests_similar_names(color, near):
    with pytest.raises(KeyError, match=near):
        pl.spatial(section(), color)
    assert plt.get_fignums() == []


def test_bad_input():
    adata = section()
    cases = [
        (ValueError, "`color` is empty", {"color": []}),
        (ValueError, "size", {"size": 0}),
        (TypeError, "size", {"size": "big"}),
        (ValueError, "alpha", {"alpha": 1.5}),
        (ValueError, "image_alpha", {"image_alpha": -1}),
        (ValueError, "um_per_px", {"um_per_px": 0}),
        (ValueError, "ncols", {"ncols": 0}),
        (ValueError, "cmap", {"color": "G1", "cmap": "virids"}),
        (ValueError, "one title for each of 1 panels", {"title": ["a", "b"]}),
        (KeyError, "library_key", {"library_key": "slide"}),
        (KeyError, "layers", {"color": "G1", "layer": "log"}),
        (KeyError, "gene_symbols", {"color": "zz", "gene_symbols": "names"}),
        (ValueError, "at least 3 columns", {"color": "spatial"}),
    ]
    for error, words, keywords in cases:
        with pytest.raises(error, match=words):
            pl.spatial(adata, **{"color": "domain", **keywords})
    assert plt.get_fignums() == []


def test_bad_sections():
    with pytest.raises(TypeError, match="Expected AnnData"):
        pl.spatial(section().to_df())
    with pytest.raises(ValueError, match="0 spots"):
        pl.spatial(section()[:0])
    twice = section()
    twice.var_names = ["G1", "G1", "G3"]
    with pytest.raises(ValueError, match="2 genes are called 'G1'"):
        pl.spatial(twice, "G1")
    hollow = section()
    hollow.X = None
    with pytest.raises(ValueError, match=r"`adata\.X` is empty"):
        pl.spatial(hollow, "G1")
    nowhere = section()
    del nowhere.obsm["spatial"]
    with pytest.raises(KeyError, match="pixel coordinates"):
        pl.spatial(nowhere, "domain")
    holes = section()
    holes.obsm["spatial"][2, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite coordinates for 1"):
        pl.spatial(holes, "domain")


def test_a_symbol_beside_ids_is_found_in_its_column():
    adata = datasets.toy(n_spots=60)
    symbol = adata.var_names[0]
    adata.var = pd.DataFrame({"SYMBOL": adata.var_names}, index=adata.var["gene_ids"].tolist())
    with pytest.raises(KeyError, match=r"It is in adata\.var\['SYMBOL'\]: pass gene_symbols='SYMBOL'"):
        pl.spatial(adata, symbol)
    assert pl.spatial(adata, symbol, gene_symbols="SYMBOL").get_title() == symbol


def test_bad_images():
    unscaled = section(images=("hires",))
    del unscaled.uns["spatial"]["s1"]["scalefactors"]["tissue_hires_scalef"]
    with pytest.raises(KeyError, match="image=False"):
        pl.spatial(unscaled, "domain")
    assert len(pl.spatial(unscaled, "domain", image=False).images) == 0
    planes = section()
    planes.uns["spatial"]["s1"]["images"]["hires"] = np.zeros((5, 20, 20), dtype=np.uint8)
    with pytest.warns(UserWarning, match="1, 3 or 4 channels.*drawn without image"):
        assert not pl.spatial(planes, "domain").images
    with pytest.raises(ValueError, match="1, 3 or 4 channels"):
        pl.spatial(planes, "domain", image_key="hires")
    far = section()
    far.obsm["spatial"] += 1e5
    with pytest.warns(UserWarning, match="outside its image") as caught:
        pl.spatial(far, "domain")
    assert caught[0].filename == __file__


# --- sections of others


def test_toy():
    adata = datasets.toy(n_spots=120)
    axes = pl.spatial(adata, ["domain", adata.var_names[0]])
    assert names(axes[0]) == list(adata.obs["domain"].cat.categories)
    assert bar_um(axes[0]) is not None


@pytest.mark.parametrize(
    ("name", "color", "bar"),
    [
        ("DLPFC_151673", "layer", "1 mm"),
        ("HER2ST_A1", "label", "1 mm"),
        ("CRC16_human", "EPCAM", "1 mm"),
        ("HER2ST_G2", "label", None),
    ],
)
def test_real_sections(data_dir, name, color, bar):
    adata = ad.read_h5ad(data_dir / "sections" / f"{name}.h5ad")
    ax = pl.spatial(adata, color)
    np.testing.assert_array_equal(spots(ax).get_offsets(), adata.obsm["spatial"])
    assert bar_um(ax) == bar
    assert len(ax.images) == ("spatial" in adata.uns)
    assert inside(ax)
    if name == "DLPFC_151673":
        assert names(ax) == ["L1", "L2", "L3", "L4", "L5", "L6", "WM", "NA"]


def test_a_few_outliers_do_not_darken_all_other_values():
    adata = section()
    adata.obs["counts"] = np.arange(adata.n_obs, dtype=float)
    adata.obs.iloc[-1, adata.obs.columns.get_loc("counts")] = 1e6
    bar = pl.spatial(adata, "counts").child_axes[0]
    assert bar.get_ylim()[1] < adata.n_obs
    bar = pl.spatial(adata, "counts", vmax="p100").child_axes[0]
    assert bar.get_ylim()[1] == 1e6
    adata.obs.iloc[-1, adata.obs.columns.get_loc("counts")] = -1e6
    assert pl.spatial(adata, "counts").child_axes[0].get_ylim()[0] >= 0
    adata.obs["counts"] = 0.0
    adata.obs.iloc[0, adata.obs.columns.get_loc("counts")] = 7.0  # the only value
    assert pl.spatial(adata, "counts").child_axes[0].get_ylim() == (0, 7)


def test_the_image_is_grey_under_values_only():
    adata = section()
    library = adata.uns["spatial"]["s1"]
    library["images"] = {"hires": np.tile(np.uint8([200, 100, 180]), (600, 800, 1))}
    adata.obs["v"] = np.arange(adata.n_obs, dtype=float)

    def is_grey(color, **more):
        pixels = np.asarray(pl.spatial(adata, color, **more).images[0].get_array())
        return bool((pixels[..., 0] == pixels[..., 1]).all())

    assert is_grey("v")
    assert not is_grey("v", image_grey=False)
    assert not is_grey("domain")
    assert not is_grey(None)


def test_thirty_labels_are_distinguishable():
    seen = simulated(np.vstack([default_colors(30), GREY]), np.eye(3).tolist())
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
    assert distance.min() > 0.07
