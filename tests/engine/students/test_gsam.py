"""GSAM: the direction against its equations, for the fused ConvNet, side by side, and any module."""

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ddfast.engine.students import GSAM, Training
from tests.conftest import normal, relative_error
from tests.networks_for_tests import SIDE, K, make

LR, IMAGE = 0.05, torch.Size((3, SIDE, SIDE))


def minibatches(S: int, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:  # [S, B, C, H, W], [S, B]
    return normal(S, 5, 3, SIDE, SIDE, seed=step), (torch.arange(5 * S).view(S, 5) + step) % K


def moved(name: str, seed: int):
    """A network whose norms are not at their initial ones and zeros."""
    network = make(name)
    start = parameters_to_vector(network.parameters()).detach()
    vector_to_parameters(start + 0.1 * normal(len(start), seed=seed), network.parameters())
    return network


def gradient_at(network, parameters, images, labels):
    """∇L by plain autograd at flat parameters [P], the module's buffers left alone."""
    w = parameters.clone().requires_grad_()
    sizes = [p.numel() for p in network.parameters()]
    named = zip(network.named_parameters(), w.split(sizes), strict=True)
    values = {n: piece.view_as(p) for (n, p), piece in named} | {n: b.clone() for n, b in network.named_buffers()}
    loss = cross_entropy(functional_call(network, values, (images,)), labels)
    return loss.detach(), torch.autograd.grad(loss, w)[0]


def direction_of(network, w, images, labels, rho, alpha):
    """The five equations, as FTD writes them."""
    _, g = gradient_at(network, w, images, labels)
    e = rho * w**2 * g / (torch.linalg.vector_norm(w.abs() * g) + 1e-12)
    _, ascended = gradient_at(network, w + e, images, labels)
    v = g - (g @ ascended) / (ascended @ ascended) * ascended
    return ascended - alpha * v


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm", "convnet-sigmoid-groupnorm-maxpooling"])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_steps_are_the_equations_with_momentum_and_decay_added(name, alpha):
    network, reference = moved(name, 1), moved(name, 1)
    training = Training([network], IMAGE, lr=LR, momentum=0.9, weight_decay=0.01, sharpness=GSAM(0.5, alpha))
    w, velocity = parameters_to_vector(reference.parameters()).detach(), 0.0
    for step in range(2):
        images, labels = minibatches(1, step)
        direction = direction_of(reference, w, images[0], labels[0], 0.5, alpha)
        loss, g = gradient_at(reference, w, images[0], labels[0])
        assert relative_error(direction, g) > 0.05  # not the gradient by chance
        torch.testing.assert_close(training.step(images, labels), loss[None])
        velocity = 0.9 * velocity + direction + 0.01 * w
        w = w - LR * velocity
        assert relative_error(training.parameters()[0], w) < 1e-9
    (network,) = training.write()
    assert relative_error(parameters_to_vector(network.parameters()), w) < 1e-9


def test_side_by_side_is_one_by_one():
    images, labels = minibatches(3)
    sharpness = GSAM(0.5, 0.3)
    together = Training([moved("convnet", s) for s in range(3)], IMAGE, lr=LR, sharpness=sharpness)
    losses = together.step(images, labels)
    for s in range(3):
        alone = Training([moved("convnet", s)], IMAGE, lr=LR, sharpness=sharpness)
        torch.testing.assert_close(alone.step(images[s : s + 1], labels[s : s + 1])[0], losses[s])
        assert relative_error(together.parameters()[s], alone.parameters()[0]) < 1e-9


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm"])
def test_a_short_ascent_tends_to_sgd(name):
    plain = Training([moved(name, 1)], IMAGE, lr=LR)
    start = plain.parameters()
    plain.step(*minibatches(1))
    distances = []
    for rho in (1e-3, 1e-5):
        sharp = Training([moved(name, 1)], IMAGE, lr=LR, sharpness=GSAM(rho, 1.0))
        sharp.step(*minibatches(1))
        distances.append(relative_error(sharp.parameters() - start, plain.parameters() - start))
    assert distances[1] < 1e-4 and distances[1] < distances[0] / 50


@pytest.mark.parametrize("name", ["convnet", "convnet-batchnorm"])
def test_the_parameters_come_back_from_the_ascent_bit_for_bit(name):
    training = Training([moved(name, 1)], IMAGE, lr=0.0, sharpness=GSAM(0.5, 1.0))
    start = training.parameters()
    training.step(*minibatches(1))
    assert torch.equal(training.parameters(), start)


def test_running_statistics_are_those_of_the_pass_at_the_parameters():
    plain, sharp = moved("convnet-batchnorm", 1), moved("convnet-batchnorm", 1)
    Training([plain], IMAGE, lr=LR).step(*minibatches(1))
    Training([sharp], IMAGE, lr=LR, sharpness=GSAM(0.5, 1.0)).step(*minibatches(1))
    before = dict(moved("convnet-batchnorm", 1).named_buffers())
    for (name, expected), got in zip(plain.named_buffers(), sharp.buffers(), strict=True):
        assert torch.equal(got, expected) and not torch.equal(got, before[name])


def test_parameters_that_the_loss_does_not_see_are_left_alone():
    class Unused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = torch.nn.Linear(3, K), torch.nn.Linear(4, 5)

        def forward(self, images):
            return self.used(images.mean((2, 3)))

    network = Unused().double()
    used, unused = network.used.weight.detach().clone(), network.unused.weight.detach().clone()
    Training([network], IMAGE, lr=LR, weight_decay=0.1, sharpness=GSAM(0.5, 1.0)).step(*minibatches(1))
    assert torch.equal(network.unused.weight, unused) and not torch.equal(network.used.weight, used)


def test_a_row_whose_gradient_vanishes_stays_finite():
    """Of two rows one is at a minimum; and one whose ascent arrives at one."""
    minimum = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 1.0]], dtype=torch.float64)

    def gradient(w):
        return (w - minimum).square().sum(1) / 2, w - minimum

    start = torch.tensor([[0.0, 0.0], [0.5, 0.0], [1.0, 3.0]], dtype=torch.float64)
    _, direction = GSAM(1e-3, 1.0).direction(gradient, start)
    assert direction.isfinite().all() and not direction[0].any() and direction[1:].any(1).all()
    calls = iter([(torch.zeros(1), torch.ones(1, 2)), (torch.zeros(1), torch.zeros(1, 2))])
    _, direction = GSAM(1e-3, 1.0).direction(lambda w: next(calls), torch.ones(1, 2))
    assert not direction.any()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ((0.0, 1.0), "rho: expected a positive number, got 0.0"),
        ((float("inf"), 1.0), "rho: expected a positive number, got inf"),
        ((0.1, -1.0), "alpha: expected at least 0, got -1.0"),
        ((0.1, float("nan")), "alpha: expected at least 0, got nan"),
    ],
)
def test_impossible_values_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        GSAM(*arguments)
