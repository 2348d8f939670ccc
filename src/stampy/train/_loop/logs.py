"""Logs of every step: metrics.jsonl always, others on request."""

from __future__ import annotations

import csv
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tqdm.auto import tqdm

from stampy._files import atomic
from stampy._settings import settings
from stampy._utils import hidden, is_interactive

from .checkpoints import no_space

__all__ = ["Logs"]

LINE_EVERY_S = 60.0
NO_LOSSES = ("step", "lr", "grad_norm", "spots_per_s", "step_s", "data_wait_s")


class Logs:
    """Write metrics.jsonl, other logs and the progress bar; lines from step `first` on are replaced.

    Parameters
    ----------
    out
        Folder of the run.
    names
        Names of the losses and measures.
    loggers
        Any of "csv", "tensorboard", "wandb".
    first, steps
        Next step, and number of steps.
    config
        Settings, for logs that record them.
    progress
        Show a progress bar; without terminal or notebook, print a line every minute.
    """

    def __init__(
        self,
        out: Path,
        *,
        names: Sequence[str],
        loggers: Sequence[str],
        first: int,
        steps: int,
        config: dict[str, Any],
        progress: bool,
    ):
        self.path = out / "metrics.jsonl"
        columns = ["step", "loss", *names, "lr", "grad_norm", "spots_per_s", "data_wait_s"]
        _truncate(self.path, first)
        self._lines = self.path.open("a", buffering=1)
        self._files, self._extra_loggers = [self._lines], _extra_loggers(out, loggers, first, config)
        self._table = None
        if "csv" in loggers:
            table = out / "metrics.csv"
            _rewrite(table, self.path, columns)
            self._files.append(table.open("a", buffering=1, newline=""))
            self._table = csv.DictWriter(self._files[-1], columns, extrasaction="ignore")
        self._first, self._steps, self._began = first, steps, time.monotonic()
        lines = progress and settings.progress_bars and not is_interactive()
        self._said = self._began if lines else math.inf
        self._bar = tqdm(total=steps, initial=first, disable=hidden(progress), unit="step")

    def write(self, line: Mapping[str, float]) -> None:
        """Write the line of a step."""
        line = {k: _short(v) for k, v in line.items()}
        try:
            self._lines.write(json.dumps(line) + "\n")
            if self._table is not None:
                self._table.writerow(line)
        except OSError as error:
            raise no_space(error, self.path) from error
        for other in self._extra_loggers:
            other.log_metrics({k: v for k, v in line.items() if k != "step"}, step=line["step"])
        self._print_line(line)
        self._bar.set_postfix(loss=f"{line['loss']:.3f}", spots_per_s=f"{line['spots_per_s']:.0f}", refresh=False)
        self._bar.update()

    def _print_line(self, line: Mapping[str, float]) -> None:
        """Print a line at the first and last step, and every minute between."""
        now, done = time.monotonic(), line["step"] + 1
        if not (now - self._said >= LINE_EVERY_S or (self._said < math.inf and done in (self._first + 1, self._steps))):
            return
        self._said = now
        left = (now - self._began) / (done - self._first) * (self._steps - done)
        losses = ", ".join(f"{k} {v:.4g}" for k, v in line.items() if k not in NO_LOSSES)
        sys.stderr.write(
            f"step {done:,}/{self._steps:,}: {losses}, {line['spots_per_s']:.0f} spots/s, {_duration(left)} left\n"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close the logs, also after an error."""
        self._bar.close()
        for file in self._files:
            file.close()
        for other in self._extra_loggers:
            other.finalize("success" if kind is None else "failed")


def _duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    >>> _duration(3725.4), _duration(100_000)
    ('1:02:05', '27:46:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _truncate(path: Path, first: int) -> None:
    """Remove the lines of steps that will be repeated, and an incomplete last line."""
    if path.exists():
        kept = [x for x in path.read_text().splitlines() if x.endswith("}") and json.loads(x)["step"] < first]
        with atomic(path) as temporary:
            temporary.write_text("".join(f"{x}\n" for x in kept))


def _rewrite(table: Path, lines: Path, columns: list[str]) -> None:
    with atomic(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(json.loads(x) for x in lines.read_text().splitlines())


def _extra_loggers(out: Path, loggers: Sequence[str], first: int, config: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    if "tensorboard" in loggers:
        from lightning.fabric.loggers import TensorBoardLogger

        found.append(TensorBoardLogger(out, name="tensorboard", version="", purge_step=first))
    if "wandb" in loggers:
        from lightning.pytorch.loggers import WandbLogger

        found.append(WandbLogger(project="stampy", name=out.name, save_dir=out))
        found[-1].log_hyperparams(config)
    return found


def _short(value: float) -> float:
    return float(f"{value:.6g}") if isinstance(value, float) else value
