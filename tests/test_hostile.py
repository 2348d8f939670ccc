"""Malicious files, damaged files, full disks, missing network, concurrent processes."""

import hashlib
import http.server
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import stampy
from stampy import _files, datasets, models, pl, pp, tl
from stampy._io import read as _formats
from stampy._io.sections import file_name
from stampy._section.image import image_files as _readers
from stampy.datasets import _fetch, _load, _registry

QUIET = {"show_progress_bar": False, "device": "cpu"}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def tells(error, words=""):
    assert len(str(error)) > 30
    assert words in str(error)


class Evil:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was executed",))


# ---- weights -------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(model, tmp_path):
    models.save(model, tmp_path / "weights")
    return tmp_path / "weights"


def put(saved, name, content):
    """Exchange a file so that its hash is right: whoever wrote the folder meant it."""
    (saved / name).write_bytes(content)
    config = json.loads((saved / "config.json").read_text())
    config["sha256"][name] = sha(content)
    (saved / "config.json").write_text(json.dumps(config))


def change(saved, **values):
    config = json.loads((saved / "config.json").read_text()) | values
    (saved / "config.json").write_text(json.dumps(config))


BAD_TENSORS = {
    "pickle": pickle.dumps({"gene.embeddings.weight": Evil()}),
    "empty": b"",
    "header longer than the file": struct.pack("<Q", 2**40) + b"{}",
    "header of the largest length": b"\xff" * 8 + b"{}",
    "header that is not a JSON": struct.pack("<Q", 2) + b"{[",
    "offsets beyond the end": struct.pack("<Q", 61) + b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99999999]}}',
}


@pytest.mark.parametrize("content", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_invalid_tensors(saved, content, tmp_path):
    put(saved, "model.safetensors", content)
    with pytest.raises(ValueError, match=r"safetensors|can be built"):
        models.load(saved)
    (tmp_path / "published.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a plain state dict, or it is damaged"):
        models.load_published(tmp_path / "published.safetensors")


def test_truncated_and_swapped_tensors(saved):
    whole = (saved / "model.safetensors").read_bytes()
    put(saved, "model.safetensors", whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        models.load(saved)
    put(saved, "model.safetensors", whole)
    tensors = load_file(saved / "model.safetensors")
    tensors["gene_head.weight"] = torch.zeros(3, 3)
    save_file(tensors, saved / "other.safetensors")
    put(saved, "model.safetensors", (saved / "other.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"do not fit the model.*gene_head\.weight"):
        models.load(saved)


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.ckpt"])
@pytest.mark.parametrize("how", ["plain", "zip", "broken", "nothing"])
def test_pickles_are_never_executed(tmp_path, name, how):
    path = tmp_path / name
    if how == "zip":
        torch.save({"spot_backbone.embeddings.weight": Evil()}, path)
    else:
        # "broken" takes from an empty stack: not every reader of pickles raises its own error there
        path.write_bytes({"plain": pickle.dumps(Evil(), 2), "broken": b"\x80\x02a0.", "nothing": b""}[how])
    for load in (models.load_published, models.load_published_gene_encoder):
        with pytest.raises(ValueError, match="not a plain state dict"):
            load(path)


def test_a_config_can_not_point_out_of_its_folder(saved, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    config = json.loads((saved / "config.json").read_text())
    for hashes in (
        {"../secret.txt": sha(b"secret")},
        config["sha256"] | {str(secret): sha(b"secret")},
        {},
        [],
        None,
        3,
    ):
        change(saved, sha256=hashes)
        with pytest.raises(ValueError, match=r"must have the sha256 of `genes\.tsv` and `model\.safetensors`"):
            models.load(saved)


@pytest.mark.parametrize("value", [99, 2, "1", None, 1.5, True, [1]])
def test_config_of_a_newer_or_no_format(saved, value):
    change(saved, format=value)
    with pytest.raises(ValueError, match=r"Update stampy|an integer was expected"):
        models.load(saved)


@pytest.mark.parametrize(
    "change_to",
    [
        {"gene": 3}, {"gene": []}, {"gene": {"width": "16"}}, {"gene": {"depth": 10**9}}, {"gene": {"width": 2**20}},
        {"gene": {"width": -1}}, {"gene": {"heads": 0}}, {"gene": {"heads": 7}}, {"gene": {"tied_heads": 1}},
        {"gene": {"max_tokens": 2**20}}, {"gene": {"dropout": "x"}}, {"gene": {"n_genes": 5}}, {"embedding": None},
        {"embedding": 2**19}, {"image": 3}, {"image": {"mean": [1]}}, {"image": {"size_px": 10**9}},
        {"image": {"backbone_kwargs": {"checkpoint_path": "../../evil.pth"}}}, {"image": {"backbone": "no_such_vit"}},
        {"image": {"backbone_kwargs": {"embed_dim": 10**7, "depth": 12}}},
        {"image": {"backbone_kwargs": {"depth": "x"}}}, {"image": {"backbone_kwargs": {"pretrained": True}}},
        {"image": {"backbone_kwargs": {"no_such": 1}}},
        {"image": {"backbone": "hf-hub:evil/model"}}, {"image": {"backbone": "hf_hub:evil/model"}},
        {"image": {"backbone": "local-dir:/etc"}}, {"image": {"backbone": "../vit"}}, {"image": {"backbone": ""}},
        {"image": {"backbone": "resnet18"}}, {"image": {"backbone": "vit_tiny_patch16_224.x:y"}},
        {"image": {"backbone_kwargs": {"embed_dim": 16, "num_heads": 3}}},
        {"image": {"backbone_kwargs": {"num_heads": 7}}}, {"image": {"backbone_kwargs": {"num_heads": 0}}},
        {"image": {"backbone_kwargs": {"patch_size": 0}}}, {"image": {"backbone_kwargs": {"patch_size": 10**6}}},
        {"image": {"backbone_kwargs": {"img_size": 10**9}}}, {"image": {"backbone_kwargs": {"img_size": [224, 224]}}},
        {"image": {"backbone_kwargs": {"mlp_ratio": 1e18}}},
        {"image": {"backbone_kwargs": {"mlp_ratio": float("nan")}}},
        {"image": {"backbone_kwargs": {"mlp_ratio": 63.0}}}, {"image": {"backbone_kwargs": {"reg_tokens": 10**9}}},
        {"image": {"backbone_kwargs": {"global_pool": "map"}}}, {"image": {"backbone_kwargs": {"qkv_bias": "x"}}},
        {"image": {"backbone_kwargs": {"class_token": False}}}, {"image": {"backbone_kwargs": {"depth": True}}},
        {"image": {"size_px": 8192, "backbone_kwargs": {"patch_size": 1}}}, {"image": {"tile_um": 0}},
        {"image": {"std": [0, 1, 1]}}, {"image": {"std": [-1, 1, 1]}}, {"image": {"std": [float("nan"), 1, 1]}},
        {"image": {"mean": [float("inf"), 1, 1]}}, {"image": {"tile_um": float("nan")}},
        {"gene": {"pooling": "median"}}, {"gene": {"norm": "none"}}, {"gene": {"dropout": 2.0}},
        {"gene": {"dropout": float("nan")}}, {"gene": {"rank_gate": 1}},
    ],
    ids=str,
)  # fmt: skip
def test_config_with_impossible_values(saved, change_to):
    config = json.loads((saved / "config.json").read_text())
    (name, value), *_ = change_to.items()
    change(saved, **{name: config[name] | value if isinstance(value, dict) else value})
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"can be built|do not fit the model"):
        models.load(saved)
    assert time.monotonic() - began < 20  # nothing large was allocated


@pytest.mark.parametrize(
    "text", ["", "gene_id\tsymbol\n", "a\tb\tc\n1\t2\t3\n", "\x00\x01", "gene_id\tsymbol\tdivisor\nA\tA\tx\n"]
)
def test_vocabulary_that_does_not_match_the_weights(saved, text):
    put(saved, "genes.tsv", text.encode())
    with pytest.raises(ValueError, match="can be built"):
        models.load(saved)


@pytest.mark.parametrize(
    ("change_to", "message"),
    [
        (lambda t: t.fill_(float("nan")), "NaN or infinite values in 1 of"),
        (lambda t: t.view(-1)[-1:].fill_(float("inf")), "NaN or infinite values in 1 of"),
        (lambda t: t.to(torch.complex64), "of a type that the model does not take"),
        (lambda t: t.to(torch.int32), "of a type that the model does not take"),
        (lambda t: t.to(torch.float8_e4m3fn), "of a type that the model does not take"),
    ],
)
def test_non_finite_weights(saved, change_to, message):
    tensors = load_file(saved / "model.safetensors")
    changed = change_to(tensors["gene_head.weight"])
    tensors["gene_head.weight"] = tensors["gene_head.weight"] if changed.numel() < 2 else changed
    save_file(tensors, saved / "other.safetensors")
    put(saved, "model.safetensors", (saved / "other.safetensors").read_bytes())
    with pytest.raises(ValueError, match=message):
        models.load(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_are_read(saved, model, dtype):
    models.save(model, saved, dtype=dtype)
    found = models.load(saved, device="cpu").gene_head.weight
    assert found.dtype == torch.float32
    assert torch.equal(found, model.gene_head.weight.to(dtype).float())


def test_a_loaded_model_does_not_change_with_its_file(saved):
    loaded = models.load(saved, device="cpu")
    before = loaded.gene_head.weight.clone()
    with (saved / "model.safetensors").open("r+b") as file:
        file.seek(-4000, os.SEEK_END)
        file.write(b"\xff" * 4000)
    assert all(torch.isfinite(p).all() for p in loaded.parameters())
    assert torch.equal(loaded.gene_head.weight, before)


def test_vocabulary_longer_than_the_model_raises(saved):
    whole = (saved / "genes.tsv").read_text()
    put(saved, "genes.tsv", (whole + "ENSGX\tX\t1.0\n").encode())
    with pytest.raises(ValueError, match="has more than the"):
        models.load(saved)
    put(saved, "genes.tsv", (whole + "x" * 5000 * whole.count("\n")).encode())
    with pytest.raises(ValueError, match="far more than a vocabulary of"):
        models.load(saved)
    for divisor in ("0", "-1", "nan", "inf"):
        put(saved, "genes.tsv", (whole.rsplit("\t", 1)[0] + f"\t{divisor}\n").encode())
        with pytest.raises(ValueError, match="not a finite number above 0"):
            models.load(saved)


def test_a_result_that_is_not_finite_is_an_error_before_anything_is_written(model, toy, tmp_path):
    import copy

    broken, few = copy.deepcopy(model), toy[:30].copy()
    with torch.no_grad():
        broken.gene_head.weight.fill_(float("nan"))
        broken.patch_head.weight.fill_(float("nan"))
    for modality in ("gene", "image", "fused"):
        with pytest.raises(ValueError, match=r"gave NaN or infinite values for .* nothing was written"):
            tl.embed(few, broken, modality=modality, **QUIET)
    assert "X_stamp" not in few.obsm
    assert "stamp" not in few.uns
    picture = few.uns["spatial"]["toy"]["images"]["hires"]
    with pytest.raises(ValueError, match="gave NaN or infinite values"):
        tl.embed_slide(picture, tmp_path / "a.zarr", model=broken, um_per_px=1.6, **QUIET)
    assert not (tmp_path / "a.zarr").exists()


def test_a_report_loads_no_model_that_a_file_names(toy, saved, tmp_path, monkeypatch):
    from stampy.cli.report import report
    from stampy.models import _load

    few = toy[:30].copy()
    few.uns["stamp"] = {"X_stamp": {"model": str(saved), "modality": "gene"}}
    few.write_h5ad(tmp_path / "a.h5ad")
    asked = []
    load = _load.load_stamp
    monkeypatch.setattr(_load, "load_stamp", lambda name, **more: asked.append(name) or load(name, **more))
    report(tmp_path / "a.h5ad", tmp_path / "a.html")
    report(tmp_path / "a.h5ad", tmp_path / "b.html", model=saved)
    assert asked == ["stampy-mini", saved]


def test_what_could_not_be_loaded_is_not_saved(model, tmp_path):
    import copy
    from dataclasses import replace

    odd = copy.deepcopy(model)
    odd.config = replace(odd.config, image=replace(odd.config.image, backbone="hf-hub:org/vit"))
    with pytest.raises(ValueError, match="must be an architecture of timm"):
        models.save(odd, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


def test_any_byte_of_a_config_may_be_wrong(saved):
    rng = np.random.default_rng(0)
    whole = (saved / "config.json").read_bytes()
    for _ in range(60):
        broken = bytearray(whole)
        broken[rng.integers(len(broken))] = rng.integers(32, 127)
        (saved / "config.json").write_bytes(bytes(broken))
        try:
            models.load(saved, device="cpu")
        except (ValueError, FileNotFoundError) as error:
            tells(error)


# ---- archives and names ---------------------------------------------------------------------------------------------


def test_an_archive_that_unpacks_to_too_much_is_not_read(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a_coord.txt", b"0" * 2_000_000)
    assert (tmp_path / "bomb.zip").stat().st_size < 5000
    monkeypatch.setattr(_load, "MAX_UNZIPPED", 1_000_000)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"unpacks to 2,000,000 bytes"):
        _load.spcs("x", {"archive": tmp_path / "bomb.zip"})


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "..", "a/../../b", "a\\..\\b", ".hidden", "", "ß\u202e"])
def test_names_of_sections_stay_in_their_folder(name, tmp_path):
    place = (tmp_path / file_name(name)).resolve()
    assert place.parent == tmp_path.resolve()
    assert not place.name.startswith(".")


# ---- images ---------------------------------------------------------------------------------------------------------


def png_of(width, height):
    """A PNG of some bytes that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def test_images_that_claim_huge_sizes_are_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(_readers, "_pixels", lambda *_: pytest.fail("it was decoded"))
    (tmp_path / "bomb.png").write_bytes(png_of(60_000, 60_000))
    with pytest.raises(ValueError, match=r"60000 x 60000 px.*not decoded"):
        pp.SlideImage.open(tmp_path / "bomb.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.jpg")
    content = (tmp_path / "bomb.jpg").read_bytes()
    at = content.index(b"\xff\xc0") + 5  # height and width of the frame
    (tmp_path / "bomb.jpg").write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
    with pytest.raises(ValueError, match=r"65535 x 65535 px.*tiled TIFF"):
        pp.SlideImage.open(tmp_path / "bomb.jpg")


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_tiffs_that_claim_huge_sizes_are_not_decoded(tmp_path, monkeypatch, tile):
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((256, 256, 3), np.uint8), compression="zlib", tile=tile,
                     photometric="rgb")  # fmt: skip
    content = bytearray((tmp_path / "bomb.tif").read_bytes())
    with tifffile.TiffFile(tmp_path / "bomb.tif") as tiff:
        tags = tiff.pages[0].tags
        places = [tags[t].valueoffset for t in (("TileWidth", "TileLength") if tile else ("ImageWidth", "ImageLength"))]
    for place in places:
        content[place : place + 2] = b"\xf0\xff"
    (tmp_path / "bomb.tif").write_bytes(content)
    with pytest.raises(ValueError, match=r"65520 x 65520 px|truncated or damaged"):
        pp.SlideImage.open(tmp_path / "bomb.tif").read(0, 0, 10, 10)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".tiled.tif"])
@pytest.mark.filterwarnings("ignore")  # of tifffile and PIL
def test_any_byte_of_an_image_may_be_wrong(tmp_path, suffix):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (70, 90, 3), dtype=np.uint8)
    path = tmp_path / f"image{suffix}"
    if suffix.endswith(".tif"):
        tile = (32, 32) if "tiled" in suffix else None
        tifffile.imwrite(path, pixels, compression="zlib", tile=tile, photometric="rgb")
    else:
        Image.fromarray(pixels).save(path)
    whole = path.read_bytes()
    for i in range(40):
        broken = bytearray(whole)
        first = 400 if i % 2 else len(whole)  # headers are where it hurts
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(min(first, len(whole)))] = rng.integers(256)
        path.write_bytes(bytes(broken[: rng.integers(len(broken))] if i % 5 == 0 else broken))
        try:
            with pp.SlideImage.open(path) as image:
                assert image.read(-5, -5, 60, 60).shape == (60, 60, 3)
        except (ValueError, TypeError) as error:
            tells(error)


# ---- malformed sections found by the fuzzer (test_fuzz.py) ----------------------------------------------------------


def odd(toy, change):
    few = toy[:30].copy()
    change(few)
    return few


def with_factor(value):
    def put(a):
        a.uns["spatial"]["toy"]["scalefactors"]["tissue_hires_scalef"] = value

    return put


def with_picture(value):
    def put(a):
        a.uns["spatial"]["toy"]["images"] = {"hires": value}

    return put


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: a.uns.update(stamp="text"), TypeError, r"`adata\.uns\['stamp'\]` must be a dict"),
        (lambda a: a.uns.update(spatial=[1]), TypeError, "a dict of dicts; found list"),
        (lambda a: a.uns.update(spatial={"toy": None}), TypeError, r"\['toy'\]` must contain images .* found NoneType"),
        (with_factor("text"), ValueError, "must be a positive number, found 'text'"),
        (with_factor(0), ValueError, "must be a positive number, found 0"),
        (with_picture(None), KeyError, r"No image with a scale factor.*images \[\]"),
        (
            lambda a: a.obsm.update(spatial=a.obsm["spatial"] + 1j),
            TypeError,
            "must contain numbers, found dtype complex",
        ),
    ],
)
def test_sections_that_are_refused(toy, change, error, message):
    few = odd(toy, change)
    with pytest.raises(error, match=message):
        pp.tiles(few, um_per_px=2.0, size_px=8)
    assert "stamp_tiles" not in few.obsm


def test_embeddings_that_do_not_fit(toy):
    few = odd(toy, lambda a: a.obsm.update(X_rep=np.full((30, 2), 1e60), X_stamp=np.zeros((30, 0))))
    with pytest.raises(ValueError, match="too large for float32"):
        tl.domains(few, 2, use_rep="X_rep", method="kmeans")
    with pytest.raises(ValueError, match=r"must contain numbers \(n, d\)"):
        tl.retrieve(few, query="fused", target="fused", show_progress_bar=False)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_cosines_do_not_depend_on_the_scale_of_an_embedding(toy, scale):
    values = np.random.default_rng(0).normal(size=(30, 4))
    few = odd(toy, lambda a: a.obsm.update(X_stamp=values))
    far = odd(toy, lambda a: a.obsm.update(X_stamp=values * scale))
    for section in (few, far):
        tl.retrieve(section, query="fused", target="fused", k=3, show_progress_bar=False)
    assert np.array_equal(far.obsm["stamp_retrieve_index"], few.obsm["stamp_retrieve_index"])


def test_tiny_and_huge_counts(toy, vocabulary):
    few = toy[:30].copy()
    few.X = few.X.toarray().astype(np.float64)
    few.X[:, 0], few.X[:, 1] = 1e-320, 100
    with pytest.warns(UserWarning, match=r"fractional|depth-normalised"):
        pp.tokenize(few, vocabulary, max_tokens=50)
    few.X[:, 0] = 1e30
    few.obsm["X_rep"] = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(ValueError, match="the dispersion for selecting genes"):
        tl.expression(few, use_rep="X_rep", transform="none", folds="random", n_folds=3)


@pytest.mark.parametrize(
    ("value", "message"), [(-1, "go from -1 to"), (2.0**63, "the dispersion for"), (1e300, "float32")]
)
def test_values_without_variable_genes(toy, value, message):
    few = toy[:30].copy()
    few.X = few.X.toarray().astype(np.float64)
    few.X[:, 0] = value
    few.obsm["X_rep"] = np.random.default_rng(0).normal(size=(30, 4))
    for transform in ("none",) if value < 0 else ("none", "log1p"):
        with pytest.raises(ValueError, match=message):
            tl.expression(few, use_rep="X_rep", transform=transform, folds="random", n_folds=3)


def test_genes_of_raw_values_are_chosen_on_their_own_scale(toy):
    few = toy[:30].copy()
    few.X = few.X * 100
    few.obsm["X_rep"] = np.random.default_rng(0).normal(size=(30, 4))
    how = {"use_rep": "X_rep", "n_top_genes": 5, "folds": "random", "n_folds": 3}
    chosen = [
        list(tl.expression(few, transform=transform, copy=True, **how).uns["stamp"]["stamp_expression"]["genes"])
        for transform in ("none", "log1p")
    ]
    assert chosen[0] == chosen[1]


def test_spots_and_embeddings_that_are_all_alike(toy):
    few = odd(toy, lambda a: a.obsm.update(X_rep=np.ones((30, 4))))
    tl.expression(few, use_rep="X_rep", method="hest", n_top_genes=5, folds="random", n_folds=3)
    assert np.isfinite(few.obsm["stamp_expression"]).all()
    few.X = few.X[[0] * 30]
    tl.expression(few, use_rep="X_rep", n_top_genes=5, folds="random", n_folds=3)
    assert len(few.uns["stamp"]["stamp_expression"]["genes"]) == 5


def test_an_empty_image_is_not_drawn(toy):
    few = odd(toy, with_picture(np.zeros((0, 5, 3), np.uint8)))
    with pytest.warns(stampy.StampyWarning, match="Image 'hires' is empty: 0 x 5 px. The spots are drawn"):
        assert not pl.spatial(few).images
    with pytest.warns(stampy.StampyWarning, match="Only genes are embedded.*Image 'hires' is empty"):
        tl.embed(few, show_progress_bar=False)
    assert "X_stamp_image" not in few.obsm
    placeholder = odd(toy, with_picture(np.zeros((0, 0, 3), np.uint8)))
    assert not pl.spatial(placeholder).images
    with pytest.raises(ValueError, match="Image 'array' is empty: 0 x 5 px"):
        pp.tiles(few, image=np.zeros((0, 5, 3), np.uint8), um_per_px=2.0)


def test_counts_of_half_precision(toy, vocabulary):
    few = toy[:30].copy()
    few.X = few.X.toarray().astype(np.float16)
    assert np.isfinite(few.X).all()
    whole = few.copy()
    whole.X = whole.X.astype(np.float32)
    for section in (few, whole):
        pp.tokenize(section, vocabulary, max_tokens=50)
    assert np.array_equal(few.obsm["stamp_tokens"], whole.obsm["stamp_tokens"])


# ---- sections and vocabularies on disk ------------------------------------------------------------------------------


def test_truncated_sections(toy, tmp_path):
    toy.write_h5ad(tmp_path / "toy.h5ad")
    whole = (tmp_path / "toy.h5ad").read_bytes()
    for share in (0, 0.01, 0.5, 0.99):
        (tmp_path / "cut.h5ad").write_bytes(whole[: int(len(whole) * share)])
        for read in (_formats.read, lambda p: pp.Vocabulary.from_sections([p])):
            with pytest.raises(ValueError, match="truncated, damaged or of another format"):
                read(tmp_path / "cut.h5ad")


def archive_of(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text)


@pytest.mark.parametrize("builder", ["paste", "sepal", "spcs"])
@pytest.mark.filterwarnings("ignore")  # of pandas
def test_any_byte_of_the_files_of_a_data_set_may_be_wrong(tmp_path, builder):
    rng = np.random.default_rng(3)
    paths = {role: tmp_path / role for role in ("counts", "positions", "archive")}
    paths["counts"].write_text({"paste": ",A,B\n1,0,2\n2,3,0\n"}.get(builder, "\tA\tB\n1x2\t0\t2\n2x2\t3\t0\n"))
    paths["positions"].write_text("1,2\n2,2\n")
    tables = {"A.txt": "s,t\nG,0,1\nH,2,0\n", "A_coord.txt": "x,y\ns,1,1\nt,1,2\n", "A_label.txt": "l\ns,a\nt,b\n"}
    archive_of(paths["archive"], tables)
    if builder != "spcs":
        del paths["archive"]
    role = "archive" if builder == "spcs" else "counts"
    assert _load.built(builder, "sound", paths).shape == (2, 2)
    whole = paths[role].read_bytes()
    for _ in range(40):
        broken = bytearray(whole)
        for _ in range(rng.integers(1, 4)):
            broken[rng.integers(len(broken))] = rng.integers(256)
        paths[role].write_bytes(bytes(broken[: rng.integers(len(broken))] if rng.random() < 0.2 else broken))
        try:
            assert _load.built(builder, "broken", paths).n_obs >= 0
        except ValueError as error:
            tells(error, "cannot be assembled as a section")


def test_any_byte_of_a_vocabulary_may_be_wrong(vocabulary, tmp_path):
    rng = np.random.default_rng(2)
    vocabulary.save(tmp_path / "genes.tsv")
    whole = (tmp_path / "genes.tsv").read_bytes()[:3000]
    for i in range(60):
        broken = bytearray(whole)
        for _ in range(rng.integers(1, 6)):
            broken[rng.integers(30 if i % 2 else len(broken))] = rng.integers(256)
        (tmp_path / "genes.tsv").write_bytes(bytes(broken))
        try:
            assert len(pp.Vocabulary.load(tmp_path / "genes.tsv"))
        except ValueError as error:
            tells(error, "is not a vocabulary")


def test_a_full_disk_leaves_the_old_vocabulary(vocabulary, tmp_path, monkeypatch):
    vocabulary.save(tmp_path / "genes.tsv")
    before = (tmp_path / "genes.tsv").read_bytes()

    def full(self, text, **_):
        self.write_bytes(text.encode()[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        vocabulary.save(tmp_path / "genes.tsv")
    assert (tmp_path / "genes.tsv").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["genes.tsv"]


def test_weights_are_replaced_at_once_or_not_at_all(model, saved, monkeypatch):
    monkeypatch.setattr(_files, "_exchange", lambda *_: False)  # as on systems that cannot exchange two folders
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    ordinary, calls = os.replace, []

    def fails_once(source, target):
        calls.append(source)
        if len(calls) == 2:  # the old folder is aside, the new one is to take its place
            raise OSError(28, "No space left on device")
        return ordinary(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OSError, match="No space left"):
        models.save(model, saved)
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


# ---- downloads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server():
    """A loopback server: `answer(path, number of the request)` gives status, headers and content."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            with httpd.lock:
                httpd.asked += 1
                number = httpd.asked
            headers, content = httpd.answer(number)
            self.send_response(200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.lock, httpd.asked, httpd.url = threading.Lock(), 0, f"http://127.0.0.1:{httpd.server_port}/counts.tsv"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield httpd
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Fetches one made-up file, whose content is known to be `b"counts"`."""
    monkeypatch.setenv("STAMPY_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("STAMPY_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    file = _registry.File("counts", server.url, sha(b"counts"), 6)
    source = _registry.Source("someone/data", "0" * 40, "MIT", "Someone (2025)")
    entry = _registry.Entry("made_up", "section", "", None, None, "train", (), (source,), {"counts": file}, None)
    monkeypatch.setattr(_registry, "entries", lambda: {"made_up": entry})
    return lambda: datasets.fetch("made_up", file="counts")


def in_cache(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_a_download_that_changes_is_refused_and_the_right_one_taken(server, fetch, tmp_path):
    server.answer = lambda number: ({}, b"others" if number == 1 else b"counts")
    with pytest.raises(ValueError, match="is not the file that stampy knows"):
        fetch()
    assert in_cache(tmp_path) == []
    assert fetch().read_bytes() == b"counts"


def test_a_download_that_breaks_off(server, fetch, tmp_path):
    server.answer = lambda number: ({"Content-Length": "6"}, b"cou")
    with pytest.raises((ConnectionError, ValueError), match=r"cannot be downloaded|not the file that stampy knows"):
        fetch()
    assert in_cache(tmp_path) == []


def test_a_full_disk_in_a_download_leaves_nothing(server, fetch, tmp_path, monkeypatch):
    import pooch

    server.answer = lambda number: ({}, b"counts")
    ordinary = pooch.HTTPDownloader.__call__

    def full(self, url, output, *args, **kwargs):
        ordinary(self, url, output, *args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    with pytest.raises(OSError, match="No space left"):
        fetch()
    assert in_cache(tmp_path) == []


def test_a_home_that_can_not_be_written_to(fetch, monkeypatch):
    monkeypatch.setenv("STAMPY_CACHE_DIR", "/dev/null/home/.cache")
    with pytest.raises(NotADirectoryError, match=r"is a file.*STAMPY_CACHE_DIR names the cache"):
        fetch()


PROCESS = """
import sys
from stampy.datasets import _fetch, _registry
file = _registry.File("counts", sys.argv[1], sys.argv[2], 6)
entry = _registry.Entry("made_up", "section", "", None, None, "train", (), (), {"counts": file}, None)
print(_fetch.fetch_file(entry, "counts").read_bytes().decode())
"""


def test_two_processes_fill_one_cache(server, fetch, tmp_path):
    both = threading.Barrier(2)

    def together(number):
        both.wait(timeout=120)  # no response before both requests
        return {}, b"counts"

    server.answer = together
    source = str(Path(stampy.__file__).parents[1])
    argv = [sys.executable, "-c", PROCESS, server.url, sha(b"counts")]
    environment = os.environ | {"PYTHONPATH": source}
    processes = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    assert [p.communicate()[0].strip() for p in processes] == ["counts", "counts"]
    assert in_cache(tmp_path) == ["counts.tsv"]
    assert server.asked == 2


def test_the_hub_without_a_network(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("Cannot find the requested files in the disk cache.")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConnectionError, match=r"cannot be fetched from the Hugging Face hub.*give its path"):
        models.load("hf-hub:someone/model@main")
    with pytest.raises(ValueError, match=r"names no revision.*hf-hub:someone/model@main"):
        models.load("hf-hub:someone/model")


# ---- the same result, always ----------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    """Sets the threads of torch, which are those of the tokens, and puts them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_number_of_threads_is_unchanged():
    """numba's threads, once begun, set OpenMP's count for torch as well: 64 of them where one was allowed."""
    code = (
        "import torch, stampy; adata = stampy.datasets.toy(n_spots=80)\n"
        "stampy.tl.embed(adata, modality='gene', show_progress_bar=False); print(torch.get_num_threads())\n"
        "stampy.tl.domains(adata, n_domains=4, method='leiden'); print(torch.get_num_threads())"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "2"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["1", "1"]


def test_threads_and_batches_change_nothing(toy, model, threads):
    few = toy[:40].copy()
    found = []
    for n, batch_size in ((1, 7), (2, 7), (2, 40)):
        threads(n)
        found.append(tl.embed(few, model, batch_size=batch_size, n_workers=n, copy=True, **QUIET).obsm["X_stamp"])
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data", "ignore:zarr v3 autosharding")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_section_from_disk_gives_the_same(toy, model, tmp_path, suffix):
    few, path = toy[:40].copy(), tmp_path / f"few{suffix}"
    few.write_h5ad(path) if suffix == ".h5ad" else few.write_zarr(path)
    again = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
    for section in (few, again):
        pp.neighborhoods(section)
        tl.embed(section, model, **QUIET)
    assert np.array_equal(again.obsm["X_stamp"], few.obsm["X_stamp"])
    assert np.array_equal(again.obs["stamp_group"], few.obs["stamp_group"])


def test_the_cache_is_named_by_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("STAMPY_CACHE_DIR", str(tmp_path))
    assert _fetch.cache_dir() == tmp_path


@pytest.mark.parametrize("content", [b"\xff\xfe\x97\x00 no text", b"", b'"open\n1,2\n'])
def test_tables_that_cannot_be_read_are_named(tmp_path, content):
    from stampy.models._systems.gene_encoders import _genes

    for name in ("results.csv", "slides.csv", "sections.tsv", "means.csv"):
        (tmp_path / name).write_bytes(content)
    for read, name in (
        (lambda: stampy.bench.read_results(tmp_path), "results.csv"),
        (lambda: stampy.datasets.slide_manifest(tmp_path / "slides.csv"), "slides.csv"),
        (lambda: stampy.tl.collect_sections(tmp_path), "sections.tsv"),
        (lambda: _genes({}, tmp_path / "means.csv"), "means.csv"),
    ):
        with pytest.raises((ValueError, KeyError), match=name):
            read()
