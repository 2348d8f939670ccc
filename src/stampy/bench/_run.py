"""Run data sets x systems x tasks into a tidy table; completed parts are not repeated."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

import stampy
from stampy import _checks, _files, _keys, _utils, datasets, models
from stampy._io.sections import one_line

from ._config import Config, DataSet, Reported, System, Task, read_config
from ._config_names import TABLES, TASKS
from ._embeddings import MISSING, PATIENT, Cache, Embedded, LoadedSection, identity, kind_of, load_section
from ._paper.load_sections import on_folder, with_models
from ._paper.pieces import Found, find_pieces
from ._table import RESULTS, tidy, write_results
from ._tasks import OVERALL, RUNNERS, Case, depends_on_seed, manifest_of, quietly, slide_scores

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "run",
    "seen",
]

logger = logging.getLogger(__name__)

_HEST_ID = re.compile(r"(TENX|NCBI|SPA|MEND|MISC|INT|ZEN)\d+")  # prefixes of HEST's table


def run(
    config: Config | Mapping[str, object] | str | Path,
    out: str | Path,
    *,
    folder: str | Path | None = None,
    models: Sequence[str] = (),
    systems: Sequence[str] | None = None,
    cache: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    device: str | None = None,
    allow_unverified: bool = False,
    show_progress_bar: bool = True,
) -> pd.DataFrame:
    """Compare systems: embed every section once, and run every task on every embedding, over seeds.

    To continue an interrupted run, repeat the call: embeddings and finished tasks are kept, by a digest of the data,
    the weights and all parameters. Combinations that cannot be run (a missing data set, gated weights, a section
    without labels) are skipped, and the table states the reason.

    Parameters
    ----------
    config
        Path of a .json or .toml file, a name of `stampy.bench.configs`, a dict, or a `stampy.bench.Config`.
    out
        Folder of the results: ``results.csv``, and ``tasks/`` with the finished tasks.
    folder
        For the paper's tables (``"dlpfc"``, ``"hbc"``, ``"her2"``, ``"psc"``, ``"hhk"``, ``"tcga-luad"``): folder of
        your data, in any of the usual layouts; `stampy.bench.pieces` lists what was found. None: the sections of the
        config.
    models
        Your own models (folders of weights, names), added to the systems of the config.
    systems
        Only these systems of the config, by name. None: all.
    cache
        Folder of the embeddings, which several configs may share; None: ``out/embeddings``.
    seeds
        Seeds to use instead of those in the config.
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.
    allow_unverified
        Accept files whose hash stampy does not know, see `stampy.datasets.load`.
    show_progress_bar
        Show a progress bar.

    Returns
    -------
    One row per figure: `dataset`, `section` (``"all"``: of all sections together), `system`, `replicate`, `seen`
    ("yes", "no", "unknown": whether the system was trained on the data), `task`, `variant`, `metric`, `seed`, `value`,
    `chance`, `n_spots`, `status` ("ok", "skipped", "reported"), `reason` (why skipped), `source` ("stampy" and its
    version, or where a reported figure was published). Also written to ``results.csv``.

    Raises
    ------
    ValueError, TypeError
        A name in the config is unknown or a value has a wrong type; raised before anything runs.
    FileNotFoundError, PermissionError
        The config does not exist, or `out` cannot be written.

    Examples
    --------
    >>> import stampy, tempfile
    >>> config = {"datasets": [{"name": "toy", "sections": ["toy"], "labels": "domain"}],
    ...           "systems": ["pca"], "tasks": ["probe"], "seeds": [0]}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     results = stampy.bench.run(config, folder, show_progress_bar=False)
    >>> results.loc[0, ["dataset", "system", "metric", "status"]].tolist()
    ['toy', 'pca', 'balanced_accuracy', 'ok']
    """
    _utils.check_device(device)
    _checks.no_file_in(out)
    config, there = _chosen(config, folder, models, systems, out)
    seeds = tuple(config.seeds if seeds is None else seeds)
    for seed in seeds:
        _checks.at_least("seeds", seed, 0)
    out = _checks.writable(out)
    _checks.writable(out / "tasks")
    store = Cache(cache or out / "embeddings", device, progress=show_progress_bar)
    rows: list[dict[str, Any]] = []
    total = len(config.systems) * len(config.tasks)
    for data in config.datasets:
        with tqdm(total=total, desc=data.name, unit="task", disable=_utils.hidden(show_progress_bar)) as bar:
            runner = _DataSetRun(config, data, seeds, out / "tasks", store, device, allow_unverified)
            for found in runner.rows():
                rows += found
                bar.update()
    # in the order of the config
    place = {system.name: i for i, system in enumerate(config.systems)}
    sets = {data.name: i for i, data in enumerate(config.datasets)}
    rows.sort(key=lambda row: (sets[row["dataset"]], place[row["system"]], row["replicate"]))
    rows += [_reported_row(figure) for figure in config.reported]
    results = tidy(rows)
    write_results(results, out / RESULTS, replace(config, seeds=seeds), there)
    return results


def _chosen(
    config: Config | Mapping[str, Any] | str | Path, folder: str | Path | None, models: Sequence[str],
    systems: Sequence[str] | None, out: str | Path,
) -> tuple[Config, Found | None]:  # fmt: skip
    """The config for the user's folder and models, and the inputs found in the folder."""
    chosen, found = read_config(config), None
    if folder is not None:
        name = str(config) if isinstance(config, str | Path) else chosen.name
        if name not in TABLES:
            raise ValueError(
                f"`folder` is only for the paper's tables ({', '.join(TABLES)}), found the config {name!r}."
            )
        found = find_pieces(name, folder)
        chosen = on_folder(chosen, found, _checks.writable(out))
    for name in systems or ():
        _checks.one_of("systems", name, [system.name for system in chosen.systems])
    if systems is not None:
        chosen = replace(chosen, systems=tuple(s for s in chosen.systems if s.name in set(systems)))
        if found is not None:
            needed = tuple(p for p in found.pieces if p.what != "weights" or p.name in set(systems))
            found = replace(found, pieces=needed)
    chosen = with_models(chosen, models)
    if not chosen.systems:
        raise ValueError("There is no system to compare: name some of the config by `systems`, or pass `models`.")
    return chosen, found


def _reported_row(figure: Reported) -> dict[str, Any]:
    return {**asdict(figure), "section": OVERALL, "status": "reported", "seen": "unknown"}


@dataclass(frozen=True, eq=False)
class _DataSetRun:
    """All systems and tasks on one data set, whose sections are in memory together."""

    config: Config
    data: DataSet
    seeds: tuple[int, ...]
    folder: Path
    cache: Cache
    device: str | None
    allow_unverified: bool
    memory: dict[str, Embedded] = field(default_factory=dict)  # of the current system

    def rows(self) -> Iterator[list[dict[str, object]]]:
        """Yield the rows of each system and task."""
        if self.data.slides:
            yield from self._slides()
            return
        sections, absent = self._sections()
        # fused first: its encoders also provide the embeddings of single modalities
        for system in sorted(self.config.systems, key=lambda s: s.modality != "fused"):
            self.memory.clear()
            failed: dict[str, str] = {}
            for task in self.config.tasks:
                rows = [self._skipped(system, task, name, why) for name, why in absent.items()]
                for unit in self._units(task, list(sections.values())):
                    rows += self._unit(system, task, unit, failed)
                yield rows

    def _sections(self) -> tuple[dict[str, LoadedSection], dict[str, str]]:
        """Sections that could be loaded, and the reasons for the others."""
        found, absent = {}, {}
        for section in self.data.sections:
            try:
                found[section.name] = load_section(
                    section, self.data, self.config.folder, allow_unverified=self.allow_unverified
                )
            except MISSING as error:
                absent[section.name] = self._missing(error)
                logger.warning("%s, %s is skipped: %s", self.data.name, section.name, absent[section.name])
        return found, absent

    def _missing(self, error: BaseException) -> str:
        return f"{one_line(error)} {self.data.steps}".strip()

    def _slides(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of whole slides."""
        manifest, absent = None, ""
        try:
            manifest = manifest_of(self.data, self.config)
        except MISSING as error:
            absent = self._missing(error)
            logger.warning("%s is skipped: %s", self.data.name, absent)
        for system in self.config.systems:
            for task in self.config.tasks:
                reason = absent or ("" if task.name == "slide" else "this task is for spots, not for whole slides")
                if manifest is None or reason:
                    yield [self._skipped(system, task, OVERALL, reason)]
                else:
                    yield self._slide_rows(manifest, system, task)

    def _slide_rows(self, manifest: pd.DataFrame, system: System, task: Task) -> list[dict[str, Any]]:
        what = {"slides": manifest.to_csv(), "files": [_files.digest_of_path(p) for p in manifest["slide"]]}
        path = self._path(system, task, (), **what)
        try:
            if not path.is_file():
                found = slide_scores(manifest, self.data, system, task, self.seeds, self.cache)
                self._keep(path, [{"seed": seed, **asdict(score)} for seed, score in found])
            done = json.loads(path.read_text("utf-8"))
        except MISSING as error:
            return [self._skipped(system, task, OVERALL, one_line(error))]
        return [{**self._head(system, task), "status": "ok", **score} for score in done]

    def _units(self, task: Task, sections: list[LoadedSection]) -> list[list[LoadedSection]]:
        """Groups of sections that are evaluated together."""
        if TASKS[task.name].jointly and self.data.folds in ("section", "patient"):
            return [sections] if sections else []
        return [[section] for section in sections]

    def _unit(
        self, system: System, task: Task, unit: list[LoadedSection], failed: dict[str, str]
    ) -> list[dict[str, Any]]:
        """Rows of one task on sections that are evaluated together, from disk or computed and stored."""
        reasons = {s.name: self._obstacle(system, task, s) or failed.get(s.name) for s in unit}
        unit = [section for section in unit if reasons[section.name] is None]
        done = self._done(system, task, unit)
        embedded = [] if done is not None else self._embedded(system, unit, failed)
        reasons |= {s.name: failed[s.name] for s in unit if s.name in failed}
        rows = [self._skipped(system, task, name, why) for name, why in reasons.items() if why is not None]
        unit = [section for section in unit if section.name not in failed]
        if not unit:
            return rows
        if done is None:
            case = Case(self.data, system, task, unit, embedded, self.device)
            try:
                done = self._scores(case)
            except MISSING as error:  # not stored, since the reason may be temporary
                name = unit[0].name if len(unit) == 1 else OVERALL
                return [*rows, self._skipped(system, task, name, one_line(error))]
        return rows + [{**self._head(system, task), "status": "ok", **score} for score in done]

    def _done(self, system: System, task: Task, unit: list[LoadedSection]) -> list[dict[str, Any]] | None:
        """Scores of an earlier run."""
        path = self._path(system, task, unit)
        return json.loads(path.read_text("utf-8")) if unit and path.is_file() else None

    def _embedded(self, system: System, unit: list[LoadedSection], failed: dict[str, str]) -> list[Embedded]:
        """Embeddings of the sections that can be embedded; errors of the others are added to `failed`."""
        found = []
        for section in unit:
            try:
                if section.name not in self.memory:
                    self.memory[section.name] = self.cache.embedded(section, system)
                found.append(self.memory[section.name])
            except MISSING as error:
                failed[section.name] = one_line(error)
                logger.warning("%s, %s by %s: %s", self.data.name, section.name, system.name, one_line(error))
        return found

    def _scores(self, case: Case) -> list[dict[str, Any]]:
        """Scores for every seed, computed and stored."""
        seeds = self.seeds if depends_on_seed(case.task.name, self.data) else self.seeds[:1]
        scores = [
            {"seed": seed, **asdict(score)} for seed in seeds for score in quietly(RUNNERS[case.task.name], case, seed)
        ]
        self._keep(self._path(case.system, case.task, case.sections), scores)
        return scores

    def _keep(self, path: Path, scores: list[dict[str, Any]]) -> None:
        with _files.atomic(path) as beside:
            beside.write_text(json.dumps(scores), "utf-8")

    def _obstacle(self, system: System, task: Task, section: LoadedSection) -> str | None:
        """Why a task does not apply, as far as this is known before embedding."""
        kind, needs = kind_of(system), TASKS[task.name].needs
        for modality in ("image", "gene"):
            if modality in self.data.without and kind in (modality, "fused"):
                return self.data.without[modality]
        if kind == "slide":
            return "it embeds whole slides"
        if "labels" in needs and not section.labels:
            return f"the section has no labels {self.data.labels!r}" if self.data.labels else "there are no labels"
        if not section.has_counts and (kind in ("gene", "fused") or "counts" in needs):
            return "the section has an image, but no counts"
        if kind in ("image", "fused") and not section.adata.uns.get(_keys.UNS_SPATIAL) and "image" not in system.embed:
            return "it sees images, and the section has none"
        if task.name not in RUNNERS:
            return "this task is for whole slides"
        return None

    def _path(self, system: System, task: Task, unit: Sequence[LoadedSection], **more: Any) -> Path:
        """Path of the scores, with a hash of everything that determines them."""
        what = {
            "stampy": stampy.__version__, "data": [(s.name, s.digest, s.labels) for s in unit],
            "patients": [str(s.adata.obs[PATIENT].iloc[0]) for s in unit], "folds": self.data.folds,
            "n_folds": self.data.n_folds, "model": identity(system.model), "system": asdict(system),
            "task": asdict(task), "seeds": self.seeds, "dataset": self.data.name, **more,
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:32]
        return self.folder / f"{key}.json"

    def _head(self, system: System, task: Task) -> dict[str, Any]:
        return {
            "dataset": self.data.name,
            "system": system.name,
            "replicate": system.replicate,
            "seen": seen(system, self.data),
            "task": task.name,
            "source": f"stampy {stampy.__version__}",
        }

    def _skipped(self, system: System, task: Task, section: str, reason: str) -> dict[str, Any]:
        return {**self._head(system, task), "section": section, "status": "skipped", "reason": reason}


ANSWERS = {True: "yes", False: "no", None: "unknown"}


def seen(system: System, data: DataSet) -> str:
    """``"yes"``, ``"no"`` or ``"unknown"``.

    The config takes precedence. For packaged models, the registry states which sections were held out of training; for
    the folder of a run, its data.json does, for sections with HEST ids; for all others the card, as far as known.

    >>> seen(System(name="PCA", model="pca"), DataSet(name="mine"))
    'no'
    """
    for name in (data.name, data.known_as):
        if name is not None and name in system.seen:
            return ANSWERS[bool(system.seen[name])]
    if system.model in models.packaged():
        return ANSWERS[_in_training(data)]
    named = models.split_name(system.model)
    if named is None:
        return ANSWERS[_seen_in_run(system, data)]
    card = models.card(named[0])
    if card.trained_on.startswith("nothing"):  # fitted to the section, or not at all
        return "no"
    return ANSWERS[card.has_seen(data.known_as) if data.known_as else None]


def _seen_in_run(system: System, data: DataSet) -> bool | None:
    """Compare the sections named by a run with those that HEST shares with the data set."""
    from stampy.models._weights import trained_on

    found, known = trained_on(system.model), datasets.hest_evaluation()
    shared = known[known["data_set"] == data.known_as]
    if found is None or shared.empty:
        return None
    if found.sections & set(shared["id"]):
        return True
    of_hest = all(_HEST_ID.fullmatch(name) for name in found.sections)
    return False if found.complete and of_hest and (shared["known"] == "certain").all() else None


def _in_training(data: DataSet) -> bool | None:
    """Whether the packaged models were trained on any of the sections; None if one is not in the registry."""
    sources = [section.entry or section.source for section in data.sections]
    if sources and all(source.split(":")[0] == "toy" for source in sources):
        return False
    uses = [datasets.info(source).use if source in datasets.names() else None for source in sources]
    if "train" in uses:
        return True
    return None if None in uses or not uses else False
