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

__all__ = ["begin", "check_outputs", "finish", "finished", "finished_by", "in_other_formats", "is_begun"]

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
    identity, before = json.loads(json.dumps(identity)), _read(plan, name)
    _write(plan, name, {"state": BEGUN, "identity": identity, "suffix": plan.suffix, "others": _others(plan, before)})
    return before.get("identity") == identity


def finish(plan: Plan, name: str, identity: Mapping[str, object], row: Row) -> None:
    """Record that a section's output is complete."""
    target = plan.target(name)
    output = {"stat": _stat(target), "digest": _files.digest_of_path(target)}
    record = {"state": DONE, "run": plan.run, "identity": identity, "suffix": plan.suffix, "output": output}
    _write(plan, name, record | {"others": _others(plan, _read(plan, name)), "row": row})


def finished(plan: Plan, name: str, identity: Mapping[str, object]) -> Row | None:
    """Row of a section that was finished from identical inputs and whose output is unchanged; else None."""
    record = _read(plan, name)
    if record.get("state") != DONE or record.get("identity") != json.loads(json.dumps(identity)):
        return None
    return dict(record["row"]) if _is_unchanged(plan.target(name), record.get("output")) else None


def finished_by(plan: Plan, name: str) -> Row | None:
    """Row of a section that this run finished; None if it did not."""
    record = _read(plan, name)
    ours = record.get("state") == DONE and record.get("run") == plan.run
    return dict(record["row"]) if ours else None


def is_begun(plan: Plan, name: str) -> bool:
    """Whether the section was started, by this or an earlier run, and not finished."""
    return _read(plan, name).get("state") == BEGUN


def in_other_formats(plan: Plan, names: Iterable[str]) -> list[str]:
    """Files of results that runs with another suffix wrote."""
    found = [plan.out / (file_name(name) + suffix) for name in names for suffix in _others(plan, _read(plan, name))]
    return [path.name for path in found if path.exists()]


def check_outputs(plan: Plan, names: Iterable[str], *, overwrite: bool) -> None:
    """Raise FileExistsError early for outputs that are not from such a run, or were changed since."""
    if overwrite:
        return
    strange = []
    for name in names:
        target, record = plan.target(name), _read(plan, name)
        if not (target.exists() or target.is_symlink()):
            continue
        begun = record.get("state") == BEGUN and _suffix(record) in (plan.suffix, None)
        if begun or (record and _is_unchanged(target, _output(plan, record))):
            continue
        strange.append(f"{target.name} ({'changed since' if record else 'not of such a run'})")
    if strange:
        raise FileExistsError(
            f"{str(plan.out)!r} contains files that this run would replace but did not write: "
            f"{_checks.shortlist(strange)}. Choose another folder, move them, or replace them with `overwrite=True`."
        )


def _suffix(record: Mapping[str, Any]) -> str | None:
    """Suffix of the output that a record is about; None if unknown, as before it was recorded for started sections."""
    if "suffix" in record:
        return str(record["suffix"])
    output = record.get("row", {}).get("output")
    return Path(output).suffix if output else None


def _output(plan: Plan, record: Mapping[str, Any]) -> dict[str, Any] | None:
    """State of the output with the suffix of the run."""
    if _suffix(record) == plan.suffix:
        return record.get("output")
    return record.get("others", {}).get(plan.suffix)


def _others(plan: Plan, record: Mapping[str, Any]) -> dict[str, Any]:
    """State of the outputs with other suffixes, by suffix."""
    others, suffix = dict(record.get("others", {})), _suffix(record)
    if suffix is not None and record.get("output"):
        others[suffix] = record["output"]
    return {key: output for key, output in others.items() if key != plan.suffix}


def _is_unchanged(target: Path, output: dict[str, Any] | None) -> bool:
    if not output or not target.exists():
        return False
    return output["stat"] == _stat(target) or output["digest"] == _files.digest_of_path(target)


def _stat(target: Path) -> list[int]:
    """Number of files, total size, and time of the last change."""
    files = [target] if target.is_file() else [p for p in target.rglob("*") if p.is_file()]
    states = [p.stat() for p in files]
    return [len(files), sum(s.st_size for s in states), max((s.st_mtime_ns for s in states), default=0)]
