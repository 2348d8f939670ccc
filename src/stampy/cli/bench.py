"""`stampy bench run | table`: the options, thin over `stampy.bench`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy.cli.options import Commands, command, say, show_progress

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["EXAMPLES", "add_commands"]

FORMATS = ("markdown", "latex", "html")
EXAMPLES = {
    "bench": """
        stampy bench run toy --out compared               a config of the package: see `stampy bench configs`
        stampy bench run mine.json --out compared         your own; interrupted, it goes on where it was
        stampy bench table compared                       Markdown
        stampy bench table compared --format html --out compared.html
        """,
}


def add_commands(commands: Commands) -> None:
    """Add `bench` to the parser."""
    parser = command(commands, "bench", None, "Compare systems on data sets: tables, with seeds and spread.")
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add = command(below, "run", _run, "Embed every section once, run every task, write the tidy table.").add_argument
    add("config", metavar="CONFIG", help="a .json or .toml, or a name that `stampy bench configs` lists")
    add("--out", required=True, metavar="FOLDER", help="for results.csv and what is done; a run there goes on")
    add("--cache", metavar="FOLDER", help="of the embeddings, which configs may share (default: OUT/embeddings)")
    add("--seeds", type=int, nargs="+", metavar="N", help="instead of those of the config")
    add("--allow-unverified", action="store_true", help="download files whose hash stampy does not know")
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add("--quiet", action="store_true", help="no progress bar, no summary")

    about = "Print the table of a run, or write it into a file."
    add = command(below, "table", _table, about).add_argument
    add("folder", metavar="FOLDER", help="OUT of `stampy bench run`")
    add("--format", choices=FORMATS, default="markdown", dest="kind", help="default: %(default)s; html has a picture")
    add("--out", metavar="FILE", help="instead of the screen")
    add("--sections", action="store_true", help="a row for each section, too")
    add("--tasks", nargs="+", metavar="TASK", help="only these")
    add("--picture", metavar="PNG", help="also draw the comparison into this file")
    add("--no-reported", action="store_false", dest="reported", help="without the figures that others published")
    command(below, "configs", _configs, "List the configs that come with the package.")


def _run(*, config: str, out: str, quiet: bool, **options: Any) -> None:
    from stampy import bench

    results = bench.run(config, out, show_progress_bar=show_progress(quiet), **options)
    if not quiet:
        say(_told(results, out))


def _told(results: pd.DataFrame, out: str) -> str:
    from stampy import bench

    n = int((results["status"] == "ok").sum())
    lines = [f"{n} figures: {Path(out) / 'results.csv'}"]
    left = bench.skipped(results)
    lines += [f"Left out: {r.dataset}, {r.sections}; {r.systems}; {r.tasks}: {r.reason}" for r in left.itertuples()]
    return "\n".join([*lines, f"See it by: stampy bench table {out}"])


def _table(*, folder: str, kind: str, out: str | None, picture: str | None, **options: Any) -> None:
    from stampy import _files, bench

    results = bench.read_results(folder)
    if picture is not None:
        _draw(results, Path(picture), options)
    if kind == "html":
        with tempfile.TemporaryDirectory() as place:
            drawn = Path(picture) if picture else Path(place) / "bench.png"
            if not picture and (results["status"] != "skipped").any():
                _draw(results, drawn, options)
            text = bench.to_html(results, picture=drawn if drawn.exists() else None, **options)
    else:
        text = {"markdown": bench.to_markdown, "latex": bench.to_latex}[kind](results, **options)
    if out is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    with _files.atomic(out) as beside:
        beside.write_text(text, "utf-8")
    say(f"Written: {out}")


def _draw(results: pd.DataFrame, path: Path, options: dict[str, Any]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from stampy import _files, bench, pl
    from stampy.cli.pages import figure_of

    axes = pl.bench(bench.summary(results), tasks=options["tasks"], reported=options["reported"])
    figure = figure_of(axes)
    with _files.atomic(path) as beside:
        figure.savefig(beside, dpi=110, format="png")
    plt.close(figure)


def _configs() -> None:
    import json

    from stampy import bench

    for name, path in bench.configs().items():
        say(f"{name:10} {json.loads(path.read_text('utf-8')).get('about', '')}")
