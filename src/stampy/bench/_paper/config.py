"""A table of the paper as a config on the files of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from stampy import _checks, _files
from stampy.bench._config import Config, DataSet, Section, System

from .pieces import Found
from .places import Place

__all__ = ["on_folder", "with_models"]


def on_folder(config: Config, found: Found, out: Path) -> Config:
    """The config with the sections, slides and weights that were found; what was not found is left out.

    Raises
    ------
    FileNotFoundError
        There is no section, or no slide, at all.
    """
    (data,) = config.datasets
    data = _slides(data, found, out) if data.slides else _sections(data, found)
    systems = tuple(_with_weights(system, found) for system in config.systems)
    return replace(config, datasets=(data,), systems=systems)


def _sections(data: DataSet, found: Found) -> DataSet:
    known = {section.name: section for section in data.sections}
    there = [place for place in found.places if place.path is not None]
    if not there:
        first = next(piece for piece in found.pieces if piece.what == "counts")
        raise FileNotFoundError(f"No section of {data.name} was found. {first.steps}")
    sections = tuple(_section(place, known.get(place.name)) for place in there)
    return _with_folds(replace(data, sections=sections))


def _section(place: Place, known: Section | None) -> Section:
    def text(path: Path | None) -> str | None:
        return None if path is None else str(path)

    return Section(
        name=place.name, source=str(place.path), patient=known.patient if known else None,
        part="=".join(place.part) if place.part else None, image=text(place.image), positions=text(place.positions),
        labels=text(place.labels), column=place.column or None, entry=known.source if known else None,
    )  # fmt: skip


def _with_folds(data: DataSet) -> DataSet:
    """Sections or patients are held out in turn; where there is one alone, blocks of it."""
    if data.folds not in ("section", "patient"):
        return data
    groups = {s.patient if data.folds == "patient" else s.name for s in data.sections}
    if len(groups) > 1:
        return replace(data, n_folds=len(groups))
    _checks.warn(
        f"{data.name} has one {data.folds} here, so none can be held out: folds are five spatial blocks of it. Figures "
        "are not those of the table's protocol."
    )
    return replace(data, folds="blocks", n_folds=5)


def _slides(data: DataSet, found: Found, out: Path) -> DataSet:
    """The slides that are there, as a table of their own in `out`."""
    if not found.slides:
        first = next(piece for piece in found.pieces if piece.what == "slides")
        raise FileNotFoundError(f"No slide of {data.name} can be used: {first.steps}")
    columns = list(found.slides[0])
    named = [found.label if c == "label" else c for c in columns]
    lines = ["\t".join(named), *("\t".join(row[c] or "" for c in columns) for row in found.slides)]
    path = out / "slides.tsv"
    with _files.atomic(path) as beside:
        beside.write_text("\n".join(lines) + "\n", "utf-8")
    md5 = {"md5": "md5"} if "md5" in columns else {}
    return replace(data, slides={"path": str(path), "label": found.label, **md5}, n_folds=_n_folds(data, found))


def _n_folds(data: DataSet, found: Found) -> int:
    """As many folds as the rarest label has patients, if these are fewer than the config's."""
    patients: dict[str, set[str]] = {}
    for row in found.slides:
        patients.setdefault(row["label"], set()).add(row["patient"])
    rarest = min(patients, key=lambda label: len(patients[label]))
    fewest = len(patients[rarest])
    if fewest >= data.n_folds or fewest < 2:  # of one patient `tl.slide` says what to do
        return data.n_folds
    _checks.warn(
        f"{data.name}: label {rarest!r} has {fewest} patients, so there are {fewest} folds, not {data.n_folds}."
    )
    return fewest


def _with_weights(system: System, found: Found) -> System:
    path = found.weights.get(system.name)
    return replace(system, model=f"{system.model}:{path}") if path else system


def with_models(config: Config, names: Sequence[str]) -> Config:
    """The config with models of the user's own as further systems: each as genes, image and fused."""
    systems = [*config.systems, *(system for name in names for system in _systems(name))]
    keys = [(system.name, system.replicate) for system in systems]
    twice = sorted({name for name, replicate in keys if keys.count((name, replicate)) > 1})
    if twice:
        raise ValueError(f"Systems must have unique names, found twice: {_checks.shortlist(twice)}.")
    return replace(config, systems=tuple(systems))


def _systems(name: str) -> list[System]:
    path = Path(name)
    if "/" in name and not name.startswith("hf-hub:"):
        _checks.existing(name, what="folder of a model")
    title = path.parent.name if path.name == "model" and path.parent.name else path.name
    kinds: dict[str, Literal["gene", "image", "fused"]] = {"genes": "gene", "image": "image", "fused": "fused"}
    return [System(name=f"{title}, {word}", model=name, modality=kind) for word, kind in kinds.items()]
