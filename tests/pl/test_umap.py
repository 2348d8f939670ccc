"""The UMAP, parts of a section, and very many spots."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from stampy import pl


@pytest.fixture
def umapped(toy):
    adata = toy.copy()
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    return adata


def test_umap(umapped):
    uns, obs = set(umapped.uns), list(umapped.obs)
    umapped.obsm["X_umap3"] = np.random.default_rng(1).normal(size=(umapped.n_obs, 3))
    axes = pl.umap(umapped, ["domain", "COL1A1", "X_umap3", None])
    assert [len(ax.collections[0].get_offsets()) for ax in axes] == [umapped.n_obs] * 4
    assert (set(umapped.uns), list(umapped.obs)) == (uns, obs)
    # the highest value lies on top
    values = umapped[:, "COL1A1"].X.toarray().ravel()
    highest = umapped.obsm["X_umap"][values == values.max()]
    assert np.isclose(highest, axes[1].collections[0].get_offsets()[-1]).all(axis=1).any()
    _, ax = plt.subplots()
    assert pl.umap(umapped, "domain", ax=ax, size=3, title="A") is ax
    plt.close("all")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"key": "X_tsne"}, KeyError, "sc.tl.umap"),
        ({"color": "domian"}, KeyError, "domain"),
        ({"color": []}, ValueError, "empty"),
        ({"size": 0}, ValueError, "size"),
        ({"alpha": 2}, ValueError, "alpha"),
        ({"title": ["a", "b"]}, ValueError, "one title for each of 1"),
    ],
)
def test_umap_raises(umapped, options, error, words):
    with pytest.raises(error, match=words):
        pl.umap(umapped, **options)


def test_umap_raises_for_nan_and_for_two_panels_in_one_axes(umapped):
    with pytest.raises(ValueError, match="Omit `ax`"):
        pl.umap(umapped, ["domain", None], ax=plt.gca())
    umapped.obsm["X_umap"][3, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite values for 1"):
        pl.umap(umapped)
    plt.close("all")


def test_a_part_of_a_section(toy):
    ax = pl.spatial(toy, "domain", crop=(100, 500, 200, 400))
    assert (ax.get_xlim(), ax.get_ylim()) == ((100, 500), (400, 200))
    with pytest.raises(ValueError, match="left < right"):
        pl.spatial(toy, crop=(500, 100, 200, 400))
    with pytest.raises(TypeError, match="four numbers"):
        pl.spatial(toy, crop="all")
    plt.close("all")


def test_points_touch_with_very_many_spots(toy, monkeypatch):
    from stampy.pl import _spatial

    few = pl.spatial(toy, "domain").collections[0]
    monkeypatch.setattr(_spatial, "RASTER_ABOVE", 50)
    many = pl.spatial(toy, "domain").collections[0]
    assert many.get_rasterized()
    assert many.get_widths()[0] > few.get_widths()[0]
    plt.close("all")
