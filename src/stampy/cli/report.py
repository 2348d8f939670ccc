"""HTML report of a section: gene overlap with the model, tokens, maps, domains with their genes, provenance."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

import stampy
from stampy import _checks, _files, _keys, _utils
from stampy._io import read as _formats
from stampy._labels import known_labels
from stampy._section.image.choose import without_refused
from stampy.cli.domain_summary import about_verdict, top_genes
from stampy.cli.early_checks import checked_file
from stampy.cli.options import in_options
from stampy.cli.pages import Maps, Picture, maps_of, percent_of, png_of, render

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.figure import Figure

    from stampy.models import Stamp
    from stampy.pp._genes.match_report import GeneMatch

__all__ = ["report"]

MINI = "stampy-mini"
DOMAIN_COLUMNS = (_keys.DOMAINS, "stamp_cluster", "leiden")  # in this order
COUNTS, TOKENS, DOMAIN = "counts", "tokens", "domain"  # columns of the table for the maps
SHORT = 80  # tokens; spots with fewer are reported as short
MAX_ROWS = 40  # rows per table


@dataclass(frozen=True)
class GeneFacts:
    """Overlap of genes with the vocabulary, and counts."""

    match: GeneMatch
    tokens: np.ndarray  # (n,) distinct vocabulary genes per spot
    total: np.ndarray  # (n,) counts per spot
    known: float  # fraction of the counts in vocabulary genes
    unknown: list[tuple[str, float]]  # most abundant genes outside the vocabulary, and their fraction of all counts


def report(
    source: str | Path,
    target: str | Path,
    *,
    model: str | Path | None = None,
    embedding: str = _keys.EMBEDDING,
    domains: str | None = None,
    library_key: str | None = None,
    image_key: str | None = None,
    layer: str | None = None,
    table_key: str = _keys.TABLE,
    n_genes: int = 8,
    overwrite: bool = False,
) -> Path:
    """Write an HTML report of a section as one self-contained file without scripts.

    The section is not changed. If it has an embedding but no domains, domains are computed for the report only.

    Parameters
    ----------
    source
        ``.h5ad``, ``.zarr`` (AnnData or SpatialData) or a folder in a format of `stampy.read`.
    target
        Output path, ``.html``.
    model
        Model whose vocabulary is compared with the genes. None: the model of the embedding if it is packaged, else
        stampy-mini. A folder or URL in the section's provenance is not loaded.
    embedding
        Key of obsm.
    domains
        Column of obs; None: the first of ``stamp_domain``, ``stamp_cluster`` and ``leiden`` that exists.
    library_key
        Column of obs that names the section of each spot.
    image_key
        Image of the maps, such as "lowres", or a name in ``sdata.images``; None: the image that models use. If that
        image is ambiguous or unreadable, the page says so and the maps have no image.
    layer
        Layer with raw counts; None: ``X``.
    table_key
        Table of a SpatialData.
    n_genes
        Number of genes listed per domain.
    overwrite
        Replace an existing `target`.

    Returns
    -------
    Path of the report.

    Raises
    ------
    FileExistsError, FileNotFoundError, KeyError, ValueError
        `target` exists, or an input is missing; raised before any work is done.

    Examples
    --------
    >>> import stampy, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     stampy.datasets.toy(n_spots=60).write_h5ad(f"{folder}/a.h5ad")
    ...     path = report(f"{folder}/a.h5ad", f"{folder}/a.html")
    ...     "Content-Security-Policy" in path.read_text()
    True
    """
    path = _checked(target, overwrite=overwrite, n_genes=n_genes)
    data = _formats.read(source)
    adata = _utils.table_of(data, table_key)
    _check(adata, domains, library_key, layer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        without_refused(adata)
        maps = maps_of(data, library_key=library_key, image_key=image_key, table_key=table_key)
        found = _contents(adata, maps, Path(source), model, embedding, domains, layer, n_genes)
        found["verdict"] = about_verdict(data, adata, model, embedding, library_key, layer, table_key)
    notes = dict.fromkeys(in_options(w.message) for w in caught if issubclass(w.category, _checks.StampyWarning))
    text = render(
        "report.html.j2", title=Path(source).name, version=stampy.__version__, notes=list(notes), **found
    )  # fmt: skip
    with _files.atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _checked(target: str | Path, *, overwrite: bool, n_genes: int) -> Path:
    path = Path(target).expanduser()
    if path.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"The report must end in .html, found {path.name!r}.")
    _checks.at_least("n_genes", n_genes, 1)
    return checked_file(path, overwrite=overwrite)


def _check(adata: AnnData, domains: str | None, library_key: str | None, layer: str | None) -> None:
    _checks.not_empty(adata, genes=False)
    if domains is not None:
        _checks.has_key(adata.obs, domains, slot="adata.obs", needs="`--domains` names a column of domains.")
    if layer is not None:
        _checks.has_key(adata.layers, layer, slot="adata.layers", needs="`layer=` names the raw counts.")
    _checks.libraries(adata, library_key)


def _contents(adata: AnnData, maps: Maps, source: Path, model: str | Path | None, embedding: str,
              domains: str | None, layer: str | None, n_genes: int) -> dict[str, object]:  # fmt: skip
    """Contents of the page, from top to bottom."""
    import matplotlib

    matplotlib.use("agg")
    from stampy.models._load import load_stamp

    record = adata.uns.get(_keys.UNS, {}).get(embedding, {})
    name, why = _model_of(model, record)
    loaded = load_stamp(name, device="cpu")
    genes = _genes(adata, loaded, layer) if adata.n_vars and (adata.X is not None or layer) else None
    return {
        "facts": _facts(adata, genes, record, len(maps.names)),
        "vocabulary": None if genes is None else _about_vocabulary(genes, loaded, why),
        "tokens": None if genes is None else _about_tokens(genes, loaded.config.gene.max_tokens),
        "n_sections": len(maps.names),
        "maps": _maps(adata, maps, genes, embedding),
        "domains": _about_domains(adata, maps, embedding, domains, layer, n_genes if genes is not None else 0),
        "provenance": _provenance(adata, source),
    }


def _model_of(model: str | Path | None, record: Mapping[str, Any]) -> tuple[str | Path, str]:
    """Model whose vocabulary is used, and why."""
    from stampy import models

    if model is not None:
        return model, "as asked for"
    made_by = str(record.get("model") or "")
    if made_by in models.packaged():
        return made_by, "which made the embedding"
    # Paths and URLs in a file are not followed, since they were chosen by the file's author.
    return MINI, f"not {made_by!r}, which made the embedding: name it by --model" if made_by else "the packaged model"


def _genes(adata: AnnData, model: Stamp, layer: str | None) -> GeneFacts:
    """Overlap and token counts, computed in blocks of rows."""
    from scipy import sparse

    from stampy.pp import Vocabulary
    from stampy.pp._counts import checked_rows, counts_of
    from stampy.pp._genes.annotation import features_of
    from stampy.pp._genes.match_report import match

    vocabulary = Vocabulary(model.genes)
    features = features_of(adata.var)
    found = match(features, vocabulary.index)  # no error for low overlap, which is a result of the report
    known, is_gene = found.rows >= 0, features.is_gene
    tokens, total = np.zeros(adata.n_obs, dtype=np.int64), np.zeros(adata.n_obs)
    per_gene = np.zeros(adata.n_vars)
    to_vocabulary = sparse.csr_matrix(
        (np.ones(known.sum()), (np.flatnonzero(known), found.rows[known])), shape=(adata.n_vars, len(vocabulary))
    )
    for start, block in checked_rows(counts_of(adata, layer), source="the counts", layers=adata.layers):
        part = slice(start, start + block.shape[0])
        total[part] = np.asarray(block[:, is_gene].sum(axis=1)).ravel()
        per_gene += np.asarray(block.sum(axis=0)).ravel()
        tokens[part] = ((block > 0).astype(np.float32) @ to_vocabulary).getnnz(axis=1)
    everything = max(float(per_gene[is_gene].sum()), 1e-12)
    outside = np.flatnonzero(~known & is_gene & (per_gene > 0))
    outside = outside[np.argsort(-per_gene[outside], kind="stable")][:10]
    unknown = [(str(adata.var_names[i]), float(per_gene[i]) / everything) for i in outside]
    return GeneFacts(found, tokens, total, float(per_gene[known].sum()) / everything, unknown)


def _facts(adata: AnnData, genes: GeneFacts | None, record: Mapping[str, object], n_sections: int) -> dict[str, str]:
    n_genes = adata.n_vars if genes is None else adata.n_vars - genes.match.n_left_out
    facts = {"spots": f"{adata.n_obs:,}", "genes": f"{n_genes:,}"}
    if n_sections > 1:
        facts["sections"] = str(n_sections)
    if genes is not None:
        facts["counts a spot (median)"] = f"{np.median(genes.total):,.0f}"
        facts["tokens a spot (median)"] = f"{np.median(genes.tokens):,.0f}"
        facts["counts in the vocabulary"] = percent_of(genes.known, digits=1)
    facts["embedding"] = str(record.get("modality", "none yet"))
    return facts


def _about_vocabulary(genes: GeneFacts, model: Stamp, why: str) -> dict[str, str]:
    found = genes.match
    n_genes = found.n_vars - found.n_left_out
    share = found.n_matched / max(n_genes, 1)
    others = ", ".join(f"{n:,} {kind}" for kind, n in found.left_out.items())
    return {
        "text": f"{found.n_matched:,} of the section's {n_genes:,} genes ({percent_of(share)}) are in the vocabulary "
        f"of {model.name} ({why}), which has {found.n_vocabulary:,}. They were matched by {found.source} and account "
        f"for {percent_of(genes.known, digits=1)} of all counts."
        + (f" Not genes, and ignored: {others}." if others else ""),
        "share": percent_of(share),
        "width": f"{share:.1%}",
        "unknown": ", ".join(f"{name} ({_percent(part)})" for name, part in genes.unknown),
    }


def _percent(part: float) -> str:
    """A fraction as text, also if very small.

    >>> _percent(0.0123), _percent(1e-6)
    ('1.23%', '< 0.01%')
    """
    return f"{part:.2%}" if part >= 0.0001 else "< 0.01%"


def _about_tokens(genes: GeneFacts, max_tokens: int) -> dict[str, object]:
    marks = np.percentile(genes.tokens, [0, 5, 25, 50, 75, 95, 100])
    cut, short = (genes.tokens > max_tokens).mean(), (genes.tokens < SHORT).mean()
    return {
        "text": "The tokens of a spot are its genes in the vocabulary, sorted by how far they exceed their usual "
        f"level. The model uses the first {max_tokens:,}: {cut:.1%} of the spots have more. {short:.1%} have fewer "
        "than "
        f"{SHORT}{'; their embedding is unreliable' if short else ''}.",
        "histogram": png_of(_histogram(genes.tokens, max_tokens), "Spots by their number of tokens"),
        "names": ("least", "5 %", "25 %", "median", "75 %", "95 %", "most"),
        "marks": [f"{v:,.0f}" for v in marks],
    }


def _histogram(tokens: np.ndarray, max_tokens: int) -> Figure:
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, 2.5), layout="constrained")
    ax.hist(tokens, bins=min(50, max(10, int(len(tokens) ** 0.5))), color="#0072B2")
    if tokens.max() > max_tokens:
        ax.axvline(max_tokens, color="#D55E00", linestyle="--", linewidth=1)
        left = max_tokens < tokens.max() / 2
        ax.annotate(f"model uses {max_tokens:,}", (max_tokens, 1), (4 if left else -4, 2),
                    xycoords=("data", "axes fraction"), textcoords="offset points", ha="left" if left else "right",
                    va="bottom", color="#D55E00", fontsize="small")  # fmt: skip
    ax.set(xlabel="tokens", ylabel="spots")
    ax.set_xlim(left=0)
    ax.spines[["top", "right"]].set_visible(False)
    return figure


def _maps(adata: AnnData, maps: Maps, genes: GeneFacts | None, embedding: str) -> list[Picture]:
    if not maps.placed:
        return []
    wanted: dict[str | None, tuple[str, str | None]] = {None: ("Tissue and spots", None)}
    if genes is not None:
        maps.table.obs[COUNTS], maps.table.obs[TOKENS] = genes.total, genes.tokens
        wanted[COUNTS] = ("Counts of each spot", "p99")
        wanted[TOKENS] = ("Tokens of each spot", "p99")
    if _has_colours(adata, embedding):
        maps.table.obsm[embedding] = adata.obsm[embedding]
        caption = "three principal components as red, green and blue; spots with similar colours have similar vectors"
        wanted[embedding] = (f"{embedding}: {caption}", None)
    return [maps.draw(color, caption, vmax=vmax) for color, (caption, vmax) in wanted.items()]


def _has_colours(adata: AnnData, key: str) -> bool:
    return key in adata.obsm and np.ndim(adata.obsm[key]) == 2 and adata.obsm[key].shape[1] >= 3


def _about_domains(adata: AnnData, maps: Maps, embedding: str, column: str | None, layer: str | None,
                   n_genes: int) -> dict[str, object]:  # fmt: skip
    values, where = _domains(adata, maps, embedding, column)
    if values is None:
        return {"text": where}
    labelled = _labelled(adata, values)
    sizes = values.value_counts(sort=False)
    markers = top_genes(labelled, DOMAIN, layer=layer, n=n_genes) if n_genes else {}
    rows = [(name, f"{n:,}", f"{n / len(values):.1%}", ", ".join(markers.get(name, [])) or "–")
            for name, n in list(sizes.items())[:MAX_ROWS]]  # fmt: skip
    drawn = None
    if maps.placed:
        maps.table.obs[DOMAIN] = values.array
        drawn = maps.draw(DOMAIN, "Domains over the tissue")
    cut = f"The first {MAX_ROWS} of {len(sizes)} are listed." if len(sizes) > MAX_ROWS else ""
    return {"text": where, "map": drawn, "rows": rows, "cut": cut}


def _domains(adata: AnnData, maps: Maps, embedding: str, column: str | None) -> tuple[pd.Series | None, str]:
    """Domain of each spot as text, and its source; None and the reason if there are none."""
    column = column or next((c for c in DOMAIN_COLUMNS if c in adata.obs), None)
    if column is not None:
        codes, names = known_labels(adata.obs[column], name=f"adata.obs['{column}']")
        values = pd.Series(pd.Categorical.from_codes(codes, names), index=adata.obs_names)
        unlabelled = int((codes < 0).sum())
        return values, f"From obs[{column!r}]." + (f" {unlabelled:,} spots have no label." if unlabelled else "")
    if embedding not in adata.obsm:
        return None, f"There is no embedding {embedding!r} yet. Embed with stampy embed, then report again."
    if adata.n_obs < 3:
        return None, "Too few spots for domains."
    from stampy import tl

    maps.table.obsm[embedding] = adata.obsm[embedding]
    tl.domains(maps.data, use_rep=embedding, library_key=maps.library_key, table_key=maps.table_key)
    return maps.table.obs[_keys.DOMAINS], (
        f"Found for this report in {embedding} by stampy.tl.domains with its defaults (Leiden, resolution 1); they "
        "are not in the file."
    )


def _labelled(adata: AnnData, values: pd.Series) -> AnnData:
    """The counts, not copied, with the domains as a column."""
    import anndata

    obs = pd.DataFrame({DOMAIN: values.array}, index=adata.obs_names)
    return anndata.AnnData(adata.X, obs=obs, var=adata.var, layers=dict(adata.layers))


def _provenance(adata: AnnData, source: Path) -> list[tuple[str, str]]:
    rows = [("file", str(source)), ("report by", f"stampy {stampy.__version__}")]
    return rows + list(_flat(adata.uns.get(_keys.UNS, {}), ()))


def _flat(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Nested records as `a.b.c`, value; tables and long lists only by their size."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, (*path, str(key)))
    elif isinstance(value, pd.DataFrame) or np.ndim(value) > 1:
        yield ".".join(path), f"table of {' x '.join(map(str, np.shape(value)))}"
    else:
        text = _checks.shortlist(np.asarray(value).tolist()) if np.ndim(value) == 1 else str(value)
        yield ".".join(path), text if len(text) <= 300 else f"{text[:300]}…"
