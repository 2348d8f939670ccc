"""Words that count as missing labels, in tools, plots and reports."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import stampy
from stampy import _keys, datasets, pl, tl
from stampy._labels import is_missing_label, known_labels


def test_words_that_count_as_missing():
    column = ["b", "NA", "nan", "undetermined", "", None, np.nan, "a", " "]
    with pytest.warns(stampy.StampyWarning, match=r"1 of 9 spots .*'undetermined' \(1\)"):
        codes, names = known_labels(column)
    assert names == ["a", "b"]
    assert codes.tolist() == [1, -1, -1, -1, -1, -1, -1, 0, -1]


def test_missing_values_need_no_warning():
    assert known_labels(["a", None, "", np.nan, "NA", "<NA>"])[0].tolist() == [0, -1, -1, -1, -1, -1]


@given(st.sampled_from(sorted(_keys.NO_LABELS - {""})), st.sampled_from([str.upper, str.title, str.lower]))
def test_case_and_space_do_not_matter(word, cased):
    assert is_missing_label(cased(word))
    assert is_missing_label(f" {cased(word)} ")
    assert known_labels(["a", cased(word), "b"], warn=False)[0].tolist() == [0, -1, 1]


@pytest.mark.parametrize("word", ["other", "background", "normal", "0", "-", "no", "none of these", "unknown 1"])
def test_valid_labels_are_kept(word):
    assert not is_missing_label(word)
    assert known_labels([word, "b"])[1] == sorted([word, "b"])


def test_labels_keep_the_order_of_their_categories_and_lose_the_empty_ones():
    codes, names = known_labels(pd.Categorical(["x", "a", None], ["x", "unused", "a", "NA"]))
    assert (codes.tolist(), names) == ([0, 1, -1], ["x", "a"])


def test_whole_numbers_are_labels_fractions_are_not():
    assert known_labels(np.array([2.0, 1.0, np.nan]))[1] == ["1", "2"]
    assert known_labels(np.array([True, False]))[1] == ["False", "True"]
    with pytest.raises(ValueError, match="fractions"):
        known_labels(np.array([0.5, 1.0]))
    with pytest.raises(ValueError, match="must contain labels, found inf"):
        known_labels(np.array([np.inf, 1.0]))


@pytest.mark.parametrize("word", ["Undetermined", "unknown", "n/a", "NONE"])
def test_probe_domains_and_pictures_agree(word):
    from matplotlib import pyplot as plt

    adata = datasets.toy(n_spots=80, image=False)
    adata.obsm["X_a"] = adata.X[:, :20].toarray()
    adata.obs["layer"] = adata.obs["domain"].astype(str)
    adata.obs.iloc[:9, adata.obs.columns.get_loc("layer")] = word
    with pytest.warns(stampy.StampyWarning, match="9 of 80 spots"):
        tl.probe(adata, "layer", use_rep="X_a")
    assert adata.uns["stamp"]["probe"]["n_unlabelled"] == 9
    assert word not in adata.uns["stamp"]["probe"]["classes"]
    with pytest.warns(stampy.StampyWarning, match="9 of 80 spots"):
        tl.domains(adata, 3, use_rep="X_a", method="kmeans", labels="layer")
    assert adata.uns["stamp"]["stamp_domain"]["scores"]["n_labelled"].tolist() == [71]
    ax = pl.spatial(adata, "layer")
    texts = [t.get_text() for t in ax.get_legend().get_texts()]
    plt.close("all")
    assert "NA" in texts
    assert word not in texts
