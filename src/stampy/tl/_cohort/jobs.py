"""Job for one section or slide in a worker: read, compare with existing results, embed, evaluate, write."""

from __future__ import annotations

import hashlib
import inspect
import os
import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import stampy
from stampy import _checks, _files, _keys, _utils
from stampy._io.sections import SECTION_ERRORS, SectionInput, of_section, one_line
from stampy._section.identity import digest_of_references, digest_of_section
from stampy._section.outside_links import VARIABLE

from . import records
from .plan import WORDS, Plan, Row

if TYPE_CHECKING:
    from queue import Queue

    from anndata import AnnData
    from spatialdata import SpatialData

    from stampy.tl._embedding.encoders import Encoder

__all__ = [
    "FAILED",
    "LoadedModel",
    "embed_section_job",
    "embed_slide_job",
    "loaded",
    "named_images_of",
    "prepare_worker",
    "worker_name",
]

FAILED = "_stampy_row"  # attribute of an error: row of the section that raised it
_ONE_AT_A_TIME = threading.Lock()  # workers of a cluster may have several threads that share model and warnings


def embed_section_job(section: SectionInput, plan: Plan) -> Row:
    """Embed a section into its file; returns its row of the table."""
    with _ONE_AT_A_TIME:
        return _row_of(section, plan, _embed_section)


def embed_slide_job(section: SectionInput, plan: Plan) -> Row:
    """Embed a slide into its store; returns its row of the table."""
    with _ONE_AT_A_TIME:
        return _row_of(section, plan, _embed_slide)


def _row_of(section: SectionInput, plan: Plan, work: Callable[[SectionInput, Plan, LoadedModel], Row]) -> Row:
    """Row returned by `work`, with time, worker and warnings; if errors are skipped, the error of a failed section."""
    where = str(section.data) if isinstance(section.data, Path) else ""
    row: Row = {"name": section.name, "path": where, **{word: getattr(section, word) for word in WORDS}}
    model = loaded(plan)
    began = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught, named_images_of(plan), of_section(section.name):
            warnings.simplefilter("always", UserWarning)
            found = work(section, plan, model)
    except SECTION_ERRORS as error:
        row |= {"status": "failed", "error": one_line(error, section.name)}
        if not plan.skip or _files.is_full(error):
            vars(error)[FAILED] = row  # is pickled with the error, for the table
            raise
    else:
        row = found | row  # metadata of the current manifest replace those of an earlier run
        said = dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, _checks.StampyWarning))
        if found["status"] == "embedded":
            row |= {"warnings": list(said), "seconds": round(time.perf_counter() - began, 3), "worker": worker_name()}
            records.finish(plan, section.name, row.pop("identity"), row)
    return row


def _identity(plan: Plan, model: LoadedModel, source: str, function: Callable[..., object]) -> dict[str, Any]:
    """Everything that determines the result; arguments of `function` that equal its defaults are the same as none."""
    defaults = {name: argument.default for name, argument in inspect.signature(function).parameters.items()}
    settings = {k: v for k, v in plan.settings().items() if k not in defaults or v != defaults[k]}
    name = model.model if isinstance(model.model, str) else model.model.name
    origin = {"stampy": stampy.__version__, "model": name, "weights": model.weights, "precision": model.precision}
    return {**origin, "settings": settings, "source": source}


# ---- sections -------------------------------------------------------------------------------------------------------


def _embed_section(section: SectionInput, plan: Plan, model: LoadedModel) -> Row:
    from stampy import tl

    place = section.data if isinstance(section.data, Path) else None
    data, kind, source = _opened(section, plan)
    identity = _identity(plan, model, source, tl.embed)
    if (done := records.finished(plan, section.name, identity)) is not None:
        return done | {"status": "kept"}
    if data is None:
        data = _read(section, plan, backed=False)
    records.begin(plan, section.name, identity)
    options = {**plan.options, **_about_image(section, plan, kind, model)}
    copied = tl.embed(data, model.model, **options, show_progress_bar=False, copy=place is None)
    data = copied if place is None else data
    table = _utils.table_of(data, plan.table_key)
    row = _about(table, plan) | {"output": plan.target(section.name).name, "identity": identity}
    if plan.judged:
        row |= _judgement(data, model, plan)
    _write(data, place, plan, section.name)
    return row | {"status": "embedded"}


_PLACED_ON_IMAGE = ("Xenium", "ST")  # the reader needs the image for coordinates
_WHOLE = ("h5ad", "zarr", "SpatialData")  # other formats may have files next to the path


def _scale(section: SectionInput, plan: Plan) -> dict[str, float | None]:
    """Scale of the section in the manifest, else that of the run."""
    own = {"um_per_px": section.um_per_px, "spot_um": section.spot_um}
    return own if any(v is not None for v in own.values()) else {name: plan.options.get(name) for name in own}


def _about_image(section: SectionInput, plan: Plan, kind: str, model: LoadedModel) -> dict[str, object]:
    """Image and scale as arguments of `stampy.tl.embed`: none for genes, for which a manifest may state them too."""
    from stampy.tl._embedding.encoders import agreed_modality

    image = None if kind in _PLACED_ON_IMAGE else section.image
    said: dict[str, object] = {"image": image, **_scale(section, plan)}
    if agreed_modality(plan.options.get("modality"), model.model) == "gene":
        return dict.fromkeys(said)
    if plan.bin_um is not None and kind != "Space Ranger":  # the scale of the bins, which state it themselves
        said["um_per_px"] = None
    return said


def _opened(section: SectionInput, plan: Plan) -> tuple[Any, str, str]:
    """Section (if opening is cheap), its format, and a hash of everything that determines its result."""
    found = hashlib.sha256(repr((section.um_per_px, section.spot_um)).encode())
    kind, data = "", section.data
    if isinstance(data, Path):
        from stampy._io import read as _formats

        path = _checks.existing(section.data, what="section")
        found.update(_files.digest_of_path(path).encode())
        kind, data = _formats.format_of(path), None
        if kind not in _WHOLE:
            data = _read(section, plan, backed=False)
            found.update(_digest_in_memory(data, plan.table_key).encode())
        elif plan.bin_um is None:
            data = _read(section, plan, backed=True)
            found.update(digest_of_references(_utils.table_of(data, plan.table_key)).encode())
    else:
        if plan.bin_um is not None:
            from stampy import pp

            scale = _scale(section, plan)["um_per_px"]
            data = pp.bins(section.data, plan.bin_um, um_per_px=scale, table_key=plan.table_key)
        found.update(_digest_in_memory(data, plan.table_key).encode())
    if section.image is not None:
        found.update(_files.digest_of_path(_checks.existing(section.image, what="image")).encode())
    return data, kind, found.hexdigest()


def _digest_in_memory(data: AnnData | SpatialData, table_key: str) -> str:
    import pandas as pd

    table = _utils.table_of(data, table_key)
    obs = pd.util.hash_pandas_object(table.obs).to_numpy()
    return digest_of_section(data, table_key=table_key) + _files.digest_of_arrays(obs) + _files.digest(table.obs)


def _read(section: SectionInput, plan: Plan, *, backed: bool) -> AnnData | SpatialData:
    from stampy._io import read as _formats

    path = _checks.existing(section.data, what="section")
    placed = _formats.format_of(path) in _PLACED_ON_IMAGE
    extra: dict[str, Any] = {"image": section.image} if placed else {}
    if plan.bin_um is not None:
        extra["um_per_px"] = _scale(section, plan)["um_per_px"]
    return _formats.read(path, bin_um=plan.bin_um, backed=backed, **extra)


def _about(table: AnnData, plan: Plan) -> Row:
    """Properties of the table for the row."""
    record = table.uns[_keys.UNS][plan.key]
    row = {"n_spots": table.n_obs, "n_genes": table.n_vars, "modality": record["modality"], "model": record["model"]}
    genes = record.get("genes", {})
    if "n_matched" in genes:
        n_columns = genes["n_matched"] + genes.get("n_duplicated", 0)
        row |= {
            "n_matched": genes["n_matched"],
            "overlap": round(n_columns / max(genes["n_vars"] - genes.get("n_left_out", 0), 1), 4),
        }
    if "unmatched_share" in genes:
        row["counts_share"] = round(1 - genes["unmatched_share"], 4)
    return row


def _judgement(data: AnnData | SpatialData, model: LoadedModel, plan: Plan) -> Row:
    """Label-free verdict, or the reason why the section cannot be evaluated."""
    from stampy.tl._evaluation.judge import judge

    of = {n: plan.options[n] for n in ("library_key", "layer") if n in plan.options}
    try:
        with warnings.catch_warnings():  # shown when the section was embedded
            warnings.simplefilter("ignore", _checks.StampyWarning)
            found = judge(data, model.model, key=plan.key, table_key=plan.table_key, **of)
    except ValueError as error:
        return {"verdict": f"none: {error}"}
    scores = found["scores"]
    base = scores.loc[scores["kind"] == "baseline", "score"].max()
    ours = scores.loc[scores["kind"] == "embedding", "score"].max()
    return {"verdict": found["verdict"], "score": round(float(ours), 4), "baseline_score": round(float(base), 4)}


def _write(data: AnnData | SpatialData, place: Path | None, plan: Plan, name: str) -> None:
    """Write the section with its embedding, or only the results, atomically."""
    from stampy._io import write as _writing

    table, target = _utils.table_of(data, plan.table_key), plan.target(name)
    keys = _writing.written_keys(table, plan.key)
    if plan.contents == "results":
        _writing.write(_results_alone(table, keys), target)
        return
    if (
        place is None
        or plan.bin_um is not None
        or not _writing.append(table, keys, place, target, table_key=plan.table_key)
    ):
        if place is not None and plan.bin_um is None and not hasattr(data, "tables"):
            data = _with_results(place, table, keys)
        _writing.write(data, target, table_key=plan.table_key)


def _with_results(place: Path, table: AnnData, keys: list[str]) -> AnnData:
    """The whole section with its results; a table that was opened lazily lacks `raw`."""
    from stampy._io import read as _formats

    if not table.isbacked and place.suffix not in (".h5ad", ".zarr"):
        return table
    full = _formats.read(place)
    for key in keys:
        full.obsm[key] = table.obsm[key]
    full.uns[_keys.UNS] = table.uns[_keys.UNS]
    return full


def _results_alone(table: AnnData, keys: list[str]) -> AnnData:
    """Spots, coordinates, embeddings and provenance, without counts and images."""
    import anndata

    kept = [*keys, *([_keys.SPATIAL] if _keys.SPATIAL in table.obsm else [])]
    libraries = {
        name: {k: v for k, v in library.items() if k != "images"}
        for name, library in table.uns.get(_keys.UNS_SPATIAL, {}).items()
        if hasattr(library, "items")
    }
    uns = {_keys.UNS: table.uns[_keys.UNS], **({_keys.UNS_SPATIAL: libraries} if libraries else {})}
    return anndata.AnnData(obs=table.obs.copy(), obsm={key: table.obsm[key] for key in kept}, uns=uns)


# ---- slides ---------------------------------------------------------------------------------------------------------


def _embed_slide(section: SectionInput, plan: Plan, model: LoadedModel) -> Row:
    import anndata

    from stampy import tl
    from stampy.tl._embedding.encoders import image_model

    path = _checks.existing(section.data, what="image file")
    source = _files.digest_of_path(path) + repr(section.um_per_px)
    if path.with_suffix("").is_dir():  # pixels of a .mrxs are in the folder of the same name
        source += _files.digest_of_path(path.with_suffix(""))
    identity = _identity(plan, model, _files.digest([source]), tl.embed_slide)
    if (done := records.finished(plan, section.name, identity)) is not None:
        return done | {"status": "kept"}
    target = plan.target(section.name)
    if not records.begin(plan, section.name, identity):  # otherwise the interrupted store is continued
        for old in (target, target.with_name(target.name + ".partial")):
            shutil.rmtree(old, ignore_errors=True)
    options = dict(plan.options) | {"um_per_px": _scale(section, plan)["um_per_px"]}
    tower = model.model if isinstance(model.model, str) else image_model(model.model)
    tl.embed_slide(path, target, model=tower, name=section.name, show_progress_bar=False, **options)
    table = anndata.read_zarr(target)
    row = _about(table, plan) | {"n_genes": None, "output": target.name}
    return row | {"identity": identity, "status": "embedded"}


_device: str | None = None  # of this process, if several share the GPUs of a machine
_n_threads: int | None = None
_models: dict[str, LoadedModel] = {}  # only of the latest run, since workers of a cluster are reused


@dataclass(frozen=True)
class LoadedModel:
    """A model, or the name of a baseline, with the hash of its weights."""

    model: Encoder | str
    weights: str
    precision: str


def prepare_worker(n_threads: int | None, devices: Queue[str] | None) -> None:
    """Initialise a process: take a device from the queue, and set the number of threads."""
    global _device, _n_threads
    _n_threads = n_threads
    if devices is not None:
        _device = devices.get()


def worker_name() -> str:
    """Host name and process id."""
    return f"{socket.gethostname()}:{os.getpid()}"


def loaded(plan: Plan) -> LoadedModel:
    """The model of a run, loaded by the first job of a process."""
    if plan.run not in _models:
        _models.clear()
        _models[plan.run] = _load(plan)
    return _models[plan.run]


def _load(plan: Plan) -> LoadedModel:
    import torch

    from stampy.tl._embedding.encoders import is_baseline, loaded_model
    from stampy.tl._embedding.resume import digest_of_model

    if _n_threads is not None:
        torch.set_num_threads(_n_threads)
    if is_baseline(plan.model):
        return LoadedModel(str(plan.model), "", "float32")
    model = loaded_model(plan.model, plan.device or _device)
    asked = plan.options.get("precision")
    return LoadedModel(
        model, digest_of_model(model), asked or ("bfloat16" if model.device.type == "cuda" else "float32")
    )


@contextmanager
def named_images_of(plan: Plan) -> Iterator[None]:
    """Apply the rule for images named by a section as in the process that started the run, also on other machines."""
    before = os.environ.get(VARIABLE)
    if plan.named_images is not None:
        os.environ[VARIABLE] = plan.named_images
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before
