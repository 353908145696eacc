"""What the backward runs again has to be what the forward sweep ran: augmentations and networks that draw anew."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.data import DSA, SeededAugment
from ddfast.data.parameterisation import Seen, Texture
from ddfast.engine.adjoints import CheckpointedUnroll, DetachedUnroll, FullUnroll
from ddfast.engine.planner import Plan
from ddfast.engine.repeatable import Repeatable
from tests.conftest import normal, relative_error
from tests.networks_for_tests import SIDE, K, PlainConvNet, make

EXACT = 1e-9  # float64, against plain autograd
OWN = {"torch": torch.Generator(), "numpy": np.random.default_rng(0), "python": random.Random(0)}
NEVER_AGAIN = {
    "noise": lambda x, n: x + 0.1 * torch.randn_like(x),
    "noise of numpy": lambda x, n: x + 0.1 * np.random.rand(),
    "a shift": lambda x, n: x.roll(random.randrange(1, SIDE), 3),
    "a generator of its own": lambda x, n: x * torch.rand((), generator=OWN["torch"], dtype=x.dtype),
    "that of numpy": lambda x, n: x * OWN["numpy"].random(),
    "that of Python in a SeededAugment": SeededAugment(lambda x: x * OWN["python"].random(), seed=0),
    "DSA without steps": lambda x, n: DSA("crop").draw(len(x), (SIDE, SIDE), OWN["torch"])(x),
    "a flip of some": lambda x, n: torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x, x.flip(3)),
}


def run(network, augment, adjoint=None, *, labels=None, dtype=torch.float64, **options):
    """A loss and its gradients in images and learning rate."""
    start = parameters_to_vector(network.parameters()).detach().to(dtype)
    images = normal(6, 3, SIDE, SIDE, seed=1, dtype=dtype).requires_grad_()
    lr = torch.tensor(0.05, dtype=dtype, requires_grad=True)
    labels = torch.arange(6) % K if labels is None else labels
    options = options or {"syn_steps": 3}
    loss = ddfast.match_trajectory(
        network, start, start + 0.1, images, labels, lr, augment=augment, adjoint=adjoint, **options
    )
    return [loss, *torch.autograd.grad(loss, (images, lr))]


@pytest.mark.parametrize("kind", NEVER_AGAIN)
@pytest.mark.parametrize("name", ["convnet", "dropout"])
@pytest.mark.parametrize(
    "adjoint", [CheckpointedUnroll(), CheckpointedUnroll(plan=Plan(state_every=2)), DetachedUnroll()]
)
def test_an_augmentation_that_draws_anew_is_refused_by_the_first_backward(kind, name, adjoint):
    with pytest.raises(
        ValueError, match=r"augment: expected the same images for the same step, .* data\.SeededAugment"
    ):
        run(make(name), NEVER_AGAIN[kind], adjoint)


@pytest.mark.parametrize("kind", ["noise", "a flip of some"])
def test_float32_too(kind):
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=r"augment: expected the same images for the same step"):
        run(make("convnet").float(), NEVER_AGAIN[kind], dtype=torch.float32)


def test_one_step_of_several_that_draws_anew_is_named():
    def augment(images, n):
        return images + (torch.rand(()) if n == 1 else 0)

    with pytest.raises(ValueError, match="in step 1"):
        run(make("convnet"), augment)


def test_plain_autograd_calls_each_step_once_and_takes_any_augmentation():
    run(make("dropout"), NEVER_AGAIN["noise"], FullUnroll())
    with torch.no_grad():
        start = parameters_to_vector(make("convnet").parameters())
        images = normal(6, 3, SIDE, SIDE)
        ddfast.unroll(
            make("convnet"), start, images, torch.arange(6) % K, 0.1, syn_steps=2, augment=NEVER_AGAIN["noise"]
        )


REPEATING = {
    "a seed of n": lambda x, n: x + torch.randn(x.shape, generator=torch.Generator().manual_seed(n), dtype=x.dtype),
    "seeded": SeededAugment(lambda x: x + torch.randn_like(x) * random.random() * np.random.rand(), seed=1),
    "in place": lambda x, n: x.mul_(1 + n).clamp_(-1, 1),
    "the images themselves": lambda x, n: x,
    "channels-last": lambda x, n: (2 * x).contiguous(memory_format=torch.channels_last),
    "a NaN": lambda x, n: x * torch.tensor([1, float("nan"), 1], dtype=x.dtype).view(3, 1, 1),
}


@pytest.mark.parametrize("kind", REPEATING)
@pytest.mark.parametrize("options", [{"syn_steps": 3}, {"batches": torch.tensor([[0, 1, 1], [3, 5, 2]])}])
def test_one_that_repeats_gives_the_gradients_of_plain_autograd(kind, options):
    got = run(make("convnet"), REPEATING[kind], **options)
    expected = run(make("convnet"), REPEATING[kind], FullUnroll(), **options)
    for g, e in zip(got, expected, strict=True):
        if kind == "a NaN":
            assert torch.equal(g.isnan(), e.isnan()) and g.isnan().any()
        else:
            assert relative_error(g, e) < EXACT


def test_an_augmentation_in_place_leaves_the_images_alone():
    start = parameters_to_vector(make("convnet").parameters()).detach()
    images = normal(6, 3, SIDE, SIDE, seed=1).requires_grad_()
    before = images.detach().clone()
    last = ddfast.unroll(
        make("convnet"), start, images, torch.arange(6) % K, 0.1, syn_steps=2, augment=lambda x, n: x.zero_().add_(1)
    )
    assert torch.equal(torch.autograd.grad(last.sum(), images)[0], torch.zeros_like(images))
    assert torch.equal(images, before)


def test_under_autocast_the_backward_augments_as_the_forward_sweep_did():
    blur = nn.functional.conv2d
    weight = normal(3, 3, 3, 3, seed=4).float()
    network = PlainConvNet(3, K, 4, (SIDE, SIDE))
    start = parameters_to_vector(network.parameters()).detach()
    images = normal(6, 3, SIDE, SIDE, seed=1).float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        last = ddfast.unroll(
            network, start, images, torch.arange(6) % K, 0.1, syn_steps=2,
            augment=lambda x, n: blur(x, weight, padding=1).float(),
        )  # fmt: skip
    (gradient,) = torch.autograd.grad(last.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().max() > 0


@pytest.mark.parametrize("kind", ["detached", "without a graph"])
def test_an_augmentation_without_a_graph_is_refused(kind):
    def augment(images, n):
        with torch.set_grad_enabled(kind == "detached"):
            return (2 * images).detach() if kind == "detached" else 2 * images

    with pytest.raises(ValueError, match="augment: expected a function differentiable in the images"):
        run(make("convnet"), augment)


class Drawing(nn.Module):
    """A network whose forward pass draws how it scales its logits."""

    def __init__(self, draw):
        super().__init__()
        self.network, self.draw = PlainConvNet(3, K, 4, (SIDE, SIDE)).double(), draw

    def forward(self, images):
        return self.network(images) * (0.5 + self.draw())


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(())), np.random.normal])
@pytest.mark.parametrize("plan", [Plan(), Plan(state_every=2), Plan(micro_batch=4)])
def test_a_network_that_draws_from_a_global_state_draws_the_same_again(draw, plan):
    adjoint = CheckpointedUnroll(plan=plan)  # plain autograd cuts no minibatches: it would draw less often
    network, results = Drawing(draw), []
    for one in (FullUnroll() if plan.micro_batch is None else adjoint, adjoint):
        torch.manual_seed(1), np.random.seed(1), random.seed(1)
        results.append(run(network, None, one))
        after = torch.rand(()), np.random.rand(), random.random()
        results[-1] += [torch.tensor(float(number)) for number in after]
    for got, expected in zip(*results, strict=True):
        assert relative_error(got, expected) < EXACT


@pytest.mark.parametrize("own", OWN)
def test_a_network_that_draws_from_a_generator_of_its_own_is_refused(own):
    draw = {
        "torch": lambda: float(torch.rand((), generator=OWN["torch"])),
        "numpy": OWN["numpy"].random,
        "python": OWN["python"].random,
    }[own]
    with pytest.raises(ValueError, match=r"student: the backward runs a step of Drawing again and got the loss"):
        run(Drawing(draw), None)


@pytest.mark.parametrize("name", ["convnet", "dropout"])
@pytest.mark.parametrize("adjoint", [None, FullUnroll(), DetachedUnroll()])
def test_target_weights_that_are_no_distribution_are_told(name, adjoint):
    logits = normal(6, K, seed=3).abs()
    with pytest.warns(
        UserWarning, match=r"labels: target weights sum to .* not to 1: .* of logits give \.softmax\(1\)"
    ):
        run(make(name), None, adjoint, labels=logits)
    with pytest.raises(ValueError, match=r"negative ones; of logits give \.softmax\(1\)"):
        run(make(name), None, adjoint, labels=-logits)


@pytest.mark.filterwarnings("error")
def test_distributions_and_classes_are_taken_in_silence():
    for dtype in (torch.float32, torch.float64):
        labels = (50 * normal(6, K, seed=3)).to(dtype).softmax(1)
        run(make("convnet").to(dtype), None, labels=labels, dtype=dtype)
    run(make("convnet"), None, labels=nn.functional.one_hot(torch.arange(6) % K, K).double())


def test_what_was_drawn_beforehand_is_not_watched(monkeypatch):
    """A look at a device's images would wait for it."""
    draws = DSA("crop").draw_steps(3, 6, (SIDE, SIDE), torch.Generator().manual_seed(0))
    seen = Seen(Texture(1), torch.zeros(3, 6, 2).long(), draws)  # of a canvas as large as an image
    for name in ("__call__", "finish"):
        monkeypatch.setattr(Repeatable, name, lambda *arguments: pytest.fail("watched"))
    for augment in (draws, seen):
        run(make("dropout").eval(), augment)
