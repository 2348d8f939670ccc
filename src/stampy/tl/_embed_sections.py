"""Many sections in, a file for each and a table of what was done out: over processes, GPUs or a cluster."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, Unpack

from stampy import _checks
from stampy._io.sections import Section, as_sections

from ._cohort.jobs import embed_section_job
from ._cohort.plan import Contents, EmbedOptions, Plan, check_plan
from ._cohort.run import run_cohort

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from spatialdata import SpatialData

    from ._encoders import Encoder

    One: TypeAlias = str | Path | AnnData | SpatialData | Section

__all__ = ["embed_sections"]


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
    """Embed many sections, each into a file of its own, and go on where an earlier run ended.

    Each section is read, embedded as by `stampy.tl.embed`, and written by one worker, so memory grows with the workers,
    not with the sections. Each worker loads the model once.

    The same call goes on from what is there, also after it was killed. A section is embedded anew if its counts, images
    or scale, the model's weights, a setting or the version of stampy changed: all of them are compared by hash.

    Parameters
    ----------
    sections
        A manifest: a table (.tsv) with a column ``path``, and on request ``name``, ``image``, ``um_per_px``,
        ``spot_um``, ``organ`` and ``platform``; paths are relative to it. Or paths of anything that `stampy.read`
        reads, `stampy.train.Section`, AnnData or SpatialData: one, several, or a dict by name. Names must differ.
    out
        Folder for the results.
    model
        As for `stampy.tl.embed`. A loaded model needs ``n_workers=1``.
    suffix
        Format of the results.
    contents
        ``"all"``: each result holds its section and the embedding. ``"results"``: ``obs``, coordinates, embedding and
        provenance, without counts and images.
    verdict
        Judge each embedding without labels, as `stampy.tl.evaluate` does, on at most 2,000 spots.
    on_error
        ``"raise"``: stop at a section that can't be used. ``"skip"``: name it in the table and in a warning.
    n_workers
        Processes. None: one for each core; of models that are not packaged one for eight cores, or a single one that
        uses the GPU.
    n_devices
        Share the work out over the first so many CUDA devices of this machine, one process each unless `n_workers` says
        more.
    scheduler
        Address of a dask cluster, whose workers do the work. They must see the same files under the same paths.
    device
        Device of every worker; None: see `stampy.tl.embed`.
    bin_um
        As for `stampy.read`, for all sections.
    overwrite
        Replace files in `out` that this run would write but no such run has written, or that were changed since.
    show_progress_bar
        Show how far the run is.
    options
        As for `stampy.tl.embed`: ``modality``, ``image_key``, ``library_key``, ``table_key``, ``layer``, ``organism``,
        ``um_per_px``, ``spot_um``, ``level``, ``context``, ``center``, ``normalize``, ``batch_size``, ``precision``,
        ``key_added``. A scale in the manifest goes before these.

    Returns
    -------
    The table that is written to ``sections.tsv``, a row per section: ``status`` (embedded, kept: done by an earlier
    run, failed, pending), spots, genes, ``overlap`` (share of the section's genes that the model knows),
    ``counts_share`` (share of its counts in those genes), modality, model, verdict, seconds, worker, warnings, error.

    Written into `out`:

    ``NAME.h5ad`` or ``NAME.zarr``
        The section with what `stampy.tl.embed` writes.
    ``sections.tsv``
        The table; written however the run ends.

    Warns
    -----
    StampyWarning
        What `stampy.tl.embed` warns of, with the section's name; skipped sections; results of earlier runs in `out`.

    Raises
    ------
    ValueError, KeyError, TypeError
        Names that are not unique, settings that conflict; or a section that can't be used, by name.
    FileNotFoundError
        No file of a section.
    FileExistsError
        `out` holds files that this run would replace but did not write.

    See Also
    --------
    collect_sections : all results as one collection, or one store.

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
    """Raise for what `stampy.tl.embed` would refuse in every section, without loading torch."""
    from stampy.models._names import check_name

    from ._arguments import Request
    from ._cohort.plan import EmbedOptions

    for name in plan.options:
        _checks.one_of("argument", name, EmbedOptions.__annotations__)
    Request(**plan.options)
    if isinstance(plan.model, str | Path):
        check_name(str(plan.model))
