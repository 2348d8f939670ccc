"""Step of stage 2: augment tiles, embed the batch piece by piece, and compute the losses over all pieces.

Shapes: B spots, P spots with genes, E size of the shared space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor, nn

from stampy import _keys
from stampy._utils import seed_of
from stampy.models import Stamp, losses

from ._config import AlignConfig
from ._loop.loop import Stage
from ._loop.ranks import synchronised
from ._samplers import Losses, PairBatch, PairPiece

__all__ = ["Alignment", "augment"]

_WITH_REGION = {"region_gene", "patch_region", "localization"}


class Alignment(Stage[PairBatch, PairPiece, AlignConfig]):
    """The four losses with equal weight, or a selection of them."""

    def __init__(self, model: Stamp, config: AlignConfig):
        super().__init__(model, config, config.losses)
        wanted = set(config.losses)
        self.has_patch = bool(wanted & {"patch_gene", "patch_region"})
        self.has_region, self.has_gene = bool(wanted & _WITH_REGION), bool(wanted & {"patch_gene", "region_gene"})
        gene = [*model.gene.parameters(), *model.gene_head.parameters()]
        self.trains_gene = any(p.requires_grad for p in gene)

    def pieces(self, batch: PairBatch, step: int) -> list[PairPiece]:
        """Draw the same random numbers on all ranks; each rank takes its slice."""
        n = min(self.config.accumulate, len(batch["rows"]))
        ids, lengths = self.model.gene.ids(batch["tokens"])
        tensors = (ids, batch["patches"], batch["regions"], batch["cells"], batch["rows"])
        # Values that determine shapes stay on the CPU as arrays, since reading them from a GPU would block.
        paired, known = (batch["tokens"] != _keys.PAD).any(dim=1), batch["cells"] >= 0
        arrays = ([x.numpy() for x in whole.tensor_split(n)] for whole in (lengths, paired, known))
        cut = zip(*(whole.tensor_split(n) for whole in tensors), *arrays, strict=True)
        return [
            {
                "ids": ids, "patches": patches, "regions": regions, "cells": cells, "rows": rows,
                "lengths": lengths, "paired": paired, "known": known, "step": step, "piece": i, "pieces": n,
            }
            for i, (ids, patches, regions, cells, rows, lengths, paired, known) in enumerate(cut)
        ]  # fmt: skip

    def run(self, fabric: Fabric, module: nn.Module, pieces: list[PairPiece]) -> Losses:
        """Compute losses between the embeddings of all pieces and ranks, and their gradients."""
        there = self._genes_and_regions(pieces, fabric.device)
        pieces = self._views(pieces)
        if len(pieces) == 1:
            found = self.losses(module(pieces[0]), pieces, there)
            fabric.backward(torch.stack(list(found.values())).sum())
            return found
        # The losses need all embeddings at once, but only the activations of one piece fit into memory. Therefore all
        # pieces are first embedded without activations; then the gradients at the embeddings are computed; then each
        # piece is embedded again and its gradients are propagated.
        state = _generators(fabric.device)
        with torch.no_grad():
            outputs = [module(piece) for piece in pieces]
        joint = {k: torch.cat([o[k] for o in outputs]) if outputs[0][k].ndim else outputs[0][k] for k in outputs[0]}
        joint = {k: v.detach().requires_grad_(v.is_floating_point()) for k, v in joint.items()}
        found = self.losses(joint, pieces, there)
        fabric.backward(torch.stack(list(found.values())).sum())
        _restore(state, fabric.device)
        scaler = getattr(fabric.strategy.precision, "scaler", None)
        start = 0
        for number, piece in enumerate(pieces, start=1):
            rows = slice(start, start := start + len(piece["rows"]))
            with synchronised(fabric, module, number == len(pieces)):
                passed = []
                for name, value in module(piece).items():
                    grad = joint[name].grad
                    if grad is not None and value.requires_grad:
                        passed.append((value * (grad[rows] if value.ndim else grad / len(pieces))).sum())
                total = torch.stack(passed).sum()
                # With float16, the gradients at the embeddings are scaled already, and Fabric scales the total again.
                fabric.backward(total if scaler is None else total / scaler.get_scale())
        return {k: v.detach() for k, v in found.items()}

    def forward(self, piece: PairPiece) -> dict[str, Tensor]:
        """Embeddings of a piece as needed by the losses."""
        model, found = self.model, {"scale": self.model.scale}
        surroundings = self.has_patch and model.surroundings
        if self.has_patch and (self.has_region or surroundings):
            found["patch"], region = model.patches_and_regions(piece["patches"], piece["regions"], piece["references"])
        elif self.has_region:
            region = model.regions(piece["regions"], piece["references"])
        else:
            found["patch"] = model.image_embeddings(piece["patches"])
        if self.has_region:
            found |= {"region": region.embeddings, "query": region.query, "grid": region.grid}
        if self.has_gene:
            with torch.set_grad_enabled(self.trains_gene and torch.is_grad_enabled()):
                features = model.gene.pooled(piece["ids"], torch.from_numpy(piece["lengths"]))
                found["gene"] = model.project_genes(features)  # zeros for spots without genes
        unused = () if "localization" in self.names else ("query", "grid")
        return {k: v for k, v in found.items() if k not in unused}

    def _genes_and_regions(self, pieces: list[PairPiece], device: torch.device) -> Tensor:
        """(2, B of all ranks) on the CPU: which spots have genes, and which have a region."""
        there = torch.from_numpy(np.stack([np.concatenate([p[k] for p in pieces]) for k in ("paired", "known")]))
        if self.ranks.world_size == 1:
            return there
        # The only synchronisation of this kind, done before the GPU has work in this step.
        return self.ranks.gather(there.T.long().to(device)).cpu().bool().T

    def _views(self, pieces: list[PairPiece]) -> list[PairPiece]:
        """Augment the whole batch at once, so that the result does not depend on the division into pieces."""
        image, config, ranks = self.model.image_tower(), self.config, self.ranks
        sizes = [len(piece["rows"]) for piece in pieces]
        patches, regions = (image.normalize(torch.cat([p[k] for p in pieces])) for k in ("patches", "regions"))
        cells = torch.cat([p["cells"] for p in pieces])
        if config.augment:
            generator = torch.Generator().manual_seed(seed_of(config.seed, "views", pieces[0]["step"]) >> 1)
            patches, regions, cells = augment(
                patches, regions, cells, generator, rank=ranks.rank, world_size=ranks.world_size
            )
        views = zip(*(x.split(sizes) for x in (patches, regions, image.shrink(patches), cells)), strict=True)
        return [
            {**piece, "patches": patches, "regions": regions, "references": references, "cells": cells}
            for piece, (patches, regions, references, cells) in zip(pieces, views, strict=True)
        ]

    def losses(self, out: dict[str, Tensor], pieces: list[PairPiece], there: Tensor) -> Losses:
        """Means over the spots of all ranks; each rank returns its contribution times the number of ranks."""
        ranks, scale = self.ranks, out["scale"]
        rows, cells = (torch.cat([p[k] for p in pieces]) for k in ("rows", "cells"))
        own = {k: out[k] for k in ("patch", "region", "gene") if k in out}
        widths = [x.shape[1] for x in own.values()]
        gathered = ranks.gather(torch.cat(list(own.values()), dim=1))
        everyone = dict(zip(own, gathered.split(widths, dim=1), strict=True))
        all_rows, start = ranks.gather(rows), ranks.rank * len(rows)
        before, (n_paired, n_known) = int(there[0, :start].sum()), there.sum(dim=1).tolist()
        mine = there[:, start : start + len(rows)]
        all_paired, paired, known = (x.nonzero()[:, 0].to(rows.device, non_blocking=True) for x in (there[0], *mine))
        # Added to every loss, so that all ranks take part in all gradient exchanges, whichever spots they have.
        zero = (sum(x.sum() for x in out.values()) + gathered.sum()) * 0

        def with_genes(name: Literal["patch", "region"]) -> Tensor:
            if n_paired < 2 or not len(paired):
                return zero
            value = losses.symmetric_info_nce(
                own[name][paired], own["gene"][paired], scale, rows[paired],
                keys=(everyone[name][all_paired], everyone["gene"][all_paired]), key_ids=all_rows[all_paired],
                first=before,
            )  # fmt: skip
            return value * (len(paired) * ranks.world_size / n_paired)

        def patch_region() -> Tensor:
            return losses.info_nce(own["patch"], everyone["region"], scale, rows, key_ids=all_rows, first=start)

        def localization() -> Tensor:
            share = len(known) * ranks.world_size / max(n_known, 1)
            return losses.localization(out["query"], out["grid"], cells, scale, known=known) * share

        found: dict[str, Callable[[], Tensor]] = {
            "patch_gene": lambda: with_genes("patch"),
            "region_gene": lambda: with_genes("region"),
            "patch_region": patch_region,
            "localization": localization,
        }
        return {name: found[name]() + zero for name in self.names}


def _generators(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _restore(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


_CONTRAST, _BRIGHTNESS, _TINT = 0.25, 0.25, 0.15  # in units of ImageNet's standard deviation; stain varies by section
_COARSEST_PX = 24  # edge of a patch in the reduced image of a Visium section


def augment(
    patches: Tensor, regions: Tensor, cells_B: Tensor, generator: torch.Generator, *, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, ...]:
    """Rotate and reflect each patch with its region and cell number; vary resolution and colours.

    Parameters
    ----------
    patches, regions
        (B, 3, size, size), normalised.
    cells_B
        Cell of the patch in its region, in row-major order; -1 without region.
    generator
        Generator on the CPU.
    rank, world_size
        The spots are slice number `rank` of a batch `world_size` times as large, for which random numbers are drawn.

    Returns
    -------
    Changed copies of patches, regions and cells.
    """
    cells_39 = torch.arange(9).view(3, 3)
    n = len(patches)
    own = slice(rank * n, (rank + 1) * n)
    turns = torch.randint(4, (n * world_size,), generator=generator)[own]
    mirrored = torch.randint(2, (n * world_size,), generator=generator).bool()[own]
    new_patches, new_regions, new_cells = torch.empty_like(patches), torch.empty_like(regions), cells_B.clone()
    for turn in range(4):
        for mirror in (False, True):
            chosen = _places((turns == turn) & (mirrored == mirror), patches)
            new_patches[chosen], new_regions[chosen] = (_turn(x[chosen], turn, mirror) for x in (patches, regions))
            where = _turn(cells_39, turn, mirror).flatten().argsort()  # old cell -> new cell
            where = where.to(cells_B.device, non_blocking=True)
            old = cells_B[chosen]
            new_cells[chosen] = torch.where(old >= 0, where[old.clamp(min=0)], old)
    size = patches.shape[-1]
    coarse_px = int(torch.randint(_COARSEST_PX, max(size // 2, _COARSEST_PX + 1), (), generator=generator))
    chosen = _places((torch.rand(n * world_size, generator=generator) < 0.5)[own], patches)
    _coarsen(new_patches, coarse_px, chosen)
    _coarsen(new_regions, 3 * coarse_px, chosen)
    gain, offset = (x[own].to(patches.device, non_blocking=True) for x in _colours(n * world_size, generator))
    return new_patches.mul_(gain).add_(offset), new_regions.mul_(gain).add_(offset), new_cells


def _places(chosen: Tensor, images: Tensor) -> Tensor:
    # Indices are computed on the CPU, since counting a mask on a GPU would block.
    return chosen.nonzero()[:, 0].to(images.device, non_blocking=True)


def _turn(x: Tensor, turn: int, mirror: bool) -> Tensor:
    x = torch.rot90(x, turn, dims=(-2, -1))
    return x.flip(-1) if mirror else x


def _coarsen(images: Tensor, px: int, chosen: Tensor) -> None:
    """Reduce the resolution of the chosen images in place, equally in µm for a patch and its region."""
    size = images.shape[-1]
    if px < size and len(chosen):
        small = F.interpolate(images[chosen], size=px, mode="area")
        images[chosen] = F.interpolate(small, size=size, mode="bicubic", align_corners=False).to(images.dtype)


def _colours(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    # Gain and offset are drawn per spot, so that patch and region keep the same stain; the tint is drawn per channel.
    gain = 1 + _CONTRAST * (2 * torch.rand(n, 1, 1, 1, generator=generator) - 1)
    brightness = _BRIGHTNESS * torch.randn(n, 1, 1, 1, generator=generator)
    tint = _TINT * torch.randn(n, 3, 1, 1, generator=generator)
    return gain, brightness + tint
