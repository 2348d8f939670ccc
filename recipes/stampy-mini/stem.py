"""Information about genes in sharp tiles: features, baselines and the packaged encoder, with one section held out.

    python recipes/stampy-mini/stem.py [--model stampy-mini] [--cache FOLDER] [--out FILE.md]

HER2ST C2 to C6, in full resolution. Features of four sections, standardised within a section, are mapped by ridge to
genes and to the gene embedding of the model, and evaluated on the fifth: mean correlation of 250 genes, and recall@10
within the section. A second table evaluates the encoder of `fit_image.py` without standardisation, with its head fitted
without the fifth section, on copies of that section: unchanged, reduced, with another stain, and turned or mirrored
(mean over the seven ways: serial sections lie in the same direction).
"""

from __future__ import annotations

import argparse
import functools
import warnings
from pathlib import Path

import fit_image
import numpy as np
import torch
from scipy import ndimage

import stampy
from stampy import models
from stampy.pp._tiles import TileSource
from stampy.tl._embedding.spaces import unit
from stampy.tl._methods.linear_models import Scaler, solve_ridge, transformed

SCALES = (0.0, 1.0, 2.0, 4.0)  # px, of the smoothing before the texture is computed
N_GENES = 250
TILE_PX = 112


def colour(tiles):
    """Mean and standard deviation of the three channels (n, 6)."""
    pixels = tiles.reshape(len(tiles), -1, 3) / 255.0
    return np.hstack([pixels.mean(axis=1), pixels.std(axis=1)])


def texture(tiles):
    """Standard deviation and mean gradient magnitude of each channel at four scales (n, 24)."""
    rows = []
    for tile in tiles / 255.0:
        found = []
        for sigma in SCALES:
            smooth = ndimage.gaussian_filter(tile, (sigma, sigma, 0)) if sigma else tile
            steps = [np.abs(np.diff(smooth, axis=axis)).mean(axis=(0, 1)) for axis in (0, 1)]
            found += [smooth.std(axis=(0, 1)), sum(steps)]
        rows.append(np.concatenate(found))
    return np.array(rows)


@functools.lru_cache
def baselines(name, px=None):
    """Features of tiles, and of tiles with surroundings, by name; `px`: reduced to so many px per tile."""
    adata, kwargs = fit_image.opened(name)
    source, rows = TileSource.open(adata, size_px=TILE_PX, **kwargs), np.arange(adata.n_obs)
    tiles, regions = source.read(rows), source.read(rows, region=True)
    if px is not None:
        views = torch.from_numpy(np.stack([tiles, regions], axis=1)).movedim(-1, -3).float()
        views = fit_image.coarser(views, px).clamp(0, 255).round().byte().movedim(-3, -1).numpy()
        tiles, regions = views[:, 0], views[:, 1]
    found = {"mean and deviation of colour": [colour(x) for x in (tiles, regions)]}
    found["colour + texture"] = [np.hstack([colour(x), texture(x)]) for x in (tiles, regions)]
    own = {k: own for k, (own, _) in found.items()}
    return own | {f"{k}, with surroundings": np.hstack(v) for k, v in found.items()}


def recall(predicted, genes, k=10):
    """Fraction of spots whose own genes are among the k nearest to the prediction from their image."""
    scores = unit(predicted) @ unit(genes).T
    return float(((scores > np.diag(scores)[:, None]).sum(axis=1) < k).mean())


def correlation(predicted, genes):
    """Mean over the genes that are not constant."""
    pairs = zip(predicted.T, genes.T, strict=True)
    return np.mean([np.corrcoef(p, t)[0, 1] for p, t in pairs if t.std() > 0])


def centred(values):
    return values - values.mean(axis=0)


def logged(names, new=()):
    """Log counts (n, N_GENES) of the genes most variable in `names`, by section; those of `new` are measured there."""
    names = [*names, *new]
    sections = {name: stampy.datasets.load(name) for name in names}
    shared = sorted(set.intersection(*(set(s.var_names) for s in sections.values())))
    found = {name: transformed(s[:, shared].X.tocsr(), "log1p_cp10k").toarray() for name, s in sections.items()}
    known = np.vstack([values for name, values in found.items() if name not in new])
    variable = np.sort(np.argsort(-known.var(axis=0))[:N_GENES])
    return {name: values[:, variable] for name, values in found.items()}


def standardised_rows(features, genes, vectors):
    """For each feature set: correlation and recall@10 of a ridge from standardised features."""
    names = list(genes)
    for feature in features[names[0]]:
        x = {name: Scaler(features[name][feature])(features[name][feature]) for name in names}
        found = []
        for out in names:
            rest = [name for name in names if name != out]
            targets = np.vstack([np.hstack([centred(genes[n]), centred(vectors[n])]) for n in rest])
            w, b = solve_ridge(np.vstack([x[n] for n in rest]), targets, float(x[out].shape[1]))
            predicted = x[out] @ w + b
            r = correlation(predicted[:, :N_GENES], genes[out])
            found.append((r, recall(predicted[:, N_GENES:], centred(vectors[out]))))
        yield f"| {feature} | {spread(found)} |"


def encoder_rows(sections, genes, cache, model):
    """The encoder fitted without a section, on copies of it: vectors as of `tl.embed`, and with `center="section"`."""
    judged = {name: fit_image.features_of(name, model.image, cache) for name in genes}
    guises = {
        "as it is": ["as it is"],
        "34 px across a tile": ["coarse 34"],
        "another stain": [f"stain {fit_image.N_STAINS}"],
        "turned or mirrored": [f"turn {turn}" for turn in range(1, 8)],
    }
    heads = {}
    for out in genes:
        rest = [s for s in sections if s.name != out]
        pairs = [s._replace(genes=genes[s.name]) for s in rest if s.name in genes]
        heads[out] = fit_image.fitted(rest), fit_image.fitted(pairs, noise=None, smooth=0)
    for title, copies in guises.items():
        found = []
        for out, (head, direct) in heads.items():
            vectors = next(s.genes for s in sections if s.name == out)
            found.append(
                np.mean([judged_copy(judged[out][c], head, direct, vectors, genes[out]) for c in copies], axis=0)
            )
        yield f"| {title} | {spread(found)} |"


def judged_copy(x, head, direct, vectors, genes):
    """Correlation of genes, and recall@10 without and with centring, for one copy of a section."""
    embedded = unit(head(x))
    return correlation(direct(x), genes), recall(embedded, vectors), recall(centred(embedded), centred(vectors))


def spread(found):
    mean, deviation = np.mean(found, axis=0), np.std(found, axis=0)
    return " | ".join(f"{m:.3f} ± {d:.3f}" for m, d in zip(mean, deviation, strict=True))


def tables(model, cache):
    names = fit_image.SHARP
    genes = logged(names)
    sections = [fit_image.pairs_of(name, model, cache) for name in names + fit_image.REDUCED]
    vectors = {s.name: s.genes for s in sections}
    features = {s.name: baselines(s.name) | {"the encoder's features": s.features} for s in sections if s.name in genes}
    chance = np.mean([10 / len(vectors[name]) for name in names])
    yield f"| feature | correlation of {N_GENES} genes | recall@10 (chance {chance:.3f}) |"
    yield "|---|---|---|"
    yield from standardised_rows(features, genes, vectors)
    yield ""
    yield f'| encoder, section left out | correlation of {N_GENES} genes | recall@10 | with `center="section"` |'
    yield "|---|---|---|---|"
    yield from encoder_rows(sections, genes, cache, model)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stampy-mini")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", stampy.StampyWarning)
    lines = []
    for line in tables(models.load(arguments.model, device="cpu"), arguments.cache):
        print(line, flush=True)
        lines.append(line)
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
