"""What unroll and match_trajectory compute, and what they refuse."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.engine.unroll import match_trajectory, unroll
from tests.conftest import normal, relative_error, uniform
from tests.networks_for_tests import SIDE, K, make


@pytest.fixture
def problem():
    network = make("convnet")
    return {
        "student": network,
        "start": parameters_to_vector(network.parameters()).detach(),
        "images": normal(6, 3, SIDE, SIDE),
        "labels": torch.arange(6) % K,
        "lr": torch.tensor(0.05, dtype=torch.float64),
    }


def test_unroll_is_what_torch_optim_does(problem):
    got = unroll(**problem, batches=torch.tensor([[0, 1], [5, 2], [3, 3]]), momentum=0.9, weight_decay=0.01)
    network = problem["student"]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    for chosen in ([0, 1], [5, 2], [3, 3]):
        optimizer.zero_grad()
        cross_entropy(network(problem["images"][chosen]), problem["labels"][chosen]).backward()
        optimizer.step()
    assert relative_error(got, parameters_to_vector(network.parameters())) < 1e-12


def test_one_hot_weights_are_classes(problem):
    soft = problem | {"labels": nn.functional.one_hot(problem["labels"], K).double()}
    assert relative_error(unroll(**soft, syn_steps=3), unroll(**problem, syn_steps=3)) < 1e-12


def test_the_loss_is_one_for_a_student_that_does_not_move_and_zero_at_the_target(problem):
    target = problem["start"] + 0.1
    still = problem | {"lr": torch.tensor(0.0).double()}
    assert match_trajectory(target=target, **still, syn_steps=2).item() == pytest.approx(1)
    reached = unroll(**problem, syn_steps=2)
    assert match_trajectory(target=reached, **problem, syn_steps=2).item() == pytest.approx(0, abs=1e-20)


def test_states_begin_with_the_start_and_end_with_the_result(problem):
    states = unroll(**problem, syn_steps=3, return_states=True)
    assert states.shape == (4, len(problem["start"]))
    assert torch.equal(states[0], problem["start"])
    assert torch.equal(states[-1], unroll(**problem, syn_steps=3))


def test_without_gradients_the_result_is_the_same_and_has_no_graph(problem):
    with torch.no_grad():
        result = unroll(**problem, syn_steps=3)
    assert not result.requires_grad and torch.equal(result, unroll(**problem, syn_steps=3))


def test_float32_gradients_are_as_good_as_those_of_plain_autograd():
    """Meta-gradients in float32 against float64: at most twice the error of the eager full unroll, cosine 0.999999."""
    network = make("convnet")
    start = parameters_to_vector(network.parameters()).detach()
    images, labels, lr = normal(6, 3, SIDE, SIDE), torch.arange(6) % K, torch.tensor(0.02, dtype=torch.float64)
    target = start + 0.01 * normal(len(start), seed=4)

    def by_images(adjoint, dtype):
        leaf = images.to(dtype).requires_grad_()
        arguments = (start.to(dtype), target.to(dtype), leaf, labels, lr.to(dtype))
        loss = match_trajectory(network.to(dtype), *arguments, syn_steps=8, adjoint=adjoint)
        return torch.autograd.grad(loss, leaf)[0]

    exact = by_images(ddfast.adjoints.FullUnroll(), torch.float64)
    eager = by_images(ddfast.adjoints.FullUnroll(), torch.float32)
    ours = by_images(ddfast.adjoints.CheckpointedUnroll(), torch.float32)
    assert relative_error(ours, exact) <= 2 * relative_error(eager, exact)
    assert torch.cosine_similarity(ours.double().flatten(), exact.flatten(), dim=0) >= 0.999999


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        ({"student": "convnet"}, TypeError, "student: expected an nn.Module or a Student, got str"),
        ({"student": nn.ReLU()}, ValueError, "student: ReLU has no parameters"),
        ({"start": torch.zeros(3).double()}, ValueError, r"start: expected \[P\] or \[S, P\] with P = \d+, got \[3\]"),
        ({"images": torch.zeros(6, 3, SIDE).double()}, ValueError, r"images: expected \[I, C, H, W\], got"),
        ({"images": torch.zeros(6, 3, SIDE, SIDE)}, TypeError, "images: expected torch.float64 like start"),
        ({"images": torch.zeros(6, 3, SIDE, SIDE, device="meta").double()}, ValueError, "images: expected device cpu"),
        ({"labels": torch.arange(5)}, ValueError, r"labels: expected \[6\] for 6 images, got \[5\]"),
        ({"labels": torch.arange(6).int()}, TypeError, "labels: expected int64"),
        ({"labels": [0, 1, 2, 3, 0, 1]}, TypeError, "labels: expected int64 .* got list"),
        ({"labels": torch.arange(6)}, ValueError, "labels: expected classes 0 to 3, got 0 to 5"),
        ({"labels": -torch.ones(6).long()}, ValueError, "labels: expected classes 0 to 3, got -1 to -1"),
        ({"labels": torch.zeros(6, 7).double()}, ValueError, r"labels: expected target weights \[I, 4\]"),
        ({"labels": torch.arange(6, device="meta")}, ValueError, "labels: expected device cpu like images"),
        ({"lr": torch.zeros(4).double()}, ValueError, r"lr: expected \[\] or \[T\] with T = 2, got \[4\]"),
        ({"lr": torch.tensor(0.1)}, TypeError, "lr: expected torch.float64 like start"),
        ({"start": [0.0]}, TypeError, "start: expected a tensor, got list"),
        ({"adjoint": "full"}, TypeError, "adjoint: expected an instance of a class of ddfast.adjoints, got 'full'"),
        ({"momentum": -0.1}, ValueError, "momentum: expected at least 0"),
        ({"weight_decay": float("nan")}, ValueError, "weight_decay: expected at least 0"),
        ({"syn_steps": None}, ValueError, "batches, syn_steps: expected exactly one of them, got neither"),
        (
            {"batches": torch.zeros(2, 2).long()},
            ValueError,
            "batches, syn_steps: expected exactly one of them, got both",
        ),
        ({"syn_steps": 0}, ValueError, "syn_steps: expected a whole number of at least 1, got 0"),
        ({"syn_steps": 2.5}, ValueError, "syn_steps: expected a whole number"),
        ({"syn_steps": None, "batches": torch.full((2, 2), 6)}, ValueError, "batches: expected indices 0 to 5"),
        ({"syn_steps": None, "batches": torch.zeros(2)}, TypeError, "batches: expected an int64 tensor"),
        ({"syn_steps": None, "batches": torch.zeros(2).long()}, ValueError, r"batches: expected \[T, B\]"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(problem, change, error, sentence):
    with pytest.raises(error, match=sentence):
        unroll(**(problem | {"syn_steps": 2} | change))


@pytest.mark.parametrize(
    "augment, got", [(lambda x, n: None, "NoneType"), (lambda x, n: torch.cat([x, x]), r"\[12, 3")]
)
def test_an_augmentation_has_to_return_as_many_images(problem, augment, got):
    with pytest.raises(ValueError, match=f"augment: expected 6 images like those it was given, got {got}"):
        unroll(**problem, syn_steps=2, augment=augment)


def test_a_plain_number_is_a_learning_rate(problem):
    assert torch.equal(unroll(**(problem | {"lr": 0.05}), syn_steps=2), unroll(**problem, syn_steps=2))


def test_the_public_names_are_these():
    assert ddfast.unroll is unroll and ddfast.match_trajectory is match_trajectory
    with pytest.raises(ValueError, match=r"start, target: expected the same shape, .* got \[3\] and \[4\]"):
        match_trajectory(make("convnet"), uniform(3), uniform(4), None, None, 0.1, syn_steps=1)
    start = uniform(2, sum(p.numel() for p in make("convnet").parameters()))
    with pytest.raises(ValueError, match="expected an expert's parameters at two different epochs, got the same twice"):
        match_trajectory(make("convnet"), start, torch.stack([start[0], start[0]]), None, None, 0.1, syn_steps=1)
    with pytest.raises(TypeError, match="return_states is not an option"):
        match_trajectory(make("convnet"), *[uniform(3)] * 5, return_states=True, syn_steps=1)
