"""Run over many sections or slides: check names, start workers (`stampy._workers`), and keep the table up to date."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy import _checks, _files, _locks, _utils
from stampy._io.sections import SectionInput, file_name
from stampy._workers import Run, workers

from . import records
from .jobs import FAILED, prepare_worker
from .plan import COLUMNS, RECORDS, TABLE, WORDS, Plan, Row

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["run_cohort"]

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 30.0  # for the table; each section's row is stored when it is finished
PANELS_ALIKE = 1.1
CORES_PER_MODEL = 8  # for models that are not packaged, of which each process has a copy


def run_cohort(
    sections: Sequence[SectionInput],
    plan: Plan,
    job: Callable[[SectionInput, Plan], Row],
    *,
    scheduler: str | None,
    n_workers: int | None,
    n_devices: int | None,
    overwrite: bool,
    progress: bool,
) -> pd.DataFrame:
    """Run a job per section; returns the table, which is also written to ``FOLDER/sections.tsv`` in any case."""
    _check_names(sections, plan)
    fresh = not plan.out.exists()
    out = _checks.writable(plan.out)
    with _removed_on_failure(plan) if fresh else nullcontext(), _locks.FolderLock(out, what="run"):
        (out / RECORDS).mkdir(exist_ok=True)
        records.check_outputs(plan, [s.name for s in sections], overwrite=overwrite)
        rows: dict[str, Row] = {}
        jobs = [partial(job, section, plan) for section in sections]
        try:
            with _running(plan, len(sections), scheduler, n_workers, n_devices, progress) as run:
                written = time.monotonic()
                for row in run(jobs, "sections"):
                    rows[row["name"]] = row
                    if time.monotonic() - written > WRITE_EVERY_S:
                        _write_table(sections, rows, plan)
                        written = time.monotonic()
        except BaseException as error:
            rows = _rows_at_the_end(sections, rows, plan, error)
            raise
        finally:
            table = _write_table(sections, rows, plan)
    _report(rows, plan, len(sections))
    return table


def _rows_at_the_end(
    sections: Sequence[SectionInput], rows: dict[str, Row], plan: Plan, error: BaseException
) -> dict[str, Row]:
    """Rows of a run that ended early, with those of the failed section and of sections that were finished meanwhile.

    Temporary files of sections that were not finished are removed.
    """
    failed = vars(error).get(FAILED)
    found = dict(rows) if failed is None else rows | {failed["name"]: failed}
    for name in (section.name for section in sections):
        if name in found:
            continue
        if (done := records.finished_by(plan, name)) is not None:
            found[name] = done
        elif records.is_begun(plan, name):
            _files.recover(plan.target(name))
    return found


@contextmanager
def _removed_on_failure(plan: Plan) -> Iterator[None]:
    """If a run fails before its first result, remove the folder that it created."""
    try:
        yield
    except BaseException:
        own = {RECORDS, TABLE, _locks.FolderLock.NAME}
        if not {path.name for path in plan.out.iterdir()} - own:
            shutil.rmtree(plan.out, ignore_errors=True)
        raise


def _check_names(sections: Sequence[SectionInput], plan: Plan) -> None:
    """Raise if two sections would be written to the same file, also on case-insensitive file systems."""
    by_file: dict[str, list[str]] = {}
    for section in sections:
        by_file.setdefault(file_name(section.name).casefold(), []).append(section.name)
    alike = [" and ".join(map(repr, names)) for names in by_file.values() if len(names) > 1]
    if alike:
        raise ValueError(f"Sections must differ in more than upper and lower case: {_checks.shortlist(alike)}.")
    for section in sections:
        target = plan.target(section.name)
        _checks.nameable(target)
        less = plan.contents != "all" or plan.bin_um is not None
        if less and isinstance(section.data, Path) and target.resolve() == section.data.resolve():
            raise ValueError(
                f"Section {section.name!r}: the result, which does not contain all data of the section, would "
                f"replace the section itself, {str(section.data)!r}. Choose another folder."
            )


@contextmanager
def _running(
    plan: Plan, n: int, scheduler: str | None, n_workers: int | None, n_devices: int | None, progress: bool
) -> Iterator[Run]:
    """Runner with a number of processes suitable for model and machine."""
    n_workers = min(n_workers or _processes(plan, n_devices), n)
    devices: Any = None
    if n_devices is not None:
        _check_devices(n_devices)
        if n_workers < n_devices <= n:
            raise ValueError(f"{n_workers} workers cannot use {n_devices} devices. Give at least one worker to each.")
        devices = multiprocessing.get_context("spawn").SimpleQueue()
        for i in range(n_workers):
            devices.put(f"cuda:{i % n_devices}")
    if n_workers == 1 and scheduler is None:
        prepare_worker(None, devices)
        with workers(None, 1, progress) as run:
            yield run
        return
    n_threads = max(_utils.n_cores() // n_workers, 1)
    logger.info("%s", scheduler or f"{n_workers} processes of {n_threads} threads")
    how: dict[str, Any] = {"setup": prepare_worker, "setup_args": (n_threads, devices), "n_threads": n_threads}
    with workers(scheduler, n_workers, progress, **how) as run:
        yield run


def _processes(plan: Plan, n_devices: int | None) -> int:
    """One per GPU; on the CPU one per core, or fewer for larger models, of which each process has a copy."""
    from stampy.models._systems.catalogue import packaged

    if n_devices is not None:
        return n_devices
    if not isinstance(plan.model, str) or (plan.device or "").startswith(("cuda", "mps")):
        return 1
    small = plan.model in packaged() or plan.model in ("pca", "pca-smoothed", "pixels")
    if plan.device is None and not small and _has_gpu():
        return 1
    return _utils.n_cores() if small else max(_utils.n_cores() // CORES_PER_MODEL, 1)


def _has_gpu() -> bool:
    return _utils.device_of(None).type != "cpu"


def _check_devices(n_devices: int) -> None:
    import torch

    found = torch.cuda.device_count()
    if found < n_devices:
        raise ValueError(f"`n_devices`={n_devices}, but torch sees {found} CUDA devices. Omit it, or give fewer.")


def _write_table(sections: Sequence[SectionInput], rows: dict[str, Row], plan: Plan) -> pd.DataFrame:
    """Table of all sections in the order in which they were passed; unfinished sections are "pending"."""
    import pandas as pd

    found = []
    for section in sections:
        path = section.data if hasattr(section.data, "suffix") else ""
        row = rows.get(section.name) or {"name": section.name, "status": "pending", "path": str(path)}
        found.append(row | {"warnings": " | ".join(row.get("warnings") or ())})
    table = pd.DataFrame(found).reindex(columns=list(COLUMNS))
    for column in ("n_spots", "n_genes", "n_matched"):
        table[column] = table[column].astype("Int64")
    for column in ("verdict", "worker", "output", "modality", "model", *WORDS, "warnings", "error"):
        table[column] = table[column].astype(object).where(table[column].notna(), "")
    with _files.atomic(plan.out / TABLE) as temporary:
        table.to_csv(temporary, sep="\t", index=False, lineterminator="\n")
    return table


def _report(rows: dict[str, Row], plan: Plan, n: int) -> None:
    """Warn about sections after all are processed; ValueError if all failed."""
    failed = {name: row["error"] for name, row in rows.items() if row["status"] == "failed"}
    if failed and len(failed) == n:
        raise ValueError(f"No section could be used: {_checks.shortlist(f'{k}: {v}' for k, v in failed.items())}.")
    for name, error in failed.items():
        _checks.warn(f"Section {name!r} was skipped: {error}")
    for name, row in rows.items():
        for said in row.get("warnings") or () if row["status"] == "embedded" else ():
            _checks.warn(f"Section {name!r}: {said}")
    _compare_panels(rows)
    _warn_of_others(rows, plan)


def _warn_of_others(rows: dict[str, Row], plan: Plan) -> None:
    """Warn about results of earlier runs in the folder that are not in the table."""
    if found := records.in_other_formats(plan, rows):
        _checks.warn(
            f"{str(plan.out)!r} also contains results of earlier runs in another format, which were not updated: "
            f"{_checks.shortlist(found)}. Remove them if you do not need them."
        )
    others = _left_over(rows, plan)
    if others:
        _checks.warn(
            f"{str(plan.out)!r} also contains results of earlier runs for {len(others)} sections that are not among "
            f"those given: {_checks.shortlist(others)}. They are kept unchanged, and are not in {TABLE}."
        )


def _compare_panels(rows: dict[str, Row]) -> None:
    """Warn if sections measure different numbers of the model's genes, which makes their vectors differ."""
    found = {name: int(row["n_matched"]) for name, row in rows.items() if row.get("n_matched")}
    if not found:
        return
    fewest, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
    if found[most] > PANELS_ALIKE * found[fewest]:
        _checks.warn(
            f"The sections measure between {found[fewest]} ({fewest!r}) and {found[most]} ({most!r}) of the model's "
            "genes: vectors also differ because the panels do. See `n_matched` in the table. To compare them, "
            "embed those with alike panels, or a list of sections by `tl.embed(..., genes='shared')`."
        )


def _left_over(rows: dict[str, Row], plan: Plan) -> list[str]:
    known = {file_name(name) for name in rows}
    return sorted(p.stem for p in (plan.out / RECORDS).glob("*.json") if p.stem not in known)
