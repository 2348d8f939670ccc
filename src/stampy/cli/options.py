"""Helpers of the commands: adding them to the parser, and shared options."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, Protocol, TypeAlias, TypedDict

__all__ = [
    "Add",
    "Commands",
    "InputOptions",
    "Parser",
    "UsageError",
    "check_values",
    "command",
    "common_options",
    "described",
    "in_options",
    "input_options",
    "model_option",
    "overwrite_option",
    "say",
    "show_progress",
]


Commands: TypeAlias = "argparse._SubParsersAction[Any]"  # return type of `add_subparsers`


class Add(Protocol):
    """`add_argument` of a parser."""

    def __call__(self, *names: str, **how: Any) -> object:
        """Add an option."""


class InputOptions(TypedDict, total=False):
    """Options of `input_options` except image, layer and library_key: arguments of `stampy.tl.embed`."""

    modality: Literal["gene", "image", "fused"] | None
    image_key: str | None
    organism: Literal["human", "mouse"]
    context: Literal["neighbors"] | None
    center: Literal["section", "direction"] | None
    um_per_px: float | None
    spot_um: float | None
    batch_size: int | None


# Parameters in messages of functions that are options on the command line.
PARAMETER = re.compile(
    r"\b(image|image_key|table_key|bin_um|resume|library_key|layer|organism|center|um_per_px|spot_um|tile_um|min_tissue"
    r"|modality|device|key_added|model|labels|n_domains|overwrite)"
    r"=(?:['\"]([\w.-]+)['\"])?(?![\w{])"
)

# Parameters that are columns of a manifest.
_COLUMN = re.compile(r"`(image|um_per_px|spot_um)=`")

# Values with another name on the command line.
VALUES = {
    "`stampy.tl.embed(adata, organism='mouse')`": "`stampy embed --organism mouse`",
    "images=False": "--images none",
    "images=True": "--images all",
    "on_error='skip'": "--on-error skip",
    "`overwrite=True`": "--overwrite",
    "`context='neighbors'`": "--context neighbors",
}

LEAST = {"workers": 1, "devices": 1, "num_nodes": 1, "n_workers": 1, "batch_size": 1, "n_groups": 1, "n_spots": 1,
         "n_genes": 1, "n_domains": 2, "seed": 0}  # fmt: skip
ABOVE_ZERO = "um_per_px", "spot_um", "tile_um", "bin_um"

EXAMPLES: dict[str, str] = {}  # by command, added by each group of commands


def in_options(message: BaseException | str, names: Mapping[str, str] | None = None) -> str:
    """Message of an error or warning in terms of the command line; `names`: parameter -> option.

    >>> in_options(KeyError("Give `um_per_px=`, or modality='gene'."))
    'Give `--um-per-px`, or --modality gene.'
    >>> in_options(ValueError("`max_tokens` must be at least 1, found 0."), {"max_tokens": "--max-tokens"})
    '--max-tokens must be at least 1, found 0.'
    >>> in_options(KeyError("Key `domains` not found."), {"domains": "--domains"})  # a key of that name
    'Key `domains` not found.'
    >>> in_options(ValueError("Build with images=False."))
    'Build with --images none.'
    >>> in_options(ValueError("Give `um_per_px=`."), {"sections": "SECTIONS"})
    'Give `um_per_px` in a manifest.'
    """
    plain = message.args[0] if isinstance(message, KeyError) and message.args else message  # str() would add quotes
    line = " ".join(str(plain).split()) or type(message).__name__
    for value, option in VALUES.items():
        line = line.replace(value, option)
    if names and "sections" in names:  # parameters without an option can be set per section
        line = _COLUMN.sub(lambda m: m[0] if m[1] in names else f"`{m[1]}` in a manifest", line)
    line = re.sub(r"(?<!Key )`(\w+)`(?:=(['\"][^'\"]*['\"]))?", lambda m: _option(m, names or {}), line)
    return PARAMETER.sub(lambda m: f"--{m[1].replace('_', '-')} {m[2] or ''}".rstrip(), line)


def _option(found: re.Match[str], names: Mapping[str, str]) -> str:
    """Option for a parameter in backticks, with its value; other text is not changed."""
    if found[1] not in names:
        return found[0]
    return f"{names[found[1]]} {(found[2] or '').strip(chr(39))}".rstrip()


def check_values(given: Mapping[str, object]) -> None:
    """Raise for numbers out of range and unknown devices, before torch is imported or a folder created."""
    from stampy import _checks, _utils

    given = {name: value for name, value in given.items() if value is not None}
    for name in LEAST.keys() & given.keys():
        _checks.at_least(name, given[name], LEAST[name])
    for name in given.keys() & set(ABOVE_ZERO):
        _checks.positive(name, given[name])
    if isinstance(share := given.get("min_tissue"), float):
        _checks.at_least("min_tissue", share, 0, integer=False)
        _checks.at_most("min_tissue", share, 1)
    _utils.check_device(given.get("device"))


def show_progress(quiet: bool) -> bool:
    """Whether to show progress bars."""
    return not quiet and sys.stderr.isatty()


def say(text: str) -> None:
    """Print without buffering, also into a pipe."""
    print(text, flush=True)


class UsageError(ValueError):
    """Options that conflict; shown with the usage, exit status 2."""


class Parser(argparse.ArgumentParser):
    """Parser that suggests the nearest command or option for an unknown one."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse arguments; a misspelt option of a command is answered by the command, which knows its options."""
        parsed, extra = super().parse_known_args(args, namespace)
        for option in (text.partition("=")[0] for text in extra if self._subparsers is None and text.startswith("--")):
            near = difflib.get_close_matches(option, self._option_string_actions, n=1)
            self.error(f"there is no option {option}." + (f" Did you mean {near[0]}?" if near else ""))
        return parsed, extra

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message; exit with status 2."""
        found = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message)
        if found:
            near = difflib.get_close_matches(found[1], re.findall(r"[\w.-]+", found[2]), n=1)
            message = f"{message.partition(': invalid')[0]}: there is no {found[1]!r}" + (
                f". Did you mean {near[0]!r}?" if near else f" (choose from {found[2]})."
            )
        super().error(message)


def described(
    make: Callable[..., argparse.ArgumentParser], name: str, about: str, *, examples: str | None = None, **more: str
) -> argparse.ArgumentParser:
    """Create a parser with the examples of its command, by default those of `name`."""
    lines = [line.strip() for line in EXAMPLES.get(examples or name, "").strip().splitlines()]
    epilog = "\n  ".join(["examples:", *lines]) if lines else None
    return make(name, description=about, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter, **more)


def command(commands: Commands, name: str, run: Callable[..., None] | None, about: str) -> argparse.ArgumentParser:
    """Add a command that calls `run` with its options."""
    above = commands._prog_prefix.split()[1:]  # "report" is a different command in "stampy bench" and in "stampy"
    parser = described(commands.add_parser, name, about, examples=" ".join([*above, name]), help=about)
    parser.set_defaults(run=run, wrong_usage=parser.error, names=lambda: _names(parser))
    # SUPPRESS: a default here would override `stampy --traceback COMMAND`
    parser.add_argument(
        "--traceback", action="store_true", default=argparse.SUPPRESS, help="show where an error was raised"
    )
    return parser


def _names(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Parameter -> option."""
    names = {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}
    names = {f"n_{dest}": option for dest, option in names.items()} | names  # functions use the form `n_workers`
    return names | {a.dest: str(a.metavar) for a in parser._actions if a.dest == "sections"}


def model_option(add: Add) -> None:
    """Add `--model`."""
    add("--model", default="stampy-mini", help="a name that `stampy models` lists, or a folder (default: %(default)s)")


def overwrite_option(add: Add, what: str = "the file --out") -> None:
    """Add `--overwrite`; without it, no command replaces an existing file."""
    add("--overwrite", action="store_true", help=f"replace {what} (default: an existing file is an error)")


def input_options(add: Add) -> None:
    """Add the options for reading and embedding a section."""
    add("--modality", choices=("gene", "image", "fused"), help="default: fused if there are counts and an image")
    add("--image", metavar="PATH", help="image in full resolution, instead of the section's own")
    add("--image-key", metavar="NAME", help="name of the image in the section, such as hires")
    add("--library-key", metavar="COLUMN", help="column of obs that names the section of each spot")
    add("--layer", metavar="NAME", help="layer with raw counts (default: X)")
    add(
        "--organism",
        choices=("human", "mouse"),
        default="human",
        help="organism of the genes; mouse: match by human orthologs",
    )
    add("--context", choices=("neighbors",), help="average over the six nearest spots (default: no averaging)")
    add(
        "--center",
        choices=("section", "direction"),
        help="section: subtract the mean of each section; direction: also project out the direction of its mean gene "
        "feature, for label transfer between sections (default: no centring)",
    )
    add("--um-per-px", type=float, metavar="UM", help="µm per pixel of the full-resolution image")
    add("--spot-um", type=float, metavar="UM", help="spot diameter in µm, if the scale factors do not state the scale")
    add("--batch-size", type=int, metavar="N", help="spots per batch (default: chosen for the device)")


def common_options(add: Add) -> None:
    """Add `--device` and `--quiet`."""
    add("--device", help="cpu, cuda, cuda:1, mps (default: a GPU if available)")
    add("--quiet", action="store_true", help="no progress bar, no summary")
