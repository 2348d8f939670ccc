"""Stage 1: the gene encoder (paper, section 3.2).

Shapes: S groups, N spots per group, L positions, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stampy import _keys
from stampy._checks import at_least, one_of
from stampy.models import GeneConfig, Stamp, StampConfig, losses, save
from stampy.models._gene import MASK_ID, PAD_ID
from stampy.pp import Vocabulary

from ._config import PretrainConfig
from ._loop import fit
from ._samplers import GroupSampler
from ._sections import as_sections, prepare
from ._spectral import start_spectral

__all__ = ["mask_tokens", "pretrain"]


def pretrain(
    sections: Any,
    out: str | Path,
    *,
    vocabulary: Vocabulary | str | Path | None = None,
    config: PretrainConfig | Mapping[str, Any] | str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Stamp:
    """Train a gene encoder: first IGR alone, then IGR and CGR, on batches of neighbourhood groups.

    A run that was interrupted goes on from its newest checkpoint when it is called again with the same arguments.

    Parameters
    ----------
    sections
        AnnData with raw counts and ``obsm["spatial"]``, paths of .h5ad files, or a manifest (.tsv with a column
        ``path``); one or a list.
    out
        Folder for config.json, metrics.jsonl, checkpoints, and the result in ``out/model``.
    vocabulary
        None: made from the sections (`stampy.pp.Vocabulary.from_sections`).
    config
        Settings; a mapping or JSON file names those that differ from the paper's.
    device
        None: CUDA if there is one, else the CPU.
    progress
        Show a progress bar.

    Returns
    -------
    The model, a gene tower alone; also written to ``out/model``, for `align` and `stampy.models.load`.

    Raises
    ------
    ValueError
        Settings or sections that can't be used, or `out` holds another run.
    FloatingPointError
        The loss became NaN or infinite.

    Examples
    --------
    >>> import stampy, tempfile
    >>> section = stampy.datasets.toy(n_spots=100)
    >>> small = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 32, "tied_heads": True}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = stampy.train.pretrain(section, folder, config=small, device="cpu", progress=False)
    >>> model.config.gene.width
    16
    """
    config = PretrainConfig.of(config)
    _check(config)
    sections = as_sections(sections)
    if vocabulary is None:
        vocabulary = Vocabulary.from_sections(s.data for s in sections)
    elif not isinstance(vocabulary, Vocabulary):
        vocabulary = Vocabulary.load(vocabulary)
    prepared = [prepare(s, vocabulary, max_tokens=config.max_tokens, tiles=False) for s in sections]
    prepared = [s for s in prepared if s.tokens.any()]  # sections without genes have nothing to say here
    sampler = GroupSampler(prepared, config)
    model = _new_model(config, vocabulary)
    if config.start == "spectral":
        start_spectral(model.gene, prepared, vocabulary.divisors, config.seed)
    identity = f"{len(vocabulary)} genes; {', '.join(f'{s.name} {len(s.xy)}' for s in prepared)}"
    objective = _Objective(model, config, sampler.steps_per_epoch * config.epochs_igr)
    model.gene_head.requires_grad_(False)  # it has no part in these losses
    fit(model, objective, sampler, config, out, device=device, identity=identity, progress=progress)
    model.requires_grad_(True).eval()
    _fit_gene_head(model, [s.tokens for s in prepared], config.seed)
    save(model, Path(out) / "model")
    return model


def _check(config: PretrainConfig) -> None:
    at_least("groups_per_batch", config.groups_per_batch, 1)
    at_least("group_size", config.group_size, 2)
    at_least("max_tokens", config.max_tokens, 1)
    if config.width % config.heads:
        raise ValueError(f"`heads` must divide `width`, found {config.heads} and {config.width}.")
    one_of("start", config.start, ("random", "spectral"))
    if config.start == "spectral" and (config.norm, config.rank_gate, config.pooling) != ("pre", True, "sum"):
        raise ValueError("start='spectral' needs norm='pre', rank_gate=True and pooling='sum'.")
    if not 0 < config.mask_fraction < 1:
        raise ValueError(f"`mask_fraction` must lie between 0 and 1, found {config.mask_fraction}.")


def _new_model(config: PretrainConfig, vocabulary: Vocabulary) -> Stamp:
    names = (
        "width",
        "depth",
        "heads",
        "feedforward",
        "max_tokens",
        "pooling",
        "tied_heads",
        "dropout",
        "norm",
        "rank_gate",
    )
    gene = GeneConfig(n_genes=len(vocabulary), **{k: getattr(config, k) for k in names})
    with torch.random.fork_rng(devices=[]):  # torch initialises from its global generator, which is put back
        torch.manual_seed(config.seed)
        return Stamp(StampConfig(gene=gene, embedding=config.embedding), vocabulary.frame)


@torch.inference_mode()
def _fit_gene_head(model: Stamp, tokens: list[np.ndarray], seed: int, per_section: int = 500) -> None:
    """Set the gene head to principal components of the features of spots from all sections.

    Raw features share a large mean, so that their cosines are all alike. Components are scaled by the square root of
    their deviation: between leaving them alone, where a few count, and whitening, where noise counts as much as signal.
    """
    rng = np.random.default_rng([seed, 4])
    features = []
    for section in tokens:
        rows = rng.permutation(len(section))[:per_section]
        batches = torch.from_numpy(section[rows].astype(np.int64)).to(model.device).split(50)
        features += [model.gene_features(batch).double() for batch in batches]
    features_BD = torch.cat(features)
    features_BD = features_BD[(features_BD != 0).any(dim=1)]
    mean_D = features_BD.mean(dim=0)
    _, deviations, components = torch.linalg.svd(features_BD - mean_D, full_matrices=False)
    deviations = deviations / len(features_BD) ** 0.5
    n = min(model.config.embedding, int((deviations > 1e-6 * deviations[0]).sum()))
    head = components[:n] / deviations[:n, None].sqrt()
    model.gene_head.weight.zero_()[:n] = head
    model.gene_head.bias.zero_()[:n] = -(head @ mean_D)


class _Objective:
    """Losses of stage 1."""

    def __init__(self, model: Stamp, config: PretrainConfig, igr_steps: int):
        self.model, self.config, self.igr_steps = model, config, igr_steps

    def __call__(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> dict[str, Tensor]:
        encoder, tokens_SNL = self.model.gene, batch["tokens"]
        targets = tokens_SNL.flatten(0, 1)
        inputs, selected = mask_tokens(
            targets, encoder.config.n_tokens, fraction=self.config.mask_fraction, generator=generator
        )
        hidden = encoder(inputs, positions=batch["positions"])
        found = {"igr": losses.igr(hidden, targets, selected, partial(encoder.reconstruction, head="igr"))}
        if step >= self.igr_steps:
            shape = tokens_SNL.shape[:2]
            centre = tokens_SNL[:, 0]
            scored = selected.unflatten(0, shape)[:, 0] if self.config.cgr_targets == "masked" else centre != _keys.PAD
            found["cgr"] = losses.cgr(
                hidden.unflatten(0, shape), centre, scored, partial(encoder.reconstruction, head="cgr")
            )
        return found


def mask_tokens(
    tokens_BL: Tensor, n_tokens: int, *, fraction: float = 0.15, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Select tokens and spoil most of them: 80 % become the mask id, 10 % a random gene, 10 % stay (section 3.2).

    Parameters
    ----------
    tokens_BL
        (B, L), 0 pads.
    n_tokens
        Genes + 30.
    fraction
        Share of a spot's tokens that are selected.
    generator
        On the CPU, so that every device sees the same draw.

    Returns
    -------
    Ids for the encoder (padding is 1, mask 0), and where the loss is taken (bool).
    """
    device = tokens_BL.device
    draw, what = (torch.rand(tokens_BL.shape, generator=generator).to(device) for _ in range(2))
    random_gene = torch.randint(_keys.N_SPECIAL, n_tokens, tokens_BL.shape, generator=generator).to(device)
    real = tokens_BL != _keys.PAD
    selected = (draw < fraction) & real
    inputs = tokens_BL.masked_fill(~real, PAD_ID)
    inputs = inputs.masked_fill(selected & (what < 0.8), MASK_ID)
    inputs = torch.where(selected & (what >= 0.8) & (what < 0.9), random_gene, inputs)
    return inputs, selected
