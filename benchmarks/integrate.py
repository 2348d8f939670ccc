"""Gain from integrating patients: mixing, and transfer of labels from two patients to the third.

``python benchmarks/integrate.py`` uses three labelled sections of the HER2+ breast cancer study (patients B, D and G)
from ``STAMPY_DATA_DIR`` or the authors' repository. Rows with Harmony need harmonypy. Mixing is the fraction of other
patients among the 30 nearest spots, relative to a random order. Transfer is the balanced accuracy of labels predicted
by majority of the 30 nearest spots of the other two patients, averaged over the three patients.
"""

import logging
import warnings

import anndata
import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import stampy

SECTIONS = ("HER2ST_B1", "HER2ST_D1", "HER2ST_G2")
NEAREST = 30
# The defaults of harmonypy 2.1 stop after one step here.
HARMONY = {"lamb": 1, "max_iter_harmony": 30, "epsilon_harmony": 1e-7, "random_state": 0}


def load():
    parts = []
    for name in SECTIONS:
        adata = stampy.datasets.load(name)
        adata.obs_names = [f"{name}_{spot}" for spot in adata.obs_names]
        adata.obs["patient"] = name[-2]
        adata.uns.clear()
        parts.append(adata)
    return anndata.concat(parts)  # genes measured in all three


def embeddings(adata):
    quiet = {"library_key": "patient", "show_progress_bar": False}
    stampy.tl.embed(adata, "pca", key_added="PCA", **quiet)
    stampy.tl.embed(adata, "pca", key_added="PCA, centred", center="section", **quiet)
    stampy.tl.embed(adata, modality="gene", key_added="stampy-mini", **quiet)
    stampy.tl.embed(adata, modality="gene", key_added="stampy-mini, centred", center="section", **quiet)
    keys = ["PCA", "PCA, centred", "stampy-mini", "stampy-mini, centred"]
    try:
        import harmonypy
    except ImportError:
        return keys
    logging.disable(logging.INFO)
    for key in ("PCA", "stampy-mini"):
        values = PCA(30, random_state=0).fit_transform(np.asarray(adata.obsm[key], float))
        found = harmonypy.run_harmony(values, adata.obs, "patient", **HARMONY)
        corrected = np.asarray(found.Z_corr)
        adata.obsm[f"{key}, Harmony"] = corrected if len(corrected) == adata.n_obs else corrected.T
        keys.append(f"{key}, Harmony")
    return keys


def mixing(values, patient):
    near = NearestNeighbors(n_neighbors=NEAREST + 1).fit(values).kneighbors(values, return_distance=False)[:, 1:]
    share = np.array([(patient == p).mean() for p in np.unique(patient)])
    return (patient[near] != patient[:, None]).mean() / (1 - (share**2).sum())


def transfer(values, patient, labels):
    known = ~np.isin(labels, ("undetermined", "nan", "NA"))
    scores = []
    for p in np.unique(patient):
        there, here = known & (patient != p), known & (patient == p)
        here &= np.isin(labels, np.unique(labels[there]))
        voted = KNeighborsClassifier(NEAREST).fit(values[there], labels[there]).predict(values[here])
        scores.append(balanced_accuracy_score(labels[here], voted))
    return float(np.mean(scores))


def main():
    warnings.simplefilter("ignore")
    adata = load()
    patient, labels = adata.obs["patient"].to_numpy(), adata.obs["label"].astype(str).to_numpy()
    print(f"{adata.n_obs:,} spots of {len(SECTIONS)} patients")
    print("| embedding | mixing (1: as by chance) | label transfer |\n|---|---|---|")
    for key in embeddings(adata):
        values = np.asarray(adata.obsm[key])
        print(f"| {key} | {mixing(values, patient):.2f} | {transfer(values, patient, labels):.2f} |", flush=True)


if __name__ == "__main__":
    main()
