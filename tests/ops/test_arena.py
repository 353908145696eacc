"""The memory that an unroll on a CPU uses again: pages, what outlives a call, several threads."""

import resource
import threading
from pathlib import Path

import pytest
import torch

from ddfast.engine.adjoints import CheckpointedUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.unroll import unroll
from ddfast.networks import ConvNet
from ddfast.ops import has_kernel, release_memory
from tests.conftest import normal

pytestmark = pytest.mark.skipif(not has_kernel("unroll", "cpu"), reason="needs the extension")
IMAGES, SIDE, STEPS = 32, 32, 4
MAP = 4 * IMAGES * 32 * (SIDE // 2) ** 2  # bytes of the first map that is kept, 1 MiB


def problem(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ConvNet(3, 4, width=32, image_size=(SIDE, SIDE))
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    images = normal(IMAGES, 3, SIDE, SIDE, seed=seed).float().requires_grad_()
    return network, start, images, torch.arange(IMAGES) % 4, torch.tensor(0.01)


def end_of(network, *arguments):
    return unroll(network, *arguments, syn_steps=STEPS, adjoint=CheckpointedUnroll(plan=Plan(stored_steps=STEPS)))


def gradient(*arguments):
    return torch.autograd.grad(end_of(*arguments).square().sum(), arguments[2])[0]


def test_a_second_unroll_gets_the_pages_of_the_first():
    arguments = problem()
    release_memory()
    faults = []
    for _ in range(8):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        gradient(*arguments)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    assert min(faults[1:]) < MAP / 4096  # of the dozens of such maps of a call


def test_what_is_kept_for_the_next_unroll_is_given_back():
    def resident():
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    gradient(*problem())
    kept = resident()
    release_memory()
    assert kept - resident() > 4 * MAP


def test_steps_that_are_stored_outlive_other_unrolls_and_the_release():
    arguments = problem()
    expected = gradient(*arguments)
    end = end_of(*arguments)
    for seed in (1, 2):
        gradient(*problem(seed))
    release_memory()
    gradient(*problem(3))
    (got,) = torch.autograd.grad(end.square().sum(), arguments[2])
    assert torch.equal(got, expected)


def test_threads_do_not_get_each_others_memory():
    problems, got = [problem(seed) for seed in range(2)], [[], []]
    expected = [gradient(*arguments) for arguments in problems]

    def work(seed):
        for _ in range(3):
            got[seed].append(gradient(*problems[seed]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(2):
        assert len(got[seed]) == 3
        for one in got[seed]:
            torch.testing.assert_close(one, expected[seed], rtol=1e-3, atol=1e-4 * expected[seed].abs().max())
