"""Settings of a run over many sections, and the columns of its table."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from stampy import _checks, _keys
from stampy._io.sections import file_name
from stampy._section.outside_links import VARIABLE
from stampy._utils import check_device

if TYPE_CHECKING:
    from stampy.tl._embedding.arguments import Center, Level, Modality, Organism, Precision
    from stampy.tl._embedding.encoders import Encoder

__all__ = ["COLUMNS", "RECORDS", "TABLE", "WORDS", "Contents", "EmbedOptions", "Plan", "Row", "check_plan"]

RECORDS = ".stampy"  # subfolder of the output with a record per result
TABLE = "sections.tsv"
SUFFIXES = (".h5ad", ".zarr")

Contents = Literal["all", "results"]
Row = dict[str, Any]  # of sections.tsv, by column
WORDS = ("organ", "platform", "species", "patient", "study")  # metadata copied from a manifest
COLUMNS = (
    "name", "status", "n_spots", "n_genes", "n_matched", "overlap", "counts_share", "modality", "model", "score",
    "baseline_score", "verdict", "seconds", "worker", "path", "output", *WORDS, "warnings", "error",
)  # fmt: skip


class EmbedOptions(TypedDict, total=False):
    """Arguments of `stampy.tl.embed` shared by all sections of a run."""

    modality: Modality | None
    image_key: str | None
    library_key: str | None
    table_key: str
    layer: str | None
    organism: Organism
    um_per_px: float | None
    spot_um: float | None
    level: Level
    context: Literal["neighbors"] | None
    center: Center | None
    normalize: bool
    batch_size: int | None
    precision: Precision | None
    key_added: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Output, model and settings of a run. It is sent to every worker and contains no data."""

    run: str  # unique to the run
    out: Path
    model: str | Path | Encoder
    device: str | None
    suffix: str = ".h5ad"
    contents: Contents = "all"
    judged: bool = False
    bin_um: float | None = None
    skip: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    named_images: str | None = field(default_factory=lambda: os.environ.get(VARIABLE))

    @property
    def key(self) -> str:
        """Key of the embedding in obsm."""
        return str(self.options.get("key_added", _keys.EMBEDDING))

    @property
    def table_key(self) -> str:
        """Table of a SpatialData."""
        return str(self.options.get("table_key", _keys.TABLE))

    def target(self, name: str) -> Path:
        """Path of the result of a section."""
        return self.out / (file_name(name) + self.suffix)

    def settings(self) -> dict[str, object]:
        """Everything that determines a result except the section and the weights, in JSON types."""
        return {"contents": self.contents, "suffix": self.suffix, "judged": self.judged, "bin_um": self.bin_um,
                **self.options}  # fmt: skip


def check_plan(plan: Plan, on_error: str, n_workers: int | None, n_devices: int | None, scheduler: str | None) -> None:
    """Raise for invalid settings, before anything is read or a folder is created."""
    from stampy._workers import check_workers

    _checks.one_of("on_error", on_error, ("raise", "skip"))
    _checks.one_of("suffix", plan.suffix, SUFFIXES)
    _checks.one_of("contents", plan.contents, ("all", "results"))
    check_device(plan.device)
    check_workers(scheduler, n_workers)
    if n_devices is not None:
        _checks.at_least("n_devices", n_devices, 1)
        if scheduler is not None:
            raise ValueError("`n_devices` has no effect with `scheduler`: the workers of a cluster have their own.")
        if plan.device is not None:
            raise ValueError("`device` and `n_devices` were given. Pass `n_devices` to use the first so many GPUs.")
    alone = scheduler is None and n_workers == 1 and n_devices in (None, 1)
    if not isinstance(plan.model, str | Path) and not alone:
        raise TypeError(
            "A loaded model stays in this process: use n_workers=1, or give the model by its name or path, so that "
            "each worker loads it once."
        )
