"""Contribution of each token of a spot to e · w, for the spot's gene embedding e and a vector w.

Shapes: n spots, T longest token list, B rows of a batch, L positions, E size of the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from tqdm.auto import tqdm

from stampy._utils import hidden
from stampy.tl._embedding.stream import Tower, positions_per_batch

if TYPE_CHECKING:
    from torch import Tensor

    from stampy.models import Stamp

__all__ = ["embed_tokens", "integrated_gradients", "leave_one_out"]

N_STEPS = 32


def embed_tokens(tower: Tower[Stamp], tokens: np.ndarray) -> np.ndarray:
    """Gene embeddings (n, E) float32 of token lists (n, T), one by one, since there are few spots."""
    most = tower.model.gene.config.max_tokens
    with tower.running():
        parts = [_embed(tower.model, row[None, : min(most, max(_length(row), 1))]) for row in tokens]
    return np.concatenate(parts)


def _embed(model: Stamp, tokens: np.ndarray) -> np.ndarray:
    import torch

    ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(model.device)
    return model.gene_embeddings(ids).float().cpu().numpy()


def _length(row: np.ndarray) -> int:
    return int((row != 0).sum())


def leave_one_out(
    tower: Tower[Stamp],
    tokens: np.ndarray,
    weights: np.ndarray,
    ask: np.ndarray,
    *,
    batch_size: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Decrease of e · w when the gene of a token is removed and all lower ranks move up by one.

    This is exactly the embedding of the spot without counts of that gene: if a list is longer than the model's input,
    the next gene of the spot is added at its end.

    Parameters
    ----------
    tower
        Encoder of the model.
    tokens
        (n, T): as in ``obsm["stamp_tokens"]``, with one token more than the model's input.
    weights
        (n, E): w of each spot.
    ask
        (n, T) bool: tokens to remove, one at a time; others get 0.
    batch_size
        Token lists per batch; None: limited by a number of positions.
    progress
        Show a progress bar.

    Returns
    -------
    (n, T) float32
    """
    most = tower.model.gene.config.max_tokens
    base = np.einsum("ne,ne->n", embed_tokens(tower, tokens), weights)
    out = np.zeros(tokens.shape, dtype=np.float32)
    with (
        tower.running(),
        tqdm(total=int(ask.sum()), desc="leave one out", unit="gene", disable=hidden(progress)) as bar,
    ):
        for i, row in enumerate(tokens):
            length = _length(row)
            asked = np.flatnonzero(ask[i, : min(length, most)])
            for places in _batches(asked, batch_size or _budget(tower, length)):
                values = _embed(tower.model, _without(row[:length], places)[:, :most]) @ weights[i]
                out[i, places] = base[i] - values
                bar.update(len(places))
    return out


def _without(row: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Remove the token at each of the places (B,) from the row (L,): (B, L - 1), or padding if nothing remains.

    >>> _without(np.array([7, 8, 9]), np.array([0, 2])).tolist()
    [[8, 9], [7, 8]]
    """
    if len(row) == 1:
        return np.zeros((len(places), 1), dtype=row.dtype)
    column = np.arange(len(row) - 1)
    return row[column + (column >= places[:, None])]


def _budget(tower: Tower[Stamp], length: int) -> int:
    config = tower.model.gene.config
    positions = config.max_tokens if config.pooling == "positions" else max(length, 1)
    return max(positions_per_batch(tower.device) // positions, 1)


def _batches(places: np.ndarray, size: int) -> Iterator[np.ndarray]:
    return (places[i : i + size] for i in range(0, len(places), size))


def integrated_gradients(
    tower: Tower[Stamp],
    tokens: np.ndarray,
    weights: np.ndarray,
    *,
    n_steps: int = N_STEPS,
    batch_size: int | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Integrated gradients of e · w, from a spot with all tokens masked to the spot (captum).

    Token embeddings move along a straight line, positions are fixed. The sum over a spot's tokens equals the difference
    of e · w to the masked spot, up to the error of the sum over steps.

    Parameters
    ----------
    tower
        Encoder of the model.
    tokens
        (n, T): as in ``obsm["stamp_tokens"]``.
    weights
        (n, E): w of each spot.
    n_steps
        Number of points on the line.
    batch_size
        Points per batch; None: limited by a number of positions.
    progress
        Show a progress bar.

    Returns
    -------
    (n, T) float32

    Raises
    ------
    ImportError
        captum is not installed.
    """
    LayerIntegratedGradients = captum()
    import torch

    from stampy.models._gene import MASK_ID, PAD_ID

    model, encoder = tower.model, tower.model.gene

    def value(ids: Tensor, lengths: Tensor, w: Tensor) -> Tensor:
        return (model.project_genes(encoder.pooled(ids, lengths)) * w).sum(dim=1)

    explain = LayerIntegratedGradients(value, encoder.embeddings)
    out = np.zeros(tokens.shape, dtype=np.float32)
    training = model.training
    model.eval()
    try:
        for i in tqdm(range(len(tokens)), desc="integrated gradients", unit="spot", disable=hidden(progress)):
            length = min(_length(tokens[i]), encoder.config.max_tokens)
            if not length:
                continue
            row = np.ascontiguousarray(tokens[i : i + 1, :length])
            ids, lengths = encoder.ids(torch.from_numpy(row).to(model.device))
            found = explain.attribute(
                ids,
                baselines=ids.masked_fill(ids != PAD_ID, MASK_ID),
                additional_forward_args=(lengths, torch.from_numpy(weights[i : i + 1]).to(model.device)),
                n_steps=n_steps,
                internal_batch_size=batch_size or _budget(tower, length),
            )
            out[i, :length] = found.sum(dim=2)[0, :length].float().cpu().numpy()
    finally:
        model.train(training)
    return out


def captum() -> type:
    """Captum's LayerIntegratedGradients; ImportError with instructions to install it."""
    try:
        from captum.attr import LayerIntegratedGradients
    except ImportError as error:
        raise ImportError(
            "method='integrated_gradients' needs captum, which is not installed. Install it with `pip install "
            "'stampy-st[attribute]'`, or use method='leave_one_out'."
        ) from error
    return LayerIntegratedGradients
