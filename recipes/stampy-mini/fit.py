"""Another gene tower for stampy-mini, in closed form. It is NOT the packaged one: the card says why.

    python recipes/stampy-mini/fit.py FOLDER --profiles cell_profile_library.h5ad --out MODEL

FOLDER is that of `prepare.py`. A gene of a spot weighs (gate of its rank) x (level of the gene). The axes are the
leading eigenvectors of four covariances together: between spots and their neighbours, between the two halves of a
spot's molecules (both free of chance), between cell types of a tissue, and between mixtures of them. The head is the
principal components of all training spots along these axes, with the noise of thinning added, so that it weighs less.
One gene is one token. Under a minute on one CPU core; the same seed gives the same weights.

Shapes: n spots, G genes, K axes, p profiles.
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

from stampy import _keys, models, pp
from stampy.models._linear_gene import TABLE_STD
from stampy.pp._genes.means import gene_means
from stampy.pp._genes.names import human_genes
from stampy.pp._linear_encoder import neighbor_graph, weighted_genes
from stampy.pp._rank_tokens import rank_tokens
from stampy.pp._thinning import halves
from stampy.train._spectral_start import anomaly_of_rank

N_GENES = 20_000
N_AXES = 128
MAX_TOKENS = 1024
CELLS, MIXTURES = 0.25, 0.25  # variance of cell types and of their mixtures, as a share of that of the spots
N_MIXTURES = 8  # a tissue
N_DRAWS = 6  # of molecules, for each profile
DEPTH, DEPTH_SPREAD = 3000.0, 0.5  # molecules of a drawn spot: median, and deviation of its logarithm
N_NEIGHBORHOOD, K_NEIGHBORHOOD = 900, 64  # of a patient: spots, and axes that are kept, of spots and neighbours
N_HALVES, K_HALVES = 500, 48  # of both halves
NOISE = 3.0  # of halves, beside the variance of features, by which the head divides
SEED = 0


class Spots(NamedTuple):
    """A section: both halves of its molecules as weighted genes (n, G), all of them, and coordinates."""

    a: sparse.csr_matrix
    b: sparse.csr_matrix
    all: sparse.csr_matrix
    xy: np.ndarray


def approved(means):
    """One gene one token: the 20,000 genes in most spots among those that HGNC approves with an Ensembl id."""
    human = human_genes()
    means = means[means["gene_id"].isin(human.of_id)]
    means = means.sort_values(["n_spots", "gene_id"], ascending=[False, True]).head(N_GENES).sort_values("gene_id")
    symbols = [human.symbols[human.of_id[gene]] for gene in means["gene_id"]]
    return pp.Vocabulary(means.assign(symbol=symbols)[["gene_id", "symbol", "divisor"]])


def spots_of(paths, vocabulary, weigh, rng):
    """The sections, one by one."""
    for path in paths:
        section = ad.read_h5ad(path)
        rows, counts = vocabulary.match(section).rows, sparse.csr_matrix(section.X)
        a, b = (weigh(half, rows) for half in halves(counts, rng))
        yield Spots(a, b, weigh(counts, rows), np.asarray(section.obsm["spatial"], dtype=float))


def pieces(sections, most):
    """Rows of a compact piece of each section, `most` spots together."""
    n = sum(len(s.xy) for s in sections)
    for section in sections:
        k = min(len(section.xy), max(60, int(most * len(section.xy) / n)))
        distance = np.linalg.norm(section.xy - np.median(section.xy, axis=0), axis=1)
        yield section, np.sort(np.argsort(distance, kind="stable")[:k])


def of_patient(sections):
    """The factors (G, k) of two covariances of a patient: between spots and their neighbours, and between halves."""
    n = sum(len(s.xy) for s in sections)
    near = list(pieces(sections, N_NEIGHBORHOOD))
    genes = sparse.vstack([s.all[rows] for s, rows in near], format="csr")
    graph = sparse.block_diag([neighbor_graph(s.xy[rows]) for s, rows in near], format="csr")
    around = factor(genes, (graph + graph.T) / 2, K_NEIGHBORHOOD) * np.sqrt(n / genes.power(2).sum())
    parts = list(pieces(sections, N_HALVES))
    a, b = (sparse.vstack([x(s)[rows] for s, rows in parts], format="csr") for x in (lambda s: s.a, lambda s: s.b))
    one = sparse.identity(a.shape[0], format="csr")
    swapped = sparse.block_array([[None, one], [one, None]], format="csr") / 2
    between = factor(sparse.vstack([a, b], format="csr"), swapped, K_HALVES) * np.sqrt(n / a.power(2).sum())
    return np.hstack([around, between]).astype(np.float32)


def factor(genes, pairs, k):
    """Leading eigenvectors (G, k) of genes' x pairs x genes, each as long as the root of its eigenvalue.

    Genes (n, G) are centred, `pairs` (n, n) is symmetric. Solved among spots, which are fewer than genes.
    """
    mean = np.asarray(genes.mean(axis=0)).ravel()
    along = np.asarray(genes @ mean).ravel()
    values, vectors = linalg.eigh((genes @ genes.T).toarray() - along[:, None] - along + mean @ mean)
    known = values > 1e-5 * values.max()
    values, vectors = values[known], vectors[:, known]
    half = vectors * np.sqrt(values)
    found, turn = np.linalg.eigh(half.T @ (pairs @ half))
    order = np.argsort(-found)[:k]
    order = order[found[order] > 0]
    weights = (vectors / np.sqrt(values)) @ turn[:, order]
    return (genes.T @ (weights - weights.mean(axis=0))) * np.sqrt(found[order])


def drawn(expected, rows, weigh, rng):
    """Weighted genes (p, G) of spots drawn from expected counts (p, genes): mean over `N_DRAWS`, tissue centred."""
    depth = rng.lognormal(np.log(DEPTH), DEPTH_SPREAD, len(expected))
    expected = expected / expected.sum(axis=1, keepdims=True) * depth[:, None]
    draws = (weigh(sparse.csr_matrix(rng.poisson(expected).astype(np.float32)), rows) for _ in range(N_DRAWS))
    values = (sum(draws) / N_DRAWS).toarray()
    return values - values.mean(axis=0)


def profiles(path, vocabulary, weigh, rng):
    """Cell types and mixtures of them, (p, G) each, every tissue of a study centred."""
    table = ad.read_h5ad(path)
    rows = vocabulary.match(table).rows
    tissue = table.obs[["tissue", "study", "group"]].astype(str).agg("|".join, axis=1)
    cells, mixtures = [], []
    for mine in tissue.groupby(tissue, sort=False).groups.values():
        expected = table[mine].X.toarray().astype(np.float64)
        cells.append(drawn(expected, rows, weigh, rng))
        shares = rng.dirichlet(np.full(len(expected), 0.25), N_MIXTURES)
        mixtures.append(drawn(shares @ expected, rows, weigh, rng))
    return np.vstack(cells).astype(np.float32), np.vstack(mixtures).astype(np.float32)


def axes_of(spots, cells, mixtures, k):
    """The `k` leading axes (G, K) of the sum of all covariances; each is given by its factor (G, m)."""
    total = np.square(spots).sum()
    factors = [spots] + [
        x.T * np.float32(np.sqrt(share * total / np.square(x).sum()))
        for share, x in ((CELLS, cells), (MIXTURES, mixtures))
    ]
    joint = np.hstack(factors)
    values, vectors = linalg.eigh(joint.T @ joint, subset_by_index=[joint.shape[1] - k, joint.shape[1] - 1])
    return (joint @ (vectors[:, ::-1] / np.sqrt(values[::-1]))).astype(np.float32)


def model_of(vocabulary, gate_L, level_G, axes_GK, sections):
    """A `Stamp` whose gene embedding is the principal components of the training spots' features (n, K)."""
    k = axes_GK.shape[1]
    gene = models.GeneConfig(
        n_genes=len(vocabulary), width=k, depth=1, heads=4, feedforward=k, max_tokens=MAX_TOKENS, pooling="bag",
        tied_heads=True, norm="pre", rank_gate=True,
    )  # fmt: skip
    torch.manual_seed(SEED)  # of the layers, which have no part in the embedding
    model = models.Stamp(models.StampConfig(gene=gene, embedding=k), vocabulary.frame)
    table_GK = level_G[:, None] * axes_GK
    scale = TABLE_STD / table_GK.std()
    gate_L = gate_L / (mean := gate_L.mean())
    back = scale / mean / MAX_TOKENS  # features as the tower gives them
    features = np.vstack([s.all @ axes_GK for s in sections]).astype(np.float64) * back
    noise = sum(np.cov(((s.a - s.b) @ axes_GK).T * back) for s in sections)
    centre = features.mean(axis=0)
    spread = np.cov((features - centre).T)
    values, vectors = np.linalg.eigh(spread + NOISE * np.trace(spread) / np.trace(noise) * noise)
    head = vectors[:, ::-1].T / values[::-1, None] ** 0.25  # between leaving components alone and whitening them
    with torch.no_grad():
        rows = slice(_keys.N_SPECIAL, _keys.N_SPECIAL + len(table_GK))
        model.gene.embeddings.weight.zero_()[rows] = torch.from_numpy(table_GK * scale)
        model.gene.positional_embedding.weight.zero_()
        model.gene.rank_gate.copy_(torch.from_numpy(gate_L)[:, None].expand_as(model.gene.rank_gate))
        model.gene_head.weight.copy_(torch.from_numpy(head.copy()))
        model.gene_head.bias.copy_(torch.from_numpy(-head @ centre))
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    folder, rng = arguments.folder, np.random.default_rng(SEED)
    manifest = pd.read_csv(folder / "pretrain.tsv", sep="\t")
    vocabulary = approved(gene_means(folder / path for path in manifest["path"]))
    gate_L, level_G = np.log1p(anomaly_of_rank(MAX_TOKENS)), np.log1p(vocabulary.divisors)

    def weigh(counts, rows):
        return weighted_genes(rank_tokens(counts, rows, vocabulary.divisors, MAX_TOKENS), gate_L, level_G)

    sections = list(spots_of([folder / path for path in manifest["path"]], vocabulary, weigh, rng))
    patients = manifest["name"].str.extract(r"^(HER2ST_.|BC_ST)", expand=False).fillna(manifest["name"])
    factors = [of_patient([sections[i] for i in rows]) for rows in patients.groupby(patients).indices.values()]
    print(f"{sum(len(s.xy) for s in sections)} spots of {len(sections)} sections, {len(factors)} patients", flush=True)
    cells, mixtures = profiles(arguments.profiles, vocabulary, weigh, rng)
    print(f"{len(cells)} cell types, {len(mixtures)} mixtures", flush=True)
    axes_GK = axes_of(np.hstack(factors), cells, mixtures, N_AXES)
    model = model_of(vocabulary, gate_L, level_G, axes_GK, sections)
    models.save(model, arguments.out)


if __name__ == "__main__":
    main()
