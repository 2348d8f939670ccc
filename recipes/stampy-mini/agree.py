"""Agreement of the label-free score with labels, and the gain from adaptation.

    python recipes/stampy-mini/agree.py [--final] [--labels] [--sections NAME ...] [--embeddings NAME ...] [--out F.md]

For every labelled section and embedding: the score of `stampy.tl.evaluate`, the linear probe (balanced accuracy, five
spatially blocked folds) and k-means with the number of labels (ARI, mean of three seeds); then the rank correlation of
the score with both, within sections. Without `--final`, uses the sections on which settings may be chosen (HER2+
patients B, C, D, F and G); with it, the sections that are evaluated once, at the end. With `--labels`,
only probe and ARI, which takes a third of the time. Labels are used only here.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import spearmanr
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

import stampy
from stampy._files import digest_of_arrays
from stampy._labels import known_labels
from stampy._section.neighbors import graph
from stampy.tl._embedding.context import smoothed
from stampy.tl._embedding.spaces import unit
from stampy.tl._evaluation.folds import block_folds
from stampy.tl._evaluation.label_free import _tfidf
from stampy.tl._methods.clustering import find_domains
from stampy.tl._probe import probe_predictions, probe_scores

CHOOSE = {f"HER2ST_{name}": "label" for name in ("B1", "C1", "D1", "F1", "G2")}
FINAL = {"DLPFC_151673": "layer", "DLPFC_151674": "layer", "HER2ST_A1": "label", "PDAC_A_human": "histology"}
QUIET = {"show_progress_bar": False, "modality": "gene"}
NEIGHBORS = 6
MEASURES = ("score", "own", "neighbors", "coherence", "domains", "score x domains", "depth_r2", "stability")


def embeddings(model):
    """Embedding functions of a table by name; shared intermediate results are cached by counts."""
    cache = {}

    def kept(table, key, make):
        place = key, digest_of_arrays(table.X.data)  # `tl.evaluate` passes another table to each function
        if place not in cache:
            cache[place] = make(table)
        return cache[place]

    def by_model(**options):
        def make(table):
            return stampy.tl.embed(table, model, key_added="X", copy=True, **QUIET, **options).obsm["X"]

        return make

    plain = {
        "packaged": by_model(),
        "adapted": by_model(adapt=True),
        "PCA": lambda t: stampy.tl.embed(t, "pca", key_added="X", copy=True, **QUIET).obsm["X"],
        "tf-idf SVD": lambda t: _tfidf(t.X),
    }
    found = {}
    for name, make in plain.items():
        found[name] = lambda t, n=name, m=make: kept(t, n, m)
        found[f"{name}, L2, in context"] = lambda t, n=name, m=make: in_context(unit(kept(t, n, m)), t)
    found["adapted, L2, in context"] = by_model(adapt=True, context="neighbors")  # chosen for this use
    return found


def in_context(values, table):
    """Mean over a spot and its six nearest neighbours, with unit L2 norm."""
    return unit(smoothed(values, np.asarray(table.obsm["spatial"], dtype=float), NEIGHBORS))


def by_labels(values, codes, xy):
    """Balanced accuracy of the probe, and ARI of k-means."""
    folds = block_folds(xy)
    scores = probe_scores(codes, probe_predictions(values, codes, folds), folds)
    found = [find_domains(values, len(np.unique(codes)), method="kmeans", rng=seed)[0] for seed in range(3)]
    return scores["balanced_accuracy"].iloc[-1], np.mean([adjusted_rand_score(codes, f) for f in found])


def coherence_of_domains(values, xy):
    """Fraction of a spot's six nearest in its own domain, relative to chance: mean over 4, 6 and 8 domains."""
    near, found = graph(xy, NEIGHBORS, np.zeros(len(xy), dtype=int)).tocoo(), []
    for k in (4, 6, 8):
        domain = KMeans(k, n_init=3, random_state=0).fit_predict(values)
        by_chance = np.square(np.bincount(domain) / len(domain)).sum()
        found.append((domain[near.row] == domain[near.col]).mean() - by_chance)
    return np.mean(found)


def rows_of(name, key, model, wanted=None, labels=False):
    """One row per embedding of a section."""
    adata = stampy.datasets.load(name)
    functions = {title: make for title, make in embeddings(model).items() if not wanted or title in wanted}
    if not labels:
        named = {f"judged {title}": make for title, make in functions.items()}  # "PCA" is also a baseline's name
        stampy.tl.evaluate(adata, named, n_splits=1)
        scores = adata.uns["stamp_evaluate"]["scores"]
    codes, _ = known_labels(adata.obs[key], warn=False)
    known, xy = codes >= 0, adata.obsm["spatial"].astype(float)
    for title, function in functions.items():
        values = np.asarray(function(adata))
        probe, ari = by_labels(values[known], codes[known], xy[known])
        row = {"section": name, "embedding": title, "probe": probe, "ARI": ari}
        if labels:
            yield row
            continue
        measured = scores.loc[
            f"judged {title}", ["score", "own", "neighbors", "coherence", "depth_r2", "stability"]
        ].astype(float)
        domains = coherence_of_domains(values, xy)
        measured = {**measured, "domains": domains, "score x domains": measured["score"] * domains}
        yield {**row, **measured}


def text_of(table):
    """Both tables, in Markdown."""
    shown = [c for c in ("probe", "ARI", "score", "own", "neighbors", "depth_r2") if c in table]
    lines = ["| section | embedding | " + " | ".join(shown) + " |", "|---" * (len(shown) + 2) + "|"]
    for _, row in table.iterrows():
        lines.append(f"| {row['section']} | {row['embedding']} | " + " | ".join(f"{row[k]:.3f}" for k in shown) + " |")
    if "score" not in table:
        return "\n".join(lines) + "\n"
    lines += ["", "| measure | rank correlation with probe | with ARI |", "|---|---|---|"]
    for measure in MEASURES:
        found = [
            [spearmanr(part[measure], part[by])[0] for by in ("probe", "ARI")] for _, part in table.groupby("section")
        ]
        mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
        lines.append(f"| {measure} | {mean[0]:.2f} ± {spread[0]:.2f} | {mean[1]:.2f} ± {spread[1]:.2f} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="*")
    parser.add_argument("--embeddings", nargs="*")
    parser.add_argument("--labels", action="store_true")
    parser.add_argument("--final", action="store_true")
    parser.add_argument("--model", default="stampy-mini")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    model, rows = stampy.models.load(arguments.model), []
    for name, key in (FINAL if arguments.final else CHOOSE).items():
        if not arguments.sections or name in arguments.sections:
            rows += rows_of(name, key, model, arguments.embeddings, arguments.labels)
            print(f"{name}: done", flush=True)
    text = text_of(pd.DataFrame(rows))
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
