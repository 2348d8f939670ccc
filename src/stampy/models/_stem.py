"""Image encoder without Transformer: the first blocks of EfficientNet-Lite0, and statistics of their feature maps.

Shapes: B spots, C channels of all maps, H and W px, D = 4 C size of the feature (mean and standard deviation of C
channels for tile and surroundings).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ._backbone_names import STEM

if TYPE_CHECKING:
    from ._image import ImageConfig

__all__ = ["BLOCKS", "STEM", "STEM_CHANNELS", "ConvStem", "RegionFeatures", "StemEncoder"]

STEM_CHANNELS = 32
# EfficientNet-Lite0 (Tan and Le 2019), in order: expansion, kernel size, stride, channels
BLOCKS = (
    (1, 3, 1, 16),
    (6, 3, 2, 24),
    (6, 3, 1, 24),
    (6, 5, 2, 40),
    (6, 5, 1, 40),
    (6, 3, 2, 80),
    (6, 3, 1, 80),
    (6, 3, 1, 80),
    (6, 5, 1, 112),
    (6, 5, 1, 112),
    (6, 5, 1, 112),
)
_ENDS = (2, 4, 7, 10)  # last block of each resolution: 1/4, 1/8 and 1/16 of the image's
_EPSILON = 1e-6  # added to variances, so that constant channels have a gradient
_CPU_BATCH = 16  # images per pass on the CPU; more exceed its caches and take twice as long


class RegionFeatures(NamedTuple):
    """Features of regions from an image encoder, before the heads."""

    feature: Tensor  # (B, D)
    query: Tensor  # (B, D) of the patch to locate
    grid: Tensor  # (B, 9, D) of the nine cells, row-major


class _Conv(nn.Conv2d):
    """Convolution with TensorFlow's "SAME" padding: uneven padding has more at the end."""

    def __init__(self, n_in: int, n_out: int, kernel: int, *, stride: int = 1, groups: int = 1):
        super().__init__(n_in, n_out, kernel, stride=stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        (k, _), (stride, _) = self.kernel_size, self.stride
        missing = [max((-(-size // stride) - 1) * stride + k - size, 0) for size in (x.shape[3], x.shape[2])]
        if any(m % 2 for m in missing):
            x, even = F.pad(x, [part for m in missing for part in (m // 2, m - m // 2)]), (0, 0)
        else:
            even = (missing[1] // 2, missing[0] // 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, even, 1, self.groups)


class _Block(nn.Module):
    """Inverted residual block with ReLU6; batch norms are merged into the convolutions."""

    def __init__(self, n_in: int, expansion: int, kernel: int, stride: int, n_out: int):
        super().__init__()
        n = n_in * expansion
        self.expand = _Conv(n_in, n, 1) if expansion > 1 else nn.Identity()
        self.depthwise = _Conv(n, n, kernel, stride=stride, groups=n)
        self.project = _Conv(n, n_out, 1)
        self.is_residual = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self.expand(x), inplace=True) if isinstance(self.expand, _Conv) else x
        y = self.project(F.relu6(self.depthwise(y), inplace=True))
        return x + y if self.is_residual else y


class ConvStem(nn.Module):
    """The first blocks of an EfficientNet-Lite0.

    Parameters
    ----------
    n_blocks
        Number of `BLOCKS`.
    """

    def __init__(self, n_blocks: int):
        super().__init__()
        self.first = _Conv(3, STEM_CHANNELS, 3, stride=2)
        channels = [STEM_CHANNELS, *(block[-1] for block in BLOCKS[:n_blocks])]
        self.blocks = nn.ModuleList(_Block(n, *block) for n, block in zip(channels, BLOCKS[:n_blocks], strict=False))
        self.kept = tuple(i for i in range(n_blocks) if i in _ENDS or i == n_blocks - 1)
        self.n_channels = STEM_CHANNELS + sum(channels[i + 1] for i in self.kept)
        self.checkpointing = False  # keep only the inputs of blocks

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps of normalised images (B, 3, H, W), each (B, channels, height, width): the first and those of `kept`."""
        x = F.relu6(self.first(images.contiguous(memory_format=torch.channels_last)), inplace=True)
        maps = [x]
        for i, block in enumerate(self.blocks):
            again = self.checkpointing and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if again else block(x)
            maps += [x] if i in self.kept else []
        return maps


class StemEncoder(nn.Module):
    """Convolutional stem for a spot's tile and surroundings, with the same methods as `ImageEncoder`.

    The feature is the mean and standard deviation of each channel over the tile, then over the surroundings (the region
    of three times the tile's edge, with the same number of pixels). Maps of all resolutions contribute: texture within
    cells and the arrangement of cells.

    Parameters
    ----------
    config
        Settings, with ``backbone="efficientnet_lite0_stem"`` and ``backbone_kwargs={"n_blocks": ...}``.

    Examples
    --------
    >>> import torch
    >>> from stampy.models import ImageConfig
    >>> settings = ImageConfig(backbone=STEM, backbone_kwargs={"n_blocks": 2}, size_px=48)
    >>> encoder = StemEncoder(settings)
    >>> encoder.features(torch.zeros(5, 2, 3, 48, 48)).shape
    torch.Size([5, 224])
    """

    center: Tensor
    rate: Tensor

    def __init__(self, config: ImageConfig):
        super().__init__()
        self.config = config
        self.base_model = ConvStem(config.backbone_kwargs["n_blocks"])
        # They standardise the features of the encoder's training data.
        self.register_buffer("center", torch.zeros(self.width))
        self.register_buffer("rate", torch.ones(self.width))

    @property
    def width(self) -> int:
        """Size of the feature."""
        return 4 * self.base_model.n_channels

    @property
    def patch_px(self) -> int:
        """Edge of a reference patch, which is the size of the patch in its region."""
        return self.config.size_px // 3

    @property
    def checkpointing(self) -> bool:
        """Whether activations are recomputed instead of kept."""
        return self.base_model.checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.base_model.checkpointing = value

    def features(self, images: Tensor) -> Tensor:
        """Features (B, D) of normalised tiles and regions (B, 2, 3, size, size)."""
        if images.ndim != 5 or images.shape[1:3] != (2, 3):
            raise ValueError(
                "This image encoder sees each tile with its surroundings: images must have shape (B, 2, 3, height, "
                f"width), found {tuple(images.shape)}. `stampy.tl.embed` reads both from the image."
            )
        parts = images.split(_CPU_BATCH if images.device.type == "cpu" else max(len(images), 1))
        found = []
        for part in parts:
            maps = self.base_model(part.flatten(0, 1))
            found.append(self._scaled(_statistics(maps).unflatten(0, (-1, 2)).flatten(1)))
        return torch.cat(found)

    def with_regions(self, patches: Tensor, regions: Tensor, references: Tensor) -> tuple[Tensor, RegionFeatures]:
        """Features (B, D) of patches with these regions as surroundings, and features of the regions.

        In training, a patch may be in any cell of its region, not only in the middle.
        """
        around = self.base_model(regions)
        own = _statistics(self.base_model(patches))
        feature = self._scaled(torch.cat([own, _statistics(around)], dim=1))
        return feature, self._of_regions(around, references)

    def regions(self, images: Tensor, references: Tensor) -> RegionFeatures:
        """Features of regions (B, 3, size, size) with the patches to locate in them (B, 3, patch_px, patch_px)."""
        return self._of_regions(self.base_model(images), references)

    def _of_regions(self, maps: list[Tensor], references: Tensor) -> RegionFeatures:
        """A region is treated as a tile that is its own surroundings; cells and references have it as surroundings."""
        whole, sought = _statistics(maps), _statistics(self.base_model(references))
        cells = _cell_statistics(maps)
        around = whole[:, None].expand(-1, 9, -1)
        pairs = (torch.cat([whole, whole], dim=1), torch.cat([sought, whole], dim=1), torch.cat([cells, around], dim=2))
        return RegionFeatures(*(self._scaled(pair) for pair in pairs))

    def _scaled(self, statistics: Tensor) -> Tensor:
        return (statistics - self.center) * self.rate

    def shrink(self, images: Tensor) -> Tensor:
        """Reduce patches (B, 3, size, size) to references (B, 3, patch_px, patch_px)."""
        return F.interpolate(images, size=self.patch_px, mode="bilinear", antialias=True, align_corners=False)

    def normalize(self, tiles: Tensor) -> Tensor:
        """Convert uint8 tiles (..., size, size, 3) to float input (..., 3, size, size).

        Larger tiles, such as those of a corpus, are reduced to the size of the encoder.
        """
        mean, std = (
            torch.tensor(x, device=tiles.device).view(3, 1, 1) * 255 for x in (self.config.mean, self.config.std)
        )
        found, size = tiles.movedim(-1, -3).float(), self.config.size_px
        if found.shape[-1] < size:
            raise ValueError(f"Tiles of {found.shape[-1]} px were given, this image encoder sees {size} px.")
        if found.shape[-1] > size:  # as read by `SlideImage.tile`, except for rounding
            shape = found.shape[:-2]
            small = F.interpolate(found.flatten(0, -4), size=size, mode="bicubic", antialias=True, align_corners=False)
            found = small.clamp_(0, 255).view(*shape, size, size)
        return found.sub(mean).div_(std)


def _statistics(maps: list[Tensor]) -> Tensor:
    """Mean and standard deviation of each channel, map by map: (B, 2 C)."""
    found = []
    for x in maps:
        # With channels last in memory, sums over rows are several times as fast as over (H, W).
        rows_BNC = x.float().permute(0, 2, 3, 1).flatten(1, 2)
        mean = rows_BNC.mean(dim=1)
        variance = (rows_BNC - mean[:, None]).square_().mean(dim=1)
        found += [mean, (variance + _EPSILON).sqrt()]
    return torch.cat(found, dim=1)


def _cell_statistics(maps: list[Tensor]) -> Tensor:
    """Like `_statistics`, for each of 3 x 3 cells: (B, 9, 2 C)."""
    found = []
    for x in maps:
        mean, square = (F.adaptive_avg_pool2d(y, 3).flatten(2).transpose(1, 2) for y in (x.float(), x.float().square()))
        found += [mean, ((square - mean.square()).clamp(min=0) + _EPSILON).sqrt()]
    return torch.cat(found, dim=2)
