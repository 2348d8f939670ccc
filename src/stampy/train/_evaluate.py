"""Arguments of `evaluate`, checked before torch is imported."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stampy import _checks, _utils
from stampy._settings import DEFAULT_SEED
from stampy.models._systems.catalogue import check_name

from ._corpus.corpus import corpus_or_sections

if TYPE_CHECKING:
    import pandas as pd

    from stampy._io.sections import Sections
    from stampy.models import Stamp

__all__ = ["evaluate"]


def evaluate(
    model: Stamp | str | Path,
    sections: Sections,
    *,
    n_groups: int = 40,
    n_spots: int = 1000,
    device: str | None = None,
    seed: int = DEFAULT_SEED,
) -> pd.DataFrame:
    """Evaluate both stages of a model on held-out sections, compared with simple baselines.

    Stage 1: cross-entropy (nats) of the predictions of the gene encoder, with inputs masked as in training. The encoder
    has learned about the composition of spots if ``igr_masked`` is below both ``section_frequency_unseen`` and
    ``section_frequency_order``: a model can also lower its loss by reading the usual level of a hidden gene from the
    order of the tokens. ``igr_kept`` is the loss for visible genes and shows how well the model copies.

    Stage 2, for models with an image encoder and sections with an image: share of tiles whose own genes are among the
    1, 10 or 50 nearest of the section, in the shared space of the model. Baselines are chance and a ridge regression
    from colours and texture of tiles to principal components of the genes, fitted on the other sections (for a single
    section on its other half).

    Parameters
    ----------
    model
        A model, or its name or folder.
    sections
        As for `pretrain` and `align`, or a corpus. stampy does not check whether the model was trained on them. For
        models with surroundings, such as ``"stampy-mini"``, pass sections: in a corpus, a tile may lie anywhere in its
        region, which lowers the recall, with a warning.
    n_groups
        Number of neighbourhood groups of 9 spots per section for stage 1.
    n_spots
        Number of spots per section for stage 2, drawn at random; all if there are fewer.
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.
    seed
        Seed for groups, masks and drawn spots.

    Returns
    -------
    One row per section and a row ``"all"`` with means over sections, with the columns ``igr_masked``, ``igr_replaced``,
    ``igr_kept``, ``cgr``; ``corpus_frequency`` (of all sections given), ``section_frequency``,
    ``section_frequency_unseen``, ``section_frequency_order``; ``n_spots`` of stage 2, ``recall_at_1``,
    ``recall_at_10``, ``recall_at_50``, and the same with the suffixes ``_ridge`` and ``_chance``. NaN if
    a value does not apply to the section or the model.

    Raises
    ------
    ValueError, KeyError, TypeError
        Sections that cannot be used; the message names them.

    Examples
    --------
    >>> import stampy
    >>> found = stampy.train.evaluate("stampy-mini", stampy.datasets.toy(n_spots=30), n_groups=2, device="cpu")
    >>> bool(found.loc["section 0", "igr_kept"] < found.loc["section 0", "igr_masked"])
    True
    """
    for name, value in (("n_groups", n_groups), ("n_spots", n_spots)):
        _checks.at_least(name, value, 1)
    _utils.check_device(device)
    if isinstance(model, str | Path):
        check_name(str(model))
    chosen = corpus_or_sections(sections)
    from ._evaluate_run import evaluated  # imports torch: only after the checks

    return evaluated(model, chosen, n_groups, n_spots, device, _utils.chosen_seed(seed))
