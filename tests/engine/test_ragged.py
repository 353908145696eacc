"""Minibatches of different sizes, as torch.split leaves them, against plain autograd in float64."""

import copy

import numpy as np
import pytest
import torch
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.data import DSA, SeededAugment
from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.engine.planner import Plan
from tests.conftest import normal, relative_error
from tests.engine.test_drop_in import plain_loss
from tests.networks_for_tests import SIDE, K, PlainConvNet, make

EXACT = 1e-9  # float64, sums in another order
I = 7  # noqa: E741
RAGGED = [[0, 1, 6], [3, 3, 2], [5], [4, 6, 0, 1, 2]]  # step 2 has one image, and image 3 is repeated
PLANS = {
    "as it comes": Plan(),
    "stored": Plan(stored_steps=4),
    "some stored": Plan(stored_steps=2),
    "micro-batches larger than some minibatches": Plan(micro_batch=2, stored_steps=1),
    "every third state": Plan(state_every=3),
    "states in host memory": Plan(host_states=True),
}


def problem(network, *, soft=False, students=None):
    start = parameters_to_vector(network.parameters()).detach()
    if students:
        start = torch.stack([start + 0.05 * normal(len(start), seed=s) for s in range(students)])
    logits = normal(I, K, seed=3)
    labels = logits.softmax(1).requires_grad_() if soft else torch.arange(I) % K
    images = normal(I, 3, SIDE, SIDE, seed=1).requires_grad_()
    return start.requires_grad_(), images, labels, torch.tensor(0.05, dtype=torch.float64, requires_grad=True)


def gradients(network, batches, adjoint, *, soft=False, students=None, lr=None, **options):
    """The last parameters and the gradients of a loss of them."""
    leaves = problem(network, soft=soft, students=students)
    leaves = leaves if lr is None else (*leaves[:3], lr)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        last = ddfast.unroll(network, *leaves, batches=batches, adjoint=adjoint, **options)
    loss = (last * normal(*last.shape, seed=2)).sum()
    return [last, *torch.autograd.grad(loss, [leaf for leaf in leaves if leaf.requires_grad])]


def assert_equal(got, expected):
    for g, e in zip(got, expected, strict=True):
        assert relative_error(g, e) < EXACT


def rows(batches=RAGGED):
    return [torch.tensor(row) for row in batches]


def augmentation(name):
    if name == "DSA":
        largest = max(map(len, RAGGED))
        return DSA().draw_steps(len(RAGGED), largest, (SIDE, SIDE), torch.Generator().manual_seed(1))
    return SeededAugment(lambda x: x + torch.randn_like(x), seed=0) if name == "seeded" else None


@pytest.mark.parametrize("kind", ["fused", "PyTorch's layers", "batch norm"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("first_order", [False, True], ids=["exact", "first order"])
@pytest.mark.parametrize("augment", ["none", "DSA", "seeded"])
def test_one_call_gives_the_loss_and_gradients_of_the_plain_loop(kind, soft, first_order, augment):
    network = PlainConvNet(3, K, 8, (SIDE, SIDE)).double() if kind == "PyTorch's layers" else None
    network = network or make("convnet" if kind == "fused" else "convnet-batchnorm")
    start, images, labels, lr = problem(network, soft=soft)
    start, augment = start.detach(), augmentation(augment)
    target = start + 0.01 * normal(len(start), seed=4)
    leaves = [leaf for leaf in (images, labels, lr) if leaf.requires_grad]
    before = copy.deepcopy(network)
    loss = plain_loss(before, start, target, images, labels, lr, rows(), augment or (lambda x, n: x), first_order)
    expected = [loss, *torch.autograd.grad(loss, leaves)]
    adjoint = DetachedUnroll() if first_order else None
    loss = ddfast.match_trajectory(
        network, start, target, images, labels, lr, batches=rows(), augment=augment, adjoint=adjoint
    )
    assert_equal([loss, *torch.autograd.grad(loss, leaves), *network.buffers()], [*expected, *before.buffers()])


@pytest.mark.parametrize("name", ["convnet", "convnet-sigmoid-groupnorm-maxpooling", "dropout"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("options", [{}, {"momentum": 0.5, "weight_decay": 0.1, "students": 2}], ids=["", "momentum"])
def test_no_plan_changes_the_gradient(name, plan, options):
    if name == "dropout" and PLANS[plan].micro_batch:
        pytest.skip("micro-batches draw other numbers than a whole minibatch")
    expected = gradients(make(name), rows(), FullUnroll(), soft=True, **options)
    assert_equal(gradients(make(name), rows(), CheckpointedUnroll(plan=PLANS[plan]), soft=True, **options), expected)


@pytest.mark.parametrize("name", ["convnet", "dropout"])
def test_all_states_and_a_rate_for_each_step(name):
    adjoints, rates = (None, FullUnroll()), torch.tensor([0.1, 0.02, 0.0, 0.05]).double().requires_grad_()
    states = [gradients(make(name), rows(), adjoint, return_states=True, lr=rates) for adjoint in adjoints]
    assert_equal(*states)
    assert states[0][0].shape[0] == len(RAGGED) + 1


@pytest.mark.parametrize("name", ["convnet", "dropout"])
def test_a_memory_budget_plans_for_the_largest_minibatch(name):
    expected = gradients(make(name).eval(), rows(), FullUnroll())
    assert_equal(gradients(make(name).eval(), rows(), CheckpointedUnroll("1GiB")), expected)
    largest = [list(range(5))] * len(RAGGED)
    with pytest.raises(ValueError, match="the smallest that does is") as ragged:
        gradients(make(name).eval(), rows(), CheckpointedUnroll(1000))
    with pytest.raises(ValueError, match="the smallest that does is") as whole:
        gradients(make(name).eval(), torch.tensor(largest), CheckpointedUnroll(1000))
    assert str(ragged.value) == str(whole.value)


EQUAL = [[0, 1], [2, 3], [4, 4]]
WAYS = {
    "a tuple of torch.split": lambda: torch.split(torch.tensor([0, 1, 2, 3, 4, 4]), 2),
    "lists": lambda: EQUAL,
    "arrays": lambda: [np.array(row, dtype=np.int32) for row in EQUAL],
    "one array": lambda: np.array(EQUAL),
    "a generator": lambda: (torch.tensor(row) for row in EQUAL),
    "ranges": lambda: [range(0, 2), range(2, 4), [4, 4]],
}


@pytest.mark.parametrize("way", WAYS)
def test_minibatches_of_one_size_are_one_op_however_they_are_given(way, monkeypatch):
    expected = gradients(make("convnet"), torch.tensor(EQUAL), None)
    calls, original = [], ddfast.ops.unroll
    monkeypatch.setattr(ddfast.ops, "unroll", lambda *arguments: calls.append(1) or original(*arguments))
    got = gradients(make("convnet"), WAYS[way](), None)
    assert all(torch.equal(g, e) for g, e in zip(got, expected, strict=True)) and calls


def test_the_lists_may_be_overwritten_before_the_backward():
    leaves, batches = problem(make("convnet")), rows()
    last = ddfast.unroll(make("convnet"), *leaves, batches=batches)
    for row in batches:
        row.zero_()
    batches.clear()
    got = torch.autograd.grad(last.sum(), leaves[1])[0]
    last = ddfast.unroll(make("convnet"), *leaves, batches=rows())
    assert torch.equal(got, torch.autograd.grad(last.sum(), leaves[1])[0])


WRONG = {
    "no minibatch": ([], ValueError, r"batches: expected \[T, B\], got \[0, 0\]"),
    "an empty one": ([[0, 1], []], ValueError, r"batches\[1\]: expected \[B\] with at least one index"),
    "an index too large": ([[0, 1], [7]], ValueError, r"batches\[1\]: expected indices 0 to 6, got 7 to 7"),
    "a negative one": ([[0], [1, -1]], ValueError, r"batches\[1\]: expected indices 0 to 6, got -1 to 1"),
    "numbers": ([0, 1, 2], ValueError, r"batches\[0\]: expected \[B\] with at least one index, got \[\]"),
    "floats": ([[0, 1], [0.5]], TypeError, r"batches\[1\]: expected an int64 tensor, got torch.float"),
    "a mask": ([torch.ones(7).bool()], TypeError, r"batches\[0\]: expected an int64 tensor, got torch.bool"),
    "int32 tensors": ([torch.ones(2).int()], TypeError, r"batches\[0\]: expected an int64 tensor, got torch.int32"),
    "words": ([["a"]], TypeError, r"batches\[0\]: expected int64 \[B\], got list"),
    "a word": ("0, 1", TypeError, r"batches: expected int64 \[T, B\], or a list of int64 \[B\], got str"),
    "a number": (5, TypeError, r"batches: expected int64 \[T, B\], or a list of int64 \[B\], got int"),
    "deeper": ([[[0]]], ValueError, r"batches\[0\]: expected \[B\] with at least one index, got \[1, 1\]"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_are_no_minibatches_is_refused(kind):
    batches, error, message = WRONG[kind]
    with pytest.raises(error, match=message):
        ddfast.unroll(make("convnet"), *problem(make("convnet")), batches=batches)


def test_the_number_of_rates_is_that_of_the_minibatches():
    start, images, labels, _ = problem(make("convnet"))
    with pytest.raises(ValueError, match=r"lr: expected \[\] or \[T\] with T = 4, got \[3\]"):
        ddfast.unroll(make("convnet"), start, images, labels, torch.ones(3).double(), batches=rows())
