"""Tiles per second, memory, and fraction of the file that is read, for each storage of a full-resolution image.

`python benchmarks/tiles.py` prints a table, and compares resampling with OpenCV if it is installed (`python
benchmarks/tiles.py resampling`: only this). The image is that of a real section if STAMPY_DATA_DIR has one, else noise.
"""

import os
import sys
import tempfile
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anndata as ad
import numpy as np
import tifffile
from PIL import Image

from stampy.pp import SlideImage
from stampy.pp._tiles import TileSource

UM_PER_PX = 0.69
N = 500


def picture() -> np.ndarray:
    """Full-resolution RGB, about 9,300 x 9,900 px."""
    folder = Path(os.environ.get("STAMPY_DATA_DIR", "shared/data")) / "images"
    for path in sorted(folder.glob("HER2ST_C2.jpg")):
        return np.asarray(SlideImage.open(path).levels[0].array)
    small = np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((9300, 9900), Image.Resampling.BICUBIC))


class Tiles:
    """A section of `N` spots on the same image in several storages."""

    params = ("array", "jpg", "deflate.tif", "jpeg.tif", "pyramid.tif")
    param_names = ("storage",)
    timeout = 600

    def setup_cache(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="stampy-benchmark-"))
        pixels = picture()
        tile = {"tile": (512, 512), "photometric": "rgb"}
        np.save(folder / "slide.array.npy", pixels)
        Image.fromarray(pixels).save(folder / "slide.jpg", quality=90)
        tifffile.imwrite(folder / "slide.deflate.tif", pixels, compression="deflate", **tile)
        tifffile.imwrite(folder / "slide.jpeg.tif", pixels, compression="jpeg", **tile)
        with tifffile.TiffWriter(folder / "slide.pyramid.tif") as tiff:
            tiff.write(pixels, subifds=2, compression="jpeg", **tile)
            for step in (2, 4):
                small = np.asarray(Image.fromarray(pixels).reduce(step))
                tiff.write(small, subfiletype=1, compression="jpeg", **tile)
        return folder

    def setup(self, folder: Path, storage: str) -> None:
        self.path = folder / f"slide.{storage}"
        self.adata = ad.AnnData(np.zeros((N, 1), np.float32))
        self.adata.obsm["spatial"] = np.random.default_rng(0).uniform(500, 8800, (N, 2))
        self.image = np.load(folder / "slide.array.npy", mmap_mode="r") if storage == "array" else self.path
        self.source = self.open()

    def open(self) -> TileSource:
        return TileSource.open(self.adata, image=self.image, um_per_px=UM_PER_PX)

    def teardown(self, folder: Path, storage: str) -> None:
        self.source.close()

    def time_open(self, folder: Path, storage: str) -> None:
        self.open().close()

    def time_patches(self, folder: Path, storage: str) -> None:
        self.source.read(np.arange(N))

    def time_regions(self, folder: Path, storage: str) -> None:
        self.source.read(np.arange(N), region=True)

    def time_patches_two_threads(self, folder: Path, storage: str) -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.source.read, np.array_split(np.arange(N), 20)))

    def track_peak_mb(self, folder: Path, storage: str) -> float:
        """Memory for opening and reading 100 tiles in batches of 10, including the tiles themselves (1.5 MB)."""
        tracemalloc.start()
        source = self.open()
        for rows in np.array_split(np.arange(100), 10):
            source.read(rows)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        source.close()
        return peak / 1e6


def resampling() -> None:
    """CPU time for a tile of 224 px from an array, compared with OpenCV, and the difference in grey levels."""
    try:
        import cv2
    except ImportError:
        print("OpenCV is not installed.")
        return
    cv2.setNumThreads(1)
    image = SlideImage.from_array(picture())
    pixels = image.levels[0].array
    corners = np.random.default_rng(0).integers(500, 8000, (N, 2))
    print(f"{'from px':>8}{'filter':>14}{'ms a tile':>11}{'ours ms':>9}{'mean off':>10}{'99 % off':>10}")
    for side in (162, 448):
        boxes = [(x, y, x + side, y + side) for x, y in corners.tolist()]
        image.tile(boxes[0], 224)
        start = time.process_time()
        own = np.stack([image.tile(box, 224) for box in boxes])
        ours = (time.process_time() - start) / N * 1e3
        for name, how in (("INTER_CUBIC", cv2.INTER_CUBIC), ("INTER_AREA", cv2.INTER_AREA)):
            start = time.process_time()
            theirs = np.stack([cv2.resize(pixels[y:b, x:r], (224, 224), interpolation=how) for x, y, r, b in boxes])
            took = (time.process_time() - start) / N * 1e3
            off = np.abs(own.astype(np.int16) - theirs)
            print(f"{side:>8}{name:>14}{took:>11.2f}{ours:>9.2f}{off.mean():>10.2f}{np.percentile(off, 99):>10.0f}")


def main() -> None:
    if sys.argv[1:] == ["resampling"]:
        resampling()
        return
    suite = Tiles()
    folder = suite.setup_cache()
    print(f"{'storage':14}{'open s':>8}{'patches/s':>12}{'2 threads':>12}{'regions/s':>12}{'peak MB':>10}")
    for storage in Tiles.params:
        suite.setup(folder, storage)
        seconds = []
        for measure in (suite.time_open, suite.time_patches, suite.time_patches_two_threads, suite.time_regions):
            start = time.perf_counter()
            measure(folder, storage)
            seconds.append(time.perf_counter() - start)
        rates = "".join(f"{N / s:12.0f}" for s in seconds[1:])
        print(f"{storage:14}{seconds[0]:8.2f}{rates}{suite.track_peak_mb(folder, storage):10.1f}")
        suite.teardown(folder, storage)
    resampling()


if __name__ == "__main__":
    main()
