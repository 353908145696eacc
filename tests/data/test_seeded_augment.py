"""An augmentation of someone else's that draws from the global random states, made repeatable."""

import random

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddfast.data import SeededAugment
from ddfast.engine.adjoints import CheckpointedUnroll, FullUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.unroll import unroll
from tests.conftest import normal, relative_error
from tests.networks_for_tests import SIDE, K, make


def wild(images):
    """Random numbers of every kind."""
    scale = torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
    images = images.roll(random.randrange(SIDE), 3) * (0.5 + scale) + np.random.rand()
    return torch.nn.functional.dropout(images, 0.1) + torch.randn(1).item()


def states(device):
    cuda = [torch.cuda.get_rng_state(device)] if device == "cuda" else []
    numbers = [torch.get_rng_state(), *cuda, torch.from_numpy(np.random.get_state()[1].copy())]
    return [*(t.clone() for t in numbers), torch.tensor(np.random.get_state()[2]), torch.tensor(random.getstate()[1])]


def test_the_same_step_draws_the_same_and_every_global_state_is_left_as_found(device):
    images, before = normal(6, 3, SIDE, SIDE, device=device), states(device)
    augment = SeededAugment(wild, seed=3)
    first = [augment(images, n) for n in range(3)]
    again = [augment(images, n) for n in reversed(range(3))][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0], SeededAugment(wild, seed=4)(images, 0))
    assert all(torch.equal(a, b) for a, b in zip(before, states(device), strict=True))


def test_a_function_that_fails_leaves_the_global_states_as_found():
    def failing(images):
        wild(images)
        raise KeyError("mine")

    before = states("cpu")
    with pytest.raises(KeyError, match="mine"):
        SeededAugment(failing, seed=0)(normal(2, 3, SIDE, SIDE), 0)
    assert all(torch.equal(a, b) for a, b in zip(before, states("cpu"), strict=True))


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm", "dropout"])
@pytest.mark.parametrize("plan", [Plan(), Plan(state_every=2, stored_steps=1)], ids=["plain", "states thinned"])
def test_the_gradient_of_an_unroll_is_that_of_plain_autograd(name, plan, device):
    gradients = []
    for adjoint in (CheckpointedUnroll(plan=plan), FullUnroll()):
        network = make(name).to(device)
        start = parameters_to_vector(network.parameters()).detach()
        images = normal(6, 3, SIDE, SIDE, device=device).requires_grad_()
        lr = torch.tensor(0.05, dtype=torch.float64, device=device, requires_grad=True)
        labels, augment = (torch.arange(6) % K).to(device), SeededAugment(wild, seed=0)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            end = unroll(network, start, images, labels, lr, syn_steps=4, augment=augment, adjoint=adjoint)
            gradients.append(torch.autograd.grad((end * normal(len(end), seed=1, device=device)).sum(), (images, lr)))
    assert all(relative_error(got, expected) < 1e-9 for got, expected in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((None, 0), "function: expected a function of images, got None"),
        ((wild, torch.Generator()), "seed: expected a whole number, got <torch"),
        ((wild, True), "seed: expected a whole number, got True"),
    ],
)
def test_impossible_arguments_are_refused(arguments, sentence):
    with pytest.raises(TypeError, match=sentence):
        SeededAugment(*arguments)
