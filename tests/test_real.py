"""Real sections: each is loaded, tokenised, embedded and clustered, and is unchanged after writing and reading."""

import anndata as ad
import numpy as np
import pytest

import stampy

SECTIONS = [
    "BC_ST_layer1",
    "DLPFC_151673",
    "HER2ST_A1",
    "HER2ST_C3",
    "LymphNode_V1_human",
    "PDAC_A_human",
    "melanoma_ST_sepal",
]


@pytest.fixture(scope="module")
def mini():
    return stampy.models.load("stampy-mini", device="cpu")


@pytest.mark.filterwarnings("ignore:The image is coarse", "ignore:Only genes are embedded")
@pytest.mark.parametrize("name", SECTIONS)
def test_section(name, data_dir, mini, tmp_path):
    import scanpy as sc

    adata = ad.read_h5ad(data_dir / "sections" / f"{name}.h5ad")[:150].copy()
    before = adata.copy()
    stampy.tl.embed(adata, mini, show_progress_bar=False)
    assert (adata.X != before.X).nnz == 0
    assert adata.obs.equals(before.obs)
    images = next(iter(adata.uns["spatial"].values()))["images"] if "spatial" in adata.uns else {}
    fused = "hires" in images  # lowres alone has too few px in a tile
    assert adata.obsm["X_stamp"].shape == (150, 256 if fused else 128)
    assert np.isfinite(adata.obsm["X_stamp"]).all()
    assert len(np.unique(adata.obsm["X_stamp"].round(4), axis=0)) > 100  # spots differ
    sc.pp.neighbors(adata, use_rep="X_stamp", method="gauss")  # nothing to compile, as umap has
    sc.tl.leiden(adata, flavor="igraph")
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(again.obsm["X_stamp"], adata.obsm["X_stamp"])
    assert again.uns["stamp"]["X_stamp"]["model"] == "stampy-mini"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The image is coarse")
def test_every_section_embeds(data_dir, mini):
    for path in sorted((data_dir / "sections").glob("*.h5ad")):
        if path.stem == "mouse_MOB_ST1":
            continue  # mouse: no gene in common with a human vocabulary
        adata = ad.read_h5ad(path)[:20].copy()
        stampy.tl.embed(adata, mini, modality="gene", show_progress_bar=False)
        assert np.isfinite(adata.obsm["X_stamp"]).all(), path.stem


def test_packaged_model_is_small(mini):
    from importlib.resources import files

    folder = files("stampy") / "models" / "weights" / "stampy-mini"
    assert sum(p.stat().st_size for p in folder.iterdir()) < 25e6
    assert mini.name == "stampy-mini"
