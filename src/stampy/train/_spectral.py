"""Where a small gene encoder starts: at the axes along which neighbouring spots agree.

Before any step, the feature of a spot is the projection of its genes onto the leading eigenvectors of the covariance
between spots and the mean of their neighbours. That is contextual gene reconstruction (paper, section 3.2) for a linear
encoder, solved in seconds instead of learned in days; what varies from spot to spot by chance alone is left out.

Shapes: n spots, G genes, K axes, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stampy import _keys
from stampy._checks import shortlist
from stampy._utils import stream
from stampy.models import GeneEncoder
from stampy.pp._axes import NEIGHBORS, SpotGenes, leading_axes, neighbor_graph, weighted_genes

from ._sections import TrainingSection

__all__ = ["spatial_axes", "start_spectral"]

TABLE_STD = 0.05  # of the embedding table where the encoder starts


def start_spectral(encoder: GeneEncoder, sections: Sequence[TrainingSection], divisors: np.ndarray, seed: int) -> None:
    """Set embeddings and rank gates so that `encoder.features` are the spatial axes; its layers add nothing yet.

    Parameters
    ----------
    encoder
        With ``norm="pre"``, ``rank_gate=True`` and ``pooling`` "sum" or "bag"; is changed.
    sections
        With tokens and coordinates.
    divisors
        (G,) usual level of each gene, as in the vocabulary.
    seed
        Of the subspace iteration.
    """
    config = encoder.config
    gate_L, level_G = np.log1p(anomaly_of_rank(config.max_tokens)), np.log1p(divisors)
    axes_GK = spatial_axes(sections, gate_L, level_G, min(config.width, len(divisors)), seed)
    table_GK = level_G[:, None] * axes_GK
    table_GK *= TABLE_STD / max(table_GK.std(), 1e-12)
    with torch.no_grad():
        n, k = table_GK.shape
        encoder.embeddings.weight.zero_()[_keys.N_SPECIAL : _keys.N_SPECIAL + n, :k] = torch.from_numpy(table_GK)
        encoder.rank_gate.copy_(torch.from_numpy(gate_L / gate_L.mean())[:, None].expand_as(encoder.rank_gate))
        encoder.positional_embedding.weight.zero_()
        for layer in encoder.layers:
            for last in (layer.self_attn.out_proj, layer.linear2):
                last.weight.zero_()
                last.bias.zero_()


def anomaly_of_rank(max_tokens: int) -> np.ndarray:
    """How far above its usual level the gene of a rank typically is; fitted to real spots of all platforms together."""
    return 8 / (1 + np.arange(max_tokens) / 15) ** 0.6


def spatial_axes(
    sections: Sequence[TrainingSection], gate_L: np.ndarray, level_G: np.ndarray, k: int, seed: int
) -> np.ndarray:
    """The leading eigenvectors (G, K), orthonormal, of the genes' covariance between a spot and its neighbours.

    A gene of a spot weighs (gate of its rank) x (its own level). See `stampy.pp._axes`.
    """
    parts = [
        SpotGenes(weighted_genes(s.tokens, gate_L, level_G), neighbor_graph(s.xy))
        for s in sections
        if len(s.xy) > NEIGHBORS and s.tokens.any()
    ]
    if not parts:
        raise ValueError(
            f"start='spectral' needs a section of more than {NEIGHBORS} spots with genes, found sections of "
            f"{shortlist(len(s.xy) for s in sections)} spots. Use start='random'."
        )
    return leading_axes(parts, k, stream(seed, "spectral axes"))
