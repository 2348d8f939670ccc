"""Sections (libraries) of a table: entries of `uns["spatial"]`, and detection of overlapping sections."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
import pandas as pd

from stampy import _checks, _keys
from stampy._section.neighbors import nearest
from stampy._section.pixel_size import QUERIES, lattice

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "SeveralSectionsError",
    "check_one_section",
    "has_image",
    "image_path_of",
    "images_of",
    "is_single",
    "libraries_of",
    "library_named",
    "matching_columns",
    "named_file",
    "section_column",
    "warn_of_indices",
]

REFUSED = "refused_image_path"  # replaces `source_image_path` in memory, never on disk; see `image.choose`
_PARTS = ("images", "scalefactors", "metadata")
_IS_SINGLE = "is_single"  # flag of CELLxGENE: whether the table contains a single section
MAX_CHANNELS = 4  # longest side of an array without pixels, e.g. (0, 0, 3)


class Library(TypedDict, total=False):
    """Entry of ``uns["spatial"]`` in the layout of Space Ranger's readers; its contents are not checked."""

    images: dict[str, Any]  # pixels (h, w, channels) or the path of a file
    scalefactors: dict[str, Any]
    metadata: dict[str, Any]


def libraries_of(adata: AnnData) -> dict[str, Library]:
    """Sections in ``uns["spatial"]`` by name, each a dict of dicts: images, scale factors, metadata.

    Keys are converted to text. Flags and text next to the sections (`is_single` of CELLxGENE) are ignored. A single
    section without a name is called "spatial".

    Raises
    ------
    TypeError
        The layout of the entry or a part of it is unknown, or it contains text or None instead of a section.
    """
    found = adata.uns.get(_keys.UNS_SPATIAL)
    if found is None:
        return {}
    where = f"adata.uns['{_keys.UNS_SPATIAL}']"
    if not isinstance(found, Mapping):
        raise _layout_error(where, found)
    if any(isinstance(found.get(part), Mapping) and not _is_library(found[part]) for part in _PARTS[:2]):
        return {_keys.UNS_SPATIAL: _parts(found, where)}
    sections: dict[str, Library] = {}
    for key, entry in found.items():
        if isinstance(entry, Mapping):
            sections[str(key)] = _parts(entry, f"{where}[{key!r}]")
        elif np.ndim(entry) > 1:  # an image or a table must not be ignored
            raise _layout_error(f"{where}[{key!r}]", entry)
    odd = [key for key, entry in found.items() if not _is_flag(entry)]
    if not sections and odd and _IS_SINGLE not in found:
        raise _layout_error(f"{where}[{odd[0]!r}]", found[odd[0]])
    return sections


def is_single(adata: AnnData) -> bool | None:
    """CELLxGENE's flag: True for a single section, False for several, None if it is missing."""
    found = adata.uns.get(_keys.UNS_SPATIAL)
    flag = found.get(_IS_SINGLE) if isinstance(found, Mapping) else None
    flag = _single_value(flag)
    return bool(flag) if isinstance(flag, bool | np.bool_) else None


def library_named(libraries: Mapping[str, Library], name: str) -> str | None:
    """Key of a section: its name, or the same whole number in another notation (1 and 1.0)."""
    if name in libraries:
        return name
    try:
        number = float(name)
    except ValueError:
        return None
    return str(int(number)) if number.is_integer() and str(int(number)) in libraries else None


def has_image(library: Library) -> bool:
    """Whether an entry of ``uns["spatial"]`` has pixels or the path of a full-resolution image."""
    return bool(images_of(library) or image_path_of(library) or library.get("metadata", {}).get(REFUSED))


def images_of(library: Mapping[str, object]) -> dict[str, object]:
    """Images of an entry of ``uns["spatial"]``, without placeholders (None, arrays without any side)."""
    images = cast("Mapping[str, object]", library.get("images", {}))
    return {key: image for key, image in images.items() if image is not None and not _is_placeholder(image)}


def _is_placeholder(image: object) -> bool:
    """Whether an array is empty along all sides; an image cropped to nothing, e.g. (0, 600, 3), is an error later."""
    shape = getattr(image, "shape", ())
    return 0 in shape and max(shape) <= MAX_CHANNELS


def named_file(image: object) -> str:
    """Path that is stored instead of the pixels of an image, or ""."""
    image = _single_value(image)
    return str(image) if isinstance(image, str | Path) else ""


def image_path_of(library: Library) -> str:
    """Path of the full-resolution image, or ""."""
    path = _single_value(library.get("metadata", {}).get(_keys.SOURCE_IMAGE))
    if isinstance(path, bytes):
        path = path.decode()
    return str(path) if path is not None and str(path) not in _keys.NO_LABELS else ""


def _is_flag(entry: Any) -> bool:
    """Whether an entry is a flag or number rather than a section."""
    return isinstance(_single_value(entry), bool | int | float | np.bool_ | np.number)


def _is_library(entry: Mapping[str, Any]) -> bool:
    return any(isinstance(entry.get(part), Mapping) for part in _PARTS)


def _parts(entry: Mapping[str, Any], where: str) -> Library:
    parts = {part: _part(entry[part], f"{where}['{part}']") for part in _PARTS if part in entry}
    return cast("Library", {**entry, **parts})


def _part(part: Any, where: str) -> dict[str, Any]:
    """Convert a part to a dict; files written by R contain one-row tables, JSON text, or empty arrays."""
    part = _single_value(part)
    if part is None or (not isinstance(part, Mapping | str | bytes) and np.size(part) == 0):
        return {}
    if isinstance(part, str | bytes):
        try:
            part = json.loads(part)
        except ValueError:
            part = part or {}
    if hasattr(part, "columns") and len(part) == 1:
        part = part.iloc[0]
    if hasattr(part, "to_dict"):
        part = part.to_dict()
    if not isinstance(part, Mapping):
        raise _layout_error(where, part)
    return {str(key): value for key, value in part.items()}


def _single_value(value: Any) -> Any:
    """The value in an array or list of length one, else the argument."""
    if isinstance(value, np.ndarray) and value.size == 1:
        return value.reshape(-1)[0]
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _layout_error(where: str, found: Any) -> TypeError:
    return TypeError(
        f"`{where}` must contain images and scale factors by section, a dict of dicts; found "
        f"{type(found).__name__}. Read "
        "the section again, or remove the entry."
    )


MIN_SPOTS = 20  # minimum number of spots for these checks
COINCIDENT = 0.01  # fraction of coincident spots; rounding of cell centres stays far below it
MIN_UNPLACED = 3  # coincident spots, all at one position, that suggest missing coordinates
CLOSE = (0.2, 0.6)  # of the median neighbour distance; closer pairs are rare within one section
CLOSE_SHARE = 0.015
MAX_SHARE_OF_CHANCE = 0.25  # of the pairs expected by chance to share a section
MIN_PAIRS = 20
MAX_SECTIONS = 1000
MAX_INDEX = 700  # highest row or column; Visium has 128, with 11 mm 223


class SeveralSectionsError(ValueError):
    """A table that should be one section contains several.

    Parameters
    ----------
    found
        The evidence, for the message.
    columns
        Columns of ``obs`` that may separate the sections.
    remedy
        What to do if the caller accepts a `library_key`.
    """

    def __init__(self, found: str, columns: list[str], remedy: str):
        super().__init__(f"{found} {remedy}")
        self.found, self.columns, self.remedy = found, columns, remedy

    def __reduce__(self) -> tuple[type, tuple[str, list[str], str]]:
        return type(self), (self.found, self.columns, self.remedy)


def check_one_section(
    table: AnnData,
    xy: np.ndarray,
    codes: np.ndarray,
    libraries: Mapping[str, Library],
    *,
    library_key: str | None,
    given: object = None,
) -> None:
    """Raise SeveralSectionsError if sections overlap and no column separates them.

    Evidence: several entries in ``uns["spatial"]`` (and no image `given` for the whole table); more than 1% of the
    spots at the position of another; or nearest neighbours that differ in a column of ``obs`` far more often than by
    chance. Dense cells or bins of a single section meet none of these conditions. If the sections are separated,
    coincident spots give a warning.
    """
    if library_key is not None or codes.any():
        _warn_of_coincident(table, xy, codes, library_key)
        return
    if given is None and (len(libraries) > 1 or is_single(table) is False) and section_column(table, libraries) is None:
        _raise_several(table, libraries)
    if len(xy) < MIN_SPOTS:
        return
    together = _coincident(xy)
    _check_unplaced(xy, together)
    if together.mean() > COINCIDENT:
        apart = [c for c, values in _columns(table) if not _coincident(xy, values).mean() > COINCIDENT]
        found = f"{int(together.sum())} of {len(xy)} spots have the coordinates of another spot"
        raise _overlap_error(found, matching_columns(table, libraries) or apart)
    crowded = _separating_columns(table, xy)
    if crowded:
        raise _overlap_error("the spots of several sections are interleaved", crowded)


def warn_of_indices(xy: np.ndarray, codes: np.ndarray) -> None:
    """Warn if coordinates are Visium's rows and columns: whole numbers whose sums are all even or all odd."""
    first = xy[codes == codes[0]]
    if len(first) < MIN_SPOTS or np.abs(first).max() > MAX_INDEX or not np.array_equal(first, np.rint(first)):
        return
    if len(np.unique(first.sum(axis=1) % 2)) == 1 and (grid := lattice(first)) is not None and grid.pitch < 2:
        _checks.warn(
            "The coordinates seem to be rows and columns of Visium's array, not px of the image: integers up to "
            f"{np.abs(first).max():.0f}, of even sum. Neighbours found from them are wrong. Put "
            "`pxl_col_in_fullres` and `pxl_row_in_fullres` into `adata.obsm['spatial']`."
        )


def section_column(table: AnnData, libraries: Mapping[str, Library]) -> str | None:
    """Entry of ``uns["spatial"]`` to which all spots of the table belong, according to a column of ``obs``."""
    named = set()
    for column in table.obs.columns:
        values = table.obs[column]
        first = str(values.iloc[0])
        if first in libraries and not pd.api.types.is_float_dtype(values) and values.nunique(dropna=False) == 1:
            named.add(first)
    return named.pop() if len(named) == 1 else None


def _raise_several(table: AnnData, libraries: Mapping[str, Library]) -> None:
    if len(libraries) > 1:
        found = f"`adata.uns['spatial']` has {len(libraries)} sections ({_checks.shortlist(libraries)})"
        rest = ". If the table is one of them, remove the others from there"
    else:
        found, rest = "`adata.uns['spatial']['is_single']` states that the table contains several sections", ""
    columns = matching_columns(table, libraries)
    remedy = f"Name the column of `adata.obs` that separates them with `library_key=`{_hint(columns)}{rest}."
    raise SeveralSectionsError(f"{found}.", columns, remedy)


def _overlap_error(found: str, columns: list[str]) -> SeveralSectionsError:
    if columns:
        remedy = (
            f"Name the column of `adata.obs` that separates the sections with `library_key=`{_hint(columns)}. If it "
            "is one section, pass a column with only one value."
        )
    else:
        remedy = (
            "Put the section of each spot in a column of `adata.obs` and name that with `library_key=`, or drop "
            "duplicate spots."
        )
    found = f"The table seems to hold several sections that overlap: {found}."
    return SeveralSectionsError(found, columns, remedy)


def _check_unplaced(xy: np.ndarray, together: np.ndarray) -> None:
    """Raise (or warn, if few) if all coincident spots are at one position, such as (0, 0): coordinates are missing."""
    places = np.unique(xy[together], axis=0)
    n = int(together.sum())
    if n < MIN_UNPLACED or len(places) > 1:
        return
    x, y = map(float, places[0])
    says = (
        f"{n} of {len(xy)} spots have the same coordinates, ({x:g}, {y:g}): they seem to have no position. Remove "
        f"them, e.g. `adata = adata[(adata.obsm['spatial'] != [{x:g}, {y:g}]).any(axis=1)].copy()`."
    )
    if together.mean() > COINCIDENT:
        raise ValueError(says)
    _checks.warn(says)


def _hint(columns: list[str]) -> str:
    return f" (would fit: {', '.join(map(repr, columns[:5]))})" if columns else ""


def _warn_of_coincident(table: AnnData, xy: np.ndarray, codes: np.ndarray, library_key: str | None) -> None:
    together = _coincident(xy, codes)
    if len(xy) < MIN_SPOTS or together.mean() <= COINCIDENT:
        return
    apart = [c for c, v in _columns(table) if c != library_key and not _coincident(xy, v, codes).mean() > COINCIDENT]
    _checks.warn(
        f"{int(together.sum())} of {len(xy)} spots have the coordinates of another spot of the same section: does "
        f"`library_key={library_key!r}` separate the sections{_hint(apart)}?"
    )


def _coincident(xy: np.ndarray, *codes: np.ndarray) -> np.ndarray:
    """Spots at the position of another spot with the same codes, (n,) bool."""
    keys = [xy[:, 0], xy[:, 1], *codes]
    order = np.lexsort(keys)
    same = np.logical_and.reduce([key[order][1:] == key[order][:-1] for key in keys])
    together = np.zeros(len(xy), dtype=bool)
    together[order[1:]] |= same
    together[order[:-1]] |= same
    return together


def _columns(table: AnnData) -> Iterator[tuple[str, np.ndarray]]:
    """Columns of ``obs`` that may name sections, as codes: text, categories or integers with at least two values."""
    for name in table.obs.columns:
        values = table.obs[name]
        if pd.api.types.is_float_dtype(values) or str(name).startswith("array_") or values.isna().any():
            continue
        codes, found = pd.factorize(values)
        if 2 <= len(found) <= min(MAX_SECTIONS, len(values) // 3):
            yield str(name), codes


def matching_columns(table: AnnData, libraries: Mapping[str, Library]) -> list[str]:
    """Columns whose values are all entries of ``uns["spatial"]``."""
    found = ((name, set(table.obs[name].astype(str).unique())) for name, _ in _columns(table))
    return [name for name, values in found if values <= set(libraries)]


def _separating_columns(table: AnnData, xy: np.ndarray) -> list[str]:
    """Columns in which nearest neighbours differ far more often than by chance, strongest evidence first."""
    some = np.arange(0, len(xy), max(1, len(xy) // QUERIES))
    distances, others = (found[:, 0] for found in nearest(xy, 1, some=some))
    pairs = [some] if lattice(xy) is None else []
    which = [np.ones(len(some), dtype=bool)] if pairs else []
    for part in CLOSE:
        close = distances < part * np.median(distances)
        if close.mean() > CLOSE_SHARE:
            which.append(close)
    if not which:
        return []
    found = []
    for name, codes in _columns(table):
        chance = float((np.bincount(codes) ** 2.0).sum() / len(codes) ** 2)
        for close in which:
            same = float((codes[some[close]] == codes[others[close]]).mean())
            if same < MAX_SHARE_OF_CHANCE * chance and close.sum() * chance >= MIN_PAIRS:
                found.append((same, int(codes.max()), name))
                break
    return [name for *_, name in sorted(found)]
