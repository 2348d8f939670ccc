"""`tl.embed`: arguments, section, choice of modality, encoders, result, in this order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

import stampy
from stampy import _checks, _keys, models
from stampy._section.image.image_checks import warn_of_doubts
from stampy._section.section import has_images, places_of, resolved_library_key
from stampy._utils import check_room, table_of, with_columns
from stampy.pp._counts import counts_of, raw_layers

from ._embedding.adaptation import adapted_to, warn_of_other_use
from ._embedding.arguments import (
    Center,
    Level,
    Modality,
    Organism,
    Precision,
    Request,
    check_sections,
    each_of,
    is_several,
)
from ._embedding.context import N_NEIGHBORS, arranged, by_key
from ._embedding.encoders import (
    BASELINES,
    agreed_modality,
    check_loadable,
    digest_of_towers,
    image_model,
    is_baseline,
    loaded_model,
)
from ._embedding.gene_vectors import Record, embed_baseline, embed_genes, shared_panel
from ._embedding.images import open_tiles, usable_tiles
from ._embedding.resume import Chunks, digest_of_model
from ._embedding.stream import Tower, stream_images
from ._results import Result, write_result

if TYPE_CHECKING:
    import torch
    from anndata import AnnData
    from anndata.experimental import AnnCollection
    from spatialdata import SpatialData

    from stampy._section.section import ImageSource
    from stampy.pp._tiles import TileSource

    from ._embedding.encoders import Encoder

    SectionData: TypeAlias = AnnData | SpatialData
    SectionsData: TypeAlias = SectionData | Sequence[SectionData] | Mapping[str, SectionData] | AnnCollection
    Vectors: TypeAlias = dict[str, np.ndarray]  # by modality, (n, d) float32

__all__ = ["BASELINES", "embed"]


def embed(
    adata: SectionsData,
    model: str | Path | Encoder = "stampy-mini",
    *,
    modality: Modality | None = None,
    image: ImageSource | Mapping[str, ImageSource] | None = None,
    image_key: str | Mapping[str, str] | None = None,
    library_key: str | None = None,
    table_key: str = _keys.TABLE,
    layer: str | None = None,
    organism: Organism = "human",
    um_per_px: float | Mapping[str, float] | None = None,
    spot_um: float | None = None,
    level: Level = "embedding",
    context: Literal["neighbors"] | None = None,
    center: Center | None = None,
    genes: Literal["shared"] | None = None,
    normalize: bool = True,
    adapt: bool = False,
    batch_size: int | None = None,
    n_workers: int = 1,
    device: str | torch.device | None = None,
    precision: Precision | None = None,
    show_progress_bar: bool = True,
    key_added: str = _keys.EMBEDDING,
    copy: bool = False,
    resume: str | Path | None = None,
) -> SectionsData | None:
    """Embed every spot: its genes, its tile of the image, or both in one vector.

    Genes are ranked and tiles are cut in pieces during the call, so memory grows only with the result. The result is
    the same for every `batch_size` and `n_workers`. Some models, such as ``"stampy-mini"``, also use the region around
    each tile, three times as wide; ``uns`` records its edge as ``surroundings_um``.

    Parameters
    ----------
    adata
        Section(s) with raw counts, and for images ``obsm["spatial"]`` in px. Counts may be backed, dask arrays, or
        opened by ``anndata.experimental.read_lazy``, also from a remote store; they are read block by block. Pass
        several sections as one table with `library_key`, or as a list, a dict or an
        `anndata.experimental.AnnCollection`. Results are written into each section as soon as it is done, and also into
        the ``obsm`` of a collection created with ``join_obsm="inner"``. Create any other collection again afterwards,
        because a collection fixes its keys at creation.
    model
        A packaged model, a folder of weights, ``"hf-hub:org/name@revision"``, ``"stamp"``; one of
        `stampy.models.systems`, such as ``"uni"`` (from the hub, with your token), ``"uni:/path/to/pytorch_model.bin"``
        (from your disk), or the baselines ``"pca"``, ``"pca-smoothed"`` and ``"pixels"``; or a loaded model.
    modality
        ``"gene"``, ``"image"`` (needs no counts) or ``"fused"``. None: all modalities that the model embeds and the
        section has. In this case, stampy ignores an image with a warning if it has fewer than 16 px per tile, such as
        Space Ranger's "lowres", or does not look like H&E (black, transparent, one colour, blurred, fluorescence,
        grey). With an explicit `modality`, such an image is used with a warning. Pixels that are not an image (a mask
        of 0 and 1, channels such as DAPI, negative values) are also ignored with a warning, and raise an error with an
        explicit `modality`.
    image
        Image to use instead of that in `adata`: a path (TIFF, OME-TIFF, PNG, JPEG, whole slide) or an array, in full
        resolution; for several sections a dict by section: by the names in `library_key`, the keys of a dict, or the
        positions in a list. See `stampy.pp.tiles`.
    image_key
        Which of the images in `adata` to use, such as ``"hires"``, or a name in ``sdata.images``.
    library_key
        Column of ``adata.obs`` that names the section of each spot, if one table has several sections.
    table_key
        Table of a SpatialData.
    layer
        Layer with raw counts; None: ``adata.X``.
    organism
        ``"mouse"``: match genes by their human orthologs, as `stampy.pp.orthologs` does, without changing ``var``. The
        model was trained on human tissue, so results depend on how similar orthologs are expressed.
    um_per_px, spot_um
        Scale of the full-resolution image, if the scale factors do not state it. See `stampy.pp.tiles`.
    level
        ``"embedding"``: projected into the shared space of genes and images (or text), L2 norm 1. ``"feature"``: the
        outputs of the encoders before the projection. Both are equal for models without a projection.
    context
        ``"neighbors"``: each vector is the mean over a spot and its six nearest spots in the same section, scaled to L2
        norm 1 again. This reduces noise and blurs borders; the model's card states its effect. None: a spot's vector
        depends only on this spot.
    center
        ``"section"``: subtract the mean of its section from each vector, and scale it to L2 norm 1 again. This removes
        differences between donors and batches, and also real differences between the means of sections. Applied before
        `context`. ``"direction"``: project the direction of the section's mean gene feature out of the features, before
        the shared space; then subtract the mean, again after `context`. This direction contains sequencing depth and
        what all spots of a section share, so labels transfer better between sections, but this information is lost: use
        it for several sections, not for a map of one. Only for genes, and for models such as ``"stampy-mini"``.
    genes
        ``"shared"``: use only the genes that all sections of the call measure. None: all genes, with a warning if the
        gene panels differ.
    normalize
        False: do not scale embeddings to L2 norm 1. Their length increases with the information in the genes of a spot.
    adapt
        First fit the model to these sections, without labels, as `stampy.train.adapt` does; for maps and domains within
        one study. With `context`, the axes of the sections are put beside those of the model if this predicts genes
        better; without, a few axes of both replace them. All sections of the call share one space, which is not
        comparable with other embeddings: search, gene programme scores and transfer across adaptations raise an error.
        Tables that were adapted separately and then joined by `anndata.concat` are recognised only with
        ``uns_merge="unique"`` or ``"same"``; by default it drops all records.
        Only for genes, and for models such as ``"stampy-mini"``.
    batch_size
        Spots per batch; None: chosen for the device.
    n_workers
        Threads that read tiles.
    device
        None: CUDA if available, else an Apple GPU (MPS), else the CPU.
    precision
        None: bfloat16 on CUDA, float32 on the CPU.
    show_progress_bar
        Show a progress bar.
    key_added
        Key for the embedding.
    copy
        Return a changed copy (of a list or dict: a list or dict of copies) instead of writing in place.
    resume
        Folder for intermediate results. After an interruption, the same call continues from there, with the same result
        as an uninterrupted call. The inputs of each chunk are compared by hash: all counts, and for images the
        positions of all tiles and a sample of their pixels. Remove the folder afterwards.

    Returns
    -------
    None, or the changed copy. Sets the following fields once everything is computed:

    ``obsm[key_added]``
        float32 (n, d). Fused: gene and image vector concatenated, each of L2 norm 1; otherwise the vector of one
        modality.
    ``obsm[key_added + "_gene"]``, ``obsm[key_added + "_image"]``
        float32 (n, d), if computed.
    ``uns["stamp"][key_added]``
        Model, version, parameters, modality, overlap of the genes, scale of the image, origin and hash of the weights.

    Warns
    -----
    StampyWarning
        A model that was adapted for use in context, without `context`, or the reverse.
        Spots without counts in the vocabulary, whose gene vector is all zeros. An image that is too coarse for the
        model or does not look like H&E, and whether only genes are embedded for this reason.

    Raises
    ------
    KeyError
        Coordinates, image, layer, table or column are missing.
    ValueError
        An empty section, no counts, too few genes in common, coordinates outside the image, arguments that conflict, an
        unknown model, a model that does not embed spots (slide encoders, predictors), a `resume` folder of another run.
    FileNotFoundError, PermissionError, ConnectionError, ImportError
        Weights, access to them, or the library that builds the model are missing; the message states what to do.

    Notes
    -----
    The paper does not state how it fuses both vectors. stampy concatenates the two unit vectors, so that both
    contribute equally to distances. Sections 3.1 to 3.3 of the paper describe the encoders.

    ``center="direction"`` is not part of the paper. Mu and Viswanath (2018, arXiv 1702.01417) project out leading
    directions of word vectors for the same reason; ``recipes/stampy-mini/centred.py`` measures the effect on the
    transfer of labels, and ``depth.py`` that on sequencing depth.

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
    request = Request(
        modality="gene" if adapt and modality is None else modality, image=image, image_key=image_key,
        library_key=library_key, table_key=table_key, layer=layer, um_per_px=um_per_px, spot_um=spot_um, level=level,
        organism=organism, context=context, center=center, genes=genes, normalize=normalize,
        batch_size=batch_size, n_workers=n_workers, precision=precision, progress=show_progress_bar,
        key_added=key_added, resume=None if resume is None else Path(resume),
    )  # fmt: skip
    if not isinstance(adapt, bool | np.bool_):
        raise TypeError(f"`adapt` must be True or False, found {adapt!r}.")
    if not is_baseline(model):
        check_loadable(model, device)
    if adapt:
        if not is_several(adata):
            request = replace(request, library_key=resolved_library_key(adata, library_key, table_key))
        model = adapted_to(adata, request, model, device)
    if is_several(adata):
        check_sections(adata, request)
        once = model if is_baseline(model) else loaded_model(model, device)
        request = replace(request, panel=shared_panel(adata, request, once))
        return each_of(partial(_embed_one, model=once, device=device, copy=copy), adata, request, copy=copy)
    return _embed_one(adata, request, model=model, device=device, copy=copy)


def _embed_one(
    adata: SectionData, request: Request, *, model: str | Path | Encoder, device: str | torch.device | None, copy: bool
) -> SectionData | None:
    """Embed one section. Everything that does not need the model is checked before it is loaded."""
    written, adata = adata, with_columns(adata, request.table_key)
    table = table_of(adata, request.table_key)
    _checks.not_empty(table, genes=False)
    if not copy:
        check_room(table_of(written, request.table_key), request.key_added, [("obsm", request.key_added)])
    wanted = agreed_modality(request.modality, model)
    if wanted is not None:
        request.check_effect(wanted)
    modality = wanted or _available(adata, table, request)
    if modality != "image":
        counts_of(table, request.layer)
    _checks.libraries(table, request.library_key)
    together = request.context is not None or request.center is not None or request.genes is not None
    if modality != "gene" or together or model == "pca-smoothed":
        request = replace(request, library_key=resolved_library_key(adata, request.library_key, request.table_key))
    places = None
    if request.context is not None or model == "pca-smoothed":
        places = places_of(adata, library_key=request.library_key, table_key=request.table_key)
    if is_baseline(model):
        found, record = embed_baseline(str(model), table, request, places)
    else:
        loaded = loaded_model(model, device)
        warn_of_other_use(loaded, request)
        modality, tiles = _choose(adata, loaded, request, modality, is_requested=wanted is not None)
        found, record = _by_model(loaded, table, tiles, request, modality)
    codes, names = _checks.libraries(table, request.library_key)
    xy = None if request.context is None or places is None else places.xy
    arrange = partial(
        arranged, center=request.center, xy=xy, sections=codes, names=names, normed=request.normed,
        unit_centered=not is_baseline(model),
    )  # fmt: skip
    found = {name: arrange(v) for name, v in found.items()}
    given = {"center": request.center, "library_key": request.library_key}
    record |= {key: value for key, value in given.items() if value is not None}
    record["n_spots"] = table.n_obs  # a subset has other neighbours, means and fits
    if xy is not None:
        record["context"] = f"{request.context}, {N_NEIGHBORS}"
    result = Result(request.key_added, record, obsm=by_key(found, request.key_added))
    return write_result(written, result, copy=copy, table_key=request.table_key)


def _available(adata: SectionData, table: AnnData, request: Request) -> Modality:
    """Available modality: counts, an image, or both."""
    pictured = request.image is not None or has_images(adata, request.table_key)
    has_counts = table.n_vars > 0 and (table.X is not None or request.layer is not None)
    if pictured:
        if not has_counts and (layers := raw_layers(table.layers)):
            _checks.warn(
                "`adata.X` is empty (None), so only the image is embedded. Raw counts are in "
                f"{_checks.shortlist(layers)}: use layer={layers[0]!r}, or pass modality='image' to embed only the "
                "image."
            )
        return "fused" if has_counts else "image"
    _checks.not_empty(table)
    if request.image_key is not None:
        raise ValueError("`image_key` was given, but the section has no image. Omit it, or pass `image=`.")
    return "gene"


def _choose(
    adata: SectionData, model: Encoder, request: Request, modality: Modality, *, is_requested: bool
) -> tuple[Modality, TileSource | None]:
    """The final modality and its tiles. Without an explicit `modality`, an unusable image is ignored with a warning."""
    if modality == "fused" and not is_requested and model.image is None and request.image is None:
        _checks.warn(f"The model {model.name!r} has no image encoder: only genes are embedded.")
        modality = "gene"
    tiles = None
    if modality != "gene":
        notes: list[str] = []
        by_default = modality == "fused" and not is_requested and not request.names_image
        tiles = usable_tiles(adata, model, request, notes) if by_default else open_tiles(adata, model, request, notes)
        if tiles is None:
            modality = "gene"
        else:
            if request.center == "direction":
                tiles.close()
                request.check_center(modality)
            for note in notes:
                _checks.warn(note)
            if not by_default:
                warn_of_doubts(tiles.sections)
    unused = [name for name in ("um_per_px", "spot_um") if getattr(request, name) is not None]
    if tiles is None and unused:
        _checks.warn(f"`{unused[0]}` has no effect: only genes are embedded.")
    return modality, tiles


def _by_model(
    model: Encoder, table: AnnData, tiles: TileSource | None, request: Request, modality: Modality
) -> tuple[Vectors, Record]:
    """Vectors from the encoders of a model, and their record."""
    precision = Tower(model, table.n_obs, request.precision).precision
    record = _origin(model, precision, tiles, modality, request.level)
    if not request.normalize:
        _check_lengths(model, modality)
        record["normalize"] = False
    if modality != "image" and request.organism != "human":
        record["organism"] = request.organism
    if request.center == "direction":
        record["center"] = request.center  # saved chunks contain features
    identity = None if request.resume is None else {**record, "weights": digest_of_model(model)}
    parts = Chunks(request.resume, identity)
    record["weights_digest"] = digest_of_towers(model)
    found: Vectors = {}
    if modality != "image" and not isinstance(model, models.ImageSystem):
        found["gene"], record["genes"] = embed_genes(model, table, request, parts)
    if tiles is not None:
        with closing(tiles):
            tower = Tower(image_model(model), table.n_obs, request.precision)
            found["image"] = stream_images(
                tower,
                tiles,
                batch_size=request.batch_size,
                n_workers=request.n_workers,
                project=tower.projection("images", request.level, normalize=request.normalize),
                progress=request.progress,
                parts=parts,
            )
    return found, record


def _check_lengths(model: Encoder, modality: Modality) -> None:
    """Raise ValueError if vectors always have unit length."""
    if not isinstance(model, models.Stamp):
        raise ValueError(f"normalize=False has no effect with {model.name!r}, whose vectors are not normalised.")
    if modality == "fused":
        raise ValueError(
            "Fused vectors are two concatenated unit vectors. normalize=False needs modality='gene' or 'image'."
        )


def _origin(model: Encoder, precision: str, tiles: TileSource | None, modality: str, level: str) -> Record:
    """Part of a record that is known in advance and must be equal in a resumed run."""
    record: Record = {"stampy": stampy.__version__, "modality": modality, "level": level}
    record |= {"model": model.name, "precision": precision}
    if source := getattr(model, "source", ""):
        record["weights"] = source
    if isinstance(model, models.Stamp) and model.adapted:
        record["adapted"] = dict(model.adapted)
    return record if tiles is None else {**record, "tiles": tiles.provenance() | {"image_path": tiles.image_paths()}}
