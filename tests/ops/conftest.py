"""Ops are tested with more than one thread, whatever the test process has."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _at_least_two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    yield
    torch.set_num_threads(threads)
