"""What an unroll keeps: the states of all steps where a gradient may be asked for, and nothing else elsewhere."""

import contextlib

import pytest
import torch
from ddfast.optimizers import Adam
from torch.nn.utils import parameters_to_vector

from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.students.live import LiveBytes
from ddfast.engine.unroll import unroll
from tests.conftest import normal
from tests.networks_for_tests import SIDE, K, make

ADJOINTS = {
    "checkpointed": CheckpointedUnroll(),
    "stored": CheckpointedUnroll(plan=Plan(stored_steps=3)),
    "detached": DetachedUnroll(),
    "full": FullUnroll(),
}
LOOP = CheckpointedUnroll(plan=Plan(micro_batch=6))  # step by step: an op's own tensors are not seen


def peak(name: str, T: int, mode, adjoint, *, grad: bool) -> int:
    """Bytes alive at once of an unroll of T steps."""
    network = make(name)
    start = parameters_to_vector(network.parameters()).detach()
    images = normal(6, 3, SIDE, SIDE).requires_grad_(grad)
    labels, lr = torch.arange(6) % K, torch.tensor(0.05, dtype=torch.float64)
    with mode(), LiveBytes() as bytes_alive:
        unroll(network, start, images, labels, lr, syn_steps=T, adjoint=adjoint)
    return bytes_alive.peak


@pytest.mark.parametrize("adjoint", ["checkpointed", "stored", "detached"])
@pytest.mark.parametrize("name", ["convnet", "dropout"])
def test_memory_does_not_grow_with_the_steps_where_nothing_requires_a_gradient(name, adjoint):
    few, many = (peak(name, T, contextlib.nullcontext, ADJOINTS[adjoint], grad=False) for T in (4, 60))
    assert many <= few


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", ["convnet", "dropout"])
def test_memory_does_not_grow_with_the_steps_in_a_mode_without_gradients(name, adjoint, mode):
    few, many = (peak(name, T, mode, ADJOINTS[adjoint], grad=True) for T in (4, 60))
    assert many <= few


def test_what_adam_keeps_grows_by_a_gradient_a_step():
    """And by what every √T-th step begins with: of 100 steps 10, and of 4 steps 2."""
    P = sum(p.numel() for p in make("convnet").parameters())
    vectors = {}
    for T in (4, 100):
        network = make("convnet")
        start = parameters_to_vector(network.parameters()).detach()
        images = normal(6, 3, SIDE, SIDE).requires_grad_()
        with LiveBytes() as bytes_alive:
            end = unroll(network, start, images, torch.arange(6) % K, 0.05, syn_steps=T, optimizer=Adam(), adjoint=LOOP)
        vectors[T] = bytes_alive.alive / 8 / P
        assert end.requires_grad
    grown = vectors[100] - vectors[4]
    assert 96 + 3 * 8 <= grown <= 96 + 3 * 8 + 4


def test_the_states_are_kept_where_a_gradient_may_be_asked_for():
    few, many = (peak("convnet", T, contextlib.nullcontext, ADJOINTS["checkpointed"], grad=True) for T in (4, 60))
    P = sum(p.numel() for p in make("convnet").parameters())
    assert many - few >= 56 * 8 * P
