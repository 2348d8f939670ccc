"""A GraphST-like baseline: a graph autoencoder with a contrastive loss, trained on one section.

    python recipes/stampy-mini/graphst.py [--final] [--sections NAME ...] [--seeds 3] [--out FILE.md]

Written from the paper (Long et al., Nat Commun 2023, doi:10.1038/s41467-023-36796-3) and with the defaults of its
package: 3,000 variable genes (log-normalised, scaled), a graph of the three nearest spots, one graph convolution to 64
columns and one back, reconstruction (weight 10) and contrast between a spot's neighbourhood and spots with permuted
genes, 600 epochs of Adam at 0.001. The embedding is 20 principal components of the reconstruction. Two things differ:
variable genes are those of `stampy.pp`, and domains are found by k-means as for all other embeddings (GraphST uses
mclust and an optional refinement).

Prints probe and ARI as `agree.py` does, also of the BANKSY-like baseline of `evaluate.py`: for HER2+ patients B, C, D,
F and G, or with `--final` for the held-out sections.

Shapes: n spots, G genes, D hidden columns.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import PCA
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss, normalize

sys.path.insert(0, str(Path(__file__).parent))
from agree import CHOOSE, FINAL, by_labels
from evaluate import baselines, log_counts

import stampy
from stampy._labels import known_labels
from stampy._section.neighbors import nearest
from stampy.pp._thinning import overdispersed_genes

N_GENES, NEIGHBORS, WIDTH, EPOCHS, RATE = 3000, 3, 64, 600, 1e-3
RECONSTRUCTION, CONTRAST = 10.0, 1.0  # weights of the losses


def features(counts):
    """(n, G) log counts per 10,000 of the most variable genes, each divided by its deviation, at most 10."""
    x = counts.astype(np.float64)
    logged = (sparse.diags(1e4 / np.maximum(np.asarray(x.sum(axis=1)).ravel(), 1)) @ x).log1p()
    dense = logged[:, overdispersed_genes(counts, N_GENES)].toarray()
    return np.minimum(dense / np.maximum(dense.std(axis=0, ddof=1), 1e-12), 10).astype(np.float32)


def graphs(xy):
    """Smoothing (n, n) over the symmetric graph, normalised, plus the spot; and means over a spot and its nearest."""
    n = len(xy)
    near = nearest(xy, NEIGHBORS)[1]
    one_way = sparse.csr_matrix((np.ones(near.size), (np.repeat(np.arange(n), NEIGHBORS), near.ravel())), (n, n))
    both = one_way.maximum(one_way.T)
    scale = sparse.diags(1 / np.sqrt(np.asarray(both.sum(axis=1)).ravel()))
    return tensor(scale @ both @ scale + sparse.eye(n)), tensor((one_way + sparse.eye(n)) / (NEIGHBORS + 1))


def tensor(matrix):
    matrix = sparse.csr_matrix(matrix, dtype=np.float32)
    parts = (torch.from_numpy(x) for x in (matrix.indptr, matrix.indices, matrix.data))
    return torch.sparse_csr_tensor(*parts, size=matrix.shape)


class GraphAutoencoder(nn.Module):
    """One graph convolution each way, and a bilinear score of a spot and a neighbourhood."""

    def __init__(self, n_genes):
        super().__init__()
        self.encode, self.decode = nn.Parameter(torch.empty(n_genes, WIDTH)), nn.Parameter(torch.empty(WIDTH, n_genes))
        self.match = nn.Bilinear(WIDTH, WIDTH, 1)
        for weight in (self.encode, self.decode, self.match.weight):
            nn.init.xavier_uniform_(weight)
        nn.init.zeros_(self.match.bias)

    def hidden(self, projected, smooth):
        return smooth @ projected

    def loss(self, x, smooth, around):
        projected = x @ self.encode
        true, false = (smooth @ p for p in (projected, projected[torch.randperm(len(x))]))
        rebuilt = (smooth @ true) @ self.decode
        spots = true.relu(), false.relu()
        contrast = torch.zeros(())
        for own, other in (spots, spots[::-1]):
            place = torch.sigmoid(normalize(around @ own, dim=1))
            scores = torch.cat([self.match(spot, place) for spot in (own, other)], dim=1)
            truth = torch.tensor([1.0, 0.0]).expand_as(scores)
            contrast = contrast + binary_cross_entropy_with_logits(scores, truth)
        return RECONSTRUCTION * mse_loss(rebuilt, x) + CONTRAST * contrast


def graphst_like(counts, xy, seed=0):
    """The embedding (n, 20) of a section."""
    torch.manual_seed(seed)
    x = torch.from_numpy(features(sparse.csr_matrix(counts)))
    smooth, around = graphs(xy)
    model = GraphAutoencoder(x.shape[1])
    adam = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(EPOCHS):
        adam.zero_grad()
        model.loss(x, smooth, around).backward()
        adam.step()
    with torch.inference_mode():
        rebuilt = smooth @ (smooth @ (x @ model.encode)) @ model.decode
    return PCA(20, random_state=seed).fit_transform(rebuilt.numpy())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--final", action="store_true")
    parser.add_argument("--sections", nargs="*")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    lines = ["| section | embedding | probe | ARI | CPU seconds |", "|---|---|---|---|---|"]
    for name, key in (FINAL if arguments.final else CHOOSE).items():
        if arguments.sections and name not in arguments.sections:
            continue
        adata = stampy.datasets.load(name)
        codes, _ = known_labels(adata.obs[key], warn=False)
        known, xy, start = codes >= 0, adata.obsm["spatial"].astype(float), time.process_time()
        embedded = [graphst_like(adata.X, xy, seed) for seed in range(arguments.seeds)]
        seconds = f"{(time.process_time() - start) / arguments.seeds:.0f}"
        pca = PCA(50, random_state=0).fit_transform(log_counts(adata))
        rows = {"GraphST-like": embedded, "BANKSY-like": [baselines(adata, pca, xy)["BANKSY-like"]]}
        for title, values in rows.items():
            found = [by_labels(x[known], codes[known], xy[known]) for x in values]
            pairs = zip(np.mean(found, axis=0), np.std(found, axis=0), strict=True)
            scores = " | ".join(f"{a:.3f} ± {b:.3f}" if len(found) > 1 else f"{a:.3f}" for a, b in pairs)
            lines.append(f"| {name} | {title} | {scores} | {seconds if values is embedded else ''} |")
            print(lines[-1], flush=True)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
