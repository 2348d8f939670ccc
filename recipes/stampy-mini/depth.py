"""How much of sequencing depth do embeddings contain, and what does it cost to remove it?

    python recipes/stampy-mini/depth.py FOLDER [--labels] [--out FILE.md]

FOLDER is that of `prepare.py`. As in `choose.py`, axes are fitted seven times, each time without one tissue, and
evaluated on that tissue. The first table compares heads of the gene encoder that remove depth without labels, fitted to
the training spots and to copies of up to 250 spots of each section with fewer molecules (both halves, 25, 20, 10 %):

- mean: the direction of the training spots' mean feature is projected out before the norm;
- mean and 12 of thinning: then also 12 principal components of the changes of the normed embedding by thinning;
- reliability: axes with the largest ratio of covariance between halves to that within halves plus changes by thinning.

Columns: score of `stampy.tl.evaluate`, R² of log depth by ridge from an embedding of one half (held-out regions), both
per spot and in context; mixing of spots with their copies thinned to 20 % (1: chance). With `--labels`, also probe and
ARI of HER2+ patients B to G, coherence, and for the cortex section of the training data coherence of seven domains and
their ARI with layers by marker genes (see `mixtures.py`).

The second table is a control: all spots of a section are thinned to the same number of molecules (the tenth percentile;
spots with fewer are left out) and embedded, and predict the logarithm of the original number. "20 %": the same for
spots thinned to 20 %, which lose as much information, but keep the differences of depth.

Shapes: n spots, m columns of all factors, K axes.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import linalg, sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

sys.path.insert(0, str(Path(__file__).parent))
import choose
import fit
import mixtures
from evaluate import depth_explained

from stampy import pp
from stampy.pp._thinning import halves, regions
from stampy.tl._embedding.context import smoothed
from stampy.tl._embedding.spaces import unit
from stampy.tl._evaluation.label_free import _mixing
from stampy.tl._methods.principal_components import principal_components
from stampy.train._spectral_start import anomaly_of_rank

COPIED = 250  # spots per training section
SHARES = {"quarter": (0, 0.5), "fifth": (0, 0.4), "tenth": (1, 0.2)}  # half that is thinned, and to which share


def thinned(counts, share, rng):
    """Each molecule is kept with this probability."""
    found = sparse.csr_matrix(counts, copy=True)
    found.data = rng.binomial(found.data.astype(np.int64), share).astype(np.float32)
    found.eliminate_zeros()
    return found


def of_equal_depth(counts, total, rng):
    """Exactly `total` molecules of every spot, drawn without replacement; spots with fewer are unchanged."""
    found = sparse.csr_matrix(counts, copy=True)
    for start, end in zip(found.indptr, found.indptr[1:], strict=False):
        own = found.data[start:end].astype(np.int64)
        if own.sum() > total:
            found.data[start:end] = rng.multivariate_hypergeometric(own, total, method="marginals")
    found.eliminate_zeros()
    return found


class Spots:
    """Factors (m columns) of the neighbour covariances of all patients, and all spots in their terms."""

    def __init__(self, folder):
        manifest = pd.read_csv(folder / "pretrain.tsv", sep="\t")
        vocabulary = pp.Vocabulary.load(folder / "genes.tsv")
        gate = np.log1p(anomaly_of_rank(fit.MAX_TOKENS))
        self.weigh = fit.Weighing(vocabulary, gate, np.log1p(vocabulary.divisors))
        self.sections = list(fit.opened(folder, manifest, self.weigh))
        genes = [self.weigh(s.counts, s.rows) for s in self.sections]
        who, parts, self.of = fit.patients(manifest["name"]), [], []
        for patient in pd.unique(who):
            mine = np.flatnonzero(who == patient)
            parts.append(fit.of_patient([genes[i] for i in mine], [self.sections[i].xy for i in mine]))
            self.of += [patient] * parts[-1].shape[1]
        self.columns = np.hstack(parts)
        self.gram = (self.columns.T @ self.columns).astype(np.float64)
        self.along = {s.name: x @ self.columns for s, x in zip(self.sections, genes, strict=True)}
        self.copies = {s.name: self._copies(s) for s in self.sections}

    def _copies(self, section):
        """Chosen rows, and their copies with fewer molecules in terms of all factors."""
        rng = np.random.default_rng(fit.SEED)
        rows = np.sort(rng.permutation(len(section.xy))[:COPIED])
        pair = halves(section.counts[rows], rng)
        copies = [*pair, *(thinned(pair[side], share, rng) for side, share in SHARES.values())]
        return rows, [self.weigh(c, section.rows) @ self.columns for c in copies]

    def axes(self, tissue, k=fit.N_AXES):
        """Axes (m, K) without a tissue."""
        names = choose.TISSUES[tissue][0]
        kept = np.array([not (names and of.startswith(names)) for of in self.of], dtype=np.float64)
        small = kept[:, None] * self.gram * kept
        values, vectors = linalg.eigh((small + small.T) / 2, subset_by_index=[len(small) - k, len(small) - 1])
        return kept[:, None] * vectors[:, ::-1] / np.sqrt(values[::-1])

    def training(self, tissue, axes):
        """Features of all training spots, of the chosen ones, and of each of their copies."""
        names = choose.TISSUES[tissue][0]
        kept = [s.name for s in self.sections if not (names and s.name.startswith(names))]
        chosen = np.vstack([self.along[n][self.copies[n][0]] for n in kept]) @ axes
        copies = [np.vstack([self.copies[n][1][i] for n in kept]) @ axes for i in range(2 + len(SHARES))]
        return np.vstack([self.along[n] for n in kept]) @ axes, chosen, copies


def without(directions):
    """Projection (K, K) that removes the span of columns."""
    basis = np.linalg.qr(directions)[0]
    return np.eye(len(basis)) - basis @ basis.T


def scaled(features):
    """Principal components (K, k) as in `fit.head_of`, without those of no variance."""
    values, vectors = np.linalg.eigh(np.cov(features.T))
    kept = values > 1e-9 * values.max()
    return vectors[:, kept] / values[kept] ** 0.25


def plain(training, chosen, copies):
    """The head of the packaged gene encoder: a matrix (K, k)."""
    return scaled(training)


def mean_removed(training, chosen, copies, k=0):
    """Without the direction of the mean, and without `k` directions of thinning."""
    head = without(training.mean(axis=0)[:, None])
    head = head @ scaled(training @ head)
    if not k:
        return head
    centre = training.mean(axis=0)
    start = unit((chosen - centre) @ head)
    changes = np.vstack([unit((c - centre) @ head) - start for c in copies])
    return head @ without(np.linalg.eigh(changes.T @ changes)[1][:, -k:])


def reliable(training, chosen, copies, k=112):
    """The `k` axes with the largest ratio of covariance between halves to noise and changes by thinning."""
    head = without(training.mean(axis=0)[:, None])
    basis = head @ scaled(training @ head)
    a, b = ((x - x.mean(axis=0)) @ basis for x in copies[:2])
    shared, noise = a.T @ b / len(a), (a - b).T @ (a - b) / len(a) / 2
    for copy in [copies[0], *copies[2:]]:
        change = (copy - chosen) @ basis
        noise += change.T @ change / len(change)
    noise += 0.02 * np.trace(noise) / len(noise) * np.eye(len(noise))
    ratio, vectors = linalg.eigh((shared + shared.T) / 2, noise)
    ratio, vectors = np.clip(ratio[::-1][:k], 0, None), vectors[:, ::-1][:, :k]
    return basis @ (vectors * ratio / (1 + ratio) ** 1.5)


HEADS = {
    "as packaged": (plain, fit.N_AXES),
    "mean": (mean_removed, fit.N_AXES),
    "mean and 12 of thinning": (lambda *x: mean_removed(*x, k=12), fit.N_AXES),
    "mean and 12 of thinning, 256 axes": (lambda *x: mean_removed(*x, k=12), 256),
    "reliability": (reliable, fit.N_AXES),
}


class Judged(choose.Judged):
    """An evaluated section with copies for the measures of depth."""

    def __init__(self, section, spots):
        rng = np.random.default_rng(fit.SEED)
        super().__init__(section, spots.weigh, spots.columns, rng)
        whole = self.counts[0]
        self.molecules = np.asarray(whole.sum(axis=1), dtype=float).ravel()
        self.deep = self.molecules >= (total := int(np.quantile(self.molecules, 0.1)))
        self.counts += [thinned(whole, 0.2, rng), of_equal_depth(whole, total, rng)]
        self.along += [spots.weigh(c, section.rows) @ spots.columns for c in self.counts[3:]]

    def depths(self, values):
        """R² of log depth from halves, per spot and in context, and mixing with copies of 20 %."""
        log, found = np.log1p(self.molecules), {}
        for title, where in (("", lambda x: x), (", in context", lambda x: unit(smoothed(x, self.xy)))):
            found[f"depth{title}"] = np.mean([depth_explained(where(x), log, self.folds) for x in values[1:3]])
        return found | {"mixing": _mixing(np.vstack([values[0], values[3]]), np.repeat([0, 1], len(log)))}

    def control(self, values):
        """R² of log depth from whole spots, from copies of 20 %, and from copies of equal depth."""
        log, folds = np.log1p(self.molecules[self.deep]), regions(self.xy[self.deep])
        titles = {"as it is": values[0], "20 %": values[3], "equal depth": values[4]}
        return {title: depth_explained(x[self.deep], log, folds) for title, x in titles.items()}


def in_cortex(embed, spots, codes):
    """Coherence of seven domains of the cortex section in context, and their ARI with layers by marker genes."""
    section = next(s for s in spots.sections if s.name == choose.CORTEX)
    values, known = unit(smoothed(embed(spots.along[choose.CORTEX]), section.xy)), codes >= 0
    found = [KMeans(7, n_init=3, random_state=seed).fit_predict(values) for seed in range(3)]
    ari = np.mean([adjusted_rand_score(codes[known], f[known]) for f in found])
    return {"cortex, coherence": choose.coherence(values, section.xy, 7), "cortex, ARI": ari}


def fitted(spots, tissue, name):
    """Function from spots in terms of all factors to embeddings."""
    make, k = HEADS[name]
    axes = spots.axes(tissue, k)
    training, *rest = spots.training(tissue, axes)
    head = make(training, *rest)
    turn, shift = axes @ head, training.mean(axis=0) @ head
    return lambda x: unit((x @ turn - shift).astype(np.float32))


def measured(spots, labels, codes):
    """One row per head and section, and one of controls per embedding and section."""
    tissues = {s.name: next((t for t, (n, _) in choose.TISSUES.items() if s.name.startswith(n)), "")
               for s in spots.sections}  # fmt: skip
    chosen = [s for s in spots.sections if s.name in choose.PATIENTS or tissues[s.name] not in ("breast", "")]
    judged, rows, controls = [Judged(s, spots) for s in chosen], [], []
    for j in judged:
        values = [unit(principal_components(c)[0]) for c in j.counts]
        controls.append({"embedding": "PCA", "section": j.name, "tissue": tissues[j.name], **j.control(values)})
        mixing = {"mixing": np.nan}  # thinned copies have axes of their own
        rows.append(row("PCA of the section", j, tissues, values, labels) | mixing)
    for name in HEADS:
        for tissue in filter(None, choose.TISSUES):
            embed = fitted(spots, tissue, name)
            for j in (j for j in judged if tissues[j.name] == tissue):
                values = [embed(x) for x in j.along]
                rows.append(row(name, j, tissues, values, labels))
                if name in ("as packaged", "mean and 12 of thinning"):
                    controls.append({"embedding": name, "section": j.name, "tissue": tissue, **j.control(values)})
        if labels:
            rows[-1] |= in_cortex(fitted(spots, "", name), spots, codes)
        print(f"{name}: done", flush=True)
    return pd.DataFrame(rows), pd.DataFrame(controls)


def row(name, j, tissues, values, labels):
    found = {"head": name, "section": j.name, "tissue": tissues[j.name], **j.depths(values)}
    return found | (j.measures(values.__getitem__) if labels else j.scores(values.__getitem__))


def markdown(table, index):
    """Means over tissues (labels: over patients)."""
    lines = []
    for name, part in table.groupby(index, sort=False):
        numbers = part.groupby("tissue").mean(numeric_only=True).mean()
        if not lines:
            lines = [f"| {index} | {' | '.join(numbers.index)} |", "|---" * (len(numbers) + 1) + "|"]
        cells = (("" if np.isnan(x) else f"{x:.4f}" if "score" in k else f"{x:.3f}") for k, x in numbers.items())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--labels", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)
    cortex = ad.read_h5ad(arguments.folder / f"{choose.CORTEX}.h5ad")
    codes = mixtures.layers(cortex.X, cortex.var["symbol"].str.upper().to_numpy(), cortex.obsm["spatial"].astype(float))
    table, controls = measured(Spots(arguments.folder), arguments.labels, codes)
    each = [
        f"| {r.embedding} | {r.section} | {' | '.join(f'{x:.2f}' for x in r[3:])} |" for _, r in controls.iterrows()
    ]
    lines = [*markdown(table, "head"), "", *markdown(controls, "embedding"), "", *each]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
