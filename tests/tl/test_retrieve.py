"""Retrieval, scores of gene programmes, and their plots."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stampy import models, pl, pp, tl
from stampy.tl._methods.cosine_neighbors import Nearest, approximate, exact, hit_rates

QUIET = {"show_progress_bar": False}
INDEX, SCORE = "stamp_retrieve_index", "stamp_retrieve_score"


def unit(x):
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def vectors(n, d=8, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


def section(n=60, *, d=8, noise=0.3, seed=0, sections=2, model="m", level="embedding"):
    """Spots whose gene vector is the image vector with some noise."""
    image = vectors(n, d, seed)
    gene = unit(image + noise * vectors(n, d, seed + 1))
    names = np.array([f"s{i % sections}" for i in range(n)])
    adata = ad.AnnData(obs=pd.DataFrame({"section": names}, index=[f"spot{i}" for i in range(n)]))
    adata.obsm["X_stamp_image"], adata.obsm["X_stamp_gene"] = image, gene
    adata.obsm["spatial"] = np.column_stack([np.arange(n) // sections % 6, np.arange(n) // sections // 6]).astype(float)
    adata.uns["stamp"] = {"X_stamp": {"model": model, "modality": "fused", "level": level}}
    return adata


# --- arrays


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 30), st.integers(1, 40), st.integers(1, 9), st.integers(1, 7), st.integers(1, 11), st.integers(0, 99)
)
def test_blocks_equal_a_full_sort(n, m, k, rows, columns, seed):
    rng = np.random.default_rng(seed)  # small whole numbers: exact cosines and many ties
    query, reference = (rng.integers(-1, 2, (size, 3)).astype(np.float32) for size in (n, m))
    k, pairs = min(k, m), rng.integers(-1, m, n)
    found = exact(query, reference, k, pairs=pairs, block=(rows, columns))
    cosines = query @ reference.T
    np.testing.assert_array_equal(found.index, np.argsort(-cosines, axis=1, kind="stable")[:, :k])
    np.testing.assert_array_equal(found.score, np.take_along_axis(cosines, found.index, axis=1))
    for i in np.flatnonzero(pairs >= 0):
        assert found.above[i] == (cosines[i] > cosines[i, pairs[i]]).sum()
        assert found.tied[i] == (cosines[i] == cosines[i, pairs[i]]).sum() - 1


@pytest.mark.slow  # numba compiles pynndescent in every process
def test_approximate_finds_nearly_all_of_the_nearest():
    query, reference = vectors(50, 16, 1), vectors(1500, 16, 2)
    near, true = approximate(query, reference, 10, rng=np.random.default_rng(0)), exact(query, reference, 10)
    same = [len(set(a) & set(b)) for a, b in zip(near.index, true.index, strict=True)]
    assert np.mean(same) > 9
    np.testing.assert_allclose(near.score, np.einsum("nkd,nd->nk", reference[near.index], query), atol=1e-5)
    assert (np.diff(near.score, axis=1) <= 1e-6).all()


def test_a_constant_embedding_is_no_better_than_chance():
    x = np.ones((50, 4), dtype=np.float32) / 2
    pairs = np.arange(50)
    assert hit_rates(exact(x, x, 5, pairs=pairs), pairs, 5).mean() == pytest.approx(5 / 50)


def test_hits_match_a_manual_example():
    found = Nearest(np.zeros((3, 1)), np.zeros((3, 1)), above=np.array([0, 3, 0]), tied=np.array([0, 1, 0]))
    np.testing.assert_allclose(hit_rates(found, np.array([0, 1, -1]), 4), [1, 0.5, np.nan])
    np.testing.assert_allclose(hit_rates(found, np.array([0, 1, -1]), 3), [1, 0, np.nan])


# --- tl.retrieve


@pytest.mark.parametrize(("query", "target"), [("image", "gene"), ("gene", "image"), ("gene", "gene")])
def test_results_are_stored_as_documented(query, target):
    adata = section()
    before = adata.copy()
    assert tl.retrieve(adata, query=query, target=target, k=4, **QUIET) is None
    index, score = adata.obsm[INDEX], adata.obsm[SCORE]
    assert index.shape == score.shape == (60, 4)
    assert index.dtype == np.int64
    assert score.dtype == np.float32
    cosines = before.obsm[f"X_stamp_{query}"] @ before.obsm[f"X_stamp_{target}"].T
    if query == target:
        np.fill_diagonal(cosines, -np.inf)  # a spot does not find itself
    np.testing.assert_array_equal(index, np.argsort(-cosines, axis=1)[:, :4])
    assert ("recall" in adata.uns["stamp"]["stamp_retrieve"]) == (query != target)
    np.testing.assert_array_equal(adata.obsm["X_stamp_gene"], before.obsm["X_stamp_gene"])


def test_recall_is_that_of_the_ranks(tmp_path):
    adata = section(80, noise=0.6)
    copied = tl.retrieve(adata, k=3, library_key="section", copy=True, **QUIET)
    assert INDEX not in adata.obsm
    table = copied.uns["stamp"]["stamp_retrieve"]["recall"]
    cosines = adata.obsm["X_stamp_image"] @ adata.obsm["X_stamp_gene"].T
    ranks = (cosines > np.diag(cosines)[:, None]).sum(axis=1)
    assert table["section"].unique().tolist() == ["all", "s0", "s1"]
    for row in table.itertuples():
        mine = np.ones(80, bool) if row.section == "all" else (adata.obs["section"] == row.section).to_numpy()
        assert row.recall == pytest.approx((ranks[mine] < row.k).mean())
        assert row.chance == pytest.approx(row.k / 80)
        assert (row.queries, row.reference) == (mine.sum(), 80)
    copied.write_h5ad(tmp_path / "x.h5ad")
    again = ad.read_h5ad(tmp_path / "x.h5ad")
    pd.testing.assert_frame_equal(again.uns["stamp"]["stamp_retrieve"]["recall"], table, check_index_type=False)


def test_recall_of_unrelated_embeddings_is_about_chance():
    adata = section(400)
    adata.obsm["X_stamp_gene"] = vectors(400, seed=9)
    tl.retrieve(adata, **QUIET)
    table = adata.uns["stamp"]["stamp_retrieve"]["recall"].set_index("k")
    assert table.loc[10, "recall"] == pytest.approx(0.025, abs=0.025)
    related = section(400, noise=0.3)
    tl.retrieve(related, **QUIET)
    assert related.uns["stamp"]["stamp_retrieve"]["recall"]["recall"].iloc[2] > 0.9


def test_another_reference_in_any_order():
    adata = section()
    other = adata[np.random.default_rng(3).permutation(60)].copy()
    tl.retrieve(adata, other, paired=True, k=5, **QUIET)
    table = adata.uns["stamp"]["stamp_retrieve"]["recall"]
    own = adata.copy()
    tl.retrieve(own, k=5, **QUIET)
    pd.testing.assert_frame_equal(table, own.uns["stamp"]["stamp_retrieve"]["recall"])
    np.testing.assert_array_equal(
        other.obs_names.to_numpy()[adata.obsm[INDEX]], own.obs_names.to_numpy()[own.obsm[INDEX]]
    )
    tl.retrieve(adata, other, **QUIET)  # equal names in different slides are not the same spots
    assert "recall" not in adata.uns["stamp"]["stamp_retrieve"]


def test_exclusions():
    adata = section(72)
    where = {"library_key": "section", "query": "image", "target": "image", "k": 4, **QUIET}
    tl.retrieve(adata, exclude="section", **where)
    codes = (adata.obs["section"] == "s1").to_numpy()
    assert (codes[adata.obsm[INDEX]] != codes[:, None]).all()
    tl.retrieve(adata, exclude="neighbors", radius=1.1, **where)
    xy, found = adata.obsm["spatial"], adata.obsm[INDEX]
    distance = np.linalg.norm(xy[found] - xy[:, None], axis=2)
    same = codes[found] == codes[:, None]
    assert (distance[same] > 1.1).all()
    assert (distance[~same] <= 1.1).any()  # neighbours only within a section


def test_approximate_search_leaves_out_and_writes_the_same(monkeypatch):
    """The code around the neighbour graph, with an exact search."""
    monkeypatch.setattr("stampy.tl._retrieve.approximate", lambda q, r, k, rng: exact(q, r, k))
    adata = section(72)
    adata.obsm["X_stamp_gene"][4] = 0
    for arguments in (
        {},
        {"query": "gene"},
        {"query": "gene", "exclude": "neighbors", "library_key": "section"},
    ):
        with pytest.warns(UserWarning, match="no embedding"):
            tl.retrieve(adata, **arguments, **QUIET)
        one = adata.copy()
        with pytest.warns(UserWarning, match="no embedding"):
            tl.retrieve(one, method="approximate", **arguments, **QUIET)
        np.testing.assert_array_equal(one.obsm[INDEX], adata.obsm[INDEX])
        np.testing.assert_allclose(one.obsm[SCORE], adata.obsm[SCORE])
        records = [x.uns["stamp"]["stamp_retrieve"] for x in (one, adata)]
        assert [r["method"] for r in records] == ["approximate", "exact"]
        if "recall" in records[0]:
            pd.testing.assert_frame_equal(records[0]["recall"], records[1]["recall"])
    with pytest.raises(ValueError, match="entire sections"):
        tl.retrieve(section(), exclude="section", library_key="section", method="approximate", **QUIET)


def test_spots_without_embedding_find_nothing_and_are_not_found():
    adata = section()
    adata.obsm["X_stamp_gene"][[3, 7]] = 0
    adata.obsm["X_stamp_image"][9] = 0
    with pytest.warns(UserWarning, match="no embedding") as caught:
        tl.retrieve(adata, k=57, **QUIET)
    assert len(caught) == 2
    index = adata.obsm[INDEX]
    assert (index[9] == -1).all()
    assert np.isnan(adata.obsm[SCORE][9]).all()
    assert not np.isin(index, [3, 7]).any()
    table = adata.uns["stamp"]["stamp_retrieve"]["recall"]
    assert table[["queries", "reference"]].iloc[0].tolist() == [57, 58]


def change(adata, **slots):
    adata = adata.copy()
    for name, value in slots.items():
        adata.obsm[f"X_stamp_{name}"] = value
    return adata


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 61}, "at most 60"),
        ({"k": 0}, "at least 1"),
        ({"k": 60, "query": "gene"}, "at most 59"),
        ({"query": "text"}, "must be one of"),
        ({"exclude": "everything"}, "must be one of"),
        ({"exclude": "section"}, "library_key"),
        ({"radius": -1.0}, "radius"),
        ({"paired": False}, "paired=False"),
        ({"method": "guess"}, "must be one of"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tl.retrieve(section(), **arguments, **QUIET)


def test_image_towers_of_one_name_that_differ():
    before, now = section(), section(seed=5)
    before.uns["stamp"]["X_stamp"]["tiles"] = {"size_px": 224}
    now.uns["stamp"]["X_stamp"]["tiles"] = {"size_px": 97, "surroundings_um": 336.0}
    with pytest.raises(ValueError, match=r"tiles of 97 px and their surroundings.*tiles of 224 px.*image encoders"):
        tl.retrieve(now, before, query="image", target="image", **QUIET)
    tl.retrieve(now, now.copy(), query="image", target="image", **QUIET)
    tl.retrieve(now, before, query="image", target="gene", **QUIET)  # both towers are aligned to the same genes


def test_bad_embeddings():
    adata = section()
    without = adata.copy()
    del without.obsm["X_stamp_image"]
    with pytest.raises(KeyError, match="image encoder"):
        tl.retrieve(without, **QUIET)
    with pytest.raises(ValueError, match="not of one space"):
        tl.retrieve(change(adata, gene=vectors(60, 5)), **QUIET)
    with pytest.raises(ValueError, match="NaN or infinite"):
        tl.retrieve(change(adata, gene=np.full((60, 8), np.nan)), **QUIET)
    with pytest.raises(ValueError, match="no spot has an embedding"):
        tl.retrieve(change(adata, gene=np.zeros((60, 8))), **QUIET)
    with pytest.raises(ValueError, match="share no space"):
        tl.retrieve(section(level="feature"), **QUIET)
    with pytest.raises(ValueError, match="0 spots"):
        tl.retrieve(adata[:0].copy(), **QUIET)


def test_bad_references():
    adata = section()
    with pytest.raises(ValueError, match=r"model='m'.*model='other'"):
        tl.retrieve(adata, section(model="other"), **QUIET)
    other = section()
    other.obs_names = [f"x{i}" for i in range(60)]
    with pytest.raises(ValueError, match="no spot of the queries"):
        tl.retrieve(adata, other, paired=True, **QUIET)
    with pytest.raises(ValueError, match="paired=True"):
        tl.retrieve(adata, section(), exclude="spot", **QUIET)
    with pytest.raises(ValueError, match="library_key"):
        tl.retrieve(adata, section(), exclude="neighbors", **QUIET)
    with pytest.raises(ValueError, match="all of the reference is excluded"):
        tl.retrieve(section(sections=1), exclude="section", library_key="section", **QUIET)
    with pytest.raises(KeyError, match="batch"):
        tl.retrieve(adata, library_key="batch", **QUIET)
    with pytest.raises(KeyError, match=r"reference\.obsm"):
        tl.retrieve(adata, ad.AnnData(obs=adata.obs), **QUIET)
    unknown = section()
    del unknown.uns["stamp"]
    with pytest.warns(UserWarning, match="assumed to be"):
        tl.retrieve(adata, unknown, **QUIET)


# --- tl.score


@pytest.mark.parametrize("modality", ["gene", "image"])
def test_a_programme_scores_highest_in_its_domain(aligned, modality):
    model, adata = aligned
    adata = adata.copy()
    scores = {}
    for domain in adata.obs["domain"].cat.categories:
        genes = adata.var_names[adata.var["domain"] == domain].tolist()
        tl.score(adata, genes, model=model, modality=modality, standardize=True)
        scores[domain] = adata.obs.groupby("domain", observed=True)["stamp_score"].mean()
    table = pd.DataFrame(scores)  # domains of the spots by programmes
    assert (table.idxmax(axis=1) == table.index).all()
    assert (table.idxmax(axis=0) == table.columns).all()


def test_score_is_the_cosine_with_the_list_as_a_spot(aligned, vocabulary, tmp_path):
    model, adata = aligned
    genes = ["COL1A1", "DCN", "LUM", "ENSG00000168542", "COL1A2"]  # an id among symbols: COL3A1
    out = tl.score(adata, [*genes, "DCN"], model=model, copy=True)
    assert "stamp_score" not in adata.obs
    spot = ad.AnnData(np.array([[50, 40, 30, 20, 10]]), var=pd.DataFrame(index=genes))
    spot.var_names = ["COL1A1", "DCN", "LUM", "COL3A1", "COL1A2"]
    even = pp.Vocabulary(vocabulary.frame.assign(divisor=1.0))
    pp.tokenize(spot, even)
    import torch

    with torch.inference_mode():
        vector = model.gene_embeddings(torch.from_numpy(spot.obsm["stamp_tokens"][:, :5]))[0].numpy()
    np.testing.assert_allclose(out.obs["stamp_score"], adata.obsm["X_stamp_image"] @ vector, atol=1e-5)
    assert list(out.uns["stamp"]["stamp_score"]["genes"]) == ["COL1A1", "DCN", "LUM", "COL3A1", "COL1A2"]
    out.write_h5ad(tmp_path / "x.h5ad")


def test_unknown_genes_and_empty_spots(aligned):
    model, adata = aligned
    adata = adata.copy()
    adata.obsm["X_stamp_gene"][5] = 0
    genes = ["COL1A1", "DCN", "NOSUCHGENE", "LUM", "COL1A2", "COL3A1"]
    with pytest.warns(UserWarning, match=r"1 of 6 genes.*NOSUCHGENE"):
        tl.score(adata, genes, model=model, modality="gene", standardize=True, library_key="section")
    assert np.isnan(adata.obs["stamp_score"].iloc[5])
    assert adata.obs["stamp_score"].mean() == pytest.approx(0, abs=1e-5)
    assert adata.obs["stamp_score"].std(ddof=0) == pytest.approx(1, abs=1e-4)
    assert adata.uns["stamp"]["stamp_score"]["unknown"] == ["NOSUCHGENE"]


def test_bad_scores(aligned, vocabulary):
    trained, adata = aligned
    genes = ["COL1A1", "DCN", "LUM", "COL1A2", "COL3A1"]
    with pytest.raises(ValueError, match="Only 1 of 2 genes"):
        tl.score(adata, ["COL1A1", "NOSUCHGENE"], model=trained)
    with pytest.raises(ValueError, match="empty"):
        tl.score(adata, [], model=trained)
    with pytest.raises(TypeError, match="ranked list"):
        tl.score(adata, "COL1A1", model=trained)
    with pytest.raises(ValueError, match="without `standardize=True`"):
        tl.score(adata, genes, model=trained, library_key="section")
    with pytest.raises(ValueError, match="made by the model 'aligned', but `model` is 'stampy-mini'"):
        tl.score(adata, genes)
    with pytest.raises(KeyError, match="X_other_image"):
        tl.score(adata, genes, model=trained, embedding_key="X_other")
    alone = models.Stamp(models.StampConfig(gene=trained.config.gene, embedding=12), vocabulary.frame)
    with pytest.raises(ValueError, match="no image encoder"):
        tl.score(adata, genes, model=alone)


# --- plots


@pytest.fixture(scope="module")
def found(toy):
    adata = toy.copy()
    adata.obsm["X_stamp_image"] = vectors(adata.n_obs)
    adata.obsm["X_stamp_gene"] = unit(adata.obsm["X_stamp_image"] + 0.2 * vectors(adata.n_obs, seed=1))
    tl.retrieve(adata, **QUIET)
    return adata


@pytest.fixture(autouse=True)
def closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def test_retrieve_draws_the_tiles_of_the_hits(found):
    from matplotlib.patches import Rectangle

    ax = pl.retrieve(found, [3, 50], n_nearest=4, label="domain")
    assert len(ax.images) == 10
    tiles = found.copy()
    pp.tiles(tiles, size_px=160)
    rows = [3, *found.obsm[INDEX][3, :4], 50, *found.obsm[INDEX][50, :4]]
    for image, row in zip(ax.images, rows, strict=True):
        difference = image.get_array().astype(float) - tiles.obsm["stamp_tiles"][row]
        assert np.abs(difference).mean() < 3
    own = [3 in found.obsm[INDEX][3, :4], 50 in found.obsm[INDEX][50, :4]]
    assert sum(isinstance(patch, Rectangle) for patch in ax.patches) == sum(own) > 0
    assert f"{found.obsm[SCORE][3, 0]:.3f}" in ax.texts[1].get_text()
    assert "cosine similarity, domain" in ax.texts[-1].get_text()
    assert "(chance " in ax.texts[-1].get_text()
    drawn = pl.retrieve(tiles, "toy_" + str(found.obs_names[3]).split("_")[1], n_nearest=2)  # by name, tiles from obsm
    np.testing.assert_array_equal(drawn.images[0].get_array(), tiles.obsm["stamp_tiles"][3])


def test_retrieve_plot_raises_for_mismatched_input(found):
    with pytest.raises(ValueError, match="after taking a subset"):
        pl.retrieve(found[:50].copy())
    with pytest.raises(ValueError, match="at most 10"):
        pl.retrieve(found, n_nearest=11)
    with pytest.raises(KeyError, match="Similar names"):
        pl.retrieve(found, str(found.obs_names[0])[:-1] + "77")
    with pytest.raises(ValueError, match="rows 0"):
        pl.retrieve(found, 120)
    with pytest.raises(KeyError, match="Search first"):
        pl.retrieve(found, key="other")
    other = found.copy()
    tl.retrieve(other, found, **QUIET)
    with pytest.raises(ValueError, match="reference="):
        pl.retrieve(other)
    assert len(pl.retrieve(other, 1, reference=found, n_nearest=3).images) == 4


def test_tiles_gallery(toy):
    import matplotlib.pyplot as plt

    ax = plt.figure().add_subplot()
    assert pl.tiles(toy, "domain", groups=["D3", "D1"], n_tiles=3, ax=ax) is ax
    assert [t.get_text() for t in ax.get_yticklabels()] == ["D3", "D1"]
    assert len(ax.images) == 6
    assert ax.artists[0].txt_label.get_text() == "100 µm"
    assert not pl.tiles(toy, spots=[1, 2, 3], n_tiles=2, scale_bar=False).artists
    cut = pl.tiles(toy, spots=[int(np.argmin(toy.obsm["spatial"][:, 0]))], tile_um=900).images[0].get_array()
    assert (cut[:, 0] == 255).all()  # white beyond the image


def test_bad_tiles(toy):
    bare = toy.copy()
    del bare.uns["spatial"]
    with pytest.raises(KeyError, match=r"stampy\.pp\.tiles"):
        pl.tiles(bare)
    with pytest.raises(ValueError, match="both given"):
        pl.tiles(toy, "domain", spots=[1])
    with pytest.raises(KeyError, match="cluster"):
        pl.tiles(toy, "cluster")
    with pytest.raises(ValueError, match="must be one of"):
        pl.tiles(toy, "domain", groups=["D9"])
    with pytest.raises(ValueError, match="`spots` is empty"):
        pl.tiles(toy, spots=[])
    wrong = toy.copy()
    wrong.obsm["stamp_tiles"] = np.zeros((toy.n_obs, 5))
    with pytest.raises(ValueError, match="uint8"):
        pl.tiles(wrong)


def test_score_map(aligned):
    model, adata = aligned
    adata = adata.copy()
    tl.score(adata, ["COL1A1", "DCN", "LUM", "COL1A2", "COL3A1"], model=model, standardize=True)
    ax = pl.score(adata)
    assert ax.get_title() == "COL1A1, DCN, LUM, ...\n(image embedding, z score of the cosine)"
    with pytest.raises(KeyError, match="Score first"):
        pl.score(adata, "other")


def test_real_section(data_dir):
    adata = ad.read_h5ad(data_dir / "sections" / "HER2ST_A1.h5ad")
    adata.obsm["X_stamp_gene"] = vectors(adata.n_obs)
    tl.retrieve(adata, query="gene", target="gene", exclude="neighbors", **QUIET)
    distance = np.linalg.norm(adata.obsm["spatial"][adata.obsm[INDEX]] - adata.obsm["spatial"][:, None], axis=2)
    assert distance.min() > 0
