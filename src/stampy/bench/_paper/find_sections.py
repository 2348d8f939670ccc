"""Find the sections of a table of the paper in a folder, in any of the usual formats."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from .folder_contents import Files, owner
from .label_columns import SAMPLES, LabelTable, cortical_layer, label_table, obs_of, plain, sample_column, word

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KINDS", "Kind", "Place", "places"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How the sections of a table are recognised.

    `columns`: columns with labels, best first; `means`: meaning of a word; `any_section`: every section in the folder
    belongs to the table; `alone`: pattern for the path of the only section of the table.
    """

    columns: tuple[str, ...] = ()
    means: Callable[[object], str | None] = word
    any_section: bool = False
    alone: str = ""


_LAYERS = ("layer_guess_reordered", "layer_guess_reordered_short", "spatialLIBD", "layer_guess", "layer",
           "ManualAnnotation", "ground_truth", "Ground Truth", "ground truth", "Region", "truth", "annotation", "label",
           "Layer")  # fmt: skip
_FINE = ("fine_annot_type", "ground_truth", "Ground Truth", "annot_type", "annotation", "Region", "label",
         "pathology")  # fmt: skip
KINDS = {
    "dlpfc": Kind(columns=_LAYERS, means=cortical_layer),
    "hbc": Kind(columns=_FINE, alone=r"block[_ -]?a.*section[_ -]?1|hbc"),
    "her2": Kind(columns=("label",)),
    "psc": Kind(any_section=True),
    "hhk": Kind(any_section=True),
}


@dataclass(frozen=True, kw_only=True)
class Place:
    """A section in a folder.

    `path`: store, matrix or ST table, None if missing. `part`: column and value of its rows in a store of several
    sections. `positions`: folder with the table of spots, if not next to the matrix. `labels`: text file with labels;
    None if they are in obs. `column`: column with labels, "" without labels. `image`: full-resolution image. `trouble`:
    files that cannot be used. `also`: other files of the same section, which are not used.
    """

    name: str
    path: Path | None = None
    part: tuple[str, str] | None = None
    positions: Path | None = None
    labels: Path | None = None
    column: str = ""
    image: Path | None = None
    trouble: str = ""
    also: tuple[Path, ...] = ()


def places(kind: Kind, names: Sequence[str], files: Files) -> list[Place]:
    """Places of the sections `names`; with `any_section`, of all sections in the folder under any name."""
    if kind.any_section:
        return [_with_image(place, files, []) for place in _all(files)]
    search = _FolderSearch(kind, tuple(names), files)
    return [search.place(name) for name in names]


class _FolderSearch:
    """Contents of a folder, searched once."""

    def __init__(self, kind: Kind, names: tuple[str, ...], files: Files):
        self.kind, self.names, self.files = kind, names, files
        self.tables: list[LabelTable] | None = None
        self.obs: dict[Path, pd.DataFrame | str] = {path: _obs(path) for path in files.stores}

    def place(self, name: str) -> Place:
        """The best candidate for a section, with its labels and image."""
        found = [*self._stores(name), *self._matrices(name), *self._st(name)]
        if not found:
            broken = [str(o) for p, o in self.obs.items() if isinstance(o, str) and self._is_of(p, name)]
            return Place(name=name, trouble="; ".join(broken))
        found = [self._with_labels(place) for place in found]
        best = max(found, key=lambda place: bool(place.column))  # the first of those with labels
        also = tuple(p.path for p in found if p is not best and p.path is not None)
        return _with_image(replace(best, also=also), self.files, self.names)

    def _is_of(self, path: Path, name: str) -> bool:
        inside = self.files.inside(path)
        if self.kind.alone:
            sources = (*self.files.stores, *self.files.matrices)
            mine = [p for p in sources if _named(self.kind, self.files.inside(p))]
            return path in mine or path not in sources or not mine
        return owner(inside, self.names) == name

    def _stores(self, name: str) -> list[Place]:
        whole, parts = [], []
        for path, obs in self.obs.items():
            if isinstance(obs, str):
                continue
            column = None if self.kind.alone else sample_column(obs, self.names)
            held = {plain(v) for v in obs[column].dropna().unique()} if column else set()
            if column and len(held) > 1:
                parts += [Place(name=name, path=path, part=(column, name))] if name in held else []
            elif held == {name} or self._is_of(path, name):
                whole.append(Place(name=name, path=path))
        return whole + parts

    def _matrices(self, name: str) -> list[Place]:
        mine = sorted((p for p in self.files.matrices if self._is_of(p, name)), key=_rank)
        return [Place(name=name, path=path, positions=self._positions(path, name)) for path in mine]

    def _positions(self, matrix: Path, name: str) -> Path | None:
        """Folder with positions of the section, if there are none next to the matrix."""
        if {matrix.parent, matrix.parent / "spatial"} & set(self.files.positions):
            return None
        mine = [p for p in self.files.positions if self._is_of(p, name)]
        return mine[0] if len(mine) == 1 else None

    def _st(self, name: str) -> list[Place]:
        """ST tables of counts, spots by genes, as in the her2st repository."""
        texts = [p for p in self.files.texts if re.fullmatch(rf"{re.escape(name)}(_stdata)?\.tsv(\.gz)?", p.name)]
        if not texts:
            return []
        from stampy._io.formats.st import is_st

        return [Place(name=name, path=path) for path in texts if is_st(path)]

    def _with_labels(self, place: Place) -> Place:
        obs = self.obs.get(place.path) if place.path is not None else None
        trouble = ""
        if obs is not None and not isinstance(obs, str):
            rows = obs if place.part is None else obs[obs[place.part[0]].map(plain) == place.part[1]]
            for column in [c for c in self.kind.columns if c in rows]:
                unknown, known = _parsed_labels(rows[column].unique(), self.kind)
                if known and not unknown:
                    return replace(place, column=column)
                trouble = trouble or _unknown_labels(f"obs[{column!r}] of {place.path and place.path.name!r}", unknown)
        best = self._best_table(place.name)
        if best is None:
            return replace(place, trouble=trouble)
        unknown, _ = _parsed_labels(best.labels, self.kind)
        if unknown:
            return replace(place, trouble=trouble or _unknown_labels(f"{best.path.name!r}", unknown))
        return replace(place, labels=best.path, column=best.column)

    def _best_table(self, name: str) -> LabelTable | None:
        if self.tables is None:
            read = (label_table(p, self.kind.columns, self.names, self.kind.means) for p in self.files.texts)
            self.tables = [table for table in read if table is not None]
        mine = [t for t in self.tables if (name in t.sections if t.sections else self._is_of(t.path, name))]
        known = self.kind.columns
        return min(mine, key=lambda t: known.index(t.column) if t.column in known else len(known), default=None)


def _named(kind: Kind, inside: Path) -> bool:
    return re.search(kind.alone, inside.as_posix(), re.IGNORECASE) is not None


def _rank(path: Path) -> tuple[int, int]:
    """Filtered matrices first; a single file before a folder before GEO's flat files."""
    low = path.name.lower()
    return "raw_feature" in low, 0 if low.endswith(".h5") else 2 if "matrix.mtx" in low else 1


def _parsed_labels(values: Sequence[object], kind: Kind) -> tuple[list[str], int]:
    """Words without a meaning, and the number of words with one."""
    unknown, known = [], set()
    for value in set(values):
        try:
            known.add(kind.means(value))
        except KeyError:
            unknown.append(str(value))
    return sorted(unknown), len(known - {None})


def _unknown_labels(where: str, unknown: Sequence[str]) -> str:
    if not unknown:
        return f"{where} contains no label"
    return f"{where} contains other words than the labels of this table: {', '.join(map(repr, unknown[:6]))}"


def _obs(path: Path) -> pd.DataFrame | str:
    """Obs of a store, or why it cannot be read."""
    try:
        return obs_of(path)
    except (ValueError, OSError, KeyError) as error:
        return f"{path.name!r} cannot be read: {error}"


def _all(files: Files) -> list[Place]:
    """All sections of a folder."""
    found: list[Place] = []
    for path in files.stores:
        obs = _obs(path)
        if isinstance(obs, str):
            found.append(Place(name=path.name.split(".")[0], trouble=obs))
            continue
        column = next((c for c in SAMPLES[:6] if c in obs and 1 < obs[c].nunique() <= 100), None)
        if column is None:
            found.append(Place(name=path.name.split(".")[0], path=path))
        else:
            values = [plain(v) for v in obs[column].dropna().unique()]
            found += [Place(name=value, path=path, part=(column, value)) for value in values]
    by_folder: dict[Path, list[Path]] = {}
    for path in sorted(files.matrices, key=_rank):
        by_folder.setdefault(path.parent, []).append(path)
    for folder, paths in by_folder.items():
        prefixes = {_prefix(p): p for p in reversed(paths)}
        found += [Place(name=before or _sample(folder, files), path=p) for before, p in sorted(prefixes.items())]
    return _with_unique_names(found)


def _prefix(matrix: Path) -> str:
    return re.split(r"(filtered|raw)_(feature|gene)|matrix\.mtx", matrix.name, flags=re.IGNORECASE)[0].rstrip("_-. ")


def _sample(folder: Path, files: Files) -> str:
    parts = [p for p in (*files.inside(folder).parts,) if p not in ("outs", "spatial")]
    return parts[-1] if parts else files.folder.name


def _with_unique_names(found: list[Place]) -> list[Place]:
    """Make names unique by appending numbers to repeated names."""
    seen: dict[str, int] = {}
    out = []
    for place in found:
        seen[place.name] = seen.get(place.name, 0) + 1
        n = seen[place.name]
        out.append(replace(place, name=f"{place.name} ({n})") if n > 1 else place)
    return out


def _with_image(place: Place, files: Files, names: Sequence[str]) -> Place:
    """Add the full-resolution image that is named after the section, or is the only one next to its matrix."""
    if place.path is None:
        return place
    named = [p for p in files.images if owner(files.inside(p), names or [place.name]) == place.name]
    is_matrix = place.path in files.matrices
    if not named and len(names) <= 1 and names:
        named = list(files.images)
    if not named and is_matrix and place.path.parent != files.folder:
        named = [p for p in files.images if place.path.parent in p.parents]
    full = [p for p in named if re.search(r"full|image", p.name, re.IGNORECASE)] if len(named) > 1 else named
    if len(full) > 1 or (named and not full):
        text = (
            f"{len(named)} images may be its full-resolution one ({', '.join(p.name for p in named[:3])}): none is used"
        )
        return replace(place, trouble="; ".join(filter(None, [place.trouble, text])))
    return replace(place, image=full[0]) if full else place
