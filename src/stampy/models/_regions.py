"""Pool a region's patch tokens to 3 x 3 cells, for the localization loss (paper, section 3.3).

Shapes: B images, P patch tokens, D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["pool_3x3"]


def pool_3x3(patches_BPD: Tensor) -> Tensor:
    """The patch tokens of a square image, mean-pooled to 3 x 3 overlapping cells: (B, 9, D), row by row.

    For 14 x 14 tokens the windows are 6 wide, 4 apart, as published; other sizes in proportion.
    """
    side = round(patches_BPD.shape[1] ** 0.5)
    stride = side * 2 // 7
    pooled = F.avg_pool2d(patches_BPD.transpose(1, 2).unflatten(2, (side, side)), side - 2 * stride, stride)
    return pooled.flatten(2).transpose(1, 2)
