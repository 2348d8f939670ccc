"""Nicheformer: a Transformer over a spot's ranked genes, the ancestor of STAMP's gene encoder.

Shapes: B spots, L positions, D width, V genes of the vocabulary.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from stampy import _keys
from stampy.models._gene import PAD_ID, GeneConfig, GeneEncoder
from stampy.models._published import N_SPECIAL_ROWS, TEMPLATE_LAYER, gene_config, rename_gene
from stampy.models._systems.base import GeneSystem
from stampy.models._systems.cards import Card
from stampy.models._tensors import fill, only, read_state_dict
from stampy.models._weights import read_genes

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["CONTEXT", "Nicheformer", "load_nicheformer"]

CONTEXT = (5, 9, 4)  # human, Xenium (Visium has no token), spatial; they stand before the genes
GENES = "genes.tsv"
_HEADS = 16  # leave no trace in the tensors
_OTHER = (
    TEMPLATE_LAYER,
    "classifier_head.",
    "pooler_head.",
    "cls_head.",
)  # template of the layers, and heads of training


class Nicheformer(GeneSystem):
    """Nicheformer; the feature is the mean output over all positions after the three of the context, padding included.

    Parameters
    ----------
    card
        Card of the system.
    genes
        Its vocabulary with the technology's means as divisors.
    config
        Sizes.
    """

    def __init__(self, card: Card, genes: pd.DataFrame, config: GeneConfig):
        super().__init__(card, genes)
        self.encoder = GeneEncoder(config)
        del self.encoder.igr_head, self.encoder.cgr_head  # of training

    def gene_features(self, counts: sparse.csr_matrix) -> Tensor:
        """(B, D); zeros for a spot without counts."""
        n_genes = self.encoder.config.max_tokens - len(CONTEXT)
        tokens = torch.from_numpy(ranked(counts, self.genes["divisor"].to_numpy(), n_genes)).to(self.device)
        lengths_B = (tokens != _keys.PAD).sum(dim=1)
        context = torch.tensor(CONTEXT, device=self.device).expand(len(tokens), -1)
        ids_BL = torch.cat([context, tokens.masked_fill(tokens == _keys.PAD, PAD_ID)], dim=1)
        n_keys = len(CONTEXT) + int(lengths_B.max()) if len(tokens) else ids_BL.shape[1]
        pooled_BD = self.encoder(ids_BL, n_keys)[:, len(CONTEXT) :].mean(dim=1)
        return pooled_BD * (lengths_B > 0)[:, None]


def ranked(counts: sparse.csr_matrix, divisors: np.ndarray, length: int) -> np.ndarray:
    """Tokens (B, length) int64 of each spot's genes in falling order of count over divisor; ties to the lower row."""
    counts = counts.tocsr()
    out = np.full((counts.shape[0], length), _keys.PAD, dtype=np.int64)
    for i, (low, high) in enumerate(zip(counts.indptr[:-1], counts.indptr[1:], strict=True)):
        columns, values = counts.indices[low:high], counts.data[low:high]
        columns, values = columns[values > 0], values[values > 0]
        order = np.lexsort((columns, -values / divisors[columns]))[:length]
        out[i, : len(order)] = columns[order] + _keys.N_SPECIAL
    return out


def load_nicheformer(card: Card, path: Path) -> Nicheformer:
    """Read the checkpoint (or the folder with it) by Nicheformer's names, with `genes.tsv` beside it."""
    file = path
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if p.suffix in (".ckpt", ".pt", ".safetensors"))
        if len(found) != 1:
            raise FileNotFoundError(f"Expected one checkpoint in {str(path)!r}, found {[p.name for p in found]}.")
        file = found[0]
    table = file.parent / GENES
    if not table.is_file():
        raise FileNotFoundError(
            f"{card.title} needs its vocabulary `{GENES}` beside {str(file)!r}: tab-separated, columns gene_id, symbol "
            "and divisor, in the order of its model.h5ad; divisors are the means of the technology. Its genes are "
            "those of `stampy.datasets.published_vocabulary()`."
        )
    tensors = {k: v for k, v in read_state_dict(file).items() if not k.startswith(_OTHER)}
    if "embeddings.weight" not in tensors or "positional_embedding.weight" not in tensors:
        raise ValueError(f"{str(file)!r} is no Nicheformer checkpoint. First names found: {list(tensors)[:5]}.")
    tensors = {rename_gene(k): v for k, v in tensors.items()}
    genes, n_genes = read_genes(table), len(tensors["embeddings.weight"]) - N_SPECIAL_ROWS
    if len(genes) != n_genes:
        raise ValueError(
            f"{str(table)!r} has {len(genes)} genes, the checkpoint {n_genes}: they do not belong together."
        )
    with torch.device("meta"):
        system = Nicheformer(card, genes, gene_config(tensors, "", card.architecture.get("heads", _HEADS)))
    fill(system.encoder, only(tensors, where=str(file)), where=str(file))
    return system
