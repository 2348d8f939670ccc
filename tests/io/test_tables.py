"""ST, Stereo-seq, Slide-seq, and any table of counts with a table of coordinates."""

import gzip

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_section import BARCODES, GENES, XY, N, X, png, put, same

import stampy
from stampy._io import delimited


def wide(names=BARCODES, *, turned=False, separator="\t", r=False, **options):
    """A table of counts."""
    table = pd.DataFrame(X, index=names, columns=GENES)
    text = (table.T if turned else table).to_csv(sep=separator, **options)
    return text.split(separator, 1)[1] if r else text  # R leaves out the name of the first column


def places(columns=("barcode", "xcoord", "ycoord"), separator=",", names=BARCODES, **options):
    """A table of coordinates, in another order."""
    table = pd.DataFrame({columns[0]: names, columns[1]: XY[:, 0], columns[2]: XY[:, 1]})
    return table.iloc[::-1].to_csv(index=False, sep=separator, **options)


@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("r", [True, False])
@pytest.mark.parametrize("separator", ["\t", ",", " "])
@pytest.mark.parametrize("names", [("barcode", "xcoord", "ycoord"), ("", "x", "y"), ("cell_ID", "sdimx", "sdimy")])
def test_counts_and_coordinates_in_both_orientations(tmp_path, turned, r, separator, names):
    put(tmp_path / "Puck_1.digital_expression.txt.gz", wide(turned=turned, separator=separator, r=r))
    put(tmp_path / "Puck_1_bead_locations.csv", places(names))
    with pytest.warns(stampy.StampyWarning, match=r"how large the unit.*0\.65"):
        same(stampy.read(tmp_path))
    with pytest.warns(stampy.StampyWarning):
        binned = stampy.read(tmp_path / "Puck_1.digital_expression.txt.gz", bin_um=100, um_per_px=0.65)
    assert 1 < binned.n_obs < N
    assert binned.X.sum() == X.sum()


def test_coordinates_without_a_header(tmp_path):
    put(tmp_path / "counts.csv", wide(separator=","))
    put(tmp_path / "beads.csv", places(header=False))
    with pytest.warns(stampy.StampyWarning, match="counts.csv and beads.csv do not state"):
        same(stampy.read(tmp_path))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    separator=st.sampled_from("\t,;"), newline=st.sampled_from(["\n", "\r\n"]), quoting=st.sampled_from([0, 1, 2]),
    bom=st.sampled_from(["", "\ufeff"]), comment=st.sampled_from(["", "# made by hand\n"]),
    end=st.sampled_from(["", ".gz"]),
    encoding=st.sampled_from(["utf-8", "utf-16"]),
)  # fmt: skip
def test_tables_in_every_text_format(tmp_path, separator, newline, quoting, bom, comment, end, encoding):
    text = (bom if encoding == "utf-8" else "") + comment
    text += wide(separator=separator, lineterminator=newline, quoting=quoting)
    found = delimited.wide_counts(put(tmp_path / f"t.txt{end}", text.encode(encoding)))
    assert (found.rows, found.columns) == (BARCODES, GENES)
    np.testing.assert_array_equal(found.x.toarray(), X)
    assert found.x.dtype == np.int32


def test_decimal_commas_and_genes_of_one_name(tmp_path):
    path = put(tmp_path / "t.csv", "spot;A;A;B\ns1;1,5;0;2\ns2;0;3;4\n")
    with pytest.warns(stampy.StampyWarning, match=r"16\.\d% of the counts|20\.0% of the counts|25\.0% of the counts"):
        found = delimited.wide_counts(path)
    assert found.columns == ["A", "A", "B"]
    np.testing.assert_array_equal(found.x.toarray(), [[1.5, 0, 2], [0, 3, 4]])


def test_tables_that_do_not_match(tmp_path):
    put(tmp_path / "counts.tsv", wide())
    with pytest.raises(ValueError, match="Nearest: counts and coordinates as tables; it lacks the coordinates"):
        stampy.read(tmp_path)
    put(tmp_path / "xy.csv", places(names=[f"other{i}" for i in range(N)]))
    with pytest.raises(ValueError, match="of different sections"):
        stampy.read(tmp_path)
    put(tmp_path / "counts2.tsv", wide())
    with pytest.raises(ValueError, match=r"2 tables that may hold counts: \['counts.tsv', 'counts2.tsv'\]"):
        stampy.read(tmp_path)
    (tmp_path / "counts.tsv").unlink()
    (tmp_path / "counts2.tsv").unlink()
    with pytest.raises(ValueError, match="it lacks the counts"):
        stampy.read(tmp_path)
    put(tmp_path / "counts.tsv", wide().replace("\t0\t", "\tnone\t"))
    with pytest.raises(ValueError, match=r"counts\.tsv'.*text in the column"):
        delimited.wide_counts(tmp_path / "counts.tsv")


# ST

SPOTS = [f"{2 + i % 4}x{3 + i // 4}" for i in range(N)]
NUMBERS = np.array([s.split("x") for s in SPOTS], dtype=float)


def alignment(selected=True, separator="\t"):
    """Where the spots lie on the image."""
    table = pd.DataFrame(NUMBERS.astype(int), columns=["x", "y"])
    table[["new_x", "new_y"]] = NUMBERS + 0.01
    table[["pixel_x", "pixel_y"]] = XY
    if selected:
        table["selected"] = [1] * (N - 2) + [0] * 2
    return table.iloc[::-1].to_csv(index=False, sep=separator)


@pytest.mark.parametrize("name", ["alignment_table_MOB1.tsv", "spots.csv", "MOB1_selection.tsv.gz"])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("r", ["", "X"])
def test_st_with_an_alignment_table_of_any_name(tmp_path, name, turned, r):
    put(tmp_path / "MOB1.tsv.gz", wide([r + s for s in SPOTS], turned=turned))
    put(tmp_path / name, alignment(separator="," if "csv" in name else "\t"))
    put(tmp_path / "MOB1.png", png())
    found = stampy.read(tmp_path)
    same(found, X[:-2], XY[:-2], SPOTS[:-2])
    library = found.uns["spatial"]["MOB1"]
    assert library["metadata"]["source_image_path"].endswith("MOB1.png")
    assert library["scalefactors"]["microns_per_pixel"] == pytest.approx(200 / 95, rel=0.05)


def test_st_spots_without_a_position(tmp_path):
    put(tmp_path / "S.tsv", wide(SPOTS))
    lines = alignment(selected=False).splitlines()
    put(tmp_path / "a.tsv", "\n".join(lines[:-3]))
    with pytest.warns(stampy.StampyWarning, match="3 spots with counts have no position in a.tsv"):
        same(stampy.read(tmp_path), X[3:], XY[3:], SPOTS[3:])
    put(tmp_path / "b.tsv", alignment())
    with pytest.raises(ValueError, match=r"several tables of spots for S\.tsv"):
        stampy.read(tmp_path)


def test_st_truncated_lines_differ_from_unselected_spots(tmp_path):
    put(tmp_path / "S.tsv", wide(SPOTS))
    lines = alignment().splitlines()
    put(tmp_path / "a.tsv", "\n".join([*lines[:-4], lines[-4][:5]]))
    with pytest.warns(stampy.StampyWarning) as said:
        found = stampy.read(tmp_path)
    texts = " ".join(str(w.message) for w in said)
    assert "1 lines of a.tsv lack numbers" in texts
    assert "4 spots with counts have no position in a.tsv" in texts
    assert found.n_obs == N - 2 - 4  # two are not selected


def test_st_damaged_table_of_spots_warns(tmp_path):
    put(tmp_path / "S.tsv", wide(SPOTS))
    (tmp_path / "spots.tsv.gz").write_bytes(gzip.compress(alignment().encode())[:40])
    with pytest.warns(stampy.StampyWarning, match=r"spots\.tsv\.gz is ignored: .*truncated"):
        stampy.read(tmp_path)


def test_st_with_an_ambiguous_image(tmp_path):
    put(tmp_path / "S.tsv", wide(SPOTS))
    put(tmp_path / "a.tsv", alignment(selected=False))
    for name in ("one.png", "two.png"):
        put(tmp_path / name, png())
    with pytest.warns(
        stampy.StampyWarning, match=r"cannot be determined which of \['one.png', 'two.png'\] is its image"
    ):
        same(stampy.read(tmp_path), names=SPOTS)


# Stereo-seq


def gem(columns=("geneID", "x", "y", "MIDCount"), names=False, header="#FileFormat=GEMv0.1\n#OffsetX=0\n"):
    """Transcripts, each count in two lines at its place."""
    lines = []
    for i, j in zip(*np.nonzero(X), strict=True):
        x, y = XY[i].astype(int)
        gene = f"{GENES[j]}\tname_{GENES[j]}" if names else GENES[j]
        lines += [f"{gene}\t{x}\t{y}\t1"] + ([f"{gene}\t{x + 3}\t{y + 2}\t{X[i, j] - 1}"] if X[i, j] > 1 else [])
    head = [columns[0], *(["geneName"] if names else []), *columns[1:]]
    return header + "\t".join(head) + "\n" + "\n".join(lines) + "\n"


@pytest.mark.parametrize("name", ["S1.gem", "S1.gem.gz", "S1.tissue.txt"])
@pytest.mark.parametrize("columns", [("geneID", "x", "y", "MIDCount"), ("geneID", "x", "y", "UMICount")])
@pytest.mark.parametrize("header", ["", "#FileFormat=GEMv0.1\n#OffsetX=0\n"])
def test_stereo_seq(tmp_path, name, columns, header):
    put(tmp_path / name, gem(columns, header=header))
    for path in (tmp_path, tmp_path / name):
        found = stampy.read(path, bin_um=5)  # each spot of its own in bins of 10 x 10
        order = np.lexsort([XY[:, 0], XY[:, 1]])
        order = order[X[order].any(axis=1)]
        np.testing.assert_array_equal(found[:, GENES].X.toarray(), X[order])
        np.testing.assert_allclose(found.obsm["spatial"], XY[order] + 5)
        factors = found.uns["spatial"]["S1"]["scalefactors"]
        assert (factors["microns_per_pixel"], factors["spot_diameter_fullres"]) == (0.5, 10)
    assert stampy.read(tmp_path).n_obs < N  # 50 µm
    with pytest.raises(ValueError, match="must be at least"):
        stampy.read(tmp_path, bin_um=0.1)


def test_stereo_seq_with_names_and_in_blocks(tmp_path, monkeypatch):
    from stampy._io.formats import stereo_seq

    put(tmp_path / "S1.gem", gem(names=True))
    whole = stampy.read(tmp_path, bin_um=20)
    monkeypatch.setattr(stereo_seq, "_ROWS", 5)
    parts = stampy.read(tmp_path, bin_um=20)
    np.testing.assert_array_equal(whole.X.toarray(), parts.X.toarray())
    assert whole.var_names.str.startswith("name_").all()
    assert set(whole.var["gene_ids"]) == set(GENES)
    put(tmp_path / "S1.gem", "geneID\tx\ty\tother\nA\t1\t2\t3\n")
    with pytest.raises(ValueError, match=r"columns geneID, x, y, MIDCount"):
        stampy.read(tmp_path)


def test_a_table_that_is_called_as_one_of_xenium(tmp_path):
    put(tmp_path / "cells.csv", places(("cell", "x", "y")))
    put(tmp_path / "counts.csv", wide(separator=","))
    with pytest.warns(stampy.StampyWarning, match="do not state how large"):
        same(stampy.read(tmp_path))
