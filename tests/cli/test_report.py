"""The report: one file with text and images only; the section is not changed."""

import re
from html.parser import HTMLParser

import anndata as ad
import numpy as np
import pytest

import stampy
from stampy.cli import report as _report
from stampy.cli.main import main
from stampy.tl._evaluation.judge import judge

VOID = {"meta", "img"}


class Page(HTMLParser):
    """Elements, attributes and text of a page; fails on tags that do not close each other."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, k, v) for k, v in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def embedded(toy):
    """A toy section with a made-up embedding."""
    adata = toy.copy()
    adata.obsm["X_stamp"] = np.random.default_rng(0).normal(size=(adata.n_obs, 6)).astype(np.float32)
    adata.obsm["X_stamp"][:, :4] += 5 * np.eye(4)[adata.obs["domain"].cat.codes]
    adata.uns["stamp"] = {"X_stamp": {"model": "elsewhere", "modality": "gene", "stampy": stampy.__version__}}
    return adata


@pytest.fixture
def report_of(tmp_path):
    def report_of(adata, **options):
        adata.write_h5ad(tmp_path / "section.h5ad")
        path = _report.report(tmp_path / "section.h5ad", tmp_path / "section.html", **options)
        return Page(path.read_text(encoding="utf-8"))

    return report_of


def test_report(embedded, report_of, tmp_path, capsys):
    embedded.write_h5ad(tmp_path / "a.h5ad")
    before = (tmp_path / "a.h5ad").read_bytes()
    assert main(["report", str(tmp_path / "a.h5ad"), str(tmp_path / "a.html")]) == 0
    assert "a.html" in capsys.readouterr().out
    assert (tmp_path / "a.h5ad").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5ad", "a.html"]
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    text = " ".join(page.text)
    assert "not 'elsewhere', which made the embedding: name it by --model" in text
    assert "Found for this report in X_stamp" in text
    markers = set(embedded.var_names[embedded.var["domain"].notna()])
    assert len(markers & set(re.findall(r"\w+", text))) >= 8
    assert "120" in page.text  # spots
    assert sum(tag == "img" for tag in page.tags) == 6


def test_nothing_is_loaded_or_run(embedded, report_of):
    page = report_of(embedded)
    assert not {"script", "link", "iframe", "object", "form", "a"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("src", "href", "srcset"):
            assert value.startswith("data:image/png;base64,"), (tag, name)
    assert any("default-src 'none'" in v for _, k, v in page.attributes if k == "content")
    assert all(value for tag, name, value in page.attributes if (tag, name) == ("img", "alt"))


def test_names_are_escaped(embedded, report_of):
    bad = '<script>alert("1")</script>'
    adata = embedded.copy()
    column = "<b onclick=x>"  # of h5ad, a name has no slash
    adata.obs[column] = adata.obs["domain"].cat.rename_categories({"D1": bad, "D2": "a & b", "D3": "$x_", "D4": "<i>"})
    adata.var_names = [f"{bad}{i}" if i < 5 else name for i, name in enumerate(adata.var_names)]
    del adata.var["gene_ids"]
    adata.uns["stamp"]["X_stamp"]["model"] = bad
    page = report_of(adata, domains=column)
    assert "script" not in page.tags
    assert not {"i", "b"} & set(page.tags)
    assert page.text.count(bad) >= 1
    assert "a & b" in page.text


sdata_warnings = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)


@sdata_warnings
@pytest.mark.parametrize("kind", ["shapes", "labels"])
def test_a_spatialdata_without_obsm_spatial_has_maps(embedded, make_sdata, kind, tmp_path, monkeypatch):
    drawn = []
    spatial = stampy.pl.spatial
    monkeypatch.setattr(stampy.pl, "spatial", lambda *a, **k: drawn.append(spatial(*a, **k)) or drawn[-1])
    sdata = make_sdata(embedded, kind, np.array([[2.0, 0.0, 50.0], [0.0, 2.0, -30.0], [0.0, 0.0, 1.0]]))
    sdata["table"].obsm["X_stamp"] = embedded.obsm["X_stamp"]
    sdata.write(tmp_path / "a.zarr")
    page = Page(_report.report(tmp_path / "a.zarr", tmp_path / "a.html").read_text(encoding="utf-8"))
    assert sum(tag == "img" for tag in page.tags) == 6
    assert len(drawn) == 5
    assert all(len(ax.images) == 1 for ax in drawn)


@sdata_warnings
def test_report_requires_a_choice_among_several_images(toy, make_sdata, tmp_path, capsys):
    sdata = make_sdata(toy, "shapes", np.eye(3))
    sdata.images["dapi"] = sdata.images["he"]
    sdata.tables["spots"] = sdata.tables.pop("table")
    sdata.write(tmp_path / "a.zarr")
    command = ["report", str(tmp_path / "a.zarr"), str(tmp_path / "a.html"), "--table-key", "spots", "--overwrite"]
    asked = "Name the H&E image with `--image-key`."
    assert main(command) == 0
    page = Page((tmp_path / "a.html").read_text(encoding="utf-8"))
    assert asked in " ".join(page.text)
    assert sum(tag == "img" for tag in page.tags) == 4
    assert main([*command, "--image-key", "he"]) == 0
    assert asked not in " ".join(Page((tmp_path / "a.html").read_text(encoding="utf-8")).text)
    assert main([*command, "--image-key", "hires"]) == 1
    assert "Key `hires` not found in `sdata.images`" in capsys.readouterr().err


def test_error_for_overlaid_sections_names_command_line_options(toy, tmp_path, capsys):
    both = ad.concat([toy, toy], label="sample", keys=["A", "B"], index_unique="-")
    both.write_h5ad(tmp_path / "a.h5ad")
    assert main(["report", str(tmp_path / "a.h5ad"), str(tmp_path / "a.html")]) == 1
    assert "`--library-key` (would fit: 'sample')" in capsys.readouterr().err
    assert not (tmp_path / "a.html").exists()


@pytest.mark.parametrize("what", ["bare", "image only", "no coordinates"])
def test_incomplete_sections(toy, report_of, what):
    adata = toy.copy()
    if what == "image only":
        adata = adata[:, :0].copy()
    elif what == "no coordinates":
        del adata.obsm["spatial"]
    text = " ".join(report_of(adata).text)
    assert "Embed with stampy embed" in text
    assert ("Tokens" in text) == (what != "image only")
    assert ("no maps" in text) == (what == "no coordinates")


def test_several_sections(report_of):
    adata = stampy.datasets.toy(n_spots=60, n_sections=2, image=False)
    adata.obs["leiden"] = adata.obs["domain"]
    page = report_of(adata, library_key="section")
    assert "From obs['leiden']." in page.text
    assert "sections" in page.text


def test_unknown_genes(toy, report_of):
    adata = toy[:, :60].copy()
    adata.var_names = [f"unknown{i}" for i in range(adata.n_vars)]
    adata.var = adata.var[[]]
    text = " ".join(report_of(adata).text)
    assert "0 of the section's 60 genes (0%)" in text
    assert "unknown" in text


def test_token_counts_are_those_of_the_tokens(toy, vocabulary, model):
    genes = _report._genes(toy, model, None)
    adata = toy.copy()
    stampy.pp.tokenize(adata, vocabulary)
    np.testing.assert_array_equal(genes.tokens, (adata.obsm["stamp_tokens"] > 0).sum(axis=1))
    assert genes.known == pytest.approx(1)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"target": "a.pdf"}, ValueError, "must end in .html"),
        ({"domains": "none"}, KeyError, "Key `none` not found in `adata.obs`"),
        ({"layer": "none"}, KeyError, "Key `none` not found in `adata.layers`"),
        ({"library_key": "none"}, KeyError, "Key `none` not found in `adata.obs`"),
        ({"n_genes": 0}, ValueError, "`n_genes` must be at least 1"),
        ({"source": "b.h5ad"}, FileNotFoundError, "b.h5ad"),
        ({"target": "taken.html"}, FileExistsError, "--overwrite"),
    ],
)
def test_errors_before_any_computation(toy, tmp_path, monkeypatch, options, error, words):
    monkeypatch.setattr(_report, "_contents", lambda *_: pytest.fail("it began to work"))
    toy.write_h5ad(tmp_path / "a.h5ad")
    (tmp_path / "taken.html").write_text("mine")
    options = {"source": "a.h5ad", "target": "a.html"} | options
    source, target = tmp_path / options.pop("source"), tmp_path / options.pop("target")
    with pytest.raises(error, match=re.escape(words)):
        _report.report(source, target, **options)
    assert (tmp_path / "taken.html").read_text() == "mine"
    assert not (tmp_path / "a.html").exists()


def test_verdict_of_an_adapted_embedding_in_context(report_of):
    """`--model stampy-mini` judged the unadapted model for single spots."""
    table = stampy.datasets.toy(n_spots=100, image=False)
    model = stampy.train.adapt("stampy-mini", table, strength=0.2, n_axes=8, context="neighbors")
    stampy.tl.embed(table, model, context="neighbors", show_progress_bar=False)
    scores = judge(table)["scores"]["score"]
    for options in ({}, {"model": "stampy-mini"}):
        text = " ".join(report_of(table, overwrite=True, **options).text)
        assert f"X_stamp {scores['X_stamp']:.3f}" in text
        assert f"tf-idf SVD, L2, smoothed {scores['tf-idf SVD, L2, smoothed']:.3f}" in text


def test_stored_verdict_about_another_embedding_or_more_spots_is_not_shown(report_of):
    table = stampy.datasets.toy(n_spots=100, image=False)
    stampy.tl.embed(table, modality="gene", show_progress_bar=False)
    stampy.tl.embed(table, "pca", key_added="X_other", show_progress_bar=False)
    stampy.tl.evaluate(table, "X_other", n_splits=1)
    assert "X_other is" not in " ".join(report_of(table, overwrite=True).text)
    stampy.tl.evaluate(table, n_splits=1)
    stored = table.uns["stamp_evaluate"]["verdict"]
    assert stored in " ".join(report_of(table, overwrite=True).text)
    assert stored not in " ".join(report_of(table[:60].copy(), overwrite=True).text)


@pytest.mark.parametrize("name", ["uni", "stamp", "scgpt-spatial"])
@pytest.mark.parametrize("model", [None, "stampy-mini"])
def test_a_section_does_not_choose_the_model_that_is_loaded(report_of, monkeypatch, name, model):
    """A known name in the record made the report look for weights on the hub."""
    table = stampy.datasets.toy(n_spots=60, image=False)
    stampy.tl.embed(table, modality="gene", show_progress_bar=False)
    table.uns["stamp"]["X_stamp"] |= {"model": name, "weights_digest": {}}
    monkeypatch.setattr("stampy.tl._evaluation.recompute.loaded_model", None)  # calling it would raise
    text = " ".join(report_of(table, overwrite=True, model=model).text)
    assert f"Not evaluated: {name!r} made the embedding. Name it by --model" in text


def test_a_verdict_that_is_not_fair_says_why_and_what_to_do(report_of):
    table = stampy.datasets.toy(n_spots=150, image=False)
    stampy.tl.embed(table, modality="gene", context="neighbors", show_progress_bar=False)
    text = " ".join(report_of(table[::2].copy(), overwrite=True).text)
    assert "none can be compared fairly" in text
    assert "it was made from 150 spots, of which this table has 75" in text
    assert "evaluate before you take a subset" in text


def test_verdict_is_stored_computed_or_declined(toy, embedded, report_of):
    page = report_of(embedded)
    assert any("Not evaluated: 'elsewhere' made the embedding" in text for text in page.text)
    assert "details" in page.tags  # the provenance is folded up
    judged = toy.copy()
    stampy.tl.embed(judged, modality="gene", show_progress_bar=False)
    text = " ".join(report_of(judged, overwrite=True).text)
    assert "correlation of predicted with measured genes" in text
    assert "position alone" in text
    stampy.tl.evaluate(judged, n_splits=1)
    assert judged.uns["stamp_evaluate"]["verdict"] in " ".join(report_of(judged, overwrite=True).text)
