"""Pictures of real tissue for the pages: ``python docs/pictures.py`` writes them into ``docs/_static``.

Not part of the build: the sections are read from ``STAMPY_DATA_DIR``. All are under the MIT licence, which allows their
pictures to be shown:

- CRC_16 of Galeano Niño et al., Nature 611, 810 (2022), from github.com/bedapub/microbiome10XVisium
- Br8325_ant of Huuki-Myers et al., Science 384, eadh1938 (2024), from github.com/MicTott/SpotSweeper
- a mouse olfactory bulb of Ståhl et al., Science 353, 78 (2016), from github.com/jbergenstrahle/STUtility

Needs squidpy for the picture of its statistics.
"""

import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from PIL import Image

import stampy
from stampy.pl._drawing.paint import default_colors

HERE = Path(__file__).parent / "_static"
DPI = 110
LARGE = {"font.size": 14}  # the pages show panels at half their size


def section():
    adata = stampy.datasets.load("CRC16_human")
    adata.layers["counts"] = adata.X.copy()
    stampy.tl.embed(adata, modality="gene", context="neighbors", show_progress_bar=False)
    stampy.tl.domains(adata, 6, method="kmeans")
    return adata


def front(adata):
    """Tissue, domains, and the embedding as colours."""
    panels("front", adata, {"he": None, "domains": "stamp_domain", "colours": "X_stamp"})


def cortex():
    """The layers of a human cortex."""
    adata = stampy.datasets.load("DLPFC_Br8325_ant")
    stampy.tl.embed(adata, modality="gene", context="neighbors", show_progress_bar=False)
    stampy.tl.domains(adata, 7, method="kmeans")
    panels("cortex", adata, {"domains": "stamp_domain", "colours": "X_stamp"}, legend=True, size=1.15)


def mouse():
    """The layers of a mouse olfactory bulb, by human orthologs."""
    adata = stampy.datasets.load("mouse_MOB_ST1")
    stampy.tl.embed(adata, modality="gene", context="neighbors", organism="mouse", show_progress_bar=False)
    stampy.tl.domains(adata, 5, method="kmeans")
    panels("mouse", adata, {"he": None, "domains": "stamp_domain", "colours": "X_stamp"}, dpi=80)


def panels(name, adata, colors, *, legend=False, dpi=DPI, **style):
    """One file per panel, so that the panels wrap on narrow screens."""
    titles = {"he": "H&E", "domains": "domains", "colours": "embedding as colours"}
    for panel, color in colors.items():
        with plt.rc_context(LARGE):
            ax = stampy.pl.spatial(adata, color, title=titles[panel], **style)
        if color is None:
            ax.collections[0].remove()  # the outlines of the spots, which hide the tissue
        if ax.get_legend() and not legend:
            ax.get_legend().remove()
        save(f"{name}_{panel}", dpi=dpi)


def domains_and_graph(adata):
    """What squidpy makes of the domains."""
    import squidpy as sq

    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sq.gr.spatial_neighbors(adata, coord_type="grid", n_neighs=6)
    sq.gr.nhood_enrichment(adata, cluster_key="stamp_domain", seed=0, show_progress_bar=False)
    sq.gr.co_occurrence(adata, cluster_key="stamp_domain", show_progress_bar=False)
    z = adata.uns["stamp_domain_nhood_enrichment"]["zscore"]
    ratio, distance = (adata.uns["stamp_domain_co_occurrence"][k] for k in ("occ", "interval"))
    names = list(adata.obs["stamp_domain"].cat.categories)
    um = adata.uns["stamp"]["X_stamp"].get("um_per_px") or 100 / pitch(adata)
    colours = dict(zip(names, default_colors(len(names)), strict=True))
    figure, left = plt.subplots(figsize=(3.8, 3.2), layout="constrained")
    limit = float(np.abs(z).max())
    image = left.imshow(z, cmap="RdBu_r", vmin=-limit, vmax=limit)
    left.set_xticks(range(len(names)), names)
    left.set_yticks(range(len(names)), names)
    left.set(xlabel="domain", ylabel="domain", title="neighbourhood enrichment")
    figure.colorbar(image, ax=left, label="z score")
    save("squidpy_enrichment")
    _, right = plt.subplots(figsize=(3.8, 3.2), layout="constrained")
    for i, name in enumerate(names):
        right.plot(distance[1:] * um / 1000, ratio[i, 0], label=name, color=colours[name])
    right.axhline(1, color="0.6", linewidth=0.8)
    right.set(xlabel="distance (mm)", ylabel="co-occurrence ratio", title="co-occurrence with domain 0")
    right.legend(title="domain", frameon=False, fontsize="small")
    save("squidpy_co_occurrence")


def pitch(adata):
    """Median distance of nearest spots, which is 100 µm on Visium."""
    from sklearn.neighbors import NearestNeighbors

    xy = adata.obsm["spatial"]
    return float(np.median(NearestNeighbors(n_neighbors=2).fit(xy).kneighbors(xy)[0][:, 1]))


def save(name, dpi=DPI):
    """As a palette PNG: a third of the size."""
    path = HERE / f"{name}.png"
    plt.savefig(path, dpi=dpi, bbox_inches="tight")
    plt.close("all")
    Image.open(path).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    cortex()
    mouse()
    adata = section()
    front(adata)
    domains_and_graph(adata)
