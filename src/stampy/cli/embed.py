"""`stampy embed` and `stampy slide`: one section or slide into a file, or several into a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy.cli.corpus import named_images_option
from stampy.cli.options import (
    Add,
    Commands,
    UsageError,
    command,
    common_options,
    input_options,
    model_option,
    show_progress,
)
from stampy.cli.stopping import explained_stop

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXAMPLES", "add_commands"]

EXAMPLES = {
    "embed": """
        stampy embed section.h5ad embedded.h5ad
        stampy embed section.h5ad embedded.h5ad --image slide.tif --um-per-px 0.25
        stampy embed spaceranger/outs embedded.h5ad --modality gene --layer counts
        stampy embed visium.zarr visium.zarr --overwrite  only the table is written
        stampy embed hd/outs hd.h5ad --bin-um 16 --resume hd-parts
        stampy embed sections.tsv --out embedded --on-error skip --workers 8
        stampy embed a.h5ad b.h5ad spaceranger/outs --out embedded --devices 4 --join
        """,
    "slide": """
        stampy slide slide.svs slide.zarr
        stampy slide slide.tif slide.zarr --um-per-px 0.25 --level feature
        stampy slide slides/*.svs --out embedded --scheduler tcp://node1:8786
        """,
}

COHORT = ("workers", "devices", "scheduler", "on_error", "verdict", "join", "format", "contents")  # require --out


def add_commands(commands: Commands) -> None:
    """Add both commands to the parser."""
    _embed_options(commands)
    _slide_options(commands)


def _embed_options(commands: Commands) -> None:
    about = "Embed every spot of a section, or of many sections (--out)."
    add = command(commands, "embed", _embed, about).add_argument
    add("inputs", metavar="IN", nargs="+",
        help="IN OUT: a section (.h5ad, .zarr, or a folder: Space Ranger, Xenium, ST, ...) and "
        "the .h5ad or .zarr to write, a copy of IN with the embedding. With --out: sections, or manifests "
        "(.tsv with a column path, optionally name, image, um_per_px, spot_um)")  # fmt: skip
    _cohort_options(add)
    add("--verdict", action="store_true", help="with --out: evaluate each embedding without labels")
    add("--format", choices=("h5ad", "zarr"), help="with --out: format of the results (default: h5ad)")
    add("--contents", choices=("all", "results"),
        help="with --out: entire section with embedding, or only spots and embedding (default: all)")  # fmt: skip
    model_option(add)
    input_options(add)
    add("--key-added", default="X_stamp", metavar="KEY", help="key of obsm to write (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace OUT, or files in --out that were not written by such a run")
    add(
        "--bin-um",
        type=float,
        metavar="UM",
        help="Visium HD: bins to read (default: 8); cells: sum counts in such bins",
    )
    add("--table-key", default="table", metavar="NAME", help="table of a SpatialData (default: %(default)s)")
    add("--resume", metavar="FOLDER", help="folder for intermediate results, to continue after an interruption")
    common_options(add)


def _cohort_options(add: Add) -> None:
    """Options for use with --out."""
    add(
        "-o",
        "--out",
        metavar="FOLDER",
        help="for many inputs: folder for NAME.h5ad or .zarr and sections.tsv; continues an earlier run",
    )
    add(
        "--workers", type=int, metavar="N", help="with --out: processes (default: one per core, fewer for large models)"
    )
    add("--devices", type=int, metavar="N", help="with --out: number of GPUs to use")
    add("--scheduler", metavar="ADDRESS", help="with --out: address of a dask cluster to use instead")
    add("--on-error", choices=("raise", "skip"),
        help="with --out: stop at an input that cannot be used, or skip and report it (default: raise)")  # fmt: skip
    add("--join", action="store_true", help="with --out: also write all embeddings into FOLDER/joined.zarr")
    named_images_option(add, default=None)


def _slide_options(commands: Commands) -> None:
    about = "Embed the tissue of a whole slide, or of many slides (--out); interrupted runs can be continued."
    add = command(commands, "slide", _slide, about).add_argument
    add("inputs", metavar="IN", nargs="+",
        help="IN OUT: a slide (pyramidal TIFF, OME-TIFF, or .svs, .ndpi, .mrxs, ... by OpenSlide) and the .zarr to "
        "write, an AnnData with one row per tile. With --out: slides, or manifests (.tsv with a column path, "
        "optionally name, um_per_px)")  # fmt: skip
    _cohort_options(add)
    model_option(add)
    add("--level", choices=("embedding", "feature"), default="embedding", help="default: %(default)s")
    add(
        "--um-per-px",
        type=float,
        metavar="UM",
        help="µm per pixel of the full resolution (default: as stated by the file)",
    )
    add("--tile-um", type=float, metavar="UM", help="distance between tiles in µm (default: tile size of the model)")
    add("--min-tissue", type=float, metavar="PART", help="minimum fraction of a tile that is tissue (default: 0.5)")
    add("--batch-size", type=int, metavar="N", help="tiles per batch (default: chosen for the device)")
    add("--n-workers", type=int, default=1, metavar="N", help="threads that read tiles (default: %(default)s)")
    add("--overwrite", action="store_true", help="with --out: replace stores that were not written by such a run")
    common_options(add)


def _embed(*, inputs: list[str], out: str | None, **options: Any) -> None:
    cohort = {name: options.pop(name) for name in COHORT}
    if out is not None:
        _check_folder(out, "embed")
        _embed_many(inputs, out, cohort, **options)
    else:
        _embed_one(*_input_and_output(inputs, cohort), **options)


def _check_folder(out: str, command: str) -> None:
    """Raise UsageError if --out names the file of a single result."""
    if Path(out).suffix in (".h5ad", ".zarr") and not Path(out).expanduser().is_dir():
        raise UsageError(
            f"--out names a folder for the results of many inputs, found {out!r}. For a single file: stampy {command} "
            f"IN {out}"
        )


def _input_and_output(inputs: list[str], cohort: dict[str, Any]) -> tuple[str, str]:
    """The single input and its output; UsageError for options that require --out."""
    given = [f"--{name.replace('_', '-')}" for name, value in cohort.items() if value]
    if given:
        raise UsageError(f"{' and '.join(given)} needs --out FOLDER, into which many inputs are written.")
    if len(inputs) != 2:
        raise UsageError(
            f"Expected IN OUT, found {len(inputs)} paths. Name the output, or give --out FOLDER for many inputs."
        )
    return inputs[0], inputs[1]


def _embed_one(
    source: str,
    target: str,
    *,
    overwrite: bool,
    quiet: bool,
    bin_um: float | None,
    table_key: str,
    **options: Any,
) -> None:
    asked = None if bin_um is not None else _request_options(options)  # with bins, `um_per_px` may be theirs
    place, path = _checked_paths(source, target, options, asked, overwrite=overwrite, table_key=table_key)

    from stampy._io import read as _formats
    from stampy.tl._embedding.arguments import Request

    kind = "address" if place is None else _formats.format_of(place)
    extra = {"image": options.pop("image")} if kind in ("Xenium", "ST") else {}
    if bin_um is not None and kind != "Space Ranger":
        extra["um_per_px"], options["um_per_px"] = options["um_per_px"], None  # of the bins, which state it themselves
    Request(**_request_options(options), table_key=table_key)  # raise for conflicts before anything is read
    # If input and output have the same format, results are added to a copy of the file; the counts stay on disk.
    alike = bin_um is None and {"h5ad": ".h5ad", "zarr": ".zarr", "SpatialData": ".zarr"}.get(kind) == path.suffix
    data = _formats.read(place or source, bin_um=bin_um, backed=alike, **extra)

    from stampy import _utils, tl

    tl.embed(data, show_progress_bar=show_progress(quiet), table_key=table_key, **options)
    table, key = _utils.table_of(data, table_key), options["key_added"]
    keys = _formats.written_keys(table, key)
    if not (alike and place is not None and _formats.append(table, keys, place, path, table_key=table_key)):
        _formats.write(data, path, table_key=table_key)
    if not quiet:
        record = table.uns["stamp"][key]
        genes = record.get("genes")
        overlap = f", {genes['n_matched']} of {genes['n_vars']} genes matched" if genes else ""
        print(f"{table.n_obs} spots, {record['modality']}, by {record['model']}{overlap}")
        print(f"Written: {path}, obsm[{key!r}] {table.obsm[key].shape}")


def _checked_paths(
    source: str,
    target: str,
    options: dict[str, Any],
    asked: dict[str, Any] | None,
    *,
    overwrite: bool,
    table_key: str,
) -> tuple[Path | None, Path]:
    """Input (None: an address) and output; raise for invalid names and paths before heavy imports."""
    from stampy import _checks
    from stampy._io.input_files import is_address
    from stampy._io.write import checked_target
    from stampy.cli.early_checks import check_names
    from stampy.models._systems.catalogue import check_name
    from stampy.tl._embedding.arguments import Request

    check_name(options["model"])
    place = None if is_address(source) else _checks.existing(source, what="section")
    path = checked_target(target, overwrite=overwrite)
    if (resume := options["resume"]) is not None and Path(resume).expanduser().is_file():
        raise NotADirectoryError(f"`resume` must be a folder, found the file {resume!r}. Choose another.")
    if asked is not None and place is not None and place.suffix == ".h5ad":  # other readers may use the image
        Request(**asked, table_key=table_key)
    if place is not None:
        names = {"obs": {"library_key": options["library_key"]}, "layers": {"layer": options["layer"]}}
        check_names(place, **names, table_key=table_key)
    return place, path


def _request_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options that are arguments of `Request`."""
    return {name: value for name, value in options.items() if name not in ("model", "device")}


def _embed_many(
    inputs: list[str],
    out: str,
    cohort: dict[str, Any],
    *,
    image: str | None,
    resume: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    from stampy import tl
    from stampy._section.outside_links import named_images

    for name, value in (("--image", image), ("--resume", resume)):
        if value is not None:
            instead = "name images in the manifest's column image" if name == "--image" else "every run with --out does"
            raise UsageError(f"{name} is only for a single section ({instead}). Omit it.")
    _check_joined(out, cohort)
    how: dict[str, Any] = {
        "suffix": f".{cohort['format'] or 'h5ad'}",
        "contents": cohort["contents"] or "all",
    }
    kept = f"finished sections are kept in {out!r}"
    with explained_stop(lambda: kept), named_images("below"):  # unless --named-images was given
        table = tl.embed_sections(
            inputs, out, verdict=cohort["verdict"], show_progress_bar=show_progress(quiet),
            **how, **_run_options(cohort), **options,
        )  # fmt: skip
    _report_cohort(table, out, cohort, quiet, "sections", options["key_added"])


def _run_options(cohort: dict[str, Any]) -> dict[str, Any]:
    """Options of a run under the names of the function's arguments."""
    return {
        "n_workers": cohort["workers"],
        "n_devices": cohort["devices"],
        "scheduler": cohort["scheduler"],
        "on_error": cohort["on_error"] or "raise",
    }


def _report_cohort(table: pd.DataFrame, out: str, cohort: dict[str, Any], quiet: bool, what: str, key: str) -> None:
    """Join the results if requested, and print a summary."""
    lines = [f"{table['status'].value_counts().get(status, 0)} {status}" for status in ("embedded", "kept", "failed")]
    lines = [f"{len(table)} {what}: {', '.join(lines)}; {int(table['n_spots'].sum()):,} rows"]
    lines.append(f"Written: {Path(out) / 'sections.tsv'}")
    if cohort["join"]:
        from stampy import tl

        lines.append(f"Written: {tl.collect_sections(out, _joined(out), key=key, overwrite=True)}")
    if not quiet:
        print("\n".join(lines))


def _joined(out: str) -> Path:
    return Path(out).expanduser() / "joined.zarr"


def _check_joined(out: str, cohort: dict[str, Any]) -> None:
    """Raise early if the joined store cannot be written."""
    if cohort["join"] and Path(out).expanduser().is_dir():
        from stampy.tl._collect_sections import checked_store

        checked_store(_joined(out), overwrite=True)


def _slide(*, inputs: list[str], out: str | None, quiet: bool, overwrite: bool, n_workers: int, **options: Any) -> None:
    cohort = {name: options.pop(name, None) for name in COHORT}
    if out is not None:
        _check_folder(out, "slide")
        _slide_many(inputs, out, cohort, quiet=quiet, overwrite=overwrite, n_workers=n_workers, **options)
        return
    source, target = _input_and_output(inputs, {**cohort, "overwrite": overwrite})

    from stampy import _checks
    from stampy._section.image.image_files import check_is_image
    from stampy.models._systems.catalogue import check_name

    place = _checks.existing(source, what="image file")
    check_name(options["model"])
    if not target.rstrip("/").endswith(".zarr"):
        raise ValueError(f"OUT must end in .zarr, found {target!r}.")
    if place.suffix != ".zarr":  # a .zarr may be a WSIData
        check_is_image(place)

    from stampy import tl

    path = tl.embed_slide(source, target, n_workers=n_workers, show_progress_bar=show_progress(quiet), **options)
    if not quiet:
        import anndata

        adata = anndata.read_zarr(path)
        record = adata.uns["stamp"]["slide_tiles"]
        print(f"{adata.n_obs} tiles of {record['tile_um']:.4g} µm, by {options['model']}")
        print(f"Written: {path}, obsm['X_stamp'] {adata.obsm['X_stamp'].shape}")


def _slide_many(
    inputs: list[str],
    out: str,
    cohort: dict[str, Any],
    *,
    quiet: bool,
    overwrite: bool,
    n_workers: int,
    **options: Any,
) -> None:
    from stampy import tl

    if n_workers != 1:
        raise UsageError("--n-workers is only for a single slide; with --out use --workers, the number of processes.")
    _check_joined(out, cohort)
    with explained_stop(lambda: f"finished slides and chunks are kept in {out!r}"):
        table = tl.embed_slides(
            inputs,
            out,
            overwrite=overwrite,
            show_progress_bar=show_progress(quiet),
            **_run_options(cohort),
            **options,
        )
    _report_cohort(table, out, cohort, quiet, "slides", "X_stamp")
