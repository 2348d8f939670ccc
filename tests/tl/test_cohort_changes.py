"""Runs over many sections after changes: outputs are current and complete."""

import inspect
import shutil

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import io as sio

from stampy import StampyWarning, datasets, pp, tl
from stampy.tl._cohort import jobs
from stampy.tl._cohort.plan import EmbedOptions

GENES = {"n_workers": 1, "show_progress_bar": False, "modality": "gene"}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "in"
    path.mkdir()
    for i, name in enumerate("ab"):
        datasets.toy(n_spots=40 + i, rng=i, image=False).write_h5ad(path / f"{name}.h5ad")
    return path


def status(table):
    return table["status"].tolist()


def test_changed_output_is_recomputed(folder, model, tmp_path):
    out = tmp_path / "out"
    tl.embed_sections([folder / "a.h5ad"], out, model=model, **GENES)
    (out / "a.h5ad").write_bytes(b"something else")
    assert status(tl.embed_sections([folder / "a.h5ad"], out, model=model, overwrite=True, **GENES)) == ["embedded"]
    assert "X_stamp" in anndata.read_h5ad(out / "a.h5ad").obsm


def test_metadata_follows_the_current_manifest(folder, model, tmp_path):
    manifest, found = folder / "sections.tsv", []
    for organ in ("breast", "kidney"):
        manifest.write_text(f"path\tname\torgan\na.h5ad\ta\t{organ}\n")
        table = tl.embed_sections(manifest, tmp_path / "out", model=model, **GENES)
        found.append((*status(table), table["organ"][0]))
    assert found == [("embedded", "breast"), ("kept", "kidney")]


@pytest.mark.filterwarnings("ignore:.*it has no image")
def test_files_beside_a_path_count(model, tmp_path):
    adata = datasets.toy(n_spots=40, rng=0, image=False)
    outs = tmp_path / "outs"
    matrix, spatial = outs / "filtered_feature_bc_matrix", outs / "spatial"
    matrix.mkdir(parents=True)
    spatial.mkdir()
    sio.mmwrite(matrix / "matrix.mtx", adata.X.T.astype(int))
    barcodes = [f"{'ACGT'[i % 4] * 8}{i:08d}-1" for i in range(40)]
    (matrix / "barcodes.tsv").write_text("\n".join(barcodes) + "\n")
    features = [f"{i}\t{n}\tGene Expression" for i, n in zip(adata.var["gene_ids"], adata.var_names, strict=True)]
    (matrix / "features.tsv").write_text("\n".join(features) + "\n")
    places = pd.DataFrame({"barcode": barcodes, "in_tissue": 1, "array_row": adata.obs["array_row"].to_numpy(),
                           "array_col": adata.obs["array_col"].to_numpy()})  # fmt: skip
    places[["pxl_row_in_fullres", "pxl_col_in_fullres"]] = adata.obsm["spatial"][:, ::-1]
    places.to_csv(spatial / "tissue_positions.csv", index=False)
    (spatial / "scalefactors_json.json").write_text('{"spot_diameter_fullres": 60.0}')

    def run():
        return status(tl.embed_sections([matrix], tmp_path / "out", model=model, **GENES))

    assert [*run(), *run()] == ["embedded", "kept"]
    places["pxl_row_in_fullres"] += 100
    places.to_csv(spatial / "tissue_positions.csv", index=False)
    assert run() == ["embedded"]


def test_scale_of_a_section_overrides_the_manifest(toy, model, tmp_path):
    toy.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "sections.tsv").write_text("path\tum_per_px\na.h5ad\t1.6\n")
    options = GENES | {"modality": "fused", "spot_um": 55}
    tl.embed_sections(tmp_path / "sections.tsv", tmp_path / "out", model=model, **options)
    record = anndata.read_h5ad(tmp_path / "out" / "a.h5ad").uns["stamp"]["X_stamp"]
    assert "1.6" in str(record)


@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_raw_is_kept_in_another_format(folder, model, tmp_path):
    adata = anndata.read_h5ad(folder / "a.h5ad")
    adata.raw = adata
    adata.write_zarr(tmp_path / "a.zarr")
    tl.embed_sections([tmp_path / "a.zarr"], tmp_path / "out", model=model, suffix=".h5ad", **GENES)
    written = anndata.read_h5ad(tmp_path / "out" / "a.h5ad")
    assert (written.raw.X != adata.X).nnz == 0
    assert "X_stamp" in written.obsm


def test_results_do_not_replace_their_section(folder, model):
    with pytest.raises(
        ValueError, match=r"Section 'a': the result, which does not contain all .* Choose another folder"
    ):
        tl.embed_sections([folder / "a.h5ad"], folder, model=model, contents="results", overwrite=True, **GENES)
    assert anndata.read_h5ad(folder / "a.h5ad").n_vars > 0


def test_one_store_keeps_fractions_and_missing_labels(folder, model, tmp_path):
    a, b = (anndata.read_h5ad(folder / f"{name}.h5ad") for name in "ab")
    a.obsm["spatial"] = np.round(a.obsm["spatial"]).astype(np.int64)
    b.obsm["spatial"] = b.obsm["spatial"] + 0.25
    for adata, labels in ((a, ["x", None]), (b, ["y", None])):
        adata.obs["label"] = pd.Categorical(np.resize(np.array(labels, dtype=object), adata.n_obs))
    tl.embed_sections({"a": a, "b": b}, tmp_path / "out", model=model, **GENES)
    tl.collect_sections(tmp_path / "out", store=tmp_path / "all.zarr")
    joined = anndata.read_zarr(tmp_path / "all.zarr")
    np.testing.assert_array_equal(joined.obsm["spatial"][a.n_obs :], b.obsm["spatial"])
    assert joined.obs["label"].isna().sum() == a.obs["label"].isna().sum() + b.obs["label"].isna().sum()
    assert set(joined.obs["label"].cat.categories) == {"x", "y"}


def test_shared_genes_are_those_of_sections_with_counts(toy, model):
    a, b, c = toy[:40].copy(), toy[:40, :400].copy(), toy[:40].copy()
    c.X = None
    found = tl.embed({"a": a, "b": b, "c": c}, model, genes="shared", copy=True, show_progress_bar=False)
    alone = tl.embed({"a": a, "b": b}, model, genes="shared", copy=True, show_progress_bar=False)
    np.testing.assert_allclose(found["a"].obsm["X_stamp_gene"], alone["a"].obsm["X_stamp_gene"], atol=1e-6)
    with pytest.raises(ValueError, match="genes='shared' needs two sections with counts, found 1"):
        tl.embed({"a": a, "c": c}, model, genes="shared", copy=True, show_progress_bar=False)


def test_explicit_defaults_are_the_same_run(folder, model, tmp_path):
    """The command line passes every option, Python only those that were given."""
    tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", model=model, **GENES)
    arguments = inspect.signature(tl.embed).parameters
    explicit = {name: arguments[name].default for name in EmbedOptions.__annotations__}
    table = tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", model=model, **explicit | GENES)
    assert status(table) == ["kept"]
    table = tl.embed_sections([folder / "a.h5ad"], tmp_path / "out", model=model, **GENES | {"level": "feature"})
    assert status(table) == ["embedded"]


def test_the_table_is_true_after_an_error(folder, model, tmp_path, monkeypatch):
    """It lists the failed section, and one that another worker finished before the run ended."""
    (folder / "b.h5ad").write_bytes(b"no section")

    def lost(section, plan):
        jobs.embed_section_job(section, plan)
        raise ZeroDivisionError

    out = tmp_path / "out"
    with pytest.raises(ValueError, match="Section 'b'"):
        tl.embed_sections([folder / "a.h5ad", folder / "b.h5ad"], out, model=model, **GENES)
    rows = pd.read_csv(out / "sections.tsv", sep="\t", keep_default_na=False)
    assert status(rows) == ["embedded", "failed"]
    assert "cannot be read" in rows["error"][1]
    monkeypatch.setattr("stampy.tl._embed_sections.embed_section_job", lost)
    with pytest.raises(ZeroDivisionError):
        tl.embed_sections([folder / "a.h5ad"], tmp_path / "two", model=model, **GENES)
    assert status(pd.read_csv(tmp_path / "two" / "sections.tsv", sep="\t")) == ["embedded"]


def test_results_in_two_formats_are_both_of_the_run(folder, model, tmp_path):
    """A change of the format leaves the earlier results, with a warning, and may be reverted."""
    inputs, out = [folder / "a.h5ad"], tmp_path / "out"
    tl.embed_sections(inputs, out, model=model, **GENES)
    for suffix, left in ((".zarr", "a.h5ad"), (".h5ad", "a.zarr"), (".zarr", "a.h5ad")):
        with pytest.warns(StampyWarning, match=rf"another format.*{left}"):
            table = tl.embed_sections(inputs, out, model=model, suffix=suffix, **GENES)
        assert status(table) == ["embedded"]
    (out / "a.h5ad").write_bytes(b"of the user")
    with pytest.raises(FileExistsError, match=r"a\.h5ad \(changed since\)"):
        tl.embed_sections(inputs, out, model=model, **GENES)
    shutil.rmtree(out / "a.zarr")
    (out / "a.h5ad").unlink()
    assert status(tl.embed_sections(inputs, out, model=model, **GENES)) == ["embedded"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_results_without_counts_are_one_collection(folder, model, tmp_path, suffix):
    paths = [folder / "a.h5ad", folder / "b.h5ad"]
    tl.embed_sections(paths, tmp_path / "out", model=model, contents="results", suffix=suffix, **GENES)
    found = tl.collect_sections(tmp_path / "out")
    assert found.shape == (81, 0)
    assert len(found.obsm["X_stamp"]) == 81


@pytest.mark.parametrize("column", ["path", "image"])
def test_an_address_in_a_manifest_is_named_as_one(folder, tmp_path, column):
    cells = {"path": "a.h5ad", "image": "", column: "https://example.org/a.zarr"}
    (folder / "m.tsv").write_text("path\timage\n" + "\t".join(cells.values()) + "\n")
    with pytest.raises(ValueError, match=r"m\.tsv, line 2: 'https://example.org/a.zarr' is an address"):
        tl.embed_sections(folder / "m.tsv", tmp_path / "out", **GENES)
    assert not (tmp_path / "out").exists()


def test_image_and_scale_of_a_manifest_do_not_conflict_with_genes(tmp_path):
    """A manifest describes sections; a run on genes alone does not need its images."""
    adata = datasets.toy(n_spots=60)
    adata.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "sections.tsv").write_text("path\tum_per_px\na.h5ad\t1.6\n")
    found = tl.embed_sections(tmp_path / "sections.tsv", tmp_path / "out", **GENES)
    assert found["status"].tolist() == ["embedded"]
    with pytest.raises(ValueError, match="uses no image, but `um_per_px=` was given"):
        tl.embed_sections([adata], tmp_path / "other", um_per_px=1.6, **GENES)


def test_sections_in_memory_are_summed_in_bins(tmp_path):
    """`bin_um` was ignored for them."""
    adata = datasets.toy(n_spots=60, image=False)
    adata.write_h5ad(tmp_path / "a.h5ad")
    for i, section in enumerate((adata, tmp_path / "a.h5ad")):
        found = tl.embed_sections([section], tmp_path / str(i), bin_um=300, um_per_px=1.6, **GENES)
        assert found["n_spots"].tolist() == [pp.bins(adata, 300, um_per_px=1.6).n_obs]
