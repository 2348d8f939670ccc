"""Fit the gene encoder of stampy-mini in closed form.

    python recipes/stampy-mini/fit.py FOLDER --profiles cell_profile_library.h5ad --out MODEL [--image MODEL]

FOLDER is that of `prepare.py`. The weight of a gene in a spot is (gate of its rank) x (level of the gene). The axes are
the leading eigenvectors of a sum of three covariances: between spots and their neighbours, between the cell types of a
tissue, and between simulated mixtures of cell types. The head is the principal components of all training spots along
these axes. Each gene is one token. It takes one or two minutes on a CPU core; the same seed gives the same weights.

With `--image`, the image encoder of that model is kept, and its head is rotated into the new gene space by the
orthogonal map from the old to the new gene embeddings of the training spots.

The weights of the covariances were chosen by `choose.py`.

Shapes: n spots, G genes, K axes, p profiles, m columns of a factor.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import linalg, sparse

import stampy
from stampy import _keys, models, pp
from stampy.models._linear_gene import TABLE_STD
from stampy.pp._genes.means import gene_means
from stampy.pp._genes.names import human_genes
from stampy.pp._linear_encoder import SpotGenes, leading_axes, neighbor_graph, weighted_genes
from stampy.pp._rank_tokens import rank_tokens
from stampy.train._spectral_start import anomaly_of_rank

N_GENES = 20_000
N_AXES = 128
MAX_TOKENS = 1024
CELLS, MIXTURES = 0.15, 0.15  # variance of cell types and of their mixtures, relative to that of the spots
K_PATIENT = 96  # axes kept of a patient's covariance
N_MIXTURES = 8  # per tissue
N_DRAWS = 6  # of molecules, per profile
DEPTH, DEPTH_SPREAD = 3000.0, 0.5  # molecules of a simulated spot: median, and standard deviation of the logarithm
SEED = 0


class Section(NamedTuple):
    """An opened training section: counts (n, genes), rows of its genes in the vocabulary, coordinates (n, 2)."""

    name: str
    counts: sparse.csr_matrix
    rows: np.ndarray
    xy: np.ndarray


class Weighing(NamedTuple):
    """The vocabulary, and the weights of ranks (L,) and genes (G,)."""

    vocabulary: pp.Vocabulary
    gate: np.ndarray
    level: np.ndarray

    def __call__(self, counts, rows):
        """Weighted genes (n, G) of counts."""
        tokens = rank_tokens(counts, rows, self.vocabulary.divisors, len(self.gate))
        return weighted_genes(tokens, self.gate, self.level)


def weighing(paths):
    """One token per gene: the 20,000 genes in most spots among those with an approved HGNC symbol and an Ensembl id."""
    human, means = human_genes(), gene_means(paths)
    means = means[means["gene_id"].isin(human.of_id) & (means["n_spots"] > 0)]
    means = means.sort_values(["n_spots", "gene_id"], ascending=[False, True]).head(N_GENES).sort_values("gene_id")
    symbols = [human.symbols[human.of_id[gene]] for gene in means["gene_id"]]
    vocabulary = pp.Vocabulary(means.assign(symbol=symbols)[["gene_id", "symbol", "divisor"]])
    return Weighing(vocabulary, np.log1p(anomaly_of_rank(MAX_TOKENS)), np.log1p(vocabulary.divisors))


def opened(folder, manifest, weigh):
    """Sections of a manifest."""
    for path, name in zip(manifest["path"], manifest["name"], strict=True):
        section = ad.read_h5ad(folder / path)
        rows = weigh.vocabulary.match(section).rows
        yield Section(name, sparse.csr_matrix(section.X), rows, np.asarray(section.obsm["spatial"], dtype=float))


def patients(names):
    """Patient of each section."""
    names = pd.Series(names)
    return names.str.extract(r"^(HER2ST_.|BC_ST)", expand=False).fillna(names).to_numpy()


def of_patient(genes, places):
    """Factor (G, m) of a patient's covariance between spots and neighbours, over all spots of its sections.

    Compact pieces instead of all spots would lose the structure of the cortex, since a piece contains few layers.
    """
    parts = [SpotGenes(x, neighbor_graph(xy)) for x, xy in zip(genes, places, strict=True)]
    axes = leading_axes(parts, K_PATIENT, np.random.default_rng(SEED))
    seen = sum(np.einsum("gk,gk->k", axes, part.agreement(axes, 0.0)) for part in parts)
    return (axes * np.sqrt(np.clip(seen, 0, None))).astype(np.float32)


def drawn(expected, rows, weigh, rng):
    """Weighted genes (p, G) of spots simulated from expected counts (p, genes): mean over `N_DRAWS`, centred."""
    depth = rng.lognormal(np.log(DEPTH), DEPTH_SPREAD, len(expected))
    expected = expected / expected.sum(axis=1, keepdims=True) * depth[:, None]
    draws = (weigh(sparse.csr_matrix(rng.poisson(expected).astype(np.float32)), rows) for _ in range(N_DRAWS))
    values = (sum(draws) / N_DRAWS).toarray()
    return values - values.mean(axis=0)


def profiles(path, weigh, rng):
    """Cell types and their mixtures, (p, G) each, centred by tissue and study; and the tissue of each row."""
    table = ad.read_h5ad(path)
    rows = weigh.vocabulary.match(table).rows
    tissue = table.obs[["tissue", "study", "group"]].astype(str).agg("|".join, axis=1)
    cells, mixtures, of_cells, of_mixtures = [], [], [], []
    for name, mine in tissue.groupby(tissue, sort=False).groups.items():
        expected = table[mine].X.toarray().astype(np.float64)
        cells.append(drawn(expected, rows, weigh, rng))
        shares = rng.dirichlet(np.full(len(expected), 0.25), N_MIXTURES)
        mixtures.append(drawn(shares @ expected, rows, weigh, rng))
        of_cells += [name.partition("|")[0]] * len(expected)
        of_mixtures += [name.partition("|")[0]] * N_MIXTURES
    cells, mixtures = (np.vstack(x).astype(np.float32) for x in (cells, mixtures))
    return cells, mixtures, np.array(of_cells), np.array(of_mixtures)


def axes_of(spots, cells, mixtures, k):
    """The `k` leading axes (G, K) of the sum of all covariances, each given by a factor (G, m)."""
    total = np.square(spots).sum()
    factors = [spots] + [
        x.T * np.float32(np.sqrt(share * total / np.square(x).sum()))
        for share, x in ((CELLS, cells), (MIXTURES, mixtures))
    ]
    joint = np.hstack(factors)
    values, vectors = linalg.eigh(joint.T @ joint, subset_by_index=[joint.shape[1] - k, joint.shape[1] - 1])
    return (joint @ (vectors[:, ::-1] / np.sqrt(values[::-1]))).astype(np.float32)


def head_of(features):
    """Principal components (K, K) of features (n, K), scaled by the square root of their standard deviation; the mean.

    Without scaling, few components dominate; after whitening, noise counts as much as signal.
    """
    centre = features.mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov((features - centre).T))
    return vectors[:, ::-1].T / values[::-1, None] ** 0.25, centre


def model_of(weigh, axes_GK, features):
    """A `Stamp` whose gene embedding is `head_of` the features (n, K) of the training spots."""
    k = axes_GK.shape[1]
    gene = models.GeneConfig(
        n_genes=len(weigh.vocabulary), width=k, depth=2, heads=4, feedforward=2 * k, max_tokens=MAX_TOKENS,
        pooling="bag", tied_heads=True, norm="pre", rank_gate=True,
    )  # fmt: skip
    torch.manual_seed(SEED)  # for the layers, which do not affect the embedding
    model = models.Stamp(models.StampConfig(gene=gene, embedding=k), weigh.vocabulary.frame)
    table_GK = weigh.level[:, None] * axes_GK
    scale, mean = TABLE_STD / table_GK.std(), weigh.gate.mean()
    head, centre = head_of(features.astype(np.float64) * scale / mean / MAX_TOKENS)  # as returned by the encoder
    with torch.no_grad():
        rows = slice(_keys.N_SPECIAL, _keys.N_SPECIAL + len(table_GK))
        model.gene.embeddings.weight.zero_()[rows] = torch.from_numpy(table_GK * scale)
        model.gene.positional_embedding.weight.zero_()
        model.gene.rank_gate.copy_(torch.from_numpy(weigh.gate / mean)[:, None].expand_as(model.gene.rank_gate))
        for last in model.gene.residual_outputs():  # untrained layers add nothing
            last.weight.zero_()
            last.bias.zero_()
        model.gene_head.weight.copy_(torch.from_numpy(head.copy()))
        model.gene_head.bias.copy_(torch.from_numpy(-head @ centre))
    return model.eval()


def with_image(model, other, folder, manifest):
    """The model with the image encoder of another, whose head is rotated into this model's gene space."""
    both = []
    for one in (other, model):
        sections = (ad.read_h5ad(folder / path) for path in manifest["path"])
        found = (
            stampy.tl.embed(s, one, modality="gene", key_added="X", copy=True, show_progress_bar=False).obsm["X"]
            for s in sections
        )
        both.append(np.vstack(list(found)).astype(np.float64))
    turn, _ = linalg.orthogonal_procrustes(*both)
    whole = models.Stamp(models.StampConfig(gene=model.config.gene, image=other.config.image,
                                            embedding=model.config.embedding), model.genes)  # fmt: skip
    whole.load_state_dict(other.state_dict() | model.state_dict())
    with torch.no_grad():
        turn = torch.from_numpy(turn.T.astype(np.float32))
        for head in (whole.patch_head, whole.region_head):  # heads that are compared with genes
            head.weight.copy_(turn @ head.weight)
            head.bias.copy_(turn @ head.bias)
    return whole.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--image", help="model whose image encoder is kept")
    arguments = parser.parse_args()
    folder = arguments.folder
    manifest = pd.read_csv(folder / "pretrain.tsv", sep="\t")
    weigh = weighing(folder / path for path in manifest["path"])
    sections = list(opened(folder, manifest, weigh))
    genes, who = [weigh(s.counts, s.rows) for s in sections], patients(manifest["name"])
    spots = np.hstack(
        [
            of_patient([genes[i] for i in mine], [sections[i].xy for i in mine])
            for mine in (np.flatnonzero(who == patient) for patient in pd.unique(who))
        ]
    )
    print(f"{sum(len(s.xy) for s in sections)} spots of {len(sections)} sections", flush=True)
    cells, mixtures, *_ = profiles(arguments.profiles, weigh, np.random.default_rng(SEED))
    print(f"{len(cells)} cell types, {len(mixtures)} mixtures", flush=True)
    axes_GK = axes_of(spots, cells, mixtures, N_AXES)
    model = model_of(weigh, axes_GK, np.vstack([x @ axes_GK for x in genes]))
    if arguments.image:
        model = with_image(model, models.load(arguments.image, device="cpu"), folder, manifest)
    models.save(model, arguments.out)


if __name__ == "__main__":
    main()
