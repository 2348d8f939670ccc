"""Cost of building a corpus, and reading speed; prints the tables of docs/corpora.md.

    python benchmarks/corpus.py [codecs | reading | building]

Uses real sections if STAMPY_DATA_DIR has them, else toy sections. Spots are drawn from a section with replacement and
placed on Visium's grid, so that one section gives corpora of any size.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import torch
import zarr
from torch.utils.data import default_collate

import stampy
from stampy.pp._tiles import TileSource
from stampy.pp._vocabulary import packaged_vocabulary
from stampy.train import Corpus, PretrainConfig, SectionInput
from stampy.train._corpus.shards import decode_tile, encode_tile
from stampy.train._corpus.training_data import groups_on_disk
from stampy.train._samplers import GroupSampler

DATA = Path(os.environ.get("STAMPY_DATA_DIR", "shared/data"))
SPARSE, DENSE, IMAGE = "CRC16_human", "HBC_cytassist_eevee709", "HER2ST_C2"
SIZES = (1000, 3000, 6000)
TILED = (150, 300, 600)
SPAVIS, PAIRED = 5_750_000, 697_000  # spots of SpaVis-6M, and those with an image
N_WORKERS = 16
PUBLISHED = "HDF5, a row at a time, into batches (the published way)"
OURS = "corpus: groups, into batches"


def section(name: str, n: int) -> ad.AnnData:
    """`n` spots with counts of a real section (or of a toy one) on a hexagonal grid."""
    path = DATA / "sections" / f"{name}.h5ad"
    source = ad.read_h5ad(path) if path.exists() else stampy.datasets.toy(n_spots=400, image=False)
    found = ad.AnnData(source.X[np.random.default_rng(0).integers(source.n_obs, size=n)], var=source.var)
    side = int(np.ceil(np.sqrt(n)))
    row, column = np.divmod(np.arange(n), side)
    found.obsm["spatial"] = np.column_stack([(column + 0.5 * (row % 2)) * 100.0, row * 86.6])
    found.obs_names = [str(i) for i in range(n)]
    return found


def with_image(n: int) -> SectionInput:
    """`n` spots on a full-resolution image, without genes."""
    path = DATA / "images" / f"{IMAGE}.jpg"
    if not path.exists():
        return SectionInput(data=stampy.datasets.toy(n_spots=n)[:, :0].copy(), name="toy")
    source = ad.read_h5ad(DATA / "sections" / f"{IMAGE}.h5ad")
    return SectionInput(data=source[np.arange(n) % source.n_obs, :0].copy(), name=IMAGE, image=path)


def seconds(function: Callable[[], object], budget: float = 2.0) -> float:
    """CPU seconds per call: median of the calls within the budget, after a warm-up; other processes do not count."""
    function()
    times = []
    while sum(times) < budget and len(times) < 30:
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return sorted(times)[len(times) // 2]


# Codecs


def track_codecs(n: int = 60):
    """Codec, bytes per tile, ms to encode and to decode a tile on one core, PSNR in dB."""
    wanted = with_image(n)
    tiles = TileSource.open(wanted.data, image=wanted.image).read(np.arange(n))
    import imagecodecs

    codecs = {f"jpeg {q}": ("jpeg", q) for q in (80, 90, 95)} | {f"jpegxl {q}": ("jpegxl", q) for q in (80, 90, 100)}
    for name, (format_, quality) in codecs.items():
        encode = [lambda t=t: encode_tile(t, format_, quality) for t in tiles]  # noqa: B023
        data = [e() for e in encode]
        decode = [lambda d=d: decode_tile(d, format_) for d in data]  # noqa: B023
        yield name, *_costs(tiles, encode, decode, data)
    encode = [lambda t=t: imagecodecs.zstd_encode(t, level=1) for t in tiles]
    data = [e() for e in encode]
    decode = [lambda d=d: np.frombuffer(imagecodecs.zstd_decode(d), np.uint8).reshape(tiles.shape[1:]) for d in data]
    yield "zstd", *_costs(tiles, encode, decode, data)


def _costs(tiles, encode, decode, data):
    def all_of(functions):
        return [f() for f in functions]

    error = np.mean([(t.astype(float) - d()) ** 2 for t, d in zip(tiles, decode, strict=True)])
    psnr = 10 * np.log10(255**2 / error) if error else np.inf
    n = len(tiles)
    return (
        np.mean([len(d) for d in data]),
        1e3 * seconds(lambda: all_of(encode)) / n,
        1e3 * seconds(lambda: all_of(decode)) / n,
        psnr,
    )


# Reading


def track_reading(n: int = 4000):
    """Reading method, spots per second of one core in random order from the page cache."""
    data, rng = section(SPARSE, n), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(folder)
        corpus = Corpus.build(data, folder / "corpus", vocabulary=packaged_vocabulary(), n_workers=1, progress=False)
        stored = corpus.sections[0]
        data.write_h5ad(folder / "counts.h5ad", compression="gzip")
        with h5py.File(folder / "tokens.h5", "w") as file:
            tokens = stored.tokens(np.arange(n)).astype(np.int64)
            file.create_dataset("plain", data=tokens)
            file.create_dataset("gzip", data=tokens, compression="gzip")
            file.create_dataset("rows", data=tokens, compression="gzip", chunks=(1, tokens.shape[1]))
        order = rng.permutation(n)
        with h5py.File(folder / "tokens.h5") as file:
            for name, text, count in (
                ("plain", PUBLISHED, n),
                ("rows", "the same, compressed by rows", 1000),
                ("gzip", "the same, compressed in h5py's chunks", 72),
            ):
                yield text, count / seconds(partial(_published, file, name, order[:count]))
        backed = ad.read_h5ad(folder / "counts.h5ad", backed="r")
        yield "h5ad: a row of counts, not ranked", 20 / seconds(lambda: [backed.X[int(i)] for i in order[:20]])
        groups = rng.permutation(stored.n_groups[0]).tolist()
        array = zarr.open_array(stored.folder / "tokens", mode="r")
        few = groups[:50]
        yield "corpus, zarr: a group", 9 * len(few) / seconds(lambda: [array[g * 9 : g * 9 + 9] for g in few])
        out, members = np.empty((9, tokens.shape[1]), np.uint16), np.arange(9)
        yield "corpus: a group", 9 * len(groups) / seconds(lambda: [stored.read_group(g, members, out) for g in groups])
        sampler = GroupSampler(groups_on_disk(corpus, None, PretrainConfig()), PretrainConfig())
        steps = range(sampler.steps_per_epoch)
        spots = len(steps) * 9 * PretrainConfig().groups_per_batch
        yield OURS, spots / seconds(lambda: [sampler.batch(i) for i in steps])


def _published(file: h5py.File, name: str, rows: np.ndarray) -> None:
    """Batches of 72 as in the released code: read row by row, copied and collated."""
    for start in range(0, len(rows), 72):
        default_collate([torch.from_numpy(file[name][i]).clone() for i in rows[start : start + 72]])


# Building


def _build(what: str, sizes: tuple[int, ...]) -> list[tuple[float, float, float]]:
    """CPU seconds, bytes and peak memory in MB for building a section of each size from disk."""
    found = []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"vocabulary": packaged_vocabulary(), "n_workers": 1, "progress": False, "images": what == "tiles"}
        for n in (min(sizes) // 2, *sizes):  # the first build compiles and fills caches
            if what == "tiles":
                given = with_image(n)
            else:
                given = Path(folder) / f"{n}.h5ad"
                section(what, n).write_h5ad(given, compression="gzip")
            began = time.process_time()
            corpus = Corpus.build(given, Path(folder) / str(n), **options)
            took = time.process_time() - began
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
            found.append((took, float(corpus.table["bytes"].sum()), peak))
    return found[1:]


def _slopes(what: str, sizes: tuple[int, ...]) -> dict[str, float]:
    """CPU seconds, bytes and MB per 1,000 spots by least squares, and the intercepts in s and MB."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_build, (what, sizes))
    fits = [np.polyfit(np.array(sizes) / 1000, values, 1) for values in zip(*found, strict=True)]
    (s, s0), (size, _), (mb, mb0) = fits
    return {"s": s, "s0": s0, "bytes": size / 1000, "mb": mb, "mb0": mb0}


def track_building():
    """Kind of corpus, and its slopes."""
    yield f"tokens of {SPARSE}", _slopes(SPARSE, SIZES)
    yield f"tokens of {DENSE}", _slopes(DENSE, SIZES)
    yield f"patch and region on {IMAGE}", _slopes("tiles", TILED)


def extrapolate(costs: dict[str, dict[str, float]]):
    """Data, spots, GB, core hours, hours on `N_WORKERS` cores, and GB of memory per process at 5,000 spots."""
    for name, slope in costs.items():
        n = PAIRED if name.startswith("patch") else SPAVIS
        sections = 1982 * n / SPAVIS
        hours = (slope["s"] * n / 1000 + max(slope["s0"], 0) * sections) / 3600
        memory = (slope["mb0"] + 5 * max(slope["mb"], 0)) / 1e3
        yield name, n, slope["bytes"] * n / 1e9, hours, hours / N_WORKERS, memory


def main(wanted: list[str]) -> None:
    if not wanted or "codecs" in wanted:
        print("| codec | bytes a tile | encode, ms | decode, ms | PSNR, dB |\n|---|---|---|---|---|")
        for name, size, encode, decode, psnr in track_codecs():
            print(f"| {name} | {size:,.0f} | {encode:.2f} | {decode:.2f} | {psnr:.1f} |", flush=True)
    if not wanted or "reading" in wanted:
        print("\n| reading | spots/s | of the published way |\n|---|---|---|")
        found = dict(track_reading())
        for name, speed in found.items():
            print(f"| {name} | {speed:,.0f} | {speed / found[PUBLISHED]:.3g} x |")
    if not wanted or "building" in wanted:
        print("\n| building | core s per 1,000 spots | + s a section | bytes a spot | MB at 0 | + MB per 1,000 spots |")
        print("|---|---|---|---|---|---|")
        costs = {}
        for name, c in track_building():
            costs[name] = c
            row = f"{c['s']:.2f} | {c['s0']:.2f} | {c['bytes']:,.0f} | {c['mb0']:.0f} | {c['mb']:.0f}"
            print(f"| {name} | {row} |", flush=True)
        print(f"\n| extrapolated | spots | GB | core hours | hours, {N_WORKERS} cores | GB of memory a process |")
        print("|---|---|---|---|---|---|")
        for name, n, size, hours, shared, memory in extrapolate(costs):
            print(f"| {name} | {n:,} | {size:.0f} | {hours:.1f} | {shared:.2f} | {memory:.1f} |")


if __name__ == "__main__":
    main(sys.argv[1:])
