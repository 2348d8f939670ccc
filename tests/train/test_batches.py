"""Batches are the same for the same seed and step, in memory and from a corpus, from release to release."""

import hashlib

import pytest

from stampy import datasets, models, train
from stampy._io.sections import SectionInput
from stampy.train._corpus.training_data import groups_on_disk, pairs_on_disk
from stampy.train._data import TrainingData, prepare
from stampy.train._samplers import GroupSampler, PairSampler

GENE = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 48}


@pytest.fixture(scope="module")
def corpus(toy, tmp_path_factory):
    """Two gene panels, and a section without genes."""
    tables = (toy, datasets.toy(n_spots=70, n_genes=500, rng=1), datasets.toy(n_spots=30, rng=2)[:, :0].copy())
    sections = [SectionInput(data=table, name=name) for table, name in zip(tables, ("a", "b", "no genes"), strict=True)]
    options = {"max_tokens": 48, "size_px": 32, "codec": "zstd", "n_workers": 1, "progress": False}
    return train.Corpus.build(sections, tmp_path_factory.mktemp("corpus"), **options, draws=2, regions=2), sections


@pytest.fixture(scope="module", params=["memory", "disk"])
def samplers(corpus, request):
    """Where the sections are, and makers of a sampler of each stage."""
    corpus, sections = corpus
    tower = models.ImageConfig(size_px=32)
    if request.param == "memory":
        found = [prepare(s, corpus.vocabulary, max_tokens=48, tower=tower) for s in sections]
        groups, pairs = (TrainingData(some, corpus.vocabulary, 48) for some in (found[:2], found))
    else:
        model = models.StampConfig(gene=models.GeneConfig(n_genes=len(corpus.vocabulary), **GENE), image=tower)
        with pytest.warns(UserWarning, match="no neighbourhood groups"):
            groups = groups_on_disk(corpus, None, train.PretrainConfig.of(GENE))
        pairs = pairs_on_disk(corpus, corpus.vocabulary, model)
    return request.param, lambda config: GroupSampler(groups, config), lambda config: PairSampler(pairs, config)


def digest(sampler, *names):
    """Of some batches on one rank and as the second of two."""
    found = hashlib.sha256()
    for place in ((0, 1), (1, 2)):
        sampler.place(*place)
        for step in (0, 1, sampler.steps_per_epoch, sampler.steps - 1):
            batch = sampler.batch(step)
            for name in names:
                found.update(repr((name, batch[name].dtype, tuple(batch[name].shape))).encode())
                found.update(batch[name].numpy().tobytes())
    return found.hexdigest()[:16]


@pytest.mark.parametrize("positions", [None, 10])
def test_groups_are_those_of_earlier_releases(samplers, positions):
    where, groups, _ = samplers
    settings = GENE | {"groups_per_batch": 3, "positions_per_step": positions, "epochs_igr": 2, "epochs_cgr": 1}
    sampler = groups(train.PretrainConfig.of(settings))
    assert digest(sampler, "tokens", "positions", "rows") == GROUPS[where, positions]


def test_pairs_are_those_of_earlier_releases(samplers):
    where, _, pairs = samplers
    sampler = pairs(train.AlignConfig.of({"epochs": 2, "pairs_per_batch": 16}))
    assert digest(sampler, "tokens", "cells", "rows") == PAIRS[where]  # tiles depend on how a library resizes


GROUPS = {
    ("memory", None): "a73d3e2628fd5b50",
    ("memory", 10): "17274d0aec42f479",
    ("disk", None): "d8499569729f1972",
    ("disk", 10): "5ff5f234ca8cbb0f",
}
PAIRS = {"memory": "ab036a80aa6a0556", "disk": "837880d1b9637225"}
