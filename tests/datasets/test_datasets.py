"""Toy sections, the registry, fetching (over a loopback server), the builders, the published vocabulary."""

import csv
import gzip
import hashlib
import http.server
import json
import re
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import io, sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from stampy import datasets
from stampy.datasets import _fetch, _load, _registry
from stampy.datasets import _fetch as _published_vocabulary
from stampy.datasets._toy import tissue_image as _toy_image
from stampy.datasets._toy import toy as _toy

UM_PER_PX = 1.6


@pytest.fixture(scope="module")
def toy():
    return datasets.toy()


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Each test has a cache of its own and no mirror."""
    monkeypatch.setenv("STAMPY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("STAMPY_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# toy ----------------------------------------------------------------------------------------------------------------


def test_toy_has_the_documented_slots(toy):
    assert toy.shape == (400, 800)
    assert isinstance(toy.X, sparse.csr_matrix)
    assert toy.X.dtype == np.int32
    assert toy.obs["domain"].cat.categories.tolist() == ["D1", "D2", "D3", "D4"]
    assert toy.obs["section"].cat.categories.tolist() == list(toy.uns["spatial"]) == ["toy"]
    assert toy.obs["in_tissue"].eq(1).all()
    assert ((toy.obs["array_row"] + toy.obs["array_col"]) % 2 == 0).all()
    assert toy.var["gene_ids"].str.fullmatch(r"ENSG\d{11}").all()
    assert toy.var_names.is_unique
    assert {"MT-CO1", "RPLP0", "EPCAM"} < set(toy.var_names)
    library = toy.uns["spatial"]["toy"]
    assert {k: v.dtype for k, v in library["images"].items()} == {"hires": np.uint8, "lowres": np.uint8}
    assert library["scalefactors"]["spot_diameter_fullres"] == pytest.approx(55 / UM_PER_PX)
    lowres, hires = library["images"]["lowres"], library["images"]["hires"]
    factor = library["scalefactors"]["tissue_lowres_scalef"]
    assert np.allclose(np.multiply(hires.shape[:2], factor), lowres.shape[:2], atol=0.5)


def test_toy_depends_on_its_seed_alone(toy):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    again, other = datasets.toy(), datasets.toy(rng=1)
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert (again.X != toy.X).nnz == 0
    assert again.obs.equals(toy.obs)
    for kind, image in toy.uns["spatial"]["toy"]["images"].items():
        assert np.array_equal(image, again.uns["spatial"]["toy"]["images"][kind])
    assert (other.X != toy.X).nnz > 0
    assert (datasets.toy(40, image=False, rng=np.random.default_rng(0)).X != datasets.toy(40, image=False).X).nnz == 0


def test_toy_without_image_has_the_same_counts(toy):
    bare = datasets.toy(image=False)
    assert "spatial" not in bare.uns
    assert (bare.X != toy.X).nnz == 0
    assert np.array_equal(bare.obsm["spatial"], toy.obsm["spatial"])


def test_toy_counts_are_sparse_like_a_section(toy):
    detected = np.diff(toy.X.indptr)
    assert 300 < np.median(detected) < 600
    assert detected.min() > 100
    means = np.asarray(toy.X.mean(axis=0)).ravel()
    squares = np.asarray(toy.X.power(2).mean(axis=0)).ravel()
    assert np.median((squares - means**2) / means) > 1.2  # more spread than Poisson


def test_toy_programmes_are_expressed_in_their_domain_only(toy):
    dense = toy.X.toarray() / toy.X.sum(axis=1)
    for domain in toy.obs["domain"].cat.categories:
        inside = (toy.obs["domain"] == domain).to_numpy()
        ratio = np.asarray(dense[inside].mean(axis=0) / dense[~inside].mean(axis=0)).ravel()
        planted = (toy.var["domain"] == domain).to_numpy()
        assert planted.sum() == 32
        assert ratio[planted].min() > 3
        ordinary = toy.var["domain"].isna().to_numpy()
        assert 0.85 < np.median(ratio[ordinary]) < 1.15
    assert "EPCAM" in toy.var_names[toy.var["domain"] == "D1"]


def test_toy_domains_are_contiguous(toy):
    xy = toy.obsm["spatial"]
    pairs = cKDTree(xy).query_pairs(110 / UM_PER_PX, output_type="ndarray")
    domain = toy.obs["domain"].cat.codes.to_numpy()
    pairs = pairs[domain[pairs[:, 0]] == domain[pairs[:, 1]]]
    graph = sparse.coo_matrix((np.ones(len(pairs)), pairs.T), shape=(len(xy), len(xy)))
    _, part = connected_components(graph, directed=False)
    for d in range(4):
        assert np.bincount(part[domain == d]).max() >= 0.9 * (domain == d).sum()


def test_toy_tiles_show_the_domain(toy):
    image = toy.uns["spatial"]["toy"]["images"]["hires"]
    half = round(56 / UM_PER_PX)
    tiles = [image[y - half : y + half, x - half : x + half] for x, y in toy.obsm["spatial"].round().astype(int)]
    features = np.array([np.r_[t.mean((0, 1)), t.std((0, 1))] for t in tiles])
    domain = toy.obs["domain"].cat.codes.to_numpy()
    centres = np.array([features[::2][domain[::2] == d].mean(axis=0) for d in range(4)])
    nearest = np.linalg.norm(features[1::2, None] - centres, axis=2).argmin(axis=1)
    assert (nearest == domain[1::2]).mean() > 0.85
    corners = np.concatenate([image[:20, :20], image[-20:, -20:]])
    assert corners.mean() > 235  # glass


@settings(deadline=None, max_examples=20)
@given(
    n_spots=st.integers(1, 80),
    n_domains=st.integers(1, 8),
    n_sections=st.integers(1, 3),
    grid=st.sampled_from(["visium", "st"]),
    rng=st.integers(0, 1000),
)
def test_toy_of_any_size(n_spots, n_domains, n_sections, grid, rng):
    n_domains = min(n_domains, n_spots)
    options = {"n_genes": 60, "n_sections": n_sections, "grid": grid, "rng": rng}
    adata = datasets.toy(n_spots, n_domains, image=n_spots < 10, **options)
    assert adata.shape == (n_spots * n_sections, 60)
    assert adata.obs_names.is_unique
    for name, section in adata.obs.groupby("section", observed=True):
        sizes = section["domain"].value_counts()
        assert len(sizes) == n_domains
        assert sizes.max() - sizes.min() <= 1
        xy = adata[section.index].obsm["spatial"] * UM_PER_PX
        assert xy.min() >= 168  # a region of 336 µm fits
        if n_spots > 6:
            nearest = cKDTree(xy).query(xy, 2)[0][:, 1]
            assert nearest.min() == pytest.approx({"visium": 100, "st": 200}[grid])
        if "spatial" in adata.uns:
            height, width, _ = adata.uns["spatial"][name]["images"]["hires"].shape
            assert (np.array([width, height]) * UM_PER_PX - xy.max(axis=0)).min() >= 168


def test_toy_survives_a_file(tmp_path):
    adata = datasets.toy(30, n_sections=2)
    adata.write_h5ad(tmp_path / "toy.h5ad")
    again = anndata.read_h5ad(tmp_path / "toy.h5ad")
    assert again.obs.equals(adata.obs)
    assert again.var["domain"].equals(adata.var["domain"])
    assert list(again.uns["spatial"]) == ["toy_1", "toy_2"]
    assert again.uns["toy"]["tissue"] == {"D1": "epithelium", "D2": "stroma", "D3": "immune", "D4": "adipose"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_spots": 0}, ValueError, "`n_spots` must be at least 1"),
        ({"n_spots": 10.0}, TypeError, "integer"),
        ({"n_domains": 9}, ValueError, "`n_domains` must be at most 8"),
        ({"n_spots": 3, "n_domains": 4}, ValueError, "`n_domains` must be at most 3"),
        ({"n_genes": 39}, ValueError, "at least 40"),
        ({"n_genes": 801}, ValueError, "at most 800"),
        ({"n_sections": 0}, ValueError, "at least 1"),
        ({"grid": "vizium"}, ValueError, "Did you mean 'visium'"),
    ],
)
def test_toy_raises(options, error, words):
    with pytest.raises(error, match=words):
        datasets.toy(**options)


def test_toy_genes_are_real(data_dir, reference_dir):
    genes = _toy._gene_table()
    real = anndata.read_h5ad(data_dir / "sections/CRC16_human.h5ad", backed="r").var["gene_ids"]
    assert (real[genes["symbol"]].to_numpy() == genes["gene_id"]).all()
    assert set(genes["gene_id"]) <= set(_published_vocabulary._order(reference_dir / "stamp_vocabulary/model.h5ad"))
    assert set(genes["tissue"].dropna()) == set(_toy_image.TEXTURES)


# registry -----------------------------------------------------------------------------------------------------------


def test_registry_is_complete():
    entries = _registry.entries()
    assert sum(n.startswith("HER2ST_") for n in entries) == 36
    assert sum(n.startswith("spatialLIBD_") for n in entries) == 12
    for name, entry in entries.items():
        assert entry.kind in {"section", "images", "vocabulary", "orthologs"}, name
        assert entry.use in _registry.USES or entry.kind not in _registry.SECTIONS, name
        assert entry.builder is None or entry.builder in _load.BUILDERS, name
        assert entry.builder or entry.kind not in _registry.SECTIONS or set(entry.files) == {"section"}, name
        assert entry.licence, name
        for file in entry.files.values():
            assert file.url or file.mirror
            places = ("https://spatial-dlpfc.s3.", "https://cf.10xgenomics.com/")
            unverified = file.url and (file.url.startswith(places) or entry.kind == "orthologs")
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256 or "") or unverified
            if file.url and file.sha256:
                assert re.match(r"https://raw\.githubusercontent\.com/[\w.-]+/[\w.-]+/[0-9a-f]{40}/", file.url)


def test_registry_is_small():
    assert (_registry.files("stampy.datasets") / "registry.json").stat().st_size < 150_000


def test_sections_for_evaluation_are_marked():
    assert set(datasets.names("train")).isdisjoint(datasets.names("evaluate only"))
    kept = {"HER2ST_A1", "HER2ST_A6", "PDAC_A_human", "DLPFC_151673", "DLPFC_151674", "HER2ST_E1", "spatialLIBD_151676"}
    assert kept <= set(datasets.names("evaluate only"))
    assert datasets.names("format tests") == ["mouse_MOB_ST1"]


def test_registry_agrees_with_the_data(data_dir):
    text = (data_dir / "README.md").read_text()
    rows = [re.split(r"\s*\|\s*", r.strip("| \n")) for r in text.splitlines() if r.startswith("| ")]
    rows = [r for r in rows if (data_dir / f"sections/{r[0]}.h5ad").exists()]
    assert {r[0] for r in rows} == {p.stem for p in (data_dir / "sections").iterdir()}
    for row in rows:
        entry = datasets.info(row[0])
        assert entry.use == row[-2]
        assert list(entry.labels) == re.findall(r"^`(\w+)`", row[-3])
    with (data_dir / "sources.tsv").open() as stream:
        rows = csv.DictReader(stream, delimiter="\t")
        known = {f"{r['repository']}/{r['commit']}/{r['path']}": (r["sha256"], int(r["bytes"])) for r in rows}
    for entry in _registry.entries().values():
        for file in entry.files.values():
            if file.url and file.sha256:
                address = file.url.removeprefix("https://raw.githubusercontent.com/")
                assert (file.sha256, file.n_bytes) == known[address]


def test_every_file_of_the_mirror_has_its_hash(data_dir, monkeypatch):
    monkeypatch.setenv("STAMPY_DATA_DIR", str(data_dir))
    paths = [
        _fetch.fetch_file(entry, role)
        for entry in _registry.entries().values()
        for role, file in entry.files.items()
        if file.in_mirror()
    ]
    assert len(paths) > 80


def test_names_filter():
    assert datasets.names(labels="histology") == ["PDAC_A_human"]
    assert set(datasets.names(labels=True)) | set(datasets.names(labels=False)) == set(datasets.names())
    assert "HER2ST_C2" in datasets.names("train", labels=False)
    assert datasets.names(in_mirror=True) == []
    with pytest.raises(ValueError, match="`use` must be one of"):
        datasets.names("test")


def test_unknown_names_suggest_the_nearest():
    for function in (datasets.info, datasets.fetch, datasets.load):
        with pytest.raises(ValueError, match="Did you mean 'HER2ST_A1'"):
            function("HER2ST_A11")
    with pytest.raises(ValueError, match="`file` must be one of"):
        datasets.fetch("HER2ST_A1", file="images")
    with pytest.raises(ValueError, match="`name` must be one of"):
        datasets.load("stamp_vocabulary")


# fetch --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A loopback server: `pages` are its responses, `asked` the requested paths."""
    pages, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            content = pages.get(self.path)
            self.send_response(404 if content is None else 200)
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.pages, httpd.asked, httpd.url = pages, asked, f"http://127.0.0.1:{httpd.server_port}"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def register(monkeypatch):
    """Put one made-up entry into the registry."""

    def put(files, *, name="made_up", kind="section", builder=None):
        source = _registry.Source("someone/data", "0" * 40, "MIT", "Someone (2025)")
        entry = _registry.Entry(name, kind, "", None, None, "train", (), (source,), {f.role: f for f in files}, builder)
        monkeypatch.setattr(_registry, "entries", lambda: {name: entry})
        return entry

    return put


def cached(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_fetch_downloads_once(server, register, tmp_path):
    server.pages["/a%20b/counts.tsv"] = b"counts"
    register([_registry.File("counts", server.url + "/a b/counts.tsv", sha(b"counts"), 6)])
    path = datasets.fetch("made_up", file="counts")
    assert path == tmp_path / "cache/made_up/counts.tsv"
    assert path.read_bytes() == b"counts"
    assert datasets.fetch("made_up") == {"counts": path}
    assert server.asked == ["/a%20b/counts.tsv"]


def test_fetch_rejects_and_removes_a_wrong_file(server, register, tmp_path):
    server.pages["/counts.tsv"] = b"something else"
    register([_registry.File("counts", server.url + "/counts.tsv", sha(b"counts"), 6)])
    with pytest.raises(ValueError, match="not the file that stampy knows"):
        datasets.fetch("made_up")
    assert cached(tmp_path) == []


def test_fetch_replaces_a_damaged_file_of_the_cache(server, register, caplog):
    server.pages["/counts.tsv"] = b"counts"
    register([_registry.File("counts", server.url + "/counts.tsv", sha(b"counts"), 6)])
    path = datasets.fetch("made_up", file="counts")
    path.write_bytes(b"coun")
    assert datasets.fetch("made_up", file="counts").read_bytes() == b"counts"
    assert "wrong hash" in caplog.text
    path.write_bytes(b"coun")
    server.pages.clear()
    with pytest.raises(ConnectionError):
        datasets.fetch("made_up")
    assert not path.exists()


def test_fetch_without_a_network_explains_what_to_do(server, register, tmp_path):
    register([_registry.File("counts", server.url + "/none.tsv", sha(b""), 0)])
    with pytest.raises(ConnectionError, match=r"none\.tsv cannot be downloaded .*404.*STAMPY_DATA_DIR"):
        datasets.fetch("made_up")
    register([_registry.File("counts", "http://127.0.0.1:9/counts.tsv", sha(b""), 0)])
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/counts\.tsv cannot be downloaded"):
        datasets.fetch("made_up")
    assert cached(tmp_path) == []


def test_fetch_by_several_processes(server, register, tmp_path):
    content = b"x" * 1_000_000
    server.pages["/counts.tsv"] = content
    register([_registry.File("counts", server.url + "/counts.tsv", sha(content), len(content))])
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: datasets.fetch("made_up", file="counts"), range(8)))
    assert len(set(paths)) == 1
    assert paths[0].read_bytes() == content
    assert cached(tmp_path) == ["counts.tsv"]


def test_fetch_accepts_an_unknown_hash_only_on_request(server, register, tmp_path):
    server.pages["/counts.h5"] = b"counts"
    register([_registry.File("counts", server.url + "/counts.h5", None, None)])
    with pytest.raises(ValueError, match="does not know the hash of the counts"):
        datasets.fetch("made_up")
    with pytest.raises(ValueError, match="not the file"):
        datasets.fetch("made_up", sha256=sha(b"other"))
    assert cached(tmp_path) == []
    with pytest.warns(UserWarning, match=sha(b"counts")):
        datasets.fetch("made_up", allow_unverified=True)
    assert datasets.fetch("made_up", file="counts", sha256=sha(b"counts").upper()).read_bytes() == b"counts"
    with pytest.raises(ValueError, match="not the file"):  # cached files are checked against the new hash
        datasets.fetch("made_up", sha256=sha(b"other"))
    assert cached(tmp_path) == []


def test_mirror_comes_first_and_is_never_changed(register, tmp_path, monkeypatch):
    (tmp_path / "mirror/sections").mkdir(parents=True)
    path = tmp_path / "mirror/sections/made_up.h5ad"
    path.write_bytes(b"section")
    monkeypatch.setenv("STAMPY_DATA_DIR", str(tmp_path / "mirror"))
    nowhere = "http://127.0.0.1:9/counts.tsv"
    mirrored = _registry.File("section", None, sha(b"section"), 7, ("sections/made_up.h5ad",))
    register([mirrored, _registry.File("counts", nowhere, sha(b"counts"), 6)])
    assert datasets.fetch("made_up") == {"section": path}
    assert datasets.names(in_mirror=True) == ["made_up"]
    path.write_bytes(b"damaged")
    with pytest.raises(ValueError, match="rejected and left unchanged"):
        datasets.fetch("made_up")
    assert path.read_bytes() == b"damaged"
    path.unlink()
    with pytest.raises(ConnectionError, match="counts"):  # the origin's files instead
        datasets.fetch("made_up")


def test_mirror_may_hold_another_edition(register, tmp_path, monkeypatch):
    (tmp_path / "reference/stamp_vocabulary").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "reference/stamp_vocabulary/model.h5ad").write_bytes(b"edition")
    monkeypatch.setenv("STAMPY_DATA_DIR", str(tmp_path / "data"))
    places = ("stamp_vocabulary/model.h5ad", "../reference/stamp_vocabulary/model.h5ad")
    register([_registry.File("order", "http://127.0.0.1:9/model.h5ad", sha(b"origin"), 6, places, sha(b"edition"))])
    assert datasets.fetch("made_up", file="order").read_bytes() == b"edition"


def test_data_available_from_a_mirror_only(monkeypatch, tmp_path):
    for function in (datasets.fetch, datasets.load):
        with pytest.raises(FileNotFoundError, match=r"STAMPY_DATA_DIR .*sections/HCC1_human\.h5ad"):
            function("HCC1_human")
    monkeypatch.setenv("STAMPY_DATA_DIR", str(tmp_path / "nothing"))
    with pytest.raises(NotADirectoryError, match="STAMPY_DATA_DIR"):
        datasets.load("HCC1_human")


def test_cache_that_is_not_a_folder(register, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("STAMPY_CACHE_DIR", str(tmp_path / "file"))
    register([_registry.File("counts", "http://127.0.0.1:9/counts.tsv", sha(b""), 0)])
    with pytest.raises(NotADirectoryError):
        datasets.fetch("made_up")


# builders -----------------------------------------------------------------------------------------------------------


def dense(adata):
    return adata.X.toarray().tolist()


def test_her2st(tmp_path):
    with gzip.open(tmp_path / "A1.tsv.gz", "wt") as stream:
        stream.write("\tSAMD11\tNOC2L\n10x13\t0\t3\n11x13\t1\t0\n12x13\t5\t5\n")
    (tmp_path / "spots.tsv").write_text(
        "x\ty\tnew_x\tnew_y\tpixel_x\tpixel_y\tselected\n"
        "11\t13\t11.0\t13.1\t2200\t2420\t1\n10\t13\t9.9\t13.0\t1980\t2400\t1\n12\t13\t12.0\t13.0\t2400\t2400\t0\n"
    )
    (tmp_path / "labels.tsv").write_text(
        "Row.names\tx\ty\tpixel_x\tpixel_y\tlabel\n"
        "1x1\t9.9\t13.0\t1\t1\tinvasive cancer\n2x2\t11.0\t13.1\t2\t2\tadipose\n"
    )
    Image.new("RGB", (1200, 1300), (200, 100, 150)).save(tmp_path / "image.jpg")
    paths = {"counts": tmp_path / "A1.tsv.gz", "spots": tmp_path / "spots.tsv"}
    bare = _load.her2st("HER2ST_A1", paths)
    assert "spatial" not in bare.uns
    adata = _load.her2st("HER2ST_A1", paths | {"labels": tmp_path / "labels.tsv", "image": tmp_path / "image.jpg"})
    assert adata.obs_names.tolist() == ["10x13", "11x13"]
    assert adata.var_names.tolist() == ["SAMD11", "NOC2L"]
    assert dense(adata) == [[0, 3], [1, 0]]
    assert adata.X.dtype == np.int32
    assert adata.obs["array_row"].tolist() == [13, 13]
    assert adata.obs["array_col"].tolist() == [10, 11]
    assert adata.obs["label"].tolist() == ["invasive cancer", "adipose"]
    assert adata.obsm["spatial"].tolist() == [[1980, 2400], [2200, 2420]]
    library = adata.uns["spatial"]["HER2ST_A1"]
    assert library["images"]["lowres"].shape == (650, 600, 3)
    assert library["scalefactors"] == {"spot_diameter_fullres": pytest.approx(100), "tissue_lowres_scalef": 0.5}


def test_her2st_agrees_with_the_finished_sections(data_dir, monkeypatch):
    """Geometry and reduced image of the builder are those of the sections in the mirror."""
    monkeypatch.setenv("STAMPY_DATA_DIR", str(data_dir))
    library = datasets.load("HER2ST_C2").uns["spatial"]["HER2ST_C2"]
    lowres, factor = _load._reduced(datasets.fetch("HER2ST_C2", file="image"))
    assert factor == pytest.approx(library["scalefactors"]["tissue_lowres_scalef"])
    assert lowres.shape == library["images"]["lowres"].shape
    assert np.abs(lowres.astype(int) - library["images"]["lowres"]).mean() < 3


def test_paste(tmp_path):
    (tmp_path / "slice.csv").write_text(",GAPDH,UBE2G2\n13.064x6.086,1,0\n12.116x7.015,0,2\n")
    (tmp_path / "coor.csv").write_text("1.3064e+01,6.086e+00\n1.2116e+01,7.015e+00\n")
    adata = _load.paste("x", {"counts": tmp_path / "slice.csv", "positions": tmp_path / "coor.csv"})
    assert adata.obs_names.tolist() == ["13.064x6.086", "12.116x7.015"]
    assert dense(adata) == [[1, 0], [0, 2]]
    assert adata.obsm["spatial"].tolist() == [[13.064, 6.086], [12.116, 7.015]]


def test_sepal(tmp_path):
    (tmp_path / "melanoma.tsv.gz").write_bytes(gzip.compress(b"\tANXA2\tDNAH1\n2x9\t1.0\t0.0\n2x10\t0.0\t4.0\n"))
    adata = _load.sepal("x", {"counts": tmp_path / "melanoma.tsv.gz"})
    assert adata.obsm["spatial"].tolist() == [[2, 9], [2, 10]]
    assert dense(adata) == [[1, 0], [0, 4]]
    (tmp_path / "melanoma.tsv.gz").write_bytes(gzip.compress(b"\tANXA2\n2x9\t0.5\n"))
    with pytest.raises(ValueError, match="raw counts were expected"):
        _load.sepal("x", {"counts": tmp_path / "melanoma.tsv.gz"})


def test_spcs_reads_its_archive_without_unpacking(tmp_path):
    with zipfile.ZipFile(tmp_path / "PDACA1.zip", "w") as archive:
        archive.writestr("PDACA1/PDACA1.txt", '"ST1","ST2"\n"A1BG",0,1\n"A2M",13,0\n')  # as R writes it
        archive.writestr("../../PDACA1_coord.txt", '"coord1","coord2"\n"ST1",10,11\n"ST2",10,13\n')
        archive.writestr("PDACA1/PDACA1_label.txt", '"label"\n"ST2","Duct epithelium"\n"ST1","Interstitium"\n')
        archive.writestr("__MACOSX/PDACA1_coord.txt", "rubbish")
    before = sorted(tmp_path.parent.rglob("*"))
    adata = _load.spcs("PDAC_A_human", {"archive": tmp_path / "PDACA1.zip"})
    assert sorted(tmp_path.parent.rglob("*")) == before
    assert adata.obs_names.tolist() == ["ST1", "ST2"]
    assert adata.var_names.tolist() == ["A1BG", "A2M"]
    assert dense(adata) == [[0, 13], [1, 0]]
    assert adata.obs["histology"].tolist() == ["Interstitium", "Duct epithelium"]
    assert adata.obs["array_row"].tolist() == [11, 13]
    assert adata.obsm["spatial"].tolist() == [[10, 11], [10, 13]]


COUNTS = np.array([[1, 0, 2], [0, 3, 0]], dtype=np.int32)  # two spots, three genes of which two share a symbol


@pytest.fixture
def space_ranger_files(tmp_path):
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        matrix = file.create_group("matrix")
        by_spot = sparse.csr_matrix(COUNTS)
        for key in ("data", "indices", "indptr"):
            matrix[key] = getattr(by_spot, key)
        matrix["shape"] = COUNTS.shape[::-1]
        matrix["barcodes"] = np.array([b"B-1", b"A-1"])
        matrix["features/id"] = np.array([b"ENSG1", b"ENSG2", b"ENSG3"])
        matrix["features/name"] = np.array([b"TBCE", b"GAPDH", b"TBCE"])
    (tmp_path / "positions.csv").write_text("A-1,1,0,0,100,50\nB-1,1,1,1,187,100\nC-1,0,0,2,100,150\n")
    (tmp_path / "scalefactors.json").write_text('{"spot_diameter_fullres": 55.0, "tissue_lowres_scalef": 0.1}')
    Image.new("RGBA", (20, 30), (200, 100, 150, 255)).save(tmp_path / "lowres.png")
    names = {"counts": "counts.h5", "positions": "positions.csv", "scalefactors": "scalefactors.json"}
    return {role: tmp_path / name for role, name in names.items()} | {"lowres": tmp_path / "lowres.png"}


def test_space_ranger(space_ranger_files, tmp_path):
    adata = _load.space_ranger("crc", space_ranger_files)
    assert dense(adata) == COUNTS.tolist()
    assert adata.obs_names.tolist() == ["B-1", "A-1"]
    assert adata.var_names.tolist() == ["TBCE", "GAPDH", "TBCE-1"]
    assert adata.var["gene_ids"].tolist() == ["ENSG1", "ENSG2", "ENSG3"]
    assert adata.obsm["spatial"].tolist() == [[100, 187], [50, 100]]  # x is the pixel column
    assert adata.obs.columns.tolist() == ["in_tissue", "array_row", "array_col"]
    assert adata.uns["spatial"]["crc"]["images"]["lowres"].shape == (30, 20, 3)
    assert adata.uns["spatial"]["crc"]["scalefactors"]["spot_diameter_fullres"] == 55

    with gzip.open(tmp_path / "matrix.mtx.gz", "wb") as stream:
        io.mmwrite(stream, sparse.coo_matrix(COUNTS.T))
    (tmp_path / "features.tsv.gz").write_bytes(gzip.compress(b"ENSG1\tTBCE\nENSG2\tGAPDH\nENSG3\tTBCE\n"))
    (tmp_path / "barcodes.tsv.gz").write_bytes(gzip.compress(b"B-1\nA-1\n"))
    mtx = {k: tmp_path / f"{k}.tsv.gz" for k in ("features", "barcodes")} | {"counts": tmp_path / "matrix.mtx.gz"}
    again = _load.space_ranger("crc", space_ranger_files | mtx)
    assert dense(again) == dense(adata)
    assert again.var.equals(adata.var)
    assert again.obs.equals(adata.obs)

    space_ranger_files["positions"].write_text("A-1,1,0,0,100,50\n")
    with pytest.raises(ValueError, match="1 of 2 barcodes of 'crc' have no position"):
        _load.space_ranger("crc", space_ranger_files)


def test_dlpfc(space_ranger_files, tmp_path):
    (tmp_path / "metadata.tsv").write_text("barcode\tlayer_guess\nA-1\tLayer_3\nB-1\tNA\n")
    adata = _load.dlpfc("dlpfc", space_ranger_files | {"labels": tmp_path / "metadata.tsv"})
    assert adata.obs["layer"].tolist() == ["NA", "L3"]
    (tmp_path / "metadata.tsv").write_text("layer_guess\tother\nA-1\tL3\t1\nB-1\tWM\t1\n")  # row names, as R has them
    adata = _load.dlpfc("dlpfc", space_ranger_files | {"labels": tmp_path / "metadata.tsv"})
    assert adata.obs["layer"].tolist() == ["WM", "L3"]


def test_images(space_ranger_files, tmp_path):
    (tmp_path / "metadata.tsv").write_text("ID\tannot_type\nA-1\tTumor\n")
    files = {k: v for k, v in space_ranger_files.items() if k != "counts"} | {"labels": tmp_path / "metadata.tsv"}
    text = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres\n"
    files["positions"].write_text(text + files["positions"].read_text())
    adata = _load.images("hbc", files)
    assert adata.shape == (2, 0)
    assert adata.obs["annot_type"].isna().tolist() == [False, True]
    assert adata.obsm["spatial"].tolist() == [[50, 100], [100, 187]]


def test_annotated(space_ranger_files, tmp_path):
    (tmp_path / "metadata.tsv").write_text("ID\tfine_annot_type\nA-1\tIDC_1\nC-1\tIDC_2\n")
    adata = _load.annotated("hbc", space_ranger_files | {"labels": tmp_path / "metadata.tsv"})
    assert dense(adata) == COUNTS.tolist()
    assert adata.obs["fine_annot_type"].isna().tolist() == [True, False]


def test_the_builder_makes_the_finished_section(data_dir, monkeypatch):
    monkeypatch.setenv("STAMPY_DATA_DIR", str(data_dir))
    entry = datasets.info("CRC16_human")
    roles = ("counts", "positions", "scalefactors", "lowres")
    made = _load.space_ranger(entry.name, {role: _fetch.fetch_file(entry, role) for role in roles})
    kept = datasets.load(entry.name)
    assert (made.X != kept.X).nnz == 0
    assert made.obs.equals(kept.obs)
    assert made.var.equals(kept.var)
    assert np.array_equal(made.obsm["spatial"], kept.obsm["spatial"])
    ours, theirs = made.uns["spatial"][entry.name], kept.uns["spatial"][entry.name]
    assert ours["scalefactors"] == theirs["scalefactors"]
    assert np.array_equal(ours["images"]["lowres"], theirs["images"]["lowres"])


def test_load_builds_what_is_not_in_the_mirror(server, register):
    table = b"\tANXA2\n2x9\t1\n"
    server.pages["/melanoma.tsv.gz"] = gzip.compress(table)
    file = _registry.File("counts", server.url + "/melanoma.tsv.gz", sha(server.pages["/melanoma.tsv.gz"]), 0)
    register([_registry.File("section", None, "0" * 64, 1, ("sections/made_up.h5ad",)), file], builder="sepal")
    adata = datasets.load("made_up")
    assert dense(adata) == [[1]]
    assert adata.uns["source"] == "someone/data @0000000"


def test_load_reads_the_mirror(data_dir, monkeypatch):
    monkeypatch.setenv("STAMPY_DATA_DIR", str(data_dir))
    available = datasets.names(in_mirror=True)
    assert len(available) == 51
    assert "spatialLIBD_151673" not in available
    for name in ("HER2ST_A1", "DLPFC_151673", "PDAC_A_human", "breast_MSTI", "hbc_blockA", "image_only_phyloplot"):
        entry, adata = datasets.info(name), datasets.load(name)
        assert set(entry.labels) <= set(adata.obs)
        assert (adata.n_vars == 0) == (entry.kind == "images")
        assert np.isfinite(adata.obsm["spatial"]).all()
        assert adata.uns["source"]


# published vocabulary -------------------------------------------------------------------------------------------------


def test_published_vocabulary_follows_the_rounding_rule(tmp_path, register, monkeypatch):
    folder = tmp_path / "mirror/stamp_vocabulary"
    folder.mkdir(parents=True)
    with h5py.File(folder / "model.h5ad", "w") as file:
        file.create_group("var").attrs["_index"] = "_index"
        file["var/_index"] = ["ENSG1", "ENSG2", "ENSG3", "ENSG4", "ENSG5"]
    np.save(folder / "means.npy", np.array([1.5, 2.4999, 0.2, np.nan, 1000.0]))
    (folder / "symbols.json").write_text(json.dumps({"NA": "ENSG1", "OLD": "ENSG5", "NEW": "ENSG5", "ELSE": "ENSG9"}))
    monkeypatch.setenv("STAMPY_DATA_DIR", str(tmp_path / "mirror"))
    files = [
        _registry.File(role, None, sha((folder / name).read_bytes()), 0, (f"stamp_vocabulary/{name}",))
        for role, name in {"order": "model.h5ad", "divisors": "means.npy", "symbols": "symbols.json"}.items()
    ]
    register(files, name=_published_vocabulary.NAME, kind="vocabulary")
    path = datasets.published_vocabulary()
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    assert table.columns.tolist() == ["gene_id", "symbol", "divisor"]
    assert table["divisor"].tolist() == [2, 2, 1, 1, 1000]
    assert table["symbol"].tolist() == ["NA", "", "", "", "OLD|NEW"]
    assert cached(tmp_path) == ["genes.tsv"]
    (folder / "symbols.json").unlink()
    assert pd.read_csv(datasets.published_vocabulary(), sep="\t")["symbol"].isna().all()


@given(st.lists(st.floats(0, 1e6) | st.just(float("nan")), min_size=1))
def test_divisors_are_whole_near_and_above_zero(means):
    means = np.array(means)
    result = _published_vocabulary.divisors(means)
    assert (result >= 1).all()
    kept = np.isfinite(means) & (means >= 0.5)
    assert (np.abs(result - means)[kept] <= 0.5).all()
    assert (result[~kept] == 1).all()


def test_published_vocabulary_rejects_pickles(tmp_path, register, monkeypatch):
    np.save(tmp_path / "means.npy", np.array([{}], dtype=object), allow_pickle=True)
    with h5py.File(tmp_path / "model.h5ad", "w") as file:
        file.create_group("var").attrs["_index"] = "_index"
        file["var/_index"] = ["ENSG1"]
    monkeypatch.setenv("STAMPY_DATA_DIR", str(tmp_path))
    names = {"order": "model.h5ad", "divisors": "means.npy"}
    files = [_registry.File(r, None, sha((tmp_path / n).read_bytes()), 0, (n,)) for r, n in names.items()]
    register(files, name=_published_vocabulary.NAME, kind="vocabulary")
    with pytest.raises(ValueError, match="allow_pickle"):
        datasets.published_vocabulary()


def test_published_vocabulary_of_the_mirror(data_dir, reference_dir, monkeypatch):
    monkeypatch.setenv("STAMPY_DATA_DIR", str(data_dir))
    table = pd.read_csv(datasets.published_vocabulary(), sep="\t", keep_default_na=False)
    assert len(table) == 20_310
    assert table["gene_id"].is_unique
    assert table["divisor"].isin([1, 2]).mean() == pytest.approx(0.87, abs=0.005)
    assert table.loc[table["gene_id"] == "ENSG00000111640", "symbol"].item() == "GAPDH"
    assert (table["symbol"] != "").sum() > 19_000


def test_effect_sets_the_strength_of_markers():
    def ratio(effect):
        adata = datasets.toy(n_spots=300, image=False, effect=effect)
        marker = (adata.var["domain"] == "D1").to_numpy()
        inside = (adata.obs["domain"] == "D1").to_numpy()
        return adata.X[inside][:, marker].mean() / adata.X[~inside][:, marker].mean()

    assert ratio(8) == pytest.approx(8, rel=0.15)
    assert ratio(2) == pytest.approx(2, rel=0.15)
    assert ratio(1) == pytest.approx(1, rel=0.15)
    with pytest.raises(ValueError, match="effect"):
        datasets.toy(effect=0.5)
