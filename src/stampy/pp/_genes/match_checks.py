"""Checks of a match: errors if too few genes match, warnings if counts are lost or names are ambiguous."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from stampy import _checks, _keys
from stampy.pp._counts import column_sums, counts_name, counts_of, raw_layers

from .annotation import Features, features_of
from .match_report import GeneMatch, contradictions, match, name_of
from .matching import GeneIndex
from .names import is_title_case

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["checked_match"]

MINIMUM = 0.1  # of the smaller gene list; correct matches of any platform share more
LOST = 0.05  # of the counts; warn if unmatched genes account for more
REPEATED = 0.1  # of the counts; warn if columns that repeat a gene by name account for more
MOUSE = (
    "map them with `stampy.pp.orthologs(adata)` or, in one call, `stampy.tl.embed(adata, organism='mouse')`; or "
    "use a mouse vocabulary"
)
# patterns of names with a description and remedy; the first match applies
LOOKS = (
    (re.compile(r"ENS[A-Z]*T\d{6,}"), "ids of transcripts (ENST): sum them by gene"),
    (re.compile(r"ENSMUSG\d+"), f"mouse genes: {MOUSE}"),
    (re.compile(r"ENS(?!G\d)[A-Z]+\d{6,}|FBgn\d+|WBGene\d+|AT\dG\d{5}"), "ids of another species"),
    (re.compile(r"\d+(?:\.0)?"), "numbers, e.g. Entrez ids: map them to Ensembl ids"),
    (re.compile(r"\d+(?:_[a-z])?_at|ILMN_\d+|A_\d+_P\d+|.*_probe\d*", re.I), "probe ids: map them to Ensembl ids"),
    (re.compile(r"[NX][MR]_\d+(?:\.\d+)?"), "RefSeq transcripts: sum them by gene"),
    (
        re.compile(r".*(?:[-_. ]antibody|\.protein|_protein|[-_]AB)|(?:anti|ab)[-_].*|Ig[GM]\d?\w?(?:[-_ .].*)?", re.I),
        "antibodies: name them in `adata.var['feature_types']`, or drop them",
    ),
)


def checked_match(
    adata: AnnData, index: GeneIndex, layer: str | None = None, var: pd.DataFrame | None = None
) -> GeneMatch:
    """Match a section and check the match, weighted by counts.

    Parameters
    ----------
    adata
        The section.
    index
        Index of the vocabulary.
    layer
        Layer with the counts for the shares; None: ``X``, if it exists.
    var
        Table of names to use instead of ``adata.var``.

    Raises
    ------
    ValueError
        Too few genes match, or the layer (or ``X``) contains no counts.
    """
    features = features_of(adata.var if var is None else var)
    sums = _sums(adata, layer)
    found = match(features, index, sums)
    if found.n_matched == 0 or found.n_matched < MINIMUM * min(int(features.is_gene.sum()), len(index.gene_ids)):
        raise ValueError(_too_small(adata, features, index, found))
    for message in (_lost(features, index, found, sums), _doubtful(features, index, found), _reduced(adata)):
        if message:
            _checks.warn(message)
    return found


def _sums(adata: AnnData, layer: str | None) -> np.ndarray | None:
    """Counts per column (sampled in a large section); ValueError if X is all zeros and a layer is not."""
    if layer is None and adata.X is None:
        return None
    sums, complete = column_sums(counts_of(adata, layer))
    if complete and sums is not None and not sums.any() and (layers := raw_layers(adata.layers, but=layer)):
        raise ValueError(
            f"`{counts_name(layer)}` has no counts: all values are 0. Raw counts are in {_checks.shortlist(layers)}: "
            f"use layer={layers[0]!r}."
        )
    if sums is not None and not (sums >= 0).all():
        return None  # negative or missing counts, which give no shares; the reading of the counts names them
    return sums


def _lost(features: Features, index: GeneIndex, found: GeneMatch, sums: np.ndarray | None) -> str:
    """Message if unmatched genes account for many of the counts."""
    if sums is None or found.unmatched_share is None or found.unmatched_share <= LOST:
        return ""
    lost = (found.rows < 0) & features.is_gene
    total = sums[features.is_gene].sum()
    top = [c for c in np.argsort(-sums, kind="stable").tolist() if lost[c]][:200]
    listed = ", ".join(f"{name_of(features, c)} ({sums[c] / total:.1%})" for c in top[:4])
    return (
        f"{found.unmatched_share:.0%} of the counts are dropped: {int(lost.sum())} of the section's "
        f"{int(features.is_gene.sum())} genes are not in the vocabulary, e.g. {listed}. "
        f"{_reason(top, features, index, found, sums)} `print(vocabulary.match(adata))` shows how the other genes "
        "matched."
    )


def _reason(top: list[int], features: Features, index: GeneIndex, found: GeneMatch, sums: np.ndarray) -> str:
    """The most likely reason, weighted by the lost counts."""
    weights: dict[str, float] = {}
    ambiguous = set(found.ambiguous)
    for column in top:
        look = _look(features, index, column, ambiguous)
        weights[look] = weights.get(look, 0.0) + float(sums[column])
    return max(weights, key=lambda look: weights[look])


def _look(features: Features, index: GeneIndex, column: int, ambiguous: set[str]) -> str:
    """Describe in a sentence what an unmatched gene seems to be."""
    name, gene_id = name_of(features, column), features.ids[column]
    if any(source.startswith(f"var['{_keys.ORTHOLOG}") for source in features.symbols):
        return "They have no one-to-one human ortholog in the table, or the ortholog is not in the vocabulary."
    if features.foreign[column]:
        return "Most are genes of another species, according to the genome prefix of their names."
    for pattern, text in LOOKS:
        if any(pattern.fullmatch(n) for n in (gene_id, name, features.names[column]) if n):
            return f"They look like {text}."
    if name in ambiguous:
        return "These names are ambiguous: put Ensembl ids into `adata.var['gene_ids']`."
    if index.exact:
        return (
            "The published vocabulary is matched only by its own names: put Ensembl ids into `adata.var['gene_ids']`."
        )
    if index.human is not None and (gene_id in index.human.of_id or index.human.find(name) >= 0):
        return "They are human genes that are not in the model's vocabulary."
    if is_title_case(name) and not index.title_case:
        return f"They look like {LOOKS[1][1]}."
    return "These names are not in HGNC: put Ensembl ids into `adata.var['gene_ids']`, or correct the names."


def _reduced(adata: AnnData) -> str:
    """Message if the table holds only its highly variable genes."""
    selected = adata.var.get("highly_variable")
    if selected is None or not len(selected) or not selected.eq(True).all():
        return ""
    if adata.raw is not None and adata.raw.n_vars <= adata.n_vars:  # a panel smaller than the number of genes asked for
        return ""
    more = f" (`adata.raw` has {adata.raw.n_vars})" if adata.raw is not None else ""
    return (
        f"All {adata.n_vars} genes are marked in `adata.var['highly_variable']`, so the other genes seem to have been "
        f"removed{more}. Models expect all measured genes: embed the unfiltered counts."
    )


def _doubtful(features: Features, index: GeneIndex, found: GeneMatch) -> str:
    """Message about names that were guessed or that contradict each other."""
    parts = []
    n_both = int(((features.ids != "") & features.is_gene).sum())
    if found.n_contradictions > max(3, 0.01 * n_both):
        some = contradictions(features, index)[:3]
        pairs = ", ".join(f"{name_of(features, c)} beside {features.ids[c]}" for c in some)
        parts.append(
            f"For {found.n_contradictions} of {n_both} genes the symbol is that of another gene than the Ensembl id "
            f"({pairs}). The ids were used. Are the rows of `adata.var` in the right order?"
        )
    if found.guessed:
        parts.append(
            f"Spreadsheet dates were converted to genes: {', '.join(found.guessed)}. Use Ensembl ids to avoid this."
        )
    dates = [name for name in found.ambiguous if re.match(r"X?\d|[A-Z][a-z]{2}-\d", name)]
    if dates:
        parts.append(
            f"Dates that may be several genes were dropped: {_checks.shortlist(dates)}. Use Ensembl ids to avoid this."
        )
    if 2 * found.n_folded > found.n_columns:
        parts.append(
            f"{found.n_folded} of {found.n_columns} genes matched only in another case, such as "
            f"{_checks.shortlist(features.names, 3)}. This is wrong for genes of another species, such as zebrafish "
            "or mouse."
        )
    if found.repeated_share and found.repeated_share > REPEATED:
        parts.append(
            f"Columns that repeat a gene only by its name account for {found.repeated_share:.0%} of the counts and "
            "are added "
            "to it. If they are antibodies or control probes, name them in `adata.var['feature_types']`, or drop them."
        )
    return " ".join(parts)


def _too_small(adata: AnnData, features: Features, index: GeneIndex, found: GeneMatch) -> str:
    """Error message for too few matches: found, expected, remedy."""
    n_genes = int(features.is_gene.sum())
    if n_genes == 0:
        return (
            f"None of the {len(features)} columns of the section is a gene: "
            f"{', '.join(f'{n} {kind}' for kind, n in found.left_out.items())}. stampy needs gene expression."
        )
    seen = _checks.shortlist([features.names[c] for c in np.flatnonzero(features.is_gene)], 4)
    text = (
        f"Only {found.n_matched} of {n_genes} genes of the section are in the vocabulary of {len(index.gene_ids)}: "
        f"seen {seen}, {_expected(index)} (best of all sources: {found.kind} by {found.source})."
    )
    if match(features_of(adata.obs[[]]), index).n_matched > found.n_matched:
        return f"{text} The names in `adata.obs_names` match better: the table seems transposed, use `adata.T`."
    genes = np.flatnonzero(features.is_gene)
    title = np.mean([is_title_case(features.names[c]) for c in genes])
    if np.mean([gene.startswith("ENSMUSG") for gene in features.ids[genes]]) > 0.5:
        return f"{text} These are mouse ids (ENSMUSG); {MOUSE}."
    if features.foreign[genes].mean() > 0.5 or (title > 0.5 and not index.title_case):
        return f"{text} They look like mouse genes; {MOUSE}."
    look = _look(features, index, int(genes[len(genes) // 2]), set())
    hint = f" {look}" if look.startswith("They look") else ""
    return (
        f"{text}{hint} Put Ensembl ids or symbols of the same species into `adata.var_names` or a column such as "
        "`adata.var['gene_ids']`, or use a vocabulary built from such data (`Vocabulary.from_sections`)."
    )


def _expected(index: GeneIndex) -> str:
    """Examples of ids and symbols of the vocabulary."""
    ids = [gene for gene in index.gene_ids if gene.startswith("ENS")][:3] or index.gene_ids[:3]
    rows = [row for row, gene in enumerate(index.gene_ids) if gene in ids]
    symbols = [index.first_symbols[row] for row in rows if index.first_symbols[row]]
    return f"expected ids such as {_checks.shortlist(ids)} or symbols such as {_checks.shortlist(symbols)}"
