"""Reading, tokenisation and tiling compared with another version of stampy: ``python benchmarks/reading.py OTHER/src``.

Each version runs in its own process, and the two alternate, so that other load affects both equally. Reports median CPU
times over the turns, and the median of the differences. Visium and .h5ad are CRC16 from ``STAMPY_DATA_DIR``, or a toy
section if this is not set; ST and Xenium folders are written for the benchmark. Without another version, only this one
is measured.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent / "src"
TURNS = 15


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("other", nargs="?", help="src folder of the other version")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--only", default="", help="part of the name of what is measured")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return
    with tempfile.TemporaryDirectory() as folder:
        jobs = {name: job for name, job in inputs(Path(folder)).items() if options.only in name}
        sources = [HERE] + ([Path(options.other).resolve()] if options.other else [])
        workers = [started(source) for source in sources]
        for name, job in jobs.items():
            times = [[] for _ in workers]
            for turn in range(-2, options.turns):  # two warm-up turns
                order = range(len(workers)) if turn % 2 else reversed(range(len(workers)))
                for k in order:
                    seconds = asked(workers[k], job)
                    if turn >= 0:
                        times[k].append(seconds)
            print(line(name, times), flush=True)
        for worker in workers:
            worker.stdin.close()
            worker.wait()


def line(name, times):
    medians = [statistics.median(t) * 1e3 for t in times]
    text = f"{name:24}" + "".join(f"{m:10.2f} ms" for m in medians)
    if len(times) > 1:
        off = statistics.median(a - b for a, b in zip(*times, strict=True)) * 1e3
        text += f"   {off:+8.2f} ms ({medians[0] / medians[1]:.2f} of the other)"
    return text


def started(source):
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--worker"]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(worker, job):
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.flush()
    answer = json.loads(worker.stdout.readline() or '{"error": "the process ended"}')
    if "error" in answer:
        raise RuntimeError(f"{job}: {answer['error']}")
    return answer["seconds"]


def work():
    """Worker: run the job named by each line of standard input and print its duration."""
    import stampy

    warnings.simplefilter("ignore")
    loaded = {}
    for text in sys.stdin:
        what, path = json.loads(text)
        try:
            if what != "read" and path not in loaded:
                loaded[path] = stampy.read(path)
            adata = loaded[path].copy() if what != "read" else None
            start = time.process_time()
            if what == "read":
                stampy.read(path)
            elif what == "tokenize":
                stampy.pp.tokenize(adata)
            else:
                stampy.pp.tiles(adata, size_px=32)
            print(json.dumps({"seconds": time.process_time() - start}), flush=True)
        except Exception as error:  # noqa: BLE001
            print(json.dumps({"error": f"{type(error).__name__}: {error}"}), flush=True)


def inputs(folder):
    """Jobs by name: function and section."""
    import stampy

    data = os.environ.get("STAMPY_DATA_DIR", "")
    visium, h5ad = Path(data, "10x/crc16"), Path(data, "sections/CRC16_human.h5ad")
    toy = stampy.datasets.toy(n_spots=4000)
    if not data or not visium.is_dir():
        visium = folder / "visium"
        space_ranger(visium, toy)
    if not data or not h5ad.is_file():
        h5ad = folder / "toy.h5ad"
        toy.write_h5ad(h5ad)
    st(folder / "st", toy)
    xenium(folder / "xenium", toy)
    reads = {"Visium": visium, ".h5ad": h5ad, "ST": folder / "st", "Xenium": folder / "xenium"}
    jobs = {f"read {name}": ("read", str(path)) for name, path in reads.items()}
    return jobs | {"tokenize": ("tokenize", str(h5ad)), "tiles": ("tiles", str(h5ad))}


def counts_h5(path, adata):
    import h5py
    import numpy as np
    from scipy import sparse

    x = sparse.csr_matrix(adata.X).astype(np.int32)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(x, name)
        group["shape"], group["barcodes"] = np.array(x.shape[::-1]), np.array(adata.obs_names, dtype="S")
        columns = {"id": adata.var["gene_ids"], "name": adata.var_names}
        columns |= {"feature_type": ["Gene Expression"] * adata.n_vars, "genome": ["GRCh38"] * adata.n_vars}
        for name, values in columns.items():
            group[f"features/{name}"] = np.array(list(values), dtype="S")


def space_ranger(folder, adata):
    from PIL import Image

    (folder / "spatial").mkdir(parents=True)
    counts_h5(folder / "filtered_feature_bc_matrix.h5", adata)
    library = next(iter(adata.uns["spatial"].values()))
    factors = {name: float(value) for name, value in library["scalefactors"].items()}
    (folder / "spatial" / "scalefactors_json.json").write_text(json.dumps(factors))
    for name in ("hires", "lowres"):
        Image.fromarray(library["images"][name]).save(folder / "spatial" / f"tissue_{name}_image.png")
    table = adata.obs[["in_tissue", "array_row", "array_col"]].copy()
    table["y"], table["x"] = adata.obsm["spatial"][:, 1].round(), adata.obsm["spatial"][:, 0].round()
    table.to_csv(folder / "spatial" / "tissue_positions_list.csv", header=False)


def st(folder, adata):
    """Write counts and spots of Spatial Transcriptomics."""
    import pandas as pd

    folder.mkdir()
    places = [(i % 32 + 1, i // 32 + 1) for i in range(adata.n_obs)]
    table = pd.DataFrame(adata.X.toarray().astype(int), index=[f"{x}x{y}" for x, y in places], columns=adata.var_names)
    table.to_csv(folder / "rep1_stdata.tsv", sep="\t")
    spots = pd.DataFrame(places, columns=["x", "y"])
    spots["new_x"], spots["new_y"] = spots["x"] + 0.01, spots["y"] + 0.01
    spots["pixel_x"], spots["pixel_y"], spots["selected"] = spots["x"] * 300.0, spots["y"] * 300.0, 1
    spots.to_csv(folder / "spot_data-selection-rep1.tsv", sep="\t", index=False)


def xenium(folder, adata):
    """Write cells of Xenium."""
    import pandas as pd

    folder.mkdir()
    counts_h5(folder / "cell_feature_matrix.h5", adata)
    x, y = adata.obsm["spatial"].T
    cells = pd.DataFrame({"cell_id": adata.obs_names, "x_centroid": x, "y_centroid": y, "cell_area": 30.0})
    cells.to_csv(folder / "cells.csv.gz", index=False)
    (folder / "experiment.xenium").write_text(json.dumps({"pixel_size": 0.2125}))


if __name__ == "__main__":
    main()
