"""SIGTERM and Ctrl-C: finish the current step, save a checkpoint and stop."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any, NoReturn, Self

__all__ = ["Interrupted", "Signals", "Terminated"]


class Interrupted(KeyboardInterrupt):
    """The run was stopped by Ctrl-C (SIGINT) after a checkpoint was saved; the message states how to resume."""


class Terminated(SystemExit):
    """The run was stopped by SIGTERM after a checkpoint was saved; uncaught, it ends a script with status 143."""

    def __init__(self, message: str):
        super().__init__(128 + signal.SIGTERM)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Signals:
    """Record the first SIGINT or SIGTERM within the block; a second one has its usual effect.

    Handlers can only be set in the main thread; in other threads, nothing is changed. Previous handlers are restored.

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
                # None: a handler not set by Python, which cannot be restored
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
        # print could interrupt another write to the same buffer
        name = signal.Signals(number).name
        os.write(2, f"\nstampy: {name}: saving a checkpoint after this step; a second signal stops at once\n".encode())


def stop(number: int, message: str) -> NoReturn:
    """Raise the exception that ends a run after a signal."""
    raise Interrupted(message) if number == signal.SIGINT else Terminated(message)
