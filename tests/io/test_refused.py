"""Files that are not sections, damaged files and decompression bombs raise a short error of stampy."""

import gzip
import io
import shutil
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_section import BARCODES, features, h5, mtx, put, spatial

import stampy
from stampy._io import input_files
from stampy.cli.main import main


@pytest.mark.parametrize(
    ("name", "line"),
    [("s.rds", 'readRDS("s.rds")'), ("s.RDS.gz", 'readRDS("s.RDS.gz")'), ("s.RData", 'get(load("s.RData"))'),
     ("s.rda", 'get(load("s.rda"))'), ("s.qs", 'qs::qread("s.qs")'), ("s.h5Seurat", "SeuratDisk::LoadH5Seurat")],
)  # fmt: skip
def test_files_of_r(tmp_path, name, line):
    put(tmp_path / name, b"x")
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match="a file of R") as refused:
            stampy.read(path)
        assert line in str(refused.value)
        assert "GetTissueCoordinates(x, scale = NULL)" in str(refused.value)
        assert 'anndataR::write_h5ad(x, "s.h5ad")' in str(refused.value)
        # only Seurat writes .h5Seurat; the others may hold a SpatialExperiment, such as spatialLIBD's
        assert ("zellkonverter::writeH5AD(x," in str(refused.value)) == (name != "s.h5Seurat")


def test_error_keeps_the_name_of_an_r_file(tmp_path):
    put(tmp_path / "Donor.1.RDS", b"x")
    with pytest.raises(ValueError, match=r'write_h5ad\(x, "Donor\.1\.h5ad"\)'):
        stampy.read(tmp_path / "Donor.1.RDS")


@pytest.mark.parametrize(
    ("name", "words"),
    [("s.h5ad.gz", "gunzip s.h5ad.gz"), ("he.svs", "is an image"), ("he.png", "is an image"), ("run.7z", "an archive"),
     ("run.tar.gz", "an archive"), ("notes.txt", "is not a section"), ("tissue_positions.parquet", "give the folder"),
     ("counts.csv", "is not a section")],
)  # fmt: skip
def test_other_files(tmp_path, name, words):
    put(tmp_path / name, b"a,b\n1,2\n")
    with pytest.raises(ValueError, match=words) as refused:
        stampy.read(tmp_path / name)
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_hdf5_of_other_kinds(tmp_path):
    for name, group, words in (
        ("a.h5", "geneExp", "stereopy"),
        ("b.h5", "assays", "a file of R"),
        ("c.h5", "x", "is not a section"),
    ):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group(group)
            file["cell.names"] = [1]
        with pytest.raises(ValueError, match=words):
            stampy.read(tmp_path / name)


def test_folders(tmp_path):
    with pytest.raises(ValueError, match="it is empty"):
        stampy.read(tmp_path)
    put(tmp_path / "notes.pdf", b"x")
    with pytest.raises(ValueError, match=r"Found there: \['notes\.pdf'\]\. Looked for: \.h5ad, \.zarr, Space Ranger"):
        stampy.read(tmp_path)
    put(tmp_path / "Brain_feature_slice.h5", b"x")  # of a download of Visium HD
    put(tmp_path / "Brain_binned_outputs.tar.gz", b"x")
    with pytest.raises(ValueError, match=r"unpack \['Brain_binned_outputs\.tar\.gz'\] there first"):
        stampy.read(tmp_path)
    put(tmp_path / "s.h5ad", b"x")
    with pytest.raises(ValueError, match=r"contains \['s\.h5ad'\]\. Pass one of them to `stampy\.read`"):
        stampy.read(tmp_path)


def test_a_link_to_nothing(tmp_path):
    (tmp_path / "s.h5ad").symlink_to(tmp_path / "moved.h5ad")
    with pytest.raises(FileNotFoundError, match=r"it is a link to '.*moved\.h5ad'"):
        stampy.read(tmp_path / "s.h5ad")


@pytest.mark.parametrize(
    ("attributes", "children", "words"),
    [({"multiscales": []}, ["0"], "an OME-Zarr image, no section"), ({}, [], "contains nothing"),
     ({}, ["images"], "an OME-Zarr image"), ({}, ["obs"], r"contains \['obs'\]")],
)  # fmt: skip
def test_zarr_of_other_kinds(tmp_path, attributes, children, words):
    group = zarr.open_group(tmp_path / "s.zarr", mode="w", attributes=attributes)
    for child in children:
        group.create_group(child)
    with pytest.raises(ValueError, match=words):
        stampy.read(tmp_path / "s.zarr")


def test_one_line_on_the_command_line(tmp_path, capsys):
    for name, content in (
        ("a.h5ad", b"\x89HDF\r\n\x1a\nrubbish"),
        ("b.rds", b"x"),
        ("c.zarr.zip", b"PK"),
        ("d.loom", b"x"),
    ):
        put(tmp_path / name, content)
        assert main(["embed", str(tmp_path / name), str(tmp_path / "out.h5ad")]) == 1
        said = capsys.readouterr().err.strip().splitlines()
        assert len(said) == 1
        assert said[0].startswith("stampy: error: ")
        assert name in said[0]


# Damage


def flat(folder):
    """A section in GEO's layout, each part gzipped."""
    spatial(folder, ".gz")
    put(folder / "matrix.mtx.gz", mtx())
    put(folder / "features.tsv.gz", features())
    put(folder / "barcodes.tsv.gz", "\n".join(BARCODES) + "\n")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_damage_is_refused_by_name_or_harmless(tmp_path, data):
    """Any part cut short, emptied or with some bytes changed: a section, or a ValueError that names the file."""
    folder = tmp_path / "s"
    shutil.rmtree(folder, ignore_errors=True)
    flat(folder)
    if data.draw(st.booleans()):
        for name in ("matrix.mtx.gz", "features.tsv.gz", "barcodes.tsv.gz"):
            (folder / name).unlink()
        put(folder / "filtered_feature_bc_matrix.h5", h5())
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    unpacked = path.read_bytes() if path.suffix != ".gz" else gzip.decompress(path.read_bytes())
    how = data.draw(st.sampled_from(["cut", "bytes", "empty", "binary", "packed bytes"]))
    if how == "packed bytes":
        content = bytearray(path.read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 0xFF
        path.write_bytes(bytes(content))
    elif how in ("empty", "binary"):
        put(path, b"" if how == "empty" else data.draw(st.binary(max_size=64)))
    elif how == "cut":
        put(path, unpacked[: data.draw(st.integers(0, len(unpacked)))])
    else:
        content = bytearray(unpacked)
        for _ in range(3):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        put(path, bytes(content))
    found, said = read_or_refused(folder)
    if found is None:
        assert str(folder) in said or path.name in said
    else:
        assert found.n_obs
        assert np.isfinite(found.obsm.get("spatial", np.zeros(1))).all()


def read_or_refused(folder):
    """The section and "", or None and the message."""
    try:
        return stampy.read(folder), ""
    except (ValueError, FileNotFoundError) as error:
        return None, str(error)


# Bombs


def test_gzip_that_unpacks_to_too_much(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "MAX_UNPACKED", 10_000)
    monkeypatch.setattr(input_files, "MAX_RATIO", 2)
    flat(tmp_path)
    put(tmp_path / "scalefactors_json.json.gz", b"{" + b" " * 1_000_000 + b"}")
    with pytest.raises(ValueError, match=r"scalefactors_json\.json\.gz' unpacks to far more"):
        stampy.read(tmp_path)
    put(tmp_path / "filtered_feature_bc_matrix.h5.gz", bytes(1_000_000))
    with pytest.raises(ValueError, match=r"filtered_feature_bc_matrix\.h5\.gz' unpacks to far more"):
        stampy.read(tmp_path)


def test_archives_that_unpack_to_too_much_or_elsewhere(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", bytes(1_000_000))
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../x", b"1")
    with tarfile.open(tmp_path / "c.tar.gz", "w:gz") as archive:
        for name, kind in (("../x", tarfile.REGTYPE), ("link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = 0, kind, "/etc/passwd"
            archive.addfile(member, io.BytesIO())
    with pytest.raises(ValueError, match="is outside the archive"), input_files.unzipped(tmp_path / "b.zip"):
        pytest.fail("it was unpacked")
    with pytest.raises(ValueError, match="is outside the archive"), input_files.unzipped(tmp_path / "c.tar.gz"):
        pytest.fail("it was unpacked")
    monkeypatch.setattr(input_files, "MAX_UNPACKED", 1000)
    with pytest.raises(ValueError, match="unpacks to far more"), input_files.unzipped(tmp_path / "a.zip"):
        pytest.fail("it was unpacked")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "b.zip", "c.tar.gz"]
