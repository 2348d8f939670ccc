"""The verdict of `tl.evaluate`: one sentence about the scores."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from stampy._checks import shortlist

from .label_free import POSITION

if TYPE_CHECKING:
    import pandas as pd

    from .label_free import Scores

__all__ = ["about_centring", "verdict_of"]

LEVEL = 0.005  # smaller differences of the score are not relevant in practice


def verdict_of(scores: pd.DataFrame, splits: list[Scores]) -> str:
    """One sentence: the best embedding compared with the best baseline.

    A difference counts if it exceeds `LEVEL` and two standard errors over splits. A baseline is recommended only if it
    is ahead of the position of the spots: otherwise its score may be due to chance or autocorrelation alone.

    Parameters
    ----------
    scores
        Means over splits: `kind`, `score` and `thinned` by name.
    splits
        Scores of each split.
    """
    ours = scores[scores["kind"] == "embedding"]
    fair = ours[ours["thinned"]]
    base = scores.loc[scores["kind"] == "baseline", "score"].idxmax()
    if fair.empty:
        return (
            f"No embedding here could be recomputed from half of the molecules, so none can be compared fairly with "
            f"the best baseline ({base}, {scores.loc[base, 'score']:.3f})."
        )
    best = fair["score"].idxmax()
    figures = f"{scores.loc[best, 'score']:.3f} against {scores.loc[base, 'score']:.3f}"
    if _is_ahead(best, base, splits):
        return f"{best} is more informative about this tissue than the best baseline, {base} ({figures}): use it."
    if not _is_ahead(base, best, splits):
        return f"{best} is about as informative about this tissue as {base} ({figures}): it has no advantage here."
    if base != POSITION and _is_ahead(base, POSITION, splits):
        return f"{best} is less informative about this tissue than {base} ({figures}): use that baseline here."
    return (
        f"{best} is less informative about this tissue than {base} ({figures}), and no baseline is ahead of the "
        "position of the spots: none of them is of use here."
    )


def about_centring(names: Iterable[str], records: Mapping[str, object], n_sections: int) -> str:
    """What to add to the verdict on several sections if embeddings are centred by section; else empty.

    Genes differ between sections, and centred vectors cannot predict this part.
    """
    centred = [n for n in names if isinstance(record := records.get(n), Mapping) and record.get("center")]
    if not centred or n_sections < 2:
        return ""
    return (
        f" {shortlist(centred)} are centred by section, so they cannot predict how genes differ between the "
        f"{n_sections} sections, and their scores are too low: evaluate each section alone."
    )


def _is_ahead(a: str, b: str, splits: list[Scores]) -> bool:
    gains = np.array([split[a]["score"] - split[b]["score"] for split in splits])
    spread = 2 * gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return bool(gains.mean() > max(LEVEL, spread))
