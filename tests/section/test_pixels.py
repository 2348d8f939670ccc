"""Pixels: an image is the same in every type and layout; ambiguous arrays raise an error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xarray import DataArray, Dataset, DataTree

from stampy._section.image.slide_image import SlideImage, open_spatialdata_image

Y, X = np.mgrid[:60, :80]
RGB = np.stack([X, Y, np.full_like(X, 7)], axis=-1).astype(np.uint8)
GREY = RGB[:, :, 0]


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (GREY, np.stack([GREY] * 3, axis=-1)),
        (GREY[:, :, None], np.stack([GREY] * 3, axis=-1)),
        (np.moveaxis(RGB, -1, 0), RGB),
        (RGB.astype(np.uint16) * 257, RGB),
        (RGB.astype(np.uint16), RGB),
        ((RGB.astype(np.uint16) * 16 + 15), np.rint((RGB.astype(float) * 16 + 15) * 255 / 4095).astype(np.uint8)),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB / 255, RGB),
        (GREY > 40, np.repeat(255 * (GREY > 40)[:, :, None], 3, axis=2)),
        (np.asfortranarray(RGB), RGB),
        (RGB.astype(np.int32), RGB),
        (RGB.astype(np.int64), RGB),
        (RGB.astype(np.uint32) * 257, RGB),
        (RGB.astype(np.float32), RGB),
        (RGB.astype(np.float16), RGB),
        ((RGB / 255).astype(np.float16), RGB),
        (RGB / 255 * 1.0000002 - 1e-7, RGB),
        (RGB.astype(float) * 257, RGB),
        (RGB[None, :, :, None], RGB),
        (np.dstack([GREY, np.full_like(GREY, 255)]), np.stack([GREY] * 3, axis=-1)),
        (np.dstack([RGB / 255, np.ones_like(GREY)]), RGB),
    ],
    ids=[
        "grey",
        "grey1",
        "first",
        "16bit",
        "8in16",
        "12in16",
        "float32",
        "float64",
        "bool",
        "fortran",
        "int32",
        "int64",
        "16in32",
        "float255",
        "half255",
        "half",
        "rounding",
        "float65535",
        "singletons",
        "opacity",
        "rgba",
    ],
)
def test_types_and_layouts(array, expected):
    if array.dtype != np.uint8 and array.max() > 1.1 and array.ndim == 3:  # white is somewhere
        array, expected = array.copy(), expected.copy()
        array[0, 0] = 65535 if array.max() > 4095 else 4095 if array.max() > 255 else 255
        expected[0, 0] = 255
    before = array.copy()
    np.testing.assert_array_equal(SlideImage.from_array(array).read(0, 0, 80, 60), expected)
    np.testing.assert_array_equal(array, before)


def test_alpha_is_blended_with_the_fill():
    rgba = np.full((20, 30, 4), 100, np.uint8)
    rgba[:, :10, 3], rgba[:, 10:20, 3], rgba[:, 20:, 3] = 255, 0, 51
    got = SlideImage.from_array(rgba).read(0, 0, 30, 20, fill=(200, 0, 50))
    assert [got[5, x].tolist() for x in (5, 15, 25)] == [[100] * 3, [200, 0, 50], [180, 20, 60]]


@pytest.mark.parametrize(
    ("array", "error", "message"),
    [
        (np.zeros((50, 60, 2), np.uint8), ValueError, "1, 3 or 4 channels"),
        (np.zeros((5, 50, 60), np.uint8), ValueError, "1, 3 or 4 channels"),
        (np.zeros((3, 50, 3), np.uint8), ValueError, "first or last"),
        (np.zeros((2, 50, 60, 3), np.uint8), ValueError, r"has shape \(2, 50, 60, 3\)"),
        (np.zeros((0, 60, 3), np.uint8), ValueError, "is empty"),
        (np.full((50, 60), 2.0), ValueError, r"floats must lie in \[0, 1\]"),
        (np.full((50, 60), np.nan), ValueError, r"floats must lie in \[0, 1\]"),
        (np.full((50, 60), 1.05), ValueError, r"floats must lie in \[0, 1\]"),
        (np.full((50, 60), 2.0**17), ValueError, "its range is ambiguous"),
        (np.linspace(-1, 1, 3000).reshape(50, 60), ValueError, "negative values"),
        (np.full((50, 60), -1, np.int64), ValueError, "negative values"),
        (np.full((50, 60), 300, np.int32), ValueError, "its range is ambiguous"),
        (np.full((50, 60), 9000, np.uint16), ValueError, "its range is ambiguous"),
        (np.full((50, 60), 70_000, np.uint32), ValueError, "its range is ambiguous"),
        (np.eye(50, 60, dtype=np.uint8), ValueError, "only the integers 0 and 1"),
        (np.eye(50, 60, dtype=np.int64), ValueError, "only the integers 0 and 1"),
        (np.zeros((50, 60), np.int8), TypeError, "dtype int8"),
        (np.full((50, 60, 2), 7, np.uint8), ValueError, "has 2 channels"),
        (np.zeros((50, 60), np.complex64), TypeError, "dtype complex64"),
    ],
)
def test_other_layouts_raise(array, error, message):
    with pytest.raises(error, match=message):
        SlideImage.from_array(array)


DTYPES = [np.uint8, np.uint16, np.int16, np.int32, np.int64, np.uint32, np.float16, np.float32, np.float64]


@given(st.sampled_from(DTYPES), st.sampled_from([1, 255, 4095, 65535]), st.booleans(), st.booleans(), st.randoms())
@settings(deadline=None, max_examples=60)
def test_one_picture_has_the_same_pixels_in_every_type_and_layout(dtype, white, first, opaque, random):
    kind = np.dtype(dtype)
    if white > (np.iinfo(kind).max if kind.kind in "ui" else 65000) or (white == 1 and kind.kind != "f"):
        return
    picture = np.random.default_rng(random.randrange(100)).integers(0, 256, (9, 8, 3))
    picture[3, 3] = 255
    values = picture * (white / 255)
    stored = (np.rint(values) if kind.kind in "ui" else values).astype(kind)
    if opaque:
        stored = np.dstack([stored, np.full((9, 8), white, kind)])
    image = SlideImage.from_array(np.moveaxis(stored, -1, 0) if first else stored)
    error = np.abs(image.read(0, 0, 8, 9).astype(int) - picture)
    assert error.max() <= (1 if kind == np.float16 and white > 255 else 0)
    parts = [image.read(x, y, 1, 1)[0, 0] for y in range(9) for x in range(8)]  # the range is the image's, not a crop's
    np.testing.assert_array_equal(np.reshape(parts, (9, 8, 3)), image.read(0, 0, 8, 9))


@pytest.mark.parametrize(
    ("names", "order"),
    [
        ([0, 1, 2], [0, 1, 2]),
        (["0", "1", "2"], [0, 1, 2]),
        (["R", "G", "B"], [0, 1, 2]),
        (["b", "g", "r"], [2, 1, 0]),
        (["Green", "Red", "Blue"], [1, 0, 2]),
        (["channel_0", "channel_1", "channel_2"], [0, 1, 2]),
        (["a", "b", "g", "r"], [3, 2, 1, 0]),
    ],
)
@pytest.mark.parametrize("dims", ["cyx", "yxc"])
def test_named_channels(names, order, dims):
    stored = np.full((60, 80, len(names)), 255, np.uint8)
    stored[:, :, order[:3]] = RGB
    array = DataArray(stored, dims=list("yxc"), coords={"c": names}).transpose(*dims)
    tree = DataTree.from_dict(
        {
            "scale1": Dataset({"image": array[{"y": slice(0, 30), "x": slice(0, 40)}]}),
            "scale0": Dataset({"image": array}),
        }
    )
    for element in (array, tree):
        np.testing.assert_array_equal(open_spatialdata_image(element).read(0, 0, 80, 60), RGB)
    np.testing.assert_array_equal(SlideImage.from_array(array).read(0, 0, 80, 60), RGB)


@pytest.mark.parametrize("names", [["DAPI", "CD45", "CK"], ["2", "1", "0"], ["red fluor", "gfp", "bfp"], ["r", "g"]])
def test_channels_that_are_not_colours_raise(names):
    array = DataArray(np.zeros((len(names), 9, 8), np.uint8), dims=list("cyx"), coords={"c": names})
    with pytest.raises(ValueError, match="has the channels"):
        open_spatialdata_image(array)
