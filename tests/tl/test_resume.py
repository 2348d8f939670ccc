"""Long runs that are interrupted and resumed; several sections; counts that are not loaded into memory."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from anndata.experimental import AnnCollection
from scipy import sparse

from stampy import datasets, models, pp, tl
from stampy._files import digest_of_arrays
from stampy.tl._embedding import gene_vectors, stream

QUIET = {"show_progress_bar": False, "device": "cpu"}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    for module in (gene_vectors, stream):
        monkeypatch.setattr(module, "CHUNK", 32)


@pytest.fixture(scope="module")
def few(toy):
    """Spots for two chunks."""
    return toy[:60].copy()


class Stop(Exception):
    """The process ends here."""


def stopping_after(n, monkeypatch, model, name):
    """Let the tower run n batches, then stop; returns the count of batches."""
    ran = []
    encoder, method = (model.gene, "features") if name == "gene" else (model, "image_features")
    real = getattr(encoder, method)

    def features(x):
        if len(ran) == n:
            raise Stop
        ran.append(len(x))
        return real(x)

    monkeypatch.setattr(encoder, method, features)
    return ran


@pytest.mark.parametrize("name", ["gene", "image"])
@pytest.mark.parametrize("after", [0, 1, 5])
def test_run_resumes_where_it_stopped(few, model, tmp_path, monkeypatch, name, after):
    options = {"modality": name, "batch_size": 10, **QUIET}
    expected = tl.embed(few, model, copy=True, **options).obsm["X_stamp"]
    with monkeypatch.context() as context:
        stopping_after(after, context, model, name)
        with pytest.raises(Stop):
            tl.embed(few, model, resume=tmp_path / "parts", **options)
    assert "X_stamp" not in few.obsm
    with monkeypatch.context() as context:
        ran = stopping_after(10**6, context, model, name)
        again = tl.embed(few, model, resume=tmp_path / "parts", copy=True, **options)
    assert len(ran) == 4 + 3 - after  # 60 spots: chunks of 32 and 28; batches of at most 10
    np.testing.assert_array_equal(again.obsm["X_stamp"], expected)
    with monkeypatch.context() as context:
        stopping_after(0, context, model, name)  # all is there
        third = tl.embed(few, model, resume=tmp_path / "parts", copy=True, **options)
    np.testing.assert_array_equal(third.obsm["X_stamp"], expected)


def test_run_resumes_with_another_batch_size(toy, model, tmp_path, monkeypatch):
    with monkeypatch.context() as context:
        stopping_after(3, context, model, "gene")
        with pytest.raises(Stop):
            tl.embed(toy, model, resume=tmp_path, modality="gene", batch_size=10, **QUIET)
    again = tl.embed(toy, model, resume=tmp_path, modality="gene", batch_size=7, copy=True, **QUIET)
    expected = tl.embed(toy, model, modality="gene", copy=True, **QUIET)
    np.testing.assert_allclose(again.obsm["X_stamp"], expected.obsm["X_stamp"], atol=1e-6)


def changed_counts(adata):
    rows = np.arange(len(adata))
    rows[[40, 41]] = 41, 40
    adata.X = adata.X[rows]
    return adata


def changed_places(adata):
    adata.obsm["spatial"] = adata.obsm["spatial"] + 1.0
    return adata


def changed_pixels(adata):
    library = next(iter(adata.uns["spatial"].values()))
    library["images"] = {key: image[::-1].copy() for key, image in library["images"].items()}
    return adata


@pytest.mark.parametrize("change", [changed_counts, changed_places, changed_pixels])
def test_other_inputs_are_refused(few, model, tmp_path, change):
    tl.embed(few, model, resume=tmp_path, copy=True, **QUIET)
    with pytest.raises(ValueError, match="contains results of other counts, coordinates or images"):
        tl.embed(change(few.copy()), model, resume=tmp_path, **QUIET)


def test_other_settings_are_refused(toy, model, small_model, vocabulary, tmp_path):
    tl.embed(toy, model, resume=tmp_path / "a", modality="gene", copy=True, **QUIET)
    with pytest.raises(ValueError, match=r"another run \(level: 'embedding' there, 'feature' now\)"):
        tl.embed(toy, model, resume=tmp_path / "a", modality="gene", level="feature", **QUIET)
    tl.embed(toy, model, resume=tmp_path / "long", modality="gene", normalize=False, copy=True, **QUIET)
    with pytest.raises(ValueError, match="normalize: False there, None now"):  # a setting that only that run had
        tl.embed(toy, model, resume=tmp_path / "long", modality="gene", **QUIET)
    other = small_model(vocabulary)
    for parameter in other.parameters():
        parameter.data += 0.1
    with pytest.raises(ValueError, match=r"another run \(weights: "):
        tl.embed(toy, other, resume=tmp_path / "a", modality="gene", **QUIET)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.docx").touch()
    with pytest.raises(ValueError, match="needs a separate folder"):
        tl.embed(toy, model, resume=tmp_path / "b", modality="gene", **QUIET)
    (tmp_path / "a" / "parts.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        tl.embed(toy, model, resume=tmp_path / "a", modality="gene", **QUIET)


def test_damaged_chunk_is_recomputed(toy, model, tmp_path):
    a = tl.embed(toy, model, resume=tmp_path, modality="gene", copy=True, **QUIET)
    path = sorted(tmp_path.glob("gene-*.npz"))[1]
    whole = path.read_bytes()
    with np.load(path) as chunk:
        key, done, values = chunk["key"], chunk["done"], chunk["values"]
    odd = [
        {"done": done, "values": values},
        {"key": key, "done": done.astype(np.int64), "values": values},
        {"key": key, "done": done, "values": values[:-1]},
        {"key": key, "done": done, "values": values * np.float32("nan")},
        {"key": key, "done": done, "values": values.astype(complex)},
    ]
    for content in [whole[:100], b"", b"PK\x03\x04" + bytes(100), whole.replace(b"PK\x01\x02", b"PK\x01\x09"), *odd]:
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.savez(path, **content)
        with pytest.warns(UserWarning, match="computed again"):
            b = tl.embed(toy, model, resume=tmp_path, modality="gene", copy=True, **QUIET)
        np.testing.assert_array_equal(a.obsm["X_stamp"], b.obsm["X_stamp"])


SCRIPT = """
import pathlib, sys, time
import anndata
from stampy import tl, models
from stampy.tl._embedding import gene_vectors, resume, stream
stream.CHUNK, gene_vectors.CHUNK, resume.SAVE_EVERY_S = 32, 32, 0.0
model = models.load(sys.argv[2])
real = model.image_features
def until_killed(x):
    if len(list(pathlib.Path(sys.argv[3]).glob("image-*.npz"))) >= 2:
        print("two chunks", flush=True)
        time.sleep(600)
    return real(x)
model.image_features = until_killed
tl.embed(anndata.read_h5ad(sys.argv[1]), model, batch_size=8, resume=sys.argv[3], show_progress_bar=False, device="cpu")
"""


def test_killed_and_resumed_is_identical(toy, model, tmp_path, monkeypatch):
    models.save(model, tmp_path / "model")
    toy[:72].copy().write_h5ad(tmp_path / "a.h5ad")
    parts = tmp_path / "parts"
    command = [sys.executable, "-c", SCRIPT, *map(str, (tmp_path / "a.h5ad", tmp_path / "model", parts))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "two chunks\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    done = 0
    for path in parts.glob("image-*.npz"):
        with np.load(path) as file:
            done += file["done"].sum()
    assert 32 <= done < 72
    options = {"batch_size": 8, "copy": True} | QUIET
    loaded = models.load(tmp_path / "model")
    fresh = tl.embed(ad.read_h5ad(tmp_path / "a.h5ad"), loaded, **options)
    rows, real = [], loaded.image_features
    monkeypatch.setattr(loaded, "image_features", lambda x: rows.append(len(x)) or real(x))
    found = tl.embed(ad.read_h5ad(tmp_path / "a.h5ad"), loaded, resume=parts, **options)
    assert sum(rows) == 72 - done
    for key in ("X_stamp", "X_stamp_gene", "X_stamp_image"):
        np.testing.assert_array_equal(found.obsm[key], fresh.obsm[key])


# Several sections


@pytest.fixture(scope="module")
def sections():
    return [datasets.toy(n_spots=40, rng=i) for i in (1, 2)]


@pytest.fixture(scope="module")
def wide(sections, small_model):
    return small_model(pp.Vocabulary.from_sections(sections, min_spots=1))


@pytest.fixture(scope="module")
def alone(sections, wide):
    """Embeddings of each section by itself."""
    return [tl.embed(section, wide, copy=True, **QUIET).obsm["X_stamp"] for section in sections]


@pytest.mark.parametrize("kind", [list, tuple, dict, "collection"])
def test_several_sections(sections, wide, alone, kind):
    mine = [s.copy() for s in sections]
    data = {"a": mine[0], "b": mine[1]} if kind is dict else mine if kind == "collection" else kind(mine)
    if kind == "collection":
        data = AnnCollection(mine, join_obs="inner", join_obsm="inner", index_unique="-", join_vars="inner")
    assert tl.embed(data, wide, **QUIET) is None
    for section, expected in zip(mine, alone, strict=True):
        np.testing.assert_array_equal(section.obsm["X_stamp"], expected)
        assert section.uns["stamp"]["X_stamp"]["modality"] == "fused"
    if kind == "collection":
        np.testing.assert_array_equal(data.obsm["X_stamp"], np.concatenate([s.obsm["X_stamp"] for s in mine]))
        np.testing.assert_array_equal(data[30:50].obsm["X_stamp"], data.obsm["X_stamp"][30:50])


def test_a_collection_without_joined_obsm(sections, wide):
    mine = [s.copy() for s in sections]
    tl.embed(AnnCollection(mine, index_unique="-", join_vars="inner"), wide, modality="gene", **QUIET)
    again = AnnCollection(mine, index_unique="-", join_vars="inner")
    np.testing.assert_array_equal(again[:40].obsm["X_stamp"], mine[0].obsm["X_stamp"])


def test_several_copies_images_and_resume(sections, wide, tmp_path):
    grey = np.full((600, 600, 3), 128, np.uint8)
    data = {"a": sections[0], "b": sections[1]}
    picture = next(iter(sections[1].uns["spatial"].values()))["images"]["hires"]
    found = tl.embed(data, wide, image={"b": picture}, copy=True, **QUIET)
    assert set(found) == {"a", "b"}
    assert found["a"].uns["stamp"]["X_stamp"]["tiles"]["image"] == ["hires"]
    assert found["b"].uns["stamp"]["X_stamp"]["tiles"]["image"] == ["array"]
    copies = tl.embed(sections, wide, modality="gene", copy=True, resume=tmp_path, **QUIET)
    assert isinstance(copies, list)
    assert "X_stamp" not in sections[0].obsm
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000", "0001"]
    with pytest.raises(ValueError, match="One `image` was given for 2 sections"):
        tl.embed(sections, wide, image=grey, **QUIET)
    with pytest.raises(KeyError, match=r"`image` names \['c'\], but the sections are \['a', 'b'\]"):
        tl.embed(data, wide, image={"c": grey}, **QUIET)


def test_invalid_sections_raise_before_any_computation(sections, wide):
    mine = [s.copy() for s in sections]
    del mine[1].obsm["spatial"]
    with pytest.raises(KeyError, match="Section 1: Key `spatial` not found"):
        tl.embed(mine, wide, modality="image", **QUIET)
    with pytest.raises(TypeError, match="Section 1: Expected AnnData or SpatialData, found pathlib"):
        tl.embed([mine[0], Path("b.h5ad")], wide, **QUIET)
    with pytest.raises(ValueError, match="There is no section"):
        tl.embed([], wide, **QUIET)
    assert "X_stamp" not in mine[0].obsm
    with pytest.raises(ValueError, match="cannot be used with an AnnCollection"):
        tl.embed(AnnCollection([mine[0]]), wide, copy=True, **QUIET)


def test_digests_differ():
    a = np.arange(6, dtype=np.int32)
    assert digest_of_arrays(a) == digest_of_arrays(a[::-1][::-1])
    others = [a.reshape(2, 3), a.astype(np.int64), a[::-1]]
    assert len({digest_of_arrays(x) for x in [a, *others]}) == 4


# Memory

PEAK = """
import json, resource, sys
import stampy
from stampy import models, tl
model = models.load(sys.argv[1])
peaks = []
for path in sys.argv[2:]:
    adata = stampy.read(path, backed=True)
    tl.embed(adata, model, modality="gene", show_progress_bar=False, device="cpu")
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_memory_does_not_grow_with_the_counts(toy, model, tmp_path, suffix):
    """Additional memory of the large section after the small one, in one process, compared with its size."""
    models.save(model, tmp_path / "model")
    paths = []
    for n in (20, 300):  # times 120 spots
        x = sparse.vstack([toy.X] * n, format="csr")
        big = ad.AnnData(x, var=toy.var)
        paths.append(tmp_path / f"{n}{suffix}")
        big.write_h5ad(paths[-1]) if suffix == ".h5ad" else big.write_zarr(paths[-1])
    counts_mb = x.nnz * 8 / 2**20
    out = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PEAK, str(tmp_path / "model"), *map(str, paths)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    small, large = json.loads(out)
    assert counts_mb > 60
    assert large - small < counts_mb / 2


def test_one_changed_pixel_raises(toy, model, tmp_path):
    """Also one that no spot's tile shows: all of an image in memory is hashed."""
    changed = toy.copy()
    changed.uns["spatial"] = {"toy": {**toy.uns["spatial"]["toy"]}}
    library = changed.uns["spatial"]["toy"]
    library["images"] = {k: v.copy() for k, v in library["images"].items()}
    tl.embed(changed, model, modality="image", resume=tmp_path, **QUIET)
    next(iter(library["images"].values()))[0, 0, 0] ^= 1
    with pytest.raises(ValueError, match="contains results of other counts, coordinates or images"):
        tl.embed(changed, model, modality="image", resume=tmp_path, **QUIET)
