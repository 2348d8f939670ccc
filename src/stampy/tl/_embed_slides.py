"""Many slides in, a store for each and a table of what was done out: over processes, GPUs or a cluster."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from stampy import _checks
from stampy._io.sections import Section, as_sections

from ._cohort.jobs import embed_slide_job
from ._cohort.plan import Plan, check_plan
from ._cohort.run import run_cohort

if TYPE_CHECKING:
    import pandas as pd

    from ._arguments import Level, Precision
    from ._encoders import ImageModel

__all__ = ["SlideOptions", "embed_slides"]


class SlideOptions(TypedDict, total=False):
    """Arguments of `stampy.tl.embed_slide` that all slides of a run share."""

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
    slides: str | Path | Section | Sequence[str | Path | Section] | Mapping[str, str | Path],
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
    """Embed many whole slides, each into a store of its own, and go on where an earlier run ended.

    Each slide is embedded as by `stampy.tl.embed_slide` by one worker. A slide that was cut off goes on at its last
    chunk; one that is done is left alone unless its file, the model's weights or a setting changed.

    Parameters
    ----------
    slides
        A manifest: a table (.tsv) with a column ``path``, and on request ``name``, ``um_per_px``, ``organ`` and
        ``platform``; paths are relative to it. Or paths of slides: one, several, or a dict by name. Names must differ.
    out
        Folder for the results.
    model, on_error, n_workers, n_devices, scheduler, device, overwrite, show_progress_bar
        See `stampy.tl.embed_sections`.
    options
        As for `stampy.tl.embed_slide`: ``level``, ``tile_um``, ``stride_um``, ``min_tissue``, ``um_per_px``,
        ``chunk_size``, ``batch_size``, ``precision``, ``key_added``. A scale in the manifest goes before ``um_per_px``.

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
    >>> tifffile.imwrite(path, (picture * 255).astype("uint8"))
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
    from stampy.models._names import check_name

    from ._arguments import check_running

    given: Mapping[str, Any] = plan.options
    check_running(given.get("level", "embedding"), given.get("precision"), given.get("batch_size"), 1)
    _checks.at_least("chunk_size", given.get("chunk_size", 512), 1)
    for name in ("tile_um", "stride_um", "um_per_px"):
        if given.get(name) is not None:
            _checks.positive(name, given[name])
    if isinstance(plan.model, str | Path):
        check_name(str(plan.model))


def _check_slide(section: Section) -> None:
    """Raise for what a slide can't have."""
    if not isinstance(section.data, Path):
        raise TypeError(f"Slide {section.name!r}: a path was expected, found {type(section.data).__name__}.")
    for name in ("image", "spot_um"):
        if getattr(section, name) is not None:
            raise ValueError(f"Slide {section.name!r}: `{name}` has no effect, the slide is the image. Leave it out.")
