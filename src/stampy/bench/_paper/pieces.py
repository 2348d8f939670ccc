"""What a table of the paper needs, what of it is in a folder, and how to get the rest; answered without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stampy import _checks
from stampy.bench._names import TABLES, config_path

from .files import Files, files_in
from .places import KINDS, Place, places
from .slides import slide_table
from .steps import COUNTS, IMAGES, LABELS, R_STEPS
from .weights import weights_of

__all__ = ["Found", "Piece", "grouped", "look", "pieces"]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One input of a table.

    Parameters
    ----------
    what
        ``"counts"``, ``"labels"``, ``"image"``, ``"slides"`` or ``"weights"``.
    name
        Name of the section or of the system.
    found
        Its path; empty if missing.
    steps
        Instructions to get it; empty if available.
    without
        What is skipped without it.
    """

    what: str
    name: str
    found: str = ""
    steps: str = ""
    without: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies in a folder: the pieces, and where sections, slides and weights are."""

    pieces: tuple[Piece, ...]
    places: tuple[Place, ...] = ()
    slides: tuple[Mapping[str, str], ...] = ()
    label: str = "label"  # column of the user's table that the slides' labels are from
    weights: Mapping[str, str] = ()  # type: ignore[assignment]


def pieces(table: str, folder: str | Path) -> list[Piece]:
    """List the inputs of a table of the paper, and whether they are in a folder, without computing or downloading.

    Parameters
    ----------
    table
        ``"dlpfc"``, ``"hbc"``, ``"her2"``, ``"psc"``, ``"hhk"`` or ``"tcga-luad"``.
    folder
        Folder of the data, which may be in subfolders. Weights are searched in its ``weights/``, by the names of the
        systems (``weights/uni.bin``, ``weights/stamp-f/``).

    Returns
    -------
    A `Piece` for the counts, labels and image of each section, for the slides, and for the weights of each system.
    `Piece.steps` states how to get missing inputs.

    Raises
    ------
    ValueError
        `table` is not a table of the paper; the nearest name is given.
    FileNotFoundError
        There is no such folder.

    Examples
    --------
    >>> import stampy, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = stampy.bench.pieces("hbc", folder)
    >>> [(piece.what, piece.name, piece.found) for piece in found[:2]]
    [('counts', 'block A, section 1', ''), ('labels', 'block A, section 1', '')]
    """
    return list(look(table, folder).pieces)


def grouped(missing: Sequence[Piece]) -> dict[tuple[str, str, str], list[str]]:
    """Names of pieces grouped by how to obtain them; in the steps, NAME stands for the name of the section.

    >>> from stampy.bench import Piece
    >>> missing = [Piece(what="image", name=n, steps=f"get {n}.tif", without="tiles") for n in ("a1", "a2")]
    >>> list(grouped(missing).items())
    [(('image', 'get NAME.tif.', 'tiles'), ['a1', 'a2'])]
    """
    out: dict[tuple[str, str, str], list[str]] = {}
    for piece in missing:
        steps = piece.steps.replace(piece.name, "NAME") if piece.what != "weights" else piece.steps
        without = "such system" if piece.what == "weights" else piece.without
        out.setdefault((piece.what, steps.rstrip(".") + ".", without), []).append(piece.name)
    return out


def look(table: str, folder: str | Path) -> Found:
    """Like `pieces`, with the places of the files."""
    _checks.one_of("table", table, TABLES)
    raw = json.loads(config_path(table).read_text("utf-8"))
    data = raw["datasets"][0]
    files = files_in(folder)
    weights = dict(weights_of(raw["systems"], files.folder))
    needed = [Piece(what="weights", name=n, **_texts(w)) for n, w in weights.items()]
    found = {name: w["found"] for name, w in weights.items() if w.get("named")}
    if "slides" in data:
        slides, label, first = _slides(table, data, files)
        return Found(pieces=(*first, *needed), slides=slides, label=label, weights=found)
    names = [section["name"] if isinstance(section, dict) else section for section in data["sections"]]
    where = places(KINDS[table], names, files)
    of_sections = [piece for place in where for piece in _of_section(table, place, files)]
    if not where:
        of_sections = [Piece(what="counts", name="sections", steps=COUNTS[table], without="everything")]
    return Found(pieces=(*of_sections, *needed), places=tuple(where), weights=found)


def _texts(found: Mapping[str, str]) -> dict[str, str]:
    return {k: found[k] for k in ("found", "steps", "without") if k in found}


def _of_section(table: str, place: Place, files: Files) -> Iterator[Piece]:
    """Counts, labels and image of a section."""
    if place.path is None:
        steps = COUNTS[table].format(name=place.name)
        if files.r:
            steps = f"{files.r[0].name} is a file of R, which stampy does not read; {R_STEPS}."
        yield Piece(what="counts", name=place.name, steps=_after(place.trouble, steps), without="the section")
    else:
        yield Piece(what="counts", name=place.name, found=_where(place, files))
    if table in LABELS:
        steps = LABELS[table].format(name=place.name)
        source = files.inside(place.labels).as_posix() if place.labels else "obs"
        if place.column:
            yield Piece(what="labels", name=place.name, found=f"{source}[{place.column!r}]")
        else:
            trouble = place.trouble if place.path is not None else ""
            yield Piece(what="labels", name=place.name, steps=_after(trouble, steps), without="probe, domains")
    image = files.inside(place.image).as_posix() if place.image else _own_image(place)
    missing = {} if image else {"steps": IMAGES[table].format(name=place.name), "without": "systems that see images"}
    yield Piece(what="image", name=place.name, found=image, **missing)


def _after(trouble: str, steps: str) -> str:
    return f"{trouble}. {steps}" if trouble else steps


def _where(place: Place, files: Files) -> str:
    text = files.inside(place.path).as_posix() if place.path is not None else ""
    text += f", {place.part[0]}={place.part[1]}" if place.part else ""
    text += f", positions in {files.inside(place.positions).as_posix()}" if place.positions else ""
    return text + (f" (not used: {', '.join(files.inside(p).as_posix() for p in place.also)})" if place.also else "")


def _own_image(place: Place) -> str:
    """The image that an .h5ad names or holds in enough detail for tiles; "" where it has none."""
    if place.path is None or not place.path.is_file() or not place.path.name.endswith(".h5ad"):
        return ""
    import h5py

    try:
        with h5py.File(place.path, "r") as file:
            libraries = file.get("uns/spatial")
            for entry in libraries.values() if isinstance(libraries, h5py.Group) else ():
                named = entry.get("metadata/source_image_path")
                if named is not None:
                    return f"named by {place.path.name}"
                if "images/hires" in entry:
                    return f"in {place.path.name} (reduced)"
    except OSError:
        return ""
    return ""


def _slides(
    table: str, data: Mapping[str, Any], files: Files
) -> tuple[tuple[Mapping[str, str], ...], str, Sequence[Piece]]:
    """The slides that are there, the column of their labels, and the pieces."""
    found = slide_table(files, data["slides"])
    if isinstance(found, str):
        return (
            (),
            "label",
            [Piece(what="slides", name=data["name"], steps=f"{found}. {COUNTS[table]}", without="everything")],
        )
    name = files.inside(found.path).as_posix()
    out = []
    if found.rows:
        out.append(Piece(what="slides", name=data["name"], found=f"{len(found.rows)} of {name}"))
    if found.absent:
        text = (
            f"{len(found.absent)} slides of {name} are not there: {_checks.shortlist(found.absent, 3)}. {COUNTS[table]}"
        )
        out.append(Piece(what="slides", name="slides that are absent", steps=text, without="these slides"))
    if found.unlabelled:
        first = _checks.shortlist(found.unlabelled, 3)
        text = f"{len(found.unlabelled)} slides have no label or patient in {name}: {first}."
        out.append(Piece(what="slides", name="slides without a label", steps=text, without="these slides"))
    return found.rows, found.columns["label"], out
