"""H&E-like tissue: eosin fibres, cells with walls and lumens, nuclei; stains combined by the Beer-Lambert law."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

Field = Callable[[np.ndarray], np.ndarray]  # x, y in µm (n, 2) -> value (n,)

# Optical densities of the stains in R, G, B (Macenko et al. 2009).
HEMATOXYLIN = np.array([0.563, 0.720, 0.406], np.float32)
EOSIN = np.array([0.216, 0.801, 0.558], np.float32)


@dataclass(frozen=True)
class Texture:
    """Appearance of a tissue; lengths in µm, amounts of stain as optical densities."""

    eosin: float  # of the background
    hematoxylin: float  # of the background: bluish cytoplasm
    fibre: float  # variation of the eosin along the fibres, 0 to 1
    fibre_um: float  # width of a fibre
    nuclei: float  # per mm²
    nucleus_um: tuple[float, float]  # half axes along and across the fibres
    aligned: bool = False  # whether nuclei follow the fibres
    cell_um: float = 0.0  # distance between cells or glands; 0: none
    wall_um: float = 0.0  # thickness of the walls between them
    wall_eosin: float = 0.0  # eosin of the walls
    wall_nuclei: bool = True  # whether walls may contain nuclei
    hole_um: float = 0.0  # radius of the white centre: fat, lumen


TEXTURES = {
    "epithelium": Texture(
        0.38, 0.26, 0.15, 8, 6500, (5.2, 4.2), cell_um=130, wall_um=13, wall_eosin=0.5, wall_nuclei=False, hole_um=17
    ),
    "stroma": Texture(0.52, 0.02, 0.75, 7, 1300, (8.0, 2.2), aligned=True),
    "immune": Texture(0.22, 0.20, 0.15, 9, 11500, (3.5, 3.3)),
    "adipose": Texture(0.30, 0.02, 0.10, 9, 260, (5.5, 2.2), cell_um=75, wall_um=6, wall_eosin=0.5, hole_um=1e9),
    "muscle": Texture(0.80, 0.05, 0.45, 20, 900, (9.0, 2.2), aligned=True),
    "white matter": Texture(0.34, 0.06, 0.45, 4, 2200, (3.6, 3.3)),
    "cortex": Texture(0.26, 0.05, 0.20, 5, 1100, (5.5, 4.4)),
    "liver": Texture(0.62, 0.14, 0.20, 9, 2300, (4.2, 4.2), cell_um=26, wall_um=3.5, wall_eosin=0.12),
}


@dataclass(frozen=True)
class TissueLayout:
    """Shape of the tissue, and arrangement of the domains."""

    depth: Field  # domains are bands of this function
    cuts: np.ndarray  # (n_domains - 1,) boundaries between domains
    focus: np.ndarray  # (2,) µm, centre of the bands
    outside: Field  # µm, positive outside the tissue

    def domain(self, xy_um: np.ndarray) -> np.ndarray:
        """Number of the domain at each point (n,)."""
        return np.searchsorted(self.cuts, self.depth(xy_um)).astype(np.int64)


def waves(random: np.random.Generator, *, wavelength: float, n: int) -> Field:
    """Smooth random field of about unit size: `n` cosines of about this wavelength (µm) in random directions."""
    angle = random.uniform(0, 2 * np.pi, n)
    k = 2 * np.pi / (wavelength * random.uniform(0.7, 1.8, n)) * np.array([np.cos(angle), np.sin(angle)])
    phase = random.uniform(0, 2 * np.pi, n)
    return lambda xy: np.cos(xy @ k + phase).sum(axis=1) * np.sqrt(2 / n)


def render_tissue(
    layout: TissueLayout, origin_um: np.ndarray, size_px: np.ndarray, um_per_px: float, random: np.random.Generator
) -> np.ndarray:
    """Image of the section (height, width, 3) uint8, white outside the tissue; `size_px` is (width, height)."""
    depth, outside, along = maps(layout, origin_um, size_px, um_per_px)
    outside = outside + 10 * _clouds(random, depth.shape, 60 / um_per_px)  # ragged edges, as in cut tissue
    ragged = depth + 5 * _clouds(random, depth.shape, 20 / um_per_px)
    domain = np.where(outside < 0, np.searchsorted(layout.cuts, ragged), -1)
    eosin, hematoxylin = np.zeros_like(depth), np.zeros_like(depth)
    for i, texture in enumerate(list(TEXTURES.values())[: len(layout.cuts) + 1]):
        inside = np.flatnonzero(domain == i)
        at = np.stack([inside % depth.shape[1], inside // depth.shape[1]]).astype(np.float32) * np.float32(um_per_px)
        e, h, solid = _ground(texture, at, depth.ravel()[inside], along.ravel()[inside], random)
        np.put(eosin, inside, e)
        np.put(hematoxylin, inside, h)
        free = np.zeros(depth.shape, bool)
        np.put(free, inside, solid)
        _nuclei(hematoxylin, free, texture, (origin_um - layout.focus) / um_per_px, um_per_px, random)
    return _stain(eosin, hematoxylin, random)


def maps(layout: TissueLayout, origin_um: np.ndarray, size_px: np.ndarray, um_per_px: float) -> list[np.ndarray]:
    """Depth, distance outside, and length along the bands of every pixel, in µm; interpolated from every eighth."""
    step = 8
    width, height = size_px
    y, x = np.mgrid[: -(-height // step), : -(-width // step)] * step + step / 2
    xy = np.column_stack([x.ravel(), y.ravel()]) * um_per_px + origin_um
    # Arc length; the branch cut of arctan2 points away from the centre of the tissue, (0, 0).
    towards = np.arctan2(*-layout.focus[::-1])
    angle = (np.arctan2(*(xy - layout.focus).T[::-1]) - towards + np.pi) % (2 * np.pi) - np.pi
    fields = layout.depth(xy), layout.outside(xy), angle * np.hypot(*layout.focus)
    return [_enlarged(f.reshape(x.shape), step, (height, width)) for f in fields]


def _enlarged(coarse: np.ndarray, step: int, shape: tuple[int, int]) -> np.ndarray:
    """Enlarge `coarse` by linear interpolation, `step` x `step` pixels per value, to float32 of this shape."""
    size = coarse.shape[1] * step, coarse.shape[0] * step
    fine = Image.fromarray(coarse.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.asarray(fine)[: shape[0], : shape[1]]


def _clouds(random: np.random.Generator, shape: tuple[int, int], scale_px: float) -> np.ndarray:
    """Smooth noise of about unit size with blobs of this scale."""
    step = max(1, round(scale_px / 2))
    coarse = random.standard_normal([-(-s // step) + 1 for s in shape], dtype=np.float32)
    return 3.5 * _enlarged(ndimage.gaussian_filter(coarse, 1.0, mode="wrap"), step, shape)


def _ground(
    texture: Texture, at_um: np.ndarray, across: np.ndarray, along: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eosin and hematoxylin of pixels (n,) at x and y (2, n), and where nuclei are allowed: not in lumens."""
    streaks = _streaks(random, across, along, texture.fibre_um)
    eosin = texture.eosin * np.clip(1 + texture.fibre * streaks, 0.05, None)
    hematoxylin = texture.hematoxylin * (1 - 0.2 * streaks)
    solid = np.ones(at_um.shape[1], bool)
    if texture.cell_um:
        nearest, second = _cells(at_um, texture.cell_um, random)
        wall = np.exp(-(((second - nearest) / texture.wall_um) ** 2))
        hole = np.clip(texture.hole_um - nearest, 0, 1) * (1 - wall)
        eosin = (eosin * (1 - wall) + texture.wall_eosin * wall) * (1 - hole)
        hematoxylin = hematoxylin * (1 - 0.8 * wall) * (1 - hole)
        solid = (hole < 0.5) & ((wall < 0.5) | texture.wall_nuclei)
    return eosin, hematoxylin, solid


def _streaks(random: np.random.Generator, across: np.ndarray, along: np.ndarray, width_um: float) -> np.ndarray:
    """Noise elongated along the bands, about -1 to 1: two octaves of a random table."""
    table = random.uniform(-1, 1, (256, 256)).astype(np.float32)
    where = np.stack([across / width_um, along / (10 * width_um)])
    coarse = ndimage.map_coordinates(table, where, order=1, mode="grid-wrap")
    fine = ndimage.map_coordinates(table, 2.3 * where + 17, order=1, mode="grid-wrap")
    return coarse + 0.6 * fine


def _cells(at_um: np.ndarray, distance_um: float, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Distance from x and y (2, n) to the two nearest of randomly shifted lattice points (Worley noise), in µm."""
    at = at_um / np.float32(distance_um)
    shift = random.uniform(-0.35, 0.35, (64, 64, 2)).astype(np.float32)  # repeats after 64 cells
    shift_x, shift_y = (np.ascontiguousarray(shift[..., i], float).ravel() for i in (0, 1))
    corner = np.floor(at).astype(np.int32)
    x, y = at - corner - 0.5  # in float64, from the centre of the pixel's own cell
    columns = [(corner[0] + dx) % 64 for dx in (-1, 0, 1)]
    nearest = np.full(at_um.shape[1], np.inf)
    second = nearest.copy()
    for dy in (-1, 0, 1):
        row = (corner[1] + dy) % 64 * 64
        for dx, column in zip((-1, 0, 1), columns, strict=True):
            cell = row + column
            distance = np.hypot(x - dx - shift_x.take(cell), y - dy - shift_y.take(cell))
            np.minimum(second, np.maximum(nearest, distance), out=second)
            np.minimum(nearest, distance, out=nearest)
    return nearest * distance_um, second * distance_um


def _nuclei(
    hematoxylin: np.ndarray,
    free: np.ndarray,
    texture: Texture,
    from_focus_px: np.ndarray,
    um_per_px: float,
    random: np.random.Generator,
) -> None:
    """Draw nuclei as soft ellipses where they are allowed."""
    step = 1e3 / np.sqrt(texture.nuclei) / um_per_px
    height, width = free.shape
    y, x = (a.ravel() for a in np.mgrid[0:height:step, 0:width:step])
    x, y = x + random.uniform(-0.5, 0.5, x.size) * step, y + random.uniform(-0.5, 0.5, y.size) * step
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    x, y = x[inside], y[inside]
    kept = free[y.astype(int), x.astype(int)]
    x, y = x[kept], y[kept]
    fibre = np.arctan2(y + from_focus_px[1], x + from_focus_px[0]) + np.pi / 2
    angle = fibre + random.normal(0, 0.25, x.size) if texture.aligned else random.uniform(0, np.pi, x.size)
    axes = np.array(texture.nucleus_um)[:, None] / um_per_px * random.uniform(0.8, 1.2, (2, x.size))
    _ellipses(hematoxylin, x, y, angle, axes, random.uniform(0.75, 1.25, x.size))


def _ellipses(
    image: np.ndarray, x: np.ndarray, y: np.ndarray, angle: np.ndarray, axes: np.ndarray, ink: np.ndarray
) -> None:
    """Raise `image` to `ink` inside each ellipse (half axes (2, n) in px), with a soft edge."""
    if not x.size:
        return
    reach = int(np.ceil(axes.max())) + 1
    v, u = (a.ravel()[:, None] for a in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    column, row = x.astype(int) + u, y.astype(int) + v  # (window, n)
    dx, dy = column + 0.5 - x, row + 0.5 - y
    cos, sin = np.cos(angle), np.sin(angle)
    distance = np.hypot((dx * cos + dy * sin) / axes[0], (dy * cos - dx * sin) / axes[1])
    stain = ink * np.clip((1 - distance) * axes[1] + 0.5, 0, 1)
    drawn = (stain > 0) & (column >= 0) & (row >= 0) & (column < image.shape[1]) & (row < image.shape[0])
    np.maximum.at(image, (row[drawn], column[drawn]), stain[drawn].astype(image.dtype))


def _stain(eosin: np.ndarray, hematoxylin: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """RGB uint8 of the two stains, with the section's stain strength, slow variation, and noise of the camera."""
    strength = random.uniform(0.85, 1.15, 2)
    uneven = 1 + 0.06 * _clouds(random, eosin.shape, 120)
    eosin, hematoxylin = (ndimage.gaussian_filter(a, 0.6) for a in (eosin, hematoxylin))
    grain = random.normal(0, 0.012, eosin.shape).astype(np.float32)
    image = np.empty((*eosin.shape, 3), np.uint8)
    for c in range(3):
        density = strength[0] * EOSIN[c] * eosin
        density += strength[1] * HEMATOXYLIN[c] * hematoxylin
        density *= uneven
        density += grain
        light = np.exp(np.negative(density, out=density), out=density)
        light *= 245
        image[..., c] = np.clip(light, 0, 255, out=light)
    return image
