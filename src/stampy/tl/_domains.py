"""Spatial domains from any embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stampy import _checks, _keys
from stampy._labels import known_labels
from stampy._section.section import has_coordinates, library_key_of, places_of
from stampy._settings import DEFAULT_SEED
from stampy._utils import table_of

from ._embedding.context import smoothed
from ._embedding.spaces import check_one_space, rescaled
from ._evaluation.folds import int_seed
from ._evaluation.metrics import domain_scores
from ._methods.clustering import METHODS, Method, find_domains
from ._probe import with_text_index
from ._results import Result, write_result

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

__all__ = ["domains"]


def domains(
    adata: AnnData | SpatialData,
    n_domains: int | None = None,
    *,
    use_rep: str = _keys.EMBEDDING,
    method: Method | None = None,
    resolution: float | None = None,
    n_neighbors: int = 15,
    max_domains: int = 15,
    n_pcs: int | None = None,
    smooth: int = 0,
    labels: str | None = None,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    rng: int | np.random.Generator | None = DEFAULT_SEED,
    key_added: str = _keys.DOMAINS,
    copy: bool = False,
) -> AnnData | SpatialData | None:
    """Find spatial domains in an embedding, and optionally compare them with labels.

    Several sections are clustered together, so that a domain means the same in all of them.

    Parameters
    ----------
    adata
        Section(s) with an embedding in obsm.
    n_domains
        Number of domains. None: determined by `method`.
    use_rep
        Key of obsm.
    method
        None: k-means if `n_domains` is given, otherwise Leiden. With a known number of domains, k-means and mixtures
        agreed better with labels than Leiden (ARI 0.47 compared with 0.39).

        - ``"leiden"``: communities of scanpy's neighbour graph at `resolution`. If `n_domains` is given, the resolution
          is found by bisection.
        - ``"kmeans"``: if `n_domains` is None, the number from 2 to `max_domains` with the highest silhouette.
        - ``"gmm"``: Gaussian mixture with the covariance of lowest BIC (spherical, diag, tied or full; mclust's VII,
          VVI, EEE and VVV). If `n_domains` is None, the number from 1 to `max_domains` is also selected by BIC.
    resolution
        Resolution of Leiden if `n_domains` is None; None: 1.
    n_neighbors
        Neighbours of each spot in the graph for Leiden.
    max_domains
        Largest number of domains to try with k-means and mixtures.
    n_pcs
        Number of principal components of the embedding to cluster. None: the entire embedding, for mixtures 20.
    smooth
        Before clustering, average each vector over this number of nearest spots of the same section. 0: no smoothing;
        6: all direct neighbours on a Visium grid. Do not smooth an embedding that is already averaged
        (``context="neighbors"``, ``"pca-smoothed"``), because this removes small domains.
    labels
        Column of obs to compare with. It is not used for clustering.
    library_key
        Column of obs that names the section of each spot.
    table_key
        Table of a SpatialData.
    rng
        Seed or generator.
    key_added
        Key for the results.
    copy
        Return a changed copy instead of writing in place.

    Returns
    -------
    None, or the changed copy. Sets the following fields:

    ``obs[key_added]``
        Categorical, "0" is the largest domain.
    ``uns["stamp"][key_added]``
        `scores`: one row for all spots and, with several sections, one per section. Columns are the silhouette, the
        spatial coherence (mean share of a spot's six nearest spots in its domain) and its value by chance, and with
        `labels` ARI, NMI and AMI over the labelled spots. The record also contains the parameters and how the number
        was chosen.

    Warns
    -----
    StampyWarning
        Spots whose embedding is all zeros. No resolution of Leiden gives the requested number; the nearest number is
        used. `smooth` on an embedding that `stampy.tl.embed` has averaged over neighbours.

    Raises
    ------
    KeyError
        A column or embedding is missing.
    ValueError
        More domains than spots, one label only, a section too small for smoothing, NaN in the embedding, an embedding
        that joins those of several models, or conflicting arguments.

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=150, image=False)
    >>> adata.obsm["X_counts"] = adata.X[:, :200].toarray()
    >>> stampy.tl.domains(adata, 4, use_rep="X_counts", method="kmeans", labels="domain")
    >>> adata.obs["stamp_domain"].cat.categories.tolist()
    ['0', '1', '2', '3']
    """
    table = table_of(adata, table_key)
    if method is None:
        method = "leiden" if n_domains is None else "kmeans"
    _check(table.n_obs, n_domains, method, resolution, n_neighbors, max_domains, n_pcs, smooth)
    values = rescaled(_checks.embedding(table, use_rep))
    check_one_space(table, use_rep)
    if n_empty := int((~values.any(axis=1)).sum()):
        _checks.warn(
            f"{n_empty} of {len(values)} spots are all zeros in `obsm['{use_rep}']` (no counts?). They are clustered "
            "with each other, and not averaged into their neighbours. Remove them before clustering."
        )
    library_key = library_key_of(adata, library_key, table_key)
    sections, names = _checks.libraries(table, library_key)
    codes = None
    if labels is not None:
        _checks.has_key(table.obs, labels, slot="adata.obs", needs="`labels` names the column to compare with.")
        codes, classes = known_labels(table.obs[labels], name=f"adata.obs['{labels}']")
        _checks.two_labels(classes, int((codes >= 0).sum()), len(codes), key=labels)
    xy = _places(adata, library_key, table_key, needed=smooth > 0)
    seed = int_seed(rng)
    if smooth and xy is not None:
        _warn_if_averaged(table, use_rep, smooth)
        values = smoothed(values, xy, smooth, sections, names=names)
    found, how = find_domains(
        values, n_domains, method=method, resolution=resolution, n_neighbors=n_neighbors, max_domains=max_domains,
        n_pcs=n_pcs, rng=seed,
    )  # fmt: skip
    named = np.array(names, dtype=object)[sections] if library_key else None
    scores = domain_scores(values, found, labels=codes, xy=xy, sections=named, rng=seed)
    named_domains = pd.Categorical.from_codes(found, [str(i) for i in range(how["n_domains"])])
    record: dict[str, Any] = {
        "use_rep": use_rep, "method": method, "smooth": smooth, "seed": seed, **how,
        "scores": with_text_index(scores), **({} if labels is None else {"label_key": labels}),
    }  # fmt: skip
    return write_result(
        adata, Result(key_added, record, obs={key_added: named_domains}), copy=copy, table_key=table_key
    )


def _places(data: Any, library_key: str | None, table_key: str, *, needed: bool) -> np.ndarray | None:
    """Coordinates (n, 2); None, with a warning, if they are invalid and only the coherence needs them."""
    if not needed and not has_coordinates(data, table_key):
        return None
    try:
        return places_of(data, library_key=library_key, table_key=table_key).xy
    except ValueError as error:
        if needed:
            raise
        _checks.warn(f"The coherence of the domains is not computed. {error}")
        return None


def _warn_if_averaged(table: AnnData, use_rep: str, smooth: int) -> None:
    """Warn about an embedding that is already averaged over neighbours."""
    records = table.uns.get(_keys.UNS, {})
    main = use_rep.removesuffix(_keys.GENE_SUFFIX).removesuffix(_keys.IMAGE_SUFFIX)
    record = records.get(use_rep, records.get(main, {}))
    how = record.get("context") or (record.get("model") == "pca-smoothed" and "pca-smoothed")
    if how:
        _checks.warn(
            f"`obsm['{use_rep}']` is averaged over neighbours already ({how}), and `smooth={smooth}` averages "
            "again, which may remove small domains. Omit `smooth`, or embed without `context`."
        )


def _check(n: int, n_domains: Any, method: Any, resolution: Any, n_neighbors: Any, max_domains: Any,
           n_pcs: Any, smooth: Any) -> None:  # fmt: skip
    """Raise for values out of range and conflicting arguments."""
    _checks.one_of("method", method, METHODS)
    _checks.at_least("n_neighbors", n_neighbors, 2)
    _checks.at_least("max_domains", max_domains, 2)
    _checks.at_least("smooth", smooth, 0)
    if n_pcs is not None:
        _checks.at_least("n_pcs", n_pcs, 1)
    if n < 3:
        raise ValueError(f"Domains need at least 3 spots, found {n}.")
    if n_domains is not None:
        _checks.at_least("n_domains", n_domains, 2)
        _checks.at_most("n_domains", n_domains, n - 1)
    if resolution is not None:
        _checks.positive("resolution", resolution)
        if method != "leiden" or n_domains is not None:
            raise ValueError("`resolution` is for method='leiden' without `n_domains`. Omit one of them.")
