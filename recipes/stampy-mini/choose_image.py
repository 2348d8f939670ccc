"""Choose the settings of the image head of stampy-mini by nested leave-one-out over HER2ST C2 to C6.

    python recipes/stampy-mini/choose_image.py --stem FILE [--model stampy-mini] [--cache FOLDER] [--out FILE.md]

A setting is judged by recall@10 of a section that the head was not fitted to, without and with `center="section"`, on
four copies of it: as it is, reduced to 34 px per tile, in another stain, and turned or mirrored. Nested: for each
section, the setting that is best on the four others is judged on this one, with a head fitted to those four; so the
figure is not optimistic by the choice. The weight of the coarse sections of other tissues is not chosen in this way:
smaller weights are better here and worse there (`transfer.py`). `FILE` is the stem of `fit_image.py`.

All settings share sums of products, which are made once for each set of training sections.
"""

from __future__ import annotations

import argparse
import itertools
import warnings
from pathlib import Path
from typing import NamedTuple

import fit_image
import numpy as np
from scipy.linalg import cho_factor, cho_solve
from stem import centred, recall

import stampy
from stampy import models
from stampy.models._stem import BLOCKS, STEM_CHANNELS
from stampy.tl._embedding.spaces import unit

GUISES = {
    "as it is": ("as it is",),
    "34 px": ("coarse 34",),
    "another stain": (f"stain {fit_image.N_STAINS}",),
    "turned": ("turn 1", "turn 6"),
}
RIDGES, NOISES = (0.75, 1.5, 3.0), (None, 3.0, 1.0)


class Setting(NamedTuple):
    """Settings of `fit_image.fitted`, and number of blocks (0: all)."""

    blocks: int = 0
    coarse: float = fit_image.COARSE_WEIGHT
    reduced: float = fit_image.REDUCED_WEIGHT
    turn: float = fit_image.TURN
    stain: float = fit_image.STAIN
    smooth: float = fit_image.SMOOTH


EARLIER = Setting(blocks=8, coarse=0.5, reduced=1.0, turn=0.0, smooth=0.0)  # with ridge 1.5, without noise
SETTINGS = [
    EARLIER,
    Setting(),
    Setting(blocks=8),
    *(Setting(coarse=v) for v in (0.5, 2.0)),
    *(Setting(turn=v) for v in (0.0, 0.1, 1.0)),
    *(Setting(stain=v) for v in (0.5, 2.0)),
    *(Setting(smooth=v) for v in (0.0, 0.6)),
    *(Setting(reduced=v) for v in (0.3, 1.0)),
]


def columns(stem, n_blocks):
    """Columns of the features of a stem that the first `n_blocks` of it give; 0: all."""
    sizes = {-1: STEM_CHANNELS} | {i: BLOCKS[i][-1] for i in stem.kept}
    view = np.repeat([i < (n_blocks or len(stem.blocks)) for i in sizes], [2 * size for size in sizes.values()])
    return np.flatnonzero(np.tile(view, 2))


class Section:
    """Features of a section and its products, per spot and centred."""

    def __init__(self, name, model, cache):
        pairs = fit_image.pairs_of(name, model, cache)
        self.name, self.genes, self.features = name, pairs.genes.astype(np.float64), pairs.features.astype(np.float64)
        targets = centred(np.hstack([self.genes, pairs.around]))
        self.products = {"sharp" if pairs.coarse else "reduced": self._products([self.features], targets)}
        if pairs.coarse:
            self.products["coarse"] = self._products(pairs.coarse, targets)
            self.changes = {"stain": self._changes(pairs.stained), "turn": self._changes(pairs.turned)}
            found = fit_image.features_of(name, model.image, cache)
            self.guises = {title: [found[key] for key in keys] for title, keys in GUISES.items()}

    def _products(self, copies, targets):
        rows = [centred(x.astype(np.float64)) for x in copies]
        return sum(x.T @ x for x in rows) / len(targets), sum(x.T @ targets for x in rows) / len(targets)

    def _changes(self, copies):
        rows = np.vstack([x - self.features for x in copies])
        return rows.T @ rows / len(copies)


class Training:
    """Sums over the training sections, scaled, from which every setting is fitted."""

    def __init__(self, sharp, reduced):
        features = np.vstack([s.features for s in sharp])
        self.sharp, self.center = sharp, features.mean(axis=0)
        spread = np.vstack([centred(s.features) for s in sharp]).std(axis=0)
        self.rate = 1 / np.maximum(spread, fit_image.LEAST_SPREAD)
        self.n, self.n_embedding = {"sharp": len(sharp), "reduced": len(reduced)}, sharp[0].genes.shape[1]
        both = [*sharp, *reduced]
        self.among, self.between = {}, {}
        for part in ("sharp", "coarse", "reduced"):
            found = [s.products[part] for s in both if part in s.products]
            self.among[part] = self._scaled(sum(a for a, _ in found))
            self.between[part] = sum(b for _, b in found) * self.rate[:, None]
        self.changes = {k: self._scaled(sum(s.changes[k] for s in sharp) / len(features)) for k in ("stain", "turn")}

    def _scaled(self, matrix):
        return matrix * self.rate * self.rate[:, None]

    def heads(self, setting, columns):
        """Yield ridge, noise and the weights of the head (D, E)."""
        c, e = columns, self.n_embedding
        weights = {"sharp": 1.0, "coarse": setting.coarse, "reduced": setting.reduced}
        total = self.n["sharp"] * (1 + len(fit_image.COARSE_PX) * setting.coarse) + self.n["reduced"] * setting.reduced
        among = sum(weights[k] / total * v for k, v in self.among.items())
        among = (among + setting.stain * self.changes["stain"] + setting.turn * self.changes["turn"])[np.ix_(c, c)]
        between = sum(weights[k] / total * v[c] for k, v in self.between.items())
        between = (1 - setting.smooth) * between[:, :e] + setting.smooth * between[:, e:]
        for ridge in RIDGES:
            weight = np.zeros((len(self.rate), e))
            weight[c] = cho_solve(cho_factor(among + ridge * np.eye(len(c))), between)
            head = fit_image.Head(self.center, self.rate, weight)
            for noise in NOISES:
                shaped = weight if noise is None else weight @ fit_image.precision(head, self.sharp, noise)
                yield ridge, noise, head._replace(weight=shaped)


def judged(head, section):
    """Recall@10 by guise, without and with centring (2 x guises,)."""
    found = []
    for copies in section.guises.values():
        vectors = [unit(head(x)) for x in copies]
        found.append(np.mean([recall(v, section.genes) for v in vectors]))
        found.append(np.mean([recall(centred(v), centred(section.genes)) for v in vectors]))
    return np.array(found)


def everything(sharp, reduced, stem):
    """Recalls by setting, section, and the other section that was left out as well (None: no other)."""
    found = {}
    for out in [*((s,) for s in sharp), *itertools.combinations(sharp, 2)]:
        training = Training([s for s in sharp if s not in out], reduced)
        for setting in SETTINGS:
            for ridge, noise, head in training.heads(setting, columns(stem, setting.blocks)):
                for i, section in enumerate(out):
                    other = out[1 - i].name if len(out) == 2 else None
                    key = (setting, ridge, noise)
                    found.setdefault(key, {})[section.name, other] = judged(head, section)
        print("left out:", *(s.name for s in out), flush=True)
    return found


def nested(found, names):
    """Recalls of the settings that are best on the other sections, and these settings."""
    rows, chosen = [], []
    for out in names:
        best = max(found, key=lambda k: np.mean([found[k][name, out] for name in names if name != out]))
        chosen.append(best)
        rows.append(found[best][out, None])
    return np.array(rows), chosen


def described(setting, ridge, noise):
    differs = [f"{f} {v}" for f, v in setting._asdict().items() if v != Setting._field_defaults[f]]
    return f"{', '.join(differs) or 'as packaged'}; ridge {ridge}, noise {noise}"


def line(title, rows):
    return f"| {title} | " + " | ".join(f"{v:.3f}" for v in rows.mean(axis=0)) + f" | {rows.mean():.3f} |"


def table(found, names):
    yield "| recall@10, without and with centring | " + " | ".join(f"{g} | centred" for g in GUISES) + " | mean |"
    yield "|---|" + "---|---|" * len(GUISES) + "---|"
    mean = {key: np.array([rows[name, None] for name in names]) for key, rows in found.items()}
    yield line("earlier encoder", mean[EARLIER, 1.5, None])
    for setting in SETTINGS[1:]:
        best = max((k for k in mean if k[0] == setting), key=lambda k: mean[k].mean())
        yield line(described(*best), mean[best])
    rows, chosen = nested({k: v for k, v in found.items() if k[0].reduced == fit_image.REDUCED_WEIGHT}, names)
    yield line("nested", rows)
    yield ""
    for name, (setting, ridge, noise) in zip(names, chosen, strict=True):
        yield f"- for {name}: {described(setting, ridge, noise)}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="stampy-mini")
    parser.add_argument("--stem", type=Path, required=True)
    parser.add_argument("--blocks", type=int, default=fit_image.N_BLOCKS)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", stampy.StampyWarning)
    model = fit_image.with_stem(models.load(arguments.model, device="cpu"), arguments.stem, n_blocks=arguments.blocks)
    sharp, reduced = (
        [Section(n, model, arguments.cache) for n in names] for names in (fit_image.SHARP, fit_image.REDUCED)
    )
    lines = list(table(everything(sharp, reduced, model.image.base_model), fit_image.SHARP))
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
