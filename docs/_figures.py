"""The drawings of *Concepts* and *What training learns*, made at each build from functions and measurements."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle

import stampy

RECIPES = Path(__file__).parents[1] / "recipes"
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B7480"
STYLE = {"font.size": 12, "svg.hashsalt": "stampy", "axes.spines.top": False, "axes.spines.right": False}


def draw(folder: Path) -> None:
    """Write all of them as SVG."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        for name, figure in {
            "tokens": tokens(), "tiles": tiles(), "neighborhoods": neighborhoods(), "stages": stages(), "gvf": gvf(),
            "planted": planted_curve(), "cgr": cgr(), "order": order(),
        }.items():  # fmt: skip
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.05)
            plt.close(figure)


def tokens() -> plt.Figure:
    """Counts, usual levels, what is left when one is divided by the other, and the order."""
    genes = np.array(["COL1A1", "MALAT1", "CD3E", "ACTB", "ERBB2", "DCN"])
    counts, usual = np.array([18.0, 60, 3, 30, 0, 6]), np.array([6.0, 80, 0.8, 25, 4, 1])
    above = counts / usual
    order = [i for i in np.argsort(-above, kind="stable") if above[i]]
    figure, axes = plt.subplots(1, 3, figsize=(6.4, 2.5), sharey=True, layout="constrained")
    panels = (("counts", counts, GREY), ("usual level", usual, GREY), ("counts ÷ usual level", above, BLUE))
    for ax, (title, values, color) in zip(axes, panels, strict=True):
        ax.barh(range(len(genes)), values, color=color)
        for y, value in enumerate(values):
            ax.text(value, y, f" {value:.3g}", va="center", fontsize=11)
        ax.set_title(title, fontsize=12)
        ax.set(xticks=[], ylim=(len(genes) - 0.4, -0.6), xlim=(0, values.max() * 1.35))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    axes[0].set_yticks(range(len(genes)), genes)
    figure.supxlabel("tokens:  " + "  >  ".join(genes[i] for i in order), fontsize=12, color=BLUE)
    return figure


def tiles() -> plt.Figure:
    """A patch, and the region that it is a cell of, on a toy section."""
    adata = stampy.datasets.toy(n_spots=200, rng=1)
    xy = adata.obsm["spatial"]
    spot = int(np.argmin(np.linalg.norm(xy - np.median(xy, axis=0), axis=1)))
    center, um_per_px = xy[spot], adata.uns["toy"]["um_per_px"]
    px = 112 / um_per_px
    low, high = center - np.array([3.1, 2.1]) * px, center + np.array([1.1, 2.1]) * px
    ax = stampy.pl.spatial(adata[[spot]].copy(), crop=(low[0], high[0], low[1], high[1]), um_per_px=um_per_px)
    corner = center - 0.5 * px - np.array([2, 1]) * px  # the patch is cell 5, the middle of the right column
    for i in range(9):
        at = corner + np.array([i % 3, i // 3]) * px
        mine = i == 5
        ax.add_patch(Rectangle(at, px, px, fill=False, edgecolor=RED if mine else "k", linewidth=3 if mine else 1.2,
                               zorder=4 + mine))  # fmt: skip
        ax.text(*(at + px * 0.16), str(i), ha="center", va="center", fontsize=11, color=RED if mine else "k",
                bbox={"boxstyle": "circle,pad=0.12", "fc": "w", "ec": "none", "alpha": 0.8}, zorder=6)  # fmt: skip
    ax.collections[0].set(linewidth=1.5, edgecolor=RED)
    ax.set_title("patch, 112 µm (orange), in its region, 336 µm", fontsize=12)
    return ax.figure


def neighborhoods() -> plt.Figure:
    """Groups of nine, as `stampy.pp.neighborhoods` makes them."""
    adata = stampy.datasets.toy(n_spots=90, rng=3, image=False)
    stampy.pp.neighborhoods(adata)
    xy, group = adata.obsm["spatial"], adata.obs["stamp_group"].to_numpy()
    colors = plt.get_cmap("tab20")(np.arange(20))
    figure, ax = plt.subplots(figsize=(4.6, 4.2), layout="constrained")
    center = adata.obs["stamp_group_center"].to_numpy()
    for number in np.unique(group[group >= 0]):
        mine = group == number
        middle = xy[mine & center][0]
        for x, y in xy[mine]:
            ax.plot([middle[0], x], [middle[1], y], color=colors[number % 20], linewidth=2, zorder=1)
        ax.scatter(*xy[mine].T, s=70, color=colors[number % 20], zorder=2)
    ax.scatter(*xy[center].T, s=90, facecolors="none", edgecolors="k", linewidths=1.8, zorder=3)
    ax.scatter(*xy[group < 0].T, s=70, facecolors="w", edgecolors=GREY, zorder=2)
    ax.set(aspect="equal", xticks=[], yticks=[])
    ax.invert_yaxis()
    ax.spines[:].set_visible(False)
    return figure


def stages() -> plt.Figure:
    """What is trained when, by which losses."""
    figure, (one, two) = plt.subplots(2, 1, figsize=(6.4, 7.2), layout="constrained")
    for ax, title in ((one, "Stage 1: genes alone"), (two, "Stage 2: genes and image")):
        ax.set(xlim=(0, 64), ylim=(0, 34), aspect="equal")
        ax.axis("off")
        ax.set_title(title, loc="left", fontweight="bold", fontsize=13)
    rng = np.random.default_rng(0)
    for i, (dx, dy) in enumerate([(0, 0), *((np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 8, False))]):
        one.add_patch(Circle((7 + 4.6 * dx, 18 + 4.6 * dy), 1.5, color=BLUE if i == 0 else ORANGE))
    one.text(7, 8.3, "nine\nspots", ha="center", va="center")
    _box(one, (17, 12), (12, 12), "tokens,\n15 %\nhidden", "w", GREY)
    _box(one, (34, 12), (10, 12), "gene\nencoder", BLUE)
    _box(one, (49, 20), (15, 9), "IGR: a spot's\nhidden genes", "w", BLUE)
    _box(one, (49, 7), (15, 9), "CGR: genes of\nthe centre from\nits neighbours", "w", ORANGE)
    for start, end in (((12.5, 18), (17, 18)), ((29, 18), (34, 18)), ((44, 20), (49, 24)), ((44, 16), (49, 11.5))):
        _arrow(one, start, end)
    for y, what in ((26, "region"), (16, "patch")):
        side = 7 if what == "region" else 4.4
        two.imshow(rng.normal(0.75, 0.06, (9, 9, 1)) * np.array([1, 0.8, 0.95]), extent=(7 - side / 2, 7 + side / 2,
                   y - side / 2, y + side / 2), vmin=0, vmax=1, zorder=1)  # fmt: skip
        two.text(7, y - side / 2 - 1.4, what, ha="center", va="center")
    _box(two, (2, 2.5), (10, 6), "tokens", "w", GREY)
    _box(two, (19, 14.5), (12, 13), "image\nencoder", GREEN)
    _box(two, (19, 1), (12, 9), "gene\nencoder", BLUE)
    for start, end in (((10.7, 26), (19, 24)), ((9.4, 16), (19, 18)), ((12, 5.5), (19, 5.5)), ((31, 24), (39, 26)),
                       ((31, 18), (39, 16)), ((31, 5.5), (39, 5.5))):  # fmt: skip
        _arrow(two, start, end)
    for y, what in ((26, "R"), (16, "P"), (5.5, "S")):
        two.add_patch(Circle((41, y), 2, color=BLUE if what == "S" else GREEN))
        two.text(41, y, what, color="w", ha="center", va="center", fontweight="bold")
    for (a, b), x, y, text in (((26, 16), 43.6, 21, "L_P-R"), ((16, 5.5), 43.6, 11, "L_P-S")):
        _arrow(two, (41, a - 2.2), (41, b + 2.2), style="<->")
        two.text(x, y, text, va="center")
    two.add_patch(FancyArrowPatch((43.2, 26), (43.2, 5.5), connectionstyle="arc3,rad=-0.75", arrowstyle="<->",
                                  mutation_scale=12, color=GREY))  # fmt: skip
    two.text(54, 15.8, "L_R-S", va="center")
    two.text(45.5, 29.4, "L_CSP: which of nine\ncells is the patch?", va="center", fontsize=11)
    return figure


def gvf() -> plt.Figure:
    """The three embeddings."""
    figure, ax = plt.subplots(figsize=(6.4, 2.3), layout="constrained")
    ax.set(xlim=(0, 64), ylim=(0, 20), aspect="equal")
    ax.axis("off")
    _box(ax, (0, 11.5), (11, 7), "genes", "w", GREY)
    _box(ax, (0, 1.5), (11, 7), "tissue", "w", GREY)
    _box(ax, (17, 11.5), (13, 7), "G, norm 1", BLUE)
    _box(ax, (17, 1.5), (13, 7), "V, norm 1", GREEN)
    _box(ax, (43, 6.5), (10, 7), "G", BLUE)
    _box(ax, (53, 6.5), (10, 7), "V", GREEN)
    ax.text(53, 15.6, "F: side by side", ha="center")
    for start, end in (((11, 15), (17, 15)), ((11, 5), (17, 5)), ((30, 14), (43, 11)), ((30, 6), (43, 9))):
        _arrow(ax, start, end)
    _arrow(ax, (23.5, 11.3), (23.5, 8.7), style="<->")
    ax.text(24.8, 10, "cosine", va="center", fontsize=11)
    return figure


def _box(ax, corner, size, text, face, edge=None):
    light = face == "w"
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=1.2", facecolor=face,
                                edgecolor=edge or face, linewidth=1.6))  # fmt: skip
    x, y = np.add(corner, np.divide(size, 2))
    ax.text(x, y, text, ha="center", va="center", color="k" if light else "w", fontsize=11 if light else 12)


def _arrow(ax, start, end, style="-|>"):
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=12, color=GREY, shrinkA=0, shrinkB=0))


def planted_curve() -> plt.Figure:
    """The loss at masked positions of simulated sections, by spots and steps, beside what could be reached."""
    curves = pd.read_csv(RECIPES / "planted" / "sweep_curves.csv").query("seed == 0")
    known = pd.read_csv(RECIPES / "planted" / "sweep.csv").query("seed == 0 and spots == spots.max()").iloc[0]
    figure, ax = plt.subplots(figsize=(6.4, 5), layout="constrained")
    for (spots, own), color in zip(curves.groupby("spots"), (RED, ORANGE, GREEN, BLUE), strict=True):
        ax.plot(own["step"], own["reported_masked"], color=color, linewidth=2, label=f"{spots:,} spots")
        ax.plot(own["step"], own["train_igr"], "--", color=color, linewidth=1)
    for title, key in (
        ("in-section frequency", "frequency"), ("the same, unseen genes", "frequency_unseen"),
        ("linear model", "linear"), ("best possible", "best_possible"),
    ):  # fmt: skip
        ax.axhline(known[key], color=GREY, linestyle=":")
        ax.text(12_800, known[key] - 0.012, title, ha="right", va="top", fontsize=11, color=GREY)
    ax.set(xscale="log", xlabel="steps of 576 spots", ylabel="loss at masked positions, nats")
    ax.set(xlim=(15, 14_000), ylim=(2.3, 4))
    ax.set_xticks([30, 100, 300, 1000, 3000, 10_000], ["30", "100", "300", "1,000", "3,000", "10,000"])
    ax.minorticks_off()
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def cgr() -> plt.Figure:
    """What features of simulated niches tell of domains: linear encoders, IGR alone, and IGR + CGR."""
    runs = pd.read_csv(RECIPES / "planted" / "niches.csv").set_index("cgr")
    rows = [
        ("genes", runs.loc[True], "_genes"), ("principal components", runs.loc[True], "_pca"),
        ("axes of neighbours", runs.loc[True], "_axes"), ("IGR", runs.loc[False], ""),
        ("IGR + CGR", runs.loc[True], ""),
    ]  # fmt: skip
    figure, axes = plt.subplots(2, 1, figsize=(6.4, 5.6), layout="constrained")
    titles = (("ari", "ARI of clusters with domains"), ("probe", "domains by linear probe, accuracy"))
    for ax, (measure, title) in zip(axes, titles, strict=True):
        for y, (_, own, ending) in enumerate(rows):
            for where, shift, color in (("spot", -0.2, BLUE), ("around", 0.2, ORANGE)):
                spread = own[f"ari_{where}_sd{ending}"] if measure == "ari" else None
                ax.barh(y + shift, own[f"{measure}_{where}{ending}"], 0.36, xerr=spread, color=color, ecolor="k")
        if measure == "probe":
            ax.axvline(0.25, color=GREY, linestyle=":")
            ax.text(0.255, -0.55, "chance", fontsize=11, color=GREY)
        ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
        ax.set(xlim=(0, 1), ylim=(len(rows) - 0.4, -0.6 if measure == "ari" else -0.9))
        ax.set_title(title, fontsize=12, loc="left")
        ax.tick_params(axis="y", length=0)
    handles = [Rectangle((0, 0), 1, 1, color=color) for color in (BLUE, ORANGE)]
    figure.legend(
        handles, ["single spots", "means with neighbours"], loc="outside upper center", ncols=2, frameon=False
    )
    return figure


def order() -> plt.Figure:
    """Losses at masked positions of left-out real sections, and how much the order of tokens tells."""
    known = pd.read_csv(RECIPES / "real" / "order.csv").query("split == 'sections' and part == 'reported'")
    runs = pd.read_csv(RECIPES / "real" / "held_out.csv").query("split == 'sections'")
    linear = runs[runs["run"].str.startswith("linear")].set_index("section")["masked"]
    longest = runs[(runs["run"] == "without order, random") & (runs["asked"] == 10_000) & (runs["seed"] == 0)]
    unordered = longest.set_index("section")["masked"]
    lines = {
        "in-section frequency": (known["section_frequency"], GREY, "s"),
        "linear model": (known["section"].map(linear), GREEN, "s"),
        "stage 1 without the order": (known["section"].map(unordered), "k", "o"),
        "stage 1, fixed embeddings": (known["model"], BLUE, "o"),
        "the same, visible genes shuffled": (known["visible_shuffled"], BLUE, "x"),
        "order alone, training sections": (known["training_order"], ORANGE, "o"),
        "order alone, in-section": (known["section_order"], RED, "o"),
    }
    figure, ax = plt.subplots(figsize=(6.4, 4.6), layout="constrained")
    for title, (values, color, marker) in lines.items():
        ax.plot(values, range(len(known)), marker, color=color, markersize=8, label=title)
    names = known["section"].str.replace("HER2ST_", "HER2+ ").str.replace("DLPFC_Br8325_ant, right", "cortex, right")
    ax.set_yticks(range(len(known)), names)
    ax.set(xlabel="loss at masked positions, nats", ylim=(len(known) - 0.5, -0.5))
    ax.grid(axis="y", color="0.9")
    figure.legend(loc="outside upper center", ncols=2, frameon=False, fontsize=11)
    return figure
