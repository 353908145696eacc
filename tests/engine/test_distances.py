"""Distances of parameters: against their formulas, with weights, and in match_trajectory."""

import pytest
import torch

from ddfast import distance, match_trajectory, networks
from ddfast.engine.distances import DISTANCES
from ddfast.engine.students import student_of
from ddfast.engine.students.base import layer_sizes
from tests.conftest import normal, uniform

LAYERS = (3, 4, 2)


def formula(kind, student, target, start, w):
    """Of one student, [P]."""
    parts = [slice(0, 3), slice(3, 7), slice(7, 9)]
    if kind == "squared":
        return (w * (student - target) ** 2).sum() / (w * (start - target) ** 2).sum()
    if kind == "l1":
        return (w * (student - target).abs()).sum() / (w * (start - target).abs()).sum()
    if kind == "unnormalised":
        return (w * (student - target) ** 2).sum()
    if kind == "cosine":
        a, b = (w.sqrt() * (x - start) for x in (student, target))
        return 1 - a @ b / (a.norm() * b.norm())
    return sum(formula("squared", student[p], target[p], start[p], w[p]) for p in parts) / 3


def inputs(*shape):
    return [normal(*shape, seed=seed).requires_grad_() for seed in (1, 2, 3)]


@pytest.mark.parametrize("weighted", [None, "shared", "own"])
@pytest.mark.parametrize("kind", DISTANCES)
def test_every_distance_is_its_formula(kind, weighted):
    student, target, start = inputs(2, 9)
    weight = {None: None, "shared": uniform(9), "own": uniform(2, 9)}[weighted]
    got = distance(student, target, start, kind, weight=weight, layers=LAYERS)
    rows = torch.ones(2, 9).double() if weight is None else weight.expand(2, 9)
    expected = torch.stack([formula(kind, student[s], target[s], start[s], rows[s]) for s in range(2)])
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    by_got, by_formula = (torch.autograd.grad(d.sum(), student)[0] for d in (got, expected))
    torch.testing.assert_close(by_got, by_formula, rtol=1e-9, atol=1e-12)
    alone = distance(student[1], target[1], start[1], kind, weight=rows[1], layers=LAYERS)
    torch.testing.assert_close(alone, expected[1], rtol=1e-12, atol=0)


def test_squared_is_the_default():
    student, target, start = inputs(9)
    assert distance(student, target, start) == distance(student, target, start, "squared")


def test_a_layer_in_which_the_expert_did_not_move_does_not_count():
    student, target, start = (t.detach() for t in inputs(9))
    start[3:7] = target[3:7]
    got = distance(student, target, start, "layerwise", layers=LAYERS)
    ends = [formula("squared", student[p], target[p], start[p], 1.0) for p in (slice(0, 3), slice(7, 9))]
    assert got.item() == pytest.approx((sum(ends) / 2).item())


def test_what_makes_no_sense_is_refused():
    student, target, start = inputs(9)
    with pytest.raises(ValueError, match=r"distance: expected one of squared, l1, .*, got 'l3'"):
        distance(student, target, start, "l3")
    with pytest.raises(ValueError, match="layers: expected the sizes of layers of 9 parameters in all, got none"):
        distance(student, target, start, "layerwise")
    for wrong in (student[:3], student[None]):
        with pytest.raises(ValueError, match=r"target: expected like student = \[9\], got"):
            distance(student, wrong, start, "l1")
    with pytest.raises(ValueError, match=r"weight: expected \[9\] or \[9\], got \[1\]"):
        distance(student, target, start, "cosine", weight=uniform(1))
    with pytest.raises(ValueError, match="got 2 with 7 parameters"):
        distance(student, target, start, "layerwise", layers=(3, 4))


def test_layers_are_modules_with_their_weight_and_bias():
    network = networks.ConvNet(channels=1, num_classes=3, image_size=(16, 16), width=4)
    sizes = [4 * 9 + 4, 8, 16 * 9 + 4, 8, 64 * 3 + 3]
    assert layer_sizes(network) == student_of(network).layer_sizes == tuple(sizes)
    assert sum(sizes) == sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("kind", ["l1", "layerwise"])
def test_match_trajectory_takes_a_distance_for_a_module_and_a_student(kind):
    network = networks.ConvNet(channels=1, num_classes=3, image_size=(16, 16), width=4).double()
    P = sum(p.numel() for p in network.parameters())
    start, target = 0.1 * normal(P), 0.1 * normal(P, seed=1)
    images, labels, lr = normal(3, 1, 16, 16).requires_grad_(), torch.arange(3), torch.tensor(0.1).double()
    results = [
        match_trajectory(student, start, target, images, labels, lr, syn_steps=2, distance=kind)
        for student in (network, student_of(network))
    ]
    assert results[0] == results[1]
    plain = match_trajectory(network, start, target, images, labels, lr, syn_steps=2)
    assert results[0] != plain
    assert torch.autograd.grad(results[0], images)[0].abs().sum() > 0
    with pytest.raises(ValueError, match="distance: expected one of"):
        match_trajectory(network, start, target, images, labels, lr, syn_steps=2, distance="far")
