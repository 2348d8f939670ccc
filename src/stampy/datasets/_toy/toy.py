"""A simulated section with known ground truth: domains, their genes and a matching H&E-like image."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys, _utils
from stampy.datasets._toy.tissue_image import TEXTURES, Field, TissueLayout, render_tissue, waves

if TYPE_CHECKING:
    from anndata import AnnData

TISSUES = tuple(TEXTURES)  # of domains D1, D2, ...
UM_PER_PX = 1.6
VISIUM_SPOT_UM = 55.0
FIDUCIAL_UM = 105.0  # diameter of the rings around a Visium capture area
MARGIN_UM = 180.0  # from the outermost spots to the border of the image; a 3 x 3 region (336 µm) always fits
EDGE_UM = 70.0  # tissue extends this much beyond the outline of its spots


@dataclass(frozen=True)
class SpotGrid:
    """Arrangement of spots on a platform."""

    distance_um: float
    spot_um: float
    hexagonal: bool

    def around(self, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """At least 2 n positions around (0, 0): x, y in µm (m, 2), array rows (m,) and columns (m,)."""
        row_um = self.distance_um * (np.sqrt(0.75) if self.hexagonal else 1.0)
        half = int(np.ceil(np.sqrt(2.2 * n * self.distance_um / row_um) / 2)) + 1
        row, col = (a.ravel() for a in np.mgrid[-half : half + 1, -half : half + 1])
        xy_um = np.column_stack([(col + 0.5 * (row % 2) * self.hexagonal) * self.distance_um, row * row_um])
        if self.hexagonal:  # Space Ranger counts columns in steps of two, starting at one in odd rows
            col = 2 * col + row % 2
        return xy_um, row, col


GRIDS = {"visium": SpotGrid(100.0, 55.0, hexagonal=True), "st": SpotGrid(200.0, 100.0, hexagonal=False)}


def toy(
    n_spots: int = 400,
    n_domains: int = 4,
    *,
    n_genes: int = 800,
    n_sections: int = 1,
    grid: str = "visium",
    image: bool = True,
    effect: float = 8.0,
    rng: int | np.random.Generator | None = 0,
) -> AnnData:
    """Generate a section with known ground truth: planted domains, genes and matching H&E-like tissue.

    Domains are curved bands with (nearly) equal numbers of spots. Each domain is a tissue (epithelium, stroma, immune,
    adipose, muscle, white matter, cortex, liver, in this order) with its own appearance in the image and its own
    programme of marker genes, which are `effect` times as high as elsewhere. All other genes have the same distribution
    everywhere. Counts are negative binomial with a different depth for each spot.

    Parameters
    ----------
    n_spots
        Spots of each section.
    n_domains
        Domains of each section, 1 to 8, at most `n_spots`.
    n_genes
        Number of genes, 40 to 800, with real symbols and Ensembl ids; markers and widely expressed genes.
    n_sections
        Number of sections. They share genes and domains, and differ in outline, layout, depth and stain.
    grid
        `"visium"`: hexagonal, 100 µm apart, spots of 55 µm. `"st"`: square, 200 µm apart, spots of 100 µm.
    image
        Whether to draw the tissue.
    effect
        Factor of the marker genes in their domain. With the default, 8, principal components separate the domains
        without errors. With 2, single spots have too few counts for this. With 1, the genes carry no information about
        the domains.
    rng
        Seed or generator. The counts are the same with and without `image`.

    Returns
    -------
    AnnData (n_spots x n_sections, n_genes) with

    - `X`: counts, CSR int32
    - `obs["domain"]`: the planted domain, categorical "D1", "D2", ...; `obs["section"]`: "toy", or for several
      "toy_1", "toy_2", ... (the `library_key` of other functions); `obs["in_tissue"]`, `["array_row"]`, `["array_col"]`
    - `var["gene_ids"]`: Ensembl ids; `var["domain"]`: the domain whose programme contains the gene, NaN for other genes
    - `obsm["spatial"]`: x and y in px of the section's full-resolution image, 1.6 µm per px
    - `uns["spatial"][section]`: `images` (`hires`, the full resolution; `lowres`, at most 600 px; uint8 RGB) and
      `scalefactors`; absent without `image`
    - `uns["toy"]`: `tissue` of each domain, `um_per_px`

    Raises
    ------
    TypeError, ValueError
        If a number is not an integer or out of its range, or `grid` is unknown.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=200, n_domains=3)
    >>> adata.shape
    (200, 800)
    >>> adata.obs["domain"].value_counts().to_dict()
    {'D1': 67, 'D2': 67, 'D3': 66}
    >>> adata.var_names[adata.var["domain"] == "D2"][:4].tolist()
    ['COL1A1', 'COL1A2', 'COL3A1', 'DCN']
    >>> adata.uns["spatial"]["toy"]["images"]["hires"].dtype
    dtype('uint8')
    """
    import anndata

    _validate(n_spots, n_domains, n_genes, n_sections, grid, effect)
    names = ["toy"] if n_sections == 1 else [f"toy_{i + 1}" for i in range(n_sections)]
    random = _utils.generator(rng)
    var = _genes(n_genes, n_domains)
    means = _means(var, n_domains, effect, random)
    sections = [_section(name, n_spots, GRIDS[grid], means, image, random) for name in names]

    domains = [f"D{i + 1}" for i in range(n_domains)]
    obs = pd.concat([obs for _, obs, _, _ in sections])
    obs["domain"] = pd.Categorical.from_codes(obs["domain"], domains)
    obs["section"] = pd.Categorical(obs["section"], names)
    adata = anndata.AnnData(sparse.vstack([x for x, _, _, _ in sections], format="csr"), obs=obs, var=var)
    adata.obsm[_keys.SPATIAL] = np.concatenate([xy for _, _, xy, _ in sections])
    if image:
        adata.uns[_keys.UNS_SPATIAL] = {name: library for name, (_, _, _, library) in zip(names, sections, strict=True)}
    adata.uns["toy"] = {"tissue": dict(zip(domains, TISSUES, strict=False)), "um_per_px": UM_PER_PX}
    return adata


def _validate(n_spots: int, n_domains: int, n_genes: int, n_sections: int, grid: str, effect: float) -> None:
    for name, value in {"n_spots": n_spots, "n_domains": n_domains, "n_sections": n_sections}.items():
        _checks.at_least(name, value, 1)
    _checks.at_least("n_genes", n_genes, 40)
    _checks.at_most("n_domains", n_domains, min(len(TISSUES), n_spots))
    _checks.at_most("n_genes", n_genes, len(_gene_table()))
    _checks.one_of("grid", grid, GRIDS)
    _checks.at_least("effect", effect, 1, integer=False)


@cache
def _gene_table() -> pd.DataFrame:
    """Packaged genes: gene_id, symbol, tissue (NaN for widely expressed genes)."""
    return pd.read_csv(files("stampy.datasets") / "toy_genes.tsv", sep="\t")


def _genes(n_genes: int, n_domains: int) -> pd.DataFrame:
    """`var`: the first genes of the table, with the domain of each marker."""
    table = _gene_table().head(n_genes)
    domain_of = {tissue: f"D{i + 1}" for i, tissue in enumerate(TISSUES[:n_domains])}
    domain = pd.Categorical(table["tissue"].map(domain_of), list(domain_of.values()))
    return pd.DataFrame({"gene_ids": table["gene_id"].to_numpy(), "domain": domain}, index=table["symbol"].to_numpy())


def _means(var: pd.DataFrame, n_domains: int, effect: float, random: np.random.Generator) -> np.ndarray:
    """Mean count of each gene in each domain at unit depth (n_domains, n_genes)."""
    marker = _gene_table()["tissue"].head(len(var)).notna().to_numpy()
    base = np.where(marker, 0.2, 1.0) * random.lognormal(0.0, np.where(marker, 0.5, 1.0))
    planted = var["domain"].cat.codes.to_numpy() == np.arange(n_domains)[:, None]
    return base * np.where(planted, effect, 1.0)


def _section(
    name: str, n_spots: int, grid: SpotGrid, means: np.ndarray, image: bool, random: np.random.Generator
) -> tuple[sparse.csr_matrix, pd.DataFrame, np.ndarray, dict[str, dict]]:
    """Counts, obs, pixel coordinates and the entry of `uns["spatial"]` of one section."""
    # Separate generators, so that omitting the image does not change other parts.
    for_layout, for_counts, for_image = (np.random.default_rng(s) for s in random.integers(2**63, size=3))
    xy_um, row, col = grid.around(n_spots)
    outline = _outline(n_spots, grid, for_layout)
    inside = np.sort(np.argsort(outline(xy_um), kind="stable")[:n_spots])
    xy_um, row, col = xy_um[inside], row[inside], col[inside]
    layout = _layout(xy_um, outline, len(means), for_layout)

    domain = layout.domain(xy_um)
    counts = _counts(means, domain, for_counts)
    row, col = row - row.min() // 2 * 2, col - col.min() // 2 * 2  # even steps preserve the parity of row + column
    obs = pd.DataFrame(
        {"in_tissue": 1, "array_row": row, "array_col": col, "domain": domain, "section": name},
        index=[f"{name}_{r}x{c}" for r, c in zip(row, col, strict=True)],
    )
    origin = xy_um.min(axis=0) - MARGIN_UM
    size_px = np.ceil((np.ptp(xy_um, axis=0) + 2 * MARGIN_UM) / UM_PER_PX).astype(int)
    library = _library(render_tissue(layout, origin, size_px, UM_PER_PX, for_image), grid) if image else {}
    return counts, obs, (xy_um - origin) / UM_PER_PX, library


def _outline(n_spots: int, grid: SpotGrid, random: np.random.Generator) -> Field:
    """Irregular distance from the centre, small inside the tissue."""
    extent = np.sqrt(n_spots) * grid.distance_um
    bumps = waves(random, wavelength=extent, n=6)
    squeeze = np.array([1.0, random.uniform(1.0, 1.2)])
    return lambda xy: np.hypot(*(xy * squeeze).T) * (1 + 0.12 * bumps(xy))


def _layout(xy_um: np.ndarray, outline: Field, n_domains: int, random: np.random.Generator) -> TissueLayout:
    """Curved bands around a point outside, deformed by waves, divided into domains with equal numbers of spots."""
    extent = float(np.hypot(*np.ptp(xy_um, axis=0))) + EDGE_UM
    angle = random.uniform(0, 2 * np.pi)
    focus = 0.45 * extent * np.array([np.cos(angle), np.sin(angle)])
    bend = waves(random, wavelength=extent / 2, n=8)

    def depth(xy: np.ndarray) -> np.ndarray:
        return np.hypot(*(xy - focus).T) + 0.055 * extent * bend(xy)

    parts = np.array_split(np.sort(depth(xy_um)), n_domains)
    cuts = np.array([(a[-1] + b[0]) / 2 for a, b in itertools.pairwise(parts)])
    edge = float(outline(xy_um).max()) + EDGE_UM
    return TissueLayout(depth, cuts, focus, outside=lambda xy: outline(xy) - edge)


def _counts(means: np.ndarray, domain: np.ndarray, random: np.random.Generator) -> sparse.csr_matrix:
    """Negative binomial counts (gamma-Poisson), in blocks so that only some rows are dense at a time."""
    dispersion = 0.3
    depth = random.lognormal(0.2, 0.35, size=(len(domain), 1)) * random.uniform(0.85, 1.15)
    blocks = []
    for start in range(0, len(domain), 4096):
        rows = slice(start, start + 4096)
        mean = means[domain[rows]] * depth[rows]
        rate = random.gamma(1 / dispersion, mean * dispersion)
        blocks.append(sparse.csr_matrix(random.poisson(rate).astype(np.int32)))
    return sparse.vstack(blocks, format="csr")


def _library(hires: np.ndarray, grid: SpotGrid) -> dict[str, dict]:
    """Entry of `uns["spatial"]` as written by Space Ranger's readers."""
    from PIL import Image

    factor = min(1.0, 600 / max(hires.shape))
    size = tuple(max(1, round(s * factor)) for s in hires.shape[1::-1])
    lowres = np.asarray(Image.fromarray(hires).resize(size, Image.Resampling.BOX))
    scalefactors = {
        "spot_diameter_fullres": grid.spot_um / UM_PER_PX,
        "tissue_hires_scalef": 1.0,
        "tissue_lowres_scalef": factor,
    }
    if grid.spot_um == VISIUM_SPOT_UM:  # only Visium slides have fiducials
        scalefactors["fiducial_diameter_fullres"] = FIDUCIAL_UM / UM_PER_PX
    return {"images": {"hires": hires, "lowres": lowres}, "scalefactors": scalefactors}
