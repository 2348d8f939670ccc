"""Sections for functions over many: objects, paths, manifests. Each has a name, which errors mention."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd

from stampy import _checks, _utils
from stampy._section.libraries import SeveralSectionsError

from .input_files import is_address

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["SECTION_ERRORS", "SectionInput", "as_sections", "file_name", "of_section", "one_line", "several_sections"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SectionInput:
    """One section for training.

    Parameters
    ----------
    data
        AnnData with counts and ``obsm["spatial"]``, a SpatialData, or the path of anything that `stampy.read` reads.
        Without genes (0 columns) it is used only in the losses that need no genes.
    name
        Name for messages and logs.
    image
        Image file to use instead of the one in ``uns["spatial"]``.
    um_per_px, spot_um
        Scale of the full-resolution image, if the scale factors do not state it; see `stampy.pp.tiles`.
    organ, platform, species, patient, study
        Metadata of the section as free text; stored in a corpus.

    Examples
    --------
    >>> import stampy
    >>> section = SectionInput(data=stampy.datasets.toy(n_spots=30), name="mine", organ="breast")
    >>> section.read().n_obs
    30
    """

    data: AnnData | SpatialData | Path
    name: str
    image: Path | None = None
    um_per_px: float | None = None
    spot_um: float | None = None
    organ: str = ""
    platform: str = ""
    species: str = ""
    patient: str = ""
    study: str = ""

    def __post_init__(self) -> None:
        for name in ("um_per_px", "spot_um"):
            if getattr(self, name) is not None:
                with of_section(self.name):
                    _checks.positive(name, getattr(self, name))

    def read(self) -> AnnData | SpatialData:
        """Read the section into memory; the images of a SpatialData stay on disk."""
        if isinstance(self.data, Path):
            from stampy._io import read as _formats

            return _formats.read(_checks.existing(self.data, what="section"))
        return self.data


if TYPE_CHECKING:  # below the class, for documentation tools that evaluate the aliases
    Given: TypeAlias = AnnData | SpatialData | pd.DataFrame | str | Path | SectionInput
    Sections: TypeAlias = Given | Iterable[Given] | Mapping[str, Given]


def file_name(name: str) -> str:
    """Return a file name that is unique to the name of the section.

    >>> file_name("HER2ST_A1"), file_name("patient 7/A1")
    ('HER2ST_A1', 'patient_7_A1-5ad1f22d')
    """
    plain = re.sub(r"[^\w.-]+", "_", name, flags=re.ASCII).strip(".")[:80]
    return plain if plain and plain == name else f"{plain or 'section'}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


@contextmanager
def of_section(name: str) -> Iterator[None]:
    """Prefix errors raised in the block with the section's name."""
    try:
        yield
    except (ValueError, LookupError, TypeError, OSError, ImportError, ArithmeticError) as error:
        if isinstance(error, SeveralSectionsError):
            raise ValueError(several_sections(error, name)) from error
        text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
        if repr(name) in text or (isinstance(error, OSError) and error.errno is not None):
            raise  # it is named already, or its errno must be kept
        kind = next(k for k in _KINDS if isinstance(error, k))
        raise kind(f"Section {name!r}: {text}") from error


def several_sections(error: SeveralSectionsError, name: str) -> str:
    """Error message, with the remedy, for an object with several sections."""
    column = repr(error.columns[0]) if error.columns else "..."
    which = "" if error.columns else ", by a column of `adata.obs` that names the section of each spot"
    return (
        f"Section {name!r}: {error.found} Pass each as a separate section{which}: "
        f"`[train.SectionInput(data=adata[adata.obs[{column}] == s].copy(), name=str(s)) for s in "
        f"adata.obs[{column}].unique()]`."
    )


def one_line(error: BaseException, name: str = "") -> str:
    """The message of an error in one line, without the name of its section and the quotes that KeyError adds.

    >>> one_line(KeyError("no such key")), one_line(ValueError("Section 'a': no counts"), "a")
    ('no such key', 'no counts')
    """
    message = error.args[0] if isinstance(error, KeyError) and error.args else error
    return (" ".join(str(message).split()) or type(error).__name__).removeprefix(f"Section {name!r}: ")


# Errors of a section in a run over many; any other error is a bug and stops the run.
SECTION_ERRORS = (ValueError, LookupError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)

# Types of errors raised for a section, most specific first.
_KINDS = (FileNotFoundError, KeyError, IndexError, ValueError, LookupError, TypeError, OSError, ImportError,
          ArithmeticError)  # fmt: skip


def as_sections(sections: Sections, *, all_there: bool = True) -> list[SectionInput]:
    """Sections from AnnData, SpatialData, paths, a manifest (.tsv), `SectionInput`, or a sequence or dict of these.

    Keys of a dict are names of sections.

    A manifest has a column ``path`` (relative to it) and may have name, image, um_per_px, spot_um, organ, platform,
    species, patient and study; it may also be a DataFrame, with paths relative to the working directory. Paths may be
    anything that `stampy.read` reads; with `all_there`, a missing file raises an error immediately.
    """
    if isinstance(sections, str | Path | pd.DataFrame) or not isinstance(sections, Iterable | Sequence):
        sections = [sections]
    if isinstance(sections, Mapping):
        found = [_by_key(str(name), item) for name, item in sections.items()]
    else:
        found = list(_expand(sections))
    if not found:
        raise ValueError("There are no sections. Give AnnData objects, paths of files, or a manifest (.tsv).")
    _check_names(found)
    if all_there:
        _check_files(found)
    return found


def _check_names(sections: Sequence[SectionInput]) -> None:
    by_name: dict[str, list[str]] = {}
    for section in sections:
        where = str(section.data) if isinstance(section.data, Path) else "in memory"
        by_name.setdefault(section.name, []).append(where)
    twice = [f"{name}: {', '.join(where)}" for name, where in by_name.items() if len(where) > 1]
    if twice:
        raise ValueError(
            f"Sections must have different names, found {_checks.shortlist(twice)}. Give each its own, by a manifest "
            "(.tsv) with the columns path and name, or by `train.SectionInput`."
        )


def _check_files(sections: Sequence[SectionInput]) -> None:
    """Raise FileNotFoundError before anything is read if a file of any section is missing."""
    for section in sections:
        with of_section(section.name):
            if isinstance(section.data, Path):
                _checks.existing(section.data, what="section")
            if isinstance(section.image, Path):
                _checks.existing(section.image, what="image")


def _by_key(name: str, item: Any) -> SectionInput:
    """Section from an item of a dict."""
    if isinstance(item, SectionInput):
        return replace(item, name=name)
    data = _checks.existing(item, what="section") if isinstance(item, str | Path) else item
    return SectionInput(data=_checked(data), name=name)


def _expand(sections: Iterable[Any]) -> Iterator[SectionInput]:
    for number, item in enumerate(sections):
        if isinstance(item, SectionInput):
            yield item
        elif isinstance(item, str | Path):
            path = _checks.existing(item, what="section or manifest")
            yield from _manifest(path) if path.suffix == ".tsv" else [SectionInput(data=path, name=_name(path))]
        elif isinstance(item, pd.DataFrame):
            cells = item.astype(object).where(item.notna(), "").astype(str)
            yield from _rows_of(cells.set_axis(range(2, len(cells) + 2)), Path("manifest"))
        else:
            yield SectionInput(data=_checked(item), name=f"section {number}")


def _checked(item: Any) -> Any:
    """Check the type of a section; TypeError if invalid. For paths, anndata is not imported."""
    if isinstance(item, Path) or _utils.is_spatialdata(item):
        return item
    from anndata import AnnData

    if not isinstance(item, AnnData):
        raise TypeError(f"A section is an AnnData, a SpatialData or a path, found {type(item).__name__}.")
    return item


def _name(path: Path) -> str:
    """Name of a path: a file's name without the suffix; for ``SAMPLE/outs`` the sample's name."""
    path = path.resolve()
    path = path.parent if path.name == "outs" else path
    return path.name if path.is_dir() and path.suffix != ".zarr" else path.stem


def _manifest(path: Path) -> Iterator[SectionInput]:
    yield from _rows_of(_table(path), path)


def _table(path: Path) -> pd.DataFrame:
    """Cells of a manifest as text, by line; ValueError if a line has more cells than there are columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = {n: row for n, row in enumerate(csv.reader(file, delimiter="\t"), start=1) if row}
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not a text in UTF-8 ({error}). A manifest is a tab-separated table."
        ) from error
    if not lines:
        raise ValueError(f"{str(path)!r} is empty. A manifest has a line of column names, among them `path`.")
    columns = lines.pop(min(lines))
    if repeated := [name for name in dict.fromkeys(columns) if columns.count(name) > 1]:
        raise ValueError(f"{path.name} has several columns {_checks.shortlist(repeated)}. Keep one of each.")
    for number, row in lines.items():  # numbered from 1, as in an editor
        if any(row[len(columns) :]):
            raise ValueError(
                f"{path.name}, line {number}: {len(row)} cells, but {len(columns)} columns ({', '.join(columns)}). "
                "Cells are separated by one tab each."
            )
    cells = {n: [*row, *[""] * len(columns)][: len(columns)] for n, row in lines.items()}
    return pd.DataFrame(list(cells.values()), index=list(cells), columns=columns, dtype=str)


def _rows_of(table: pd.DataFrame, path: Path) -> Iterator[SectionInput]:
    _checks.has_key(table.columns, "path", slot=path.name, needs="A manifest names one .h5ad per row there.")
    words = ("organ", "platform", "species", "patient", "study")
    allowed = {"path", "name", "image", "um_per_px", "spot_um", *words}
    for column in table.columns:
        _checks.one_of(f"column of {path.name}", column, allowed)
    for number, row in zip(table.index, table.to_dict("records"), strict=True):
        if not row["path"]:
            raise ValueError(f"{path.name}, line {number}: `path` is empty.")
        for column in ("path", "image"):
            if is_address(row.get(column)):
                raise ValueError(
                    f"{path.name}, line {number}: {row[column]!r} is an address, where a `{column}` on this machine "
                    "was expected. Download it first."
                )
        yield SectionInput(
            data=path.parent / row["path"],
            name=row.get("name") or _name(path.parent / row["path"]),
            image=path.parent / row["image"] if row.get("image") else None,
            um_per_px=_number(path, number, row, "um_per_px"),
            spot_um=_number(path, number, row, "spot_um"),
            **{word: row.get(word, "") for word in words},
        )


def _number(path: Path, line: int, row: Mapping[str, str], column: str) -> float | None:
    """Positive number in a manifest, None for an empty cell."""
    text = row.get(column, "").strip()
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(
            f"{path.name}, line {line} ({row['path']!r}): `{column}` must be a positive number, found {text!r}."
        )
    return value
