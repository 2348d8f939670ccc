"""Cost of converting files of SpaVis-6M to a corpus: CPU seconds and peak memory by the size of the files.

    python benchmarks/spavis.py [GB ...]

The files are synthetic with the published layout: int32 tokens (groups, 9, 4,096), slides of 500 groups in sequence, in
files of 1 GB; and 1 GB of spots with patches and regions. Each runs in its own process, and a linear fit is
extrapolated to the 94 GB of SpaVis-6M. CPU seconds exclude other load on the machine, wall seconds do not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import shutil
import tempfile
import time
import warnings
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

WHOLE_GB = 94
N_GENES, POSITIONS, KEPT = 20_310, 4_096, 1_500
GROUPS_PER_SLIDE = 500


def groups(folder: Path, gb: float, start: int) -> None:
    """A file of about `gb` GB of groups; slides are numbered from `start`."""
    random = np.random.default_rng(0)
    n = max(round(gb * 1e9 / (9 * POSITIONS * 4)), 1)
    block = np.empty((min(GROUPS_PER_SLIDE, n), 9, POSITIONS), dtype=np.int32)
    for spot in block.reshape(-1, POSITIONS):
        spot[:] = random.permutation(N_GENES)[:POSITIONS] + 30
        spot[random.integers(1_000, POSITIONS) :] = 1
    with h5py.File(folder / f"tokens-{start}.h5", "w") as file:
        tokens = file.create_dataset("tokenized_gene", (n, 9, POSITIONS), np.int32)
        for first in range(0, n, len(block)):
            tokens[first : first + len(block)] = block[: n - first]
        file["batch_slide_id"] = start * 1_000 + np.arange(n) // GROUPS_PER_SLIDE


def pairs(folder: Path, gb: float) -> None:
    """A file of about `gb` GB of spots with tiles, cut from smooth noise."""
    random = np.random.default_rng(0)
    n = max(round(gb * 1e9 / (2 * 3 * 224 * 224 + 4 * POSITIONS)), 1)
    small = random.integers(0, 255, (64, 3, 28, 28)).astype(np.uint8)
    tiles = np.kron(small, np.ones((8, 8), dtype=np.uint8)) + random.integers(0, 12, (64, 3, 224, 224)).astype(np.uint8)
    tokens = random.permutation(N_GENES)[:POSITIONS].astype(np.int32) + 30
    with h5py.File(folder / "tokens-0.h5", "w") as file:
        file["tokenized_gene"] = np.tile(tokens, (n, 1))
        for key in ("images", "images_aug"):
            found = file.create_dataset(key, (n, 3, 224, 224), np.uint8)
            for first in range(0, n, 64):
                found[first : first + 64] = tiles[: n - first]
        file["pos_label"] = np.arange(n) % 9
        file["batch_slide_id"] = np.arange(n) // 1_000


def build(folder: str, out: str, genes: str, answer) -> None:
    """Build in a new process: CPU seconds, wall seconds, peak MB."""
    from stampy.train import Corpus

    warnings.simplefilter("ignore")
    before, start = time.process_time(), time.perf_counter()
    Corpus.build(folder, out, vocabulary=genes, max_tokens=KEPT, n_workers=1, progress=False)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    answer.put((time.process_time() - before, time.perf_counter() - start, peak))


def measured(folder: Path, out: Path, genes: Path) -> dict[str, float]:
    """A row of the table."""
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    process = context.Process(target=build, args=(str(folder), str(out), str(genes), answer))
    process.start()
    core, wall, peak = answer.get()
    process.join()
    read, written = (sum(p.stat().st_size for p in place.rglob("*") if p.is_file()) / 1e9 for place in (folder, out))
    shutil.rmtree(out)
    return {"GB in": read, "GB out": written, "core s": core, "wall s": wall, "peak MB": peak}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gb", nargs="*", type=float, default=[1, 4, 16])
    parser.add_argument("--folder", type=Path, help="with room for the largest size and a third more")
    sizes = sorted(parser.parse_args().gb)
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as place:
        folder, genes = Path(place) / "files", Path(place) / "genes.tsv"
        rows = [f"G{i}\tG{i}\t1.0" for i in range(N_GENES)]
        genes.write_text("\n".join(["gene_id\tsymbol\tdivisor", *rows, ""]))
        folder.mkdir()
        pairs(folder, min(sizes[0], 1.0))
        tiles = measured(folder, Path(place) / "corpus", genes)
        print(
            "stage 2, tiles\n" + pd.DataFrame([tiles]).to_string(index=False, float_format="{:.2f}".format), flush=True
        )
        shutil.rmtree(folder)
        folder.mkdir()
        print("\nstage 1, groups")
        found, done = [], 0.0
        for size in sizes:
            while size - done > 1e-9:
                step = min(1.0, size - done)
                groups(folder, step, len(list(folder.iterdir())))
                done += step
            found.append(measured(folder, Path(place) / "corpus", genes))
            print(pd.DataFrame(found[-1:]).to_string(index=False, float_format="{:.2f}".format), flush=True)
    table = pd.DataFrame(found)
    if len(table) > 1:
        print(f"\nextrapolated to {WHOLE_GB} GB:")
        for column in ("GB out", "core s", "wall s", "peak MB"):
            slope, at_0 = np.polyfit(table["GB in"], table[column], 1)
            print(f"  {column}: {at_0 + slope * WHOLE_GB:.0f} ({slope:.2f} a GB, {at_0:.2f} at 0)")


if __name__ == "__main__":
    main()
