"""`stampy pretrain | align | evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stampy.cli.corpus import named_images_option
from stampy.cli.options import Add, Commands, command, common_options, model_option, overwrite_option

__all__ = ["EXAMPLES", "add_commands"]

EXAMPLES = {
    "pretrain": """
        stampy pretrain sections/*.h5ad --out genes --config pretrain.json
        stampy pretrain sections.tsv --out genes --vocabulary genes.tsv --seed 1
        stampy pretrain sections.tsv --out genes --devices 4 --logger tensorboard
        """,
    "align": """
        stampy align sections.tsv --model genes/model --out both --config align.json
        stampy align mine.h5ad --out tuned                         fine-tune stampy-mini
        torchrun --nproc-per-node 4 -m stampy align sections.tsv --model genes/model --out both
        """,
    "evaluate": """
        stampy evaluate stampy-mini kept-out.h5ad
        stampy evaluate both/model kept-out.tsv --out table.csv
        """,
}


def add_commands(commands: Commands) -> None:
    """Add the commands pretrain, align and evaluate."""
    _pretrain_options(commands)
    _align_options(commands)
    _evaluate_options(commands)


def _pretrain_options(commands: Commands) -> None:
    add = command(commands, "pretrain", _pretrain, "Stage 1: train a gene encoder.").add_argument
    _training_options(add)
    common_options(add)
    add(
        "--vocabulary",
        metavar="TSV",
        help="genes.tsv with gene_id, symbol, divisor (default: computed from the sections)",
    )


def _align_options(commands: Commands) -> None:
    about = "Stage 2: train an image encoder and align both."
    add = command(commands, "align", _align, about).add_argument
    _training_options(add)
    common_options(add)
    model_option(add)
    add("--backbone", metavar="NAME", help="a timm ViT with its weights, to replace the model's image encoder")


def _evaluate_options(commands: Commands) -> None:
    about = "Evaluate both stages of a model on held-out sections, compared with simple baselines."
    add = command(commands, "evaluate", _evaluate, about).add_argument
    add("model", metavar="MODEL", help="a name that `stampy models` lists, or a folder")
    add("sections", nargs="+", metavar="SECTIONS", help="held-out sections: files or manifests (.tsv)")
    add("-o", "--out", metavar="CSV", help="also write the table to a file")
    overwrite_option(add)
    add("--n-groups", type=int, default=40, metavar="N", help="groups of 9 spots per section (default: %(default)s)")
    add("--n-spots", type=int, default=1000, metavar="N", help="tiles per section (default: %(default)s)")
    add("--seed", type=int, default=0, help="seed for groups, masks and tiles (default: 0)")
    common_options(add)


def _training_options(add: Add) -> None:
    named_images_option(add)
    add(
        "sections",
        nargs="+",
        metavar="SECTIONS",
        help="a corpus, files or folders of sections, manifests (.tsv)",
    )
    add(
        "-o",
        "--out",
        required=True,
        metavar="FOLDER",
        help="folder for model, checkpoints and metrics; continues an interrupted run",
    )
    add("--config", metavar="JSON", help="settings that differ from the paper")
    add("--seed", type=int, help="replaces the seed in the settings")
    add("--devices", type=int, metavar="N", help="devices per node (default: as set by torchrun or SLURM, else 1)")
    add("--num-nodes", type=int, metavar="N", help="number of nodes (default: as set by torchrun or SLURM, else 1)")
    add("--strategy", choices=("ddp", "fsdp"), help="parallelisation over devices (default: ddp)")
    add("--logger", action="append", default=[], dest="loggers", choices=("csv", "tensorboard", "wandb"),
        help="additional log; can be repeated")  # fmt: skip


def _pretrain(**options: Any) -> None:
    _train("pretrain", "PretrainConfig", **options)


def _align(**options: Any) -> None:
    _train("align", "AlignConfig", **options)


def _train(stage: str, settings: str, *, sections: list[str], out: str, config: str | None, seed: int | None,
           quiet: bool, **options: Any) -> None:  # fmt: skip
    from dataclasses import replace

    from stampy import _checks, train
    from stampy.models._backbone_names import check_backbone
    from stampy.models._systems.catalogue import check_name

    _check_paths(sections, config, options.get("vocabulary"))
    if options.get("model") is not None:
        check_name(str(options["model"]))
    if options.get("backbone") is not None:
        check_backbone(str(options["backbone"]))
    chosen = getattr(train, settings).of(config)
    chosen = chosen if seed is None else replace(chosen, seed=seed)
    _checks.writable(out)
    getattr(train, stage)(sections, out, config=chosen, progress=not quiet, **options)
    if not quiet and _is_first_rank():
        print(f"Model: {Path(out).expanduser() / 'model'}")


def _check_paths(sections: list[str], config: str | None = None, vocabulary: str | None = None) -> None:
    """Raise FileNotFoundError for missing paths, before torch is imported or a folder created."""
    from stampy import _checks
    from stampy.cli.early_checks import check_vocabulary_file

    for path in sections:
        if not path.startswith("hf:"):
            _checks.existing(path, what="section or manifest")
    if config is not None:
        _checks.existing(config, what="config")
    if vocabulary is not None:
        check_vocabulary_file(vocabulary)


def _is_first_rank() -> bool:
    """Whether this process prints for all processes of a run."""
    import torch.distributed as dist

    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def _evaluate(
    *, model: str, sections: list[str], out: str | None, overwrite: bool, quiet: bool, **options: Any
) -> None:
    from stampy._files import atomic
    from stampy.cli.early_checks import checked_file
    from stampy.models._systems.catalogue import check_name

    check_name(model)
    _check_paths(sections)
    target = None if out is None else checked_file(out, overwrite=overwrite)
    from stampy import train

    table = train.evaluate(model, sections, **options)
    if target is not None:
        with atomic(target) as temporary:
            table.to_csv(temporary)
    if not quiet:
        _print_evaluation(table)


def _print_evaluation(table: Any) -> None:
    losses = ["igr_masked", "igr_replaced", "igr_kept", "cgr"]
    known = ["corpus_frequency", "section_frequency", "section_frequency_unseen", "section_frequency_order"]
    recall = [c for c in table if c == "n_spots" or c.startswith("recall_")]
    for title, columns in (
        ("Stage 1: cross-entropy in nats (masked: hidden genes; kept: visible ones)", losses),
        ("Guesses by frequency, at the same positions", known),
        ("Stage 2: share of tiles whose own genes are among the nearest", recall),
    ):
        there = [c for c in columns if c in table]
        if there:
            print(f"{title}\n{table[there].to_string(float_format='{:.3f}'.format)}\n")
