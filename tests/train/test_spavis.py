"""Files of SpaVis-6M: a corpus contains their content; errors name file and row."""

import json
import shutil
import warnings
from contextlib import nullcontext

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stampy import datasets, models, train
from stampy.cli import main as cli
from stampy.pp import Vocabulary, tokenize
from stampy.train import Corpus
from stampy.train._corpus import build as _corpus_build
from stampy.train._corpus.training_data import groups_on_disk, pairs_on_disk

SMALL = {"max_tokens": 48, "size_px": 64, "codec": "zstd", "n_workers": 1, "progress": False}
GENE = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 48, "tied_heads": True}
GENES, SLIDES, REGIONS = "tokenized_gene", "batch_slide_id", "images_aug"
SPECTRAL = {"start": "spectral", "norm": "pre", "rank_gate": True, "pooling": "sum"}
QUIET = {"device": "cpu", "progress": False}
pytestmark = pytest.mark.filterwarnings("ignore:The vocabulary is not the published one")


@pytest.fixture(scope="module", params=[1, 2])
def written(request, tmp_path_factory):
    """A small folder of either stage."""
    return spavis(tmp_path_factory.mktemp("spavis"), request.param)


@pytest.fixture(scope="module")
def groups(tmp_path_factory):
    return spavis(tmp_path_factory.mktemp("groups"), 1)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return spavis(tmp_path_factory.mktemp("pairs"), 2)


def spavis(folder, stage):
    small = {"n_spots": 40, "n_sections": 3, "n_positions": 48, "size_px": 64, "n_genes": 300}
    return datasets.toy_spavis(folder / "SpaVis", stage=stage, **small)


def build(found, out, **more):
    return Corpus.build(found.folder, out, vocabulary=found.vocabulary, **SMALL | more)


def contents(found, key, split="train"):
    """A data set of all files, one after the other."""
    values = []
    for path in sorted((found.folder / split).glob("*.h5")):
        with h5py.File(path) as file:
            values.append(file[key][:])
    return np.concatenate(values)


def changed(found, tmp_path, change, number=1):
    """A copy of a folder, one of whose files is changed by a function of the open file."""
    folder = shutil.copytree(found.folder, tmp_path / "changed")
    with h5py.File(folder / "train" / f"tokens-{number}.h5", "r+") as file:
        change(file)
    return found._replace(folder=folder)


def replace(key, values):
    def change(file):
        found = values(file[key][:])
        del file[key]
        file[key] = found

    return change


def put(key, at, value):
    return lambda file: file[key].__setitem__(at, value)


# What is written


def test_round_trip(written, tmp_path):
    corpus = build(written, tmp_path / "corpus")
    ids, slides = contents(written, "tokenized_gene"), contents(written, "batch_slide_id")
    assert [s.name for s in corpus.sections] == [f"dataset{i // 2}_slide{i}" for i in range(3)]
    assert any(len(s.record["spavis"]["rows"]) == 2 for s in corpus.sections)  # one lies in two files
    for number, section in enumerate(corpus.sections):
        mine = slides == number
        expected = np.where(ids[mine] == 1, 0, ids[mine]).reshape(-1, 48)
        assert section.n_spots == len(expected)
        assert (section.tokens(np.arange(section.n_spots)) == expected).all()
        assert (section.lengths == (expected != 0).sum(axis=1)).all()
        assert np.isnan(section.xy).all()
        if ids.ndim == 3:
            assert section.n_groups == [mine.sum()]
            assert (section.group(2) == expected.reshape(-1, 9, 48)[2]).all()
        else:
            rows = np.array([3, 0, 39])
            for key, found in (("images", section.patches(rows)), ("images_aug", section.regions(rows))):
                assert (found == contents(written, key)[mine][rows].transpose(0, 2, 3, 1)).all()
            assert (section.cells[:, 0] == contents(written, "pos_label")[mine]).all()
    assert corpus.verify() == []
    assert corpus.settings["layout"] == "spavis"


def test_toy_files_have_the_tokens_that_stampy_makes(written):
    truth = written.truth[written.truth["split"] == "train"]
    ids = contents(written, "tokenized_gene").reshape(-1, 48)
    vocabulary = Vocabulary.load(written.vocabulary)
    for i, section in enumerate(written.sections[:3]):
        table = section.copy()
        tokenize(table, vocabulary, max_tokens=48)
        own = (truth["section"] == f"dataset{i // 2}_slide{i}").to_numpy()
        rows = section.obs_names.get_indexer(truth["spot"][own])
        found = np.where(ids[own] == 1, 0, ids[own])
        assert (found == table.obsm["stamp_tokens"][rows]).all()
        assert (truth["domain"][own].to_numpy() == section.obs["domain"].astype(str).to_numpy()[rows]).all()


@pytest.fixture
def published_vocabulary(data_dir, monkeypatch):
    """The file of the published vocabulary, from the folder of real data, not downloaded."""
    monkeypatch.setenv("STAMPY_DATA_DIR", str(data_dir))
    return datasets.published_vocabulary()


def test_published_tokens_are_kept(reference_dir, published_vocabulary, tmp_path):
    golden = reference_dir / "golden"
    grouped = np.load(golden / "pretraining.npz")["tokens"]
    aligned = np.load(golden / "alignment.npz")
    real = np.load(golden / "tokens_CRC16_human.npz")["tokens"]
    singles = np.concatenate([aligned["tokens"], real, np.load(golden / "tokens_HER2ST_C3.npz")["tokens"]])
    for name, ids in (("groups", grouped), ("singles", singles)):
        (tmp_path / name).mkdir()
        with h5py.File(tmp_path / name / "tokens-0.h5", "w") as file:
            file["tokenized_gene"] = np.where(ids == 0, 1, ids).astype(np.int64)
            file["batch_slide_id"] = np.zeros(len(ids), dtype=int)
        neither = pytest.warns(UserWarning, match="neither groups of spots .* nor tiles")
        with neither if name == "singles" else nullcontext():
            corpus = Corpus.build(tmp_path / name, tmp_path / f"{name}-corpus", vocabulary=published_vocabulary,
                                  n_workers=1, progress=False)  # fmt: skip
        (section,) = corpus.sections
        assert section.name == "slide0"
        found = section.tokens(np.arange(section.n_spots))
        assert (found.reshape(ids.shape) == ids).all()
        assert found.dtype == np.uint16


def test_published_images_are_unchanged(reference_dir, published_vocabulary, tmp_path):
    golden = np.load(reference_dir / "golden" / "alignment.npz")
    with h5py.File(tmp_path / "tokens-0.h5", "w") as file:
        file["tokenized_gene"] = golden["tokens"]
        file["batch_slide_id"] = np.array(["a", "b"] * 6, dtype="S1")
        for key, name in (("images", "images"), ("images_aug", "regions")):
            file[key] = golden[name].transpose(0, 3, 1, 2)
        file["pos_label"] = golden["positions"]
    corpus = Corpus.build(tmp_path, tmp_path / "corpus", vocabulary=published_vocabulary, codec="zstd",
                          n_workers=1, progress=False)  # fmt: skip
    assert [s.name for s in corpus.sections] == ["slidea", "slideb"]  # every second row: read row by row
    for i, section in enumerate(corpus.sections):
        assert (section.patches(np.arange(6)) == golden["images"][i::2]).all()
        assert (section.regions(np.arange(6)) == golden["regions"][i::2]).all()
        assert (section.cells[:, 0] == golden["positions"][i::2]).all()


def test_more_tokens_than_are_kept_are_counted(groups, tmp_path):
    with pytest.warns(UserWarning, match=r"of 135 spots have more than max_tokens=20 tokens"):
        corpus = build(groups, tmp_path / "corpus", max_tokens=20)
    ids = contents(groups, "tokenized_gene")
    assert sum(s.record["spavis"]["n_cut"] for s in corpus.sections) == (ids[..., 20] > 1).sum()
    assert (corpus.sections[0].group(0) == ids[0, :, :20]).all()


def test_other_forms_of_ids(groups, tmp_path):
    corpus = build(groups, tmp_path / "corpus")
    for name, form in {
        "column": lambda v: v[:, None],
        "of each spot": lambda v: np.repeat(v[:, None], 9, axis=1),
        "flat": lambda v: np.repeat(v, 9),
        "float": lambda v: v.astype(float),
    }.items():
        other = changed(groups, tmp_path / name, replace("batch_slide_id", form))
        found = build(other, tmp_path / name / "corpus")
        assert found.table.equals(corpus.table)


def test_files_without_slide_ids_are_sections(groups, tmp_path):
    other = changed(
        groups, tmp_path, lambda file: [file.__delitem__(k) for k in ("batch_slide_id", "batch_dataset_id")]
    )
    with pytest.warns(UserWarning, match=r"tokens-1.h5 has no 'batch_slide_id'"):
        corpus = build(other, tmp_path / "corpus")
    assert corpus.sections[-1].name == "train_tokens-1"


def test_files_with_data_set_ids_alone_have_a_section_for_each(groups, tmp_path):
    def change(file):
        file["batch_dataset_id"][:3] = 7
        del file[SLIDES]

    with pytest.warns(UserWarning, match="tokens-1.h5 has no 'batch_slide_id': its rows of one data set"):
        corpus = build(changed(groups, tmp_path, change), tmp_path / "out")
    found = {s.name: s.n_spots for s in corpus.sections if "tokens-1" in s.name}
    assert found["dataset7_train_tokens-1"] == 3 * 9
    assert len(found) > 1


def test_rows_that_neither_stage_can_use_warn(pairs, tmp_path):
    with pytest.warns(UserWarning, match="neither groups of spots .* nor tiles"):
        build(pairs, tmp_path / "out", images=False)


def test_fields_that_are_not_stored_are_named(pairs, tmp_path):
    other = changed(pairs, tmp_path, lambda file: file.__setitem__("spot_label", np.zeros(len(file["images"]))))
    with pytest.warns(UserWarning, match="Not stored in a corpus: .*spot_label"):
        build(other, tmp_path / "corpus")


def test_mixed_rows_in_large_chunks_warn(groups, tmp_path):
    def mix(file):
        n = len(file[GENES])
        order = np.argsort(np.arange(n) % 3, kind="stable")
        for key in (GENES, SLIDES, "batch_dataset_id"):
            values = file[key][:][order]
            del file[key]
            file.create_dataset(key, data=values, chunks=(n, *values.shape[1:]))
        file[SLIDES][:] = np.arange(n)

    other = changed(groups, tmp_path, mix)
    with pytest.warns(UserWarning, match=r"tokens-1.h5: rows of \d sections share chunks of \d rows, .* \d times"):
        corpus = build(other, tmp_path / "corpus")
    assert corpus.verify() == []


def test_val_is_built_when_it_is_named(groups, tmp_path):
    val = groups._replace(folder=groups.folder / "val")
    assert [s.name for s in build(val, tmp_path / "corpus").sections] == ["dataset1_slide3"]


# Building


def test_interrupted_build_resumes(groups, tmp_path, monkeypatch):
    corpus = build(groups, tmp_path / "corpus")
    done = []
    write = _corpus_build.write_section
    monkeypatch.setattr(_corpus_build, "write_section", lambda s, *a: done.append(s.name) or write(s, *a))
    assert build(groups, tmp_path / "corpus").digest == corpus.digest
    assert done == []
    shutil.rmtree(corpus.sections[1].folder)
    (corpus.path / "manifest.json").unlink()
    again = Corpus.build(groups.folder, tmp_path / "corpus", **SMALL)  # its vocabulary is there
    assert again.digest == corpus.digest
    assert done == ["dataset0_slide1"]
    other = changed(groups, tmp_path, put("tokenized_gene", (0, 0, 0), 31))
    assert build(other, tmp_path / "corpus").digest != corpus.digest
    assert len(done) > 2


def test_workers_give_the_same(pairs, tmp_path):
    assert build(pairs, tmp_path / "a").digest == build(pairs, tmp_path / "b", n_workers=2).digest


def twice(*at):
    """The second token of a spot once more, at position 4."""

    def change(values):
        values = values.copy()
        values[(*at, 4)] = values[(*at, 1)]
        return values

    return change


BAD_GROUPS = {
    "an id too high": (put(GENES, (2, 3, 5), 60_000), r"tokens-1.h5, row 2 \(spot 3 of its group\): id 60000"),
    "a negative id": (put(GENES, (2, 3, 5), -7), r"row 2 \(spot 3 of its group\): id -7 at position 5"),
    "a reserved id": (put(GENES, (4, 0, 1), 12), r"row 4 \(spot 0 of its group\): id 12 .* expected 30 to"),
    "padding inside": (put(GENES, (1, 8, 2), 0), r"row 1 \(spot 8 of its group\): a token follows padding"),
    "a gene twice": (
        replace(GENES, twice(3, 2)), r"tokens-1.h5, row 3 \(spot 2 of its group\): id \d+ at positions .1, 4"
    ),
    "empty rows": (put(GENES, -1, 0), r"tokens-1.h5, row \d+: no spot of the group has a token"),
    "groups of another size": (replace(GENES, lambda v: v[:, :7]), r"tokens-1.h5: .* groups of 7 spots"),
    "floats": (replace(GENES, lambda v: v.astype(float)), r"tokens-1.h5: 'tokenized_gene' is float64"),
    "four axes": (replace(GENES, lambda v: v[None]), r"tokens-1.h5: 'tokenized_gene' is int32 \(1, "),
    "rows, not groups": (replace(GENES, lambda v: v[:, 0]), r"tokens-0.h5 has groups .*tokens-1.h5 has none"),
    "no tokens": (lambda f: f.__delitem__(GENES), r"tokens-1.h5 has no data set 'tokenized_gene'. It has"),
    "ids too few": (replace(SLIDES, lambda v: v[:-1]), r"tokens-1.h5: 'batch_slide_id' is int64 .*expected one"),
    "a slide that changes": (
        replace(SLIDES, lambda v: np.repeat(v[:, None], 9, axis=1) + (np.arange(9 * len(v)) == 9 * 2 + 4)
                .reshape(-1, 9)), r"tokens-1.h5, row 2: 'batch_slide_id' changes within a group: \[\d, \d\]"),
    "a data set that changes": (
        replace("batch_dataset_id", lambda v: np.repeat(v, 9) + (np.arange(9 * len(v)) == 9)),
        r"tokens-1.h5, row 1: 'batch_dataset_id' changes within a group"),
    "images beside groups": (lambda f: f.__setitem__("images", np.zeros(3)), r"\['images'\] and groups of spots"),
}  # fmt: skip
BAD_PAIRS = {
    "images of another shape": (
        replace("images", lambda v: v[:, :, :30]), r"tokens-1.h5: 'images' is uint8 .*30, 64\), expected .*64, 64\)"
    ),
    "channels last": (replace(REGIONS, lambda v: v.transpose(0, 2, 3, 1)), r"'images_aug' is uint8 .*64, 64, 3\)"),
    "floats": (replace("images", lambda v: v / 255), r"'images' is float64"),
    "images too few": (replace(REGIONS, lambda v: v[1:]), r"tokens-1.h5: 'images_aug' is uint8"),
    "no regions": (lambda f: f.__delitem__(REGIONS), r"tokens-1.h5 has no data set 'images_aug'.*images=False"),
    "a blank image": (put("images", 3, 0), r"tokens-1.h5, row 3: 'images' is 0 throughout"),
    "a cell too high": (put("pos_label", 5, 9), r"tokens-1.h5, row 5: 'pos_label' is 9, expected 0 to 8"),
    "a gene twice": (replace(GENES, twice(5)), r"tokens-1.h5, row 5: id \d+ at positions .1, 4"),
    "a token too high": (put(GENES, (6, 0), 20_340), r"tokens-1.h5, row 6: id 20340 at position 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_GROUPS)
def test_bad_groups_are_named(case, groups, tmp_path):
    refused(groups, tmp_path, *BAD_GROUPS[case])


@pytest.mark.parametrize("case", BAD_PAIRS)
def test_bad_pairs_are_named(case, pairs, tmp_path):
    refused(pairs, tmp_path, *BAD_PAIRS[case])


def refused(found, tmp_path, change, message):
    other = changed(found, tmp_path, change)
    with pytest.raises(ValueError, match=message):
        build(other, tmp_path / "corpus")
    nothing_half_written(tmp_path / "corpus")


def nothing_half_written(path):
    assert not (path / "manifest.json").exists()
    if path.exists():
        for folder in (path / "sections").iterdir():
            if folder.is_dir():
                assert "stampy" in json.loads((folder / "zarr.json").read_text())["attributes"]


def test_a_file_that_ends_early_is_named(groups, tmp_path):
    folder = shutil.copytree(groups.folder, tmp_path / "cut")
    path = folder / "train" / "tokens-1.h5"
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(ValueError, match=r"train/tokens-1.h5' cannot be read: it is truncated"):
        build(groups._replace(folder=folder), tmp_path / "corpus")
    nothing_half_written(tmp_path / "corpus")
    with (
        pytest.warns(UserWarning, match=r"'train/tokens-1.h5' was skipped"),
        pytest.warns(UserWarning, match="Sections that also have rows in them are incomplete"),
    ):
        corpus = build(groups._replace(folder=folder), tmp_path / "corpus", on_error="skip")
    assert list(corpus.skipped) == ["train/tokens-1.h5"]


def test_a_chunk_that_is_damaged_is_named(groups, tmp_path):
    def compress(file):
        found = file["tokenized_gene"][:]
        del file["tokenized_gene"]
        file.create_dataset("tokenized_gene", data=found, chunks=(2, 9, 48), compression="gzip", fletcher32=True)

    other = changed(groups, tmp_path, compress)
    path = other.folder / "train" / "tokens-1.h5"
    with h5py.File(path) as file:
        chunk = file["tokenized_gene"].id.get_chunk_info(1)
    data = bytearray(path.read_bytes())
    data[chunk.byte_offset + 20] ^= 255
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"tokens-1.h5 is damaged"):
        build(other, tmp_path / "corpus")
    nothing_half_written(tmp_path / "corpus")


DAMAGE = st.lists(st.tuples(st.integers(0, 6_000), st.integers(0, 255)), min_size=1, max_size=8)


@given(damage=DAMAGE, end=st.floats(0.5, 2))
@settings(max_examples=12, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_named_or_harmless(damage, end, pairs, tmp_path_factory):
    folder = shutil.copytree(pairs.folder, tmp_path_factory.mktemp("damaged") / "SpaVis")
    path = folder / "train" / "tokens-1.h5"
    data = bytearray(path.read_bytes())
    for place, value in damage:
        data[place] = value
    path.write_bytes(data[: int(end * len(data))])
    message = None
    try:
        build(pairs._replace(folder=folder), folder.parent / "corpus")
    except ValueError as error:
        message = str(error)
    if message is not None:
        assert "tokens-1.h5" in message
        nothing_half_written(folder.parent / "corpus")


def test_vocabularies(groups, tmp_path):
    with pytest.raises(ValueError, match=r"vocabulary=stampy.datasets.published_vocabulary\(\)"):
        Corpus.build(groups.folder, tmp_path / "corpus", **SMALL)
    few = tmp_path / "few.tsv"
    few.write_text("".join(groups.vocabulary.read_text().splitlines(keepends=True)[:101]))
    with (
        pytest.warns(UserWarning, match=r"not the published one \(100 genes"),
        pytest.raises(ValueError, match=r"tokens-0.h5, row 0 .*of the vocabulary of 100 genes"),
    ):
        build(groups._replace(vocabulary=few), tmp_path / "corpus")


def test_a_folder_that_is_built_again_has_its_new_vocabulary(groups, tmp_path):
    build(groups, tmp_path / "corpus")
    shutil.rmtree(tmp_path / "corpus")
    few = tmp_path / "few.tsv"
    few.write_text("".join(groups.vocabulary.read_text().splitlines(keepends=True)[:101]))
    with pytest.raises(ValueError, match=r"of the vocabulary of 100 genes"):  # not that of the removed corpus
        build(groups._replace(vocabulary=few), tmp_path / "corpus")


def test_gaps_in_the_numbers_of_files_warn(groups, tmp_path):
    folder = shutil.copytree(groups.folder, tmp_path / "part")
    (folder / "train" / "tokens-1.h5").rename(folder / "train" / "tokens-4.h5")
    with pytest.warns(UserWarning, match=r"has 2 files, but not 3 .*\['tokens-1.h5', 'tokens-2.h5', 'tokens-3.h5'\]"):
        build(groups._replace(folder=folder), tmp_path / "corpus")


def test_settings_without_effect_and_mixed_inputs_raise(groups, toy, tmp_path):
    for name, value in {"draws": 2, "regions": 3, "max_distance": 2.0, "seed": 1, "tile_um": 55.0}.items():
        with pytest.raises(ValueError, match=rf"{name}=.*no effect on files of SpaVis-6M"):
            build(groups, tmp_path / "corpus", **{name: value})
    toy.write_h5ad(tmp_path / "toy.h5ad")
    with pytest.raises(ValueError, match="cannot be in one corpus"):
        Corpus.build([groups.folder, tmp_path / "toy.h5ad"], tmp_path / "corpus")
    with pytest.raises(ValueError, match="Build a corpus of each"):
        Corpus.build([groups.folder, groups.folder / "val"], tmp_path / "corpus")
    assert not (tmp_path / "corpus").exists()


# Training


def test_stage_1_trains_on_the_groups(groups, tmp_path):
    corpus = build(groups, tmp_path / "corpus")
    wanted = GENE | {"groups_per_batch": 3, "embedding": 12}
    data = groups_on_disk(corpus, None, train.PretrainConfig.of(wanted))
    assert sum(len(s.groups(0, train.PretrainConfig.of(wanted), None).numbers) for s in data.sections) == 15
    model = train.pretrain(corpus, tmp_path / "run", config=wanted, **QUIET)
    assert len(model.genes) == len(corpus.vocabulary)
    table = train.evaluate(model, corpus)  # in the groups of the files, as there are no coordinates
    assert np.isfinite(table["cgr"]).all()
    with pytest.raises(ValueError, match=r"coordinates \(files of SpaVis-6M have none\)"):
        train.pretrain(corpus, tmp_path / "spectral", config=wanted | SPECTRAL, **QUIET)
    with pytest.raises(ValueError, match=r"max_distance=2.0 has no effect"):
        train.pretrain(corpus, tmp_path / "other", config=wanted | {"max_distance": 2.0}, **QUIET)


def test_stage_2_trains_on_the_pairs(pairs, tmp_path):
    other = changed(pairs, tmp_path, put("pos_label", slice(0, 9), -1))
    corpus = build(other, tmp_path / "corpus")
    vocabulary = corpus.vocabulary
    gene = models.GeneConfig(n_genes=len(vocabulary), **GENE)
    vit = {"patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2}
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=vit, size_px=64)
    start = models.Stamp(models.StampConfig(gene=gene, image=image, embedding=12), vocabulary.frame)
    data = pairs_on_disk(corpus, vocabulary, start.config)
    assert sum(s.n_spots for s in data.sections) == 120
    wanted = {"epochs": 1, "pairs_per_batch": 20}
    aligned = train.align(corpus, tmp_path / "run", model=start, config=wanted, **QUIET)
    assert aligned.config.image is not None
    known = json.loads((tmp_path / "run" / "data.json").read_text())
    assert known == {"spots": {f"dataset{i // 2}_slide{i}": 40 for i in range(3)}, "before": None}
    with pytest.warns(UserWarning, match="neither coordinates nor groups"):
        table = train.evaluate(aligned, corpus)
    assert np.isfinite(table.filter(like="recall").to_numpy()).all()
    with pytest.raises(ValueError, match="no neighbourhood group"):
        train.pretrain(corpus, tmp_path / "other", config=GENE, **QUIET)


# The command line


def test_the_command_line_takes_the_published_vocabulary(pairs, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(datasets, "published_vocabulary", lambda: asked.append(1) or pairs.vocabulary)
    command = ["corpus", "build", str(pairs.folder), "--out", str(tmp_path / "corpus"), "--workers", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main([*command, "--max-tokens", "48", "--images", "none"]) == 0
    assert asked == [1]
    assert "Corpus(3 sections, 120 spots" in capsys.readouterr().out
