"""Labels of spots, and the words for a missing label; shared by tools, plots, reports and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from stampy import _checks, _keys

if TYPE_CHECKING:
    import pandas as pd

    Labels: TypeAlias = "pd.Series | pd.Categorical | np.ndarray | Iterable[object]"

__all__ = ["is_missing_label", "known_labels", "no_fractions"]

MISSING = frozenset(
    {"", "NA", "N/A", "#N/A", "NaN", "nan", "<NA>"}
)  # spellings of a missing value in pandas, R and spreadsheets


def is_missing_label(word: object) -> bool:
    """Whether a word, such as "NA" or "undetermined", stands for a missing label, in upper or lower case.

    >>> is_missing_label("Undetermined "), is_missing_label("Na+ channel")
    (True, False)
    """
    return str(word).strip().casefold() in _keys.NO_LABELS


def known_labels(labels: Labels, *, name: str = "labels", warn: bool = True) -> tuple[np.ndarray, list[str]]:
    """Return labels as codes (n,) int64 and names; -1 for spots without a label.

    Missing values, including the words that files use for them, and the words in `stampy._keys.NO_LABELS` are not
    labels. A warning states how many spots are ignored because of a word such as "unknown", in case it is a real label.
    Names are in the order of the categories, else alphabetical.

    Raises
    ------
    ValueError
        The labels are infinite numbers or numbers with fractions.

    Examples
    --------
    >>> codes, names = known_labels(["b", "", "a", None, "b"])
    >>> codes.tolist(), names
    ([1, -1, 0, -1, 1], ['a', 'b'])
    """
    import pandas as pd

    column = pd.Series(labels).reset_index(drop=True)
    if pd.api.types.is_float_dtype(column):
        column = _whole(column, name)
    text = column.astype(object).where(column.notna(), "").map(str).str.strip()
    categories = column.cat.categories.map(str) if isinstance(column.dtype, pd.CategoricalDtype) else sorted(set(text))
    present = {word for word in set(text) if not is_missing_label(word)}
    names = list(dict.fromkeys(c.strip() for c in categories if c.strip() in present))
    if warn:
        _warn_of_words(text, present, name)
    return pd.Categorical(text, names).codes.astype(np.int64), names


def no_fractions(column: pd.Series) -> None:
    """Raise ValueError if a column that names groups contains measurements."""
    if column.dtype.kind == "f":
        _whole(column, f"adata.obs[{column.name!r}]")


def _whole(column: pd.Series, name: str) -> pd.Series:
    """Convert whole numbers, such as cluster numbers, to integers; ValueError for other numbers."""
    found = column.dropna().to_numpy(float)
    if not (np.abs(found) < 2**53).all():
        raise ValueError(f"`{name}` must contain labels, found {np.abs(found).max():.3g}. Correct or drop it.")
    if not np.array_equal(found, np.trunc(found)):
        raise ValueError(f"`{name}` must contain labels, found numbers with fractions. Cut them into classes first.")
    return column.astype("Int64")


def _warn_of_words(text: pd.Series, present: set[str], name: str) -> None:
    counts = text[~text.isin(present | MISSING)].value_counts()
    if counts.empty:
        return
    words = ", ".join(f"{word!r} ({n})" for word, n in counts.items())
    _checks.warn(
        f"{int(counts.sum())} of {len(text)} spots are ignored, because {words} in `{name}` counts as a missing "
        "label. Rename it if it is a real label."
    )
