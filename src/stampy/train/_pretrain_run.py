"""Stage 1: a run of `pretrain`, in one or several processes.

Shapes: D width.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from lightning.fabric import Fabric

from stampy import _checks, _keys
from stampy._checks import shortlist
from stampy._files import atomic
from stampy._utils import stream
from stampy.models import GeneConfig, GeneEncoder, Stamp, StampConfig, save
from stampy.models._kernels.cross_entropy import kernel_for
from stampy.models._load import load_stamp
from stampy.models._weights import DATA
from stampy.pp import Vocabulary
from stampy.pp._neighborhoods import MANY_DROPPED

from ._baselines import frequencies, references
from ._config import PretrainConfig
from ._corpus.corpus import as_corpus
from ._corpus.training_data import groups_on_disk
from ._data import TrainingData, groups_in_memory
from ._loop.checkpoints import CONFIG
from ._loop.loop import fit, locked_folder
from ._loop.ranks import make_fabric
from ._pretrain_step import Reconstruction
from ._samplers import GroupSampler
from ._spectral_start import start_spectral

if TYPE_CHECKING:
    from stampy._io.sections import SectionInput

    from ._corpus.corpus import Corpus

__all__ = ["run_pretrain"]

logger = logging.getLogger(__name__)


def run_pretrain(
    sections: Corpus | list[SectionInput],
    out: Path,
    vocabulary: Vocabulary | None,
    config: PretrainConfig,
    loggers: tuple[str, ...],
    progress: bool,
    *,
    device: str | None,
    devices: int | None,
    num_nodes: int | None,
    strategy: str | None,
) -> Stamp:
    """Launch the processes of `pretrain`, with its checked arguments; returns the model."""
    _check_frozen(config)
    fabric = make_fabric(config.precision, device=device, devices=devices, num_nodes=num_nodes, strategy=strategy)
    kernel_for(config.fused, fabric.device.type, torch.float32)
    model = fabric.launch(_pretrain, sections, out, vocabulary, config, loggers, progress)
    return load_stamp(out / "model", device="cpu") if model is None else model


def _pretrain(
    fabric: Fabric,
    sections: Corpus | list[SectionInput],
    out: Path,
    vocabulary: Vocabulary | None,
    config: PretrainConfig,
    loggers: tuple[str, ...],
    progress: bool,
) -> Stamp | None:
    """Run the training in each process; returns the model if there is a single process."""
    with locked_folder(fabric, out) as out:
        data = _data(sections, vocabulary, config)
        sampler = GroupSampler(data, config)
        sampler.place(fabric.global_rank, fabric.world_size)  # sets the number of steps per epoch
        if fabric.is_global_zero:
            _report_dropped(sampler.dropped(), config)
        model = _new_model(config, data.vocabulary)
        if config.start == "spectral":
            start_spectral(model.gene, data.loaded(config.seed), data.vocabulary.divisors, config.seed)
        if config.head_bias == "frequency":
            _set_head_biases(model, [s.tokens for s in data.loaded(config.seed)])
        _freeze(model, config)
        # keep the record of an existing run, since this run may still be refused
        if fabric.is_global_zero and not (out / CONFIG).exists():
            _describe_data(out / DATA, data, sampler.dropped(), config)
        stage = Reconstruction(model, config, sampler.steps_per_epoch * config.epochs_igr)
        whole = fit(
            stage, sampler, config, out, fabric=fabric, identity={"data": data.identity}, progress=progress,
            loggers=loggers,
        )  # fmt: skip
        if fabric.is_global_zero:
            if whole is not None:
                model = _new_model(config, data.vocabulary)
                model.load_state_dict(whole)
            model.requires_grad_(True).eval()
            _fit_gene_head(model, [s.tokens for s in data.loaded(config.seed)], config.seed)
            save(model, out / "model")
        fabric.barrier()
    return model if fabric.world_size == 1 else None


def _data(sections: Corpus | list[SectionInput], vocabulary: Vocabulary | None, config: PretrainConfig) -> TrainingData:
    """Training data from a corpus, or in memory."""
    corpus = as_corpus(sections)
    if corpus is not None:
        return groups_on_disk(corpus, vocabulary, config)
    return groups_in_memory(sections, vocabulary, config)


def _report_dropped(dropped: Mapping[str, tuple[int, int]], config: PretrainConfig) -> None:
    """Log the number of spots without neighbourhood group; warn if there are many."""
    n_dropped, n_spots = (sum(column) for column in zip(*dropped.values(), strict=True))
    logger.info("%d of %d spots are in no neighbourhood group and are not used in stage 1", n_dropped, n_spots)
    many = [f"{name}: {n:,} of {total:,}" for name, (n, total) in dropped.items() if n > MANY_DROPPED * total]
    if many:
        _checks.warn(
            f"Stage 1 skips {n_dropped:,} of {n_spots:,} spots, which have too few other spots within "
            f"{config.max_distance:g} spot distances (`max_distance`) for a neighbourhood group; most in the sections "
            f"{_checks.shortlist(many)}. Increase `max_distance` to keep them."
        )


def _describe_data(
    path: Path, data: TrainingData, dropped: Mapping[str, tuple[int, int]], config: PretrainConfig
) -> None:
    """Write properties of the data before the first step: baselines and excluded spots."""
    tokens = {s.name: s.tokens for s in data.loaded(config.seed)}
    n_tokens = len(data.vocabulary) + _keys.N_SPECIAL
    known = {
        "references": references(
            tokens,
            n_tokens,
            fraction=config.mask_fraction,
            seed=config.seed,
            positions=config.positions_per_step,
            divisors=data.vocabulary.divisors,
        ),
        "references_from": {"sections": len(tokens), "spots": sum(map(len, tokens.values()))},
        "spots": {name: n for name, (_, n) in dropped.items()},
        "spots_in_no_group": {name: n for name, (n, _) in dropped.items() if n},
    }
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n")


def _freeze(model: Stamp, config: PretrainConfig) -> None:
    model.gene_head.requires_grad_(False)  # not used in these losses
    for name, parameter in model.gene.named_parameters():
        parameter.requires_grad_(not name.startswith(tuple(config.frozen)))


def _check_frozen(config: PretrainConfig) -> None:
    """Raise ValueError for a prefix without parameter, or if no parameter remains to be trained."""
    with torch.device("meta"):  # only names are needed
        names = [name for name, _ in GeneEncoder(_gene_config(config, n_genes=1)).named_parameters()]
    for prefix in config.frozen:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"`frozen`: no parameter starts with {prefix!r}. There are {shortlist(names, 20)}.")
    if all(name.startswith(tuple(config.frozen)) for name in names):
        raise ValueError(f"`frozen`={config.frozen!r} leaves no parameter to train.")


def _gene_config(config: PretrainConfig, n_genes: int) -> GeneConfig:
    shared = {f.name for f in fields(GeneConfig)} & {f.name for f in fields(PretrainConfig)}
    return GeneConfig(n_genes=n_genes, **{k: getattr(config, k) for k in shared})


def _new_model(config: PretrainConfig, vocabulary: Vocabulary) -> Stamp:
    gene = _gene_config(config, len(vocabulary))
    with torch.random.fork_rng(devices=[]):  # torch initialises from its global generator, which is restored
        torch.manual_seed(config.seed)
        return Stamp(StampConfig(gene=gene, embedding=config.embedding), vocabulary.frame)


@torch.no_grad()
def _set_head_biases(model: Stamp, tokens: list[np.ndarray]) -> None:
    """Set the biases of both heads to the log frequency of each token; unseen tokens count as seen once."""
    counts = np.maximum(sum(frequencies(section, model.gene.config.n_tokens) for section in tokens), 1)
    for head in (model.gene.igr_head, model.gene.cgr_head):
        head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))


@torch.inference_mode()
def _fit_gene_head(model: Stamp, tokens: list[np.ndarray], seed: int, per_section: int = 250) -> None:
    """Set the gene head to principal components of the features of spots from all sections.

    Raw features have a large common mean, which makes all cosines alike. Components are scaled by the square root of
    their standard deviation. Without scaling, few components dominate; after whitening, noise counts as much as signal.
    """
    rng = stream(seed, "gene head")
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
