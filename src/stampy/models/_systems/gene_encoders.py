"""Gene encoders: scGPT-spatial (genes and binned values) and Nicheformer (ranked genes, the basis of STAMP's tokens).

Shapes: B spots, L positions, D width, V genes of the vocabulary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stampy import _checks, _keys
from stampy.models._gene import PAD_ID, GeneConfig, GeneEncoder
from stampy.models._published import N_SPECIAL_ROWS, TEMPLATE_LAYER, gene_config, rename_gene
from stampy.models._systems.base import GeneSystem
from stampy.models._systems.cards import Card
from stampy.models._tensors import fill, only, read_state_dict
from stampy.models._weights import read_genes

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["CONTEXT", "Nicheformer", "ScGpt", "load_nicheformer", "load_scgpt", "quantile_bins"]

WEIGHTS, SIZES, VOCABULARY, MEANS = "best_model.pt", "args.json", "vocab.json", "all_dict_mean_std.csv"
_PAD, _CLS, _SPECIAL = "<pad>", "<cls>", ("<pad>", "<cls>", "<eoc>")
_N_BINS, _MAX_LENGTH, _MAX_VALUE = 51, 1200, 512
_OTHER = (  # decoders and flags used only in training
    "decoder.", "mvc_decoder.", "impute_mvc_decoder.", "cls_decoder.", "flag_encoder.", "batch_encoder.",
    "grad_reverse_discriminator.",
)  # fmt: skip


class _Genes(nn.Module):
    def __init__(self, n_tokens: int, width: int, pad: int):
        super().__init__()
        self.embedding = nn.Embedding(n_tokens, width, padding_idx=pad)
        self.enc_norm = nn.LayerNorm(width)

    def forward(self, ids_BL: Tensor) -> Tensor:
        return self.enc_norm(self.embedding(ids_BL))


class _Values(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.linear1, self.linear2, self.norm = nn.Linear(1, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, values_BL: Tensor) -> Tensor:
        return self.norm(self.linear2(F.relu(self.linear1(values_BL.clamp(max=_MAX_VALUE).unsqueeze(-1)))))


class ScGpt(GeneSystem):
    """scGPT-spatial; the feature is the output of its class token.

    Parameters
    ----------
    card
        Genes of its vocabulary with known means.
    genes
        The genes of its vocabulary whose means are known.
    ids
        (V,) token of each of these genes.
    tokens
        Token of each special name.
    sizes
        ``embsize``, ``nheads``, ``d_hid``, ``nlayers``, ``pad_value``, as in args.json.
    n_tokens
        Rows of the embedding table.
    """

    def __init__(self, card: Card, genes: pd.DataFrame, ids: np.ndarray, tokens: dict[str, int], sizes: dict,
                 n_tokens: int):  # fmt: skip
        super().__init__(card, genes)
        self.ids, self.tokens, self.pad_value = ids, tokens, sizes["pad_value"]
        # A spot with too many genes keeps those that are first in one fixed random order: a uniform sample that is the
        # same for every run and batch, and similar for similar spots.
        self.order = np.random.default_rng(0).permutation(len(ids))
        width = sizes["embsize"]
        self.encoder = _Genes(n_tokens, width, tokens[_PAD])
        self.value_encoder = _Values(width)
        layer = nn.TransformerEncoderLayer(width, sizes["nheads"], sizes["d_hid"], dropout=0.0, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, sizes["nlayers"], enable_nested_tensor=False)

    def gene_features(self, counts: sparse.csr_matrix) -> Tensor:
        """(B, D): output of the class token; zeros for a spot without counts."""
        ids_BL, values_BL = (torch.from_numpy(a).to(self.device) for a in self._tokenize(counts))
        x_BLD = self.encoder(ids_BL) + self.value_encoder(values_BL)
        padding_BL = ids_BL == self.tokens[_PAD]
        out_BD = self.transformer_encoder(x_BLD, src_key_padding_mask=padding_BL)[:, 0]
        return out_BD * (~padding_BL[:, 1:]).any(dim=1, keepdim=True)

    def project_genes(self, features: Tensor) -> Tensor:
        """L2 norm 1, as published."""
        return F.normalize(features, dim=-1)

    def _tokenize(self, counts: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
        """Ids (B, L) int64 and values (B, L) float32: the class token, then the spot's genes, then padding."""
        divisors = self.genes["divisor"].to_numpy()
        counts = counts.tocsr()
        rows = []
        for low, high in zip(counts.indptr[:-1], counts.indptr[1:], strict=True):
            columns, values = counts.indices[low:high], counts.data[low:high]
            columns, values = columns[values > 0], values[values > 0]
            # The published code first divides by the section's mean, a common factor that does not change bins.
            values = quantile_bins(values / divisors[columns])
            if len(columns) >= _MAX_LENGTH:
                kept = np.argsort(self.order[columns], kind="stable")[: _MAX_LENGTH - 1]
                columns, values = columns[kept], values[kept]
            rows.append((self.ids[columns], values))
        length = 1 + max((len(r[0]) for r in rows), default=0)
        ids = np.full((len(rows), length), self.tokens[_PAD], dtype=np.int64)
        binned = np.full((len(rows), length), self.pad_value, dtype=np.float32)
        ids[:, 0] = self.tokens[_CLS]
        for i, (one, values) in enumerate(rows):
            ids[i, 1 : 1 + len(one)], binned[i, 1 : 1 + len(one)] = one, values
        return ids, binned


def quantile_bins(values: np.ndarray, n_bins: int = _N_BINS) -> np.ndarray:
    """Bin the values of a spot between their quantiles, 1 to 50.

    A value equal to several edges belongs to several bins. The published code draws one at random; the middle one is
    used here for reproducibility.

    >>> quantile_bins(np.array([1.0, 2.0, 3.0, 40.0]), n_bins=4).tolist()
    [1.0, 1.0, 2.0, 3.0]
    """
    if not len(values):
        return values.astype(np.float32)
    edges = np.quantile(values, np.linspace(0, 1, n_bins - 1))
    above, below = np.digitize(values, edges), np.digitize(values, edges, right=True)
    return np.ceil((above + below) / 2).clip(1).astype(np.float32)


def load_scgpt(card: Card, path: Path) -> ScGpt:
    """Load from the folder (or that of the file) with best_model.pt, args.json, vocab.json, all_dict_mean_std.csv."""
    folder = path if path.is_dir() else path.parent
    for name in (WEIGHTS, SIZES, VOCABULARY, MEANS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"The folder {str(folder)!r} of {card.title} lacks `{name}`. Expected {WEIGHTS}, {SIZES}, {VOCABULARY} "
                f"and {MEANS}, as in the published archive ({card.address})."
            )
    sizes = json.loads((folder / SIZES).read_text())
    if missing := sorted({"embsize", "nheads", "d_hid", "nlayers", "pad_value"} - set(sizes)):
        raise ValueError(f"`{SIZES}` in {str(folder)!r} lacks {missing}.")
    tokens = {str(k): int(v) for k, v in json.loads((folder / VOCABULARY).read_text()).items()}
    for name in _SPECIAL:
        tokens.setdefault(name, len(tokens))
    genes, ids = _genes(tokens, folder / MEANS)
    where = str(folder / WEIGHTS)
    tensors = {_rename(k): v for k, v in read_state_dict(folder / WEIGHTS).items()}
    with torch.device("meta"):
        system = ScGpt(card, genes, ids, tokens, sizes, len(tokens))
    fill(system, only(tensors, where=where, ignored=_OTHER), where=where)
    return system


def _rename(key: str) -> str:
    """Convert names of the flash-attention layer to those of torch; query, key and value have the same order."""
    return key.replace("self_attn.Wqkv.", "self_attn.in_proj_")


def _genes(tokens: dict[str, int], means: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Vocabulary (gene_id, symbol, divisor), and token of each gene with a mean."""
    with _checks.readable(means):
        table = pd.read_csv(means, index_col=0)
    if "mean" not in table.columns:
        raise ValueError(f"{str(means)!r} has no column 'mean'; found {_checks.shortlist(table.columns)}.")
    mean_of = table["mean"]
    named = [(name, i, float(mean_of[i])) for name, i in tokens.items() if name not in _SPECIAL and i in mean_of.index]
    named = [row for row in named if np.isfinite(row[2]) and row[2] > 0]
    if not named:
        raise ValueError(f"No gene of `{VOCABULARY}` has a mean in {str(means)!r}: the files do not belong together.")
    names, ids, values = zip(*named, strict=True)
    return pd.DataFrame({"gene_id": names, "symbol": names, "divisor": values}), np.array(ids)


CONTEXT = (5, 9, 4)  # human, Xenium (Visium has no token), spatial; they precede the genes
GENES = "genes.tsv"
_HEADS = 16  # cannot be inferred from the tensors
_TEMPLATE_AND_HEADS = (
    TEMPLATE_LAYER,
    "classifier_head.",
    "pooler_head.",
    "cls_head.",
)  # template of the layers, and heads used in training


class Nicheformer(GeneSystem):
    """Nicheformer; the feature is the mean output over all positions after the context tokens, including padding.

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
        del self.encoder.igr_head, self.encoder.cgr_head  # used in training

    def gene_features(self, counts: sparse.csr_matrix) -> Tensor:
        """(B, D); zeros for a spot without counts."""
        n_genes = self.encoder.config.max_tokens - len(CONTEXT)
        tokens = torch.from_numpy(ranked_by_ratio(counts, self.genes["divisor"].to_numpy(), n_genes)).to(self.device)
        lengths_B = (tokens != _keys.PAD).sum(dim=1)
        context = torch.tensor(CONTEXT, device=self.device).expand(len(tokens), -1)
        ids_BL = torch.cat([context, tokens.masked_fill(tokens == _keys.PAD, PAD_ID)], dim=1)
        n_keys = len(CONTEXT) + int(lengths_B.max()) if len(tokens) else ids_BL.shape[1]
        pooled_BD = self.encoder(ids_BL, n_keys)[:, len(CONTEXT) :].mean(dim=1)
        return pooled_BD * (lengths_B > 0)[:, None]


def ranked_by_ratio(counts: sparse.csr_matrix, divisors: np.ndarray, length: int) -> np.ndarray:
    """Tokens (B, length) int64 of each spot's genes by descending count / divisor; ties go to the lower row."""
    counts = counts.tocsr()
    out = np.full((counts.shape[0], length), _keys.PAD, dtype=np.int64)
    for i, (low, high) in enumerate(zip(counts.indptr[:-1], counts.indptr[1:], strict=True)):
        columns, values = counts.indices[low:high], counts.data[low:high]
        columns, values = columns[values > 0], values[values > 0]
        order = np.lexsort((columns, -values / divisors[columns]))[:length]
        out[i, : len(order)] = columns[order] + _keys.N_SPECIAL
    return out


def load_nicheformer(card: Card, path: Path) -> Nicheformer:
    """Load the checkpoint (or the folder with it) with Nicheformer's names, next to `genes.tsv`."""
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
    tensors = {k: v for k, v in read_state_dict(file).items() if not k.startswith(_TEMPLATE_AND_HEADS)}
    if "embeddings.weight" not in tensors or "positional_embedding.weight" not in tensors:
        raise ValueError(f"{str(file)!r} is not a Nicheformer checkpoint. First names found: {list(tensors)[:5]}.")
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
