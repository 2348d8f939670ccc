"""Detection of images that are not H&E."""

import json
import re
import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter

from stampy import datasets
from stampy._section.image.image_checks import doubt_of
from stampy._section.image.slide_image import SlideImage
from stampy._section.pixel_size import infer_um_per_px


@pytest.fixture(scope="module")
def toy_picture():
    adata = datasets.toy(n_spots=80, rng=3)
    library = adata.uns["spatial"]["toy"]
    scale = library["scalefactors"]["tissue_hires_scalef"]
    um = infer_um_per_px(adata.obsm["spatial"], library["scalefactors"]).um_per_px / scale
    return library["images"]["hires"], adata.obsm["spatial"] * scale, um


def blurred(picture, um):
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(80 / um)))


def grey(picture):
    return np.rint(picture.mean(axis=2)).astype(np.uint8)


def signal(picture):
    """Bright nuclei on black."""
    return np.clip(255 - 1.9 * picture.min(axis=2).astype(float), 0, 255).astype(np.uint8)


NO_HISTOLOGY = {
    "black": (lambda p, um: np.zeros_like(p), "is black"),
    "black16": (lambda p, um: np.zeros(p.shape, np.uint16), "is black"),
    "almost black": (lambda p, um: (p / 255**2).astype(np.float32), "is black"),
    "transparent": (lambda p, um: np.dstack([p, np.zeros_like(p[..., 0])]), r"is transparent.*\(0% opaque\)"),
    "pale": (lambda p, um: np.dstack([p, np.full_like(p[..., 0], 50)]), "is transparent"),
    "white": (lambda p, um: np.full_like(p, 255), r"has one colour.*\(255, 255, 255\)"),
    "pink": (lambda p, um: np.full_like(p, 1) * np.uint8([230, 120, 160]), "has one colour"),
    "blurred": (blurred, "is so blurred"),
    "fluorescence": (lambda p, um: np.dstack([signal(p) // 3] * 3), "as in fluorescence"),
    "blue": (lambda p, um: np.dstack([0 * signal(p), 0 * signal(p), signal(p)]), "as in fluorescence"),
    "one channel": (lambda p, um: 255 - grey(p), "has no colour"),
    "grey": (lambda p, um: np.dstack([grey(p)] * 3), "has no colour"),
    "mask": (lambda p, um: grey(p) > 150, "has no colour"),
    "negative": (lambda p, um: 255 - p, "green is its brightest colour"),
    "black in part": (lambda p, um: p * (np.arange(p.shape[1]) > 300)[:, None].astype(np.uint8), r"black at \d+%"),
}


@pytest.mark.parametrize("name", NO_HISTOLOGY)
def test_images_that_are_not_histology_are_detected(toy_picture, name):
    picture, xy, um = toy_picture
    change, reason = NO_HISTOLOGY[name]
    assert re.search(reason, doubt_of(SlideImage.from_array(change(picture, um)), xy, um))


CHANGES = {
    "as it is": lambda p: p,
    "dark": lambda p: (p * 0.5).astype(np.uint8),
    "pale": lambda p: (255 - (255 - p) * 0.4).astype(np.uint8),
    "other stain": lambda p: p[..., ::-1],
    "black beside the tissue": lambda p: np.where((p.min(axis=2) > 225)[..., None], 0, p),
    "opaque": lambda p: np.dstack([p, np.full_like(p[..., 0], 255)]),
    "reduced": lambda p: np.asarray(Image.fromarray(p).reduce(4).resize(p.shape[1::-1])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_histology_passes(toy_picture, name):
    picture, xy, um = toy_picture
    assert doubt_of(SlideImage.from_array(np.ascontiguousarray(CHANGES[name](picture))), xy, um) == ""


def test_check_uses_the_pixels_around_spots(toy_picture):
    picture, xy, um = toy_picture
    (left, top), (right, bottom) = xy.min(axis=0).astype(int), xy.max(axis=0).astype(int)
    hidden = picture.copy()
    hidden[top - 99 : bottom + 99, left - 99 : right + 99] = 0
    assert "black" in doubt_of(SlideImage.from_array(hidden), xy, um)
    beside = np.zeros((3 * picture.shape[0], 3 * picture.shape[1], 3), np.uint8)
    beside[: picture.shape[0], : picture.shape[1]] = picture
    assert doubt_of(SlideImage.from_array(beside), xy, um) == ""
    assert doubt_of(SlideImage.from_array(picture), xy[:1], um) == ""


def test_real_sections(data_dir):
    names = [
        "CRC16_human",
        "DLPFC_151673",
        "HER2ST_A1",
        "HER2ST_A2",
        "HER2ST_C2",
        "LymphNode_V1_human",
        "mouse_MOB_ST1",
    ]
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adata = ad.read_h5ad(data_dir / "sections" / f"{name}.h5ad")
        (library,) = adata.uns["spatial"].values()
        um = infer_um_per_px(adata.obsm["spatial"], library["scalefactors"]).um_per_px
        for key, array in library["images"].items():
            scale = float(library["scalefactors"][f"tissue_{key}_scalef"])
            assert doubt_of(SlideImage.from_array(array), adata.obsm["spatial"] * scale, um / scale) == "", (name, key)


@pytest.mark.parametrize(
    ("name", "doubt"),
    [("gbm243t", ""), ("sows2025", ""), ("vistoseg", ""), ("ovarian", "fluorescence")],
)
def test_real_pictures(data_dir, name, doubt):
    folder = data_dir / "image_only" / name / "spatial"
    spots = pd.read_csv(folder / "tissue_positions_list.csv", header=None)
    xy = spots[spots[1] == 1][[5, 4]].to_numpy(float)
    factors = json.loads((folder / "scalefactors_json.json").read_text())
    scale, um = factors["tissue_hires_scalef"], infer_um_per_px(xy, factors).um_per_px
    found = doubt_of(SlideImage.open(folder / "tissue_hires_image.jpg"), xy * scale, um / scale)
    assert (doubt in found) if doubt else found == ""
