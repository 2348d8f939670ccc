"""The sections that a model was trained on, as recorded in the folder of the run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from stampy._files import atomic

__all__ = ["DATA", "TrainedOn", "trained_on", "write_trained_on"]

DATA = "data.json"  # in a run's folder


class TrainedOn(NamedTuple):
    """Names of sections, of the run and of those that its model started from."""

    sections: frozenset[str]
    complete: bool  # False: the model started from one of which no folder tells


def trained_on(model: object) -> TrainedOn | None:
    """The record of a run's folder, or of the folder ``model`` in it; None for anything else."""
    if not isinstance(model, str | Path):
        return None
    folder = Path(model).expanduser()
    for place in (folder, folder.parent):
        try:
            found = json.loads((place / DATA).read_text())
            before = found.get("before", [])  # stage 1 starts from nothing
            names = [*found["spots"], *(before or [])]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
        return TrainedOn(frozenset(map(str, names)), before is not None)
    return None


def write_trained_on(folder: Path, spots: dict[str, int], before: Iterable[str] | None) -> None:
    """Write data.json: spots of each section, and the sections of the model to start from (None: not known)."""
    known = {"spots": spots, "before": None if before is None else sorted(before)}
    with atomic(folder / DATA) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n")
