"""Run one job per section: in this process, in several processes on this machine, or on a dask cluster."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

from stampy._imports import collection_paused
from stampy._settings import settings
from stampy._utils import hidden

if TYPE_CHECKING:
    from types import FrameType

    from distributed import Client

__all__ = ["Run", "check_workers", "workers"]

Job: TypeAlias = Callable[[], Any]
Run: TypeAlias = Callable[[Sequence[Job], str], Iterator[Any]]


def check_workers(scheduler: str | None, n_workers: int | None) -> None:
    """Raise for a number of workers below 1, or for a number that has no effect."""
    from stampy import _checks

    if n_workers is not None:
        _checks.at_least("n_workers", n_workers, 1)
    if scheduler is not None and n_workers is not None:
        raise ValueError("`n_workers` has no effect with `scheduler`: the cluster has its own. Omit one.")


@contextlib.contextmanager
def workers(
    scheduler: str | None,
    n_workers: int,
    progress: bool,
    *,
    setup: Callable[..., None] | None = None,
    setup_args: tuple[object, ...] = (),
    n_threads: int | None = None,
) -> Iterator[Run]:
    """Return a function that runs jobs and yields their results as they finish, in any order.

    In the block, SIGTERM raises SystemExit, so that the caller can record what is finished; schedulers of clusters send
    it before they kill a job.

    Parameters
    ----------
    scheduler
        Address of a dask cluster; None: use this machine.
    n_workers
        Processes on this machine; 1: run in this process.
    progress
        Show a bar.
    setup, setup_args
        Function, with its arguments, to call first in each new process on this machine; not called on a cluster.
    n_threads
        Threads of the numerical libraries in each new process on this machine; None: as they choose.
    """
    with _exit_on_sigterm():
        if scheduler is None and n_workers == 1:
            yield partial(_run_in_turn, progress)
        elif scheduler is None:
            with _few_threads(n_threads), _pool(n_workers, (settings.as_dict(), setup, setup_args)) as pool:
                yield partial(_run_in_pool, pool, progress)
        else:
            try:
                from distributed import Client
            except ImportError as error:
                raise ImportError("A dask cluster needs dask.distributed: `pip install distributed`.") from error
            with Client(scheduler) as client:
                yield partial(_run_on_cluster, client, progress)


@contextlib.contextmanager
def _pool(n_workers: int, first: tuple[object, ...]) -> Iterator[ProcessPoolExecutor]:
    """Pool for all jobs; Ctrl-C and SIGTERM end its processes at once, errors when the jobs in progress are done."""
    # One pool: starting a process takes seconds. Spawned: forking a process with threads may hang.
    how: dict[str, Any] = {"mp_context": multiprocessing.get_context("spawn"), "initializer": _initialise_worker}
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(n_workers, initargs=first, **how) as pool:
        try:
            yield pool
        except (KeyboardInterrupt, SystemExit):
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise


THREADS = "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"


@contextlib.contextmanager
def _few_threads(n_threads: int | None) -> Iterator[None]:
    """Limit the threads of processes that are started in the block, unless the user has set a number.

    Otherwise numpy, scipy and scikit-learn take all cores in each process, and the processes wait for each other.
    """
    names = [name for name in THREADS if n_threads is not None and name not in os.environ]
    os.environ.update(dict.fromkeys(names, str(n_threads)))
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """Let the first SIGTERM raise SystemExit in the block, unless the user's program handles it; the second kills."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        os.write(2, b"\nstampy: SIGTERM: the run ends; repeat it to continue\n")  # print could interrupt another write
        raise SystemExit(128 + number)

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _initialise_worker(values: dict[str, Any], setup: Callable[..., None] | None, setup_args: tuple[Any, ...]) -> None:
    """Initialise a worker process, which ends when its parent ends, even if the parent is killed."""
    for name, value in values.items():
        if getattr(settings, name) != value:
            setattr(settings, name, value)
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # its own lock is for several processes, and "leaked" if this one is terminated
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if setup is not None:
        with collection_paused():
            setup(*setup_args)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_in_turn(progress: bool, jobs: Sequence[Job], what: str) -> Iterator[Any]:
    from tqdm.auto import tqdm

    yield from (job() for job in tqdm(jobs, desc=what, unit="section", disable=hidden(progress)))


def _run_in_pool(pool: ProcessPoolExecutor, progress: bool, jobs: Sequence[Job], what: str) -> Iterator[Any]:
    from tqdm.auto import tqdm

    futures = [pool.submit(job) for job in jobs]
    try:
        with tqdm(total=len(jobs), desc=what, unit="section", disable=hidden(progress)) as bar:
            for future in as_completed(futures):
                yield future.result()
                bar.update()
    except (KeyboardInterrupt, SystemExit):
        raise  # the processes are ended, and with them all futures
    except BaseException as error:
        for future in futures:  # start no further jobs
            future.cancel()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise RuntimeError(
            "A worker process died: for lack of memory (then take fewer `n_workers`), or because a script "
            "calls this outside of `if __name__ == '__main__':`. Run it again: finished sections are kept."
        ) from error


def _run_on_cluster(client: Client, progress: bool, jobs: Sequence[Job], what: str) -> Iterator[Any]:
    from distributed import as_completed
    from tqdm.auto import tqdm

    futures = [client.submit(job, pure=False) for job in jobs]
    try:
        with tqdm(total=len(jobs), desc=what, unit="section", disable=hidden(progress)) as bar:
            for future in as_completed(futures):
                yield future.result()
                bar.update()
    finally:
        client.cancel([future for future in futures if not future.done()])
