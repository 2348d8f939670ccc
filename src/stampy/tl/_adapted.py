"""A model fitted to the very sections that it embeds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from stampy._utils import generator
from stampy.models import Stamp
from stampy.models._linear import check_linear, linear_parts, with_axes
from stampy.pp import Vocabulary
from stampy.pp._adaptation import MAX_SPOTS, LinearEncoder, adapt, pieces_of

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["adapted_to"]

SEED = 0


def adapted_to(
    model: Any,
    tables: Iterable[AnnData],
    *,
    layer: str | None,
    library_key: str | None,
    strength: float | None = None,
    n_axes: int | None = None,
) -> Stamp:
    """The model adapted to all these tables together; see `stampy.train.adapt`."""
    check_linear(model)
    tables, rng, vocabulary = list(tables), generator(SEED), Vocabulary(model.genes)
    share, pieces = MAX_SPOTS // max(len(tables), 1), []
    for table in tables:
        pieces += pieces_of(table, vocabulary, layer=layer, library_key=library_key, max_spots=share, rng=rng)
    parts = LinearEncoder(*linear_parts(model))
    found = adapt(pieces, parts, vocabulary.divisors, strength=strength, n_axes=n_axes, rng=rng)
    made = with_axes(model, found.axes, found.head, found.bias)
    made.adapted = found.record(model.name)
    return made
