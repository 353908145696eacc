"""The module student's two functions, one against the other."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

from ddfast.students import ModuleStudent, Step, Wanted
from tests.conftest import normal, relative_error, uniform
from tests.networks_for_tests import NETWORKS, SIDE, K, make

SMALL = [name for name in NETWORKS if name != "resnet18"]


@pytest.mark.parametrize("name", SMALL)
def test_grad_jvp_is_the_derivative_of_grad_along_the_direction(name):
    network = make(name)
    student = ModuleStudent(network)
    theta = parameters_to_vector(network.parameters()).detach()[None]
    sigma = normal(*theta.shape, seed=2)
    images, labels, step = normal(4, 3, SIDE, SIDE), uniform(4, K), Step()
    _, g = student.grad(theta, images, labels, step=step)
    jvp = student.grad_jvp(theta, images, labels, sigma, step=step, wanted=Wanted())
    assert jvp.slope.item() == pytest.approx((g * sigma).sum().item(), rel=1e-9)
    h = 1e-8  # small: between the two ends no ReLU may switch
    ahead, behind = (student.grad(theta + e * sigma, images, labels, step=step)[1] for e in (h, -h))
    assert relative_error(jvp.parameters, (ahead - behind) / (2 * h)) < 1e-4

    def slope(images, labels):
        return (student.grad(theta, images, labels, step=step)[1] * sigma).sum()

    for along, got in ((normal(*images.shape, seed=4), jvp.images), (normal(*labels.shape, seed=5), jvp.labels)):
        d_images, d_labels = (along, 0) if got is jvp.images else (0, along)
        finite = (
            slope(images + h * d_images, labels + h * d_labels) - slope(images - h * d_images, labels - h * d_labels)
        ) / (2 * h)
        assert (got * along).sum().item() == pytest.approx(finite.item(), rel=1e-4, abs=1e-7)


def test_what_is_not_wanted_is_not_computed():
    network = make("convnet")
    theta = parameters_to_vector(network.parameters()).detach()[None]
    arguments = (theta, normal(2, 3, SIDE, SIDE), torch.tensor([0, 1]), theta)
    jvp = ModuleStudent(network).grad_jvp(*arguments, step=Step(), wanted=Wanted(False, False, False))
    assert jvp.parameters is None and jvp.images is None and jvp.labels is None
    assert jvp.slope.shape == (1,)


def test_parameters_that_the_loss_does_not_see_have_zero_gradients():
    class Unused(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 2), nn.Linear(4, 5)

        def forward(self, images):
            return self.used(images.mean((2, 3)))

    student = ModuleStudent(Unused().double())
    theta = normal(1, student.num_parameters)
    images, labels = normal(2, 3, 4, 4), torch.tensor([0, 1])
    _, g = student.grad(theta, images, labels, step=Step())
    jvp = student.grad_jvp(
        theta, images, labels, normal(*theta.shape, seed=1), step=Step(), wanted=Wanted(labels=False)
    )
    assert g[0, :8].abs().min() > 0 and g[0, 8:].abs().max() == 0
    assert jvp.parameters[0, 8:].abs().max() == 0 and jvp.parameters[0, :8].abs().max() > 0


def test_a_loss_that_is_linear_in_everything_has_a_slope_and_no_curvature():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, images):
            return self.scale.expand(len(images), 2) * 0 + 1

    student = ModuleStudent(Constant().double())
    theta = normal(1, 2)
    arguments = (theta, normal(2, 1, 4, 4), torch.tensor([0, 1]), normal(1, 2, seed=1))
    jvp = student.grad_jvp(*arguments, step=Step(), wanted=Wanted(labels=False))
    assert jvp.slope.item() == 0 and jvp.parameters.abs().max() == 0 and jvp.images.abs().max() == 0


def test_a_buffer_that_steers_the_forward_pass_is_replayed_as_it_was():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 2)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, images):
            self.calls += 1
            return self.linear(images.mean((2, 3))) * self.calls

    network = Counting().double()
    student = ModuleStudent(network)
    theta, images, labels = normal(1, student.num_parameters), normal(2, 3, 4, 4), torch.tensor([0, 1])
    steps = [Step(), Step()]
    first = [student.grad(theta, images, labels, step=step)[1] for step in steps]
    assert int(network.calls) == 2 and not torch.equal(*first)
    again = [student.grad(theta, images, labels, step=step)[1] for step in reversed(steps)]
    assert torch.equal(first[0], again[1]) and torch.equal(first[1], again[0])
    assert int(network.calls) == 2


def test_the_mode_is_replayed_as_it_was():
    network = make("convnet-batchnorm")
    student = ModuleStudent(network)
    theta = parameters_to_vector(network.parameters()).detach()[None]
    images, labels, step = normal(4, 3, SIDE, SIDE), torch.arange(4) % K, Step()
    _, g = student.grad(theta, images, labels, step=step)
    network.eval()
    jvp = student.grad_jvp(theta, images, labels, g, step=step, wanted=Wanted(labels=False))
    assert jvp.slope.item() == pytest.approx(g.square().sum().item(), rel=1e-9)
    assert not network.training


def test_autocast_is_replayed_as_it_was():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, K))
    student = ModuleStudent(network)
    theta = parameters_to_vector(network.parameters()).detach()[None]
    images, labels, step = normal(4, 3, 8, 8, dtype=torch.float32), torch.arange(4) % K, Step()
    with torch.autocast("cpu", torch.bfloat16):
        _, g = student.grad(theta, images, labels, step=step)
    jvp = student.grad_jvp(theta, images, labels, g, step=step, wanted=Wanted(labels=False))
    assert torch.equal(student.grad(theta, images, labels, step=step)[1], g)
    assert not torch.equal(student.grad(theta, images, labels, step=Step())[1], g)
    assert jvp.slope.item() == pytest.approx(g.square().sum().item(), rel=1e-2)  # bfloat16


def test_networks_that_give_no_logits_are_refused():
    student = ModuleStudent(nn.Conv2d(3, 4, 3).double())
    theta = normal(1, student.num_parameters)
    with pytest.raises(
        ValueError, match=r"student: expected logits \[B, K\] with B = 2 from the network, got \[2, 4, 6, 6\]"
    ):
        student.grad(theta, normal(2, 3, 8, 8), torch.tensor([0, 1]), step=Step())
