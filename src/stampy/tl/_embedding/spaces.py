"""Spaces of embeddings stored in AnnData, and whether two embeddings are comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from stampy import _checks, _keys

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = [
    "Modality",
    "Origin",
    "Space",
    "check_model",
    "check_one_space",
    "check_same_origin",
    "check_same_space",
    "origin_of",
    "rescaled",
    "space_of",
    "unit",
]

Modality = Literal["gene", "image", "fused"]
LEAST = 1e-12  # squares of smaller numbers, and of larger ones than its inverse, lose precision in float32
RECORD_DEFAULTS = {"center": "nothing"}  # defaults for records that lack a field
TOWERS: dict[Modality, tuple[str, ...]] = {"gene": ("gene",), "image": ("image",), "fused": ("gene", "image")}
SUFFIXES: dict[Modality, str] = {"gene": _keys.GENE_SUFFIX, "image": _keys.IMAGE_SUFFIX, "fused": ""}


@dataclass(frozen=True, eq=False)
class Origin:
    """Provenance of an embedding."""

    name: str  # name of the slot in messages
    modality: Modality
    record: Mapping[str, Any] | None  # record of `tl.embed`; None if it is missing


@dataclass(frozen=True, eq=False)
class Space(Origin):
    """Embeddings of one modality of a table."""

    vectors: np.ndarray  # (n, d) float32, with L2 norm 1 or all zeros

    @property
    def known(self) -> np.ndarray:
        """Mask (n,) of spots with an embedding."""
        return np.asarray(self.vectors.any(axis=1))


def check_one_space(adata: AnnData, key: str) -> None:
    """Raise ValueError if obsm[key] joins embeddings of several models.

    `anndata.concat` with ``uns_merge="same"`` or ``"unique"`` keeps the entries that the records of all tables have in
    common: a record without a model is one of several models, such as one adapted to each section.
    """
    records = adata.uns.get(_keys.UNS, {})
    for main in dict.fromkeys((key, key.removesuffix(_keys.GENE_SUFFIX), key.removesuffix(_keys.IMAGE_SUFFIX))):
        record = records.get(main)
        if isinstance(record, Mapping) and "level" in record and "modality" in record and "model" not in record:
            raise ValueError(
                f"`obsm['{key}']` joins embeddings of several models, according to `uns['stamp']['{main}']`, whose "
                "`model` was lost when the tables were joined: their vectors share no space. Embed the joined table, "
                "or all tables in one call of `stampy.tl.embed`."
            )


def space_of(adata: AnnData, key: str, modality: Modality, *, slot: str = "adata.obsm") -> Space:
    """Embeddings `key` of a modality, scaled to L2 norm 1; KeyError or ValueError if they cannot be used."""
    _checks.one_of("modality", modality, SUFFIXES)
    name = key + SUFFIXES[modality]
    needs = f"Embed the spots first: `stampy.tl.embed(adata, modality={modality!r}, key_added={key!r})`."
    if modality == "image":
        needs += " That takes an image, and a model with an image encoder."
    _checks.has_key(adata.obsm, name, slot=slot, needs=needs)
    check_one_space(adata, name)
    values = adata.obsm[name]
    values = np.asarray(values.toarray() if hasattr(values, "toarray") else values)
    if values.ndim != 2 or values.shape[1] == 0 or values.dtype.kind not in "fiu":
        raise ValueError(f"`{slot}['{name}']` must contain numbers (n, d), found {values.dtype} {values.shape}.")
    bad = int((~np.isfinite(values).all(axis=1)).sum())
    if bad:
        raise ValueError(
            f"`{slot}['{name}']` has NaN or infinite values for {bad} of {len(values)} spots. Drop those spots first."
        )
    values = _checks.single(values, f"{slot}['{name}']")
    largest = np.abs(values).max(axis=1, keepdims=True)  # squares of large or small numbers would exceed float32
    values = values / np.where(largest == 0, 1, largest)
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    record = _record(adata, key, modality)
    return Space(f"{slot}['{name}']", modality, record, values / np.where(norm == 0, 1, norm))


def origin_of(adata: AnnData, key: str, *, slot: str = "adata.obsm") -> Origin | None:
    """Provenance of the embedding in obsm[key], which may be one of several modalities; None without a record."""
    records = adata.uns.get(_keys.UNS, {})
    for modality, suffix in SUFFIXES.items():
        record = records.get(key.removesuffix(suffix)) if key.endswith(suffix) else None
        if isinstance(record, Mapping) and record.get("modality") in SUFFIXES:
            return Origin(f"{slot}['{key}']", modality if suffix else record["modality"], record)
    return None


def _record(adata: AnnData, key: str, modality: Modality) -> Mapping[str, Any] | None:
    """Provenance from `tl.embed`, if it is that of this modality."""
    record = adata.uns.get(_keys.UNS, {}).get(key)
    return record if isinstance(record, Mapping) and record.get("modality") in (modality, "fused") else None


def check_same_space(query: Space, reference: Space) -> None:
    """Raise ValueError unless both share a space; warn if this is unknown."""
    if query.vectors.shape[1] != reference.vectors.shape[1]:
        raise ValueError(
            f"`{query.name}` has {query.vectors.shape[1]} columns, `{reference.name}` has "
            f"{reference.vectors.shape[1]}: they are not of one space. Embed both with the same model and `level`."
        )
    check_same_origin(query, reference)
    if (query.record is None) != (reference.record is None):
        unknown, other = (query, reference) if query.record is None else (reference, query)
        known = other.record or {}
        _checks.warn(
            f"How `{unknown.name}` was made is not in `uns['stamp']`; it is assumed to be from the model of "
            f"`{other.name}`, {known['model']!r}."
        )


def check_same_origin(query: Origin, reference: Origin) -> None:
    """Raise ValueError if two embeddings are not comparable according to their records.

    Fields that only one record has are not compared: records of earlier versions have no hashes.
    """
    names = f"`{query.name}`", f"`{reference.name}`"
    records = [{} if one.record is None else RECORD_DEFAULTS | dict(one.record) for one in (query, reference)]
    digests = records[0].get("weights_digest", {}), records[1].get("weights_digest", {})
    same = _same_weights(*digests, query.modality, reference.modality)  # whatever the name: a model that was saved
    for what in ("level", "center") if same else ("model", "level", "center"):
        a, b = (record.get(what) for record in records)
        if a is not None and b is not None and a != b:
            raise ValueError(
                f"{names[0]} was made with {what}={a!r}, {names[1]} with {what}={b!r}: cosines between them are "
                "meaningless. Embed both in the same way."
            )
    if query.modality != "gene" and reference.modality != "gene":
        _check_same_tiles(query, reference)
    if query.modality != reference.modality and "feature" in (record.get("level") for record in records):
        raise ValueError(
            "Features of genes and images (`level='feature'`) share no space. Embed with `level='embedding'`."
        )
    model = records[0].get("model")
    if "fit" in records[0] and "fit" in records[1] and records[0]["fit"] != records[1]["fit"]:
        raise ValueError(
            f"{names[0]} and {names[1]} were made by two fits of {model!r}, whose axes differ: cosines between them "
            "are meaningless. Embed all sections in one table, or use a model that is not fitted to the section."
        )
    if not _share_weights(*digests, query.modality, reference.modality):
        raise ValueError(
            f"{names[0]} and {names[1]} were made by models of one name, {model!r}, with different weights: cosines "
            "between them are meaningless. Embed both with the same weights."
        )


def _same_weights(a: Mapping[str, str], b: Mapping[str, str], of_a: Modality, of_b: Modality) -> bool:
    """Whether the weights of all encoders that made the vectors are known to be equal."""
    towers = {*TOWERS[of_a], *TOWERS[of_b]}
    return all(tower in a and a[tower] == b.get(tower) for tower in towers)


def _share_weights(a: Mapping[str, str], b: Mapping[str, str], of_a: Modality, of_b: Modality) -> bool:
    """False if the weights are known to differ.

    Genes by one model can be compared with images by another if the two have one of the encoders in common, since that
    is the comparison that one of the models makes by itself.
    """
    equal = {tower: a[tower] == b[tower] for tower in a if tower in b}
    if of_a == of_b:
        return all(same for tower, same in equal.items() if tower in TOWERS[of_a])
    return not equal or any(equal.values())


def _check_same_tiles(query: Origin, reference: Origin) -> None:
    """Raise ValueError if models of the same name had different image encoders, i.e. different tile sizes."""
    sizes = []
    for space in (query, reference):
        tiles = (space.record or {}).get("tiles")
        if not isinstance(tiles, Mapping) or "size_px" not in tiles:
            return
        sizes.append((int(tiles["size_px"]), "surroundings_um" in tiles))
    if sizes[0] != sizes[1]:
        a, b = (f"{px} px{' and their surroundings' * around}" for px, around in sizes)
        raise ValueError(
            f"`{query.name}` was made from tiles of {a}, `{reference.name}` from tiles of {b}: by different image "
            "encoders, whose vectors share no space. Embed both with the same version of the model."
        )


def check_model(space: Space, model: str, width: int, towers: Mapping[str, str]) -> None:
    """Raise ValueError unless the embeddings can be compared with gene embeddings of a model.

    Parameters
    ----------
    space
        The embeddings.
    model, width, towers
        Name of the model, size of its embeddings, and hashes of its encoders.
    """
    record = space.record or {}
    same = _same_weights(record.get("weights_digest", {}), towers, space.modality, "gene")
    if record.get("model", model) != model and not same:
        raise ValueError(
            f"`{space.name}` was made by the model {record['model']!r}, but `model` is {model!r}. Give the same one."
        )
    if not _share_weights(record.get("weights_digest", {}), towers, space.modality, "gene"):
        raise ValueError(
            f"`{space.name}` was made by a model {model!r} with other weights than `model` has. Give the same model, "
            "or embed the spots again."
        )
    if record.get("level", "embedding") != "embedding":
        raise ValueError(
            f"`{space.name}` contains features (`level='feature'`), which genes and images do not share. Embed with "
            "`level='embedding'`."
        )
    if record.get("center"):
        raise ValueError(
            f"`{space.name}` is centred (center={record['center']!r}), and a list of genes cannot be. Embed without "
            "`center` for this."
        )
    if space.vectors.shape[1] != width:
        raise ValueError(
            f"`{space.name}` has {space.vectors.shape[1]} columns, embeddings of the model {model!r} have {width}. "
            "Embed the spots with that model."
        )


def unit(values: np.ndarray) -> np.ndarray:
    """Scale rows (n, d) to L2 norm 1; rows of zeros are not changed.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    norm = np.linalg.norm(values, axis=1, keepdims=True)
    return values / np.where(norm == 0, 1, norm)


def rescaled(values: np.ndarray) -> np.ndarray:
    """Divide numbers by a power of two if their squares are not safe in float32; others are not changed.

    >>> bool(rescaled(np.array([1e30, 2e30])).max() <= 1), rescaled(np.array([1.0, 3.0])).tolist()
    (True, [1.0, 3.0])
    """
    largest = float(np.abs(values).max(initial=0))
    if largest == 0 or LEAST < largest < 1 / LEAST:
        return values
    return np.ldexp(values, -int(np.frexp(largest)[1]))
