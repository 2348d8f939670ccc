"""A simulated whole slide with known tumour, as a pyramidal TIFF like those of scanners."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stampy import _checks, _files, _utils
from stampy.datasets._toy.tissue_image import TissueLayout, maps, render_tissue, waves

__all__ = ["toy_slide"]

_GLASS = 0.12  # margin without tissue on each side, relative to the edge
_IMMUNE = 0.2  # fraction of the tissue, with or without tumour


def toy_slide(
    path: str | Path,
    *,
    tumor: float = 0.2,
    size_um: float = 1800.0,
    um_per_px: float = 1.6,
    rng: int | np.random.Generator | None = 0,
) -> np.ndarray:
    """Write a slide of H&E-like tissue: stroma with an immune infiltrate and optionally an epithelial tumour.

    Parameters
    ----------
    path
        File to write, ending in .tif or .tiff: tiled, JPEG, levels of 1, 1/2, 1/4, ..., with the µm per pixel in the
        resolution tags.
    tumor
        Fraction of the tissue that is tumour, 0 to 0.7; 0: a slide without tumour.
    size_um
        Edge of the slide.
    um_per_px
        Size of a pixel.
    rng
        Seed or generator for outline, positions and stain.

    Returns
    -------
    (h, w) bool mask of the tumour in px of the full resolution: the ground truth for the centres of tiles is
    ``mask[y.astype(int), x.astype(int)]``.

    Raises
    ------
    ValueError
        If a number is out of its range or the path has another ending.

    Examples
    --------
    >>> import tempfile, stampy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     truth = stampy.datasets.toy_slide(f"{folder}/S1.tif", size_um=900)
    ...     adata = stampy.pp.slide_tiles(f"{folder}/S1.tif")
    >>> truth.shape, adata.uns["stamp"]["slide_tiles"]["um_per_px"]
    ((562, 562), 1.6)
    """
    _checks.at_least("tumor", tumor, 0, integer=False)
    _checks.at_most("tumor", tumor, 0.7)
    _checks.at_least("size_um", size_um, 400, integer=False)
    _checks.positive("um_per_px", um_per_px)
    path = Path(path).expanduser()
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"`path` must end in .tif or .tiff, found {path.name!r}.")
    _checks.writable(path.parent)
    random = _utils.generator(rng)
    layout = _layout(size_um, tumor, random)
    size_px = np.full(2, int(size_um / um_per_px))
    origin = np.full(2, -size_um / 2)
    picture = render_tissue(layout, origin, size_px, um_per_px, random)
    with _files.atomic(path) as temporary:
        _write(temporary, picture, um_per_px)
    return _truth(layout, origin, size_px, um_per_px)


def _layout(size_um: float, tumor: float, random: np.random.Generator) -> TissueLayout:
    """A blob in the centre; tumour around a point near its border, the infiltrate on the opposite side."""
    radius = (0.5 - _GLASS) * size_um
    bumps = waves(random, wavelength=size_um, n=6)
    bend = waves(random, wavelength=size_um / 3, n=8)
    angle = random.uniform(0, 2 * np.pi)
    focus = 0.6 * radius * np.array([np.cos(angle), np.sin(angle)])

    def outside(xy: np.ndarray) -> np.ndarray:
        return np.hypot(*xy.T) * (1 + 0.08 * bumps(xy)) - radius

    def depth(xy: np.ndarray) -> np.ndarray:
        return np.hypot(*(xy - focus).T) + 0.05 * size_um * bend(xy)

    sample = np.stack(np.meshgrid(*[np.linspace(-0.5, 0.5, 60) * size_um] * 2), axis=-1).reshape(-1, 2)
    tissue = depth(sample[outside(sample) < 0])
    near = np.quantile(tissue, tumor) if tumor else -np.inf
    return TissueLayout(depth, np.array([near, np.quantile(tissue, 1 - _IMMUNE)]), focus, outside)


def _truth(layout: TissueLayout, origin: np.ndarray, size_px: np.ndarray, um_per_px: float) -> np.ndarray:
    depth, outside, _ = maps(layout, origin, size_px, um_per_px)
    return (depth < layout.cuts[0]) & (outside < 0)


def _write(path: Path, picture: np.ndarray, um_per_px: float) -> None:
    """Write levels down to 256 px, each half the size of the previous one."""
    import tifffile
    from PIL import Image

    levels = [picture]
    while max(levels[-1].shape) > 256:
        height, width = levels[-1].shape[:2]
        half = Image.fromarray(levels[-1]).resize((max(1, width // 2), max(1, height // 2)), Image.Resampling.BOX)
        levels.append(np.asarray(half))
    options = {"tile": (256, 256), "photometric": "rgb", "compression": "jpeg", "compressionargs": {"level": 90}}
    with tifffile.TiffWriter(path) as tiff:
        per_cm = 1e4 / um_per_px
        tiff.write(
            levels[0], subifds=len(levels) - 1, resolution=(per_cm, per_cm), resolutionunit="CENTIMETER", **options
        )
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, **options)
