"""Cost of one section: CPU seconds, peak memory and increase in file size, each in a new process.

``python benchmarks/section.py`` uses CRC16 (3,106 spots, 2,000 px image) from ``STAMPY_DATA_DIR`` or its authors'
repository. The published model is timed with random weights on some spots, and extrapolated.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
import warnings
from pathlib import Path

SECTION = "CRC16_human"
SOME = 8  # number of spots for the published model


def load():
    import stampy

    return stampy.datasets.load(SECTION)


def packaged(modality):
    import stampy

    adata = load()
    before = size_of(adata)
    start = time.process_time()
    stampy.tl.embed(adata, modality=modality, show_progress_bar=False)
    return time.process_time() - start, adata.n_obs, size_of(adata) - before


def published():
    """Architecture of the published checkpoint and size of its vocabulary, with random weights."""
    import numpy as np

    import stampy
    from stampy import models

    gene, image = models.GeneConfig(pooling="positions"), models.ImageConfig()
    model = models.Stamp(models.StampConfig(gene=gene, image=image)).eval()
    genes = stampy.models.load("stampy-mini").genes
    n = gene.n_genes
    model.genes = genes.head(n) if len(genes) >= n else padded(genes, n)
    adata = load()
    adata = adata[np.linspace(0, adata.n_obs - 1, SOME).astype(int)].copy()
    start = time.process_time()
    stampy.tl.embed(adata, model, um_per_px=1.0, show_progress_bar=False)
    return time.process_time() - start, adata.n_obs, 0


def padded(genes, n):
    """The vocabulary with made-up rows up to `n`, for an embedding table of the published size."""
    import pandas as pd

    rows = [{"gene_id": f"X{i}", "symbol": f"X{i}", "divisor": 1.0} for i in range(n - len(genes))]
    return pd.concat([genes, pd.DataFrame(rows)], ignore_index=True)


def size_of(adata):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "section.h5ad"
        adata.write_h5ad(path)
        return path.stat().st_size


def measured(what):
    from run import peak_mb

    warnings.simplefilter("ignore")
    seconds, spots, added = published() if what == "published" else packaged(what)
    return seconds, spots, added, peak_mb()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["gene", "fused", "published"])
    context = multiprocessing.get_context("spawn")
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    print(f"| {SECTION}, threads: {threads} | CPU s | per 3,000 spots | peak MB | adds to the file |")
    print("|---|---|---|---|---|")
    for what in parser.parse_args().what:
        with context.Pool(1) as pool:
            seconds, spots, added, peak = pool.apply(measured, (what,))
        each = 3000 * seconds / spots
        print(
            f"| {what} ({spots:,} spots) | {seconds:.1f} | {each:,.0f} s | {peak:,.0f} | {added / 1e6:.1f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
