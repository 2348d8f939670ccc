"""Whole slides of a table: embedded once each, then classified by `stampy.tl.slide`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stampy import _keys, datasets, tl
from stampy._files import digest_of_path

from ._config import Config, DataSet, System, Task
from ._embeddings import Cache, identity
from ._tasks import OVERALL, NotApplicable, Score

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["manifest_of", "slide_scores"]


def manifest_of(data: DataSet, config: Config) -> pd.DataFrame:
    """The data set's table of slides; raises what `stampy.datasets.slide_manifest` raises."""
    options: dict[str, Any] = dict(data.slides)
    return datasets.slide_manifest(config.folder / options.pop("path"), **options)


def slide_scores(
    manifest: pd.DataFrame, data: DataSet, system: System, task: Task, seeds: Sequence[int], cache: Cache
) -> list[tuple[int, Score]]:
    """AUC and balanced accuracy of each kind of pooling, for each seed."""
    if system.smooth:
        raise NotApplicable("tiles of whole slides are not smoothed")
    if system.modality not in (None, "image"):
        raise NotApplicable(f"a whole slide has an image alone, and it embeds {system.modality}")
    table = _tiles(manifest, system, cache)
    scores = []
    for seed in seeds:
        tl.slide(
            table, "label", use_rep=_keys.EMBEDDING, methods=task.options["methods"], n_folds=data.n_folds, rng=seed,
            device=cache.device, show_progress_bar=cache.progress,
        )  # fmt: skip
        for method, row in table.uns[_keys.SLIDE_RESULT]["metrics"].iterrows():
            chances = {"auc": 0.5, "balanced_accuracy": 1 / manifest["label"].nunique()}
            for metric, chance in chances.items():
                score = Score(OVERALL, str(method), metric, float(row[metric]), int(row["n_slides"]), chance)
                scores.append((seed, score))
    return scores


def _tiles(manifest: pd.DataFrame, system: System, cache: Cache) -> AnnData:
    """Tiles of all slides with their embeddings, from disk where they are there."""
    import anndata

    tables = []
    for name, row in manifest.iterrows():
        slide = digest_of_path(row["slide"])
        what = f"{identity(system.model)} {system.level} {dict(system.embed)} {row['slide']} {slide}"
        key = hashlib.sha256(what.encode()).hexdigest()[:16]
        store = tl.embed_slide(
            row["slide"], cache.folder / f"{re.sub(r'[^0-9A-Za-z.-]', '_', str(name))}-{key}.zarr", model=system.model,
            level=system.level, name=str(name), device=cache.device, show_progress_bar=cache.progress, **system.embed,
        )  # fmt: skip
        table = anndata.read_zarr(store)
        table.obs[_keys.SLIDE], table.obs[_keys.PATIENT], table.obs["label"] = str(name), row["patient"], row["label"]
        del table.uns  # pictures of hundreds of slides
        tables.append(table)
    return anndata.concat(tables, index_unique="-", keys=list(manifest.index))
