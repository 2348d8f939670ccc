"""How good is a model? Its embeddings beside simple baselines, on sections that it was not trained on.

    python recipes/stampy-mini/evaluate.py [MODEL] [--out FILE.md]

Prints Markdown tables. The same protocol for every embedding: linear probe (balanced accuracy, five spatially blocked
folds), k-means at the number of labels (ARI, NMI, mean over three seeds), and image -> gene retrieval within a section.
The sections come from `stampy.datasets`; labels are used here only.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import numpy as np
import scanpy as sc
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import stampy
from stampy._labels import known_labels
from stampy.tl._clustering import find_domains, smoothed
from stampy.tl._folds import block_folds
from stampy.tl._probe import probe_predictions, probe_scores

LABELLED = {"DLPFC_151673": "layer", "DLPFC_151674": "layer", "HER2ST_A1": "label", "PDAC_A_human": "histology"}
PAIRED = ["HER2ST_A1", "HER2ST_A2"]
IMAGED = "hbc_blockA"
WITH_IMAGE = {"HER2ST_A1"}  # the images of the DLPFC sections have 600 px, too few for tiles


def log_counts(adata):
    """log(1 + counts per 10,000) of the 2,000 most variable genes."""
    adata = adata.copy()
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    if adata.n_vars > 2000:
        sc.pp.highly_variable_genes(adata, n_top_genes=2000)
        adata = adata[:, adata.var["highly_variable"]]
    return np.asarray(adata.X.todense())


def clusters(values, codes):
    """ARI and NMI of k-means at the number of labels, mean over three seeds."""
    found = [find_domains(values, len(np.unique(codes)), method="kmeans", rng=seed)[0] for seed in range(3)]
    return (
        np.mean([adjusted_rand_score(codes, f) for f in found]),
        np.mean([normalized_mutual_info_score(codes, f) for f in found]),
    )


def row(section, name, values, codes, xy):
    """One line of the table; the probe's score is that of all held-out predictions together."""
    folds = block_folds(xy)
    scores = probe_scores(codes, probe_predictions(values, codes, folds), folds)
    ari, nmi = clusters(values, codes)
    return f"| {section} | {name} | {scores['balanced_accuracy'].iloc[-1]:.3f} | {ari:.3f} | {nmi:.3f} |"


def labelled(model):
    """Linear probe and clustering on the labelled sections."""
    yield "| section | embedding | balanced accuracy | ARI | NMI |"
    yield "|---|---|---|---|---|"
    for name, key in LABELLED.items():
        adata = stampy.datasets.load(name)
        modality = "fused" if name in WITH_IMAGE else "gene"
        for title, context in (("X_stamp", None), ("X_context", "neighbors")):
            stampy.tl.embed(adata, model, modality=modality, context=context, key_added=title, show_progress_bar=False)
        pca = PCA(50, random_state=0).fit_transform(log_counts(adata))
        found = {"PCA": pca, "gene": adata.obsm["X_stamp_gene"]}
        if modality == "fused":
            found |= {
                "image": adata.obsm["X_stamp_image"],
                "fused": adata.obsm["X_stamp"],
                "mean colour": colours(adata),
            }
        xy = adata.obsm["spatial"].astype(float)
        found |= {"PCA, smoothed": smoothed(pca, xy), "gene, in context": adata.obsm["X_context_gene"]}
        if modality == "fused":
            found |= {"image, in context": adata.obsm["X_context_image"], "fused, in context": adata.obsm["X_context"]}
        codes, _ = known_labels(adata.obs[key])
        known = codes >= 0
        for title, values in found.items():
            yield row(name, title, values[known], codes[known], xy[known])


def colours(adata):
    """Mean and standard deviation of the three channels of each tile: what an image embedding must beat."""
    stampy.pp.tiles(adata, size_px=32, key_added="small")
    pixels = adata.obsm.pop("small").reshape(adata.n_obs, -1, 3) / 255.0
    return np.hstack([pixels.mean(axis=1), pixels.std(axis=1)])


def image_only(model):
    """A section with an image and labels, without counts."""
    adata = stampy.datasets.load(IMAGED)
    key = next(k for k in ("annot_type", "label") if k in adata.obs)
    stampy.tl.embed(adata, model, modality="image", show_progress_bar=False)
    (codes, _), xy = known_labels(adata.obs[key]), adata.obsm["spatial"].astype(float)
    known = codes >= 0
    found = {"image": adata.obsm["X_stamp_image"], "mean colour": colours(adata)}
    for title, values in (found | {f"{k}, in context": smoothed(v, xy) for k, v in found.items()}).items():
        yield row(IMAGED, title, values[known], codes[known], xy[known])


def retrieval(model):
    """Which spot's genes are nearest to a spot's image? Recall against chance."""
    yield "| section | spots | recall@1 | recall@5 | recall@10 | chance @10 |"
    yield "|---|---|---|---|---|---|"
    for name in PAIRED:
        adata = stampy.datasets.load(name)
        stampy.tl.embed(adata, model, modality="fused", show_progress_bar=False)
        scores = adata.obsm["X_stamp_image"] @ adata.obsm["X_stamp_gene"].T
        rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
        n = adata.n_obs
        yield f"| {name} | {n} | " + " | ".join(f"{(rank < k).mean():.3f}" for k in (1, 5, 10)) + f" | {10 / n:.3f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="stampy-mini")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # coarse images are known here
    model = stampy.models.load(arguments.model)
    lines = [*labelled(model), *image_only(model), "", *retrieval(model)]
    text = "\n".join(lines) + "\n"
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
