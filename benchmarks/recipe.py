"""CPU time of `tl.embed` (genes, packaged model) compared with scanpy's PCA: ``python benchmarks/recipe.py [N ...]``.

The PCA recipe: normalize_total, log1p, 2,000 highly variable genes and 50 principal components, on a copy of the
counts. Spots are resampled from CRC16_human (``STAMPY_DATA_DIR``), else from the toy section. The two alternate.
"""

import os
import sys
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse

import stampy

DATA = Path(os.environ.get("STAMPY_DATA_DIR", Path(__file__).parents[2] / "shared" / "data"))
SIZES = (16_000, 64_000)
TURNS = 3


def spots(n: int) -> AnnData:
    """Raw counts of `n` spots."""
    path = DATA / "sections" / "CRC16_human.h5ad"
    section = anndata.read_h5ad(path) if path.is_file() else stampy.datasets.toy(n_spots=3000, image=False)
    rows = np.random.default_rng(0).integers(0, section.n_obs, n)
    counts = sparse.csr_matrix(section.X)[rows].astype(np.float32)
    return AnnData(counts, var=section.var[[]], obsm={"spatial": np.zeros((n, 2))})


def recipe(adata: AnnData) -> None:
    copy = AnnData(adata.X.copy(), var=adata.var)
    sc.pp.normalize_total(copy)
    sc.pp.log1p(copy)
    sc.pp.highly_variable_genes(copy, n_top_genes=2000)
    sc.pp.pca(copy, n_comps=50, mask_var="highly_variable")


def embed(adata: AnnData) -> None:
    stampy.tl.embed(adata, modality="gene", show_progress_bar=False)


def cpu(function, adata: AnnData) -> float:
    start = time.process_time()
    function(adata)
    return time.process_time() - start


def main() -> None:
    warnings.simplefilter("ignore")
    small = spots(500)
    for function in (recipe, embed):  # imports, compilation, loading of the model
        function(small)
    print(
        f"{'spots':>8}{'genes':>8}{'recipe s':>10}{'embed s':>10}{'ratio':>8}   CPU seconds, medians of {TURNS} turns"
    )
    for n in map(int, sys.argv[1:]) if sys.argv[1:] else SIZES:
        adata = spots(n)
        turns = np.array([[cpu(recipe, adata), cpu(embed, adata)] for _ in range(TURNS)])
        one, other = np.median(turns, axis=0)
        print(f"{n:>8}{adata.n_vars:>8}{one:>10.2f}{other:>10.2f}{other / one:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
