"""Ctrl-C and SIGTERM in commands that continue an interrupted run."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["Stopped", "explained_stop"]


class Stopped(SystemExit):
    """The command was stopped by SIGTERM; exit status 143."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextlib.contextmanager
def explained_stop(complete: Callable[[], str]) -> Iterator[None]:
    """Say what is complete and how to continue if a signal stops the block, which then cleans up as after an error.

    Parameters
    ----------
    complete
        Function that says what is complete, such as "3 sections are complete".
    """
    before = signal.getsignal(signal.SIGTERM)
    # other handlers, such as those of a launcher, are left alone; only the main thread may set one
    ours = before == signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGTERM, _stop)
    try:
        yield
    except (KeyboardInterrupt, Stopped) as error:
        name = "SIGTERM" if isinstance(error, Stopped) else "SIGINT"
        print(f"stampy: stopped by {name}: {complete()}. Run the same command again to continue.", file=sys.stderr)
        if isinstance(error, Stopped):
            raise
        raise KeyboardInterrupt("said") from error
    finally:
        if ours:
            signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_DFL)  # a second signal stops at once
    # print could interrupt another write to the same buffer
    os.write(2, b"\nstampy: SIGTERM: stopping; a second signal stops at once\n")
    for process in multiprocessing.active_children():  # their unfinished sections are written to temporary folders
        process.terminate()
    raise Stopped
