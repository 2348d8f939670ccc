"""Links out of HDF5, zarr, ZIP and TIFF files are rejected before they are followed."""

import json
import os
import shutil
import time
import warnings
import zipfile

import h5py
import numpy as np
import pytest
import tifffile

import stampy
from stampy._io import read as formats
from stampy._section.outside_links import (
    LinkError,
    refuse_links,
    refuse_links_h5,
    refuse_links_zip,
    refuse_slide_references,
)
from stampy.cli.main import main
from stampy.pp import Vocabulary


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory):
    """Some spots of the toy as a file and as a store."""
    folder = tmp_path_factory.mktemp("written")
    toy[:40].copy().write_h5ad(folder / "section.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # anndata: of the format that it will write one day
        toy[:40].copy().write_zarr(folder / "section.zarr")
    return folder


@pytest.fixture
def section(written, tmp_path):
    return shutil.copy(written / "section.h5ad", tmp_path / "section.h5ad")


@pytest.fixture
def private(tmp_path):
    path = tmp_path / "private.h5"
    with h5py.File(path, "w") as file:
        file["obsm/secret"] = np.arange(3)
        file["text"] = "secret"
    return path


def bytes_of(path):
    return path.read_bytes()


def external(file, private):
    del file["obsm"]
    file["obsm"] = h5py.ExternalLink(private.name, "/obsm")


def external_in_uns(file, private):
    file["uns/more"] = h5py.ExternalLink(str(private), "/text")


def through_a_soft_link(file, private):
    file["uns/out"] = h5py.ExternalLink(private.name, "/")
    file["uns/a"] = h5py.SoftLink("/uns/out/text")


def external_storage(file, private):
    file.create_dataset("uns/key", (8,), "u1", external=[(str(private), 0, 8)])


def virtual(file, private):
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(str(private), "obsm/secret", (3,))
    file.create_virtual_dataset("uns/virtual", layout)


def soft_circle(file, private):
    file["uns/a"] = h5py.SoftLink("/uns/b")
    file["uns/b"] = h5py.SoftLink("/uns/a")


def soft_parent(file, private):
    file["uns/a"] = h5py.SoftLink("/uns")


def hard_circle(file, private):
    file["uns/a/b"] = np.arange(3)
    file["uns/a/c"] = file["uns"]


def dangling(file, private):
    file["uns/a"] = h5py.SoftLink("/nowhere")


def doubled(file, private):
    below = file.create_group("uns/leaf")
    for i in range(40):
        level = file.create_group(f"uns/level{i}")
        level["a"], level["b"] = below, below
        below = level


LINKS = [external, external_in_uns, through_a_soft_link, external_storage, virtual, soft_circle, soft_parent,
         hard_circle, dangling, doubled]  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_hdf5_links_are_refused_by_name(link, section, private, tmp_path):
    with h5py.File(section, "r+") as file:
        link(file, private)
    before = bytes_of(private), bytes_of(section)
    with pytest.raises(LinkError, match=r"section\.h5ad' is rejected: `/.+` is "):
        stampy.read(section)
    with pytest.raises(LinkError):
        Vocabulary.from_sections([section])
    assert main(["embed", str(section), str(tmp_path / "out.h5ad"), "--quiet"]) == 1
    assert not (tmp_path / "out.h5ad").exists()
    assert (bytes_of(private), bytes_of(section)) == before


def test_appending_checks_the_copy_that_it_writes_to(section, private, toy, tmp_path):
    with h5py.File(section, "r+") as file:
        external(file, private)
    before = bytes_of(private)
    table = toy[:40].copy()
    table.obsm["X_stamp"] = np.zeros((40, 2), np.float32)
    table.uns["stamp"] = {}
    with pytest.raises(LinkError, match=r"an external link to '/obsm' in the file 'private\.h5'"):
        formats.append(table, ["X_stamp"], section, tmp_path / "out.h5ad")
    assert bytes_of(private) == before
    assert not (tmp_path / "out.h5ad").exists()


def test_soft_links_within_a_file_are_read(section):
    with h5py.File(section, "r+") as file:
        file["obsm/other"] = h5py.SoftLink("/obsm/spatial")
        file["obsm/relative"] = h5py.SoftLink("spatial")
        file["layers/same"] = h5py.SoftLink("/X")
    found = stampy.read(section)
    assert np.array_equal(found.obsm["other"], found.obsm["spatial"])


def test_counts_of_space_ranger_with_links(private, tmp_path):
    with h5py.File(tmp_path / "counts.h5", "w") as file:
        file["matrix"] = h5py.ExternalLink(private.name, "/obsm")
    with pytest.raises(LinkError):
        stampy.read(tmp_path / "counts.h5")


def test_damaged_file_gives_no_traceback_of_h5py(section):
    content = bytearray(section.read_bytes())
    content[len(content) // 3 :] = b""
    section.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        refuse_links_h5(section)


# ---- zarr -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(written, tmp_path):
    return shutil.copytree(written / "section.zarr", tmp_path / "section.zarr")


def to_folder(store, private):
    (store / "uns" / "more").symlink_to(private)


def to_file(store, private):
    os.replace(store / "uns" / "zarr.json", private / "zarr.json") if (store / "uns" / "zarr.json").exists() else None
    (store / "uns" / "file").symlink_to(private / "key.txt")


def to_itself(store, private):
    (store / "uns" / "again").symlink_to(store)


def root_metadata(store, private):
    mark = next(store / name for name in ("zarr.json", ".zattrs", ".zgroup") if (store / name).exists())
    shutil.copy(mark, private / mark.name)
    mark.unlink()
    mark.symlink_to(private / mark.name)


def pipe(store, private):
    os.mkfifo(store / "uns" / "pipe")


@pytest.mark.parametrize("link", [to_folder, to_file, to_itself, root_metadata, pipe])
def test_links_in_a_store_are_refused(link, store, tmp_path):
    private = tmp_path / "private"
    private.mkdir()
    (private / "key.txt").write_text("secret")
    link(store, private)
    with pytest.raises(LinkError, match=r"section\.zarr' is rejected: `.+` is "):
        stampy.read(store)
    assert main(["embed", str(store), str(tmp_path / "out.zarr"), "--quiet"]) == 1
    assert not (tmp_path / "out.zarr").exists()


def test_a_store_that_is_reached_by_a_link_is_read(store, tmp_path):
    (tmp_path / "named.zarr").symlink_to(store)
    assert stampy.read(tmp_path / "named.zarr").n_obs == 40


@pytest.mark.parametrize("target", ["../../private.zarr/0", "/private.zarr/0", "file:///private.zarr", "..\\x"])
def test_metadata_that_refers_outside_a_store(target, store):
    (store / "uns" / ".zattrs").write_text(json.dumps({"multiscales": [{"datasets": [{"path": target}]}]}))
    with pytest.raises(LinkError, match="outside of the store"):
        refuse_links(store)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "C:\\x", "a\\..\\x"])
def test_members_of_a_zipped_store(name, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as archive:
        archive.writestr("zarr.json", "{}")
        archive.writestr(name, "x")
    with pytest.raises(LinkError, match="leads out"):
        refuse_links_zip(tmp_path / "a.zarr.zip")


def test_a_link_in_a_zipped_store(tmp_path):
    member = zipfile.ZipInfo("more")
    member.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zarr.zip", "w") as archive:
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(LinkError, match="symbolic link"):
        refuse_links(tmp_path / "a.zarr.zip")


# ---- images ---------------------------------------------------------------------------------------------------------


def ome(tmp_path, *, file_name, uuid, own="urn:uuid:1", compression=None):
    """An OME-TIFF whose metadata refer to pixels in another file."""
    path = tmp_path / "a.ome.tif"
    pixels = np.zeros((64, 64, 3), np.uint8)
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"'
        f'{f" UUID={own!r}" if own else ""}><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" '
        'Type="uint8" SizeX="64" SizeY="64" SizeC="3" SizeZ="1" SizeT="1" Interleaved="true">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="3"/>'
        f'<TiffData IFD="0" PlaneCount="1"><UUID FileName="{file_name}">{uuid}</UUID></TiffData></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, pixels, photometric="rgb", description=xml, metadata=None, compression=compression)
    return path


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pixels_of_another_file_are_refused(tmp_path, compression):
    tifffile.imwrite(tmp_path / "private.tif", np.full((64, 64, 3), 7, np.uint8), photometric="rgb")
    path = ome(tmp_path, file_name="private.tif", uuid="urn:uuid:2", compression=compression)
    with pytest.raises(LinkError, match=r"pixels of the file 'private\.tif'"):
        stampy.pp.SlideImage.open(path)


@pytest.mark.parametrize("own", ["urn:uuid:1", None])
def test_a_renamed_ome_tiff_is_read(tmp_path, own):
    path = ome(tmp_path, file_name="old name.ome.tif", uuid="urn:uuid:1", own=own)
    with stampy.pp.SlideImage.open(path) as image:
        assert image.shape == (64, 64)


def test_pixel_offsets_in_the_header_count_as_damage(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8))
    with tifffile.TiffFile(path) as tiff:
        place = tiff.pages[0].tags["StripOffsets"].valueoffset
        size = tiff.pages[0].tags["StripOffsets"].dtype.value
    content = bytearray(path.read_bytes())
    content[place : place + (2 if size == 3 else 4)] = b"\0" * (2 if size == 3 else 4)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="header"):
        stampy.pp.SlideImage.open(path)


def test_slide_whose_index_refers_elsewhere(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a.mrxs").write_bytes(b"")
    (tmp_path / "a" / "Slidedat.ini").write_text("[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = Data0000.dat\n")
    refuse_slide_references(tmp_path / "a.mrxs")
    (tmp_path / "a" / "Slidedat.ini").write_text("[DATAFILE]\nFILE_COUNT = 1\nFILE_0 = ../../private.dat\n")
    with pytest.raises(LinkError, match="FILE_0"):
        refuse_slide_references(tmp_path / "a.mrxs")


def test_changed_file_is_checked_again(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["group/x"] = np.arange(4)
    refuse_links_h5(path)
    refuse_links_h5(path)
    time.sleep(0.02)  # the time resolution of file systems is some milliseconds
    with h5py.File(path, "r+") as file:
        file["group/y"] = h5py.ExternalLink("other.h5", "/x")
    with pytest.raises(LinkError, match=r"`/group/y` is an external link to '/x' in the file 'other\.h5'"):
        refuse_links_h5(path)
