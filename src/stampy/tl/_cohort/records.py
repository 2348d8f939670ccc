"""Records of finished sections, by which a run continues and repeats only what has changed.

``FOLDER/.stampy/NAME.json`` contains the inputs of a result (its identity), the state of the output on disk, and the
section's row of the table. It is written as started before the output, and as finished after it, so an output without
such a file is not from a run, however the process ended.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from stampy import _checks, _files
from stampy._io.sections import file_name

from .plan import RECORDS, Plan, Row

__all__ = ["begin", "check_outputs", "finish", "finished"]

BEGUN, DONE = "begun", "done"


def _path(plan: Plan, name: str) -> Path:
    return plan.out / RECORDS / f"{file_name(name)}.json"


def _read(plan: Plan, name: str) -> dict[str, Any]:
    """The record; empty if it is missing or damaged."""
    try:
        found = json.loads(_path(plan, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(plan: Plan, name: str, record: dict[str, Any]) -> None:
    path = _path(plan, name)
    path.parent.mkdir(exist_ok=True)
    with _files.atomic(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")


def begin(plan: Plan, name: str, identity: Mapping[str, object]) -> bool:
    """Record that a section is started; returns whether its output was started before from identical inputs."""
    identity = json.loads(json.dumps(identity))
    same = _read(plan, name).get("identity") == identity
    _write(plan, name, {"state": BEGUN, "identity": identity})
    return same


def finish(plan: Plan, name: str, identity: Mapping[str, object], row: Row) -> None:
    """Record that a section's output is complete."""
    target = plan.target(name)
    output = {"stat": _stat(target), "digest": _files.digest_of_path(target)}
    _write(plan, name, {"state": DONE, "identity": identity, "output": output, "row": row})


def finished(plan: Plan, name: str, identity: Mapping[str, object]) -> Row | None:
    """Row of a section that was finished from identical inputs and whose output is unchanged; else None."""
    record = _read(plan, name)
    if record.get("state") != DONE or record.get("identity") != json.loads(json.dumps(identity)):
        return None
    return dict(record["row"]) if _is_unchanged(plan.target(name), record.get("output")) else None


def check_outputs(plan: Plan, names: Iterable[str], *, overwrite: bool) -> None:
    """Raise FileExistsError early for outputs that are not from such a run, or were changed since."""
    if overwrite:
        return
    strange = []
    for name in names:
        target, record = plan.target(name), _read(plan, name)
        if not (target.exists() or target.is_symlink()):
            continue
        if record.get("state") == BEGUN or (record and _is_unchanged(target, record.get("output"))):
            continue
        strange.append(f"{target.name} ({'changed since' if record else 'not of such a run'})")
    if strange:
        raise FileExistsError(
            f"{str(plan.out)!r} contains files that this run would replace but did not write: "
            f"{_checks.shortlist(strange)}. Choose another folder, move them, or replace them with `overwrite=True`."
        )


def _is_unchanged(target: Path, output: dict[str, Any] | None) -> bool:
    if not output or not target.exists():
        return False
    return output["stat"] == _stat(target) or output["digest"] == _files.digest_of_path(target)


def _stat(target: Path) -> list[int]:
    """Number of files, total size, and time of the last change."""
    files = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
    states = [p.stat() for p in files]
    return [len(files), sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]
