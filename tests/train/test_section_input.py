"""Training takes the same sections as other functions: SpatialData, stores, several sections in one table."""

import anndata as ad
import numpy as np
import pytest

from stampy import pp, train
from stampy._io.sections import as_sections
from stampy._section.section import places_of, side_by_side
from stampy.pp._neighborhoods import group_spots
from stampy.train._data import prepare

MATRIX = np.array([[2.0, 0.0, 50.0], [0.0, 2.0, -30.0], [0.0, 0.0, 1.0]])
CORPUS = {"n_workers": 1, "max_tokens": 32, "size_px": 16, "images": False, "progress": False}

sdata_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@sdata_warnings
@pytest.mark.parametrize("way", ["memory", "store"])
def test_a_spatialdata_is_a_section(toy, vocabulary, model, make_sdata, tmp_path, way):
    sdata = make_sdata(toy, "shapes", MATRIX)
    if way == "store":
        sdata.write(tmp_path / "a.zarr")
    given = train.SectionInput(data=tmp_path / "a.zarr" if way == "store" else sdata, name="mine", um_per_px=3.2)
    (section,) = as_sections(given)
    found = prepare(section, vocabulary, max_tokens=32, tower=model.config.image)
    expected = prepare(train.SectionInput(data=toy, name="toy"), vocabulary, max_tokens=32)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(np.ptp(found.xy, axis=0) * 2, np.ptp(toy.obsm["spatial"], axis=0))
    own = pp.tiles(sdata, size_px=model.config.image.size_px, um_per_px=3.2, copy=True)["table"].obsm["stamp_tiles"]
    np.testing.assert_array_equal(found.tiles.read(np.arange(5)), own[:5])
    if way == "store":
        assert [s.name for s in as_sections(str(tmp_path / "a.zarr"))] == ["a"]
    else:
        assert [s.name for s in as_sections(sdata)] == ["section 0"]


@sdata_warnings
def test_regions_are_no_neighbours(toy, vocabulary, make_sdata):
    import spatialdata as sd
    from spatialdata.models import TableModel

    one = make_sdata(toy, "shapes", MATRIX)
    table = ad.concat([one["table"], one["table"]], index_unique="-", merge="same")
    table.obs["region"] = np.repeat(["a", "b"], 120)
    table.obs["region"] = table.obs["region"].astype("category")
    table = TableModel.parse(table, region=["a", "b"], region_key="region", instance_key="id")
    both = sd.SpatialData.init_from_elements({"a": one.shapes["cells"], "b": one.shapes["cells"], "table": table})
    xy = prepare(train.SectionInput(data=both, name="both"), vocabulary, max_tokens=32).xy
    members = group_spots(xy, size=6, max_distance=50.0, rng=np.random.default_rng(0)).members
    assert len(members)
    assert (np.ptp(members // 120, axis=1) == 0).all()
    places = places_of(both)
    np.testing.assert_array_equal(side_by_side(places)[:120], places.xy[:120])
    np.testing.assert_allclose(np.diff(side_by_side(places)[120:], axis=0), np.diff(places.xy[120:], axis=0))


def test_overlaid_sections_raise_and_name_training_options(toy, vocabulary, model, tmp_path):
    both = ad.concat([toy, toy], label="sample", keys=["A", "B"], index_unique="-")
    section = train.SectionInput(data=both, name="heart")
    calls = [
        lambda: prepare(section, vocabulary, max_tokens=32),
        lambda: train.Corpus.build([section], tmp_path / "c", vocabulary=vocabulary, **CORPUS),
        lambda: train.adapt("stampy-mini", section, n_axes=4),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"'heart'.*overlap.*separate section.*obs\['sample'\]") as error:
            call()
        assert "library_key" not in str(error.value)
    apart = [
        train.SectionInput(data=both[both.obs["sample"] == s].copy(), name=str(s)) for s in both.obs["sample"].unique()
    ]
    assert [len(prepare(s, vocabulary, max_tokens=32).xy) for s in apart] == [120, 120]
    both.uns["spatial"] = {"A": toy.uns["spatial"]["toy"], "B": toy.uns["spatial"]["toy"]}
    with pytest.raises(ValueError, match=r"'heart'.*has 2 sections.*obs\['sample'\]") as error:
        prepare(section, vocabulary, max_tokens=32, tower=model.config.image)
    assert "library_key" not in str(error.value)


def test_warning_names_the_section(toy, vocabulary, model):
    dark = toy.copy()
    images = dark.uns["spatial"]["toy"]["images"]
    dark.uns["spatial"]["toy"]["images"] = {"hires": np.zeros_like(images["hires"])}
    with pytest.warns(UserWarning, match="'night'.*does not look like H&E: it is black"):
        prepare(train.SectionInput(data=dark, name="night"), vocabulary, max_tokens=32, tower=model.config.image)
