"""Neighbourhood groups: valid by a slow check of all pairs, on random point sets, grids and the real sections."""

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.spatial
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist

from stampy import datasets
from stampy.pp import neighborhoods
from stampy.pp._neighborhoods import group_spots


def square(width, height):
    return np.argwhere(np.ones((height, width)))[:, ::-1].astype(float)


def hexagonal(width, height):
    row, column = np.divmod(np.arange(width * height), width)
    return np.column_stack([column + row % 2 / 2, row * np.sqrt(3) / 2])


def section(xy, **obs):
    names = [f"spot{i}" for i in range(len(xy))]
    return ad.AnnData(np.ones((len(xy), 2)), obs=pd.DataFrame(obs, index=names), obsm={"spatial": np.asarray(xy)})


def pairs(xy):
    """All distances, in median distances of the places to the nearest other place."""
    places = np.unique(xy, axis=0)
    between = cdist(places, places)
    np.fill_diagonal(between, np.inf)
    unit = np.median(between.min(axis=1)) if len(places) > 1 else 1.0
    return cdist(xy, xy) / unit


def check(groups, xy, size=9, max_distance=5.0):
    """Everything that is promised of groups, from all pairwise distances."""
    members, own, centers = groups
    distance, g = pairs(xy), len(members)
    assert members.shape == (g, size)
    assert members.dtype == np.int64
    assert own.shape == (len(xy),)
    assert own.dtype == np.int32
    assert all(len(set(row)) == size for row in members.tolist())
    assert set(own.tolist()) - {-1} == set(range(g))
    for number, row in enumerate(members):
        within = distance[np.ix_(row, row)]
        assert within.max() <= max_distance * (1 + 1e-9)
        total = within.sum(axis=1)
        central = row[total <= total.min() * (1 + 1e-9)]
        assert row[0] == central.min()
        assert (np.diff(row[1:]) > 0).all()
        mine = own[row] == number
        assert mine.sum() == (own == number).sum()  # a spot's own group has it as a member
        best = total[mine].min() * (1 + 1e-9)
        assert centers[number] == row[mine][total[mine] <= best].min()
    assert (own[members] >= 0).all()  # nothing is borrowed that was dropped
    dropped = own < 0
    assert not dropped[(distance <= max_distance / 2 * (1 - 1e-6)).sum(axis=1) >= size].any()
    assert dropped[(distance <= max_distance * (1 + 1e-6)).sum(axis=1) < size].all()


# -- the array function


coordinates = hnp.arrays(
    np.float64,
    st.tuples(st.integers(9, 60), st.just(2)),
    elements=st.floats(-1000, 1000, width=16) | st.integers(0, 6).map(float),  # the latter make duplicates and lines
)


@settings(deadline=None, max_examples=40)
@given(xy=coordinates, size=st.integers(2, 9), max_distance=st.floats(0.5, 50), seed=st.integers(0, 3))
def test_any_point_set(xy, size, max_distance, seed):
    check(group_spots(xy, size=size, max_distance=max_distance, rng=seed), xy, size, max_distance)


@settings(deadline=None, max_examples=20)
@given(xy=coordinates, shift=st.integers(-(10**6), 10**6), power=st.integers(-20, 20), data=st.data())
def test_unit_origin_and_order_of_spots(xy, shift, power, data):
    xy = np.round(xy)  # so that the shift is exact
    groups = group_spots(xy)
    moved = group_spots((xy + shift) * 2.0**power)
    assert all(np.array_equal(a, b) for a, b in zip(groups, moved, strict=True))
    order = np.array(data.draw(st.permutations(range(len(xy)))))
    check(group_spots(xy[order]), xy[order])


@pytest.mark.parametrize("size", [2, 4, 9, 25])
@pytest.mark.parametrize("grid", [square, hexagonal])
def test_grid_is_packed(grid, size):
    xy = grid(*(20, 20) if size == 2 else (30, 30))  # all pairs of groups are checked
    groups = group_spots(xy, size=size, max_distance=2 * np.sqrt(size))
    check(groups, xy, size, 2 * np.sqrt(size))
    assert (groups.own >= 0).all()
    assert len(groups.members) <= 1.1 * len(xy) / size  # hardly a spot is left over between groups


def test_nothing_is_dropped_without_a_limit():
    xy = np.random.default_rng(0).exponential(1, (500, 2)) ** 3
    groups = group_spots(xy, max_distance=1e9)
    assert (groups.own >= 0).all()
    check(groups, xy, max_distance=1e9)


def test_groups_stay_near_however_far_they_might_reach():
    xy = hexagonal(40, 40)
    distance = pairs(xy)
    assert max(distance[np.ix_(row, row)].max() for row in group_spots(xy, max_distance=1e9).members) < 8


def test_exactly_one_group():
    groups = group_spots(square(3, 3) * 100)
    np.testing.assert_array_equal(groups.members, [[4, 0, 1, 2, 3, 5, 6, 7, 8]])
    np.testing.assert_array_equal(groups.own, np.zeros(9))
    np.testing.assert_array_equal(groups.centers, [4])


def test_leftover_spot_borrows_members_and_is_its_own_centre():
    xy = np.vstack([square(3, 3), [[3, 1]]])
    groups = group_spots(xy)
    check(groups, xy)
    own = np.bincount(groups.own)
    assert sorted(own) == [1, 9]
    left = own.argmin()
    assert groups.own[groups.centers[left]] == left
    assert groups.members[left, 0] != groups.centers[left]  # training starts from the most central member


def test_only_isolated_spots_are_dropped():
    xy = np.vstack([square(9, 9), [[30, 30], [30, 31], [-30, 0]]])
    groups = group_spots(xy)
    np.testing.assert_array_equal(np.flatnonzero(groups.own < 0), [81, 82, 83])
    check(groups, xy)


@pytest.mark.parametrize(
    "xy",
    [
        np.zeros((20, 2)),
        np.repeat(square(4, 4), 5, axis=0),
        np.repeat([[0.0, 0.0], [1.0, 0.0]], [19, 1], axis=0),
        np.column_stack([np.arange(50.0), np.zeros(50)]),
        np.column_stack([np.arange(50.0), np.arange(50.0)]) * 1e6,
        square(5, 5) * 1e-9 + 1,
    ],
    ids=["one place", "duplicates", "two places", "line", "diagonal", "tiny"],
)
def test_degenerate(xy):
    for max_distance in (5.0, 9.0):
        check(group_spots(xy, max_distance=max_distance), xy, max_distance=max_distance)


def test_spots_at_one_place_give_full_groups():
    assert np.bincount(group_spots(np.zeros((27, 2))).own).tolist() == [9, 9, 9]


def test_limit_means_the_same_in_every_direction():
    """Groups on a hexagonal grid are about round; in Visium's array units (columns step by 2) they would not be."""
    xy = hexagonal(30, 30)

    def height_over_width(groups):
        width, height = np.ptp(xy[groups.members], axis=1).mean(axis=0)
        return height / width

    assert 0.8 < height_over_width(group_spots(xy)) < 1.25
    assert height_over_width(group_spots(xy * [2, 2 / np.sqrt(3)])) > 1.5


def test_seed_and_generator():
    xy = hexagonal(20, 20)
    same = [group_spots(xy, rng=rng).own for rng in (3, np.random.default_rng(3))]
    np.testing.assert_array_equal(*same)
    assert (group_spots(xy, rng=4).own != same[0]).any()
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    group_spots(xy, rng=None)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_threads_do_not_matter(monkeypatch):
    xy = np.random.default_rng(0).uniform(size=(3000, 2)).round(2)  # with duplicates and ties
    usual = group_spots(xy)
    for n_threads in (1, 3):

        class Tree(KDTree):
            def query(self, *args, workers, n=n_threads, **kwargs):
                return super().query(*args, workers=n, **kwargs)

        monkeypatch.setattr(scipy.spatial, "KDTree", Tree)
        np.testing.assert_array_equal(group_spots(xy).members, usual.members)


@pytest.mark.parametrize(
    ("xy", "arguments", "error", "message"),
    [
        (square(4, 2), {}, ValueError, r"at least 9 spots .* found \['8 spots'\]\. Choose a smaller `size`"),
        (np.empty((0, 2)), {}, ValueError, "found .'0 spots'."),
        (square(5, 5), {"size": 1}, ValueError, "`size` must be at least 2, found 1"),
        (square(5, 5), {"size": 2.0}, TypeError, "`size` must be an integer"),
        (square(5, 5), {"max_distance": 0}, ValueError, "`max_distance` must be above 0"),
        (square(5, 5), {"max_distance": "far"}, TypeError, "`max_distance` must be a number"),
        (np.full((9, 2), np.nan), {}, ValueError, "9 of 9 spots have NaN"),
        (np.ones((9, 3)), {}, ValueError, r"shape \(n, 2\), found \(9, 3\)"),
    ],
)
def test_bad_arrays(xy, arguments, error, message):
    with pytest.raises(error, match=message):
        group_spots(xy, **arguments)


# -- AnnData and SpatialData


def test_writes_only_obs():
    adata = datasets.toy(n_spots=150)
    before = adata.copy()
    assert neighborhoods(adata) is None
    group, center = adata.obs["stamp_group"], adata.obs["stamp_group_center"]
    assert group.dtype == np.int32
    assert center.dtype == bool
    assert sorted(group.unique()) == list(range(group.max() + 1))
    assert (center.groupby(group).sum() == 1).all()
    record = adata.uns["stamp"]["stamp_group"]
    assert (record["size"], record["max_distance"], record["library_key"]) == (9, 5.0, "")
    assert record["n_groups"] == group.max() + 1
    assert record["n_dropped"] == 0

    assert set(adata.obs) - set(before.obs) == {"stamp_group", "stamp_group_center"}
    pd.testing.assert_frame_equal(adata.obs[before.obs.columns], before.obs)
    assert (adata.X != before.X).nnz == 0
    assert set(adata.obsm) == set(before.obsm)
    np.testing.assert_array_equal(adata.obsm["spatial"], before.obsm["spatial"])


def test_copy_key_and_size():
    adata = section(hexagonal(12, 12))
    changed = neighborhoods(adata, size=4, key_added="quartet", rng=np.random.default_rng(1), copy=True)
    assert "quartet" not in adata.obs
    assert "stamp" not in adata.uns
    assert changed.obs["quartet"].value_counts().max() == 4
    assert changed.obs["quartet_center"].sum() == changed.obs["quartet"].nunique()
    again = neighborhoods(adata, size=4, key_added="quartet", rng=np.random.default_rng(1), copy=True)
    pd.testing.assert_frame_equal(changed.obs, again.obs)


def test_results_survive_a_file(tmp_path):
    adata = section(hexagonal(12, 12))
    neighborhoods(adata)
    adata.write_h5ad(tmp_path / "section.h5ad")
    read = ad.read_h5ad(tmp_path / "section.h5ad")
    pd.testing.assert_frame_equal(read.obs, adata.obs)
    assert read.uns["stamp"]["stamp_group"] == adata.uns["stamp"]["stamp_group"]


@settings(deadline=None, max_examples=20)
@given(sizes=st.lists(st.integers(9, 40), min_size=2, max_size=4), seed=st.integers(0, 100))
def test_groups_do_not_span_sections(sizes, seed):
    """Sections lie on top of each other and are mixed; still each gets the groups that it gets alone."""
    rng = np.random.default_rng(seed)
    name = rng.permutation(np.repeat([f"s{i}" for i in range(len(sizes))], sizes))
    adata = section(rng.uniform(0, 5, (len(name), 2)), library=name)
    neighborhoods(adata, library_key="library", max_distance=50.0)
    group = adata.obs["stamp_group"]
    assert sorted(group.unique()) == list(range(group.max() + 1))
    assert (adata.obs.groupby(group)["library"].nunique() == 1).all()
    for one in np.unique(name):
        alone = adata[name == one].copy()
        neighborhoods(alone, max_distance=50.0)
        ours = group[name == one]
        np.testing.assert_array_equal(ours - ours.min(), alone.obs["stamp_group"])
        np.testing.assert_array_equal(adata.obs["stamp_group_center"][name == one], alone.obs["stamp_group_center"])


def test_spatialdata():
    from spatialdata import SpatialData

    table = section(square(9, 9))
    sdata = SpatialData(tables={"spots": table})
    changed = neighborhoods(sdata, table_key="spots", copy=True)
    assert "stamp_group" not in sdata["spots"].obs
    assert changed["spots"].obs["stamp_group"].max() == changed["spots"].uns["stamp"]["stamp_group"]["n_groups"] - 1
    neighborhoods(sdata, table_key="spots")
    pd.testing.assert_frame_equal(sdata["spots"].obs, changed["spots"].obs)
    with pytest.raises(KeyError, match=r"`table` not found in `sdata.tables`. Available: \['spots'\]"):
        neighborhoods(sdata)


def test_many_dropped_spots_warn():
    far = square(3, 3) * 1000
    adata = section(np.vstack([square(6, 6), far + 50, square(9, 9)]), library=["thin"] * 45 + ["whole"] * 81)
    with pytest.warns(UserWarning, match=r"\['thin: 9 of 45'\]. Increase `max_distance=`") as caught:
        neighborhoods(adata, library_key="library")
    assert caught[0].filename == __file__
    assert (adata.obs["stamp_group"] < 0).sum() == 9
    assert adata.uns["stamp"]["stamp_group"]["n_dropped"] == 9
    assert not adata.obs["stamp_group_center"][adata.obs["stamp_group"] < 0].any()


def test_bad_inputs_change_nothing():
    xy = square(5, 5)
    nan = xy.copy()
    nan[3] = np.nan
    small = section(xy, library=["a"] * 20 + ["b"] * 5)
    lacking = section(xy)
    del lacking.obsm["spatial"]
    for adata, arguments, error, message in [
        (small, {"library_key": "library"}, ValueError, r"found \['b: 5'\]"),
        (small, {"library_key": "slide"}, KeyError, "`slide` not found in `adata.obs`"),
        (section(xy), {"size": 1}, ValueError, "`size` must be at least 2"),
        (section(xy), {"max_distance": -1.0}, ValueError, "`max_distance` must be at least 0"),
        (section(nan), {}, ValueError, "NaN or infinite coordinates for 1 of 25 spots"),
        (section(xy[:1]), {}, ValueError, "'1 spots'"),
        (section(xy[:0]), {}, ValueError, "The section is empty"),
        (lacking, {}, KeyError, "`spatial` not found in `adata.obsm`"),
        (xy, {}, TypeError, "Expected AnnData or SpatialData"),
    ]:
        with pytest.raises(error, match=message):
            neighborhoods(adata, **arguments)
        if isinstance(adata, ad.AnnData):
            assert "stamp_group" not in adata.obs
            assert "stamp" not in adata.uns


def spatial(path):
    with h5py.File(path) as file:
        return file["obsm/spatial"][:].astype(np.float64)


def test_real_sections(data_dir):
    paths = sorted((data_dir / "sections").glob("*.h5ad"))
    assert paths
    for path in paths:
        xy = spatial(path)
        groups = group_spots(xy)
        check(groups, xy)
        if path.stem == "LymphNode_V1_human":  # 1000 spots drawn from a whole section: many lie apart
            continue
        full = np.bincount(groups.own[groups.own >= 0]) == 9
        assert (groups.own < 0).mean() < 0.001, path.stem
        assert full.sum() * 9 > 0.85 * len(xy), path.stem


def test_real_sections_in_one_table(data_dir):
    paths = {name: data_dir / "sections" / f"{name}.h5ad" for name in ("DLPFC_151673", "HER2ST_A1")}
    both = ad.concat({k: section(spatial(p)) for k, p in paths.items()}, label="library", index_unique="-")
    neighborhoods(both, library_key="library")
    kept = both.obs[both.obs["stamp_group"] >= 0]
    assert (kept.groupby("stamp_group")["library"].nunique() == 1).all()
    assert len(both) - len(kept) == 3  # three spots of the cortex lie far off the tissue
