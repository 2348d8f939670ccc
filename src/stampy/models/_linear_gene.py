"""Parts of a gene encoder that is a weighted sum of gene vectors, for adaptation in closed form.

Shapes: G genes, L positions, D width, K axes.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from stampy import _keys
from stampy._files import digest_of_arrays

from ._stamp import Stamp, StampConfig

__all__ = ["LinearParts", "check_linear", "is_linear", "linear_parts", "turned_head", "with_axes"]

TABLE_STD = 0.05  # of the embedding table, as in the spectral initialisation
LEAST = 1e-6  # relative to the largest eigenvalue; smaller directions of the head count as absent


def check_linear(model: object) -> Stamp:
    """Return the model if its gene encoder is a sum of gene vectors weighted by rank; ValueError otherwise."""
    return _gate_and_genes(model)[0]


def is_linear(model: object) -> bool:
    """Whether the gene encoder of a model is a sum of gene vectors weighted by rank."""
    return _found(model) is not None


def _found(model: object) -> tuple[Stamp, torch.Tensor, pd.DataFrame] | None:
    """Model, gate (L, D) of the ranks, and vocabulary; None unless the gene encoder is a weighted sum."""
    if isinstance(model, Stamp) and model.config.gene.pooling == "bag" and model.genes is not None:
        gate_LD = getattr(model.gene, "rank_gate", None)
        if gate_LD is not None and float((gate_LD - gate_LD[:, :1]).detach().abs().max()) <= 1e-6:
            return model, gate_LD.detach(), model.genes
    return None


def _gate_and_genes(model: object) -> tuple[Stamp, torch.Tensor, pd.DataFrame]:
    """`_found`; ValueError unless the gene encoder is a weighted sum."""
    if (found := _found(model)) is not None:
        return found
    name = getattr(model, "name", type(model).__name__)
    raise ValueError(
        f"The model {name!r} cannot be adapted in closed form: that needs a gene encoder with pooling='bag', one gate "
        "per rank, and a vocabulary, such as 'stampy-mini'. Train others further with `stampy.train`."
    )


class LinearParts(NamedTuple):
    """Parts of a gene encoder that adds up vectors."""

    gate: np.ndarray  # (L,) weight of each rank
    level: np.ndarray  # (G,) weight of each gene
    axes: np.ndarray  # (G, D) orthonormal; a gene's vector is its level times its row
    covariance: np.ndarray  # (D, D) of the training spots along the axes
    head: np.ndarray  # (E, D), with the bias: maps weighted genes along the axes to an embedding
    bias: np.ndarray  # (E,)


def _weights(model: Stamp) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the ranks (L,) and of the genes (G,)."""
    _, gate_LD, genes = _gate_and_genes(model)
    return gate_LD[:, 0].cpu().double().numpy(), np.log1p(genes["divisor"].to_numpy(dtype=np.float64))


def linear_parts(model: Stamp) -> LinearParts:
    """The parts of a model whose gene encoder adds up vectors.

    The covariance of the training spots' features is derived from the head, which is their principal components
    divided by the square root of their standard deviation.
    """
    gate_L, level_G = _weights(model)
    axes_GD, mix_DD = _factors_of(model, level_G)
    head_ED = model.gene_head.weight.detach().cpu().double().numpy()
    values, vectors = np.linalg.eigh(head_ED.T @ head_ED)
    values = np.where(values > LEAST * values.max(), values, np.inf)  # the covariance is (H'H)^-2
    turned_DD = mix_DD @ vectors
    covariance_DD = (turned_DD / values**2) @ turned_DD.T
    covariance_DD /= max(np.trace(covariance_DD), 1e-300)
    along_ED = head_ED @ mix_DD.T / model.config.gene.max_tokens
    bias_E = model.gene_head.bias.detach().cpu().double().numpy()
    return LinearParts(gate_L, level_G, axes_GD, covariance_DD, along_ED, bias_E)


def turned_head(model: Stamp) -> tuple[np.ndarray, np.ndarray]:
    """Matrix (D, D) from features of the encoder to orthonormal axes of genes, and the head (D, E) along these axes.

    Angles between features depend on the basis of the gene vectors; those along orthonormal axes are angles between
    genes, which are the same for every model with the same gene vectors up to a linear map.
    """
    mix_DD = _factors_of(model, _weights(model)[1])[1]
    head_ED = model.gene_head.weight.detach().cpu().double().numpy()
    return np.linalg.pinv(mix_DD, rcond=LEAST), mix_DD @ head_ED.T


def _factors_of(model: Stamp, level_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`_factors` of the gene vectors of a model."""
    rows = slice(_keys.N_SPECIAL, _keys.N_SPECIAL + len(level_G))
    return _factors(model.gene.embeddings.weight.detach()[rows].cpu().numpy(), level_G)


_last: tuple[str, np.ndarray, np.ndarray] | None = None  # an evaluation takes the parts of one model many times


def _factors(weight_GD: np.ndarray, level_G: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal axes (G, D) of the gene vectors, and the vectors along them (D, D)."""
    global _last
    key, known = digest_of_arrays(weight_GD, level_G), _last
    if known is None or known[0] != key:
        axes_GD, mix_DD = np.linalg.qr(weight_GD.astype(np.float64) / level_G[:, None])
        known = _last = key, axes_GD.astype(np.float32), mix_DD
    return known[1].copy(), known[2].copy()


def with_axes(model: Stamp, axes_GK: np.ndarray, head_KK: np.ndarray, bias_K: np.ndarray) -> Stamp:
    """A model without image encoder whose gene embeddings are head and bias applied to features in these axes.

    Its name contains the original model and a digest of axes and head, so that vectors of different adaptations are
    never compared as if they shared a space.
    """
    gate_L, level_G = _weights(model)
    k = axes_GK.shape[1]
    heads = next(h for h in (4, 2, 1) if k % h == 0)
    gene = replace(model.config.gene, width=k, depth=1, heads=heads, feedforward=k)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # for the layers, which do not affect the embedding
        adapted = Stamp(StampConfig(gene=gene, embedding=k), model.genes)
    table_GK = level_G[:, None] * axes_GK
    scale = TABLE_STD / max(float(table_GK.std()), 1e-12)
    gate = float(gate_L.mean())
    back = gene.max_tokens * gate / scale  # features of the encoder -> features to which the head was fitted
    with torch.no_grad():
        adapted.gene.embeddings.weight.zero_()[_keys.N_SPECIAL : _keys.N_SPECIAL + len(table_GK)] = torch.from_numpy(
            table_GK * scale
        )
        adapted.gene.positional_embedding.weight.zero_()
        adapted.gene.rank_gate.copy_(torch.from_numpy(gate_L / gate)[:, None].expand_as(adapted.gene.rank_gate))
        adapted.gene_head.weight.copy_(torch.from_numpy(head_KK * back))
        adapted.gene_head.bias.copy_(torch.from_numpy(bias_K))
    whole = np.vstack([axes_GK, head_KK, bias_K[None]]).astype(np.float32)  # the same axes may have several heads
    digest = hashlib.blake2b(np.ascontiguousarray(whole).data, digest_size=6).hexdigest()
    adapted.name = f"{model.name}, adapted {digest}"
    return adapted.to(model.device).eval()
