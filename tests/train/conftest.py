"""One thread for all runs, in every process, because they are compared bit for bit."""

import pytest
import torch


def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread_for_shared_runs():
    """Before the module's own runs; another package may have changed the number since (numba does)."""
    yield from _one_thread()


@pytest.fixture(autouse=True)
def one_thread():
    """Before each test."""
    yield from _one_thread()
