"""The inner loop of trajectory-matching code, written plainly from the papers' equations, and what replaces it."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

import ddfast
from ddfast.networks import ConvNet, NormReLUPool, alexnet, classic, resnet18
from ddfast.runtime import seeds
from tests.conftest import normal, relative_error
from tests.networks_for_tests import K, PlainConvNet

EXACT = 1e-9  # float64, sums in another order


def thin_vgg11(**options):
    """VGG-11 at an eighth of its width: at its own, 9 million parameters, float64 takes half a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classic, "VGG11", tuple(c if c == "pool" else c // 8 for c in classic.VGG11))
        return classic.vgg11(3, K, **options)


NETWORKS = {  # side, network
    "convnet": (16, lambda: ConvNet(3, K, width=8, depth=2, image_size=(16, 16))),
    "convnet of PyTorch's layers": (16, lambda: PlainConvNet(3, K, 8, (16, 16))),
    "batch-norm convnet": (16, lambda: ConvNet(3, K, width=8, depth=2, image_size=(16, 16), norm="batchnorm")),
    "vgg11": (32, thin_vgg11),
    "batch-norm vgg11": (32, lambda: thin_vgg11(norm="batchnorm")),
    "alexnet": (8, lambda: alexnet(3, K, (8, 8))),
    "resnet18": (16, lambda: resnet18(3, K, (16, 16))),
}
LARGE = ("alexnet", "resnet18")  # millions of parameters: few images and steps, few cases


def plain_loss(network, start, target, images, labels, lr, batches, augment, first_order):
    """Algorithm 1 and eq. 2 of MTT: every step's graph is kept. First order, TESLA's eq. 6: every step's gradient is
    taken at a constant, and their sum keeps its graph in the images."""
    names, shapes = zip(*((name, p.shape) for name, p in network.named_parameters()), strict=True)
    theta = start.clone().requires_grad_()
    for n, chosen in enumerate(batches):
        at = theta.detach().requires_grad_() if first_order else theta
        pieces = at.split([shape.numel() for shape in shapes])
        parameters = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        logits = functional_call(network, parameters, (augment(images[chosen], n),))
        log_p = logits.log_softmax(1)
        if labels.is_floating_point():
            loss = -(labels[chosen] * log_p).sum(1).mean()
        else:
            loss = -log_p.gather(1, labels[chosen][:, None]).mean()
        (grad,) = torch.autograd.grad(loss, at, create_graph=True)
        theta = theta - lr * grad
    return (theta - target).square().sum() / (start - target).square().sum()


def compared(name, *, soft=False, dsa=False, first_order=False, device="cpu"):
    """Loss and gradients in images, learning rate and label logits, before and after, and the buffers left behind."""
    side, make = NETWORKS[name]
    count, steps, batch = (2, 2, 1) if name in LARGE else (6, 4, 4)
    generator = seeds.generator(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make().double().to(device)
    start = parameters_to_vector(network.parameters()).detach()
    target = start + 0.01 * normal(len(start), seed=1, device=device)
    images = normal(count, 3, side, side, seed=2, device=device)
    lr = torch.tensor(0.05, dtype=torch.float64, device=device)
    logits = normal(count, K, seed=3, device=device)
    orders = [torch.randperm(count, generator=generator) for _ in range(steps)]
    batches = torch.stack([order[:batch] for order in orders]).to(device)
    strategy = ddfast.data.DSA("color_crop_cutout_flip_scale_rotate" if dsa else "none")
    augment = strategy.draw_steps(steps, batch, (side, side), generator)
    leaves = [leaf.requires_grad_() for leaf in (images, lr, *([logits] if soft else []))]
    labels = logits.softmax(1) if soft else (torch.arange(count) % K).to(device)

    before = copy.deepcopy(network)
    loss = plain_loss(before, start, target, images, labels, lr, batches, augment or (lambda x, n: x), first_order)
    expected = [loss, *torch.autograd.grad(loss, leaves, retain_graph=True), *before.buffers()]

    adjoint = ddfast.adjoints.DetachedUnroll() if first_order else None
    loss = ddfast.match_trajectory(
        network, start, target, images, labels, lr, batches=batches, augment=augment, adjoint=adjoint
    )
    return [loss, *torch.autograd.grad(loss, leaves), *network.buffers()], expected


def assert_equal(name, **options):
    for got, expected in zip(*compared(name, **options), strict=True):
        assert expected.abs().max() > 0 and relative_error(got, expected) < EXACT


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in LARGE])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize("dsa", [False, True], ids=["as they are", "DSA"])
@pytest.mark.parametrize("first_order", [False, True], ids=["exact", "first order"])
def test_one_call_gives_the_loss_and_gradients_of_the_plain_loop(name, soft, dsa, first_order, device):
    assert_equal(name, soft=soft, dsa=dsa, first_order=first_order, device=device)


@pytest.mark.parametrize("name, first_order", [("alexnet", False), ("alexnet", True), ("resnet18", False)])
def test_one_call_gives_the_loss_and_gradients_of_the_plain_loop_of_a_large_network(name, first_order, device):
    assert_equal(name, soft=True, dsa=True, first_order=first_order, device=device)


def test_the_first_order_loop_is_not_the_exact_one():
    exact, first_order = (compared("convnet", first_order=which)[1] for which in (False, True))
    assert relative_error(first_order[0], exact[0]) < EXACT and relative_error(first_order[1], exact[1]) > 1e-3


def test_the_convnet_as_a_module_serves_the_plain_loop(device):
    """The fused layers under create_graph=True, through all steps, against PyTorch's layers."""
    theirs, ours = (compared(name, soft=True, dsa=True, device=device)[1] for name in list(NETWORKS)[1::-1])
    assert all(relative_error(got, expected) < EXACT for got, expected in zip(ours, theirs, strict=True))


def test_the_fused_layer_as_a_module_is_differentiable_twice_like_pytorchs_layers(device):
    modules = [NormReLUPool(8), nn.Sequential(nn.GroupNorm(8, 8), nn.ReLU(), nn.AvgPool2d(2))]
    results = []
    for module in modules:
        module.to(device, torch.float64)
        nn.utils.vector_to_parameters(normal(16, seed=1, device=device), module.parameters())
        z = normal(4, 8, 9, 12, device=device).requires_grad_()
        leaves = [z, *module.parameters()]
        y = module(z)
        first = torch.autograd.grad((y * normal(*y.shape, seed=2, device=device)).sum(), leaves, create_graph=True)
        outer = sum((g * normal(*g.shape, seed=3, device=device)).sum() + g.square().sum() for g in first)
        outer.backward()
        results.append([y, *first, *(leaf.grad for leaf in leaves)])
    assert all(relative_error(got, expected) < EXACT for got, expected in zip(*results, strict=True))
