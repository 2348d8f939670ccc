"""SIGTERM and Ctrl-C: the current step ends, a checkpoint is saved, then the run stops."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self

__all__ = ["Interrupted", "Signals", "Terminated"]


class Interrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C (SIGINT) after a checkpoint was saved; the message says how to go on."""


class Terminated(SystemExit):
    """A run was stopped by SIGTERM after a checkpoint was saved; a script that lets it pass ends with status 143."""

    def __init__(self, message: str):
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Signals:
    """Notes the first SIGINT or SIGTERM within the block; a second one has its usual effect.

    Handlers belong to the main thread: in another one, nothing is changed. The former handlers come back at the end.

    Examples
    --------
    >>> import signal
    >>> with Signals() as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    ...     signals.caught == signal.SIGTERM
    True
    """

    def __init__(self) -> None:
        self.caught = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # None: a handler that was not set by Python can't be put back
                if signal.getsignal(number) is not None:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught:
            self._restore()
            signal.raise_signal(number)
            return
        self.caught = number
        # not print: a handler may run in the middle of another write to the same buffer
        name = signal.Signals(number).name
        os.write(2, f"\nstampy: {name}: saving a checkpoint after this step; a second signal stops at once\n".encode())


def stop(number: int, message: str) -> NoReturn:
    """Raise what ends a run that was stopped by a signal."""
    raise Interrupted(message) if number == signal.SIGINT else Terminated(message)
