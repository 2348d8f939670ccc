"""Images named by a section: from its own folder or by absolute path, regular files only, with a warning."""

import logging
import os
import shutil

import numpy as np
import pytest
from PIL import Image

import stampy
from stampy import pp
from stampy._section.outside_links import named_images
from stampy.cli.main import main


@pytest.fixture(scope="module")
def picture(toy, tmp_path_factory):
    """A file with the whole image."""
    path = tmp_path_factory.mktemp("picture") / "full.png"
    pixels = toy.uns["spatial"]["toy"]["images"]["hires"]
    factor = toy.uns["spatial"]["toy"]["scalefactors"]["tissue_hires_scalef"]
    picture = Image.fromarray(pixels)
    picture.resize((round(picture.width / factor), round(picture.height / factor))).save(path)
    return path


@pytest.fixture
def section(toy, picture, tmp_path):
    """A section that names an image in its folder, and a way to write it with another name."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    shutil.copy(picture, tmp_path / "data" / "images" / "full.png")
    shutil.copy(picture, tmp_path / "private.png")

    def write(name):
        adata = toy[:40].copy()
        adata.uns["spatial"]["toy"]["metadata"] = {"source_image_path": str(name)}
        adata.write_h5ad(tmp_path / "data" / "section.h5ad")
        return tmp_path / "data" / "section.h5ad"

    return write


def tiles(adata):
    pp.tiles(adata, size_px=16)
    return adata.uns["stamp"]["stamp_tiles"]


def test_a_relative_path_is_taken_against_the_folder_of_the_section(section, tmp_path, monkeypatch, caplog):
    path = section("images/full.png")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "full.png").write_bytes(b"of the working folder")
    caplog.set_level(logging.INFO, "stampy")
    record = tiles(stampy.read(path))
    expected = str((tmp_path / "data" / "images" / "full.png").resolve())
    assert list(record["image_path"]) == [expected]
    assert expected in caplog.text


def test_a_relative_path_without_a_file_is_not_taken_against_the_working_folder(section, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "data")
    adata = toy[:40].copy()
    adata.uns["spatial"]["toy"]["metadata"] = {"source_image_path": "images/full.png"}
    with pytest.warns(UserWarning, match="is a relative path"):
        record = tiles(adata)
    assert list(record["image"]) == ["hires"]
    assert list(record["image_path"]) == [""]


def test_absolute_path_is_opened_with_a_warning(section, tmp_path):
    record = tiles(stampy.read(section(tmp_path / "private.png")))
    assert list(record["image_path"]) == [str((tmp_path / "private.png").resolve())]


@pytest.mark.parametrize("name", ["https://example.org/a.png", "file:///etc/passwd", "s3://bucket/a.tif"])
def test_urls_are_not_fetched(name, section):
    with pytest.raises(ValueError, match="addresses are not downloaded"):
        tiles(stampy.read(section(name)))


def test_only_regular_image_files_are_opened(section, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in (tmp_path / "pipe.png", "/dev/zero", tmp_path):
        with pytest.raises(ValueError, match="which is not a file"):
            tiles(stampy.read(section(name)))
    (tmp_path / "key.png").write_text("a secret key")
    with pytest.warns(UserWarning, match="is not read .*not an image that stampy reads.*; the one in .* is used"):
        record = tiles(stampy.read(section(tmp_path / "key.png")))
    assert list(record["image"]) == ["hires"]
    adata = stampy.read(section(tmp_path / "key.png"))
    adata.uns["spatial"]["toy"]["images"] = {}
    with pytest.raises(ValueError, match="not an image that stampy reads"):
        tiles(adata)


@pytest.mark.parametrize("name", ["../private.png", "{outside}/private.png"])
def test_only_files_below_the_folder(name, section, tmp_path):
    path = section(name.format(outside=tmp_path))
    with named_images("below"), pytest.raises(ValueError, match=r"outside its folder.*--named-images"):
        tiles(stampy.read(path))
    with named_images("below"):
        assert list(tiles(stampy.read(section("images/full.png")))["image"]) == ["full.png"]
    os.symlink(tmp_path / "private.png", tmp_path / "data" / "images" / "link.png")
    with named_images("below"), pytest.raises(ValueError, match="outside its folder"):
        tiles(stampy.read(section("images/link.png")))


def test_cohort_opens_outside_images_only_on_request(section, tmp_path, capsys):
    path = section(tmp_path / "private.png")
    command = ["corpus", "build", str(path), "--workers", "1", "--max-tokens", "50", "--out"]
    assert main([*command, str(tmp_path / "a")]) == 1
    assert "--named-images anywhere" in capsys.readouterr().err
    assert main([*command, str(tmp_path / "b"), "--named-images", "anywhere"]) == 0
    assert "STAMPY_NAMED_IMAGES" not in os.environ


def test_a_report_shows_the_sections_own_image_instead(section, tmp_path):
    from stampy.cli import report

    path = section(tmp_path / "private.png")
    with named_images("below"):
        report.report(path, tmp_path / "a.html")
    assert "outside its folder; it is not opened" in (tmp_path / "a.html").read_text().replace("&#x27;", "'")


def test_result_does_not_depend_on_the_path_of_the_image(section, model, tmp_path):
    adata = stampy.read(section("images/full.png"))
    found = stampy.tl.embed(adata, model, modality="image", device="cpu", show_progress_bar=False, copy=True)
    assert np.isfinite(found.obsm["X_stamp"]).all()
    assert found.uns["stamp"]["X_stamp"]["tiles"]["image_path"][0].endswith("full.png")


def test_path_instead_of_pixels_follows_the_same_rule(section, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(name):
        adata = stampy.read(section("images/full.png"))
        library = adata.uns["spatial"]["toy"]
        del library["metadata"]
        library["images"] = {"fullres": str(name)}
        adata.write_h5ad(tmp_path / "data" / "named.h5ad")
        return tmp_path / "data" / "named.h5ad"

    expected = str((tmp_path / "data" / "images" / "full.png").resolve())
    assert list(tiles(stampy.read(write("images/full.png")))["image_path"]) == [expected]
    outside = str((tmp_path / "private.png").resolve())
    assert list(tiles(stampy.read(write(outside)))["image_path"]) == [outside]
    for name in ("../private.png", outside):
        with named_images("below"):
            adata = stampy.read(write(name))
        for asked in ({}, {"image_key": "fullres"}):
            with pytest.raises(ValueError, match=r"outside its folder.*--named-images"):
                pp.tiles(adata, size_px=16, **asked)
    with named_images("below"):
        assert list(tiles(stampy.read(write("images/full.png")))["image_path"]) == [expected]
    with pytest.raises(ValueError, match="addresses are not downloaded"):
        tiles(stampy.read(write("https://example.org/a.png")))
