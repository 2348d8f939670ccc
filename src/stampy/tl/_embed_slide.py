"""`tl.embed_slide`: embed a whole slide to an AnnData on disk, in chunks with bounded memory; resumable."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import stampy
from stampy import _checks, _keys, _utils, models
from stampy._files import atomic
from stampy.pp._slide_tiles import SlideSource, open_slide, slide_tiles
from stampy.pp._tiles import TileSource

from ._embedding.arguments import Level, check_running
from ._embedding.encoders import agreed_modality, check_loadable, digest_of_towers, image_model, loaded_model
from ._embedding.gene_vectors import Record
from ._embedding.resume import digest_of_model
from ._embedding.stream import Tower, iter_images

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from stampy.pp import SlideImage
    from stampy.pp._slide_tiles import ImageSource  # noqa: F401 (in SlideSource: documentation resolves it here)

    from ._embedding.encoders import ImageModel

__all__ = ["embed_slide"]

logger = logging.getLogger(__name__)

PROGRESS = "progress.json"  # in STORE.partial, next to the growing store
STORE = "store.zarr"
MARK = "stampy_fingerprint"  # attribute of the store


def embed_slide(
    slide: SlideSource,
    store: str | Path,
    *,
    model: str | Path | ImageModel = "stampy-mini",
    level: Level = "embedding",
    tile_um: float | None = None,
    stride_um: float | None = None,
    min_tissue: float | None = None,
    um_per_px: float | None = None,
    tile_key: str | None = None,
    name: str | None = None,
    chunk_size: int = 512,
    batch_size: int | None = None,
    n_workers: int = 1,
    device: str | torch.device | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    show_progress_bar: bool = True,
    key_added: str = _keys.EMBEDDING,
) -> Path:
    """Embed the tissue of a whole slide, and write the result to disk in chunks.

    `stampy.pp.slide_tiles` places the tiles, which are embedded chunk by chunk, so memory does not grow with the slide.
    The result is written to ``STORE.partial`` until it is complete. To continue an interrupted run, repeat the call: at
    most one chunk is lost, and the result is the same. Models with surroundings see each tile with the region about it,
    as in `stampy.tl.embed`, so also what lies between the tiles of a wider grid.

    Parameters
    ----------
    slide
        A path, an array, a `SlideImage`, or a WSIData: see `stampy.pp.slide_tiles`.
    store
        Folder to write, ending in ``.zarr``; `anndata.read_zarr` reads it. If it exists with the same settings, nothing
        is done.
    model
        A packaged model, a folder of weights, ``"hf-hub:org/name@revision"``, ``"stamp"``, or a loaded
        `stampy.models.Stamp`, with an image encoder.
    level
        ``"embedding"``: in the space shared with genes, L2 norm 1. ``"feature"``: before the projection, the usual
        input of slide classifiers.
    tile_um
        Spacing of the grid of tiles in µm; None: the tile size of the model. The model always gets tiles of its own
        size, so other values change only their spacing.
    stride_um, min_tissue, um_per_px, tile_key, name
        See `stampy.pp.slide_tiles`.
    chunk_size
        Tiles per chunk on disk.
    batch_size, n_workers, device, precision, show_progress_bar
        See `stampy.tl.embed`.
    key_added
        Key for the embedding.

    Returns
    -------
    The path of the store. It contains the AnnData of `slide_tiles` and

    ``obsm[key_added]``
        float32 (n, d).
    ``uns["stamp"][key_added]``
        Model, version, parameters, scale of the image, hash of the weights.

    Raises
    ------
    FileNotFoundError, KeyError, ImportError
        As `stampy.pp.slide_tiles`.
    FileExistsError
        If the store, or its unfinished part, was written for a different slide, model or parameters.
    ValueError
        As `stampy.pp.slide_tiles`; or if the model has no image encoder.

    Examples
    --------
    >>> import anndata, tempfile, stampy
    >>> picture = stampy.datasets.toy(n_spots=60).uns["spatial"]["toy"]["images"]["hires"]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = stampy.tl.embed_slide(
    ...         picture, f"{folder}/S1.zarr", um_per_px=1.6, min_tissue=0.9, name="S1", show_progress_bar=False
    ...     )
    ...     adata = anndata.read_zarr(path)
    >>> adata.obsm["X_stamp"].shape[1], adata.uns["stamp"]["X_stamp"]["model"]
    (128, 'stampy-mini')
    """
    check_running(level, precision, batch_size, n_workers)
    _checks.at_least("chunk_size", chunk_size, 1)
    check_loadable(model, device)
    agreed_modality("image", model)
    store = _target(store)
    image, owned = open_slide(slide)
    try:
        loaded = image_model(loaded_model(model, device))
        if tile_key is None and tile_um is None:
            tile_um = loaded.tile_um
        adata = slide_tiles(
            image if tile_key is None else slide,
            tile_um=tile_um,
            stride_um=stride_um,
            min_tissue=min_tissue,
            um_per_px=um_per_px,
            tile_key=tile_key,
            name=name,
        )
        job = _Job.of(adata, image, loaded, level, precision, chunk_size, key_added)
        if store.exists():
            _check_same(store, _finished_mark(store), job.mark)
            logger.info("%s exists already, made in the same way.", store)
        else:
            partial = store.with_name(store.name + ".partial")
            _fill(job, partial, _begin(job, partial), batch_size, n_workers, show_progress_bar)
            (partial / STORE).rename(store)
            shutil.rmtree(partial)
    finally:
        if owned:
            image.close()
    return store


@dataclass(frozen=True, eq=False)
class _Job:
    """Output of a run, and the fingerprint that identifies its unfinished store."""

    adata: AnnData
    tiles: TileSource
    tower: Tower[ImageModel]
    level: Level
    chunk_size: int
    key: str
    mark: str

    @classmethod
    def of(cls, adata: AnnData, image: SlideImage, model: ImageModel, level: Level, precision: str | None,
           chunk_size: int, key: str) -> _Job:  # fmt: skip
        tiles = TileSource.open(
            adata, tile_um=model.tile_um, size_px=model.size_px, image=image, surroundings=model.surroundings
        )
        tower = Tower(model, len(tiles), precision)
        origin = tiles.provenance()
        record: Record = {
            "model": model.name,
            "stampy": stampy.__version__,
            "modality": "image",
            "level": level,
            "precision": tower.precision,
            "tiles": origin,
        }
        adata.uns[_keys.UNS][key] = record
        mark = _fingerprint(model, adata, [record, adata.uns[_keys.UNS][_keys.SLIDE_TILES], chunk_size, key])
        record["tiles"] = origin | {"image_path": tiles.image_paths()}  # path: not in the fingerprint
        record["weights_digest"] = digest_of_towers(model)  # the fingerprint has its own hash
        return cls(adata, tiles, tower, level, chunk_size, key, mark)

    @property
    def project(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """Function from the feature of a tile to the stored vector."""
        return self.tower.projection("images", self.level)

    def width(self) -> int:
        """Size of a tile's vector, from a black tile."""
        import torch

        model = self.tower.model
        shape = (1, *((2,) if model.surroundings else ()), model.size_px, model.size_px, 3)
        with self.tower.running():
            black = torch.zeros(shape, dtype=torch.uint8, device=self.tower.device)
            return self.project(model.image_features(model.normalize(black))).shape[1]


def _target(store: str | Path) -> Path:
    store = Path(store).expanduser()
    if not store.name.endswith(".zarr"):
        raise ValueError(f"`store` must end in .zarr, found {store.name!r}.")
    partial = store.with_name(store.name + ".partial")
    _checks.nameable(partial)
    _checks.writable(store.parent)
    if partial.is_symlink() or (store.is_symlink() and not store.exists()):
        link = partial if partial.is_symlink() else store
        raise FileExistsError(
            f"{str(link)!r} is a symbolic link to {os.readlink(link)!r}. Remove it, or write elsewhere."
        )
    return store


def _fingerprint(model: ImageModel, adata: AnnData, parameters: list[Any]) -> str:
    """Hash of everything that must be equal for resuming: weights, tiles, image, parameters."""
    digest = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    tower = ("image.", "patch_head.") if isinstance(model, models.Stamp) else ("",)
    digest.update(digest_of_model(model, below=tower).encode())
    digest.update(np.ascontiguousarray(adata.obsm[_keys.SPATIAL]).tobytes())
    for library in adata.uns[_keys.UNS_SPATIAL].values():
        digest.update(library["images"]["hires"].tobytes())
    return digest.hexdigest()


def _check_same(folder: Path, found: str | None, mark: str) -> None:
    if found != mark:
        raise FileExistsError(
            f"{str(folder)!r} exists already, and was made from another slide or with another model, version or "
            "parameters. Remove it, or write elsewhere."
        )


def _finished_mark(store: Path) -> str | None:
    """Fingerprint of a finished store, None for anything else."""
    try:
        return json.loads((store / "zarr.json").read_text(encoding="utf-8"))["attributes"].get(MARK)
    except (OSError, ValueError, KeyError):
        return None


def _progress(folder: Path) -> dict[str, Any]:
    path = folder / PROGRESS
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _save_progress(folder: Path, mark: str, rows: int) -> None:
    with atomic(folder / PROGRESS) as temporary:
        temporary.write_text(json.dumps({"fingerprint": mark, "rows": rows}), encoding="utf-8")


def _begin(job: _Job, partial: Path) -> int:
    """Open the unfinished store, or create a new one; returns the number of finished rows."""
    import anndata
    import zarr

    if found := _progress(partial):
        _check_same(partial, found.get("fingerprint"), job.mark)
        return int(found["rows"])
    partial.mkdir(exist_ok=True)
    if others := {p.name for p in partial.iterdir() if not p.name.startswith(".")} - {STORE}:
        raise FileExistsError(f"{str(partial)!r} is in the way: it contains {_checks.shortlist(sorted(others))}.")
    shutil.rmtree(partial / STORE, ignore_errors=True)  # stopped before the first tile
    root = zarr.open_group(partial / STORE, mode="w", zarr_format=3)
    with warnings.catch_warnings():
        for about in (".*Zarr V3 specification", ".*autosharding"):  # messages for developers of anndata
            warnings.filterwarnings("ignore", message=about)
        for slot in ("X", "obs", "var", "obsm", "varm", "layers", "obsp", "varp", "uns"):
            value = getattr(job.adata, slot)
            anndata.io.write_elem(root, slot, dict(value) if isinstance(value, Mapping) else value)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0", MARK: job.mark})
    shape = job.adata.n_obs, job.width()
    chunks = min(job.chunk_size, shape[0]), shape[1]
    array = root["obsm"].create_array(job.key, shape=shape, chunks=chunks, dtype="float32", fill_value=float("nan"))
    array.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    _save_progress(partial, job.mark, 0)
    return 0


def _fill(job: _Job, partial: Path, done: int, batch_size: int | None, n_workers: int, progress: bool) -> None:
    """Embed the unfinished rows; a chunk counts as finished when it is written."""
    import zarr
    from tqdm.auto import tqdm

    array = zarr.open_group(partial / STORE, mode="r+", use_consolidated=False)[f"obsm/{job.key}"]
    n = len(job.tiles)
    spans = [(start, min(start + job.chunk_size, n)) for start in range(done, n, job.chunk_size)]
    images = iter_images(job.tower, job.tiles, spans, batch_size=batch_size, n_workers=n_workers, project=job.project)
    ends, start = {end for _, end in spans}, done
    held: list[np.ndarray] = []
    with tqdm(total=n, initial=done, desc="tiles", unit="tile", disable=_utils.hidden(progress)) as bar:
        for rows, values in images:
            held.append(values)
            bar.update(len(rows))
            end = int(rows[-1]) + 1
            if end in ends:
                array[start:end] = np.concatenate(held)
                _save_progress(partial, job.mark, end)
                start, held = end, []
