"""Choose the covariances for the axes of stampy-mini: one tissue at a time is held out and evaluated.

    python recipes/stampy-mini/choose.py FOLDER --profiles cell_profile_library.h5ad [--out FILE.md]

FOLDER is that of `prepare.py`. Each setting is fitted seven times, without the sections and cell types of one tissue,
and evaluated on that tissue without labels:

- score of `stampy.tl.evaluate`, one split, per spot and in context (mean over a spot and its six nearest neighbours);
- coherence: fraction of a spot's six nearest neighbours in its own domain, with six k-means domains in context.

The combined score is the geometric mean of these three, averaged over tissues. The setting with the best score is
chosen unless, fitted to all sections, it lowers the coherence of seven domains of the cortex section by more than
0.005, or is not confirmed by the labels of HER2+ patients B to G (held out with all breast sections); then the next
setting is considered. Large sections are represented by a compact piece of 1,000 spots.

Shapes: n spots, G genes, K axes, m columns of all factors.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import linalg
from sklearn.cluster import KMeans

sys.path.insert(0, str(Path(__file__).parent))
import fit
from agree import by_labels

from stampy import datasets
from stampy._labels import known_labels
from stampy._section.neighbors import graph
from stampy.pp._thinning import gene_targets, halves, heldout_correlation, overdispersed_genes, regions
from stampy.tl._embedding.context import smoothed
from stampy.tl._embedding.spaces import unit
from stampy.tl._evaluation.label_free import _tfidf
from stampy.tl._methods.principal_components import principal_components

# Tissue: prefixes of the names of its sections, and tissues of cell types that are held out with it
TISSUES = {
    "cortex": (("DLPFC",), ("Brain", "Cerebrum", "Cerebellum")),
    "liver": (("HCC1",), ("Liver",)),
    "lymph node": (("LymphNode",), ("Spleen", "ImmuneCensus", "Thymus", "PBMCs")),
    "prostate": (("prostate",), ("Prostate",)),
    "skin": (("melanoma",), ("Skin",)),
    "colon": (("CRC16",), ("Colon", "Rectum", "Intestine", "Ileum")),
    "breast": (("HER2ST", "BC_ST", "HBC", "breast"), ()),
    "": ((), ()),  # nothing is held out
}
PATIENTS = [f"HER2ST_{name}" for name in ("B1", "C1", "D1", "F1", "G2")]
CORTEX = "DLPFC_Br8325_ant"
PIECE = 1000


class Setting(NamedTuple):
    """Weights of cell types and mixtures and number of axes; or separate axes of both with a weight."""

    cells: float = 0.0
    mixtures: float = 0.0
    axes: int = fit.N_AXES
    beside: float = 0.0


SETTINGS = {
    "spots and neighbours": Setting(),
    "cell types and mixtures, 0.1 each": Setting(0.1, 0.1),
    "0.15 each (`fit.py`)": Setting(0.15, 0.15),
    "0.25 each": Setting(0.25, 0.25),
    "0.15 each, 192 axes": Setting(0.15, 0.15, axes=192),
    "64 axes of these beside, weight 0.5": Setting(beside=0.5),
}


class Factors:
    """Factors (G, m) of all covariances side by side; every setting is a small matrix (m, K) in their basis."""

    def __init__(self, weigh, sections, genes, profiles):
        who = fit.patients([s.name for s in sections])
        parts, self.of = [], []
        for patient in pd.unique(who):
            mine = np.flatnonzero(who == patient)
            parts.append(fit.of_patient([genes[i] for i in mine], [sections[i].xy for i in mine]))
            self.of += [("spots", patient)] * parts[-1].shape[1]
        cells, mixtures, *tissues = fit.profiles(profiles, weigh, np.random.default_rng(fit.SEED))
        for kind, x, of in zip(("cells", "mixtures"), (cells, mixtures), tissues, strict=True):
            parts.append(x.T)
            self.of += [(kind, tissue) for tissue in of]
        self.columns = np.hstack(parts)
        self.gram = (self.columns.T @ self.columns).astype(np.float64)

    def weights(self, cells, mixtures, tissue):
        """Weight (m,) of each column; 0 for columns held out with a tissue."""
        names, cell_tissues = TISSUES[tissue]
        kinds = np.array(
            [
                kind if not (of.startswith(names) if kind == "spots" else of in cell_tissues) else ""
                for kind, of in self.of
            ]
        )
        lengths, weights = np.diag(self.gram), (kinds == "spots").astype(np.float64)
        for kind, share in (("cells", cells), ("mixtures", mixtures)):
            mine = kinds == kind
            weights[mine] = np.sqrt(share * lengths[kinds == "spots"].sum() / lengths[mine].sum())
        return weights

    def axes(self, setting, tissue):
        """Blocks of orthonormal axes, (m, K) in these columns, and their weights."""
        first = self._leading(np.diag(self.weights(setting.cells, setting.mixtures, tissue)), setting.axes)
        if not setting.beside:
            return [(first, 1.0)]
        rest = np.diag(self.weights(1.0, 1.0, tissue) * [kind != "spots" for kind, _ in self.of])
        return [(first, 1.0), (self._leading(rest - first @ (first.T @ self.gram @ rest), 64), setting.beside)]

    def _leading(self, factor, k):
        small = factor.T @ self.gram @ factor
        values, vectors = linalg.eigh((small + small.T) / 2, subset_by_index=[len(small) - k, len(small) - 1])
        return factor @ (vectors[:, ::-1] / np.sqrt(values[::-1]))


class Judged:
    """Evaluated section: its spots in terms of all factors, whole and split in halves, and the prediction targets."""

    def __init__(self, section, weigh, columns, rng):
        self.name = section.name
        distance = np.linalg.norm(section.xy - np.median(section.xy, axis=0), axis=1)
        rows = np.sort(np.argsort(distance, kind="stable")[:PIECE])
        whole, self.xy = section.counts[rows], section.xy[rows]
        self.counts = [whole, *halves(whole, rng)]
        self.along = [weigh(counts, section.rows) @ columns for counts in self.counts]
        genes, near = overdispersed_genes(whole), graph(self.xy, 6, np.zeros(len(rows), dtype=int)) / 6
        own = [gene_targets(half, genes) for half in self.counts[1:]]
        self.targets = [np.hstack([t, near @ t]) for t in own]
        self.folds = regions(self.xy)

    def measures(self, embed):
        """All measures of an embedding, given as a function of 0 (all molecules), 1 or 2 (their halves)."""
        found, whole = self.scores(embed), embed(0)
        around = unit(smoothed(whole, self.xy))
        if self.name in PATIENTS:
            codes = known_labels(datasets.load(self.name).obs["label"], warn=False)[0]
            known = codes >= 0
            for title, values in (("", whole), (", in context", around)):
                by = by_labels(values[known], codes[known], self.xy[known])
                found |= dict(zip((f"probe{title}", f"ARI{title}"), by, strict=True))
        return found | {"coherence": coherence(around, self.xy, 6)}

    def scores(self, embed):
        """The label-free score, per spot and in context."""
        found, pair = {}, [embed(i) for i in (1, 2)]
        for title, values in (("", pair), (", in context", [unit(smoothed(x, self.xy)) for x in pair])):
            r = [heldout_correlation(x, t, self.folds) for x, t in zip(values, self.targets[::-1], strict=True)]
            own, near = np.nanmean(np.reshape(r, (2, 2, -1)), axis=(0, 2))
            found[f"score{title}"] = (max(own, 0) * max(near, 0)) ** 0.5
        return found


def coherence(in_context, xy, k):
    """Fraction of a spot's six nearest neighbours in its own of `k` k-means domains, mean over two seeds."""
    near, shares = graph(xy, 6, np.zeros(len(xy), dtype=int)).tocoo(), []
    for seed in range(2):
        domain = KMeans(k, n_init=3, random_state=seed).fit_predict(in_context)
        shares.append((domain[near.row] == domain[near.col]).mean())
    return float(np.mean(shares))


def embedder(factors, setting, tissue, along):
    """Function from spots in terms of all factors (n, m) to embeddings; its head is fitted to all tissues but one."""
    blocks, training = [], [x for name, x in along.items() if not name.startswith(TISSUES[tissue][0])]
    for axes, weight in factors.axes(setting, tissue):
        features = np.vstack([x @ axes for x in training])
        head, centre = fit.head_of(features)
        scale = weight / np.sqrt(np.square((features - centre) @ head.T).sum(axis=1).mean())
        blocks.append((axes @ head.T * scale, centre @ head.T * scale))
    return lambda x: unit(np.hstack([x @ turn - shift for turn, shift in blocks]).astype(np.float32))


def line(name, rows, in_sample=None):
    """Row of the table from the measures of all evaluated sections."""
    found = pd.DataFrame(rows)
    tissues = found.groupby("tissue").mean(numeric_only=True)
    combined = (tissues["score"] * tissues["score, in context"] * tissues["coherence"]) ** (1 / 3)
    patients = found[found["section"].isin(PATIENTS)].mean(numeric_only=True)
    numbers = [*tissues[["score", "score, in context", "coherence"]].mean(), combined.mean()]
    numbers += [patients[f"{what}{where}"] for what in ("probe", "ARI") for where in ("", ", in context")]
    cells = [f"{x:.4f}" if i in (0, 1, 3) else f"{x:.3f}" for i, x in enumerate(numbers)]
    return f"| {name} | {' | '.join(cells)} | {'' if in_sample is None else f'{in_sample:.3f}'} |"


def table(folder, profiles):
    """The lines of the table."""
    manifest = pd.read_csv(folder / "pretrain.tsv", sep="\t")
    weigh = fit.weighing(folder / path for path in manifest["path"])
    sections = list(fit.opened(folder, manifest, weigh))
    factors = Factors(weigh, sections, genes := [weigh(s.counts, s.rows) for s in sections], profiles)
    along = {s.name: (x @ factors.columns).astype(np.float32) for s, x in zip(sections, genes, strict=True)}
    rng = np.random.default_rng(fit.SEED)
    tissue_of = {
        s.name: next((t for t, (names, _) in TISSUES.items() if s.name.startswith(names)), "") for s in sections
    }
    judged = [
        Judged(s, weigh, factors.columns, rng)
        for s in sections
        if s.name in PATIENTS or tissue_of[s.name] not in ("breast", "")
    ]
    yield (
        "| axes | score per spot | in context | coherence | combined | probe per spot | in context | ARI per spot "
        "| in context | coherence, cortex |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|"
    cortex_xy = next(s.xy for s in sections if s.name == CORTEX)
    for name, setting in SETTINGS.items():
        rows = []
        for tissue in filter(None, TISSUES):
            embed = embedder(factors, setting, tissue, along)
            rows += [
                {"section": j.name, "tissue": tissue, **j.measures(lambda i, j=j, f=embed: f(j.along[i]))}
                for j in judged
                if tissue_of[j.name] == tissue
            ]
        whole = embedder(factors, setting, "", along)(along[CORTEX])
        yield line(name, rows, coherence(unit(smoothed(whole, cortex_xy)), cortex_xy, 7))
    for name, own in (("PCA", lambda counts: principal_components(counts)[0]), ("tf-idf SVD", _tfidf)):
        rows = []
        for j in judged:
            found = [unit(own(counts)) for counts in j.counts]
            rows.append({"section": j.name, "tissue": tissue_of[j.name], **j.measures(found.__getitem__)})
        yield line(f"{name} of the section itself", rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    lines = []
    for text in table(arguments.folder, arguments.profiles):
        print(text, flush=True)
        lines.append(text)
    if arguments.out:
        arguments.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
