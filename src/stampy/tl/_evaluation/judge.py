"""Verdict of `evaluate` for an embedding that was just computed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stampy import _keys
from stampy._section.section import places_of
from stampy._utils import table_of
from stampy.pp._counts import checked_rows, counts_name, counts_of
from stampy.tl._evaluate import Judgement, judged

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stampy.tl._embedding.encoders import Encoder

__all__ = ["judge", "stripped"]

N_SPLITS, N_GENES = 2, 200
MAX_SPOTS = 2000  # evaluated spots: enough for the verdict, in seconds


def judge(
    data: AnnData | SpatialData,
    model: str | Encoder | None = None,
    *,
    key: str = _keys.EMBEDDING,
    table_key: str = _keys.TABLE,
    library_key: str | None = None,
    layer: str | None = None,
    rng: int = 0,
) -> Judgement:
    """Scores, verdict and parameters of `stampy.tl.evaluate` for the embedding `key`; nothing is written into `data`.

    Half of the molecules are embedded with the settings of the record; image vectors are independent of molecules and
    kept. `model` is the model of the embedding; None: that of its record, if it is packaged.

    Raises
    ------
    ValueError
        No genes were embedded, the section cannot be evaluated, or `model` did not make the embedding, see
        `stampy.tl.evaluate`.
    """
    record = table_of(data, table_key).uns[_keys.UNS][key]
    if record["modality"] == "image":
        raise ValueError("No genes were embedded.")
    columns = tuple(str(record[name]) for name in ("library_key",) if name in record)
    copy = stripped(data, key=key, table_key=table_key, library_key=library_key, layer=layer, columns=columns)
    copy.uns[_keys.UNS] = {key: record}
    return judged(
        copy, key, library_key=library_key, layer=None, n_splits=N_SPLITS, n_genes=N_GENES, max_spots=MAX_SPOTS,
        table_key=_keys.TABLE, rng=rng, stability=False, model=None if isinstance(model, str) else model,
    )  # fmt: skip


def stripped(
    data: AnnData | SpatialData,
    *,
    key: str = _keys.EMBEDDING,
    table_key: str = _keys.TABLE,
    library_key: str | None = None,
    layer: str | None = None,
    columns: tuple[str, ...] = (),
) -> AnnData:
    """Copy with counts in memory, coordinates, vectors and some columns of obs; spots are named 0, 1, ..."""
    import anndata
    from scipy import sparse

    table = table_of(data, table_key)
    wanted = list(dict.fromkeys(c for c in (library_key, *columns) if c is not None and c in table.obs))
    obs = table.obs[wanted].set_axis([str(i) for i in range(table.n_obs)])
    rows = checked_rows(counts_of(table, layer), source=counts_name(layer), layers=table.layers)
    counts = sparse.vstack([sparse.csr_matrix(block) for _, block in rows], format="csr")
    places = places_of(data, library_key=library_key, table_key=table_key).xy
    vectors = {k: v for k, v in table.obsm.items() if k.startswith(key)}
    return anndata.AnnData(counts, obs=obs, var=table.var.copy(), obsm={_keys.SPATIAL: places, **vectors})
