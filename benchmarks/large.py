"""Peak memory as a function of the number of spots, with counts on disk.

    python benchmarks/large.py [--spots 20000 100000] [--formats h5ad zarr] [--model stampy-mini] [--resume]

Sections are synthetic: 18,000 genes, 150 detected per spot, as in the 8 µm bins of Visium HD. Each is written by one
process and embedded (genes) by another, whose peak memory is reported with its memory before reading. The result stays
in memory; "result" is its size. ``--model tiny`` uses one narrow layer with random weights instead, to measure the
memory of a large section in less time.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

N_GENES, GENES_PER_SPOT = 18_000, 150


def make(path: Path, n_spots: int) -> None:
    """Write a section of n spots."""
    import anndata as ad
    import pandas as pd
    from scipy import sparse

    from stampy import pp

    rng = np.random.default_rng(0)
    genes = pp.Vocabulary.load(_vocabulary()).gene_ids[:N_GENES]
    columns = np.sort(rng.integers(0, len(genes), (n_spots, GENES_PER_SPOT), dtype=np.int32), axis=1).ravel()
    data = rng.integers(1, 6, columns.size, dtype=np.int32)
    start = np.arange(0, columns.size + 1, GENES_PER_SPOT)
    x = sparse.csr_matrix((data, columns, start), shape=(n_spots, len(genes)))
    x.sum_duplicates()
    adata = ad.AnnData(x, var=pd.DataFrame(index=genes))
    adata.write_h5ad(path, compression="lzf") if path.suffix == ".h5ad" else adata.write_zarr(path)


def embed(path: Path, model: str, resume: str) -> dict[str, float]:
    """Embed a section with its counts on disk; MB and seconds."""
    import stampy
    from stampy import models, tl

    loaded = _tiny() if model == "tiny" else models.load(model, device="cpu")
    before = _peak()
    began = time.perf_counter()
    adata = stampy.read(path, backed=True)
    folder = {"resume": resume} if resume else {}
    tl.embed(adata, loaded, modality="gene", device="cpu", show_progress_bar=False, **folder)
    seconds = time.perf_counter() - began
    result = sum(adata.obsm[k].nbytes for k in ("X_stamp", "X_stamp_gene")) / 2**20
    nnz = int(adata.X.indptr[-1]) if hasattr(adata.X, "indptr") else _nnz(adata.X)
    return {
        "counts": nnz * 8 / 2**20,
        "result": result if adata.obsm["X_stamp"] is not adata.obsm["X_stamp_gene"] else result / 2,
        "before": before,
        "peak": _peak(),
        "seconds": seconds,
    }


def _nnz(x) -> int:
    return int(x.group["indptr"][-1])


def _vocabulary() -> Path:
    import stampy

    return Path(stampy.__file__).parent / "models" / "weights" / "stampy-mini" / "genes.tsv"


def _tiny():
    from stampy import models, pp

    genes = pp.Vocabulary.load(_vocabulary()).frame
    gene = models.GeneConfig(n_genes=len(genes), width=16, depth=1, heads=2, feedforward=16, max_tokens=512)
    vit = {"patch_size": 32, "embed_dim": 16, "depth": 1, "num_heads": 2}
    image = models.ImageConfig(backbone="vit_tiny_patch16_224", backbone_kwargs=vit)
    return models.Stamp(models.StampConfig(gene=gene, image=image, embedding=128), genes).eval()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _apart(*arguments: object) -> str:
    """Run this file in a new process, to measure its own peak."""
    command = [sys.executable, "-W", "ignore", __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def peaks(spots: list[int], formats: list[str], model: str, resume: bool):
    with tempfile.TemporaryDirectory() as folder:
        for suffix in formats:
            for n in spots:
                path = Path(folder) / f"{n}.{suffix}"
                _apart("--make", path, n)
                parts = Path(folder) / f"parts-{n}-{suffix}" if resume else ""
                yield suffix, n, json.loads(_apart("--embed", path, model, parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spots", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--formats", nargs="+", default=["h5ad", "zarr"])
    parser.add_argument("--model", default="stampy-mini")
    parser.add_argument("--resume", action="store_true", help="also keep the parts in a folder")
    options = vars(parser.parse_args())
    print("| format | spots | counts MB | result MB | before MB | peak MB | peak - before - result MB | s |")
    print("|---|---|---|---|---|---|---|---|")
    for suffix, n, m in peaks(**options):
        over = m["peak"] - m["before"] - m["result"]
        cells = " | ".join(f"{m[k]:.0f}" for k in ("counts", "result", "before", "peak"))
        print(f"| {suffix} | {n:,} | {cells} | {over:.0f} | {m['seconds']:.0f} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(Path(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["--embed"]:
        print(json.dumps(embed(Path(sys.argv[2]), sys.argv[3], sys.argv[4])))
    else:
        main()
