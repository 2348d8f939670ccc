"""Evaluate a model on held-out sections: its embeddings compared with simple baselines.

    python recipes/stampy-mini/evaluate.py [MODEL] [--tables labelled retrieval mixing image_only] [--out FILE.md]
    python recipes/stampy-mini/evaluate.py --tables image   # sections with images only, for a new image encoder

Prints Markdown tables. All embeddings are evaluated by the same protocol: linear probe (balanced accuracy, five
spatially blocked folds), k-means with the number of labels (ARI, NMI, mean over three seeds), and image -> gene
retrieval within a section. The sections come from `stampy.datasets`; labels are used only here.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import scanpy as sc
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import stampy
from stampy._labels import known_labels
from stampy.pp._linear_encoder import neighbor_graph
from stampy.pp._thinning import heldout_correlation, regions
from stampy.tl._embedding.context import centered, smoothed
from stampy.tl._embedding.spaces import unit
from stampy.tl._evaluation.folds import block_folds
from stampy.tl._evaluation.label_free import _mixing, _tfidf
from stampy.tl._methods.clustering import find_domains
from stampy.tl._methods.linear_models import Scaler, balanced_weights, logistic
from stampy.tl._probe import LOGISTIC_PENALTY, probe_predictions, probe_scores

LABELLED = {"DLPFC_151673": "layer", "DLPFC_151674": "layer", "HER2ST_A1": "label", "PDAC_A_human": "histology"}
PAIRED = ["HER2ST_A1", "HER2ST_A2"]
IMAGED = "hbc_blockA"
CHOOSE = [f"HER2ST_{name}" for name in ("B1", "C1", "D1", "F1", "G2")]  # for evaluations over several patients
NEIGHBORS, N_AXES, BANKSY = 6, 50, 0.8  # of the baselines; BANKSY is the weight of its neighbourhood for domains
WITH_IMAGE = {"HER2ST_A1"}  # images of the DLPFC sections have 600 px, too few for tiles


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
    """ARI and NMI of k-means with the number of labels, mean over three seeds, and standard deviation of the ARI."""
    found = [find_domains(values, len(np.unique(codes)), method="kmeans", rng=seed)[0] for seed in range(3)]
    ari = [adjusted_rand_score(codes, f) for f in found]
    return np.mean(ari), np.mean([normalized_mutual_info_score(codes, f) for f in found]), np.std(ari)


def depth_explained(values, depth, folds):
    """Held-out R² of log depth by ridge, with spatial folds; 0 if it is worse than the mean."""
    r = heldout_correlation(values, depth[:, None], folds)[0]
    return max(r, 0.0) ** 2


def baselines(adata, pca, xy):
    """Embeddings fitted to the section itself, all smoothed: baselines for a model in context."""
    logged = log_counts(adata)
    logged = logged - logged.mean(axis=0)
    standard = logged / np.maximum(logged.std(axis=0), 1e-6)
    around = neighbor_graph(xy, NEIGHBORS)
    banksy = np.hstack([np.sqrt(1 - BANKSY) * standard, np.sqrt(BANKSY) * (around @ standard)])
    agreement = logged.T @ (around @ logged)
    spatial = logged @ np.linalg.eigh(agreement + agreement.T)[1][:, -N_AXES:]
    return {
        "PCA, smoothed": smoothed(pca, xy),
        "PCA, L2, smoothed": unit(smoothed(unit(pca), xy)),
        "tf-idf SVD, L2, smoothed": unit(smoothed(unit(_tfidf(adata.X)), xy)),
        "spatially weighted PCA, L2, smoothed": unit(smoothed(unit(spatial), xy)),
        "BANKSY-like": PCA(20, random_state=0).fit_transform(banksy),
    }


def row(section, name, values, codes, xy, depth=None):
    """One line of the table; the probe's score pools all held-out predictions."""
    folds = block_folds(xy)
    scores = probe_scores(codes, probe_predictions(values, codes, folds), folds)
    ari, nmi, spread = clusters(values, codes)
    deep = "" if depth is None else f" {depth_explained(values, depth, regions(xy)):.2f} |"
    probe = scores["balanced_accuracy"].iloc[-1]
    return f"| {section} | {name} | {probe:.3f} | {ari:.3f} ± {spread:.3f} | {nmi:.3f} |{deep}"


def labelled(model, sections=tuple(LABELLED)):
    """Linear probe and clustering on the labelled sections."""
    yield "| section | embedding | balanced accuracy | ARI | NMI | depth R² |"
    yield "|---|---|---|---|---|---|"
    for name in sections:
        adata, key = stampy.datasets.load(name), LABELLED[name]
        modality = "fused" if name in WITH_IMAGE else "gene"
        stampy.tl.embed(adata, model, modality=modality, show_progress_bar=False)
        pca = PCA(50, random_state=0).fit_transform(log_counts(adata))
        found = {"PCA": pca, "gene": adata.obsm["X_stamp_gene"]}
        if modality == "fused":
            found |= {
                "image": adata.obsm["X_stamp_image"],
                "fused": adata.obsm["X_stamp"],
                "mean colour": colours(adata),
            }
        xy = adata.obsm["spatial"].astype(float)
        around = {
            k: unit(smoothed(adata.obsm[f"X_stamp_{k}"], xy)) for k in ("gene", "image")[: 1 + (modality != "gene")]
        }
        found |= baselines(adata, pca, xy) | {"gene, in context": around["gene"]}
        if modality == "fused":
            found |= {"image, in context": around["image"], "fused, in context": np.hstack(list(around.values()))}
        codes, _ = known_labels(adata.obs[key])
        known, depth = codes >= 0, np.log1p(np.asarray(adata.X.sum(axis=1), dtype=float).ravel())
        for title, values in found.items():
            yield row(name, title, values[known], codes[known], xy[known], depth[known])


def mixing(model):
    """Mixing of two halves of a section, one with half of the genes; and label transfer between patients."""
    yield '| | as it is | `genes="shared"` or `center="section"` |'
    yield "|---|---|---|"
    found = [panels_mixed(model, name) for name in CHOOSE]
    yield "| mixing of panels (1: chance) | " + " | ".join(spread(x) for x in zip(*found, strict=True)) + " |"
    yield ""
    yield "| labels from four patients to the fifth | by | as it is | centred by section |"
    yield "|---|---|---|---|"
    for where, context in (("per spot", None), ("in context", "neighbors")):
        for name, encoder in (("stampy-mini", model), ("PCA of all five", "pca")):
            sides = [embedded_patients(encoder, context, center) for center in (None, "section")]
            for by, guess in GUESSES.items():
                yield f"| {name}, {where} | {by} | " + " | ".join(spread(transfer(x, guess)) for x in sides) + " |"


def spread(values):
    return f"{np.mean(values):.3f} ± {np.std(values):.3f}"


def panels_mixed(model, name):
    """Mixing of the halves of a section, the second without every other gene: with all and with shared genes."""
    adata, rng = stampy.datasets.load(name), np.random.default_rng(0)
    half = rng.permutation(adata.n_obs) % 2
    genes = np.sort(rng.permutation(adata.n_vars)[: adata.n_vars // 2])
    for options in ({}, {"genes": "shared"}):
        sections = [adata[half == 0].copy(), adata[half == 1][:, genes].copy()]
        stampy.tl.embed(sections, model, modality="gene", key_added="X", show_progress_bar=False, **options)
        values = np.vstack([s.obsm["X"] for s in sections])
        yield _mixing(values, np.repeat([0, 1], [s.n_obs for s in sections]))


def embedded_patients(model, context, center):
    """Vectors and labels of one section per patient, in one space."""
    sections = {name: stampy.datasets.load(name) for name in CHOOSE}
    if model == "pca":  # of all sections together
        whole = ad.concat(sections, label="section", index_unique="-", join="inner")
        values = PCA(50, random_state=0).fit_transform(log_counts(whole))
        codes, names = whole.obs["section"].cat.codes.to_numpy(), list(whole.obs["section"].cat.categories)
        values = unit(values if center is None else centered(values, codes, names, normed=False))
        if context:
            values = unit(smoothed(values, whole.obsm["spatial"].astype(float), NEIGHBORS, codes))
        by_section = {name: values[codes == i] for i, name in enumerate(names)}
    else:
        options = {"context": context, "center": center, "show_progress_bar": False}
        stampy.tl.embed(sections, model, modality="gene", key_added="X", **options)
        by_section = {name: np.asarray(section.obsm["X"]) for name, section in sections.items()}
    found = {}
    for name, section in sections.items():
        labels = section.obs["label"].astype(str).to_numpy()
        known = known_labels(section.obs["label"], warn=False)[0] >= 0
        found[name] = by_section[name][known], labels[known]
    return found


def by_nearest(query, values, codes):
    """The label of most of the 15 nearest spots."""
    near = codes[np.argsort(-(query @ values.T), axis=1)[:, :15]]
    return np.stack([(near == c).sum(axis=1) for c in range(codes.max() + 1)], axis=1).argmax(axis=1)


def by_means(query, values, codes):
    """The label whose mean vector is nearest by its direction."""
    means = unit(np.stack([values[codes == c].mean(axis=0) for c in range(codes.max() + 1)]))
    return (query @ means.T).argmax(axis=1)


def by_probe(query, values, codes):
    """The linear probe of `stampy.tl.probe`, trained on the other patients."""
    scaler, k = Scaler(values), codes.max() + 1
    w, b = logistic(scaler(values), codes, k, LOGISTIC_PENALTY, balanced_weights(codes, k))
    return (scaler(query) @ w + b).argmax(axis=1)


GUESSES = {"15 nearest spots": by_nearest, "nearest mean": by_means, "linear probe": by_probe}


def transfer(found, guess):
    """Balanced accuracy for each patient of labels that the four others have, guessed by their spots."""
    scores = []
    for name, (query, truth) in found.items():
        rest = [pair for other, pair in found.items() if other != name]
        classes, codes = np.unique(np.concatenate([labels for _, labels in rest]), return_inverse=True)
        guessed = classes[guess(query, np.vstack([values for values, _ in rest]), codes)]
        shared = np.intersect1d(truth, classes)
        scores.append(np.mean([(guessed[truth == c] == c).mean() for c in shared]))
    return scores


def colours(adata):
    """Mean and standard deviation of the three channels of each tile: a baseline for image embeddings."""
    stampy.pp.tiles(adata, size_px=32, key_added="small")
    pixels = adata.obsm.pop("small").reshape(adata.n_obs, -1, 3) / 255.0
    return np.hstack([pixels.mean(axis=1), pixels.std(axis=1)])


def image_only(model):
    """A section with image and labels but without counts."""
    yield "| section | embedding | balanced accuracy | ARI | NMI |"
    yield "|---|---|---|---|---|"
    adata = stampy.datasets.load(IMAGED)
    key = next(k for k in ("annot_type", "label") if k in adata.obs)
    stampy.tl.embed(adata, model, modality="image", show_progress_bar=False)
    (codes, _), xy = known_labels(adata.obs[key]), adata.obsm["spatial"].astype(float)
    known = codes >= 0
    found = {"image": adata.obsm["X_stamp_image"], "mean colour": colours(adata)}
    for title, values in (found | {f"{k}, in context": smoothed(v, xy) for k, v in found.items()}).items():
        yield row(IMAGED, title, values[known], codes[known], xy[known])


def retrieval(model):
    """Recall of a spot's own genes among the nearest to its image, and chance."""
    yield "| section | spots | recall@1 | recall@5 | recall@10 | chance @10 |"
    yield "|---|---|---|---|---|---|"
    for name in PAIRED:
        adata = stampy.datasets.load(name)
        stampy.tl.embed(adata, model, modality="fused", show_progress_bar=False)
        scores = adata.obsm["X_stamp_image"] @ adata.obsm["X_stamp_gene"].T
        rank = (scores > np.diag(scores)[:, None]).sum(axis=1)
        n = adata.n_obs
        yield f"| {name} | {n} | " + " | ".join(f"{(rank < k).mean():.3f}" for k in (1, 5, 10)) + f" | {10 / n:.3f} |"


def image(model):
    """The tables that depend on the image encoder, for sections with images."""
    yield from labelled(model, sorted(WITH_IMAGE))
    for table in (retrieval, image_only):
        yield ""
        yield from table(model)


FULL = (labelled, retrieval, mixing, image_only)
TABLES = {f.__name__: f for f in (*FULL, image)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="stampy-mini")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=[f.__name__ for f in FULL])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # coarse images are expected here
    model = stampy.models.load(arguments.model)
    lines = []
    for table in arguments.tables:
        for line in TABLES[table](model):
            print(line, flush=True)
            lines.append(line)
        lines.append("")
    if arguments.out:
        arguments.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
