"""Embed half of the molecules in the way in which a stored embedding was made, for `tl.evaluate`.

Shapes: n spots, d columns of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from stampy import _checks, _keys
from stampy.models import packaged
from stampy.models._systems.catalogue import CARDS
from stampy.tl._embed import embed
from stampy.tl._embedding.adaptation import fitted
from stampy.tl._embedding.context import arranged
from stampy.tl._embedding.encoders import BASELINES, digest_of_towers, loaded_model
from stampy.tl._embedding.spaces import unit

if TYPE_CHECKING:
    from anndata import AnnData
    from spatialdata import SpatialData

    from stampy.tl._embedding.arguments import Level
    from stampy.tl._embedding.encoders import Encoder

__all__ = ["SAME", "Recomputed", "StoredVectors", "agreement", "is_at_hand", "job_of"]

SAME = 0.98  # least agreement of vectors made in the same way
SAME_FIT = 0.9  # of a model fitted again, whose minor axes depend on the solver's start, or a direction of a piece
SAME_PCA = 0.5  # minor components change with few spots
N_COMPARED = 500  # spots


@dataclass(frozen=True)
class StoredVectors:
    """Embedding whose vectors in obsm are used unchanged.

    Image vectors contain no molecules, so they are judged fairly; `why` states why others cannot be recomputed, and
    `remedy` what makes the comparison fair.
    """

    key: str
    of_image: bool = False
    why: str = ""
    remedy: str = "pass the model (`model=`), or a function that embeds a table (`keys={'name': function}`)"


@dataclass(frozen=True, eq=False)
class Recomputed:
    """Embeds a table of counts with the model and settings of a stored embedding.

    Values before centring and averaging are kept in the table, because several embeddings share them. Fused vectors
    keep their image part, which does not depend on molecules.
    """

    key: str
    record: Mapping[str, Any]
    model: Encoder | str
    library_key: str | None
    fused: bool

    def __call__(self, table: AnnData, model: Encoder | str | None = None) -> np.ndarray:
        """Vectors (n, d) of a table; an adapted model is fitted to it, unless `model` is given."""
        record, level = self.record, cast("Level", self.record.get("level", "embedding"))
        normed = bool(record.get("normalize", True)) and level == "embedding"
        sections, names = _checks.libraries(table, self.library_key)
        values = arranged(
            self._plain(table, level, model),
            center=record.get("center"),
            xy=table.obsm[_keys.SPATIAL] if record.get("context") else None,
            sections=sections,
            names=names,
            normed=normed,
            unit_centered=record["model"] not in BASELINES,
        )
        if not self.fused:
            return values
        stored = _checks.embedding(table, self.key)
        return np.hstack([unit(values), stored[:, values.shape[1] :]])

    def _plain(self, table: AnnData, level: Level, model: Encoder | str | None) -> np.ndarray:
        """Vectors (n, d) without context, and centred only by ``"direction"``, which acts within the encoder."""
        record = self.record
        organism, normalize = record.get("organism", "human"), bool(record.get("normalize", True))
        center: Literal["direction"] | None = "direction" if record.get("center") == "direction" else None
        how = f"{level} {organism} {normalize} {center} {self.genes}"
        name = f"{record['model']} {how} {self.library_key} {self.fits_again}"
        if name not in table.obsm:
            embed(
                table, model or self.fitted_to(table), modality="gene", level=level, organism=organism,
                center=center, genes=self.genes, library_key=self.library_key, normalize=normalize,
                show_progress_bar=False, key_added=name,
            )  # fmt: skip
        return table.obsm[name]

    @property
    def genes(self) -> Literal["shared"] | None:
        """Whether only genes that all sections measure were used."""
        return "shared" if "shared" in self.record.get("genes", {}) else None

    @property
    def fits_again(self) -> bool:
        """Whether the model is one adapted to sections, and not given itself."""
        fit = self.record.get("adapted")
        if not fit or isinstance(self.model, str):
            return False
        return self.model.name != self.record["model"] and not _made(self.record, self.model)

    def fitted_to(
        self, data: AnnData | SpatialData, layer: str | None = None, table_key: str = _keys.TABLE
    ) -> Encoder | str:
        """The model; an adapted one is fitted with the recorded settings, unless it was given itself."""
        if isinstance(self.model, str) or not self.fits_again:
            return self.model
        fit = self.record["adapted"]
        return fitted(
            self.model, [data], layer=layer, library_key=self.library_key, table_key=table_key,
            organism=self.record.get("organism", "human"), strength=float(fit["strength"]), n_axes=int(fit["n_axes"]),
            in_context="context" in fit, genes=self.genes,
        )  # fmt: skip

    @property
    def base(self) -> str | None:
        """Name of the model that was adapted, if the adapted model was given itself."""
        if isinstance(self.model, str) or self.fits_again:
            return None
        return self.record.get("adapted", {}).get("model")

    def fitted_here(self) -> Recomputed | None:
        """The same embedding by its model adapted to half of the molecules, if `base` is packaged."""
        base = self.base
        return replace(self, model=loaded_model(base, None)) if base is not None and base in packaged() else None

    def in_other_spots(self, n_spots: int) -> str:
        """How spots that a table of `n_spots` lacks affected the stored vectors; "" if none is known to be missing."""
        before, record = int(self.record.get("n_spots", n_spots)), self.record
        if before <= n_spots:
            return ""
        how = ["its model was fitted to all of them"] if self.fits_again or record["model"] in BASELINES else []
        if center := record.get("center"):
            what = "mean" if center == "section" else "direction of the mean gene feature"
            how.append(f"the {what} of each section was subtracted")
        if record.get("context") or record["model"] == "pca-smoothed":
            how.append("each vector is a mean over a spot and its nearest spots, and some of these are missing")
        if not how:
            return ""
        return f"it was made from {before:,} spots, of which this table has {n_spots:,}: {', and '.join(how)}"

    def differs(
        self,
        values: np.ndarray,
        stored: np.ndarray,
        sections: np.ndarray | None = None,
        *,
        least: float | None = None,
    ) -> str:
        """How values computed from all molecules differ from the stored ones; "" if they agree.

        `sections` of the spots are given for pieces of sections: centring subtracts the mean of a whole section, not
        of its piece, so both means are removed before the comparison.
        """
        if sections is not None and self.record.get("center"):
            values, stored = (_less_means(x, sections) for x in (values, stored))
        r = agreement(values, stored)
        if least is None:
            is_fit = self.fits_again or (sections is not None and self.record.get("center") == "direction")
            least = SAME_PCA if self.record["model"] in BASELINES else SAME_FIT if is_fit else SAME
        if r >= least:
            return ""
        return (
            f"embedded again, it differs from `obsm`, with a correlation of {np.floor(1000 * r) / 1000:.3f}: it was "
            "made from other counts, genes, spots or sections, or was changed"
        )


def _less_means(values: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Values (n, d) without the mean of each section."""
    found = values.astype(np.float64)
    for section in np.unique(sections):
        found[sections == section] -= found[sections == section].mean(axis=0)
    return found


def job_of(table: AnnData, key: str, library_key: str | None, model: Encoder | None) -> Recomputed | StoredVectors:
    """How the embedding `key` is judged: recomputed, if its record and model allow it, or unchanged."""
    main, record = _record_of(table, key)
    if record is None:
        return StoredVectors(key, why="stampy has no record of how it was made")
    if (key != main and key.endswith(_keys.IMAGE_SUFFIX)) or record.get("modality") == "image":
        return StoredVectors(key, of_image=True)
    library_key = record.get("library_key", library_key)
    if library_key is not None and library_key not in table.obs:
        return StoredVectors(key, why=f"its sections were named by `obs[{library_key!r}]`, which is missing")
    if "shared" in record.get("genes", {}) and library_key is None:
        return StoredVectors(key, why="the genes that it shares with sections of other tables are unknown")
    found, why = _model_of(record, model)
    if found is None:
        return StoredVectors(key, why=why)
    return Recomputed(key, record, found, library_key, fused=key == main and record.get("modality") == "fused")


def _record_of(table: AnnData, key: str) -> tuple[str, Mapping[str, Any] | None]:
    """Key and record of the call of `tl.embed` that wrote an embedding."""
    records = table.uns.get(_keys.UNS, {})
    for main in (key, key.removesuffix(_keys.GENE_SUFFIX), key.removesuffix(_keys.IMAGE_SUFFIX)):
        record = records.get(main)
        if isinstance(record, Mapping) and "model" in record and "modality" in record:
            return main, record
    return key, None


def _model_of(record: Mapping[str, Any], given: Encoder | None) -> tuple[Encoder | str | None, str]:
    """The model of a record, or None and the reason.

    Paths and addresses in a record are not followed, since they were chosen by the file's author.
    """
    name, base = record["model"], _base_of(record)
    if name in BASELINES:
        return name, ""
    found = given if given is not None and _is_of(record, given) else None
    if found is None:
        if base not in packaged() and base not in CARDS and base != "stamp":
            return None, f"its model {name!r} is not part of stampy"
        try:
            found = loaded_model(base, None)
        except (OSError, ImportError, ValueError) as error:
            return None, f"its model {base!r} cannot be loaded ({error})"
    if found.name == name:
        before, now = (d.get("gene") for d in (record.get("weights_digest", {}), digest_of_towers(found)))
        if before is not None and now is not None and before != now:
            return None, f"it was made with other weights than those of {name!r}"
    return found, ""


def is_at_hand(record: Mapping[str, object], given: Encoder | None) -> bool:
    """Whether the model of a record is a baseline, a packaged model or the given one: no other weights are loaded."""
    return _base_of(record) in (*BASELINES, *packaged()) or (given is not None and _is_of(record, given))


def _base_of(record: Mapping[str, Any]) -> str:
    """Name of the model, before it was adapted."""
    return record.get("adapted", {}).get("model", record["model"])


def _is_of(record: Mapping[str, Any], given: Encoder) -> bool:
    return given.name in (record["model"], _base_of(record)) or _made(record, given)


def _made(record: Mapping[str, Any], given: Encoder) -> bool:
    """Whether a model has the weights of a record, whatever its name: a model that was saved is named by its folder."""
    before = record.get("weights_digest", {}).get("gene")
    return before is not None and before == digest_of_towers(given).get("gene")


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the inner products between spots, which rotations and scaling do not change; 1 for equal vectors.

    >>> x = np.random.default_rng(0).normal(size=(30, 3))
    >>> round(agreement(x, -2 * x[:, ::-1]), 3), agreement(x, np.ones((30, 2)))
    (1.0, 0.0)
    """
    rows = np.unique(np.linspace(0, len(a) - 1, N_COMPARED).astype(int))
    off = ~np.eye(len(rows), dtype=bool)
    products = []
    for values in (a, b):
        x = values[rows].astype(np.float64)
        x -= x.mean(axis=0)
        products.append((x @ x.T)[off])
    if any(np.ptp(p) < 1e-12 for p in products):
        return float(np.ptp(products[0]) < 1e-12 and np.ptp(products[1]) < 1e-12)
    return float(np.corrcoef(*products)[0, 1])
