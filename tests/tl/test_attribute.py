"""Attribution of an embedding, a cluster or a match to genes, and its plot."""

import sys

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import roc_auc_score

from stampy import models, pl, tl

QUIET = {"show_progress_bar": False, "device": "cpu"}
DOMAINS = ["D1", "D2", "D3", "D4"]
METHODS = ["leave_one_out", "integrated_gradients"]


def table(adata):
    return adata.uns["stamp"]["stamp_attribute"]["attribution"]


def needs(method):
    if method == "integrated_gradients":
        pytest.importorskip("captum")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("target", ["cluster", "match", "embedding"])
def test_planted_genes_rank_above_the_others(aligned, target, method):
    needs(method)
    model, adata = aligned
    out = tl.attribute(adata, target, groupby="domain", method=method, model=model, n_spots=10, copy=True, **QUIET)
    found = table(out)
    assert found.columns.tolist() == DOMAINS
    for domain in DOMAINS:
        planted = (adata.var["domain"] == domain)[found.index]
        assert roc_auc_score(planted, found[domain]) > 0.7, domain
        others = {d: roc_auc_score(planted, found[d]) for d in DOMAINS if d != domain}
        assert roc_auc_score(planted, found[domain]) > max(others.values())  # here, and not everywhere
        if target == "cluster":  # 4 % of the genes are planted in a domain; of the first 15 many are
            assert planted[found[domain].nlargest(15).index].sum() >= 6


def test_leaving_out_equals_embedding_without_the_counts(aligned):
    """The definition, by the long way: the gene's column set to zero."""
    model, adata = aligned
    rows = np.array([2, 40, 77])
    few = adata[rows].copy()
    assert ((few.X > 0).sum(axis=1) > 64).all()  # more genes than the model takes: the next one must come in
    genes = [adata.var_names[j] for j in np.argsort(-few.X.toarray().min(axis=0))[:3]] + ["COL1A1", "CD3E", "ALB"]
    tl.attribute(few, model=model, genes=genes, n_spots=None, per_spot=True, **QUIET)
    layer = few.layers["stamp_attribute"]
    for gene in genes:
        without = few.copy()
        x = without.X.tolil()
        x[:, without.var_names.get_loc(gene)] = 0
        without.X = x.tocsr()
        tl.embed(without, model, modality="gene", **QUIET)
        cosine = (without.obsm["X_stamp_gene"] * few.obsm["X_stamp_gene"]).sum(axis=1)
        found = layer[:, [few.var_names.get_loc(gene)]].toarray().ravel()
        np.testing.assert_allclose(found, 1 - cosine, atol=2e-6)
        assert table(few).loc[gene, "all"] == pytest.approx(found.mean(), abs=1e-6)


def test_gradients_add_up(aligned):
    pytest.importorskip("captum")
    import torch

    from stampy.models._gene import MASK_ID

    model, adata = aligned
    one = adata[[11]].copy()
    tl.attribute(one, model=model, method="integrated_gradients", n_steps=100, n_spots=None, **QUIET)
    with torch.inference_mode():
        ids = torch.full((1, 64), MASK_ID)
        masked = model.project_genes(model.gene.pooled(ids, torch.tensor([64])))[0].numpy()
    assert table(one)["all"].sum() == pytest.approx(1 - masked @ one.obsm["X_stamp_gene"][0], abs=0.02)


def test_results_are_stored_as_documented(aligned, tmp_path):
    model, adata = aligned
    adata = adata.copy()
    adata.obs["label"] = pd.Categorical(["a/b" if d == "D1" else "c" for d in adata.obs["domain"]])
    before = adata.X.copy()
    call = {"groupby": "label", "model": model, "n_spots": 3, "max_rank": 5, **QUIET}
    tl.attribute(adata, "cluster", per_spot=True, **call)
    record = adata.uns["stamp"]["stamp_attribute"]
    assert table(adata).columns.tolist() == ["a|b", "c"]
    layer = adata.layers["stamp_attribute"]
    assert sp.issparse(layer)
    assert layer.dtype == np.float32
    assert set(np.flatnonzero(np.diff(layer.indptr))) == set(adata.obs_names.get_indexer(record["spots"]))
    assert (np.diff(layer.indptr)[np.diff(layer.indptr) > 0] == 5).all()
    assert (before != adata.X).nnz == 0
    again = tl.attribute(adata, "cluster", batch_size=2, copy=True, **call)
    pd.testing.assert_frame_equal(table(again), table(adata), atol=1e-6)
    adata.write_h5ad(tmp_path / "x.h5ad")
    only = tl.attribute(adata, "cluster", groups=["c"], genes=["ENSG00000168542"], copy=True, **call)
    assert table(only).shape == (1, 1)
    assert table(only).index[0] == "COL3A1"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": "gene"}, "must be one of"),
        ({"target": "cluster"}, "needs `groupby`"),
        ({"groups": ["D1"]}, "without `groupby`"),
        ({"groupby": "domain", "groups": ["D9"]}, "must be one of"),
        ({"groupby": "section", "target": "cluster"}, "at least two labels"),
        ({"n_steps": 5}, "n_steps"),
        ({"max_rank": 5, "method": "integrated_gradients"}, "max_rank"),
        ({"n_spots": 0}, "at least 1"),
        ({"method": "shapley"}, "must be one of"),
        ({"genes": ["NOSUCHGENE"]}, "Only 0 of 1 genes"),
        ({"genes": ["COL1A1", "NOSUCHGENE"]}, "Omit them"),
    ],
)
def test_bad_arguments(aligned, arguments, message):
    if arguments.get("method") == "integrated_gradients":
        pytest.importorskip("captum")
    model, adata = aligned
    with pytest.raises(ValueError, match=message):
        tl.attribute(adata, model=model, **arguments, **QUIET)


def test_bad_input(aligned, vocabulary):
    model, adata = aligned
    with pytest.raises(KeyError, match="cluster"):
        tl.attribute(adata, groupby="cluster", model=model)
    holes = adata.copy()
    holes.obs.loc[holes.obs_names[:3], "domain"] = np.nan
    with pytest.raises(ValueError, match="missing for 3 of 120"):
        tl.attribute(holes, groupby="domain", model=model)
    other = adata.copy()
    other.obsm["X_stamp_gene"] = np.roll(other.obsm["X_stamp_gene"], 40, axis=0)
    with pytest.raises(ValueError, match="is not what the model 'aligned' gives"):
        tl.attribute(other, "cluster", groupby="domain", model=model, **QUIET)
    with pytest.raises(ValueError, match="made by the model 'aligned'"):
        tl.attribute(adata, "match")
    bare = adata.copy()
    del bare.obsm["X_stamp_image"]
    with pytest.raises(KeyError, match="X_stamp_image"):
        tl.attribute(bare, "match", model=model)
    alone = models.Stamp(models.StampConfig(gene=model.config.gene, embedding=12), vocabulary.frame)
    with pytest.raises(ValueError, match="no image encoder"):
        tl.attribute(adata, "match", model=alone)
    strange = adata.copy()
    strange.var_names = [f"x{i}" for i in range(strange.n_vars)]
    del strange.var["gene_ids"]
    with pytest.raises(ValueError, match="Only 0 of 800 genes"):
        tl.attribute(strange, model=model)


def test_without_captum(aligned, monkeypatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    model, adata = aligned
    with pytest.raises(ImportError, match=r"stampy-st\[attribute\]"):
        tl.attribute(adata, method="integrated_gradients", model=model)


# --- plot


def test_bars(aligned):
    import matplotlib.pyplot as plt

    model, adata = aligned
    adata = tl.attribute(adata, "cluster", groupby="domain", model=model, n_spots=2, copy=True, **QUIET)
    axes = pl.attribute(adata, n_genes=6)
    assert [ax.get_title() for ax in axes] == DOMAINS
    top = table(adata)["D2"].nlargest(6)
    assert [t.get_text() for t in axes[1].get_yticklabels()] == top.index.tolist()
    np.testing.assert_allclose([bar.get_width() for bar in axes[1].patches], top)
    assert axes[1].get_ylim()[0] > axes[1].get_ylim()[1]  # the highest on top
    ax = plt.figure().add_subplot()
    assert pl.attribute(adata, "D3", ax=ax) is ax
    with pytest.raises(ValueError, match="takes one panel"):
        pl.attribute(adata, ax=ax)
    with pytest.raises(ValueError, match="must be one of"):
        pl.attribute(adata, "D9")
    with pytest.raises(KeyError, match="Explain first"):
        pl.attribute(adata, key="other")
    plt.close("all")
