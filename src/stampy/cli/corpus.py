"""`stampy corpus hest | build | info | verify`."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stampy._settings import settings
from stampy.cli.options import Add, Commands, command, described, overwrite_option
from stampy.cli.stopping import explained_stop

if TYPE_CHECKING:
    from stampy.train import Corpus

__all__ = ["EXAMPLES", "add_commands"]

EXAMPLES = {
    "corpus": """
        stampy corpus build sections.tsv --out corpus
        stampy corpus info corpus
        stampy corpus verify corpus
        stampy pretrain corpus --out genes
        """,
    "corpus hest": """
        stampy corpus hest hest --out hest.tsv --species human --platform Visium
        stampy corpus build hest.tsv --out corpus --vocabulary genes.tsv --images all
        """,
    "corpus build": """
        stampy corpus build sections/*.h5ad spaceranger/*/outs visium.zarr --out corpus
        stampy corpus build sections.tsv --out corpus --vocabulary genes.tsv --on-error skip --workers 16
        stampy corpus build sections.tsv --out corpus --scheduler tcp://node1:8786
        stampy corpus build SpaVis-6M --out corpus                 folders of tokens-N.h5, in train/
        stampy corpus build hf:minghaofdu/SpaVis-6M@COMMIT --out corpus
        """,
}


def add_commands(commands: Commands) -> None:
    """Add `corpus` with its own commands to the parser."""
    about = "Build, describe or verify a corpus: many sections in one store on disk, for training."
    parser = described(commands.add_parser, "corpus", about, help=about)
    inner = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _build_options(command(inner, "build", _build, "Build a corpus, or continue an interrupted build.").add_argument)
    _hest_options(command(inner, "hest", _hest, "Write a manifest of a HEST folder, for `corpus build`.").add_argument)
    for name, run, text in (
        ("info", _info, "Describe a corpus."),
        ("verify", _verify, "Compare every file of a corpus with its manifest; the exit status is 1 if one differs."),
    ):
        command(inner, name, run, text).add_argument("path", metavar="CORPUS", help="the folder of the corpus")


def _build_options(add: Add) -> None:
    add("sections", nargs="+", metavar="SECTIONS",
        help=".h5ad, .zarr, Space Ranger folders, manifests (.tsv); SpaVis-6M: its folder, or hf:org/name@COMMIT",
    )  # fmt: skip
    add("-o", "--out", required=True, metavar="FOLDER", help="folder of the corpus; continues an interrupted build")
    add(
        "--vocabulary",
        metavar="TSV",
        help="genes.tsv (default: computed from the sections; for SpaVis-6M the published one)",
    )
    add(
        "--max-tokens",
        type=int,
        default=1500,
        metavar="N",
        help="maximum number of tokens per spot (default: %(default)s)",
    )
    add("--draws", type=int, default=1, metavar="N", help="number of draws of groups (default: %(default)s)")
    add("--regions", type=int, default=1, metavar="N", help="regions per spot (default: %(default)s)")
    images = {"auto": None, "all": True, "none": False}
    add("--images", choices=images, default="auto", help="sections to store tiles of (default: sections with an image)")
    add("--codec", choices=("jpeg", "jpegxl", "zstd"), default="jpeg", help="codec of the tiles (default: %(default)s)")
    add("--quality", type=int, default=90, metavar="Q", help="quality of the tiles, 1 to 100 (default: %(default)s)")
    add("--seed", type=int, default=settings.seed, help="seed for groups and cells (default: %(default)s)")
    add("--workers", dest="n_workers", type=int, metavar="N", help="processes (default: one per core)")
    add("--scheduler", metavar="ADDRESS", help="address of a dask cluster to use instead")
    add("--on-error", choices=("raise", "skip"), default="raise",
        help="stop at a section that cannot be used, or skip and report it (default: %(default)s)")  # fmt: skip
    add("--quiet", action="store_true", help="no progress bar, no summary")
    named_images_option(add)


def _hest_options(add: Add) -> None:
    add("folder", metavar="FOLDER", help="folder with HEST_v*.csv, st/ and wsis/")
    add("-o", "--out", required=True, metavar="TSV", help="path of the manifest")
    overwrite_option(add)
    for name, about in (("species", "human, mouse"), ("platform", "Visium, 'Spatial Transcriptomics', Xenium, ..."),
                        ("organ", "Breast, Brain, ..."), ("disease", "Healthy, Cancer, ...")):  # fmt: skip
        add(f"--{name}", nargs="+", metavar="NAME", help=f"keep only these: {about} (default: all)")
    add("--exclude", nargs="+", default=[], metavar="ID", help="sections to exclude")
    add("--keep-evaluation", action="store_true",
        help="keep the sections of the paper's tables (default: exclude and list them)")  # fmt: skip
    add("--without-images", action="store_true", help="keep sections without a whole-slide image, for stage 1")
    add("--quiet", action="store_true", help="no summary")


def _hest(*, folder: str, out: str, overwrite: bool, keep_evaluation: bool, without_images: bool, quiet: bool,
          **filters: Any) -> None:  # fmt: skip
    from stampy import _checks, datasets
    from stampy._files import atomic
    from stampy.cli.early_checks import checked_file
    from stampy.datasets._hest_manifest import hest_counts

    if Path(out).suffix != ".tsv":
        raise ValueError(f"--out {out}: a manifest is a .tsv.")
    _checks.existing(folder, what="folder of HEST")
    target = checked_file(out, overwrite=overwrite)
    manifest = datasets.hest_manifest(
        folder, exclude_evaluation=not keep_evaluation, images=not without_images, **filters
    )  # fmt: skip
    for column in ("path", "image"):
        manifest[column] = [str(Path(path).resolve()) if path else "" for path in manifest[column]]
    with atomic(target) as temporary:
        manifest.to_csv(temporary, sep="\t", index=False)
    if not quiet:
        print(f"{manifest.attrs['table']}: {len(manifest):,} sections, {sum(manifest.attrs['spots'].values()):,} spots")
        print(hest_counts(manifest).to_string())
        _print_excluded(manifest.attrs["left_out"])
        print(f"Manifest: {target}")


def _print_excluded(left_out: dict[str, str]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, why in left_out.items():
        by_reason.setdefault(why, []).append(name)
    for why, names in by_reason.items():
        what = "as asked for" if why == "as asked for" else f"the paper is compared on {why}"
        print(f"excluded, {what}: {len(names)} ({', '.join(names)})")


def named_images_option(add: Add, *, default: Literal["below"] | None = "below") -> None:
    """Add the option to commands that may read untrusted files; None: the default depends on the command."""
    usual = "%(default)s" if default else "below with --out, else anywhere"
    add("--named-images", choices=("below", "anywhere"), default=default,
        help="open full-resolution images named by a section only below the folder of the section, or anywhere on "
        f"this machine (default: {usual})")  # fmt: skip


@contextlib.contextmanager
def named_images_rule(rule: Literal["below", "anywhere"] | None) -> Iterator[None]:
    """Apply the option; `rule` is None for commands without it."""
    if rule is None:
        yield
        return
    from stampy._section.outside_links import named_images

    with named_images(rule):
        yield


def _build(
    *, sections: list[str], out: str, images: str, vocabulary: str | None, quiet: bool, **options: Any
) -> None:  # fmt: skip
    _check_build(sections, out, vocabulary, options)
    with explained_stop(lambda: _complete(out)):
        from stampy import train

        wanted = {"auto": None, "all": True, "none": False}[images]
        progress = not quiet and sys.stderr.isatty()
        found = vocabulary or _published_vocabulary(sections, out)
        corpus = train.Corpus.build(sections, out, images=wanted, vocabulary=found, progress=progress, **options)
    if not quiet:
        _print_corpus(corpus)


def _complete(out: str) -> str:
    """What of an unfinished build is complete."""
    folder = Path(out).expanduser() / "sections"
    n = sum(1 for path in folder.glob("[!.]*") if path.is_dir()) if folder.is_dir() else 0
    return f"{n} section{' is' if n == 1 else 's are'} complete in {out!r}"


def _check_build(sections: list[str], out: str, vocabulary: str | None, options: dict[str, Any]) -> None:
    """Raise for missing files and invalid values before torch is imported."""
    from stampy import _checks
    from stampy._workers import check_workers
    from stampy.cli.early_checks import check_vocabulary_file

    for path in sections:
        if not path.startswith("hf:"):
            _checks.existing(path, what="section or manifest")
    if vocabulary is not None:
        check_vocabulary_file(vocabulary)
    for name, least in (("max_tokens", 1), ("draws", 1), ("regions", 1), ("quality", 1), ("seed", 0)):
        _checks.at_least(name, options[name], least)
    _checks.at_most("quality", options["quality"], 100)
    check_workers(options["scheduler"], options["n_workers"])
    _checks.no_file_in(out)
    if all(path.endswith(".tsv") for path in sections):  # before numba is imported
        from stampy._io.sections import as_sections

        as_sections(sections, all_there=options["on_error"] == "raise")


def _check_corpus(path: str) -> None:
    """Raise if there is no corpus, before torch is imported."""
    from stampy import _checks

    folder = _checks.existing(path, what="corpus")
    if not (folder / "corpus.json").is_file():
        raise FileNotFoundError(f"{path!r} is not a corpus: it has no corpus.json. `stampy corpus build` makes one.")


def _published_vocabulary(sections: list[str], out: str) -> Path | None:
    """The published vocabulary, if the corpus is built from SpaVis-6M and has none yet; else None."""
    from stampy.train._corpus import build, source, spavis

    meant = any(text.startswith(source.PREFIX) for text in sections) or spavis.files_of(sections)
    if not meant or (Path(out).expanduser() / build.GENES).is_file():
        return None
    from stampy import datasets

    return datasets.published_vocabulary()


def _info(path: str) -> None:
    _check_corpus(path)
    from stampy import train

    corpus = train.Corpus(path)
    print(corpus.table.to_string(index=False, formatters={"bytes": lambda n: f"{n / 1e6:.1f} MB"}))
    print()
    _print_corpus(corpus)


def _print_corpus(corpus: Corpus) -> None:
    table = corpus.table
    print(f"{corpus.path}: {corpus!r}")
    print(f"digest {corpus.digest[:16]}, built by stampy {corpus.manifest['stampy']}")
    print(f"{table['bytes'].sum() / 1e6:.1f} MB, {table['bytes'].sum() / table['n_spots'].sum():.0f} bytes a spot")
    print(", ".join(f"{key}={value}" for key, value in corpus.settings.items()))
    for name, error in corpus.skipped.items():
        print(f"skipped: {name}: {error}")
    for section in corpus.sections:
        for note in section.record["notes"]:
            print(f"note: {section.name}: {note}")


def _verify(path: str) -> None:
    _check_corpus(path)
    from stampy import train

    corpus = train.Corpus(path)
    problems = corpus.verify()
    for problem in problems:
        print(problem)
    if problems:
        raise ValueError(f"{len(problems)} problems. Build again from the same sections to repair the corpus.")
    files = sum(len(s.record["files"]) for s in corpus.sections)
    print(f"{corpus.path}: {files} files match the manifest")
