"""Corpora: content equal to pp, robustness to crashes, detection of damage, and training."""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stampy import datasets, models, train
from stampy._io.sections import SectionInput
from stampy._utils import stream
from stampy.cli import main as cli
from stampy.pp import Vocabulary
from stampy.pp._neighborhoods import group_spots
from stampy.pp._tiles import TileSource
from stampy.train import Corpus
from stampy.train._corpus import build as _corpus_build
from stampy.train._corpus import section_writer as _corpus_write
from stampy.train._corpus.layout import new_array
from stampy.train._corpus.shards import Shards
from stampy.train._corpus.training_data import groups_on_disk, pairs_on_disk
from stampy.train._data import pairs_in_memory, prepare
from stampy.train._samplers import GroupSampler, PairSampler

# One section of the corpus of these tests has no genes.
pytestmark = pytest.mark.filterwarnings("ignore:Stage 1 uses only 2 of the 3 sections of the corpus")

SMALL = {"max_tokens": 48, "size_px": 32, "codec": "zstd", "n_workers": 1, "progress": False}
GENE = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 48, "tied_heads": True}
STAGE1 = GENE | {"groups_per_batch": 3, "lr": 1e-2, "checkpoint_every": 2, "embedding": 12}
STAGE2 = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_kwargs": {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2},
    "epochs": 1,
    "pairs_per_batch": 40,
    "checkpoint_every": 3,
}
QUIET = {"device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def sections(toy):
    """Two gene panels, and one without genes."""
    other = datasets.toy(n_spots=70, n_genes=500, rng=1)
    image_only = datasets.toy(n_spots=30, rng=2)[:, :0].copy()
    pairs = ((toy, "a"), (other, "b"), (image_only, "no genes"))
    return [SectionInput(data=a, name=n, organ="colon", platform="Visium") for a, n in pairs]


@pytest.fixture(scope="module")
def corpus(sections, tmp_path_factory):
    return Corpus.build(sections, tmp_path_factory.mktemp("corpus"), **SMALL, draws=2, regions=2)


@pytest.fixture
def copied(corpus, tmp_path):
    """A corpus to spoil."""
    import shutil

    return shutil.copytree(corpus.path, tmp_path / "copied")


def groups_of(corpus, settings):
    config = train.PretrainConfig.of(settings)
    return GroupSampler(groups_on_disk(corpus, None, config), config)


def pairs_of(corpus, settings):
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", size_px=corpus.settings["size_px"])
    model = models.StampConfig(gene=models.GeneConfig(n_genes=len(corpus.vocabulary), **GENE), image=image)
    return PairSampler(pairs_on_disk(corpus, corpus.vocabulary, model), train.AlignConfig.of(settings))


def files(path, name):
    return sorted(p for p in (path / "sections").glob(f"*/{name}/c/**/*") if p.is_file())


# What is written


def test_image_that_is_not_histology_is_noted(toy, tmp_path):
    dark = toy.copy()
    images = dark.uns["spatial"]["toy"]["images"]
    dark.uns["spatial"]["toy"]["images"] = {key: np.zeros_like(image) for key, image in images.items()}
    with pytest.warns(UserWarning, match="'dark': The image 'hires' does not look like H&E"):
        Corpus.build([SectionInput(data=dark, name="dark")], tmp_path / "corpus", **SMALL)
    (record,) = [json.loads(p.read_text()) for p in (tmp_path / "corpus" / "sections").glob("*/zarr.json")]
    assert any("does not look like H&E" in note for note in record["attributes"]["stampy"]["notes"])
    tower = models.ImageConfig(backbone="vit_tiny_patch16_224", size_px=32)
    with pytest.warns(UserWarning, match="'dark': The image 'hires' does not look like H&E"):
        prepare(SectionInput(data=dark, name="dark"), Vocabulary.from_sections([dark]), max_tokens=48, tower=tower)


def test_tokens_coordinates_and_tiles_equal_those_of_pp(corpus, sections):
    for section in sections:
        stored = corpus.section(section.name)
        source = TileSource.open(section.data, size_px=32)
        rows = np.array([5, 0, 29, 7])
        assert (stored.xy == section.data.obsm["spatial"]).all()
        assert (stored.patches(rows) == source.read(rows)).all()
        for which in (0, 1):
            cells = stored.cells[rows, which]
            expected = source.read(rows, region=True, cells=cells)
            assert (stored.regions(rows, np.full(4, which)) == expected).all()
        assert source.region_cells()[np.arange(stored.n_spots), stored.cells[:, 0]].all()
        if section.data.n_vars:
            memory = prepare(section, corpus.vocabulary, max_tokens=48)
            assert (stored.tokens(np.arange(stored.n_spots)) == memory.tokens).all()
            assert stored.tokens(rows).dtype == np.uint16
            assert (stored.lengths == (memory.tokens[stored.spots] != 0).sum(axis=1)).all()
    assert not corpus.section("no genes").has_genes
    assert corpus.section("b").record["genes"]["n_vars"] == 500
    assert len(corpus.vocabulary) <= 800


def test_a_group_is_one_chunk_with_its_centre_first(corpus, sections):
    section, stored = sections[0], corpus.section("a")
    tokens = prepare(section, corpus.vocabulary, max_tokens=48).tokens
    n_spots = len(tokens)
    for number in (0, 3, sum(stored.n_groups) - 1):
        members = stored.spots[number * 9 : number * 9 + 9]
        assert (stored.group(number) == tokens[members]).all()
        xy = stored.xy[members]
        apart = np.linalg.norm(xy[:, None] - xy[None], axis=2).mean(axis=1)
        assert apart[0] == pytest.approx(apart.min())
    assert set(stored.spots) == set(range(n_spots))
    assert len(stored.n_groups) == 2
    first, second = np.split(stored.spots[: 9 * sum(stored.n_groups)], [9 * stored.n_groups[0]])
    assert not np.array_equal(first[:9], second[:9])


def test_zarr_reads_equal_values(corpus):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(corpus.path / "sections", mode="r")
    assert sorted(group) == sorted(s.folder.name for s in corpus.sections)
    stored = corpus.section("b")
    array = group[stored.folder.name]["tokens"]
    assert array.metadata.zarr_format == 3
    assert array.shards is not None
    assert (array[:][stored.first_row] == stored.tokens(np.arange(70))).all()
    assert group[stored.folder.name].attrs["stampy"]["n_spots"] == 70


@pytest.mark.parametrize("codec", ["jpeg", "jpegxl"])
def test_compressed_tiles_are_similar(codec, toy, tmp_path):
    zarr = pytest.importorskip("zarr")
    corpus = Corpus.build(toy, tmp_path, **SMALL | {"codec": codec, "size_px": 224})
    stored, rows = corpus.sections[0], np.array([3, 100])
    found = stored.patches(rows)
    assert np.abs(found.astype(int) - TileSource.open(toy).read(rows)).mean() < 3
    assert (zarr.open_array(stored.folder / "patches", mode="r")[3] == found[0]).all()


@given(rows=st.integers(1, 40), chunk=st.integers(1, 7), chunks=st.integers(1, 5), zeros=st.booleans(),
       codec=st.sampled_from(["none", "zstd"]))  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_shards_of_any_shape_come_back(rows, chunk, chunks, zeros, codec, tmp_path_factory):
    zarr = pytest.importorskip("zarr")
    folder = tmp_path_factory.mktemp("shards")
    values = np.random.default_rng(rows).integers(0, 1 if zeros else 60_000, (rows, 5)).astype(np.uint16)
    group = zarr.open_group(folder, mode="w", zarr_format=3)
    new_array(group, "x", values.shape, values.dtype, chunk, chunks, codec)[:] = values
    shards = Shards(folder / "x")
    assert (shards.all() == values).all()
    assert (shards.row(rows - 1) == values[-1]).all()


@given(n=st.integers(1, 80), size=st.integers(2, 9), draws=st.integers(1, 3), two=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_layouts_hold_every_spot(n, size, draws, two, seed):
    xy = np.random.default_rng(seed).uniform(0, 9, (n, 2))
    codes = np.arange(n) % 2 if two else np.zeros(n, dtype=int)
    wanted = {"group_size": size, "max_distance": 50.0, "draws": draws, "seed": seed}
    spots, n_groups = _corpus_write.layout(xy, codes, wanted, "name")
    assert set(spots) == set(range(n))
    assert len(n_groups) == draws
    groups = spots[: size * sum(n_groups)].reshape(-1, size)
    assert (codes[groups] == codes[groups[:, :1]]).all()
    if n < size:
        assert n_groups == [0] * draws
    again, _ = _corpus_write.layout(xy, codes, wanted, "name")
    assert (again == spots).all()


def test_table_describes_the_content(corpus):
    table = corpus.table.set_index("name")
    assert table.loc["a", "n_spots"] == 120
    assert table.loc["no genes", "n_groups"] == 0
    assert list(table["organ"].unique()) == ["colon"]
    assert list(table["platform_id"].unique()) == [0]
    assert corpus.section("a").record["image"]["um_per_px"]
    assert repr(corpus).startswith("Corpus(3 sections, 220 spots")
    with pytest.raises(KeyError, match="Similar names"):
        corpus.section("no gene")
    assert pickle.loads(pickle.dumps(corpus)).digest == corpus.digest  # as processes of several devices do


@pytest.mark.filterwarnings("ignore")  # of the other packages' writers
def test_formats_and_manifests(toy, tmp_path):
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel

    toy = toy[:60].copy()
    toy.write_h5ad(tmp_path / "a.h5ad")
    toy.write_zarr(tmp_path / "b.zarr")
    library = next(iter(toy.uns["spatial"].values()))
    radius = library["scalefactors"]["spot_diameter_fullres"] / 2
    scale = library["scalefactors"]["tissue_hires_scalef"]
    shapes = ShapesModel.parse(toy.obsm["spatial"] * scale, geometry=0, radius=radius * scale)
    table = toy.copy()
    table.uns = {}
    del table.obsm["spatial"]
    table.obs["region"] = pd.Categorical(["spots"] * table.n_obs)
    table.obs["id"] = shapes.index.to_numpy()
    table = TableModel.parse(table, region="spots", region_key="region", instance_key="id")
    image = Image2DModel.parse(library["images"]["hires"].transpose(2, 0, 1), dims=("c", "y", "x"))
    sdata = spatialdata.SpatialData(images={"he": image}, shapes={"spots": shapes}, tables={"table": table})
    sdata.write(tmp_path / "c.zarr")
    rows = pd.DataFrame({"path": ["a.h5ad", "b.zarr", "c.zarr"], "organ": ["colon", "", "skin"]})
    rows.to_csv(tmp_path / "m.tsv", sep="\t", index=False)
    corpus = Corpus.build(tmp_path / "m.tsv", tmp_path / "out", **SMALL)
    assert list(corpus.table["name"]) == ["a", "b", "c"]
    assert list(corpus.table["organ"]) == ["colon", "", "skin"]
    a, b, c = corpus.sections
    everything = np.arange(60)
    assert (a.tokens(everything) == c.tokens(everything)).all()
    assert (b.patches(everything) == a.patches(everything)).all()
    assert np.abs(c.patches(everything).astype(int) - a.patches(everything)).max() <= 1
    assert np.allclose(c.xy, a.xy * scale)


# Building


def test_rebuilding_keeps_sections_and_adds_new_ones(sections, corpus, copied, monkeypatch):
    written = []
    write = _corpus_build.write_section
    monkeypatch.setattr(_corpus_build, "write_section", lambda s, *a: written.append(s.name) or write(s, *a))
    again = partial(Corpus.build, out=copied, **SMALL, draws=2, regions=2)
    assert again(sections).digest == corpus.digest
    assert written == []
    changed = sections[1].data.copy()
    changed.obsm["spatial"] = changed.obsm["spatial"] + 1
    new = [
        sections[0],
        SectionInput(data=changed, name="b"),
        *sections[2:],
        SectionInput(data=sections[0].data, name="more"),
    ]
    assert again(new).digest != corpus.digest
    assert written == ["b", "more"]
    with pytest.raises(ValueError, match=r"the section 'more' that was not passed"):
        again(sections)


def test_rebuilding_repairs_damage(sections, corpus, copied):
    files(copied, "tokens")[0].write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes where"):
        Corpus(copied)
    assert Corpus.build(sections, copied, **SMALL, draws=2, regions=2).digest == corpus.digest
    assert Corpus(copied).verify() == []


def test_killed_build_resumes(tmp_path):
    for i in range(3):
        datasets.toy(n_spots=40, image=False, rng=i).write_h5ad(tmp_path / f"{i}.h5ad")
    paths = [str(tmp_path / f"{i}.h5ad") for i in range(3)]
    vocabulary = Vocabulary.from_sections(paths)
    vocabulary.save(tmp_path / "genes.tsv")
    code = (
        "import sys, time, anndata\n"
        "from stampy.train import Corpus\nfrom stampy.train._corpus import section_writer as _corpus_write\n"
        "put = _corpus_write._put_tokens\n"
        "def slow(*a):\n"
        "    put(*a)\n"
        "    if list(out.glob('sections/0*')): time.sleep(60)\n"
        "from pathlib import Path\n"
        "out = Path(sys.argv[1])\n"
        "_corpus_write._put_tokens = slow\n"
        f"Corpus.build({paths}, out, vocabulary={str(tmp_path / 'genes.tsv')!r}, reader=anndata.read_h5ad, **{SMALL})\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(out)])
    deadline = time.monotonic() + 120
    while not (list(out.glob("sections/0")) and list(out.glob("sections/.partial-*/tokens/c/*"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(out.glob("sections/.partial-*"))
    with pytest.raises(FileNotFoundError, match="not finished"):
        Corpus(out)
    before = (out / "sections" / "0" / "zarr.json").stat().st_mtime_ns
    whole = Corpus.build(paths, tmp_path / "fresh", vocabulary=vocabulary, **SMALL)
    again = Corpus.build(paths, out, vocabulary=vocabulary, **SMALL)
    assert again.digest == whole.digest
    assert (out / "sections" / "0" / "zarr.json").stat().st_mtime_ns == before
    assert not list(out.glob("sections/.partial-*"))


def test_a_bad_section_stops_or_is_left_out_with_a_warning(toy, tmp_path):
    (tmp_path / "bad.h5ad").write_bytes(b"no")
    negative = toy.copy()
    negative.X = -negative.X
    chosen = [SectionInput(data=toy, name="good"), tmp_path / "bad.h5ad", SectionInput(data=negative, name="negative")]
    with pytest.raises(ValueError, match=r"Section 'bad' cannot be used: .*truncated.*on_error='skip'"):
        Corpus.build(chosen, tmp_path / "out", **SMALL)
    with pytest.warns(UserWarning, match="was skipped") as caught:
        corpus = Corpus.build(chosen, tmp_path / "out", **SMALL, on_error="skip")
    assert len(caught) == 2
    assert list(corpus.skipped) == ["bad", "negative"]
    assert "negative" in corpus.skipped["negative"]
    assert [s.name for s in corpus.sections] == ["good"]
    with pytest.raises(ValueError, match="Section 'bad'"):
        Corpus.build(chosen, tmp_path / "out", **SMALL)
    with pytest.raises(ValueError, match="None of the 2 sections has genes"):
        Corpus.build(chosen[1:], tmp_path / "none", **SMALL, on_error="skip")


def test_a_full_disk_stops_also_where_bad_sections_are_skipped(sections, corpus, tmp_path, monkeypatch):
    put, calls = _corpus_write._put_tokens, []

    def full(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return put(*arguments)

    monkeypatch.setattr(_corpus_write, "_put_tokens", full)
    build = partial(Corpus.build, sections, tmp_path, **SMALL, draws=2, regions=2, on_error="skip")
    with pytest.raises(OSError, match="No space left on device while section 'b' was written") as error:
        build()
    assert error.value.errno == errno.ENOSPC
    assert sorted(p.name for p in (tmp_path / "sections").iterdir()) == ["a", "zarr.json"]
    assert build().digest == corpus.digest


def test_too_few_spots_for_a_group_warns(toy, tmp_path):
    few = SectionInput(data=toy[:5].copy(), name="few")
    with pytest.warns(UserWarning, match="'few': No neighbourhood group"):
        corpus = Corpus.build([few, SectionInput(data=toy, name="all")], tmp_path, **SMALL)
    assert corpus.section("few").n_groups == [0]
    assert corpus.section("few").tokens(np.arange(5)).any()


def test_images_may_be_required_or_left_out(toy, tmp_path):
    blind = toy.copy()
    del blind.uns["spatial"]
    assert not Corpus.build(toy, tmp_path / "none", **SMALL, images=False).sections[0].has_tiles
    assert not Corpus.build(blind, tmp_path / "auto", **SMALL).sections[0].has_tiles
    with pytest.raises(ValueError, match="`spatial` not found"):
        Corpus.build(blind, tmp_path / "all", **SMALL, images=True)
    with pytest.raises(ValueError, match="neither genes nor an image"):
        Corpus.build([toy, blind[:, :0].copy()], tmp_path / "nothing", **SMALL)


def test_referenced_image_gives_tiles(toy, tmp_path):
    library = toy.uns["spatial"]["toy"]
    factor = library["scalefactors"]["tissue_hires_scalef"]
    Image.fromarray(library["images"]["hires"]).save(tmp_path / "he.png")
    section = toy.copy()
    section.obsm["spatial"] = section.obsm["spatial"] * factor
    section.uns["spatial"]["toy"] = {
        "images": {},
        "scalefactors": {"spot_diameter_fullres": library["scalefactors"]["spot_diameter_fullres"] * factor},
        "metadata": {"source_image_path": str(tmp_path / "he.png")},
    }
    assert Corpus.build(section, tmp_path / "corpus", **SMALL).sections[0].has_tiles


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
@pytest.mark.parametrize("ending", [".h5ad", ".zarr"])
@pytest.mark.parametrize("place", ["source_image_path", "pixels"])
@pytest.mark.parametrize("relative", [True, False])
def test_another_image_under_the_same_name_is_noticed(toy, tmp_path, ending, place, relative):
    image = tmp_path / "he.png"
    name = image.name if relative else str(image)
    section = toy.copy()
    factors = section.uns["spatial"]["toy"]["scalefactors"]
    section.uns["spatial"]["toy"] = {
        "images": {"hires": name} if place == "pixels" else {},
        "scalefactors": factors,
        "metadata": {} if place == "pixels" else {"source_image_path": name},
    }
    path = tmp_path / f"s{ending}"
    section.write_h5ad(path) if ending == ".h5ad" else section.write_zarr(path)
    prints = set()
    for side in (30, 40, 40):
        Image.new("RGB", (side, side)).save(image)
        prints.add(_corpus_build._fingerprint(SectionInput(name="s", data=path)))
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "jpg"}, "Did you mean 'jpeg'"),
        ({"quality": 101}, "`quality` must be at most 100"),
        ({"group_size": 1}, "`group_size` must be at least 2"),
        ({"draws": 0}, "`draws` must be at least 1"),
        ({"tile_um": -1.0}, "`tile_um` must be"),
        ({"max_tokens": 70_000}, "`max_tokens` must be at most"),
        ({"images": "yes"}, "`images` must be True, False or None"),
        ({"on_error": "ignore"}, "`on_error` must be one of"),
        ({"n_workers": 0}, "`n_workers` must be at least 1"),
    ],
)
def test_invalid_settings_raise(toy, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Corpus.build(toy, tmp_path / "out", **SMALL | changes)
    assert not (tmp_path / "out").exists()


def test_invalid_folders_and_sections_raise(toy, copied, sections, tmp_path):
    with pytest.raises(ValueError, match=r"with other settings: \['max_tokens'\]"):
        Corpus.build(sections, copied, **SMALL | {"max_tokens": 20}, draws=2, regions=2)
    other = Vocabulary.from_sections([toy], min_spots=60)
    with pytest.raises(ValueError, match="another vocabulary"):
        Corpus.build(sections, copied, vocabulary=other, **SMALL, draws=2, regions=2)
    with pytest.raises(ValueError, match="neither empty nor a corpus"):
        Corpus.build(toy, tmp_path, **SMALL)
    with pytest.raises(ValueError, match=r"different names, found \['s: in memory, in memory'\]"):
        Corpus.build([SectionInput(data=toy, name="s")] * 2, tmp_path / "new", **SMALL)
    with pytest.raises(FileNotFoundError, match="is not a corpus"):
        Corpus(tmp_path)


@pytest.mark.slow
def test_processes_write_the_same(sections, corpus, tmp_path):
    found = Corpus.build(sections, tmp_path / "out", **SMALL | {"n_workers": 2}, draws=2, regions=2)
    assert found.digest == corpus.digest
    (tmp_path / "bad.h5ad").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"^Section 'bad' cannot be used"):
        Corpus.build([*sections, tmp_path / "bad.h5ad"], tmp_path / "other", **SMALL | {"n_workers": 2})


@pytest.mark.filterwarnings("ignore")  # of the cluster's own
def test_a_cluster_writes_the_same(sections, corpus, tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options, protocol="tcp") as cluster:
        address = cluster.scheduler_address
        here = {k: v for k, v in SMALL.items() if k != "n_workers"}
        with pytest.raises(ValueError, match="`n_workers` has no effect with `scheduler`"):
            Corpus.build(sections, tmp_path, **SMALL, scheduler=address)
        found = Corpus.build(sections, tmp_path, **here, draws=2, regions=2, scheduler=address)
    assert found.digest == corpus.digest


# Damage


def test_verify_finds_a_flipped_byte(copied):
    assert Corpus(copied).verify() == []
    path = files(copied, "patches")[0]
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    (problem,) = Corpus(copied).verify()
    assert problem == f"{path.relative_to(copied).as_posix()}: its contents changed (SHA-256)"


def test_manual_changes_are_detected(copied):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["settings"]["seed"] = 1
    (copied / "manifest.json").write_text(json.dumps(manifest))
    (copied / "genes.tsv").unlink()
    assert [p.split(":")[0] for p in Corpus(copied).verify()] == ["manifest.json", "genes.tsv"]
    (copied / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="it is not a manifest"):
        Corpus(copied)
    (copied / "manifest.json").write_text('{"format": 99, "stampy": "9.0"}')
    with pytest.raises(ValueError, match=r"format 99; this version of stampy reads format 1. .* stampy 9.0"):
        Corpus(copied)


def test_damage_while_a_corpus_is_open(copied):
    corpus = Corpus(copied)
    path = files(copied, "tokens")[0]
    whole = path.read_bytes()
    section = next(s for s in corpus.sections if s.folder in path.parents)
    section.group(0)
    path.write_bytes(whole[:40])
    with pytest.raises(ValueError, match=r"ends .* bytes early"):
        section.group(0)
    with pytest.raises(ValueError, match=r"ends .* bytes early"):
        section.read_group(0, np.arange(9), np.empty((9, 48), np.uint16))
    with pytest.raises(ValueError, match="40 bytes, fewer than its index"):
        Shards(section.folder / "tokens").chunk(0)
    cells = section.folder / "cells" / "c" / "0" / "0"
    spoiled = bytearray(cells.read_bytes())
    spoiled[20] ^= 1  # compressed data have a checksum
    cells.write_bytes(spoiled)
    with pytest.raises(ValueError, match=r"damaged at .*chunk 0"):
        _ = section.cells
    next(iter(files(section.folder.parents[1], "lengths"))).unlink()
    with pytest.raises(ValueError, match="it is missing"):
        _ = section.lengths
    with pytest.raises(ValueError, match=r"it is missing.*building again"):
        Corpus(copied)


def test_invalid_token_raises(copied):
    for path in files(copied, "tokens"):
        spoiled = bytearray(path.read_bytes())
        spoiled[: 48 * 9 * 2] = np.full(48 * 9, 9999, dtype="<u2").tobytes()  # the first group of each section
        path.write_bytes(spoiled)
    corpus = Corpus(copied)
    with pytest.raises(ValueError, match=r"copied' has a token 9999 where \d+ is the highest"):
        [groups_of(corpus, STAGE1).batch(step) for step in range(8)]
    with pytest.raises(ValueError, match=r"copied' has a token 9999 where \d+ is the highest"):
        [pairs_of(corpus, STAGE2).batch(step) for step in range(6)]


# Training


@pytest.mark.parametrize(
    ("make", "small", "key", "size"),
    [(groups_of, STAGE1, "groups_per_batch", 6), (pairs_of, STAGE2, "pairs_per_batch", 16)],
)
def test_two_ranks_share_the_batch_of_one(make, small, key, size, corpus):
    whole = make(corpus, small | {key: size})
    shares = [make(corpus, small | {key: size // 2}) for _ in range(2)]
    for part, share in enumerate(shares):
        share.place(part, 2)
        assert share.steps == whole.steps
    for step in (0, whole.steps - 1):
        expected, found = whole.batch(step), [s.batch(step) for s in shares]
        for name in expected:
            parts = [f[name] for f in found]
            if name == "positions":
                together = max(parts, key=len)
            elif name == "tokens":
                width = expected[name].shape[-1]
                together = torch.cat([torch.nn.functional.pad(p, (0, width - p.shape[-1])) for p in parts])
            else:
                together = torch.cat(parts)
            assert torch.equal(together, expected[name]), name


def test_batches_depend_on_the_step_alone(corpus):
    sampler, plain = (groups_of(corpus, STAGE1 | {"positions_per_step": 10}) for _ in range(2))
    steps = [7, 0, 1, 2, 1, sampler.steps - 1, sampler.steps]
    with ThreadPoolExecutor(4) as pool:
        for a, step in zip(pool.map(sampler.batch, steps), steps, strict=True):
            b = plain.batch(step)
            assert all(torch.equal(a[k], b[k]) for k in a)
    assert sampler.batch(0)["tokens"].shape == (3, 9, 10)
    assert not torch.equal(sampler.batch(0)["rows"], sampler.batch(sampler.steps_per_epoch)["rows"])
    assert sampler.names(torch.tensor([0, 119, 120])) == ["a", "b"]


def test_an_epoch_has_every_group_once(corpus):
    sampler = groups_of(corpus, STAGE1 | {"groups_per_batch": 1})
    assert sampler.steps_per_epoch == sum(s.n_groups[0] for s in corpus.sections if s.has_genes)
    centres = [tuple(sampler.batch(i)["rows"][0].tolist()) for i in range(sampler.steps_per_epoch)]
    assert len(set(centres)) == len(centres)


def test_losses_equal_those_of_the_same_groups_in_memory(corpus, sections):
    from stampy.train._pretrain_run import _new_model
    from stampy.train._pretrain_step import Reconstruction

    config = train.PretrainConfig.of(STAGE1)
    sampler = groups_of(corpus, STAGE1)
    memory = [prepare(s, corpus.vocabulary, max_tokens=48).tokens for s in sections[:2]]
    stage = Reconstruction(_new_model(config, corpus.vocabulary), config, 0)
    batch = sampler.batch(2)
    tokens = np.concatenate(memory)[batch["rows"].numpy()].astype(np.int64)
    same = batch | {"tokens": torch.from_numpy(tokens)[..., batch["positions"]]}
    pieces = [stage.pieces(b, 2)[0] for b in (batch, same)]
    losses = [stage(p | {"weights": {k: 1 / n for k, n in p["counts"].items()}}) for p in pieces]
    assert {k: v.item() for k, v in losses[0].items()} == {k: v.item() for k, v in losses[1].items()}
    assert losses[0]["cgr"] > 0


def test_pairs_are_those_of_the_sections(corpus, sections):
    sampler = pairs_of(corpus, STAGE2)
    batch = sampler.batch(1)
    rows = batch["rows"].numpy()
    starts = np.array([0, 120, 190, 220])
    which = np.searchsorted(starts, rows, side="right") - 1
    assert (which[:20] == which[20:]).all()
    assert set(which) == {0, 1, 2}
    for i in range(0, 40, 7):
        data, row = sections[which[i]].data, np.array([rows[i] - starts[which[i]]])
        source = TileSource.open(data, size_px=32)
        assert (batch["patches"][i].numpy() == source.read(row)[0]).all()
        expected = source.read(row, region=True, cells=batch["cells"][i : i + 1].numpy())[0]
        assert (batch["regions"][i].numpy() == expected).all()
    assert not batch["tokens"][torch.from_numpy(which == 2)].any()


class Stopped(Exception):
    pass


def test_both_stages_train_from_a_corpus_and_resume(sections, tmp_path, monkeypatch):
    sections = [SectionInput(data=s.data[:50].copy(), name=s.name) for s in sections[:2]]
    corpus = Corpus.build(sections, tmp_path / "corpus", **SMALL | {"size_px": 224, "codec": "jpeg"})
    model = train.pretrain(corpus, tmp_path / "genes", config=STAGE1, **QUIET)
    assert Vocabulary(model.genes) == corpus.vocabulary
    fit, first = GroupSampler.batch, []

    def stop(self, step):
        if step == 4 and not first:
            first.append(step)
            raise Stopped
        return fit(self, step)

    monkeypatch.setattr(GroupSampler, "batch", stop)
    again = partial(train.pretrain, [str(corpus.path)], tmp_path / "again", config=STAGE1, **QUIET)
    with pytest.raises(Stopped):
        again()
    assert list((tmp_path / "again").glob("*.ckpt"))
    for x, y in zip(again().state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(x, y)
    both = train.align(corpus.path, tmp_path / "both", model=model, config=STAGE2, **QUIET)
    assert both.config.image is not None
    assert (tmp_path / "both" / "model").is_dir()

    more = [*sections, SectionInput(data=sections[0].data, name="more")]
    Corpus.build(more, corpus.path, **SMALL | {"size_px": 224, "codec": "jpeg"})
    with pytest.raises(ValueError, match="contains a run with other data"):
        again()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 5}, "built with group_size=9, the settings have 5"),
        ({"max_distance": 3.0}, "built with max_distance=5.0"),
        ({"max_tokens": 64}, "keeps 48 tokens of a spot, the model takes 64"),
    ],
)
def test_a_corpus_of_other_groups_is_refused(corpus, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        train.pretrain(corpus, tmp_path, config=STAGE1 | changes, **QUIET)


def test_a_corpus_that_does_not_fit_the_model_is_refused(corpus, toy, small_model, tmp_path):
    other = Vocabulary.from_sections([toy], min_spots=60)
    with pytest.raises(ValueError, match="built with another vocabulary"):
        train.pretrain(corpus, tmp_path, vocabulary=other, config=STAGE1, **QUIET)
    with pytest.raises(ValueError, match="built with another vocabulary"):
        train.align(corpus, tmp_path, model=small_model(other, max_tokens=48), config=STAGE2, **QUIET)
    with pytest.raises(ValueError, match="tiles of size_px=32, the model takes 224"):
        train.align(corpus, tmp_path, model=small_model(corpus.vocabulary, max_tokens=48), config=STAGE2, **QUIET)
    without = Corpus.build(toy, tmp_path / "without", **SMALL, images=False)
    with pytest.raises(ValueError, match="has no tiles"):
        pairs_of(without, STAGE2)


def test_training_from_a_corpus_needs_no_anndata(corpus, tmp_path):
    code = (
        "import sys\n"
        "for name in ('anndata', 'scanpy', 'squidpy', 'spatialdata', 'zarr', 'dask', 'h5py', 'numcodecs'):\n"
        "    sys.modules[name] = None\n"
        "from stampy import train\n"
        "from stampy.train._corpus.training_data import pairs_on_disk\n"
        "from stampy.train._samplers import PairSampler\n"
        "from stampy import models\n"
        f"corpus = train.Corpus({str(corpus.path)!r})\n"
        "assert corpus.verify() == []\n"
        f"train.pretrain(corpus, {str(tmp_path)!r}, config={STAGE1}, device='cpu', progress=False)\n"
        f"gene = models.GeneConfig(n_genes=len(corpus.vocabulary), **{GENE})\n"
        "data = pairs_on_disk(corpus, corpus.vocabulary, models.StampConfig(gene=gene))\n"
        f"print(PairSampler(data, train.AlignConfig.of({STAGE2})).batch(0)['patches'].shape)\n"
    )
    out = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == "torch.Size([40, 32, 32, 3])"


# The command line


def test_command_line(toy, tmp_path, capsys):
    toy.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "bad.h5ad").write_bytes(b"no")
    out = str(tmp_path / "out")
    given = ["corpus", "build", str(tmp_path / "a.h5ad"), str(tmp_path / "bad.h5ad"), "--out", out]
    given += ["--max-tokens", "32", "--workers", "1", "--images", "none"]
    assert cli.main(given) == 1
    assert "Section 'bad' cannot be used" in capsys.readouterr().err
    assert cli.main([*given, "--on-error", "skip"]) == 0
    printed = capsys.readouterr()
    assert "Corpus(1 section, 120 spots" in printed.out
    assert "skipped: bad:" in printed.out
    assert "was skipped" in printed.err
    assert cli.main(["corpus", "info", out]) == 0
    assert "bytes a spot" in capsys.readouterr().out
    assert cli.main(["corpus", "verify", out]) == 0
    path = files(tmp_path / "out", "tokens")[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert cli.main(["corpus", "verify", out]) == 1
    assert "its contents changed" in capsys.readouterr().out


def test_groups_in_a_corpus_are_those_of_pp(corpus):
    stored = corpus.section("a")
    groups = group_spots(stored.xy, rng=stream(0, "groups of a", 0)).members
    assert (stored.spots[: 9 * stored.n_groups[0]].reshape(-1, 9) == groups).all()


# Starts that are found from the data


def test_spectral_gene_encoder_from_a_corpus_equals_that_from_its_sections(sections, corpus, tmp_path):
    config = GENE | {"norm": "pre", "rank_gate": True, "pooling": "bag", "start": "spectral", "embedding": 8}
    config |= {"lr": 1e-12, "min_lr": 1e-12, "groups_per_batch": 8, "epochs_igr": 1, "epochs_cgr": 0}
    options = {"config": config, **QUIET}
    stored = train.pretrain(corpus, tmp_path / "corpus", **options)
    with pytest.warns(UserWarning, match=r"have no genes .*'no genes'"):
        direct = train.pretrain(sections, tmp_path / "direct", vocabulary=corpus.vocabulary, **options)
    found, expected = (m.gene.embeddings.weight.detach() for m in (stored, direct))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-3)  # sums of spots in another order
    torch.testing.assert_close(stored.gene.rank_gate, direct.gene.rank_gate)


def test_a_spectral_image_tower_starts_from_the_same_patches(sections, corpus):
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", size_px=32)
    model = models.StampConfig(gene=models.GeneConfig(n_genes=len(corpus.vocabulary), **GENE), image=image)
    both = (pairs_on_disk(corpus, corpus.vocabulary, model), pairs_in_memory(sections, corpus.vocabulary, model))
    stored, direct = (data.some_patches(3) for data in both)
    assert stored.shape == (40 + 40 + 30, 32, 32, 3)
    np.testing.assert_array_equal(stored, direct)


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "xy/../../x"])
def test_a_manifest_that_names_files_outside_is_refused(copied, name):
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["sections"][0]["files"][name] = [1, "0"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="outside of it"):
        Corpus(copied)


def test_links_in_a_corpus_are_refused(copied, tmp_path):
    section = next((copied / "sections").iterdir())
    section.rename(tmp_path / "elsewhere")
    section.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="symbolic link"):
        Corpus(copied)
