"""Stage 2 (paper, section 3.3): arguments of `align`, checked before torch is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from stampy.models._backbone_names import check_backbone
from stampy.models._systems.catalogue import check_name

from ._config import AlignConfig
from ._corpus.corpus import corpus_or_sections
from ._launch_checks import check_launch

if TYPE_CHECKING:
    from stampy._io.sections import Sections
    from stampy.models import Stamp

__all__ = ["align"]


def align(
    sections: Sections,
    out: str | Path,
    *,
    model: Stamp | str | Path = "stampy-mini",
    backbone: str | None = None,
    config: AlignConfig | Mapping[str, object] | str | Path | None = None,
    device: str | None = None,
    devices: int | None = None,
    num_nodes: int | None = None,
    strategy: str | None = None,
    loggers: Sequence[str] = (),
    progress: bool = True,
) -> Stamp:
    """Train the image encoder and the heads of both encoders with four alignment losses, on spots with image and genes.

    To continue an interrupted run from its newest checkpoint, repeat the call with the same arguments. Ctrl-C and
    SIGTERM save a checkpoint after the current step; a second signal stops immediately.

    Parameters
    ----------
    sections
        AnnData with raw counts, ``obsm["spatial"]`` and an image, SpatialData, paths of anything that `stampy.read`
        reads, or a manifest (.tsv with the columns path, name, image, um_per_px, spot_um); one or a list. Or a `Corpus`
        with tiles, or the path of one. Spots without genes (a section of 0 columns) contribute to the two losses that
        need only an image.
    out
        Folder for config.json, data.json (the sections, including those of the start model), metrics.jsonl,
        checkpoints, and the result in ``out/model``.
    model
        Start model: a gene encoder of `pretrain`, to which an image encoder is added, or a model with both encoders,
        such as ``"stampy-mini"`` or ``"stamp"``, which is trained further with its own backbone. The start model is not
        changed.
    backbone
        A timm ViT with its own weights, to replace the model's image encoder. None: the model's own image encoder, or
        ``config.backbone``. Without any of them, a ViT-L/16 with random weights is added, with a warning.
    config
        Settings; a mapping or JSON file contains only those that differ from the paper.
    device
        None: CUDA if available, else the CPU.
    devices, num_nodes, strategy, loggers
        See `pretrain`; each device gets ``pairs_per_batch`` pairs per step, and the losses compare the pairs of all
        devices.
    progress
        Show a progress bar.

    Returns
    -------
    The model with both encoders; also written to ``out/model``.

    Raises
    ------
    ValueError
        Settings or sections that cannot be used, or `out` contains another run.
    KeyError
        A section has no image.
    FloatingPointError
        The loss became NaN or infinite.
    RuntimeError
        Another process is using `out`.
    OSError
        The disk is full.

    Examples
    --------
    Fine-tune only the heads of the packaged model on your own section:

    >>> import stampy, tempfile
    >>> section = stampy.datasets.toy(n_spots=16)
    >>> settings = {"trainable": ("*_head.*",), "epochs": 1, "pairs_per_batch": 16}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = stampy.train.align(section, folder, config=settings, device="cpu", progress=False)
    >>> model.image.width
    1152
    """
    config = AlignConfig.of(config)
    if backbone is not None:
        check_backbone(backbone)
        config = _with_backbone(config, backbone)
    check_launch(out, loggers, device=device, devices=devices, num_nodes=num_nodes, strategy=strategy)
    chosen = corpus_or_sections(sections)
    if isinstance(model, str | Path):
        check_name(str(model))
    from ._align_run import run_align  # imports torch: only after the checks

    return run_align(
        chosen, Path(out), model, config, tuple(loggers), progress, replaces_tower=backbone is not None,
        device=device, devices=devices, num_nodes=num_nodes, strategy=strategy,
    )  # fmt: skip


def _with_backbone(config: AlignConfig, backbone: str) -> AlignConfig:
    """Settings with the argument `backbone`, which has its own weights."""
    if config.backbone not in (None, backbone):
        raise ValueError(f"`backbone` is {backbone!r}, that of the settings {config.backbone!r}. Give one of them.")
    return replace(config, backbone=backbone, pretrained=True)
