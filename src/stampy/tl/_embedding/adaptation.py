"""Adaptation of a model to the sections of a call of `tl.embed`, and use of adapted models."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from stampy import _checks, _keys, models
from stampy._utils import generator, table_of
from stampy.pp._adaptation import MAX_SPOTS, LinearEncoder, adapt_encoder, pieces_of

from .arguments import Organism, Request, is_several, named
from .encoders import is_baseline, loaded_model, match_genes, stamp_of, vocabulary_of
from .gene_vectors import panel_of_table, shared_panel, within

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from anndata import AnnData

    from stampy.models import Stamp
    from stampy.pp._genes.match_report import GeneMatch
    from stampy.tl._embed import SectionData, SectionsData

    from .encoders import Encoder

__all__ = ["adapted_to", "fitted", "warn_of_other_use"]

SEED = 0


def warn_of_other_use(model: Encoder, request: Request) -> None:
    """Warn about a model that was adapted for single spots and is used in context, or the reverse."""
    fit = model.adapted if isinstance(model, models.Stamp) else None
    if not fit or ("context" in fit) == (request.context is not None) or request.modality == "image":
        return
    if request.context is not None:
        _checks.warn(
            f"The model {model.name!r} was adapted for single spots, but is used in context, for which other axes are "
            "fitted. Omit `context`, or adapt a model for use in context with `stampy.train.adapt`."
        )
    elif float(fit["strength"]) > 0:  # otherwise it is the model itself
        _checks.warn(
            f"The model {model.name!r} was adapted for use in context, but is used for single spots, for which other "
            "axes are fitted. Pass `context='neighbors'`, or adapt a model for single spots with `stampy.train.adapt`."
        )


def adapted_to(
    data: SectionsData, request: Request, model: str | Path | Encoder, device: str | torch.device | None
) -> Stamp:
    """The model fitted to all sections of a call of `stampy.tl.embed`."""
    if request.modality != "gene":
        raise ValueError("`adapt=True` embeds only genes. Embed the image in another call, with another `key_added`.")
    if is_baseline(model):
        raise ValueError(f"{model!r} is always fitted to the section. Omit `adapt`.")
    sections = list(named(data).values()) if is_several(data) else [data]
    if not sections:
        raise ValueError("There is no section: the list or dict is empty.")
    for section in sections:
        _checks.not_empty(table_of(section, request.table_key))
    loaded = loaded_model(model, device)
    with warnings.catch_warnings():  # issued when each section is embedded
        warnings.simplefilter("ignore", _checks.StampyWarning)
        return fitted(
            loaded,
            sections,
            layer=request.layer,
            library_key=request.library_key,
            table_key=request.table_key,
            organism=request.organism,
            in_context=request.context is not None,
            genes=request.genes,
        )


def fitted(
    model: Encoder,
    sections: Iterable[SectionData],
    *,
    layer: str | None = None,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    organism: Organism = "human",
    strength: float | None = None,
    n_axes: int | None = None,
    in_context: bool = False,
    genes: Literal["shared"] | None = None,
) -> Stamp:
    """The model adapted to all these sections; see `stampy.train.adapt`."""
    from stampy.models._linear_gene import check_linear, linear_parts, with_axes

    check_linear(model)
    stamp = stamp_of(model)
    sections, rng, vocabulary = list(sections), generator(SEED), vocabulary_of(stamp)
    share, pieces = MAX_SPOTS // max(len(sections), 1), []

    panel = None
    if genes is not None:
        request = Request(genes=genes, layer=layer, library_key=library_key, table_key=table_key, organism=organism)
        panel = _panel_of(sections, stamp, request)

    def match(table: AnnData) -> GeneMatch:
        return within(match_genes(table, vocabulary, organism, layer), panel)

    for section in sections:
        pieces += pieces_of(
            section, match, layer=layer, library_key=library_key, table_key=table_key, max_spots=share, rng=rng
        )
    parts = LinearEncoder(*linear_parts(stamp))
    found = adapt_encoder(
        pieces, parts, vocabulary.divisors, strength=strength, n_axes=n_axes, in_context=in_context, rng=rng
    )
    made = with_axes(stamp, found.axes, found.head, found.bias)
    made.adapted = found.record(stamp.name)
    return made


def _panel_of(sections: Sequence[SectionData], model: Stamp, request: Request) -> np.ndarray | None:
    """Mask (G,) of the genes that all sections of a call measure."""
    if len(sections) > 1:
        return shared_panel(sections, request, model)
    table, vocabulary = table_of(sections[0], request.table_key), vocabulary_of(model)
    match = match_genes(table, vocabulary, request.organism, request.layer)
    return panel_of_table(table, match, len(vocabulary), request)
