"""The command line, thin over the functions: `stampy demo | embed | slide | corpus | pretrain | align | bench ...`."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from stampy import __version__
from stampy.cli import bench as _cli_bench
from stampy.cli import corpus as _cli_corpus
from stampy.cli import train as _cli_train
from stampy.cli.corpus import named_images_option, where_named_images_may_lie

# Nothing heavy above: `stampy --help` answers at once. Every command imports what it needs.

# What may go wrong with a user's input, files, memory or network; anything else is a bug and shows its traceback.
EXPECTED = (ValueError, LookupError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)

# How functions name a parameter in their messages; on the command line it is an option.
PARAMETER = re.compile(
    r"\b(image|image_key|table_key|bin_um|resume|library_key|layer|organism|um_per_px|spot_um|tile_um|min_tissue|modality|device"
    r"|key_added|model|labels|n_domains|overwrite)"
    r"=(?:['\"]([\w.-]+)['\"])?(?![\w{])"
)

EXAMPLES = {
    "stampy": """
        stampy demo                                       the main job on one section, in a minute
        stampy embed section.h5ad embedded.h5ad           obsm["X_stamp"] for each spot
        stampy embed spaceranger/outs embedded.h5ad       from a Space Ranger folder
        stampy report embedded.h5ad                       a page about a section, to look at and to pass on
        stampy slide slide.svs slide.zarr                 each tile of tissue of a whole slide
        stampy pretrain a.h5ad b.h5ad --out genes         stage 1: the gene tower
        stampy align a.h5ad b.h5ad --model genes/model --out both
        """,
    "demo": """
        stampy demo
        stampy demo --section HER2ST_A1                   a data set: see `stampy datasets`
        stampy demo --section section.h5ad --labels layer --n-domains 7 --out my-demo
        """,
    "embed": """
        stampy embed section.h5ad embedded.h5ad
        stampy embed section.h5ad embedded.h5ad --image slide.tif --um-per-px 0.25
        stampy embed spaceranger/outs embedded.h5ad --modality gene --layer counts
        stampy embed visium.zarr visium.zarr --overwrite  only the table is written
        stampy embed hd/outs hd.h5ad --bin-um 16 --resume hd-parts
        """,
    "slide": """
        stampy slide slide.svs slide.zarr
        stampy slide slide.tif slide.zarr --um-per-px 0.25 --level feature
        """,
    "report": """
        stampy report embedded.h5ad                       writes embedded.html
        stampy report embedded.h5ad mine.html --domains layer --overwrite
        """,
    **_cli_train.EXAMPLES,
    **_cli_corpus.EXAMPLES,
    **_cli_bench.EXAMPLES,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 0, 1 for an error, 2 for wrong usage, 130 for an interrupt, 143 for SIGTERM."""
    options = vars(_parser().parse_args(argv))
    run, with_traceback = options.pop("run"), options.pop("traceback")
    try:
        named = options.pop("named_images", None)
        with _warnings_as_lines(), _no_empty_folders(options), where_named_images_may_lie(named):
            run(**options)
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        if not error.args:  # a training run has said more
            print("stampy: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except EXPECTED as error:
        if with_traceback or os.environ.get("STAMPY_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"stampy: error: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(message: Any) -> str:
    """The message of an error or a warning, with options named as they are here.

    >>> _one_line(KeyError("Give `um_per_px=`, or modality='gene'."))
    'Give `--um-per-px`, or --modality gene.'
    """
    plain = message.args[0] if isinstance(message, KeyError) and message.args else message  # else Python quotes it
    line = " ".join(str(plain).split()) or type(message).__name__
    return PARAMETER.sub(lambda m: f"--{m[1].replace('_', '-')} {m[2] or ''}".rstrip(), line)


@contextlib.contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show stampy's own warnings as one line each, once, and those of other packages not at all."""
    from stampy import _checks

    shown = set()

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        line = _one_line(message)
        if issubclass(category, _checks.StampyWarning) and line not in shown:
            shown.add(line)
            print(f"stampy: warning: {line}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=_checks.StampyWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _no_empty_folders(options: Mapping[str, Any]) -> Iterator[None]:
    """If the command fails, remove the folders that it made for its output, unless something lies in them."""
    paths = [Path(options["out"]).expanduser()] if options.get("out") else []
    paths += [Path(options["target"]).expanduser().parent] if options.get("target") else []
    made = [folder for path in paths for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:  # the deepest first
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def _show_progress(quiet: bool) -> bool:
    return not quiet and sys.stderr.isatty()


def _demo(**options: Any) -> None:
    from stampy.cli import demo as _demo

    quiet = options.pop("quiet")

    def say(text: str) -> None:
        if not quiet:
            print(text, flush=True)

    _demo.demo(say=say, progress=_show_progress(quiet), **options)


def _embed(
    *, source: str, target: str, overwrite: bool, quiet: bool, bin_um: float | None, table_key: str, **options: Any
) -> None:
    from stampy import _checks
    from stampy._io import read as _formats
    from stampy.models._names import check_name
    from stampy.tl._request import Request

    place = _checks.existing(source, what="section")
    check_name(options["model"])
    asked = {name: value for name, value in options.items() if name not in ("model", "device")}
    Request(**asked, table_key=table_key)  # conflicts are told before anything is read
    path = _formats.checked_target(target, overwrite=overwrite)
    kind = _formats.format_of(place)
    # of like formats only the results are written, into a copy; the counts stay on disk
    alike = bin_um is None and {"h5ad": ".h5ad", "zarr": ".zarr", "SpatialData": ".zarr"}.get(kind) == path.suffix
    extra = {"image": options.pop("image")} if kind in ("Xenium", "ST") else {}
    if bin_um is not None and kind != "Space Ranger":
        extra["um_per_px"] = options["um_per_px"]
    data = _formats.read(place, bin_um=bin_um, backed=alike, **extra)

    from stampy import _utils, tl

    tl.embed(data, show_progress_bar=_show_progress(quiet), table_key=table_key, **options)
    table, key = _utils.table_of(data, table_key), options["key_added"]
    keys = _formats.written_keys(table, key)
    if not (alike and _formats.append(table, keys, place, path, table_key=table_key)):
        _formats.write(data, path, table_key=table_key)
    if not quiet:
        record = table.uns["stamp"][key]
        genes = record.get("genes")
        overlap = f", {genes['n_matched']} of {genes['n_vars']} genes matched" if genes else ""
        print(f"{table.n_obs} spots, {record['modality']}, by {record['model']}{overlap}")
        print(f"Written: {path}, obsm[{key!r}] {table.obsm[key].shape}")


def _slide(*, source: str, target: str, quiet: bool, **options: Any) -> None:
    from stampy import _checks
    from stampy.models._names import check_name

    _checks.existing(source, what="image file")
    check_name(options["model"])

    from stampy import tl

    path = tl.embed_slide(source, target, show_progress_bar=_show_progress(quiet), **options)
    if not quiet:
        import anndata

        adata = anndata.read_zarr(path)
        record = adata.uns["stamp"]["slide_tiles"]
        print(f"{adata.n_obs} tiles of {record['tile_um']:.4g} µm, by {options['model']}")
        print(f"Written: {path}, obsm['X_stamp'] {adata.obsm['X_stamp'].shape}")


def _report(*, source: str, target: str | None, quiet: bool, **options: Any) -> None:
    from stampy.cli import report as _report

    path = _report.report(source, target or f"{Path(source).resolve().stem}.html", **options)
    if not quiet:
        print(f"Written: {path}")


def _models() -> None:
    from importlib.resources import files

    from stampy import models

    for name in models.packaged():
        folder = files("stampy") / "models" / "weights" / name
        size = sum(p.stat().st_size for p in Path(str(folder)).iterdir())
        print(f"{name:14} {size / 1e6:7.1f} MB  packaged")
    print(f"{'stamp':14} {'':10}  the checkpoint published with the paper, downloaded on first use")
    print("\nSystems of others, by name from the hub or as NAME:PATH from your disk (see the page *Systems*):")
    for card in (models.card(name) for name in models.systems().index):
        if card.modality != "predictor" and not card.name.startswith("stamp"):
            print(f"{card.name:14} {card.modality:6} {card.gate:8} {card.licence}")
    print("\nAlso: a folder of weights, or hf-hub:org/name@revision")


def _datasets() -> None:
    from stampy import datasets

    entries = [datasets.info(name) for name in datasets.names()]
    wide = max(len(e.name) for e in entries)
    print(f"{'name':{wide}}  {'use':13}  {'labels':10}  licence")
    for e in entries:
        print(f"{e.name:{wide}}  {e.use or '':13}  {', '.join(e.labels):10}  {e.licence}")


def _parser() -> argparse.ArgumentParser:
    parser = _described(_Parser, "stampy", "Histology and spatial gene expression in one embedding.")
    parser.add_argument("--version", action="version", version=f"stampy {__version__}")
    parser.add_argument("--traceback", action="store_true", help="show where an error is from (or STAMPY_TRACEBACK=1)")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _demo_options(commands)
    _embed_options(commands)
    _slide_options(commands)
    _report_options(commands)
    _cli_corpus.add_commands(commands, _described, _command)
    _cli_train.add_commands(commands, _command, _model_option, _common_options)
    _cli_bench.add_commands(commands, _command, _show_progress, print)
    _command(commands, "models", _models, "List the models and systems that `--model` takes.")
    _command(commands, "datasets", _datasets, "List the data sets that stampy knows.")
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that names the nearest command where there is none of the name that was given."""

    def error(self, message: str) -> NoReturn:
        """Show the usage and the message, exit with 2."""
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found:
            near = difflib.get_close_matches(found[1], re.findall(r"[\w.-]+", found[2]), n=1)
            message = f"{message.partition(': invalid')[0]}: there is no {found[1]!r}" + (
                f". Did you mean {near[0]!r}?" if near else f" (choose from {found[2]})."
            )
        super().error(message)


def _described(make: Any, name: str, about: str, **more: Any) -> argparse.ArgumentParser:
    lines = [line.strip() for line in EXAMPLES.get(name.split()[-1], "").strip().splitlines()]
    epilog = "\n  ".join(["examples:", *lines]) if lines else None
    return make(name, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **more)


def _command(commands: Any, name: str, run: Any, about: str) -> argparse.ArgumentParser:
    parser = _described(commands.add_parser, name, about, help=about)
    parser.set_defaults(run=run)
    # SUPPRESS: without it, the default here would undo `stampy --traceback COMMAND`
    parser.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error is from"
    )
    return parser


def _demo_options(commands: Any) -> None:
    about = "Embed a section, cluster it, write it with pictures into a folder, and tell what was found."
    add = _command(commands, "demo", _demo, about).add_argument
    add("--out", default="stampy-demo", metavar="FOLDER", help="where the files go (default: %(default)s)")
    add(
        "--section",
        metavar="PATH|NAME",
        help="an .h5ad, a .zarr, a Space Ranger or other folder, a name that `stampy datasets` lists, or "
        "`toy` (default: a real section from STAMPY_DATA_DIR or by download, else a toy section)",
    )
    _model_option(add)
    add("--labels", metavar="COLUMN", help="column of obs to compare the clusters with")
    add("--n-domains", type=int, metavar="N", help="number of clusters (default: what Leiden finds)")
    add("--seed", type=int, default=0, help="of graph and clustering (default: 0)")
    _input_options(add)
    _common_options(add)


def _embed_options(commands: Any) -> None:
    add = _command(commands, "embed", _embed, "Embed every spot of a section.").add_argument
    add("source", metavar="IN", help=".h5ad, .zarr (AnnData, SpatialData), or a folder: Space Ranger, Xenium, ST, ...")
    add("target", metavar="OUT", help=".h5ad or .zarr; it gets all that IN has, and the embedding")
    _model_option(add)
    _input_options(add)
    add("--key-added", default="X_stamp", metavar="KEY", help="key of obsm to write (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace OUT; also needed where OUT is IN")
    add("--bin-um", type=float, metavar="UM", help="Visium HD: which bins (default: 8); cells: summed up in such bins")
    add("--table-key", default="table", metavar="NAME", help="table of a SpatialData (default: %(default)s)")
    add("--resume", metavar="FOLDER", help="keep what is done there, and go on from it after an interruption")
    _common_options(add)


def _slide_options(commands: Any) -> None:
    about = "Embed the tissue of a whole slide, tile by tile; a run that was cut off goes on."
    add = _command(commands, "slide", _slide, about).add_argument
    add("source", metavar="IN", help="pyramidal TIFF, OME-TIFF, or .svs, .ndpi, .mrxs, ... (OpenSlide)")
    add("target", metavar="OUT", help=".zarr, an AnnData with a row per tile")
    _model_option(add)
    add("--level", choices=("embedding", "feature"), default="embedding", help="default: %(default)s")
    add("--um-per-px", type=float, metavar="UM", help="size of a pixel of the full resolution (default: the file's)")
    add("--tile-um", type=float, metavar="UM", help="from tile to tile (default: what the model sees)")
    add("--min-tissue", type=float, metavar="PART", help="least part of a tile that is tissue (default: 0.5)")
    add("--batch-size", type=int, metavar="N", help="tiles per batch (default: what suits the device)")
    add("--n-workers", type=int, default=1, metavar="N", help="threads that read tiles (default: %(default)s)")
    _common_options(add)


def _report_options(commands: Any) -> None:
    add = _command(
        commands, "report", _report, "Write a page about a section: genes, tokens, maps, domains."
    ).add_argument
    add("source", metavar="IN", help="as for `stampy embed`; best a section that is embedded")
    add("target", metavar="OUT", nargs="?", help=".html (default: the name of IN, in this folder)")
    add(
        "--model",
        help="whose vocabulary to hold the genes against (default: the packaged model that made the embedding)",
    )
    add("--embedding", default="X_stamp", metavar="KEY", help="key of obsm (default: %(default)s)")
    add("--domains", metavar="COLUMN", help="column of obs (default: stamp_domain, stamp_cluster or leiden)")
    add("--library-key", metavar="COLUMN", help="column of obs that names the section of each spot")
    add("--layer", metavar="NAME", help="layer with raw counts (default: X)")
    add("--n-genes", type=int, default=8, metavar="N", help="told for each domain (default: %(default)s)")
    add("--overwrite", action="store_true", help="replace OUT")
    add("--quiet", action="store_true", help="no summary")
    named_images_option(add)


def _model_option(add: Any) -> None:
    add("--model", default="stampy-mini", help="a name that `stampy models` lists, or a folder (default: %(default)s)")


def _input_options(add: Any) -> None:
    add("--modality", choices=("gene", "image", "fused"), help="default: fused where there are counts and an image")
    add("--image", metavar="PATH", help="image in full resolution, instead of the section's own")
    add("--image-key", metavar="NAME", help="which of the section's images, such as hires")
    add("--library-key", metavar="COLUMN", help="column of obs that names the section of each spot")
    add("--layer", metavar="NAME", help="layer with raw counts (default: X)")
    add("--organism", choices=("human", "mouse"), default="human", help="of the genes; mouse: by their human orthologs")
    add("--context", choices=("neighbors",), help="take the mean with the six nearest spots (default: each spot alone)")
    add("--um-per-px", type=float, metavar="UM", help="size of a pixel of the full-resolution image")
    add("--spot-um", type=float, metavar="UM", help="diameter of a spot, where the scale factors do not tell the scale")
    add("--batch-size", type=int, metavar="N", help="spots per batch (default: what suits the device)")


def _common_options(add: Any) -> None:
    add("--device", help="cpu, cuda, cuda:1 (default: CUDA if there is one)")
    add("--quiet", action="store_true", help="no progress bar, no summary")
