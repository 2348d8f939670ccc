"""Bias of random folds: a probe of cortical layers of DLPFC 151673 on random and on spatially blocked folds.

    python benchmarks/folds.py

Balanced accuracy of held-out predictions, mean and standard deviation over five draws of the folds. "position alone"
uses only the position of a spot, as 256 random waves over its coordinates.
"""

from __future__ import annotations

import numpy as np

import stampy
from stampy._labels import known_labels
from stampy.tl._embedding.context import smoothed
from stampy.tl._evaluation.folds import block_folds, random_folds
from stampy.tl._probe import probe_predictions, probe_scores

SECTION, LABELS = "DLPFC_151673", "layer"
SEEDS = 5


def principal_components(adata):
    import scanpy as sc

    adata = adata.copy()
    adata.X = adata.X.astype(np.float32)
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, n_top_genes=2000)
    sc.pp.pca(adata, n_comps=50, mask_var="highly_variable", random_state=0)
    return adata.obsm["X_pca"]


def waves(xy, n=128, rng=0):
    """Sine and cosine of random linear functions of position, with wavelengths of ten spots and more."""
    random = np.random.default_rng(rng)
    span = np.ptp(xy, axis=0).max()
    phase = xy / span @ random.normal(0, 8, (2, n))
    return np.hstack([np.sin(phase), np.cos(phase)]).astype(np.float32)


def embeddings():
    adata = stampy.datasets.load(SECTION)
    xy = adata.obsm["spatial"].astype(float)
    stampy.tl.embed(adata, modality="gene", show_progress_bar=False)
    pca = principal_components(adata)
    found = {"stampy-mini, genes": adata.obsm["X_stamp"], "PCA": pca}
    found |= {f"{name}, smoothed": smoothed(values, xy) for name, values in found.items()}
    return found | {"position alone": waves(xy)}, xy, *known_labels(adata.obs[LABELS])


def track_flattery():
    """Rows of the table: embedding, blocked folds, random folds (mean and standard deviation each), difference."""
    found, xy, codes, names = embeddings()
    known = codes >= 0
    for name, values in found.items():
        scores = []
        for seed in range(SEEDS):
            for folds in (block_folds(xy[known], rng=seed), random_folds(int(known.sum()), rng=seed)):
                predicted = probe_predictions(values[known], codes[known], folds)
                scores.append(probe_scores(codes[known], predicted, folds)["balanced_accuracy"].iloc[-1])
        blocked, at_random = np.reshape(scores, (SEEDS, 2)).T
        yield name, blocked, at_random
    yield "chance", np.array([1 / len(names)]), np.array([1 / len(names)])


def main():
    print("| embedding | blocked folds | random folds | random − blocked |")
    print("|---|---|---|---|")
    for name, blocked, at_random in track_flattery():
        cells = [f"{v.mean():.3f} ± {v.std():.3f}" if len(v) > 1 else f"{v[0]:.3f}" for v in (blocked, at_random)]
        gain = f"{(at_random - blocked).mean():+.3f} " if len(blocked) > 1 else ""
        print(f"| {name} | {cells[0]} | {cells[1]} | {gain}|", flush=True)


if __name__ == "__main__":
    main()
