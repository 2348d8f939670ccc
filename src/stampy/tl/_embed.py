"""A section in, an embedding out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import stampy
from stampy import _checks, _keys, models
from stampy._section.libraries import has_image
from stampy._utils import is_spatialdata, table_of
from stampy.pp._tiles import TileSource

from ._cluster import smoothed
from ._each import each_of, is_several
from ._embed_genes import N_NEIGHBORS, embed_genes, embed_pca
from ._results import Result, write
from ._resume import Parts, digest_of_model
from ._shared_space import unit
from ._stream import Tower, stream_images

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from anndata.experimental import AnnCollection
    from spatialdata import SpatialData

    from stampy._section.section import ImageSource

    Section = AnnData | SpatialData
    Sections = Section | Sequence[Section] | Mapping[Any, Section] | AnnCollection

__all__ = ["embed"]

Modality = Literal["gene", "image", "fused"]
MODALITIES = ("gene", "image", "fused")
MIN_ACROSS = 16  # px of the image across a tile; Space Ranger's "hires" has about 34, its "lowres" 10
BASELINES = ("pca", "pca-smoothed")  # fitted to the section: nothing is loaded
Encoder = models.Stamp | models.ImageSystem | models.GeneSystem


def embed(
    adata: Sections,
    model: str | Path | Encoder = "stampy-mini",
    *,
    modality: Modality | None = None,
    image: ImageSource | dict[str, ImageSource] | None = None,
    image_key: str | None = None,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    layer: str | None = None,
    um_per_px: float | dict[str, float] | None = None,
    spot_um: float | None = None,
    level: Literal["embedding", "feature"] = "embedding",
    context: Literal["neighbors"] | None = None,
    batch_size: int | None = None,
    n_workers: int = 1,
    device: str | torch.device | None = None,
    precision: Literal["float32", "bfloat16"] | None = None,
    show_progress_bar: bool = True,
    key_added: str = _keys.EMBEDDING,
    copy: bool = False,
    resume: str | Path | None = None,
) -> Sections | None:
    """Embed every spot: its genes, the tissue that it lies on, or both in one vector.

    Genes are ranked and tiles are cut on the way, piece by piece, so memory does not grow with the section but for the
    result. The result is the same for every `batch_size` and `n_workers`.

    Parameters
    ----------
    adata
        Section(s) with raw counts, and for images ``obsm["spatial"]`` in px. It may be backed. Several: one table with
        `library_key`, or a list, a dict or an `anndata.experimental.AnnCollection` of sections. Each section has its
        result as soon as it is done; so has the ``obsm`` of a collection that joins it (``join_obsm="inner"``).
        Another collection is to be made anew to see it: it fixes its keys when it is made.
    model
        A packaged model, a folder of weights, ``"hf-hub:org/name@revision"``, ``"stamp"``; one of
        `stampy.models.systems`, such as ``"uni"`` (from the hub, with your token), ``"uni:/path/to/pytorch_model.bin"``
        (from your disk), or the baselines ``"pca"``, ``"pca-smoothed"`` and ``"pixels"``; or a loaded model.
    modality
        ``"gene"``, ``"image"`` (needs no counts) or ``"fused"``. None: what the model embeds; where it embeds both,
        fused if there are counts and an image, else the one that is there. An image with fewer than 16 px across a
        tile, such as Space Ranger's "lowres", is left out then, with a warning.
    image
        Image to use instead of that in `adata`: a path (TIFF, OME-TIFF, PNG, JPEG, whole slide) or an array, in full
        resolution; for several sections a dict by section: by the names in `library_key`, the keys of a dict, or the
        places in a list. See `stampy.pp.tiles`.
    image_key
        Which of the images in `adata` to use, such as ``"hires"``, or a name in ``sdata.images``.
    library_key
        Column of ``adata.obs`` that names the section of each spot, where one table holds several.
    table_key
        Table of a SpatialData.
    layer
        Layer with raw counts; None: ``adata.X``.
    um_per_px, spot_um
        Scale of the full-resolution image, where the scale factors do not tell. See `stampy.pp.tiles`.
    level
        ``"embedding"``: projected into the space that genes and images (or text) share, L2 norm 1. ``"feature"``: the
        towers' outputs before the projection. The same for models that have no projection.
    context
        ``"neighbors"``: each vector is the mean of a spot's own and those of its six nearest spots in the same section,
        along squidpy's spatial graph (then again of L2 norm 1). It takes out noise and blurs borders; what it gains is
        in the model's card. None: a spot's vector depends on that spot alone.
    batch_size
        Spots per batch; None: what suits the device.
    n_workers
        Threads that read tiles.
    device
        None: CUDA if there is one, else the CPU.
    precision
        None: bfloat16 on CUDA, float32 on the CPU.
    show_progress_bar
        Show how far it is.
    key_added
        Where the embedding goes.
    copy
        Return a changed copy (of a list or dict: a list or dict of copies) instead of writing in place.
    resume
        A folder for results as they come, chunk by chunk. The same call goes on from what is there; the result is the
        same as without an interruption. What a chunk was made from is compared by hash: of genes all of it, of images
        the places of all tiles and a sample of their pixels. Remove the folder when all is done.

    Returns
    -------
    None, or the changed copy. Written, once all is computed:

    ``obsm[key_added]``
        float32 (n, d). Fused: gene and image vector side by side, each of L2 norm 1; else the one modality.
    ``obsm[key_added + "_gene"]``, ``obsm[key_added + "_image"]``
        float32 (n, d), as far as computed.
    ``uns["stamp"][key_added]``
        Model, version, parameters, modality, overlap of the genes, scale of the image, origin of the weights.

    Warns
    -----
    UserWarning
        Spots without counts in the vocabulary: their gene vector is all zeros (no NaN). An image too coarse for the
        model, or so coarse that genes alone are embedded.

    Raises
    ------
    KeyError
        No coordinates, image, layer, table or column of the name that was given.
    ValueError
        An empty section, no counts, too few genes in common, coordinates outside the image, arguments that conflict, an
        unknown model, one that embeds no spots (slide encoders, predictors), a `resume` folder of another run.
    FileNotFoundError, PermissionError, ConnectionError, ImportError
        Weights, access to them, or the library that builds the model are missing; the message says what to do.

    Notes
    -----
    How the paper fuses is not said there; stampy puts the two unit vectors side by side, so that both weigh the same in
    distances (sections 3.1 to 3.3 describe the towers).

    Examples
    --------
    >>> import stampy
    >>> adata = stampy.datasets.toy(n_spots=60)
    >>> stampy.tl.embed(adata, modality="gene", show_progress_bar=False)
    >>> adata.obsm["X_stamp"].dtype, len(adata.obsm["X_stamp"])
    (dtype('float32'), 60)
    >>> adata.uns["stamp"]["X_stamp"]["model"]
    'stampy-mini'
    """
    arguments = {**locals()}  # for each of several sections
    _check_arguments(modality, level, precision, batch_size, n_workers, context)
    if is_several(adata):
        if model not in BASELINES:
            arguments["model"] = _loaded(model, device)  # once
        return each_of(embed, arguments.pop("adata"), **arguments)
    table = table_of(adata, table_key)
    _checks.not_empty(table, genes=False)
    wanted = _agreed(modality, _embeds(model), model)
    modality = wanted or _modality_of(adata, table, image, layer)
    if modality == "gene" and (image is not None or image_key is not None):
        raise ValueError("modality='gene' uses no image, but `image` or `image_key` was given. Leave one of them out.")
    around = None if context is None else (_checks.coordinates(table), _checks.libraries(table, library_key)[0])
    if model in BASELINES:
        found, record = _fitted(str(model), table, layer, library_key, resume)
        record |= {"stampy": stampy.__version__, "modality": modality, "level": level}
    else:
        loaded, tiles = _loaded(model, device), None
        if modality == "fused" and wanted is None and loaded.image is None and image is None:
            modality = "gene"
            _checks.warn(f"The model {loaded.name!r} has no image tower: genes alone are embedded.")
        if modality != "gene":
            tiles = _tiles(adata, loaded, image, image_key, library_key, um_per_px, spot_um, table_key)
            if wanted is None and modality == "fused" and image is None and image_key is None and _too_coarse(tiles):
                modality, tiles = "gene", None
        tower = Tower(loaded, table.n_obs, precision)
        record = _origin(loaded, tower, tiles, modality, level)
        parts = Parts(resume, {**record, "weights": digest_of_model(loaded)} if resume is not None else None)
        found = {}
        if modality != "image":
            found["gene"], record["genes"] = embed_genes(
                tower, table, layer, level, batch_size, show_progress_bar, parts
            )
        if tiles is not None:
            found["image"] = stream_images(
                tower,
                tiles,
                batch_size=batch_size,
                n_workers=n_workers,
                project=tower.projection("images", level),
                progress=show_progress_bar,
                parts=parts,
            )
            tiles.close()
    if around is not None:
        record["context"] = f"{context}, {N_NEIGHBORS}"
        found = {name: in_context(values, *around, normed=level == "embedding") for name, values in found.items()}
    result = Result(key_added, record, obsm=_by_key(found, key_added))
    return write(adata, result, copy=copy, table_key=table_key)


def _fitted(
    model: str, table: AnnData, layer: str | None, library_key: str | None, resume: Any
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The embedding by a baseline, and its record."""
    if resume is not None:
        raise ValueError(f"`resume` does not go with {model!r}: it is fitted to the section as a whole. Leave it out.")
    values, genes = embed_pca(table, smoothed=model == "pca-smoothed", layer=layer, library_key=library_key)
    return {"gene": values}, {"model": model, "precision": "float32", "genes": genes}


def _origin(model: Encoder, tower: Tower, tiles: TileSource | None, modality: str, level: str) -> dict[str, Any]:
    """What of a record is known before the work; a run that goes on must have the same."""
    record = {"stampy": stampy.__version__, "modality": modality, "level": level}
    record |= {"model": model.name, "precision": tower.precision}
    if getattr(model, "source", ""):
        record["weights"] = model.source
    return record if tiles is None else {**record, "tiles": tiles.provenance()}


def _check_arguments(
    modality: Any, level: Any, precision: Any, batch_size: Any, n_workers: Any, context: Any = None
) -> None:
    if context is not None:
        _checks.one_of("context", context, ("neighbors",))
    if modality is not None:
        _checks.one_of("modality", modality, MODALITIES)
    _checks.one_of("level", level, ("embedding", "feature"))
    if precision is not None:
        _checks.one_of("precision", precision, ("float32", "bfloat16"))
    if batch_size is not None:
        _checks.at_least("batch_size", batch_size, 1)
    _checks.at_least("n_workers", n_workers, 1)


def _modality_of(data: Any, table: AnnData, image: Any, layer: str | None) -> Modality:
    """What there is: counts, an image, or both."""
    libraries = _checks.library_images(table)
    pictured = (
        image is not None
        or (is_spatialdata(data) and len(data.images) > 0)
        or any(has_image(library) for library in libraries.values())
    )
    has_counts = table.n_vars > 0 and (table.X is not None or layer is not None)
    if pictured and has_counts:
        return "fused"
    if pictured:
        return "image"
    _checks.not_empty(table)
    return "gene"


def _embeds(model: str | Path | Encoder) -> str | None:
    """What a model embeds, if that is one thing; ValueError for those that embed no spots."""
    if isinstance(model, models.Stamp):
        return None
    named = models.split_name(str(model)) if isinstance(model, str | Path) else None
    card = models.card(named[0]) if named else getattr(model, "card", None)
    if card is None:
        return None
    if card.modality == "slide":
        raise ValueError(
            f"{card.title} embeds slides, not spots. Embed the tiles by the encoder that it was trained with, then "
            f"call `stampy.models.load_system({card.name!r}, path).embed_slide(features)`."
        )
    if card.modality == "predictor":
        raise ValueError(f"{card.title} predicts expression and gives no embedding: see `stampy.models.Predictor`.")
    return None if card.name == "stampy-mini" else card.modality


def _agreed(asked: str | None, embeds: str | None, model: Any) -> Any:
    """The modality that was asked for, or the only one that there is."""
    if asked and embeds and asked != embeds:
        name = getattr(model, "name", model)
        raise ValueError(f"modality={asked!r} was asked for, but {name!r} embeds modality {embeds!r} alone.")
    return asked or embeds


def _loaded(model: str | Path | Encoder, device: Any) -> Encoder:
    if isinstance(model, str | Path):
        return models.load(model, device=device)
    if not isinstance(model, Encoder):
        raise TypeError(f"`model` must be a name, a path or a loaded model, found {type(model).__qualname__}.")
    return model if device is None else model.to(device)


def _tiles(adata: Any, model: Encoder, image: Any, image_key: Any, library_key: Any,
           um_per_px: Any, spot_um: Any, table_key: str) -> TileSource:  # fmt: skip
    if isinstance(model, models.Stamp) and model.image is None:
        raise ValueError(f"The model {model.name!r} has no image tower. Use modality='gene' or another model.")
    return TileSource.open(
        adata,
        tile_um=model.tile_um,
        size_px=model.size_px,
        image=image,
        image_key=image_key,
        library_key=library_key,
        um_per_px=um_per_px,
        spot_um=spot_um,
        table_key=table_key,
    )


def _too_coarse(tiles: TileSource) -> bool:
    """Whether an image that nobody asked for is left out, with a warning: enlarged so, it blurs what the genes say."""
    across, names = tiles.size_px / max(tiles.upsampling.values()), tiles.provenance()["image"]
    if across >= MIN_ACROSS:
        return False
    tiles.close()
    _checks.warn(
        f"Genes alone are embedded: a tile would be {across:.0f} px across in {_checks.shortlist(names)}, "
        f"fewer than {MIN_ACROSS}. modality='fused' takes the image all the same."
    )
    return True


def in_context(values: np.ndarray, xy: np.ndarray, sections: np.ndarray, *, normed: bool) -> np.ndarray:
    values = smoothed(values, xy, N_NEIGHBORS, sections)
    return unit(values) if normed else values


def _by_key(found: dict[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """The vectors of each modality, and the embedding: both side by side, or the only one, by their keys in obsm."""
    vectors = list(found.values())
    whole = np.hstack([unit(v) for v in vectors]) if len(vectors) > 1 else vectors[0]
    return {key: whole} | {f"{key}_{name}": values for name, values in found.items()}
