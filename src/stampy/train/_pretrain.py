"""Stage 1 (paper, section 3.2): arguments of `pretrain`, checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stampy.pp import Vocabulary

from ._config import PretrainConfig
from ._corpus.corpus import corpus_or_sections
from ._launch_checks import check_launch

if TYPE_CHECKING:
    from stampy._io.sections import Sections
    from stampy.models import Stamp

__all__ = ["pretrain"]


def pretrain(
    sections: Sections,
    out: str | Path,
    *,
    vocabulary: Vocabulary | str | Path | None = None,
    config: PretrainConfig | Mapping[str, object] | str | Path | None = None,
    device: str | None = None,
    devices: int | None = None,
    num_nodes: int | None = None,
    strategy: str | None = None,
    loggers: Sequence[str] = (),
    progress: bool = True,
) -> Stamp:
    """Train a gene encoder, first with IGR alone, then with IGR and CGR, on batches of neighbourhood groups.

    To continue an interrupted run from its newest checkpoint, repeat the call with the same arguments. Ctrl-C and
    SIGTERM save a checkpoint after the current step; a second signal stops immediately.

    Parameters
    ----------
    sections
        AnnData with raw counts and ``obsm["spatial"]``, SpatialData, paths of anything that `stampy.read` reads, or a
        manifest (.tsv with a column ``path``); one or a list, which is held in memory. Or a `Corpus`, or the path
        of one.
    out
        Folder for config.json, data.json (losses of guessing by frequency, dropped spots), metrics.jsonl, checkpoints,
        and the result in ``out/model``.
    vocabulary
        None: computed from the sections (`stampy.pp.Vocabulary.from_sections`), or the vocabulary of the corpus.
    config
        Settings; a mapping or JSON file contains only those that differ from the paper.
    device
        None: CUDA if available, else the CPU.
    devices, num_nodes
        Devices per node, and nodes; each device gets ``groups_per_batch`` groups per step. None: the number of
        processes started by torchrun or SLURM, otherwise one.
    strategy
        Parallelisation over devices: ``"ddp"`` (each device has the entire model; processes are started by running the
        script again), ``"ddp_spawn"`` and ``"ddp_notebook"`` (as ``"ddp"``, but processes are started from this
        process; the latter in notebooks), ``"fsdp"`` (each device has a part of the model).
    loggers
        Additional logs: ``"csv"``, ``"tensorboard"``, ``"wandb"``.
    progress
        Show a progress bar.

    Returns
    -------
    The model with only a gene encoder; also written to ``out/model``, for `align` and `stampy.models.load`.

    Raises
    ------
    ValueError
        Settings or sections that cannot be used, or `out` contains another run.
    FloatingPointError
        The loss became NaN or infinite.
    RuntimeError
        Another process is using `out`.
    OSError
        The disk is full.

    Warns
    -----
    StampyWarning
        Sections without genes, spots without neighbourhood group (more than a tenth of a section), a long warm-up, or a
        damaged checkpoint.

    Examples
    --------
    >>> import stampy, tempfile
    >>> section = stampy.datasets.toy(n_spots=100)
    >>> small = {"width": 16, "depth": 1, "heads": 2, "feedforward": 16, "max_tokens": 32, "tied_heads": True}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = stampy.train.pretrain(section, folder, config=small, device="cpu", progress=False)
    >>> model.config.gene.width
    16
    """
    config = PretrainConfig.of(config)
    check_launch(out, loggers, device=device, devices=devices, num_nodes=num_nodes, strategy=strategy)
    chosen = corpus_or_sections(sections)
    if vocabulary is not None and not isinstance(vocabulary, Vocabulary):
        vocabulary = Vocabulary.load(vocabulary)
    from ._pretrain_run import run_pretrain  # imports torch: only after the checks

    return run_pretrain(
        chosen, Path(out), vocabulary, config, tuple(loggers), progress,
        device=device, devices=devices, num_nodes=num_nodes, strategy=strategy,
    )  # fmt: skip
