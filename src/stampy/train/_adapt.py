"""Adaptation of a packaged model to sections in closed form, without labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from stampy import _checks, _utils
from stampy._io.sections import as_sections, of_section
from stampy._settings import DEFAULT_SEED
from stampy.models import load
from stampy.models._systems.catalogue import check_name
from stampy.pp import Vocabulary
from stampy.pp._adaptation import MAX_SPOTS, LinearEncoder, pieces_of, unshared
from stampy.pp._adaptation import adapt_encoder as solve

if TYPE_CHECKING:
    from stampy._io.sections import Sections
    from stampy.models import Stamp

__all__ = ["adapt"]

logger = logging.getLogger(__name__)

MAX_UNSHARED = 0.05  # of the counts, as in `stampy.tl.embed`


def adapt(
    model: str | Path | Stamp,
    sections: Sections,
    *,
    strength: float | None = None,
    n_axes: int | None = None,
    context: Literal["neighbors"] | None = None,
    max_spots: int | None = MAX_SPOTS,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
) -> Stamp:
    """Fit the gene encoder of a model to sections, in closed form, without labels.

    The axes along which neighbouring spots of the sections agree are mixed with the axes of the model. For use in
    context they are put beside the axes of the model instead, because the mean over neighbouring spots is less noisy,
    and more axes help. The share of the sections and the number of axes are selected by how well one half of the
    molecules predicts the genes of the other half (the measure of `stampy.tl.evaluate`). It takes seconds for a Visium
    section.

    Parameters
    ----------
    model
        Model whose gene encoder adds up vectors (``pooling="bag"``), such as ``"stampy-mini"``: a name, a folder, or a
        loaded model. It is not changed.
    sections
        AnnData with raw counts in ``X`` and ``obsm["spatial"]``, SpatialData, paths of anything that `stampy.read`
        reads, a manifest (.tsv), or several. All share one space.
    strength
        Share of the sections in the mixture: 0 keeps the axes of the model, 1 uses only those of the sections. None:
        selected.
    n_axes
        Number of axes of the mixture, which is the number of columns of the embedding. With `context`, number of axes
        beside those of the model, without effect if `strength` is 0. None: selected, from 8 to 64 and from 8 to 32.
    context
        How the embedding will be used: for single spots, or ``"neighbors"`` for the mean over each spot and its
        nearest, as `stampy.tl.embed` makes it with the same argument.
    max_spots
        Maximum number of spots in total. With more spots, a compact piece of each section is used. None: all.
    rng
        Seed or generator for pieces, splits and the solver.

    Returns
    -------
    A model without image encoder, for example for `stampy.tl.embed` and `stampy.models.save`. Its name contains a
    digest of its axes, because vectors of different adaptations are not comparable; search or transfer across them
    raises an error. ``adapted`` states strength, number of axes (in context, of those beside the model's), number of
    spots and context.

    Warns
    -----
    Sections measure different genes. `n_axes` is given with `context`, and `strength` is 0 or selected as 0: no axes of
    the sections are used.

    Raises
    ------
    ValueError
        A model that cannot be adapted, a section of fewer than 50 spots, `strength` outside 0 to 1, or no counts.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=150, image=False)
    >>> mine = stampy.train.adapt("stampy-mini", adata, n_axes=16)
    >>> stampy.tl.embed(adata, mine, show_progress_bar=False)
    >>> adata.obsm["X_stamp"].shape
    (150, 16)
    """
    _check(strength, n_axes, max_spots)
    if context is not None:
        _checks.one_of("context", context, ("neighbors",))
    if isinstance(model, str | Path):
        check_name(str(model))
    listed = as_sections(sections)
    from stampy.models._linear_gene import check_linear, linear_parts, with_axes

    start = check_linear(load(model, device="cpu") if isinstance(model, str | Path) else model)
    rng, vocabulary = _utils.generator(rng), Vocabulary(start.genes)
    pieces = []
    for section in listed:
        share = None if max_spots is None else max(max_spots // len(listed), 1)
        with of_section(section.name):
            pieces += pieces_of(section.read(), vocabulary.match, max_spots=share, rng=rng)
    if (apart := unshared(pieces)) > MAX_UNSHARED:
        _checks.warn(
            f"The sections measure different genes: up to {apart:.0%} of the counts of a section are in genes that not "
            "all of them measure, so axes may describe the panels. Restrict all sections to their shared genes, or "
            "use `stampy.tl.embed(sections, adapt=True, genes='shared')`."
        )
    parts = LinearEncoder(*linear_parts(start))
    found = solve(
        pieces, parts, vocabulary.divisors, strength=strength, n_axes=n_axes, in_context=context is not None, rng=rng
    )
    if n_axes is not None and found.n_axes == 0:
        why = "the model alone scores higher on these sections" if strength is None else "`strength` is 0"
        _checks.warn(
            f"`n_axes={n_axes}` has no effect: {why}, so the embedding in context has no axes of the sections. Give a "
            "`strength` above 0 to use them, such as 0.1."
        )
    adapted = with_axes(start, found.axes, found.head, found.bias)
    adapted.adapted = found.record(start.name)
    logger.info("%s: strength %g, %d axes, by %d spots", adapted.name, found.strength, found.n_axes, found.n_spots)
    return adapted


def _check(strength: float | None, n_axes: int | None, max_spots: int | None) -> None:
    if strength is not None:
        _checks.at_least("strength", strength, 0, integer=False)
        _checks.at_most("strength", strength, 1)
    if n_axes is not None:
        _checks.at_least("n_axes", n_axes, 2)
    if max_spots is not None:
        _checks.at_least("max_spots", max_spots, 100)
