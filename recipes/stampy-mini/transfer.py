"""What the image encoder of stampy-mini contributes beyond the pairs that its head was fitted to.

    python recipes/stampy-mini/transfer.py [--model stampy-mini] [--cache FOLDER] [--out FILE.md] [--final]

- Genes of other tissues and patients: a ridge from HER2ST C2 to C6, in full resolution and reduced to 34 px per tile.
- Halves: a ridge from one half of a section with a coarse image to the other, as for an embedding in a new study.
- The score of `tl.evaluate`, which needs no labels, with the head fitted without the section.

The first table is of other tissues; with `--final`, only this table is printed, for the held-out patient A, which is
looked at once, after all settings are fixed.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import fit_image
import numpy as np
import stem
from stem import centred, correlation

import stampy
from stampy import models
from stampy.tl._embedding.spaces import unit
from stampy.tl._methods.linear_models import Scaler, solve_ridge

COARSE, FEATURES = "coarse 34", "the encoder's features"
FINAL = ["HER2ST_A1", "HER2ST_A2"]
HALVES_AT = 0.055  # share of spots among which a spot's own genes are sought, as recall@10 in patient C
N_SPLITS = 3


def features(name, model, cache):
    """Features of a section by name; for a sharp section, also those of its copy of 34 px per tile."""
    own = fit_image.features_of(name, model.image, cache)
    found = [stem.baselines(name) | {FEATURES: own["as it is"]}]
    if COARSE in own:
        found.append(stem.baselines(name, fit_image.COARSE_PX[0]) | {FEATURES: own[COARSE]})
    return found


def other_rows(names, model, cache):
    """Genes of other sections by ridge from all sharp sections and their reduced copies.

    Each column is standardised within its own section and resolution, or by the training rows alone.
    """
    ours = fit_image.SHARP
    yield f"| correlation of {stem.N_GENES} genes | standardised | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    train, judged = [features(n, model, cache) for n in ours], {n: features(n, model, cache)[0] for n in names}
    genes = {name: stem.logged(ours, [name]) for name in names}
    copies = [(n, copy) for n, found in zip(ours, train, strict=True) for copy in found]
    for feature in train[0][0]:
        for title in ("within each section", "by the training sections"):
            own = title.startswith("within")
            rs = []
            for name in names:
                x = [copy[feature] for _, copy in copies]
                whole = Scaler(np.vstack(x))
                scaled = np.vstack([(Scaler(v) if own else whole)(v) for v in x])
                new = judged[name][feature]
                targets = np.vstack([centred(genes[name][n]) for n, _ in copies])
                w, b = solve_ridge(scaled, targets, float(new.shape[1]) * len(train[0]))
                rs.append(correlation((Scaler(new) if own else whole)(new) @ w + b, genes[name][name]))
            yield f"| {feature} | {title} | " + " | ".join(f"{r:.3f}" for r in rs) + " |"
    rs = []
    for name in names:
        pairs = [fit_image.pairs_of(n, model, cache)._replace(genes=genes[name][n]) for n in ours]
        rs.append(correlation(fit_image.fitted(pairs, noise=None, smooth=0)(judged[name][FEATURES]), genes[name][name]))
    yield "| the encoder's features, ridge of `fit_image.py` | neither | " + " | ".join(f"{r:.3f}" for r in rs) + " |"


def halves(xy):
    """Masks of the training half: left, right, upper, lower."""
    for axis in (0, 1):
        first = xy[:, axis] < np.median(xy[:, axis])
        yield from (first, ~first)


def half_recall(x, vectors, xy):
    """Share of spots whose genes are found by a ridge from the other half, mean over four splits."""
    x, found = Scaler(x)(x), []
    for train in halves(xy):
        mean = vectors[train].mean(axis=0)
        w, b = solve_ridge(x[train], vectors[train] - mean, float(x.shape[1]))
        k = round(HALVES_AT * (~train).sum())
        found.append(stem.recall(x[~train] @ w + b, vectors[~train] - mean, k))
    return np.mean(found)


def half_rows(model, cache):
    """Coarse images of other tissues; the second encoder's head was fitted to patient C alone."""
    names = fit_image.REDUCED
    sections = [fit_image.pairs_of(n, model, cache) for n in fit_image.SHARP]
    alone = fit_image.fitted(sections)
    head = fit_image.fitted([*sections, *(fit_image.pairs_of(n, model, cache) for n in names)])
    yield f"| recall in the first {HALVES_AT:.1%} | " + " | ".join(names) + " |"
    yield "|---|" + "---|" * len(names)
    rows = {}
    for name in names:
        own = fit_image.features_of(name, model.image, cache)["as it is"]
        found = stem.baselines(name) | {FEATURES: own}
        found["image embedding, head fitted to patient C alone"] = unit(alone(own))
        found["image embedding"] = unit(head(own))
        pairs, xy = fit_image.pairs_of(name, model, cache), fit_image.opened(name)[0].obsm["spatial"].astype(float)
        for title, x in found.items():
            rows.setdefault(title, []).append(half_recall(x, pairs.genes, xy))
        rows.setdefault("the head of patient C, not fitted again", []).append(
            stem.recall(centred(alone(own)), centred(pairs.genes), round(HALVES_AT * len(own)))
        )
    for title, values in rows.items():
        yield f"| {title} | " + " | ".join(f"{v:.3f}" for v in values) + " |"


def label_free_rows(model, cache):
    """Score of `tl.evaluate` of image vectors, genes and both; the head is fitted without the section."""
    yield "| score of `tl.evaluate` | genes | image | genes and image |"
    yield "|---|---|---|---|"
    everything = [fit_image.pairs_of(n, model, cache) for n in fit_image.SHARP + fit_image.REDUCED]
    for name in [*fit_image.SHARP, "LymphNode_V1_human"]:
        head = fit_image.fitted([s for s in everything if s.name != name])
        adata, _ = fit_image.opened(name)
        image = dict(
            zip(adata.obs_names, unit(head(next(s.features for s in everything if s.name == name))), strict=True)
        )

        def genes_of(half):
            stampy.tl.embed(half, model, modality="gene", key_added="X", show_progress_bar=False)
            return half.obsm["X"]

        def image_of(half, image=image):
            return np.stack([image[spot] for spot in half.obs_names])

        jobs = {"genes": genes_of, "image": image_of, "both": lambda half: np.hstack([genes_of(half), image_of(half)])}
        stampy.tl.evaluate(adata, jobs, n_splits=N_SPLITS)
        scores = adata.uns["stamp_evaluate"]["scores"]["score"]
        yield f"| {name} | " + " | ".join(f"{scores[key]:.3f}" for key in jobs) + " |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stampy-mini")
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--final", action="store_true")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", stampy.StampyWarning)
    model, lines = models.load(arguments.model, device="cpu"), []
    tables = [other_rows(FINAL if arguments.final else fit_image.REDUCED, model, arguments.cache)]
    if not arguments.final:
        tables += [half_rows(model, arguments.cache), label_free_rows(model, arguments.cache)]
    for table in tables:
        for line in (*table, ""):
            print(line, flush=True)
            lines.append(line)
    if arguments.out:
        arguments.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
