"""`adapt=True`: a model that is fitted to the sections before it embeds them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks, _keys
from stampy._utils import generator, table_of
from stampy.models import Stamp
from stampy.models._linear_gene import check_linear, linear_parts, with_axes
from stampy.pp._linear_encoder import MAX_SPOTS, LinearEncoder, adapt, pieces_of

from ._arguments import Organism, Request, is_several, named
from ._encoders import Encoder, is_baseline, loaded_model, match_genes, stamp_of, vocabulary_of

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from stampy.pp._match_report import GeneMatch

    from ._embed import Section, Sections

__all__ = ["adapted_to", "fitted"]

SEED = 0


def adapted_to(
    data: Sections, request: Request, model: str | Path | Encoder, device: str | torch.device | None
) -> Stamp:
    """The model fitted to all sections of a call of `stampy.tl.embed` together."""
    if request.modality != "gene":
        raise ValueError("`adapt=True` embeds genes alone. Embed the image by another call, under another `key_added`.")
    if is_baseline(model):
        raise ValueError(f"{model!r} is fitted to the section anyway. Leave `adapt` out.")
    sections = list(named(data).values()) if is_several(data) else [data]
    for section in sections:
        _checks.not_empty(table_of(section, request.table_key))
    loaded = loaded_model(model, device)
    with warnings.catch_warnings():  # warnings about a section are given when it is embedded
        warnings.simplefilter("ignore", _checks.StampyWarning)
        return fitted(
            loaded,
            sections,
            layer=request.layer,
            library_key=request.library_key,
            table_key=request.table_key,
            organism=request.organism,
        )


def fitted(
    model: Encoder,
    sections: Iterable[Section],
    *,
    layer: str | None = None,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    organism: Organism = "human",
    strength: float | None = None,
    n_axes: int | None = None,
) -> Stamp:
    """The model adapted to all these sections; see `stampy.train.adapt`."""
    check_linear(model)
    stamp = stamp_of(model)
    sections, rng, vocabulary = list(sections), generator(SEED), vocabulary_of(stamp)
    share, pieces = MAX_SPOTS // max(len(sections), 1), []

    def match(table: AnnData) -> GeneMatch:
        return match_genes(table, vocabulary, organism, layer)

    for section in sections:
        pieces += pieces_of(
            section, match, layer=layer, library_key=library_key, table_key=table_key, max_spots=share, rng=rng
        )
    parts = LinearEncoder(*linear_parts(stamp))
    found = adapt(pieces, parts, vocabulary.divisors, strength=strength, n_axes=n_axes, rng=rng)
    made = with_axes(stamp, found.axes, found.head, found.bias)
    made.adapted = found.record(stamp.name)
    return made
