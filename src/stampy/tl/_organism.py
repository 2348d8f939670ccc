"""Sections of mouse in the vocabulary of a human model, by the orthologs of each gene; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from stampy import _keys
from stampy.pp import Vocabulary, orthologs
from stampy.pp._orthologs import human_matched

if TYPE_CHECKING:
    from anndata import AnnData

    from stampy.pp._match import GeneMatch

    from ._request import Organism

__all__ = ["human_names", "match_genes"]


def match_genes(table: AnnData, vocabulary: Vocabulary, organism: Organism, layer: str | None) -> GeneMatch:
    """The genes of a section in a vocabulary of human genes.

    Genes of mouse go by their human orthologs: those in `var`, by `stampy.pp.orthologs`, else those that it would find.
    """
    if organism == "human":
        return vocabulary.match(table, layer=layer)
    return human_matched(table, vocabulary, layer=layer)


def human_names(genes: Sequence[str], organism: Organism, vocabulary: Vocabulary) -> list[str]:
    """Names of human genes; a mouse gene without an ortholog keeps its own, which the vocabulary does not have."""
    names = [str(gene).strip() for gene in genes]
    if organism == "human":
        return names
    from anndata import AnnData

    unique = list(dict.fromkeys(names))
    named = AnnData(np.ones((1, len(unique)), dtype=np.float32), var=pd.DataFrame(index=unique))
    orthologs(named, vocabulary=vocabulary)
    human = dict(zip(unique, named.var[_keys.ORTHOLOG].astype(str), strict=True))
    return [human[name] or name for name in names]
