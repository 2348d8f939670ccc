"""Attention pooling fitted to bags of tiles, and the mean of the tiles as baseline. Arrays only.

Shapes: S slides, n tiles of a slide, D size of a feature, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F

from stampy._utils import float64
from stampy.models import GatedAttentionMIL

__all__ = ["AttentionPooling", "MeanPooling", "Recipe", "one_thread"]

Bag = Callable[[int], np.ndarray]  # index of a slide -> its tiles (n, D)

_PREDICT_ROWS = 8192  # tiles scored at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Training parameters of attention pooling."""

    hidden: int = 128
    n_epochs: int = 60
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    slides_per_step: int = 8
    max_tiles: int = 2048  # of a slide per step, drawn in each epoch


@contextlib.contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Use one thread on the CPU, so that sums have a fixed order and results do not depend on the number of threads."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class AttentionPooling:
    """Gated attention pooling, trained on some slides.

    Parameters
    ----------
    n_classes
        Number of classes.
    recipe
        Training parameters.
    random
        Generator for initial weights, order of slides and tiles.
    device
        Device for training.
    """

    def __init__(self, n_classes: int, recipe: Recipe, random: np.random.Generator, device: torch.device):
        self.n_classes, self.recipe, self.random, self.device = n_classes, recipe, random, device

    def fit(self, bag: Bag, slides: np.ndarray, classes: np.ndarray) -> AttentionPooling:
        """Train on `slides` (S,) of `classes` (S,), with equal total weight per class."""
        self.mean, self.std = moments(bag, slides)
        generator = torch.Generator().manual_seed(int(self.random.integers(2**63)))
        self.model = GatedAttentionMIL(len(self.mean), self.n_classes, hidden=self.recipe.hidden, generator=generator)
        self.model.to(self.device).train()
        weight = len(slides) / (self.n_classes * np.bincount(classes, minlength=self.n_classes))
        self._weight = torch.from_numpy(weight.astype(np.float32)).to(self.device)
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.recipe.learning_rate, weight_decay=self.recipe.weight_decay
        )
        n_steps = -(-len(slides) // self.recipe.slides_per_step)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.recipe.n_epochs * n_steps)
        for _ in range(self.recipe.n_epochs):
            for part in np.array_split(self.random.permutation(len(slides)), n_steps):
                loss = self._loss(bag, slides[part], classes[part])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
        return self

    def _loss(self, bag: Bag, slides: np.ndarray, classes: np.ndarray) -> torch.Tensor:
        tiles = [self._scaled(_drawn(bag(s), self.recipe.max_tiles, self.random)) for s in slides]
        lengths = torch.tensor([len(t) for t in tiles], device=self.device)
        x_BND = torch.nn.utils.rnn.pad_sequence(tiles, batch_first=True)
        target = torch.from_numpy(classes).to(self.device)
        return F.cross_entropy(self.model(x_BND, lengths).logits, target, weight=self._weight)

    def _scaled(self, tiles: np.ndarray) -> torch.Tensor:
        return torch.from_numpy((tiles - self.mean) / self.std).to(self.device)

    @torch.no_grad()
    def predict(self, tiles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities (C,) of a slide from all its tiles (n, D), and the tiles' attention (n,), which sums to 1."""
        self.model.eval()
        parts = [
            self.model.embed(self._scaled(np.asarray(tiles[i : i + _PREDICT_ROWS], dtype=np.float32)))
            for i in range(0, len(tiles), _PREDICT_ROWS)
        ]
        attention = float64(torch.cat([score for _, score in parts])).softmax(dim=0)
        starts = range(0, len(tiles), _PREDICT_ROWS)
        weighed = [attention[i : i + _PREDICT_ROWS] @ float64(h) for i, (h, _) in zip(starts, parts, strict=True)]
        pooled = reduce(torch.add, weighed)
        logits = self.model.classify(pooled.float().to(self.device))
        return float64(logits).softmax(dim=0).cpu().numpy(), attention.cpu().numpy()


class MeanPooling:
    """Logistic regression on the mean of a slide's tiles."""

    def fit(self, means: np.ndarray, classes: np.ndarray) -> MeanPooling:
        """Fit to the slides' means (S, D)."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        regression = LogisticRegression(class_weight="balanced", max_iter=5000)
        self.model = make_pipeline(StandardScaler(), regression).fit(means, classes)
        return self

    def predict(self, means: np.ndarray) -> np.ndarray:
        """Probabilities (S, C)."""
        return self.model.predict_proba(means)


def moments(bag: Bag, slides: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (D,) float32 over the tiles, with equal weight per slide."""
    mean = np.mean([bag(s).mean(axis=0, dtype=np.float64) for s in slides], axis=0)
    square = np.mean([((bag(s) - mean) ** 2).mean(axis=0) for s in slides], axis=0)
    std = np.sqrt(square)
    flat = std <= 1e-6 * max(float(std.max()), float(np.abs(mean).max()))
    return mean.astype(np.float32), np.where(flat, 1, std).astype(np.float32)


def _drawn(tiles: np.ndarray, most: int, random: np.random.Generator) -> np.ndarray:
    """All tiles, or `most` random ones, as float32."""
    if len(tiles) > most:
        tiles = tiles[np.sort(random.choice(len(tiles), most, replace=False))]
    return np.asarray(tiles, dtype=np.float32)
