"""Sections in memory and their embeddings, cached in one file per section, system and parameters."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from functools import cache as remembered
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import stampy
from stampy import _checks, _files, _keys, datasets, models, tl
from stampy._section.identity import digest_of_section
from stampy._section.section import coordinates_of
from stampy.tl._embedding.context import smoothed

from ._config import DataSet, SectionConfig, System, is_path
from ._paper.load_sections import labels_of, read_section

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

__all__ = ["MISSING", "Cache", "Embedded", "LoadedSection", "identity", "kind_of", "load_section"]

# errors of data, weights or embedding; the table states them as the reason of an empty cell
MISSING = (ValueError, LookupError, TypeError, OSError, ImportError, ArithmeticError)
LABELS, SECTION, PATIENT = "bench_label", "bench_section", "bench_patient"


@dataclass(frozen=True, eq=False)
class LoadedSection:
    """Section prepared for evaluation."""

    name: str
    adata: AnnData
    digest: str  # of everything that determines embeddings
    labels: str  # digest of the labels, "" without labels

    @property
    def has_counts(self) -> bool:
        """Whether the section has genes."""
        return self.adata.n_vars > 0


def load_section(
    section: SectionConfig, data: DataSet, folder: Path, *, allow_unverified: bool = False
) -> LoadedSection:
    """Read a section and add the columns that the tasks use; raises one of `MISSING` if it is not available."""
    adata = _read(section, folder, allow_unverified)
    adata.obs[SECTION] = section.name
    adata.obs[PATIENT] = section.patient or section.name
    found = labels_of(section, data, adata, folder)
    if found is None:
        return LoadedSection(section.name, adata, digest_of_section(adata), "")
    adata.obs[LABELS] = found
    labels = hashlib.sha256("\n".join(adata.obs[LABELS].astype(str)).encode()).hexdigest()[:16]
    return LoadedSection(section.name, adata, digest_of_section(adata), labels)


def _read(section: SectionConfig, folder: Path, allow_unverified: bool) -> AnnData:
    if section.source.split(":")[0] == "toy":
        seed = section.source.partition(":")[2]
        return datasets.toy(rng=int(seed or 0))
    if is_path(section.source):
        return read_section(section, folder)
    return datasets.load(section.source, allow_unverified=allow_unverified)


logger = logging.getLogger(__name__)

KEY = "X_bench"
FORMAT = 1
TOWERS = {"": KEY, "gene": KEY + _keys.GENE_SUFFIX, "image": KEY + _keys.IMAGE_SUFFIX}


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a section by a system: ``""`` is evaluated, ``"gene"`` and ``"image"`` are its parts."""

    vectors: Mapping[str, np.ndarray]
    modality: str


def kind_of(system: System) -> str | None:
    """Modality of a system, as far as it is known before embedding."""
    named = models.split_name(system.model)
    if system.modality or named is None or named[0] in models.packaged():
        return system.modality
    return models.card(named[0]).modality


def identity(model: str) -> str:
    """Identity of the weights: hashes of local files, or the name on the hub."""
    named = models.split_name(model)
    path = Path(named[1] if named and named[1] else model).expanduser()
    if model in models.packaged():
        path = Path(str(files("stampy") / "models" / "weights" / model))
    if not path.exists():
        return model
    found = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.is_file() and p.suffix != ".md")
    return _hash_of(named[0] if named else "", tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in found))


@remembered
def _hash_of(name: str, states: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256(name.encode())
    for file, _, _ in states:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _named_files(options: Mapping[str, Any]) -> list[str]:
    """Hashes of files named in options, such as an image."""
    paths = [Path(v) for v in options.values() if isinstance(v, str | Path) and Path(v).is_file()]
    return [_files.digest_of_file(path) for path in paths]


class Cache:
    """Folder of embeddings. Files are written atomically; damaged files are computed again.

    Parameters
    ----------
    folder
        Folder of the embeddings, created if needed.
    device
        Device for `stampy.tl.embed`.
    progress
        Show a progress bar.
    """

    def __init__(self, folder: str | Path, device: str | None = None, *, progress: bool = False):
        self.folder = _checks.writable(folder)
        self.device, self.progress = device, progress
        self.made = 0

    def embedded(self, section: LoadedSection, system: System) -> Embedded:
        """The section's embeddings by the system, smoothed if requested; raises the errors of `stampy.tl.embed`."""
        found = self._found(section, system)
        if found is None:
            found = self._make(section, system)
        if not system.smooth:
            return found
        xy = coordinates_of(section.adata)
        return Embedded({k: smoothed(v, xy, system.smooth) for k, v in found.vectors.items()}, found.modality)

    def path(self, section: LoadedSection, system: System, modality: str | None) -> Path:
        """Path of an embedding."""
        column = section.adata.obs.get(system.embed.get("library_key"))
        columns = None if column is None else _files.digest(column.astype(str))
        what = {"format": FORMAT, "columns": columns, "files": _named_files(system.embed),
                "stampy": stampy.__version__, "section": section.digest, "modality": modality,
                "model": identity(system.model), "level": system.level, "embed": dict(system.embed)}  # fmt: skip
        key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]
        return self.folder / f"{key}.safetensors"

    def _found(self, section: LoadedSection, system: System) -> Embedded | None:
        found = self._read(self.path(section, system, system.modality))
        if found is None and system.modality in ("gene", "image"):
            both = self._read(self.path(section, system, "fused"))  # encoders give the same results alone
            if both is not None and system.modality in both.vectors:
                values = both.vectors[system.modality]
                found = Embedded({"": values, system.modality: values}, system.modality)
        return found

    def _read(self, path: Path) -> Embedded | None:
        from safetensors import SafetensorError, safe_open

        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                vectors = {name.removeprefix("vectors"): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Embedded(vectors, file.metadata()["modality"])
        except (SafetensorError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s) and is computed again.", path, error)
            return None

    def _make(self, section: LoadedSection, system: System) -> Embedded:
        from safetensors.numpy import save_file

        options: dict[str, Any] = {**system.embed, "modality": system.modality, "level": system.level}
        adata = section.adata
        tl.embed(adata, system.model, **options, device=self.device, show_progress_bar=self.progress, key_added=KEY)
        record = adata.uns[_keys.UNS].pop(KEY)
        vectors = {part: adata.obsm.pop(key) for part, key in TOWERS.items() if key in adata.obsm}
        self.made += 1
        tensors = {"vectors" + part: np.ascontiguousarray(v, dtype=np.float32) for part, v in vectors.items()}
        about = {"modality": str(record["modality"]), "model": system.model, "section": section.name}
        with _files.atomic(self.path(section, system, system.modality)) as path:
            save_file(tensors, path, metadata=about)
        return Embedded(vectors, str(record["modality"]))
