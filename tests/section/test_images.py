"""Images: every storage gives the same pixels, every layout is read or refused, damaged files are named."""

import sys
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image

from stampy._section import open as _readers
from stampy._section.image import SlideImage
from stampy._section.open import open_file


def ramp(height=240, width=250):
    """R is x, G is y: where a crop comes from can be read off it."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.full_like(x, 7)], axis=-1).astype(np.uint8)


def smooth(height=600, width=700):
    y, x = np.mgrid[:height, :width]
    return (127 + 120 * np.stack([np.sin(x / 40), np.cos(y / 30), np.sin((x + y) / 50)], axis=-1)).astype(np.uint8)


def test_downsampling_is_antialiased():
    stripes = np.zeros((400, 400), np.uint8)
    stripes[:, ::2] = 255
    tile = SlideImage.from_array(stripes).tile((100, 100, 300, 300), 20)
    assert np.abs(tile.astype(int) - 127).max() <= 2


# storages

PYRAMID = {"tile": (128, 128), "compression": "deflate"}


def write_pyramid(path, picture, **options):
    with tifffile.TiffWriter(path, **options) as tiff:
        tiff.write(picture, subifds=2, photometric="rgb", **PYRAMID)
        for step in (2, 4):
            small = Image.fromarray(picture).reduce(step)
            tiff.write(np.asarray(small), subfiletype=1, photometric="rgb", **PYRAMID)


STORAGES = {
    "png": lambda path, picture: Image.fromarray(picture).save(path),
    "tif": lambda path, picture: tifffile.imwrite(path, picture, photometric="rgb", **PYRAMID),
    "tiff": write_pyramid,
    "ome.tif": lambda path, picture: write_pyramid(path, picture, ome=True),
    "planar.tif": lambda path, picture: tifffile.imwrite(
        path, np.moveaxis(picture, -1, 0), photometric="rgb", planarconfig="separate", **PYRAMID
    ),
    "channels.ome.tif": lambda path, picture: tifffile.imwrite(
        path, np.moveaxis(picture, -1, 0), photometric="minisblack", metadata={"axes": "CYX"}, **PYRAMID
    ),
    "strips.tif": lambda path, picture: tifffile.imwrite(path, picture, photometric="rgb", compression="deflate"),
    "plain.tif": lambda path, picture: tifffile.imwrite(path, picture, photometric="rgb", rowsperstrip=7),
}


@pytest.mark.parametrize("suffix", STORAGES)
@pytest.mark.parametrize("edge", [100, 500])
def test_every_storage_gives_the_same_tiles(tmp_path, suffix, edge):
    picture = smooth()
    path = tmp_path / f"slide.{suffix}"
    STORAGES[suffix](path, picture)
    expected, box = SlideImage.from_array(picture), (33.3, -20.5, 33.3 + edge, edge - 20.5)
    with open_file(path) as image:
        assert image.shape == (600, 700)
        got = image.tile(box, 100)
        assert len(image.levels) == (3 if suffix in ("tiff", "ome.tif") else 1)
        assert image._level_for(edge / 100) == (len(image.levels) - 1 if edge == 500 else 0)
    error = np.abs(got.astype(int) - expected.tile(box, 100))
    assert error.max() <= (0 if edge == 100 or len(image.levels) == 1 else 40)  # sharper by one filter at the padding
    assert error.mean() < 1


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_lossy_storages(tmp_path, suffix):
    path = tmp_path / f"slide.{suffix}"
    if suffix == "jpg":
        Image.fromarray(smooth()).save(path, quality=95)
    else:
        tifffile.imwrite(path, smooth(), tile=(128, 128), compression="jpeg", photometric="rgb")
    with open_file(path) as image:
        got = image.read(100, 100, 300, 300)
    assert np.abs(got.astype(int) - smooth()[100:400, 100:400]).mean() < 4


def test_odd_pyramid_sizes_do_not_drift():
    shapes = [(1001, 999), (501, 500), (251, 249), (700, 699)]
    image = SlideImage([SlideImage.from_array(np.zeros(shape, np.uint8)).levels[0] for shape in shapes])
    assert image.downsamples == ((1, 1), (2, 2), (4, 4), (999 / 699, 1001 / 700))


def test_a_large_jpeg_needs_no_global_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # as if 600 x 700 px were a bomb
    monkeypatch.setattr(_readers, "_BAND_PX", 9_000)
    for name in ("a.png", "a.jpg"):
        Image.fromarray(smooth()).save(tmp_path / name, quality=95)
        got = open_file(tmp_path / name).read(0, 0, 700, 600)
        assert np.abs(got.astype(int) - smooth()).mean() < 1
    assert Image.MAX_IMAGE_PIXELS == 10_000


# pixel types and layouts

RGB = ramp(60, 80)
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
    ],
    ids=["grey", "grey1", "first", "16bit", "8in16", "12in16", "float32", "float64", "bool", "fortran"],
)
def test_types_and_layouts(array, expected):
    if array.dtype == np.uint16 and array.max() > 4095:
        array = array.copy()
        array[0, 0] = 65535
        expected = expected.copy()
        expected[0, 0] = 255
    before = array.copy()
    np.testing.assert_array_equal(SlideImage.from_array(array).read(0, 0, 80, 60), expected)
    np.testing.assert_array_equal(array, before)


def test_opacity_is_laid_on_the_fill():
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
        (np.zeros((50, 60), np.int64), TypeError, "dtype int64"),
        (np.zeros((50, 60), np.complex64), TypeError, "dtype complex64"),
    ],
)
def test_other_layouts_are_refused(array, error, message):
    with pytest.raises(error, match=message):
        SlideImage.from_array(array)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16"])
def test_png_and_jpeg_modes(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(GREY.astype(np.uint16) * 257 + 256 * 120).save(path)
    else:
        Image.fromarray(RGB).convert("RGBA" if mode == "PA" else mode).convert("P" if mode == "PA" else mode).save(path)
    got = open_file(path).read(0, 0, 80, 60)
    assert got.shape == (60, 80, 3)
    assert got.std() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data": np.zeros((5, 64, 64), np.uint8), "photometric": "minisblack"}, "has axes"),
        ({"data": np.zeros((64, 64), np.uint8), "photometric": "miniswhite"}, "MINISWHITE"),
        ({"data": np.zeros((4, 64, 64), np.uint8), "photometric": "minisblack", "metadata": {"axes": "CYX"}}, "4 grey"),
    ],
)
def test_tiffs_that_are_no_picture(tmp_path, options, message):
    tifffile.imwrite(tmp_path / "a.tif", **options)
    with pytest.raises(ValueError, match=message):
        open_file(tmp_path / "a.tif")


# bad files


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "strips.tif", "plain.tif"])
@pytest.mark.parametrize("keep", [0.01, 0.6])
def test_truncated_files(tmp_path, suffix, keep):
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3)).astype(np.uint8)
    STORAGES.get(suffix, STORAGES["png"])(path, noise)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match=r"truncated or damaged.*again"):
        open_file(path)


def test_a_reduced_file_says_its_scale(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with SlideImage.open(tmp_path / "a.png", scale=0.25) as image:
        assert (image.scale, image.shape) == (0.25, (60, 80))
    with pytest.raises(ValueError, match="positive number"):
        SlideImage.open(tmp_path / "a.png", scale=0.0)


def test_no_such_file_and_foreign_files(tmp_path):
    (tmp_path / "slide.tif").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"No image file.*slide\.tif"):
        open_file(tmp_path / "slid.tif")
    with pytest.raises(ValueError, match="TIFF, OME-TIFF, PNG, JPEG"):
        open_file(tmp_path / "slide.tif")
    with pytest.raises(ValueError, match="is a folder"):
        open_file(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="begins with b''"):
        open_file(tmp_path / "empty.png")


# whole slides


def fake_openslide(monkeypatch, rgba):
    class OpenSlideError(Exception):
        pass

    class OpenSlide:
        level_dimensions = ((80, 60), (40, 30))
        level_downsamples = (1.0, 2.0)
        level_count = 2

        def __init__(self, path):
            if b"bad" in path.read_bytes():
                raise OpenSlideError("no slide")

        def read_region(self, corner, level, size):
            (x, y), (w, h), step = corner, size, 2**level
            return Image.fromarray(rgba[y : y + h * step : step, x : x + w * step : step])

        def close(self):
            closed.append(True)

    closed = []
    module = ModuleType("openslide")
    module.OpenSlide, module.OpenSlideError = OpenSlide, OpenSlideError
    monkeypatch.setitem(sys.modules, "openslide", module)
    return closed


def test_whole_slides_by_openslide(tmp_path, monkeypatch):
    rgba = np.dstack([RGB, np.full((60, 80), 255, np.uint8)])
    closed = fake_openslide(monkeypatch, rgba)
    (tmp_path / "a.svs").write_bytes(b"slide")
    with open_file(tmp_path / "a.svs") as image:
        np.testing.assert_array_equal(image.tile((10, 20, 30, 40), 20), RGB[20:40, 10:30])
        np.testing.assert_array_equal(image.tile((10, 20, 30, 40), 10), RGB[20:40:2, 10:30:2])
    assert closed == [True]
    (tmp_path / "b.svs").write_bytes(b"bad")
    with pytest.raises(ValueError, match="truncated or damaged"):
        open_file(tmp_path / "b.svs")


def test_whole_slides_without_openslide(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.mrxs").touch()
    with pytest.raises(ImportError, match=r'pip install "stampy-st\[slides\]"'):
        open_file(tmp_path / "a.mrxs")
