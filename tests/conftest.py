"""Shared fixtures."""

import gc
import ipaddress
import os
import signal
import socket
import sys
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: more threads would only get in each other's way
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("NUMBA_NUM_THREADS", "1")  # numba, once begun, sets OpenMP's number to its own

# Requests of child processes to other machines fail at once: nothing listens on this port.
os.environ |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
os.environ |= dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost,::1")

import matplotlib
import pytest

matplotlib.use("Agg")

gc.disable()  # until everything is imported: a search of a million objects that are all kept takes a second


def pytest_collection_finish() -> None:
    """Exempt what was imported from garbage collection, which then searches only what tests make."""
    gc.collect()
    gc.freeze()
    gc.enable()


REPOSITORY = Path(__file__).parents[1]
DATA = Path(os.environ.get("STAMPY_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
REFERENCE = DATA.parent / "reference"


_offline = True
_refused: list[str] = []


def _is_here(host: object) -> bool:
    """Whether a host is this machine, by loopback or its own name."""
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return name in ("", "localhost", socket.gethostname())
    return address.is_loopback or address.is_unspecified


def _refuse_network(event: str, arguments: tuple) -> None:
    if not _offline or event not in ("socket.connect", "socket.getaddrinfo"):
        return
    host = arguments[0]
    if event == "socket.connect":
        connection, address = arguments
        if connection.type == socket.SOCK_DGRAM or not isinstance(address, tuple):
            return  # dask finds the machine's address by UDP, without sending data. Not a tuple: a Unix socket
        host = address[0]
    if not _is_here(host):
        _refused.append(str(host))
        raise OSError(f"A test tried to reach {host!r}. Only tests marked `network` leave this machine.")


sys.addaudithook(_refuse_network)


@pytest.fixture(autouse=True)
def offline(request: pytest.FixtureRequest):
    """No test leaves this machine unless it is marked `network`; a try fails the test, whatever became of the error."""
    global _offline
    _offline = request.node.get_closest_marker("network") is None
    before = {name: os.environ.pop(name) for name in list(os.environ) if not _offline and "PROXY" in name.upper()}
    yield
    _offline = True
    os.environ |= before
    tried, _refused[:] = sorted(set(_refused)), []
    assert not tried, f"tried to reach {tried}; serve it on 127.0.0.1 or mark the test `network`"


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real sections; skips the test without it."""
    if not (DATA / "sections").is_dir():
        pytest.skip("no real sections here (STAMPY_DATA_DIR)")
    return DATA


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Inputs and outputs of the published implementation; skips the test without them."""
    if not (REFERENCE / "golden").is_dir():
        pytest.skip("no reference outputs here (STAMPY_DATA_DIR)")
    return REFERENCE


def _small_model(vocabulary, **changes):
    import torch

    from stampy import models

    gene = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 64} | changes
    vit = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=vit)
    config = models.StampConfig(gene=models.GeneConfig(n_genes=len(vocabulary), **gene), image=image, embedding=12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.Stamp(config, vocabulary.frame).eval()
    model.name = "small"
    return model


@pytest.fixture(scope="session")
def toy():
    """A toy section; a test that changes it takes a copy."""
    from stampy import datasets

    return datasets.toy(n_spots=120, rng=0)


@pytest.fixture(scope="session")
def vocabulary(toy):
    """The toy section's own vocabulary."""
    from stampy.pp import Vocabulary

    return Vocabulary.from_sections([toy], min_spots=1)


@pytest.fixture(scope="session")
def small_model():
    """Makes a `Stamp` of random weights that runs in milliseconds, for a vocabulary."""
    return _small_model


@pytest.fixture(scope="session")
def model(vocabulary):
    """A small model of random weights for the toy section."""
    return _small_model(vocabulary)


@pytest.fixture(scope="session")
def aligned(toy, vocabulary):
    """A small model with a gene encoder trained briefly to separate the toy section's domains, and the section.

    The section is embedded; image embeddings of a classifier of tile colours replace those of a trained image encoder.
    """
    import numpy as np
    import torch
    from sklearn.linear_model import LogisticRegression

    from stampy import pp, tl

    model, adata = _small_model(vocabulary, width=32, feedforward=32, tied_heads=True), toy.copy()
    model.name = "aligned"
    pp.tokenize(adata, vocabulary, max_tokens=64)
    pp.tiles(adata, size_px=32)
    tokens = torch.from_numpy(adata.obsm.pop("stamp_tokens"))
    labels = torch.tensor(adata.obs["domain"].cat.codes.to_numpy(), dtype=torch.long)
    corners = torch.eye(4, model.config.embedding)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
        for _ in range(40):
            rows = torch.randperm(len(tokens))[:40]
            scores = 8 * model.gene_embeddings(tokens[rows]) @ corners.T
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(scores, labels[rows]).backward()
            optimizer.step()
    tl.embed(adata, model, modality="gene", device="cpu", show_progress_bar=False)
    tiles = adata.obsm.pop("stamp_tiles").astype(float)
    colours = np.hstack([tiles.mean(axis=(1, 2)), tiles.std(axis=(1, 2))])
    chances = LogisticRegression(max_iter=5000).fit(colours / 30, labels).predict_proba(colours / 30)
    image = chances @ corners.numpy()
    adata.obsm["X_stamp_image"] = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)
    adata.uns["stamp"]["X_stamp"]["modality"] = "fused"
    return model, adata


@pytest.fixture
def interruptible():
    """Ctrl-C interrupts, also if the test runner ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def few_genes(toy):
    """The packaged model without image encoder and with the genes of toy sections alone; it adapts in little time."""
    from dataclasses import replace

    import numpy as np
    import torch

    from stampy import _keys, models

    whole = models.load("stampy-mini", device="cpu")
    n, kept = len(whole.genes) + _keys.N_SPECIAL, np.flatnonzero(whole.genes["symbol"].isin(toy.var_names))
    rows = torch.from_numpy(np.concatenate([np.arange(_keys.N_SPECIAL), kept + _keys.N_SPECIAL]))
    config = models.StampConfig(gene=replace(whole.config.gene, n_genes=len(kept)), embedding=whole.config.embedding)
    model, state = models.Stamp(config, whole.genes.iloc[kept].reset_index(drop=True)).eval(), whole.state_dict()
    for name in model.state_dict():
        if state[name].ndim and len(state[name]) >= n:
            state[name] = torch.cat([state[name][rows], state[name][n:]])
    model.load_state_dict({name: state[name] for name in model.state_dict()})
    model.name = "few"
    return model


def _make_sdata(toy, kind, matrix):
    """The toy's spots as circles, points or labels that `matrix` takes to px of its image."""
    import anndata as ad
    import numpy as np
    import pandas as pd
    import spatialdata as sd
    from spatialdata.models import Image2DModel, Labels2DModel, PointsModel, ShapesModel, TableModel
    from spatialdata.transformations import Affine, Identity

    to_world = {"slide": Affine(matrix, ("x", "y"), ("x", "y"))}
    own = (toy.obsm["spatial"] - matrix[:2, 2]) @ np.linalg.inv(matrix[:2, :2]).T
    ids = np.arange(len(toy)) + 1
    if kind == "shapes":
        element = ShapesModel.parse(own, geometry=0, radius=5, index=ids, transformations=to_world)
    elif kind == "points":
        frame = pd.DataFrame(own, columns=["x", "y"], index=ids)
        element = PointsModel.parse(frame, transformations=to_world)
    else:
        low = np.floor(own.min(axis=0)) - 3
        width, height = np.ceil(own.max(axis=0) - low).astype(int) + 4
        raster = np.zeros((height, width), np.int32)
        for i, (x, y) in zip(ids, np.floor(own - low).astype(int), strict=True):
            raster[y - 1 : y + 2, x - 1 : x + 2] = i
        moved = matrix.copy()
        moved[:2, 2] = matrix[:2, :2] @ low + matrix[:2, 2]
        element = Labels2DModel.parse(
            raster, dims=("y", "x"), chunks=(100, 130), transformations={"slide": Affine(moved, ("x", "y"), ("x", "y"))}
        )
    image = toy.uns["spatial"]["toy"]["images"]["hires"]
    obs = pd.DataFrame({"region": pd.Categorical(["cells"] * len(toy)), "id": ids}, index=toy.obs_names)
    obs["domain"] = toy.obs["domain"]
    annotated = TableModel.parse(
        ad.AnnData(toy.X.copy(), obs=obs, var=toy.var.copy()), region="cells", region_key="region", instance_key="id"
    )
    he = Image2DModel.parse(image, dims=("y", "x", "c"), transformations={"slide": Identity()})
    return sd.SpatialData.init_from_elements({"cells": element, "he": he, "table": annotated})


@pytest.fixture(scope="session")
def make_sdata():
    """Makes a SpatialData of the toy section: kind of its element, and the transformation to px of the image."""
    return _make_sdata
