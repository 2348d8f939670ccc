"""Plots with long names, many labels and dark images: no overlaps, and everything is visible."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stampy import datasets, pl, tl
from stampy.pl._drawing.paint import MISSING, _oklab, default_colors

LONG = ["Cancer cells and desmoplastic stroma at the margin", "Tertiary lymphoid structure, germinal centre", "fat"]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def toy(toy):
    adata = toy.copy()
    adata.obs["long"] = pd.Categorical([LONG[i % 3] for i in range(120)])
    adata.obsm["X"] = np.random.default_rng(0).normal(size=(120, 4))
    return adata


def boxes(texts):
    figure = texts[0].get_figure(root=True)
    figure.canvas.draw()
    return [t.get_window_extent() for t in texts if t.get_text()]


def overlapping(texts) -> int:
    found = boxes(texts)
    return sum(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize("size", [None, (5, 3)])
def test_names_of_a_confusion_matrix(toy, size):
    tl.probe(toy, "long", use_rep="X", method="ridge")
    ax = None if size is None else plt.subplots(figsize=size, layout="constrained")[1]
    ax = pl.probe(toy, show="confusion", ax=ax)
    assert overlapping(ax.get_yticklabels()) == overlapping(ax.get_xticklabels()) == 0
    inches = ax.get_window_extent().width / ax.figure.dpi
    assert inches > 1
    figure = ax.figure.bbox
    assert all(box.x0 >= figure.x0 - 1 and box.y0 >= figure.y0 - 1 for box in boxes(ax.get_yticklabels()))


def test_long_group_names_are_wrapped(toy):
    tl.embed(toy, modality="gene", show_progress_bar=False)
    tl.attribute(toy, groupby="long", n_spots=2, genes=["COL1A1", "DCN"], show_progress_bar=False)
    assert overlapping([ax.title for ax in pl.attribute(toy)]) == 0


def test_titles_of_retrieved_tiles(toy):
    toy.obsm["X_stamp_image"] = toy.obsm["X"]
    tl.retrieve(toy, query="image", target="image", show_progress_bar=False)
    ax = pl.retrieve(toy, n_queries=1, n_nearest=1)
    assert overlapping([t for t in ax.texts if t.get_va() == "bottom"]) == 0


def test_sixty_labels_differ_on_the_paper():
    seen = _oklab(np.vstack([default_colors(60)[:, :3], plt.matplotlib.colors.to_rgba_array(MISSING)[:, :3]]))
    distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(seen), 1)]
    assert distance.min() > 0.07
    assert (default_colors(60)[:30] == default_colors(30)).all()  # one more label recolours none


@pytest.mark.parametrize(("light", "expected"), [(1.0, 0.0), (0.2, 1.0)])
def test_outlines_differ_from_the_tissue(toy, light, expected):
    images = toy.uns["spatial"]["toy"]["images"]
    images["hires"] = (images["hires"] * light).astype(np.uint8)
    assert pl.spatial(toy).collections[0].get_edgecolor()[0, :3].tolist() == [expected] * 3


def test_outlines_and_scale_bar_on_a_dark_page(toy):
    with plt.style.context("dark_background"):
        ax = pl.spatial(toy, image=False)
    assert ax.collections[0].get_edgecolor()[0, :3].tolist() == [1.0] * 3
    (bar,) = (artist for artist in ax.artists if hasattr(artist, "size_bar"))
    assert bar.size_bar.get_children()[0].get_facecolor()[:3] == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("n", [1, 20])
def test_the_scale_bar_has_one_thickness(toy, n):
    ax = pl.tiles(toy, spots=list(toy.obs_names[:n]), n_tiles=1)
    ax.figure.canvas.draw()
    (bar,) = (artist for artist in ax.artists if hasattr(artist, "size_bar"))
    thickness = bar.size_bar.get_children()[0].get_window_extent().height / ax.figure.dpi
    assert thickness == pytest.approx(0.03, rel=0.2)


def test_counts_have_whole_ticks(toy):
    toy.obs["counts"] = np.arange(120) % 3
    ax = pl.spatial(toy, "counts")
    ax.figure.canvas.draw()
    ticks = ax.child_axes[0].get_yticks()
    assert (ticks == np.rint(ticks)).all()


def test_a_comparison_has_four_panels_in_a_row():
    row = {"dataset": "D", "variant": "", "section": "all", "value": 0.5, "std": 0.4, "chance": 0.2, "status": "ok"}
    tasks = {"probe": "balanced_accuracy", "domains": "ari", "retrieve": "recall@10", "expression": "pearson"}
    summary = pd.DataFrame(
        [row | {"task": t, "metric": m, "system": s, "seen": "unknown"} for t, m in tasks.items() for s in "ab"]
        + [row | {"task": "masked", "metric": "top10", "system": "a", "seen": "unknown"}]
    )
    axes = pl.bench(summary)
    axes[0].figure.canvas.draw()
    assert len(axes) == 5
    assert len({round(ax.get_position().y0, 3) for ax in axes[:4]}) == 1
    assert axes[4].get_position().y1 < axes[0].get_position().y0
    assert all(ax.get_xlim()[1] > 0.9 for ax in axes)  # with the deviation
    said = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert "? unknown whether trained on the data" in said


def test_names_of_close_reference_lines_differ_in_place(tmp_path):
    steps = [{"step": i, "loss": 7 - i / 10, "igr": 7 - i / 10, "igr_masked": 7 - i / 10} for i in range(10)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    close = {"corpus_frequency": 6.53, "section_frequency": 6.52}
    (tmp_path / "data.json").write_text(json.dumps({"references": close}))
    ax = next(ax for ax in pl.training(tmp_path, which=("losses",)) if ax.texts)
    assert len(ax.texts) == 2
    assert overlapping(ax.texts) == 0


def test_scores_and_their_page_differ_in_brightness(toy):
    tl.probe(toy, "domain", use_rep="X", n_folds=2)
    brightness = {}
    for style in ("default", "dark_background"):
        with plt.style.context(style):
            ax = pl.probe(toy, show="bars")
            brightness[style] = [np.mean(plt.matplotlib.colors.to_rgb(line.get_color())) for line in ax.lines]
    assert max(brightness["default"][0], brightness["default"][-1]) < 0.5
    assert min(brightness["dark_background"][0], brightness["dark_background"][-1]) > 0.5


def test_transparent_axes_are_on_a_white_page(toy):
    tl.probe(toy, "domain", use_rep="X", n_folds=2)
    seen = []
    for color in ("white", "none"):
        with plt.rc_context({"axes.facecolor": color, "figure.facecolor": color}):
            seen.append([line.get_color() for line in pl.probe(toy, show="bars").lines])
    assert seen[0] == seen[1]


def test_tissue_is_pale_on_a_dark_page(toy):
    def pixels(style):
        with plt.style.context(style):
            ax = pl.spatial(toy, "domain", legend=False, scale_bar=False, title="")
            ax.figure.canvas.draw()
            box = ax.get_window_extent().padded(-2).extents.astype(int)
            height = ax.figure.canvas.get_width_height()[1]
            return np.asarray(ax.figure.canvas.buffer_rgba())[height - box[3] : height - box[1], box[0] : box[2], :3]

    assert np.abs(pixels("default").astype(int) - pixels("dark_background")).max() <= 2


def test_infinite_values_are_beyond_both_ends_of_the_colour_bar(toy):
    toy.obs["value"] = np.r_[-np.inf, np.inf, np.arange(118.0)]
    (bar,) = pl.spatial(toy, "value").child_axes
    assert bar._colorbar.extend == "both"


def test_the_legend_of_one_comparison_fits_the_figure():
    row = {"dataset": "D", "task": "probe", "variant": "", "metric": "balanced_accuracy", "value": 0.5, "std": 0.1}
    row |= {"chance": 0.2, "status": "ok", "seen": "yes", "system": "mine"}
    ax = pl.bench(pd.DataFrame([row | {"section": section} for section in ("all", "s1", "s2")]))
    ax.figure.canvas.draw()
    (legend,) = ax.figure.legends
    box, page = legend.get_window_extent(), ax.figure.bbox
    assert box.x0 >= 0
    assert box.x1 <= page.x1
    assert ax.get_window_extent().height > 20


def test_scores_of_several_sections_name_genes_and_measure():
    adata = datasets.toy(n_spots=30, n_sections=2, image=False)
    adata.obsm["X_stamp_gene"] = np.eye(60, 8, dtype=np.float32)
    adata.obs["stamp_score"] = np.linspace(-1, 1, 60)
    record = {"genes": ["COL1A1", "DCN"], "standardize": False, "modality": "gene"}
    adata.uns["stamp"] = {"stamp_score": record}
    axes = pl.score(adata, library_key="section")
    assert [ax.get_title() for ax in axes] == [f"toy_{i} · COL1A1, DCN\n(gene embedding, cosine)" for i in (1, 2)]
    assert [bar.get_ylabel() for ax in axes for bar in ax.child_axes] == ["cosine"]
