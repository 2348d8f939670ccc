"""`stampy demo | report | models | datasets`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stampy._settings import settings
from stampy.cli.corpus import named_images_option
from stampy.cli.options import (
    Commands,
    UsageError,
    command,
    common_options,
    input_options,
    model_option,
    overwrite_option,
    say,
    show_progress,
)

__all__ = ["EXAMPLES", "add_commands", "add_lists"]

EXAMPLES = {
    "demo": """
        stampy demo
        stampy demo --section HER2ST_A1                   a data set: see `stampy datasets`
        stampy demo --section section.h5ad --labels layer --n-domains 7 --out my-demo
        """,
    "report": """
        stampy report embedded.h5ad                       writes embedded.html
        stampy report embedded.h5ad mine.html --domains layer --overwrite
        """,
}


def add_commands(commands: Commands) -> None:
    """Add the commands demo and report."""
    _demo_options(commands)
    _report_options(commands)


def add_lists(commands: Commands) -> None:
    """Add the commands models and datasets."""
    command(commands, "models", _models, "List the models and systems for `--model`.")
    command(commands, "datasets", _datasets, "List the data sets that stampy knows.")


def _demo_options(commands: Commands) -> None:
    about = "Embed and cluster a section, write the result with plots to a folder, and print a summary."
    add = command(commands, "demo", _demo, about).add_argument
    add("-o", "--out", default="stampy-demo", metavar="FOLDER", help="output folder (default: %(default)s)")
    add(
        "--section",
        metavar="PATH|NAME",
        help="an .h5ad, a .zarr, a Space Ranger or other folder, a name that `stampy datasets` lists, or "
        "`toy` (default: a real section from STAMPY_DATA_DIR or by download, else a toy section)",
    )
    model_option(add)
    add("--labels", metavar="COLUMN", help="column of obs to compare the clusters with")
    add("--n-domains", type=int, metavar="N", help="number of clusters (default: determined by Leiden)")
    add("--seed", type=int, default=settings.seed, help="seed for graph and clustering (default: %(default)s)")
    input_options(add)
    common_options(add)


def _report_options(commands: Commands) -> None:
    add = command(
        commands, "report", _report, "Write an HTML report of a section: genes, tokens, maps, domains."
    ).add_argument
    add("source", metavar="IN", help="a section as for `stampy embed`, preferably embedded")
    add("target", metavar="OUT", nargs="?", help=".html (default: the name of IN, in this folder)")
    add("-o", "--out", metavar="OUT", help="the same, as an option")
    add(
        "--model",
        help="model whose vocabulary the genes are compared with (default: the packaged model of the embedding)",
    )
    add("--embedding", default="X_stamp", metavar="KEY", help="key of obsm (default: %(default)s)")
    add("--domains", metavar="COLUMN", help="column of obs (default: stamp_domain, stamp_cluster or leiden)")
    add("--library-key", metavar="COLUMN", help="column of obs that names the section of each spot")
    add("--image-key", metavar="NAME", help="image to draw, such as hires (default: the image that models use)")
    add("--layer", metavar="NAME", help="layer with raw counts (default: X)")
    add("--table-key", default="table", metavar="NAME", help="table of a SpatialData (default: %(default)s)")
    add("--n-genes", type=int, default=8, metavar="N", help="number of genes per domain (default: %(default)s)")
    overwrite_option(add, "OUT")
    add("--quiet", action="store_true", help="no summary")
    named_images_option(add)


def _demo(*, quiet: bool, **options: Any) -> None:
    _check_demo(
        options["model"], options["section"], options["image"],
        obs={name: options[name] for name in ("labels", "library_key")}, layer=options["layer"],
    )  # fmt: skip
    from stampy.cli.demo import demo

    demo(say=_silent if quiet else say, progress=show_progress(quiet), **options)


def _check_demo(
    model: str, section: str | None, image: str | None, *, obs: Mapping[str, str | None], layer: str | None
) -> None:
    """Raise for a missing model, section, column, layer or image, before torch is imported or a folder created."""
    from stampy import _checks
    from stampy.cli.early_checks import TOY, check_section_names
    from stampy.datasets import _registry
    from stampy.models._systems.catalogue import check_name

    check_name(model)
    if not (section is None or section in (TOY, *_registry.names()) or Path(section).expanduser().exists()):
        here = [p.name for p in Path(section).expanduser().parent.glob("*")]
        raise _checks.unknown("section", section, {"the data sets": [*_registry.names(), TOY], "that folder": here})
    if image is not None:
        _checks.existing(image, what="image")
    check_section_names(section, obs=obs, layers={"layer": layer})


def _silent(text: str) -> None:
    pass


def _report(*, source: str, target: str | None, out: str | None, quiet: bool, **options: Any) -> None:
    if target is not None and out is not None:
        raise UsageError(f"Two paths of the report were given: {target!r} and --out {out}. Omit one.")
    target = target or out
    from stampy import _keys
    from stampy.cli.early_checks import check_names
    from stampy.models._systems.catalogue import check_name

    if options["model"] is not None:
        check_name(options["model"])
    check_names(
        source,
        obs={name: options[name] for name in ("domains", "library_key")},
        layers={"layer": options["layer"]},
        obsm={"embedding": None if options["embedding"] == _keys.EMBEDDING else options["embedding"]},
        table_key=options["table_key"],
    )
    from stampy.cli.report import report

    path = report(source, target or f"{Path(source).resolve().stem}.html", **options)
    if not quiet:
        print(f"Written: {path}")


def _models() -> None:
    from importlib.resources import files

    from stampy import models

    for name in models.packaged():
        folder = files("stampy") / "models" / "weights" / name
        size = sum(p.stat().st_size for p in Path(str(folder)).iterdir())
        print(f"{name:14} {size / 1e6:7.1f} MB  packaged")
    print(f"{'stamp':14} {'':10}  the checkpoint published with the paper: stamp@main downloads it, unverified")
    print("\nSystems of other groups, by name from the hub or as NAME:PATH from your disk (see the page *Systems*):")
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
