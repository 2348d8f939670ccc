"""Arguments of a training run that are checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from stampy import _checks
from stampy._utils import check_device

__all__ = ["STRATEGIES", "check_launch", "check_loggers"]

# Name -> start method of the processes of a node, without launcher.
STRATEGIES = {"ddp": "popen", "ddp_spawn": "spawn", "ddp_notebook": "fork", "fsdp": None}
_PACKAGES = {"csv": "csv", "tensorboard": "tensorboard", "wandb": "wandb"}


def check_launch(
    out: str | Path,
    loggers: Sequence[str],
    *,
    device: str | None,
    devices: int | None,
    num_nodes: int | None,
    strategy: str | None,
) -> None:
    """Raise for arguments that no machine can run; no folder is created."""
    check_loggers(loggers)
    check_device(device)
    for name, value in (("devices", devices), ("num_nodes", num_nodes)):
        if value is not None:
            _checks.at_least(name, value, 1)
    if strategy is not None:
        _checks.one_of("strategy", strategy, STRATEGIES)
    _checks.no_file_in(out)


def check_loggers(loggers: Sequence[str]) -> None:
    """Raise for an unknown logger or one that is not installed."""
    if isinstance(loggers, str):
        raise TypeError(f"`loggers` must be a sequence of names, such as ({loggers!r},).")
    for name in loggers:
        _checks.one_of("loggers", name, _PACKAGES)
        if find_spec(_PACKAGES[name]) is None:
            raise ImportError(f"loggers={name!r} needs the package {_PACKAGES[name]}: `pip install {_PACKAGES[name]}`.")
