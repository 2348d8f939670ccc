"""A hint, once in a process, that bfloat16 would be faster on this CPU."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import nn

__all__ = ["hint_bfloat16"]

logger = logging.getLogger(__name__)

MIN_TILES, MIN_PARAMETERS = 500, 50_000_000  # minutes of float32 on a core: ViT-B/16 has 86 million parameters
_FLAGS = ("avx512_bf16", "amx_bf16")
_hinted = False


def hint_bfloat16(model: nn.Module, n_tiles: int, precision: str | None) -> None:
    """Log that bfloat16 is faster, for many tiles, a large encoder and a CPU with instructions for it.

    Parameters
    ----------
    model
        The encoder.
    n_tiles
        To come.
    precision
        As the user asked; who named one gets no hint.
    """
    global _hinted
    if _hinted or precision is not None or n_tiles < MIN_TILES or next(model.parameters()).device.type != "cpu":
        return
    if sum(p.numel() for p in model.parameters()) < MIN_PARAMETERS or not _cpu_has_bfloat16():
        return
    _hinted = True
    logger.warning(
        "This CPU multiplies in bfloat16 (AVX512-BF16 or AMX), which is about twice as fast for large image encoders "
        'and changes vectors by about 1 %. Use precision="bfloat16" for it, or "float32" to hide this hint.'
    )


def _cpu_has_bfloat16() -> bool:
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # of newer versions of torch
    return any(capabilities.get(flag, False) for flag in _FLAGS)
