"""unroll, match_trajectory and distance in PyTorch's modes: without gradients, under autocast, of another dtype."""

import contextlib
import copy
import logging

import pytest
import torch
from torch.nn.utils import parameters_to_vector

from ddfast.data import DSA
from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.engine.distances import DISTANCES, distance
from ddfast.engine.planner import Plan
from ddfast.engine.students import ModuleStudent
from ddfast.engine.unroll import match_trajectory, unroll
from ddfast.runtime import seeds
from tests.conftest import normal, relative_error
from tests.networks_for_tests import SIDE, K, make

NETWORKS = ("convnet", "convnet-batchnorm", "dropout")
ADJOINTS = {
    "checkpointed": CheckpointedUnroll(),
    "stored": CheckpointedUnroll(plan=Plan(stored_steps=3)),
    "micro-batches": CheckpointedUnroll(plan=Plan(micro_batch=2, state_every=2)),
    "detached": DetachedUnroll(),
    "full": FullUnroll(),
}
MODES = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}
networks = pytest.mark.parametrize("name", NETWORKS)
adjoints = pytest.mark.parametrize("adjoint", ADJOINTS.values(), ids=ADJOINTS)
modes = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)


def arguments(name: str, *, grad: bool = True, dtype=torch.float64) -> dict:
    network = make(name).to(dtype)
    start = parameters_to_vector(network.parameters()).detach()
    return {
        "student": network,
        "start": start,
        "images": normal(6, 3, SIDE, SIDE, dtype=dtype).requires_grad_(grad),
        "labels": torch.arange(6) % K,
        "lr": torch.tensor(0.05, dtype=dtype).requires_grad_(grad),
    }


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def options(batches: bool) -> dict:
    if not batches:
        return {"syn_steps": 3}
    augment = DSA("flip_scale_color_crop").draw_steps(3, 2, (SIDE, SIDE), seeds.generator(0))
    return {"batches": torch.tensor([[0, 1], [5, 2], [3, 3]]), "augment": augment, "momentum": 0.9, "weight_decay": 0.1}


def seeded(call):
    """The same draws (dropout) for every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return call()


@modes
@adjoints
@networks
def test_without_gradients_the_result_has_the_same_bits(name, adjoint, mode):
    if name == "convnet-batchnorm" and adjoint is ADJOINTS["micro-batches"]:
        pytest.skip("batch norm mixes the images of a minibatch")
    for batches in (False, True):
        given = options(batches) | {"adjoint": adjoint}
        expected = seeded(lambda given=given: unroll(**arguments(name), **given))
        with mode():
            got = seeded(lambda given=given: unroll(**arguments(name, grad=False), **given))
        assert not got.requires_grad and torch.equal(got, expected.detach())


@adjoints
def test_the_states_are_the_same_without_gradients(adjoint):
    expected = unroll(**arguments("convnet"), syn_steps=3, adjoint=adjoint, return_states=True)
    for mode in MODES.values():
        with mode():
            got = unroll(**arguments("convnet"), syn_steps=3, adjoint=adjoint, return_states=True)
        assert torch.equal(got, expected.detach())


@modes
@pytest.mark.parametrize("kind", DISTANCES)
def test_the_loss_is_the_same_without_gradients(kind, mode):
    given = arguments("convnet")
    target = given["start"] + 0.1 * normal(len(given["start"]), seed=3)
    expected = match_trajectory(target=target, **given, syn_steps=2, distance=kind)
    with mode():
        got = match_trajectory(target=target.clone(), **arguments("convnet"), syn_steps=2, distance=kind)
        last = unroll(**arguments("convnet"), syn_steps=2)
        layers = ModuleStudent(given["student"]).layer_sizes
        again = distance(last, target.clone(), given["start"].clone(), kind, layers=layers)
    assert not got.requires_grad
    assert relative_error(got, expected.detach()) < 1e-12 and relative_error(again, expected.detach()) < 1e-12


@networks
def test_tensors_made_in_inference_mode_are_taken_where_gradients_are_wanted(name):
    with torch.inference_mode():
        start, target = arguments(name)["start"].clone(), arguments(name)["start"] + 0.1
        batches = torch.tensor([[0, 1], [2, 3]])
    given = arguments(name) | {"start": start, "target": target}
    loss = match_trajectory(**given, batches=batches)
    assert all(g.abs().max() > 0 for g in torch.autograd.grad(loss, (given["images"], given["lr"])))


@adjoints
@networks
def test_the_default_dtype_changes_nothing(name, adjoint):
    if name == "convnet-batchnorm" and adjoint is ADJOINTS["micro-batches"]:
        pytest.skip("batch norm mixes the images of a minibatch")

    made = arguments(name, dtype=torch.float32)

    def gradients():
        given = made | {"student": copy.deepcopy(made["student"])}
        target = given["start"] + 0.1 * normal(len(given["start"]), seed=3, dtype=torch.float32)
        loss = match_trajectory(target=target, **given, **options(True), adjoint=adjoint)
        return [loss, *torch.autograd.grad(loss, (given["images"], given["lr"]))]

    expected = seeded(gradients)
    with default_dtype(torch.float64):
        got = seeded(gradients)
    for g, e in zip(got, expected, strict=True):
        assert g.dtype == torch.float32 and torch.equal(g, e)


def test_a_number_as_the_rate_and_distances_follow_the_tensors_and_not_the_default_dtype():
    with default_dtype(torch.float64):
        given = arguments("convnet", dtype=torch.float32) | {"lr": 0.05}
        last = unroll(**given, syn_steps=2)
        target = given["start"] + 0.1
        layers = ModuleStudent(given["student"]).layer_sizes
        results = [distance(last, target, given["start"], kind, layers=layers) for kind in DISTANCES]
    assert last.dtype == torch.float32 and all(result.dtype == torch.float32 for result in results)


@pytest.mark.parametrize("adjoint", ["checkpointed", "detached", "full"])
@networks
def test_under_autocast_the_loss_and_its_gradients_are_near_those_without(name, adjoint):
    """bfloat16 has eight bits: near means a few hundredths, and the same bits twice."""

    def gradients(enabled):
        given = arguments(name, dtype=torch.float32)
        target = given["start"] + 0.1 * normal(len(given["start"]), seed=3, dtype=torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = match_trajectory(target=target, **given, **options(True), adjoint=ADJOINTS[adjoint])
        return [loss, *torch.autograd.grad(loss, (given["images"], given["lr"]))]

    exact, got, again = (seeded(lambda e=enabled: gradients(e)) for enabled in (False, True, True))
    assert all(torch.equal(g, a) for g, a in zip(got, again, strict=True))
    assert all(g.dtype == torch.float32 for g in got)
    loss, by_images, _ = (relative_error(g, e) for g, e in zip(got, exact, strict=True))
    assert loss < 0.02 and by_images < 0.5


def test_autocast_is_the_reason_that_is_logged(caplog):
    caplog.set_level(logging.INFO, "ddfast")
    given = arguments("convnet", dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        unroll(**given, syn_steps=1)
        unroll(**given, syn_steps=1)
    assert caplog.messages == ["ConvNet runs by autograd: autocast is on"]
    unroll(**given, syn_steps=1)
    assert len(caplog.messages) == 1
