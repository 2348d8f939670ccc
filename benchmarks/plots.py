"""Time to plot 500,000 spots, as many as 8 µm bins in a Visium HD section, from the table to a PNG in memory."""

import io
import time
from functools import cache

import matplotlib
import numpy as np
import pandas as pd
from anndata import AnnData

matplotlib.use("Agg")

N = 500_000
COLORS = ["labels", "values", "embedding", None]


@cache
def section() -> AnnData:
    rng = np.random.default_rng(0)
    xy = np.stack(np.divmod(np.arange(N), int(np.ceil(N**0.5))), axis=1) * 32.0
    wave = np.sin(xy / 3000)
    obs = pd.DataFrame({"labels": (xy[:, 0] // 4000).astype(int).astype(str), "values": wave.sum(axis=1)})
    obs["labels"] = obs["labels"].astype("category")
    embedding = rng.normal(scale=0.1, size=(N, 64)).astype(np.float32)
    embedding[:, :2] += wave
    obsm = {"spatial": xy, "embedding": embedding, "X_umap": wave + rng.normal(scale=0.1, size=(N, 2))}
    obs.index = obs.index.astype(str)
    return AnnData(np.zeros((N, 0), np.float32), obs=obs, obsm=obsm)


def draw(kind, color):
    """CPU and wall seconds to a PNG in memory."""
    import matplotlib.pyplot as plt

    from stampy import pl

    adata = section()
    cpu, wall = time.process_time(), time.perf_counter()
    ax = getattr(pl, kind)(adata, color)
    ax.figure.savefig(io.BytesIO(), dpi=150)
    plt.close(ax.figure)
    return time.process_time() - cpu, time.perf_counter() - wall


def main():
    draw("spatial", "values")  # loads modules and fonts
    for kind in ("spatial", "umap"):
        for color in COLORS:
            cpu, wall = draw(kind, color)
            print(f"pl.{kind}, {N:,} spots, {color or 'outlines'}: {cpu:.2f} s of CPU, {wall:.2f} s", flush=True)


if __name__ == "__main__":
    main()
