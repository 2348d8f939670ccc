"""Command line over the functions of stampy: `stampy demo | embed | slide | corpus | pretrain | align | bench ...`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stampy import __version__
from stampy.cli import bench, corpus, embed, options, overview, train
from stampy.cli.corpus import named_images_rule
from stampy.cli.options import in_options

# No heavy imports here, so that `stampy --help` is fast. Each command imports what it needs.

# Errors of input, files, memory or network; any other error is a bug and shows its traceback.
EXPECTED = (ValueError, LookupError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)

EXAMPLES = {
    "stampy": """
        stampy demo                                       embed and cluster one section
        stampy embed section.h5ad embedded.h5ad           obsm["X_stamp"] for each spot
        stampy embed spaceranger/outs embedded.h5ad       from a Space Ranger folder
        stampy embed sections.tsv --out embedded          many sections, one file each
        stampy report embedded.h5ad                       an HTML report of a section
        stampy slide slide.svs slide.zarr                 each tile of tissue of a whole slide
        stampy pretrain a.h5ad b.h5ad --out genes         stage 1: the gene encoder
        stampy align a.h5ad b.h5ad --model genes/model --out both
        """,
    **overview.EXAMPLES,
    **embed.EXAMPLES,
    **corpus.EXAMPLES,
    **train.EXAMPLES,
    **bench.EXAMPLES,
}
options.EXAMPLES.update(EXAMPLES)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; exit status 0, 1 for an error, 2 for wrong usage, 130 for an interrupt, 143 for SIGTERM."""
    given = vars(_parser().parse_args(argv))
    run, wrong_usage, with_traceback = given.pop("run"), given.pop("wrong_usage"), given.pop("traceback")
    names = given.pop("names")()
    try:
        named = given.pop("named_images", None)
        with _warnings_as_lines(names), _no_empty_folders(given), named_images_rule(named):
            options.check_values(given)
            run(**given)
            sys.stdout.flush()
    except KeyboardInterrupt as error:
        if not error.args:  # a training run has printed its message already
            print("stampy: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except options.UsageError as error:
        wrong_usage(str(error))
    except EXPECTED as error:
        if with_traceback or os.environ.get("STAMPY_TRACEBACK") == "1":
            traceback.print_exc()
        print(f"stampy: error: {in_options(error, names)}", file=sys.stderr)
        return 1
    return 0


@contextlib.contextmanager
def _warnings_as_lines(names: Mapping[str, str]) -> Iterator[None]:
    """Print each of stampy's warnings once, as one line, and hide warnings of other packages."""
    from stampy import _checks

    shown = set()

    def show(message: Warning | str, category: type[Warning], *_: object, **__: object) -> None:
        line = in_options(message, names)
        if issubclass(category, _checks.StampyWarning) and line not in shown:
            shown.add(line)
            print(f"stampy: warning: {line}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=_checks.StampyWarning)
        warnings.showwarning = show
        yield


@contextlib.contextmanager
def _no_empty_folders(given: Mapping[str, Any]) -> Iterator[None]:
    """If the command fails, remove the output folders that it created and that are still empty."""
    paths = [Path(given["out"]).expanduser()] if given.get("out") else []
    target = given.get("target") or (given["inputs"][-1] if given.get("inputs") and not given.get("out") else None)
    paths += [Path(target).expanduser().parent] if target else []
    made = [folder for path in paths for folder in (path, *path.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        from stampy._locks import FolderLock

        for folder in made:  # deepest first
            with contextlib.suppress(OSError):
                if [path.name for path in folder.iterdir()] == [FolderLock.NAME]:
                    (folder / FolderLock.NAME).unlink()
                folder.rmdir()
        raise


def _parser() -> argparse.ArgumentParser:
    parser = options.described(options.Parser, "stampy", "Histology and spatial gene expression in one embedding.")
    parser.add_argument("--version", action="version", version=f"stampy {__version__}")
    parser.add_argument(
        "--traceback", action="store_true", help="show where an error was raised (or STAMPY_TRACEBACK=1)"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    overview.add_commands(commands)
    embed.add_commands(commands)
    corpus.add_commands(commands)
    train.add_commands(commands)
    bench.add_commands(commands)
    overview.add_lists(commands)
    return parser
