"""Images: every storage gives the same pixels, every layout is read or rejected, damaged files are named."""

import gzip
import sys
from types import ModuleType

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from stampy._section.image import image_files as _readers
from stampy._section.image.slide_image import SlideImage


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
    with SlideImage.open(path) as image:
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
    with SlideImage.open(path) as image:
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
        got = SlideImage.open(tmp_path / name).read(0, 0, 700, 600)
        assert np.abs(got.astype(int) - smooth()).mean() < 1
    assert Image.MAX_IMAGE_PIXELS == 10_000


# files

RGB = ramp(60, 80)
GREY = RGB[:, :, 0]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "I;16"])
def test_png_and_jpeg_modes(tmp_path, mode):
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    if mode == "I;16":
        Image.fromarray(GREY.astype(np.uint16) * 257 + 256 * 120).save(path)
    else:
        Image.fromarray(RGB).convert("RGBA" if mode == "PA" else mode).convert("P" if mode == "PA" else mode).save(path)
    got = SlideImage.open(path).read(0, 0, 80, 60)
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
def test_tiffs_that_are_not_images(tmp_path, options, message):
    tifffile.imwrite(tmp_path / "a.tif", **options)
    with pytest.raises(ValueError, match=message):
        SlideImage.open(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "strips.tif"])
def test_orientation_tags(tmp_path, orientation, suffix):
    path, stored = tmp_path / f"a.{suffix}", Image.fromarray(smooth(64, 96))
    exif = Image.Exif()
    exif[0x0112] = orientation
    if suffix in ("png", "jpg"):
        stored.save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    else:
        tile = {"tile": (32, 32)} if suffix == "tif" else {"compression": "deflate"}
        tifffile.imwrite(
            path, np.asarray(stored), photometric="rgb", extratags=[(274, 3, 1, orientation, True)], **tile
        )
    with Image.open(path) as picture:
        upright = np.asarray(ImageOps.exif_transpose(picture) if suffix in ("png", "jpg") else _upright(stored, exif))
    with SlideImage.open(path) as image:
        assert image.shape == upright.shape[:2]
        np.testing.assert_array_equal(image.read(0, 0, image.shape[1], image.shape[0]), upright)
        np.testing.assert_array_equal(image.read(11, 7, 20, 30), upright[7:37, 11:31])


def _upright(picture, exif):
    turned = picture.copy()
    turned.getexif()[0x0112] = exif[0x0112]
    return ImageOps.exif_transpose(turned)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "strips.tif", "plain.tif"])
def test_zipped_files(tmp_path, suffix):
    plain = tmp_path / f"a.{suffix}"
    STORAGES.get(suffix, STORAGES["png"])(plain, smooth())
    (tmp_path / f"a.{suffix}.gz").write_bytes(gzip.compress(plain.read_bytes()))
    with SlideImage.open(plain) as one, SlideImage.open(tmp_path / f"a.{suffix}.gz") as other:
        np.testing.assert_array_equal(one.read(5, 6, 200, 100), other.read(5, 6, 200, 100))
    (tmp_path / "cut.png.gz").write_bytes(gzip.compress(plain.read_bytes())[:-20])
    with pytest.raises(ValueError, match="truncated or damaged"):
        SlideImage.open(tmp_path / "cut.png.gz")


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_has_the_pixels_that_pillow_gives(tmp_path, mode):
    path = tmp_path / "a.jpg"
    Image.fromarray(smooth()).convert(mode).save(path, quality=80)
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(SlideImage.open(path).read(0, 0, 700, 600), expected)
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(7))  # padded
    np.testing.assert_array_equal(SlideImage.open(path).read(0, 0, 700, 600), expected)
    path.write_bytes(whole + b"trailer of a phone")  # decoded by Pillow
    np.testing.assert_array_equal(SlideImage.open(path).read(0, 0, 700, 600), expected)


def test_thumbnail_is_the_mean_of_its_area(tmp_path, monkeypatch):
    picture = smooth(600, 700)
    image = SlideImage.from_array(picture)
    np.testing.assert_array_equal(image.thumbnail(700), picture)
    np.testing.assert_array_equal(image.thumbnail(100, (100, 200, 180, 290)), picture[200:290, 100:180])
    small = image.thumbnail(175)
    assert small.shape == (150, 175, 3)
    assert np.abs(small - picture.reshape(150, 4, 175, 4, 3).mean(axis=(1, 3))).max() <= 1
    write_pyramid(tmp_path / "a.tif", picture)
    monkeypatch.setattr("stampy._section.image.slide_image._BAND_PX", 4096)
    with SlideImage.open(tmp_path / "a.tif") as pyramid:
        assert np.abs(pyramid.thumbnail(175).astype(int) - small).max() <= 1
        part = pyramid.thumbnail(50, (100, 100, 300, 300)).astype(int)
    assert np.abs(part - image.thumbnail(50, (100, 100, 300, 300))).max() <= 1
    beyond = image.thumbnail(50, (-100, 0, 0, 100))
    assert (beyond == 255).all()


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
        SlideImage.open(path)


def test_scale_of_a_reduced_file(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with SlideImage.open(tmp_path / "a.png", scale=0.25) as image:
        assert (image.scale, image.shape) == (0.25, (60, 80))
    with pytest.raises(ValueError, match="positive number"):
        SlideImage.open(tmp_path / "a.png", scale=0.0)


def test_missing_files_and_other_formats(tmp_path):
    (tmp_path / "slide.tif").write_text("not an image")
    with pytest.raises(FileNotFoundError, match=r"No image file.*slide\.tif"):
        SlideImage.open(tmp_path / "slid.tif")
    with pytest.raises(ValueError, match="TIFF, OME-TIFF, PNG, JPEG"):
        SlideImage.open(tmp_path / "slide.tif")
    with pytest.raises(ValueError, match="is a folder"):
        SlideImage.open(tmp_path)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match="begins with b''"):
        SlideImage.open(tmp_path / "empty.png")


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
    with SlideImage.open(tmp_path / "a.svs") as image:
        np.testing.assert_array_equal(image.tile((10, 20, 30, 40), 20), RGB[20:40, 10:30])
        np.testing.assert_array_equal(image.tile((10, 20, 30, 40), 10), RGB[20:40:2, 10:30:2])
    assert closed == [True]
    (tmp_path / "b.svs").write_bytes(b"bad")
    with pytest.raises(ValueError, match="truncated or damaged"):
        SlideImage.open(tmp_path / "b.svs")


def test_dicom_goes_to_openslide_whatever_its_name(tmp_path, monkeypatch):
    fake_openslide(monkeypatch, np.dstack([RGB, np.full((60, 80), 255, np.uint8)]))
    dicom = tmp_path / "a.dcm"
    dicom.write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "noname").write_bytes(dicom.read_bytes())
    for name in ("a.dcm", "noname"):
        assert SlideImage.open(tmp_path / name).shape == (60, 80)
    with pytest.raises(ValueError, match=r"is a folder.*'a\.dcm'"):
        SlideImage.open(tmp_path)
    sys.modules["openslide"].OpenSlideUnsupportedFormatError = sys.modules["openslide"].OpenSlideError
    dicom.write_bytes(b"bad")
    with pytest.raises(ValueError, match=r"not a whole slide.*DICOM needs OpenSlide 4\.0"):
        SlideImage.open(dicom)


def test_whole_slides_without_openslide(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "a.mrxs").touch()
    with pytest.raises(ImportError, match=r'pip install "stampy-st\[slides\]"'):
        SlideImage.open(tmp_path / "a.mrxs")
