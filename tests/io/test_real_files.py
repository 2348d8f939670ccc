"""Real files of other producers: each is read, or rejected with a helpful message."""

import warnings

import numpy as np
import pytest

import stampy

READ = {  # spots, genes, whether there are coordinates
    "mob_stutility": (379, 1000, True),
    "visium_raw_only": (22, 49, True),
    "geo_flat_png_gz": (100, 100, True),
    "geo_flat_mtx": (12, 5, True),
    "CosMx_small": (9, 8, True),
    "Xenium_small": (6, 4, True),
    "mudata-0.2-csr.zarr": (4, 15, False),
    "test.loom": (200, 20, False),
}


def read(path, **options):
    """The section, and the warnings of stampy."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = stampy.read(path, **options)
    return found, [str(w.message) for w in said if issubclass(w.category, stampy.StampyWarning)]


@pytest.mark.parametrize("name", sorted(READ))
def test_read(data_dir, name):
    found, _ = read(data_dir / "real_files" / name)
    n_spots, n_genes, placed = READ[name]
    assert found.shape == (n_spots, n_genes)
    assert ("spatial" in found.obsm) == placed


def test_stutility_agrees_with_the_finished_section(data_dir):
    import anndata

    known = anndata.read_h5ad(data_dir / "sections" / "mouse_MOB_ST1.h5ad")
    found, said = read(data_dir / "real_files" / "mob_stutility")
    assert len(said) == 1
    assert "11 spots with counts have no position" in said[0]  # the file's own: they lie outside of the tissue
    order = known.obs_names.get_indexer(found.obs_names)
    assert (order >= 0).all()
    np.testing.assert_allclose(found.obsm["spatial"], known.obsm["spatial"][order])
    assert found.uns["spatial"]["MOB1"]["metadata"]["source_image_path"].endswith("MOB1.jpg")


@pytest.mark.parametrize("name", ["geo_flat_png_gz", "geo_flat_mtx"])
def test_images_of_geo_are_read(data_dir, name):
    found, _ = read(data_dir / "real_files" / name)
    assert set(next(iter(found.uns["spatial"].values()))["images"]) == {"hires", "lowres"}


@pytest.mark.parametrize("name", ["spatialdata_labels_blobs_v3.zarr", "spatialdata_pre02_blobs.zarr"])
@pytest.mark.parametrize("backed", [False, True])
def test_spatialdata_of_other_versions(data_dir, name, backed):
    found, _ = read(data_dir / "real_files" / name, backed=backed)
    assert found["table"].shape == (10, 3)
    assert set(found.images) == {"blobs_image", "blobs_multiscale_image"}


def test_images_are_not_sections(data_dir):
    with pytest.raises(ValueError, match="an OME-Zarr image, no section"):
        stampy.read(data_dir / "real_files" / "test.ome.zarr")
    with pytest.raises(FileNotFoundError, match="no matrix of counts"):
        stampy.read(data_dir / "hbc_blockA")
