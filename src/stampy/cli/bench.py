"""`stampy bench run | table | report`: options that are passed to `stampy.bench`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stampy.cli.options import Commands, command, overwrite_option, say, show_progress
from stampy.cli.stopping import explained_stop

if TYPE_CHECKING:
    import pandas as pd

    from stampy.bench import Piece

__all__ = ["EXAMPLES", "add_commands"]

FORMATS = ("markdown", "latex", "html")
EXAMPLES = {
    "bench": """
        stampy bench run toy --out compared               a config of the package: see `stampy bench configs`
        stampy bench run dlpfc data/ --out results/dlpfc  a table of the paper, from your files
        stampy bench run dlpfc data/ --model both/model --systems PCA Stamp_F
        stampy bench report results --out tables.html     one page with all tables and plots
        stampy bench run mine.json --out compared         your own config; repeat to continue after an interruption
        stampy bench table compared                       Markdown
        stampy bench table compared --format html --out compared.html
        """,
}


def add_commands(commands: Commands) -> None:
    """Add `bench` to the parser."""
    parser = command(commands, "bench", None, "Compare systems on data sets, with several seeds.")
    below = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    add = command(below, "run", _run, "Embed every section once, run every task, and write a tidy table.").add_argument
    add("config", metavar="CONFIG", help="a .json or .toml, or a name that `stampy bench configs` lists")
    add("folder", nargs="?", metavar="FOLDER",
        help="folder of your data, for the paper's tables (default: the sections of the config)")  # fmt: skip
    add("-o", "--out", metavar="FOLDER",
        help="output folder; continues an interrupted run (default: results/CONFIG)")  # fmt: skip
    add("--model", action="append", default=[], dest="models", metavar="MODEL",
        help="additional system: a folder of weights, or a name; can be repeated")  # fmt: skip
    add("--systems", nargs="+", metavar="NAME", help="run only these systems of the config")
    add(
        "--cache",
        metavar="FOLDER",
        help="folder of the embeddings, which several configs can share (default: OUT/embeddings)",
    )
    add("--seeds", type=int, nargs="+", metavar="N", help="replace the seeds of the config")
    add("--allow-unverified", action="store_true", help="download files whose hash stampy does not know")
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if available)")
    add("--quiet", action="store_true", help="no progress bar, no summary")

    about = "Print the table of a run, or write it to a file."
    add = command(below, "table", _table, about).add_argument
    add("folder", metavar="FOLDER", help="OUT of `stampy bench run`")
    add("--format", choices=FORMATS, default="markdown", dest="kind", help="default: %(default)s; html includes a plot")
    add("-o", "--out", metavar="FILE", help="output file (default: print)")
    overwrite_option(add, "the files --out and --picture")
    add("--sections", action="store_true", help="also list each section")
    add("--tasks", nargs="+", metavar="TASK", help="only these tasks")
    add("--picture", metavar="PNG", help="also write a plot of the comparison to this file")
    add("--no-reported", action="store_false", dest="reported", help="omit published figures")
    about = "Write one HTML page with all tables and plots of a run, or of all runs in a folder."
    add = command(below, "report", _report, about).add_argument
    add("folder", metavar="FOLDER", help="OUT of `stampy bench run`, or a folder with several of them")
    add("-o", "--out", required=True, metavar="HTML", help="path of the page")
    overwrite_option(add)
    add("--title", default="Tables", help="title of the page (default: %(default)s)")
    command(below, "configs", _configs, "List the configs that come with the package.")


def _run(*, config: str, folder: str | None, out: str | None, quiet: bool, **options: Any) -> None:
    from stampy.bench._config_names import TABLES, config_path, raw_config

    path = config_path(config)
    raw_config(path)  # report a damaged file before heavy imports
    out = out or str(Path("results") / path.stem)
    if folder is not None:
        if config not in TABLES:
            raise ValueError(
                f"FOLDER is only for the paper's tables ({', '.join(TABLES)}), found the config {config!r}."
            )
        _check_inputs(config, folder, options["systems"], quiet=quiet)
    from stampy import bench

    with explained_stop(lambda: f"finished parts are kept in {out!r}"):
        results = bench.run(config, out, folder=folder, show_progress_bar=show_progress(quiet), **options)
    if not quiet:
        say(_results_summary(results, out))


def _check_inputs(table: str, folder: str, systems: Sequence[str] | None, *, quiet: bool) -> None:
    """Print which inputs exist and which are missing; FileNotFoundError if nothing can be run."""
    from stampy.bench import pieces

    wanted = None if systems is None else set(systems)
    found = [p for p in pieces(table, folder) if p.what != "weights" or wanted is None or p.name in wanted]
    if not quiet:
        say(inputs_summary(table, folder, found))
    if not any(p.found for p in found if p.what in ("counts", "slides")):
        steps = next(p.steps for p in found if p.what in ("counts", "slides"))
        raise FileNotFoundError(f"Nothing of the table {table!r} can be run from {folder!r}. {steps}")


def inputs_summary(table: str, folder: str, found: Sequence[Piece]) -> str:
    """Text: existing inputs by kind, and missing inputs with the steps to get them, each step once."""
    from stampy.bench._paper.pieces import grouped

    lines = [f"{table} from {folder}:"]
    for what in dict.fromkeys(piece.what for piece in found):
        mine = [piece for piece in found if piece.what == what]
        lines.append(f"  {what}: {sum(bool(p.found) for p in mine)} of {len(mine)}")
    missing = [piece for piece in found if not piece.found]
    if missing:
        can_run = any(piece.found for piece in found if piece.what in ("counts", "slides"))
        lines.append("missing (all other parts are run):" if can_run else "missing:")
    for (what, steps, without), names in grouped(missing).items():
        lines.append(f"  {what} of {', '.join(names)}: {steps} Needed for {without}.")
    return "\n".join(lines)


def _report(*, folder: str, out: str, overwrite: bool, title: str) -> None:
    from stampy import _checks
    from stampy.cli.early_checks import checked_file

    _checks.existing(folder, what="folder of results")
    target = checked_file(out, overwrite=overwrite)
    from stampy.cli.tables import write_tables

    say(f"Written: {write_tables(folder, target, title=title)}")


def _results_summary(results: pd.DataFrame, out: str) -> str:
    from stampy import bench

    n = int((results["status"] == "ok").sum())
    lines = [*_comparison_lines(out), f"{n} figures: {Path(out) / 'results.csv'}"]
    left = bench.skipped(results)
    lines += [f"Skipped: {r.dataset}, {r.sections}; {r.systems}; {r.tasks}: {r.reason}" for r in left.itertuples()]
    lines.append(f"Show it with: stampy bench table {out}, or stampy bench report {out} --out page.html")
    return "\n".join(lines)


def _comparison_lines(out: str) -> list[str]:
    """Own results next to the paper's, if both exist."""
    from stampy import bench

    table = bench.comparison(out)
    table = table[table["own"].notna()]
    if not len(table):
        return []
    shown = table[["dataset", "task", "metric", "variant", "system", "own", "paper", "difference"]]
    told = [
        f"{d}, {t}: protocol {p}" for d, t, p in table[["dataset", "task", "protocol"]].drop_duplicates().to_numpy()
    ]
    return [shown.to_string(index=False, na_rep="not known", float_format="{:.3f}".format), *told]


def _table(*, folder: str, kind: str, out: str | None, picture: str | None, overwrite: bool, **options: Any) -> None:
    from stampy import _checks, _files, bench
    from stampy.cli.early_checks import checked_file

    _checks.existing(folder, what="folder of results")
    target, drawing = (None if path is None else checked_file(path, overwrite=overwrite) for path in (out, picture))
    if target is not None and drawing is not None and target.resolve() == drawing.resolve():
        raise ValueError(f"--out and --picture are the same file, {out!r}. Choose another name for one of them.")
    results = bench.read_results(folder)
    if drawing is not None:
        _draw(results, drawing, options)
    if kind == "html":
        with tempfile.TemporaryDirectory() as place:
            drawn = drawing or Path(place) / "bench.png"
            if drawing is None and (results["status"] != "skipped").any():
                _draw(results, drawn, options)
            text = bench.to_html(results, picture=drawn if drawn.exists() else None, **options)
    else:
        text = {"markdown": bench.to_markdown, "latex": bench.to_latex}[kind](results, **options)
    if target is None:
        sys.stdout.write(text if text.endswith("\n") else text + "\n")
        return
    with _files.atomic(target) as beside:
        beside.write_text(text, "utf-8")
    say(f"Written: {target}")


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
