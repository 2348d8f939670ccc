"""Embed many sections or slides, one file each, over processes, GPUs or a cluster, with a table of the results."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict, Unpack

from stampy import _checks
from stampy._io.sections import SectionInput, as_sections

from ._cohort.jobs import embed_section_job, embed_slide_job
from ._cohort.plan import Contents, EmbedOptions, Plan, check_plan
from ._cohort.run import run_cohort

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._embedding.arguments import Level, Precision
    from ._embedding.encoders import Encoder, ImageModel

    One: TypeAlias = str | Path | AnnData | SpatialData | SectionInput

__all__ = ["SlideOptions", "embed_sections", "embed_slides"]


def embed_sections(
    sections: One | Sequence[One] | Mapping[str, One],
    out: str | Path,
    *,
    model: str | Path | Encoder = "stampy-mini",
    suffix: Literal[".h5ad", ".zarr"] = ".h5ad",
    contents: Contents = "all",
    verdict: bool = False,
    on_error: Literal["raise", "skip"] = "raise",
    n_workers: int | None = None,
    n_devices: int | None = None,
    scheduler: str | None = None,
    device: str | None = None,
    bin_um: float | None = None,
    overwrite: bool = False,
    show_progress_bar: bool = True,
    **options: Unpack[EmbedOptions],
) -> pd.DataFrame:
    """Embed many sections, each into a separate file, and continue an earlier run.

    One worker reads a section, embeds it as `stampy.tl.embed` does, and writes it, so memory grows with the number of
    workers, not of sections. Each worker loads the model once.

    To continue an interrupted run, repeat the call. A section is embedded again if its counts, images or scale, the
    model's weights, a setting or the version of stampy changed; all of them are compared by hash.

    Parameters
    ----------
    sections
        A manifest: a table (.tsv) with a column ``path``, and optionally ``name``, ``image``, ``um_per_px``,
        ``spot_um``, ``organ`` and ``platform``; paths are relative to it. Or paths of anything that `stampy.read`
        reads, `stampy.train.SectionInput`, AnnData or SpatialData: one, several, or a dict by name. Names must be
        unique.
    out
        Folder for the results.
    model
        As for `stampy.tl.embed`. A loaded model needs ``n_workers=1``.
    suffix
        Format of the results.
    contents
        ``"all"``: each result contains the section and its embedding. ``"results"``: ``obs``, coordinates, embedding
        and provenance, without counts and images.
    verdict
        Evaluate each embedding without labels, as `stampy.tl.evaluate` does, on at most 2,000 spots.
    on_error
        ``"raise"``: stop at a section that cannot be used. ``"skip"``: report it in the table and in a warning.
    n_workers
        Number of processes. None: one per core; for models that are not packaged, one per eight cores, or a single
        process that uses the GPU.
    n_devices
        Distribute the work over this number of CUDA devices of this machine, with one process each unless `n_workers`
        is larger.
    scheduler
        Address of a dask cluster to use instead. Its workers must see the same files under the same paths.
    device
        Device of every worker; None: see `stampy.tl.embed`.
    bin_um
        As for `stampy.read`, for all sections.
    overwrite
        Replace files in `out` that were not written by such a run, or were changed since.
    show_progress_bar
        Show a progress bar.
    options
        As for `stampy.tl.embed`: ``modality``, ``image_key``, ``library_key``, ``table_key``, ``layer``, ``organism``,
        ``um_per_px``, ``spot_um``, ``level``, ``context``, ``center``, ``normalize``, ``batch_size``, ``precision``,
        ``key_added``. A scale in the manifest takes precedence.

    Returns
    -------
    The table that is written to ``sections.tsv``, one row per section: ``status`` (embedded; kept: done by an earlier
    run; failed; pending), spots, genes, ``overlap`` (share of the section's genes that the model knows),
    ``counts_share`` (share of its counts in those genes), modality, model, verdict, seconds, worker, warnings, error.

    Written into `out`:

    ``NAME.h5ad`` or ``NAME.zarr``
        The section with the results of `stampy.tl.embed`.
    ``sections.tsv``
        The table; also written if the run fails.

    Warns
    -----
    StampyWarning
        Warnings of `stampy.tl.embed`, with the name of the section; skipped sections; results of earlier runs in `out`.

    Raises
    ------
    ValueError, KeyError, TypeError
        Names that are not unique, settings that conflict, or a section that cannot be used; the message names it.
    FileNotFoundError
        The file of a section is missing.
    FileExistsError
        `out` contains files that this run would replace but did not write.

    See Also
    --------
    collect_sections : All results as one collection or one store.

    Examples
    --------
    >>> import tempfile, stampy
    >>> sections = {name: stampy.datasets.toy(n_spots=60, rng=i) for i, name in enumerate(["a", "b"])}
    >>> folder = tempfile.TemporaryDirectory()
    >>> table = stampy.tl.embed_sections(
    ...     sections, folder.name, modality="gene", n_workers=1, show_progress_bar=False
    ... )
    >>> table[["name", "status", "n_spots"]].values.tolist()
    [['a', 'embedded', 60], ['b', 'embedded', 60]]
    >>> stampy.tl.embed_sections(
    ...     sections, folder.name, modality="gene", n_workers=1, show_progress_bar=False
    ... )["status"].tolist()
    ['kept', 'kept']
    >>> folder.cleanup()
    """
    plan = Plan(
        run=uuid.uuid4().hex, out=Path(out).expanduser().absolute(), model=model, device=device, suffix=suffix,
        contents=contents, judged=verdict, bin_um=bin_um, skip=on_error == "skip", options=options,
    )  # fmt: skip
    check_plan(plan, on_error, n_workers, n_devices, scheduler)
    _check_options(plan)
    if bin_um is not None:
        _checks.positive("bin_um", bin_um)
    chosen = as_sections(sections, all_there=on_error == "raise")
    return run_cohort(
        chosen, plan, embed_section_job,
        scheduler=scheduler, n_workers=n_workers, n_devices=n_devices, overwrite=overwrite, progress=show_progress_bar,
    )  # fmt: skip


def _check_options(plan: Plan) -> None:
    """Raise for arguments that `stampy.tl.embed` would refuse in every section, without loading torch."""
    from stampy.models._systems.catalogue import check_name

    from ._cohort.plan import EmbedOptions
    from ._embedding.arguments import Request

    for name in plan.options:
        _checks.one_of("argument", name, EmbedOptions.__annotations__)
    of_bins = ("um_per_px",) if plan.bin_um is not None else ()  # the scale of the bins, also for genes
    Request(**{name: value for name, value in plan.options.items() if name not in of_bins})
    if isinstance(plan.model, str | Path):
        check_name(str(plan.model))


class SlideOptions(TypedDict, total=False):
    """Arguments of `stampy.tl.embed_slide` shared by all slides of a run."""

    level: Level
    tile_um: float | None
    stride_um: float | None
    min_tissue: float | None
    um_per_px: float | None
    chunk_size: int
    batch_size: int | None
    precision: Precision | None
    key_added: str


def embed_slides(
    slides: str | Path | SectionInput | Sequence[str | Path | SectionInput] | Mapping[str, str | Path],
    out: str | Path,
    *,
    model: str | Path | ImageModel = "stampy-mini",
    on_error: Literal["raise", "skip"] = "raise",
    n_workers: int | None = None,
    n_devices: int | None = None,
    scheduler: str | None = None,
    device: str | None = None,
    overwrite: bool = False,
    show_progress_bar: bool = True,
    **options: Unpack[SlideOptions],
) -> pd.DataFrame:
    """Embed many whole slides, each into a separate store, and continue an earlier run.

    One worker embeds a slide as `stampy.tl.embed_slide` does. An interrupted slide continues at its last chunk. A
    finished slide is kept unless its file, the model's weights or a setting changed.

    Parameters
    ----------
    slides
        A manifest: a table (.tsv) with a column ``path``, and optionally ``name``, ``um_per_px``, ``organ`` and
        ``platform``; paths are relative to it. Or paths of slides: one, several, or a dict by name. Names must be
        unique.
    out
        Folder for the results.
    model, on_error, n_workers, n_devices, scheduler, device, overwrite, show_progress_bar
        See `stampy.tl.embed_sections`.
    options
        As for `stampy.tl.embed_slide`: ``level``, ``tile_um``, ``stride_um``, ``min_tissue``, ``um_per_px``,
        ``chunk_size``, ``batch_size``, ``precision``, ``key_added``. A scale in the manifest takes precedence over
        ``um_per_px``.

    Returns
    -------
    The table that is written to ``sections.tsv``, as by `stampy.tl.embed_sections`; ``n_spots`` counts tiles. Written
    into `out`: ``NAME.zarr`` for each slide, as `stampy.tl.embed_slide` describes, and ``sections.tsv``.

    Raises
    ------
    ValueError, KeyError, TypeError, FileNotFoundError, FileExistsError
        As `stampy.tl.embed_sections` and `stampy.tl.embed_slide`.

    Examples
    --------
    >>> import tempfile, pathlib, tifffile, stampy
    >>> folder = tempfile.TemporaryDirectory()
    >>> picture = stampy.datasets.toy(n_spots=60).uns["spatial"]["toy"]["images"]["hires"]
    >>> path = pathlib.Path(folder.name, "S1.tif")
    >>> tifffile.imwrite(path, picture)
    >>> table = stampy.tl.embed_slides(
    ...     [path], path.parent / "out", um_per_px=1.6, min_tissue=0.9, n_workers=1, show_progress_bar=False
    ... )
    >>> table[["name", "status", "output"]].values.tolist()
    [['S1', 'embedded', 'S1.zarr']]
    >>> folder.cleanup()
    """
    for name in options:
        _checks.one_of("argument", name, SlideOptions.__annotations__)
    plan = Plan(
        run=uuid.uuid4().hex, out=Path(out).expanduser().absolute(), model=model, device=device, suffix=".zarr",
        skip=on_error == "skip", options=dict(options),
    )  # fmt: skip
    check_plan(plan, on_error, n_workers, n_devices, scheduler)
    _check_settings(plan)
    chosen = as_sections(slides, all_there=on_error == "raise")
    for section in chosen:
        _check_slide(section)
    return run_cohort(
        chosen, plan, embed_slide_job,
        scheduler=scheduler, n_workers=n_workers, n_devices=n_devices, overwrite=overwrite, progress=show_progress_bar,
    )  # fmt: skip


def _check_settings(plan: Plan) -> None:
    from stampy.models._systems.catalogue import check_name

    from ._embedding.arguments import check_running

    given: Mapping[str, Any] = plan.options
    check_running(given.get("level", "embedding"), given.get("precision"), given.get("batch_size"), 1)
    _checks.at_least("chunk_size", given.get("chunk_size", 512), 1)
    for name in ("tile_um", "stride_um", "um_per_px"):
        if given.get(name) is not None:
            _checks.positive(name, given[name])
    if given.get("min_tissue") is not None:
        _checks.at_least("min_tissue", given["min_tissue"], 0, integer=False)
        _checks.at_most("min_tissue", given["min_tissue"], 1)
    if isinstance(plan.model, str | Path):
        check_name(str(plan.model))


def _check_slide(section: SectionInput) -> None:
    """Raise for properties of a section that slides do not have."""
    if not isinstance(section.data, Path):
        raise TypeError(f"Slide {section.name!r}: a path was expected, found {type(section.data).__name__}.")
    for name in ("image", "spot_um"):
        if getattr(section, name) is not None:
            raise ValueError(f"Slide {section.name!r}: `{name}` has no effect, the slide is the image. Omit it.")
