"""Networks trained to predict expression from tiles: ST-Net and EGN.

Shapes: N tiles, B of a batch, G genes, M size of the retrieval feature, K exemplars.
"""

from __future__ import annotations

import logging
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stampy import _checks, _keys
from stampy._settings import DEFAULT_SEED
from stampy._utils import device_of, generator
from stampy.models._systems.catalogue import card
from stampy.models._systems.egn import EGN

__all__ = ["Predictor", "STNet"]

logger = logging.getLogger(__name__)


class Tiles(Protocol):
    """Source of tiles on request, such as stampy's own. An array of tiles is also accepted."""

    size_px: int

    def __len__(self) -> int: ...

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Tiles (m, size, size, 3) uint8 of some rows."""
        ...


class STNet(nn.Module):
    """ST-Net: a DenseNet-121 with a linear head (He et al. 2020), built by timm.

    With 5,000 genes it has 12.08 M trainable parameters, as stated in the paper of STAMP.

    Parameters
    ----------
    n_genes
        Number of genes to predict.
    pretrained
        Start from weights of ImageNet, as its authors do; timm downloads them from the hub.
    """

    def __init__(self, n_genes: int, *, pretrained: bool = False):
        super().__init__()
        import timm

        self.network = timm.create_model("densenet121", pretrained=pretrained, num_classes=n_genes)

    def forward(self, images: Tensor) -> Tensor:
        """Expression (B, G) of images (B, 3, 224, 224), normalised."""
        return self.network(images)

    def start_from(self, mean: Tensor) -> None:
        """Set the bias so that the untrained network predicts the mean expression, as its authors do."""
        head = self.network.get_classifier()
        nn.init.zeros_(head.weight)
        with torch.no_grad():
            head.bias.copy_(mean)


class Predictor:
    """Train ST-Net or EGN on tiles and expression, and predict the expression of other tiles.

    Parameters
    ----------
    name
        ``"stnet"`` or ``"egn"``.
    pretrained
        ST-Net: start from weights of ImageNet (downloaded by timm).
    n_exemplars
        EGN: number of similar spots to use.
    rng
        Seed or generator for initial weights, order and flips; the same seed gives the same network on the same device.
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.
    options
        Further arguments of `EGN`, such as ``depth``.

    Attributes
    ----------
    network
        `STNet` or `EGN`, once fitted.
    losses
        Mean loss of each epoch.

    Examples
    --------
    >>> import numpy as np
    >>> from stampy.models import Predictor
    >>> rng = np.random.default_rng(0)
    >>> tiles = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> small = {"size_px": 32, "patch_px": 16, "width": 16, "depth": 2, "heads": 2, "feedforward": 32}
    >>> egn = Predictor("egn", n_exemplars=3, device="cpu", **small)
    >>> egn.fit(tiles, rng.random((8, 5)), features=rng.random((8, 6)), epochs=1)
    >>> egn.predict(tiles[:2], features=rng.random((2, 6))).shape
    (2, 5)
    """

    def __init__(
        self,
        name: Literal["stnet", "egn"] = "stnet",
        *,
        pretrained: bool = False,
        n_exemplars: int = 9,
        rng: int | np.random.Generator | None = DEFAULT_SEED,
        device: str | torch.device | None = None,
        **options: Any,
    ):
        _checks.one_of("name", name, ("stnet", "egn"))
        _checks.at_least("n_exemplars", n_exemplars, 1)
        if name == "stnet" and options:
            raise TypeError(f"ST-Net takes no {sorted(options)}: its size is given by the number of genes.")
        if name == "egn" and pretrained:
            raise ValueError("EGN has no pretrained weights: omit `pretrained`.")
        self.card, self.pretrained, self.n_exemplars, self.options = card(name), pretrained, n_exemplars, options
        self.device, self._rng = device_of(device), generator(rng)
        self.network: nn.Module | None = None
        self._known: tuple[Tensor, Tensor] | None = None  # features and expression of the training spots
        self.losses: list[float] = []

    def fit(
        self,
        tiles: np.ndarray | Tiles,
        targets: np.ndarray,
        *,
        features: np.ndarray | None = None,
        groups: np.ndarray | None = None,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float | None = None,
        weight_decay: float = 1e-4,
    ) -> None:
        """Train the network from its initial weights.

        Tiles are flipped and rotated at random. ST-Net minimises the squared error. EGN also minimises half of one
        minus the mean correlation of the genes within the batch. Both use AdamW (the authors of ST-Net used SGD).

        Parameters
        ----------
        tiles
            (N, size, size, 3) uint8, such as ``obsm["stamp_tiles"]``; or an object with a length, ``size_px``, and a
            method ``read(rows)`` that returns such an array, if the tiles do not fit into memory.
        targets
            (N, G) float, expression on the scale of the prediction, for example log-normalised.
        features
            EGN: (N, M), the embedding for finding similar spots, such as ``obsm["X_uni"]``. Its authors use a ResNet-50
            trained on ImageNet.
        groups
            EGN: (N,) section or patient of each spot. Exemplars of a training spot come from other groups, as in
            prediction; without `groups`, from all other spots.
        epochs, batch_size, learning_rate, weight_decay
            Settings of the training; the default learning rate is 1e-4 for ST-Net and 5e-4 for EGN.

        Raises
        ------
        ValueError
            Lengths differ, targets are not finite, or features are missing or were passed to ST-Net.
        """
        for name, value in (("epochs", epochs), ("batch_size", batch_size)):
            _checks.at_least(name, value, 1)
        targets = _matrix("targets", targets, len(tiles))
        self._check_features(features, len(tiles))
        _check_edge(tiles, self._size)
        seed = int(self._rng.integers(2**63))
        with torch.random.fork_rng(devices=[]):  # seeds the initial weights without changing the global state
            torch.manual_seed(seed)
            network = self._build(targets, features).to(self.device)
        self.network = network
        self._known = None
        if features is not None:
            self._known = (torch.from_numpy(_matrix("features", features, len(tiles))), torch.from_numpy(targets))
        rate = learning_rate or (1e-4 if self.card.name == "stnet" else 5e-4)
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate, weight_decay=weight_decay)
        exemplars = None
        if self._known is not None:
            exemplars = self._nearest(self._known[0], self._known[0], groups=groups, training=True)
        self.losses = []
        for epoch in range(epochs):
            self.losses.append(self._epoch(network, tiles, targets, exemplars, optimizer, batch_size))
            logger.info("%s, epoch %d of %d: loss %.4g", self.card.title, epoch + 1, epochs, self.losses[-1])

    def predict(
        self, tiles: np.ndarray | Tiles, *, features: np.ndarray | None = None, batch_size: int = 32
    ) -> np.ndarray:
        """Predict the expression (N, G) float32 of tiles; EGN finds exemplars among its training spots."""
        if self.network is None:
            raise ValueError(f"{self.card.title} is not fitted yet: call `fit(tiles, targets)` first.")
        self._check_features(features, len(tiles))
        _check_edge(tiles, self._size)
        network, own, exemplars = self.network, None, None
        if features is not None and self._known is not None:
            own = torch.from_numpy(_matrix("features", features, len(tiles)))
            if own.shape[1] != self._known[0].shape[1]:
                raise ValueError(f"`features` has {own.shape[1]} columns, in training {self._known[0].shape[1]}.")
            exemplars = self._nearest(own, self._known[0], groups=None, training=False)
        network.eval()
        out = []
        with torch.inference_mode():
            for start in range(0, len(tiles), batch_size):
                rows = np.arange(start, min(start + batch_size, len(tiles)))
                out.append(self._run(network, self._images(tiles, rows), rows, own, exemplars).float().cpu().numpy())
        return np.concatenate(out) if out else np.empty((0, 0), dtype=np.float32)

    @property
    def _size(self) -> int:
        return int(self.options.get("size_px") or self.card.size_px or _keys.TILE_PX)

    def _build(self, targets: np.ndarray, features: np.ndarray | None) -> nn.Module:
        if features is not None:
            return EGN(targets.shape[1], feature_dim=np.shape(features)[1], **self.options)
        network = STNet(targets.shape[1], pretrained=self.pretrained)
        network.start_from(torch.from_numpy(targets.mean(axis=0)))
        return network

    def _check_features(self, features: np.ndarray | None, n: int) -> None:
        if (features is not None) != (self.card.name == "egn"):
            wants = "needs `features` (N, M) to find similar spots by" if features is None else "takes no `features`"
            raise ValueError(f"{self.card.title} {wants}.")
        if features is not None:
            _matrix("features", features, n)

    def _nearest(self, own: Tensor, known: Tensor, *, groups: np.ndarray | None, training: bool) -> Tensor:
        """Rows (N, K) of the exemplars of each tile."""
        group = None if groups is None else torch.from_numpy(np.unique(groups, return_inverse=True)[1].reshape(-1))
        out = []
        for start in range(0, len(own), 1024):
            distance = torch.cdist(own[start : start + 1024], known)
            if training:
                rows = torch.arange(start, start + len(distance))
                barred = rows[:, None] == torch.arange(len(known)) if group is None else group[rows, None] == group
                distance = distance.masked_fill(barred, torch.inf)
            if int(distance.isfinite().sum(dim=1).min()) < self.n_exemplars:
                raise ValueError(
                    f"There are fewer than {self.n_exemplars} other spots"
                    f"{'' if group is None else ' in other groups'} to look at. Lower `n_exemplars` or give more spots."
                )
            out.append(distance.topk(self.n_exemplars, largest=False).indices)
        return torch.cat(out)

    def _images(self, tiles: np.ndarray | Tiles, rows: np.ndarray) -> Tensor:
        pixels = tiles.read(rows) if hasattr(tiles, "read") else np.ascontiguousarray(tiles[rows])
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=self.device)[:, None, None] for v in (self.card.mean, self.card.std))
        return (images - mean) / std

    def _run(
        self, network: nn.Module, images: Tensor, rows: np.ndarray, own: Tensor | None, exemplars: Tensor | None
    ) -> Tensor:
        if exemplars is None or own is None or self._known is None:
            return network(images)
        features, values = self._known
        near = exemplars[rows]
        return network(images, *(t.to(self.device) for t in (own[rows], features[near], values[near])))

    def _epoch(
        self,
        network: nn.Module,
        tiles: np.ndarray | Tiles,
        targets: np.ndarray,
        exemplars: Tensor | None,
        optimizer: torch.optim.Optimizer,
        size: int,
    ) -> float:
        network.train()
        order, total = self._rng.permutation(len(targets)), 0.0
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            if len(rows) == 1 and start:  # batch norm needs more than one tile
                continue
            images = _turned(self._images(tiles, rows), self._rng)
            expected = torch.from_numpy(targets[rows]).to(self.device)
            found = self._run(network, images, rows, None if self._known is None else self._known[0], exemplars)
            loss = F.mse_loss(found, expected)
            if self.card.name == "egn" and len(rows) > 1:
                loss = loss + 0.5 * (1 - _correlation(found, expected))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        return total / len(order)


def _turned(images: Tensor, rng: np.random.Generator) -> Tensor:
    """Flip and rotate a batch by random multiples of 90°."""
    images = torch.rot90(images, int(rng.integers(4)), dims=(2, 3))
    return images.flip(3) if rng.integers(2) else images


def _correlation(found: Tensor, expected: Tensor) -> Tensor:
    """Mean over genes of the Pearson correlation within a batch; constant genes count as 0."""
    a, b = found - found.mean(0), expected - expected.mean(0)
    return ((a * b).sum(0) / (a.norm(dim=0) * b.norm(dim=0) + 1e-8)).mean()


def _matrix(name: str, values: Any, n: int) -> np.ndarray:
    values = np.ascontiguousarray(values, dtype=np.float32)
    if values.ndim != 2 or len(values) != n:
        raise ValueError(f"`{name}` must have shape ({n}, ...), a row a tile, found {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` has NaN or infinite values; remove these spots.")
    return values


def _check_edge(tiles: Any, size: int) -> None:
    if not len(tiles):
        raise ValueError("There are no tiles.")
    edge = tiles.size_px if hasattr(tiles, "read") else np.shape(tiles)[1:]
    if edge not in (size, (size, size, 3)):
        raise ValueError(f"Tiles must be {size} px wide, of shape (N, {size}, {size}, 3), found {edge}.")
