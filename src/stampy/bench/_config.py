"""Configs of comparisons: a JSON or TOML file as frozen records, checked completely before any work."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from stampy import _checks, datasets, models, tl
from stampy._field_names import known_field
from stampy.models._systems.cards import BENCHMARKS

from ._config_names import FIELDS, TASKS, config_path, configs, raw_config

__all__ = ["Config", "DataSet", "Reported", "SectionConfig", "System", "Task", "read_config"]

MODALITIES = ("gene", "image", "fused")
SCHEMES = ("blocks", "random", "section", "patient")
NOT_FOR_SYSTEMS = {"adata", "model", "modality", "level", "device", "show_progress_bar", "key_added", "copy",
                   "library_key", "table_key"}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SectionConfig:
    """One section.

    Parameters
    ----------
    source
        A name of `stampy.datasets.names`, ``"toy"`` or ``"toy:SEED"``, or a path of anything that `stampy.read` reads,
        relative to the folder of the config: an .h5ad, a zarr store, or a path with a ``/`` in it.
    name
        Name in the tables; by default the source.
    patient
        Patient of the section, for ``folds="patient"``.
    part
        ``"COLUMN=VALUE"``: rows to use of a store with several sections.
    image
        Full-resolution image.
    positions
        Folder with the table of spots, if it is not next to the matrix of counts.
    labels
        Table of labels by barcode (.tsv, .csv, .txt), instead of a column of obs.
    column
        Column of that table or of obs, instead of the data set's ``labels``.
    entry
        Corresponding name of `stampy.datasets.names`, used to find out whether a system was trained on the section.
    """

    source: str
    name: str
    patient: str | None = None
    part: str | None = None
    image: str | None = None
    positions: str | None = None
    labels: str | None = None
    column: str | None = None
    entry: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Sections of one table.

    Parameters
    ----------
    name
        Name in the tables.
    sections
        Sections of the data set.
    labels
        Column of obs; None: tasks that need labels are skipped.
    folds
        ``"blocks"`` and ``"random"``: within each section. ``"section"``, ``"patient"``: hold out entire sections or
        patients.
    n_folds
        Number of folds.
    known_as
        Name of the data set on the cards of systems, which state whether they were trained on it.
    without
        Modality -> reason why it is not evaluated, for example an image that is too small for tiles.
    steps
        Instructions to get the data, printed if they are missing.
    slides
        Whole slides instead of sections: the arguments of `stampy.datasets.slide_manifest`, with ``path`` relative to
        the folder of the config. Patients are held out.
    """

    name: str
    sections: tuple[SectionConfig, ...] = ()
    labels: str | None = None
    folds: Literal["blocks", "random", "section", "patient"] = "blocks"
    n_folds: int = 5
    known_as: str | None = None
    without: Mapping[str, str] = field(default_factory=dict)
    steps: str = ""
    slides: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class System:
    """A system: a model with its settings.

    Parameters
    ----------
    name
        Name in the tables.
    model, modality, level
        As `stampy.tl.embed` takes them.
    smooth
        Number of nearest spots of the section to average over; 0: no smoothing.
    replicate
        Number of the model among several models with one name, such as trainings with other seeds.
    embed
        Further arguments of `stampy.tl.embed`.
    seen
        Name of a data set -> whether the system was trained on it, if no card states this.
    """

    name: str
    model: str
    modality: Literal["gene", "image", "fused"] | None = None
    level: Literal["embedding", "feature"] = "embedding"
    smooth: int = 0
    replicate: int = 0
    embed: Mapping[str, Any] = field(default_factory=dict)
    seen: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task, with its options.

    Parameters
    ----------
    name
        ``"probe"`` (``method``), ``"domains"`` (``methods``), ``"retrieve"`` (``directions``), ``"expression"``
        (``methods``, ``n_top_genes``, ``transform``), ``"masked"`` (``fraction``, ``n_spots``) or ``"slide"``.
    options
        Options of the task; others have their defaults.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A published figure, listed separately from computed figures.

    Parameters
    ----------
    dataset, system, task, metric, variant
        Position of the figure in the tables; the system need not be in the config.
    value
        The figure.
    source
        Publication.
    """

    dataset: str
    system: str
    task: str
    metric: str
    value: float
    source: str
    variant: str = ""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A comparison, as returned by `read_config`.

    Parameters
    ----------
    name
        Name of the comparison.
    datasets, systems, tasks
        Each system is run on each data set for each task.
    seeds
        Seeds for folds, clusterings and masks; the spread is over seeds (and replicates).
    reported
        Published figures.
    folder
        Where relative paths start.
    """

    name: str
    datasets: tuple[DataSet, ...]
    systems: tuple[System, ...]
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    reported: tuple[Reported, ...] = ()
    folder: Path = Path()


def read_config(source: str | Path | Mapping[str, object] | Config) -> Config:
    """Read and check a config: names of data sets, systems, tasks and options must be known before anything runs.

    Parameters
    ----------
    source
        Path of a .json or .toml file, a name of `configs`, a dict of the same content, or a `Config`.

    Returns
    -------
    The frozen `Config`.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        A name is unknown (similar names are given), missing or occurs twice.
    TypeError
        A value has a wrong type.

    Examples
    --------
    >>> import stampy
    >>> config = stampy.bench.read_config("dlpfc")
    >>> len(config.datasets[0].sections), config.datasets[0].folds
    (12, 'section')
    """
    if isinstance(source, Config):
        return source
    if isinstance(source, Mapping):
        return _config(source, Path.cwd())
    path = config_path(source)
    return _config(
        {"name": path.stem, **raw_config(path)}, Path.cwd() if str(source) in configs() else path.parent.resolve()
    )


def _config(raw: Mapping[str, Any], folder: Path) -> Config:
    _known_fields("the config", raw, set(FIELDS))
    lists = {key: _listed(raw, key) for key in ("datasets", "systems", "tasks")}
    seeds = tuple(raw.get("seeds", (0, 1, 2)))
    if not seeds:
        raise ValueError("`seeds` is empty; give at least one.")
    for seed in seeds:
        _checks.at_least("seeds", seed, 0)
    systems = [system for entry in lists["systems"] for system in _systems(entry, folder)]
    _check_unique("systems", [f"{s.name} (replicate {s.replicate})" for s in systems])
    sets = [_dataset(entry) for entry in lists["datasets"]]
    _check_unique("datasets", [s.name for s in sets])
    tasks = [_task(entry) for entry in lists["tasks"]]
    _check_unique("tasks", [t.name for t in tasks])
    return Config(
        name=str(raw.get("name", "unnamed")), datasets=tuple(sets), systems=tuple(systems), tasks=tuple(tasks),
        seeds=seeds, reported=tuple(_reported(entry, sets) for entry in raw.get("reported", ())), folder=folder,
    )  # fmt: skip


def _listed(raw: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = raw.get(key)
    if not isinstance(found, list | tuple) or not found:
        raise ValueError(f"The config must name `{key}` as a list, found {found!r}.")
    return found


def _known_fields(where: str, raw: Mapping[str, Any], known: set[str]) -> None:
    if not isinstance(raw, Mapping):
        raise TypeError(f"{where} must be an object, found {raw!r}.")
    for key in raw:
        known_field(key, known, where=where)


def _check_unique(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"`{what}` must have unique names, found twice: {_checks.shortlist(twice)}.")


def _fields(kind: type) -> set[str]:
    return set(inspect.signature(kind).parameters)


def _dataset(raw: Any) -> DataSet:
    raw = {"name": raw, "sections": [raw]} if isinstance(raw, str) else raw
    _known_fields("a data set", raw, _fields(DataSet) | {"source"})
    name = raw.get("name")
    if not name or bool(raw.get("sections")) == bool(raw.get("slides")):
        raise ValueError(f"A data set needs a `name`, and `sections` or `slides`, found {dict(raw)!r}.")
    _checks.one_of("folds", raw.get("folds", "blocks"), SCHEMES)
    _checks.at_least("n_folds", raw.get("n_folds", 5), 2)
    for modality in raw.get("without", {}):
        _checks.one_of("without", modality, MODALITIES)
    slide_options = {"path", "slide", "patient", "label", "md5", "folder"}
    for key in raw.get("slides", {}):
        _checks.one_of("slides", key, slide_options)
    if raw.get("slides") and "path" not in raw["slides"]:
        raise ValueError(f"`slides` of {name!r} needs the `path` of a table of slides.")
    if raw.get("known_as") is not None:
        _checks.one_of("known_as", raw["known_as"], BENCHMARKS)
    sections = tuple(_section(s) for s in raw.get("sections", ()))
    _check_unique(f"sections of {name}", [s.name for s in sections])
    if raw.get("folds") == "patient" and any(s.patient is None for s in sections):
        raise ValueError(f"folds='patient' needs the `patient` of every section of {name!r}.")
    return DataSet(**{**{k: v for k, v in raw.items() if k != "source"}, "sections": sections})


def _section(raw: Any) -> SectionConfig:
    raw = {"source": raw} if isinstance(raw, str) else raw
    _known_fields("a section", raw, _fields(SectionConfig))
    source = str(raw.get("source", ""))
    if not is_path(source) and source.split(":")[0] != "toy":
        known = [n for n in datasets.names() if datasets.info(n).kind != "vocabulary"]
        _checks.one_of("section", source, [*known, "toy", "PATH.h5ad"])
    if raw.get("part") is not None and "=" not in str(raw["part"]):
        raise ValueError(f"`part` of a section must be COLUMN=VALUE, found {raw['part']!r}.")
    return SectionConfig(**{"name": Path(source).stem if is_path(source) else source, **raw})


def is_path(source: str) -> bool:
    """Whether a section is named by its path.

    >>> is_path("a.h5ad"), is_path("./visium"), is_path("HER2ST_A1"), is_path("toy:1")
    (True, True, False, False)
    """
    return source.endswith((".h5ad", ".zarr", ".h5", ".zarr.zip")) or "/" in source


def _systems(raw: Any, folder: Path) -> list[System]:
    """A system, or several replicates if `model` is a list."""
    raw = {"model": raw} if isinstance(raw, str) else raw
    _known_fields("a system", raw, _fields(System) - {"replicate"})
    found = raw.get("model")
    several = [found] if isinstance(found, str) else list(found or [])
    if not several:
        raise ValueError(f"A system needs a `model`, found {dict(raw)!r}.")
    if raw.get("modality") is not None:
        _checks.one_of("modality", raw["modality"], MODALITIES)
    _checks.one_of("level", raw.get("level", "embedding"), ("embedding", "feature"))
    _checks.at_least("smooth", raw.get("smooth", 0), 0)
    allowed = set(inspect.signature(tl.embed).parameters) - NOT_FOR_SYSTEMS
    for key in raw.get("embed", {}):
        _checks.one_of("embed", key, allowed)
    name = raw.get("name", several[0])
    return [
        System(**{**raw, "name": name, "model": _model(model, folder), "replicate": i})
        for i, model in enumerate(several)
    ]


def _model(name: str, folder: Path) -> str:
    """Return the name, or for an existing relative path the path below the config's folder."""
    if name in (*models.packaged(), "stamp") or name.startswith("hf-hub:"):
        return name
    named = models.split_name(name)
    if named is not None:
        card = models.card(named[0])
        if card.modality == "predictor":
            raise ValueError(f"{card.title} predicts expression and gives no embedding to compare; see the docs.")
        return name
    if "/" in name or Path(name).exists() or (folder / name).exists():
        return str(folder / name)
    _checks.one_of("model", name, [*models.packaged(), "stamp", *models.systems().index, "hf-hub:ORG/NAME", "./PATH"])
    return name


def _task(raw: Any) -> Task:
    raw = {"task": raw} if isinstance(raw, str) else dict(raw)
    name = raw.pop("task", None)
    _checks.one_of("task", name, TASKS)
    defaults = TASKS[name].options
    for key, value in raw.items():
        _checks.one_of(f"option of the task {name}", key, defaults)
        if not isinstance(value, type(defaults[key])) and defaults[key] is not None:
            raise TypeError(f"`{key}` of the task {name!r} must be like {defaults[key]!r}, found {value!r}.")
        for one in value if isinstance(value, list) else [value]:
            if key in TASKS[name].choices:
                _checks.one_of(key, one, TASKS[name].choices[key])
    return Task(name=name, options={**defaults, **raw})


def _reported(raw: Mapping[str, Any], sets: Sequence[DataSet]) -> Reported:
    _known_fields("a reported figure", raw, _fields(Reported))
    missing = _fields(Reported) - {"variant"} - set(raw)
    if missing:
        raise ValueError(f"A reported figure needs {sorted(missing)}, found {dict(raw)!r}.")
    _checks.one_of("dataset of a reported figure", raw["dataset"], [s.name for s in sets])
    _checks.one_of("task of a reported figure", raw["task"], TASKS)
    _checks.one_of("metric of a reported figure", raw["metric"], TASKS[raw["task"]].metrics)
    return Reported(**raw)
