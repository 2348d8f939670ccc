"""Stage 2: image and gene embeddings in one space (paper, section 3.3).

Shapes: B spots, E size of the shared space.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stampy._checks import at_least, one_of
from stampy.models import ImageConfig, ImageEncoder, Stamp, load, losses, save
from stampy.pp import Vocabulary

from ._augment import augment
from ._config import AlignConfig
from ._loop import fit
from ._samplers import PairSampler
from ._sections import as_sections, prepare

__all__ = ["align"]

LOSSES = ("patch_gene", "region_gene", "patch_region", "localization")


def align(
    sections: Any,
    out: str | Path,
    *,
    model: Stamp | str | Path,
    config: AlignConfig | Mapping[str, Any] | str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Stamp:
    """Train an image tower and the heads of both, by the four alignment losses, on spots with image and genes.

    A run that was interrupted goes on from its newest checkpoint when it is called again with the same arguments.

    Parameters
    ----------
    sections
        AnnData with raw counts, ``obsm["spatial"]`` and an image, paths of .h5ad files, or a manifest (.tsv with the
        columns path, name, image, um_per_px, spot_um); one or a list. Spots without genes (a section of 0 columns)
        feed the two losses that need an image alone.
    out
        Folder for config.json, metrics.jsonl, checkpoints, and the result in ``out/model``.
    model
        What to start from: the gene tower of `pretrain` (an image tower is added), or a model with both towers, which
        is trained further with its own backbone.
    config
        Settings; a mapping or JSON file names those that differ from the paper's.
    device
        None: CUDA if there is one, else the CPU.
    progress
        Show a progress bar.

    Returns
    -------
    The model with both towers; also written to ``out/model``.

    Raises
    ------
    ValueError
        Settings or sections that can't be used, or `out` holds another run.
    KeyError
        A section has no image.
    FloatingPointError
        The loss became NaN or infinite.
    """
    config = AlignConfig.of(config)
    _check(config)
    start = model if isinstance(model, Stamp) else load(model, device="cpu")
    if start.genes is None:
        raise ValueError("The model to start from has no vocabulary (`model.genes`).")
    vocabulary = Vocabulary(start.genes)
    aligned = _both_towers(start, config)
    prepared = [
        prepare(s, vocabulary, max_tokens=aligned.config.gene.max_tokens, tiles=True) for s in as_sections(sections)
    ]
    sampler = PairSampler(prepared, config)
    for name, parameter in aligned.named_parameters():
        parameter.requires_grad_(not name.startswith(_frozen(config)))
    identity = f"{len(vocabulary)} genes; {', '.join(f'{s.name} {len(s.xy)}' for s in prepared)}"
    fit(aligned, _Objective(aligned, config), sampler, config, out, device=device, identity=identity, progress=progress)
    aligned.requires_grad_(True).eval()
    save(aligned, Path(out) / "model")
    return aligned


def _check(config: AlignConfig) -> None:
    at_least("pairs_per_batch", config.pairs_per_batch, 4)
    for name in config.losses:
        one_of("losses", name, LOSSES)
    if not config.losses:
        raise ValueError(f"`losses` is empty; name some of {LOSSES}.")


def _frozen(config: AlignConfig) -> tuple[str, ...]:
    # The reconstruction heads of stage 1 have no target here.
    return (*config.frozen, "gene.igr_head.", "gene.cgr_head.")


def _both_towers(start: Stamp, config: AlignConfig) -> Stamp:
    """A model with both towers, weights from `start` as far as it has them."""
    if start.config.image is not None:
        return start
    kwargs = dict(config.backbone_kwargs or {})
    image = ImageConfig(backbone=config.backbone, backbone_kwargs=kwargs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Stamp(replace(start.config, image=image), start.genes)
        if config.pretrained:
            model.image = ImageEncoder(image, pretrained=True)
    model.gene.load_state_dict(start.gene.state_dict())
    model.gene_head.load_state_dict(start.gene_head.state_dict())
    return model


class _Objective:
    """Losses of stage 2."""

    def __init__(self, model: Stamp, config: AlignConfig):
        self.model, self.config = model, config

    def __call__(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> dict[str, Tensor]:
        model, image = self.model, self.model.image
        patches, regions, cells = (batch[k] for k in ("patches", "regions", "cells"))
        patches, regions = image.normalize(patches), image.normalize(regions)
        if self.config.augment:
            patches, regions, cells = augment(patches, regions, cells, generator)
        patch = model.image_embeddings(patches)
        region = model.regions(regions, image.shrink(patches))
        rows, scale = batch["rows"], model.scale
        paired = (batch["tokens"] != 0).any(dim=1)
        gene = model.gene_embeddings(batch["tokens"][paired])
        found = {
            "patch_region": lambda: losses.info_nce(patch, region.embeddings, scale, rows),
            "localization": lambda: losses.localization(region.query, region.grid, cells, scale),
        }
        if int(paired.sum()) > 1:
            found["patch_gene"] = lambda: losses.symmetric_info_nce(patch[paired], gene, scale, rows[paired])
            found["region_gene"] = lambda: losses.symmetric_info_nce(
                region.embeddings[paired], gene, scale, rows[paired]
            )
        zero = patch.sum() * 0
        return {name: found[name]() if name in found else zero for name in self.config.losses}
