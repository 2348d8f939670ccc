"""Does centring before the norm help in context, or for label transfer? HER2+ patients B, C, D, F and G.

    python recipes/stampy-mini/centred.py

Embeddings are the packaged axes, those beside the section's own axes (as `stampy.train.adapt(context="neighbors")`
makes them, with a given share and number), and those adapted to all five sections. "centred": the mean vector of a
section is subtracted before the norm. "mean direction": the direction of a section's mean feature is projected out
before that. Transfer and the three ways of guessing are those of `evaluate.py`.

Shapes: n spots, K axes.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from agree import by_labels
from evaluate import CHOOSE, GUESSES, spread, transfer

import stampy
from stampy._labels import known_labels
from stampy.models._linear_gene import linear_parts
from stampy.pp import Vocabulary, _adaptation
from stampy.pp._linear_encoder import SpotGenes, leading_axes, neighbor_graph
from stampy.tl._embedding.context import smoothed
from stampy.tl._embedding.spaces import unit

IN_CONTEXT = [  # share and number of the section's axes; centred; mean direction
    (0.0, 0, False, False), (0.0, 0, True, False), (0.0, 0, True, True),
    (0.1, 16, False, False), (0.1, 16, True, False), (0.1, 16, True, True),
    (0.25, 16, True, False), (0.1, 32, True, True), (0.25, 8, True, True),
]  # fmt: skip


class Patient:
    """A section: weighted genes, its own axes, coordinates and labels."""

    def __init__(self, name, model):
        table, parts = stampy.datasets.load(name), _adaptation.LinearEncoder(*linear_parts(model))
        vocabulary, rng = Vocabulary(model.genes), np.random.default_rng(0)
        piece = _adaptation.pieces_of(table, vocabulary.match, max_spots=None, rng=rng)[0]
        self.xy, self.parts = piece.xy, parts
        self.genes = _adaptation._weighted(piece.counts, piece.rows, parts, vocabulary.divisors)
        self.own = self.genes @ leading_axes([SpotGenes(self.genes, neighbor_graph(self.xy))], 32, rng)
        self.codes = known_labels(table.obs["label"], warn=False)[0]
        self.labels, self.known = table.obs["label"].astype(str).to_numpy(), self.codes >= 0

    def vectors(self, parts, centred, direction):
        """Embedding (n, K) by the parts of a model, before the norm."""
        x = (self.genes @ parts.axes).astype(np.float64)
        if direction:
            mean = unit(x.mean(axis=0)[None])[0]
            x -= np.outer(x @ mean, mean)
        x = x @ parts.head.T
        return x - x.mean(axis=0) if centred else x + parts.bias

    def beside(self, share, k, centred, direction):
        """Axes of model and section side by side, in context."""
        blocks = [(1 - share, self.vectors(self.parts, centred, direction))]
        if share:
            head, bias = _adaptation._head([self.own[:, :k]])
            blocks.append((share, self.own[:, :k] @ head.T + bias))
        joint = np.hstack([np.sqrt(w / np.mean((x**2).sum(axis=1))) * x for w, x in blocks])
        return unit(smoothed(unit(joint), self.xy))

    def for_transfer(self, parts, context, direction):
        values = unit(self.vectors(parts, True, direction))
        if context:
            values = smoothed(values, self.xy)
            values = unit(values - values.mean(axis=0))
        return values[self.known], self.labels[self.known]


def main():
    warnings.simplefilter("ignore", UserWarning)
    model = stampy.models.load("stampy-mini", device="cpu")
    patients = {name: Patient(name, model) for name in CHOOSE}
    print(
        "| share and number of own axes | centred | mean direction | probe, in context | ARI |\n|---|---|---|---|---|"
    )
    for share, k, centred, direction in IN_CONTEXT:
        found = []
        for p in patients.values():
            values = p.beside(share, k, centred, direction)
            found.append(by_labels(values[p.known], p.codes[p.known], p.xy[p.known]))
        probe, ari = np.mean(found, axis=0)
        print(f"| {share}, {k} | {centred} | {direction} | {probe:.3f} | {ari:.3f} |", flush=True)
    print(f"\n| axes | mean direction | | {' | '.join(GUESSES)} |\n|---|---|---|---|---|---|")
    sections, all_parts = [stampy.datasets.load(name) for name in CHOOSE], {"packaged": linear_parts(model)}
    for title, context in (("adapted to all", None), ("adapted to all in context", "neighbors")):
        all_parts[title] = linear_parts(stampy.train.adapt(model, sections, context=context, rng=0))
    for title, parts in all_parts.items():
        for where in ("per spot", "in context"):
            for direction in (False, True):
                found = {n: p.for_transfer(parts, where == "in context", direction) for n, p in patients.items()}
                scores = " | ".join(spread(transfer(found, guess)) for guess in GUESSES.values())
                print(f"| {title} | {direction} | {where} | {scores} |", flush=True)


if __name__ == "__main__":
    main()
