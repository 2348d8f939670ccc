"""Wrong arguments, names and paths raise before torch is imported, and leave no folder."""

import json
import subprocess
import sys

import pytest

import stampy
from stampy._utils import check_device
from stampy.models._backbone_names import check_backbone
from stampy.models._systems.catalogue import check_name

PREPARE = """
import json, os, sys
import numpy as np
import stampy
from PIL import Image
from stampy import bench, datasets, models, pp, tl, train

adata = datasets.toy(n_spots=40)
adata.obsm["X_stamp"] = np.ones((40, 4), dtype=np.float32)
adata.write_h5ad("section.h5ad")
Image.fromarray(np.full((60, 60, 3), 240, dtype=np.uint8)).save("slide.png")
before, found = sorted(os.listdir()), {}
for call in json.loads(sys.argv[1]):
    try:
        eval(call)
        found[call] = "no error"
    except Exception as error:
        found[call] = f"{type(error).__name__}: {error}"
heavy = sorted({"torch", "timm", "lightning", "transformers"} & set(sys.modules))
print(json.dumps([found, heavy, sorted(set(os.listdir()) - set(before))]))
"""

WRONG = {
    "tl.embed(adata, 'nope')": "ValueError: Unknown model 'nope'",
    "tl.embed(adata, 'nope/')": "FileNotFoundError: No folder of weights at 'nope/'",
    "tl.embed(adata, 3)": "TypeError: `model` must be a name, a path or a loaded model, found int",
    "tl.embed(adata, modality='x')": "ValueError: `modality` must be one of",
    "tl.embed(adata, device='gpu')": "ValueError: `device` must be one of",
    "tl.embed(adata, layer='nope')": "KeyError: 'Key `nope` not found in `adata.layers`",
    "tl.embed(adata, library_key='nope')": 'KeyError: "Key `nope` not found in `adata.obs`',
    "tl.embed(adata, 'tangle')": "ValueError: TANGLE embeds slides, not spots",
    "tl.embed([adata], 'nope')": "ValueError: Unknown model 'nope'",
    "tl.embed_slide('slide.png', 'out.zarr', model='nope')": "ValueError: Unknown model 'nope'",
    "tl.embed_slide('slide.png', 'out.zarr', model='nicheformer')": "ValueError: modality='image' was requested",
    "tl.embed_slides('slide.png', 'many', min_tissue=2)": "ValueError: `min_tissue` must be at most 1",
    "tl.embed_sections('section.h5ad', 'many', device='gpu')": "ValueError: `device` must be one of",
    "tl.score(adata, 'TP53')": "TypeError: `genes` must be a ranked list",
    "tl.score(adata, ['TP53'])": 'KeyError: "Key `X_stamp_image` not found',
    "tl.attribute(adata, 'match')": 'KeyError: "Key `X_stamp_image` not found',
    "tl.attribute(adata, layer='nope')": "KeyError: 'Key `nope` not found in `adata.layers`",
    "tl.slide(adata, 'domain', hidden=0)": "ValueError: `hidden` must be at least 1",
    "tl.slide(adata, 'domain', n_folds=1)": "ValueError: `n_folds` must be at least 2",
    "tl.evaluate(adata, n_splits=0)": "ValueError: `n_splits` must be at least 1",
    "models.load('stampy-minni')": "ValueError: Unknown model 'stampy-minni'. Did you mean 'stampy-mini'",
    "models.load('stampy-mini', device='gpu')": "ValueError: `device` must be one of",
    "models.load('uni:nowhere.bin')": "FileNotFoundError: No weights of UNI at 'nowhere.bin'",
    "models.load_system('pca')": "ValueError: PCA is fitted to a section",
    "models.load_published('nowhere.bin')": "FileNotFoundError: No checkpoint at 'nowhere.bin'",
    "models.load_published('section.h5ad', gene_heads=0)": "ValueError: `gene_heads` must be at least 1",
    "train.pretrain('nowhere.h5ad', 'run')": "FileNotFoundError: No section or manifest",
    "train.pretrain('section.h5ad', 'run', config={'widht': 2})": "ValueError: There is no setting 'widht'",
    "train.pretrain('section.h5ad', 'run', vocabulary='no.tsv')": "FileNotFoundError: No vocabulary at 'no.tsv'",
    "train.pretrain('section.h5ad', 'run', strategy='nope')": "ValueError: `strategy` must be one of",
    "train.pretrain('section.h5ad', 'run', devices=0)": "ValueError: `devices` must be at least 1",
    "train.pretrain('section.h5ad', 'run', loggers=['nope'])": "ValueError: `loggers` must be one of",
    "train.pretrain('section.h5ad', 'section.h5ad/run')": "NotADirectoryError: 'section.h5ad/run' cannot be a folder",
    "train.align('section.h5ad', 'run', model='nope')": "ValueError: Unknown model 'nope'",
    "train.align('section.h5ad', 'run', backbone='resnet18')": "ValueError: `backbone` 'resnet18' is not a plain ViT",
    "train.adapt('nope', adata)": "ValueError: Unknown model 'nope'",
    "train.adapt('stampy-mini', [])": "ValueError: There are no sections",
    "train.evaluate('nope', 'section.h5ad')": "ValueError: Unknown model 'nope'",
    "train.evaluate('stampy-mini', 'nowhere.h5ad')": "FileNotFoundError: No section or manifest",
    "train.Corpus.build('nowhere.tsv', 'corpus')": "FileNotFoundError: No section or manifest",
    "bench.run('toy', 'compared', models=['nope'])": "ValueError: Unknown model 'nope'",
    "bench.run('toy', 'compared', device='gpu')": "ValueError: `device` must be one of",
    "bench.protocol('nowhere')": "FileNotFoundError: No folder of a run at 'nowhere'",
}


def test_errors_come_before_heavy_imports(tmp_path):
    command = [sys.executable, "-c", PREPARE, json.dumps(list(WRONG))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found, heavy, left = json.loads(done.stdout)
    assert {call: said for call, said in found.items() if not said.startswith(WRONG[call])} == {}
    assert (heavy, left) == ([], [])


@pytest.mark.parametrize("name", ["cpu", "cuda", "cuda:1", "mps", None])
def test_devices_of_torch_are_accepted(name):
    check_device(name)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", ""])
def test_other_devices_are_refused(name):
    with pytest.raises(ValueError, match="`device` must be one of"):
        check_device(name)


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet50.a1_in1k", "efficientnet_b0", "convnext_tiny"])
def test_models_of_timm_that_are_no_vits_are_named(name):
    with pytest.raises(ValueError, match="is not a plain ViT"):
        check_backbone(name)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "eva02_tiny_patch14_224"])
def test_vits_pass(name):
    check_backbone(name)


@pytest.mark.parametrize("name", ["stamp", "stamp@main", "stamp:weights.bin", "uni@main", "hf-hub:org/name"])
def test_names_that_load_accepts_pass(name):
    """Also a revision of the published checkpoint."""
    check_name(name)


def test_the_project_of_a_query_is_named():
    with pytest.raises(ValueError, match="`project` is empty"):
        stampy.datasets.gdc_query(" ")
