"""Stage 2: a run of `align`, in one or several processes."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.fabric import Fabric

from stampy import _checks
from stampy._checks import shortlist
from stampy._files import digest, digest_of_tensors
from stampy.models import ImageConfig, ImageEncoder, Stamp, save
from stampy.models._load import load_stamp
from stampy.models._lora import add_lora, merge_lora
from stampy.models._weights import TrainedOn, trained_on, write_trained_on
from stampy.pp import Vocabulary

from ._align_step import Alignment
from ._config import AlignConfig
from ._corpus.corpus import as_corpus
from ._corpus.training_data import pairs_on_disk
from ._data import pairs_in_memory
from ._loop.checkpoints import CONFIG
from ._loop.loop import fit, locked_folder
from ._loop.ranks import is_sharded, make_fabric
from ._samplers import PairSampler
from ._setting_checks import no_effect_error
from ._spectral_start import start_spectral_image

if TYPE_CHECKING:
    from stampy._io.sections import SectionInput

    from ._corpus.corpus import Corpus

__all__ = ["run_align"]


def run_align(
    sections: Corpus | list[SectionInput],
    out: Path,
    model: Stamp | str | Path,
    config: AlignConfig,
    loggers: tuple[str, ...],
    progress: bool,
    *,
    replaces_tower: bool,
    device: str | None,
    devices: int | None,
    num_nodes: int | None,
    strategy: str | None,
) -> Stamp:
    """Launch the processes of `align`, with its checked arguments; returns the model."""
    fabric = make_fabric(config.precision, device=device, devices=devices, num_nodes=num_nodes, strategy=strategy)
    start = model if isinstance(model, Stamp) else load_stamp(model, device="cpu")
    if start.genes is None:
        raise ValueError("The model to start from has no vocabulary (`model.genes`).")
    if start.config.image is not None and not replaces_tower:
        _check_own_tower(start.config.image, config)
    if start.config.image is None and config.backbone is None and not config.backbone_kwargs:
        _tell_of_added_tower(fabric.device, pretrained=config.pretrained)
    aligned = _both_towers(start, config, afresh=replaces_tower)
    if aligned.image_tower().config.surroundings:
        _check_stem(config)
    identity = _identity_of(start, aligned if config.pretrained else None)
    _choose_trained(aligned, config)
    before = trained_on(model)
    found = fabric.launch(_align, sections, out, aligned, config, loggers, progress, identity, before)
    return load_stamp(out / "model", device="cpu") if found is None else found


def _align(
    fabric: Fabric,
    sections: Corpus | list[SectionInput],
    out: Path,
    model: Stamp,
    config: AlignConfig,
    loggers: tuple[str, ...],
    progress: bool,
    start: str,
    before: TrainedOn | None,
) -> Stamp | None:
    """Run the training in each process; returns the model if there is a single process."""
    vocabulary = Vocabulary(model.genes)
    with locked_folder(fabric, out) as out:
        corpus = as_corpus(sections)
        if corpus is not None:
            data = pairs_on_disk(corpus, vocabulary, model.config)
        else:
            data = pairs_in_memory(sections, vocabulary, model.config)
        sampler = PairSampler(data, config)
        tower = model.image_tower()
        if config.start == "spectral" and isinstance(tower, ImageEncoder):
            start_spectral_image(tower, torch.from_numpy(data.some_patches(config.seed)), config.seed)
        # keep the record of an existing run, since this run may still be refused
        if fabric.is_global_zero and not (out / CONFIG).exists():
            earlier = before.sections if before is not None and before.complete else None
            write_trained_on(out, {s.name: s.n_spots for s in data.sections}, earlier)
        spare = deepcopy(model) if is_sharded(fabric) else None  # sharding replaces the parameters of `model`
        stage, identity = Alignment(model, config), {"data": data.identity, "start": start}
        whole = fit(stage, sampler, config, out, fabric=fabric, identity=identity, progress=progress, loggers=loggers)
        if fabric.is_global_zero:
            if whole is not None and spare is not None:
                model = spare
                model.load_state_dict(whole)
            if config.image_tower == "lora":
                merge_lora(model.image_tower())
            model.requires_grad_(True).eval()
            save(model, out / "model")
        fabric.barrier()
    return model if fabric.world_size == 1 else None


def _identity_of(start: Stamp, aligned: Stamp | None) -> str:
    """Hash of the start model and of an added encoder whose weights are not determined by the seed."""
    found = f"{digest_of_tensors(start.state_dict())}-{digest([repr(start.config.to_dict())])}"
    return found if aligned is None else f"{found}-{digest_of_tensors(aligned.image_tower().state_dict())}"


def _tell_of_added_tower(device: torch.device, *, pretrained: bool) -> None:
    """Warn about the image encoder that is added without being named."""
    with torch.device("meta"):  # counted without being allocated
        millions = sum(p.numel() for p in ImageEncoder(ImageConfig()).parameters()) / 1e6
    own = "its own" if pretrained else "random"
    _checks.warn(
        "The start model has no image encoder and `backbone` is not given, so the paper's is added: "
        f"{ImageConfig().backbone} ({millions:,.0f} million parameters, {own} weights), trained on {device.type}. Pass "
        "backbone='vit_small_patch16_224' (`--backbone`) or another timm ViT to start from its own weights, or start "
        "from a model with an image encoder ('stampy-mini'). To use this one without a warning, name it in the "
        "settings (AlignConfig.backbone)."
    )


def _check_own_tower(tower: ImageConfig, config: AlignConfig) -> None:
    """Raise ValueError for settings of an added image encoder if the model already has one."""
    given = {"backbone": config.backbone, "backbone_kwargs": config.backbone_kwargs}
    own = {"backbone": tower.backbone, "backbone_kwargs": dict(tower.backbone_kwargs)}
    useless = [f"{k}={v!r}" for k, v in given.items() if v is not None and v != own[k]]
    useless += ["pretrained=True"] if config.pretrained else []
    useless += ["start='spectral'"] if config.start == "spectral" else []
    if useless:
        raise no_effect_error(
            ", ".join(useless),
            f"the model to start from has an image encoder ({tower.backbone})",
            "Omit it, or replace the encoder with the argument `backbone=` (`--backbone`).",
        )


def _check_stem(config: AlignConfig) -> None:
    """Raise ValueError for settings that require a ViT."""
    useless = ["image_tower='lora'"] if config.image_tower == "lora" else []
    useless += ["start='spectral'"] if config.start == "spectral" else []
    if useless:
        raise no_effect_error(
            ", ".join(useless),
            "the image encoder is a convolutional stem, and no ViT",
            "Omit it ('full' and 'frozen' work), or replace the encoder with `backbone=` (`--backbone`).",
        )


def _choose_trained(model: Stamp, config: AlignConfig) -> None:
    """Set `requires_grad` of every parameter."""
    # The reconstruction heads of stage 1 are not used in this stage.
    frozen = (*config.frozen, "gene.igr_head.", "gene.cgr_head.")
    names = [name for name, _ in model.named_parameters()]
    for prefix in config.frozen:
        if not any(name.startswith(prefix) for name in names):
            raise ValueError(f"`frozen`: no parameter starts with {prefix!r}. There are {shortlist(names, 20)}.")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    if config.image_tower == "frozen":
        model.image_tower().base_model.requires_grad_(False)
    elif config.image_tower == "lora":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            vit = model.image_tower().base_model
            vit.requires_grad_(False)
            add_lora(vit.blocks, config.lora_rank)
    names = [name for name, _ in model.named_parameters()]
    for pattern in config.trainable or ():
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"`trainable`: no parameter is named like {pattern!r}. There are {shortlist(names, 20)}.")
    if config.trainable is not None:
        for name, parameter in model.named_parameters():
            chosen = any(fnmatchcase(name, pattern) for pattern in config.trainable)
            parameter.requires_grad_(parameter.requires_grad and chosen)
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("All parameters are frozen; see `frozen`, `trainable` and `image_tower`.")


def _both_towers(start: Stamp, config: AlignConfig, *, afresh: bool) -> Stamp:
    """Model with both encoders; weights that `start` has are copied from it."""
    if start.config.image is not None and not afresh:
        return deepcopy(start)
    image = ImageConfig(
        backbone=config.backbone or ImageConfig().backbone, backbone_kwargs=dict(config.backbone_kwargs or {})
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        tower = ImageEncoder(image, pretrained=True) if config.pretrained else None
        if tower is not None:  # inputs are normalised as in the encoder's own training
            known = tower.base_model.pretrained_cfg
            image = replace(tower.config, mean=tuple(known["mean"]), std=tuple(known["std"]))
        model = Stamp(replace(start.config, image=image), start.genes)
        if tower is not None:
            model.image_tower().load_state_dict(tower.state_dict())
    model.gene.load_state_dict(start.gene.state_dict())
    model.gene_head.load_state_dict(start.gene_head.state_dict())
    return model
