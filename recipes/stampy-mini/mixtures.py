"""Axes of training sections, of cell types and of the section itself: which mixture is best without its tissue?

    python recipes/stampy-mini/mixtures.py FOLDER --profiles cell_profile_library.h5ad [--tissues NAME ...] [--out F.md]

FOLDER is that of `prepare.py`. As in `choose.py`, axes are fitted without all sections and cell types of a tissue and
evaluated on it: HER2+ patients B, C, D, F and G by their labels, and the cortex of the training sections, which has no
labels, by layers that are assigned from published marker genes (Maynard et al. 2021, doi:10.1038/s41593-020-00787-0):
the layer whose markers' mean z-score, over a spot and its 18 nearest, is highest by 0.3 or more. "own genes" is the
held-out correlation with a spot's own genes of the other half of its molecules, mean over all tissues.

Shapes: n spots, G genes, K axes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

sys.path.insert(0, str(Path(__file__).parent))
import choose
import fit
from agree import by_labels

from stampy._section.neighbors import graph
from stampy.pp._linear_encoder import SpotGenes, leading_axes, neighbor_graph
from stampy.pp._thinning import heldout_correlation
from stampy.tl._embedding.context import smoothed
from stampy.tl._embedding.spaces import unit
from stampy.tl._evaluation.label_free import _tfidf
from stampy.tl._methods.principal_components import principal_components

MARKERS = {
    "white matter": "MBP MOBP PLP1 MOG CNP CLDN11 TF ERMN MAG BCAS1 OPALIN",
    "layer 1": "GFAP AQP4 RELN FABP7 CXCL14 MSX1 SPARC AGT",
    "layer 2": "LAMP5 HPCAL1 CARTPT C1QL2 CUX2 GNAL",
    "layer 3": "FREM3 ADCYAP1 CALB1 CUX2 SYT2 ENC1 COL5A2 CUX1",
    "layer 4": "RORB PVALB VAMP1 NEFH SCN1B PLCXD2 TRIM54",
    "layer 5": "PCP4 TRABD2A FEZF2 BCL11B HTR2C VAT1L TMSB10 CAMK2D",
    "layer 6": "KRT17 TLE4 DIRAS2 SEMA3E HS3ST4 NR4A2 CCK ISLR SYT6 THEMIS",
}
AROUND, MARGIN = 18, 0.3
PIECES = {"cortex": 4000}  # the layers need the whole section, others are evaluated by a piece of 1,000 spots


def layers(counts, symbols, xy):
    """Layer of each spot by marker genes, -1 where two are close."""
    depth = np.maximum(np.asarray(counts.sum(axis=1), dtype=float).ravel(), 1)
    logged = (sparse.diags(1e4 / depth) @ sparse.csr_matrix(counts, dtype=float)).log1p().tocsc()
    near = graph(xy, AROUND, np.zeros(len(xy), dtype=int))
    found = []
    for names in MARKERS.values():
        x = logged[:, np.flatnonzero(np.isin(symbols, names.split()))].toarray()
        mean = ((x - x.mean(axis=0)) / x.std(axis=0)).mean(axis=1)
        found.append(mean + near @ mean)
    scores = np.stack(found, axis=1)
    scores = (scores - scores.mean(axis=0)) / scores.std(axis=0)
    first, second = np.sort(scores, axis=1)[:, [-1, -2]].T
    return np.where(first - second > MARGIN, scores.argmax(axis=1), -1)


class Part:
    """An evaluated section, whole and in halves: its genes, and features along the axes of training."""

    def __init__(self, judged, section, weigh, fitted):
        self.judged, self.fitted, self.codes = judged, fitted, None
        self.genes = [weigh(counts, section.rows) for counts in judged.counts]
        self.own = [self._axes(genes) for genes in self.genes]

    def _axes(self, genes):
        return leading_axes([SpotGenes(genes, neighbor_graph(self.judged.xy))], 64, np.random.default_rng(0))

    def spots(self, i, block=0):
        """Embedding (n, K) along the training axes (block 0) or axes of cell types and mixtures beside (1)."""
        turn, shift = self.fitted[block]
        return unit(self.judged.along[i] @ turn - shift)

    def section(self, i, k):
        """Embedding (n, k) along the section's own axes."""
        features = (self.genes[i] @ self.own[i][:, :k]).astype(float)
        head, centre = fit.head_of(features)
        return unit((features - centre) @ head.T)

    def mixed(self, i, k, share=0.5):
        """Embedding along k axes of both covariances, each divided by its trace."""
        training, cov = self.fitted[2]
        basis = np.linalg.qr(np.hstack([self.own[i], training]))[0]
        spots = SpotGenes(self.genes[i], neighbor_graph(self.judged.xy))
        seen, known = basis.T @ spots.agreement(basis, 0.0), basis.T @ training
        known, turn = known @ cov @ known.T, self.own[i].T @ basis
        both = share * (seen + seen.T) / 2 / np.trace(turn @ seen @ turn.T) + (1 - share) * known / np.trace(known)
        features = (self.genes[i] @ basis @ np.linalg.eigh(both)[1][:, ::-1][:, :k]).astype(float)
        head, centre = fit.head_of(features)
        return (features - centre) @ head.T


def beside(*blocks):
    return np.hstack([weight * values for weight, values in blocks])


SETTINGS = {
    "PCA": lambda p, i: principal_components(p.judged.counts[i])[0],
    "tf-idf SVD": lambda p, i: _tfidf(p.judged.counts[i]),
    "training axes": lambda p, i: p.spots(i),
    "training, cell types 0.5": lambda p, i: beside((1, p.spots(i)), (0.5, p.spots(i, 1))),
    "training, tf-idf SVD 0.5": lambda p, i: beside((1, p.spots(i)), (0.5, unit(_tfidf(p.judged.counts[i])))),
    "training, 16 own 0.25": lambda p, i: beside((1, p.spots(i)), (0.25, p.section(i, 16))),
    "training, 16 own 0.5": lambda p, i: beside((1, p.spots(i)), (0.5, p.section(i, 16))),
    "training, 32 own 1": lambda p, i: beside((1, p.spots(i)), (1, p.section(i, 32))),
    "8 own": lambda p, i: p.section(i, 8),
    "16 own": lambda p, i: p.section(i, 16),
    "32 own": lambda p, i: p.section(i, 32),
    "32 of both covariances": lambda p, i: p.mixed(i, 32),
}


def parts_of(folder, profiles, tissues):
    """The evaluated sections, each with axes that were fitted without its tissue."""
    manifest = pd.read_csv(folder / "pretrain.tsv", sep="\t")
    weigh = fit.weighing(folder / path for path in manifest["path"])
    sections = list(fit.opened(folder, manifest, weigh))
    genes = [weigh(s.counts, s.rows) for s in sections]
    factors, rng = choose.Factors(weigh, sections, genes, profiles), np.random.default_rng(fit.SEED)
    along = {s.name: (x @ factors.columns).astype(np.float32) for s, x in zip(sections, genes, strict=True)}
    for tissue in tissues:
        names, choose.PIECE = choose.TISSUES[tissue][0], PIECES.get(tissue, 1000)
        blocks = factors.axes(choose.Setting(beside=0.5), tissue)
        training, fitted = [x for name, x in along.items() if not name.startswith(names)], []
        for axes, _ in blocks:
            head, centre = fit.head_of(np.vstack([x @ axes for x in training]).astype(float))
            fitted.append((axes @ head.T, centre @ head.T))
        first = blocks[0][0]
        cov = np.cov(np.vstack([x @ first for x in training]).astype(float).T)
        fitted.append(((factors.columns @ first).astype(np.float32), cov))
        for section in sections:
            if section.name.startswith(names) and (tissue != "breast" or section.name in choose.PATIENTS):
                yield tissue, Part(choose.Judged(section, weigh, factors.columns, rng), section, weigh, fitted)


def measured(part, make):
    """Own genes of the other half; probe and ARI of labels or layers, per spot and in context."""
    judged, values = part.judged, [unit(make(part, i).astype(np.float32)) for i in range(3)]
    own = judged.targets[0].shape[1] // 2
    pairs = zip(values[1:], judged.targets[::-1], strict=True)
    found = {"own": np.mean([np.nanmean(heldout_correlation(x, t[:, :own], judged.folds)) for x, t in pairs])}
    if part.codes is not None:
        known = part.codes >= 0
        for where, x in (("", values[0]), (" in context", unit(smoothed(values[0], judged.xy)))):
            scores = by_labels(x[known], part.codes[known], judged.xy[known])
            found |= {f"probe{where}": scores[0], f"ARI{where}": scores[1]}
    return found


def main():
    import anndata as ad

    from stampy import datasets
    from stampy._labels import known_labels

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--profiles", type=Path, required=True)
    parser.add_argument("--tissues", nargs="*", default=list(filter(None, choose.TISSUES)))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    rows = []
    for tissue, part in parts_of(arguments.folder, arguments.profiles, arguments.tissues):
        if (name := part.judged.name) in choose.PATIENTS:
            part.codes = known_labels(datasets.load(name).obs["label"], warn=False)[0]
        elif name == choose.CORTEX:
            table = ad.read_h5ad(arguments.folder / f"{name}.h5ad")
            part.codes = layers(table.X, table.var["symbol"].str.upper().to_numpy(), part.judged.xy)
        for title, make in SETTINGS.items():
            rows.append({"axes": title, "tissue": tissue, **measured(part, make)})
        print(f"{name}: done", flush=True)
    found = pd.DataFrame(rows).groupby(["axes", "tissue"], sort=False).mean()
    columns = [f"{what}{where}" for what in ("probe", "ARI") for where in ("", " in context")]
    labelled = [tissue for tissue in ("breast", "cortex") if tissue in arguments.tissues]
    heads = ["axes", "own genes", *(f"{c}, {where}" for where in labelled for c in columns)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for title in SETTINGS:
        mine = found.loc[title]
        numbers = mine.loc[labelled, columns].to_numpy().ravel()
        lines.append(f"| {title} | {mine['own'].mean():.4f} | " + " | ".join(f"{x:.3f}" for x in numbers) + " |")
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
