"""Every public function takes a SpatialData with coordinates in its elements only."""

import inspect

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from stampy import _utils, datasets, pl, pp, tl
from stampy._section import spatialdata_elements as elements
from stampy._section.section import coordinates_of, sections_of

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

QUIET = {"show_progress_bar": False, "device": "cpu"}
MATRIX = np.array([[2.0, 0.0, 50.0], [0.0, 2.0, -30.0], [0.0, 0.0, 1.0]])
UM = {"um_per_px": 3.2}  # of a unit of the elements
GENES = ["COL1A1", "COL1A2", "COL3A1"]


@pytest.fixture(scope="module")
def annotated():
    """A section cut into eight slides of four patients."""
    adata = datasets.toy(n_spots=64, rng=0)
    cut = np.argsort(np.argsort(adata.obsm["spatial"][:, 0])) // 8
    adata.obs["slide"] = [f"S{i}" for i in cut]
    adata.obs["patient"] = [f"P{i // 2}" for i in cut]
    adata.obs["label"] = np.where(cut // 2 % 2, "a", "b")
    return adata


@pytest.fixture(scope="module", params=["shapes", "labels", "points"])
def embedded(request, annotated, make_sdata, model):
    sdata = make_sdata(annotated, request.param, MATRIX)
    for column in ("slide", "patient", "label"):
        sdata["table"].obs[column] = annotated.obs[column].to_numpy()
    tl.embed(sdata, model, modality="fused", **UM, **QUIET)
    return sdata


def tl_attribute(sdata, model):
    tl.attribute(sdata, groupby="domain", model=model, n_spots=2, show_progress_bar=False, device="cpu")


def tl_domains(sdata, model=None):
    tl.domains(sdata, 3, method="kmeans", smooth=6, labels="domain")


def tl_evaluate(sdata, model=None):
    sdata["table"].obsm["X_plain"] = sdata["table"].obsm["X_stamp_gene"]
    tl.evaluate(sdata, "X_plain", n_genes=10, n_splits=1)


def tl_expression(sdata, model=None):
    tl.expression(sdata, n_top_genes=5, folds="blocks", n_folds=2)


def tl_probe(sdata, model=None):
    tl.probe(sdata, "domain", folds="blocks", n_folds=2)


def tl_retrieve(sdata, model=None):
    tl.retrieve(sdata, exclude="neighbors")


def tl_score(sdata, model):
    tl.score(sdata, GENES, model=model, min_genes=1, device="cpu")


def tl_slide(sdata, model=None):
    tl.slide(sdata, "label", methods=("abmil",), n_folds=2, n_epochs=1, n_bootstrap=10)


def drawn(axes):
    """The first panel over its image."""
    ax = axes[0] if isinstance(axes, list) else axes
    assert ax.images


CALLS = {
    "pp.neighborhoods": lambda s, m: pp.neighborhoods(s),
    "pp.orthologs": lambda s, m: pp.orthologs(s, pd.DataFrame({"mouse": ["Col1a1"], "human": ["COL1A1"]})),
    "pp.tiles": lambda s, m: pp.tiles(s, size_px=16, **UM),
    "pp.tokenize": lambda s, m: pp.tokenize(s, max_tokens=20),
    "tl.attribute": tl_attribute,
    "tl.domains": tl_domains,
    "tl.embed": lambda s, m: tl.embed(s, m, context="neighbors", **UM, **QUIET),
    "tl.evaluate": tl_evaluate,
    "tl.expression": tl_expression,
    "tl.probe": tl_probe,
    "tl.retrieve": tl_retrieve,
    "tl.score": tl_score,
    "tl.slide": tl_slide,
    "pl.attribute": lambda s, m: (tl_attribute(s, m), pl.attribute(s)),
    "pl.domains": lambda s, m: (tl_domains(s), drawn(pl.domains(s))),
    "pl.evaluate": lambda s, m: (tl_evaluate(s), pl.evaluate(s)),
    "pl.expression": lambda s, m: (tl_expression(s), drawn(pl.expression(s, show="predicted"))),
    "pl.probe": lambda s, m: (tl_probe(s), pl.probe(s)),
    "pl.retrieve": lambda s, m: (tl_retrieve(s), pl.retrieve(s, **UM)),
    "pl.score": lambda s, m: (tl_score(s, m), drawn(pl.score(s))),
    "pl.slide": lambda s, m: (tl_slide(s), drawn(pl.slide(s, slides=["S0", "S1"]))),
    "pl.spatial": lambda s, m: drawn(pl.spatial(s, "domain")),
    "pl.tiles": lambda s, m: pl.tiles(s, "domain", **UM),
    "pl.umap": lambda s, m: (s["table"].obsm.__setitem__("X_umap", np.ones((64, 2))), pl.umap(s, "domain")),
}


def test_all_functions_are_tested():
    public = {
        f"{room.__name__.removeprefix('stampy.')}.{name}"
        for room in (pp, tl, pl)
        for name in room.__all__
        if inspect.isfunction(f := getattr(room, name)) and next(iter(inspect.signature(f).parameters)) == "adata"
    }
    assert set(CALLS) == public


@pytest.mark.parametrize("name", CALLS)
def test_without_obsm_spatial(embedded, model, name):
    sdata = _utils.copy_of(embedded)
    assert "spatial" not in sdata["table"].obsm
    CALLS[name](sdata, model)
    plt.close("all")
    assert "spatial" not in sdata["table"].obsm


def test_domains_of_several_regions_have_a_panel_each(toy, make_sdata):
    import spatialdata as sd
    from spatialdata.models import TableModel

    one = make_sdata(toy, "shapes", MATRIX)
    table = ad.concat([one["table"], one["table"]], index_unique="-", merge="same")
    table.obs["region"] = pd.Categorical(np.repeat(["a", "b"], 120))
    table = TableModel.parse(table, region=["a", "b"], region_key="region", instance_key="id")
    table.obsm["X_stamp"] = np.random.default_rng(0).normal(size=(240, 4)).astype(np.float32)
    both = sd.SpatialData.init_from_elements({"a": one.shapes["cells"], "b": one.shapes["cells"], "table": table})
    tl.domains(both, 2, method="kmeans", smooth=3)
    assert [ax.get_title() for ax in pl.domains(both)] == ["stamp_domain · a", "stamp_domain · b"]
    plt.close("all")


def test_regions_of_two_transformations_are_two_sections():
    """Each region of a table has a picture, a coordinate system and a transformation of its own."""
    import spatialdata as sd
    from spatialdata.models import Image2DModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine

    alone = [datasets.toy(n_spots=80, rng=i) for i in (0, 1)]
    elements_of, tables = {}, []
    for name, adata, matrix in zip("ab", alone, (np.eye(3), [[0, -2, 400], [2, 0, 30], [0, 0, 1]]), strict=True):
        library = next(iter(adata.uns["spatial"].values()))
        factor, matrix = library["scalefactors"]["tissue_hires_scalef"], np.array(matrix, dtype=float)
        way = {name: Affine(matrix, input_axes=("x", "y"), output_axes=("x", "y"))}
        here = np.column_stack([adata.obsm["spatial"] * factor, np.ones(80)]) @ matrix.T
        unit = factor * np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
        radius = library["scalefactors"]["spot_diameter_fullres"] / 2 * unit
        elements_of[f"he_{name}"] = Image2DModel.parse(
            library["images"]["hires"], dims=("y", "x", "c"), transformations=way
        )
        elements_of[f"spots_{name}"] = ShapesModel.parse(
            here[:, :2], geometry=0, radius=radius,
            transformations={name: Affine(np.eye(3), input_axes=("x", "y"), output_axes=("x", "y"))},
        )  # fmt: skip
        table = ad.AnnData(adata.X, obs=pd.DataFrame(index=adata.obs_names), var=adata.var)
        table.obs["region"], table.obs["id"] = f"spots_{name}", np.arange(80)
        tables.append(table)
    table = ad.concat(tables, index_unique="-", merge="same")
    table.obs["region"] = pd.Categorical(table.obs["region"])
    regions = ["spots_a", "spots_b"]
    elements_of["table"] = TableModel.parse(table, region=regions, region_key="region", instance_key="id")
    both = sd.SpatialData.init_from_elements(elements_of)
    pp.tiles(both, size_px=16)
    for adata in alone:
        pp.tiles(adata, size_px=16)
    expected = np.concatenate([adata.obsm["stamp_tiles"] for adata in alone]).astype(int)
    assert np.abs(both["table"].obsm["stamp_tiles"] - expected).max() <= 2
    pp.neighborhoods(both, size=5)
    groups = both["table"].obs["stamp_group"].to_numpy()
    assert not set(groups[:80]) & set(groups[80:]) - {-1}


def test_labels_are_read_once(toy, make_sdata, monkeypatch):
    sdata = make_sdata(toy, "labels", MATRIX)
    read = []
    blocks = elements._blocks
    monkeypatch.setattr(elements, "_blocks", lambda labels: read.append(1) or blocks(labels))
    first = coordinates_of(sdata)
    pp.neighborhoods(sdata)
    pl.spatial(sdata, "domain")
    plt.close("all")
    assert len(read) == 1
    sdata.labels["cells"] = sdata.labels["cells"].copy()  # another element
    np.testing.assert_array_equal(coordinates_of(sdata), first)
    assert len(read) == 2
    labels = sdata.labels["cells"]
    y, x = np.argwhere(labels.to_numpy() == 1)[0]
    labels[y, x] = 0  # the same element, changed in place
    assert (coordinates_of(sdata)[0] != first[0]).any()
    assert len(read) == 3
    number = id(labels)
    assert number in elements._computed
    del labels, sdata.labels["cells"]
    import gc

    gc.collect()
    assert number not in elements._computed


def test_labels_of_several_scales_are_read_once(toy, make_sdata):
    from spatialdata.models import Labels2DModel
    from spatialdata.transformations import get_transformation

    sdata = make_sdata(toy, "labels", MATRIX)
    single = sdata.labels["cells"]
    first = coordinates_of(sdata)
    sdata.labels["cells"] = Labels2DModel.parse(
        single.data, dims=("y", "x"), scale_factors=[2], transformations=get_transformation(single, get_all=True)
    )
    np.testing.assert_allclose(coordinates_of(sdata), first)
    assert elements.label_centroids(sdata.labels["cells"]) is elements.label_centroids(sdata.labels["cells"])


def test_labels_of_a_volume_are_refused(toy, make_sdata):
    from spatialdata.models import Labels3DModel

    sdata = make_sdata(toy, "shapes", np.eye(3))
    del sdata.shapes["cells"]
    volume = np.zeros((2, 20, 20), np.int32)
    volume[:, 3:5, 3:5] = 1
    sdata.labels["cells"] = Labels3DModel.parse(volume, dims=("z", "y", "x"))
    with pytest.raises(ValueError, match=r"`sdata.labels\['cells'\]` has the axes \('z', 'y', 'x'\); labels of one"):
        sections_of(sdata)


def test_one_doubtful_image_of_several_is_named(model):
    both = datasets.toy(n_spots=40, n_sections=2)
    both.uns["spatial"]["toy_2"]["images"] = {"hires": np.zeros_like(both.uns["spatial"]["toy_2"]["images"]["hires"])}
    with pytest.warns(
        UserWarning, match=r"in all 2 sections.*Section 'toy_2': The image 'hires'.*black.*remove that section"
    ) as found:
        tl.embed(both, model, library_key="section", **QUIET)
    assert not any("'toy_1'" in str(w.message) for w in found)
    assert both.uns["stamp"]["X_stamp"]["modality"] == "gene"


@pytest.mark.parametrize("entry", [None, "text", ["a", "b"]])
def test_missing_section_in_uns_is_reported(toy, entry):
    adata = ad.AnnData(toy.X, obs=toy.obs, var=toy.var, obsm={"spatial": toy.obsm["spatial"]})
    adata.uns["spatial"] = {"toy": entry}
    with pytest.raises(TypeError, match=rf"\['toy'\]` must contain images .* found {type(entry).__name__}"):
        sections_of(adata)
    adata.uns["spatial"]["is_single"] = True  # of CELLxGENE, among other entries
    assert len(sections_of(adata)) == 1


def test_stains_in_addition_to_the_image(toy, make_sdata, model):
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Identity

    at = {"transformations": {"slide": Identity()}}
    stains = ["DAPI", "ATP1A1/CD45/E-Cadherin", "18S", "AlphaSMA/Vimentin"]
    pixels = np.random.default_rng(0).integers(0, 4000, (4, 90, 90)).astype(np.uint16)
    sdata = make_sdata(toy, "shapes", np.eye(3))
    (picture,) = sdata.images
    sdata.images["morphology_focus"] = Image2DModel.parse(pixels, dims=("c", "y", "x"), c_coords=stains, **at)
    sdata.images["dapi"] = Image2DModel.parse(pixels[:1], dims=("c", "y", "x"), c_coords=["DAPI"], **at)
    (section,) = sections_of(sdata)
    assert section.image.name == picture
    del sdata.images[picture], sdata.images["dapi"]  # as spatialdata-io reads a Xenium run without H&E
    with pytest.warns(UserWarning, match=r"Only genes are embedded, since the image cannot be used.*'DAPI'"):
        tl.embed(sdata, model, **QUIET)
    assert "X_stamp_image" not in sdata["table"].obsm
    with pytest.warns(UserWarning, match="'DAPI'.*drawn without image"):
        assert not pl.spatial(sdata, "domain").images
    with pytest.raises(ValueError, match="'DAPI'"):
        tl.embed(sdata, model, modality="fused", **QUIET)
