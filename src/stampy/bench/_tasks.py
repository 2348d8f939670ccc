"""Every task on sections or slides and their embeddings, by the functions of `stampy.tl`.

A task takes a `Case` and a seed and yields scores; it raises `NotApplicable` with the reason if it does not apply.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

import numpy as np

from stampy import _keys, datasets, models, tl
from stampy._files import digest_of_path
from stampy._labels import known_labels
from stampy.pp import Vocabulary, tokenize
from stampy.pp._genes.annotation import gene_columns
from stampy.tl._evaluation.label_free import masked_accuracy
from stampy.tl._evaluation.metrics import confusion, label_scores

from ._config import Config, DataSet, System, Task
from ._embeddings import KEY, LABELS, PATIENT, SECTION, TOWERS, Cache, Embedded, LoadedSection, identity

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

__all__ = ["RUNNERS", "Case", "NotApplicable", "Score", "depends_on_seed", "manifest_of", "slide_scores"]

OVERALL = "all"


class NotApplicable(ValueError):
    """A task that does not apply to this system or section."""


@dataclass(frozen=True)
class Score:
    """One result."""

    section: str
    variant: str
    metric: str
    value: float
    n_spots: int
    chance: float = math.nan


class HeldOut(TypedDict):
    """Arguments of `stampy.tl.probe` and `stampy.tl.expression` for the folds."""

    folds: Literal["blocks", "random", "section", "patient"]
    n_folds: int
    library_key: NotRequired[str]
    patient_key: NotRequired[str]


@dataclass(frozen=True, eq=False)
class Case:
    """Sections of a data set that are evaluated together, and their embeddings by one system."""

    data: DataSet
    system: System
    task: Task
    sections: Sequence[LoadedSection]
    embedded: Sequence[Embedded]
    device: str | None = None

    def table(self, *, counts: bool = False) -> AnnData:
        """All sections in one table, with the embeddings in obsm."""
        import anndata

        tables = []
        for section, found in zip(self.sections, self.embedded, strict=True):
            adata = section.adata
            columns = [c for c in (LABELS, SECTION, PATIENT) if c in adata.obs]
            x, var = _genes_of(adata) if counts else (None, None)
            table = anndata.AnnData(x, obs=adata.obs[columns].copy(), var=var)
            table.obs_names = section.name + ":" + table.obs_names  # barcodes repeat between sections
            table.obsm[_keys.SPATIAL] = np.asarray(adata.obsm[_keys.SPATIAL], dtype=np.float64)
            for part, values in found.vectors.items():
                table.obsm[TOWERS[part]] = values
            tables.append(table)
        return tables[0] if len(tables) == 1 else anndata.concat(tables, join="inner")

    def folds(self) -> HeldOut:
        """Arguments of `stampy.tl` functions for the folds."""
        found: HeldOut = {"folds": self.data.folds, "n_folds": self.data.n_folds}
        if len(self.sections) > 1:
            found["library_key"], found["patient_key"] = SECTION, PATIENT
        return found


def _genes_of(adata: AnnData) -> tuple[Any, pd.DataFrame]:
    """Counts and names of genes only, without antibodies, guides and control probes."""
    is_gene, _ = gene_columns(adata.var)
    return (adata.X if is_gene.all() else adata.X[:, np.flatnonzero(is_gene)]), adata.var.loc[is_gene, []]


def depends_on_seed(task: str, data: DataSet) -> bool:
    """Whether different seeds can give different results.

    >>> depends_on_seed("retrieve", DataSet(name="x"))
    False
    """
    return task not in ("retrieve",) and (
        task not in ("probe", "expression") or data.folds in ("blocks", "random") or data.n_folds < len(data.sections)
    )


def probe(case: Case, seed: int) -> Iterator[Score]:
    """Linear probe: scores of the held-out spots of each section."""
    named = models.split_name(case.system.model)
    if len(case.sections) > 1 and named and models.card(named[0]).trained_on.startswith("nothing: fitted"):
        raise NotApplicable(
            "it is fitted to each section separately, so its axes differ between sections and a probe cannot be "
            "transferred to other sections"
        )
    table = case.table()
    tl.probe(table, LABELS, use_rep=KEY, method=case.task.options["method"], rng=seed, **case.folds())
    codes, names = known_labels(table.obs[LABELS], warn=False)
    predicted = table.obs[f"{_keys.PROBE}_{KEY}"].cat.codes.to_numpy().astype(np.int64)
    for section in case.sections:
        rows = (table.obs[SECTION] == section.name).to_numpy() & (codes >= 0)
        if not rows.any():
            continue
        counts = confusion(codes[rows], predicted[rows], len(names))
        chance = 1 / int((counts.sum(axis=1) > 0).sum())
        for metric, value in label_scores(counts).items():
            level = chance if metric == "balanced_accuracy" else math.nan
            yield Score(section.name, case.task.options["method"], metric, value, int(rows.sum()), level)


def domains(case: Case, seed: int) -> Iterator[Score]:
    """Compare clusters, as many as there are labels, with the labels."""
    (section,) = case.sections
    codes, names = known_labels(section.adata.obs[LABELS])
    for method in case.task.options["methods"]:
        table = case.table()
        tl.domains(table, len(names), use_rep=KEY, method=method, labels=LABELS, rng=seed)
        row = table.uns[_keys.UNS][_keys.DOMAINS]["scores"].iloc[0]
        for metric in ("ari", "nmi", "ami", "silhouette", "coherence"):
            if metric in row:
                chance = 0.0 if metric in ("ari", "ami") else float(row.get(f"{metric}_by_chance", math.nan))
                yield Score(section.name, method, metric, float(row[metric]), int((codes >= 0).sum()), chance)


def retrieve(case: Case, seed: int) -> Iterator[Score]:
    """Retrieval of a spot's genes from its image, and vice versa, within a section."""
    (section,), (found,) = case.sections, case.embedded
    if not {"gene", "image"} <= set(found.vectors):
        raise NotApplicable(
            f"it embeds only {'genes' if found.modality == 'gene' else 'images'}; retrieval needs genes and images "
            "in one space"
        )
    if case.system.level != "embedding":
        raise NotApplicable("features of genes and images share no space")
    table = case.table()
    for direction in case.task.options["directions"]:
        query, target = direction.split(" to ")
        tl.retrieve(table, query=query, target=target, k=1, embedding_key=KEY, show_progress_bar=False, rng=seed)
        recall = table.uns[_keys.UNS][_keys.RETRIEVE]["recall"]
        for _, row in recall[recall["section"] == OVERALL].iterrows():
            yield Score(
                section.name, direction, f"recall@{row['k']}", float(row["recall"]), int(row["queries"]),
                float(row["chance"]),
            )  # fmt: skip


def expression(case: Case, seed: int) -> Iterator[Score]:
    """Expression of held-out spots predicted from their images."""
    modality = case.embedded[0].modality
    if modality != "image":
        raise NotApplicable(
            f"it embeds {'genes' if modality == 'gene' else 'genes as well'}, which are to be predicted"
        )
    table = case.table(counts=True)
    options = case.task.options
    several = len(case.sections) > 1
    for method in options["methods"]:
        tl.expression(
            table, use_rep=KEY, method=method, n_top_genes=options["n_top_genes"], transform=options["transform"],
            rng=seed, **case.folds(),
        )  # fmt: skip
        scores = table.uns[_keys.UNS][_keys.EXPRESSION]["scores"]
        level = "slide" if several else "pooled"
        for group, part in scores[scores["level"] == level].groupby("group", sort=False):
            name, n = (str(group) if several else case.sections[0].name), int(part["n_spots"].iloc[0])
            yield Score(name, method, "pearson", float(part["pearson"].mean()), n, 0.0)
            yield Score(name, method, "mse", float(part["mse"].mean()), n)
        if several:
            pooled = scores[scores["level"] == "pooled"]
            yield Score(OVERALL, method, "pearson_pooled", float(pooled["pearson"].mean()), table.n_obs, 0.0)


def masked(case: Case, seed: int) -> Iterator[Score]:
    """Prediction of masked genes of some spots of a section."""
    (section,), system = case.sections, case.system
    if case.embedded[0].modality != "gene" or system.smooth or system.embed or system.level != "embedding":
        raise NotApplicable("this task is for gene encoders without smoothing or image")
    if models.split_name(system.model) is not None and system.model not in models.packaged():
        raise NotApplicable("it has no head for its spots' own genes (IGR)")
    model = models.load(system.model, device=case.device)
    if not isinstance(model, models.Stamp) or model.genes is None:
        raise NotApplicable("it has no head for its spots' own genes (IGR), or no vocabulary")
    rows = np.random.default_rng([seed, 1]).permutation(section.adata.n_obs)[: case.task.options["n_spots"]]
    part = section.adata[np.sort(rows)].copy()
    tokenize(part, Vocabulary(model.genes), max_tokens=model.config.gene.max_tokens)
    tokens = part.obsm[_keys.TOKENS]
    found = masked_accuracy(model.eval(), tokens, fraction=case.task.options["fraction"], rng=seed)
    for k in (1, 10):
        chance = found[f"unseen_top{k}"]
        yield Score(section.name, "", f"top{k}", found[f"top{k}"], part.n_obs, chance)
        yield Score(section.name, "", f"majority_top{k}", found[f"majority_top{k}"], part.n_obs)


def quietly(runner: Callable[[Case, int], Iterator[Score]], case: Case, seed: int) -> list[Score]:
    """All scores of a task; its warnings are logged, since tables cannot contain them."""
    import logging

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        scores = list(runner(case, seed))
    for text in dict.fromkeys(str(w.message) for w in caught if issubclass(w.category, UserWarning)):
        logging.getLogger(__name__).info("%s, %s: %s", case.data.name, case.system.name, text)
    return scores


RUNNERS: dict[str, Callable[[Case, int], Iterator[Score]]] = {
    "probe": probe,
    "domains": domains,
    "retrieve": retrieve,
    "expression": expression,
    "masked": masked,
}


def manifest_of(data: DataSet, config: Config) -> pd.DataFrame:
    """Table of the data set's slides; raises the errors of `stampy.datasets.slide_manifest`."""
    options: dict[str, Any] = dict(data.slides)
    return datasets.slide_manifest(config.folder / options.pop("path"), **options)


def slide_scores(
    manifest: pd.DataFrame, data: DataSet, system: System, task: Task, seeds: Sequence[int], cache: Cache
) -> list[tuple[int, Score]]:
    """AUC and balanced accuracy by pooling method and seed."""
    if system.smooth:
        raise NotApplicable("tiles of whole slides are not smoothed")
    if system.modality not in (None, "image"):
        raise NotApplicable(f"a whole slide has only an image, and it embeds {system.modality}")
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
    """Tiles of all slides with their embeddings, read from disk if already computed."""
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
        del table.uns  # images of hundreds of slides
        tables.append(table)
    return anndata.concat(tables, index_unique="-", keys=list(manifest.index))
