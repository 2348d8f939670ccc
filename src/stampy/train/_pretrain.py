"""Stage 1: the gene encoder (paper, section 3.2).

Shapes: D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric

from stampy._checks import at_least, one_of, shortlist
from stampy.models import GeneConfig, Stamp, StampConfig, load, save
from stampy.models._cross_entropy import kernel_for
from stampy.pp import Vocabulary

from ._config import PretrainConfig
from ._logs import check_loggers
from ._loop import fit
from ._ranks import make_fabric
from ._reconstruction import Reconstruction
from ._sources import group_source
from ._spectral import start_spectral

__all__ = ["pretrain"]


def pretrain(
    sections: Any,
    out: str | Path,
    *,
    vocabulary: Vocabulary | str | Path | None = None,
    config: PretrainConfig | Mapping[str, Any] | str | Path | None = None,
    device: str | None = None,
    devices: int | None = None,
    num_nodes: int | None = None,
    strategy: str | None = None,
    loggers: Sequence[str] = (),
    progress: bool = True,
) -> Stamp:
    """Train a gene encoder: first IGR alone, then IGR and CGR, on batches of neighbourhood groups.

    A run that was interrupted goes on from its newest checkpoint when it is called again with the same arguments.

    Parameters
    ----------
    sections
        AnnData with raw counts and ``obsm["spatial"]``, paths of .h5ad files, or a manifest (.tsv with a column
        ``path``); one or a list, which is held in memory. Or a `Corpus`, or the path of one.
    out
        Folder for config.json, metrics.jsonl, checkpoints, and the result in ``out/model``.
    vocabulary
        None: made from the sections (`stampy.pp.Vocabulary.from_sections`), or the one of the corpus.
    config
        Settings; a mapping or JSON file names those that differ from the paper's.
    device
        None: CUDA if there is one, else the CPU.
    devices, num_nodes
        Devices of a node, and nodes; each device gets ``groups_per_batch`` groups a step. None: as many as processes
        that torchrun or SLURM started, else one.
    strategy
        How several devices share the work: ``"ddp"`` (each has the whole model; processes are started by running the
        script again), ``"ddp_spawn"`` and ``"ddp_notebook"`` (likewise, started from within, in a notebook the latter),
        ``"fsdp"`` (each has a part of the model).
    loggers
        Logs beside metrics.jsonl: ``"csv"``, ``"tensorboard"``, ``"wandb"``.
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
    check_loggers(loggers)
    fabric = make_fabric(config.precision, device=device, devices=devices, num_nodes=num_nodes, strategy=strategy)
    kernel_for(config.fused, fabric.device.type, torch.float32)
    model = fabric.launch(_pretrain, sections, Path(out), vocabulary, config, tuple(loggers), progress)
    return load(Path(out) / "model", device="cpu") if model is None else model


def _pretrain(
    fabric: Fabric,
    sections: Any,
    out: Path,
    vocabulary: Vocabulary | str | Path | None,
    config: PretrainConfig,
    loggers: tuple[str, ...],
    progress: bool,
) -> Stamp | None:
    """In each process; the model where there is one process."""
    vocabulary, sampler, identity, prepared = group_source(sections, vocabulary, config)
    sampler.place(fabric.global_rank, fabric.world_size)  # an epoch has fewer steps the more ranks share them
    model = _new_model(config, vocabulary)
    if config.start == "spectral":
        start_spectral(model.gene, prepared(), vocabulary.divisors, config.seed)
    _freeze(model, config)
    stage = Reconstruction(model, config, sampler.steps_per_epoch * config.epochs_igr)
    whole = fit(stage, sampler, config, out, fabric=fabric, identity=identity, progress=progress, loggers=loggers)
    if fabric.is_global_zero:
        if whole is not None:
            model = _new_model(config, vocabulary)
            model.load_state_dict(whole)
        model.requires_grad_(True).eval()
        _fit_gene_head(model, [s.tokens for s in prepared()], config.seed)
        save(model, out / "model")
    fabric.barrier()
    return model if fabric.world_size == 1 else None


def _freeze(model: Stamp, config: PretrainConfig) -> None:
    model.gene_head.requires_grad_(False)  # it has no part in these losses
    names = [name for name, _ in model.gene.named_parameters()]
    for prefix in config.frozen:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"`frozen`: no parameter starts with {prefix!r}. There are {shortlist(names, 20)}.")
    for name, parameter in model.gene.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(config.frozen)))


def _check(config: PretrainConfig) -> None:
    at_least("groups_per_batch", config.groups_per_batch, 1)
    at_least("group_size", config.group_size, 2)
    at_least("max_tokens", config.max_tokens, 1)
    if config.width % config.heads:
        raise ValueError(f"`heads` must divide `width`, found {config.heads} and {config.width}.")
    one_of("start", config.start, ("random", "spectral"))
    summed = config.norm == "pre" and config.rank_gate and config.pooling in ("sum", "bag")
    if config.start == "spectral" and not summed:
        raise ValueError(
            "start='spectral' needs norm='pre', rank_gate=True and pooling='sum' or 'bag', found "
            f"norm={config.norm!r}, rank_gate={config.rank_gate} and pooling={config.pooling!r}."
        )
    if isinstance(config.frozen, str):
        raise TypeError(f"`frozen` must be a sequence of names, found {config.frozen!r}.")
    if not 0 < config.mask_fraction < 1:
        raise ValueError(f"`mask_fraction` must lie between 0 and 1, found {config.mask_fraction}.")


def _new_model(config: PretrainConfig, vocabulary: Vocabulary) -> Stamp:
    shared = {f.name for f in fields(GeneConfig)} & {f.name for f in fields(PretrainConfig)}
    gene = GeneConfig(n_genes=len(vocabulary), **{k: getattr(config, k) for k in shared})
    with torch.random.fork_rng(devices=[]):  # torch initialises from its global generator, which is put back
        torch.manual_seed(config.seed)
        return Stamp(StampConfig(gene=gene, embedding=config.embedding), vocabulary.frame)


@torch.inference_mode()
def _fit_gene_head(model: Stamp, tokens: list[np.ndarray], seed: int, per_section: int = 250) -> None:
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
