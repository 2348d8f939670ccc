"""Text of `demo` and `report` about domains: label-free verdict, agreement with labels, and top genes (not a test)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from stampy import _checks, _keys
from stampy._labels import known_labels
from stampy._utils import table_of

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stampy.tl._embedding.encoders import Encoder

__all__ = ["MIN_SPOTS", "Judged", "about_labels", "about_verdict", "as_categories", "top_genes", "verdict_paragraphs"]

PCA = "X_pca"
MIN_AGREEMENT = 0.3  # adjusted Rand index below which clusters and labels are said to differ


@dataclass(frozen=True)
class Judged:
    """Embedded section, and the parameters of the embedding."""

    data: AnnData | SpatialData
    model: Encoder
    labels: str | None
    _: KW_ONLY
    library_key: str | None
    layer: str | None


def verdict_paragraphs(judged: Judged, seed: int) -> list[str]:
    """Paragraphs that judge the embedding, by `tl.evaluate` and, with labels, by `tl.probe` compared with PCA.

    For a section that cannot be judged (too small, counts that are not whole numbers), the reason is given instead.
    """
    if table_of(judged.data).uns[_keys.UNS][_keys.EMBEDDING]["modality"] == "image":
        return ["Verdict: none, because no genes were embedded."]
    try:
        with warnings.catch_warnings():  # already shown when the section was embedded
            warnings.simplefilter("ignore", _checks.StampyWarning)
            said = [_without_labels(judged, seed)]
            return said if judged.labels is None else [*said, _by_probe(judged, judged.labels, seed)]
    except ValueError as error:
        return [f"Verdict: none for this section. {error}"]


def _without_labels(judged: Judged, seed: int) -> str:
    from stampy.tl._evaluation.judge import judge

    found = judge(judged.data, judged.model, library_key=judged.library_key, layer=judged.layer, rng=seed)
    rows = [f"  {row['score']:6.3f}  {name}" for name, row in found["scores"].iterrows()]
    n = found["parameters"]["n_spots"]
    some = f" of {n} spots" if n < table_of(judged.data).n_obs else ""
    about = f"""Verdict, without labels: {found["verdict"]}
   score  correlation of predicted with measured genes in held-out regions, higher is better: one random half of
          the molecules{some} is embedded, and genes of the other half are predicted from that"""
    return "\n".join([about, *rows])


def about_verdict(data: AnnData | SpatialData, adata: AnnData, model: str | Path | None, embedding: str,
                  library_key: str | None, layer: str | None, table_key: str) -> dict[str, object]:  # fmt: skip
    """Verdict on the embedding: the stored one, if it is about this embedding of these spots, else computed now."""
    stored = adata.uns.get(_keys.EVALUATE, {})
    record = adata.uns.get(_keys.UNS, {}).get(embedding, {})
    if _is_about(stored, embedding, adata.n_obs):
        return _verdict(stored)
    if embedding not in adata.obsm or record.get("modality", "image") == "image" or "model" not in record:
        return {"text": "Not evaluated: the section has no embedding of genes by stampy."}
    from stampy.models._load import load_stamp
    from stampy.tl._evaluation.judge import judge
    from stampy.tl._evaluation.recompute import StoredVectors, is_at_hand, job_of

    loaded = None if model is None else load_stamp(str(model), device="cpu")
    if not is_at_hand(record, loaded):  # a file does not choose what is loaded, or downloaded
        made_by = repr(record["model"])
        return {"text": f"Not evaluated: {made_by} made the embedding. Name it by --model, or use tl.evaluate."}
    if isinstance(job := job_of(adata, embedding, library_key, loaded), StoredVectors):
        return {"text": f"Not evaluated: the embedding cannot be computed again ({job.why})."}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _checks.StampyWarning)
            warnings.filterwarnings(
                "always", ".*(cannot be recomputed from half|was adapted to)", _checks.StampyWarning
            )
            return _verdict(judge(data, loaded, key=embedding, table_key=table_key, library_key=library_key,
                                  layer=layer))  # fmt: skip
    except ValueError as error:  # too small, counts that cannot be split, or another model
        return {"text": f"Not evaluated: {error}"}


def _is_about(stored: object, embedding: str, n_spots: int) -> bool:
    """Whether a stored evaluation contains this embedding, and not of more spots than there are."""
    if not (isinstance(stored, Mapping) and "verdict" in stored and "scores" in stored):
        return False
    n_judged = stored.get("parameters", {}).get("n_spots", 0)
    return embedding in stored["scores"].index and int(n_judged) <= n_spots


def _verdict(found: Mapping[str, Any]) -> dict[str, object]:
    rows = [(str(name), f"{row['score']:.3f}") for name, row in found["scores"].iterrows()]
    return {"text": str(found["verdict"]), "rows": rows}


def _by_probe(judged: Judged, labels: str, seed: int) -> str:
    from stampy import tl
    from stampy.tl._evaluation.judge import stripped

    sections = judged.library_key
    copy = stripped(judged.data, library_key=sections, layer=judged.layer, columns=(labels,))
    tl.embed(copy, "pca", library_key=sections, key_added=PCA, show_progress_bar=False)
    try:
        tl.probe(copy, labels, use_rep=[_keys.EMBEDDING, PCA], library_key=sections, rng=seed)
    except ValueError as error:
        return f"Probe: none for `{labels}`. {error}"
    record = copy.uns[_keys.UNS][_keys.PROBE]
    scores = record["scores"].query("fold == 'all'").set_index("embedding")["balanced_accuracy"]
    chance = 1 / len(record["classes"])
    return f"""Probe: balanced accuracy of a linear classifier that predicts `{labels}` in held-out regions
  {scores[_keys.EMBEDDING]:6.3f}  {_keys.EMBEDDING}
  {scores[PCA]:6.3f}  PCA of the section's genes
  {chance:6.3f}  chance, of {len(record["classes"])} labels"""


def about_labels(adata: AnnData, labels: str, clusters: str) -> str:
    """Agreement of clusters with labels, which were not used for clustering, and an explanation if it is low."""
    from sklearn.metrics import adjusted_rand_score

    column = as_categories(adata, labels)
    known = column.notna()
    if not known.any():
        return f"Labels: `{labels}` contains none."
    score = adjusted_rand_score(column[known].astype(str), adata.obs[clusters][known])
    sizes = column.value_counts(sort=False).sort_values(ascending=False, kind="stable")
    listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
    return (
        f"Labels: clusters agree with `{labels}` by an adjusted Rand index of {score:.3f} (1 equal, 0 chance) over "
        f"{known.sum()} of {adata.n_obs} spots; the clustering did not use them\n  {listed}"
        f"{_why(score, sizes, adata.obs[clusters].nunique())}"
    )


def _why(score: float, sizes: pd.Series, n_clusters: int) -> str:
    """Explain why a low index says little about the embedding; "" for a high one."""
    if score >= MIN_AGREEMENT:
        return ""
    share = float(sizes.iloc[0] / sizes.sum())
    if share > 0.5 and n_clusters > 2:
        reason = f"{share:.0%} of the labelled spots are {sizes.index[0]!r}, which the {n_clusters} clusters divide"
    else:
        reason = f"{n_clusters} clusters of gene expression and image, {np.count_nonzero(sizes)} labels by eye"
    return (
        f"\n  The clusters do not follow these labels: {reason}. The probe shows whether the embedding separates the "
        "labels."
    )


def as_categories(adata: AnnData, labels: str) -> pd.Series:
    """Labels as categories; missing for words such as "undetermined"."""
    codes, names = known_labels(adata.obs[labels], name=f"adata.obs['{labels}']", warn=False)
    return pd.Series(pd.Categorical.from_codes(codes, names), index=adata.obs_names)


MIN_SPOTS = 3


def top_genes(adata: AnnData, column: str, *, layer: str | None = None, n: int = 5) -> dict[str, list[str]]:
    """Marker genes of each group of at least 3 spots, from log-normalised counts.

    Parameters
    ----------
    adata
        Raw counts in ``X`` or `layer`.
    column
        Categorical column of obs.
    layer
        Layer with the counts.
    n
        Maximum number of genes per group.

    Returns
    -------
    Group -> symbols (or ids), best first; empty if there is nothing to compare.
    """
    from stampy.pp._genes.annotation import features_of, gene_names
    from stampy.tl._methods.principal_components import log_normalised

    groups = adata.obs[column].cat.remove_unused_categories()
    sizes = groups.value_counts()
    large = [c for c in groups.cat.categories if sizes[c] >= MIN_SPOTS]
    if len(sizes) < 2 or not large or adata.n_vars == 0:
        return {}
    ids, symbols = gene_names(adata.var)
    names = [s.split("|")[0] or i or v for i, s, v in zip(ids, symbols, adata.var_names, strict=True)]
    counts = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer], dtype=np.float32)
    is_gene = features_of(adata.var).is_gene  # antibodies and control probes are also excluded from the depth
    counts, names = counts[groups.notna().to_numpy()][:, is_gene], np.array(names, dtype=object)[is_gene]
    seen = counts.getnnz(axis=0) >= min(10, adata.n_obs // 10 + 1)
    if not seen.any():
        return {}
    names = names[seen]
    scores = _scores(log_normalised(counts[:, seen])[0], groups.dropna(), large)
    ranked = {c: np.argsort(-s, kind="stable")[:n] for c, s in scores.items()}
    return {c: [names[g] for g in best if scores[c][g] > 0] for c, best in ranked.items()}


def _scores(X: sparse.csr_matrix, groups: pd.Series, large: list[str]) -> dict[str, np.ndarray]:
    """Welch's t of each gene in each group against all other spots; scanpy's ``"t-test_overestim_var"``."""
    found = {}
    codes = groups.to_numpy()
    for group in large:
        inside = codes == group
        n = int(inside.sum())
        mean, var = _moments(X[inside])
        rest_mean, rest_var = _moments(X[~inside])
        spread = np.sqrt((var + rest_var) / n)  # with the group's size for both: conservative
        found[group] = np.divide(mean - rest_mean, spread, out=np.zeros_like(mean), where=spread > 0)
    return found


def _moments(X: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance (ddof 1) of each column."""
    n = X.shape[0]
    mean = np.asarray(X.mean(axis=0, dtype=np.float64)).ravel()
    squares = np.asarray(X.power(2).mean(axis=0, dtype=np.float64)).ravel()
    return mean, np.maximum(squares - mean**2, 0) * n / max(n - 1, 1)
