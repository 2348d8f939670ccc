"""Sections at addresses, and lazy tables; only from memory and this machine."""

import http.server
import shutil
import threading
import warnings
from functools import partial

import anndata
import dask.array as da
import fsspec
import h5py
import numpy as np
import pytest
from scipy import sparse

import stampy
from stampy import datasets, tl
from stampy.cli.main import main

QUIET = {"modality": "gene", "show_progress_bar": False}


@pytest.fixture(scope="module")
def section():
    return datasets.toy(n_spots=60, image=False)


@pytest.fixture(scope="module")
def folder(section, tmp_path_factory):
    """The section as .h5ad, .zarr and .zarr.zip."""
    path = tmp_path_factory.mktemp("remote")
    section.write_h5ad(path / "a.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata's about formats to come
        section.write_zarr(path / "a.zarr")
    shutil.make_archive(str(path / "a.zarr"), "zip", path, "a.zarr")
    return path


@pytest.fixture(scope="module")
def wanted(section, model_of):
    return tl.embed(section, model_of, copy=True, **QUIET).obsm["X_stamp"]


@pytest.fixture(scope="module")
def model_of(section, small_model):
    from stampy.pp import Vocabulary

    return small_model(Vocabulary.from_sections([section], min_spots=1))


@pytest.fixture(scope="module")
def server(folder):
    """The folder by loopback HTTP."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def in_memory(folder):
    """The same files in fsspec's memory."""
    memory = fsspec.filesystem("memory")
    for path in folder.rglob("*"):
        if path.is_file():
            memory.pipe(f"/stampy/{path.relative_to(folder).as_posix()}", path.read_bytes())
    yield "memory://stampy"
    memory.rm("/stampy", recursive=True)


@pytest.mark.parametrize("backed", [False, True])
@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr", "a.zarr.zip"])
def test_memory(in_memory, model_of, wanted, name, backed):
    adata = stampy.read(f"{in_memory}/{name}", backed=backed)
    assert sparse.issparse(adata.X) is not backed
    tl.embed(adata, model_of, **QUIET)
    np.testing.assert_array_equal(adata.obsm["X_stamp"], wanted)


def test_a_zip_on_disk_by_its_address(folder, section):
    adata = stampy.read(f"zip://::{folder / 'a.zarr.zip'}")
    assert adata.shape == section.shape


@pytest.mark.filterwarnings("ignore:.*unclosed")  # aiohttp's session, by fsspec
@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_http(server, model_of, wanted, name):
    pytest.importorskip("aiohttp")
    adata = stampy.read(f"{server}/{name}", backed=True)
    tl.embed(adata, model_of, **QUIET)
    np.testing.assert_array_equal(adata.obsm["X_stamp"], wanted)


def test_missing_address(in_memory):
    with pytest.raises(FileNotFoundError, match=r"No zarr store at 'memory://stampy/b\.zarr'"):
        stampy.read(f"{in_memory}/b.zarr")
    with pytest.raises(FileNotFoundError, match=r"No file at 'memory://stampy/b\.h5ad'"):
        stampy.read(f"{in_memory}/b.h5ad")
    with pytest.raises(ValueError, match="not a section that stampy reads from an address"):
        stampy.read(f"{in_memory}/outs")
    with pytest.raises(ValueError, match="`bin_um` has no effect"):
        stampy.read(f"{in_memory}/a.zarr", bin_um=8)
    with pytest.raises(ValueError, match="is an address, where a section or manifest on this machine was expected"):
        tl.embed_sections(f"{in_memory}/a.zarr", "nowhere", show_progress_bar=False)


def test_address_that_is_not_a_section(in_memory):
    fsspec.filesystem("memory").pipe("/stampy/bad.h5ad", b"no section")
    with pytest.raises(ValueError, match="truncated, damaged or of another format"):
        stampy.read(f"{in_memory}/bad.h5ad")


def test_remote_file_opens_no_local_file(tmp_path, in_memory, section):
    """Neither by a link in HDF5 nor as an image that it names."""
    section.write_h5ad(tmp_path / "linked.h5ad")
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.ones(3)
    with h5py.File(tmp_path / "linked.h5ad", "r+") as file:
        file["obsm/secret"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "x")
    fsspec.filesystem("memory").pipe("/stampy/linked.h5ad", (tmp_path / "linked.h5ad").read_bytes())
    with pytest.raises(ValueError, match="an external link"):
        stampy.read(f"{in_memory}/linked.h5ad")
    pictured = datasets.toy(n_spots=60)
    (tmp_path / "slide.tif").write_bytes(b"mine")
    library = pictured.uns["spatial"]["toy"]
    library["metadata"] = {"source_image_path": str(tmp_path / "slide.tif")}
    pictured.write_h5ad(tmp_path / "naming.h5ad")
    fsspec.filesystem("memory").pipe("/stampy/naming.h5ad", (tmp_path / "naming.h5ad").read_bytes())
    adata = stampy.read(f"{in_memory}/naming.h5ad")
    assert "source_image_path" not in adata.uns["spatial"]["toy"]["metadata"]
    with pytest.raises(ValueError, match="does not open it by default"):
        tl.embed(adata, modality="image", show_progress_bar=False)


def test_command_line(in_memory, tmp_path, capsys):
    argv = ["embed", f"{in_memory}/a.h5ad", str(tmp_path / "out.h5ad"), "--modality", "gene"]
    assert main(argv) == 0
    assert "60 spots, gene" in capsys.readouterr().out
    assert anndata.read_h5ad(tmp_path / "out.h5ad").obsm["X_stamp"].shape[0] == 60


@pytest.mark.parametrize("of", [np.asarray, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
@pytest.mark.parametrize("chunks", [(17, -1), (60, 300)])
def test_dask(section, model_of, wanted, of, chunks):
    adata = section.copy()
    adata.X = da.from_array(section.X.toarray(), chunks=chunks).map_blocks(of)
    tl.embed(adata, model_of, **QUIET)
    np.testing.assert_array_equal(adata.obsm["X_stamp"], wanted)
    assert isinstance(adata.X, da.Array)  # left as it is


@pytest.mark.filterwarnings("ignore")  # of xarray and dask
@pytest.mark.parametrize("name", ["a.h5ad", "a.zarr"])
def test_lazy(folder, model_of, wanted, name):
    pytest.importorskip("xarray")
    adata = anndata.experimental.read_lazy(folder / name)
    copied = tl.embed(adata, model_of, copy=True, **QUIET)
    np.testing.assert_array_equal(copied.obsm["X_stamp"], wanted)
    assert "X_stamp" not in adata.obsm
    tl.embed({"one": adata}, model_of, **QUIET)
    np.testing.assert_array_equal(np.asarray(adata.obsm["X_stamp"]), wanted)
    tl.embed(adata, model_of, library_key="domain", key_added="by_domain", **QUIET)
    np.testing.assert_array_equal(np.asarray(adata.obsm["by_domain"]), wanted)
